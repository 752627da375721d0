"""How much waits for people and how long reviews take, as metrics; the database has the figures, so a restart keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from prometheus_client import Gauge

from verifier.store import reviews
from verifier.store.database import Database
from verifier.store.reviews import Figures
from verifier.triage import QUANTILES, quantile

_FRESH_S: Final = 10.0
_MS: Final = 1000

_waiting = Gauge("touchstone_reviews_waiting", "What waits for a person.", ["kind"])
_overdue = Gauge("touchstone_reviews_overdue", "What waits for longer than its target.", ["kind"])
_oldest = Gauge("touchstone_reviews_oldest_seconds", "How long the oldest has waited.", ["kind"])
_times = Gauge(
    "touchstone_review_seconds",
    "How long what was decided within 30 days had waited: until somebody looked, and until it was decided.",
    ["kind", "until", "quantile"],
)


class ReviewWatch:
    """Keeps the metrics as the database has them."""

    def __init__(self, db: Database, now_ms: Callable[[], int], monotonic: Callable[[], float]) -> None:
        self._db = db
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._next_s = float("-inf")

    async def refresh(self) -> None:
        """Read the figures again if they are older than ten seconds.  Raises `StoreError`."""
        async with self._lock:
            if self._monotonic() < self._next_s:
                return
            now_ms = self._now_ms()
            async with self._db.read() as tx:
                figures = await reviews.figures(tx, now_ms)
            self._next_s = self._monotonic() + _FRESH_S
            _set(figures, now_ms)


def _set(figures: Figures, now_ms: int) -> None:
    """Set the metrics: a kind of which nothing waits is left out."""
    for gauge in (_waiting, _overdue, _oldest, _times):
        gauge.clear()
    for kind, count in figures.waiting.items():
        _waiting.labels(kind).set(count)
        _overdue.labels(kind).set(figures.overdue[kind])
        _oldest.labels(kind).set((now_ms - figures.oldest_ms[kind]) / _MS)
    for until, by_kind in (("looked", figures.looked_ms), ("decided", figures.decided_ms)):
        for kind, times in by_kind.items():
            for share in QUANTILES:
                _times.labels(kind, until, f"{share:g}").set(quantile(times, share) / _MS)
