"""The `Database` protocol over SQLite: write-ahead log, synchronous=FULL, one writer at a time."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any, Self

import aiosqlite

from verifier.errors import StoreError
from verifier.store.database import ConflictError, Row, Tx

_BUSY_MS = 10_000
_RETRY_S = 0.01


class SqliteDatabase:
    """
    A database file, to be used as an async context manager.

    Args:
        path: The path of the file.
        schema: The package with the ``migrations`` that make its tables.
    """

    def __init__(self, path: Path, *, schema: str = "verifier.store") -> None:
        self._path = path
        self._schema = schema
        self._lock = asyncio.Lock()
        self._writer: aiosqlite.Connection | None = None
        self._reader: aiosqlite.Connection | None = None

    async def __aenter__(self) -> Self:
        """
        Open the file and bring its schema up to date.

        Raises:
            StoreError: The file cannot be opened, or a newer version has written it.
        """
        try:
            self._writer = await self._connect()
            await self._migrate()
            self._reader = await self._connect()
            await self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            await self.close()
            raise StoreError(f"{self._path}: {error}") from None
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the file."""
        await self.close()

    async def close(self) -> None:
        """Close both connections.  An open connection would keep the process from ending."""
        for connection in (self._writer, self._reader):
            if connection is not None:
                await connection.close()
        self._writer = self._reader = None

    async def _connect(self) -> aiosqlite.Connection:
        connection = await aiosqlite.connect(self._path, isolation_level=None)
        connection.row_factory = sqlite3.Row
        try:
            for pragma in ("synchronous = FULL", "foreign_keys = ON", f"busy_timeout = {_BUSY_MS}"):
                await connection.execute(f"PRAGMA {pragma}")
            await _use_write_ahead_log(connection)
        except BaseException:
            # The thread of an open connection would keep the process from ending.
            await connection.close()
            raise
        return connection

    async def _migrate(self) -> None:
        assert self._writer is not None
        folder = resources.files(self._schema) / "migrations"
        scripts = sorted(
            (int(entry.name[:4]), entry.read_text())
            for entry in folder.iterdir()
            if entry.name.endswith(".sql")
        )
        await self._writer.execute("BEGIN EXCLUSIVE")
        row = await (await self._writer.execute("PRAGMA user_version")).fetchone()
        version = row[0] if row is not None else 0
        if version > scripts[-1][0]:
            await self._writer.execute("ROLLBACK")
            raise StoreError(
                f"{self._path} has schema {version}, which is newer than schema {scripts[-1][0]} of this version"
            )
        for number, script in scripts:
            if number > version:
                for statement in _statements(script):
                    await self._writer.execute(statement)
        await self._writer.execute(f"PRAGMA user_version = {scripts[-1][0]}")
        await self._writer.execute("COMMIT")

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Tx]:
        """See `Database.write`."""
        async with self._lock, self._transaction(self._writer) as tx:
            yield tx

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Tx]:
        """See `Database.read`."""
        if self._reader is None:
            raise StoreError("the database is closed")
        yield _SqliteTx(self._reader)

    @asynccontextmanager
    async def _transaction(self, connection: aiosqlite.Connection | None) -> AsyncIterator[Tx]:
        """
        Open a transaction that is committed or rolled back when the next one begins.

        The statements run in a thread, which goes on if the request is cancelled.  So each statement
        that opens or closes a transaction is waited for, even if the caller is cancelled.
        """
        if connection is None:
            raise StoreError("the database is closed")
        try:
            await run_uncancelled(connection.execute("BEGIN IMMEDIATE"))
            yield _SqliteTx(connection)
            await run_uncancelled(connection.execute("COMMIT"))
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from None
        finally:
            if connection.in_transaction:
                with suppress(sqlite3.Error):
                    await run_uncancelled(connection.execute("ROLLBACK"))


async def _use_write_ahead_log(connection: aiosqlite.Connection) -> None:
    """
    Set the journal mode, and wait for other processes as long as ``busy_timeout`` waits.

    If another connection is about to write a file that has no write-ahead log yet, SQLite refuses this
    change at once and does not wait: two processes that open a new file together meet this.
    """
    give_up = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            # The statement must run to its end: an open one holds a read lock, and SQLite does not wait with one.
            await connection.execute_fetchall("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # The lower byte is the primary code, e.g. of SQLITE_BUSY_RECOVERY.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            await asyncio.sleep(_RETRY_S)
        else:
            return


async def run_uncancelled(work: Awaitable[object]) -> None:
    """Wait for *work* to end, and raise only afterwards if the caller was cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except sqlite3.Error:
            break
    if cancelled is not None:
        raise cancelled
    task.result()


class _SqliteTx:
    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def execute(self, sql: str, *parameters: Any) -> int:
        try:
            cursor = await self._connection.execute(sql, parameters)
        except sqlite3.IntegrityError as error:
            raise ConflictError(str(error)) from None
        except sqlite3.Error as error:
            raise StoreError(str(error)) from None
        return cursor.rowcount

    async def one(self, sql: str, *parameters: Any) -> Row | None:
        # All rows are fetched, because an UPDATE … RETURNING must run to its end.
        rows = await self.all(sql, *parameters)
        return rows[0] if rows else None

    async def all(self, sql: str, *parameters: Any) -> list[Row]:
        try:
            rows = await self._connection.execute_fetchall(sql, parameters)
        except sqlite3.IntegrityError as error:
            raise ConflictError(str(error)) from None
        except sqlite3.Error as error:
            raise StoreError(str(error)) from None
        return [dict(row) for row in rows]


def _statements(script: str) -> list[str]:
    statements = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
