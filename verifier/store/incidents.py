"""Incidents: made in the transaction of the result that shows them, ended by people."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from verifier import reasons
from verifier.errors import RequestError
from verifier.incidents import (
    BLAST_WINDOW_MS,
    HOLDING,
    MANY_MINOR,
    REFERENCE_SUSPECT,
    REVIEW_TARGET_MS,
    Disposition,
    Draft,
    Severity,
    State,
    Tally,
    disposition,
    is_another,
    step,
)
from verifier.schemes.context import Node
from verifier.schemes.findings import Finding
from verifier.store import events
from verifier.store.database import Row, Tx

_HOLDING = ", ".join(f"'{state}'" for state in HOLDING)
_NOTE_TOGETHER_MS = 3600 * 1000
"""Minor incidents of one node and code within this time are one, counted."""
_SELECT: Final = (
    "SELECT i.*, p.actor AS proposed_by FROM incidents i"
    " LEFT JOIN proposals p ON p.incident_id = i.id AND p.cause = ''"
)


async def holding(tx: Tx, node_id: str) -> str | None:
    """The open incident that keeps a node in quarantine, if there is one."""
    row = await tx.one(
        f"SELECT id FROM incidents WHERE node_id = ? AND state IN ({_HOLDING}) ORDER BY opened_ms LIMIT 1",
        node_id,
    )
    return None if row is None else str(row["id"])


async def apply(
    tx: Tx, node: Node, session_id: str | None, found: Sequence[Draft], passed: Sequence[str], now_ms: int
) -> str | None:
    """
    Turn what one piece of signed evidence showed into incidents, and others' suspicion into certainty.

    Returns:
        The incident that holds the node afterwards.
    """
    held = await holding(tx, node.id)
    # Who is out, or held, has no voice about others.
    if passed and held is None and node.state != "retired":
        await _speak_for(tx, passed, node.operator, now_ms)
    for draft in found:
        await take_in(tx, draft, node, session_id, now_ms)
    return await holding(tx, node.id) if found else held


async def take_in(tx: Tx, draft: Draft, node: Node, session_id: str | None, now_ms: int) -> str:
    """Make an incident of a finding about *node*, or count it into one that is known; its id."""
    if draft.severity is Severity.MINOR:
        return await _note_minor(tx, draft, node.id, node.operator, session_id, now_ms)
    return await _serious(tx, draft, node, session_id, now_ms)


async def _speak_for(tx: Tx, passed: Sequence[str], operator: str, now_ms: int) -> None:
    marks = ", ".join("(?, ?, 1)" for _ in passed)
    await tx.execute(
        f"INSERT INTO tallies (cause, operator, passed) VALUES {marks} ON CONFLICT DO NOTHING",
        *(value for cause in passed for value in (cause, operator)),
    )
    if (
        await tx.one("SELECT 1 AS one FROM incidents WHERE state = 'suspected' AND opened_ms > 0 LIMIT 1")
        is not None
    ):
        for cause in passed:
            await _confirm(tx, cause, now_ms, but_not=operator)


async def _serious(tx: Tx, draft: Draft, node: Node, session_id: str | None, now_ms: int) -> str:
    """One incident a node and kind, resting on everything it failed at; its id, or that of the review."""
    weight = Disposition.QUARANTINE
    if draft.cause is not None:
        weight = disposition(await _tally_of(tx, draft.cause, now_ms), node.operator, now_ms)
        await tx.execute(
            "INSERT INTO tallies (cause, operator, passed) VALUES (?, ?, 0) ON CONFLICT DO NOTHING",
            draft.cause,
            node.operator,
        )
    if weight is Disposition.REFERENCE_SUSPECT:
        return await _fold(tx, draft, now_ms)
    known = await tx.one(
        f"SELECT id, state FROM incidents WHERE node_id = ? AND kind = ? AND state IN ({_HOLDING}, 'suspected')",
        node.id,
        draft.kind,
    )
    if known is None:
        state = State.OPEN if weight is Disposition.QUARANTINE else State.SUSPECTED
        incident_id = await _insert(tx, draft, state, node.id, node.operator, session_id, now_ms)
        if state is State.OPEN:
            await revoke(tx, node.id, now_ms)
        return incident_id
    await _count(tx, known["id"], node.id, now_ms)
    await _rest_on(tx, known["id"], draft.cause)
    if known["state"] == State.SUSPECTED and weight is Disposition.QUARANTINE:
        await _move(tx, known["id"], State.OPEN, "verifier", "confirmed", now_ms)
        await revoke(tx, node.id, now_ms)
    return str(known["id"])


async def _count(tx: Tx, incident_id: str, node_id: str | None, now_ms: int) -> None:
    await tx.execute("UPDATE incidents SET count = count + 1, last_ms = ? WHERE id = ?", now_ms, incident_id)
    await _void_proposals(tx, incident_id, node_id, now_ms)


async def _void_proposals(tx: Tx, incident_id: str, node_id: str | None, now_ms: int) -> None:
    """Who proposed a release did not know of this finding: it takes two who do."""
    rows = await tx.all(
        "DELETE FROM proposals WHERE incident_id = ?"
        " OR incident_id IN (SELECT id FROM incidents WHERE node_id = ?) RETURNING incident_id",
        incident_id,
        node_id,
    )
    for each in sorted({row["incident_id"] for row in rows}):
        state = State((await get(tx, each))["state"])
        await _record(tx, each, state, "verifier", "there is a new finding", now_ms, "void-proposal")


async def _rest_on(tx: Tx, incident_id: str, cause: str | None) -> None:
    if cause is not None:
        await tx.execute(
            "INSERT INTO incident_causes (incident_id, cause) VALUES (?, ?) ON CONFLICT DO NOTHING",
            incident_id,
            cause,
        )


async def _resting_on(tx: Tx, cause: str, states: str) -> list[str]:
    """The incidents in *states* that rest on *cause*, alone or among others."""
    rows = await tx.all(
        "SELECT i.id FROM incidents i JOIN incident_causes c ON c.incident_id = i.id"
        f" WHERE c.cause = ? AND c.void = 0 AND i.state IN ({states}) AND i.kind != ?",
        cause,
        REFERENCE_SUSPECT,
    )
    return [str(row["id"]) for row in rows]


async def _void(tx: Tx, cause: str, resting: Sequence[str]) -> list[str]:
    """Those *resting* on *cause* do so no more; gives the ones that rested on it alone."""
    emptied = []
    for incident_id in resting:
        await tx.execute(
            "UPDATE incident_causes SET void = 1 WHERE incident_id = ? AND cause = ?", incident_id, cause
        )
        await tx.execute("DELETE FROM proposals WHERE incident_id = ? AND cause = ?", incident_id, cause)
        left = await tx.one(
            "SELECT 1 AS one FROM incident_causes WHERE incident_id = ? AND void = 0", incident_id
        )
        if left is None:
            emptied.append(incident_id)
    return emptied


async def _fold(tx: Tx, draft: Draft, now_ms: int) -> str:
    """Several operators fail at the same thing of ours: one review of that, no quarantine of them."""
    assert draft.cause is not None
    for incident_id in await _void(tx, draft.cause, await _resting_on(tx, draft.cause, "'suspected'")):
        await _move(tx, incident_id, State.FOLDED, "verifier", "the reference is suspect", now_ms)
    review = await _review_of(tx, draft.cause)
    if review is None:
        suspect = Draft(REFERENCE_SUSPECT, Severity.SERIOUS, draft.finding, draft.cause)
        return await _insert(tx, suspect, State.OPEN, None, None, None, now_ms)
    await _count(tx, review, None, now_ms)
    return review


async def _confirm(tx: Tx, cause: str, now_ms: int, *, but_not: str | None = None) -> None:
    """Somebody else passed where these failed: the suspicion against them stands."""
    rows = await tx.all(
        "SELECT i.id, i.node_id, i.operator FROM incidents i JOIN incident_causes c ON c.incident_id = i.id"
        " WHERE c.cause = ? AND c.void = 0 AND i.state = 'suspected'",
        cause,
    )
    for row in rows:
        if row["operator"] != but_not:
            await _move(tx, row["id"], State.OPEN, "verifier", "others pass at the same", now_ms)
            await revoke(tx, row["node_id"], now_ms)


async def confirm_overdue(tx: Tx, now_ms: int) -> None:
    """
    The window after a change is over and nobody else spoke for the suspected.

    Where anyone has passed at the same, they are quarantined; where nobody ever has, what they
    failed at is ours to review.
    """
    rows = await tx.all(
        "SELECT id, node_id FROM incidents WHERE state = 'suspected' AND opened_ms <= ?",
        now_ms - BLAST_WINDOW_MS,
    )
    for row in rows:
        incident = await get(tx, row["id"])
        if incident["state"] != State.SUSPECTED:
            # Folded with one before it in this round.
            continue
        found = await causes(tx, row["id"])
        passed = [(await _tally_of(tx, cause, now_ms)).passed for cause in found]
        if not found or any(passed):
            await _move(tx, row["id"], State.OPEN, "verifier", "others pass at the same", now_ms)
            await revoke(tx, row["node_id"], now_ms)
            continue
        for cause in found:
            finding = Finding(cause.partition("@")[0], incident["detail"])
            await _fold(tx, Draft(incident["kind"], Severity(incident["severity"]), finding, cause), now_ms)


async def _tally_of(tx: Tx, cause: str, now_ms: int) -> Tally:
    rows = await tx.all("SELECT operator, passed FROM tallies WHERE cause = ?", cause)
    _, _, thing = cause.partition("@")
    kind, _, identity = thing.partition(":")
    if kind == "batch":
        since = await tx.one(
            "SELECT coalesce(first_used_ms, ?) AS since FROM batches WHERE id = ?", now_ms, int(identity)
        )
    else:
        since = await tx.one("SELECT added_ms AS since FROM reference_values WHERE digest = ?", identity)
    return Tally(
        frozenset(row["operator"] for row in rows if not row["passed"]),
        frozenset(row["operator"] for row in rows if row["passed"]),
        0 if since is None else since["since"],
        await _review_of(tx, cause) is not None,
    )


async def _review_of(tx: Tx, cause: str) -> str | None:
    """The open review of what is ours behind a cause."""
    row = await tx.one(
        f"SELECT id FROM incidents WHERE cause = ? AND kind = ? AND state IN ({_HOLDING})",
        cause,
        REFERENCE_SUSPECT,
    )
    return None if row is None else str(row["id"])


async def _note_minor(
    tx: Tx, draft: Draft, node_id: str, operator: str, session_id: str | None, now_ms: int
) -> str:
    known = await tx.one(
        "UPDATE incidents SET count = count + 1, last_ms = ? WHERE node_id = ? AND kind = ?"
        " AND code = ? AND state IN ('noted', 'flagged') AND opened_ms > ? RETURNING id, state, count",
        now_ms,
        node_id,
        draft.kind,
        draft.finding.code,
        now_ms - _NOTE_TOGETHER_MS,
    )
    if known is None:
        return await _insert(tx, draft, State.NOTED, node_id, operator, session_id, now_ms)
    await _void_proposals(tx, known["id"], node_id, now_ms)
    if known["state"] == State.NOTED and known["count"] >= MANY_MINOR:
        reason = f"{known['count']} within the hour"
        await _move(tx, known["id"], State.FLAGGED, "verifier", reason, now_ms)
    return str(known["id"])


async def note_missed(tx: Tx, node_id: str, session_id: str, now_ms: int) -> None:
    """A call ended without evidence."""
    finding = Finding("weights.walk.missed", "a call was not answered")
    draft = Draft(reasons.UNANSWERED, Severity.MINOR, finding, None)
    row = await tx.one("SELECT operator FROM nodes WHERE id = ?", node_id)
    assert row is not None
    await _note_minor(tx, draft, node_id, row["operator"], session_id, now_ms)


async def take_step(
    tx: Tx, incident_id: str, name: str, actor: str, reason: str, now_ms: int, *, two_person: bool
) -> Row:
    """
    A person's step: quarantine, review, release or retire.

    Args:
        two_person: A release waits as a proposal (`proposed_by` in the row) until another takes it too.

    Raises:
        RequestError: no such incident, nobody, no reason, or not a step from where it stands.
    """
    _check_said(actor, reason)
    row = await get(tx, incident_id)
    target = step(State(row["state"]), name)
    if name == "release" and two_person and not await _is_second(tx, row, "", actor, reason, now_ms):
        return await get(tx, incident_id)
    await _move(tx, incident_id, target, actor, reason, now_ms, name)
    node_id = row["node_id"]
    if node_id is None:
        return await get(tx, incident_id)
    if target is State.RETIRED:
        await retire_node(tx, node_id, now_ms)
    elif target is State.OPEN:
        await revoke(tx, node_id, now_ms)
    elif row["state"] in HOLDING and await holding(tx, node_id) is None:
        # What it was caught with does not follow it out: it must walk anew to be affirmed.
        await _set_state(tx, node_id, "probation", ("active",), now_ms)
    return await get(tx, incident_id)


def _check_said(actor: str, reason: str) -> None:
    if not actor.strip():
        raise RequestError("a step needs the name of who takes it")
    if not reason.strip():
        raise RequestError("a step needs a reason")


async def _is_second(tx: Tx, row: Row, cause: str, actor: str, reason: str, now_ms: int) -> bool:
    """Whether another person has proposed the same release; if not, *actor* does by this."""
    known = await tx.one("SELECT actor FROM proposals WHERE incident_id = ? AND cause = ?", row["id"], cause)
    if known is not None and is_another(actor, known["actor"]):
        return True
    await tx.execute(
        "INSERT INTO proposals (incident_id, cause, actor, at_ms) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        row["id"],
        cause,
        actor,
        now_ms,
    )
    said = f"from {cause}: {reason}" if cause else reason
    await _record(tx, row["id"], State(row["state"]), actor, said, now_ms, "propose-release")
    return False


async def retire_node(tx: Tx, node_id: str, now_ms: int) -> bool:
    """
    Nothing a node says counts any more, its results are revoked, its endpoint and devices are free.

    Returns:
        Whether it was not retired already.
    """
    changed = await _set_state(tx, node_id, "retired", ("active", "probation"), now_ms)
    await tx.execute("DELETE FROM endpoints WHERE node_id = ?", node_id)
    await tx.execute("DELETE FROM devices WHERE node_id = ?", node_id)
    await revoke(tx, node_id, now_ms)
    return changed


async def _set_state(tx: Tx, node_id: str, state: str, before: tuple[str, ...], now_ms: int) -> bool:
    marks = ", ".join("?" for _ in before)
    changed = await tx.execute(
        f"UPDATE nodes SET state = ? WHERE id = ? AND state IN ({marks})", state, node_id, *before
    )
    if changed:
        await events.append(tx, now_ms, "node", {"node": node_id, "state": state})
    return changed > 0


async def release_cause(
    tx: Tx, cause: str, actor: str, reason: str, now_ms: int, *, two_person: bool
) -> tuple[int, int]:
    """
    Release everything that rests on one cause, in bulk.

    What rests on something else too stays, and rests on that alone.

    Returns:
        How many were released, and for how many a second person must say the same.
    """
    _check_said(actor, reason)
    agreed, waiting = [], 0
    for incident_id in await _resting_on(tx, cause, f"{_HOLDING}, 'suspected'"):
        row = await get(tx, incident_id)
        if two_person and not await _is_second(tx, row, cause, actor, reason, now_ms):
            waiting += 1
        else:
            agreed.append(incident_id)
    emptied = await _void(tx, cause, agreed)
    for incident_id in emptied:
        await take_step(tx, incident_id, "release", actor, reason, now_ms, two_person=False)
    return len(emptied), waiting


async def causes(tx: Tx, incident_id: str) -> list[str]:
    """What of ours an incident rests on."""
    rows = await tx.all(
        "SELECT cause FROM incident_causes WHERE incident_id = ? AND void = 0 ORDER BY cause", incident_id
    )
    return [row["cause"] for row in rows]


async def get(tx: Tx, incident_id: str) -> Row:
    """
    An incident by id, with who has proposed its release.

    Raises:
        RequestError: there is none.
    """
    row = await tx.one(f"{_SELECT} WHERE i.id = ?", incident_id)
    if row is None:
        raise RequestError(f"no incident {incident_id[:40]!r}", code="request.not-found")
    return row


async def steps(tx: Tx, incident_id: str) -> list[Row]:
    """What became of an incident, oldest first."""
    return await tx.all(
        "SELECT at_ms, actor, state, reason, step FROM incident_steps WHERE incident_id = ? ORDER BY rowid",
        incident_id,
    )


async def page(tx: Tx, *, open_only: bool, after: str, limit: int, node_id: str | None = None) -> list[Row]:
    """Incidents by id, after *after*: all, or those of one node."""
    only = f" AND i.state IN ({_HOLDING}, 'suspected', 'flagged')" if open_only else ""
    of_node = "" if node_id is None else " AND i.node_id = ?"
    values = [after] if node_id is None else [after, node_id]
    return await tx.all(f"{_SELECT} WHERE i.id > ?{of_node}{only} ORDER BY i.id LIMIT ?", *values, limit)


async def _insert(
    tx: Tx,
    draft: Draft,
    state: State,
    node_id: str | None,
    operator: str | None,
    session_id: str | None,
    now_ms: int,
) -> str:
    # Time first, so that ids sort as they came.
    incident_id = f"{now_ms:012x}{secrets.token_hex(4)}"
    await tx.execute(
        "INSERT INTO incidents (id, kind, severity, state, node_id, operator, code, detail, cause,"
        " session_id, opened_ms, last_ms, due_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        incident_id,
        draft.kind,
        draft.severity,
        state,
        node_id,
        operator,
        draft.finding.code,
        draft.finding.detail,
        draft.cause,
        session_id,
        now_ms,
        now_ms,
        now_ms + REVIEW_TARGET_MS,
    )
    await _rest_on(tx, incident_id, draft.cause)
    await _record(tx, incident_id, state, "verifier", draft.finding.detail, now_ms)
    await _tell(tx, incident_id, now_ms)
    await _void_proposals(tx, incident_id, node_id, now_ms)
    return incident_id


async def _move(
    tx: Tx, incident_id: str, state: State, actor: str, reason: str, now_ms: int, step_name: str | None = None
) -> None:
    await tx.execute("UPDATE incidents SET state = ?, last_ms = ? WHERE id = ?", state, now_ms, incident_id)
    if state is not State.UNDER_REVIEW:
        # Only taking it under review leaves what was proposed as it was.
        await tx.execute("DELETE FROM proposals WHERE incident_id = ?", incident_id)
    await _record(tx, incident_id, state, actor, reason, now_ms, step_name)
    await _tell(tx, incident_id, now_ms)


async def _record(
    tx: Tx, incident_id: str, state: State, actor: str, reason: str, now_ms: int, step_name: str | None = None
) -> None:
    """Keep in the history what was done, and by whom."""
    await tx.execute(
        "INSERT INTO incident_steps (incident_id, at_ms, actor, state, reason, step) VALUES (?, ?, ?, ?, ?, ?)",
        incident_id,
        now_ms,
        actor,
        state,
        reason,
        step_name,
    )


async def _tell(tx: Tx, incident_id: str, now_ms: int) -> None:
    """Routers follow where an incident stands."""
    row = await get(tx, incident_id)
    data = {
        "incident": incident_id,
        "node": row["node_id"],
        "operator": row["operator"],
        "kind": row["kind"],
        "severity": row["severity"],
        "state": row["state"],
        "code": row["code"],
        "opened": row["opened_ms"] // 1000,
    }
    await events.append(tx, now_ms, "incident", data)


async def revoke(tx: Tx, node_id: str, now_ms: int) -> None:
    """The results a node still has are worth nothing from now on."""
    changed = await tx.execute(
        "UPDATE appraisals SET revoked_ms = ? WHERE node_id = ? AND revoked_ms IS NULL AND expires_ms > ?",
        now_ms,
        node_id,
        now_ms,
    )
    if changed:
        await events.append(tx, now_ms, "revocation", {"node": node_id})
