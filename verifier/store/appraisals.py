"""Results: exactly one for a session, inserted with everything that follows from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from verifier.appraisal import NodeSnapshot
from verifier.errors import RequestError
from verifier.incidents import Draft, drafts
from verifier.recording import Record, VerifierInputNames, summary_of
from verifier.results import AttestationResult, NodeRecord
from verifier.schemes.context import Node, WalkRecord
from verifier.schemes.findings import Finding
from verifier.store import events, incidents, nodes, policies, recordings, sessions
from verifier.store.database import Row, Tx
from verifier.store.sessions import StoredSession


@dataclass(frozen=True)
class Signed:
    """A result ready to be kept."""

    result: AttestationResult
    id: str
    token: str
    claims: str
    status: str
    issued_ms: int
    expires_ms: int


class StaleError(Exception):
    """Something of ours changed while evidence was appraised: appraise it again."""


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
    generation: int
    """The newest change of ours that it was appraised under."""
    basis: VerifierInputNames
    input: bytes
    """The policy's input."""
    record: Callable[[NodeSnapshot, AttestationResult], Record]
    """What is recorded of it, given what the database held against the node, and the result."""


async def complete(
    tx: Tx, submission: Submission, sign: Callable[[NodeSnapshot], Signed], now_ms: int
) -> Row:
    """
    End a session with its one result, or give the result it already has.

    Everything that follows (recording, walks kept, incidents opened, results revoked, events)
    is in the same transaction; open incidents are looked at in it, so that no result slips past.

    Raises:
        RequestError: the session is over, or was given other evidence.
        StaleError: a policy, a reference value or a block changed since the appraisal began.
    """
    session = await sessions.get(tx, submission.session_id)
    if (known := await result_of(tx, session, submission.evidence, now_ms)) is not None:
        return known
    rollout = await policies.rollout(tx)
    if rollout is None or rollout.generation != submission.generation:
        raise StaleError
    node = submission.node
    held = await held_now(tx, node, submission.pin, submission.devices)
    if submission.public and not held.retired:
        for model, record in submission.walks.items():
            await sessions.keep_walk(tx, submission.session_id, node.id, model, record)
        found = list(submission.drafts)
        if held.endpoint_taken:
            found += drafts((Finding("identity.endpoint.taken", "another live node holds this TLS key"),))
        elif submission.pin is not None:
            await _claim_pin(tx, submission.pin, node.id)
        if held.devices_taken:
            found += drafts((Finding("identity.duplicate-device", "another live node declares the device"),))
        await _claim_devices(tx, submission.devices, node.id)
        held_by = await incidents.apply(tx, node, submission.session_id, found, submission.passed, now_ms)
        held = replace(held, quarantined_by=held_by)
    signed = sign(held)
    await _insert(tx, signed, submission, signed.id, submission.generation, submission.basis)
    kept = submission.record(held, signed.result)
    await recordings.keep(
        tx,
        signed.id,
        signed.issued_ms,
        submission.evidence,
        submission.input,
        kept,
        summary_of(kept, signed.result),
        public=submission.public,
    )
    await tx.execute(
        "UPDATE sessions SET status = 'complete', node_id = ?, evidence_sha256 = ?, appraisal_id = ? WHERE id = ?",
        node.id,
        hashlib.sha256(submission.evidence).digest(),
        signed.id,
        submission.session_id,
    )
    if submission.public and not held.retired:
        data = {"node": node.id, "result": signed.id, "token": signed.token}
        await events.append(tx, now_ms, "result", data)
    return {"id": signed.id, "node_id": node.id, "status": signed.status, "token": signed.token}


class _Of(Protocol):
    """What a result is of."""

    @property
    def session_id(self) -> str: ...
    @property
    def node(self) -> Node: ...
    @property
    def public(self) -> bool: ...


async def _insert(
    tx: Tx, signed: Signed, of: _Of, origin: str, generation: int, basis: VerifierInputNames
) -> None:
    await tx.execute(
        "INSERT INTO appraisals (id, session_id, node_id, issued_ms, expires_ms, status, token, claims, public,"
        " origin, basis, generation) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        signed.id,
        of.session_id,
        of.node.id,
        signed.issued_ms,
        signed.expires_ms,
        signed.status,
        signed.token,
        signed.claims,
        int(of.public),
        origin,
        msgspec.json.encode(basis).decode(),
        generation,
    )


async def held_now(tx: Tx, node: Node, pin: str | None, devices: Sequence[str]) -> NodeSnapshot:
    """What the database holds against a node as it is now, not as it was when its appraisal began."""
    current = await nodes.by_id(tx, node.id)
    live = current is not None and current.state != "retired" and current.key == node.key
    owner = None if pin is None else await _owner(tx, pin)
    return NodeSnapshot(
        quarantined_by=await incidents.holding(tx, node.id),
        endpoint_taken=owner not in (None, node.id),
        devices_taken=await _foreign(tx, devices, node.id),
        retired=not live,
        node=None if current is None else _record_of(current),
    )


def _record_of(node: Node) -> NodeRecord:
    return NodeRecord(node.operator, node.enrolled_ms // 1000, node.state, node.hardware_class)


@dataclass(frozen=True)
class Outdated:
    """A live result that was judged before the newest change of ours."""

    seq: int
    id: str
    session_id: str
    node_id: str
    origin: str
    basis: str
    claims: str
    issued_ms: int
    expires_ms: int


async def outdated(tx: Tx, generation: int, now_ms: int, limit: int) -> list[Outdated]:
    """Live results from before *generation*, the newest of their nodes."""
    rows = await tx.all(
        "SELECT seq, id, session_id, node_id, origin, basis, claims, issued_ms, expires_ms"
        " FROM appraisals a INDEXED BY appraisals_live"
        " WHERE public = 1 AND revoked_ms IS NULL AND generation < ? AND expires_ms > ?"
        " AND NOT EXISTS (SELECT 1 FROM appraisals n WHERE n.node_id = a.node_id AND n.public = 1 AND n.seq > a.seq)"
        " ORDER BY seq LIMIT ?",
        generation,
        now_ms,
        limit,
    )
    return [Outdated(**row) for row in rows]


async def still_stands(tx: Tx, known: Sequence[Outdated], generation: int) -> None:
    """Results that the newest changes do not touch."""
    marks = ", ".join("?" for _ in known)
    await tx.execute(
        f"UPDATE appraisals SET generation = ? WHERE id IN ({marks})", generation, *(r.id for r in known)
    )


@dataclass(frozen=True)
class Anew:
    """A recorded appraisal judged anew: no incident follows from it, nor does it get younger."""

    known: Outdated
    node: Node
    pin: str | None
    devices: Sequence[str]
    basis: VerifierInputNames
    generation: int
    public: bool = True

    @property
    def session_id(self) -> str:
        """The session of the evidence."""
        return self.known.session_id


async def replace_result(tx: Tx, anew: Anew, sign: Callable[[NodeSnapshot], Signed], now_ms: int) -> None:
    """
    Put a result judged anew in the place of the one before, unless that is no longer the newest.

    Raises:
        StaleError: something of ours changed meanwhile.
    """
    rollout = await policies.rollout(tx)
    if rollout is None or rollout.generation != anew.generation:
        raise StaleError
    newest = await latest(tx, anew.node.id)
    if newest is None or newest["id"] != anew.known.id or newest["revoked_ms"] is not None:
        return
    signed = sign(await held_now(tx, anew.node, anew.pin, anew.devices))
    await _end_earlier(tx, anew.node.id, now_ms)
    await _insert(tx, signed, anew, anew.known.origin, anew.generation, anew.basis)
    data = {"node": anew.node.id, "result": signed.id, "token": signed.token}
    await events.append(tx, now_ms, "result", data)


async def lose(tx: Tx, known: Outdated, now_ms: int) -> None:
    """A result that cannot be judged anew is worth nothing under what holds now, unless it is not the newest."""
    newest = await latest(tx, known.node_id)
    if newest is not None and newest["id"] == known.id and await _end_earlier(tx, known.node_id, now_ms):
        await events.append(tx, now_ms, "revocation", {"node": known.node_id})


async def _end_earlier(tx: Tx, node_id: str, now_ms: int) -> int:
    """Whoever shows an unexpired result of before is told at its status that it counts no more."""
    return await tx.execute(
        "UPDATE appraisals SET revoked_ms = ? WHERE node_id = ? AND revoked_ms IS NULL AND expires_ms > ?",
        now_ms,
        node_id,
        now_ms,
    )


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
        "SELECT * FROM appraisals WHERE node_id = ? AND public = 1 ORDER BY seq DESC LIMIT 1",
        node_id,
    )


async def newest(tx: Tx, now_ms: int, after: str, limit: int) -> list[Row]:
    """The newest public result of each node that has an unexpired one, by node id; revoked or not."""
    return await tx.all(
        "SELECT a.* FROM appraisals a JOIN ("
        "  SELECT node_id, max(seq) AS newest FROM appraisals INDEXED BY appraisals_live"
        "  WHERE public = 1 AND node_id > ?"
        "  AND expires_ms > ? GROUP BY node_id ORDER BY node_id LIMIT ?"
        ") n ON n.newest = a.seq ORDER BY a.node_id",
        after,
        now_ms,
        limit,
    )


async def prune(tx: Tx, before_ms: int) -> None:
    """Forget results issued before *before_ms*; their sessions stay, so that no nonce comes twice."""
    await tx.execute("DELETE FROM appraisals WHERE issued_ms < ?", before_ms)
