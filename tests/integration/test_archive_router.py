"""Decisions and receipts of routers move into files that the verifier's log proves; kill -9 loses none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from fixtures.archiver import move
from fixtures.credentials import bearer
from fixtures.postgres import drop_database, make_database, url_of
from router.config import RouterConfig, StoreSection
from router.model.clock import Clock
from router.state.archiver import Archiver, VerifierLog, archiving
from router.store import decisions, old_rows, receipts
from tests.integration.test_log import entries, settle, the_log
from tests.integration.test_routers import secret
from touchstone import main
from verifier.archive import parquet
from verifier.archive.files import ArchiveEntry
from verifier.archive.rows import DECISIONS, RECEIPTS
from verifier.errors import AuditError, RequestError
from verifier.roles import Role
from verifier.service.archives import FileBody
from verifier.service.http import parse_json
from verifier.store import leases
from verifier.store.database import Database
from verifier.store.opening import open_database
from verifier.store.sqlite import SqliteDatabase

pytest.importorskip("pyarrow", reason="an archive needs pyarrow")
STORES = ("sqlite", "postgres")
DAY_MS = 86_400_000


@pytest.fixture
def router_url(request: pytest.FixtureRequest, store_url: str) -> Iterator[str]:
    """A store of routers, of the same kind as the verifier's."""
    if not store_url:
        yield ""
        return
    server = request.getfixturevalue("postgres")
    name = asyncio.run(make_database(server))
    yield url_of(server, name)
    asyncio.run(drop_database(server, name))


@pytest.fixture
async def db(router_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(router_url, tmp_path / "router.db", schema="router.store") as opened:
        yield opened


async def fill(db: Database, now_ms: int) -> None:
    """Of each table: one row a day, of the last 40 days."""
    ages = [(age, now_ms - age * DAY_MS) for age in range(40)]
    await db.write(
        lambda tx: decisions.save(tx, "one", [(f"{age:032x}", at, "c", b'{"d":1}') for age, at in ages])
    )
    rows = [(f"{age:032x}", at, "c", 1, age, b'{"r":1}') for age, at in ages]
    await db.write(lambda tx: receipts.save(tx, "kid", rows, is_ahead=False))


async def count(db: Database) -> tuple[int, int]:
    async with db.read() as tx:
        found = [await tx.one(f"SELECT count(*) AS n FROM {table}") for table in ("decisions", "receipts")]
    return tuple(row["n"] for row in found if row is not None)  # type: ignore[return-value]  # two tables


def archiver(db: Database, verifier: Any, token: str, folder: Path, **store: Any) -> Archiver:
    config = StoreSection(path="router.db", archive="archive", **store)
    log = VerifierLog(verifier.stranger, verifier.url, "router-1", lambda: token)
    clock = Clock(lambda: verifier.clock.ms, time.monotonic)
    return Archiver(db, config, folder, log, clock=clock, holder="router-1")


async def test_old_rows_move_into_files_that_the_log_proves(verifier, db, tmp_path: Path) -> None:
    token = await secret(verifier, "r1", Role.ROUTER)
    await fill(db, verifier.clock.ms)
    moving = archiver(db, verifier, token, tmp_path / "archive")
    await moving.move()
    assert await count(db) == (40, 40)
    await settle(verifier)
    await moving.move()
    # Of each table a file waits for the log, one after the other.
    await settle(verifier)
    await moving.move()
    assert await count(db) == (31, 31)
    key = (await the_log(verifier)).vkey
    for table in (DECISIONS, RECEIPTS):
        (path,) = (tmp_path / "archive" / table.name).glob("*.parquet")
        result = await asyncio.to_thread(
            CliRunner().invoke, main, ["audit", "archive", str(path), "--key", key]
        )
        assert result.exit_code == 0, result.output
        assert f"9 rows of {table.name}" in result.output
        assert [row["id"] for row in parquet.read(path)[1]] == [f"{age:032x}" for age in range(39, 30, -1)]
    logged = await entries(verifier, "archive")
    assert [(each["table"], each["actor"], each["router"]) for each in logged] == [
        ("decisions", "r1", "router-1"), ("receipts", "r1", "router-1"),
    ]  # fmt: skip


async def test_too_many_rows_move_too(verifier, db, tmp_path: Path) -> None:
    token = await secret(verifier, "r1", Role.ROUTER)
    await fill(db, verifier.clock.ms)
    moving = archiver(db, verifier, token, tmp_path / "archive", keep_decisions=5, keep_days=3650)
    for _ in range(3):
        await moving.move()
        await settle(verifier)
    assert await count(db) == (5, 5)


async def test_a_receipt_that_is_ahead_of_its_batch_stays(db, tmp_path: Path) -> None:
    await db.write(lambda tx: receipts.save(tx, "kid", [("0" * 32, 5, "c", 1, 0, b"{}")], is_ahead=True))
    async with db.read() as tx:
        assert await old_rows.oldest(tx, RECEIPTS, 1 << 60, 10) == []


async def test_a_receipt_that_was_signed_meanwhile_stays_and_moves_later(db) -> None:
    await fill(db, 40 * DAY_MS)
    async with db.read() as tx:
        found = await old_rows.oldest(tx, RECEIPTS, 1 << 60, 10)
    await db.write(
        lambda tx: tx.execute("UPDATE receipts SET signature = ? WHERE id = ?", b"s", found[0]["id"])
    )
    await db.write(lambda tx: old_rows.remove(tx, RECEIPTS, found))
    async with db.read() as tx:
        left = await old_rows.oldest(tx, RECEIPTS, 1 << 60, 1)
    assert left == [{**found[0], "signature": b"s"}]
    assert (await count(db))[1] == 31


async def test_one_router_of_a_store_moves(verifier, db, tmp_path: Path) -> None:
    token = await secret(verifier, "r1", Role.ROUTER)
    await fill(db, verifier.clock.ms)
    now_ms = verifier.clock.ms + await db.ahead_ms(lambda: verifier.clock.ms)
    await db.write(lambda tx: leases.take(tx, "archive", "another", now_ms, now_ms + 50_000))
    await archiver(db, verifier, token, tmp_path / "archive").move()
    assert not (tmp_path / "archive").exists()


async def test_nothing_moves_while_the_verifier_is_away(db, verifier, tmp_path: Path) -> None:
    await fill(db, verifier.clock.ms)
    moving = archiver(db, verifier, "wrong", tmp_path / "archive")
    with pytest.raises(AuditError, match="401"):
        await moving.move()
    assert await count(db) == (40, 40)


ENTRY = ArchiveEntry(
    table="decisions", digest="a" * 64, rows=1, root="b" * 64, first="x", last="y", from_=1, to=2
)


async def post(verifier: Any, token: str, **changed: Any) -> int:
    body = {**ENTRY.members(), "router": "router-1", **changed}
    async with verifier.stranger.post(
        f"{verifier.url}/api/v1/log/archives", data=msgspec.json.encode(body), headers=bearer(token)
    ) as response:
        return int(response.status)


async def test_a_file_is_logged_once(verifier) -> None:
    token = await secret(verifier, "r1", Role.ROUTER)
    assert await post(verifier, token) == 201
    assert await post(verifier, token) == 200
    assert len(await entries(verifier, "archive")) == 1
    assert await post(verifier, token) == 200


async def test_a_malformed_file_is_refused_and_leaves_no_trace(verifier) -> None:
    token = await secret(verifier, "r1", Role.ROUTER)
    assert await post(verifier, token, table="results") == 400
    assert await entries(verifier, "archive") == []


@pytest.mark.parametrize(
    "changed",
    [
        {"table": "results"}, {"digest": "A" * 64}, {"digest": "a" * 63}, {"rows": 0}, {"rows": "1"}, {"root": ""},
        {"first": "a b"}, {"last": "x" * 129}, {"from": -1}, {"to": 1 << 60}, {"router": "\n"}, {"more": 1},
    ],
)  # fmt: skip
def test_a_malformed_body_is_refused(changed: dict[str, Any]) -> None:
    body = {**ENTRY.members(), "router": "router-1"}
    assert parse_json(msgspec.json.encode(body), FileBody)
    with pytest.raises(RequestError):
        parse_json(msgspec.json.encode({**body, **changed}), FileBody)


async def test_only_routers_log_files(verifier) -> None:
    token = await secret(verifier, "a", Role.AUDITOR)
    assert await post(verifier, token) == 403


def test_an_archive_needs_a_store() -> None:
    with pytest.raises(ValueError, match=r"store\.archive"):
        StoreSection(archive="archive")


def test_without_the_setting_nothing_moves(tmp_path: Path) -> None:
    config = msgspec.convert({"verifier": {"url": "http://127.0.0.1:1"}}, RouterConfig)
    assert archiving(config, tmp_path, None, None, to_verifier=None, token=lambda: None) == {}  # type: ignore[arg-type]  # not looked at


ROWS = 1500


def test_kill_9_while_rows_move_loses_none_and_doubles_none(tmp_path: Path) -> None:
    path, folder = tmp_path / "router.db", tmp_path / "archive"
    rows = [(f"{number:032x}", number, "c", b"%d" % number) for number in range(ROWS)]

    async def write() -> None:
        async with SqliteDatabase(path, schema="router.store") as db:
            await db.write(lambda tx: decisions.save(tx, "one", rows))

    async def left() -> set[str]:
        async with SqliteDatabase(path, schema="router.store") as db, db.read() as tx:
            return {row["id"] for row in await tx.all("SELECT id FROM decisions")}

    asyncio.run(write())
    process = subprocess.Popen([sys.executable, "-m", "fixtures.archiver", str(path), str(folder)])
    try:
        while process.poll() is None and len(_files(folder)) < 4:
            time.sleep(0.001)
        process.kill()
    finally:
        process.wait()
    moved = _rows(folder)
    assert asyncio.run(left()) | set(moved) == {row[0] for row in rows}
    assert len(moved) < ROWS
    asyncio.run(move(path, folder))
    assert _rows(folder) == [row[0] for row in rows]
    assert asyncio.run(left()) == set()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _rows(folder: Path) -> list[str]:
    return [row["id"] for each in _files(folder) for row in parquet.read(each)[1]]
