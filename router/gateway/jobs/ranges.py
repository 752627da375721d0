"""The ranges that a router does now, and their leases."""

from __future__ import annotations

from collections import deque
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Final

import structlog

from router.gateway.jobs.held import WaitingLine, Work
from router.gateway.jobs.reading import read_requests
from router.model.clock import Clock
from router.model.errors import JobLineError
from router.store import jobs
from router.store.jobs import HeldRange, Job
from verifier.store.database import Database, Tx

LEASE_S: Final = 15.0
_RENEW_EVERY_S: Final = 4.0
_GRACE_S: Final = 30.0
"""For lines that are under way when their job ends."""
_UNWRITTEN_S: Final = 120.0
_FIRST_PAUSE_MS: Final = 500
_LONGEST_PAUSE_MS: Final = 60_000
_NOBODY_MS: Final = 2000
"""Until a range is tried again whose lines no node may do."""
_MAX_HELD: Final = 256

_log = structlog.get_logger("router")


class Ranges:
    """
    The ranges of one router.

    Args:
        db: The store.
        clock: The router's.
        router: The router's name, which it has alone.
    """

    def __init__(self, db: Database, clock: Clock, router: str) -> None:
        self._db = db
        self._clock = clock
        self.router = router
        self.held: dict[str, Work] = {}
        """By the token of the lease."""
        self.ahead_ms = 0
        """By how much the store's clock is ahead of the router's."""
        self._renewed_at = 0.0

    @property
    def is_full(self) -> bool:
        """Whether no further range may be taken."""
        return len(self.held) >= _MAX_HELD

    def now_ms(self) -> int:
        """The time by the clock that all routers share."""
        return self._clock.now_ms() + self.ahead_ms

    def until_ms(self) -> int:
        """When a lease ends that begins now."""
        return self.now_ms() + int(LEASE_S * 1000)

    def stop(self, running: AbstractSet[str]) -> None:
        """Begin no further line of a job that is not among *running*; what is under way may end for a while."""
        now = self._clock.monotonic()
        for work in self.held.values():
            if work.held.job not in running:
                work.stop(now)
                if work.running and now - (work.stopping_at or now) > _GRACE_S:
                    work.abandon()
            if work.unwritten and not work.waiting and not work.running and now - work.put_at > _UNWRITTEN_S:
                # While the store took nothing, there were too many for the memory: they are done again.
                work.abandon()

    async def renew(self) -> None:
        """Renew all leases, if it is time; what was lost is dropped."""
        now = self._clock.monotonic()
        if not self.held or now - self._renewed_at < _RENEW_EVERY_S:
            return
        alive = await self._db.write(partial(jobs.renew, holders=tuple(self.held), until_ms=self.until_ms()))
        self._renewed_at = now
        for holder in [holder for holder in self.held if holder not in alive]:
            _log.warning("another router does a range of a batch now", job=self.held[holder].held.job)
            self.held.pop(holder).abandon()

    async def give_back(self) -> list[str]:
        """Give back the ranges in which nothing is under way; returns their jobs."""
        over = [work for work in self.held.values() if work.is_over]
        if not over:
            return []
        now_ms = self.now_ms()

        async def give_back(tx: Tx) -> None:
            for work in over:
                tries, due_ms = _pause(work, now_ms)
                await jobs.give_back(tx, work.held, is_done=work.is_done, failed_tries=tries, due_ms=due_ms)

        await self._db.write(give_back)
        for work in over:
            self.held.pop(work.held.holder, None)
        return [work.held.job for work in over]

    async def take(self, job: Job) -> bool:
        """Take a range of a job; returns whether there was one that is due."""
        now_ms = self.now_ms()
        holder = jobs.new_id(now_ms)
        claim = partial(
            jobs.claim,
            job=job.id,
            router=self.router,
            holder=holder,
            now_ms=now_ms,
            until_ms=self.until_ms(),
        )
        held = await self._db.write(claim)
        if held is None:
            return False
        self.held[holder] = await self._load(held, job)
        return True

    async def _load(self, held: HeldRange, job: Job) -> Work:
        try:
            found = await read_requests(self._db, job.input_file, held.range, job.endpoint)
        except JobLineError as error:
            _log.error("the lines of a batch cannot be read", job=job.id, why=str(error))
            return Work(held, job, deque(), left=held.range.lines)
        async with self._db.read() as tx:
            known = await jobs.lines_with_results(tx, job.id, held.range)
        rest = [WaitingLine(number, line) for number, line in found if number not in known]
        return Work(held, job, deque(rest))

    async def close(self) -> None:
        """Give everything back, once what was done is written."""
        await self._db.write(partial(jobs.give_back_all, router=self.router))


def _pause(work: Work, now_ms: int) -> tuple[int, int]:
    """How many tries of a range have failed, 0 or 1, and when it is tried again."""
    if work.failed_tries:
        pause_ms = min(_LONGEST_PAUSE_MS, _FIRST_PAUSE_MS << min(work.held.tries, 10))
        return 1, now_ms + pause_ms
    return 0, now_ms + (_NOBODY_MS if work.again or work.left else 0)
