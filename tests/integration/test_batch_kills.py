"""
kill -9 of the router, and nodes that are killed at random: each line is answered once, and charged once.

``TOUCHSTONE_BATCH_LINES`` and ``TOUCHSTONE_KILLS`` say how many lines and how many kills; docs/batches.md has the run
with 10,000 lines.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import openai

from fixtures.streaming import HONEST
from router.model.workload import Price
from router.settlement import exchanges
from router.settlement.accounts import Accounts
from router.settlement.periods import day_of, read_period
from tests.integration.batching import OWNER, STAFF, ended, line, results
from tests.integration.gateway import CHATS, TABLE, RouterProcess, Running, key, opened

LINES = int(os.environ.get("TOUCHSTONE_BATCH_LINES", "300"))
KILLS = int(os.environ.get("TOUCHSTONE_BATCH_KILLS", "2"))
NODES = 4
PRICE = Price(300_007, 900_001)


async def test_each_line_is_answered_once_although_routers_and_nodes_are_killed(tmp_path: Path) -> None:
    rng = random.Random(5)
    async with opened(tmp_path, Running()) as fleet:
        nodes = [await fleet.engine(f"node-{number}", HONEST) for number in range(NODES)]
        gateway = {"attempt_timeout_s": 3, "connect_timeout_s": 1}
        router = RouterProcess(
            tmp_path / "router",
            fleet.verifier,
            keys=[key(OWNER), *STAFF],
            store={"path": "router.db", "flush_s": 0.5},
            gateway=gateway,
            batches={"tries": 1000, "max_in_flight": 16, "max_lines": 1_000_000},
        )
        tiers = {"small": {"prices": {"*": {"input": PRICE.input, "output": PRICE.output}}}}
        router.write_table({**TABLE, "tiers": tiers})
        killing = asyncio.create_task(kill_nodes(nodes, rng))
        try:
            await router.start()
            caller = openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key=f"sk-{OWNER}", max_retries=5)
            batch = await begin(caller)
            for number in range(KILLS):
                await until_done(router, (number + 1) * LINES // (KILLS + 1))
                await router.end(signal.SIGKILL)
                await router.start()
            done = await ended(caller, batch.id, 60 + LINES / 20)
            found = await results(caller, done.output_file_id)
            check(done, found, tmp_path / "router" / "router.db")
        finally:
            killing.cancel()
            await router.end()


async def begin(caller: openai.AsyncOpenAI) -> Any:
    """Lines that are alike, so that each costs the same."""
    lines = b"".join(
        msgspec.json.encode({**line("same", max_tokens=40), "custom_id": f"id-{number}"}) + b"\n"
        for number in range(LINES)
    )
    file = await caller.files.create(file=lines, purpose="batch")
    return await caller.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="24h")


async def kill_nodes(nodes: list[Any], rng: random.Random) -> None:
    """Kill a node, and let it live again a little later, for ever; there is always one that lives."""
    while True:
        await asyncio.sleep(rng.uniform(0.1, 0.5))
        node = rng.choice(nodes[1:])
        node.engine.kill()
        await asyncio.sleep(rng.uniform(0.02, 0.2))
        node.engine.revive()


async def until_done(router: RouterProcess, lines: int) -> None:
    """Wait until so many lines have a result, by the store."""
    async with asyncio.timeout(60 + LINES / 20):
        while True:
            with suppress(sqlite3.OperationalError):
                ((done,),) = select(router.folder / "router.db", "SELECT count(*) FROM job_lines")
                if done >= lines:
                    return
            await asyncio.sleep(0.02)


def check_statements(store: Path) -> None:
    """What the nodes earn together is exactly the price of each line once."""
    found = [
        each
        for (data,) in select(store, "SELECT payload FROM receipts")
        for each in exchanges.read(bytes(data))
    ]
    assert len(found) == LINES
    assert len({each.counted for each in found}) == 1
    periods = {read_period(day_of(each.at_ms)[:7]) for each in found}
    accounts = [Accounts(period) for period in periods]
    for each in found:
        for account in accounts:
            account.add(each)
    earned = sum(
        int(line.amount)
        for account in accounts
        for who in account.operators
        for line in account.lines(who, 2)
    )
    assert earned == LINES * PRICE.charge(found[0].counted) > 0


def select(path: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def check(done: Any, found: list[Any], store: Path) -> None:
    """The output, the receipts, the usage and the budget say the same: each line once."""
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", LINES, 0)
    assert [each["custom_id"] for each in found] == [f"id-{number}" for number in range(LINES)]
    assert {each["response"]["status_code"] for each in found} == {200}
    payloads = [msgspec.json.decode(bytes(data)) for (data,) in select(store, "SELECT payload FROM receipts")]
    lines = [each for each in payloads if "batch" in each]
    assert Counter(each["batch"]["line"] for each in lines) == Counter(range(1, LINES + 1))
    assert {each["jti"] for each in lines} == {each["response"]["request_id"] for each in found}
    told = [each["usage"]["prompt"] + each["usage"]["completion"] for each in lines]
    assert sum(told) == done.usage.total_tokens
    ((charged,),) = select(store, f"SELECT tokens FROM budgets WHERE router = ' lines' AND name = '{OWNER}'")
    assert charged == sum(each["metered"]["prompt"] + each["metered"]["completion"] for each in lines) > 0
    check_statements(store)
    sys.stdout.write(
        f"{LINES} lines, {KILLS} kills of the router: {len(lines)} receipts, {sum(told)} tokens, {charged} charged\n"
    )
