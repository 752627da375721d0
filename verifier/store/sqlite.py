"""SQLite behind the `Database` protocol: WAL, synchronous=FULL, one writer at a time."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Self

import aiosqlite

from verifier.errors import StoreError
from verifier.store.database import ConflictError, Row, Tx

_BUSY_MS = 10_000


class SqliteDatabase:
    """A database file; use as an async context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._read_lock = asyncio.Lock()
        self._writer: aiosqlite.Connection | None = None
        self._reader: aiosqlite.Connection | None = None

    async def __aenter__(self) -> Self:
        """
        Open the file and bring its schema up to date.

        Raises:
            StoreError: it cannot be opened, or was written by a newer version.
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
        """Close both connections: an open one would keep the process from ending."""
        for connection in (self._writer, self._reader):
            if connection is not None:
                await connection.close()
        self._writer = self._reader = None

    async def _connect(self) -> aiosqlite.Connection:
        connection = await aiosqlite.connect(self._path, isolation_level=None)
        connection.row_factory = sqlite3.Row
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            f"busy_timeout = {_BUSY_MS}",
        ):
            await connection.execute(f"PRAGMA {pragma}")
        return connection

    async def _migrate(self) -> None:
        assert self._writer is not None
        folder = resources.files("verifier.store") / "migrations"
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
            raise StoreError(f"{self._path} has schema {version}, newer than this version's {scripts[-1][0]}")
        for number, script in scripts:
            if number > version:
                for statement in _statements(script):
                    await self._writer.execute(statement)
        await self._writer.execute(f"PRAGMA user_version = {scripts[-1][0]}")
        await self._writer.execute("COMMIT")

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Tx]:
        """As `Database.write`."""
        async with self._lock:
            if self._writer is None:
                raise StoreError("the database is closed")
            try:
                await self._writer.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise StoreError(f"{self._path}: {error}") from None
            try:
                yield _SqliteTx(self._writer)
            except BaseException:
                # Shielded: a cancelled request must not leave the transaction open.
                await asyncio.shield(self._writer.execute("ROLLBACK"))
                raise
            try:
                await asyncio.shield(self._writer.execute("COMMIT"))
            except sqlite3.Error as error:
                raise StoreError(f"{self._path}: {error}") from None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Tx]:
        """As `Database.read`."""
        async with self._read_lock:
            if self._reader is None:
                raise StoreError("the database is closed")
            await self._reader.execute("BEGIN")
            try:
                yield _SqliteTx(self._reader)
            finally:
                await asyncio.shield(self._reader.execute("ROLLBACK"))


class _SqliteTx:
    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def execute(self, sql: str, *parameters: Any) -> int:
        cursor = await self._run(sql, parameters)
        return cursor.rowcount

    async def one(self, sql: str, *parameters: Any) -> Row | None:
        cursor = await self._run(sql, parameters)
        # fetchall, not fetchone: an UPDATE … RETURNING must run to its end.
        rows = list(await cursor.fetchall())
        return _row(rows[0]) if rows else None

    async def all(self, sql: str, *parameters: Any) -> list[Row]:
        cursor = await self._run(sql, parameters)
        return [_row(row) for row in await cursor.fetchall()]

    async def _run(self, sql: str, parameters: tuple[Any, ...]) -> aiosqlite.Cursor:
        try:
            return await self._connection.execute(sql, parameters)
        except sqlite3.IntegrityError as error:
            raise ConflictError(str(error)) from None
        except sqlite3.Error as error:
            raise StoreError(str(error)) from None


def _row(row: sqlite3.Row) -> Row:
    return dict(row)


def _statements(script: str) -> list[str]:
    statements = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
