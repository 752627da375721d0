"""What people decide about changes of the table of workloads: each step is checked, written with its author, and applied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from secrets import token_bytes, token_hex

import msgspec

from router.model.change import Settings, Stage
from router.model.clock import Clock
from router.model.comparison import find_worse
from router.model.errors import ChangeError
from router.model.table import read_table
from router.model.workload import Table
from router.state.changes import Changes
from router.state.fleet import Fleet
from router.store import changes
from router.store.changes import Change, Step
from verifier.store.database import Database, Tx


class ChangeSteps:
    """
    Takes the steps.

    Args:
        following: This router's side of the changes.
        is_kept: Whether the store survives a restart.
    """

    def __init__(
        self, db: Database, fleet: Fleet, clock: Clock, following: Changes, *, is_kept: bool
    ) -> None:
        self._db = db
        self._fleet = fleet
        self._clock = clock
        self._changes = following
        self._is_kept = is_kept

    async def propose(self, document: bytes, settings: Settings, actor: str, reason: str) -> Change:
        """
        Begin to try a table beside the one in force.

        Raises:
            ConfigError: it is no table; the message has line and column.
            ChangeError: it says what the table in force says, or another change is live.
        """
        table = read_table(document)
        self._check_files(table)
        self._changes.load_tokenisers(table)
        if table.digest == self._fleet.table.digest:
            raise ChangeError("it says what the table in force says")
        change = Change(
            id=f"c-{token_hex(6)}",
            number=0,
            stage=Stage.SHADOW,
            share=0,
            base=self._fleet.table.digest,
            digest=table.digest,
            document=document,
            settings=settings,
            secret=token_bytes(32),
        )

        async def write(tx: Tx) -> Change:
            added = await changes.add(tx, change)
            await changes.add_step(tx, added.id, self._step("propose", actor, reason))
            return added

        added = await self._db.write(write)
        await self._changes.sync()
        return added

    async def share(
        self, change_id: str, percent: int, actor: str, reason: str, *, anyway: bool = False
    ) -> Change:
        """
        Give the candidate a share of the traffic, or another one; 0: none.

        Raises:
            ChangeError: it is not live, takes no part here, or was already seen to be worse by its decisions alone.
        """
        if not anyway and percent:
            self._check_shadow(change_id)

        def to(change: Change) -> Change:
            shared_ms = change.shared_ms
            if percent and shared_ms is None:
                shared_ms = self._clock.now_ms()
            stage = Stage.SHARE if percent else Stage.SHADOW
            return msgspec.structs.replace(change, stage=stage, share=percent, shared_ms=shared_ms)

        return await self._take(change_id, f"share {percent} %", actor, reason, to)

    async def promote(self, change_id: str, actor: str, reason: str, *, anyway: bool = False) -> Change:
        """
        Put the candidate in force.

        Raises:
            ChangeError: it is not live, the table in force is another one by now, nothing here survives a restart, or
                it never had a share and the caller did not ask for that.
        """
        if not self._is_kept:
            raise ChangeError(
                "this router has no store that is kept: write the table to the file, and send SIGHUP"
            )

        def to(change: Change) -> Change:
            if change.base != self._fleet.table.digest:
                raise ChangeError("the table in force is not the one that it was proposed for. Abort it")
            if change.stage is Stage.SHADOW and not anyway:
                raise ChangeError("it has no share of the traffic. Share it first, or promote it anyway")
            return msgspec.structs.replace(change, stage=Stage.PROMOTED, share=0)

        if not anyway:
            self._check_shadow(change_id)
        return await self._take(change_id, "promote", actor, reason, to)

    async def abort(self, change_id: str, actor: str, reason: str) -> Change:
        """
        Go back to the table that was in force before, at once: from a live change, or from one that was promoted.

        Raises:
            ChangeError: it is over, or another table stands on it.
        """
        trial = self._changes.latest
        if trial is not None and trial.change.id == change_id:
            # Whatever becomes of the store, this router goes on without it from here.
            trial.is_ended = True

        def to(change: Change) -> Change:
            return msgspec.structs.replace(change, stage=Stage.ABORTED, share=0)

        return await self._take(change_id, "abort", actor, reason, to)

    async def _take(
        self, change_id: str, step: str, actor: str, reason: str, to: Callable[[Change], Change]
    ) -> Change:
        async def write(tx: Tx) -> Change:
            change = await changes.get(tx, change_id)
            if not change.is_live:
                await self._check_taken_back(tx, change, step)
            changed = await changes.update(tx, to(change))
            await changes.add_step(tx, change_id, self._step(step, actor, reason))
            return changed

        changed = await self._db.write(write)
        await self._changes.sync()
        return changed

    async def _check_taken_back(self, tx: Tx, change: Change, step: str) -> None:
        """Raise `ChangeError` if a change that is not live may not be taken back."""
        if change.stage is not Stage.PROMOTED or step != "abort":
            raise ChangeError(f"it is {change.stage}")
        later = [each for each in await changes.promoted(tx) if each.number > change.number]
        live = await changes.find_live(tx)
        if live is not None:
            raise ChangeError(f"{live.id} is under way. Abort it first")
        if later:
            raise ChangeError(f"{later[-1].id} was promoted since. Abort that first")

    def _check_files(self, table: Table) -> None:
        """Raise `ChangeError` if a table from outside names a file that is not in the router's folder."""
        known = {workload.tokeniser for workload in self._fleet.table.workloads.values()}
        for name, workload in table.workloads.items():
            path = PurePosixPath(workload.tokeniser or "")
            if workload.tokeniser not in known and (path.is_absolute() or ".." in path.parts):
                raise ChangeError(f"the tokeniser of {name} must be a file of the router's folder")

    def _check_shadow(self, change_id: str) -> None:
        trial = self._changes.latest
        if trial is None or trial.change.id != change_id:
            if self._changes.problem:
                raise ChangeError(f"this router takes no part in it: {self._changes.problem}")
            return
        worse = find_worse(trial.shadows(), trial.change.settings.bounds)
        if worse is not None:
            what = "refuses requests" if worse == "ceiling" else "costs more than the bound allows"
            raise ChangeError(f"in shadow it {what}. See its differences; to go on, say so: anyway")

    def _step(self, step: str, actor: str, reason: str, evidence: dict[str, object] | None = None) -> Step:
        return Step(step=step, actor=actor, reason=reason, at_ms=self._clock.now_ms(), evidence=evidence)
