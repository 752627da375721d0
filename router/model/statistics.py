"""What one router measures of a node for one tier: its standing, its latencies, its load."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, structs

from router.model.allowance import SEEN_SHARE, Seen
from router.model.load import Load
from router.model.outcomes import Execution, Outcome
from router.model.quantiles import (
    Counts,
    RecentDurations,
    bucket_of,
    enough_for,
    merged,
    merged_counts,
    quantile,
)
from router.model.standing import Rating, Standing, merge, rate
from router.model.workload import Workload

SERIES: Final = ("first", "token", "answer", "whole", "prompt")
"""
Durations that are measured: to the first token, for each further token, of a whole answer; and for time-outs alone, for
each token of a whole answer, and of a prompt.
"""
_OBJECTIVES: Final = (
    ("first", 0.9, "first_token_p90_ms"),
    ("first", 0.99, "first_token_p99_ms"),
    ("token", 0.9, "token_p90_ms"),
    ("token", 0.99, "token_p99_ms"),
    ("answer", 0.9, "answer_p90_ms"),
    ("answer", 0.99, "answer_p99_ms"),
)
"""Series, quantile, and the setting of the workload that bounds it."""
_MAX_NUMBER: Final = 1e12
_MAX_BUCKETS: Final = 100_000
_HIGHEST_BUCKET: Final = bucket_of(1e9)


class StatisticsAggregate(Struct, frozen=True, array_like=True):
    """What one router measured of a node for a tier, in the form that routers share."""

    standing: Standing
    slices: dict[str, dict[int, Counts]] = {}
    """By series, the slices of `RecentDurations`."""

    def is_sound(self) -> bool:
        """Whether its numbers are such as a router counts: another router wrote them."""
        seen = self.standing
        numbers = (
            *seen.completed,
            *seen.failed,
            seen.exchanges,
            seen.rejects,
            seen.calls,
            seen.bad_calls,
            seen.at,
            seen.latency_s or 0.0,
        )
        buckets = [
            item for slices in self.slices.values() for counts in slices.values() for item in counts.items()
        ]
        return (
            all(0 <= number <= _MAX_NUMBER for number in numbers)
            and len(buckets) <= _MAX_BUCKETS
            and all(abs(bucket) <= _HIGHEST_BUCKET and 0 <= n <= _MAX_NUMBER for bucket, n in buckets)
        )


class NodeStatistics:
    """Kept up to date by events.  Decisions go by its rating."""

    __slots__ = (
        "load",
        "missed_objective",
        "others",
        "own",
        "pace",
        "rating",
        "recent",
        "recent_of_others",
        "seen",
    )

    def __init__(self) -> None:
        self.own = Standing()
        self.others: dict[str, Standing] = {}
        """What other routers measured, by router."""
        self.recent: dict[str, RecentDurations] = {}
        """By series; one that was never measured is not there."""
        self.recent_of_others: dict[str, dict[str, RecentDurations]] = {}
        self.load = Load()
        self.rating = Rating()
        self.missed_objective: str | None = None
        """The latency objective that the node surely misses, as a code."""
        self.pace: float | None = None
        """Tokens per second over the last hour, if enough were measured."""
        self.seen = Seen()
        """How slow it was in the last hour, for its time-outs."""

    @property
    def proven(self) -> float:
        """Requests completed within the week, by all routers' count.  Warm-up follows from it."""
        return self.own.completed[1] + sum(other.completed[1] for other in self.others.values())

    def add(self, execution: Execution, now: float) -> None:
        """Count an execution that ended at *now*, Unix seconds."""
        if execution.is_unrated and execution.is_clean:
            return
        before = self.own
        self.own = before.add(execution, now)
        if self.own is not before:
            self.update_rating(now)
        if execution.outcome is Outcome.COMPLETED and execution.earns_credit:
            self._add_durations(execution, now)

    def _add_durations(self, execution: Execution, now: float) -> None:
        if execution.prompt_token_s is not None:
            self._add_duration("prompt", execution.prompt_token_s, now)
        if execution.first_token_s is None:
            self._add_duration("answer", execution.seconds * execution.size_share, now)
            if execution.whole_token_s is not None:
                self._add_duration("whole", execution.whole_token_s, now)
            return
        self._add_duration("first", execution.first_token_s * execution.size_share, now)
        if execution.token_s is not None:
            self._add_duration("token", execution.token_s, now)

    def _add_duration(self, series: str, seconds: float, now: float) -> None:
        if series not in self.recent:
            self.recent[series] = RecentDurations()
        self.recent[series].add(seconds, now)

    def forget_completions(self, now: float) -> None:
        """Return the node to probation: good work is forgotten, failures are not."""
        self.own = structs.replace(self.own, completed=(0.0, 0.0), latency_s=None)
        self.others = {
            router: structs.replace(other, completed=(0.0, 0.0)) for router, other in self.others.items()
        }
        self.update_rating(now)

    def aggregate(self, now: float) -> StatisticsAggregate:
        """What this router measured, to be stored and shared."""
        slices: dict[str, dict[int, Counts]] = {name: {} for name in SERIES}
        for name, recent in self.recent.items():
            recent.forget(now)
            slices[name] = recent.slices
        return StatisticsAggregate(self.own, slices)

    def restore(self, aggregate: StatisticsAggregate, now: float) -> None:
        """Take up what this router measured before it was restarted."""
        self.own = aggregate.standing
        self.recent = {
            name: RecentDurations(aggregate.slices[name]) for name in SERIES if aggregate.slices.get(name)
        }
        self.update_rating(now)

    def merge_peer(self, router: str, aggregate: StatisticsAggregate, now: float) -> None:
        """Take in what another router measured."""
        self.others[router] = aggregate.standing
        self.recent_of_others[router] = {name: RecentDurations(s) for name, s in aggregate.slices.items()}
        self.update_rating(now)

    def last_hour(self, series: str, now: float) -> Counts:
        """The durations of a series that all routers measured."""
        everybodys = (self.recent, *self.recent_of_others.values())
        return merged([of[series] for of in everybodys if series in of], now)

    def update_rating(self, now: float) -> None:
        """Bring the rating up to *now*."""
        standing = merge(self.own, self.others.values(), now) if self.others else self.own
        self.rating = rate(standing, now, self.missed_objective)

    def check_objectives(self, workload: Workload | None, now: float) -> None:
        """Compare the last hour with the workload's latency objectives, and update pace and rating."""
        self.missed_objective = None if workload is None else self._find_missed_objective(workload, now)
        counts = self.last_hour("token", now)
        median = quantile(counts, 0.5) if sum(counts.values()) >= enough_for(0.9) else None
        self.pace = None if median is None else 1 / median
        self.seen = Seen(
            self._slowest(merged_counts(counts, self.last_hour("whole", now))),
            self._slowest(self.last_hour("prompt", now)),
        )
        self.update_rating(now)

    @staticmethod
    def _slowest(counts: Counts) -> float | None:
        return quantile(counts, SEEN_SHARE) if sum(counts.values()) >= enough_for(0.9) else None

    def _find_missed_objective(self, workload: Workload, now: float) -> str | None:
        for series, share, setting in _OBJECTIVES:
            bound_ms = getattr(workload, setting)
            if not bound_ms:
                continue
            counts = self.last_hour(series, now)
            if sum(counts.values()) < enough_for(share):
                continue
            found = quantile(counts, share)
            if found is not None and found * 1000 > bound_ms:
                return "standing." + setting.removesuffix("_ms").replace("_", "-")
        return None
