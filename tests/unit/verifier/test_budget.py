"""The budget of bytes and the places of strangers' requests."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.errors import RequestError
from verifier.service.budget import SMALL, ByteBudget, Places

MIB = 1 << 20


def take(budget: ByteBudget, holder: str, size: int, *, known: bool = False, so_far: int = 0) -> bool:
    try:
        budget.take(holder, size, known=known, so_far=so_far)
    except RequestError as error:
        return {"service.busy": False}[error.code]
    return True


def test_strangers_leave_a_part_to_the_known() -> None:
    """However many they are."""
    budget = ByteBudget(16 * MIB, 4 * MIB)
    assert sum(take(budget, f"a{n}", MIB) for n in range(50)) == 6
    assert take(budget, "node:1", 8 * MIB, known=True)


def test_large_bodies_of_strangers_leave_room_for_small_ones() -> None:
    """A node's answers are a stranger's until they are read."""
    budget = ByteBudget(16 * MIB, 4 * MIB)
    while take(budget, "a", MIB):
        pass
    assert take(budget, "b", SMALL)


def test_nobody_has_more_than_half() -> None:
    """Neither somebody who is known nor one address."""
    budget = ByteBudget(16 * MIB, 4 * MIB)
    assert take(budget, "key:a", 8 * MIB, known=True)
    assert not take(budget, "key:a", 1, known=True)
    assert take(budget, "key:b", 8 * MIB, known=True)
    assert not take(budget, "key:c", 1, known=True)


def test_what_a_stranger_holds_is_its_own_once_it_is_known() -> None:
    """So that strangers have their part again."""
    budget = ByteBudget(16 * MIB, 4 * MIB)
    assert take(budget, "a", 6 * MIB)
    budget.move("a", 6 * MIB, to="node:1")
    assert take(budget, "b", 6 * MIB)
    assert not take(budget, "node:1", 3 * MIB, known=True)
    budget.give_back("node:1", 6 * MIB, known=True)
    budget.give_back("b", 6 * MIB, known=False)
    assert budget.held == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 4 * MIB)), max_size=60))
def test_no_more_is_held_than_there_is(steps: list[tuple[int, bool, int]]) -> None:
    """And all of it comes back."""
    budget = ByteBudget(16 * MIB, 4 * MIB)
    held: list[tuple[str, bool, int]] = []
    for number, known, size in steps:
        holder = f"{'key' if known else 'address'}:{number}"
        if take(budget, holder, size, known=known):
            held.append((holder, known, size))
        elif held:
            first, was_known, bytes_held = held.pop(0)
            budget.give_back(first, bytes_held, known=was_known)
        assert budget.held == sum(size for _, _, size in held) <= 16 * MIB
        assert sum(size for _, known, size in held if not known) <= 12 * MIB
    for holder, known, size in held:
        budget.give_back(holder, size, known=known)
    assert budget.held == 0


async def test_places_are_given_in_turn() -> None:
    """The one who has waited longest is next."""
    places = Places(1)
    leave = await places.take()
    waiting = [asyncio.create_task(places.take()) for _ in range(2)]
    await asyncio.sleep(0)
    leave()
    leave()
    done = await waiting[0]
    assert not waiting[1].done()
    done()
    (await waiting[1])()
    (await places.take())()


async def test_the_line_has_an_end() -> None:
    """Whoever comes then is told to come back."""
    places = Places(1, queue=1)
    await places.take()
    waiting = asyncio.create_task(places.take())
    await asyncio.sleep(0)
    with pytest.raises(RequestError) as refused:
        await places.take()
    assert (refused.value.code, refused.value.retry_after) == ("service.busy", 1)
    waiting.cancel()


async def test_nobody_waits_for_long() -> None:
    """And who gives up takes no place with it."""
    places = Places(1, wait_s=0.01)
    leave = await places.take()
    with pytest.raises(RequestError):
        await places.take()
    leave()
    (await places.take())()


async def test_a_client_that_goes_while_it_waits_leaves_no_gap() -> None:
    """The place goes to the next."""
    places = Places(1)
    leave = await places.take()
    gone, stays = [asyncio.create_task(places.take()) for _ in range(2)]
    await asyncio.sleep(0)
    leave()
    gone.cancel()
    (await asyncio.wait_for(stays, 5))()
