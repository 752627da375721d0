"""
Threads for counting tokens, apart from all others, with a bound on what may wait.

The threads that asyncio shares also look up the names of nodes and check the verifier's results.
Behind the counts of a few large requests these would wait, and nodes would look stalled that are not.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from prometheus_client import Counter

MAX_WAITING: Final = 8 << 20
"""Bytes of texts that are being counted, or wait for it: some seconds of work."""
_THREADS: Final = 2
"""More would take the processor from the loop."""

_skipped = Counter("touchstone_router_counts_skipped_total", "Texts estimated because too much was to count.")

T = TypeVar("T")


class CountingThreads:
    """A few threads for texts that are too long to count on the loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="counting")
        self._lock = threading.Lock()
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Bytes that are being counted, or wait for it."""
        return self._waiting

    async def run(self, size: int, work: Callable[[], T]) -> T | None:
        """
        Do *work* on a text of *size* bytes in a thread.

        Returns:
            What it returns; `None` if too much waits already.  A text that is alone is always taken.
        """
        with self._lock:
            if self._waiting and self._waiting + size > MAX_WAITING:
                _skipped.inc()
                return None
            self._waiting += size

        def leave(_: Future[T]) -> None:
            # Also if the caller has left: the thread is free only now.
            with self._lock:
                self._waiting -= size

        try:
            counted = self._threads.submit(work)
        except RuntimeError:
            # The router is being closed.
            with self._lock:
                self._waiting -= size
            return None
        counted.add_done_callback(leave)
        return await asyncio.wrap_future(counted)

    def close(self) -> None:
        """Take no more work; what is being counted comes to its end."""
        self._threads.shutdown(wait=False, cancel_futures=True)
