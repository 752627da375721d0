"""
How many challenges are left and for how long, and who may use them up.

It is read every few seconds and kept, so that no session costs a statement for it.  Calls come first: sessions that
nodes open themselves get what is above the reserve, and each operator a fair share of that.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import structlog
from prometheus_client import Gauge

from verifier.challenges.demand import ANSWERS, Demand, Level, ModelDemand
from verifier.challenges.stock import levels_for, read_counts, read_demand
from verifier.config import VerifierConfig
from verifier.errors import PolicyError, RequestError, StoreError
from verifier.service.clock import Clock
from verifier.service.inputs import InputLoader
from verifier.store import model_rollouts
from verifier.store.database import Database
from verifier.store.model_rollouts import ModelRollout

_EVERY_S: Final = 5.0
_FLEET_EVERY_S: Final = 30.0
_WARN_EVERY_S: Final = 3600.0
_HOUR_S: Final = 3600.0
_SLOT_S: Final = 60.0
"""Announced sessions are counted by the minute."""
_RESERVED_RETRY_S: Final = 600
"""After how many seconds a node may ask again whether more was minted."""

_log = structlog.get_logger("verifier")
_free = Gauge("touchstone_pool_free", "Challenges left.", ["model", "kind"])
_hours = Gauge(
    "touchstone_pool_hours", "Hours of calls to the enrolled fleet that are left.", ["model", "kind"]
)


class HourlyCounts:
    """How much each name has used within the last hour, by a monotonic clock in seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._slots: OrderedDict[int, Counter[str]] = OrderedDict()
        self._sums: Counter[str] = Counter()
        self._total = 0

    def add(self, name: str) -> None:
        """Count one use."""
        self._slots.setdefault(self._forget(), Counter())[name] += 1
        self._sums[name] += 1
        self._total += 1

    def of(self, name: str) -> int:
        """How much a name has used."""
        self._forget()
        return self._sums[name]

    def total(self) -> int:
        """How much all have used."""
        self._forget()
        return self._total

    def retry_s(self, name: str) -> int:
        """After how many seconds the oldest use of a name counts no more."""
        now = self._monotonic()
        oldest = next((slot for slot, used in self._slots.items() if name in used), None)
        return 1 if oldest is None else max(math.ceil((oldest + 1) * _SLOT_S + _HOUR_S - now), 1)

    def _forget(self) -> int:
        """Forget what is older than an hour, and give the slot of now."""
        now = self._monotonic()
        while self._slots and (next(iter(self._slots)) + 1) * _SLOT_S + _HOUR_S <= now:
            _, used = self._slots.popitem(last=False)
            self._sums -= used
            self._total -= used.total()
        return int(now // _SLOT_S)


class PoolWatch:
    """Knows the levels of the pool, says when they are low, and lets announced sessions have what calls can spare."""

    def __init__(self, config: VerifierConfig, db: Database, inputs: InputLoader, clock: Clock) -> None:
        self._config = config
        self._db = db
        self._inputs = inputs
        self._clock = clock
        self.levels: tuple[Level, ...] = ()
        self.rolling: Mapping[str, tuple[Level, ...]] = {}
        """The levels of the values that are valid beside those in force, by their digests."""
        self._free: dict[tuple[str, str], int] = {}
        """How many challenges are left, by the digest of their reference value and kind."""
        self._rollouts: tuple[ModelRollout, ...] = ()
        self._demand: Demand = {}
        self._spares: dict[tuple[str, str], float] = {}
        """By model and the digest of a reference value, until the levels are read again."""
        self._fleet_at = -math.inf
        self._announced = HourlyCounts(clock.monotonic)
        self._warned: dict[tuple[str, ...], float] = {}

    async def run(self, leads: Callable[[], bool]) -> None:
        """Look every few seconds until cancelled; warn while this replica *leads*."""
        while True:
            try:
                await self.refresh()
                if leads():
                    self.warn()
            except (StoreError, PolicyError) as error:
                # What was read last goes on counting.
                _log.error("the levels of the pool could not be read", error=str(error))
            await asyncio.sleep(_EVERY_S)

    async def refresh(self) -> None:
        """
        Read the levels, and twice a minute the enrolled fleet.

        Raises:
            StoreError: The database cannot be used.
            PolicyError: No policy is active.
        """
        now = self._clock.monotonic()
        if not self._demand or now - self._fleet_at >= _FLEET_EVERY_S:
            self._demand, self._fleet_at = await self._read_demand(), now
        async with self._db.read() as tx:
            in_force = await self._inputs.load_digests_in_force(tx)
            self._rollouts = tuple(await model_rollouts.running(tx))
            rows = await read_counts(tx)
        self.levels = levels_for(rows, in_force, self._demand)
        self.rolling = {
            each.new: levels_for(rows, {each.model: each.new}, self._demand, only={each.model})
            for each in self._rollouts
        }
        self._free = {(row["reference"], row["kind"]): row["free"] for row in rows if row["kind"] != ANSWERS}
        self._spares = {}
        for level in self.levels:
            _free.labels(level.model, level.kind).set(level.free)
            _hours.labels(level.model, level.kind).set(level.hours)

    async def _read_demand(self) -> Demand:
        async with self._db.read() as tx:
            rollout = await self._inputs.load_rollout(tx)
            thresholds = (await self._inputs.load_bundle(tx, rollout.active)).thresholds
        wide = {name for name, hardware in thresholds.classes.items() if hardware.int8_ops is not None}
        sessions = self._config.sessions
        async with self._db.scan() as tx:
            return await read_demand(
                tx,
                self._config.calls,
                self._config.answers,
                wide,
                self._clock.wall_ms(),
                announced_per_node=sessions.announced_per_hour,
                announced_per_operator=sessions.operator_quota,
            )

    def is_low(self, level: Level) -> bool:
        """Whether somebody should mint more."""
        config = self._config.pool
        # Of answers few are used: their hours alone count.
        low_water = 0 if level.kind == ANSWERS else config.low_water
        return level.free < low_water or level.hours < config.low_hours

    def warn(self) -> None:
        """Say what is low and which roll-outs were to be ended: once when it becomes so, and again each hour."""
        for level in self.levels:
            self._warn_low((level.model, level.kind), level)
        for digest, levels in self.rolling.items():
            for level in levels:
                self._warn_low((level.model, level.kind, digest), replace(level, free=level.in_force))
        for rollout in self._rollouts:
            if rollout.is_overdue(self._clock.wall_ms()) and self._is_due(("rollout", rollout.model)):
                _log.warning(
                    "a roll-out was to be ended by now; both revisions stay valid until somebody ends it: "
                    "touchstone reference rollout finish, or abort",
                    model=rollout.model,
                )

    def _warn_low(self, place: tuple[str, ...], level: Level) -> None:
        if not self.is_low(level):
            if self._warned.pop(place, None) is not None:
                _log.info("there are enough challenges again", model=level.model, kind=level.kind)
        elif self._is_due(place):
            _log.warning(
                "challenges run low; mint more with: touchstone challenges mint, or keep",
                model=level.model,
                kind=level.kind,
                free=level.free,
                hours=None if math.isinf(level.hours) else round(level.hours, 1),
                **({"reference": place[2]} if len(place) > 2 else {}),
            )

    def _is_due(self, place: tuple[str, ...]) -> bool:
        """Whether a warning is to be written; it is taken for written."""
        now = self._clock.monotonic()
        if now - self._warned.get(place, -math.inf) < _WARN_EVERY_S:
            return False
        self._warned[place] = now
        return True

    def count_announced(self, operator: str) -> None:
        """Count a session that a node of *operator* has opened itself."""
        self._announced.add(operator)

    def check_announced(self, operator: str, models: Sequence[str], references: Mapping[str, str]) -> None:
        """
        Check that a node of *operator* may use challenges in a session that it opens itself.

        Args:
            references: By model, the digest of the reference value that the node is challenged on.

        Raises:
            RequestError: What is left is kept for calls, or the operator has had its share.
        """
        places = [(model, references.get(model, "")) for model in models]
        for place in places:
            if place not in self._spares:
                self._spares[place] = self._spare(*place)
        spare = min((self._spares[place] for place in places), default=math.inf)
        if spare < 1:
            raise RequestError(
                f"fewer challenges are left than calls need in {self._config.pool.reserve_hours:g} hours",
                code="challenges.reserved",
                retry_after=_RESERVED_RETRY_S,
            )
        # What others have used within the hour is gone from the levels already: the share is of both together.
        sharers = max((self._demand.get(model, ModelDemand()).operators for model in models), default=1) or 1
        share = min(self._config.sessions.operator_quota, (spare + self._announced.total()) / sharers)
        if self._announced.of(operator) + 1 > share:
            raise RequestError(
                f"the nodes of an operator may open {int(share)} sessions with challenges within an hour now",
                code="challenges.quota",
                retry_after=self._announced.retry_s(operator),
            )

    def _spare(self, model: str, digest: str) -> float:
        """
        How many announced sessions for a reference value the calls can spare; infinite if it has no challenges at all.

        All calls to the fleet may be for this value, even if another one is valid beside it.
        """
        wanted = self._demand.get(model, ModelDemand())
        has_wides = self._free.get((digest, "wide"), 0) > 0
        left = []
        for kind in ("read", "walk"):
            # An empty pool has nothing that could be kept: the session says that it is empty.
            if free := self._free.get((digest, kind), 0):
                rate = wanted.rate(kind, has_wides=has_wides)
                left.append(float(free - rate.within(self._config.pool.reserve_hours)))
        return min(left, default=math.inf)
