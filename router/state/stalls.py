"""
How long the event loop stood still: what ran out meanwhile ran out here, and not at a node.

A large computation, a machine without processor time, or a process that was stopped for a while all
look the same: a timer comes up late.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_EVERY_S: Final = 0.1
_USUAL_S: Final = 0.25
"""A timer may come up so much late without anything being wrong: machines are busy."""


class StallWatch:
    """
    Adds up how long the loop stood still.

    Args:
        on_stall: Called with the seconds of each stall, once it is over.
        monotonic: A monotonic clock in seconds.
    """

    def __init__(
        self, on_stall: Callable[[float], None], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_stall = on_stall
        self._monotonic = monotonic
        self._lost_s = 0.0
        self._due: float | None = None
        self._handle: asyncio.TimerHandle | None = None

    @property
    def lost_s(self) -> float:
        """Seconds of all stalls until now, one that has only just ended included."""
        return self._lost_s + self._late_s()

    def start(self) -> None:
        """Begin.  To be called in the loop."""
        self._due = self._monotonic() + _EVERY_S
        self._handle = asyncio.get_running_loop().call_later(_EVERY_S, self.tick)

    def stop(self) -> None:
        """End."""
        if self._handle is not None:
            self._handle.cancel()
        self._due = None

    def tick(self) -> None:
        """Note how late it is."""
        late_s = self._late_s()
        self._lost_s += late_s
        self.start()
        if late_s:
            self._on_stall(late_s)

    def _late_s(self) -> float:
        late_s = 0.0 if self._due is None else self._monotonic() - self._due
        return late_s if late_s > _USUAL_S else 0.0
