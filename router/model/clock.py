"""The router's clocks."""

from __future__ import annotations

from collections.abc import Callable


class Clock:
    """
    A wall clock that never runs behind the monotonic one, and a monotonic clock.

    The wall clock follows a jump ahead: results may have run out while the machine slept.  If
    it is set back, it is followed no further back than the process' start plus its running
    time, because a result that has run out must not become valid again.
    """

    def __init__(self, wall_ms: Callable[[], int], monotonic: Callable[[], float]) -> None:
        self._wall_ms = wall_ms
        self.monotonic = monotonic
        self._began_ms = wall_ms()
        self._began = monotonic()

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return max(self._wall_ms(), self._began_ms + int((self.monotonic() - self._began) * 1000))

    def unix(self) -> float:
        """Seconds since 1970 without jumps: standings are dated by it."""
        return self._began_ms / 1000 + self.monotonic() - self._began
