"""
Prefix affinity in a simulated fleet: how many requests find their prefix cached, and what that costs, by the bound.

    python -m bench.affinity [--nodes 200] [--requests 40000]

The decisions are the router's own (`router.choose.ranking.rank`); the nodes are simulated.  A node keeps the prefixes that
it has read last.  A request takes the time of its prompt, which is short if its prefix is kept, and that of its answer,
both longer the more the node has in flight.  Prefixes are asked for by Zipf's law.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import statistics
import time
from bisect import bisect
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from router.choose.affinity import Ring
from router.choose.candidates import LANES, Lane, SortedCandidates
from router.choose.ranking import CandidateFacts, rank
from router.choose.trials import STAGES, Stage
from router.model.standing import Rating
from router.model.workload import Workload

BOUNDS: Final = (0, 100, 125, 150, 200, 300)
"""Per cent; 0: without affinity."""
KEPT: Final = 16
"""Prefixes that a node keeps."""
PREFIXES_PER_NODE: Final = 20
_READ_S: Final = 0.8
_FOUND_S: Final = 0.1
_ANSWER_S: Final = 2.0
_BATCH: Final = 8
"""With so many in flight each takes twice as long."""
_IN_FLIGHT: Final = 4.0
"""Of each node, on average, while no prefix is found."""


class Pool:
    """Established nodes, as decisions see them."""

    def __init__(self, nodes: int, lots: random.Random, *, operators: int = 20) -> None:
        self.kept = {lane: SortedCandidates() for lane in LANES}
        self.kept[Lane.ESTABLISHED] = SortedCandidates(Ring(b"bench"))
        self.sizes = dict.fromkeys(LANES, 0) | {Lane.ESTABLISHED: nodes}
        self.stages: Mapping[Stage, SortedCandidates] = {stage: SortedCandidates() for stage in STAGES}
        self.usual_calls: float | None = None
        self.in_flight: dict[str, int] = {}
        self.pace: dict[str, float] = {}
        for number in range(nodes):
            name = f"node-{number}"
            self.kept[Lane.ESTABLISHED].add((f"op-{number % operators}", name))
            self.in_flight[name] = 0
            self.pace[name] = lots.uniform(0.85, 1.15)
        self._ratings = {name: _rating(pace) for name, pace in self.pace.items()}

    @property
    def lanes(self) -> Mapping[Lane, SortedCandidates]:
        """See `router.choose.ranking.Pool`."""
        return self.kept

    def facts(self, node: str) -> CandidateFacts:
        """See `router.choose.ranking.Pool`."""
        return CandidateFacts(rating=self._ratings[node], in_flight=self.in_flight[node])

    def has_full_share(self, operator: str) -> bool:
        """See `router.choose.ranking.Pool`."""
        del operator
        return False


def _rating(pace: float) -> Rating:
    return Rating(latency_s=pace * (_READ_S + _ANSWER_S), completion=0.99, evidence=100.0)


class Seen(Struct, frozen=True):
    """What became of a simulated day."""

    hits: float
    """Share of requests whose prefix the node had kept."""
    mean_s: float
    p99_s: float
    most: float
    """Requests of the busiest node, as a multiple of the average."""
    most_of_operator: float
    """The same of operators, of which each has as many nodes."""


def simulate(nodes: int, requests: int, per_cent: int, seed: int = 1) -> Seen:
    """
    Simulate requests at a fleet.

    Args:
        nodes: How many there are, all established.
        requests: How many come.
        per_cent: The bound of affinity; 0: two choices alone.
        seed: For all that is drawn.
    """
    lots = random.Random(seed)
    pool = Pool(nodes, lots)
    workload = Workload(model="m", affinity_per_cent=per_cent, probation_per_mille=0, degraded_per_mille=0)
    weights = list(itertools.accumulate(1 / place for place in range(1, nodes * PREFIXES_PER_NODE + 1)))
    kept: dict[str, OrderedDict[int, None]] = {name: OrderedDict() for name in pool.in_flight}
    gap_s = (_READ_S + _ANSWER_S) * (1 + _IN_FLIGHT / _BATCH) / (_IN_FLIGHT * nodes)
    ends: list[tuple[float, int, str]] = []
    served: Counter[str] = Counter()
    took, hits, now = [], 0, 0.0
    for number in range(requests):
        now += lots.expovariate(1 / gap_s)
        while ends and ends[0][0] <= now:
            pool.in_flight[heapq.heappop(ends)[2]] -= 1
        prefix = bisect(weights, lots.random() * weights[-1])
        key = f"{prefix:016x}" if per_cent else None
        node = rank(pool, workload, lots.getrandbits(63), affinity=key).ranked[0].node
        cache = kept[node]
        found = prefix in cache
        cache[prefix] = None
        cache.move_to_end(prefix)
        if len(cache) > KEPT:
            cache.popitem(last=False)
        busy = 1 + pool.in_flight[node] / _BATCH
        seconds = pool.pace[node] * busy * ((_FOUND_S if found else _READ_S) + _ANSWER_S)
        pool.in_flight[node] += 1
        heapq.heappush(ends, (now + seconds, number, node))
        hits += found
        served[node] += 1
        took.append(seconds)
    operators = Counter[str]()
    for operator, node in (pool.kept[Lane.ESTABLISHED].at(place) for place in range(nodes)):
        operators[operator] += served[node]
    return Seen(
        hits=hits / requests,
        mean_s=statistics.fmean(took),
        p99_s=sorted(took)[int(requests * 0.99)],
        most=max(served.values()) * nodes / requests,
        most_of_operator=max(operators.values()) * len(operators) / requests,
    )


def decision_us(nodes: int, per_cent: int, count: int = 2000) -> tuple[float, float]:
    """Microseconds of a decision, median and p99."""
    lots = random.Random(1)
    pool = Pool(nodes, lots)
    workload = Workload(model="m", affinity_per_cent=per_cent)
    took = []
    for number in range(count):
        key = f"{lots.getrandbits(64):016x}" if per_cent else None
        began = time.perf_counter()
        rank(pool, workload, number, affinity=key)
        took.append((time.perf_counter() - began) * 1e6)
    took.sort()
    return took[count // 2], took[int(count * 0.99)]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--requests", type=int, default=40_000)
    args = parser.parse_args()
    print("| bound | prefix found | mean s | p99 s | busiest node | busiest operator |")
    print("|---|---|---|---|---|---|")
    for per_cent in BOUNDS:
        seen = simulate(args.nodes, args.requests, per_cent)
        print(
            f"| {per_cent or 'off'} | {seen.hits:.1%} | {seen.mean_s:.2f} | {seen.p99_s:.2f} "
            f"| {seen.most:.2f} | {seen.most_of_operator:.2f} |"
        )
    print("\n| nodes | without, median (p99) µs | with |\n|---|---|---|")
    for nodes in (1_000, 10_000, 100_000):
        (off, off_p99), (on, on_p99) = decision_us(nodes, 0), decision_us(nodes, 150)
        print(f"| {nodes} | {off:.1f} ({off_p99:.0f}) | {on:.1f} ({on_p99:.0f}) |")


if __name__ == "__main__":
    main()
