"""
What jobs need besides their lines: validation, an end, and that what is old is forgotten.

One router does it for a job, under a lease of the whole job.  Each step can be done again after a kill.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from router.config import BatchesSection
from router.gateway.handler import Gateway
from router.gateway.jobs.reading import read_requests
from router.gateway.jobs.running import Runner
from router.gateway.jobs.validating import Validated, Validator
from router.model.errors import JobLineError, LostLeaseError
from router.model.job_lines import unasked_line
from router.store import files, jobs
from router.store.files import StoredFile
from router.store.jobs import (
    CANCELLED,
    CANCELLING,
    COMPLETED,
    EXPIRED,
    FINALIZING,
    IN_PROGRESS,
    VALIDATING,
    HeldRange,
    Job,
    LineError,
)
from verifier.errors import StoreError
from verifier.store.database import Database, Tx

_LOOK_EVERY_S: Final = 0.5
_RENEW_EVERY_S: Final = 4.0
_SWEEP_EVERY_S: Final = 60.0
_COUNT_EVERY_S: Final = 5.0
_DAY_MS: Final = 86_400_000
_UPLOAD_MS: Final = 6 * 3_600_000
"""No upload takes longer."""
_MAX_AT_ONCE: Final = 4
"""Jobs that one router validates or ends at a time."""
_RANGES_AT_ONCE: Final = 2000
_UNASKED: Final = {
    CANCELLED: ("batch_cancelled", "the batch was cancelled before this request was executed"),
    EXPIRED: ("batch_expired", "this request could not be executed before the completion window expired"),
}

_log = structlog.get_logger("router")


class Duties:
    """
    Looks after jobs.

    Args:
        db: The store.
        gateway: What requests share.
        config: ``[batches]``.
        runner: Does lines; it is told which jobs are open.
    """

    def __init__(self, db: Database, gateway: Gateway, config: BatchesSection, runner: Runner) -> None:
        self._db = db
        self._router = runner.ranges.router
        self._gateway = gateway
        self._config = config
        self._runner = runner
        self._clock = gateway.clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._swept_at: float | None = None
        self._counted_at = -_COUNT_EVERY_S
        self.wake = asyncio.Event()
        """Set if a job has come or changed."""
        runner.on_given_back = self.wake.set

    async def run(self) -> None:
        """Look after jobs until cancelled."""
        try:
            self._runner.ranges.ahead_ms = await self._db.ahead_ms(self._clock.now_ms)
            while True:
                try:
                    await self.look()
                except StoreError as error:
                    _log.error("batches could not be read", why=str(error)[:300])
                except Exception:  # noqa: BLE001
                    # The outermost of the loop: if it ended, no batch would begin or end any more.
                    _log.exception("batches failed")
                await self._wait()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_LOOK_EVERY_S):
                await self.wake.wait()
        except TimeoutError:
            pass
        self.wake.clear()

    async def look(self) -> None:
        """See which jobs are open, and begin what they need."""
        async with self._db.read() as tx:
            found = await jobs.all_open(tx)
        self._runner.use(found)
        now_ms = self._runner.ranges.now_ms()
        for job in found:
            is_unknown = job.status == VALIDATING and self._runner.key_of(job) is None
            if is_unknown and job.expires_ms > now_ms:
                # Its key is revoked, or of another router.
                continue
            if job.id not in self._tasks and len(self._tasks) < _MAX_AT_ONCE and _is_due(job, now_ms):
                task = self._tasks[job.id] = asyncio.create_task(
                    self._look_after(job), name=f"batch {job.id}"
                )
                task.add_done_callback(partial(self._forget_task, job.id))
        now = self._clock.monotonic()
        if now - self._counted_at >= _COUNT_EVERY_S:
            self._counted_at = now
            await self._count(found)
        if self._swept_at is None or now - self._swept_at >= _SWEEP_EVERY_S:
            self._swept_at = now
            await self.sweep()

    async def _count(self, found: Sequence[Job]) -> None:
        """Tell the runner whose files and results are too much together."""
        made: Counter[str] = Counter()
        for job in found:
            made[job.owner] += job.output_bytes + job.error_bytes
        async with self._db.read() as tx:
            for owner in list(made):
                made[owner] += await files.stored_bytes(tx, owner)
        self._runner.full = {owner for owner, size in made.items() if size > self._config.max_stored_bytes}

    def _forget_task(self, job: str, _: object) -> None:
        self._tasks.pop(job, None)

    async def _look_after(self, job: Job) -> None:
        holder = jobs.new_id(self._runner.ranges.now_ms())
        try:
            if not await self._hold(job, holder):
                return
            async with asyncio.TaskGroup() as group:
                renewing = group.create_task(self._keep(job, holder))
                await self._do(job, holder)
                renewing.cancel()
        except* (LostLeaseError, StoreError) as errors:
            _log.info("a batch is looked after again later", job=job.id, why=str(errors.exceptions[0])[:300])
        except* Exception:  # noqa: BLE001
            # The outermost of a job: the others need not wait for it.
            _log.exception("a batch could not be looked after", job=job.id)
        finally:
            with suppress(StoreError):
                await self._let_go(job, holder)

    async def _hold(self, job: Job, holder: str) -> bool:
        ranges = self._runner.ranges
        work = partial(
            jobs.hold,
            job=job.id,
            router=self._router,
            holder=holder,
            now_ms=ranges.now_ms(),
            until_ms=ranges.until_ms(),
        )
        return await self._db.write(work)

    async def _keep(self, job: Job, holder: str) -> None:
        """Renew the lease until cancelled.  Raises `LostLeaseError`."""
        while True:
            await asyncio.sleep(_RENEW_EVERY_S)
            if not await self._hold(job, holder):
                raise LostLeaseError(f"another router looks after {job.id}")

    async def _do(self, job: Job, holder: str) -> None:
        if job.status == VALIDATING and job.expires_ms > self._runner.ranges.now_ms():
            await self._validate(job, holder)
            self.wake.set()
            return
        if job.status in (VALIDATING, IN_PROGRESS):
            now_ms = self._runner.ranges.now_ms()
            is_cut = not job.is_answered
            await self._db.write(
                lambda tx: jobs.move(tx, job, FINALIZING, now_ms, holder=holder, is_cut=is_cut)
            )
        await self._end(job.id, holder)

    # Validation.

    async def _validate(self, job: Job, holder: str) -> None:
        async with self._db.read() as tx:
            file = await files.find(tx, job.input_file, job.owner)
        key = self._runner.key_of(job)
        if file is None:
            found = Validated(errors=(LineError("file_not_found", "the input file was deleted"),))
        elif key is None:
            # Its routers may know it later; if none does, the batch expires.
            await self._let_go(job, holder)
            return
        else:
            found = await Validator(self._gateway, self._config, job, key).run(self._db, file)
        now_ms = self._runner.ranges.now_ms()
        if found.errors:
            await self._db.write(lambda tx: jobs.refuse(tx, job, found.errors, now_ms, holder))
            return
        for start in range(0, len(found.ranges), _RANGES_AT_ONCE):
            some = found.ranges[start : start + _RANGES_AT_ONCE]
            await self._db.write(partial(jobs.add_ranges, job=job.id, ranges=some))
        await self._db.write(lambda tx: jobs.begin(tx, job, found.lines, found.model, now_ms, holder))

    async def _let_go(self, job: Job, holder: str) -> None:
        now_ms = self._runner.ranges.now_ms()
        work = partial(jobs.hold, job=job.id, router=self._router, holder=holder, now_ms=now_ms, until_ms=0)
        await self._db.write(work)

    # The end.

    async def _end(self, job_id: str, holder: str) -> None:
        """End a job, once nobody does a line of it any more."""
        async with self._db.read() as tx:
            job = await jobs.find(tx, job_id)
            is_held = await jobs.is_held(tx, job_id, self._runner.ranges.now_ms())
        if job is None:
            return
        if is_held and not job.is_answered:
            # Lines that are under way may end.
            await self._let_go(job, holder)
            return
        status = CANCELLED if job.status == CANCELLING else EXPIRED if job.is_cut else COMPLETED
        while True:
            async with self._db.read() as tx:
                rest = await jobs.undone(tx, job_id, 16)
            if not rest:
                break
            for held in rest:
                await self._fill(job, held, status)
        await self._finish(job, status, holder)
        _log.info("a batch has ended", job=job_id, status=status)

    async def _fill(self, job: Job, held: HeldRange, status: str) -> None:
        """Write errors for the lines of a range that have no result."""
        code, message = _UNASKED.get(status, _UNASKED[EXPIRED])
        try:
            found = await read_requests(self._db, job.input_file, held.range, job.endpoint)
        except JobLineError:
            found = []
        now_ms = self._runner.ranges.now_ms()
        made = [
            (number, unasked_line(f"batch_req_{jobs.new_id(now_ms)}", line.custom_id, code, message))
            for number, line in found
        ]

        async def fill(tx: Tx) -> None:
            known = await jobs.lines_with_results(tx, job.id, held.range)
            rest = [(number, data) for number, data in made if number not in known]
            await jobs.fill(tx, job, held, rest)

        await self._db.write(fill)

    async def _finish(self, job: Job, status: str, holder: str) -> None:
        now_ms = self._runner.ranges.now_ms()
        ids = [f"file-{jobs.new_id(now_ms)}" for _ in range(2)]
        keep_s = job.keep_output_s
        expires_ms = now_ms + (self._config.keep_days * _DAY_MS if keep_s is None else keep_s * 1000)

        async def end(tx: Tx) -> None:
            counted = await jobs.find(tx, job.id)
            if counted is None:
                return
            sizes = (counted.output_bytes, counted.error_bytes)
            made = [
                StoredFile(
                    id=ids[side],
                    owner=job.owner,
                    purpose="batch_output",
                    name=f"{job.id}_{'error' if side else 'output'}.jsonl",
                    bytes=size,
                    created_ms=now_ms,
                    expires_ms=expires_ms,
                    job=job.id,
                    side=side,
                )
                for side, size in enumerate(sizes)
                if size
            ]
            await jobs.end(tx, counted, status, now_ms, holder, made)

        await self._db.write(end)

    # What is old.

    async def sweep(self) -> None:
        """Delete what is old, in small steps."""
        now_ms = self._runner.ranges.now_ms()
        await self._db.write(
            partial(files.begin_deleting_old, now_ms=now_ms, forgotten_ms=now_ms - _UPLOAD_MS)
        )
        await self.delete()
        await self._db.write(partial(jobs.forget, until_ms=now_ms - self._config.keep_days * _DAY_MS))

    async def delete(self) -> None:
        """Delete what is in files that their owners do not have any more."""
        async with self._db.read() as tx:
            found = await files.going(tx)
        for file in found:
            while await self._db.write(partial(files.delete_some, file=file)):
                pass


def _is_due(job: Job, now_ms: int) -> bool:
    """Whether a job needs something besides its lines."""
    if job.holder and job.until_ms > now_ms:
        return False
    if job.status == IN_PROGRESS:
        return job.is_answered or job.expires_ms <= now_ms
    return True
