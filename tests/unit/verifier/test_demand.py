"""How many challenges a fleet uses, held against the scheduler's own rules played out."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.challenges.demand import (
    AlikeNodes,
    Demand,
    Level,
    ModelDemand,
    Rate,
    demand_of,
    levels_of,
)
from verifier.config import CallsConfig

CALLS = CallsConfig()
PER_HOUR = 3600 / 112.5
WIDE = {"gpu"}


def alike(operator: str, *models: str, hardware_class: str = "cpu", count: int = 1) -> AlikeNodes:
    return AlikeNodes(operator, models, hardware_class, count)


def means(demand: Demand, model: str) -> dict[str, float]:
    return {kind: round(rate.mean, 6) for kind, rate in demand[model].rates.items()}


def test_one_node_by_the_default_configuration() -> None:
    """Every call has a read; a quarter has a walk, and where no wide walk can be asked an ordinary one takes its place."""
    demand = demand_of(CALLS, [alike("a", "m")], WIDE)
    walks = PER_HOUR * (0.1 + 0.9 * 0.25)
    assert means(demand, "m") == {"read": round(PER_HOUR, 6), "walk": round(walks, 6)}


def test_one_node_of_a_class_with_wide_walks() -> None:
    """A tenth of its calls asks a wide walk and no other."""
    demand = demand_of(CALLS, [alike("a", "m", hardware_class="gpu")], WIDE)
    expected = {"read": 1.0, "walk": 0.9 * 0.25, "wide": 0.1}
    assert means(demand, "m") == {kind: round(PER_HOUR * share, 6) for kind, share in expected.items()}


def test_nobody_uses_nothing() -> None:
    """No node, no demand, and what there is lasts for ever."""
    assert demand_of(CALLS, [], WIDE) == {}
    (level,) = levels_of([Level(model="m", kind="read", minted=9, free=5, in_force=5)], {})
    assert level.hours == math.inf


def play(fleet: list[AlikeNodes], hours: float, seed: int) -> Counter[tuple[str, str]]:
    """Play the rules of `CallScheduler._call_due` out, call by call."""
    rng, used = random.Random(seed), Counter[tuple[str, str]]()
    nodes = [each for each in fleet for _ in range(each.count)]

    def call(node: AlikeNodes, *, walk: bool, wide: str | None) -> None:
        if wide is not None and node.hardware_class not in WIDE:
            walk, wide = True, None
        for model in node.models:
            used[model, "read"] += 1
            used[model, "walk"] += walk and wide is None
        if wide is not None:
            used[wide, "wide"] += 1

    for node in nodes:
        at = rng.uniform(0, CALLS.max_interval_s)
        while at < hours * 3600:
            at += rng.uniform(CALLS.min_interval_s, CALLS.max_interval_s)
            together, drawn_wide, drawn_walk = (rng.random() for _ in range(3))
            model = rng.choice(node.models)
            group = [other for other in nodes if other.operator == node.operator and model in other.models]
            walk = drawn_walk < CALLS.walk_share
            if len(group) > 1 and together < CALLS.together_share / len(group):
                for other in group:
                    call(other, walk=walk, wide=model)
            else:
                call(node, walk=walk, wide=model if drawn_wide < CALLS.wide_share else None)
    return used


FLEETS = {
    "one": [alike("a", "m")],
    "many operators": [alike(str(n), "m", hardware_class="gpu") for n in range(10)],
    "one operator": [alike("a", "m", hardware_class="gpu", count=6), alike("a", "m", count=4)],
    "two models": [
        alike("a", "m", "n", hardware_class="gpu", count=3),
        alike("a", "n", count=2),
        alike("b", "m"),
    ],
}


@pytest.mark.parametrize("name", FLEETS)
def test_what_is_expected_is_what_the_scheduler_uses(name: str) -> None:
    """The mean within five of its standard deviations, and the margin is never passed."""
    hours, fleet = 200.0, FLEETS[name]
    used, demand = play(fleet, hours, 7), demand_of(CALLS, fleet, WIDE)
    for model, wanted in demand.items():
        for kind, rate in wanted.rates.items():
            count = used[model, kind]
            assert abs(count - rate.mean * hours) <= 5 * math.sqrt(rate.variance * hours), (model, kind)
            assert count <= rate.within(hours), (model, kind)
    assert {place for place, count in used.items() if count} == {
        (model, kind) for model, wanted in demand.items() for kind, rate in wanted.rates.items() if rate.mean
    }


def test_nodes_that_are_called_together_need_a_wider_margin() -> None:
    """They use challenges at one moment, all of them or none."""
    apart = demand_of(CALLS, [alike(str(n), "m") for n in range(50)], WIDE)["m"].rate("read")
    together = demand_of(CALLS, [alike("a", "m", count=50)], WIDE)["m"].rate("read")
    assert together.variance > 5 * apart.variance
    assert together.mean == pytest.approx(apart.mean * (1 + CALLS.together_share * (1 - 1 / 50)))


def test_ordinary_walks_are_used_where_there_are_no_wide_ones() -> None:
    """So their demand is added up."""
    wanted = demand_of(CALLS, [alike("a", "m", hardware_class="gpu")], WIDE)["m"]
    both = wanted.rate("walk").mean + wanted.rate("wide").mean
    assert wanted.rate("walk", has_wides=False).mean == pytest.approx(both)
    assert wanted.rate("wide", has_wides=False).mean == 0


@pytest.mark.parametrize(
    ("per_node", "per_operator", "expected"), [(20, 100, 80 + 20), (20, 30, 30 + 20), (0, 100, 0)]
)
def test_announced_sessions_are_bounded_by_node_and_operator(
    per_node: int, per_operator: int, expected: int
) -> None:
    """An operator with many nodes has no more than its quota."""
    fleet = [alike("a", "m", count=4), alike("b", "m")]
    demand = demand_of(CALLS, fleet, WIDE, announced_per_node=per_node, announced_per_operator=per_operator)
    assert (demand["m"].announced, demand["m"].operators) == (expected, 2)


RATES = st.builds(Rate, st.floats(0.01, 1e5), st.floats(0.0, 1e7))


@given(RATES, st.floats(0.01, 1000))
def test_what_is_needed_for_hours_lasts_for_them(rate: Rate, hours: float) -> None:
    """One is the other the wrong way round, but for whole challenges."""
    assert rate.hours_of(rate.within(hours)) >= hours * (1 - 1e-9)
    assert rate.hours_of(max(rate.within(hours) - 1, 0)) <= hours * (1 + 1e-9)


@given(RATES, st.integers(0, 10**6))
def test_more_lasts_longer(rate: Rate, free: int) -> None:
    """And nothing lasts for nothing."""
    assert rate.hours_of(free) <= rate.hours_of(free + 1)
    assert rate.hours_of(0) == 0


def test_a_model_with_nodes_and_no_challenges_is_shown() -> None:
    """With no hours; it lacks no wide walks."""
    demand = {"m": ModelDemand({"read": Rate(30, 30), "walk": Rate(8, 8), "wide": Rate(3, 3)})}
    found = [(level.kind, level.hours) for level in levels_of([], demand)]
    assert found == [("read", 0.0), ("walk", 0.0)]


def test_only_challenges_of_the_value_in_force_have_hours() -> None:
    """Those that wait for a value to come into force are of no use now."""
    demand = {"m": ModelDemand({"read": Rate(30, 0)})}
    (level,) = levels_of([Level(model="m", kind="read", minted=900, free=600, in_force=60)], demand)
    assert level.hours == pytest.approx(2)
