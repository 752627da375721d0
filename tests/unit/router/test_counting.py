"""Threads for counting tokens: apart from all others, and bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from router.gateway.counting import MAX_WAITING, CountingThreads
from tests.unit.router.doubles import until


@pytest.fixture
def threads() -> Iterator[CountingThreads]:
    made = CountingThreads()
    yield made
    made.close()


async def test_what_is_counted_comes_back(threads: CountingThreads) -> None:
    """And nothing waits then."""
    assert await threads.run(10, partial(len, "abc")) == 3
    await until(lambda: not threads.waiting)


async def test_more_than_may_wait_is_not_taken(threads: CountingThreads) -> None:
    """Until what waits is done."""
    go = threading.Event()
    running = asyncio.create_task(threads.run(MAX_WAITING - 1, go.wait))
    await until(lambda: threads.waiting)
    assert await threads.run(2, partial(len, "abc")) is None
    assert await threads.run(1, partial(len, "abc")) == 3
    go.set()
    assert await running is True
    await until(lambda: not threads.waiting)
    assert await threads.run(2, partial(len, "abc")) == 3


async def test_one_that_is_larger_than_all_is_taken_alone(threads: CountingThreads) -> None:
    """Else its client would never be counted."""
    assert await threads.run(MAX_WAITING + 1, partial(len, "abc")) == 3


async def test_who_leaves_keeps_the_room_until_its_thread_is_free(threads: CountingThreads) -> None:
    """A client that asks and leaves again and again fills no queue."""
    go = threading.Event()
    running = asyncio.create_task(threads.run(MAX_WAITING, go.wait))
    await until(lambda: threads.waiting)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await threads.run(1, partial(len, "abc")) is None
    go.set()
    await until(lambda: not threads.waiting)


async def test_what_fails_takes_no_room(threads: CountingThreads) -> None:
    """Its error goes to who asked."""
    with pytest.raises(ZeroDivisionError):
        await threads.run(5, lambda: 1 // 0)
    await until(lambda: not threads.waiting)


async def test_after_the_end_nothing_is_counted(threads: CountingThreads) -> None:
    """The router is going down; its clients pay by the estimate."""
    threads.close()
    assert (await threads.run(5, partial(len, "abc")), threads.waiting) == (None, 0)
