"""What one router keeps of a node for one tier: its standing, its latencies, its load."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, structs

from router.model.outcomes import Outcome
from router.model.quantiles import Counts, RecentDurations, bucket_of, enough_for, merged, quantile
from router.model.standing import Load, Rating, Standing, merge, rate
from router.model.workload import Workload

_OBJECTIVES: Final = (
    ("first", 0.9, "first_token_p90_ms"),
    ("first", 0.99, "first_token_p99_ms"),
    ("token", 0.9, "token_p90_ms"),
    ("token", 0.99, "token_p99_ms"),
    ("answer", 0.9, "answer_p90_ms"),
    ("answer", 0.99, "answer_p99_ms"),
)
"""Series, quantile, and the setting of the workload that bounds it."""
_MOST: Final = 1e12
_MOST_COUNTS: Final = 100_000
_FARTHEST: Final = bucket_of(1e9)
SERIES: Final = ("first", "token", "answer")


class StatisticsAggregate(Struct, frozen=True, array_like=True):
    """What one router has seen of a node for a tier."""

    standing: Standing
    slices: dict[str, dict[int, Counts]] = {}
    """By series, the slices of `router.model.quantiles.RecentDurations`."""

    def is_sound(self) -> bool:
        """Whether its numbers are such as a router counts: another wrote it."""
        seen = self.standing
        numbers = (
            *seen.completed,
            *seen.failed,
            seen.exchanges,
            seen.rejects,
            seen.at,
            seen.latency_s or 0.0,
        )
        counts = [c for slices in self.slices.values() for counts in slices.values() for c in counts.values()]
        return (
            all(0 <= number <= _MOST for number in numbers)
            and len(counts) <= _MOST_COUNTS
            and all(0 <= count <= _MOST for count in counts)
            and all(
                abs(b) <= _FARTHEST
                for slices in self.slices.values()
                for counts in slices.values()
                for b in counts
            )
        )


class NodeStatistics:
    """NodeStatistics by events; its rating is what decisions go by."""

    __slots__ = ("load", "missed", "others", "own", "pace", "rating", "recent", "recent_of_others")

    def __init__(self) -> None:
        self.own = Standing()
        self.others: dict[str, Standing] = {}
        """What other routers have seen, by router."""
        self.recent_of_others: dict[str, dict[str, RecentDurations]] = {}
        self.recent: dict[str, RecentDurations] = {name: RecentDurations() for name in SERIES}
        """Seconds to the first token, for each further token, for a whole answer."""
        self.load = Load()
        self.rating = Rating()
        self.missed: str | None = None
        """The objective that it surely misses, as a code."""
        self.pace: float | None = None
        """Tokens per second, where enough were seen in the last hour."""

    @property
    def proven(self) -> float:
        """Requests completed, by all routers' count, as far as warm-up needs to know."""
        return self.own.completed[1] + sum(other.completed[1] for other in self.others.values())

    def ended(
        self, outcome: Outcome, seconds: float, now: float, *, clean: bool = True, credit: bool = True
    ) -> None:
        """A request is over.  *now* in Unix seconds."""
        before = self.own
        self.own = before.ended(outcome, seconds, now, clean=clean, credit=credit)
        if self.own is not before:
            self.rate(now)

    def took(self, seconds: float, first_s: float | None, token_s: float | None, now: float) -> None:
        """How long a completed request took."""
        if first_s is None:
            self.recent["answer"].add(seconds, now)
            return
        self.recent["first"].add(first_s, now)
        if token_s is not None:
            self.recent["token"].add(token_s, now)

    def start_over(self, now: float) -> None:
        """To probation: what was good is forgotten, what was bad is not."""
        self.own = structs.replace(self.own, completed=(0.0, 0.0), latency_s=None)
        self.others = {
            router: structs.replace(other, completed=(0.0, 0.0)) for router, other in self.others.items()
        }
        self.rate(now)

    def account(self, now: float) -> StatisticsAggregate:
        """What this router has seen, to be written down."""
        slices = {}
        for name, recent in self.recent.items():
            recent.forget(now)
            slices[name] = recent.slices
        return StatisticsAggregate(self.own, slices)

    def restore(self, account: StatisticsAggregate, now: float) -> None:
        """What this router had seen before it was started again."""
        self.own = account.standing
        self.recent = {name: RecentDurations(account.slices.get(name)) for name in SERIES}
        self.rate(now)

    def hear(self, router: str, account: StatisticsAggregate, now: float) -> None:
        """What another router has seen."""
        self.others[router] = account.standing
        self.recent_of_others[router] = {name: RecentDurations(s) for name, s in account.slices.items()}
        self.rate(now)

    def last_hour(self, series: str, now: float) -> Counts:
        """The durations of a series that all routers saw."""
        others = (of[series] for of in self.recent_of_others.values() if series in of)
        return merged([self.recent[series], *others], now)

    def rate(self, now: float) -> None:
        """Bring the rating up to what is known now."""
        standing = merge(self.own, self.others.values(), now) if self.others else self.own
        self.rating = rate(standing, now, self.missed)

    def judge(self, workload: Workload | None, now: float) -> None:
        """Hold the last hour against the objectives, and bring the rating up to now."""
        self.missed = None if workload is None else self._missed(workload, now)
        counts = self.last_hour("token", now)
        median = quantile(counts, 0.5) if sum(counts.values()) >= enough_for(0.9) else None
        self.pace = None if median is None else 1 / median
        self.rate(now)

    def _missed(self, workload: Workload, now: float) -> str | None:
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
