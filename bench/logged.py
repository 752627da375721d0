"""
What the log costs: attestations per second with it and without it, in one run, in turns.

Two verifiers, each with a database of its own, on one core; the nodes on another.  While one is measured, the other is
stopped.  The processor's time for one attestation says more than the rate if the machine does other work too.

    python -m bench.logged [--seconds 6] [--rounds 6] [--nodes 64] [--postgres]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Final

from bench.attestations import MUCH, Measured, Nodes, call_nodes, fill
from bench.common import machine, row
from fixtures.fleet import Fleet, Process
from fixtures.postgres import make_database, own_server, url_of
from fixtures.simulator import tiny_model
from verifier.config import Home
from verifier.store.opening import open_database

_KINDS: Final = ("with the log", "without it")


class UnloggedFleet(Fleet):
    """A fleet whose verifier keeps no log."""

    def start_verifier(self, *options: str) -> Process:
        """Start the verifier, and wait until it answers."""
        process = self.start(
            "verifier", "bench.unlogged", "verifier", "serve", "--home", str(self.verifier_home), *options
        )
        self._await(process, "verifier", f"{self.verifier_url}/.well-known/veraison/verification")
        return process


def prepare(root: Path, folder: Path, kind: type[Fleet], count: int, server: str | None) -> Nodes:
    """
    Make a verifier with challenges, and nodes that it has called.

    Args:
        server: The URL of a PostgreSQL server; `None`: the database is a file.
    """
    root.mkdir()
    store = {} if server is None else {"store": {"url": url_of(server, asyncio.run(make_database(server)))}}
    fleet = kind(root, {**MUCH, **store})
    fleet.make_verifier()
    home = Home(fleet.verifier_home)

    async def mint() -> None:
        async with open_database(home.config().store.url, home.database) as db:
            await fill(db, home.pool_key(), folder)

    asyncio.run(mint())
    nodes = Nodes(fleet, folder, count)
    call_nodes(fleet, nodes)
    return nodes


def pause(process: Process, *, is_on: bool) -> None:
    """Stop a verifier with its workers, or let it go on."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT if is_on else signal.SIGSTOP)


def measure(
    nodes: list[Nodes], processes: list[Process], seconds: float, rounds: int
) -> list[list[Measured]]:
    """Measure each in turns; the first round of each warms it up and does not count."""
    found: list[list[Measured]] = [[], []]
    for number in range(rounds + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            pause(processes[1 - which], is_on=False)
            pause(processes[which], is_on=True)
            done = asyncio.run(nodes[which].measure(seconds, trips=1))
            if number:
                found[which].append(done)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--postgres", action="store_true", help="On PostgreSQL, and not on a file.")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(own_server()).get_uri() if args.postgres else None
        folder = tiny_model(Path(name) / "model")
        nodes = [
            prepare(Path(name) / kind.__name__, folder, kind, args.nodes, server)
            for kind in (Fleet, UnloggedFleet)
        ]
        fleets = [each.fleet for each in nodes]
        processes: list[Process] = []
        try:
            os.sched_setaffinity(0, {cores[0]})
            processes = [fleet.start_verifier() for fleet in fleets]
            os.sched_setaffinity(0, set(cores[1:]) or set(cores))
            found = measure(nodes, processes, args.seconds, args.rounds)
        finally:
            for process in processes:
                pause(process, is_on=True)
            for fleet in fleets:
                fleet.stop()
    show(args, found)


def show(args: argparse.Namespace, found: list[list[Measured]]) -> None:
    """Print the rates, the processor's time, and their ratios."""
    store = "PostgreSQL" if args.postgres else "SQLite"
    sys.stdout.write(
        f"attestations with and without the log, {store}, {args.nodes} nodes, {args.rounds} rounds of"
        f" {args.seconds:g} s; {machine()}\n"
    )
    rates = [median(each.done / each.wall_s for each in kind) for kind in found]
    costs = [median(each.cpu_s / each.done for each in kind) for kind in found]
    written = [median(each.written / each.done for each in kind) for kind in found]
    for kind, rate, cost, data in zip(_KINDS, rates, costs, written, strict=True):
        row(
            f"attestations, {kind}",
            f"{rate:.0f} a second",
            f"{cost * 1e6:.0f} us of a core, {data / 1024:.1f} KiB",
        )
    row("fewer attestations a second", f"{(1 - rates[0] / rates[1]) * 100:.1f} %")
    row("more processor time for one", f"{(costs[0] / costs[1] - 1) * 100:.1f} %")


if __name__ == "__main__":
    main()
