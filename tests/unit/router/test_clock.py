"""The router's clocks: what has run out does not come to life by a clock that was set back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from router.model.clock import Clock
from router.model.workload import Table
from router.state.fleet import Fleet
from tests.unit.router.support import NOW, WORKLOAD, view


class Hands:
    """A wall clock and a monotonic one, set by hand."""

    def __init__(self) -> None:
        self.ms, self.ticks = NOW * 1000, 50.0
        self.clock = Clock(lambda: self.ms, lambda: self.ticks)

    def forward(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)
        self.ticks += seconds


def test_time_goes_with_the_wall() -> None:
    """Where nobody sets it."""
    hands = Hands()
    hands.forward(12.5)
    assert (hands.clock.now_ms(), hands.clock.unix()) == (NOW * 1000 + 12_500, NOW + 12.5)


def test_a_wall_clock_that_jumps_ahead_is_followed() -> None:
    """The machine may have slept: results have run out meanwhile."""
    hands = Hands()
    hands.ms += 3_600_000
    assert hands.clock.now_ms() == NOW * 1000 + 3_600_000


def test_a_wall_clock_that_is_set_back_is_followed() -> None:
    """Else a router that is started with a fast clock would be shut until it is started again."""
    hands = Hands()
    hands.forward(10.0)
    hands.ms -= 3_600_000
    before = hands.clock.now_ms()
    hands.forward(5.0)
    assert (before, hands.clock.now_ms()) == (NOW * 1000 - 3_590_000, NOW * 1000 - 3_585_000)


@pytest.mark.parametrize("step_ms", [-86_400_000, -3_600_000, -1001, 1001, 3_600_000, 86_400_000])
def test_a_step_is_noticed_once(step_ms: int) -> None:
    """Its size and its time are kept for the status."""
    hands = Hands()
    hands.forward(10.0)
    hands.ms += step_ms
    found = [hands.clock.has_moved(), hands.clock.has_moved()]
    hands.forward(7.0)
    assert (found, hands.clock.has_moved()) == ([True, False], False)
    assert (hands.clock.steps, hands.clock.stepped_ms, hands.clock.steady_s) == (1, step_ms, 7.0)


def test_drift_is_no_step_but_counts_once_it_is_a_second() -> None:
    """What runs out on the wall must be looked at again."""
    hands = Hands()
    found = []
    for _ in range(5):
        hands.forward(100.0)
        hands.ms += 300
        found.append(hands.clock.has_moved())
    assert (found, hands.clock.steps) == ([False, False, False, True, False], 0)


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(-(10**9), 10**9)), max_size=20))
def test_standings_are_dated_without_jumps(steps: list[tuple[float, int]]) -> None:
    """Nobody's history fades faster, or not at all, by a clock that is set."""
    hands = Hands()
    for seconds, jump_ms in steps:
        before, ticks = hands.clock.unix(), hands.ticks
        hands.forward(seconds)
        hands.ms += jump_ms
        assert abs(hands.clock.unix() - before - (hands.ticks - ticks)) < 1e-5


def test_a_result_that_ran_out_stays_so_when_the_wall_is_set_back() -> None:
    """Also for a node of which something new is heard."""
    hands = Hands()
    fleet = Fleet(Table([WORKLOAD]), hands.clock)
    fleet.note_verifier_contact()
    fleet.put_node(structs.replace(view(exp=NOW + 30), issued_at=hands.ticks))
    hands.forward(30.0)
    fleet.advance()
    hands.ms -= 3_600_000
    fleet.begin_hold("n", "h")
    fleet.end_hold("n", "h")
    verdict = fleet.verdict("n", WORKLOAD)
    assert verdict is not None
    assert verdict.code == "result.expired"


def test_a_result_is_no_older_than_the_time_that_has_passed_when_the_wall_is_set_back() -> None:
    """The same for the age that a workload allows."""
    hands = Hands()
    fleet = Fleet(Table([structs.replace(WORKLOAD, max_age_s=60)]), hands.clock)
    fleet.note_verifier_contact()
    fleet.put_node(structs.replace(view(), issued_at=hands.ticks))
    hands.ms -= 3_600_000
    codes = []
    for seconds in (60.0, 1.0):
        hands.forward(seconds)
        fleet.note_verifier_contact()
        verdict = fleet.verdict("n", WORKLOAD)
        codes.append(None if verdict is None else verdict.code)
    assert codes == [None, "result.old"]


def test_what_a_fast_clock_has_shut_opens_when_it_is_set_right() -> None:
    """At once, and without another word of the verifier."""
    hands = Hands()
    hands.ms += 3_600_000
    fleet = Fleet(Table([WORKLOAD]), hands.clock)
    fleet.note_verifier_contact()
    fleet.put_node(structs.replace(view(), issued_at=hands.ticks))
    before = fleet.verdict("n", WORKLOAD)
    hands.ms -= 3_600_000
    assert before is not None
    assert (before.code, fleet.verdict("n", WORKLOAD)) == ("result.expired", None)


def test_the_difference_to_the_verifiers_clock_goes_on_with_both() -> None:
    """Also when our own is set between two heartbeats."""
    hands = Hands()
    hands.clock.note_verifier(NOW * 1000 - 40_000)
    hands.forward(20.0)
    first = hands.clock.ahead_s()
    hands.ms -= 60_000
    assert (first, hands.clock.ahead_s()) == (40.0, -20.0)


@pytest.mark.parametrize(
    ("ahead_ms", "said"),
    [
        (30_000, ""),
        (31_000, "the router's clock is 31 s ahead of the verifier's: one of the two is wrong"),
        (-31_000, "the router's clock is 31 s behind the verifier's: one of the two is wrong"),
    ],
)
def test_a_difference_is_told_beyond_the_skew(ahead_ms: int, said: str) -> None:
    """Which of the two is wrong, nobody here can know."""
    hands = Hands()
    hands.clock.note_verifier(NOW * 1000 - ahead_ms)
    assert hands.clock.describe_difference(30) == said


def test_a_result_runs_out_by_a_jump_ahead() -> None:
    """At the next look, without any event."""
    hands = Hands()
    fleet = Fleet(Table([WORKLOAD]), hands.clock)
    fleet.note_verifier_contact()
    fleet.put_node(view())
    hands.ms += 601_000
    verdict = fleet.verdict("n", WORKLOAD)
    assert verdict is not None
    assert verdict.code == "result.expired"
