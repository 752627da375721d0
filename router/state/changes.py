"""
Changes of the table of workloads: proposed, tried beside the table in force, shared, promoted, taken back, stopped.

What people and routers decide about a change is in the store, and every router that shares it follows within a second.
What a router must do at once, to go on without a candidate, it does before it writes.

    propose ─▶ shadow ─▶ share ─▶ promoted
                 └────────┴─▶ aborted, stopped ◀── (a promoted one may be taken back)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import structlog
from prometheus_client import Counter, Gauge

from attester.errors import ConfigError
from router.model.change import Stage
from router.model.clock import Clock
from router.model.comparison import Observation, sum_evidence
from router.model.table import read_table
from router.model.tokens import Tokeniser
from router.model.workload import Table
from router.state.fleet import Fleet
from router.state.trial import Sight, Trial
from router.store import changes
from router.store.changes import Change, Step
from verifier.errors import StoreError
from verifier.store.database import Database, Tx

_LOOK_EVERY_S: Final = 1.0
_WRITE_EVERY: Final = 2
"""Rounds of the loop."""
_LOST_S: Final = 15.0
"""After so long without the store, somebody may have stopped a change unheard: the table in force decides alone."""
CHANGE_STOPPED: Final = "change-stopped"
"""The kind of review that a stop opens."""
ROUTER: Final = "router"
"""Who stops a change by itself."""

_log = structlog.get_logger("router")
_stage = Gauge("touchstone_router_change_share", "Per cent of the traffic that a candidate decides about.")
_stopped = Counter("touchstone_router_changes_stopped_total", "Changes that were stopped as worse.", ["test"])

Load = Callable[[Table], Mapping[str, Tokeniser]]


class Changes:
    """
    One router's side of the changes in a store.

    Args:
        name: The router's.
        file: The table of its own file.
        load: Reads the tokenisers that a table names.
        ask: Asks a person to look at something: of which kind, what, and the evidence.
        use: Called with the tokenisers of the table in force, and with the trial, whenever either is another one.
    """

    def __init__(
        self,
        db: Database,
        name: str,
        fleet: Fleet,
        clock: Clock,
        *,
        file: Table,
        load: Load,
        use: Callable[[Mapping[str, Tokeniser], Trial | None], None],
        ask: Callable[[str, str, dict[str, Any]], None] = lambda *_: None,
    ) -> None:
        self._db = db
        self._name = name
        self._fleet = fleet
        self._clock = clock
        self._file = file
        self._load = load
        self._use = use
        self._ask = ask
        self._tokenisers: Mapping[str, Tokeniser] = {}
        self._trial: Trial | None = None
        self._promoted: list[Change] = []
        self.in_force: Change | None = None
        """The change whose table is in force; `None`: that of the file."""
        self.problem = ""
        """Why this router takes no part in a change, if it does not."""
        self._revision = -1
        self._heard_at = clock.monotonic()
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def latest(self) -> Trial | None:
        """The change that is live by the store, whether it decides here or not."""
        return self._trial

    @property
    def trial(self) -> Trial | None:
        """The change that is live here, once all nodes are placed by its table."""
        trial = self._trial
        if trial is None or trial.is_ended or self._fleet.candidate is not trial.table:
            return None
        return None if self._clock.monotonic() - self._heard_at > _LOST_S else trial

    async def load(self) -> None:
        """
        Take up what the store says, before the first request.

        Raises:
            ConfigError: a tokeniser of the table in force cannot be read.
        """
        self._tokenisers = self._load(self._file)
        await self.sync()
        if self._trial is not None:
            await self._read_sights(self._trial, own=True)

    def use_file(self, table: Table) -> None:
        """Take up another file.  Raises `ConfigError`: its tokenisers cannot be read; all stays as it was."""
        tokenisers, trial = self._load(table), self._trial
        self._file, self._tokenisers, self.in_force = table, tokenisers, None
        found = resolve(table, self._promoted)
        if found is not None:
            self._put_in_force(found)
        if self.in_force is None:
            self._fleet.use_table(table)
        if trial is not None and trial.change.base != self._fleet.table.digest:
            self._end_trial()
        self._use(self._tokenisers, self._trial)
        # What is live is looked at again in the next round.
        self._revision = -1

    async def run(self) -> None:
        """Follow the store, and write what was seen, until cancelled."""
        rounds = 0
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            rounds += 1
            try:
                await self.sync()
                if rounds % _WRITE_EVERY == 0:
                    await self.flush()
            except StoreError as error:
                _log.error("changes could not be read or written", why=str(error)[:300])
            except Exception:  # noqa: BLE001
                # The outermost of the loop: if it ended, nobody could take a change back here.
                _log.exception("the changes failed")

    async def sync(self) -> None:
        """Take up what was decided here or at another router.  Raises `StoreError`."""
        async with self._lock:
            async with self._db.read() as tx:
                revision = await changes.revision(tx)
                if revision != self._revision:
                    live, self._promoted = await changes.find_live(tx), await changes.promoted(tx)
            self._heard_at = self._clock.monotonic()
            if revision != self._revision:
                await self._follow(live)
                self._revision = revision

    def load_tokenisers(self, table: Table) -> None:
        """Raise `ConfigError` if a tokeniser that a candidate names cannot be read, or is not in the router's folder."""
        self._load(table)

    async def _follow(self, live: Change | None) -> None:
        """Go by the promoted table that stands on the file's, and try the live one."""
        found = resolve(self._file, self._promoted)
        if (found and found.id) != (self.in_force and self.in_force.id):
            self._put_in_force(found)
        elif self._trial is None:
            self._use(self._tokenisers, None)
        if live is None or (self._trial is not None and self._trial.change.id != live.id):
            self._end_trial()
        if live is not None:
            await self._try(live)
        _stage.set(0 if live is None else live.share)

    def _put_in_force(self, change: Change | None) -> None:
        trial, fleet = self._trial, self._fleet
        if (
            change is not None
            and trial is not None
            and trial.change.id == change.id
            and fleet.candidate is trial.table
        ):
            fleet.promote_candidate()
            self._tokenisers = trial.tokenisers
        else:
            try:
                table = self._file if change is None else read_table(change.document)
                tokenisers = self._load(table)
            except ConfigError as error:
                self.problem = (
                    f"the table of {'the file' if change is None else change.id} cannot be used here: {error}"
                )
                _log.error("a table that was promoted cannot be used here", why=str(error))
                return
            self._tokenisers = tokenisers
            fleet.use_table(table)
        self.in_force = change
        if trial is not None:
            trial.is_ended = True
        self._trial = None
        self._use(self._tokenisers, None)
        _log.warning(
            "another table of workloads is in force",
            change=None if change is None else change.id,
            digest=fleet.table.digest,
        )

    def _end_trial(self) -> None:
        self.problem = ""
        if self._trial is not None:
            self._trial.is_ended = True
            self._trial = None
        self._fleet.drop_candidate()
        self._use(self._tokenisers, None)

    async def _try(self, live: Change) -> None:
        trial = self._trial
        if live.base != self._fleet.table.digest:
            self._end_trial()
            self.problem = "the table in force here is not the one that it was proposed for"
            return
        if trial is not None:
            before, trial.change = trial.change, live
            if before.shared_ms is None and live.shared_ms is not None:
                trial.restart()
        else:
            try:
                trial = self._trial = Trial.of(live, self._load, self._clock.monotonic)
            except ConfigError as error:
                self.problem = f"its table cannot be used here: {error}"
                _log.error("a candidate cannot be tried here", change=live.id, why=str(error))
                return
            self._use(self._tokenisers, trial)
        if self._fleet.candidate is not trial.table and not trial.is_ended:
            await self._fleet.use_candidate(trial.table)
        self.problem = ""

    # What the router decides.

    def observe(self, trial: Trial, seen: Observation) -> None:
        """Take in what became of a request, and stop the change if it is worse."""
        worse = None if trial.is_ended else trial.observe(seen)
        if worse is None:
            return
        trial.is_ended = True
        _stopped.labels(worse).inc()
        evidence = {"test": worse, **describe_evidence(trial)}
        _log.error("a change is worse, and is stopped", change=trial.change.id, **evidence)
        detail = (
            f"the change {trial.change.id} of the routing was stopped: {worse} is worse than its bound allows"
        )
        self._ask(CHANGE_STOPPED, detail, {"change": trial.change.id, **evidence})
        self._start(self._stop(trial, worse, evidence))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="a change's stop")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self, trial: Trial, worse: str, evidence: dict[str, object]) -> None:
        async def write(tx: Tx) -> None:
            change = await changes.get(tx, trial.change.id)
            if change.is_live:
                await changes.update(tx, msgspec.structs.replace(change, stage=Stage.STOPPED, share=0))
                reason = f"{worse}: it is worse than its bound allows"
                step = Step(
                    step="stop", actor=ROUTER, reason=reason, at_ms=self._clock.now_ms(), evidence=evidence
                )
                await changes.add_step(tx, change.id, step)
                await changes.save_sight(
                    tx, change.id, self._name, msgspec.json.encode(trial.sight), self._clock.now_ms()
                )

        while True:
            try:
                await self._db.write(write)
                await self.sync()
            except StoreError as error:
                _log.error(
                    "the stop of a change could not be written; it is tried again", why=str(error)[:300]
                )
                await asyncio.sleep(1)
            else:
                return

    # What was seen.

    async def flush(self) -> None:
        """Write what was seen here, and read what other routers have seen.  Raises `StoreError`."""
        trial = self._trial
        if trial is None:
            return
        if trial.is_changed:
            trial.is_changed = False
            seen = msgspec.json.encode(trial.sight)
            await self._db.write(
                partial(
                    changes.save_sight,
                    change_id=trial.change.id,
                    router=self._name,
                    seen=seen,
                    now_ms=self._clock.now_ms(),
                )
            )
        await self._read_sights(trial)

    async def _read_sights(self, trial: Trial, *, own: bool = False) -> None:
        async with self._db.read() as tx:
            found = await changes.sights(tx, trial.change.id)
        sights = _decoded(found)
        mine = sights.pop(self._name, None)
        if own and mine is not None:
            trial.sight = mine
        trial.others = sights

    async def list_newest(self, limit: int) -> list[Change]:
        """The newest changes, the newest first."""
        async with self._db.read() as tx:
            return await changes.newest(tx, limit)

    async def show(self, change_id: str) -> tuple[Change, list[Step], dict[str, Sight]]:
        """
        One change, the steps that were taken, and what each router has seen of it.

        Raises:
            ChangeError: there is none with that id.
        """
        async with self._db.read() as tx:
            change = await changes.get(tx, change_id)
            steps = await changes.steps(tx, change_id)
            sights = _decoded(await changes.sights(tx, change_id))
        if self._trial is not None and self._trial.change.id == change_id:
            sights[self._name] = self._trial.sight
        return change, steps, sights

    async def close(self) -> None:
        """Wait for what is being written, and write what was seen last."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        try:
            await self.flush()
        except StoreError as error:
            _log.error("what was seen of a change could not be written", why=str(error)[:300])


def resolve(file: Table, promoted: Sequence[Change]) -> Change | None:
    """
    The promoted change that is in force over a file: the last of those that stand on it, one on the other.

    A file that was changed since stands for itself: who has written it knew what was in force.
    """
    digest, found = file.digest, None
    for change in promoted:
        if change.base == digest:
            digest, found = change.digest, change
    return found


def describe_evidence(trial: Trial) -> dict[str, object]:
    """By test, the logarithm to base 10 of the odds against "it is not worse"."""
    return {name: round(log / 2.302585, 2) for name, log in sum_evidence(trial.comparisons()).items()}


def _decoded(found: Sequence[tuple[str, bytes]]) -> dict[str, Sight]:
    sights = {}
    for router, seen in found:
        try:
            sights[router] = msgspec.json.decode(seen, type=Sight)
        except (msgspec.DecodeError, UnicodeError):
            # Of a router of another version: its evidence counts there.
            _log.warning("what another router has seen of a change cannot be read", router=router)
    return sights
