"""The protocol of a database: transactions that are durable once they end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

from verifier.errors import StoreError

Row: TypeAlias = Mapping[str, Any]


class ConflictError(StoreError):
    """A constraint of the database refused a row, for example because it exists already."""


class Tx(Protocol):
    """An open transaction.  A statement marks its parameters with ``?``."""

    async def execute(self, sql: str, *parameters: Any) -> int:
        """Run a statement, and return how many rows it changed.  Raises `ConflictError`."""
        ...

    async def one(self, sql: str, *parameters: Any) -> Row | None:
        """Give the first row, or `None`.  An INSERT … RETURNING may raise `ConflictError`."""
        ...

    async def all(self, sql: str, *parameters: Any) -> list[Row]:
        """Give all rows.  An INSERT … RETURNING may raise `ConflictError`."""
        ...


class Database(Protocol):
    """A database.  The changes of a `write` block survive a crash once the block has ended."""

    def write(self) -> AbstractAsyncContextManager[Tx]:
        """Open a serialised transaction.  It is committed at the end, and rolled back on any exception."""
        ...

    def read(self) -> AbstractAsyncContextManager[Tx]:
        """
        Open a view of the committed rows, for reading only.

        Each statement sees the newest committed rows.  Values that must be consistent with each other
        must be read in one statement or in `write`.
        """
        ...
