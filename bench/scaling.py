"""
One verifier process and several on one PostgreSQL, by the processor time that an attestation costs.

On a small machine the nodes and the server take their share of the same cores, so the rate says little.
What must not grow with the number of processes is the time that each of them needs.

    python -m bench.scaling [--seconds 8] [--nodes 32]
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil

from bench.attestations import MUCH, Nodes, bare_crypto, call_nodes, fill
from bench.common import machine, row
from fixtures.fleet import Fleet, free_port, get_json, wait_for
from fixtures.postgres import make_database, own_server, url_of
from fixtures.simulator import tiny_model
from verifier.config import Home
from verifier.store.postgres import PostgresDatabase


def server_seconds(pid: int) -> float:
    """Processor time of a PostgreSQL server and all its processes, of which some may have ended since."""
    total = 0.0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def serve(fleet: Fleet, count: int) -> Sequence[str]:
    """Start *count* replicas, each with a copy of the home; returns their addresses."""
    urls = []
    for number in range(count):
        home = fleet.root / f"replica-{number}"
        shutil.copytree(fleet.verifier_home, home)
        listen = f"127.0.0.1:{free_port()}"
        config = home / "verifier.toml"
        before = fleet.verifier_url.partition("://")[2]
        config.write_text(config.read_text().replace(f'listen = "{before}"', f'listen = "{listen}"'))
        fleet.start(f"replica-{number}", "touchstone", "verifier", "serve", "--home", str(home))
        url = f"http://{listen}"
        wait_for(url, partial(get_json, f"{url}/.well-known/veraison/verification"))
        urls.append(url)
    return urls


def measure(
    server: str, pid: int, root: Path, count: int, args: argparse.Namespace
) -> tuple[float, float, float]:
    """Attest with *count* processes; returns attestations a second, and microseconds of the verifiers and the server."""
    name = asyncio.run(make_database(server))
    url = url_of(server, name)
    fleet = Fleet(root, {**MUCH, "store": {"url": url}})
    fleet.make_verifier()
    folder = tiny_model(root / "model")

    async def prepare() -> None:
        async with PostgresDatabase(url) as db:
            await fill(db, Home(fleet.verifier_home).pool_key(), folder)

    asyncio.run(prepare())
    try:
        nodes = Nodes(fleet, folder, args.nodes)
        call_nodes(fleet, nodes)
        nodes.urls = serve(fleet, count)
        asyncio.run(nodes.measure(2.0, 1))
        before = server_seconds(pid)
        measured = asyncio.run(nodes.measure(args.seconds, 1))
        server_s = server_seconds(pid) - before
    finally:
        fleet.stop()
    done = measured.done
    return done / measured.wall_s, measured.cpu_s / done * 1e6, server_s / done * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--nodes", type=int, default=32)
    args = parser.parse_args()
    sys.stdout.write(f"attestations on PostgreSQL, one round trip; {machine()}\n")
    row("bare cryptography of one", f"{bare_crypto() * 1e6:.0f} us")
    costs: dict[int, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
        own_server(Path(name) / "pg") as server,
    ):
        for count in (1, 2, 1, 2):
            root = Path(name) / f"{count}-{time.monotonic_ns()}"
            root.mkdir()
            rate, cost, server_cost = measure(server.get_uri(), server.get_pid(), root, count, args)
            costs.setdefault(count, []).append(cost)
            row(
                f"{count} process{'es' if count > 1 else ''}",
                f"{rate:.0f} /s",
                f"{cost:.0f} us of the verifiers and {server_cost:.0f} us of the server for one",
            )
    one, two = min(costs[1]), min(costs[2])
    row("two processes to one, each on a core of its own", f"{2 * one / two:.2f}", "by processor time")


if __name__ == "__main__":
    main()
