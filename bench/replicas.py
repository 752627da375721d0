"""
Two replicas of a verifier on one PostgreSQL, killed in turn: does an honest node lose anything?

The nodes run the real agent, hold channels through a load balancer, and answer calls.  Every 20 s a replica is
killed with SIGKILL and started again, and PostgreSQL is restarted once.  Each second the results of all nodes are
read through the API; afterwards the database says whether a node was ever without a live affirming result.

    python -m bench.replicas [--nodes 200] [--minutes 5]

It exits with 1 if a node lost its result, an incident was opened, or a nonce was used twice.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from bench.common import machine, row
from fixtures.postgres import own_server
from fixtures.replicas import Scenario, play
from fixtures.simulator import tiny_model

_KILL_EVERY_S = 20.0


def scenario(nodes: int, minutes: float) -> Scenario:
    """The run: calls come more often than by default, and results live as much shorter."""
    seconds = minutes * 60
    calls = int(nodes * (seconds + 120) / 15) + 1000
    return Scenario(
        nodes=nodes,
        seconds=seconds,
        kill_every_s=_KILL_EVERY_S,
        # None in the last moments, so that what follows from a kill is seen.
        kills=max(int(seconds / _KILL_EVERY_S) - 1, 1),
        settings={
            "calls": {"min_interval_s": 15.0, "max_interval_s": 45.0, "wide_share": 0.0},
            "results": {"lifetime_s": 120},
            "sessions": {
                "lifetime_s": 60,
                "per_node_per_minute": 6000,
                "per_address_per_minute": 1_000_000,
                "strangers_per_minute": 1_000_000,
            },
            "policy": {"workers": 1},
        },
        reads=calls,
        walks=calls,
    )


def main() -> None:
    """Run, print, and say by the exit status whether anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--folder", type=Path, help="Where to keep the homes and logs.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        with own_server(folder / "postgres") as server:
            outcome = asyncio.run(
                play(scenario(args.nodes, args.minutes), folder, tiny_model(folder / "model"), server)
            )
    sys.stdout.write(f"replicas: {args.nodes} nodes, {args.minutes:g} minutes; {machine()}\n")
    row("kills of a replica, restarts of PostgreSQL", f"{outcome.kills}, 1")
    row("calls, by how they ended", "", ", ".join(f"{k}: {v}" for k, v in sorted(outcome.calls.items())))
    row("results", f"{outcome.results}")
    row("looks at all results", f"{outcome.samples}", f"{outcome.unanswered} more met no verifier")
    row("nodes seen without a live affirming result", f"{len(outcome.missing)}", "must be none")
    row("nodes without one by the database", f"{len(outcome.gaps)}", "must be none")
    row("incidents", f"{len(outcome.incidents)}", "must be none")
    row("nonces used twice", f"{outcome.nonces_twice}", "must be none")
    for what in (outcome.missing, outcome.gaps, outcome.incidents):
        if what:
            sys.stdout.write(f"  {what}\n")
    if outcome.missing or outcome.gaps or outcome.incidents or outcome.nonces_twice:
        sys.exit(1)


if __name__ == "__main__":
    main()
