"""The time limit of an exchange with a node, which looks on the way whether the node is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from router.gateway.progress import Progress
from router.gateway.time_limit import TimeLimit

_EVERY_S: Final = 1.0


class NodeLimit(TimeLimit):
    """
    A `TimeLimit` for the first text or a whole answer; it is over at once if the node is gone.

    A node that died while it works on something long looks like one that works on it.  So from the time on that
    any request has, a node that shows no sign of life is looked after.

    Args:
        loop: The running loop.
        progress: What the node has shown, and until when it has time.
        is_gone: Whether the node has answered no probes for so long that it is taken to be gone.
    """

    __slots__ = ("_is_gone", "_look_handle", "_progress")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, progress: Progress, is_gone: Callable[[], bool]
    ) -> None:
        super().__init__(loop, progress.first_due)
        self._progress = progress
        self._is_gone = is_gone
        self._look_handle: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        base_s = self._progress.allowed.base_s
        if self._progress.allowance_s > base_s + _EVERY_S:
            self._look_handle = self._loop.call_later(base_s, self._look)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._look_handle is not None:
            self._look_handle.cancel()
        super().__exit__(kind, error, traceback)

    def _look(self) -> None:
        progress, now = self._progress, self._loop.time()
        if progress.first_token_s is not None:
            return
        if progress.is_quiet(now) and self._is_gone():
            progress.was_gone = True
            self.move(now)
        else:
            self._look_handle = self._loop.call_later(_EVERY_S, self._look)
