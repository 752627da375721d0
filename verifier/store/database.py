"""The protocol of a database: transactions that are durable once they end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from verifier.errors import StoreError

Row: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

RETRY_AFTER_S: Final = 2
"""After how many seconds a request is worth repeating that met an unavailable database."""


class ConflictError(StoreError):
    """A constraint of the database refused a row, for example because it exists already."""


class UnavailableError(StoreError):
    """
    The database cannot be used now: it is locked, full, restarting or overloaded.

    Nothing was changed, unless the connection was lost during the commit: then nobody knows.
    """

    code = "store.unavailable"


@dataclass(frozen=True)
class Statement:
    """A statement that the databases need in different words.  Both have the same parameters in the same order."""

    sqlite: str
    postgres: str


SQL: TypeAlias = str | Statement


@dataclass
class Stats:
    """What a database was asked for since it was opened."""

    statements: int = 0
    transactions: int = 0
    """Those that were committed."""
    commits: int = 0
    """Fewer than transactions, where several share one."""


class Tx(Protocol):
    """An open transaction.  A statement marks its parameters with ``?``."""

    async def execute(self, sql: SQL, /, *parameters: Any) -> int:
        """Run a statement, and return how many rows it changed.  Raises `ConflictError`."""
        ...

    async def one(self, sql: SQL, /, *parameters: Any) -> Row | None:
        """Give the first row, or `None`.  An INSERT … RETURNING may raise `ConflictError`."""
        ...

    async def all(self, sql: SQL, /, *parameters: Any) -> list[Row]:
        """Give all rows.  An INSERT … RETURNING may raise `ConflictError`."""
        ...

    async def last(self, sql: SQL, /, *parameters: Any) -> None:
        """
        Run a statement at the end of the transaction, in the order in which transactions are committed.

        So the numbers that it draws grow in that order, and a row that every transaction changes keeps
        the others waiting only for the commit.
        """
        ...

    async def once(self, sql: SQL, /, *parameters: Any) -> None:
        """
        Run a statement that changes nothing if it was committed earlier, and whose rows are never deleted.

        The database remembers what it has committed of late, and does not ask again.
        """
        ...

    async def alone(self) -> None:
        """
        Go on only if no other transaction writes at the same time.

        If others may, the work of the transaction is begun again, alone.  See `Database.write`.
        """
        ...


Work: TypeAlias = Callable[[Tx], Awaitable[T]]


class Database(Protocol):
    """A database.  The changes of `write` survive a crash once it has returned."""

    @property
    def stats(self) -> Stats:
        """What it was asked for."""
        ...

    @property
    def shared(self) -> bool:
        """Whether other processes of the same service may work on it at the same time."""
        ...

    async def write(self, work: Work[T], *, of: str | None = None) -> T:
        """
        Do *work* in a transaction: all of it is committed, or none if it raises.

        No other transaction writes at the same time, except as *of* says.

        Args:
            work: It may be done more than once before it is committed, so it must change nothing else.
                It awaits nothing but the transaction.
            of: A name, for example a node's id, if the work reads and changes only what belongs to it.
                Then work of other names may be done at the same time.

        Raises:
            UnavailableError: The database cannot be used now.
            StoreError: The database refused a statement.
        """
        ...

    def read(self) -> AbstractAsyncContextManager[Tx]:
        """
        Open a view of the committed rows, for statements that look at few rows.

        Each statement sees the newest committed rows.  Values that must be consistent with each other
        must be read in one statement or in `write`.
        """
        ...

    def scan(self) -> AbstractAsyncContextManager[Tx]:
        """Open a view as `read` does, for statements that look at many rows: other work goes on meanwhile."""
        ...

    async def ahead_ms(self, wall_ms: Callable[[], int]) -> int:
        """
        Give by how much the clock that all processes share is ahead of *wall_ms*, this process's, in milliseconds.

        Moments that one process writes and another compares are told by that clock.
        """
        ...
