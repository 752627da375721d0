"""Quantiles by a log-histogram: within one per cent, merged by adding, of the last hour."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.model.quantiles import (
    ALPHA,
    SLICE_S,
    SLICES,
    RecentDurations,
    bucket_of,
    enough_for,
    merged,
    quantile,
    value_of,
)
from tests.unit.router.support import NOW

HOUR = SLICE_S * SLICES
# For what floating point adds to a bound that is reached at the ends of a bucket.
BOUND = ALPHA + 1e-9

durations = st.floats(1e-4, 1e5)
shares = st.sampled_from([0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0])


def recent(values: list[float], now: float = NOW) -> RecentDurations:
    made = RecentDurations()
    for value in values:
        made.add(value, now)
    return made


def exact(values: list[float], share: float) -> float:
    """The smallest value that *share* of them do not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


@given(durations)
def test_a_duration_is_kept_within_one_per_cent(seconds: float) -> None:
    """From a tenth of a millisecond to a day."""
    assert abs(value_of(bucket_of(seconds)) - seconds) <= BOUND * seconds


@given(durations, durations)
def test_a_longer_duration_is_in_no_earlier_bucket(one: float, other: float) -> None:
    """So that quantiles are in order."""
    assert bucket_of(min(one, other)) <= bucket_of(max(one, other))


@pytest.mark.parametrize(("seconds", "as_if"), [(0.0, 1e-4), (-1.0, 1e-4), (1e-9, 1e-4), (1e9, 1e5)])
def test_what_is_shorter_or_longer_than_all_is_as_the_ends(seconds: float, as_if: float) -> None:
    """A clock that stood still breaks nothing."""
    assert bucket_of(seconds) == bucket_of(as_if)


@given(st.lists(durations, min_size=1, max_size=200), shares)
def test_a_quantile_is_within_one_per_cent(values: list[float], share: float) -> None:
    """Of the value that has that rank, whatever the values are."""
    found, true = quantile(merged([recent(values)], NOW), share), exact(values, share)
    assert found is not None
    assert abs(found - true) <= BOUND * true


def mixture(chance: random.Random) -> float:
    return chance.choice([0.05, 2.0]) * (1 + chance.random())


DISTRIBUTIONS = {
    "log-normal": lambda chance: chance.lognormvariate(-1, 1),
    "exponential": lambda chance: chance.expovariate(3),
    "pareto": lambda chance: 0.05 * chance.paretovariate(1.2),
    "uniform": lambda chance: chance.uniform(0.001, 10),
    "constant": lambda _: 0.25,
    "two kinds": mixture,
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_quantiles_of_many_are_within_one_per_cent(name: str, share: float) -> None:
    """Of ten thousand, of each kind of distribution that latencies have."""
    chance = random.Random(name)
    values = [DISTRIBUTIONS[name](chance) for _ in range(10_000)]
    found, true = quantile(merged([recent(values)], NOW), share), exact(values, share)
    assert found == pytest.approx(true, rel=BOUND)


def test_of_nothing_there_is_no_quantile() -> None:
    """Rather than zero, which would be the quickest of all."""
    assert quantile({}, 0.5) is None


@given(st.lists(st.lists(durations, max_size=50), max_size=4))
def test_merged_is_as_seen_together(of_each: list[list[float]]) -> None:
    """To the last count: nothing is lost by several routers having seen a part."""
    together = [value for values in of_each for value in values]
    assert merged([recent(values) for values in of_each], NOW) == merged([recent(together)], NOW)


def test_merging_changes_none_of_the_merged() -> None:
    """They are read every few seconds."""
    first, second = recent([1.0, 1.0]), recent([1.0])
    merged([first, second], NOW)
    assert [sum(r.slices[NOW // SLICE_S].values()) for r in (first, second)] == [2, 1]


START = NOW // SLICE_S * SLICE_S
"""A time at which a slice begins."""


@pytest.mark.parametrize(
    ("waited", "count"), [(0, 1), (HOUR - 1, 1), (HOUR, 0), (10 * HOUR, 0), (-1, 0), (-HOUR, 0)]
)
def test_what_is_older_than_an_hour_or_of_a_time_to_come_does_not_count(waited: int, count: int) -> None:
    """A clock that was set back must not let what is not yet count for ever."""
    assert sum(merged([recent([1.0], START)], START + waited).values()) == count


@settings(max_examples=50)
@given(st.lists(st.integers(-2 * HOUR, 2 * HOUR), max_size=60))
def test_no_more_slices_are_kept_than_an_hour_has(steps: list[int]) -> None:
    """However time goes: memory is bounded."""
    made = RecentDurations()
    for step in steps:
        made.add(1.0, NOW + step)
    assert len(made.slices) <= SLICES


def test_forgotten_slices_are_dropped() -> None:
    """From memory, not only from what is counted; also those of a time that has not come."""
    made = RecentDurations({START // SLICE_S + offset: {1: 1} for offset in (-SLICES, -SLICES + 1, 0, 1)})
    made.forget(START)
    assert sorted(made.slices) == [START // SLICE_S - SLICES + 1, START // SLICE_S]


@pytest.mark.parametrize(("share", "count"), [(0.9, 29), (0.99, 299), (0.5, 5)])
def test_so_many_are_enough_for_a_quantile(share: float, count: int) -> None:
    """reference/routers.md §B.3: with fewer even the largest may be below it, at 95 %."""
    assert (enough_for(share), share**count <= 0.05 < share ** (count - 1)) == (count, True)
