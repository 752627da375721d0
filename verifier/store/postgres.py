"""
The `Database` protocol over PostgreSQL, for any number of processes on one database.

Transactions are READ COMMITTED.  What SQLite gives by having one writer, advisory locks give here: a transaction
excludes all others, or those of the same name alone (`Database.write`).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import asyncpg

from verifier.errors import StoreError
from verifier.store.database import SQL, ConflictError, Row, Stats, Tx, UnavailableError, Work
from verifier.store.known import Key, Known
from verifier.store.scripts import read_scripts

_CONNECTIONS: Final = 8
_ACQUIRE_S: Final = 10.0
_CONNECT_S: Final = 5.0
_COMMAND_S: Final = 60.0
_LOCK_WAIT: Final = "10s"
_IDLE: Final = "60s"
_ATTEMPTS: Final = 8
_RETRY_S: Final = 0.02

_LOCK_SPACE: Final = 0x746F7563
"""The first key of the advisory locks, so that other programs on the same server use others."""
_ALL, _LAST, _MIGRATION = 1, 2, 3

_AGAIN: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InvalidCachedStatementError,
    # The schema was changed by a newer process meanwhile.
    asyncpg.OutdatedSchemaCacheError,
)
_UNAVAILABLE: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # A statement on a connection that is being lost.
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    # No lock in time, or a database that is closed to connections.
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.QueryCanceledError,
    asyncpg.CannotConnectNowError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.PostgresSystemError,
    ConnectionError,
    TimeoutError,
    OSError,
)

T = TypeVar("T")


class _NotAloneError(Exception):
    """The work must be done alone, and the transaction is not."""


class PostgresDatabase:
    """
    A PostgreSQL database, to be used as an async context manager.

    Args:
        url: ``postgresql://USER@HOST/DATABASE``; what it leaves out comes from the usual PG… variables.
        schema: The package with the scripts in ``postgres`` that make its tables.  They are in a schema of the
            database that is named after it.
        connections: The most connections that are open at a time.
    """

    shared = True

    def __init__(self, url: str, *, schema: str = "verifier.store", connections: int = _CONNECTIONS) -> None:
        self._url = url
        self._package = schema
        self._schema = schema_name(schema)
        self._connections = connections
        self.stats = Stats()
        self._known = Known()
        self._pool: asyncpg.Pool | None = None

    @property
    def name(self) -> str:
        """The database as it may be shown: without a password."""
        return shown_name(self._url)

    async def __aenter__(self) -> Self:
        """
        Connect, and bring the schema up to date.

        Raises:
            StoreError: The server cannot be reached or used, or a newer version has changed the schema.
        """
        try:
            with self._as_store_errors():
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=1,
                    max_size=self._connections,
                    timeout=_CONNECT_S,
                    command_timeout=_COMMAND_S,
                    reset=_leave_as_it_is,
                    server_settings={
                        "application_name": self._schema,
                        "search_path": self._schema,
                        "lock_timeout": _LOCK_WAIT,
                        "idle_in_transaction_session_timeout": _IDLE,
                    },
                )
                async with self._connection() as connection:
                    await self._migrate(connection)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections, and end the statements that still run after a while."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        try:
            async with asyncio.timeout(_CONNECT_S):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    async def _migrate(self, connection: asyncpg.Connection) -> None:
        scripts = read_scripts(self._package, "postgres")
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK_SPACE}, {_MIGRATION})")
            await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{self._schema}"')
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL, oldest BIGINT NOT NULL)"
            )
            row = await connection.fetchrow("SELECT version, oldest FROM schema_version")
            version, oldest = (0, 0) if row is None else (row["version"], row["oldest"])
            newest = scripts[-1].number
            if oldest > newest:
                raise StoreError(
                    f"{self.name} has schema {version}, which versions of schema {oldest} and later can use;"
                    f" this version has schema {newest}"
                )
            if version >= newest:
                return
            for script in scripts:
                if script.number > version:
                    await connection.execute(script.text)
                    oldest = max(oldest, script.oldest)
            await connection.execute("DELETE FROM schema_version")
            await connection.execute("INSERT INTO schema_version VALUES ($1, $2)", newest, oldest)

    async def write(self, work: Work[T], *, of: str | None = None) -> T:
        """See `Database.write`.  Work that meets a deadlock is done again."""
        for attempt in range(_ATTEMPTS):
            try:
                with self._as_store_errors(again=True):
                    return await self._write_once(work, of)
            except _NotAloneError:
                of = None
            except _AGAIN as error:
                if attempt + 1 == _ATTEMPTS:
                    raise UnavailableError(f"{self.name}: {error}") from None
                await asyncio.sleep(random.uniform(0, _RETRY_S * 2**attempt))
        raise UnavailableError(f"{self.name}: too many transactions change the same rows")

    async def _write_once(self, work: Work[T], of: str | None) -> T:
        async with self._connection() as connection:
            try:
                await connection.execute(_begin(of))
                tx = PostgresTx(connection, self.stats, self._known, is_alone=of is None)
                result = await work(tx)
                await tx.run_last()
                await _commit(connection)
                self.stats.commits += 1
                self.stats.transactions += 1
                self._known.add(tx.done_once)
            except BaseException:
                await _roll_back(connection)
                raise
            return result

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Tx]:
        """See `Database.read`."""
        with self._as_store_errors():
            async with self._connection() as connection:
                yield PostgresTx(connection, self.stats, self._known, is_alone=False)

    def scan(self) -> Any:
        """See `Database.scan`: the same as `read`, because the server does the work."""
        return self.read()

    async def ahead_ms(self, wall_ms: Callable[[], int]) -> int:
        """See `Database.ahead_ms`."""
        async with self.read() as tx:
            before = wall_ms()
            row = await tx.one("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms")
            after = wall_ms()
        assert row is not None
        # The server read its clock in the middle of the trip.
        return int(row["now_ms"]) - (before + after) // 2

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        if self._pool is None:
            raise UnavailableError("the database is closed")
        try:
            connection = await self._pool.acquire(timeout=_ACQUIRE_S)
        except TimeoutError:
            raise UnavailableError(f"{self.name}: no connection was free within {_ACQUIRE_S:.0f} s") from None
        try:
            yield connection
        finally:
            await self._pool_release(connection)

    async def _pool_release(self, connection: asyncpg.Connection) -> None:
        if self._pool is None:
            connection.terminate()
            return
        # A connection that fails here is given up, and whatever was done on it is done.
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
            await asyncio.shield(self._pool.release(connection))

    @contextmanager
    def _as_store_errors(self, *, again: bool = False) -> Iterator[None]:
        """As `as_store_errors`; the work is done again only if *again*."""
        try:
            with as_store_errors(self.name):
                yield
        except _AGAIN as error:
            if again:
                raise
            raise UnavailableError(f"{self.name}: {error}") from None


def shown_name(url: str) -> str:
    """Give the URL of a database as it may be shown: without a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def schema_name(package: str) -> str:
    """Give the schema of the database that holds the tables of *package*."""
    return f"touchstone_{package.partition('.')[0]}"


@contextmanager
def as_store_errors(name: str) -> Iterator[None]:
    """Turn the driver's errors into `StoreError`, except those after which the work is to be done again."""
    try:
        yield
    except _AGAIN:
        raise
    except asyncpg.IntegrityConstraintViolationError as error:
        raise ConflictError(str(error)) from None
    except _UNAVAILABLE as error:
        raise UnavailableError(f"{name}: {error or type(error).__name__}") from None
    except asyncpg.PostgresError as error:
        raise StoreError(f"{name}: {error}") from None


class PostgresTx:
    """Statements on one connection."""

    def __init__(self, connection: asyncpg.Connection, stats: Stats, known: Known, *, is_alone: bool) -> None:
        self._connection = connection
        self._stats = stats
        self._known = known
        self.done_once: list[Key] = []
        """What was run by `once`: it is known when it is committed."""
        self._is_alone = is_alone
        self._last: list[tuple[SQL, tuple[Any, ...]]] = []

    async def execute(self, sql: SQL, *parameters: Any) -> int:
        """See `Tx.execute`."""
        self._stats.statements += 1
        try:
            status = await self._connection.execute(_text(sql), *parameters)
        except asyncpg.IntegrityConstraintViolationError as error:
            raise ConflictError(str(error)) from None
        # "UPDATE 3", "INSERT 0 1"
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def one(self, sql: SQL, *parameters: Any) -> Row | None:
        """See `Tx.one`."""
        self._stats.statements += 1
        try:
            row = await self._connection.fetchrow(_text(sql), *parameters)
        except asyncpg.IntegrityConstraintViolationError as error:
            raise ConflictError(str(error)) from None
        return None if row is None else dict(row)

    async def all(self, sql: SQL, *parameters: Any) -> list[Row]:
        """See `Tx.all`."""
        self._stats.statements += 1
        try:
            rows = await self._connection.fetch(_text(sql), *parameters)
        except asyncpg.IntegrityConstraintViolationError as error:
            raise ConflictError(str(error)) from None
        return [dict(row) for row in rows]

    async def once(self, sql: SQL, *parameters: Any) -> None:
        """See `Tx.once`."""
        key = (_text(sql), parameters)
        if key not in self._known:
            await self.execute(sql, *parameters)
            self.done_once.append(key)

    async def last(self, sql: SQL, *parameters: Any) -> None:
        """See `Tx.last`."""
        self._last.append((sql, parameters))

    async def run_last(self) -> None:
        """Run what was to be run at the end; from here on no other transaction is committed before this one."""
        if not self._last:
            return
        await self._connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK_SPACE}, {_LAST})")
        for sql, parameters in self._last:
            await self.execute(sql, *parameters)

    async def alone(self) -> None:
        """See `Tx.alone`."""
        if not self._is_alone:
            raise _NotAloneError


def _begin(of: str | None) -> str:
    """Open a transaction and take its locks, in one trip to the server."""
    if of is None:
        return f"BEGIN; SELECT pg_advisory_xact_lock({_LOCK_SPACE}, {_ALL})"
    # Two names with the same 63 bits only wait for each other.
    key = int.from_bytes(hashlib.sha256(of.encode()).digest()[:8], "big") >> 1
    return f"BEGIN; SELECT pg_advisory_xact_lock_shared({_LOCK_SPACE}, {_ALL}); SELECT pg_advisory_xact_lock({key})"


async def _commit(connection: asyncpg.Connection) -> None:
    if await connection.execute("COMMIT") != "COMMIT":
        # The server rolls back a transaction in which a statement has failed, and calls that no error.
        raise StoreError("a statement of the transaction had failed")


async def _roll_back(connection: asyncpg.Connection) -> None:
    """End the transaction, if the connection still has one."""
    if connection.is_closed() or not connection.is_in_transaction():
        return
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
        await asyncio.shield(connection.execute("ROLLBACK"))


async def _leave_as_it_is(_connection: asyncpg.Connection) -> None:
    """Nothing is set on a connection that the next user would meet, so nothing must be set back."""


@lru_cache(maxsize=1024)
def _numbered(sql: str) -> str:
    """Number the parameters: ``?`` becomes ``$1`` and so on.  No statement has a question mark in a text."""
    first, *others = sql.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(others, 1))


def _text(sql: SQL) -> str:
    return _numbered(sql if isinstance(sql, str) else sql.postgres)
