"""How a service notices that its clock was set, and when it trusts it again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import FakeClock
from verifier.service.clock import STEP_MS, StepWatch, describe_step
from verifier.service.clock_doubt import ClockDoubt

SKEW_MS = 30_000
HOUR_MS = 3_600_000
NOW_MS = 1_795_000_000_000


@pytest.mark.parametrize("step_ms", [-86_400_000, -HOUR_MS, -1001, 1001, HOUR_MS, 86_400_000])
def test_a_step_is_told_once(step_ms: int) -> None:
    """In either direction, however much time passes beside it."""
    clock = FakeClock()
    watch = StepWatch(clock.clock())
    clock.forward(100)
    clock.ms += step_ms
    assert [watch.look()[1], watch.look()[1]] == [step_ms, 0]


@given(st.lists(st.tuples(st.floats(0, 1e5), st.integers(-STEP_MS + 1, STEP_MS - 1)), max_size=30))
def test_drift_is_no_step(looks: list[tuple[float, int]]) -> None:
    """However much of it adds up."""
    clock = FakeClock()
    watch = StepWatch(clock.clock())
    for seconds, drift_ms in looks:
        clock.ms += round(seconds * 1000) + drift_ms
        clock.ticks += seconds
        assert watch.look()[1] == 0


@given(
    st.lists(st.tuples(st.integers(0, 10**5), st.sampled_from([0, 0, -HOUR_MS, HOUR_MS, 5000])), max_size=20)
)
def test_every_step_is_told_with_its_size(looks: list[tuple[int, int]]) -> None:
    """And the time is what the wall clock says."""
    clock = FakeClock()
    watch = StepWatch(clock.clock())
    for seconds, step_ms in looks:
        clock.forward(seconds)
        clock.ms += step_ms
        assert watch.look() == (clock.ms, step_ms)


def test_a_step_in_words() -> None:
    """Without signs."""
    assert describe_step(-HOUR_MS) == "set back by 3600 s"
    assert describe_step(2000) == "set ahead by 2 s"


# The doubt.


def doubt(step_ms: int) -> ClockDoubt:
    made = ClockDoubt(SKEW_MS)
    made.take_step(step_ms)
    return made


@pytest.mark.parametrize("step_ms", [-SKEW_MS, -2000, 2000, SKEW_MS])
def test_a_step_within_the_skew_raises_no_doubt(step_ms: int) -> None:
    """Nodes are understood before it and after it."""
    assert not doubt(step_ms)


@pytest.mark.parametrize("step_ms", [-HOUR_MS, HOUR_MS, SKEW_MS + 1])
def test_a_larger_one_does_until_it_is_undone(step_ms: int) -> None:
    """In one step or in several."""
    made = doubt(step_ms)
    before = bool(made)
    made.take_step(-step_ms // 2)
    made.take_step(-step_ms // 2)
    assert (before, bool(made)) == (True, False)


def test_nodes_that_sign_the_time_as_it_is_end_the_doubt() -> None:
    """The clock is right now."""
    made = doubt(HOUR_MS)
    made.hear(b"a", NOW_MS + 20_000, NOW_MS)
    assert not made


def test_nodes_that_sign_the_time_as_it_was_do_not() -> None:
    """The clock was right before; more who say so than not keep the doubt."""
    made = doubt(HOUR_MS)
    for kid in (b"a", b"b"):
        made.hear(kid, NOW_MS - HOUR_MS, NOW_MS)
    made.hear(b"c", NOW_MS, NOW_MS)
    assert made
    made.hear(b"d", NOW_MS, NOW_MS)
    made.hear(b"e", NOW_MS, NOW_MS)
    assert not made


def test_a_node_is_heard_once_and_by_its_last_word() -> None:
    """One that repeats itself is one."""
    made = doubt(-HOUR_MS)
    made.hear(b"a", NOW_MS + HOUR_MS, NOW_MS)
    made.hear(b"b", NOW_MS + HOUR_MS, NOW_MS)
    for _ in range(5):
        made.hear(b"c", NOW_MS, NOW_MS)
    before = bool(made)
    made.hear(b"a", NOW_MS, NOW_MS)
    assert (before, bool(made)) == (True, False)


def test_a_node_with_a_third_time_says_nothing() -> None:
    """Its own clock is wrong."""
    made = doubt(HOUR_MS)
    made.hear(b"a", NOW_MS + 2 * HOUR_MS, NOW_MS)
    assert made
