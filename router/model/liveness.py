"""
Whether a node is still there: the φ accrual failure detector.

(Hayashibara, Défago, Yared, Katayama, "The φ accrual failure detector", SRDS 2004; the
logistic approximation of the normal tail is Akka's.)  The router probes on its own schedule and
a node sends no heartbeats, so a node can only answer late.  A node could stretch its window by
late answers until its silence seems normal.  That gain is capped: the mean at twice the probe
interval, the deviation at half the mean; and an answer that is later than both allow is not a
sample.
"""

from __future__ import annotations

import math
from array import array
from typing import Final

WINDOW: Final = 200
LEAST_DEVIATION_S: Final = 0.5
PAUSE_S: Final = 10.0
"""Silence that is accepted on top of what is usual, and at least a probe interval: one lost answer is not an outage."""
SUSPECT: Final = 5.0
"""From this φ on a node is only tried, like one on probation."""
UNAVAILABLE: Final = 8.0
"""From this φ on a node is taken to be gone: one wrong guess in 10⁸.  For a node that answers each
probe, and probes every 5 s, it is a silence of 17.6 s; for the most irregular node 46 s."""


class Heartbeat:
    """What is known of one node's answers to the router's probes.  Times are monotonic seconds."""

    __slots__ = (
        "_asked",
        "_asked_before",
        "_deviation",
        "_interval",
        "_last_answer",
        "_mean",
        "_until",
        "intervals",
        "last_contact",
    )

    def __init__(self, interval_s: float) -> None:
        self._interval = interval_s
        self.intervals: array[float] = array("d")
        """Between the last answers, at most `WINDOW`."""
        self.last_contact: float | None = None
        """When the node last answered a probe or completed work; at first, when it was first probed."""
        self._last_answer: float | None = None
        self._asked: float | None = None
        self._asked_before: float | None = None
        self._mean = interval_s
        self._deviation = LEAST_DEVIATION_S
        self._until: dict[float, float] = {}
        """By φ, after which silence it is reached: each request asks."""
        self._measure_silence()

    @property
    def _pause(self) -> float:
        return max(PAUSE_S, self._interval)

    def set_interval(self, interval_s: float) -> None:
        """Note that the node is probed at another interval from now on."""
        if interval_s != self._interval:
            if not self.intervals or interval_s > self._interval:
                self._mean = max(self._mean, interval_s)
            self._interval = interval_s
            self._measure_silence()

    def note_probe(self, now: float) -> None:
        """Note a probe: a node that never answers has been silent since its first one."""
        self._asked, self._asked_before = now, self._asked
        if self.last_contact is None:
            self.last_contact = now

    def note_probe_answer(self, now: float) -> None:
        """Note an answer to a probe."""
        if self._last_answer is not None:
            interval = now - self._last_answer
            # The interval that ended an outage does not show how the node usually answers.
            if interval <= 2 * self._interval + self._pause:
                if len(self.intervals) == WINDOW:
                    del self.intervals[0]
                self.intervals.append(interval)
                self._measure()
        self._last_answer = self.last_contact = now

    def note_no_probe(self, now: float) -> None:
        """Note that the last probe failed for the router's sake: the time since the one before is no silence."""
        since = self._asked if self._asked_before is None else self._asked_before
        if since is not None:
            self.excuse(now - since, now)

    def excuse(self, seconds: float, now: float) -> None:
        """Take so much from the silence, because nobody could have heard the node meanwhile."""
        if self.last_contact is not None:
            self.last_contact = min(now, self.last_contact + max(seconds, 0.0))
        if self._last_answer is not None:
            self._last_answer = min(now, self._last_answer + max(seconds, 0.0))

    def note_work(self, now: float) -> None:
        """Note completed work: the node is there, but work has no rhythm.  Without probes no node is judged."""
        if self.last_contact is not None:
            self.last_contact = now

    def _measure(self) -> None:
        mean = sum(self.intervals) / len(self.intervals)
        variance = sum((x - mean) ** 2 for x in self.intervals) / len(self.intervals)
        # If nodes were probed more often until now, answers come at longer intervals from now on.
        self._mean = min(max(mean, self._interval), 2 * self._interval)
        self._deviation = max(min(math.sqrt(variance), self._mean / 2), LEAST_DEVIATION_S)
        self._measure_silence()

    def _measure_silence(self) -> None:
        usual = self._mean + self._pause
        self._until = {phi: usual + deviations * self._deviation for phi, deviations in _DEVIATIONS.items()}

    def phi(self, now: float) -> float:
        """How surprising the silence is: −log₁₀ of the probability that the node is still there."""
        if self.last_contact is None:
            return 0.0
        return _phi((now - self.last_contact - self._mean - self._pause) / self._deviation)

    def reaches(self, phi: float) -> float:
        """When the silence will be that surprising; infinity for a node that was never probed."""
        if self.last_contact is None:
            return math.inf
        return self.last_contact + self._until[phi]

    def ends(self) -> tuple[float, float]:
        """When the silence will be suspect, and when the node is taken to be gone: see `reaches`."""
        last = self.last_contact
        if last is None:
            return math.inf, math.inf
        return last + self._until[SUSPECT], last + self._until[UNAVAILABLE]


def _phi(y: float) -> float:
    exponent = -y * (1.5976 + 0.070566 * y * y)
    if exponent > 700:
        return 0.0
    e = math.exp(exponent)
    if y > 0:
        return math.inf if e == 0 else -math.log10(e / (1 + e))
    return -math.log10(1 - 1 / (1 + e))


def _deviations(phi: float) -> float:
    """How many deviations beyond the mean `_phi` is *phi*, by bisection."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _phi(middle) < phi else (low, middle)
    return high


_DEVIATIONS: Final = {phi: _deviations(phi) for phi in (SUSPECT, UNAVAILABLE)}
