"""Receipts that must still get into the log: waited for, and work ends where they do not get there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.client import checking
from router.client.awaiting import LogWatch
from router.client.bundles import Bundle
from router.client.checking import Checked
from router.client.errors import Step, UnreachableError, UnverifiedError
from router.client.trust import Required
from tests.unit.router.receipted import World, parsed


class Router:
    """Gives a receipt as it is at the moment, and a clock that goes on with each pause."""

    def __init__(self, **require: Any) -> None:
        self.world = World(require=Required(**{"log": "later", "log_within_s": 10, **require}))
        self.bundle, self.receipt = self.world.whole()
        self.given: dict[str, Any] | Exception | None = {**self.bundle, "log": None}
        self.now = 0.0
        self.sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self.watch = LogWatch(self.world.trust(), self.fetch, None, now=lambda: self.now, sleep=self.sleep)

    def checked(self) -> Checked:
        return checking.check_receipt(parsed(self.bundle), self.world.trust())

    async def fetch(self, receipt_id: str) -> tuple[Bundle, bytes] | None:
        assert receipt_id == self.receipt.jti
        if isinstance(self.given, Exception):
            raise self.given
        return None if self.given is None else (parsed(self.given), b"{}")

    async def sleep(self, seconds: float) -> None:
        until_then = asyncio.get_running_loop().create_future()
        self.sleepers.append((self.now + seconds, until_then))
        await until_then

    async def wait(self, seconds: float) -> None:
        """Let time pass, a little at a time, and whatever it wakes."""
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            for sleeper in [each for each in self.sleepers if each[0] <= self.now]:
                self.sleepers.remove(sleeper)
                if not sleeper[1].done():
                    sleeper[1].set_result(None)
            for _ in range(5):
                await asyncio.sleep(0)


async def test_a_receipt_gets_into_the_log_meanwhile() -> None:
    router = Router()
    checked = router.checked()
    await router.watch.take(checked)
    await router.wait(5)
    router.watch.check()
    assert not checked.is_logged
    router.given = router.bundle
    await router.wait(2)
    assert checked.is_logged
    assert router.watch.pending == 0
    assert Step.LOG in checked.steps
    await router.watch.close()


async def test_one_that_does_not_get_there_ends_the_work_until_it_does() -> None:
    router = Router()
    await router.watch.take(router.checked())
    await router.wait(11)
    with pytest.raises(UnverifiedError, match="not in the log after 10 s"):
        router.watch.check()
    router.given = router.bundle
    await router.wait(2)
    router.watch.check()
    await router.watch.close()


async def test_a_router_that_is_away_has_its_time_too() -> None:
    router = Router()
    router.given = UnreachableError("away")
    await router.watch.take(router.checked())
    await router.wait(9)
    router.watch.check()
    await router.wait(2)
    with pytest.raises(UnverifiedError):
        router.watch.check()
    await router.watch.close()


async def test_witnesses_have_their_time_too() -> None:
    """The log has signed, and the witness has not yet: that is no fault."""
    router = Router()
    checked = router.checked()
    router.given = {**router.bundle, "log": router.bundle["log"].rpartition("\u2014 witness")[0]}
    await router.watch.take(checked)
    await router.wait(6)
    assert not checked.is_logged
    router.watch.check()
    router.given = router.bundle
    await router.wait(2)
    assert checked.is_logged
    await router.watch.close()


async def test_a_wrong_proof_ends_the_work_for_ever() -> None:
    router = Router()
    other, _ = router.world.whole()
    router.given = {**router.bundle, "log": other["log"]}
    await router.watch.take(router.checked())
    await router.wait(4)
    with pytest.raises(UnverifiedError, match="another batch"):
        router.watch.check()
    router.given = router.bundle
    await router.wait(4)
    with pytest.raises(UnverifiedError):
        router.watch.check()
    await router.watch.close()


async def test_another_receipt_under_the_same_id_ends_the_work() -> None:
    """The router has two of them."""
    router = Router()
    token = router.bundle["result"]
    second = router.world.receipt(token, jti=router.receipt.jti, outcome="failed")
    router.given = router.world.bundle(second, token)
    await router.watch.take(router.checked())
    await router.wait(4)
    with pytest.raises(UnverifiedError, match="another receipt"):
        router.watch.check()
    await router.watch.close()


async def test_before_an_answer_is_used() -> None:
    router = Router(log="before")
    checked = router.checked()
    waiting = asyncio.create_task(router.watch.take(checked))
    await router.wait(3)
    assert not waiting.done()
    router.given = router.bundle
    await router.wait(1)
    await waiting
    assert checked.is_logged


async def test_before_and_it_does_not_get_there() -> None:
    router = Router(log="before")
    waiting = asyncio.create_task(router.watch.take(router.checked()))
    await router.wait(12)
    with pytest.raises(UnverifiedError, match="not in the log after 10 s"):
        await waiting


async def test_nothing_is_waited_for_where_no_log_is_asked_for() -> None:
    router = Router(log="never")
    await router.watch.take(router.checked())
    assert router.watch.pending == 0


async def test_only_so_many_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.client.awaiting.MAX_PENDING", 1)
    router = Router()
    await router.watch.take(router.checked())
    with pytest.raises(UnverifiedError, match="1 receipts are not in the log yet"):
        router.watch.check()
    await router.watch.close()


async def test_settling_waits_for_all() -> None:
    router = Router()
    checked = router.checked()
    await router.watch.take(checked)
    settling = asyncio.create_task(router.watch.settle())
    await router.wait(4)
    assert not settling.done()
    router.given = router.bundle
    await router.wait(3)
    await settling
    assert checked.is_logged
    await router.watch.close()
