"""
Evaluating a policy: a small protocol, and the engine behind it.

Policies run in worker processes with limits on time and memory.  One that loops or
crashes costs one appraisal, never the service: its worker is killed and replaced.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import Any, Protocol, Self

import msgspec

from verifier.errors import PolicyError
from verifier.policy.bundle import Bundle
from verifier.policy.worker import MAX_FRAME

_START_S = 30.0


class PolicyEngine(Protocol):
    """What the service needs of an engine."""

    async def evaluate(self, given: Mapping[str, Any]) -> Any:
        """
        The policy's raw outcome for *given*.

        Raises:
            PolicyError: it failed, took too long, or crashed.
        """
        ...


class WorkerEngine:
    """A pool of worker processes for one bundle."""

    def __init__(
        self, bundle: Bundle, *, workers: int = 2, timeout_s: float = 1.0, memory_bytes: int = 1 << 29
    ) -> None:
        self._bundle = bundle
        self._workers = workers
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._idle: asyncio.Queue[_Worker | None] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        """Start the workers; raises `PolicyError` where the bundle does not compile."""
        for _ in range(self._workers):
            self._idle.put_nowait(await self._start())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the workers, also those that are busy."""
        for _number in range(self._workers):
            worker = await self._idle.get()
            if worker is not None:
                await worker.stop()

    async def evaluate(self, given: Mapping[str, Any]) -> Any:
        """As `PolicyEngine.evaluate`."""
        # The place of a worker in the queue is always given back, with or without one in it.
        worker = await self._idle.get()
        answer: Any = None
        healthy = None
        try:
            if worker is None:
                worker = await self._start()
            answer = await worker.ask(given, self._timeout_s)
            healthy = worker
        finally:
            if healthy is None and worker is not None:
                await worker.stop()
            self._idle.put_nowait(healthy)
        if "error" in answer:
            raise PolicyError(str(answer["error"]))
        return answer["value"]

    async def _start(self) -> _Worker:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "verifier.policy.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "RUST_BACKTRACE": "0"},
            # A Ctrl-C for the verifier is not for its workers: they end when their input does.
            start_new_session=True,
        )
        worker = _Worker(process)
        setup = {
            "modules": self._bundle.modules,
            "data": self._bundle.data,
            "memory_bytes": self._memory_bytes,
        }
        try:
            answer = await worker.ask(setup, _START_S)
        except PolicyError:
            await worker.stop()
            raise
        if "error" in answer:
            await worker.stop()
            raise PolicyError(f"{self._bundle.id} does not compile: {answer['error']}")
        return worker


class _Worker:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, value: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        data = msgspec.json.encode(value)
        try:
            async with asyncio.timeout(timeout_s):
                self._process.stdin.write(len(data).to_bytes(4, "little") + data)
                await self._process.stdin.drain()
                size = int.from_bytes(await self._process.stdout.readexactly(4), "little")
                if size > MAX_FRAME:
                    raise PolicyError(f"an outcome of {size} bytes")
                answer: dict[str, Any] = msgspec.json.decode(await self._process.stdout.readexactly(size))
                return answer
        except TimeoutError:
            raise PolicyError(f"no outcome within {timeout_s:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise PolicyError("the policy crashed its worker") from None

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
