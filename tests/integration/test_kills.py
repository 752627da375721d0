"""
kill -9 at any moment under load, of the verifier and of PostgreSQL: what was acknowledged is there afterwards.

``TOUCHSTONE_KILLS`` says how often each is killed; the suite does it seven times.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from attester.errors import VerifierError
from fixtures import postgres as servers
from fixtures.fleet import Fleet
from fixtures.load import Load
from fixtures.postgres import NoPostgresError, make_database, own_server, url_of
from fixtures.published import publish
from fixtures.simulator import MODEL
from fixtures.transactions import transaction
from verifier.config import Home
from verifier.store import nodes
from verifier.store.database import Database
from verifier.store.nodes import Grant
from verifier.store.opening import open_database

STORES = ("sqlite", "postgres")
KILLS = int(os.environ.get("TOUCHSTONE_KILLS", "7"))
NODES = 4
CONFIG: dict[str, dict[str, Any]] = {
    "sessions": {
        "per_node_per_minute": 100_000, "per_address_per_minute": 1_000_000,
        "strangers_per_minute": 1_000_000, "announced_per_hour": 1_000_000
    },
    "policy": {"workers": 1},
}  # fmt: skip


@asynccontextmanager
async def database(fleet: Fleet) -> AsyncIterator[Database]:
    home = Home(fleet.verifier_home)
    async with open_database(home.config().store.url, home.database) as db:
        yield db


async def prepare(fleet: Fleet, folder: Path, challenges: int) -> None:
    async with database(fleet) as db:
        now_ms = time.time_ns() // 1_000_000
        key = Home(fleet.verifier_home).pool_key()
        await publish(db, key, folder, now_ms, reads=challenges, walks=challenges)


async def tokens(fleet: Fleet, count: int = NODES) -> list[str]:
    now_ms = time.time_ns() // 1_000_000
    async with database(fleet) as db, transaction(db) as tx:
        grants = [Grant(f"operator-{number}", (MODEL,)) for number in range(count)]
        return [await nodes.issue_token(tx, grant, now_ms, 3_600_000) for grant in grants]


async def check(fleet: Fleet, load: Load) -> None:
    async with database(fleet) as db, db.read() as tx:
        await load.check(tx)
        if not Home(fleet.verifier_home).config().store.url:
            assert await tx.all("PRAGMA integrity_check") == [{"integrity_check": "ok"}]


@pytest.mark.timeout(120 + 10 * KILLS)
def test_nothing_acknowledged_is_lost_with_the_verifier(
    tmp_path: Path, model_folder: Path, store_url: str
) -> None:
    """Enrolments, results, used nonces and used challenges survive it."""
    rng = random.Random(11)
    fleet = Fleet(tmp_path, {**CONFIG, "store": {"url": store_url}})
    try:
        fleet.make_verifier()
        asyncio.run(prepare(fleet, model_folder, 60 * KILLS + 500))
        load = Load(model_folder)
        for _ in range(KILLS):
            process = fleet.start_verifier()
            asyncio.run(attest_until_killed(fleet, load, process, rng.uniform(0.1, 0.8)))
        assert len(load.results) > 3 * KILLS
        assert len(load.enrolled) > 2 * KILLS
        assert not load.refused
    finally:
        fleet.stop()


async def attest_until_killed(
    fleet: Fleet, load: Load, process: subprocess.Popen[bytes], seconds: float
) -> None:
    given = await tokens(fleet)
    async with aiohttp.ClientSession() as http:
        tasks = [asyncio.create_task(load.attest(http, fleet.verifier_url, token)) for token in given]
        await asyncio.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    process.wait()
    assert all(isinstance(outcome, VerifierError) for outcome in outcomes), outcomes
    await check(fleet, load)


@pytest.mark.timeout(120 + 20 * KILLS)
async def test_nothing_acknowledged_is_lost_with_postgresql(tmp_path: Path, model_folder: Path) -> None:
    """The verifier goes on by itself; meanwhile requests are 503 with Retry-After."""
    try:
        with own_server() as server:
            await kill_postgres(tmp_path, model_folder, server)
    except NoPostgresError as error:
        pytest.skip(str(error))


async def kill_postgres(tmp_path: Path, model_folder: Path, server: Any) -> None:
    rng = random.Random(12)
    url = url_of(server.get_uri(), await make_database(server.get_uri()))
    fleet = Fleet(tmp_path, {**CONFIG, "store": {"url": url}})
    try:
        await asyncio.to_thread(fleet.make_verifier)
        await prepare(fleet, model_folder, 200 * KILLS + 500)
        process = await asyncio.to_thread(fleet.start_verifier)
        load = Load(model_folder)
        async with aiohttp.ClientSession() as http:
            tasks = [
                asyncio.create_task(load.insist(http, fleet.verifier_url, token))
                for token in await tokens(fleet)
            ]
            for number in range(KILLS):
                await wait_for_results(load)
                await asyncio.sleep(rng.uniform(0.1, 0.8))
                await asyncio.to_thread(servers.kill, server)
                await asyncio.sleep(0.3)
                if number == 0:
                    await is_unavailable(http, fleet)
                await asyncio.to_thread(servers.start, server)
            await wait_for_results(load)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes
        assert process.poll() is None
        assert {error.status for error in load.refused} == {503}
        assert {error.retry_after_s for error in load.refused} == {2.0}
        await check(fleet, load)
        async with database(fleet) as db, db.read() as tx:
            assert await tx.all("SELECT * FROM incidents") == []
    finally:
        await asyncio.to_thread(fleet.stop)


async def wait_for_results(load: Load) -> None:
    """Wait until results come again."""
    wanted = len(load.results) + NODES
    for _ in range(1200):
        if len(load.results) >= wanted:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"no results for a minute; the last refusal: {load.refused[-1:]}")


async def is_unavailable(http: aiohttp.ClientSession, fleet: Fleet) -> None:
    url = f"{fleet.verifier_url}/api/v1/nodes"
    async with http.get(url, headers=fleet.administrator) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) > 0
        assert (await response.json(content_type=None))["type"].endswith("#store.unavailable")
