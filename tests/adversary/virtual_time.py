"""
An event loop whose time passes only while nothing is to be done: a test of moments depends on no machine's pace.

Sockets are real.  What is sent over loopback within a process is there at once, so no data is on its way when time moves.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.unit.router.doubles import Moved

_GRACE_S = 0.0005
"""Real seconds that threads have to end what they do, before time moves far."""
_FAR_S = 0.02
_LONGEST_S = 0.05
T = TypeVar("T")


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]  # chosen when Python starts
    ahead_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if found or (timeout is not None and timeout <= 0):
            return found
        if timeout is None or timeout > _FAR_S:
            found = super().select(_GRACE_S if timeout is not None else _LONGEST_S)
        if not found and timeout is not None:
            self.ahead_s += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._passed = _Selector()
        super().__init__(self._passed)

    def time(self) -> float:
        return 1000.0 + self._passed.ahead_s


class LoopClock(Moved):
    """A clock that goes with the loop's time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        super().__init__()

    @property
    def ms(self) -> int:  # type: ignore[override]
        return 1_795_000_000_000 + int(self.ticks * 1000)

    @ms.setter
    def ms(self, _: int) -> None:
        """It goes with the loop."""

    @property
    def ticks(self) -> float:  # type: ignore[override]
        return self._loop.time()

    @ticks.setter
    def ticks(self, _: float) -> None:
        """Likewise."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop of its own whose time is virtual."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
