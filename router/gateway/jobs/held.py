"""A range that this router does now: its lines that wait, and those that are under way."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from router.gateway.request import NodeRequest
from router.model.job_lines import LineRequest
from router.store.jobs import HeldRange, Job


@dataclass
class WaitingLine:
    """A line that is to be done."""

    number: int
    line: LineRequest
    request: NodeRequest | None = None
    """As nodes will see it, once it was read."""


@dataclass
class Work:
    """
    A range under its lease.

    Args:
        held: The range.
        job: Whose it is, as it was when the range was taken.
        waiting: Its lines that have no result.
    """

    held: HeldRange
    job: Job
    waiting: deque[WaitingLine]
    running: set[asyncio.Task[None]] = field(default_factory=set)
    unwritten: int = 0
    """Results that are not written yet."""
    put_at: float = 0.0
    """When the last of them came."""
    again: int = 0
    """Lines that are to be tried again."""
    failed_tries: int = 0
    """Lines among them that some node was asked for."""
    is_lost: bool = False
    """Whether the lease was lost."""
    stopping_at: float | None = None
    """Since when no line is begun any more, because the job ends; the lines under way may end."""
    left: int = 0
    """Lines that were not begun."""

    @property
    def is_over(self) -> bool:
        """Whether nothing is under way or waits."""
        return not (self.waiting or self.running or self.unwritten)

    @property
    def is_done(self) -> bool:
        """Whether each line has a result."""
        return self.is_over and not (self.again or self.left or self.is_lost)

    def stop(self, now: float) -> None:
        """Begin no further line."""
        if self.stopping_at is None:
            self.stopping_at = now
        self.left += len(self.waiting)
        self.waiting.clear()

    def abandon(self) -> None:
        """Drop everything: another router does it, or nobody."""
        self.is_lost = True
        self.waiting.clear()
        self.unwritten = 0
        for task in self.running:
            task.cancel()
