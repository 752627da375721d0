"""
The `Database` protocol over SQLite: write-ahead log, synchronous=FULL, one writer at a time.

Statements run on the event loop, because a thread would cost more than most of them.  Only what waits for the disk
runs in a thread: the commit, and reads of many rows.  Transactions that arrive during a commit share the next one.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

import aiosqlite
from msgspec import Struct

from verifier.errors import StoreError
from verifier.store.database import SQL, ConflictError, Row, Stats, Tx, UnavailableError, Work
from verifier.store.known import Key, Known
from verifier.store.scripts import read_scripts

_BUSY_MS = 10_000
_RETRY_S = 0.01
_READER_BUSY_S: Final = 0.5
_SHARED_MAX: Final = 128
"""The most transactions that share a commit."""
_WRITER_CACHE_KIB: Final = 64 * 1024
_READER_CACHE_KIB: Final = 16 * 1024
_CHECKPOINT_PAGES: Final = 8_000
"""The write-ahead log is copied into the file when it has 32 MB: a page that changed often is then copied once."""
_STATEMENTS: Final = 512
"""Prepared statements that a connection keeps."""
_UNAVAILABLE: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)

BACKUP_ID: Final = 0x54534231
"""SQLite's ``application_id`` of a backup, on which no service may work (`verifier.store.backups`)."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Write(Generic[T]):
    """Work that waits for its transaction, and whoever waits for its end."""

    work: Work[T]
    done: asyncio.Future[T]


class _Done(Struct, frozen=True):
    """Work whose transaction is to be committed."""

    write: _Write[Any]
    result: Any = None
    once: Sequence[Key] = ()


class SqliteDatabase:
    """
    A database file, to be used as an async context manager.

    Args:
        path: The path of the file.
        schema: The package with the ``migrations`` that make its tables.
    """

    shared = False

    def __init__(self, path: Path, *, schema: str = "verifier.store") -> None:
        self._path = path
        self._schema = schema
        self.stats = Stats()
        self._known = Known()
        self._connections: list[_Connection] = []
        self._waiting: deque[_Write[Any]] = deque()
        self._arrived = asyncio.Event()
        self._committing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """
        Open the file and bring its schema up to date.

        Raises:
            StoreError: The file cannot be opened, or a newer version has written it.
        """
        try:
            self._writer = await self._connect(_WRITER_CACHE_KIB)
            await self._migrate()
            # Readers meet a lock only while another process opens or closes the file.
            self._reader = await self._connect(_READER_CACHE_KIB, _READER_BUSY_S)
            self._scanner = await self._connect(_READER_CACHE_KIB, _BUSY_MS / 1000)
            for connection in (self._reader, self._scanner):
                connection.raw.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            await self.close()
            raise self._error(error) from None
        except BaseException:
            await self.close()
            raise
        self._committing = asyncio.create_task(self._commit_groups(), name="commits")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the file."""
        await self.close()

    async def close(self) -> None:
        """Close the file after the transactions that wait.  An open connection would keep the process from ending."""
        if self._committing is not None:
            committing, self._committing = self._committing, None
            self._arrived.set()
            with suppress(asyncio.CancelledError):
                await committing
        while self._connections:
            await self._connections.pop().thread.close()

    async def _connect(self, cache_kib: int, busy_s: float = 0.0) -> _Connection:
        connection = await _Connection.open(self._path, busy_s)
        self._connections.append(connection)
        await _use_write_ahead_log(connection.raw)
        for pragma in (
            "synchronous = FULL",
            "foreign_keys = ON",
            # A savepoint would otherwise write a journal of its own to a file.
            "temp_store = MEMORY",
            f"cache_size = -{cache_kib}",
            f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
        ):
            connection.raw.execute(f"PRAGMA {pragma}")
        return connection

    async def _migrate(self) -> None:
        scripts = read_scripts(self._schema, "migrations")
        newest = scripts[-1].number
        raw = self._writer.raw
        await _retry_busy(lambda: raw.execute("BEGIN EXCLUSIVE"))
        if raw.execute("PRAGMA application_id").fetchone()["application_id"] == BACKUP_ID:
            raw.execute("ROLLBACK")
            raise StoreError(
                f"{self._path} is a backup. Restore it: touchstone verifier restore, or router restore"
            )
        version = raw.execute("PRAGMA user_version").fetchone()["user_version"]
        if version > newest:
            raw.execute("ROLLBACK")
            raise StoreError(
                f"{self._path} has schema {version}, which is newer than schema {newest} of this version"
            )
        for script in scripts:
            if script.number > version:
                for statement in statements(script.text):
                    # In the thread: of a large file a statement takes seconds.
                    await self._writer.thread.execute_fetchall(statement)
        raw.execute(f"PRAGMA user_version = {newest}")
        await self._writer.commit()

    async def write(self, work: Work[T], *, of: str | None = None) -> T:  # noqa: ARG002
        """See `Database.write`.  One writer at a time: *of* makes no difference."""
        if self._committing is None or self._committing.done():
            raise UnavailableError("the database is closed")
        write: _Write[T] = _Write(work, asyncio.get_running_loop().create_future())
        self._waiting.append(write)
        self._arrived.set()
        return await write.done

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Tx]:
        """See `Database.read`."""
        if self._committing is None:
            raise UnavailableError("the database is closed")
        yield SqliteTx(self._reader.raw, self.stats, self._known)

    @asynccontextmanager
    async def scan(self) -> AsyncIterator[Tx]:
        """See `Database.scan`."""
        if self._committing is None:
            raise UnavailableError("the database is closed")
        yield _ScanTx(self._scanner.thread, self.stats)

    async def ahead_ms(self, wall_ms: Callable[[], int]) -> int:  # noqa: ARG002
        """See `Database.ahead_ms`: the file has no clock of its own."""
        return 0

    async def _commit_groups(self) -> None:
        """Do the work that waits, group by group, until the database is closed and none waits."""
        try:
            while self._committing is not None or self._waiting:
                await self._arrived.wait()
                self._arrived.clear()
                while self._waiting:
                    await self._commit_group()
        finally:
            # Nobody must wait for ever, also if the task is cancelled.
            for write in self._waiting:
                write.done.cancel()

    async def _commit_group(self) -> None:
        """Do the work that waits now in one transaction; each part of it succeeds or fails by itself."""
        group: list[_Done] = []
        try:
            await _retry_busy(lambda: self._writer.raw.execute("BEGIN IMMEDIATE"))
            while self._waiting and len(group) < _SHARED_MAX:
                write = self._waiting.popleft()
                # Whoever asked may have gone.
                if not write.done.cancelled():
                    try:
                        await self._do(write, group)
                    except (sqlite3.Error, StoreError):
                        # The transaction of all is lost, and this one waits for its end too.
                        group.append(_Done(write))
                        raise
            await self._writer.commit()
        except (sqlite3.Error, StoreError) as error:
            self._fail(group, error)
            return
        except asyncio.CancelledError:
            for done in group:
                done.write.done.cancel()
            raise
        self.stats.commits += 1
        self.stats.transactions += len(group)
        for done in group:
            self._known.add(done.once)
            if not done.write.done.done():
                done.write.done.set_result(done.result)

    async def _do(self, write: _Write[Any], group: list[_Done]) -> None:
        """Do one part of a group.  Raises if the transaction of the whole group is lost."""
        raw = self._writer.raw
        raw.execute("SAVEPOINT part")
        tx = SqliteTx(raw, self.stats, self._known)
        try:
            result = await write.work(tx)
            tx.run_last()
        except asyncio.CancelledError:
            write.done.cancel()
            raise
        except Exception as error:
            # Whatever it is, it is for whoever asked, and not for the others of the group.
            if not raw.in_transaction:
                # A full disk, for example, ends the whole transaction.
                raise error if isinstance(error, StoreError) else UnavailableError(str(error)) from error
            raw.execute("ROLLBACK TO part")
            raw.execute("RELEASE part")
            if not write.done.done():
                write.done.set_exception(error)
        else:
            raw.execute("RELEASE part")
            group.append(_Done(write, result, tx.done_once))

    def _fail(self, group: list[_Done], lost: sqlite3.Error | StoreError) -> None:
        with suppress(sqlite3.Error):
            if self._writer.raw.in_transaction:
                self._writer.raw.execute("ROLLBACK")
        waiting = [done.write for done in group]
        if not waiting:
            # The transaction could not even begin: whoever waits has waited long enough.
            waiting = list(self._waiting)
            self._waiting.clear()
        for write in waiting:
            if not write.done.done():
                write.done.set_exception(self._error(lost))

    def _error(self, error: sqlite3.Error | StoreError) -> StoreError:
        if isinstance(error, StoreError):
            return type(error)(f"{self._path}: {error}")
        return as_store_error(error, f"{self._path}: {error}")


class _Connection:
    """A connection whose statements run on the loop, with a thread for those that wait for the disk."""

    def __init__(self, thread: aiosqlite.Connection, raw: sqlite3.Connection) -> None:
        self.thread = thread
        self.raw = raw

    @classmethod
    async def open(cls, path: Path, busy_s: float) -> _Connection:
        raw: list[sqlite3.Connection] = []

        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(
                path,
                isolation_level=None,
                timeout=busy_s,
                cached_statements=_STATEMENTS,
                check_same_thread=False,
            )
            connection.row_factory = sqlite3.Row
            raw.append(connection)
            return connection

        thread = await aiosqlite.Connection(connect, iter_chunk_size=64)
        return cls(thread, raw[0])

    async def commit(self) -> None:
        """Commit, and wait for the disk in the thread."""
        await self.thread.execute_fetchall("COMMIT")


async def _retry_busy(work: Callable[[], object]) -> None:
    """Do *work*, and wait for other processes as long as they hold the lock, but not for ever."""
    give_up = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            work()
        except sqlite3.OperationalError as error:
            # The lower byte is the primary code, e.g. of SQLITE_BUSY_RECOVERY.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            await asyncio.sleep(_RETRY_S)
        else:
            return


async def _use_write_ahead_log(raw: sqlite3.Connection) -> None:
    """
    Set the journal mode.

    If another connection is about to write a file that has no write-ahead log yet, SQLite refuses this
    change at once, whatever its busy timeout is: two processes that open a new file together meet this.
    """
    # All rows are read: an open statement would hold a read lock.
    await _retry_busy(lambda: raw.execute("PRAGMA journal_mode = WAL").fetchall())


class SqliteTx:
    """Statements on the event loop."""

    def __init__(self, connection: sqlite3.Connection, stats: Stats, known: Known) -> None:
        self._cursor = connection.cursor()
        # A row of the library looks up each of its values by name.
        self._cursor.row_factory = None
        self._stats = stats
        self._known = known
        self.done_once: list[Key] = []
        """What was run by `once`: it is known when it is committed."""
        self._last: list[tuple[SQL, tuple[Any, ...]]] = []

    async def execute(self, sql: SQL, *parameters: Any) -> int:
        """See `Tx.execute`."""
        self._stats.statements += 1
        try:
            return self._cursor.execute(_text(sql), parameters).rowcount
        except sqlite3.Error as error:
            raise as_store_error(error) from None

    async def one(self, sql: SQL, *parameters: Any) -> Row | None:
        """See `Tx.one`."""
        rows = self._rows(sql, parameters)
        return rows[0] if rows else None

    async def all(self, sql: SQL, *parameters: Any) -> list[Row]:
        """See `Tx.all`."""
        return self._rows(sql, parameters)

    def _rows(self, sql: SQL, parameters: tuple[Any, ...]) -> list[Row]:
        self._stats.statements += 1
        try:
            # All rows, also of what has one: an UPDATE … RETURNING must run to its end.
            rows = self._cursor.execute(_text(sql), parameters).fetchall()
        except sqlite3.Error as error:
            raise as_store_error(error) from None
        names = [column[0] for column in self._cursor.description] if rows else []
        return [dict(zip(names, row, strict=True)) for row in rows]

    async def once(self, sql: SQL, *parameters: Any) -> None:
        """See `Tx.once`."""
        key = (_text(sql), parameters)
        if key not in self._known:
            await self.execute(sql, *parameters)
            self.done_once.append(key)

    async def last(self, sql: SQL, *parameters: Any) -> None:
        """See `Tx.last`."""
        self._last.append((sql, parameters))

    def run_last(self) -> None:
        """Run what was to be run at the end."""
        self._stats.statements += len(self._last)
        try:
            for sql, parameters in self._last:
                self._cursor.execute(_text(sql), parameters)
        except sqlite3.Error as error:
            raise as_store_error(error) from None

    async def alone(self) -> None:
        """See `Tx.alone`."""


class _ScanTx:
    """Reads of many rows, in a thread."""

    def __init__(self, thread: aiosqlite.Connection, stats: Stats) -> None:
        self._thread = thread
        self._stats = stats

    async def one(self, sql: SQL, *parameters: Any) -> Row | None:
        rows = await self.all(sql, *parameters)
        return rows[0] if rows else None

    async def all(self, sql: SQL, *parameters: Any) -> list[Row]:
        self._stats.statements += 1
        try:
            rows = await self._thread.execute_fetchall(_text(sql), parameters)
        except sqlite3.Error as error:
            raise as_store_error(error) from None
        return [dict(row) for row in rows]

    async def execute(self, _sql: SQL, *_parameters: Any) -> int:
        raise StoreError("this view is for reading only")

    async def last(self, _sql: SQL, *_parameters: Any) -> None:
        raise StoreError("this view is for reading only")

    async def once(self, _sql: SQL, *_parameters: Any) -> None:
        raise StoreError("this view is for reading only")

    async def alone(self) -> None:
        pass


def _text(sql: SQL) -> str:
    return sql if isinstance(sql, str) else sql.sqlite


def as_store_error(error: sqlite3.Error, message: str | None = None) -> StoreError:
    """Give the error of the store that an error of SQLite is."""
    text = message or str(error)
    if isinstance(error, sqlite3.IntegrityError):
        return ConflictError(text)
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNAVAILABLE:
        return UnavailableError(text)
    return StoreError(text)


def statements(script: str) -> list[str]:
    """Cut a script into its statements."""
    found = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    return found
