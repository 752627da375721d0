"""
The keeper: writes down what this router has seen, and reads what the others have.

Every few seconds, in one transaction: standings that changed, records of decisions, budgets.
A crash loses at most what came since; what is held is not the keeper's, and never lost.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from prometheus_client import Counter

from router.config import StoreSection
from router.gateway.keys import Keyring
from router.model.clock import Clock
from router.state.fleet import Fleet
from router.state.records import Records
from router.store import decisions, standings
from verifier.errors import StoreError
from verifier.store.database import Database

_TIDY_EVERY_S: Final = 600.0

_log = structlog.get_logger("router")
records_lost = Counter("touchstone_router_records_lost_total", "Records of decisions that were not written.")


class Persistence:
    """One router's side of the shared store."""

    def __init__(
        self,
        db: Database,
        name: str,
        config: StoreSection,
        clock: Clock,
        fleet: Fleet,
        records: Records,
        keyring: Keyring,
    ) -> None:
        self._db = db
        self._name = name
        self._config = config
        self._clock = clock
        self._fleet = fleet
        self._records = records
        self._keyring = keyring
        self._revision = 0
        self._tidied = clock.monotonic()

    async def load(self) -> None:
        """What this router had seen before, and what the others have."""
        await self._hear(own=True)
        async with self._db.read() as tx:
            spent = await standings.budgets(tx)
        self._keyring.restore(spent.get(self._name, {}))

    async def run(self) -> None:
        """Write and read until cancelled."""
        while True:
            await asyncio.sleep(self._config.flush_s)
            try:
                await self.flush()
            except StoreError as error:
                _log.error("what was seen could not be written, and is tried again", why=str(error)[:300])
            except Exception:  # noqa: BLE001
                # The outermost of the keeper: without it nothing would be written any more, and nobody told.
                _log.exception("the keeper failed")

    async def flush(self) -> None:
        """
        Write what changed, and read what others wrote.

        Raises:
            StoreError: it could not be written; nothing is lost by that.
        """
        changed = self._fleet.take_changed()
        records = self._records.take()
        now_ms = self._clock.now_ms()
        try:
            async with self._db.write() as tx:
                if changed:
                    await standings.save(tx, self._name, changed, now_ms)
                if self._config.keep_decisions:
                    await decisions.save(tx, self._name, records)
                await standings.save_budgets(tx, self._name, self._keyring.spent())
                if self._clock.monotonic() - self._tidied > _TIDY_EVERY_S:
                    self._tidied = self._clock.monotonic()
                    await standings.forget(tx, now_ms)
                    keep = self._config.keep_decisions
                    await decisions.forget(tx, now_ms, keep_days=self._config.keep_days, keep=keep)
        except BaseException:
            self._fleet.put_back(changed)
            self._records.put_back(records)
            raise
        await self._hear(own=False)
        async with self._db.read() as tx:
            spent = await standings.budgets(tx)
        self._keyring.others(_together(spent, self._name))

    async def find(self, record_id: str) -> bytes | None:
        """A record that was written down."""
        async with self._db.read() as tx:
            return await decisions.find(tx, record_id)

    async def _hear(self, *, own: bool) -> None:
        while True:
            async with self._db.read() as tx:
                rows, revision = await standings.since(tx, self._revision)
            for row in rows:
                if row.router != self._name:
                    self._fleet.hear(row.node, row.tier, row.router, row.account)
                elif own:
                    self._fleet.restore(row.node, row.tier, row.account)
            if not rows or revision == self._revision:
                return
            self._revision = revision
            await asyncio.sleep(0)


def _together(spent: dict[str, dict[str, tuple[int, int]]], own: str) -> dict[str, tuple[int, int]]:
    """What all other routers have spent: of the newest day, for each key."""
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
