"""
Limits on the time of walks: of one walk, and of all walks within an hour.

The time of a walk is its wall-clock time.  On a busy device that is more than the device's own
time, so the limits err in the operator's favour.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from attester.errors import EngineError

_HOUR_S: Final = 3600.0


class Budget:
    """
    The limits on walks; thread-safe.

    Args:
        walk_s: Seconds that one walk may take.
        hour_s: Seconds that all walks within an hour may take.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        walk_s: float = 60.0,
        hour_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._walk_s = walk_s
        self._hour_s = hour_s
        self._clock = clock
        self._lock = threading.Lock()
        self._spent: deque[tuple[float, float]] = deque()

    @property
    def spent_s(self) -> float:
        """Seconds spent on walks that ended within the last hour."""
        with self._lock:
            return self._sum_last_hour()

    @contextmanager
    def walk(self) -> Iterator[Callable[[int], None]]:
        """
        Count a walk; yields the walk's `progress` callback, which raises when a limit is reached.

        Raises:
            EngineError: a limit is reached, before or during the walk.
        """
        with self._lock:
            left_s = self._hour_s - self._sum_last_hour()
        if left_s <= 0:
            raise EngineError(f"walks have used their limit of {self._hour_s:g} s within the hour")
        start = self._clock()

        def check(_: int) -> None:
            elapsed_s = self._clock() - start
            if elapsed_s > self._walk_s:
                raise EngineError(f"the walk exceeds its limit of {self._walk_s:g} s")
            if elapsed_s > left_s:
                raise EngineError(f"walks exceed their limit of {self._hour_s:g} s within the hour")

        try:
            yield check
        finally:
            now = self._clock()
            with self._lock:
                self._spent.append((now, now - start))

    def _sum_last_hour(self) -> float:
        oldest = self._clock() - _HOUR_S
        while self._spent and self._spent[0][0] < oldest:
            self._spent.popleft()
        return sum(spent_s for _, spent_s in self._spent)
