"""Results: one for each session, inserted with everything that follows from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from verifier.appraisal import NodeSnapshot
from verifier.errors import RequestError
from verifier.incidents import Draft, drafts
from verifier.policy.rollout import Rollout
from verifier.recording import Record, VerifierInputNames, summary_of
from verifier.results import AttestationResult
from verifier.schemes.context import Node, WalkRecord
from verifier.schemes.findings import Finding
from verifier.store import (
    events,
    incidents,
    policies,
    recordings,
    result_entries,
    revisions,
    revocations,
    sessions,
    walks,
)
from verifier.store.database import Row, Tx
from verifier.store.node_state import HeldNow, SeenNode, StaleError, held_now
from verifier.store.revisions import ShownRevision
from verifier.store.sessions import StoredSession
from verifier.trust import Tier


class Signed(Struct, frozen=True, kw_only=True):
    """A signed result, ready to be stored."""

    result: AttestationResult
    id: str
    token: str
    claims: str
    status: str
    issued_ms: int
    expires_ms: int


Sign: TypeAlias = Callable[[NodeSnapshot, int], Signed]
"""Concludes and signs a result, from what the database holds against the node and the result's number."""


class Submission(Struct, frozen=True, kw_only=True):
    """An appraisal of submitted evidence: all that is stored besides the result."""

    session: StoredSession
    """As it was when the request came."""
    node: Node
    evidence: bytes
    drafts: Sequence[Draft]
    """The incidents that its findings make."""
    passed: Sequence[str]
    """The causes at which the node passed (`verifier.incident_rules.record_passes`)."""
    walks: Mapping[str, WalkRecord]
    """By model."""
    shown: Mapping[str, ShownRevision]
    """By model of which several revisions are known, the one whose files it lists."""
    pin: str | None
    """The digest of the endpoint's TLS key, if the evidence proves one."""
    devices: Sequence[str]
    """The devices that it declares."""
    public: bool
    """False for background checks: their result goes to the caller alone."""
    rollout: Rollout
    """As the appraisal took it into account."""
    seen: SeenNode
    """What it took into account of the node."""
    basis: VerifierInputNames
    input: bytes
    """The policy's input."""
    record: Callable[[NodeSnapshot, AttestationResult], Record]
    """Makes the record, from what the database held against the node and from the result."""

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.session.id

    @property
    def generation(self) -> int:
        """The number of the newest change on the verifier's side that the appraisal took into account."""
        return self.rollout.generation


@dataclass(frozen=True)
class Completed:
    """The result of a session."""

    row: Row
    is_new: bool
    walks: Mapping[str, tuple[int, WalkRecord]] = field(default_factory=dict)
    """By model, the walk that was kept for later appraisals, with its number."""


async def complete(tx: Tx, submission: Submission, sign: Sign, now_ms: int) -> Completed:
    """
    End a session with its one result, or give the result that it has already.

    Everything that follows (recording, walks, incidents, revocations, events) is in the same transaction.
    The node's open incidents are read in it too, so that no result can miss one.

    Args:
        sign: Concludes and signs the result, from what the database holds against the node, with the number that
            orders the node's results.

    Raises:
        RequestError: The session is over, or was given other evidence.
        StaleError: A policy, a reference value, a block, or what was known of the node, has changed since.
    """
    if submission.session.sealed:
        session = await sessions.store_sealed(tx, submission.session)
    else:
        session = await sessions.state_of(tx, submission.session)
    if (known := await result_of(tx, session, submission.evidence, now_ms)) is not None:
        return Completed(known, is_new=False)
    if await policies.rollout(tx) != submission.rollout:
        raise StaleError
    now = await held_now(tx, submission.node, submission.pin, submission.devices, submission.seen)
    held = now.snapshot
    kept: dict[str, tuple[int, WalkRecord]] = {}
    if submission.public and not held.retired:
        for model, record in submission.walks.items():
            kept[model] = await walks.keep(tx, submission.session_id, submission.node.id, model, record)
        held = await _take_consequences(tx, submission, now, now_ms)
    signed = sign(held, now.sequence)
    announced = submission.public and not held.retired
    if announced and signed.status != Tier.AFFIRMING:
        # Whoever cannot read the new result must not go on with a better one.
        await revocations.revoke_results(tx, submission.node.id, now_ms, "worse")
    await _insert(tx, signed, submission, now_ms, origin=signed.id)
    await _record(tx, submission, signed, held)
    await _end_session(tx, submission, signed.id)
    if announced:
        await _announce(tx, submission.node.id, signed, now_ms)
        await _take_shown(tx, submission, now_ms)
    row = {"id": signed.id, "node_id": submission.node.id, "status": signed.status, "token": signed.token}
    return Completed(row, is_new=True, walks=kept)


async def _check_generation(tx: Tx, generation: int) -> None:
    rollout = await policies.rollout(tx)
    if rollout is None or rollout.generation != generation:
        raise StaleError


async def _take_consequences(tx: Tx, submission: Submission, now: HeldNow, now_ms: int) -> NodeSnapshot:
    """Claim the endpoint and the devices, and take the findings; gives what holds the node now."""
    node, held = submission.node, now.snapshot
    found = list(submission.drafts)
    if held.endpoint_taken:
        found += drafts((Finding("identity.endpoint.taken", "another live node holds this TLS key"),))
    elif submission.pin not in (None, now.pin):
        await _claim_pin(tx, submission.pin, node.id)
    if held.devices_taken:
        found += drafts((Finding("identity.duplicate-device", "another live node declares the device"),))
    if submission.devices or now.devices:
        await _claim_devices(tx, submission.devices, node.id)
    held_by = await incidents.take_evidence(
        tx, node, submission.session_id, found, submission.passed, held.quarantined_by, now_ms
    )
    return replace(held, quarantined_by=held_by)


async def _take_shown(tx: Tx, submission: Submission, now_ms: int) -> None:
    """Take in which revisions the evidence shows.  If they are replaced by now, its result is revoked at once."""
    if not submission.shown:
        return
    node_id, issued_ms = submission.node.id, submission.session.issued_ms
    if await revisions.take_shown(tx, node_id, submission.shown, issued_ms, now_ms):
        await revocations.revoke_results(tx, node_id, now_ms, "another-revision")


async def _record(tx: Tx, submission: Submission, signed: Signed, held: NodeSnapshot) -> None:
    record = submission.record(held, signed.result)
    await recordings.keep(
        tx,
        signed.id,
        submission.session_id,
        signed.issued_ms,
        submission.evidence,
        submission.input,
        record,
        summary_of(record, signed.result),
        public=submission.public,
    )


async def _end_session(tx: Tx, submission: Submission, appraisal_id: str) -> None:
    await tx.execute(
        "UPDATE sessions SET status = 'complete', node_id = ?, evidence_sha256 = ?, appraisal_id = ? WHERE id = ?",
        submission.node.id,
        hashlib.sha256(submission.evidence).digest(),
        appraisal_id,
        submission.session_id,
    )


async def _announce(tx: Tx, node_id: str, signed: Signed, now_ms: int) -> None:
    sequence = signed.result.ear_touchstone_sequence
    data = {"node": node_id, "result": signed.id, "sequence": sequence, "token": signed.token}
    await events.append(tx, now_ms, "result", data)


class _Appraised(Protocol):
    """What `Submission` and `Reappraisal` have in common."""

    @property
    def session_id(self) -> str: ...
    @property
    def node(self) -> Node: ...
    @property
    def public(self) -> bool: ...
    @property
    def generation(self) -> int: ...
    @property
    def basis(self) -> VerifierInputNames: ...


async def _insert(tx: Tx, signed: Signed, appraised: _Appraised, now_ms: int, *, origin: str) -> None:
    """
    Insert a result, and log it.

    Args:
        origin: The id of the result that its evidence was submitted for; its own, unless it is a reappraisal.
    """
    await tx.execute(
        "INSERT INTO appraisals (id, session_id, node_id, issued_ms, expires_ms, status, token, claims, public,"
        " origin, basis, generation, sequence) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        signed.id,
        appraised.session_id,
        appraised.node.id,
        signed.issued_ms,
        signed.expires_ms,
        signed.status,
        signed.token,
        signed.claims,
        int(appraised.public),
        origin,
        msgspec.json.encode(appraised.basis).decode(),
        appraised.generation,
        signed.result.ear_touchstone_sequence or 0,
    )
    await result_entries.write(
        tx, now_ms, signed.result, signed.token, appraised.node.id if appraised.public else None
    )


@dataclass(frozen=True, kw_only=True)
class OutdatedResult:
    """A live result that is older than the newest change on the verifier's side."""

    seq: int
    id: str
    session_id: str
    node_id: str
    origin: str
    basis: str
    claims: str
    issued_ms: int
    expires_ms: int


_NEWEST: Final = (
    "FROM nodes n JOIN appraisals a ON a.seq ="
    " (SELECT max(b.seq) FROM appraisals b WHERE b.node_id = n.id AND b.public = 1) WHERE n.id > ?"
)
"""The newest public result of each node, from a node's id on."""


async def outdated(tx: Tx, generation: int, now_ms: int, after: str, limit: int) -> list[OutdatedResult]:
    """
    Give live results that are older than *generation*, by node id; of each node only the newest result counts.

    Args:
        after: The id of a node: the results of nodes after it are given.
    """
    rows = await tx.all(
        "SELECT a.seq, a.id, a.session_id, a.node_id, a.origin, a.basis, a.claims, a.issued_ms, a.expires_ms"
        f" {_NEWEST} AND a.revoked_ms IS NULL AND a.generation < ? AND a.expires_ms > ? ORDER BY n.id LIMIT ?",
        after,
        generation,
        now_ms,
        limit,
    )
    return [OutdatedResult(**row) for row in rows]


async def mark_current(tx: Tx, known: Sequence[OutdatedResult], generation: int) -> None:
    """Mark results as up to date with *generation*: its changes do not affect them."""
    marks = ", ".join("?" for _ in known)
    await tx.execute(
        f"UPDATE appraisals SET generation = ? WHERE id IN ({marks})", generation, *(r.id for r in known)
    )


@dataclass(frozen=True, kw_only=True)
class Reappraisal:
    """
    A recorded appraisal done again.

    No incident follows from it.  Its result expires no later, because it keeps the recorded times
    (`verifier.recording.conclude`).
    """

    known: OutdatedResult
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


async def replace_result(tx: Tx, reappraisal: Reappraisal, sign: Sign, now_ms: int) -> None:
    """
    Replace a result by one that was appraised again, unless the node has a newer result.

    Raises:
        StaleError: A policy, a reference value or a block has changed meanwhile.
    """
    await _check_generation(tx, reappraisal.generation)
    node = reappraisal.node
    current = await latest(tx, node.id)
    if current is None or current["id"] != reappraisal.known.id or current["revoked_ms"] is not None:
        return
    held = await held_now(tx, node, reappraisal.pin, reappraisal.devices)
    signed = sign(held.snapshot, held.sequence)
    ended = await revocations.end_results(tx, node.id, now_ms, "appraised-anew")
    if signed.status != Tier.AFFIRMING:
        await revocations.announce(tx, node.id, ended, now_ms)
    await _insert(tx, signed, reappraisal, now_ms, origin=reappraisal.known.origin)
    await _announce(tx, node.id, signed, now_ms)


async def revoke_outdated(tx: Tx, known: OutdatedResult, now_ms: int) -> None:
    """Revoke a result that cannot be appraised again, unless the node has a newer result."""
    current = await latest(tx, known.node_id)
    if current is not None and current["id"] == known.id:
        await revocations.revoke_results(tx, known.node_id, now_ms, "appraised-anew")


async def result_of(tx: Tx, session: StoredSession, evidence: bytes, now_ms: int) -> Row | None:
    """
    Give the result that a session has for these bytes; `None` while the session waits for evidence.

    Raises:
        RequestError: The session is over, or it was given other bytes.
    """
    if session.status == "complete" and session.appraisal_id is not None:
        if session.evidence_sha256 != hashlib.sha256(evidence).digest():
            raise RequestError("this session was given other evidence", code="session.closed")
        known = await by_id(tx, session.appraisal_id)
        if known is None:
            raise RequestError("the result of this session is no longer stored", code="session.expired")
        return known
    check_waiting(session, now_ms)
    return None


def check_waiting(session: StoredSession, now_ms: int) -> None:
    """Check that a session waits for evidence.  Raises `RequestError`."""
    if session.status != "waiting" or session.expires_ms <= now_ms:
        raise RequestError("the session has expired or was dropped", code="session.expired")


async def _claim_pin(tx: Tx, pin: str, node_id: str) -> None:
    """Let a node serve with one TLS key, and a TLS key serve one live node."""
    # Two nodes may claim the same key at the same moment.
    await tx.alone()
    await tx.execute("DELETE FROM endpoints WHERE node_id = ? AND pin != ?", node_id, pin)
    await tx.execute(
        "INSERT INTO endpoints (pin, node_id) VALUES (?, ?) ON CONFLICT (pin) DO NOTHING", pin, node_id
    )


async def _claim_devices(tx: Tx, devices: Sequence[str], node_id: str) -> None:
    """Let a device belong to the first live node that declares it, as long as that node declares it."""
    held = await tx.all("SELECT device FROM devices WHERE node_id = ?", node_id)
    if {row["device"] for row in held} == set(devices):
        return
    # Two nodes may claim the same device at the same moment.
    await tx.alone()
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
    """Give a result by its id (`jti`); `None` if there is none."""
    return await tx.one("SELECT * FROM appraisals WHERE id = ?", appraisal_id)


async def latest(tx: Tx, node_id: str) -> Row | None:
    """Give the newest public result of a node; `None` if there is none."""
    return await tx.one(
        "SELECT * FROM appraisals WHERE node_id = ? AND public = 1 ORDER BY seq DESC LIMIT 1",
        node_id,
    )


async def newest(tx: Tx, now_ms: int, after: str, limit: int, operator: str | None = None) -> list[Row]:
    """
    Give the newest public result, revoked or not, of each node that has an unexpired one; by node id.

    `void` is the highest number of the node's revoked results, 0 if it has none.

    Args:
        operator: The operator whose nodes alone are looked at.
    """
    of_operator, values = ("", [after, now_ms])
    if operator is not None:
        of_operator, values = " AND n.operator = ?", [after, now_ms, operator]
    return await tx.all(
        "SELECT a.*, coalesce((SELECT max(r.sequence) FROM appraisals r"
        "  WHERE r.node_id = n.id AND r.revoked_ms IS NOT NULL), 0) AS void"
        f" {_NEWEST} AND a.expires_ms > ?{of_operator} ORDER BY n.id LIMIT ?",
        *values,
        limit,
    )


async def prune(tx: Tx, before_ms: int, limit: int) -> int:
    """Delete up to *limit* of the oldest results that were issued before *before_ms*."""
    rows = await tx.all("SELECT seq, issued_ms FROM appraisals ORDER BY seq LIMIT ?", limit)
    old = [row["seq"] for row in rows if row["issued_ms"] < before_ms]
    return await tx.execute("DELETE FROM appraisals WHERE seq <= ?", old[-1]) if old else 0
