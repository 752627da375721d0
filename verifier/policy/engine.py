"""
Evaluating policies: a small protocol, and the engine behind it.

Policies run in worker processes with limits on time and memory.  One that loops or
crashes costs one appraisal, never the service: its worker is killed and replaced.  Each
bundle has workers of its own, in which it is compiled once; inputs that wait travel together,
so that a busy service spends its time on the policy and not on the pipe.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, Self

import msgspec

from verifier.errors import PolicyError
from verifier.policy.bundle import Bundle
from verifier.policy.worker import MAX_FRAME, OUTCOME

MEMORY_BYTES: Final = 1 << 29
_START_S: Final = 30.0
_BATCH: Final = 64
_CHUNK: Final = 1 << 18
_AGAIN_S: Final = 1.0
"""A bundle whose worker does not even start is not tried again sooner."""


class PolicyEngine(Protocol):
    """What the service needs of an engine."""

    async def evaluate(self, bundle: Bundle, given: bytes) -> Any:
        """
        What *bundle* makes of *given*, an input as JSON; unchecked.

        Raises:
            PolicyError: it failed, took too long, or crashed.
        """
        ...

    async def ask(self, bundle: Bundle, given: bytes) -> bytes:
        """As `evaluate`, the outcome as JSON."""
        ...


@dataclass(frozen=True)
class Limits:
    """What an evaluation may take."""

    workers: int = 2
    timeout_s: float = 1.0
    memory_bytes: int = MEMORY_BYTES


class Engines:
    """
    `PolicyEngine` over worker processes: a pool for each bundle in use.

    Args:
        limits: For each pool.
        kept: So many pools stay; the longest unused is closed for another.
    """

    def __init__(self, limits: Limits | None = None, *, kept: int = 4) -> None:
        self._limits = limits or Limits()
        self._kept = kept
        self._pools: OrderedDict[str, WorkerPool] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Pools start when they are first asked."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop all workers, also those that are busy."""
        while self._pools:
            await self._pools.popitem()[1].close()
        for task in list(self._closing):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def evaluate(self, bundle: Bundle, given: bytes) -> Any:
        """As `PolicyEngine.evaluate`."""
        return await self.pool(bundle).evaluate(given)

    async def ask(self, bundle: Bundle, given: bytes) -> bytes:
        """As `PolicyEngine.ask`."""
        return await self.pool(bundle).ask(given)

    def pool(self, bundle: Bundle) -> WorkerPool:
        """The pool of a bundle."""
        pool = self._pools.pop(bundle.digest, None)
        if pool is None:
            pool = WorkerPool(bundle, self._limits)
            pool.open()
        self._pools[bundle.digest] = pool
        while len(self._pools) > self._kept:
            _, oldest = self._pools.popitem(last=False)
            task = asyncio.create_task(oldest.finish())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        return pool


@dataclass
class _Item:
    given: bytes
    outcome: asyncio.Future[bytes] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class WorkerPool:
    """The worker processes of one bundle; `open` it and `close` it, or use `opened`."""

    def __init__(self, bundle: Bundle, limits: Limits | None = None) -> None:
        self._bundle = bundle
        self._limits = limits or Limits()
        self._waiting: asyncio.Queue[_Item] = asyncio.Queue()
        self._asked: set[asyncio.Future[bytes]] = set()
        self._runners: list[asyncio.Task[None]] = []
        self._closed = False

    def open(self) -> None:
        """Take inputs; processes start with the first."""
        self._runners = [asyncio.create_task(self._run(), name="policy") for _ in range(self._limits.workers)]

    async def finish(self) -> None:
        """Answer what was asked, and then stop the workers."""
        try:
            while self._asked:
                await asyncio.wait(self._asked)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop the workers; what still waits fails."""
        self._closed = True
        for runner in self._runners:
            runner.cancel()
        for runner in self._runners:
            with suppress(asyncio.CancelledError):
                await runner
        while not self._waiting.empty():
            _fail([self._waiting.get_nowait()], "the policy's workers were stopped")

    async def evaluate(self, given: bytes) -> Any:
        """As `PolicyEngine.evaluate`."""
        return decode(await self.ask(given))

    async def ask(self, given: bytes) -> bytes:
        """As `PolicyEngine.ask`."""
        if self._closed:
            raise PolicyError("the policy's workers were stopped")
        item = _Item(given)
        self._asked.add(item.outcome)
        item.outcome.add_done_callback(self._asked.discard)
        self._waiting.put_nowait(item)
        return await item.outcome

    async def _run(self) -> None:
        """One worker's life after the other."""
        worker: Worker | None = None
        alone: list[_Item] = []
        """Inputs of a batch that broke: one of them did it, so each goes by itself."""
        batch: list[_Item] = []
        try:
            while True:
                batch = [alone.pop(0)] if alone else await self._next()
                batch = [item for item in batch if not item.outcome.done()]
                if not batch:
                    continue
                if worker is not None and worker.is_over:
                    # It ended between two inputs, which no policy did.
                    await worker.stop()
                    worker = None
                try:
                    worker = worker or await self._start()
                except PolicyError as error:
                    _fail([*batch, *alone], str(error))
                    alone = []
                    await self._refuse_for(_AGAIN_S, str(error))
                    continue
                try:
                    await worker.evaluate(batch, self._limits.timeout_s)
                except PolicyError as error:
                    await worker.stop()
                    worker = None
                    left = [item for item in batch if not item.outcome.done()]
                    if len(batch) == 1:
                        _fail(left, str(error))
                    else:
                        alone += left
        finally:
            _fail([*batch, *alone], "the policy's workers were stopped")
            if worker is not None:
                await worker.stop()

    async def _next(self) -> list[_Item]:
        """What waits, shared out among the workers."""
        batch = [await self._waiting.get()]
        share = min(_BATCH, self._waiting.qsize() // self._limits.workers)
        batch += [self._waiting.get_nowait() for _ in range(share)]
        return batch

    async def _refuse_for(self, seconds: float, why: str) -> None:
        """Let nobody wait for a bundle that does not start."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    _fail([await self._waiting.get()], why)

    async def _start(self) -> Worker:
        try:
            worker = await Worker.start()
        except PolicyError as error:
            raise PolicyError(f"{self._bundle.id} does not start: {error}") from None
        try:
            await worker.ask(_setup("evaluate", self._bundle, self._limits.memory_bytes), _START_S)
        except PolicyError as error:
            await worker.stop()
            raise PolicyError(f"{self._bundle.id} does not start: {error}") from None
        except BaseException:
            await worker.stop()
            raise
        return worker


def decode(raw: bytes) -> Any:
    """An outcome from its JSON.  Raises `PolicyError`."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"an outcome that cannot be read: {error}") from None


@asynccontextmanager
async def opened(bundle: Bundle, limits: Limits | None = None) -> AsyncIterator[WorkerPool]:
    """A pool of workers for as long as it is needed."""
    pool = WorkerPool(bundle, limits)
    pool.open()
    try:
        yield pool
    finally:
        await pool.close()


def _fail(items: Sequence[_Item], why: str) -> None:
    for item in items:
        if not item.outcome.done():
            item.outcome.set_exception(PolicyError(why))
            # Whoever asked may have gone: then nobody misses the error.
            item.outcome.exception()


def _setup(task: str, bundle: Bundle, memory_bytes: int) -> dict[str, Any]:
    tested = task != "evaluate"
    return {
        "task": task,
        "modules": [*bundle.modules, *(bundle.tests if tested else ())],
        "tests": [name for name, _ in bundle.tests],
        "data": bundle.data,
        "memory_bytes": memory_bytes,
    }


async def run_task(task: str, bundle: Bundle, timeout_s: float, memory_bytes: int = MEMORY_BYTES) -> Any:
    """
    Do one task (``inspect``, ``test``) in a process of its own.

    Raises:
        PolicyError: it failed, naming file and place, took too long, or crashed.
    """
    worker = await Worker.start()
    try:
        return await worker.ask(_setup(task, bundle, memory_bytes), timeout_s)
    finally:
        await worker.stop()


class Worker:
    """One process (`verifier.policy.worker`)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout

    @classmethod
    async def start(cls) -> Self:
        """
        Start a process; it waits for its task.

        Raises:
            PolicyError: the machine has no room for one now.
        """
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "verifier.policy.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=_environment(),
                limit=MAX_FRAME,
                # A Ctrl-C for the verifier is not for its workers: they end when their input does.
                start_new_session=True,
            )
        )
        try:
            return cls(await asyncio.shield(starting))
        except OSError as error:
            raise PolicyError(f"no process for a policy: {error.strerror or error}") from None
        except asyncio.CancelledError:
            # It may be there already, and nobody else would end it.
            with suppress(OSError):
                await cls(await starting).stop()
            raise

    async def ask(self, value: Mapping[str, Any], timeout_s: float) -> Any:
        """Send a task and wait for its one answer.  Raises `PolicyError`, also where the answer is an error."""
        data = msgspec.json.encode(value)
        async with _patience(timeout_s):
            self._stdin.write(len(data).to_bytes(4, "little") + data)
            await self._stdin.drain()
            answer = msgspec.json.decode(await self._frame())
        if "error" in answer:
            raise PolicyError(str(answer["error"]))
        return answer

    async def evaluate(self, batch: Sequence[_Item], timeout_s: float) -> None:
        """
        Have a batch evaluated, each outcome set as it comes.

        Raises:
            PolicyError: one took longer than *timeout_s*, or crashed the worker; those before it are set.
        """
        frames = [b"\x04\x00\x00\x00" + len(batch).to_bytes(4, "little")]
        frames += [len(item.given).to_bytes(4, "little") + item.given for item in batch]
        data = b"".join(frames)
        sending = asyncio.create_task(self._send(data))
        try:
            waiting = iter(batch)
            left, buffer = len(batch), bytearray()
            while left:
                # The time is for one evaluation: an answer is sent on at once or within moments.
                async with _patience(timeout_s):
                    data = await self._stdout.read(_CHUNK)
                if not data:
                    raise PolicyError("the policy crashed its worker")
                buffer += data
                for answer in _frames(buffer):
                    _answer(next(waiting), answer)
                    left -= 1
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await sending

    async def _send(self, data: bytes) -> None:
        # Beside the reading: a worker that cannot write its answers reads no more inputs.
        self._stdin.write(data)
        await self._stdin.drain()

    async def _frame(self) -> bytes:
        size = int.from_bytes(await self._stdout.readexactly(4), "little")
        if size > MAX_FRAME:
            raise PolicyError(f"an outcome of {size} bytes, more than {MAX_FRAME}")
        return await self._stdout.readexactly(size)

    @property
    def is_over(self) -> bool:
        """Whether the process has ended."""
        return self._process.returncode is not None

    async def stop(self) -> None:
        """Kill the process."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()


def _frames(buffer: bytearray) -> Iterator[bytes]:
    """The whole frames at the start of *buffer*, taken out of it."""
    place = 0
    while len(buffer) - place >= 4:
        size = int.from_bytes(buffer[place : place + 4], "little")
        if size > MAX_FRAME:
            raise PolicyError(f"an outcome of {size} bytes, more than {MAX_FRAME}")
        if len(buffer) - place - 4 < size:
            break
        yield bytes(buffer[place + 4 : place + 4 + size])
        place += 4 + size
    del buffer[:place]


def _answer(item: _Item, answer: bytes) -> None:
    if item.outcome.done():
        return
    if answer[:1] == OUTCOME:
        item.outcome.set_result(answer[1:])
    else:
        _fail([item], answer[1:].decode(errors="replace"))


def _environment() -> dict[str, str]:
    """What a process needs to start, and nothing that is the service's."""
    names = (
        "PATH",
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONDONTWRITEBYTECODE",
        "LD_LIBRARY_PATH",
        "LANG",
        "LC_ALL",
        "TMPDIR",
    )
    return {name: os.environ[name] for name in names if name in os.environ} | {"RUST_BACKTRACE": "0"}


@asynccontextmanager
async def _patience(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise PolicyError(f"no outcome within {timeout_s:g} s") from None
    except (asyncio.IncompleteReadError, ConnectionError):
        raise PolicyError("the policy crashed its worker") from None
