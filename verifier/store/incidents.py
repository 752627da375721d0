"""Incidents: made in the transaction of the result that shows them, ended by people."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from verifier import reasons
from verifier.errors import RequestError
from verifier.incidents import (
    BLAST_WINDOW_MS,
    HOLDING,
    MANY_MINOR,
    REFERENCE_SUSPECT,
    REPORTABLE,
    REVIEW_TARGET_MS,
    SEVERITY,
    Draft,
    Severity,
    State,
    Tally,
    Weight,
    step,
    weigh,
)
from verifier.schemes.base import Finding, Node
from verifier.store import events
from verifier.store.database import Row, Tx

_HOLDING = ", ".join(f"'{state}'" for state in HOLDING)
_NOTE_TOGETHER_MS = 3600 * 1000
"""Minor incidents of one node and code within this time are one, counted."""


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
        if draft.severity is Severity.MINOR:
            await _note_minor(tx, draft, node.id, node.operator, session_id, now_ms)
        else:
            await _serious(tx, draft, node, session_id, now_ms)
    return await holding(tx, node.id) if found else held


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


async def _serious(tx: Tx, draft: Draft, node: Node, session_id: str | None, now_ms: int) -> None:
    """One incident a node and kind, resting on everything it failed at."""
    weight = Weight.QUARANTINE
    if draft.cause is not None:
        weight = weigh(await _tally_of(tx, draft.cause, now_ms), node.operator, now_ms)
        await tx.execute(
            "INSERT INTO tallies (cause, operator, passed) VALUES (?, ?, 0) ON CONFLICT DO NOTHING",
            draft.cause,
            node.operator,
        )
    if weight is Weight.REFERENCE_SUSPECT:
        await _fold(tx, draft, now_ms)
        return
    known = await tx.one(
        f"SELECT id, state FROM incidents WHERE node_id = ? AND kind = ? AND state IN ({_HOLDING}, 'suspected')",
        node.id,
        draft.kind,
    )
    if known is None:
        state = State.OPEN if weight is Weight.QUARANTINE else State.SUSPECTED
        await _insert(tx, draft, state, node.id, node.operator, session_id, now_ms)
        if state is State.OPEN:
            await revoke(tx, node.id, now_ms)
        return
    await tx.execute("UPDATE incidents SET count = count + 1, last_ms = ? WHERE id = ?", now_ms, known["id"])
    await _rest_on(tx, known["id"], draft.cause)
    if known["state"] == State.SUSPECTED and weight is Weight.QUARANTINE:
        await _move(tx, known["id"], State.OPEN, "verifier", "confirmed", now_ms)
        await revoke(tx, node.id, now_ms)


async def _rest_on(tx: Tx, incident_id: str, cause: str | None) -> None:
    if cause is not None:
        await tx.execute(
            "INSERT INTO incident_causes (incident_id, cause) VALUES (?, ?) ON CONFLICT DO NOTHING",
            incident_id,
            cause,
        )


async def _void(tx: Tx, cause: str, states: str) -> list[str]:
    """Nothing rests on *cause* any more; gives the incidents in *states* that rested on it alone."""
    rows = await tx.all(
        "SELECT i.id FROM incidents i JOIN incident_causes c ON c.incident_id = i.id"
        f" WHERE c.cause = ? AND c.void = 0 AND i.state IN ({states}) AND i.kind != ?",
        cause,
        REFERENCE_SUSPECT,
    )
    emptied = []
    for row in rows:
        await tx.execute(
            "UPDATE incident_causes SET void = 1 WHERE incident_id = ? AND cause = ?", row["id"], cause
        )
        left = await tx.one(
            "SELECT 1 AS one FROM incident_causes WHERE incident_id = ? AND void = 0", row["id"]
        )
        if left is None:
            emptied.append(str(row["id"]))
    return emptied


async def _fold(tx: Tx, draft: Draft, now_ms: int) -> None:
    """Several operators fail at the same thing of ours: one review of that, no quarantine of them."""
    assert draft.cause is not None
    for incident_id in await _void(tx, draft.cause, "'suspected'"):
        await _move(tx, incident_id, State.FOLDED, "verifier", "the reference is suspect", now_ms)
    review = await _review_of(tx, draft.cause)
    if review is None:
        suspect = Draft(REFERENCE_SUSPECT, Severity.SERIOUS, draft.finding, draft.cause)
        await _insert(tx, suspect, State.OPEN, None, None, None, now_ms)
    else:
        await tx.execute("UPDATE incidents SET count = count + 1, last_ms = ? WHERE id = ?", now_ms, review)


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
    tx: Tx, draft: Draft, node_id: str, operator: str | None, session_id: str | None, now_ms: int
) -> None:
    known = await tx.one(
        "UPDATE incidents SET count = count + 1, last_ms = ? WHERE node_id = ? AND kind = ?"
        " AND code = ? AND state IN ('noted', 'flagged') AND opened_ms > ? RETURNING id, state, count",
        now_ms,
        node_id,
        draft.kind,
        draft.finding.code,
        now_ms - _NOTE_TOGETHER_MS,
    )
    if known is not None:
        if known["state"] == State.NOTED and known["count"] >= MANY_MINOR:
            reason = f"{known['count']} within the hour"
            await _move(tx, known["id"], State.FLAGGED, "verifier", reason, now_ms)
    else:
        await _insert(tx, draft, State.NOTED, node_id, operator, session_id, now_ms)


async def note_missed(tx: Tx, node_id: str, session_id: str, now_ms: int) -> None:
    """A call ended without evidence."""
    finding = Finding("weights.walk.missed", "a call was not answered")
    draft = Draft(reasons.UNANSWERED, Severity.MINOR, finding, None)
    await _note_minor(tx, draft, node_id, None, session_id, now_ms)


async def report(tx: Tx, node: Node, kind: str, code: str, detail: str, now_ms: int) -> None:
    """
    What a router has seen and metered itself.

    Raises:
        RequestError: not a kind that a router may report.
    """
    if kind not in REPORTABLE:
        raise RequestError(f"a router reports {', '.join(sorted(REPORTABLE))}, not {kind[:60]!r}")
    draft = Draft(kind, SEVERITY[kind], Finding(code, detail), None)
    await apply(tx, node, None, [draft], (), now_ms)


async def take_step(tx: Tx, incident_id: str, name: str, actor: str, reason: str, now_ms: int) -> Row:
    """
    A person's step: review, release or retire.

    Raises:
        RequestError: no such incident, no reason, or not a step from where it stands.
    """
    if not reason.strip():
        raise RequestError("a step needs a reason")
    row = await get(tx, incident_id)
    target = step(State(row["state"]), name)
    await _move(tx, incident_id, target, actor, reason, now_ms)
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


async def release_cause(tx: Tx, cause: str, actor: str, reason: str, now_ms: int) -> int:
    """
    Release everything that rests on one cause, in bulk; returns how many.

    What rests on something else too stays, and rests on that alone.
    """
    emptied = await _void(tx, cause, f"{_HOLDING}, 'suspected'")
    for incident_id in emptied:
        await take_step(tx, incident_id, "release", actor, reason, now_ms)
    return len(emptied)


async def causes(tx: Tx, incident_id: str) -> list[str]:
    """What of ours an incident rests on."""
    rows = await tx.all(
        "SELECT cause FROM incident_causes WHERE incident_id = ? AND void = 0 ORDER BY cause", incident_id
    )
    return [row["cause"] for row in rows]


async def get(tx: Tx, incident_id: str) -> Row:
    """
    An incident by id.

    Raises:
        RequestError: there is none.
    """
    row = await tx.one("SELECT * FROM incidents WHERE id = ?", incident_id)
    if row is None:
        raise RequestError(f"no incident {incident_id[:40]!r}", code="request.not-found")
    return row


async def steps(tx: Tx, incident_id: str) -> list[Row]:
    """What became of an incident, oldest first."""
    return await tx.all(
        "SELECT at_ms, actor, state, reason FROM incident_steps WHERE incident_id = ? ORDER BY rowid",
        incident_id,
    )


async def page(tx: Tx, *, open_only: bool, after: str, limit: int) -> list[Row]:
    """Incidents by id, after *after*."""
    only = f"AND state IN ({_HOLDING}, 'suspected', 'flagged')" if open_only else ""
    return await tx.all(f"SELECT * FROM incidents WHERE id > ? {only} ORDER BY id LIMIT ?", after, limit)


async def _insert(
    tx: Tx,
    draft: Draft,
    state: State,
    node_id: str | None,
    operator: str | None,
    session_id: str | None,
    now_ms: int,
) -> None:
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
    await _step_row(tx, incident_id, state, "verifier", draft.finding.detail, now_ms)


async def _move(tx: Tx, incident_id: str, state: State, actor: str, reason: str, now_ms: int) -> None:
    await tx.execute("UPDATE incidents SET state = ?, last_ms = ? WHERE id = ?", state, now_ms, incident_id)
    await _step_row(tx, incident_id, state, actor, reason, now_ms)


async def _step_row(tx: Tx, incident_id: str, state: State, actor: str, reason: str, now_ms: int) -> None:
    await tx.execute(
        "INSERT INTO incident_steps (incident_id, at_ms, actor, state, reason) VALUES (?, ?, ?, ?, ?)",
        incident_id,
        now_ms,
        actor,
        state,
        reason,
    )
    row = await get(tx, incident_id)
    data = {
        "incident": incident_id,
        "node": row["node_id"],
        "kind": row["kind"],
        "severity": row["severity"],
        "state": state,
        "code": row["code"],
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
