"""The policy's workers: one bad input costs itself alone, together or not, and nothing is left behind."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from verifier.config import default_policy
from verifier.errors import PolicyError
from verifier.policy import bundle as bundles
from verifier.policy.bundle import Bundle
from verifier.policy.engine import Engines, Limits, opened, run_task

BASE = bundles.load(default_policy())
SOURCE = """package touchstone

f(x) := f(x + 1)

outcome := f(1) if input.do == "recurse"

outcome := count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000)]) if input.do == "loop"

outcome := count(numbers.range(1, 1000000000)) if input.do == "eat"

outcome := 1 / 0 if input.do == "fail"

outcome := input.number if input.do == "well"

outcome := sprintf("%d", [input.number]) if input.do == "say"
"""


def policy(source: str = SOURCE) -> Bundle:
    return dataclasses.replace(BASE, modules=(("a.rego", source),), statement=source.encode())


def given(do: str, number: int = 0) -> bytes:
    return json.dumps({"do": do, "number": number}).encode()


def children() -> set[int]:
    """The worker processes that are alive."""
    task = Path(f"/proc/{os.getpid()}/task")
    found = set()
    for thread in task.iterdir():
        # Threads and processes may end while we look.
        with suppress(OSError):
            for pid in (thread / "children").read_text().split():
                if b"verifier.policy.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
    return found


@pytest.mark.parametrize(
    ("bad", "message"),
    [("loop", "no outcome within"), ("recurse", "crashed"), ("eat", "crashed"), ("fail", "a.rego:11:14: divide")],
)  # fmt: skip
async def test_one_bad_input_among_many_costs_itself_alone(bad: str, message: str) -> None:
    """All others of its batch have their outcomes, each its own."""
    async with opened(policy(), Limits(1, 0.5)) as pool:
        await pool.evaluate(given("well"))
        inputs = [given(bad) if number == 7 else given("well", number) for number in range(30)]
        outcomes = await asyncio.gather(*(pool.evaluate(i) for i in inputs), return_exceptions=True)
    failed = outcomes.pop(7)
    assert isinstance(failed, PolicyError)
    assert message in str(failed)
    assert outcomes == [number for number in range(30) if number != 7]


async def test_many_at_once_each_get_their_own() -> None:
    """Over several workers, in whatever order they end."""
    async with opened(policy(), Limits(3)) as pool:
        numbers = list(range(500))
        assert await asyncio.gather(*(pool.evaluate(given("well", n)) for n in numbers)) == numbers


async def test_a_caller_that_goes_disturbs_nobody() -> None:
    """Its outcome is dropped, and the others' are theirs."""
    async with opened(policy(), Limits(1, 0.5)) as pool:
        gone = [asyncio.create_task(pool.evaluate(given("loop"))) for _ in range(2)]
        others = [asyncio.create_task(pool.evaluate(given("well", n))) for n in range(5)]
        await asyncio.sleep(0.05)
        for task in gone:
            task.cancel()
        assert await asyncio.gather(*others) == list(range(5))


async def test_a_worker_that_ended_by_itself_is_replaced() -> None:
    """Killed from outside between two inputs: the next one does not pay for it."""
    async with opened(policy(), Limits(1)) as pool:
        assert await pool.evaluate(given("well", 1)) == 1
        (pid,) = children()
        os.kill(pid, signal.SIGKILL)
        for _ in range(200):
            if not children():
                break
            await asyncio.sleep(0.01)
        assert await pool.evaluate(given("well", 2)) == 2


async def test_closing_fails_who_waits_and_leaves_no_process() -> None:
    """At once, also in the middle of a loop."""
    async with opened(policy(), Limits(2, 30)) as pool:
        await pool.evaluate(given("well"))
        waiting = [asyncio.create_task(pool.evaluate(given("loop"))) for _ in range(4)]
        await asyncio.sleep(0.1)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [PolicyError] * 4
    assert children() == set()
    with pytest.raises(PolicyError):
        await pool.evaluate(given("well"))


async def test_a_bundle_that_does_not_start_fails_all_who_wait() -> None:
    """Quickly, with file and place, without a process for each; another bundle is not touched."""
    broken = policy("package touchstone\n\noutcome := x\n")
    async with Engines(Limits(1)) as engines:
        outcomes = await asyncio.gather(
            *(engines.evaluate(broken, given("well")) for _ in range(50)), return_exceptions=True
        )
        assert {str(outcome).partition("start: ")[2] for outcome in outcomes} == {
            'a.rego:3:12: var x is unsafe (path ["touchstone", "x"], scopes [])'
        }
        assert await engines.evaluate(policy(), given("well", 3)) == 3


async def test_pools_that_are_long_unused_are_closed() -> None:
    """As many processes as there are policies in use, not as many as there ever were."""
    async with Engines(Limits(1), kept=2) as engines:
        for number in range(5):
            bundle = policy(f"{SOURCE}# {number}\n")
            assert await engines.evaluate(bundle, given("well", number)) == number
        await asyncio.sleep(0)
        for _ in range(200):
            if len(children()) <= 2:
                break
            await asyncio.sleep(0.01)
        assert len(children()) == 2
    assert children() == set()


async def test_an_outcome_that_is_too_large_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read into memory."""
    monkeypatch.setattr("verifier.policy.engine.MAX_FRAME", 100)
    source = "package touchstone\n\noutcome := numbers.range(1, 1000) if input.do\n"
    async with opened(policy(source), Limits(1)) as pool:
        with pytest.raises(PolicyError, match="more than 100"):
            await pool.evaluate(given("well"))


PARSING: dict[str, Callable[[], str]] = {
    "nested brackets": lambda: "package touchstone\n\nx := " + "[" * 100,
    "nested parentheses": lambda: "package touchstone\n\nx := " + "(" * 5000,
}


@pytest.mark.parametrize("source", PARSING.values(), ids=PARSING)
async def test_a_text_that_the_parser_never_ends_with(source: Callable[[], str]) -> None:
    """Parsed in a process of its own, for a limited time."""
    with pytest.raises(PolicyError):
        await run_task("inspect", policy(source()), 0.5)
    assert children() == set()
