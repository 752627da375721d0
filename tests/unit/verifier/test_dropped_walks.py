"""A node that drops walks, in any pattern: what its calls show, by the rules that appraisals and the caller go by."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit.verifier.test_rates import context, reference
from verifier.schemes import walks
from verifier.schemes.context import Channel, WalkRecord
from verifier.service.call_plan import CallPlan, PlannedNode
from verifier.service.make_ups import SOON_S, MakeUps

DAY_S = 86_400
MIN_S, MAX_S, SHARE = 45.0, 180.0, 0.25
ANSWER_S, SESSION_S = 60.0, 130.0
REFERENCE = reference(1 << 20)


@dataclass
class Simulated:
    """One node that is called as the verifier calls it, and its history."""

    drops: tuple[bool, ...]
    """Of its walk calls in turn, whether it drops them."""
    seed: int = 1
    history: list[WalkRecord] = field(default_factory=list)
    affirming: list[tuple[float, float]] = field(default_factory=list)
    """From when to when its results affirmed the weights."""
    rights: list[float] = field(default_factory=list)
    dropped: list[float] = field(default_factory=list)
    standings: list[tuple[float, str]] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        rng = random.Random(self.seed)
        plan = CallPlan(rng)
        make_ups = MakeUps(plan, rng, MAX_S)
        plan.add("n", PlannedNode("o", ("m",)), 0, MAX_S)
        turn, since, now = 0, None, 0.0
        while (now := plan.moment("n")) < seconds:
            plan.due(now)
            must_walk = make_ups.begin("n")
            longest_s = MAX_S - ANSWER_S if make_ups.watches("n") else MAX_S
            plan.set("n", now + rng.uniform(MIN_S, longest_s))
            if not (must_walk or "n" in plan.needs_walk or rng.random() < SHARE):
                continue
            plan.needs_walk.discard("n")
            drops, turn = self.drops[turn % len(self.drops)], turn + 1
            if drops:
                self.dropped.append(now)
                if since is not None:
                    self.affirming.append((since, now + ANSWER_S))
                since = None
                self.keep(missed(now + SESSION_S))
                make_ups.owe("n", now + SESSION_S, is_void=False)
                continue
            right = WalkRecord(
                channel=Channel.CALLED, verdict="right", at_ms=ms(now), source="engine", lateness=100,
                passes=1, reference=REFERENCE.digest, rows=32, ms=100,
            )  # fmt: skip
            self.keep(right)
            self.rights.append(now)
            standing, _ = self.standing(now)
            if standing == "called":
                since = now if since is None else since
            elif since is not None:
                self.affirming.append((since, now))
                since = None
        if since is not None:
            self.affirming.append((since, seconds))

    def keep(self, record: WalkRecord) -> None:
        self.history.append(walks.weighed(record, self.history))
        standing, _ = self.standing(record.at_ms / 1000)
        self.standings.append((record.at_ms / 1000, standing))

    def standing(self, now: float) -> tuple[str, str]:
        found = replace(context(weights=REFERENCE, hardware="cpu"), now_ms=ms(now))
        return walks.standing_of(self.history[-16:], "unasked", REFERENCE, found)

    def codes(self) -> set[str]:
        return {standing for _, standing in self.standings}


def ms(seconds: float) -> int:
    return int(seconds * 1000)


def missed(at: float) -> WalkRecord:
    return WalkRecord(channel=Channel.CALLED, verdict="missed", at_ms=ms(at), reference=REFERENCE.digest)


@example([False] * 11 + [True], 1)
@example([True, True, False], 1)
@given(
    st.lists(st.booleans(), min_size=1, max_size=12).filter(any),
    st.integers(0, 1 << 20),
)
@settings(max_examples=40)
def test_whatever_pattern_of_walks_is_dropped(drops: list[bool], seed: int) -> None:
    """
    After a dropped walk nothing is affirmed until the next right one, and then not for longer than one interval.

    And a node that goes on like that is contraindicated within a day.
    """
    node = Simulated(tuple(drops), seed)
    node.run(DAY_S)
    for dropped in node.dropped:
        following = next((right for right in node.rights if right > dropped), float("inf"))
        later = [
            (start, end) for start, end in node.affirming if end > dropped + ANSWER_S and start < following
        ]
        assert later == []
    # From the first drop on each call has a walk: what follows a right one shows within one interval.
    for start, end in node.affirming[1:]:
        last = max(right for right in node.rights if right < end)
        assert start <= last
        assert end - last <= MAX_S
    assert "missed" in node.codes()


def test_a_node_that_answers_every_walk_is_never_held_up() -> None:
    """All day."""
    node = Simulated((False,))
    node.run(DAY_S)
    assert node.codes() == {"called"}
    assert [end for _, end in node.affirming] == [DAY_S]


def test_ten_hiccups_a_day_cost_minutes_and_no_more() -> None:
    """An honest node whose attester is restarted now and then."""
    node = Simulated((False,) * 25 + (True,))
    node.run(DAY_S)
    assert len(node.dropped) >= 7
    assert node.codes() == {"called", "unanswered"}
    lost = DAY_S - sum(end - start for start, end in node.affirming)
    assert lost < len(node.dropped) * (SESSION_S - ANSWER_S + SOON_S) + MAX_S


def test_who_was_away_for_hours_is_as_before_after_one_right_walk() -> None:
    """Being away is not dropping calls: only the first of those missed in a row counts."""
    node = Simulated((False,))
    node.run(DAY_S)
    for number in range(100):
        node.keep(missed(DAY_S + 100 * number))
    assert node.history[-1].unanswered_weight <= 1000
    node.keep(replace(node.history[0], at_ms=ms(DAY_S + 10_000)))
    assert [standing for _, standing in node.standings[-2:]] == ["missed", "called"]


def test_who_drops_most_is_contraindicated_within_hours() -> None:
    """Two of three: five right answers are enough to see it."""
    node = Simulated((True, True, False))
    node.run(DAY_S)
    contraindicated = next(at for at, standing in node.standings if standing == "missed")
    assert contraindicated < 3 * 3600


@pytest.mark.parametrize("weights", [(0, 0), (0, 3999), (9000, 3999)])
def test_few_missed_calls_say_nothing_of_a_share(weights: tuple[int, int]) -> None:
    """A new node with one bad moment is not one that drops calls."""
    last = replace(missed(0), verdict="right", right_weight=weights[0], unanswered_weight=weights[1])
    assert walks._answered_permille([last]) == 1000


def test_a_clock_that_goes_back_ages_nothing() -> None:
    """Nor may it make weights grow."""
    right = replace(walks.weighed(missed(DAY_S), ()), verdict="right")
    assert walks.weighed(missed(0), (right,)).unanswered_weight == 2000
