"""
A whole database in one transaction: its tables as its schema describes them, their rows in order, and digests.

Backups, restores and migrations copy by it, so no list of tables or columns is kept by hand.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import msgspec
from msgspec import Struct

from verifier.errors import StoreError
from verifier.store.database import Tx

ROWID: Final = "rowid"
"""In SQLite, the key of a table without a primary key: the order in which its rows came."""
OWN_PREFIX: Final = "touchstone_"
"""Tables with such names are about the file itself, and are not copied."""
_PAGE_BYTES: Final = 4 << 20
FIRST_PAGE: Final = 64
_MAX_PAGE: Final = 10_000

Values: TypeAlias = tuple[Any, ...]


class NoDatabaseError(StoreError):
    """There is no such file, or the database has no tables of the service."""


class Use(enum.Enum):
    """What a whole database is opened for."""

    READ = "read"
    """To read one consistent state of it while others write."""
    FREEZE = "freeze"
    """To read it while nobody writes."""
    WRITE = "write"
    """To change it, alone."""


@dataclass(frozen=True)
class Link:
    """A foreign key."""

    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as the schema describes it."""

    name: str
    key: tuple[str, ...]
    """The columns of its primary key."""
    others: tuple[str, ...]
    """All other columns, by name."""
    text: frozenset[str] = frozenset()
    """The columns that hold text."""
    links: tuple[Link, ...] = ()
    counter: str | None = None
    """The column whose numbers the database draws and never draws twice."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in the order in which they are copied."""
        return self.key + self.others

    def is_like(self, other: Table) -> bool:
        """Whether its rows can be copied to *other* and back."""
        same_key = self.key == other.key or (
            len(self.key) == len(other.key) and (ROWID,) in (self.key, other.key)
        )
        return same_key and self.others == other.others


class TableDigest(Struct, frozen=True):
    """What a table holds."""

    rows: int
    sha256: str
    """Over the rows by primary key; each is a MessagePack array of its values in their shortest form, key first."""


class Page(NamedTuple):
    """Some rows of a table."""

    rows: list[Values]
    encoded: bytes
    """As digests are computed over them."""


class Whole(Protocol):
    """A database in one transaction."""

    @property
    def name(self) -> str:
        """As it may be shown: without a password."""
        ...

    @property
    def kind(self) -> str:
        """``sqlite`` or ``postgresql``."""
        ...

    @property
    def version(self) -> int:
        """The number of its schema."""
        ...

    @property
    def tables(self) -> Mapping[str, Table]:
        """Its tables, by name."""
        ...

    @property
    def tx(self) -> Tx:
        """The transaction, for statements of the usual form."""
        ...

    def pages(self, table: Table) -> AsyncGenerator[Page, None]:
        """Give the rows of a table by primary key: some at a time, so that memory is bounded."""
        ...

    async def insert(self, table: Table, rows: Sequence[Values]) -> None:
        """Insert rows.  Raises `StoreError`."""
        ...

    async def clear(self) -> None:
        """Delete every row of every table."""
        ...

    async def counters(self) -> dict[str, int]:
        """Give the newest number that each counter drew, by table."""
        ...

    async def set_counter(self, table: Table, drawn: int) -> None:
        """Let a counter go on above *drawn*, and above every number in its table."""
        ...

    async def now_ms(self) -> int:
        """Milliseconds since 1970, by the clock that its users share."""
        ...

    async def integrity(self) -> list[str]:
        """Give what the database itself finds damaged."""
        ...

    async def commit(self) -> None:
        """Make every change durable.  Without it, nothing has changed."""
        ...


_encoder: Final = msgspec.msgpack.Encoder()


def encode_rows(rows: Iterable[Values]) -> bytes:
    """Encode rows as digests are computed over them."""
    return b"".join(map(_encoder.encode, rows))


def next_page_size(size: int, encoded: int) -> int:
    """Say how many rows to read next, after *size* rows had *encoded* bytes: about 4 MiB."""
    fitting = size * _PAGE_BYTES // max(encoded, 1)
    # Rows differ: the next ones may be much longer.
    return max(1, min(fitting, size * 4, _MAX_PAGE))


@dataclass
class Digester:
    """Computes a `TableDigest` page by page."""

    rows: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)

    def add(self, page: Page) -> None:
        """Take in the next rows."""
        self.rows += len(page.rows)
        self._hash.update(page.encoded)

    def result(self) -> TableDigest:
        """Give the digest of the rows so far."""
        return TableDigest(self.rows, self._hash.hexdigest())


async def digest_table(whole: Whole, table: Table) -> TableDigest:
    """Compute the digest of a table."""
    digester = Digester()
    async for page in whole.pages(table):
        digester.add(page)
    return digester.result()


async def digest_all(whole: Whole) -> dict[str, TableDigest]:
    """Compute the digests of all tables, by name."""
    return {name: await digest_table(whole, whole.tables[name]) for name in sorted(whole.tables)}


async def copy_all(source: Whole, target: Whole) -> dict[str, TableDigest]:
    """
    Copy all rows to a database without rows, and let its counters go on above them.

    Returns:
        The digests of what was read, by table.

    Raises:
        StoreError: The two have different tables, or the target refuses a row.
    """
    check_same_form(source, target)
    digests = {}
    for name in in_order(target.tables):
        digester = Digester()
        async for page in source.pages(source.tables[name]):
            digester.add(page)
            await target.insert(target.tables[name], page.rows)
        digests[name] = digester.result()
    drawn = await source.counters()
    for name, table in target.tables.items():
        if table.counter is not None:
            await target.set_counter(table, drawn.get(name, 0))
    return digests


async def verify_all(whole: Whole, expected: Mapping[str, TableDigest]) -> None:
    """
    Read everything again, and compare it with its digests.

    Raises:
        StoreError: A table holds something else.
    """
    found = await digest_all(whole)
    if wrong := sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    ):
        raise StoreError(f"{whole.name}: {', '.join(wrong)} is not what was written")


def check_same_form(source: Whole, target: Whole) -> None:
    """
    Check that rows can be copied from one to the other.

    Raises:
        StoreError: Their schemas, tables or columns differ.
    """
    if source.version != target.version:
        raise StoreError(
            f"{source.name} has schema {source.version}, and {target.name} has schema {target.version}."
            " Start the service once with this version on the older one, or use the version that wrote the newer one"
        )
    for name in sorted(source.tables.keys() | target.tables.keys()):
        here, there = source.tables.get(name), target.tables.get(name)
        if here is None or there is None or not here.is_like(there):
            raise StoreError(f"{source.name} and {target.name} differ in table {name}")


def in_order(tables: Mapping[str, Table]) -> list[str]:
    """
    Order tables so that each comes after those that its rows refer to.

    Raises:
        StoreError: Tables refer to each other in a circle.
    """
    left = {
        name: {link.parent for link in table.links} & tables.keys() - {name} for name, table in tables.items()
    }
    ordered: list[str] = []
    while left:
        free = sorted(name for name, parents in left.items() if not parents - set(ordered))
        if not free:
            raise StoreError(f"tables refer to each other in a circle: {', '.join(sorted(left))}")
        ordered += free
        for name in free:
            del left[name]
    return ordered
