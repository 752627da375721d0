"""
Evaluating policies: a small protocol, and the engine behind it.

Policies run in worker processes with limits on time and memory.  A policy that loops or
crashes costs one appraisal and never the service: its worker is killed and replaced.  Each
bundle has its own workers, and each worker compiles it once.  Inputs that wait are sent
together, so that a busy service spends its time on the policy and not on the pipe.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import msgspec

from verifier.errors import PolicyError
from verifier.policy.bundle import Bundle
from verifier.policy.process import MEMORY_BYTES, Evaluation, Worker, fail, setup_of
from verifier.policy.remembered import Outcomes, key_of

START_TIMEOUT_S: Final = 30.0
_MAX_BATCH: Final = 64
_RETRY_START_S: Final = 1.0
"""A bundle whose worker does not start is not tried again sooner."""
_STOPPED: Final = "the policy's workers were stopped"


class PolicyEngine(Protocol):
    """The engine that the service needs."""

    async def evaluate(self, bundle: Bundle, policy_input: bytes) -> Any:
        """
        The outcome of *bundle* for an input as JSON, unchecked.

        Raises:
            PolicyError: the policy failed, took too long, or crashed.
        """
        ...

    async def ask(self, bundle: Bundle, policy_input: bytes) -> bytes:
        """As `evaluate`, with the outcome as JSON."""
        ...


@dataclass(frozen=True)
class Limits:
    """The limits on evaluations of one bundle."""

    workers: int = 2
    timeout_s: float = 1.0
    """Seconds for one evaluation."""
    memory_bytes: int = MEMORY_BYTES
    """Of one worker."""


class Engines:
    """
    `PolicyEngine` over worker processes, with a pool for each bundle in use.

    Args:
        limits: The limits of each pool.
        max_pools: The number of pools that stay open; one more closes the pool that was unused longest.
    """

    def __init__(self, limits: Limits | None = None, *, max_pools: int = 4) -> None:
        self._limits = limits or Limits()
        self._max_pools = max_pools
        self._pools: OrderedDict[str, WorkerPool] = OrderedDict()
        self._outcomes = Outcomes()
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Pools start when they are first used."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop all workers, busy ones too."""
        while self._pools:
            await self._pools.popitem()[1].close()
        for task in list(self._closing):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def evaluate(self, bundle: Bundle, policy_input: bytes) -> Any:
        """As `PolicyEngine.evaluate`."""
        return decode(await self.ask(bundle, policy_input))

    async def ask(self, bundle: Bundle, policy_input: bytes) -> bytes:
        """As `PolicyEngine.ask`.  Nodes that are alike give equal inputs, and each is judged once."""
        pool = self.pool(bundle)
        key = key_of(bundle.digest, policy_input)
        outcome = self._outcomes.get(key)
        if outcome is None:
            outcome = await pool.ask(policy_input)
            self._outcomes.put(key, outcome)
        return outcome

    def pool(self, bundle: Bundle) -> WorkerPool:
        """The pool of a bundle."""
        pool = self._pools.pop(bundle.digest, None)
        if pool is None:
            pool = WorkerPool(bundle, self._limits)
            pool.open()
        self._pools[bundle.digest] = pool
        while len(self._pools) > self._max_pools:
            _, oldest = self._pools.popitem(last=False)
            task = asyncio.create_task(oldest.finish())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        return pool


class WorkerPool:
    """
    The worker processes of one bundle; `open` and `close` it, or use `opened`.

    Args:
        task: What the processes do: ``evaluate``, or ``second`` for another engine.
    """

    def __init__(self, bundle: Bundle, limits: Limits | None = None, *, task: str = "evaluate") -> None:
        self.bundle = bundle
        self._limits = limits or Limits()
        self._task = task
        self._waiting: asyncio.Queue[Evaluation] = asyncio.Queue()
        self._unfinished: set[asyncio.Future[bytes]] = set()
        self._runners: list[asyncio.Task[None]] = []
        self._closed = False

    def open(self) -> None:
        """Accept inputs; the processes start with the first ones."""
        self._runners = [asyncio.create_task(self._run(), name="policy") for _ in range(self._limits.workers)]

    async def finish(self) -> None:
        """Finish every evaluation that was asked for, and stop the workers."""
        try:
            while self._unfinished:
                await asyncio.wait(self._unfinished)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop the workers; evaluations that still wait fail."""
        self._closed = True
        for runner in self._runners:
            runner.cancel()
        for runner in self._runners:
            with suppress(asyncio.CancelledError):
                await runner
        while not self._waiting.empty():
            fail([self._waiting.get_nowait()], _STOPPED)

    async def evaluate(self, policy_input: bytes) -> Any:
        """As `PolicyEngine.evaluate`."""
        return decode(await self.ask(policy_input))

    async def ask(self, policy_input: bytes) -> bytes:
        """As `PolicyEngine.ask`."""
        if self._closed:
            raise PolicyError(_STOPPED)
        evaluation = Evaluation(policy_input)
        self._unfinished.add(evaluation.outcome)
        evaluation.outcome.add_done_callback(self._unfinished.discard)
        self._waiting.put_nowait(evaluation)
        return await evaluation.outcome

    async def _run(self) -> None:
        """Evaluate what waits, with one worker after the other."""
        worker: Worker | None = None
        single: list[Evaluation] = []
        """What is left of a batch that broke its worker.  One of them did it, so each is evaluated alone."""
        batch: list[Evaluation] = []
        try:
            while True:
                batch = [single.pop(0)] if single else await self._next_batch()
                batch = [evaluation for evaluation in batch if not evaluation.outcome.done()]
                if not batch:
                    continue
                if worker is not None and worker.has_ended:
                    # It ended between two evaluations, so no policy caused it.
                    await worker.stop()
                    worker = None
                try:
                    worker = worker or await self._start()
                except PolicyError as error:
                    fail([*batch, *single], str(error))
                    single = []
                    await self._refuse_for(_RETRY_START_S, str(error))
                    continue
                try:
                    await worker.evaluate(batch, self._limits.timeout_s)
                except PolicyError as error:
                    await worker.stop()
                    worker = None
                    left = [evaluation for evaluation in batch if not evaluation.outcome.done()]
                    if len(batch) == 1:
                        fail(left, str(error), type(error))
                    else:
                        single += left
        finally:
            fail([*batch, *single], _STOPPED)
            if worker is not None:
                await worker.stop()

    async def _next_batch(self) -> list[Evaluation]:
        """One worker's share of what waits."""
        batch = [await self._waiting.get()]
        share = min(_MAX_BATCH, self._waiting.qsize() // self._limits.workers)
        batch += [self._waiting.get_nowait() for _ in range(share)]
        return batch

    async def _refuse_for(self, seconds: float, why: str) -> None:
        """Fail every input at once for some *seconds*: nobody must wait for a bundle that does not start."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    fail([await self._waiting.get()], why)

    async def _start(self) -> Worker:
        try:
            worker = await Worker.start(self._task)
        except PolicyError as error:
            raise PolicyError(f"{self.bundle.id} does not start: {error}") from None
        try:
            await worker.ask(setup_of(self._task, self.bundle, self._limits.memory_bytes), START_TIMEOUT_S)
        except PolicyError as error:
            await worker.stop()
            raise PolicyError(f"{self.bundle.id} does not start: {error}") from None
        except BaseException:
            await worker.stop()
            raise
        return worker


def decode(outcome: bytes) -> Any:
    """Decode an outcome's JSON.  Raises `PolicyError`."""
    try:
        return msgspec.json.decode(outcome)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"the policy's outcome cannot be read: {error}") from None


@asynccontextmanager
async def opened(
    bundle: Bundle, limits: Limits | None = None, *, task: str = "evaluate"
) -> AsyncIterator[WorkerPool]:
    """A pool of workers that is closed at the end."""
    pool = WorkerPool(bundle, limits, task=task)
    pool.open()
    try:
        yield pool
    finally:
        await pool.close()
