"""The router's clocks: what has run out does not come to life by a clock that was set back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

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


def test_a_wall_clock_that_is_set_back_is_not() -> None:
    """Time goes on from where the process began."""
    hands = Hands()
    hands.forward(10.0)
    hands.ms -= 3_600_000
    before = hands.clock.now_ms()
    hands.forward(5.0)
    assert (before, hands.clock.now_ms()) == (NOW * 1000 + 10_000, NOW * 1000 + 15_000)


def test_a_jump_ahead_that_is_taken_back_costs_no_more_than_itself() -> None:
    """Else one wrong hour would keep every node out until the router is started again."""
    hands = Hands()
    hands.ms += 3_600_000
    ahead = hands.clock.now_ms()
    hands.ms -= 3_600_000
    hands.forward(1.0)
    assert (ahead, hands.clock.now_ms()) == (NOW * 1000 + 3_600_000, NOW * 1000 + 1000)


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(-(10**9), 10**9)), max_size=20))
def test_no_jump_takes_time_back_before_what_has_passed(steps: list[tuple[float, int]]) -> None:
    """Whatever is done to the wall clock, as much has passed as has passed."""
    hands, passed = Hands(), 0.0
    for seconds, jump_ms in steps:
        hands.forward(seconds)
        hands.ms += jump_ms
        passed += seconds
        assert hands.clock.now_ms() >= NOW * 1000 + int(passed * 1000) - 1


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
    fleet.heard()
    fleet.put(view(exp=NOW + 30))
    hands.forward(30.0)
    fleet.advance()
    hands.ms -= 3_600_000
    fleet.hold("n", "h")
    fleet.let_go("n", "h")
    verdict = fleet.verdict("n", WORKLOAD)
    assert verdict is not None
    assert verdict.code == "result.expired"


def test_a_result_runs_out_by_a_jump_ahead() -> None:
    """At the next look, without any event."""
    hands = Hands()
    fleet = Fleet(Table([WORKLOAD]), hands.clock)
    fleet.heard()
    fleet.put(view())
    hands.ms += 601_000
    verdict = fleet.verdict("n", WORKLOAD)
    assert verdict is not None
    assert verdict.code == "result.expired"
