"""
Writes what came of lines: each with its receipt, in one transaction, soon after it came.

Where a router makes no receipts, or keeps none, results are written by themselves.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

import structlog

from router.model.clock import Clock
from router.state.receipt_keeper import ReceiptKeeper
from router.store import jobs
from router.store.jobs import LineResult
from verifier.errors import StoreError
from verifier.store.database import Database

_SOON_S: Final = 0.05
"""Results that come within this time share a transaction."""
_AGAIN_S: Final = 1.0
_AT_ONCE: Final = 500

_log = structlog.get_logger("router")


class LineWriter:
    """
    Writes results of lines.

    Args:
        db: The store.
        keeper: Of the router's receipts; `None` if there are none.
        clock: The router's.
    """

    def __init__(self, db: Database, keeper: ReceiptKeeper | None, clock: Clock) -> None:
        self._db = db
        self._keeper = keeper
        self._clock = clock
        self._alone: list[LineResult] = []
        """Results without receipts that are not written."""
        self._came = asyncio.Event()

    def new_id(self) -> str:
        """An id for what came of a line: its receipt has it too."""
        book = None if self._keeper is None else self._keeper.book
        return jobs.new_id(self._clock.now_ms()) if book is None else book.new_id(self._clock.now_ms())

    def put(self, result_id: str, result: LineResult, members: dict[str, Any]) -> None:
        """Have a result written; `LineResult.written` tells when it is."""
        keeper = self._keeper
        with_receipt = keeper is not None and keeper.book.writes
        if keeper is not None:
            now_ms = self._clock.now_ms()
            keeper.book.end(result_id, result.owner, now_ms, members, result if with_receipt else None)
        if not with_receipt:
            self._alone.append(result)
        self._came.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._came.wait()
            await asyncio.sleep(_SOON_S)
            self._came.clear()
            try:
                await self.flush()
            except StoreError as error:
                _log.error("results of lines could not be written", why=str(error)[:300])
                await asyncio.sleep(_AGAIN_S)
                self._came.set()
            except Exception:  # noqa: BLE001
                # The outermost of the loop: if it ended, no line would end any more.
                _log.exception("results of lines failed")
                await asyncio.sleep(_AGAIN_S)

    async def flush(self) -> None:
        """
        Write what is unwritten.

        Raises:
            StoreError: it could not be written.  Nothing is lost: the next call writes it.
        """
        if self._keeper is not None and self._keeper.book.writes:
            await self._keeper.write_now()
            return
        while self._alone:
            some = self._alone[:_AT_ONCE]
            refused = await self._db.write(partial(jobs.write_lines, lines=some))
            del self._alone[: len(some)]
            for place, each in enumerate(some):
                if not each.written.done():
                    each.written.set_result(place not in refused)
