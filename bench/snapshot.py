"""
A router's first snapshot of a large fleet: a real verifier lists its live results, each with a token of its own.

The verifier has one core and the router another.  Meanwhile the router asks itself every few milliseconds how late it
is: that is what its clients would wait.

    python -m bench.snapshot [--nodes 100000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sqlite3
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

import aiohttp
import msgspec

from bench.attestations import MUCH, Steps, cpu_seconds
from bench.common import machine, row
from bench.filled import fill_history
from fixtures.fleet import Fleet
from fixtures.simulator import MODEL, tiny_model
from router.config import VerifierSection
from router.model.clock import Clock
from router.model.workload import Table, Workload
from router.state.feed import Feed
from router.state.fleet import Fleet as RouterFleet
from verifier import appraisal, result_keys, results
from verifier.config import Home
from verifier.policy.engine import Limits
from verifier.policy.engine import opened as workers
from verifier.store.sqlite import SqliteDatabase

_TICK_S = 0.005


async def result_of(folder: Path) -> results.AttestationResult:
    """A result as the default policy gives it."""
    steps = Steps(folder)
    checked = steps.check()
    async with workers(steps.policy, Limits(workers=1)) as engine:
        raw = await engine.evaluate(checked.policy_input(steps.context))
    outcome = appraisal.read_outcome(raw, checked.submods)
    terms = appraisal.ResultSettings("v", 86_000, "{jti}")
    return appraisal.conclude(
        checked,
        outcome,
        steps.context,
        appraisal.NodeSnapshot(),
        terms,
        jti="0" * 32,
        policy_id=steps.policy.id,
    )


def sign_results(home: Home, result: results.AttestationResult, url: str) -> None:
    """Give every live result in the database a token of its own."""
    (key,) = home.result_keys()
    with sqlite3.connect(home.database) as db:
        rows = db.execute("SELECT seq, id FROM appraisals").fetchall()
        for number, jti in rows:
            each = msgspec.structs.replace(
                result,
                iss=url,
                jti=jti,
                iat=int(time.time()),
                exp=int(time.time()) + 86_000,
                ueid=result_keys.b64url(b"\x01" + number.to_bytes(16, "big")),
                ear_touchstone_sequence=number,
            )
            values = (results.encode_jwt(each, key), number, number)
            db.execute("UPDATE appraisals SET token = ?, sequence = ? WHERE seq = ?", values)
    db.close()


async def lateness(found: list[float]) -> None:
    """Note how late the loop is, until cancelled."""
    while True:
        due = time.perf_counter() + _TICK_S
        await asyncio.sleep(_TICK_S)
        found.append(time.perf_counter() - due)


async def take(url: str, token: str, count: int, pid: int) -> tuple[float, float, float, float]:
    """Of a snapshot: wall seconds, processor seconds of router and verifier, the longest stall of the loop meanwhile."""
    clock = Clock(lambda: time.time_ns() // 1_000_000, time.monotonic)
    fleet = RouterFleet(Table([Workload(MODEL, name="tiny", tier="small")]), clock)
    late: list[float] = []
    async with aiohttp.ClientSession() as http:
        feed = Feed(http, VerifierSection(url), clock, fleet, token=lambda: token)
        is_whole = asyncio.Event()

        def note_page() -> None:
            # As the router does (`router.service.garbage.tune_garbage_collector`).
            gc.freeze()
            if len(feed._known) >= count:
                is_whole.set()

        feed.on_page = note_page
        watch = asyncio.create_task(lateness(late))
        start, cpu, theirs = time.perf_counter(), time.process_time(), cpu_seconds(pid)
        following = asyncio.create_task(feed.run())
        await is_whole.wait()
        found = (
            time.perf_counter() - start,
            time.process_time() - cpu,
            cpu_seconds(pid) - theirs,
            max(late),
        )
        for task in (watch, following):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        fleet = Fleet(root, MUCH)
        fleet.make_verifier()
        home = Home(fleet.verifier_home)

        async def prepare() -> results.AttestationResult:
            async with SqliteDatabase(home.database):
                return await result_of(tiny_model(root / "model"))

        result = asyncio.run(prepare())
        fill_history(home.database, args.nodes, args.nodes, time.time_ns() // 1_000_000)
        sign_results(home, result, fleet.verifier_url)
        try:
            os.sched_setaffinity(0, {cores[0]})
            fleet.start_verifier()
            os.sched_setaffinity(0, set(cores))
            gc.collect()
            gc.freeze()
            pid = fleet.processes[0].pid
            taken = [
                asyncio.run(take(fleet.verifier_url, home.token("router"), args.nodes, pid))
                for _ in range(args.rounds)
            ]
        finally:
            fleet.stop()
    _print(args.nodes, taken)


def _print(nodes: int, taken: list[tuple[float, float, float, float]]) -> None:
    wall, router, verifier, late = zip(*taken, strict=True)
    sys.stdout.write(f"a snapshot of {nodes} results; {machine()}\n")
    row("from nothing to all known", f"{median(wall):.1f} s", f"{min(wall):.1f} to {max(wall):.1f}")
    row(
        "  processor time of the router",
        f"{median(router):.1f} s",
        f"{median(router) / nodes * 1e6:.0f} us each",
    )
    row("  of the verifier", f"{median(verifier):.1f} s", f"{median(verifier) / nodes * 1e6:.0f} us each")
    row("  longest stall of the router's loop", f"{max(late) * 1000:.0f} ms")


if __name__ == "__main__":
    main()
