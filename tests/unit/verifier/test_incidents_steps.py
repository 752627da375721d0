"""The rules of incidents by example: the steps of people, alone and in pairs, one by one and in bulk."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.verifier.incident_facts import (
    MANIFEST,
    READ,
    incident,
    node,
    person,
    review,
)
from verifier.errors import RequestError
from verifier.incident_rules import (
    is_another_person,
    release_cause,
    take_step,
)
from verifier.incident_transitions import (
    WHOLE_INCIDENT,
    Incident,
    IncidentNode,
    Move,
    PersonStep,
    Proposal,
    Propose,
    PutOnProbation,
    RemoveCause,
    RetireNode,
    RevokeResults,
    Transition,
)
from verifier.incidents import (
    HOLDING,
    PERSON_STEPS,
    RELEASE,
    State,
    step,
)

LEGAL = [(state, name, target) for name, (allowed, target) in PERSON_STEPS.items() for state in allowed]


@pytest.mark.parametrize(("state", "name", "target"), LEGAL)
def test_a_legal_step_moves_the_incident(state: State, name: str, target: State) -> None:
    """In the person's name and words; only a review leaves the proposals."""
    known = incident(state)
    (move, *_) = take_step(person(name), known, node(known), two_person=False)
    assert move == Move(
        incident_id="i",
        state=target,
        actor="ada",
        reason="looked",
        step=name,
        ends_proposals=target is not State.UNDER_REVIEW,
    )


@pytest.mark.parametrize("two_person", [False, True])
@pytest.mark.parametrize(
    ("state", "name"),
    [(s, name) for s in State for name in PERSON_STEPS if (s, name) not in {each[:2] for each in LEGAL}],
)
def test_an_illegal_step_is_refused(state: State, name: str, *, two_person: bool) -> None:
    """With the code that says that the state does not allow it; it cannot be proposed either."""
    known = incident(state)
    with pytest.raises(RequestError) as refused:
        take_step(person(name), known, node(known), two_person=two_person)
    assert refused.value.code == "incident.state"


def test_an_unknown_step_is_refused() -> None:
    """With the steps that there are."""
    with pytest.raises(RequestError, match="quarantine, review, release, retire"):
        step(State.OPEN, "forgive")


@pytest.mark.parametrize(("actor", "reason"), [("", "r"), (" \t", "r"), ("ada", ""), ("ada", "  ")])
def test_a_step_needs_a_name_and_a_reason(actor: str, reason: str) -> None:
    """Blanks are not enough."""
    with pytest.raises(RequestError):
        PersonStep(RELEASE, actor, reason)


def consequences(name: str, stands: State, *others: Incident, **given: Any) -> tuple[Transition, ...]:
    known = incident(stands)
    return take_step(person(name), known, node(known, *others, **given), two_person=False)[1:]


def test_what_a_step_does_to_the_node() -> None:
    """Quarantine revokes, retiring retires, a release from quarantine puts on probation, a review nothing."""
    assert consequences("quarantine", State.SUSPECTED) == (RevokeResults("n"),)
    assert consequences("retire", State.SUSPECTED) == (RetireNode("n"),)
    assert consequences("review", State.OPEN) == ()
    for state in HOLDING:
        assert consequences(RELEASE, state) == (PutOnProbation("n"),)
    for state in (State.SUSPECTED, State.FLAGGED):
        assert consequences(RELEASE, state) == ()


@pytest.mark.parametrize("state", HOLDING)
def test_a_node_that_another_incident_holds_stays_held(state: State) -> None:
    """A suspicion does not hold."""
    assert consequences(RELEASE, State.OPEN, incident(state, "j")) == ()
    assert consequences(RELEASE, State.OPEN, incident(State.SUSPECTED, "j")) == (PutOnProbation("n"),)


@pytest.mark.parametrize("state", ["probation", "retired"])
def test_only_an_active_node_is_put_on_probation(state: str) -> None:
    """The other states stay."""
    assert consequences(RELEASE, State.OPEN, state=state) == ()


def test_a_review_of_a_cause_has_no_node() -> None:
    """So nothing becomes of one."""
    for name in (RELEASE, "retire"):
        assert len(take_step(person(name), review(), None, two_person=False)) == 1


# Two people.


def test_the_first_of_two_people_proposes() -> None:
    """The state stays."""
    known = incident(State.OPEN)
    assert take_step(person(RELEASE), known, node(known), two_person=True) == (
        Propose(incident_id="i", cause=WHOLE_INCIDENT, actor="ada", state=State.OPEN, reason="looked"),
    )


@pytest.mark.parametrize(
    ("proposal", "releases"),
    [
        (Proposal(WHOLE_INCIDENT, "bob"), True),
        (Proposal(WHOLE_INCIDENT, " Ada"), False),
        (Proposal(READ, "bob"), False),
    ],
)
def test_the_second_must_be_another_for_the_same(proposal: Proposal, *, releases: bool) -> None:
    """Not the same person in other letters, and not a proposal about a cause."""
    known = incident(State.OPEN, proposals=(proposal,))
    (first, *_) = take_step(person(RELEASE), known, node(known), two_person=True)
    assert isinstance(first, Move if releases else Propose)


@pytest.mark.parametrize("name", ["quarantine", "review", "retire"])
def test_other_steps_need_one_person(name: str) -> None:
    """They let nobody back in."""
    known = incident(PERSON_STEPS[name][0][0])
    assert isinstance(take_step(person(name), known, node(known), two_person=True)[0], Move)


@pytest.mark.parametrize(
    ("one", "other", "another"), [("ada", "bob", True), ("ada", " ADA\t", False), ("ß", "SS", False)]
)
def test_names_of_people(one: str, other: str, *, another: bool) -> None:
    """Case and blanks make no second person."""
    assert is_another_person(one, other) is another


# The release of a cause.


def test_a_cause_is_released_in_bulk() -> None:
    """What rests on it alone is released; the last of a node's quarantines puts the node on probation."""
    only = [incident(State.OPEN, "1"), incident(State.UNDER_REVIEW, "2"), incident(State.SUSPECTED, "3")]
    both = incident(State.OPEN, "4", node_id="m", causes=(MANIFEST, READ))
    nodes = {"n": node(*only), "m": IncidentNode("m", "b", "active", (both,))}
    found = release_cause(READ, person(RELEASE), [*only, both], nodes, two_person=False)
    assert found[:4] == tuple(RemoveCause(id_, READ) for id_ in "1234")
    moves = [(each.incident_id, each.state) if isinstance(each, Move) else each for each in found[4:]]
    assert moves == [
        ("1", State.RELEASED),
        ("2", State.RELEASED),
        PutOnProbation("n"),
        ("3", State.RELEASED),
    ]


def test_a_cause_needs_two_people_for_each_incident() -> None:
    """Those that another has proposed for are released; for the others it is proposed."""
    agreed = incident(State.OPEN, "1", proposals=(Proposal(READ, "bob"),))
    others = [
        incident(State.OPEN, "2"),
        incident(State.OPEN, "3", proposals=(Proposal(READ, "ada"),)),
        incident(State.OPEN, "4", proposals=(Proposal(WHOLE_INCIDENT, "bob"),)),
    ]
    found = release_cause(
        READ, person(RELEASE), [agreed, *others], {"n": node(agreed, *others)}, two_person=True
    )
    assert [each.incident_id for each in found if isinstance(each, Propose)] == ["2", "3", "4"]
    assert all(each.cause == READ for each in found if isinstance(each, Propose))
    assert [each.incident_id for each in found if isinstance(each, (Move, RemoveCause))] == ["1", "1"]
