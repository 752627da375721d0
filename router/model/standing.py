"""
A node's standing for a model tier: what routers saw of its work, never what it says of itself.

Completion is judged by the lower end of Wilson's interval, over counts that are halved at two
half-lives: an hour and a week.  The lower of the two ends counts if the hour has enough
requests to judge by: an idle node is not a failing one (docs/adr/0016).  The half-lives bound
how long old good work can outweigh new failures.  Latency is a mean that jumps up at once and
comes down slowly (peak EWMA, from Twitter's Finagle).

A standing is an aggregate: the standings of several routers are merged by adding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from typing import Final

import msgspec
from msgspec import Struct, structs

from router.model.outcomes import Blame, Execution, Outcome

HALF_LIVES_S: Final = (3600.0, 7 * 86400.0)
ESTABLISHED_LOWER: Final = 0.9
PROVEN: Final = 25
"""Requests without a failure after which a node is established: Wilson's lower end is 0.9 then."""
SEEN_ENOUGH: Final = 100.0
"""A node is degraded if this many requests within a week have not made it established."""
DEGRADED_UPPER: Final = 0.8
"""A node is degraded if even the upper end of the interval is below this."""
CLEAN_UPPER: Final = 0.98
"""The same for exchanges that kept to the protocol."""
ENOUGH: Final = 10.0
"""A half-life with fewer requests judges nobody."""
UNKNOWN_LATENCY_S: Final = 30.0
"""The latency of a node that nobody has measured.  No node is rated slower: missing evidence must never help."""
FAILURE_WEIGHT: Final = 3.0
LITTLE_EVIDENCE: Final = "standing.little-evidence"
"""Why a node is on probation that has not done enough to be judged."""
_LATENCY_TAU_S: Final = 60.0
_SMALLEST_COUNT: Final = 1e-9
_Z: Final = 1.6449  # one-sided 95 %
_Z2: Final = _Z * _Z

Counts = tuple[float, float]
"""Decayed counts, one for each half-life."""


class Grade(StrEnum):
    """How far a node's work for a tier has proven it."""

    ESTABLISHED = "established"
    PROBATION = "probation"
    DEGRADED = "degraded"


class Standing(Struct, frozen=True, gc=False):
    """Counts of how work at a node ended, as of *at*: Unix seconds of a clock that does not jump."""

    completed: Counts = (0.0, 0.0)
    failed: Counts = (0.0, 0.0)
    """Each failure counts `FAILURE_WEIGHT` times; further ones of the same moment count once."""
    exchanges: float = 0.0
    """Answers of any kind, at the longer half-life."""
    rejects: float = 0.0
    """Answers that broke the protocol or claimed a wrong usage, at the longer half-life."""
    at: float = 0.0
    latency_s: float | None = None
    """Seconds of a usual answer, by this router's own measure."""
    calls: float = 0.0
    """Answers that called tools, or had to, at the longer half-life."""
    bad_calls: float = 0.0
    """Those among them whose calls no tool could take."""

    def add(self, execution: Execution, now: float) -> Standing:
        """
        The standing after one more execution.  Only the node's own faults lower it.

        A good end without credit (the node's own operator sent the work) earns nothing.
        """
        if execution.calls_are_valid is not None and execution.earns_credit:
            decayed, bad = self.decayed_to(now), not execution.calls_are_valid
            counted = structs.replace(decayed, calls=decayed.calls + 1, bad_calls=decayed.bad_calls + bad)
            return counted.add(replace(execution, calls_are_valid=None), now)
        if execution.outcome is Outcome.COMPLETED:
            if execution.is_clean and not execution.earns_credit:
                return self
            return self._add_completed(execution, now)
        if execution.outcome.blame is not Blame.NODE and not execution.is_blamed:
            return self
        decayed = self.decayed_to(now)
        # What was lost at one moment is lost work each time, and weighs more than that only once.
        # A node that passes over a setting works well for all who do not ask for that.
        is_light = execution.is_further or execution.outcome is Outcome.UNHONOURED
        weight = 1.0 if is_light else FAILURE_WEIGHT
        return structs.replace(
            decayed,
            failed=_plus(decayed.failed, weight),
            exchanges=decayed.exchanges + 1,
            rejects=decayed.rejects + (execution.outcome is Outcome.CORRUPTED),
        )

    def _add_completed(self, execution: Execution, now: float) -> Standing:
        # As `decayed_to`, without a standing in between: each request that completes comes here.
        hour, week = _left_after(now - self.at)
        gained, latency_s = 0.0, self.latency_s
        if execution.earns_credit:
            gained, latency_s = 1.0, _peak_ewma(latency_s, execution.seconds, now - self.at)
        return Standing(
            completed=(self.completed[0] * hour + gained, self.completed[1] * week + gained),
            failed=(self.failed[0] * hour, self.failed[1] * week),
            exchanges=self.exchanges * week + 1,
            rejects=self.rejects * week + (not execution.is_clean),
            at=max(now, self.at),
            latency_s=latency_s,
            calls=self.calls * week,
            bad_calls=self.bad_calls * week,
        )

    def clean(self) -> tuple[float, float]:
        """Wilson's interval for the share of exchanges that kept to the protocol, as of *at*."""
        return wilson(self.exchanges - self.rejects, self.exchanges)

    @property
    def is_unclean(self) -> bool:
        """Whether the node surely breaks the protocol more often than a clean node does."""
        return self.rejects >= 1 and self.clean()[1] < CLEAN_UPPER

    def intervals(self) -> tuple[tuple[float, float] | None, tuple[float, float]]:
        """Wilson's interval for the hour, `None` if there is too little to judge by, and for the week."""
        (good, long_good), (bad, long_bad) = self.completed, self.failed
        # In a quiet hour without a failure the lower end is low because there was little work, not for bad work.
        is_enough = good + bad >= (ENOUGH if bad >= 1 else PROVEN)
        hour = wilson(good, good + bad) if is_enough else None
        return hour, wilson(long_good, long_good + long_bad)

    def decayed_to(self, now: float) -> Standing:
        """The same standing with its counts halved for the time that has passed."""
        if now <= self.at:
            return self
        hour, week = _left_after(now - self.at)
        return Standing(
            completed=(self.completed[0] * hour, self.completed[1] * week),
            failed=(self.failed[0] * hour, self.failed[1] * week),
            exchanges=self.exchanges * week,
            rejects=self.rejects * week,
            at=now,
            latency_s=self.latency_s,
            calls=self.calls * week,
            bad_calls=self.bad_calls * week,
        )


def _left_after(seconds: float) -> tuple[float, float]:
    """What is left of a count of 1 after so many seconds, at each half-life."""
    if seconds <= 0:
        return 1.0, 1.0
    return math.exp2(-seconds / HALF_LIVES_S[0]), math.exp2(-seconds / HALF_LIVES_S[1])


def merge(own: Standing, others: Iterable[Standing], now: float) -> Standing:
    """
    What several routers have seen together.

    The latency stays this router's own measure, because it includes the way from this router to
    the node.  If this router has none, the slowest of the others' counts.
    """
    total = own.decayed_to(now)
    for other in others:
        peer = other.decayed_to(now)
        latency_s = total.latency_s
        if own.latency_s is None and peer.latency_s is not None:
            latency_s = max(peer.latency_s, latency_s or 0.0)
        total = Standing(
            completed=(total.completed[0] + peer.completed[0], total.completed[1] + peer.completed[1]),
            failed=(total.failed[0] + peer.failed[0], total.failed[1] + peer.failed[1]),
            exchanges=total.exchanges + peer.exchanges,
            rejects=total.rejects + peer.rejects,
            at=max(total.at, peer.at),
            latency_s=latency_s,
            calls=total.calls + peer.calls,
            bad_calls=total.bad_calls + peer.bad_calls,
        )
    return total


class Rating(Struct, frozen=True, gc=False):
    """What the ranking uses of a standing: a grade and its numbers."""

    grade: Grade = msgspec.field(default=Grade.PROBATION, name="tier")
    """Records of decisions call it ``tier``."""
    completion: float = 0.0
    latency_s: float = UNKNOWN_LATENCY_S
    evidence: float = 0.0
    """Requests within the week that the grade rests on."""
    why: str = LITTLE_EVIDENCE
    """The reason for the grade, as a code."""
    calls: float = 0.0
    """Answers within the week that called tools, or had to."""
    bad_calls: float = 0.0
    """Those whose calls no tool could take."""


def rate(standing: Standing, now: float, missed_objective: str | None = None) -> Rating:
    """
    The rating that follows from a standing.

    Args:
        standing: Of all routers together.
        now: By the standing's clock.
        missed_objective: The latency objective that the node surely misses, as a code.
    """
    seen = standing.decayed_to(now)
    hour, week = seen.intervals()
    completion = week[0] if hour is None else min(hour[0], week[0])
    evidence = seen.completed[1] + seen.failed[1]
    if _fails(hour, week, evidence):
        grade, why = Grade.DEGRADED, "standing.failing"
    elif seen.is_unclean:
        grade, why = Grade.DEGRADED, "standing.unclean"
    elif missed_objective is not None:
        grade, why = Grade.DEGRADED, missed_objective
    elif completion >= ESTABLISHED_LOWER:
        grade, why = Grade.ESTABLISHED, "standing.proven"
    elif evidence >= SEEN_ENOUGH and week[0] < ESTABLISHED_LOWER:
        # Evidence ends probation, in one direction or the other.
        grade, why = Grade.DEGRADED, "standing.unreliable"
    elif week[0] >= ESTABLISHED_LOWER:
        grade, why = Grade.PROBATION, "standing.bad-hour"
    elif evidence >= ENOUGH and week[1] < ESTABLISHED_LOWER:
        # Even if it does better from now on, that takes longer than for one of which nothing is known.
        grade, why = Grade.PROBATION, "standing.unreliable"
    else:
        grade, why = Grade.PROBATION, LITTLE_EVIDENCE
    latency_s = UNKNOWN_LATENCY_S if seen.latency_s is None else min(seen.latency_s, UNKNOWN_LATENCY_S)
    return Rating(
        grade=grade,
        completion=completion,
        latency_s=latency_s,
        evidence=evidence,
        why=why,
        calls=seen.calls,
        bad_calls=seen.bad_calls,
    )


def wilson(good: float, total: float) -> tuple[float, float]:
    """
    Wilson's score interval, each end one-sided at 95 %; (0, 1) without evidence.

    (Wilson, "Probable inference, the law of succession, and statistical inference", 1927.)
    """
    if total < _SMALLEST_COUNT:
        return 0.0, 1.0
    p = good / total
    if not 0.0 <= p <= 1.0:
        p = 0.0 if p < 0.0 else 1.0
    centre, divisor = p + _Z2 / (2 * total), 1 + _Z2 / total
    spread = _Z * math.sqrt(p * (1 - p) / total + _Z2 / (4 * total * total))
    low, high = (centre - spread) / divisor, (centre + spread) / divisor
    return max(low, 0.0), min(high, 1.0)


def _fails(hour: tuple[float, float] | None, week: tuple[float, float], evidence: float) -> bool:
    return (hour is not None and hour[1] < DEGRADED_UPPER) or (
        evidence >= ENOUGH and week[1] < DEGRADED_UPPER
    )


def _peak_ewma(before: float | None, seconds: float, passed: float) -> float:
    if before is None or seconds >= before:
        return seconds
    weight = math.exp(-max(passed, 0.0) / _LATENCY_TAU_S)
    # The sum may be rounded up, and a quick answer must not make a node slower.
    return min(seconds + weight * (before - seconds), before)


def _plus(counts: Counts, amount: float) -> Counts:
    return counts[0] + amount, counts[1] + amount
