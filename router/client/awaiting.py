"""
The receipts that must still get into the log.

A batch gets there seconds after its answers.  So a client may go on meanwhile; but if a receipt is not in the log in
time, the next answer is refused: a router that keeps receipts back could give each caller a story of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from router.client import checking
from router.client.bundles import Bundle
from router.client.checking import Checked
from router.client.errors import ClientError, Step, UncosignedError, UnverifiedError
from router.client.kept import KeptFolder
from router.client.trust import Trust

MAX_PENDING: Final = 10_000
"""Receipts that are waited for at a time."""
_FIRST_S: Final = 3.0
"""A batch is closed every two seconds."""
_PAUSE_S: Final = 1.0
_log = structlog.get_logger("client")

Fetch = Callable[[str], Awaitable[tuple[Bundle, bytes] | None]]


class LogWatch:
    """
    Waits until receipts are in the log.

    Args:
        fetch: Gives a receipt as the router gives it now.
    """

    def __init__(
        self,
        trust: Trust,
        fetch: Fetch,
        kept: KeptFolder | None,
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._trust, self._fetch, self._kept = trust, fetch, kept
        self._now, self._sleep = now, sleep
        self._pending: dict[str, tuple[Checked, float]] = {}
        """By id, with the time by which each must be there, the earliest first."""
        self._wrong: UnverifiedError | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """How many are waited for."""
        return len(self._pending)

    def check(self) -> None:
        """Refuse to go on.  Raises `UnverifiedError`: a receipt is not in the log in time, or its proof is wrong."""
        if self._wrong is not None:
            raise self._wrong
        if not self._pending:
            return
        receipt_id, (_, until) = next(iter(self._pending.items()))
        if self._now() > until:
            within = self._trust.require.log_within_s
            raise UnverifiedError(Step.LOG, f"receipt {receipt_id} is not in the log after {within} s")
        if len(self._pending) >= MAX_PENDING:
            raise UnverifiedError(Step.LOG, f"{MAX_PENDING} receipts are not in the log yet")

    async def take(self, checked: Checked) -> None:
        """
        Wait for a receipt: now or later, as the trust file says.

        Raises:
            UnverifiedError: it must be in the log before its answer is used, and does not get there, or not rightly.
        """
        match self._trust.require.log:
            case "never":
                return
            case "before":
                await self._wait_for(checked, self._now() + self._trust.require.log_within_s)
            case _:
                until = self._now() + self._trust.require.log_within_s
                self._pending[checked.receipt.jti] = (checked, until)
                if self._task is None or self._task.done():
                    self._task = asyncio.create_task(self._follow())

    async def confirm(self, checked: Checked) -> bool:
        """
        Look whether a receipt is in the log now; if it is, that is noted in *checked*.

        Raises:
            UnverifiedError: what the router gives is wrong.
        """
        found = await self._fetch(checked.receipt.jti)
        if found is None or found[0].batch is None or found[0].log is None:
            return False
        bundle, raw = found
        again = checking.check_receipt(bundle, self._trust)
        if again.payload != checked.payload:
            raise UnverifiedError(
                Step.LOG, f"the router gives another receipt {checked.receipt.jti} than before"
            )
        checked.steps[Step.BATCH] = checking.check_batch(bundle, checked, self._trust)
        try:
            checked.steps[Step.LOG] = checking.check_log(bundle, self._trust)
        except UncosignedError:
            return False
        checked.is_logged = True
        if self._kept is not None:
            await self._kept.complete(checked, raw)
        return True

    async def settle(self) -> None:
        """Wait until nothing is pending.  Raises `UnverifiedError` as `check` does."""
        while self._pending:
            self.check()
            await self._sleep(_PAUSE_S)
        self.check()

    async def close(self) -> None:
        """Wait no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _wait_for(self, checked: Checked, until: float) -> None:
        while not await self.confirm(checked):
            if self._now() > until:
                raise UnverifiedError(
                    Step.LOG, f"it is not in the log after {self._trust.require.log_within_s} s"
                )
            await self._sleep(_PAUSE_S / 2)

    async def _follow(self) -> None:
        await self._sleep(_FIRST_S)
        while self._pending:
            for receipt_id, (checked, _) in list(self._pending.items()):
                try:
                    is_there = await self.confirm(checked)
                except UnverifiedError as error:
                    self._wrong = UnverifiedError(error.step, f"receipt {receipt_id}: {error.reason}")
                    _log.error(
                        "a receipt is not in the log as it should be", receipt=receipt_id, why=error.reason
                    )
                    return
                except ClientError as error:
                    # Whether the router comes back in time, `check` sees.
                    _log.warning(
                        "the router cannot be asked for a receipt", receipt=receipt_id, why=str(error)
                    )
                    break
                if not is_there:
                    # Those after it are younger.
                    break
                del self._pending[receipt_id]
            await self._sleep(_PAUSE_S)
