"""The limit on the time that a task takes."""

from __future__ import annotations

import asyncio

import pytest

from router.gateway.time_limit import TimeLimit

SOON = 0.02
LATE = 30.0


def limit(seconds: float) -> TimeLimit:
    loop = asyncio.get_running_loop()
    return TimeLimit(loop, loop.time() + seconds)


def move(moved: TimeLimit, seconds: float) -> None:
    moved.move(asyncio.get_running_loop().time() + seconds)


async def test_what_takes_too_long_ends_with_a_timeout() -> None:
    with pytest.raises(TimeoutError), limit(SOON):
        await asyncio.sleep(LATE)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_a_time_that_has_passed_is_up_at_once(seconds: float) -> None:
    with pytest.raises(TimeoutError), limit(seconds):
        await asyncio.sleep(LATE)


async def test_what_is_ready_in_time_goes_on() -> None:
    with limit(SOON) as short:
        await asyncio.sleep(0)
    await asyncio.sleep(2 * SOON)
    assert short.due is not None


async def test_a_limit_that_is_moved_on_comes_later() -> None:
    with limit(SOON) as moved:
        move(moved, LATE)
        await asyncio.sleep(2 * SOON)
        move(moved, SOON)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(LATE)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 1


async def test_a_limit_that_is_moved_up_comes_sooner() -> None:
    async def work() -> None:
        with limit(LATE) as moved:
            move(moved, SOON)
            await asyncio.sleep(LATE)

    with pytest.raises(TimeoutError):
        await work()


async def test_a_limit_that_is_lifted_comes_only_when_it_is_set_again() -> None:
    async def work() -> None:
        with limit(SOON) as lifted:
            lifted.move(None)
            await asyncio.sleep(2 * SOON)
            assert lifted.due is None
            move(lifted, SOON)
            await asyncio.sleep(LATE)

    with pytest.raises(TimeoutError):
        await work()


async def test_a_task_that_is_cancelled_by_others_stays_cancelled() -> None:
    """Also if its time is up at the same moment."""

    async def work() -> None:
        with limit(0.0):
            await asyncio.sleep(LATE)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_inner_of_two_limits_is_the_one_that_is_up() -> None:
    with limit(LATE):
        with pytest.raises(TimeoutError), limit(SOON):
            await asyncio.sleep(LATE)
        await asyncio.sleep(0)


async def test_another_error_is_passed_on() -> None:
    with pytest.raises(ValueError, match="other"), limit(LATE):
        raise ValueError("other")
