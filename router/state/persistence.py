"""
Persistence: writes what this router has measured and decided, and reads what other routers measured.

Every few seconds, some hundred rows at a time: statistics that changed, records of decisions, budgets.  A
crash loses at most what came since.  Holds are not written here; they are never lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import structlog
from prometheus_client import Counter

from router.config import StoreSection
from router.model.clock import Clock
from router.model.statistics import StatisticsAggregate
from router.state.fleet import Fleet
from router.state.records import FinishedRecord, Records
from router.store import decisions, forgetting, standings
from verifier.errors import StoreError
from verifier.store.database import Database, Tx

_FORGET_EVERY_S: Final = 600.0
_DAY_MS: Final = 86_400_000
_AT_ONCE: Final = 500
"""Rows of one transaction: requests wait for it some milliseconds at most."""

_log = structlog.get_logger("router")
records_lost = Counter("touchstone_router_records_lost_total", "Records of decisions that were not written.")


class Budgets(Protocol):
    """What API keys have spent: by name of the key, the day since 1970 and tokens."""

    def spent(self) -> dict[str, tuple[int, int]]:
        """What was spent through this router."""

    def restore(self, spent: Mapping[str, tuple[int, int]]) -> None:
        """Take up what `spent` gave before a restart."""

    def set_spent_by_others(self, spent: Mapping[str, tuple[int, int]]) -> None:
        """Set what was spent through other routers."""


class Lease(Protocol):
    """The right to write under a router's name."""

    async def confirm(self, tx: Tx) -> None:
        """Make sure, in the transaction that writes, that no other router has it.  Raises `StoreError`."""


class Persistence:
    """One router's side of the shared store."""

    def __init__(
        self,
        db: Database,
        name: str,
        config: StoreSection,
        clock: Clock,
        *,
        fleet: Fleet,
        records: Records,
        budgets: Budgets,
        lease: Lease | None = None,
    ) -> None:
        self._db = db
        self._name = name
        self._config = config
        self._clock = clock
        self._fleet = fleet
        self._records = records
        self._budgets = budgets
        self._lease = lease
        self._revision = 0
        self._forgot_at = clock.monotonic()

    async def load(self) -> None:
        """Read what this router had measured before a restart, and what other routers measured."""
        await self._read_statistics(own=True)
        async with self._db.read() as tx:
            spent = await standings.budgets(tx)
        self._budgets.restore(spent.get(self._name, {}))

    async def run(self) -> None:
        """Write and read until cancelled."""
        while True:
            await asyncio.sleep(self._config.flush_s)
            try:
                await self.flush()
            except StoreError as error:
                _log.error(
                    "statistics could not be written; the next round tries again", why=str(error)[:300]
                )
            except Exception:  # noqa: BLE001
                # The outermost of the loop: if it ended, nothing would be written any more, unnoticed.
                _log.exception("persistence failed")

    async def flush(self) -> None:
        """
        Write what changed, and read what other routers wrote.

        Raises:
            StoreError: it could not be written.  Nothing is lost: the next call writes it.
        """
        changes = deque(self._fleet.drain_changes())
        records = deque(self._records.drain())
        try:
            while changes:
                await self._save_statistics([changes[i] for i in range(min(_AT_ONCE, len(changes)))])
                _drop(changes, _AT_ONCE)
            while records:
                await self._save_records([records[i] for i in range(min(_AT_ONCE, len(records)))])
                _drop(records, _AT_ONCE)
            await self._db.write(self._save_budgets)
        except BaseException:
            self._fleet.requeue_changes(list(changes))
            self._records.requeue(list(records))
            raise
        await self._forget()
        await self._read_statistics(own=False)
        async with self._db.read() as tx:
            spent = await standings.budgets(tx)
        self._budgets.set_spent_by_others(_sum_of_others(spent, self._name))

    async def _save_statistics(self, some: Sequence[tuple[str, str, StatisticsAggregate]]) -> None:
        now_ms = self._clock.now_ms()

        async def save(tx: Tx) -> None:
            await self._confirm(tx)
            await standings.save(tx, self._name, some, now_ms)

        await self._db.write(save)

    async def _save_records(self, some: Sequence[FinishedRecord]) -> None:
        if self._config.keep_decisions:
            await self._db.write(
                lambda tx: decisions.save(tx, self._name, some), of=f"decisions {self._name}"
            )

    async def _confirm(self, tx: Tx) -> None:
        """Make sure that the rows of this name are this router's."""
        if self._lease is not None:
            await self._lease.confirm(tx)

    async def _save_budgets(self, tx: Tx) -> None:
        await self._confirm(tx)
        await standings.save_budgets(tx, self._name, self._budgets.spent())

    async def _forget(self) -> None:
        """Delete what is old, from time to time and in small steps."""
        now_ms, now = self._clock.now_ms(), self._clock.monotonic()
        if now - self._forgot_at <= _FORGET_EVERY_S:
            return
        self._forgot_at = now
        config = self._config
        await self._db.write(lambda tx: standings.forget(tx, now_ms))
        if config.archive is not None:
            # Decisions are deleted once they are in a file (`router.state.archiver`).
            return
        until_ms = now_ms - config.keep_days * _DAY_MS - 1
        while await self._db.write(lambda tx: decisions.forget(tx, until_ms, limit=_AT_ONCE)):
            pass
        await forgetting.thin(self._db, "decisions", config.keep_decisions, at_once=_AT_ONCE)

    async def find(self, record_id: str) -> bytes | None:
        """A record that was written."""
        async with self._db.read() as tx:
            return await decisions.find(tx, record_id)

    async def _read_statistics(self, *, own: bool) -> None:
        while True:
            async with self._db.read() as tx:
                rows, revision = await standings.since(tx, self._revision)
            for row in rows:
                if row.router != self._name:
                    self._fleet.merge_peer_statistics(row.node, row.tier, row.router, row.aggregate)
                elif own:
                    self._fleet.restore_statistics(row.node, row.tier, row.aggregate)
            if not rows or revision == self._revision:
                return
            self._revision = revision
            await asyncio.sleep(0)


def _drop(queue: deque[Any], count: int) -> None:
    """Take *count* from the front of a queue."""
    for _ in range(min(count, len(queue))):
        queue.popleft()


def _sum_of_others(spent: dict[str, dict[str, tuple[int, int]]], own: str) -> dict[str, tuple[int, int]]:
    """What all other routers have spent of each key: on the newest day that one of them names."""
    total: dict[str, tuple[int, int]] = {}
    for router, by_name in spent.items():
        if router == own:
            continue
        for name, (day, tokens) in by_name.items():
            known_day, known = total.get(name, (day, 0))
            if day > known_day:
                total[name] = (day, tokens)
            elif day == known_day:
                total[name] = (day, known + tokens)
    return total
