"""
A worker process (`verifier.policy.worker`) as its parent sees it: start it, give it work, kill it.

A policy may loop or crash.  Everything here has a time limit, and a process that ends is an
error of the policy.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from verifier.errors import NoOutcomeError, PolicyError
from verifier.policy import contract
from verifier.policy.bundle import Bundle
from verifier.policy.worker import MAX_FRAME, OUTCOME
from verifier.reasons import REASONS

MEMORY_BYTES: Final = 1 << 29
_READ_BYTES: Final = 1 << 18
_FRAME_HEADER_BYTES: Final = 4
_LOOK_S: Final = 0.1
_USER_TIME: Final = 11
"""In ``/proc/PID/stat``, after the name: the time in user mode, and then that in the kernel (proc_pid_stat(5))."""
_ENVIRONMENT: Final = (
    "PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONDONTWRITEBYTECODE",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "TMPDIR",
)
"""The variables that a process needs to start.  It gets no others, because they may hold the service's secrets."""


@dataclass
class Evaluation:
    """An input that waits for its outcome."""

    policy_input: bytes
    outcome: asyncio.Future[bytes] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


def fail(evaluations: Sequence[Evaluation], why: str, kind: type[PolicyError] = PolicyError) -> None:
    """Fail those of *evaluations* that have no outcome yet."""
    for evaluation in evaluations:
        if not evaluation.outcome.done():
            evaluation.outcome.set_exception(kind(why))
            # If the caller was cancelled, nobody retrieves the error: this keeps asyncio from logging it.
            evaluation.outcome.exception()


def setup_of(task: str, bundle: Bundle, memory_bytes: int) -> dict[str, Any]:
    """The first message to a worker: its task, the bundle and the limit on memory."""
    with_tests = task not in ("evaluate", "second")
    setup = {
        "task": task,
        "modules": [*bundle.modules, *(bundle.tests if with_tests else ())],
        "tests": [name for name, _ in bundle.tests],
        "data": bundle.data,
        "memory_bytes": memory_bytes,
    }
    if task == "inspect":
        # The worker does not import all schemes for it.
        setup["terms"] = {"input": contract.input_schema(), "reasons": sorted(REASONS)}
    return setup


async def run_task(
    task: str, bundle: Bundle, timeout_s: float, memory_bytes: int = MEMORY_BYTES, pattern: str = ""
) -> Any:
    """
    Do one task (``inspect``, ``test``; ``second`` to see whether it starts) in a process of its own.

    Args:
        task: Its name.
        bundle: What it is about.
        timeout_s: How long it may take.
        memory_bytes: How much memory it may use.
        pattern: A regular expression; only tests whose full names have it are run.

    Raises:
        PolicyError: the task failed (names file and place), took too long, or crashed.
    """
    worker = await Worker.start(task)
    try:
        return await worker.ask({**setup_of(task, bundle, memory_bytes), "pattern": pattern}, timeout_s)
    finally:
        await worker.stop()


class Worker:
    """One worker process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout

    @classmethod
    async def start(cls, task: str = "evaluate") -> Self:
        """
        Start a process.  It waits for its task, which says only which program it is.

        Raises:
            PolicyError: the machine cannot start another process now.
        """
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "verifier.policy.second_worker" if task == "second" else "verifier.policy.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=_environment(),
                limit=MAX_FRAME,
                # Ctrl-C must reach the verifier only: workers end when their input ends.
                start_new_session=True,
            )
        )
        try:
            return cls(await asyncio.shield(starting))
        except OSError as error:
            raise PolicyError(f"no process can be started for a policy: {error.strerror or error}") from None
        except asyncio.CancelledError:
            # The process may have started, and nobody else would end it.
            with suppress(OSError):
                await cls(await starting).stop()
            raise

    async def ask(self, message: Mapping[str, Any], timeout_s: float) -> Any:
        """Send a message and wait for its only answer.  Raises `PolicyError`, also if the answer is an error."""
        data = msgspec.json.encode(message)
        async with _time_limit(timeout_s):
            self._stdin.write(_frame(data))
            await self._stdin.drain()
            answer = msgspec.json.decode(await self._read_frame())
        if "error" in answer:
            raise PolicyError(str(answer["error"]))
        return answer

    async def evaluate(self, batch: Sequence[Evaluation], timeout_s: float) -> None:
        """
        Evaluate a batch, and set each outcome as it comes.

        Raises:
            PolicyError: one evaluation took longer than *timeout_s*; the outcomes before it are set.
            NoOutcomeError: the same, and the worker was kept from computing, or has ended.
        """
        count = _frame(len(batch).to_bytes(4, "little"))
        data = b"".join([count, *(_frame(evaluation.policy_input) for evaluation in batch)])
        # Sent while answers are read: a worker that cannot write its answers reads no more inputs.
        sending = asyncio.create_task(self._send(data))
        try:
            waiting = iter(batch)
            left, buffer = len(batch), bytearray()
            while left:
                # The limit is for one evaluation: the worker holds no answer back for long.
                try:
                    async with _time_limit(timeout_s):
                        data = await self._stdout.read(_READ_BYTES)
                except NoOutcomeError as error:
                    if await self._computes():
                        raise PolicyError(str(error)) from None
                    raise
                if not data:
                    raise NoOutcomeError("the policy crashed its worker")
                buffer += data
                for answer in _take_frames(buffer):
                    _set_outcome(next(waiting), answer)
                    left -= 1
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await sending

    async def _computes(self) -> bool:
        """Whether the process uses the processor: one that was stopped, or that a busy machine starves, does not."""
        before = _processor_s(self._process.pid)
        await asyncio.sleep(_LOOK_S)
        after = _processor_s(self._process.pid)
        return before is None or after is None or after - before > _LOOK_S / 4

    async def _send(self, data: bytes) -> None:
        self._stdin.write(data)
        await self._stdin.drain()

    async def _read_frame(self) -> bytes:
        size = int.from_bytes(await self._stdout.readexactly(_FRAME_HEADER_BYTES), "little")
        _check_frame_size(size)
        return await self._stdout.readexactly(size)

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.returncode is not None

    async def stop(self) -> None:
        """Kill the process."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()


def _processor_s(pid: int) -> float | None:
    """The processor time of a process in seconds; `None` where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[_USER_TIME]) + int(fields[_USER_TIME + 1])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _frame(content: bytes) -> bytes:
    return len(content).to_bytes(_FRAME_HEADER_BYTES, "little") + content


def _take_frames(buffer: bytearray) -> Iterator[bytes]:
    """The complete frames at the start of *buffer*; they are removed from it."""
    place = 0
    while len(buffer) - place >= _FRAME_HEADER_BYTES:
        start = place + _FRAME_HEADER_BYTES
        size = int.from_bytes(buffer[place:start], "little")
        _check_frame_size(size)
        if len(buffer) - start < size:
            break
        yield bytes(buffer[start : start + size])
        place = start + size
    del buffer[:place]


def _check_frame_size(size: int) -> None:
    if size > MAX_FRAME:
        raise PolicyError(f"the policy's outcome has {size} bytes, more than {MAX_FRAME}")


def _set_outcome(evaluation: Evaluation, answer: bytes) -> None:
    if evaluation.outcome.done():
        return
    if answer[:1] == OUTCOME:
        evaluation.outcome.set_result(answer[1:])
    else:
        fail([evaluation], answer[1:].decode(errors="replace"))


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"RUST_BACKTRACE": "0"}


@asynccontextmanager
async def _time_limit(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise NoOutcomeError(f"the policy gave no outcome within {timeout_s:g} s") from None
    except (asyncio.IncompleteReadError, ConnectionError):
        raise NoOutcomeError("the policy crashed its worker") from None
