"""The clock of a service, and how it notices that somebody set it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

STEP_MS: Final = 1000
"""A wall clock that moves by more than this against the monotonic one was set; slewing never does between two looks."""


@dataclass(frozen=True)
class Clock:
    """The only clock of the service.  The shell reads it and passes the time on as a value."""

    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    monotonic: Callable[[], float] = time.monotonic


class StepWatch:
    """
    Compares the wall clock with the monotonic one, each time that the wall clock is read.

    So a step is noticed before anything rests on the new time.  Slow drift is no step: each look is compared with the
    one before it.

    Args:
        clock: It is read once, as the first look.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wall_ms, self._at = clock.wall_ms(), clock.monotonic()

    def look(self) -> tuple[int, int]:
        """
        Read the wall clock.

        Returns:
            Milliseconds since 1970, and by how many the clock was set since the last look; 0 if it was not.
        """
        wall_ms, now = self._clock.wall_ms(), self._clock.monotonic()
        step_ms = wall_ms - self._wall_ms - round((now - self._at) * 1000)
        self._wall_ms, self._at = wall_ms, now
        if -STEP_MS <= step_ms <= STEP_MS:
            return wall_ms, 0
        return wall_ms, step_ms


def describe_step(step_ms: int) -> str:
    """A step in words."""
    return f"set {'ahead' if step_ms > 0 else 'back'} by {abs(step_ms) / 1000:.0f} s"
