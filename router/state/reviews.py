"""What waits for people at this router: in which order, how much, and how long reviews take (`verifier.triage`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import Gauge

from router.store import holds
from router.store.holds import Hold
from verifier.store.database import Database, Row
from verifier.triage import QUANTILES, TIMED_MS, Fault, Waiting, quantile

_FRESH_MS: Final = 60_000
_MS: Final = 1000

_waiting = Gauge("touchstone_router_reviews_waiting", "What waits for a person at this router.", ["kind"])
_overdue = Gauge("touchstone_router_reviews_overdue", "What waits for longer than its target.", ["kind"])
_oldest = Gauge("touchstone_router_reviews_oldest_seconds", "How long the oldest has waited.", ["kind"])
_times = Gauge(
    "touchstone_router_review_seconds",
    "How long what was decided within 30 days had waited.",
    ["kind", "quantile"],
)


def waiting(queue: Iterable[Hold], past: Iterable[Row]) -> list[Waiting]:
    """The open holds with what people have found before about the same kind; an operator counts once."""
    seen = {(row["kind"], row["fault"], row["operator"]) for row in past if row["fault"] is not None}
    found = Counter((kind, fault) for kind, fault, _ in seen)
    return [
        Waiting(
            id=hold.id,
            kind=hold.kind,
            code=hold.code,
            since_ms=hold.opened_ms,
            due_ms=hold.due_ms,
            held=hold.holding,
            at_fault=found[hold.kind, Fault.NODE],
            not_at_fault=found[hold.kind, Fault.OURS],
        )
        for hold in queue
    ]


class ReviewWatch:
    """Keeps the metrics of reviews; those of times come from the store, so that a restart keeps them."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._next_ms = 0

    async def refresh(self, queue: Iterable[Hold], now_ms: int) -> None:
        """Set the metrics by the open holds; the times once a minute.  Raises `StoreError`."""
        _set_queue(list(queue), now_ms)
        if now_ms < self._next_ms:
            return
        async with self._db.read() as tx:
            past = await holds.decided(tx, now_ms - TIMED_MS)
        self._next_ms = now_ms + _FRESH_MS
        _set_times(past)


def _set_queue(queue: Sequence[Hold], now_ms: int) -> None:
    for gauge in (_waiting, _overdue, _oldest):
        gauge.clear()
    for hold in queue:
        _waiting.labels(hold.kind).inc()
        _overdue.labels(hold.kind).inc(hold.due_ms < now_ms)
    for kind in {hold.kind for hold in queue}:
        oldest = min(hold.opened_ms for hold in queue if hold.kind == kind)
        _oldest.labels(kind).set((now_ms - oldest) / _MS)


def _set_times(past: Sequence[Row]) -> None:
    _times.clear()
    by_kind: dict[str, list[int]] = {}
    for row in past:
        by_kind.setdefault(row["kind"], []).append(row["at_ms"] - row["opened_ms"])
    for kind, times in by_kind.items():
        times.sort()
        for share in QUANTILES:
            _times.labels(kind, f"{share:g}").set(quantile(times, share) / _MS)
