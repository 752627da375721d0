"""What several processes that open one new file at the same time meet."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from verifier.errors import StoreError
from verifier.store import sqlite
from verifier.store.sqlite import SqliteDatabase


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new.db"


@pytest.fixture
def writer(path: Path) -> Iterator[sqlite3.Connection]:
    """Another process that is about to make its tables, in a file without a write-ahead log."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


async def test_a_new_file_that_another_process_writes_is_waited_for(path: Path, writer) -> None:
    """SQLite itself refuses the write-ahead log at once then, whatever its busy timeout is."""

    async def finish() -> None:
        await asyncio.sleep(0.2)
        writer.execute("COMMIT")

    finishing = asyncio.create_task(finish())
    async with SqliteDatabase(path) as db, db.read() as tx:
        assert await tx.one("PRAGMA journal_mode") == {"journal_mode": "wal"}
    await finishing


async def test_waiting_for_another_process_ends(path: Path, writer, monkeypatch) -> None:
    """With an error that names the file."""
    monkeypatch.setattr(sqlite, "_BUSY_MS", 50)
    with pytest.raises(StoreError, match=r"new\.db: database is locked"):
        async with SqliteDatabase(path):
            pass


async def test_a_file_that_is_no_database_is_refused_at_once(path: Path) -> None:
    """Only a lock is waited for."""
    await asyncio.to_thread(path.write_bytes, b"no database" * 100)
    async with asyncio.timeout(5):
        with pytest.raises(StoreError, match="not a database"):
            async with SqliteDatabase(path):
                pass


async def test_several_open_a_new_file_at_once(path: Path) -> None:
    """Each gets it, with one set of tables."""
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(SqliteDatabase(path)) for _ in range(8)))
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'nodes'").fetchone() == (1,)
