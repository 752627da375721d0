"""What the store needs of a database: transactions that are durable once they end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

from verifier.errors import StoreError

Row: TypeAlias = Mapping[str, Any]


class ConflictError(StoreError):
    """A constraint refused: something that may be there once is there already."""


class Tx(Protocol):
    """An open transaction.  Parameters are marked ``?``."""

    async def execute(self, sql: str, *parameters: Any) -> int:
        """Run a statement and return how many rows it changed.  Raises `ConflictError`."""
        ...

    async def one(self, sql: str, *parameters: Any) -> Row | None:
        """The first row, or `None`.  Raises `ConflictError` for an INSERT … RETURNING."""
        ...

    async def all(self, sql: str, *parameters: Any) -> list[Row]:
        """All rows."""
        ...


class Database(Protocol):
    """A database.  What `write` did survives a crash once its block has ended."""

    def write(self) -> AbstractAsyncContextManager[Tx]:
        """A serialised transaction, committed at the end, rolled back on any exception."""
        ...

    def read(self) -> AbstractAsyncContextManager[Tx]:
        """
        What was committed, to read from.

        Each statement sees the newest; what must fit together belongs into one statement or
        into `write`.
        """
        ...
