"""A whole PostgreSQL database in one transaction (`verifier.store.whole`)."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, Final

import asyncpg

from verifier.errors import StoreError
from verifier.store.database import Stats
from verifier.store.known import Known
from verifier.store.postgres import PostgresTx, as_store_errors, schema_name, shown_name
from verifier.store.whole import (
    FIRST_PAGE,
    Link,
    NoDatabaseError,
    Page,
    Table,
    Use,
    Values,
    encode_rows,
    next_page_size,
)

_CONNECT_S: Final = 10.0
_LOCK_WAIT: Final = "10s"
_numbers = itertools.count()
_VERSIONS: Final = "schema_version"
_TABLES: Final = (
    "SELECT c.oid, c.relname FROM pg_class c WHERE c.relnamespace = $1::regnamespace AND c.relkind = 'r'"
)
_COLUMNS: Final = (
    "SELECT attname, format_type(atttypid, atttypmod) AS kind, attidentity::text AS identity FROM pg_attribute"
    " WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
)
_CONSTRAINTS: Final = (
    "SELECT c.contype::text AS kind, p.relname AS parent,"
    " ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY k(n, i)"
    "  JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.n ORDER BY k.i) AS columns,"
    " ARRAY(SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY k(n, i)"
    "  JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.n ORDER BY k.i) AS parent_columns"
    " FROM pg_constraint c LEFT JOIN pg_class p ON p.oid = c.confrelid"
    " WHERE c.conrelid = $1 AND c.contype IN ('p', 'f') ORDER BY c.oid"
)


@asynccontextmanager
async def open_postgres(url: str, package: str, use: Use) -> AsyncIterator[PostgresWhole]:
    """
    Open a database that has the tables of *package*, in one transaction.

    Raises:
        StoreError: The server cannot be used, or the database has no such tables.
    """
    name, schema = shown_name(url), schema_name(package)
    with _errors(name):
        connection = await asyncpg.connect(
            url,
            timeout=_CONNECT_S,
            server_settings={
                "application_name": f"{schema} maintenance",
                "search_path": schema,
                "lock_timeout": _LOCK_WAIT,
                "idle_in_transaction_session_timeout": "0",
                "statement_timeout": "0",
            },
        )
    try:
        with _errors(name):
            whole = await _begin(connection, name, schema, use)
        yield whole
    finally:
        # What was not committed is rolled back.
        connection.terminate()


async def _begin(connection: asyncpg.Connection, name: str, schema: str, use: Use) -> PostgresWhole:
    if await connection.fetchval("SELECT to_regclass($1)", f"{schema}.{_VERSIONS}") is None:
        raise NoDatabaseError(f"{name} has no tables of this service")
    tables = await _describe(connection, schema)
    isolation = "read_committed" if use is Use.WRITE else "repeatable_read"
    transaction = connection.transaction(isolation=isolation, readonly=use is not Use.WRITE)
    await transaction.start()
    if use is not Use.READ:
        # Before the first statement, which takes the snapshot: so nobody has begun to write by then.
        mode = "ACCESS EXCLUSIVE" if use is Use.WRITE else "SHARE"
        await connection.execute(f"LOCK TABLE {_listed([*tables, _VERSIONS])} IN {mode} MODE")
    version = await connection.fetchval(f"SELECT version FROM {_VERSIONS}")
    return PostgresWhole(connection, transaction, name, version or 0, tables)


class PostgresWhole:
    """See `Whole`."""

    kind = "postgresql"

    def __init__(
        self,
        connection: asyncpg.Connection,
        transaction: Any,
        name: str,
        version: int,
        tables: Mapping[str, Table],
    ) -> None:
        self._connection = connection
        self._transaction = transaction
        self.name = name
        self.version = version
        self.tables = tables
        self.tx = PostgresTx(connection, Stats(), Known(), is_alone=True)

    async def pages(self, table: Table) -> AsyncGenerator[Page, None]:
        """See `Whole.pages`."""
        # The order of SQLite, whatever the collation of the database or the column is.
        order = ", ".join(f'"{each}"{_COLLATION if each in table.text else ""}' for each in table.key)
        # A name of its own: prepared statements on a name must not meet other columns.
        name = f"whole_{next(_numbers)}"
        with self._errors():
            await self._connection.execute(
                f'DECLARE {name} NO SCROLL CURSOR FOR SELECT {_listed(table.columns)} FROM "{table.name}" ORDER BY {order}'
            )
        try:
            size = FIRST_PAGE
            while True:
                with self._errors():
                    found = await self._connection.fetch(f"FETCH {size} FROM {name}")
                if not found:
                    return
                rows: list[Values] = [tuple(row) for row in found]
                encoded = encode_rows(rows)
                yield Page(rows, encoded)
                size = next_page_size(len(rows), len(encoded))
        finally:
            # An open cursor would keep the table from being emptied.  After an error it is closed already.
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
                await self._connection.execute(f"CLOSE {name}")

    async def insert(self, table: Table, rows: Sequence[Values]) -> None:
        """See `Whole.insert`."""
        with self._errors():
            try:
                await self._connection.copy_records_to_table(table.name, records=rows, columns=table.columns)
            except (asyncpg.DataError, TypeError, ValueError) as error:
                raise StoreError(f"{self.name} cannot take a row of {table.name}: {error}") from None

    async def clear(self) -> None:
        """See `Whole.clear`."""
        with self._errors():
            await self._connection.execute(f"TRUNCATE {_listed(list(self.tables))}")

    async def counters(self) -> dict[str, int]:
        """See `Whole.counters`."""
        found = {}
        with self._errors():
            for name, table in self.tables.items():
                if table.counter is not None:
                    sequence = await self._sequence(table)
                    row = await self._connection.fetchrow(f"SELECT last_value, is_called FROM {sequence}")
                    found[name] = row["last_value"] if row["is_called"] else 0
        return found

    async def set_counter(self, table: Table, drawn: int) -> None:
        """See `Whole.set_counter`."""
        with self._errors():
            highest = await self._connection.fetchval(
                f'SELECT coalesce(max("{table.counter}"), 0) FROM "{table.name}"'
            )
            last = max(drawn, highest)
            await self._connection.execute(
                "SELECT setval($1::text::regclass, $2, $3)",
                await self._sequence(table),
                max(last, 1),
                last > 0,
            )

    async def _sequence(self, table: Table) -> str:
        name = await self._connection.fetchval(
            "SELECT pg_get_serial_sequence($1, $2)", f'"{table.name}"', table.counter
        )
        return str(name)

    async def now_ms(self) -> int:
        """See `Whole.now_ms`."""
        with self._errors():
            now = await self._connection.fetchval(
                "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
            )
        return int(now)

    async def integrity(self) -> list[str]:
        """See `Whole.integrity`: PostgreSQL checks pages as it reads them, if it was set up with checksums."""
        return []

    async def commit(self) -> None:
        """See `Whole.commit`."""
        with self._errors():
            await self.tx.run_last()
            await self._transaction.commit()

    def _errors(self) -> AbstractContextManager[None]:
        return _errors(self.name)


_COLLATION: Final = ' COLLATE "C"'


@contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        with as_store_errors(name):
            yield
    except asyncpg.PostgresError as error:
        raise StoreError(f"{name}: {error}") from None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


async def _describe(connection: asyncpg.Connection, schema: str) -> dict[str, Table]:
    """Describe the tables from the catalogue."""
    tables = {}
    for row in await connection.fetch(f"{_TABLES} ORDER BY c.relname", schema):
        name = row["relname"]
        if name == _VERSIONS:
            continue
        columns = await connection.fetch(_COLUMNS, row["oid"])
        constraints = await connection.fetch(_CONSTRAINTS, row["oid"])
        key = tuple(next((each["columns"] for each in constraints if each["kind"] == "p"), ()))
        tables[name] = Table(
            name=name,
            key=key,
            others=tuple(sorted(each["attname"] for each in columns if each["attname"] not in key)),
            text=frozenset(each["attname"] for each in columns if each["kind"] == "text"),
            links=tuple(
                Link(tuple(each["columns"]), each["parent"], tuple(each["parent_columns"]))
                for each in constraints
                if each["kind"] == "f"
            ),
            counter=next((each["attname"] for each in columns if each["identity"]), None),
        )
    return tables
