"""
Two nodes behind one device, or a device each: told apart by simultaneous wide calls.

The kernels are measured here: a wide walk alone on all cores, two at once on the same
cores (one device serving two nodes), two one after the other (a device with a queue), and
two at once on a core each against one alone on a core (two devices).  The verifier's own
rule is then applied to calls drawn from these times, with network noise added.

    python -m bench.simultaneous [--mib 64] [--rows 256] [--samples 15]
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

from bench.common import machine, row
from verifier.policy import bundle
from verifier.schemes.base import WalkRecord
from verifier.schemes.weights import slowdown_permille

_WORKER = """
import os, sys
from time import perf_counter
cores = {int(c) for c in sys.argv[1].split(",")}
os.sched_setaffinity(0, cores)
import numpy as np
from attester.weights import possession
from attester.weights.kernels import kernel, row_words
from attester.weights.tensors import Tensor
mib, rows = int(sys.argv[2]), int(sys.argv[3])
ready = kernel()
tensors = [Tensor("t", np.random.default_rng(1).integers(-128, 128, mib << 20, dtype=np.int8))]
words = [row_words(bytes(32), r) for r in range(rows)]
possession.walk(tensors, words, 1, ready)
print("ready", flush=True)
for _ in sys.stdin:
    start = perf_counter()
    possession.walk(tensors, words, 1, ready)
    print(perf_counter() - start, flush=True)
"""


class Worker:
    """A node's engine in a process of its own."""

    def __init__(self, cores: str, mib: int, rows: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, cores, str(mib), str(rows)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._from.readline()

    def start(self) -> None:
        """Call it."""
        self._to.write("\n")
        self._to.flush()

    def wait(self) -> float:
        """Its answer's time."""
        return float(self._from.readline())

    def close(self) -> None:
        """End it."""
        self._to.close()
        self._process.wait()


def together(workers: list[Worker]) -> list[float]:
    """Time until each worker's answer, all called at one moment."""
    start = perf_counter()
    for worker in workers:
        worker.start()
    times = []
    for worker in workers:
        worker.wait()
        times.append(perf_counter() - start)
    return times


def alone(worker: Worker) -> float:
    """Time of one call."""
    return together([worker])[0]


def flagged(rng: random.Random, solo: list[float], group: list[float], calls: int, limit: int) -> bool:
    """Whether the verifier's rule fires on calls drawn from these times, with the network's noise."""

    def record(seconds: float, *, at_once: bool) -> WalkRecord:
        # A queue in the network, a busy core: up to a fifth more now and then.
        ms = int(seconds * 1000 * rng.uniform(1, 1.2) + rng.uniform(5, 30))
        return WalkRecord("call", "right", 0, "engine", wide=True, together=at_once, ms=ms)

    records = [record(rng.choice(solo), at_once=False) for _ in range(calls)]
    records += [record(rng.choice(group), at_once=True) for _ in range(calls)]
    slowdown = slowdown_permille(records)
    return slowdown is not None and slowdown > limit


def main() -> None:
    """Measure, apply the rule, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--trials", type=int, default=10_000)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    everything = ",".join(map(str, cores))
    one, other = (Worker(everything, args.mib, args.rows) for _ in range(2))
    solo, shared = [], []
    for _ in range(args.samples):
        solo.append(alone(one))
        shared += together([one, other])
    one.close()
    other.close()
    # A device with a queue: one of two answers waits for the other.
    queued = [*solo, *(2 * seconds for seconds in solo)]
    left, right = (Worker(str(core), args.mib, args.rows) for core in cores)
    own_solo, own_together = [], []
    for _ in range(args.samples):
        own_solo.append(alone(left))
        own_together += together([left, right])
    left.close()
    right.close()
    policy = Path(__file__).parent.parent / "policies" / "default"
    limit = bundle.load(policy).thresholds.shared_permille
    sys.stdout.write(
        f"simultaneous calls, {args.rows} rows over {args.mib} MiB, limit {limit / 1000:.2f}; {machine()}\n"
    )
    row("one device, alone", f"{median(solo) * 1000:.0f} ms")
    row(
        "one device, two nodes at once",
        f"{median(shared) * 1000:.0f} ms",
        f"{median(shared) / median(solo):.2f} times alone",
    )
    row("a device each, alone", f"{median(own_solo) * 1000:.0f} ms")
    row(
        "a device each, two nodes at once",
        f"{median(own_together) * 1000:.0f} ms",
        f"{median(own_together) / median(own_solo):.2f} times alone",
    )
    rng = random.Random(20261122)
    for calls in (3, 5):
        rule = partial(flagged, rng, calls=calls, limit=limit)
        for name, alone_times, group in (
            ("shared, divided", solo, shared),
            ("shared, queued", solo, queued),
            ("a device each", own_solo, own_together),
        ):
            share = sum(rule(alone_times, group) for _ in range(args.trials)) / args.trials
            what = "false alarms" if name == "a device each" else "found"
            row(f"{calls} calls of each kind: {name}", f"{share:.2%}", what)


if __name__ == "__main__":
    main()
