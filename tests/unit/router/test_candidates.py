"""Lanes: the order of (operator, node) and nothing else, kept as nodes come and go."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.choose.candidates import (
    FAIL_OPEN_LANES,
    LANES,
    CandidateIndex,
    Key,
    Lane,
    RecordingIndex,
    ReplayIndex,
    SortedCandidates,
)

keys = st.tuples(st.sampled_from(["", "acme", "beta", "core"]), st.text("abc", min_size=1, max_size=2))


def lane_of(found: list[Key]) -> SortedCandidates:
    lane = SortedCandidates()
    for key in found:
        lane.add(key)
    return lane


def listed(lane: CandidateIndex) -> list[Key]:
    return [lane.at(place) for place in range(len(lane))]


def by_operator(lane: CandidateIndex) -> list[Key]:
    return [
        lane.node_of(number, place)
        for number in range(lane.operators)
        for place in range(lane.nodes_of(number))
    ]


def test_lanes_are_in_the_order_in_which_they_are_turned_to() -> None:
    """Evidence first, and last what is turned to only where all others are empty."""
    assert LANES == (Lane.ESTABLISHED, Lane.PROBATION, Lane.DEGRADED, Lane.WARMING, Lane.BROKEN)
    assert set(LANES[3:]) == FAIL_OPEN_LANES


@given(st.sets(keys))
def test_places_are_in_the_order_of_operator_and_node(found: set[Key]) -> None:
    """By place, and by operator: the same nodes in the same order."""
    lane = lane_of(list(found))
    assert (listed(lane), by_operator(lane)) == (sorted(found), sorted(found))


@given(st.sets(keys), st.randoms(use_true_random=False))
def test_in_which_order_nodes_came_does_not_matter(found: set[Key], chance: random.Random) -> None:
    """A place means the same on every router."""
    shuffled = sorted(found)
    chance.shuffle(shuffled)
    assert listed(lane_of(shuffled)) == listed(lane_of(sorted(found)))


@given(st.lists(keys, max_size=60))
def test_a_lane_is_what_came_and_did_not_go(steps: list[Key]) -> None:
    """After any coming and going; each step takes a node in or out."""
    lane, there = SortedCandidates(), set()
    for key in steps:
        (lane.remove if key in there else lane.add)(key)
        there ^= {key}
        assert (listed(lane), by_operator(lane)) == (sorted(there), sorted(there))
        assert (len(lane), lane.operators) == (len(there), len({operator for operator, _ in there}))


def test_the_last_node_of_an_operator_takes_it_along() -> None:
    """An operator without nodes is not drawn."""
    lane = lane_of([("acme", "a"), ("beta", "b")])
    lane.remove(("acme", "a"))
    assert (lane.operators, lane.nodes_of(0), lane.node_of(0, 0)) == (1, 1, ("beta", "b"))


FULL = [("acme", "a"), ("acme", "b"), ("beta", "c")]


def ask(lane: CandidateIndex) -> list[object]:
    return [len(lane), lane.operators, lane.at(2), lane.nodes_of(0), lane.node_of(0, 1), lane.at(0)]


def test_a_watched_lane_answers_as_the_lane_does() -> None:
    """Looking on changes nothing."""
    assert ask(RecordingIndex(lane_of(FULL))) == ask(lane_of(FULL))


def test_what_was_seen_answers_again() -> None:
    """From the record alone."""
    watched = RecordingIndex(lane_of(FULL))
    asked = ask(watched)
    assert ask(ReplayIndex(watched.record())) == asked


@pytest.mark.parametrize(
    "what",
    [lambda lane: lane.at(1), lambda lane: lane.nodes_of(1), lambda lane: lane.node_of(1, 0)],
    ids=["at", "nodes_of", "node_of"],
)
def test_what_was_not_seen_is_an_error(what) -> None:
    """A record that is asked for something else is of another decision."""
    watched = RecordingIndex(lane_of(FULL))
    ask(watched)
    with pytest.raises(KeyError):
        what(ReplayIndex(watched.record()))


def test_a_record_holds_what_was_asked_and_no_more() -> None:
    """A lane of a million nodes leaves no million in it."""
    watched = RecordingIndex(lane_of(FULL))
    watched.at(1)
    seen = watched.record()
    assert (seen.size, seen.operators, seen.at, seen.nodes_of, seen.node_of) == (
        3,
        2,
        {1: ("acme", "b")},
        {},
        {},
    )
