"""What walks may cost: one walk and all of an hour are capped, whatever becomes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester.engines.budget import Budget
from attester.engines.walker import Walker
from attester.errors import EngineError, WeightsError
from attester.weights import possession
from attester.weights.kernels import row_words
from attester.weights.possession import WalkChallenge
from attester.weights.select import kernel
from attester.weights.tensors import Tensor
from tests.conftest import FakeClock

CHALLENGE = WalkChallenge("ab" * 32, rows=4, passes=1)
DATA = np.arange(5000).astype(np.int8)


def budget_of(clock: FakeClock, walk_s: float = 5, hour_s: float = 12) -> Budget:
    return Budget(walk_s, hour_s, lambda: clock.ticks)


def take(budget: Budget, clock: FakeClock, seconds: float) -> None:
    """A walk that tells of its progress at its end."""
    with budget.walk() as check:
        clock.forward(seconds)
        check(1)


@dataclass(frozen=True)
class SlowTensor:
    """A tensor that takes its time, by the clock of the test."""

    clock: FakeClock
    seconds: float
    name: str = "slow"
    size: int = DATA.size

    def chunks(self) -> Iterator[np.ndarray]:
        self.clock.forward(self.seconds)
        yield DATA


def test_a_walk_is_charged(clock):
    """From its begin to its end."""
    budget = budget_of(clock)
    take(budget, clock, 2)
    clock.forward(30)
    take(budget, clock, 0.5)
    assert budget.spent_s == 2.5


def test_nothing_is_charged_between_walks(clock):
    """An idle hour costs nothing."""
    budget = budget_of(clock)
    clock.forward(1000)
    assert budget.spent_s == 0


@pytest.mark.parametrize("over", [0.001, 1, 1e9])
def test_a_walk_beyond_its_cap_is_ended(clock, over):
    """With a sentence that says which cap."""
    budget = budget_of(clock)
    with budget.walk() as check:
        clock.forward(5)
        check(1)
        clock.forward(over)
        with pytest.raises(EngineError, match=r"^the walk exceeds its limit of 5 s$"):
            check(1)


def test_each_walk_has_the_whole_of_its_cap(clock):
    """What one took is not taken from the next."""
    budget = budget_of(clock, hour_s=100)
    for _ in range(3):
        take(budget, clock, 5)
    assert budget.spent_s == 15


def test_a_walk_is_ended_where_the_hour_is_spent(clock):
    """Before its own cap, if less of the hour is left."""
    budget = budget_of(clock)
    take(budget, clock, 5)
    take(budget, clock, 5)
    with budget.walk() as check:
        clock.forward(2)
        check(1)
        clock.forward(0.001)
        with pytest.raises(EngineError, match=r"^walks exceed their limit of 12 s within the hour$"):
            check(1)


def test_no_walk_begins_where_the_hour_is_spent(clock):
    """It is refused before anything is read, and costs nothing."""
    budget = budget_of(clock, hour_s=10)
    take(budget, clock, 5)
    take(budget, clock, 5)
    for _ in range(3):
        with pytest.raises(EngineError, match=r"^walks have used their limit of 10 s within the hour$"):
            take(budget, clock, 1)
    assert budget.spent_s == 10


@pytest.mark.parametrize("error", [EngineError("cap"), ZeroDivisionError("slip"), KeyboardInterrupt()])
def test_a_walk_that_fails_is_charged_too(clock, error):
    """It took the device's time all the same."""
    budget = budget_of(clock)

    def fail() -> None:
        with budget.walk():
            clock.forward(3)
            raise error

    with pytest.raises(type(error)):
        fail()
    assert budget.spent_s == 3


def test_a_walk_without_progress_is_charged(clock):
    """Though it could not be ended while nothing came."""
    budget = budget_of(clock, walk_s=1, hour_s=2)
    with budget.walk():
        clock.forward(500)
    with pytest.raises(EngineError, match="within the hour"):
        take(budget, clock, 0)


@pytest.mark.parametrize(("later", "spent"), [(3599, 5), (3600, 5), (3600.5, 0), (9999, 0)])
def test_a_walk_is_forgotten_an_hour_after_its_end(clock, later, spent):
    """Neither sooner nor later."""
    budget = budget_of(clock)
    take(budget, clock, 5)
    clock.forward(later)
    assert budget.spent_s == spent


def test_walks_are_allowed_again_after_an_hour(clock):
    """One by one, as those before are forgotten."""
    budget = budget_of(clock, hour_s=10)
    take(budget, clock, 5)
    clock.forward(1800)
    take(budget, clock, 5)
    with pytest.raises(EngineError):
        take(budget, clock, 5)
    clock.forward(1801)
    take(budget, clock, 5)
    with pytest.raises(EngineError):
        take(budget, clock, 5)


def test_walks_at_the_same_time_are_both_charged(clock):
    """The hour is of walks, not of the wall."""
    budget = budget_of(clock)
    with ExitStack() as stack:
        stack.enter_context(budget.walk())
        stack.enter_context(budget.walk())
        clock.forward(3)
    assert budget.spent_s == 6


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 8)), max_size=30),
    st.integers(1, 10),
    st.integers(1, 40),
)
def test_any_walks_are_charged_and_refused_as_counted_by_hand(walks, walk_s, hour_s):
    """Whatever gaps and times: what is within the hour, summed anew each time."""
    clock = FakeClock()
    budget = budget_of(clock, walk_s, hour_s)
    ended: list[tuple[float, int]] = []

    def spent() -> int:
        return sum(took for end, took in ended if end >= clock.ticks - 3600)

    for gap, took in walks:
        clock.forward(gap)
        before = spent()
        begins = before < hour_s
        try:
            take(budget, clock, took)
        except EngineError:
            assert not begins or took > min(walk_s, hour_s - before)
        else:
            assert begins
            assert took <= min(walk_s, hour_s - before)
        if begins:
            ended.append((clock.ticks, took))
        assert budget.spent_s == spent()


def answer(walker: Walker, *tensors: object):
    return walker.answer(tensors, CHALLENGE, "engine")


def test_a_walker_ends_a_walk_beyond_the_cap(clock):
    """In the midst of the tensors: those after are not read."""
    read = []

    class Noted(SlowTensor):
        def chunks(self):
            read.append(self.name)
            return super().chunks()

    walker = Walker("cpu", budget_of(clock), "numpy")
    with pytest.raises(EngineError, match="exceeds its limit of 5 s"):
        answer(walker, *(Noted(clock, 4, name) for name in "abcd"))
    assert read == ["a", "b"]


def test_a_walker_goes_on_after_a_walk_that_was_ended(clock):
    """The next one has its turn, and the right answers."""
    walker = Walker("cpu", budget_of(clock), "numpy")
    with pytest.raises(EngineError):
        answer(walker, SlowTensor(clock, 6))
    words = [row_words(bytes.fromhex(CHALLENGE.seed), row) for row in range(CHALLENGE.rows)]
    found = answer(walker, SlowTensor(clock, 1))
    assert list(found.answers) == possession.walk([Tensor("slow", DATA)], words, 1, kernel("numpy"))
    assert (found.source, found.device) == ("engine", walker.prepare().name)


def test_a_walker_refuses_before_it_reads(clock):
    """Where the hour is spent, no tensor is asked for."""

    def never() -> Iterator[Tensor]:
        pytest.fail("a tensor was asked for")
        yield

    walker = Walker("cpu", budget_of(clock, walk_s=100, hour_s=10), "numpy")
    answer(walker, SlowTensor(clock, 10))
    with pytest.raises(EngineError, match="within the hour"):
        walker.answer(never(), CHALLENGE, "engine")


def test_making_ready_costs_nothing_of_the_budget(clock):
    """Compiling is not walking."""
    budget = budget_of(clock)
    Walker("cpu", budget, "numpy").prepare()
    assert budget.spent_s == 0


def test_a_device_that_is_not_there_is_refused():
    """When making ready, and not first when a call comes."""
    with pytest.raises(WeightsError, match="no kernel can walk on nonsense"):
        Walker("nonsense").prepare()


@pytest.mark.parametrize("make", [Budget, lambda: Walker()._budget], ids=["a budget", "a walker"])
def test_there_are_caps_without_being_told(make):
    """An engine that sets none is not walked for ever."""
    budget = make()
    assert (budget._walk_s, budget._hour_s) == (60, 600)
