"""
When requests came, as far as it is needed to let a further one come at such a moment.  Pure.

A check follows a request after a time that is drawn from a span of many usual gaps.  So it is no nearer to that
request than to any other, and comes when requests come (docs/adr/0057).
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Final

_REMEMBERED: Final = 32
_SPAN: Final = 48.0
"""Usual gaps in the span.  With fewer a check is seen near its request; with more it comes after a burst is over."""
LONGEST_S: Final = 3600.0


class Arrivals:
    """The moments of the last requests, in seconds."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_REMEMBERED)

    def note(self, now: float) -> None:
        """Note that a request came."""
        self._times.append(now)

    def span_s(self) -> float | None:
        """The span of time in which a further request may come; `None` if too few came to say."""
        if len(self._times) < _REMEMBERED:
            return None
        gaps = sorted(later - earlier for earlier, later in pairwise(self._times))
        # The middle one: a long pause between two bursts says nothing of the gaps within them.
        return min(_SPAN * gaps[len(gaps) // 2], LONGEST_S)
