"""
The kept demo, for a quarter of an hour: do its challenges last while the verifier keeps them filled?

It runs what `make demo DEMO=--keep` runs, with real weights and real processes.  Calls come 30 times as often as by
default.  Then it sends requests through the router and reads each minute for how many hours the challenges last.

    python -m bench.keeping [--minutes 15] [--rate 5]

It exits with 1 if a request failed, or if the challenges ran out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import openai

from bench.common import machine, row
from fixtures.demo import CONFIG, KEPT_HOURS, THRESHOLDS, Demo
from fixtures.fleet import Fleet
from fixtures.minilm import MODEL

_LOOK_EVERY_S = 60.0


@dataclass
class Outcome:
    """What was seen."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    levels: list[dict[str, tuple[int, int, float]]] = field(default_factory=list)
    """At each look by kind: how many are free, how many were minted, and the hours left."""


def levels(fleet: Fleet) -> dict[str, tuple[int, int, float]]:
    """How many challenges are free by kind, how many were ever minted, and for how many hours they last."""
    pools = fleet.ask("challenges")["pools"]
    return {pool["kind"]: (pool["free"], pool["minted"], pool["hours"]) for pool in pools}


def ask_for(fleet: Fleet, minutes: float, rate: float) -> Outcome:
    """Send *rate* requests a second for so many minutes."""
    client = openai.OpenAI(base_url=f"{fleet.router_url}/v1", api_key=fleet.api_key, max_retries=0)
    outcome = Outcome(levels=[levels(fleet)])
    begin = time.monotonic()
    look_at, end = begin + _LOOK_EVERY_S, begin + minutes * 60
    while (now := time.monotonic()) < end:
        outcome.requests += 1
        try:
            client.embeddings.create(model=MODEL, input=f"request number {outcome.requests}")
        except openai.OpenAIError as error:
            outcome.failures.append(f"{now - begin:.0f} s: {error}")
        if now >= look_at:
            outcome.levels.append(levels(fleet))
            look_at += _LOOK_EVERY_S
        time.sleep(max(begin + outcome.requests / rate - time.monotonic(), 0))
    outcome.levels.append(levels(fleet))
    return outcome


def show(outcome: Outcome, minutes: float) -> None:
    """Print what was seen."""
    first, last = outcome.levels[0], outcome.levels[-1]
    sys.stdout.write(f"keeping: the kept demo, {minutes:g} minutes, {KEPT_HOURS} hours kept; {machine()}\n")
    row("requests", f"{outcome.requests}")
    row("failures", f"{len(outcome.failures)}", "must be none")
    for kind in ("read", "walk"):
        least = min(each[kind][0] for each in outcome.levels)
        used = (last[kind][1] - last[kind][0]) - (first[kind][1] - first[kind][0])
        row(f"{kind}s left at the start", f"{first[kind][0]}", f"{first[kind][2]} hours")
        row(f"{kind}s left at the end", f"{last[kind][0]}", f"{last[kind][2]} hours; the least seen: {least}")
        row(f"{kind}s used and minted meanwhile", f"{used}, {last[kind][1] - first[kind][1]}")
    for failure in outcome.failures[:5]:
        sys.stdout.write(f"  {failure}\n")


def main() -> None:
    """Run, print, and say by the exit status whether anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--rate", type=float, default=5, help="Requests a second.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="touchstone-keeping-") as folder:
        fleet = Fleet(Path(folder), CONFIG, THRESHOLDS)
        try:
            demo = Demo(fleet, keeps=True)
            demo.run()
            outcome = ask_for(fleet, args.minutes, args.rate)
        finally:
            fleet.stop()
    show(outcome, args.minutes)
    if demo.failed:
        sys.stdout.write(f"  the demo itself: {demo.failed}\n")
    if outcome.failures or not all(level[0] for level in outcome.levels[-1].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
