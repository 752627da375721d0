"""
The rules of incidents: a pure state machine from facts to transitions.

Each function takes the facts as they stand and gives the transitions to apply, in their order.
The table of states and steps is in `verifier.incidents`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from verifier.incident_transitions import (
    VERIFIER,
    WHOLE_INCIDENT,
    AddToTallies,
    Cause,
    Count,
    Incident,
    IncidentNode,
    Move,
    NodeState,
    Open,
    PersonStep,
    Propose,
    PutOnProbation,
    RemoveCause,
    Reporter,
    RestOn,
    RetireNode,
    RevokeResults,
    Transition,
    VoidProposals,
)
from verifier.incidents import (
    BLAST_WINDOW_MS,
    MANY_MINOR,
    NOTE_TOGETHER_MS,
    REFERENCE_SUSPECT,
    RELEASE,
    REPORTER_SUSPECT,
    VERIFIER_MOVES,
    Disposition,
    Draft,
    Severity,
    State,
    decide_disposition,
    step,
)
from verifier.schemes.findings import Finding

Transitions: TypeAlias = tuple[Transition, ...]

_CONFIRMED_BY_OTHERS: Final = "others pass at the same"
_REPORTED_AGAIN: Final = "another router reports the same"
_NOT_DOUBTED: Final = "its window is over, and its reporter is not doubted"
_CAUSE_SUSPECT: Final = "the reference is suspect"
_NEW_FINDING: Final = "there is a new finding"


# Findings.


def take_finding(
    draft: Draft, node: IncidentNode, cause: Cause | None, session_id: str | None, now_ms: int
) -> Transitions:
    """
    Decide what a finding about *node* leads to.

    Exactly one of the transitions is an `Open` or a `Count`: the incident that the finding goes into.

    Args:
        cause: What is known of the draft's cause; `None` if the draft has none.
        session_id: The session in which it was found.
    """
    if draft.severity is Severity.MINOR:
        return _take_minor(draft, node, session_id, now_ms)
    return _take_serious(draft, node, cause, session_id, now_ms)


def _take_minor(draft: Draft, node: IncidentNode, session_id: str | None, now_ms: int) -> Transitions:
    """Count it into the incident of the same kind and code within the hour; the tenth is flagged."""
    known = next((each for each in node.incidents if _is_noted_together(each, draft, now_ms)), None)
    if known is None:
        return _open(draft, State.NOTED, node, session_id)
    counted = _count(known, node.incidents)
    count = known.count + 1
    if known.state is State.NOTED and count >= MANY_MINOR:
        return (*counted, _move(known, State.FLAGGED, f"{count} within the hour"))
    return counted


def _is_noted_together(incident: Incident, draft: Draft, now_ms: int) -> bool:
    return (
        (incident.kind, incident.code) == (draft.kind, draft.finding.code)
        and incident.state in (State.NOTED, State.FLAGGED)
        and incident.opened_ms > now_ms - NOTE_TOGETHER_MS
    )


def _take_serious(
    draft: Draft, node: IncidentNode, cause: Cause | None, session_id: str | None, now_ms: int
) -> Transitions:
    """Keep one incident for each node and kind, which rests on every cause that the node failed at."""
    outcome = Disposition.QUARANTINE
    failure: Transitions = ()
    if cause is not None:
        outcome = decide_disposition(cause.tally, node.operator, now_ms)
        failure = (AddToTallies((cause.name,), node.operator, passed=False),)
        if outcome is Disposition.REFERENCE_SUSPECT:
            return (*failure, *_fold(draft, cause, {cause.name}))
    quarantines = outcome is Disposition.QUARANTINE
    known = next((each for each in node.incidents if _is_known_serious(each, draft)), None)
    if known is None:
        state = State.OPEN if quarantines else State.SUSPECTED
        revoked = (RevokeResults(node.id),) if quarantines else ()
        return (*failure, *_open(draft, state, node, session_id), *revoked)
    rests = () if cause is None else (RestOn(known.id, cause.name),)
    confirmed = (
        (_move(known, State.OPEN, "confirmed"), RevokeResults(node.id))
        if quarantines and known.state is State.SUSPECTED
        else ()
    )
    return (*failure, *_count(known, node.incidents), *rests, *confirmed)


def _is_known_serious(incident: Incident, draft: Draft) -> bool:
    return incident.kind == draft.kind and (incident.is_holding or incident.state is State.SUSPECTED)


def _open(draft: Draft, state: State, node: IncidentNode, session_id: str | None) -> Transitions:
    return (
        Open(draft=draft, state=state, node_id=node.id, operator=node.operator, session_id=session_id),
        *_void_proposals(node.incidents),
    )


def _count(known: Incident, siblings: Sequence[Incident]) -> Transitions:
    return (Count(known.id), *_void_proposals(siblings))


def _void_proposals(incidents: Sequence[Incident]) -> Transitions:
    """A person who proposed a release did not know of the new finding, so two people must decide again."""
    return tuple(VoidProposals(each.id, each.state, _NEW_FINDING) for each in incidents if each.proposals)


# Reports of routers.


def take_report(draft: Draft, node: IncidentNode, reporter: Reporter) -> Transitions:
    """
    Decide what a router's serious report about *node* leads to.

    It makes a suspicion.  A report of another router confirms it.  A router that reports nodes of
    many operators is reviewed itself.

    The first of the transitions is an `Open` or a `Count`: the incident that the report goes into.

    Args:
        reporter: What the router has reported of late, without this report.
    """
    known = next((each for each in node.incidents if _is_known_serious(each, draft)), None)
    if known is None:
        found = _open(replace(draft, cause=reporter.cause), State.SUSPECTED, node, None)
    else:
        is_confirmed = known.state is State.SUSPECTED and set(known.causes) - {reporter.cause}
        confirmed = _confirm(known, _REPORTED_AGAIN) if is_confirmed else ()
        rests = RestOn(known.id, reporter.cause)
        found = (*_count(known, node.incidents), rests, *confirmed)
    after = replace(
        reporter, operators=reporter.operators | {node.operator}, nodes=reporter.nodes | {node.id}
    )
    return (*found, *_review_reporter(after, draft.finding.code))


def end_report(incident: Incident, reporters: Sequence[Reporter], now_ms: int) -> Transitions:
    """
    Decide what becomes of a suspected incident that rests on reports when its window is over.

    The node is quarantined, unless each of the reporters is doubted: then the suspicion waits for a person.
    """
    if incident.state is not State.SUSPECTED or incident.opened_ms > now_ms - BLAST_WINDOW_MS:
        return ()
    if not all(reporter.is_doubted for reporter in reporters):
        return _confirm(incident, _NOT_DOUBTED)
    return tuple(step for each in reporters for step in _review_reporter(each, incident.code))


def _review_reporter(reporter: Reporter, code: str) -> Transitions:
    if reporter.review is not None or not reporter.is_doubted:
        return ()
    detail = (
        f"it has reported {len(reporter.nodes)} or more nodes of {len(reporter.operators)} or more operators"
    )
    finding = Finding(code, detail)
    return (Open(Draft(REPORTER_SUSPECT, Severity.SERIOUS, finding, reporter.cause), State.OPEN),)


# Causes.


def record_passes(
    passed: Sequence[str],
    node_state: NodeState,
    operator: str,
    suspected: Sequence[Incident],
    *,
    is_held: bool,
) -> Transitions:
    """
    Decide what follows if a node passes at causes: the suspicion against other operators' nodes is confirmed.

    A node that is retired or held says nothing about others.

    Args:
        passed: The names of the causes.
        node_state: The state of the node that passed.
        operator: The operator of that node.
        suspected: The suspected incidents that rest on one of the causes, by id.
        is_held: Whether an incident holds the node that passed.
    """
    if not passed or is_held or node_state == "retired":
        return ()
    found: list[Transition] = [AddToTallies(tuple(passed), operator, passed=True)]
    confirmed: set[str] = set()
    for cause in passed:
        for incident in suspected:
            if cause in incident.causes and incident.operator != operator and incident.id not in confirmed:
                confirmed.add(incident.id)
                found += _confirm(incident)
    return tuple(found)


def end_suspicion(incident: Incident, causes: Sequence[Cause], now_ms: int) -> Transitions:
    """
    Decide what becomes of a suspected incident when its window is over.

    The node is quarantined if anyone has passed at one of the causes.  Otherwise the causes are suspect.

    Args:
        causes: The causes that the incident rests on.
    """
    if incident.state is not State.SUSPECTED or incident.opened_ms > now_ms - BLAST_WINDOW_MS:
        return ()
    if not causes or any(cause.passed for cause in causes):
        return _confirm(incident)
    found: Transitions = ()
    voided: set[str] = set()
    for cause in causes:
        voided.add(cause.name)
        finding = Finding(cause.name.partition("@")[0], incident.detail)
        found += _fold(Draft(incident.kind, incident.severity, finding, cause.name), cause, voided)
    return found


def _confirm(incident: Incident, reason: str = _CONFIRMED_BY_OTHERS) -> Transitions:
    revoked = () if incident.node_id is None else (RevokeResults(incident.node_id),)
    return (_move(incident, State.OPEN, reason), *revoked)


def _fold(draft: Draft, cause: Cause, voided: Collection[str]) -> Transitions:
    """
    Let no suspected incident rest on a suspect cause, and open a review of the cause or count into it.

    Args:
        voided: The names of all causes that are void by now, *cause* among them.
    """
    void = tuple(RemoveCause(incident.id, cause.name) for incident in cause.suspected)
    folded = tuple(
        _move(incident, State.FOLDED, _CAUSE_SUSPECT)
        for incident in cause.suspected
        if not set(incident.causes) - set(voided)
    )
    if cause.review is not None:
        return (*void, *folded, *_count(cause.review, [cause.review]))
    review = Draft(REFERENCE_SUSPECT, Severity.SERIOUS, draft.finding, cause.name)
    return (*void, *folded, Open(review, State.OPEN))


def _move(incident: Incident, state: State, reason: str) -> Move:
    """
    Give a move of the verifier.

    Raises:
        ValueError: The verifier may not make this move.
    """
    if (incident.state, state) not in VERIFIER_MOVES:
        raise ValueError(f"the verifier may not move an incident from {incident.state} to {state}")
    return Move(incident_id=incident.id, state=state, actor=VERIFIER, reason=reason)


# Steps of people.


def take_step(
    taken: PersonStep, incident: Incident, node: IncidentNode | None, *, two_person: bool
) -> Transitions:
    """
    Decide what a person's step leads to.

    Args:
        node: The node of the incident; `None` for a review of a cause.
        two_person: Whether a release needs two people; the first release is a proposal.

    Raises:
        RequestError: There is no such step, or it is not allowed from the incident's state.
    """
    target = step(incident.state, taken.name)
    if taken.name == RELEASE and two_person and not _is_second(incident, WHOLE_INCIDENT, taken.actor):
        return (_propose(incident, WHOLE_INCIDENT, taken, taken.reason),)
    return (_step_to(incident, target, taken), *_consequences(incident, target, node, {incident.id}))


def release_cause(
    cause: str,
    taken: PersonStep,
    resting: Sequence[Incident],
    nodes: Mapping[str, IncidentNode],
    *,
    two_person: bool,
) -> Transitions:
    """
    Decide what the release of a cause leads to.

    The incidents that rest on nothing else are released.  The others stay, and rest on their other causes.

    Args:
        taken: The release.
        resting: The incidents that are suspected or hold a node and rest on the cause; no reviews.
        nodes: The nodes of these incidents, by id.
        two_person: Whether a release needs two people; the first release is a proposal for each incident.
    """
    found: list[Transition] = []
    agreed: list[Incident] = []
    for incident in resting:
        if two_person and not _is_second(incident, cause, taken.actor):
            found.append(_propose(incident, cause, taken, f"from {cause}: {taken.reason}"))
        else:
            agreed.append(incident)
    found += (RemoveCause(incident.id, cause) for incident in agreed)
    released: set[str] = set()
    for incident in agreed:
        if set(incident.causes) - {cause}:
            continue
        target = step(incident.state, taken.name)
        released.add(incident.id)
        node = None if incident.node_id is None else nodes[incident.node_id]
        found += (_step_to(incident, target, taken), *_consequences(incident, target, node, released))
    return tuple(found)


def is_another_person(actor: str, proposer: str) -> bool:
    """Whether two names are of two people, as far as names can tell."""
    return actor.strip().casefold() != proposer.strip().casefold()


def _is_second(incident: Incident, cause: str, actor: str) -> bool:
    """Whether another person than *actor* has proposed the same release."""
    return any(
        proposal.cause == cause and is_another_person(actor, proposal.actor)
        for proposal in incident.proposals
    )


def _propose(incident: Incident, cause: str, taken: PersonStep, reason: str) -> Propose:
    return Propose(
        incident_id=incident.id, cause=cause, actor=taken.actor, state=incident.state, reason=reason
    )


def _step_to(incident: Incident, target: State, taken: PersonStep) -> Move:
    return Move(
        incident_id=incident.id,
        state=target,
        actor=taken.actor,
        reason=taken.reason,
        step=taken.name,
        # A review changes nothing of what was proposed.
        ends_proposals=target is not State.UNDER_REVIEW,
    )


def _consequences(
    incident: Incident, target: State, node: IncidentNode | None, ended: Collection[str]
) -> Transitions:
    """
    Give what becomes of the node when a person moves its incident to *target*.

    Args:
        ended: The ids of the incidents that hold the node no longer.
    """
    if node is None:
        return ()
    if target is State.RETIRED:
        return (RetireNode(node.id),)
    if target is State.OPEN:
        return (RevokeResults(node.id),)
    if target is not State.RELEASED or not incident.is_holding or node.is_held_without(ended):
        return ()
    # What the node was caught with must not follow it out of quarantine.
    return (PutOnProbation(node.id),) if node.state == "active" else ()
