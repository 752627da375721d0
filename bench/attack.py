"""
An attack by strangers, for two minutes, beside 50 honest nodes and a client: does any of them lose anything?

At once, and at verifier and router both: 100 connections that ask without a credential as fast as they are answered;
600 heads and 60 bodies that never end; submissions to sealed sessions, evidence and requests with wrong signatures,
guesses of keys.  All callers have one address.  The attackers are processes with the lowest priority, because the
machine is shared with what they attack.

    python -m bench.attack [--nodes 50] [--seconds 120] [--rate 20]

It exits with 1 if a node was ever without a live affirming result, an incident was opened, a request failed, or a
load balancer that asks for health was not told that all is well.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median, quantiles

from bench.common import machine, row
from fixtures.siege import Asked, Outcome, Plan, play


def latency(asked: Asked) -> str:
    """The median and the 99th percentile."""
    if len(asked.latencies) < 2:
        return "none"
    p99 = quantiles(asked.latencies, n=100)[98]
    return f"{median(asked.latencies) * 1e3:.1f}, {p99 * 1e3:.1f} ms"


def listed(counts: Mapping[str, int]) -> str:
    """Words with their numbers."""
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items())) or "none"


def show(outcome: Outcome) -> None:
    """Print what was seen."""
    for name, asked in (("without", outcome.quiet), ("with", outcome.attacked)):
        sent = len(asked.latencies) + len(asked.failures)
        row(f"requests of the client {name} the attack", f"{sent}", f"failed: {len(asked.failures)}")
        row(f"p50, p99 {name} the attack", latency(asked), f"longest {max(asked.latencies, default=0):.2f} s")
    row("results", f"{outcome.results}")
    missed = outcome.calls.get("failed", 0)
    row("calls, missed", f"{sum(outcome.calls.values())}, {missed}", listed(outcome.calls))
    row("nodes ever without a live affirming result", f"{len(outcome.gaps)}", "must be none")
    row("incidents", f"{len(outcome.incidents)}", "must be none")
    for kind, tally in outcome.strangers.items():
        row(f"what strangers were answered: {kind}", "", listed(tally))
    row("what a load balancer was answered", "", listed(outcome.checks))
    for service, reasons in outcome.cut.items():
        row(f"refused or cut by the {service}", "", listed(reasons))
    failures = Counter(outcome.quiet.failures + outcome.attacked.failures).most_common(5)
    for what in (outcome.gaps, outcome.incidents[:20], failures):
        if what:
            sys.stdout.write(f"  {what}\n")


def main() -> None:
    """Run, print, and say by the exit status whether anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120, help="Of the attack.")
    parser.add_argument("--quiet", type=float, default=60, help="Seconds before it.")
    parser.add_argument("--rate", type=float, default=20, help="The client's requests a second.")
    parser.add_argument("--folder", type=Path, help="Where to keep the homes and logs; it must not exist.")
    args = parser.parse_args()
    plan = Plan(nodes=args.nodes, seconds=args.seconds, quiet_s=args.quiet, rate=args.rate)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or Path(made) / "siege"
        folder.mkdir(parents=True)
        outcome = asyncio.run(play(plan, folder))
    sys.stdout.write(
        f"attack: {args.nodes} nodes, {args.seconds:g} s, {args.rate:g} requests a second;"
        f" load before {load:.1f}; {machine()}\n"
    )
    show(outcome)
    if outcome.lost_anything:
        sys.exit(1)


if __name__ == "__main__":
    main()
