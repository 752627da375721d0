"""
Whether a node is still there: the φ accrual failure detector.

(Hayashibara, Défago, Yared, Katayama, "The φ accrual failure detector", SRDS 2004; the
logistic approximation of the normal tail is Akka's.)  The router asks on its own schedule and
a node sends no heartbeats, so a node can only answer late.  What it could gain by that,
a window stretched until its silence seems normal, is capped: the mean at twice the interval
of asking, the deviation at half the mean, and an answer that came later than both allow
is no sample (`reference` attack: heartbeat stretch).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

WINDOW: Final = 200
LEAST_DEVIATION_S: Final = 0.5
PAUSE_S: Final = 10.0
"""So long a silence, and never less than an interval, is borne on top of what is usual: one lost answer is no outage."""
SUSPECT: Final = 5.0
"""φ from which a node is only tried, as one on probation."""
UNAVAILABLE: Final = 8.0
"""φ from which a node is taken to be gone: a wrong guess in 10⁸."""


class Heartbeat:
    """What is known of one node's answers to the router's questions, in monotonic seconds."""

    __slots__ = ("_deviation", "_interval", "_last_probe", "_mean", "heard", "intervals")

    def __init__(self, interval_s: float) -> None:
        self._interval = interval_s
        self.intervals: deque[float] = deque(maxlen=WINDOW)
        self.heard: float | None = None
        """When anything was last heard of the node: an answer to a probe, or to work."""
        self._last_probe: float | None = None
        self._mean = interval_s
        self._deviation = LEAST_DEVIATION_S

    @property
    def _pause(self) -> float:
        return max(PAUSE_S, self._interval)

    def expect(self, interval_s: float) -> None:
        """It is asked at another interval from now on."""
        if interval_s != self._interval:
            if not self.intervals or interval_s > self._interval:
                self._mean = max(self._mean, interval_s)
            self._interval = interval_s

    def asked(self, now: float) -> None:
        """It is asked; whoever never answers has been silent since it was first asked."""
        if self.heard is None:
            self.heard = now

    def answered(self, now: float) -> None:
        """It answered a probe."""
        if self._last_probe is not None:
            interval = now - self._last_probe
            # The interval that ended an outage says nothing of how the node usually answers.
            if interval <= 2 * self._interval + self._pause:
                self.intervals.append(interval)
                self._measure()
        self._last_probe = self.heard = now

    def served(self, now: float) -> None:
        """It did work: it is there, but work has no rhythm to learn from.  Without probes nobody is judged."""
        if self.heard is not None:
            self.heard = now

    def _measure(self) -> None:
        mean = sum(self.intervals) / len(self.intervals)
        variance = sum((x - mean) ** 2 for x in self.intervals) / len(self.intervals)
        # Who was asked more often until now answers later from now on.
        self._mean = min(max(mean, self._interval), 2 * self._interval)
        self._deviation = max(min(math.sqrt(variance), self._mean / 2), LEAST_DEVIATION_S)

    def phi(self, now: float) -> float:
        """How surprising the silence is: −log₁₀ of the chance that the node is still there."""
        if self.heard is None:
            return 0.0
        return _phi((now - self.heard - self._mean - self._pause) / self._deviation)

    def reaches(self, phi: float) -> float:
        """When its silence will be that surprising; never, for one that never answered."""
        if self.heard is None:
            return math.inf
        return self.heard + self._mean + self._pause + _DEVIATIONS[phi] * self._deviation


def _phi(y: float) -> float:
    exponent = -y * (1.5976 + 0.070566 * y * y)
    if exponent > 700:
        return 0.0
    e = math.exp(exponent)
    if y > 0:
        return math.inf if e == 0 else -math.log10(e / (1 + e))
    return -math.log10(1 - 1 / (1 + e))


def _deviations(phi: float) -> float:
    """How many deviations beyond the mean `_phi` is *phi*, by halving."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _phi(middle) < phi else (low, middle)
    return high


_DEVIATIONS: Final = {phi: _deviations(phi) for phi in (SUSPECT, UNAVAILABLE)}
