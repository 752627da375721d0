"""
What the router has seen of a node, per node and model: never what the node says of itself.

Completion is judged by the lower end of Wilson's interval over counts that are halved at
two half-lives, an hour and a week; the lower of the two counts, where there is enough to
judge by: an idle node is not a failing one (`docs/adr/0005-ranking.md`).  Latency
is a mean that jumps up at once and comes down slowly (peak EWMA, Finagle).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from router.outcomes import Blame, Outcome

HALF_LIVES_S: Final = (3600.0, 7 * 86400.0)
ESTABLISHED_LOWER: Final = 0.9
"""Reached after 25 requests without a failure."""
DEGRADED_UPPER: Final = 0.8
"""A node is degraded where even the upper end of the interval is below this."""
ENOUGH: Final = 10.0
"""Requests within a half-life, below which that half-life judges nobody."""
UNKNOWN_LATENCY_S: Final = 30.0
"""Nobody has measured it yet, and no evidence never helps."""
FAILURE_WEIGHT: Final = 3.0
_LATENCY_TAU_S: Final = 60.0
_NOTHING: Final = 1e-9
_Z: Final = 1.6449  # one-sided 95 %
BREAKER_FAILURES: Final = 3
BREAKER_OPEN_S: Final = 10.0


@dataclass(frozen=True)
class Standing:
    """A node's standing for one model.  Times are monotonic seconds of the router."""

    completed: tuple[float, float] = (0.0, 0.0)
    """Decayed counts, one for each half-life."""
    failed: tuple[float, float] = (0.0, 0.0)
    at: float = 0.0
    latency_s: float | None = None
    in_flight: int = 0
    failures_in_a_row: int = 0
    """Also refusals for want of room and answers by another key: all that work cannot be sent to."""
    open_until: float = 0.0
    """The breaker: no work before then, and one probe at a time after."""

    def started(self) -> Standing:
        """With one more request under way."""
        return replace(self, in_flight=self.in_flight + 1)

    def ended(self, outcome: Outcome, seconds: float, now: float) -> Standing:
        """With a request ended: only the node's blame moves its standing."""
        released = replace(self, in_flight=max(self.in_flight - 1, 0))
        if outcome is Outcome.COMPLETED:
            decayed = released.decayed_to(now)
            return replace(
                decayed,
                completed=_add(decayed.completed, 1.0),
                latency_s=_peak_ewma(self.latency_s, seconds, now - self.at),
                failures_in_a_row=0,
                open_until=0.0,
            )
        if outcome not in BREAKING:
            return released
        in_a_row = self.failures_in_a_row + 1
        broken = replace(
            released,
            failures_in_a_row=in_a_row,
            open_until=now + BREAKER_OPEN_S if in_a_row >= BREAKER_FAILURES else self.open_until,
        )
        if outcome.blame is not Blame.NODE:
            return broken
        decayed = broken.decayed_to(now)
        return replace(decayed, failed=_add(decayed.failed, FAILURE_WEIGHT))

    def completion(self, now: float) -> float:
        """The lower bound of the share of requests completed; 0 without evidence."""
        short, long = self._intervals(now)
        return long[0] if short is None else min(short[0], long[0])

    def is_degraded(self, now: float) -> bool:
        """Whether it surely fails often, recently or over the week."""
        short, long = self._intervals(now)
        return (short is not None and short[1] < DEGRADED_UPPER) or (
            self.evidence(now) >= ENOUGH and long[1] < DEGRADED_UPPER
        )

    def _intervals(self, now: float) -> tuple[tuple[float, float] | None, tuple[float, float]]:
        """Wilson's interval for the hour, where there is enough to judge by, and for the week."""
        decayed = self.decayed_to(now)
        (good, long_good), (bad, long_bad) = decayed.completed, decayed.failed
        short = wilson(good, good + bad) if good + bad >= ENOUGH else None
        return short, wilson(long_good, long_good + long_bad)

    def evidence(self, now: float) -> float:
        """How many requests the standing rests on, decayed at the longer half-life."""
        decayed = self.decayed_to(now)
        return decayed.completed[-1] + decayed.failed[-1]

    def breaker_is_closed(self, now: float) -> bool:
        """Whether work may go: yes, or one probe where the wait is over."""
        if self.failures_in_a_row < BREAKER_FAILURES:
            return True
        return now >= self.open_until and self.in_flight == 0

    def decayed_to(self, now: float) -> Standing:
        """With its counts halved as time goes by."""
        if now <= self.at:
            return self
        passed = max(now - self.at, 0.0)
        factors = [math.exp2(-passed / half_life) for half_life in HALF_LIVES_S]
        return replace(
            self,
            completed=(self.completed[0] * factors[0], self.completed[1] * factors[1]),
            failed=(self.failed[0] * factors[0], self.failed[1] * factors[1]),
            at=max(now, self.at),
        )


BREAKING: Final = frozenset(outcome for outcome in Outcome if outcome.blame is Blame.NODE) | {
    Outcome.BUSY,
    Outcome.IMPOSTOR,
}


def wilson(good: float, total: float) -> tuple[float, float]:
    """
    Wilson's score interval, each end one-sided at 95 %; (0, 1) for no evidence.

    (Wilson, "Probable inference, the law of succession, and statistical inference", 1927.)
    """
    if total < _NOTHING:
        return 0.0, 1.0
    p, z2 = good / total, _Z * _Z
    centre = p + z2 / (2 * total)
    spread = _Z * math.sqrt(max(p * (1 - p) / total + z2 / (4 * total * total), 0.0))
    return max((centre - spread) / (1 + z2 / total), 0.0), min((centre + spread) / (1 + z2 / total), 1.0)


def _peak_ewma(before: float | None, seconds: float, passed: float) -> float:
    if before is None or seconds > before:
        return seconds
    weight = math.exp(-max(passed, 0.0) / _LATENCY_TAU_S)
    return weight * before + (1 - weight) * seconds


def _add(counts: tuple[float, float], amount: float) -> tuple[float, float]:
    return counts[0] + amount, counts[1] + amount
