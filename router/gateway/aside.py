"""Work that takes long, done aside in a few threads, so that the loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from router.gateway.body import LARGE

_AT_ONCE: Final = 2
"""More would only take the processor, and memory, from each other."""

P = ParamSpec("P")
T = TypeVar("T")


class Aside:
    """A few threads of its own: slow lookups of names, which share the loop's threads, do not hold it up."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix=name)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do *work* in a thread, once one is free; returns what it returns, and raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))

    async def run_on(self, data: bytes, work: Callable[[bytes], T]) -> T:
        """Do *work* on *data*: at once, or as `run` does it if that is much."""
        return work(data) if len(data) <= LARGE else await self.run(work, data)

    def close(self) -> None:
        """Take no more work; what is being done comes to its end."""
        self._threads.shutdown(wait=False, cancel_futures=True)
