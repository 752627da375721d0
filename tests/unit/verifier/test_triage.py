"""The order of the queue of reviews: by what leaving something as it is costs, from inputs that are shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.incidents import SEVERITY
from verifier.triage import PRIOR_WEIGHT, PRIORS, UNKNOWN, Costs, Waiting, in_order, rate, to_wire

COSTS = Costs(held=1, trusted=10)
HOUR_MS = 3_600_000


def entry(**given: Any) -> Waiting:
    members: dict[str, Any] = {
        "id": "i",
        "kind": "settlement-mismatch",
        "code": "c",
        "since_ms": 0,
        "due_ms": 24 * HOUR_MS,
    }
    return Waiting(**{**members, **given})


WAITING = st.builds(
    Waiting,
    id=st.text(max_size=3),
    kind=st.sampled_from([*PRIORS, *SEVERITY, "another"]),
    code=st.just("c"),
    since_ms=st.integers(0, 1 << 40),
    due_ms=st.integers(0, 1 << 40),
    nodes=st.integers(1, 100_000),
    held=st.booleans(),
    at_fault=st.integers(0, 1000),
    not_at_fault=st.integers(0, 1000),
    others_failed=st.integers(0, 1000),
    passed=st.integers(0, 1000),
)


@given(WAITING, st.integers(0, 1 << 41))
def test_anyone_can_compute_it_again(waiting: Waiting, now_ms: int) -> None:
    """From what an entry shows, and the costs."""
    shown = to_wire(waiting, rate(waiting, COSTS, now_ms), now_ms)
    found, operators = shown["found_before"], shown["operators"]
    people = found["at_fault"] + found["not_at_fault"]
    confidence = (PRIOR_WEIGHT * PRIORS.get(shown["kind"], UNKNOWN) + found["at_fault"]) / (
        PRIOR_WEIGHT + people
    )
    confidence *= (operators["passed"] + 1) / (operators["passed"] + operators["others_failed"] + 1)
    wrong = (1 - confidence) * COSTS.held if shown["held"] else confidence * COSTS.trusted
    assert shown["confidence"] == pytest.approx(confidence, abs=5e-4)
    assert shown["cost_per_hour"] == pytest.approx(wrong * shown["nodes"], abs=5e-4)
    hours = shown["waiting_s"] / 3600
    assert shown["cost"] == pytest.approx(wrong * shown["nodes"] * (hours + 1), rel=1e-3, abs=6e-3)
    assert 0 <= shown["confidence"] <= 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"kind": "settlement-unconfirmed"}, {"kind": "model-integrity", "held": True}),
        ({"kind": "another", "held": True}, {"kind": "model-integrity", "held": True}),
        ({"nodes": 500, "held": True}, {"held": True}),
        ({"held": True, "not_at_fault": 20}, {"held": True, "at_fault": 20}),
        ({"held": True, "others_failed": 9, "passed": 1}, {"held": True, "others_failed": 1, "passed": 9}),
        ({"at_fault": 20}, {"not_at_fault": 20}),
        ({"since_ms": 0, "held": True}, {"since_ms": 90 * HOUR_MS, "held": True}),
    ],
    ids=["goes-on", "doubtful", "many", "was-ours-before", "others-fail-too", "was-the-node-before", "older"],
)
def test_what_costs_more_comes_first(first: dict[str, Any], second: dict[str, Any]) -> None:
    """The doubtful, the large and the old; of nodes that go on, those that are probably at fault."""
    queue = [entry(id="second", **second), entry(id="first", **first)]
    assert [each.id for each, _ in in_order(queue, COSTS, 100 * HOUR_MS)] == ["first", "second"]


def test_nothing_waits_for_ever() -> None:
    """However sure it is, it comes up some day, before whatever is new."""
    sure = entry(id="sure", kind="model-integrity", held=True)
    hours = next(
        hours for hours in range(10_000)
        if in_order([sure, entry(id="new", since_ms=hours * HOUR_MS)], COSTS, hours * HOUR_MS)[0][0].id == "sure"
    )  # fmt: skip
    assert 24 < hours < 1000


@given(st.lists(WAITING, max_size=6, unique_by=lambda each: each.id), st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_how_the_queue_was_read(queue: list[Waiting], lots: Any) -> None:
    """The same entries give the same order."""
    shuffled = list(queue)
    lots.shuffle(shuffled)
    assert in_order(queue, COSTS, 1 << 41) == in_order(shuffled, COSTS, 1 << 41)


def test_a_clock_that_is_behind_costs_nothing_less_than_an_hour() -> None:
    """What began in the future has waited for no time."""
    ahead = entry(since_ms=10 * HOUR_MS)
    assert rate(ahead, COSTS, 0) == rate(ahead, COSTS, 10 * HOUR_MS)
