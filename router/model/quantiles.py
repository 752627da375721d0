"""
Quantiles of durations: a log-histogram that merges by adding.

The mapping is DDSketch's (Masson, Rim, Lee, "DDSketch: a fast and fully-mergeable quantile
sketch", VLDB 2019).  Bucket i holds (γ^(i−1), γ^i] with γ = (1+α)/(1−α), so that a quantile is
off by at most α = 1 %, whatever the distribution.  Counts are kept in slices of five minutes;
the newest twelve are the last hour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, TypeAlias

ALPHA: Final = 0.01
SLICE_S: Final = 300
SLICES: Final = 12
_GAMMA: Final = (1 + ALPHA) / (1 - ALPHA)
_PER_LOG: Final = 1 / math.log(_GAMMA)
_SHORTEST_S: Final = 1e-4
_LONGEST_S: Final = 1e5

Counts: TypeAlias = dict[int, int]
"""How many durations fell into each bucket."""


def bucket_of(seconds: float) -> int:
    """The bucket for a duration; the histogram covers 0.1 ms to a day."""
    return math.ceil(math.log(min(max(seconds, _SHORTEST_S), _LONGEST_S)) * _PER_LOG)


def value_of(bucket: int) -> float:
    """The value that stands for a bucket, in seconds: 2γ^i/(γ+1), within α of all that it holds."""
    return 2 * math.pow(_GAMMA, bucket) / (_GAMMA + 1)


class RecentDurations:
    """The durations of the last hour."""

    __slots__ = ("slices",)

    def __init__(self, slices: dict[int, Counts] | None = None) -> None:
        self.slices = {} if slices is None else slices
        """By number of the slice: its start in Unix seconds, divided by its length."""

    def add(self, seconds: float, now: float) -> None:
        """Count one more duration."""
        number = int(now // SLICE_S)
        counts = self.slices.get(number)
        if counts is None:
            counts = self.slices[number] = {}
            self.forget(now)
        bucket = bucket_of(seconds)
        counts[bucket] = counts.get(bucket, 0) + 1

    def forget(self, now: float) -> None:
        """Drop the slices that are older than an hour, and those that lie in the future."""
        newest = int(now // SLICE_S)
        for number in [n for n in self.slices if not newest - SLICES < n <= newest]:
            del self.slices[number]


def merged(recents: Iterable[RecentDurations], now: float) -> Counts:
    """The counts of the last hour, of several routers together."""
    newest = int(now // SLICE_S)
    total: Counts = {}
    for recent in recents:
        for number, counts in recent.slices.items():
            if newest - SLICES < number <= newest:
                for bucket, count in counts.items():
                    total[bucket] = total.get(bucket, 0) + count
    return total


def merged_counts(*each: Counts) -> Counts:
    """Several counts together."""
    total: Counts = {}
    for counts in each:
        for bucket, count in counts.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def quantile(counts: Counts, share: float) -> float | None:
    """The duration that *share* of the counted ones did not exceed; `None` if nothing was counted."""
    total = sum(counts.values())
    if not total:
        return None
    rank = max(math.ceil(share * total), 1)
    passed = 0
    for bucket in sorted(counts):
        passed += counts[bucket]
        if passed >= rank:
            break
    return value_of(bucket)


def enough_for(share: float) -> int:
    """
    How many durations must be counted before a quantile is judged.

    With fewer, even the largest may be below the true quantile with 95 % confidence:
    share^n ≤ 0.05, which is 29 for p90 and 299 for p99.
    """
    return math.ceil(math.log(0.05) / math.log(share))
