"""The expected share of a node: by the formula, and by what `rank` really draws."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.choose.candidates import LANES, Key, Lane
from router.choose.expected_share import Crowd, Expected, Member, expect_share
from router.choose.ranking import rank, score
from router.choose.trials import SCALE, STAGES, First, Stage, find_chances, stage_of
from router.model.workload import Workload
from tests.unit.router.test_ranking import Nodes, asks

SEEDS = 6000


def crowd_of(nodes: Nodes, key: Key, lane: Lane, workload: Workload) -> tuple[Member, Crowd]:
    """A node, and the others, as a pool has them."""

    def member(of: Key, its: Lane) -> Member:
        facts = nodes.facts(of[1])
        return Member(
            score(of, its, facts, workload), stage_of(facts.rating) if its is Lane.PROBATION else None
        )

    members = {
        each: [member(k, each) for k in map(nodes.kept[each].at, range(len(nodes.kept[each]))) if k != key]
        for each in LANES
    }
    stages = {stage: sum(m.stage is stage for m in members[Lane.PROBATION]) for stage in STAGES}
    queue: Any = nodes.stages[STAGES[0]]
    queued = [queue.at(position) for position in range(len(queue))]
    return member(key, lane), Crowd(
        sizes={each: len(members[each]) for each in LANES},
        stages=stages,
        members=members,
        begun=[m for m in members[Lane.PROBATION] if m.stage is Stage.BEGUN],
        came_before=queued.index(key) if key in queued else 0,
    )


def shares(nodes: Nodes, workload: Workload) -> dict[str, Expected]:
    return {
        key[1]: expect_share(*crowd_of(nodes, key, lane, workload), workload)
        for lane in LANES
        for key in map(nodes.kept[lane].at, range(len(nodes.kept[lane])))
    }


def drawn(counts: dict[Lane, int], seed: int) -> Nodes:
    """Nodes of a few operators of unlike sizes, with scores that are often alike."""
    chance, nodes = random.Random(seed), Nodes()
    for lane, count in counts.items():
        for number in range(count):
            is_new = lane is Lane.PROBATION and chance.random() < 0.5
            nodes.add(
                chance.choice("aaaabbc"),
                f"{lane}-{number}",
                lane,
                latency_s=chance.choice([1.0, 2.0, 3.0]),
                completion=0.0 if is_new else chance.choice([0.5, 0.6, 0.7]),
            )
    return nodes


lanes = st.fixed_dictionaries(
    {}, optional={lane: st.integers(1, 12) for lane in (Lane.ESTABLISHED, Lane.PROBATION, Lane.DEGRADED)}
)


@settings(max_examples=60, deadline=None)
@given(lanes, st.integers(0, 1000), st.sampled_from([0, 20, 300, 700]), st.sampled_from([0, 10, 300]))
def test_all_shares_together_are_one(counts, seed, probation, degraded) -> None:
    """Each first place is somebody's."""
    workload = asks(probation_per_mille=probation, degraded_per_mille=degraded)
    found = shares(drawn(counts, seed), workload)
    assert sum(expected.share for expected in found.values()) == pytest.approx(1.0 if found else 0.0)


@pytest.mark.parametrize(
    "counts",
    [
        {Lane.ESTABLISHED: 10},
        {Lane.ESTABLISHED: 2, Lane.PROBATION: 12, Lane.DEGRADED: 3},
        {Lane.ESTABLISHED: 5, Lane.PROBATION: 20, Lane.DEGRADED: 4},
        {Lane.PROBATION: 8, Lane.DEGRADED: 3},
        {Lane.DEGRADED: 5},
    ],
    ids=str,
)
def test_the_formula_is_what_is_drawn(counts: dict[Lane, int]) -> None:
    """Node by node, within five deviations of so many draws: seeds are fixed."""
    workload = asks(probation_per_mille=300, degraded_per_mille=200)
    nodes = drawn(counts, 7)
    firsts = [rank(nodes, workload, seed).ranked[0].node for seed in range(SEEDS)]
    for node, expected in shares(nodes, workload).items():
        spread = 5 * (max(expected.share * (1 - expected.share), 1 / SEEDS) / SEEDS) ** 0.5
        assert firsts.count(node) / SEEDS == pytest.approx(expected.share, abs=spread), node


def test_a_share_follows_from_the_inputs_that_are_shown() -> None:
    """By hand: of ten, six are worse and one is alike; 2 · 6 + 1 of 90 pairs, in 970 of 1000 decisions."""
    nodes = Nodes()
    for number in range(10):
        nodes.add(f"o-{number}", f"n-{number}", latency_s=1.0 + number)
    nodes.add("z", "n-2'", latency_s=3.0)
    nodes.kept[Lane.ESTABLISHED].remove(("o-9", "n-9"))
    nodes.crowd("new", 3, Lane.PROBATION, completion=0.0)
    nodes.crowd("bad", 3, Lane.DEGRADED)
    found = shares(nodes, asks(probation_per_mille=20, degraded_per_mille=10))["n-2"]
    (way,) = found.ways
    assert (way.how, way.among, way.compared, way.worse, way.alike, way.better) == (
        First.MAIN,
        10,
        9,
        6,
        1,
        2,
    )
    assert found.share == pytest.approx(0.97 * 13 / 90)


def test_those_that_stand_for_all_are_enough() -> None:
    """Of a crowd of equals, a few say as much as all."""
    nodes = Nodes()
    nodes.crowd("a", 100)
    node, crowd = crowd_of(nodes, ("a", "a-0"), Lane.ESTABLISHED, asks())
    few = msgspec.structs.replace(
        crowd, members={**crowd.members, Lane.ESTABLISHED: crowd.members[Lane.ESTABLISHED][:5]}
    )
    assert (
        expect_share(node, few, asks()).share
        == expect_share(node, crowd, asks()).share
        == pytest.approx(0.01)
    )


def test_names_change_no_share() -> None:
    """The same nodes under one name or under ten: each has what it had."""
    found = []
    for names in (1, 10):
        nodes = Nodes()
        for number in range(10):
            nodes.add(f"a-{number % names}", f"n-{number}", latency_s=1.0 + number % 3)
        nodes.crowd("z", 4, latency_s=2.0)
        found.append({node: expected.share for node, expected in shares(nodes, asks()).items()})
    assert found[0] == found[1]


@given(
    st.fixed_dictionaries({lane: st.integers(0, 40) for lane in LANES}),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 1000),
    st.data(),
)
def test_chances_are_never_negative_and_sum_to_one(sizes, new, begun, probation, data) -> None:
    """Whatever is set, and however few nodes there are."""
    sizes[Lane.PROBATION] += new + begun
    degraded = data.draw(st.integers(0, 1000 - probation))
    found = find_chances(sizes, new, begun, asks(probation_per_mille=probation, degraded_per_mille=degraded))
    assert min(found.values()) >= 0
    assert sum(found.values()) == SCALE
