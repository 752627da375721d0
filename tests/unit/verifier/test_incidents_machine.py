"""The rules of incidents by example: from facts to transitions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.verifier.incident_facts import (
    KIND,
    MANIFEST,
    METERED,
    NODE,
    NOW,
    OLD,
    READ,
    SERIOUS,
    SPIKE,
    cause,
    incident,
    node,
    passes,
    review,
    spike,
    take,
    verifier_move,
)
from verifier.errors import RequestError
from verifier.incident_rules import (
    end_suspicion,
)
from verifier.incident_transitions import (
    WHOLE_INCIDENT,
    AddToTallies,
    Cause,
    Count,
    Incident,
    Open,
    Proposal,
    RemoveCause,
    RestOn,
    RevokeResults,
    Transition,
    VoidProposals,
)
from verifier.incidents import (
    BLAST_WINDOW_MS,
    HOLDING,
    MANY_MINOR,
    NOTE_TOGETHER_MS,
    REFERENCE_SUSPECT,
    REPORTABLE,
    SEVERITY,
    Draft,
    Severity,
    State,
    drafts,
    missed_call_draft,
    report_draft,
)
from verifier.schemes.findings import Finding

FAILED = AddToTallies((READ,), "acme", passed=False)
VOIDED = "there is a new finding"


# Minor findings.


def test_a_first_minor_finding_is_noted() -> None:
    """It holds nobody, and revokes nothing."""
    assert take(SPIKE, NODE) == (Open(SPIKE, State.NOTED, "n", "acme", "session"),)


@pytest.mark.parametrize("state", [State.NOTED, State.FLAGGED])
def test_a_further_one_within_the_hour_is_counted(state: State) -> None:
    """Into the incident that is known, whether it is flagged or not."""
    assert take(SPIKE, node(spike(state))) == (Count("i"),)


@pytest.mark.parametrize(
    "known",
    [
        spike(opened_ms=NOW - NOTE_TOGETHER_MS),
        spike(kind="missed-probe"),
        spike(code="weights.walk.missed"),
        spike(State.OPEN),
        spike(State.SUSPECTED),
    ],
)
def test_one_that_is_too_old_or_another_is_not_counted_into(known: Incident) -> None:
    """Nor one that a person has put into quarantine."""
    assert isinstance(take(SPIKE, node(known))[0], Open)


def test_the_tenth_is_flagged() -> None:
    """For a person to look at; once, not at each further one."""
    ninth = spike(count=MANY_MINOR - 1)
    flag = verifier_move("i", State.FLAGGED, "10 within the hour")
    assert take(SPIKE, node(ninth)) == (Count("i"), flag)
    assert take(SPIKE, node(spike(count=MANY_MINOR - 2))) == (Count("i"),)
    assert take(SPIKE, node(spike(State.FLAGGED, count=MANY_MINOR))) == (Count("i"),)


# Serious findings.


def test_what_rests_on_nothing_of_the_verifier_quarantines_at_once() -> None:
    """And its results are revoked."""
    expected = (Open(METERED, State.OPEN, "n", "acme", "session"), RevokeResults("n"))
    assert take(METERED, NODE) == expected


def test_soon_after_a_change_it_is_only_suspected() -> None:
    """Nothing is revoked, and the failure counts for others."""
    assert take(SERIOUS, NODE, cause()) == (FAILED, Open(SERIOUS, State.SUSPECTED, "n", "acme", "session"))


def test_if_another_operator_passed_it_is_open() -> None:
    """The verifier's side is shown to be right."""
    expected = (FAILED, Open(SERIOUS, State.OPEN, "n", "acme", "session"), RevokeResults("n"))
    assert take(SERIOUS, NODE, cause(passed="b")) == expected


def test_a_further_one_counts_into_the_incident_of_the_same_kind() -> None:
    """Which then rests on the new cause too."""
    known = incident(State.SUSPECTED, causes=(MANIFEST,))
    assert take(SERIOUS, node(known), cause()) == (FAILED, Count("i"), RestOn("i", READ))


def test_a_further_one_confirms_a_suspicion() -> None:
    """If others have passed at the new cause."""
    found = take(SERIOUS, node(incident(State.SUSPECTED)), cause(passed="b"))
    confirmed = verifier_move("i", State.OPEN, "confirmed")
    assert found == (FAILED, Count("i"), RestOn("i", READ), confirmed, RevokeResults("n"))


@pytest.mark.parametrize("state", HOLDING)
@pytest.mark.parametrize("passed", ["", "b"])
def test_a_further_one_leaves_a_quarantine_as_it_is(state: State, passed: str) -> None:
    """It is counted, whatever the tally says."""
    found = take(SERIOUS, node(incident(state)), cause(passed=passed))
    assert found == (FAILED, Count("i"), RestOn("i", READ))


def test_an_incident_of_another_kind_is_another() -> None:
    """A node has one incident for each kind."""
    found = take(METERED, node(incident(State.OPEN)))
    assert found == (Open(METERED, State.OPEN, "n", "acme", "session"), RevokeResults("n"))


# Suspect causes.


def test_the_third_operator_folds_the_others_into_a_review() -> None:
    """Those that rest on the cause alone are over; none is quarantined."""
    first, second = incident(State.SUSPECTED, "1"), incident(State.SUSPECTED, "2", causes=(MANIFEST, READ))
    (*others, opened) = take(SERIOUS, NODE, cause(failed="bc", suspected=(first, second)))
    assert others == [
        FAILED,
        RemoveCause("1", READ),
        RemoveCause("2", READ),
        verifier_move("1", State.FOLDED, "the reference is suspect"),
    ]
    assert isinstance(opened, Open)
    assert (opened.draft.kind, opened.draft.cause, opened.state) == (REFERENCE_SUSPECT, READ, State.OPEN)
    assert (opened.node_id, opened.operator, opened.session_id) == (None, None, None)


def test_a_known_review_is_counted_into() -> None:
    """And what was proposed for it is void."""
    at = cause(failed="bc", review=review(proposals=(Proposal(WHOLE_INCIDENT, "ada"),)))
    expected = (FAILED, Count("review"), VoidProposals("review", State.OPEN, VOIDED))
    assert take(SERIOUS, NODE, at) == expected


def test_a_review_keeps_the_window_open() -> None:
    """While a person looks, three operators that fail are held by nobody."""
    assert take(SERIOUS, NODE, cause(failed="bc", passed="d", since=OLD, review=review()))[1:] == (
        Count("review"),
    )
    assert isinstance(take(SERIOUS, NODE, cause(failed="bc", passed="d", since=OLD))[-1], RevokeResults)


def test_what_is_folded_voids_no_proposal_for_the_node() -> None:
    """The finding is held against the cause, not against the node."""
    held = incident(State.OPEN, kind="settlement-mismatch", proposals=(Proposal(WHOLE_INCIDENT, "ada"),))
    found = take(SERIOUS, node(held), cause(failed="bc"))
    assert not any(isinstance(each, VoidProposals) for each in found)


# Proposals and new findings.


@pytest.mark.parametrize("draft", [SPIKE, METERED])
@pytest.mark.parametrize("known", [False, True])
def test_a_new_finding_voids_what_was_proposed_for_the_node(draft: Draft, *, known: bool) -> None:
    """For each of its incidents that has a proposal, after the finding is in and before anything moves."""
    proposals = (Proposal(WHOLE_INCIDENT, "ada"), Proposal(READ, "bob"))
    held = incident(State.UNDER_REVIEW, "1", proposals=proposals)
    other = incident(State.OPEN, "2", kind="evidence-forgery")
    same = spike(id_="3", kind=draft.kind, code=draft.finding.code, count=MANY_MINOR - 1)
    if draft is METERED:
        same = replace(same, state=State.OPEN, severity=Severity.SERIOUS)
    found = take(draft, node(held, other, *([same] if known else [])))
    assert isinstance(found[0], Count if known else Open)
    assert found[1] == VoidProposals("1", State.UNDER_REVIEW, VOIDED)
    assert not any(isinstance(each, VoidProposals) for each in found[2:])


# Passes.


def test_a_pass_confirms_the_suspicion_against_others() -> None:
    """Once, however many causes they share, and in the order of the causes."""
    both, one = incident(State.SUSPECTED, "1", causes=(MANIFEST, READ)), incident(State.SUSPECTED, "2")
    assert passes(READ, MANIFEST, suspected=(both, one)) == (
        AddToTallies((READ, MANIFEST), "b", passed=True),
        verifier_move("1", State.OPEN, "others pass at the same"),
        RevokeResults("n"),
        verifier_move("2", State.OPEN, "others pass at the same"),
        RevokeResults("n"),
    )


def test_a_pass_says_nothing_about_the_same_operator_or_other_causes() -> None:
    """Another node of the same operator is no independent witness."""
    own, elsewhere = incident(State.SUSPECTED, operator="b"), incident(State.SUSPECTED, causes=(MANIFEST,))
    assert passes(READ, suspected=(own, elsewhere)) == (AddToTallies((READ,), "b", passed=True),)


@pytest.mark.parametrize("given", [{"node_state": "retired"}, {"is_held": True}])
def test_a_node_that_is_out_or_held_says_nothing(given: dict[str, Any]) -> None:
    """Nothing is counted, and nobody confirmed."""
    assert passes(READ, suspected=(incident(State.SUSPECTED),), **given) == ()


def test_no_pass_changes_nothing() -> None:
    """There is nothing to count."""
    assert passes(suspected=(incident(State.SUSPECTED),)) == ()


# The end of the window.


def overdue(*causes: Cause, **given: Any) -> tuple[Transition, ...]:
    opened_ms = given.pop("opened_ms", NOW - BLAST_WINDOW_MS)
    names = tuple(each.name for each in causes)
    return end_suspicion(incident(State.SUSPECTED, opened_ms=opened_ms, causes=names, **given), causes, NOW)


@pytest.mark.parametrize("causes", [(), (cause(passed="a"),), (cause(), cause(MANIFEST, passed="b"))])
def test_if_anyone_has_passed_the_suspicion_is_confirmed(causes: tuple[Cause, ...]) -> None:
    """Also if it is its own operator, or if there is nothing that the finding rests on."""
    confirmed = verifier_move("i", State.OPEN, "others pass at the same")
    assert overdue(*causes) == (confirmed, RevokeResults("n"))


def test_if_nobody_has_passed_each_cause_is_reviewed() -> None:
    """The incident is folded when its last cause is void, together with others that rest on the same."""
    own = incident(State.SUSPECTED, causes=(MANIFEST, READ), opened_ms=NOW - BLAST_WINDOW_MS)
    other = incident(State.SUSPECTED, "j")
    found = end_suspicion(
        own, [cause(MANIFEST, suspected=(own,), review=review()), cause(READ, suspected=(own, other))], NOW
    )
    folded = "the reference is suspect"
    assert found[:-1] == (
        RemoveCause("i", MANIFEST),
        Count("review"),
        RemoveCause("i", READ),
        RemoveCause("j", READ),
        verifier_move("i", State.FOLDED, folded),
        verifier_move("j", State.FOLDED, folded),
    )
    opened = found[-1]
    assert isinstance(opened, Open)
    assert (opened.draft.cause, opened.draft.finding.code) == (READ, "weights.read.wrong")


def test_within_the_window_it_stays_suspected() -> None:
    """Not a millisecond too early."""
    assert overdue(cause(passed="b"), opened_ms=NOW - BLAST_WINDOW_MS + 1) == ()


@pytest.mark.parametrize("state", sorted(set(State) - {State.SUSPECTED}))
def test_what_is_not_suspected_has_no_suspicion_to_end(state: State) -> None:
    """For example because it was folded together with another one."""
    assert end_suspicion(incident(state, opened_ms=0), [cause()], NOW) == ()


# Drafts.


def test_the_drafts_of_findings() -> None:
    """One for each kind and cause; a finding that is only a reason makes none."""
    read = Finding("weights.read.wrong", "d", cause="batch:7")
    walk = Finding("weights.walk.wrong", "d", cause="batch:7")
    found = drafts((read, read, walk, Finding("weights.walk.untimed", "d")))
    assert [(each.kind, each.cause) for each in found] == [
        (KIND, READ),
        (KIND, "weights.walk.wrong@batch:7"),
    ]
    assert {each.severity for each in found} == {Severity.SERIOUS}


@pytest.mark.parametrize("kind", sorted(SEVERITY))
def test_the_draft_of_a_report(kind: str) -> None:
    """Of a kind that routers may report, and of no other."""
    if kind in REPORTABLE:
        made = report_draft(kind, "d")
        assert (made.severity, made.finding.code, made.cause) == (SEVERITY[kind], f"router.{kind}", None)
    else:
        with pytest.raises(RequestError):
            report_draft(kind, "d")


def test_the_draft_of_a_missed_call() -> None:
    """It is minor, and rests on nothing."""
    made = missed_call_draft()
    assert (made.kind, made.severity, made.cause) == ("challenge-unanswered", Severity.MINOR, None)
