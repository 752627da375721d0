"""A whole SQLite database in one transaction (`verifier.store.whole`)."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from verifier.errors import StoreError
from verifier.store.database import Stats
from verifier.store.known import Known
from verifier.store.scripts import read_scripts
from verifier.store.sqlite import SqliteTx, as_store_error, statements
from verifier.store.whole import (
    FIRST_PAGE,
    OWN_PREFIX,
    ROWID,
    Link,
    NoDatabaseError,
    Page,
    Table,
    Use,
    Values,
    encode_rows,
    next_page_size,
)

_BUSY_S: Final = 10.0
_CACHE_KIB: Final = 64 * 1024
_MAX_FAULTS: Final = 20
_COUNTER: Final = re.compile(r"\bAUTOINCREMENT\b", re.IGNORECASE)
_COMMENT: Final = re.compile(r"--[^\n]*")


@asynccontextmanager
async def open_sqlite(path: Path, use: Use) -> AsyncIterator[SqliteWhole]:
    """
    Open a database file that exists, in one transaction.

    Raises:
        StoreError: It cannot be read, or others hold its lock.
    """
    connection = _connect(path)
    try:
        with _errors(path):
            whole = _begin(connection, path, use)
        yield whole
    finally:
        # What was not committed is rolled back.
        connection.close()


@asynccontextmanager
async def new_sqlite(path: Path, package: str) -> AsyncIterator[SqliteWhole]:
    """
    Make a database file with the tables of *package* and no rows, for a copy; or in memory, if *path* says so.

    It is written without a journal: a file that is not complete is of no use in any case.
    """
    with _errors(path):
        connection = sqlite3.connect(path, isolation_level=None)
    try:
        with _errors(path):
            for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            connection.execute("BEGIN IMMEDIATE")
            scripts = read_scripts(package, "migrations")
            for script in scripts:
                for statement in statements(script.text):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {scripts[-1].number}")
            whole = SqliteWhole(connection, path)
        yield whole
    finally:
        connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise NoDatabaseError(f"{path} does not exist")
    # Never made anew.
    uri = f"file:{quote(str(path.absolute()))}?mode=rw"
    with _errors(path):
        return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_S)


def _begin(connection: sqlite3.Connection, path: Path, use: Use) -> SqliteWhole:
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", f"cache_size = -{_CACHE_KIB}"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    if use is Use.WRITE:
        # Rows come in an order that the keys allow, and all of them are checked at the end.
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN" if use is Use.READ else "BEGIN IMMEDIATE")
    if use is not Use.WRITE:
        connection.execute("PRAGMA query_only = ON")
    return SqliteWhole(connection, path)


class SqliteWhole:
    """See `Whole`."""

    kind = "sqlite"

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        connection.row_factory = sqlite3.Row
        self.connection = connection
        self.name = str(path)
        # The first read takes the snapshot.
        self.version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        self.tables: Mapping[str, Table] = {table.name: table for table in _describe(connection)}
        self.tx = SqliteTx(connection, Stats(), Known())

    async def pages(self, table: Table) -> AsyncGenerator[Page, None]:
        """See `Whole.pages`."""
        columns, order = _listed(table.columns), _listed(table.key)
        with self._errors():
            cursor = self.connection.execute(f'SELECT {columns} FROM "{table.name}" ORDER BY {order}')
        cursor.row_factory = None
        size = FIRST_PAGE
        while True:
            with self._errors():
                rows: list[Values] = cursor.fetchmany(size)
            if not rows:
                return
            encoded = encode_rows(rows)
            yield Page(rows, encoded)
            size = next_page_size(len(rows), len(encoded))

    async def insert(self, table: Table, rows: Sequence[Values]) -> None:
        """See `Whole.insert`."""
        marks = ", ".join("?" for _ in table.columns)
        with self._errors():
            self.connection.executemany(
                f'INSERT INTO "{table.name}" ({_listed(table.columns)}) VALUES ({marks})', rows
            )

    async def clear(self) -> None:
        """See `Whole.clear`."""
        with self._errors():
            for name in self.tables:
                self.connection.execute(f'DELETE FROM "{name}"')

    async def counters(self) -> dict[str, int]:
        """See `Whole.counters`."""
        if all(table.counter is None for table in self.tables.values()):
            # Without one, SQLite makes no table of counters.
            return {}
        with self._errors():
            rows = self.connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall()
        return {name: seq for name, seq in rows if name in self.tables}

    async def set_counter(self, table: Table, drawn: int) -> None:
        """See `Whole.set_counter`."""
        with self._errors():
            (highest,) = self.connection.execute(
                f'SELECT coalesce(max("{table.counter}"), 0) FROM "{table.name}"'
            ).fetchone()
            self.connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table.name,))
            self.connection.execute(
                "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table.name, max(drawn, highest))
            )

    async def now_ms(self) -> int:
        """See `Whole.now_ms`: all that use the file are on one machine."""
        return time.time_ns() // 1_000_000

    async def integrity(self) -> list[str]:
        """See `Whole.integrity`: damaged pages and indexes, and rows that break a constraint of their table."""
        try:
            rows = self.connection.execute(f"PRAGMA integrity_check({_MAX_FAULTS})").fetchall()
        except sqlite3.DatabaseError as error:
            return [str(error)]
        return [row[0] for row in rows if row[0] != "ok"]

    async def commit(self) -> None:
        """See `Whole.commit`."""
        with self._errors():
            self.tx.run_last()
            broken = self.connection.execute("PRAGMA foreign_key_check").fetchone()
            if broken is not None:
                raise StoreError(
                    f"{self.name}: a row of {broken[0]} refers to a row of {broken[2]} that is missing"
                )
            self.connection.execute("COMMIT")

    def _errors(self) -> AbstractContextManager[None]:
        return _errors(Path(self.name))


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise as_store_error(error, f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise StoreError(f"{path}: it holds text that is not UTF-8, so it is damaged") from None


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


def _describe(connection: sqlite3.Connection) -> Iterator[Table]:
    """Describe the tables from the schema."""
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name"
    ).fetchall()
    for name, sql in rows:
        if name.startswith(("sqlite_", OWN_PREFIX)):
            continue
        columns = connection.execute(f'PRAGMA table_info("{name}")').fetchall()
        keyed = sorted((pk, column) for _, column, _, _, _, pk in columns if pk)
        key = tuple(column for _, column in keyed) or (ROWID,)
        yield Table(
            name=name,
            key=key,
            others=tuple(sorted(column for _, column, _, _, _, pk in columns if not pk)),
            text=frozenset(column for _, column, kind, _, _, _ in columns if kind == "TEXT"),
            links=tuple(_links(connection, name)),
            counter=key[0] if _COUNTER.search(_COMMENT.sub("", sql)) else None,
        )


def _links(connection: sqlite3.Connection, name: str) -> Iterator[Link]:
    found: dict[int, list[tuple[str, str, str]]] = {}
    for number, _, parent, column, to, *_ in connection.execute(f'PRAGMA foreign_key_list("{name}")'):
        found.setdefault(number, []).append((parent, column, to))
    for parts in found.values():
        yield Link(tuple(column for _, column, _ in parts), parts[0][0], tuple(to for _, _, to in parts))
