"""
What the checks of a day said, as counts, and what they come to for people.  Pure.

Distances are counted in buckets, four a decade, so that medians of days, nodes and versions can be put together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

DAY_MS: Final = 24 * 3600 * 1000
_LEAST: Final = -7
"""The power of ten of the first bucket: what is nearer is in it too."""
_PER_DECADE: Final = 4
_LAST: Final = 9 * _PER_DECADE
"""The last bucket, from 100 on."""

Buckets = dict[int, int]
"""How many distances, by bucket."""


class Counts(Struct, frozen=True, kw_only=True):
    """How many checks said what."""

    agrees: int = 0
    differs: int = 0
    censored: int = 0
    prompts: int = 0
    """So many prompts were rendered otherwise."""
    parts: int = 0
    """So many greedy answers leave the minted text somewhere."""
    parts_of: int = 0
    far: int = 0
    """So many distances are near the limit (`verifier.answers.drift.NEAR`)."""
    far_of: int = 0
    distances: Buckets = {}


NAMES: Final = ("agrees", "differs", "censored", "prompts", "parts", "parts_of", "far", "far_of")
"""The counts that are numbers."""


def bucket(distance: float) -> int:
    """Give the bucket of a distance."""
    if not distance > 0:
        return 0
    return min(max(math.floor((math.log10(distance) - _LEAST) * _PER_DECADE) + 1, 0), _LAST)


def top_of(number: int) -> float:
    """Give the upper end of a bucket, which is what a distance in it is shown as."""
    return float(10 ** (_LEAST + number / _PER_DECADE))


def merge(found: Iterable[Counts]) -> Counts:
    """Put counts together."""
    sums = dict.fromkeys(NAMES, 0)
    distances: Buckets = {}
    for each in found:
        for name in NAMES:
            sums[name] += getattr(each, name)
        for number, count in each.distances.items():
            distances[number] = distances.get(number, 0) + count
    return Counts(**sums, distances=distances)


def quantile(buckets: Mapping[int, int], share: float) -> float | None:
    """Give the distance below which a share of them is: the upper end of its bucket.  `None` if there are none."""
    wanted = math.ceil(sum(buckets.values()) * share)
    seen = 0
    for number in sorted(buckets):
        seen += buckets[number]
        if seen >= wanted:
            return top_of(number)
    return None


def encode(buckets: Mapping[int, int]) -> str:
    """Buckets as JSON."""
    return msgspec.json.encode({str(number): buckets[number] for number in sorted(buckets)}).decode()


def decode(text: str) -> Buckets:
    """Read what `encode` wrote."""
    return msgspec.json.decode(text, type=dict[int, int], strict=False)


def interval(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Give the interval of a share (Wilson 1927), 95 % by default."""
    if not of:
        return 0.0, 1.0
    share = hits / of
    middle = share + z * z / (2 * of)
    spread = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max((middle - spread) / (1 + z * z / of), 0.0), min((middle + spread) / (1 + z * z / of), 1.0)


def shown(counts: Counts) -> dict[str, Any]:
    """As people and programs read them: each share with its counts and its interval, and the distances."""
    return {
        "checks": counts.agrees + counts.differs + counts.censored,
        "differs": _share(counts.differs, counts.agrees + counts.differs),
        "censored": _share(counts.censored, counts.agrees + counts.differs + counts.censored),
        "parts": _share(counts.parts, counts.parts_of),
        "far": _share(counts.far, counts.far_of),
        "prompts_differ": counts.prompts,
        "distance": {
            "of": sum(counts.distances.values()),
            "median": quantile(counts.distances, 0.5),
            "p99": quantile(counts.distances, 0.99),
        },
    }


def _share(hits: int, of: int) -> dict[str, Any]:
    low, high = interval(hits, of)
    return {
        "count": hits,
        "of": of,
        "rate": round(hits / of, 5) if of else None,
        "low": round(low, 5),
        "high": round(high, 5),
    }
