"""The rules of incidents: what holds for any facts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.verifier.incident_facts import (
    KIND,
    MANIFEST,
    METERED,
    NOW,
    OLD,
    READ,
    SERIOUS,
    SPIKE,
    cause,
    incident,
    node,
    passes,
    person,
    review,
    take,
)
from verifier.errors import RequestError
from verifier.incident_rules import (
    end_suspicion,
    take_step,
)
from verifier.incident_transitions import (
    VERIFIER,
    WHOLE_INCIDENT,
    Cause,
    Count,
    Incident,
    IncidentNode,
    Move,
    Open,
    Proposal,
    Propose,
    PutOnProbation,
    RetireNode,
    RevokeResults,
    Transition,
)
from verifier.incidents import (
    BLAST_WINDOW_MS,
    HOLDING,
    MANY_MINOR,
    PERSON_STEPS,
    VERIFIER_MOVES,
    Draft,
    State,
)

STATES = st.sampled_from(State)
PROPOSALS = st.lists(
    st.builds(Proposal, st.sampled_from([WHOLE_INCIDENT, READ, MANIFEST]), st.sampled_from(["ada", "bob"])),
    max_size=2,
    unique_by=lambda proposal: proposal.cause,
).map(tuple)
CAUSES = st.lists(st.sampled_from([READ, MANIFEST]), unique=True).map(lambda names: tuple(sorted(names)))
OPERATORS = st.frozensets(st.sampled_from(["acme", "b", "c", "d"]))
TIMES = st.sampled_from([0, OLD, NOW - BLAST_WINDOW_MS, NOW - 1, NOW])


def incidents(
    states: st.SearchStrategy[State] = STATES, ids: str = "1234"
) -> st.SearchStrategy[tuple[Incident, ...]]:
    one = st.builds(
        incident,
        states,
        id_=st.sampled_from(ids),
        kind=st.sampled_from([KIND, SPIKE.kind, METERED.kind]),
        code=st.sampled_from(["weights.read.wrong", SPIKE.finding.code]),
        operator=st.sampled_from(["acme", "b"]),
        count=st.sampled_from([1, MANY_MINOR - 1, MANY_MINOR]),
        opened_ms=TIMES,
        causes=CAUSES,
        proposals=PROPOSALS,
    )
    return st.lists(one, max_size=4, unique_by=lambda each: each.id).map(
        lambda found: tuple(sorted(found, key=lambda each: each.id))
    )


CAUSE = st.builds(
    Cause,
    name=st.just(READ),
    failed=OPERATORS,
    passed=OPERATORS,
    since_ms=TIMES,
    suspected=incidents(st.just(State.SUSPECTED), ids="5678"),
    review=st.none() | st.builds(review, proposals=PROPOSALS),
)
NODES = st.builds(
    IncidentNode, st.just("n"), st.just("acme"), st.sampled_from(["active", "probation"]), incidents()
)


def check_moves_of_verifier(known: tuple[Incident, ...], found: tuple[Transition, ...]) -> None:
    """The verifier leaves quarantine alone, and no step of a person is its own."""
    states = {each.id: each.state for each in known}
    for each in found:
        assert not isinstance(each, (Propose, PutOnProbation, RetireNode))
        if isinstance(each, Move):
            assert each.actor == VERIFIER
            assert each.step is None
            assert states[each.incident_id] not in HOLDING
            assert (states[each.incident_id], each.state) in VERIFIER_MOVES
            states[each.incident_id] = each.state


def opened_or_confirmed(found: tuple[Transition, ...]) -> list[str | None]:
    """The nodes that *found* puts into quarantine; all incidents here are of node n."""
    held: list[str | None] = [
        each.node_id for each in found if isinstance(each, Open) and each.state in HOLDING
    ]
    held += ["n" for each in found if isinstance(each, Move) and each.state in HOLDING]
    return [each for each in held if each is not None]


@given(draft=st.sampled_from([SERIOUS, METERED, SPIKE]), of=NODES, at=CAUSE)
def test_a_finding_goes_into_one_incident_and_frees_nobody(draft: Draft, of: IncidentNode, at: Cause) -> None:
    """It opens or counts one; what it quarantines is revoked, what it suspects is not."""
    found = take(draft, of, None if draft.cause is None else at)
    assert sum(isinstance(each, (Open, Count)) for each in found) == 1
    check_moves_of_verifier((*of.incidents, *at.suspected), found)
    revoked = [each.node_id for each in found if isinstance(each, RevokeResults)]
    assert revoked == opened_or_confirmed(found)


@given(of=NODES, at=CAUSE.filter(lambda each: NOW - each.since_ms <= BLAST_WINDOW_MS))
def test_soon_after_a_change_nobody_is_held_unless_another_operator_passed(
    of: IncidentNode, at: Cause
) -> None:
    """A suspicion holds nobody."""
    found = take(SERIOUS, of, at)
    if not at.passed - {"acme"}:
        assert opened_or_confirmed(found) == []


@given(of=NODES, at=CAUSE)
def test_what_nobody_ever_passed_holds_nobody(of: IncidentNode, at: Cause) -> None:
    """However old the cause is."""
    if not at.passed:
        assert opened_or_confirmed(take(SERIOUS, of, at)) == []


@given(suspected=incidents(st.just(State.SUSPECTED)), operator=st.sampled_from(["acme", "b"]))
def test_a_pass_moves_only_others_that_are_suspected(suspected: tuple[Incident, ...], operator: str) -> None:
    """Into quarantine, each once."""
    found = passes(READ, MANIFEST, suspected=suspected, operator=operator)
    check_moves_of_verifier(suspected, found)
    moved = [each.incident_id for each in found if isinstance(each, Move)]
    assert len(moved) == len(set(moved))
    assert set(moved) == {each.id for each in suspected if each.operator != operator and each.causes}


@given(
    suspected=incidents(st.just(State.SUSPECTED)),
    opened_ms=TIMES,
    passed=OPERATORS,
    reviewed=st.booleans(),
)
def test_the_end_of_a_window_ends_the_suspicion(
    suspected: tuple[Incident, ...], opened_ms: int, passed: frozenset[str], *, reviewed: bool
) -> None:
    """It is confirmed or folded, and never both."""
    own = incident(State.SUSPECTED, "0", causes=(MANIFEST, READ), opened_ms=opened_ms)
    every = (own, *suspected)
    facts = [
        cause(
            name,
            passed="".join(sorted(each[0] for each in passed)),
            suspected=tuple(each for each in every if name in each.causes),
            review=review() if reviewed else None,
        )
        for name in own.causes
    ]
    found = end_suspicion(own, facts, NOW)
    check_moves_of_verifier(every, found)
    states = [each.state for each in found if isinstance(each, Move) and each.incident_id == "0"]
    over = opened_ms <= NOW - BLAST_WINDOW_MS
    assert states == ([State.OPEN if passed else State.FOLDED] if over else [])


@given(known=incidents(), name=st.sampled_from(sorted(PERSON_STEPS)), two_person=st.booleans())
def test_a_person_moves_one_incident_or_proposes(
    known: tuple[Incident, ...], name: str, *, two_person: bool
) -> None:
    """And probation comes only after the last quarantine."""
    for each in known:
        try:
            found = take_step(person(name), each, node(*known), two_person=two_person)
        except RequestError:
            assert each.state not in PERSON_STEPS[name][0]
            continue
        assert [type(one) for one in found[:1]] in ([Move], [Propose])
        assert all(isinstance(one, (RevokeResults, RetireNode, PutOnProbation)) for one in found[1:])
        if PutOnProbation("n") in found:
            assert [one.id for one in known if one.is_holding] == [each.id]


def test_quarantine_is_left_by_people_alone() -> None:
    """The table itself says so; and what is over stays over."""
    assert not any(before in HOLDING for before, _ in VERIFIER_MOVES)
    over = {State.RELEASED, State.RETIRED, State.FOLDED}
    assert not any(before in over for before, _ in VERIFIER_MOVES)
    assert not any(over & set(allowed) for allowed, _ in PERSON_STEPS.values())
