"""
Two nodes behind one device, or a device each: told apart by simultaneous wide calls.

The kernels are measured here: a wide walk alone on all cores, two at once on the same
cores (one device serving two nodes), two one after the other (a device with a queue), and
two at once on a core each against one alone on a core (two devices).  The verifier's own
rule is then applied to calls drawn from these times, with network noise added.

    python -m bench.simultaneous [--mib 64] [--rows 1024] [--samples 15]
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.common import machine, row
from verifier.policy import bundle
from verifier.schemes.context import WalkRecord
from verifier.schemes.walks import slowdown_permille

_WORKER = """
import os, sys
from time import perf_counter
cores = {int(c) for c in sys.argv[1].split(",")}
os.sched_setaffinity(0, cores)
import numpy as np
from attester.weights import possession
from attester.weights.kernels import row_words
from attester.weights.select import kernel
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


def together(workers: list[Worker]) -> tuple[float, float]:
    """Each of two workers' time to its answer, called at one moment."""
    for worker in workers:
        worker.start()
    first, second = (worker.wait() for worker in workers)
    return first, second


def alone(worker: Worker) -> float:
    """Time of one call."""
    worker.start()
    return worker.wait()


Pair = Callable[[random.Random], tuple[float, float]]
"""Draws how long two nodes take that are called at one moment."""


def flagged(rng: random.Random, solo: list[float], pair: Pair, calls: int, limit: int) -> tuple[bool, bool]:
    """For which of two nodes the verifier's rule fires, on calls drawn from these times, with the network's noise."""

    def record(seconds: float, *, at_once: bool) -> WalkRecord:
        # A queue in the network, a busy core: up to a fifth more now and then.
        ms = int(seconds * 1000 * rng.uniform(1, 1.2) + rng.uniform(5, 30))
        return WalkRecord(
            channel="call", verdict="right", at_ms=0, source="engine", wide=True, together=at_once, ms=ms
        )

    together_calls = [pair(rng) for _ in range(calls)]
    fired = []
    for node in (0, 1):
        records = [record(rng.choice(solo), at_once=False) for _ in range(calls)]
        records += [record(times[node], at_once=True) for times in together_calls]
        slowdown = slowdown_permille(records)
        fired.append(slowdown is not None and slowdown > limit)
    return fired[0], fired[1]


def drawn_from(times: list[tuple[float, float]]) -> Pair:
    """One of the pairs measured."""
    return lambda rng: rng.choice(times)


def queued(solo: list[float]) -> Pair:
    """A device with a queue: one of the two, by chance, waits for the other."""

    def draw(rng: random.Random) -> tuple[float, float]:
        first, second = rng.choice(solo), rng.choice(solo)
        pair = first, first + second
        return pair if rng.random() < 0.5 else pair[::-1]

    return draw


def main() -> None:
    """Measure, apply the rule, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--trials", type=int, default=10_000)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    everything = ",".join(map(str, cores))
    one, other = (Worker(everything, args.mib, args.rows) for _ in range(2))
    solo, shared = [], []
    for _ in range(args.samples):
        solo.append(alone(one))
        shared.append(together([one, other]))
    one.close()
    other.close()
    left, right = (Worker(str(core), args.mib, args.rows) for core in cores)
    own_solo, own_together = [], []
    for _ in range(args.samples):
        own_solo.append(alone(left))
        own_together.append(together([left, right]))
    left.close()
    right.close()
    policy = Path(__file__).parent.parent / "policies" / "default"
    limit = bundle.load(policy).thresholds.shared_permille
    sys.stdout.write(
        f"simultaneous calls, {args.rows} rows over {args.mib} MiB, limit {limit / 1000:.2f}; {machine()}\n"
    )
    for name, alone_times, pairs in (("one device", solo, shared), ("a device each", own_solo, own_together)):
        at_once = median(seconds for pair in pairs for seconds in pair)
        row(f"{name}, alone", f"{median(alone_times) * 1000:.0f} ms")
        ratio = f"{at_once / median(alone_times):.2f} times alone"
        row(f"{name}, two nodes at once", f"{at_once * 1000:.0f} ms", ratio)
    rng = random.Random(20261122)
    for calls in (3, 5):
        for name, alone_times, pair in (
            ("shared, divided", solo, drawn_from(shared)),
            ("shared, queued", solo, queued(solo)),
            ("a device each", own_solo, drawn_from(own_together)),
        ):
            fired = [flagged(rng, alone_times, pair, calls, limit) for _ in range(args.trials)]
            either = sum(any(each) for each in fired) / args.trials
            both = sum(all(each) for each in fired) / args.trials
            what = (
                "false alarms, of either node"
                if name == "a device each"
                else f"found; both nodes in {both:.1%}"
            )
            row(f"{calls} calls of each kind: {name}", f"{either:.2%}", what)


if __name__ == "__main__":
    main()
