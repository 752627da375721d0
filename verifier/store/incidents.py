"""
Incidents: made in the transaction of the result that shows them, ended by people.

Each function reads the facts, asks `verifier.incident_rules`, and applies the transitions that it gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from verifier import incident_rules
from verifier.incident_transitions import Move, PersonStep, Propose, Transition
from verifier.incidents import (
    BLAST_WINDOW_MS,
    RELEASE,
    Draft,
    Severity,
    State,
    is_of_reporter,
    missed_call_draft,
    reported_by,
)
from verifier.schemes.context import Node
from verifier.store import incident_facts, incident_transitions, reviews
from verifier.store.database import Row, Statement, Tx
from verifier.store.incident_facts import HOLDING_SQL, SELECT_INCIDENT
from verifier.triage import Fault

_STEPS_OF: Final = (
    "SELECT at_ms, actor, state, reason, step FROM incident_steps WHERE incident_id = ? ORDER BY"
)
_STEPS: Final = Statement(sqlite=f"{_STEPS_OF} rowid", postgres=f"{_STEPS_OF} seq")


async def take_evidence(
    tx: Tx,
    node: Node,
    session_id: str | None,
    found: Sequence[Draft],
    passed: Sequence[str],
    held_by: str | None,
    now_ms: int,
) -> str | None:
    """
    Take what one signed piece of evidence showed.  What the node passed comes before what was found.

    Args:
        held_by: The id of the incident that holds the node before.
        found: The incidents that the findings make.
        passed: The causes at which the node passed.

    Returns:
        The id of the incident that holds the node afterwards.
    """
    if found:
        # What it leads to depends on the evidence of other nodes.
        await tx.alone()
    if passed:
        suspected = await incident_facts.read_suspected(tx, passed)
        transitions = incident_rules.record_passes(
            passed, node.state, node.operator, suspected, is_held=held_by is not None
        )
        if suspected:
            await tx.alone()
        await incident_transitions.apply(tx, transitions, now_ms)
    for draft in found:
        await take_finding(tx, draft, node.id, session_id, now_ms)
    return await holding(tx, node.id) if found else held_by


async def take_finding(tx: Tx, draft: Draft, node_id: str, session_id: str | None, now_ms: int) -> str:
    """Make an incident of a finding about a node, or count the finding into a known one; returns its id."""
    node = await incident_facts.read_node(tx, node_id, now_ms)
    cause = None if draft.cause is None else await incident_facts.read_cause(tx, draft.cause, now_ms)
    transitions = incident_rules.take_finding(draft, node, cause, session_id, now_ms)
    (incident_id,) = await incident_transitions.apply(tx, transitions, now_ms)
    return incident_id


async def take_report(tx: Tx, draft: Draft, node_id: str, reporter: str, now_ms: int) -> str:
    """Make an incident of what the router *reporter* says of a node, or count it into a known one; returns its id."""
    if draft.severity is Severity.MINOR:
        return await take_finding(tx, draft, node_id, None, now_ms)
    # What it leads to depends on what is reported of other nodes.
    await tx.alone()
    node = await incident_facts.read_node(tx, node_id, now_ms)
    cause = reported_by(draft.finding.code, reporter)
    known = await incident_facts.read_reporter(tx, cause, now_ms)
    transitions = incident_rules.take_report(draft, node, known)
    incident_id, *_ = await incident_transitions.apply(tx, transitions, now_ms)
    return incident_id


async def note_missed_call(tx: Tx, node_id: str, session_id: str, now_ms: int) -> None:
    """Note that a call ended without evidence."""
    await take_finding(tx, missed_call_draft(), node_id, session_id, now_ms)


async def end_overdue_suspicions(tx: Tx, now_ms: int) -> None:
    """Confirm or fold the suspected incidents whose window is over."""
    for incident_id in await incident_facts.read_overdue(tx, now_ms - BLAST_WINDOW_MS):
        # Read one by one: an incident may have been folded together with an earlier one.
        incident = await incident_facts.read_incident(tx, incident_id)
        reported = [name for name in incident.causes if is_of_reporter(name)]
        if reported:
            reporters = [await incident_facts.read_reporter(tx, name, now_ms) for name in reported]
            transitions = incident_rules.end_report(incident, reporters, now_ms)
        else:
            causes = [await incident_facts.read_cause(tx, name, now_ms) for name in incident.causes]
            transitions = incident_rules.end_suspicion(incident, causes, now_ms)
        await incident_transitions.apply(tx, transitions, now_ms)


async def take_step(
    tx: Tx,
    incident_id: str,
    name: str,
    actor: str,
    reason: str,
    now_ms: int,
    *,
    two_person: bool,
    fault: Fault | None = None,
) -> Row:
    """
    Take a person's step: quarantine, review, release or retire.

    Args:
        finding: Whether the node was at fault, if the person says so; a retired node was.
        two_person: Whether a release waits as a proposal (`proposed_by` in the row) for a second person.

    Returns:
        The incident afterwards.

    Raises:
        RequestError: There is no such incident, the actor or the reason is blank, or the step is not allowed.
    """
    step = PersonStep(name, actor, reason)
    incident = await incident_facts.read_incident(tx, incident_id)
    node = None if incident.node_id is None else await incident_facts.read_node(tx, incident.node_id, now_ms)
    transitions = incident_rules.take_step(step, incident, node, two_person=two_person)
    await incident_transitions.apply(tx, transitions, now_ms)
    for move in _decisions(transitions):
        await reviews.note_incidents(
            tx, [move.incident_id], fault or reviews.default_fault(move.state), now_ms
        )
    return await get(tx, incident_id)


async def release_cause(
    tx: Tx,
    cause: str,
    actor: str,
    reason: str,
    now_ms: int,
    *,
    two_person: bool,
    fault: Fault | None = None,
) -> tuple[int, int]:
    """
    Release everything that rests on one cause, in bulk.

    An incident that rests on other causes too stays, and rests on those alone.  Unless the person says otherwise, the
    nodes were not at fault: the cause is a thing of ours.

    Returns:
        How many incidents were released, and for how many a second person is needed.

    Raises:
        RequestError: The actor or the reason is blank.
    """
    step = PersonStep(RELEASE, actor, reason)
    resting = await incident_facts.read_releasable(tx, cause)
    node_ids = sorted({incident.node_id for incident in resting if incident.node_id is not None})
    nodes = {node_id: await incident_facts.read_node(tx, node_id, now_ms) for node_id in node_ids}
    transitions = incident_rules.release_cause(cause, step, resting, nodes, two_person=two_person)
    await incident_transitions.apply(tx, transitions, now_ms)
    decided = [move.incident_id for move in _decisions(transitions)]
    await reviews.note_incidents(tx, decided, fault or Fault.OURS, now_ms)
    released = sum(isinstance(transition, Move) for transition in transitions)
    return released, sum(isinstance(transition, Propose) for transition in transitions)


def _decisions(transitions: Iterable[Transition]) -> list[Move]:
    """The moves of a person that end a review."""
    return [
        each
        for each in transitions
        if isinstance(each, Move) and each.step is not None and each.state in (State.RELEASED, State.RETIRED)
    ]


async def holding(tx: Tx, node_id: str) -> str | None:
    """Give the id of the oldest incident that keeps a node in quarantine; `None` if there is none."""
    row = await tx.one(
        f"SELECT id FROM incidents WHERE node_id = ? AND state IN ({HOLDING_SQL}) ORDER BY opened_ms LIMIT 1",
        node_id,
    )
    return None if row is None else str(row["id"])


async def causes(tx: Tx, incident_id: str) -> list[str]:
    """Give the causes that an incident rests on."""
    rows = await tx.all(
        "SELECT cause FROM incident_causes WHERE incident_id = ? AND void = 0 ORDER BY cause", incident_id
    )
    return [row["cause"] for row in rows]


async def get(tx: Tx, incident_id: str) -> Row:
    """
    Give an incident by its id, with `proposed_by`: the person who has proposed its release.

    Raises:
        RequestError: There is none.
    """
    return await incident_facts.read_row(tx, incident_id)


async def steps(tx: Tx, incident_id: str) -> list[Row]:
    """Give the history of an incident, oldest step first."""
    return await tx.all(_STEPS, incident_id)


async def page(
    tx: Tx,
    *,
    open_only: bool,
    after: str,
    limit: int,
    node_id: str | None = None,
    operator: str | None = None,
) -> list[Row]:
    """Give incidents by id, from the first after *after*: all of them, or those of one node or one operator."""
    only = f" AND i.state IN ({HOLDING_SQL}, 'suspected', 'flagged')" if open_only else ""
    asked = {"i.node_id": node_id, "i.operator": operator}
    given = {column: value for column, value in asked.items() if value is not None}
    of = "".join(f" AND {column} = ?" for column in given)
    return await tx.all(
        f"{SELECT_INCIDENT} WHERE i.id > ?{of}{only} ORDER BY i.id LIMIT ?", after, *given.values(), limit
    )
