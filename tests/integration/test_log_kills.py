"""
kill -9 of the sequencer at any moment: each entry gets one place, and the tree continues what was signed.

``TOUCHSTONE_KILLS`` says how often it is killed; the suite does it twice.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fixtures.transactions import transaction
from tests.integration.log_writer import TOGETHER
from verifier.config import Home
from verifier.errors import StoreError
from verifier.service.clock import Clock
from verifier.service.duties import Duties
from verifier.service.sequencer import Sequencer
from verifier.store import log, log_audit, log_tree
from verifier.store.database import Database
from verifier.store.log_guard import Signed, read_guard
from verifier.store.opening import open_database

STORES = ("sqlite", "postgres")
KILLS = int(os.environ.get("TOUCHSTONE_KILLS", "2"))


@asynccontextmanager
async def opened(home: Home) -> AsyncIterator[tuple[Database, Sequencer]]:
    config = home.config()
    async with open_database(config.store.url, home.database) as db:
        yield db, sequencer_of(home, db)


def sequencer_of(home: Home, db: Database) -> Sequencer:
    config = home.config()
    duties = Duties(db, Clock(), config.sessions.skew_s)
    return Sequencer(db, duties, config.log_origin, home.log_key(), home.log_guard)


def write_until_killed(home: Home, first: int, seconds: float) -> list[int]:
    """Run the writer, kill it so long after its first word, and give what it said was committed."""
    command = [sys.executable, "-m", "tests.integration.log_writer", str(home.path), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline()]
        time.sleep(seconds)
        process.kill()
        said += process.stdout.readlines()
    # The last line may be cut.
    return [int(line) for line in said if line.endswith("\n")]


@pytest.mark.timeout(60 + 10 * KILLS)
async def test_each_entry_gets_one_place_whenever_it_is_killed(verifier_home: Home) -> None:
    """All of a round is there or nothing, and what was signed before is the beginning of what is signed later."""
    rng = random.Random(5)
    committed: list[int] = []
    known: list[Signed] = []
    for number in range(KILLS):
        said = await asyncio.to_thread(
            write_until_killed, verifier_home, number * 1_000_000, rng.uniform(0.02, 0.3)
        )
        committed += said
        async with opened(verifier_home) as (db, _), transaction(db) as tx:
            current = await log_tree.newest(tx)
            if current is None:
                continue
            for earlier in [*known, read_guard(verifier_home.log_guard)]:
                await log_audit.check_head(tx, current, earlier, is_alone=True)
        known += filter(None, [read_guard(verifier_home.log_guard)])
    async with opened(verifier_home) as (db, sequencer):
        await sequencer.round()
        await all_are_there_once(db, committed)
    assert committed


async def all_are_there_once(db: Database, committed: list[int]) -> None:
    async with transaction(db) as tx:
        assert not await log.is_waiting(tx)
        rows = await tx.all("SELECT subject FROM log_entries WHERE kind = 'key'")
        current = await log_tree.newest(tx)
        assert current is not None
        tree = await log_audit.check_head(tx, current, None, is_alone=True)
        for tile in log_audit.tiles_to_check(tree.size):
            await log_audit.check_tile(tx, current.number, tree.size, tile)
    times = Counter(row["subject"] for row in rows)
    assert set(times.values()) == {1}
    assert all(f"k{start + each}" in times for start in committed for each in range(TOGETHER))


async def test_two_replicas_never_give_one_place_twice(verifier_home: Home) -> None:
    """Both keep the log at once, as they must not: the second finds what the first has left."""
    async with opened(verifier_home) as (db, first):
        url = verifier_home.config().store.url
        async with open_database(url, verifier_home.database) as other:
            second = sequencer_of(verifier_home, other)
            for start in range(0, 20 * TOGETHER, TOGETHER):
                async with transaction(db) as tx:
                    for number in range(start, start + TOGETHER):
                        await log.append(
                            tx, number, "key", {"change": "made", "kid": f"k{number}", "use": "test"}
                        )
                await asyncio.gather(both(first), both(second))
            await first.round()
            await all_are_there_once(db, list(range(0, 20 * TOGETHER, TOGETHER)))


async def both(sequencer: Sequencer) -> None:
    try:
        await sequencer.round()
    except StoreError:
        # It lost, and tries again later.
        return
