"""Sequential tests: how often they stop what is not worse, and how soon they stop what is."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.made_up_changes import try_change
from router.model.change import Arm, Bounds
from router.model.comparison import Comparison, Observation, find_worse
from router.model.sequential import Split, Wager, log_limit

BOUNDS = Bounds()


def run(seed: int, requests: int, *, bounds: Bounds = BOUNDS, **how: Any) -> tuple[str | None, int]:
    """The test that stopped a made-up change, and after how many requests of the candidate."""
    return try_change(seed, requests, bounds=bounds, **how)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"share": 0.5, "failing": (0.04, 0.04)},
        # What makes both worse at once stops nothing.
        {"surge": 4.0, "failing": (0.01, 0.01)},
    ],
)
def test_a_change_that_is_not_worse_is_hardly_ever_stopped(how: dict[str, Any]) -> None:
    # Of 40 with 5 % allowed; at most 2 are expected, and more than 6 would be one chance in a hundred.
    bounds = Bounds(alpha_per_mille=50)
    stops = [run(seed, 500, bounds=bounds, **how)[0] for seed in range(40)]
    assert sum(stop is not None for stop in stops) <= 6, stops


@pytest.mark.parametrize(
    ("how", "name", "within"),
    [
        ({"failing": (1.0, 0.01)}, "ceiling", 4),
        ({"failing": (0.3, 0.01)}, "failures", 40),
        ({"retried": (0.4, 0.02)}, "retries", 80),
        ({"slower": 6.0, "share": 0.2}, "p99", 80),
        ({"pace": 3.0, "share": 0.2}, "pace", 80),
        ({"dearer": 10.0}, "cost", 6),
        ({"dearer": 1.5}, "cost", 60),
    ],
)
def test_what_is_worse_is_stopped_soon(how: dict[str, Any], name: str, within: int) -> None:
    for seed in range(3):
        stopped, after = run(seed, 1500, **how)
        # Failures have two bounds, of which either may be the first.
        assert stopped in ({"failures", "ceiling"} if name == "failures" else {name})
        assert after <= within


def test_what_becomes_worse_late_is_stopped_nearly_as_soon() -> None:
    assert run(1, 4000, share=0.5, failing=(1.0, 0.01), since=3000)[1] <= 12


def test_without_the_mixture_over_beginnings_it_would_not_be() -> None:
    plain, late = Wager(), Wager()
    plain.logs, plain.seen = [0.0] * 7, 0
    for wager, keeps in ((plain, True), (late, False)):
        for number in range(2012):
            wager.add(float(number >= 2000), 0.05)
            if keeps:
                # As if all had been put down at the beginning.
                wager.seen = 10**9
    limit = log_limit(0.01, 5)
    assert late.log_wealth > limit > plain.log_wealth


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0.001, 1)), max_size=50))
def test_wealth_is_a_number_and_survives_the_store(values: list[tuple[float, float]]) -> None:
    wager = Wager()
    for value, bound in values:
        wager.add(value, bound)
    assert math.isfinite(wager.log_wealth)
    again = msgspec.json.decode(msgspec.json.encode(wager), type=Wager)
    assert again.log_wealth == pytest.approx(wager.log_wealth)


@given(st.integers(1, 40), st.floats(0.01, 0.99), st.floats(0.01, 0.9))
def test_no_bettor_can_expect_to_win(size: int, bound: float, bet: float) -> None:
    # Two outcomes whose mean is the bound: the wealth after one step is 1 on average.
    results = []
    for value in (0.0, 1.0):
        wager = Wager()
        wager.add(value, bound)
        results.append(math.exp(wager.log_wealth))
    assert bound * results[1] + (1 - bound) * results[0] == pytest.approx(1.0)


def test_few_requests_say_nothing_of_the_shares() -> None:
    split = Split()
    for number in range(49):
        split.add(is_candidate=number % 2 == 0)
    assert split.bias(0.5, 2.0) is None
    split.add(is_candidate=False)
    assert split.bias(0.5, 2.0) == pytest.approx(0.675, abs=0.02)


def test_one_arm_alone_is_compared_with_nothing() -> None:
    split = Split()
    for _ in range(500):
        split.add(is_candidate=True)
    assert split.bias(1.0, 2.0) is None


def test_what_several_routers_saw_counts_together() -> None:
    each = []
    for _ in range(3):
        seen = Comparison()
        for _ in range(2):
            seen.add(Observation(arm=Arm.CANDIDATE, stratum="w", failed=True), BOUNDS, 0.1)
        each.append(seen)
    assert find_worse(each[:1], BOUNDS) is None
    assert find_worse(each, BOUNDS) == "ceiling"


def test_excused_requests_say_nothing() -> None:
    seen = Comparison()
    for _ in range(100):
        seen.add(Observation(arm=Arm.CANDIDATE, stratum="w", failed=None), BOUNDS, 0.1)
    assert find_worse([seen], BOUNDS) is None
    assert (seen.of(Arm.CANDIDATE).excused, seen.of(Arm.CANDIDATE).judged) == (100, 0)


def test_who_leaves_after_longer_than_is_slow_was_kept_waiting() -> None:
    seen = Comparison()
    for number in range(400):
        arm = Arm.CANDIDATE if number % 4 == 0 and number >= 200 else Arm.ACTIVE
        if arm is Arm.ACTIVE:
            seen.add(Observation(arm=arm, stratum="w", failed=False, seconds=1.0), BOUNDS, 0.25)
        else:
            # One leaves at once, which says nothing; the next one after ten seconds.
            waited = 10.0 if number % 8 else 0.1
            seen.add(Observation(arm=arm, stratum="w", seconds=waited, is_over=False), BOUNDS, 0.25)
    assert find_worse([seen], BOUNDS) == "p99"
    assert seen.of(Arm.CANDIDATE).excused == 50


def test_a_rate_that_is_hardly_higher_stops_nothing() -> None:
    bounds = Bounds(least_per_mille=1000)
    assert run(1, 3000, failing=(0.045, 0.002), bounds=bounds)[0] is None
    assert run(1, 3000, failing=(0.045, 0.002), share=0.3)[0] == "failures"
