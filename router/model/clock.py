"""The router's clocks."""

from __future__ import annotations

from collections.abc import Callable


class Clock:
    """
    A wall clock that is never behind where the process began and how long it has run, and a monotonic one.

    A wall clock that jumps ahead is followed: results may have run out while the machine slept.
    One that is set back is followed no further than that, for what has run out must not come
    to life again; a jump ahead that is corrected is.
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
        """Seconds since 1970, without a jump: what standings are dated by."""
        return self._began_ms / 1000 + self.monotonic() - self._began
