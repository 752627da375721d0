"""
What walks may cost: a cap on the time of one walk, and on that of all within an hour.

Time is that of the whole walk by the wall clock, which on a busy device is more than the
device spent on it: the operator's cap errs on the operator's side.
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
    Caps on walks; thread-safe.

    Args:
        walk_s: Seconds one walk may take.
        hour_s: Seconds all walks of an hour may take.
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
            return self._within_hour()

    @contextmanager
    def walk(self) -> Iterator[Callable[[int], None]]:
        """
        A walk under the caps; what it gives is the walk's `progress`, and raises when they are reached.

        Raises:
            EngineError: a cap is reached, before or during the walk.
        """
        with self._lock:
            left = self._hour_s - self._within_hour()
        if left <= 0:
            raise EngineError(f"walks have taken {self._hour_s:g} s within the hour, which is their cap")
        start = self._clock()

        def check(_: int) -> None:
            taken = self._clock() - start
            if taken > self._walk_s:
                raise EngineError(f"the walk took longer than its cap of {self._walk_s:g} s")
            if taken > left:
                raise EngineError(f"walks reach their cap of {self._hour_s:g} s an hour")

        try:
            yield check
        finally:
            now = self._clock()
            with self._lock:
                self._spent.append((now, now - start))

    def _within_hour(self) -> float:
        oldest = self._clock() - _HOUR_S
        while self._spent and self._spent[0][0] < oldest:
            self._spent.popleft()
        return sum(taken for _, taken in self._spent)
