"""
A decision under a caller's own requirements, and one by a caller's nonce, against one without either; in one run.

What is new to the router is to be looked for among all nodes once; how long that takes, and for how long it holds up
other work at a time, is measured too.

    python -m bench.requirements [--decisions 20000]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping
from statistics import median, quantiles
from time import perf_counter, thread_time
from typing import Any, Final

from bench.common import machine, row
from bench.routing import make_fleet
from router.choose.decision import decide
from router.gateway.commitments import Commitments
from router.model.clock import Clock
from router.model.requirements import CallerRequirements, read_requirements
from router.model.workload import Workload
from router.state.fleet import Fleet

SIZES: Final = (1_000, 100_000)
REQUIRED: Final[Mapping[str, Mapping[str, Any]]] = {
    "all nodes meet": {"claims": {"platform": ["configuration"], "model": ["executables"]}, "max_age_s": 200},
    "1 of 50 operators": {"operators": ["o-07"]},
    "49 of 50 operators": {"not_operators": ["o-07"]},
    "two nodes by name": {"nodes": ["n-000001", "n-000002"]},
    "nobody meets": {"assurance": "confidential"},
}


async def _timed(
    fleet: Fleet, workload: Workload, required: CallerRequirements | None, count: int
) -> list[float]:
    """Seconds of each decision, from the requirements as they were read to the ranking."""
    found = []
    for seed in range(count):
        start = perf_counter()
        narrowed = None
        if required is not None:
            narrowed = await fleet.narrowings.prepare(workload, required, "bench")
        decide(fleet.view_for(workload, narrowed), workload, seed)
        found.append(perf_counter() - start)
    return found


async def _first(fleet: Fleet, workload: Workload, required: CallerRequirements) -> tuple[float, float]:
    """
    Processor seconds until new requirements can be decided by, and the most of them without a turn for other work.

    Of the processor, because other work on the machine is not the router's doing.
    """
    longest, is_over = 0.0, False

    async def watch() -> None:
        nonlocal longest
        last = thread_time()
        while not is_over:
            await asyncio.sleep(0)
            longest, last = max(longest, thread_time() - last), thread_time()

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    start = thread_time()
    await fleet.narrowings.prepare(workload, required, f"first {start}")
    took = thread_time() - start
    is_over = True
    await watching
    return took, longest


def _show(name: str, found: list[float], base: float) -> None:
    p99 = quantiles(found, n=100)[98] * 1e6
    row(name, f"{median(found) * 1e6:,.1f} µs", f"p99 {p99:,.1f} µs; {median(found) / base:.2f} times")


async def measure(count: int) -> None:
    """Measure and print."""
    for nodes in SIZES:
        fleet, workload = make_fleet(nodes)
        for name, given in REQUIRED.items():
            required = read_requirements(dict(given), workload)
            took, longest = await _first(fleet, workload, required)
            row(
                f"{nodes:,} nodes, {name}: the first time",
                f"{took * 1e3:,.1f} ms of the processor",
                f"others wait at most {longest * 1e3:.1f} ms",
            )
            # In turns: the machine is not the same all the time.
            plain = await _timed(fleet, workload, None, count)
            base = median(plain)
            if name == next(iter(REQUIRED)):
                _show(f"{nodes:,} nodes: without requirements", plain, base)
            _show(f"{nodes:,} nodes, {name}", await _timed(fleet, workload, required, count), base)


def measure_choice(count: int) -> None:
    """What commitments and nonces cost a request, of the processor."""
    commitments = Commitments(Clock(lambda: time.time_ns() // 1_000_000, time.monotonic))
    start = thread_time()
    given = [commitments.issue("bench") for _ in range(count)]
    row("a commitment in an answer", f"{(thread_time() - start) / count * 1e6:.1f} µs of the processor")
    nonces = [f"{each.partition('.')[0]}.{number:021}A" for number, each in enumerate(given)]
    start = thread_time()
    for each in nonces:
        commitments.take(each, "bench")
    row("a request with a nonce", f"{(thread_time() - start) / count * 1e6:.1f} µs of the processor")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=20_000)
    args = parser.parse_args()
    sys.stdout.write(f"requirements and choice; {machine()}\n")
    measure_choice(args.decisions)
    asyncio.run(measure(args.decisions))


if __name__ == "__main__":
    main()
