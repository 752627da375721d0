"""
What routers have seen of a node, per node and model tier: never what the node says of itself.

Completion is judged by the lower end of Wilson's interval over counts that are halved at
two half-lives, an hour and a week; the lower of the two counts, where there is enough to
judge by: an idle node is not a failing one (`docs/adr/0016-lanes-and-decisions-that-remember.md`).  What a half-life
forgets bounds what any node can bank against a bad day to come.  Latency is a mean that jumps
up at once and comes down slowly (peak EWMA, Finagle), and quantiles of the last hour.

A standing is an aggregate: those of several routers are merged by adding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from msgspec import Struct, structs

from router.model.outcomes import Blame, Outcome

HALF_LIVES_S: Final = (3600.0, 7 * 86400.0)
ESTABLISHED_LOWER: Final = 0.9
PROVEN: Final = 25
"""Requests without a failure after which a node is established: Wilson's lower end is at 0.9 then."""
SEEN_ENOUGH: Final = 100.0
"""Requests within a week after which a node that is not established by them is degraded."""
DEGRADED_UPPER: Final = 0.8
"""A node is degraded where even the upper end of the interval is below this."""
CLEAN_UPPER: Final = 0.98
"""Likewise for exchanges that kept to the protocol."""
ENOUGH: Final = 10.0
"""Requests within a half-life, below which that half-life judges nobody."""
UNKNOWN_LATENCY_S: Final = 30.0
"""Nobody has measured it yet; nor is anybody rated slower, for no evidence never helps."""
FAILURE_WEIGHT: Final = 3.0
_LATENCY_TAU_S: Final = 60.0
_NOTHING: Final = 1e-9
_Z: Final = 1.6449  # one-sided 95 %
BREAKER_FAILURES: Final = 3
BREAKER_OPEN_S: Final = 10.0
BREAKER_LONGEST_S: Final = 300.0

Counts = tuple[float, float]
"""Decayed, one for each half-life."""


class Grade(StrEnum):
    """Where a node stands for a model tier."""

    ESTABLISHED = "established"
    PROBATION = "probation"
    DEGRADED = "degraded"


class Standing(Struct, frozen=True, gc=False):
    """Counts of how work at a node ended, as of *at*: Unix seconds of a clock that does not jump."""

    completed: Counts = (0.0, 0.0)
    failed: Counts = (0.0, 0.0)
    """Each failure weighs three."""
    exchanges: float = 0.0
    """Answers of any kind, at the longer half-life."""
    rejects: float = 0.0
    """Of these, how many broke the protocol, or lied about what they used."""
    at: float = 0.0
    latency_s: float | None = None
    """Seconds of a usual answer, by this router's own measure."""

    def ended(
        self, outcome: Outcome, seconds: float, now: float, *, clean: bool = True, credit: bool = True
    ) -> Standing:
        """
        With a request ended: only the node's blame moves its standing.

        Without *credit* (the node's own operator sent the work) a good end earns nothing.
        """
        if outcome is Outcome.COMPLETED:
            if not credit and clean:
                return self
            return self._completed(seconds, now, clean=clean, credit=credit)
        if outcome.blame is not Blame.NODE:
            return self
        decayed = self.decayed_to(now)
        return structs.replace(
            decayed,
            failed=_add(decayed.failed, FAILURE_WEIGHT),
            exchanges=decayed.exchanges + 1,
            rejects=decayed.rejects + (outcome is Outcome.CORRUPTED),
        )

    def _completed(self, seconds: float, now: float, *, clean: bool, credit: bool) -> Standing:
        decayed = self.decayed_to(now)
        latency = _peak_ewma(self.latency_s, seconds, now - self.at) if credit else self.latency_s
        return structs.replace(
            decayed,
            completed=_add(decayed.completed, 1.0) if credit else decayed.completed,
            exchanges=decayed.exchanges + 1,
            rejects=decayed.rejects + (not clean),
            latency_s=latency,
        )

    def clean(self) -> tuple[float, float]:
        """Wilson's interval for the share of exchanges that kept to the protocol, as of *at*."""
        return wilson(self.exchanges - self.rejects, self.exchanges)

    @property
    def is_unclean(self) -> bool:
        """Whether it surely breaks the protocol more often than a clean node."""
        return self.rejects >= 1 and self.clean()[1] < CLEAN_UPPER

    def intervals(self) -> tuple[tuple[float, float] | None, tuple[float, float]]:
        """Wilson's interval for the hour, where there is enough to judge by, and for the week."""
        (good, long_good), (bad, long_bad) = self.completed, self.failed
        # Of a quiet hour without a failure the lower end is low for want of work, not for anything done badly.
        enough = good + bad >= (ENOUGH if bad >= 1 else PROVEN)
        short = wilson(good, good + bad) if enough else None
        return short, wilson(long_good, long_good + long_bad)

    def decayed_to(self, now: float) -> Standing:
        """With its counts halved as time goes by."""
        passed = now - self.at
        if passed <= 0:
            return self
        short, long = math.exp2(-passed / HALF_LIVES_S[0]), math.exp2(-passed / HALF_LIVES_S[1])
        return Standing(
            (self.completed[0] * short, self.completed[1] * long),
            (self.failed[0] * short, self.failed[1] * long),
            self.exchanges * long,
            self.rejects * long,
            now,
            self.latency_s,
        )


def merge(own: Standing, others: Iterable[Standing], now: float) -> Standing:
    """
    What several routers have seen together.

    Latency stays the router's own measure, for it holds the way from this router to the node;
    where there is none, the slowest of the others' is taken.
    """
    total = own.decayed_to(now)
    for other in others:
        seen = other.decayed_to(now)
        latency = total.latency_s
        if own.latency_s is None and seen.latency_s is not None:
            latency = max(seen.latency_s, latency or 0.0)
        total = Standing(
            (total.completed[0] + seen.completed[0], total.completed[1] + seen.completed[1]),
            (total.failed[0] + seen.failed[0], total.failed[1] + seen.failed[1]),
            total.exchanges + seen.exchanges,
            total.rejects + seen.rejects,
            max(total.at, seen.at),
            latency,
        )
    return total


class Rating(Struct, frozen=True, gc=False):
    """What ranking goes by: a standing brought to the point."""

    tier: Grade = Grade.PROBATION
    completion: float = 0.0
    latency_s: float = UNKNOWN_LATENCY_S
    evidence: float = 0.0
    why: str = "standing.little-evidence"
    """What put it in its tier, as a code."""


def rate(standing: Standing, now: float, missed: str | None = None) -> Rating:
    """
    The rating that follows from a standing.

    Args:
        standing: Of all routers together.
        now: In its clock.
        missed: The latency objective that the node surely misses, if any.
    """
    seen = standing.decayed_to(now)
    short, long = seen.intervals()
    completion = long[0] if short is None else min(short[0], long[0])
    evidence = seen.completed[1] + seen.failed[1]
    if _fails(short, long, evidence):
        tier, why = Grade.DEGRADED, "standing.failing"
    elif seen.is_unclean:
        tier, why = Grade.DEGRADED, "standing.unclean"
    elif missed is not None:
        tier, why = Grade.DEGRADED, missed
    elif completion >= ESTABLISHED_LOWER:
        tier, why = Grade.ESTABLISHED, "standing.proven"
    elif evidence >= SEEN_ENOUGH and long[0] < ESTABLISHED_LOWER:
        # Probation ends with evidence, this way or that.
        tier, why = Grade.DEGRADED, "standing.unreliable"
    else:
        tier, why = Grade.PROBATION, "standing.little-evidence"
    latency = UNKNOWN_LATENCY_S if seen.latency_s is None else min(seen.latency_s, UNKNOWN_LATENCY_S)
    return Rating(tier, completion, latency, evidence, why)


class Load:
    """What one router has under way at a node, and its breaker there.  Monotonic seconds."""

    __slots__ = ("failures_in_a_row", "in_flight", "open_until", "refusals_in_a_row")

    def __init__(self, in_flight: int = 0, failures_in_a_row: int = 0, open_until: float = 0.0) -> None:
        self.in_flight = in_flight
        self.failures_in_a_row = failures_in_a_row
        """Also refusals for want of room and answers by another key: all that work cannot be sent to."""
        self.open_until = open_until
        """The breaker: no work before then, and one probe at a time after."""
        self.refusals_in_a_row = 0
        """Of requests, as such, with nothing completed between them."""

    def ended(self, outcome: Outcome, now: float) -> None:
        """A request is over."""
        self.in_flight = max(self.in_flight - 1, 0)
        self.saw(outcome, now)

    def saw(self, outcome: Outcome, now: float) -> None:
        """Three failures in a row open the breaker, each further one for twice as long."""
        if outcome is Outcome.COMPLETED:
            self.failures_in_a_row = self.refusals_in_a_row = 0
            self.open_until = 0.0
        elif outcome is Outcome.REFUSED:
            self.refusals_in_a_row += 1
        elif outcome in BREAKING:
            self.failures_in_a_row += 1
            beyond = self.failures_in_a_row - BREAKER_FAILURES
            if beyond >= 0:
                self.open_until = now + min(BREAKER_OPEN_S * 2.0 ** min(beyond, 8), BREAKER_LONGEST_S)

    def is_open(self, now: float) -> bool:
        """Whether the breaker keeps work away: until its time is over, and then while a probe is under way."""
        if self.failures_in_a_row < BREAKER_FAILURES:
            return False
        return now < self.open_until or self.in_flight > 0


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
    p, z2 = min(max(good / total, 0.0), 1.0), _Z * _Z
    centre = p + z2 / (2 * total)
    spread = _Z * math.sqrt(max(p * (1 - p) / total + z2 / (4 * total * total), 0.0))
    return max((centre - spread) / (1 + z2 / total), 0.0), min((centre + spread) / (1 + z2 / total), 1.0)


def _fails(short: tuple[float, float] | None, long: tuple[float, float], evidence: float) -> bool:
    return (short is not None and short[1] < DEGRADED_UPPER) or (
        evidence >= ENOUGH and long[1] < DEGRADED_UPPER
    )


def _peak_ewma(before: float | None, seconds: float, passed: float) -> float:
    if before is None or seconds >= before:
        return seconds
    weight = math.exp(-max(passed, 0.0) / _LATENCY_TAU_S)
    # The sum may be rounded up, and a quick answer must not make anybody slower.
    return min(seconds + weight * (before - seconds), before)


def _add(counts: Counts, amount: float) -> Counts:
    return counts[0] + amount, counts[1] + amount
