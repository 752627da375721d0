"""The router's clocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_STEP_MS: Final = 1000
"""A wall clock that has moved by more than this against the monotonic one was set."""


class Clock:
    """
    A wall clock and a monotonic clock, and whether the first was set.

    The wall clock is followed wherever it is set.  So a wrong one does no harm once it is right again; and what it
    must not do, the monotonic clock prevents: no result lives longer for it (`router.choose.gates.result`).
    """

    def __init__(self, wall_ms: Callable[[], int], monotonic: Callable[[], float]) -> None:
        self.now_ms = wall_ms
        """Milliseconds since 1970."""
        self.monotonic = monotonic
        """Seconds since some moment."""
        self._began_ms = wall_ms()
        self._began = monotonic()
        self._off_ms = self._last_off_ms = 0
        self.steps = 0
        """How often the wall clock was set."""
        self.stepped_ms = 0
        """By how much the wall clock was set last, negative if it was set back; 0 if it never was."""
        self._stepped_at = self._began
        self._verifier_off_s: float | None = None
        """The verifier's time, less our monotonic clock; `None` while it has told none."""

    def note_verifier(self, time_ms: int) -> None:
        """Note what the verifier's clock says now."""
        self._verifier_off_s = time_ms / 1000 - self.monotonic()

    def verifier_s(self) -> float | None:
        """The verifier's time, Unix seconds, as it goes on from when it was last told; `None` if it never was."""
        return None if self._verifier_off_s is None else self._verifier_off_s + self.monotonic()

    def ahead_s(self) -> float | None:
        """By how many seconds this clock is ahead of the verifier's; negative: behind."""
        verifier_s = self.verifier_s()
        return None if verifier_s is None else self.now_ms() / 1000 - verifier_s

    def describe_difference(self, skew_s: float) -> str:
        """What is to be said if the two clocks differ by more than *skew_s*; empty if they do not."""
        ahead_s = self.ahead_s()
        if ahead_s is None or abs(ahead_s) <= skew_s:
            return ""
        where = "ahead of" if ahead_s > 0 else "behind"
        return f"the router's clock is {abs(ahead_s):.0f} s {where} the verifier's: one of the two is wrong"

    def unix(self) -> float:
        """Seconds since 1970 without jumps: standings are dated by it."""
        return self._began_ms / 1000 + self.monotonic() - self._began

    def has_moved(self) -> bool:
        """
        Whether the wall clock has moved against the monotonic one since this was last so.

        It may have been set, or have drifted for hours.
        """
        now = self.monotonic()
        off_ms = self.now_ms() - self._began_ms - round((now - self._began) * 1000)
        step_ms, self._last_off_ms = off_ms - self._last_off_ms, off_ms
        if abs(step_ms) > _STEP_MS:
            self.steps, self.stepped_ms, self._stepped_at = self.steps + 1, step_ms, now
        if abs(off_ms - self._off_ms) <= _STEP_MS:
            return False
        self._off_ms = off_ms
        return True

    @property
    def steady_s(self) -> float:
        """For how long the wall clock has not been set, as far as is known."""
        return self.monotonic() - self._stepped_at
