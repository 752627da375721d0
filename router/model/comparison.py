"""
What became of the requests of two arms, side by side, and whether the candidate is worse.  Pure.

The tests, and what each tries to refute (`Bounds` has the figures):

    failures    a request that fails falls on the candidate by its share of the traffic, times the ratio
    ceiling     of the candidate's requests, so many fail at most that the table in force then completes
    retries     as failures, of requests that another node had to complete
    p99         of the candidate's requests, one in a hundred at most takes longer than the bound
    pace        the same of the time for each token of a stream
    cost        a request's cost is at most so much above what it would be by the table in force, on average

Failures, retries, p99 and pace compare requests of the same time: what makes both arms worse stops nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct, field

from router.model.change import Arm, Bounds
from router.model.quantiles import Counts, bucket_of, merged_counts, quantile
from router.model.sequential import Split, Wager, log_limit

TESTS: Final = ("failures", "ceiling", "retries", "p99", "pace", "cost")
LEAST_TIMES: Final = 100
"""Requests of the table in force before its 99th percentile is known well enough."""
_WINDOW: Final = 2000
"""Requests after which the times that were seen count half."""
_MOST_RATIO: Final = 1000.0
_NOTHING: Final = Wager()
_P99_RATIO: Final = 1.0
"""Slow requests fall on the arms by their traffic; the bound is in the time that is slow."""


class Observation(Struct, frozen=True, kw_only=True):
    """What became of one request."""

    arm: Arm
    stratum: str
    """Requests are compared with those of the same: the workload, and whether they are streamed."""
    revision: str = ""
    """Of the node that was tried first."""
    failed: bool | None = None
    """`None`: it says nothing, because of the client, the network or the router itself."""
    refused: bool = False
    """Whether it failed because the table had no node for it, or could not decide."""
    retried: bool = False
    """Whether a node failed, and another one then completed it."""
    seconds: float | None = None
    """To the first text, or of a whole answer, as for the tier's usual exchange."""
    is_over: bool = True
    """Whether that is all; otherwise the client has left after so long, and it would have taken longer."""
    token_s: float | None = None
    """For each token of a stream after the first."""
    cost: int = 0
    """Exactly, in millionths of a millionth of the unit."""
    other_cost: int | None = None
    """What it would have cost by the other table; `None` if nobody knows."""
    tokens: int = 0


class Counted(Struct):
    """The requests of an arm at nodes of one revision."""

    requests: int = 0
    failed: int = 0
    refused: int = 0
    retried: int = 0
    excused: int = 0
    """Requests that say nothing."""
    tokens: int = 0
    cost: int = 0
    times: Counts = {}

    def add(self, seen: Observation) -> None:
        """Count a request."""
        self.requests += 1
        self.excused += seen.failed is None
        self.failed += bool(seen.failed)
        self.refused += seen.refused
        self.retried += seen.retried
        self.tokens += seen.tokens
        self.cost += seen.cost
        if seen.seconds is not None and seen.is_over:
            bucket = bucket_of(seen.seconds)
            self.times[bucket] = self.times.get(bucket, 0) + 1

    @classmethod
    def sum(cls, each: Iterable[Counted]) -> Counted:
        """Several together."""
        total = cls()
        for one in each:
            for name in ("requests", "failed", "refused", "retried", "excused", "tokens", "cost"):
                setattr(total, name, getattr(total, name) + getattr(one, name))
            total.times = merged_counts(total.times, one.times)
        return total

    @property
    def judged(self) -> int:
        """Requests that say something."""
        return self.requests - self.excused


class Times(Struct):
    """Times of the table in force, with fading weights."""

    times: dict[int, float] = {}
    weight: float = 0.0
    limit_s: float | None = None
    """From when on a request is slow."""
    since: int = 0

    def add(self, seconds: float, percent: int) -> None:
        """Count one, and set anew from when on a request is slow, after every 50: *percent* above the 99th percentile."""
        bucket = bucket_of(seconds)
        self.since += 1
        self.times[bucket] = self.times.get(bucket, 0.0) + 1.0
        self.weight += 1.0
        if self.weight >= _WINDOW:
            self.times = {b: w / 2 for b, w in self.times.items() if w / 2 >= 0.5}
            self.weight = sum(self.times.values())
        if self.weight >= LEAST_TIMES and (self.limit_s is None or self.since >= LEAST_TIMES // 2):
            self.since = 0
            # As many above it as there may be by chance: few times make the limit longer, not shorter.
            level = min(0.99 + 2 * (0.99 * 0.01 / self.weight) ** 0.5, 1.0)
            found = quantile({b: round(w) for b, w in self.times.items()}, level)
            assert found is not None
            self.limit_s = found * (1 + percent / 100)


class Stratum(Struct):
    """Requests that are compared with each other."""

    split: Split = field(default_factory=Split)
    times: dict[str, Times] = {}
    """By test."""


class Comparison(Struct):
    """All that one router has seen of a change since its stage began."""

    counts: dict[str, dict[str, Counted]] = {}
    """By arm and revision."""
    wagers: dict[str, Wager] = {}
    slow: dict[str, Wager] = {}
    """That slow requests fall on the candidate more often than its traffic does, by test."""
    strata: dict[str, Stratum] = {}

    def add(self, seen: Observation, bounds: Bounds, share: float, *, is_compared: bool = True) -> None:
        """
        Take in a request.

        Args:
            share: Of the traffic, that the candidate is to have.
            is_compared: Whether it is one of those that are compared; otherwise it is counted alone.
        """
        by_revision = self.counts.setdefault(seen.arm, {})
        by_revision.setdefault(seen.revision, Counted()).add(seen)
        if not is_compared:
            return
        is_candidate = seen.arm is Arm.CANDIDATE
        stratum = self.strata.setdefault(seen.stratum, Stratum())
        for name, seconds, percent in (
            ("p99", seen.seconds, bounds.p99_percent),
            ("pace", seen.token_s, bounds.pace_percent),
        ):
            if seconds is not None:
                self._time(name, stratum, seconds, seen, percent, share)
        if seen.failed is None:
            return
        self._compare(stratum, seen, bounds, share)
        if is_candidate:
            self._wager("ceiling").add(float(seen.failed), bounds.failures_per_mille / 1000)
            if seen.other_cost is not None:
                ratio = _ratio(seen.cost, seen.other_cost)
                self._wager("cost").add(ratio, 1 + bounds.cost_percent / 100)
        stratum.split.add(is_candidate=is_candidate)

    def _time(
        self, name: str, stratum: Stratum, seconds: float, seen: Observation, percent: int, share: float
    ) -> None:
        """Compare how long a request took with when it is slow; who left before that says nothing."""
        times = stratum.times.setdefault(name, Times())
        is_candidate, limit = seen.arm is Arm.CANDIDATE, times.limit_s
        is_slow = limit is not None and seconds > limit
        if limit is not None and (is_slow or seen.is_over):
            bias = stratum.split.bias(share, _P99_RATIO) if is_slow else None
            if bias is not None:
                self.slow.setdefault(name, Wager()).add(float(is_candidate), bias)
            if is_candidate:
                self._wager(name).add(float(is_slow), 0.01)
        if not is_candidate and seen.is_over:
            times.add(seconds, percent)

    def _compare(self, stratum: Stratum, seen: Observation, bounds: Bounds, share: float) -> None:
        """Have each event count for the arm on which it falls."""
        is_candidate = seen.arm is Arm.CANDIDATE
        for name, happened, percent in (
            ("failures", seen.failed, bounds.failures_ratio_percent),
            ("retries", seen.retried, bounds.retries_ratio_percent),
        ):
            bias = stratum.split.bias(share, percent / 100) if happened else None
            if bias is not None:
                self._wager(name).add(float(is_candidate), bias)

    def _wager(self, name: str) -> Wager:
        return self.wagers.setdefault(name, Wager())

    def evidence(self) -> dict[str, float]:
        """By test, the logarithm of the wealth of who bets that the candidate is worse."""
        found = {name: wager.log_wealth for name, wager in self.wagers.items()}
        for name in ("p99", "pace"):
            if name in found:
                found[name] = min(found[name], self.slow.get(name, _NOTHING).log_wealth)
        return found

    def of(self, arm: Arm) -> Counted:
        """The requests of an arm."""
        return Counted.sum(self.counts.get(arm, {}).values())


def find_worse(each: Sequence[Comparison], bounds: Bounds) -> str | None:
    """
    The test that stops the change, if one does.

    Args:
        each: What each router has seen: their requests are apart, so that the wealth of the bettors multiplies.
    """
    limit = limit_of(bounds)
    total = sum_evidence(each)
    for name in TESTS:
        if total.get(name, 0.0) >= limit and not _is_small(name, each, bounds):
            return name
    return None


def limit_of(bounds: Bounds) -> float:
    """The logarithm of the wealth that stops a change."""
    return log_limit(bounds.alpha_per_mille / 1000, len(TESTS))


def sum_evidence(each: Sequence[Comparison]) -> dict[str, float]:
    """By test, the logarithm of the wealth of all routers' bettors together."""
    total: dict[str, float] = {}
    for comparison in each:
        for name, log in comparison.evidence().items():
            total[name] = total.get(name, 0.0) + log
    return total


def _is_small(name: str, each: Sequence[Comparison], bounds: Bounds) -> bool:
    """Whether a rate is hardly above the other's, so that its ratio means little."""
    if name not in ("failures", "retries"):
        return False
    of = "failed" if name == "failures" else "retried"
    arms = [Counted.sum(c.of(arm) for c in each) for arm in (Arm.CANDIDATE, Arm.ACTIVE)]
    rates = [getattr(arm, of) / max(arm.judged, 1) for arm in arms]
    return bool(rates[0] - rates[1] <= bounds.least_per_mille / 1000)


def _ratio(cost: int, other: int) -> float:
    if not other:
        return 1.0 if not cost else _MOST_RATIO
    return min(cost / other, _MOST_RATIO)
