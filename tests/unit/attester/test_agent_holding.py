"""The agent and what the node holds: it looks, attests to what is new, and is away while there is nothing to show."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from structlog.testing import capture_logs

from attester.agent import Agent
from attester.errors import VerifierError
from attester.holding import NotReadyError
from tests.unit.attester.test_agent import ENROLMENT, KEY, NOW, Client, Collector, session
from tests.unit.router.doubles import until


@pytest.fixture(autouse=True)
def logs():
    with capture_logs() as kept:
        yield kept


class Channel(Client):
    """A verifier whose channel stays open until the node leaves it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls_to_make: asyncio.Queue[Any] = asyncio.Queue()
        self.open = 0

    async def calls(self, node: str):
        self.opened.append(node)
        self.open += 1
        try:
            while True:
                yield await self.calls_to_make.get()
        finally:
            self.open -= 1


class Held:
    """What the node holds, as the test says."""

    look_s = 0.01

    def __init__(self) -> None:
        self.is_blocked = False
        self.new = False
        self.looks = 0
        self.refuse: dict[str, str] = {}
        """By what is checked, why it cannot be shown."""
        self.fails: BaseException | None = None

    async def look(self, between: Callable[[], Any]) -> bool:
        self.looks += 1
        if self.fails is not None:
            raise self.fails
        if self.new:
            async with between():
                self.new = False
            return True
        return False

    async def check(self, models: Iterable[str], *, walks: bool) -> None:
        if list(models) and (why := self.refuse.get("walks" if walks else "files")):
            raise NotReadyError(why)

    async def check_engine(self) -> None:
        if why := self.refuse.get("engine"):
            self.is_blocked = True
            raise NotReadyError(why)


@contextlib.asynccontextmanager
async def running(client: Channel, held: Held):
    agent = Agent(client, Collector(), KEY, ENROLMENT, now=lambda: NOW, holding=held)  # type: ignore[arg-type]
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_it_looks_before_it_is_called() -> None:
    """At its start, and again and again."""
    client, held = Channel(), Held()
    async with running(client, held):
        await until(lambda: client.open and held.looks > 3)


async def test_what_is_new_is_attested_in_a_session_of_its_own() -> None:
    """So that the node is back quickly."""
    client, held = Channel(), Held()
    async with running(client, held):
        await until(lambda: client.open)
        held.new = True
        await until(lambda: client.names("evidence") == ["own"])
        assert client.opened == ["n1"]


async def test_a_session_of_its_own_that_fails_ends_nothing() -> None:
    """The pool may be low; the verifier calls soon."""
    client, held = Channel(), Held()
    client.fail = {"evidence": VerifierError("challenges are kept for calls", status=429)}
    async with running(client, held):
        held.new = True
        await until(lambda: client.names("evidence"))
        client.fail = {}
        client.calls_to_make.put_nowait(session("1"))
        await until(lambda: client.names("evidence")[-1] == "1")


async def test_it_is_away_while_there_is_nothing_to_show_and_comes_back() -> None:
    """The verifier waits for a node that has just left."""
    client, held = Channel(), Held()
    async with running(client, held):
        await until(lambda: client.open)
        held.is_blocked = True
        await until(lambda: not client.open)
        looks = held.looks
        await until(lambda: held.looks > looks + 2)
        assert client.opened == ["n1"]
        held.is_blocked = False
        await until(lambda: client.open)


@pytest.mark.parametrize("what", ["files", "walks", "engine"])
async def test_a_call_that_cannot_be_answered_truthfully_is_not_answered(what: str, logs: Any) -> None:
    """Neither by half nor with evidence, and the folders are looked at at once."""
    client, held = Channel(), Held()
    held.refuse = {what: "the node changes"}
    async with running(client, held):
        client.calls_to_make.put_nowait(session("1"))
        await until(lambda: any("is not answered" in entry["event"] for entry in logs))
        assert client.log == []


async def test_a_call_that_comes_again_is_answered(logs: Any) -> None:
    """The verifier pushes it again when the node is back."""
    client, held = Channel(), Held()
    held.refuse = {"engine": "the engine does not answer"}
    async with running(client, held):
        client.calls_to_make.put_nowait(session("1"))
        await until(lambda: any("is not answered" in entry["event"] for entry in logs))
        await until(lambda: not client.open)
        held.refuse, held.is_blocked = {}, False
        await until(lambda: client.open)
        client.calls_to_make.put_nowait(session("1"))
        await until(lambda: client.names("evidence") == ["1"])


async def test_files_that_change_before_the_evidence_is_signed_send_none() -> None:
    """The answers have gone out; the evidence would be of other files."""
    client, held = Channel(), Held()
    answer = client.answer_call

    async def answer_and_change(given: Any, answers: Any) -> None:
        await answer(given, answers)
        held.refuse = {"files": "changed"}

    client.answer_call = answer_and_change  # type: ignore[method-assign]
    async with running(client, held):
        client.calls_to_make.put_nowait(session("1"))
        await until(lambda: client.names("answers"))
        looks = held.looks
        await until(lambda: held.looks > looks)
        assert client.names("evidence") == []


@pytest.mark.parametrize("error", [VerifierError("down"), ZeroDivisionError("a slip of ours")])
async def test_a_look_that_fails_is_made_again(error: BaseException) -> None:
    """Calls are answered meanwhile, by what was claimed before."""
    client, held = Channel(), Held()
    held.fails = error
    async with running(client, held):
        await until(lambda: held.looks > 2)
        client.calls_to_make.put_nowait(session("1"))
        await until(lambda: client.names("evidence") == ["1"])
