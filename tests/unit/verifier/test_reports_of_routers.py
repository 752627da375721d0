"""What reports of routers lead to: the word of one router reaches only so far."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.verifier.incident_facts import METERED, NODE, NOW, OLD, incident, node, review, verifier_move
from verifier.incident_rules import end_report, take_report
from verifier.incident_transitions import Count, Open, Reporter, RestOn, RevokeResults
from verifier.incidents import (
    REPORTED_NODES,
    REPORTER_SUSPECT,
    Draft,
    Severity,
    State,
    is_of_reporter,
    reported_by,
)
from verifier.schemes.findings import Finding

FIRST = reported_by(METERED.finding.code, "first")
OTHER = reported_by(METERED.finding.code, "other@issuer")


def reporter(*operators: str, nodes: int = 0, **given: Any) -> Reporter:
    ids = frozenset(f"n-{number}" for number in range(max(nodes, len(operators))))
    return Reporter(**{"cause": FIRST, "operators": frozenset(operators), "nodes": ids, **given})


def metered(state: State = State.SUSPECTED, **given: Any) -> Any:
    facts = {"kind": METERED.kind, "code": METERED.finding.code, "causes": (FIRST,)}
    return incident(state, **{**facts, **given})


def review_of(nodes: int, operators: int) -> Open:
    detail = f"it has reported {nodes} or more nodes of {operators} or more operators"
    finding = Finding(METERED.finding.code, detail)
    return Open(Draft(REPORTER_SUSPECT, Severity.SERIOUS, finding, FIRST), State.OPEN)


SUSPECTED = Open(replace(METERED, cause=FIRST), State.SUSPECTED, "n", "acme", None)


def test_the_word_of_a_router_is_a_cause() -> None:
    """Whatever its name has in it; reference values and batches are none."""
    assert is_of_reporter(FIRST)
    assert is_of_reporter(OTHER)
    assert not any(
        map(is_of_reporter, ("weights.read.wrong@batch:7", "a@reference:reporter:x", "reporter:x"))
    )


def test_a_first_report_is_a_suspicion() -> None:
    """It holds nobody yet."""
    assert take_report(METERED, NODE, reporter()) == (SUSPECTED,)


def test_the_same_router_again_confirms_nothing() -> None:
    """However often it says so."""
    assert take_report(METERED, node(metered()), reporter("acme")) == (Count("i"), RestOn("i", FIRST))


def test_another_router_confirms_a_report() -> None:
    """Its word is another's."""
    assert take_report(METERED, node(metered(causes=(OTHER,))), reporter()) == (
        Count("i"),
        RestOn("i", FIRST),
        verifier_move("i", State.OPEN, "another router reports the same"),
        RevokeResults("n"),
    )


def test_a_report_counts_into_what_holds_the_node() -> None:
    """Nothing moves."""
    held = node(metered(State.UNDER_REVIEW))
    assert take_report(METERED, held, reporter()) == (Count("i"), RestOn("i", FIRST))


def test_nodes_of_a_third_operator_bring_the_reporter_under_review() -> None:
    """Once."""
    assert take_report(METERED, NODE, reporter("a", "b")) == (SUSPECTED, review_of(3, 3))
    assert take_report(METERED, NODE, reporter("a", "b", review=review())) == (SUSPECTED,)


def test_many_nodes_of_one_operator_bring_the_reporter_under_review() -> None:
    """Else it could hold the whole fleet of a network with one operator."""
    some, many = (reporter("acme", nodes=nodes) for nodes in (REPORTED_NODES - 2, REPORTED_NODES - 1))
    assert take_report(METERED, NODE, some) == (SUSPECTED,)
    assert take_report(METERED, NODE, many) == (SUSPECTED, review_of(REPORTED_NODES, 1))


@pytest.mark.parametrize("by", [reporter("acme"), reporter("acme", "b", nodes=REPORTED_NODES - 1)])
def test_the_word_of_one_holds_after_the_window(by: Reporter) -> None:
    """Where it speaks against few."""
    assert end_report(metered(opened_ms=OLD), [by], NOW) == (
        verifier_move("i", State.OPEN, "its window is over, and its reporter is not doubted"),
        RevokeResults("n"),
    )


def test_nothing_ends_within_the_window() -> None:
    """Another router may yet confirm it."""
    assert end_report(metered(), [reporter("acme")], NOW) == ()


@pytest.mark.parametrize("state", [State.OPEN, State.RELEASED, State.NOTED])
def test_only_suspicions_end(state: State) -> None:
    """All others are for people."""
    assert end_report(metered(state, opened_ms=OLD), [reporter("acme")], NOW) == ()


def test_the_word_of_a_doubted_reporter_holds_nobody() -> None:
    """However long nobody looks; a review that was closed too early is opened again."""
    late = metered(opened_ms=OLD)
    assert end_report(late, [reporter("a", "b", "c", review=review())], NOW) == ()
    assert end_report(late, [reporter("acme", review=review())], NOW) == ()
    assert end_report(late, [reporter("a", "b", "c")], NOW) == (review_of(3, 3),)
