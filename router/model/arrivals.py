"""
When requests came, as far as it is needed to let a further one come at such a moment.  Pure.

A check follows a request as a later request might: after a number of gaps that is drawn, each of them drawn from the gaps
of late.  So it is hardly nearer to that request than to others, and in bursts it comes as bursts do (docs/adr/0057).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Final

_REMEMBERED: Final = 32
_MOST_GAPS: Final = 48
"""With fewer a check is seen near its request; with more it comes after a burst is over."""
LONGEST_S: Final = 3600.0


class Arrivals:
    """The moments of the last requests, in seconds."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_REMEMBERED)

    def note(self, now: float) -> None:
        """Note that a request came."""
        self._times.append(now)

    def draw_delay_s(self, draw: Callable[[], float]) -> float | None:
        """
        After how long a further request may come; `None` if too few came to say.

        *draw* gives numbers from 0 and below 1.
        """
        if len(self._times) < _REMEMBERED:
            return None
        gaps = [later - earlier for earlier, later in pairwise(self._times)]
        count = int(draw() * _MOST_GAPS)
        whole = sum(gaps[int(draw() * len(gaps))] for _ in range(count))
        return min(whole + draw() * gaps[int(draw() * len(gaps))], LONGEST_S)
