"""
Policies: an evaluation through the worker against bare regorus, and a trial on one core.

Both against the same engine on the same inputs in the same run, taken in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import regorus

from bench.common import machine, row
from fixtures.recorded import Template, fill
from fixtures.simulator import ENGINE, tiny_model
from fixtures.transactions import transaction
from verifier import reappraisal, trial
from verifier.appraisal import PolicyOutcome, read_outcome
from verifier.config import Home, VerifierConfig, default_policy
from verifier.policy import bundle as bundles
from verifier.policy.bundle import Bundle
from verifier.policy.engine import Limits, opened
from verifier.policy.worker import RULE
from verifier.service.app import open_service
from verifier.service.inputs import InputLoader, StoredLookup
from verifier.service.rejudge import Rejudger
from verifier.store import blocks, policies, recordings
from verifier.store.policies import ChangeAuthor
from verifier.store.recordings import Window
from verifier.store.sqlite import SqliteDatabase

GOOD, BAD = "1.0.0", "0.9.0"
_NODES = 500


def policy(versions: list[str], **thresholds: int) -> Bundle:
    """The default policy with an engine's versions approved."""
    base = bundles.load(default_policy())
    data = msgspec.json.decode(base.files["data.json"])
    data["approved_engines"] = {ENGINE: {"versions": versions, "weak": []}}
    data["thresholds"] |= thresholds
    # A name and a version are given once.
    manifest = msgspec.json.decode(base.files["bundle.json"]) | {
        "name": f"bench-{len(versions)}-{len(thresholds)}"
    }
    files = {"data.json": msgspec.json.encode(data), "bundle.json": msgspec.json.encode(manifest)}
    return bundles.of_files({**base.files, **files})


class Bare:
    """regorus in this process, without limits."""

    def __init__(self, bundle: Bundle) -> None:
        self._engine: Any = regorus.Engine()
        for name, text in bundle.modules:
            self._engine.add_policy(name, text)
        self._engine.add_data_json(bundle.data)

    def evaluate(self, given: bytes) -> Any:
        """An outcome as text: what a trial pays for at the least."""
        self._engine.set_input_json(given.decode())
        return self._engine.eval_rule_as_json(RULE)


async def seconds(work: Callable[[], Awaitable[object]]) -> float:
    """How long *work* takes."""
    start = time.perf_counter()
    await work()
    return time.perf_counter() - start


async def main_async(count: int, rounds: int) -> None:
    """Measure and print."""
    old, new = policy([GOOD, BAD]), policy([GOOD])
    stricter = policy([GOOD], missed_limit=4)
    with tempfile.TemporaryDirectory() as name:
        folder = tiny_model(Path(name) / "model")
        template = Template(folder, old, 1_795_000_000_000)
        bare_old = Bare(old)

        def outcome_of(version: str) -> PolicyOutcome:
            given, record = template.record("n", "0" * 32, version, {"numpy": "2.4.6"})
            return read_outcome(msgspec.json.decode(bare_old.evaluate(given)), record.checked)

        outcomes = {version: outcome_of(version) for version in (GOOD, BAD)}
        async with SqliteDatabase(Path(name) / "v.db") as db:
            # Every appraisal has packages of its own, so that no two inputs are equal: the worst case.
            await fill(
                db, template, count, _NODES, lambda node: BAD if node % 10 == 0 else GOOD, outcomes.__getitem__,
                lambda number: {"numpy": "2.4.6", "build": str(number)},
            )  # fmt: skip
            inputs = [taken.input async for page in recordings.pages(db, Window()) for taken in page]
            await _workers(new, inputs, rounds)
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            await _trials(db, new, stricter, inputs, rounds)


async def _anew(nodes: int) -> None:
    """How long until all live results are what another policy makes of them."""
    with tempfile.TemporaryDirectory() as name:
        home = Home(Path(name) / "home")
        home.create(VerifierConfig())
        old = policy([GOOD, BAD])
        template = Template(tiny_model(Path(name) / "model"), old, time.time_ns() // 1_000_000)
        bare = Bare(old)

        def outcome_of(version: str) -> PolicyOutcome:
            given, record = template.record("n", "0" * 32, version, {})
            return read_outcome(msgspec.json.decode(bare.evaluate(given)), record.checked)

        async with SqliteDatabase(home.database) as db:
            await fill(
                db, template, nodes, nodes, lambda node: BAD if node % 10 == 0 else GOOD, outcome_of,
                lambda number: {"build": str(number)},
            )  # fmt: skip
        async with open_service(home, home.config()) as service:
            rejudge = Rejudger(service)
            new = policy([GOOD])
            who = ChangeAuthor("bench", "to see how long it takes")
            for what, bundle in (("another policy", new), ("rolled back", old)):
                async with transaction(service.db) as tx:
                    await policies.publish(tx, bundle, b"{}", "bench", who, service.now_ms())
                    rollout = await policies.move(tx, "promote", bundle.digest, who, service.now_ms())
                start = time.perf_counter()
                changed = await rejudge.catch_up(rollout)
                taken = time.perf_counter() - start
                row(f"{nodes} live results judged anew, {what}", f"{taken:.2f} s", f"{changed} replaced")
            start = time.perf_counter()
            async with transaction(service.db) as tx:
                await blocks.block(tx, "engine-version", f"{ENGINE}@{BAD}", who, service.now_ms())
                blocked = await policies.rollout(tx)
            assert blocked is not None
            changed = await rejudge.catch_up(blocked)
            row(
                f"{nodes} live results, one engine's version blocked",
                f"{time.perf_counter() - start:.2f} s",
                f"{changed} replaced",
            )


async def _workers(bundle: Bundle, inputs: list[bytes], rounds: int) -> None:
    some = inputs[:2000]
    bare = Bare(bundle)
    times: dict[str, list[float]] = {"bare": [], "together": [], "alone": []}
    async with opened(bundle, Limits(workers=1)) as pool:

        async def plainly() -> None:
            for given in some:
                bare.evaluate(given)

        async def together() -> None:
            await asyncio.gather(*(pool.evaluate(given) for given in some))

        async def alone() -> None:
            for given in some:
                await pool.evaluate(given)

        await together()
        for _ in range(rounds):
            for name, work in (("bare", plainly), ("together", together), ("alone", alone)):
                times[name].append(await seconds(work))
    cost = {name: median(found) / len(some) * 1e6 for name, found in times.items()}
    row(
        "bare regorus, one evaluation", f"{cost['bare']:.0f} us", f"{len(some[0])} bytes of input, none equal"
    )
    row("through a worker, waiting together", f"{cost['together']:.0f} us")
    row("ratio, through a worker to bare", f"{cost['together'] / cost['bare']:.2f}")
    row(
        "through a worker, one at a time",
        f"{cost['alone']:.0f} us",
        f"ratio {cost['alone'] / cost['bare']:.2f}",
    )


async def _trials(
    db: SqliteDatabase, new: Bundle, stricter: Bundle, inputs: list[bytes], rounds: int
) -> None:
    bare = Bare(new)
    times: dict[str, list[float]] = {"bare": [], "trial": []}
    report = None

    async def plainly() -> None:
        for given in inputs:
            bare.evaluate(given)

    async def tried(bundle: Bundle, window: Window) -> trial.TrialReport:
        async with opened(bundle, Limits(workers=1)) as pool:
            replay = reappraisal.Reappraiser(bundle, pool.ask, StoredLookup(db, InputLoader()))
            return await trial.run(recordings.pages(db, window), replay, bundle.id)

    for _ in range(rounds):
        times["bare"].append(await seconds(plainly))
        start = time.perf_counter()
        report = await tried(new, Window())
        times["trial"].append(time.perf_counter() - start)
    assert report is not None
    count = len(inputs)
    rate = {name: count / median(found) for name, found in times.items()}
    row(f"bare regorus on {count} recorded inputs, one core", f"{rate['bare']:.0f} /s")
    row(
        f"trial of {count} recorded appraisals, same core",
        f"{rate['trial']:.0f} /s",
        f"{len(report.changes)} nodes change",
    )
    row("ratio, trial to bare", f"{rate['trial'] / rate['bare']:.2f}")
    some = replace(Window(), until_ms=1_795_000_000_000 + count // 5)
    start = time.perf_counter()
    again = await tried(stricter, some)
    row(
        "trial with other thresholds: examined again",
        f"{again.appraisals / (time.perf_counter() - start):.0f} /s",
        f"{again.examined} of {again.appraisals} examined",
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recorded", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=1000, help="Live results that are judged anew.")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sys.stdout.write(f"policies; {machine()}\n")
    asyncio.run(_anew(args.nodes))
    asyncio.run(main_async(args.recorded, args.rounds))


if __name__ == "__main__":
    main()
