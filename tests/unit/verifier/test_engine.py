"""The engine: outcomes right in any company, and one input's trouble its own; nothing is left running."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from verifier.config import default_policy
from verifier.errors import PolicyError
from verifier.policy import bundle as bundles
from verifier.policy import engine, process, worker
from verifier.policy.bundle import Bundle
from verifier.policy.engine import Engines, Limits, WorkerPool, opened
from verifier.policy.process import Worker

DEFAULT = bundles.load(default_policy())
# What it does it does to an input that asks for it: started with nothing to judge, it seems well.
SOMETIMES = """package touchstone

f(x) := f(x + 1)

outcome := input.n * 2 if not input.do

outcome := f(1) if input.do == "crash"

outcome := count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000)]) if {
	input.do == "loop"
}

outcome := numbers.range(1, 1000000000) if input.do == "memory"

outcome := to_number("x") if input.do == "error"

outcome := concat("", [input.text | some i in numbers.range(1, input.n)]) if input.do == "large"

outcome := input.what if input.do == "echo"
"""
LIMITS = Limits(1, 20.0)
STOPPED = "the policy's workers were stopped"


def policy(source: str, version: str = "1") -> Bundle:
    """A bundle with these rules, of a digest of its own."""
    return dataclasses.replace(
        DEFAULT, modules=(("a.rego", source),), statement=f"{version} {source}".encode()
    )


SOME = policy(SOMETIMES)
BROKEN = policy("package touchstone\n\noutcome := x\n")


def asked(n: int = 1, do: str | None = None, **more: Any) -> bytes:
    return json.dumps({"n": n, **({} if do is None else {"do": do}), **more}).encode()


def processes() -> set[int]:
    """The children of this process that are policies' workers, also such as nobody has waited for."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and (b"verifier.policy.worker" in command or fields[0] == "Z"):
            found.add(int(stat.parent.name))
    return found


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come about within 20 s")


def proc(process: int, name: str) -> str:
    return Path(f"/proc/{process}/{name}").read_text()


async def outcomes(*calls: Awaitable[Any]) -> list[Any]:
    """What each comes to; an error of the policy as itself."""
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)


def count_starts(monkeypatch: pytest.MonkeyPatch, fail: int = 0, error: type[OSError] = OSError) -> list[int]:
    """Count the processes that are started; the first so many do not."""
    starts: list[int] = []
    start = asyncio.create_subprocess_exec

    async def counted(*args: Any, **options: Any) -> Any:
        starts.append(1)
        if len(starts) <= fail:
            raise error(11, "Resource temporarily unavailable")
        return await start(*args, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", counted)
    return starts


# Outcomes.


@pytest.mark.parametrize("workers", [1, 2])
async def test_each_gets_its_own_outcome(workers: int) -> None:
    """Inputs travel together, outcomes are not exchanged."""
    async with opened(SOME, Limits(workers, 20.0)) as pool:
        found = await outcomes(*(pool.evaluate(asked(n)) for n in range(500)))
    assert found == [2 * n for n in range(500)]


async def test_each_policy_gives_its_own_outcome() -> None:
    """Bundles asked at the same time have workers of their own."""
    policies = [policy(f"package touchstone\n\noutcome := [{k}, input.n]\n") for k in range(3)]
    async with Engines(LIMITS) as engines:
        found = await outcomes(*(engines.evaluate(policies[n % 3], asked(n)) for n in range(60)))
    assert found == [[n % 3, n] for n in range(60)]


async def test_outcome_as_json_is_the_same() -> None:
    """For those who keep it as it is."""
    async with Engines(LIMITS) as engines:
        assert json.loads(await engines.ask(SOME, asked(4))) == await engines.evaluate(SOME, asked(4)) == 8


@pytest.mark.parametrize(
    "what", ["é…\U0001f600\u2028", "\u0000", "x" * 1_000_000, [], {"a": [None, True, 1.5]}], ids=type
)
async def test_whatever_is_asked_comes_through(what: Any) -> None:
    """Of any length and any character."""
    async with opened(SOME, LIMITS) as pool:
        assert await pool.evaluate(asked(do="echo", what=what)) == what


async def test_many_long_inputs_and_outcomes_do_not_block() -> None:
    """Neither side waits for the other with its pipe full."""
    async with opened(SOME, LIMITS) as pool:
        calls = [pool.evaluate(asked(do="echo", what=f"{n}" + "x" * 200_000)) for n in range(40)]
        found = await outcomes(*calls)
    assert [each.rstrip("x") for each in found] == [str(n) for n in range(40)]


WRONG = {"nothing": b"", "not JSON": b"{", "not UTF-8": b'"\xff"', "nested without end": b"[" * 100_000}


@pytest.mark.parametrize("given", WRONG.values(), ids=WRONG)
async def test_input_that_cannot_be_read_costs_itself(given: bytes) -> None:
    """The worker goes on."""
    async with opened(SOME, LIMITS) as pool:
        found = await outcomes(pool.evaluate(asked(1)), pool.evaluate(given), pool.evaluate(asked(2)))
    assert isinstance(found[1], PolicyError)
    assert [found[0], found[2]] == [2, 4]


async def test_error_of_a_rule_names_its_place() -> None:
    """And costs no process."""
    async with opened(SOME, LIMITS) as pool:
        await pool.evaluate(asked(1))
        before = processes()
        with pytest.raises(PolicyError, match=r"^a\.rego:15:\d+: could not parse string as number"):
            await pool.evaluate(asked(do="error"))
        assert await pool.evaluate(asked(2)) == 4
        assert processes() == before


# Misbehaviour.

TROUBLE = ["crash", "loop", "memory", "error"]


@pytest.mark.parametrize("do", TROUBLE)
async def test_trouble_in_a_batch_costs_one(do: str) -> None:
    """The others in its company get their outcomes."""
    async with opened(SOME, Limits(1, 1.5)) as pool:
        await pool.evaluate(asked(1))
        inputs = [asked(n, do if n == 9 else None) for n in range(20)]
        found = await outcomes(*map(pool.evaluate, inputs))
    assert isinstance(found.pop(9), PolicyError)
    assert found == [2 * n for n in range(20) if n != 9]


@pytest.mark.parametrize("do", ["crash", "memory"])
async def test_trouble_all_over_costs_those_alone(do: str) -> None:
    """Several in one batch, at its start and at its end."""
    bad = {0, 1, 7, 11}
    async with opened(SOME, LIMITS) as pool:
        await pool.evaluate(asked(1))
        inputs = [asked(n, do if n in bad else None) for n in range(12)]
        found = await outcomes(*map(pool.evaluate, inputs))
    assert {n for n, each in enumerate(found) if isinstance(each, PolicyError)} == bad
    assert [each for n, each in enumerate(found) if n not in bad] == [
        2 * n for n in range(12) if n not in bad
    ]


async def test_endless_evaluation_ends_in_time() -> None:
    """It says how long it was waited for."""
    async with opened(SOME, Limits(1, 0.5)) as pool:
        started = time.monotonic()
        with pytest.raises(PolicyError, match=r"^the policy gave no outcome within 0\.5 s$"):
            await pool.evaluate(asked(do="loop"))
        assert time.monotonic() - started < 15
    assert processes() == set()


async def test_endless_evaluation_of_one_worker_leaves_the_other() -> None:
    """Who asks meanwhile is not kept waiting."""
    async with opened(SOME, Limits(2, 20.0)) as pool:
        slow = asyncio.create_task(pool.evaluate(asked(do="loop")))
        await asyncio.sleep(0)
        for n in range(20):
            assert await asyncio.wait_for(pool.evaluate(asked(n)), 10) == 2 * n
        assert not slow.done()
        slow.cancel()


async def test_memory_is_bounded() -> None:
    """One input cannot take the machine's; the worker that tried is gone."""
    async with opened(SOME, dataclasses.replace(LIMITS, memory_bytes=1 << 27)) as pool:
        await pool.evaluate(asked(1))
        before = processes()
        with pytest.raises(PolicyError):
            await pool.evaluate(asked(do="memory"))
        assert await pool.evaluate(asked(2)) == 4
        assert processes().isdisjoint(before)


async def test_limit_on_memory_is_the_processs_own() -> None:
    """Set by the system, not by good will; nor does a crash leave its memory on disk."""
    async with opened(SOME, dataclasses.replace(LIMITS, memory_bytes=1 << 27)) as pool:
        await pool.evaluate(asked(1))
        (process,) = processes()
        limits = proc(process, "limits").splitlines()
    found = {line[:26].strip(): line[26:].split()[:2] for line in limits}
    soft, hard = found["Max address space"]
    assert soft == hard != "unlimited"
    assert found["Max core file size"] == ["0", "0"]


async def test_outcome_too_large_is_an_error() -> None:
    """Of this one; what is just small enough is not."""
    text = "x" * 1024
    least = worker.MAX_FRAME // len(text)
    async with opened(SOME, LIMITS) as pool:
        found = await outcomes(
            pool.evaluate(asked(1)),
            pool.evaluate(asked(least, "large", text=text)),
            pool.evaluate(asked(least - 1, "large", text=text)),
            pool.evaluate(asked(2)),
        )
    assert isinstance(found[1], PolicyError)
    assert f"more than {worker.MAX_FRAME}" in str(found[1])
    assert [found[0], len(found[2]), found[3]] == [2, 1024 * (least - 1), 4]


async def test_service_keeps_its_environment_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy's process is told no secret of the service."""
    monkeypatch.setenv("TOUCHSTONE_SECRET", "hush")
    async with opened(SOME, LIMITS) as pool:
        await pool.evaluate(asked(1))
        (process,) = processes()
        assert "hush" not in proc(process, "environ")


# Starting.


async def test_all_who_wait_for_a_broken_policy_fail_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the place, and it is not started again for each."""
    starts = count_starts(monkeypatch)
    monkeypatch.setattr(engine, "_RETRY_START_S", 30.0)
    async with opened(BROKEN, LIMITS) as pool:
        found = await outcomes(*(pool.evaluate(asked(n)) for n in range(50)))
        found += await outcomes(pool.evaluate(asked(1)))
    assert all(isinstance(each, PolicyError) for each in found)
    assert all(f"{BROKEN.id} does not start: a.rego:3:12: " in str(each) for each in found)
    assert len(starts) == 1


async def test_broken_policy_does_not_keep_others_waiting() -> None:
    """Another bundle answers meanwhile and afterwards."""
    async with Engines(LIMITS) as engines:
        found = await outcomes(engines.evaluate(BROKEN, asked(1)), engines.evaluate(SOME, asked(1)))
        assert isinstance(found[0], PolicyError)
        assert found[1] == 2
        assert await engines.evaluate(SOME, asked(2)) == 4


async def test_policy_that_did_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while: it may have been the machine's fault."""
    monkeypatch.setattr(engine, "_RETRY_START_S", 0.05)
    starts = count_starts(monkeypatch)
    async with opened(BROKEN, LIMITS) as pool:
        for _ in range(2):
            with pytest.raises(PolicyError, match="does not start"):
                await pool.evaluate(asked(1))
            await asyncio.sleep(0.2)
    assert len(starts) == 2
    assert processes() == set()


async def test_policy_that_loops_at_its_start_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """In time, by the limit on starting."""
    monkeypatch.setattr(engine, "START_TIMEOUT_S", 0.7)
    many = "numbers.range(1, 100000)"
    endless = policy(f"package touchstone\n\noutcome := count([1 | some i in {many}; some j in {many}])\n")
    async with opened(endless, LIMITS) as pool:
        with pytest.raises(PolicyError, match=r"does not start: the policy gave no outcome within 0\.7 s"):
            await pool.evaluate(asked(1))
    assert processes() == set()


@pytest.mark.parametrize("error", [BlockingIOError, OSError], ids=["no process left", "no file left"])
async def test_process_that_cannot_be_made_is_an_error_of_this_one(
    monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    """A machine that is full for a moment must not silence the policy for good."""
    monkeypatch.setattr(engine, "_RETRY_START_S", 0.05)
    count_starts(monkeypatch, fail=1, error=error)
    async with opened(SOME, LIMITS) as pool:
        with pytest.raises(PolicyError, match="does not start"):
            await asyncio.wait_for(pool.evaluate(asked(1)), 10)
        await asyncio.sleep(0.2)
        assert await asyncio.wait_for(pool.evaluate(asked(1)), 10) == 2


async def test_task_whose_process_cannot_be_made_is_an_error_of_the_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its callers know no other."""
    count_starts(monkeypatch, fail=1)
    with pytest.raises(PolicyError):
        await process.run_task("inspect", SOME, 20)


# Stopping.


async def test_closing_fails_those_who_wait() -> None:
    """At once, whatever a worker is busy with, and no process stays."""
    async with opened(SOME, Limits(2, 60.0)) as pool:
        await outcomes(*(pool.evaluate(asked(n)) for n in range(10)))
        calls = [asyncio.create_task(pool.evaluate(asked(n, "loop"))) for n in range(80)]
        await asyncio.sleep(0.3)
        started = time.monotonic()
    found = await outcomes(*calls)
    assert time.monotonic() - started < 10
    assert {str(each) for each in found} == {STOPPED}
    assert all(isinstance(each, PolicyError) for each in found)
    assert processes() == set()


async def test_closing_while_a_worker_starts_leaves_no_process() -> None:
    """The service may stop at any moment."""
    for delay in (0, 0.001, 0.005, 0.02, 0.05):
        pool = WorkerPool(SOME, LIMITS)
        pool.open()
        call = asyncio.create_task(pool.evaluate(asked(1)))
        await asyncio.sleep(delay)
        await pool.close()
        (found,) = await outcomes(call)
        assert found == 2 or str(found) == STOPPED
        assert processes() == set()


async def test_closed_pool_takes_no_more() -> None:
    """Nobody waits for what never comes."""
    async with opened(SOME, LIMITS) as pool:
        assert await pool.evaluate(asked(1)) == 2
    with pytest.raises(PolicyError, match=STOPPED):
        await asyncio.wait_for(pool.evaluate(asked(1)), 5)


async def test_closing_twice_is_closing_once() -> None:
    """Nothing more happens."""
    async with opened(SOME, LIMITS) as pool:
        await pool.evaluate(asked(1))
        await pool.close()
    assert processes() == set()


async def test_engines_leave_no_process() -> None:
    """Of none of their pools, busy or not."""
    async with Engines(Limits(2, 60.0)) as engines:
        for version in "ab":
            await engines.evaluate(policy(SOMETIMES, version), asked(1))
        busy = asyncio.create_task(engines.evaluate(policy(SOMETIMES, "c"), asked(do="loop")))
        await until(lambda: len(processes()) >= 3)
    assert processes() == set()
    assert isinstance((await outcomes(busy))[0], PolicyError)


# Callers that go, and workers that are killed.


async def test_cancelled_caller_disturbs_nobody() -> None:
    """Whether its input was sent or not."""
    async with opened(SOME, LIMITS) as pool:
        await pool.evaluate(asked(1))
        before = processes()
        for delay in (0, 0.002):
            calls = [asyncio.create_task(pool.evaluate(asked(n))) for n in range(200)]
            await asyncio.sleep(delay)
            for call in calls[::2]:
                call.cancel()
            assert await outcomes(*calls[1::2]) == [2 * n for n in range(1, 200, 2)]
        assert await pool.evaluate(asked(3)) == 6
        assert processes() == before


async def test_caller_that_waits_no_longer_leaves_its_loop_to_the_limit() -> None:
    """Those behind it get their outcomes when it is over."""
    async with opened(SOME, Limits(1, 1.0)) as pool:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.evaluate(asked(do="loop")), 0.3)
        assert await asyncio.wait_for(pool.evaluate(asked(2)), 20) == 4


async def test_worker_killed_between_two_inputs_is_replaced() -> None:
    """The next input does not pay for it."""
    async with opened(SOME, LIMITS) as pool:
        await pool.evaluate(asked(1))
        (process,) = processes()
        os.kill(process, signal.SIGKILL)
        await until(lambda: process not in processes())
        await asyncio.sleep(0.1)
        assert await pool.evaluate(asked(2)) == 4
        assert process not in processes()


async def test_worker_killed_at_work_costs_what_it_worked_at() -> None:
    """And no more."""
    async with opened(SOME, Limits(1, 60.0)) as pool:
        await pool.evaluate(asked(1))
        (process,) = processes()
        busy = asyncio.create_task(pool.evaluate(asked(do="loop")))
        await asyncio.sleep(0.2)
        behind = [asyncio.create_task(pool.evaluate(asked(n))) for n in range(5)]
        await asyncio.sleep(0.2)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(PolicyError, match="the policy crashed its worker"):
            await busy
        assert await outcomes(*behind) == [2 * n for n in range(5)]


async def test_worker_ends_with_the_service() -> None:
    """When its input ends, so that nothing stays behind a service that was killed."""
    started = await Worker.start()
    started._stdin.close()
    assert await asyncio.wait_for(started._process.wait(), 20) == 0


# Pools.


async def test_pools_are_bounded() -> None:
    """The longest unused goes, and comes back when it is asked."""
    policies = [policy(SOMETIMES, version) for version in "abcde"]
    async with Engines(LIMITS, max_pools=2) as engines:
        for each in policies:
            assert await engines.evaluate(each, asked(1)) == 2
        await until(lambda: len(processes()) <= 2)
        assert await engines.evaluate(policies[0], asked(2)) == 4
        await until(lambda: len(processes()) <= 2)
    assert processes() == set()


async def test_pool_that_is_used_stays() -> None:
    """Its process is kept warm."""
    often = policy(SOMETIMES, "often")
    async with Engines(LIMITS, max_pools=2) as engines:
        await engines.evaluate(often, asked(1))
        (kept,) = processes()
        for version in "abcd":
            await engines.evaluate(policy(SOMETIMES, version), asked(1))
            await engines.evaluate(often, asked(1))
        assert kept in processes()


async def test_pool_that_must_go_finishes_what_it_was_asked() -> None:
    """Trying another policy costs no node its appraisal."""
    async with Engines(LIMITS, max_pools=1) as engines:
        await engines.evaluate(SOME, asked(0))
        calls = [asyncio.create_task(engines.evaluate(SOME, asked(n))) for n in range(100)]
        await asyncio.sleep(0)
        assert await engines.evaluate(policy(SOMETIMES, "other"), asked(1)) == 2
        assert await outcomes(*calls) == [2 * n for n in range(100)]


async def test_same_bundle_has_one_pool() -> None:
    """By its digest, however often it was read."""
    async with Engines(LIMITS) as engines:
        assert engines.pool(SOME) is engines.pool(policy(SOMETIMES))
        assert engines.pool(SOME) is not engines.pool(policy(SOMETIMES, "other"))
