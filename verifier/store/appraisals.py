"""Results: exactly one for a session, inserted with everything that follows from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from verifier.appraisal import Held
from verifier.errors import RequestError
from verifier.incidents import Draft, drafts
from verifier.schemes.base import Finding, Node, WalkRecord
from verifier.store import events, incidents, nodes, sessions
from verifier.store.database import Row, Tx
from verifier.store.sessions import StoredSession


@dataclass(frozen=True)
class Signed:
    """A result ready to be kept."""

    id: str
    token: str
    claims: str
    status: str
    issued_ms: int
    expires_ms: int


@dataclass(frozen=True)
class Submission:
    """What an appraisal leaves behind besides its result."""

    session_id: str
    node: Node
    evidence: bytes
    drafts: Sequence[Draft]
    passed: Sequence[str]
    walks: Mapping[str, WalkRecord]
    pin: str | None
    """The endpoint's TLS key, where the evidence proves one."""
    devices: Sequence[str]
    """What devices it declares."""
    public: bool
    """False for background checks: their result goes to the caller alone."""


async def complete(tx: Tx, submission: Submission, sign: Callable[[Held], Signed], now_ms: int) -> Row:
    """
    End a session with its one result, or give the result it already has.

    Everything that follows (walks kept, incidents opened, results revoked, events) is in
    the same transaction; open incidents are looked at in it, so that no result slips past.

    Raises:
        RequestError: the session is over, or was given other evidence.
    """
    session = await sessions.get(tx, submission.session_id)
    if (known := await result_of(tx, session, submission.evidence, now_ms)) is not None:
        return known
    node = submission.node
    # As it is now, not as it was when the appraisal began.
    current = await nodes.by_id(tx, node.id)
    live = current is not None and current.state != "retired" and current.key == node.key
    owner = None if submission.pin is None else await _owner(tx, submission.pin)
    taken = owner not in (None, node.id)
    foreign = await _foreign(tx, submission.devices, node.id)
    if submission.public and live:
        for model, record in submission.walks.items():
            await sessions.keep_walk(tx, submission.session_id, node.id, model, record)
        found = list(submission.drafts)
        if taken:
            found += drafts((Finding("identity.endpoint.taken", "another live node holds this TLS key"),))
        elif submission.pin is not None and owner is None:
            await _claim_pin(tx, submission.pin, node.id)
        if foreign:
            found += drafts((Finding("identity.duplicate-device", "another live node declares the device"),))
        await _claim_devices(tx, submission.devices, node.id)
        held_by = await incidents.apply(tx, node, submission.session_id, found, submission.passed, now_ms)
    else:
        held_by = await incidents.holding(tx, node.id)
    held = Held(held_by, taken, foreign, retired=not live)
    signed = sign(held)
    await tx.execute(
        "INSERT INTO appraisals (id, session_id, node_id, issued_ms, expires_ms, status, token, claims,"
        " evidence, public) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        signed.id,
        submission.session_id,
        node.id,
        signed.issued_ms,
        signed.expires_ms,
        signed.status,
        signed.token,
        signed.claims,
        submission.evidence,
        int(submission.public),
    )
    await tx.execute(
        "UPDATE sessions SET status = 'complete', node_id = ?, evidence_sha256 = ?, appraisal_id = ? WHERE id = ?",
        node.id,
        hashlib.sha256(submission.evidence).digest(),
        signed.id,
        submission.session_id,
    )
    if submission.public and live:
        data = {"node": node.id, "result": signed.id, "token": signed.token}
        await events.append(tx, now_ms, "result", data)
    return {
        "id": signed.id,
        "node_id": node.id,
        "status": signed.status,
        "token": signed.token,
        "claims": signed.claims,
        "evidence": submission.evidence,
    }


async def result_of(tx: Tx, session: StoredSession, evidence: bytes, now_ms: int) -> Row | None:
    """
    The result a session has for these bytes; `None` while it waits for evidence.

    Raises:
        RequestError: it is over, or it was given other bytes.
    """
    if session.status == "complete" and session.appraisal_id is not None:
        if session.evidence_sha256 != hashlib.sha256(evidence).digest():
            raise RequestError("this session was given other evidence", code="session.closed")
        known = await by_id(tx, session.appraisal_id)
        if known is None:
            raise RequestError("the session's result is no longer kept", code="session.expired")
        return known
    if session.status != "waiting" or session.expires_ms <= now_ms:
        raise RequestError("the session has expired or was dropped", code="session.expired")
    return None


async def _owner(tx: Tx, pin: str) -> str | None:
    row = await tx.one("SELECT node_id FROM endpoints WHERE pin = ?", pin)
    return None if row is None else str(row["node_id"])


async def _claim_pin(tx: Tx, pin: str, node_id: str) -> None:
    """A node serves with one TLS key, and a TLS key serves for one live node."""
    await tx.execute("DELETE FROM endpoints WHERE node_id = ? AND pin != ?", node_id, pin)
    await tx.execute(
        "INSERT INTO endpoints (pin, node_id) VALUES (?, ?) ON CONFLICT (pin) DO NOTHING", pin, node_id
    )


async def _foreign(tx: Tx, devices: Sequence[str], node_id: str) -> frozenset[str]:
    """Those of *devices* that another live node declared first."""
    found = set()
    for device in devices:
        row = await tx.one("SELECT node_id FROM devices WHERE device = ?", device)
        if row is not None and row["node_id"] != node_id:
            found.add(device)
    return frozenset(found)


async def _claim_devices(tx: Tx, devices: Sequence[str], node_id: str) -> None:
    """A device is the first live node's that declares it, for as long as it goes on declaring it."""
    held = await tx.all("SELECT device FROM devices WHERE node_id = ?", node_id)
    for row in held:
        if row["device"] not in devices:
            await tx.execute("DELETE FROM devices WHERE device = ?", row["device"])
    for device in devices:
        await tx.execute(
            "INSERT INTO devices (device, node_id) VALUES (?, ?) ON CONFLICT (device) DO NOTHING",
            device,
            node_id,
        )


async def by_id(tx: Tx, appraisal_id: str) -> Row | None:
    """A result by its id (`jti`)."""
    return await tx.one("SELECT * FROM appraisals WHERE id = ?", appraisal_id)


async def latest(tx: Tx, node_id: str) -> Row | None:
    """A node's newest public result."""
    return await tx.one(
        "SELECT * FROM appraisals WHERE node_id = ? AND public = 1 ORDER BY issued_ms DESC, rowid DESC LIMIT 1",
        node_id,
    )


async def newest(tx: Tx, now_ms: int, after: str, limit: int) -> list[Row]:
    """The newest public result of each node that has an unexpired one, by node id; revoked or not."""
    return await tx.all(
        "SELECT a.* FROM appraisals a JOIN ("
        "  SELECT node_id, max(rowid) AS newest FROM appraisals WHERE public = 1 AND node_id > ?"
        "  AND expires_ms > ? GROUP BY node_id ORDER BY node_id LIMIT ?"
        ") n ON n.newest = a.rowid ORDER BY a.node_id",
        after,
        now_ms,
        limit,
    )


async def prune(tx: Tx, before_ms: int) -> None:
    """Forget results issued before *before_ms*; their sessions stay, so that no nonce comes twice."""
    await tx.execute("DELETE FROM appraisals WHERE issued_ms < ?", before_ms)
