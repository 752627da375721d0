"""Prefix affinity: which node is near a key, and when it comes first."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from bench.affinity import simulate
from router.choose.affinity import NEAR, Affinity, Ring, stick
from router.choose.candidates import LANES, Key, Lane, SortedCandidates
from router.choose.decision import Decision, FleetView, decide, replay
from router.choose.explaining import describe_affinity
from router.choose.ranking import CandidateFacts, rank
from router.choose.trials import STAGES, Stage
from router.model.errors import ReplayError
from router.model.standing import Rating
from router.model.workload import Workload

SECRET = b"one process"
BOUND = 150
WORKLOAD = Workload(model="m", name="w", affinity_per_cent=BOUND, probation_per_mille=0, degraded_per_mille=0)
GOOD = Rating(latency_s=1.0, completion=0.99, evidence=100.0)
KEYS = [f"{number:016x}" for number in range(300)]


class Pool:
    """Nodes in lanes; how much each has in flight."""

    def __init__(self, lanes: Mapping[Lane, list[Key]]) -> None:
        self.kept = {lane: SortedCandidates() for lane in LANES}
        self.kept[Lane.ESTABLISHED] = SortedCandidates(Ring(SECRET))
        for lane, keys in lanes.items():
            for key in keys:
                self.kept[lane].add(key)
        self.sizes = {lane: len(index) for lane, index in self.kept.items()}
        self.in_flight: dict[str, int] = {}
        self.full: set[str] = set()
        self.stages: Mapping[Stage, SortedCandidates] = {stage: SortedCandidates() for stage in STAGES}
        self.usual_calls: float | None = None

    @property
    def lanes(self) -> Mapping[Lane, SortedCandidates]:
        return self.kept

    def facts(self, node: str) -> CandidateFacts:
        return CandidateFacts(rating=GOOD, in_flight=self.in_flight.get(node, 0))

    def has_full_share(self, operator: str) -> bool:
        return operator in self.full


def nodes(count: int) -> list[Key]:
    return [(f"op-{number % 5}", f"n-{number}") for number in range(count)]


def established(count: int = 50) -> Pool:
    return Pool({Lane.ESTABLISHED: nodes(count)})


def decided(pool: Pool, key: str | None, seed: int = 1, workload: Workload = WORKLOAD) -> Decision:
    view = FleetView(version=1, now_ms=1, pool=pool, closed={})
    return decide(view, workload, seed, affinity=key)


def ring_of(keys: list[Key], secret: bytes = SECRET) -> Ring:
    ring = Ring(secret)
    for key in keys:
        ring.add(key)
    return ring


# The circle.


def test_the_order_in_which_nodes_came_is_irrelevant() -> None:
    found = nodes(50)
    shuffled = found.copy()
    random.Random(1).shuffle(shuffled)
    one, other = ring_of(found), ring_of(shuffled)
    assert [one.near(key) for key in KEYS] == [other.near(key) for key in KEYS]


def test_a_node_that_goes_moves_no_key_but_its_own() -> None:
    ring = ring_of(nodes(50))
    before = {key: ring.near(key)[0] for key in KEYS}
    gone = ("op-3", "n-13")
    ring.remove(gone)
    moved = {key for key in KEYS if ring.near(key)[0] != before[key]}
    assert moved == {key for key in KEYS if before[key] == gone} != set()


def test_a_node_that_comes_takes_keys_and_moves_no_others() -> None:
    ring = ring_of(nodes(50))
    before = {key: ring.near(key)[0] for key in KEYS}
    ring.add(("op-9", "new"))
    assert {ring.near(key)[0] for key in KEYS if ring.near(key)[0] != before[key]} == {("op-9", "new")}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40), st.text(max_size=5))
def test_a_circle_is_what_is_on_it(steps: list[tuple[bool, int]], key: str) -> None:
    ring, there = Ring(SECRET), set[Key]()
    for comes, number in steps:
        node = ("op", f"n-{number}")
        if comes and node not in there:
            ring.add(node)
            there.add(node)
        elif not comes and node in there:
            ring.remove(node)
            there.remove(node)
    near = ring.near(key)
    assert near == ring_of(sorted(there)).near(key)
    assert set(near) <= there
    assert len(near) == len(set(near)) <= NEAR
    assert bool(near) is bool(there)


def test_where_a_node_is_nobody_outside_can_foretell() -> None:
    one, other = ring_of(nodes(50)), ring_of(nodes(50), b"another process")
    same = sum(one.near(key)[0] == other.near(key)[0] for key in KEYS)
    assert same < len(KEYS) / 5


# When the near node comes first.


def test_requests_of_one_key_go_to_one_node_whatever_the_seed() -> None:
    pool = established()
    first = {decided(pool, KEYS[0], seed).ranked[0].node for seed in range(50)}
    assert len(first) == 1


def test_without_a_key_nothing_is_other_than_it_was() -> None:
    pool = established()
    for seed in range(50):
        with_circle = rank(pool, WORKLOAD, seed)
        plain = rank(pool, structs.replace(WORKLOAD, affinity_per_cent=0), seed)
        assert with_circle == plain
        assert with_circle.affinity is None


@given(st.integers(0, 1 << 32), st.sampled_from(KEYS), st.integers(100, 300))
def test_it_is_never_worse_than_two_choices_by_more_than_the_bound(
    seed: int, key: str, per_cent: int
) -> None:
    pool, lots = established(20), random.Random(seed)
    pool.in_flight = {name: lots.randrange(6) for _, name in nodes(20)}
    workload = structs.replace(WORKLOAD, affinity_per_cent=per_cent)
    drawn = rank(pool, workload, seed).ranked[0]
    first = rank(pool, workload, seed, affinity=key).ranked[0]
    assert first.score * 100 <= drawn.score * per_cent


def test_a_busy_node_leaves_its_key_to_the_next_near_one() -> None:
    pool = established()
    near = pool.kept[Lane.ESTABLISHED].near(KEYS[0])
    pool.in_flight[near[0][1]] = 5
    decision = decided(pool, KEYS[0])
    assert decision.affinity == Affinity(KEYS[0], "kept", near[1][1])


def test_if_all_near_nodes_are_busy_two_choices_decide() -> None:
    pool = established()
    for _, name in pool.kept[Lane.ESTABLISHED].near(KEYS[0]):
        pool.in_flight[name] = 5
    decision = decided(pool, KEYS[0])
    assert decision.affinity == Affinity(KEYS[0], "busy")
    assert decision.ranked == decided(pool, None).ranked


def test_a_node_of_an_operator_that_has_its_share_does_not_come_first() -> None:
    pool = established()
    near = pool.kept[Lane.ESTABLISHED].near(KEYS[0])
    pool.full = {operator for operator, _ in near}
    workload = structs.replace(WORKLOAD, max_operator_share=50)
    decision = decided(pool, KEYS[0], workload=workload)
    assert decision.ranked[0].operator not in pool.full


def test_a_trial_of_a_node_on_probation_comes_before_any_key() -> None:
    pool = Pool({Lane.ESTABLISHED: nodes(10), Lane.PROBATION: [("new", "new")]})
    workload = structs.replace(WORKLOAD, probation_per_mille=1000)
    decision = decided(pool, KEYS[0], workload=workload)
    assert decision.ranked[0].node == "new"
    assert decision.affinity == Affinity(KEYS[0], "trial")


def test_no_node_of_another_lane_is_near_a_key() -> None:
    pool = Pool({Lane.PROBATION: nodes(10), Lane.DEGRADED: [("bad", "bad")]})
    decision = decided(pool, KEYS[0])
    assert decision.affinity == Affinity(KEYS[0], "none")
    assert [r.node for r in decision.ranked] == [r.node for r in decided(pool, None).ranked]


def test_a_node_that_leaves_the_lane_loses_its_keys_at_once() -> None:
    pool = established()
    node = pool.kept[Lane.ESTABLISHED].near(KEYS[0])[0]
    pool.kept[Lane.ESTABLISHED].remove(node)
    pool.sizes[Lane.ESTABLISHED] -= 1
    for seed in range(20):
        assert node[1] not in [r.node for r in decided(pool, KEYS[0], seed).ranked]


def test_three_nodes_are_ranked_and_none_twice() -> None:
    pool = established()
    for key in KEYS:
        found = [r.node for r in decided(pool, key).ranked]
        assert len(found) == len(set(found)) == 3


def test_a_single_node_is_near_every_key() -> None:
    decision = decided(Pool({Lane.ESTABLISHED: nodes(1)}), KEYS[0])
    assert decision.affinity == Affinity(KEYS[0], "drawn", "n-0")


def test_sticking_needs_no_better_node_than_the_best() -> None:
    """Of nodes that are expected to take no time at all, too."""
    best = rank(established(), WORKLOAD, 1).ranked[0]
    drawn, how = stick([("o", "x")], [structs.replace(best, score=0.0)], lambda _: best, BOUND)
    assert (drawn[0].node, how) == (best.node, "busy")


# The record.


def test_a_decision_is_made_again_from_its_record() -> None:
    pool = established()
    for key in KEYS[:50]:
        decision = decided(pool, key)
        wire = decision.to_wire()
        assert replay(Decision.from_wire(wire)).affinity == decision.affinity


@pytest.mark.parametrize("change", [{"node": "n-1"}, {"how": "busy"}, {"key": KEYS[1]}])
def test_a_record_that_says_another_thing_of_the_key_is_found(change: dict[str, Any]) -> None:
    wire = decided(established(), KEYS[0]).to_wire()
    wire["affinity"] |= change
    with pytest.raises(ReplayError):
        replay(Decision.from_wire(wire))


@pytest.mark.parametrize("how", ["kept", "drawn", "busy", "trial", "none", "what comes later"])
def test_what_the_key_was_worth_is_said_in_a_sentence(how: str) -> None:
    (line,) = describe_affinity({"key": KEYS[1], "how": how, "node": "n-1"})
    assert KEYS[1] in line
    assert ("n-1" in line) is (how in ("kept", "drawn"))
    assert describe_affinity(None) == []


def test_a_record_without_a_key_has_nothing_of_it() -> None:
    wire = decided(established(), None).to_wire()
    assert wire["affinity"] is None
    assert not any("near" in lane for lane in wire["seen"].values())


def test_a_record_of_older_days_is_read() -> None:
    wire = decided(established(), None).to_wire()
    del wire["affinity"]
    assert replay(Decision.from_wire(wire)).affinity is None


# What it is worth.


def test_more_prefixes_are_found_and_answers_come_no_later() -> None:
    without, within = simulate(30, 3000, 0), simulate(30, 3000, BOUND)
    assert within.hits > 2 * without.hits
    assert within.mean_s < without.mean_s
    assert within.p99_s < 1.05 * without.p99_s
