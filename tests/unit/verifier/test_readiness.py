"""One look at the database a second, however many ask, and what it saw is what all are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from verifier.service.readiness import Readiness
from verifier.store.database import Database, UnavailableError


class CountedDatabase:
    """A database that answers when it is let, and counts how often it was asked."""

    def __init__(self) -> None:
        self.looks = 0
        self.is_down = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.now = 0.0

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Any]:
        self.looks += 1
        await self.may_answer.wait()
        if self.is_down:
            raise UnavailableError("the database is locked")
        yield self

    async def one(self, *_: Any) -> Any:
        return {"low": 0, "high": 0}

    def readiness(self) -> Readiness:
        return Readiness(cast("Database", self), lambda: self.now)


async def test_all_who_ask_within_a_second_share_a_look() -> None:
    """Also those who ask before it has answered."""
    db = CountedDatabase()
    readiness = db.readiness()
    db.may_answer.clear()
    asked = [asyncio.create_task(readiness.check()) for _ in range(50)]
    await asyncio.sleep(0)
    db.now = 5
    asked += [asyncio.create_task(readiness.check())]
    await asyncio.sleep(0)
    db.may_answer.set()
    await asyncio.gather(*asked)
    assert db.looks == 1


async def test_after_a_second_it_looks_again() -> None:
    """So an outage is known soon, and its end too."""
    db = CountedDatabase()
    readiness = db.readiness()
    await readiness.check()
    db.is_down = True
    db.now = 1
    for _ in range(3):
        with pytest.raises(UnavailableError, match="locked"):
            await readiness.check()
    assert db.looks == 2
    db.is_down = False
    db.now = 2
    await readiness.check()


async def test_whoever_gives_up_takes_the_look_from_nobody() -> None:
    """A client that goes away ends its own wait alone."""
    db = CountedDatabase()
    readiness = db.readiness()
    db.may_answer.clear()
    one, other = asyncio.create_task(readiness.check()), asyncio.create_task(readiness.check())
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.sleep(0)
    db.may_answer.set()
    await other
    assert one.cancelled()
    assert db.looks == 1
