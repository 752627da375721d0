"""
What stops a change of the routing: how often it is wrong, how soon it is right, and what the shadow costs a request.

    python -m bench.changes            # some minutes
    python -m bench.changes shadow     # the shadow alone, some seconds
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from statistics import median, quantiles
from typing import Any, Final

from fixtures.made_up_changes import try_change
from router.choose.decision import decide
from router.choose.difference import find_difference
from router.model.change import Bounds
from router.model.workload import Table, Workload
from router.state.fleet import Fleet
from tests.unit.router.support import MODEL, Given, view

BOUNDS: Final = Bounds()
NULLS: Final[dict[str, dict[str, Any]]] = {
    "10 % of the traffic, 1 % of it fails": {},
    "50 %, 3 % fails": {"share": 0.5, "failing": (0.03, 0.03)},
    "5, 10, 50, then 100 %": {"growth": (0.05, 0.1, 0.5, 1.0)},
    "load that makes both 4 times worse, half of the time": {"surge": 4.0},
    "20 callers, each on one side, of very different size": {"share": 0.2, "callers": 20},
}
WORSE: Final[dict[str, dict[str, Any]]] = {
    "all requests fail": {"failing": (1.0, 0.01)},
    "30 % fail instead of 1 %": {"failing": (0.3, 0.01)},
    "10 % fail instead of 1 %": {"failing": (0.1, 0.01)},
    "5 % fail instead of 1 %": {"failing": (0.05, 0.01)},
    "3 % fail instead of 1 %": {"failing": (0.03, 0.01)},
    "40 % need a second node instead of 2 %": {"retried": (0.4, 0.02)},
    "10 % need a second node instead of 2 %": {"retried": (0.1, 0.02)},
    "10 times slower": {"slower": 10.0},
    "3 times slower": {"slower": 3.0},
    "2 times slower": {"slower": 2.0},
    "10 times slower from token to token": {"pace": 10.0},
    "1.5 times slower from token to token": {"pace": 1.5},
    "10 times dearer": {"dearer": 10.0},
    "2 times dearer": {"dearer": 2.0},
    "1.5 times dearer": {"dearer": 1.5},
    "1.3 times dearer": {"dearer": 1.3},
    "all requests fail from the 20,000th on": {"failing": (1.0, 0.01), "since": 20_000},
}


def false_alarms(changes: int, requests: int) -> None:
    """How many changes that are not worse are stopped."""
    print(
        f"changes that are not worse, {requests} requests each; {BOUNDS.alpha_per_mille} in 1000 may be stopped"
    )
    for name, how in NULLS.items():
        stops = Counter(try_change(seed, requests, bounds=BOUNDS, **how)[0] for seed in range(changes))
        stopped = sum(count for test, count in stops.items() if test is not None)
        print(f"| {name} | {stopped} of {changes} |", flush=True)


def power(changes: int, requests: int) -> None:
    """After how many requests what is worse is stopped."""
    print(
        "requests of the candidate until it is stopped, with 10 % of the traffic and with 50 %: median, and 9 of 10"
    )
    for name, how in WORSE.items():
        row = []
        for share in (0.1, 0.5):
            found = [try_change(seed, requests, bounds=BOUNDS, share=share, **how) for seed in range(changes)]
            after = [count for test, count in found if test is not None]
            if len(after) < changes:
                row.append(f"{len(after)} of {changes} in {requests:,} requests")
            else:
                row.append(f"{median(after):.0f}, {quantiles(after, n=10)[-1]:.0f}")
        print(f"| {name} | {' | '.join(row)} |", flush=True)


async def shadow(nodes: int, times: int) -> None:
    """Of each pair, one decision alone, and one with the other table's and the difference."""
    active = Workload(MODEL, name="tiny", tier="t")
    candidate = Workload(MODEL, name="tiny", tier="t", max_age_s=299)
    names = [f"n{number}" for number in range(nodes)]
    fleet: Fleet = Given({name: view(name, operator=f"o{name[-2:]}") for name in names}).fleet(active)
    began = time.perf_counter()
    await fleet.use_candidate(Table([candidate]))
    placed_s = time.perf_counter() - began
    alone, both = [], []
    for seed in range(times):
        began = time.perf_counter()
        first = decide(fleet.view_for(active), active, seed)
        middle = time.perf_counter()
        second = decide(fleet.view_for(candidate), candidate, seed)
        find_difference(first, second, lambda node, decision: fleet.verdict(node, decision.workload))
        ended = time.perf_counter()
        alone.append(middle - began)
        both.append(ended - middle)
    print(
        f"{nodes} nodes: placed in {placed_s * 1000:.0f} ms, in steps; a decision {median(alone) * 1e6:.0f} us;"
        f" the other table's and their difference {median(both) * 1e6:.0f} us,"
        f" p99 {quantiles(both, n=100)[-1] * 1e6:.0f} us"
    )


def main() -> None:
    """All of it, or the shadow alone."""
    for nodes in (10, 1000, 10_000):
        asyncio.run(shadow(nodes, 2000))
    if sys.argv[1:] != ["shadow"]:
        power(40, 40_000)
        false_alarms(200, 2000)


if __name__ == "__main__":
    main()
