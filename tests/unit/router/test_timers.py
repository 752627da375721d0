"""When nodes are due: each at its newest due time, and nodes that were renewed cost nearly nothing."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from router.state.timers import Timers

STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 1.0, 2.0, 5.0, 9.0, math.inf]), st.booleans()),
    max_size=40,
)


@given(STEPS)
def test_each_node_is_due_at_its_newest_time(steps) -> None:
    """Whatever was set before it, and only once."""
    timers = Timers(spread=1.0)
    due: dict[str, float] = {}
    now = 0.0
    for node, after, is_popped in steps:
        timers.set_due(node, now + after)
        due[node] = now + after
        if is_popped:
            now += 1.0
            expected = sorted(name for name, at in due.items() if at <= now)
            assert sorted(timers.pop_due(now)) == expected
            due = {name: at for name, at in due.items() if at > now}
        assert timers.earliest <= min(due.values(), default=math.inf)


def test_a_node_that_is_renewed_for_ever_has_one_place() -> None:
    """The heap does not grow with the renewals."""
    timers = Timers(spread=1.0)
    for now in range(1000):
        timers.set_due("a", now + 300.0)
        assert list(timers.pop_due(float(now))) == []
    assert len(timers._heap) == 1


def test_nodes_that_are_due_together_do_not_come_up_together() -> None:
    """Each is moved or waits for its time in a moment of its own."""
    timers = Timers(spread=1.0)
    for number in range(100):
        timers.set_due(f"n{number}", 10.0)
    for number in range(100):
        timers.set_due(f"n{number}", 20.0)
    moved = []
    for tenth in range(90, 101):
        before = sum(place > 10.0 for place, _ in timers._heap)
        assert list(timers.pop_due(tenth / 10)) == []
        moved.append(sum(place > 10.0 for place, _ in timers._heap) - before)
    assert (sum(moved), max(moved) <= 11) == (100, True)
    assert len(list(timers.pop_due(20.0))) == 100


def test_a_node_that_is_made_due_when_it_comes_up_is_due_again() -> None:
    """Also while others are popped."""
    timers = Timers(spread=1.0)
    for node in "ab":
        timers.set_due(node, 1.0)
    popped = []
    for node in timers.pop_due(1.0):
        popped.append(node)
        timers.set_due(node, 2.0)
    assert (sorted(popped), sorted(timers.pop_due(2.0))) == (["a", "b"], ["a", "b"])
