"""Whether the database can be used: one look a second, however many ask, so that an answer costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from verifier.store import events
from verifier.store.database import Database, UnavailableError

_EVERY_S: Final = 1.0


class Readiness:
    """
    The newest look at a database.

    Args:
        monotonic: A monotonic clock in seconds.
    """

    def __init__(self, db: Database, monotonic: Callable[[], float]) -> None:
        self._db = db
        self._monotonic = monotonic
        self._began = 0.0
        self._look: asyncio.Task[str | None] | None = None

    async def check(self) -> None:
        """
        Say that the database can be used, as it was less than a second ago.

        Raises:
            UnavailableError: it cannot.
        """
        now = self._monotonic()
        if self._look is None or (self._look.done() and now - self._began >= _EVERY_S):
            self._began = now
            self._look = asyncio.create_task(self._read(), name="readiness")
        # Whoever gives up takes the look from nobody else.
        why = await asyncio.shield(self._look)
        if why is not None:
            raise UnavailableError(why)

    async def _read(self) -> str | None:
        """Why the database cannot be used; `None` if it can."""
        try:
            async with self._db.read() as tx:
                await events.bounds(tx)
        except UnavailableError as error:
            return str(error)
        return None
