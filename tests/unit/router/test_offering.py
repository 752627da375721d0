"""What a decision offers to a picker: all that may do the work, and nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.choose.candidates import LANES, Lane
from router.choose.decision import Decision, decide
from router.choose.offering import OfferedNode, offer
from router.model.workload import Workload
from router.state.fleet import Fleet
from tests.unit.router import drawn
from tests.unit.router.support import WORKLOAD, Given, snapshot, view

SEEDS = st.integers(0, (1 << 64) - 1)


def offered(given: Given, seed: int = 0, most: int = 64, workload: Workload = WORKLOAD) -> list[OfferedNode]:
    pool = given.fleet(workload).view_for(workload)
    return offer(pool.pool, decide(pool, workload, seed), most)


def nodes(count: int) -> Given:
    return snapshot(*(view(f"n{number:02}") for number in range(count)))


def test_all_nodes_of_the_lane_are_offered_and_not_the_ranked_ones_alone() -> None:
    assert sorted(each.node for each in offered(nodes(10))) == [f"n{number:02}" for number in range(10)]


def test_nodes_that_a_gate_keeps_out_are_not_offered() -> None:
    given = snapshot(view("good"), view("revoked", revoked=True), view("held", incidents=frozenset({"i"})))
    assert [each.node for each in offered(given)] == ["good"]


def test_nothing_is_offered_while_the_verifier_is_silent() -> None:
    assert offered(snapshot(view("a"), view("b"), silent_s=61.0)) == []


@pytest.mark.parametrize("most", [3, 4, 9])
def test_no_more_are_offered_than_is_set(most: int) -> None:
    assert len(offered(nodes(10), most=most)) == most


def test_which_ones_are_offered_follows_from_the_seed_and_all_have_their_turn() -> None:
    given, seen = nodes(12), set[str]()
    for seed in range(40):
        once = [each.node for each in offered(given, seed, 4)]
        assert once == [each.node for each in offered(given, seed, 4)]
        assert len(set(once)) == 4
        seen |= set(once)
    assert len(seen) == 12


def test_a_score_is_from_0_to_1_and_is_made_from_the_expected_seconds() -> None:
    view_ = nodes(3).fleet().view_for(WORKLOAD)
    decision = decide(view_, WORKLOAD, 0)
    expected = {ranked.node: 1 / (1 + ranked.score) for ranked in decision.ranked}
    assert {each.node: each.score for each in offer(view_.pool, decision, 64)} == expected
    assert all(0 < score < 1 for score in expected.values())


@given(drawn.fleets(), SEEDS, st.integers(1, 12))
def test_only_those_are_offered_that_the_decision_might_have_ranked(
    fleet: drawn.DrawnFleet, seed: int, most: int
) -> None:
    made: Fleet = fleet.fleet()
    view_ = made.view_for(fleet.workload)
    decision: Decision = decide(view_, fleet.workload, seed)
    found = offer(view_.pool, decision, most)
    assert bool(found) == bool(decision.ranked)
    assert len(found) == len({each.node for each in found}) <= most
    ranked = {each.node for each in decision.ranked}
    first: Lane | None = next((lane for lane in LANES if view_.pool.sizes[lane]), None)
    for each in found:
        verdict = made.verdict(each.node, fleet.workload)
        assert verdict is None or verdict.code in decision.opened or verdict.code.startswith("capacity.")
        assert each.node in ranked or each.lane is first
    assert ranked <= {each.node for each in found} or len(ranked) > most
