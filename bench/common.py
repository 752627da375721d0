"""What the benchmarks share: the machine in words, medians, a table."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter


def machine() -> str:
    """The machine in one line: numbers mean nothing without it."""
    model = "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def interleave(rounds: int, works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each work, run in turns: a noisy neighbour disturbs all alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = perf_counter()
            work()
            times[name].append(perf_counter() - start)
    return {name: median(found) for name, found in times.items()}


def row(name: str, value: str, note: str = "") -> None:
    """One line of a result."""
    sys.stdout.write(f"  {name:<46} {value:>14}  {note}\n")
