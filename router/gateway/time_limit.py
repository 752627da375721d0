"""A limit on the time that a task takes, as `asyncio.timeout`, for less than half of what that costs a request."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

_EARLY_S: Final = 0.001
"""Timers count in milliseconds, and may come up so much too early."""


class TimeLimit:
    """
    Cancels the current task when its time is up; the block then ends with `TimeoutError`.

    A limit is moved often and runs out seldom, so moving it only notes the new time.  The timer
    asks for it when it comes up.

    Args:
        loop: The running loop.
        due: When the time is up, by the loop's clock.
    """

    __slots__ = ("_armed_for", "_cancelling", "_handle", "_is_up", "_loop", "_task", "due")

    def __init__(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._loop = loop
        self.due: float | None = due
        """`None` while the limit is lifted."""
        self._armed_for = due
        self._handle: asyncio.TimerHandle | None = None
        self._is_up = False

    def move(self, due: float | None) -> None:
        """Set when the time is up, or lift the limit."""
        self.due = due
        if due is not None and (self._handle is None or due < self._armed_for):
            self._arm(due)

    def __enter__(self) -> Self:
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._arm(self._armed_for)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._is_up and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _arm(self, due: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed_for = due
        self._handle = self._loop.call_at(due, self._come_up)

    def _come_up(self) -> None:
        self._handle = None
        if self.due is None:
            return
        if self._loop.time() < self.due - _EARLY_S:
            self._arm(self.due)
            return
        self._is_up = True
        self._task.cancel()
