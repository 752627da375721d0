"""
Does the lines of jobs, below live traffic.

A line begins only if the router has room, if nodes have free places, and if its key has more left of its limits than
it may need for live requests.  Of the keys, the one with the fewest lines under way comes next.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Final

import prometheus_client
import structlog

from router.choose.candidates import FAIL_OPEN_LANES
from router.config import ApiKey, BatchesSection
from router.gateway.errors import GatewayError
from router.gateway.handler import Gateway
from router.gateway.jobs import lines
from router.gateway.jobs.guests import read_guest
from router.gateway.jobs.held import WaitingLine, Work
from router.gateway.jobs.lines import Again, Answered
from router.gateway.jobs.ranges import Ranges
from router.gateway.jobs.writing import LineWriter
from router.gateway.keys import LimitError
from router.model.job_lines import result_line
from router.model.workload import Workload
from router.store.jobs import IN_PROGRESS, Job, LineResult
from verifier.errors import StoreError
from verifier.store.database import Database

_STEP_S: Final = 0.25
"""After so long, what kept lines back is looked at again, if nothing happened."""
_SHORT_S: Final = 0.1
_EMPTY_S: Final = 1.0
"""After so long, a job that had nothing to do is looked at again."""
_MAX_CLAIMS: Final = 64
"""Of one step."""

_log = structlog.get_logger("router")
_ended = prometheus_client.Counter(
    "touchstone_router_batch_lines_total", "Lines of batches that have a result.", ["result"]
)
_retried = prometheus_client.Counter(
    "touchstone_router_batch_line_retries_total", "Tries of lines of batches that no node completed."
)
_in_flight = prometheus_client.Gauge(
    "touchstone_router_batch_lines_in_flight", "Lines of batches that are under way."
)


class Runner:
    """
    Does lines.

    Args:
        db: The store.
        gateway: What requests share.
        config: ``[batches]``.
        writer: Writes what comes of lines.
        router: The router's name, which it has alone.
    """

    def __init__(
        self, db: Database, gateway: Gateway, config: BatchesSection, writer: LineWriter, router: str
    ) -> None:
        self._gateway = gateway
        self._config = config
        self._writer = writer
        self._clock = gateway.clock
        self._open: dict[str, Job] = {}
        self.ranges = Ranges(db, gateway.clock, router)
        self._in_flight: Counter[str] = Counter()
        """Lines under way, by owner."""
        self._by_model: Counter[str] = Counter()
        """The same by model."""
        self.full: AbstractSet[str] = frozenset()
        """Owners that have too much stored: their lines wait until they have deleted some."""
        self._blocked: dict[str, float] = {}
        """Until when an owner is over a limit."""
        self._empty: dict[str, float] = {}
        """Until when a job is taken to have nothing that is due."""
        self._turns: Counter[str] = Counter()
        """How many lines each owner has had: of equals, the one with the fewest is next."""
        self._changed = asyncio.Event()
        self.on_given_back: Callable[[], object] = lambda: None
        """Called when ranges were given back: perhaps each line of a job has its result now."""

    @property
    def in_flight(self) -> int:
        """Lines under way."""
        return self._in_flight.total()

    def use(self, open_jobs: Iterable[Job]) -> None:
        """Set which jobs are open, as of now."""
        self._open = {job.id: job for job in open_jobs}
        owners = {job.owner for job in self._open.values()}
        for counter in (self._turns, self._blocked, self._empty):
            for name in [name for name in counter if name not in owners and name not in self._open]:
                del counter[name]
        # Who comes later has no turns to catch up.
        least = min(self._turns.values(), default=0)
        for owner in owners - self._turns.keys():
            self._turns[owner] = least
        self.ranges.stop({job.id for job in self._open.values() if job.status == IN_PROGRESS})
        self._changed.set()

    async def run(self) -> None:
        """Do lines until cancelled."""
        try:
            while True:
                try:
                    await self._step()
                except StoreError as error:
                    _log.error("no lines could be taken", why=str(error)[:300])
                    await asyncio.sleep(1.0)
                except Exception:  # noqa: BLE001
                    # The outermost of the loop: if it ended, no line would be done any more.
                    _log.exception("the lines of batches failed")
                    await asyncio.sleep(1.0)
                await self._wait()
        finally:
            tasks = [task for work in self.ranges.held.values() for task in work.running]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_STEP_S):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()

    async def _step(self) -> None:
        await self.ranges.renew()
        given_back = await self.ranges.give_back()
        for job in given_back:
            self._empty.pop(job, None)
        if given_back:
            self.on_given_back()
        for _ in range(_MAX_CLAIMS):
            await self._start()
            if not await self._claim():
                return

    async def _claim(self) -> bool:
        """
        Take a range for an owner that has no line waiting here; returns whether there was one.

        It is taken before there is room for its lines: otherwise who has lines left would have all places that come free.
        """
        now = self._clock.monotonic()
        if self.ranges.is_full or not self._gateway.has_room():
            return False
        waiting = {work.job.owner for work in self.ranges.held.values() if work.waiting}
        for job in sorted(self._open.values(), key=lambda job: (self._turns[job.owner], job.id)):
            is_blocked = max(self._blocked.get(job.owner, 0.0), self._empty.get(job.id, 0.0)) > now
            if job.status != IN_PROGRESS or is_blocked or job.owner in waiting | self.full:
                continue
            if self.key_of(job) is None:
                continue
            if await self.ranges.take(job):
                return True
            self._empty[job.id] = now + _EMPTY_S
        return False

    def key_of(self, job: Job) -> ApiKey | None:
        """The key of a job's owner; `None` if it may not be used any more."""
        keyring = self._gateway.keyring
        known = keyring.named(job.owner)
        if known is not None or job.guest is None:
            return known
        return keyring.welcome(read_guest(job.guest))

    # Lines.

    async def _start(self) -> None:
        """Begin as many lines as there is room for."""
        while self.in_flight < self._config.max_in_flight and self._gateway.has_room():
            found = await self._next()
            if found is None:
                return
            work, line, key = found
            assert line.request is not None
            self._in_flight[key.name] += 1
            self._by_model[line.request.workload.model] += 1
            self._turns[key.name] += 1
            _in_flight.set(self.in_flight)
            task = asyncio.create_task(self._do(work, line, key), name="a line of a batch")
            work.running.add(task)
            # Live requests have their turn between two lines.
            await asyncio.sleep(0)

    async def _next(self) -> tuple[Work, WaitingLine, ApiKey] | None:
        """The line that may begin now; its key has a place for it."""
        now = self._clock.monotonic()
        by_owner: dict[str, list[Work]] = {}
        for work in self.ranges.held.values():
            if work.waiting:
                by_owner.setdefault(work.job.owner, []).append(work)
        for owner in sorted(by_owner, key=lambda owner: (self._in_flight[owner], self._turns[owner], owner)):
            if self._blocked.get(owner, 0.0) > now:
                continue
            for work in by_owner[owner]:
                key = self.key_of(work.job)
                if key is None:
                    work.stop(now)
                    continue
                line = await self._first(work, key)
                if line is None or line.request is None or self._free(line.request.workload) <= 0:
                    continue
                if not self._enter(key, now):
                    break
                work.waiting.popleft()
                return work, line, key
        return None

    async def _first(self, work: Work, key: ApiKey) -> WaitingLine | None:
        """The first line of a range that can be done; what the router refuses has its result at once."""
        while work.waiting:
            line = work.waiting[0]
            if line.request is not None and self._is_in_force(line.request.workload):
                return line
            try:
                line.request = await lines.prepare(self._gateway, work.job.endpoint, line.line, key)
            except GatewayError as error:
                if work.waiting and work.waiting[0] is line:
                    work.waiting.popleft()
                    self._put(work, line, key, lines.refused(error))
        return None

    def _is_in_force(self, workload: Workload) -> bool:
        """Whether the table still has it: another one may be in force since a line was read."""
        return self._gateway.table.workloads.get(workload.name) is workload

    def _free(self, workload: Workload) -> int:
        """Places that neither live requests nor lines need."""
        fleet = self._gateway.dispatcher.fleet
        pool = fleet.view_for(workload).pool
        nodes = sum(size for lane, size in pool.sizes.items() if lane not in FAIL_OPEN_LANES)
        # A line that has begun may be at no node yet.
        taken = max(fleet.in_flight_for(workload.model), self._by_model[workload.model])
        return nodes * self._config.places_per_node - taken

    def _enter(self, key: ApiKey, now: float) -> bool:
        try:
            self._gateway.keyring.enter(key, spares=True)
        except LimitError as error:
            # A place is free again as soon as something ends.
            pause_s = _SHORT_S if error.code == "concurrency" else error.retry_after
            self._blocked[key.name] = now + pause_s
            return False
        return True

    async def _do(self, work: Work, line: WaitingLine, key: ApiKey) -> None:
        assert line.request is not None
        end: Answered | Again | None = None
        try:
            end = await lines.do_line(self._gateway, line.request, key)
        except Exception:  # noqa: BLE001
            # The outermost of a line: the next try may be better.
            _log.exception("a line of a batch failed", job=work.job.id, line=line.number)
            end = Again(GatewayError(500, "internal_error", "the router failed"), counts=True)
        finally:
            self._gateway.keyring.leave(key, 0)
            self._in_flight[key.name] -= 1
            self._by_model[line.request.workload.model] -= 1
            _in_flight.set(self.in_flight)
            task = asyncio.current_task()
            if task is not None:
                work.running.discard(task)
            if end is not None and not work.is_lost:
                self._end(work, line, key, end)
            self._changed.set()

    def _end(self, work: Work, line: WaitingLine, key: ApiKey, end: Answered | Again) -> None:
        if isinstance(end, Answered):
            self._put(work, line, key, end)
        elif end.counts and work.held.tries + 1 >= self._config.tries:
            self._put(work, line, key, lines.failed(end.why))
        else:
            _retried.inc()
            work.again += 1
            work.failed_tries += end.counts

    def _put(self, work: Work, line: WaitingLine, key: ApiKey, answered: Answered) -> None:
        """Have what came of a line written."""
        job, usage, told = work.job, answered.usage, answered.members.get("usage")
        result_id = self._writer.new_id()
        is_failed = answered.status >= 400
        data = result_line(
            f"batch_req_{result_id}", line.line.custom_id, answered.status, result_id, answered.body
        )
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        result = LineResult(
            job=job.id,
            line=line.number,
            holder=work.held.holder,
            failed=is_failed,
            data=data,
            owner=job.owner,
            day=self._gateway.keyring.today(),
            charged=0 if usage is None else usage.total,
            prompt=told.prompt if told else 0,
            completion=told.completion if told else 0,
            written=written,
        )
        self._gateway.keyring.begin_charge(key, result.charged)
        work.unwritten += 1
        work.put_at = self._clock.monotonic()
        written.add_done_callback(partial(self._note_written, work, key, result))
        members = lines.receipt_members(answered, job.endpoint, job.id, line.number, line.line)
        self._writer.put(result_id, result, members)

    def _note_written(
        self, work: Work, key: ApiKey, result: LineResult, written: asyncio.Future[bool]
    ) -> None:
        if written.cancelled():
            return
        is_written = written.result()
        if is_written:
            _ended.labels("failed" if result.failed else "completed").inc()
        else:
            work.is_lost = True
        self._gateway.keyring.end_charge(key, result.day, result.charged, is_charged=is_written)
        work.unwritten = max(0, work.unwritten - 1)
        if work.is_over:
            self._changed.set()
