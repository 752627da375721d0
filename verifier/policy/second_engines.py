"""
Engines that are asked for a second opinion: rego-cpp in a worker process, and OPA's own executable.

Each judges the same bundle and the same input.  Neither decides anything (`verifier.policy.opinions`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from verifier.errors import NoOutcomeError, PolicyError
from verifier.policy.bundle import Bundle
from verifier.policy.engine import START_TIMEOUT_S, Limits, decode, opened
from verifier.policy.process import MEMORY_BYTES, Evaluation, Worker, run_task, setup_of
from verifier.policy.worker import MAX_FRAME, NOTHING, RULE

REGOPY: Final = "regopy"
OPA: Final = "opa"
NAMES: Final = (REGOPY, OPA)
"""The engines that there are."""
TIMEOUT_S: Final = 5.0
"""For one evaluation: both are slower than the engine."""
_TESTS_FILE: Final = "second opinion.rego"
"""No file of a bundle can have this name."""
_TESTS_PACKAGE: Final = "second_opinion_on_tests"
_PROCESSES: Final = 2
"""Processes of OPA at a time."""


class SecondEngine(Protocol):
    """An engine with a bundle."""

    async def ask(self, policy_input: bytes) -> bytes:
        """
        The outcome for an input, as JSON.

        Raises:
            NoOutcomeError: the engine could not be asked: this says nothing about the policy.
            PolicyError: the policy has no outcome in this engine.
        """
        ...


def check(name: str, opa: Path | None) -> None:
    """Check that what an engine needs is given.  Raises `PolicyError`."""
    if name == OPA and opa is None:
        raise PolicyError("the second engine is opa, but its executable is not given (--opa PATH)")


@asynccontextmanager
async def open_engine(name: str, bundle: Bundle, opa: Path | None = None) -> AsyncIterator[SecondEngine]:
    """
    The engine *name* with *bundle*; its processes end with the context.

    Args:
        opa: OPA's executable, for ``opa``.

    Raises:
        PolicyError: it cannot be used: it is not installed, or it refuses the bundle.
    """
    if name == REGOPY:
        # So that what keeps it from starting is said once, and is not taken for an answer to each input.
        await run_task("second", bundle, START_TIMEOUT_S)
        async with opened(bundle, Limits(workers=1, timeout_s=TIMEOUT_S), task="second") as pool:
            yield pool
        return
    check(name, opa)
    assert opa is not None
    with _written(bundle) as folder:
        yield _Executable(opa, folder)


async def passing_tests(
    name: str, bundle: Bundle, tests: Iterable[str], opa: Path | None = None
) -> frozenset[str]:
    """
    Which of a bundle's *tests* are true in the engine *name*.

    Args:
        tests: Paths of rules, such as ``data.touchstone_test.test_a``.

    Raises:
        PolicyError: the engine cannot be used, or an error ends its evaluation.
    """
    check(name, opa)
    lines = [f'passing["{test}"] if {test} == true' for test in tests]
    module = (_TESTS_FILE, "\n\n".join([f"package {_TESTS_PACKAGE}", *lines, ""]))
    whole = dataclasses.replace(bundle, modules=(*bundle.modules, *bundle.tests, module), tests=())
    rule = f"data.{_TESTS_PACKAGE}.passing"
    if name == REGOPY:
        answer = await _ask_once(whole, rule)
    else:
        assert opa is not None
        with _written(whole) as folder:
            answer = await _Executable(opa, folder, rule).ask(NOTHING.encode())
    found = decode(answer)
    return frozenset(found) if isinstance(found, dict) else frozenset()


async def _ask_once(bundle: Bundle, rule: str) -> bytes:
    """Ask rego-cpp for a rule, in a process of its own."""
    worker = await Worker.start("second")
    try:
        await worker.ask({**setup_of("second", bundle, MEMORY_BYTES), "rule": rule}, START_TIMEOUT_S)
        evaluation = Evaluation(NOTHING.encode())
        await worker.evaluate([evaluation], START_TIMEOUT_S)
        return await evaluation.outcome
    finally:
        await worker.stop()


@contextmanager
def _written(bundle: Bundle) -> Iterator[Path]:
    """A folder with the bundle, until the context ends."""
    with tempfile.TemporaryDirectory(prefix="touchstone-opa-") as folder:
        _write(bundle, Path(folder))
        yield Path(folder)


def _write(bundle: Bundle, folder: Path) -> None:
    """Write the rules and the data as OPA reads them from a folder; the names of files mean nothing to it."""
    for number, (_, text) in enumerate(bundle.modules):
        (folder / f"{number}.rego").write_text(text, encoding="utf-8")
    (folder / "data.json").write_text(bundle.data, encoding="utf-8")


class _Executable:
    """``opa eval``, once for each input."""

    def __init__(self, opa: Path, folder: Path, rule: str = RULE) -> None:
        self._command = (
            str(opa), "eval", "--format", "json", "--data", str(folder), "--stdin-input", rule
        )  # fmt: skip
        self._places = asyncio.Semaphore(_PROCESSES)

    async def ask(self, policy_input: bytes) -> bytes:
        """As `SecondEngine.ask`."""
        async with self._places:
            return _outcome(await self._run(policy_input))

    async def _run(self, policy_input: bytes) -> bytes:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                # No variable of the service's environment: a policy can ask OPA for all of it.
                env={name: os.environ[name] for name in ("PATH", "TMPDIR", "LANG") if name in os.environ},
                start_new_session=True,
            )
        except OSError as error:
            raise NoOutcomeError(f"{self._command[0]} cannot be started: {error.strerror or error}") from None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                with suppress(ConnectionError):
                    process.stdin.write(policy_input)
                    await process.stdin.drain()
                    process.stdin.close()
                data = b""
                while more := await process.stdout.read(MAX_FRAME):
                    data += more
                    if len(data) > MAX_FRAME:
                        raise NoOutcomeError(f"opa's answer has more than {MAX_FRAME} bytes")
        except TimeoutError:
            raise NoOutcomeError(f"opa gave no outcome within {TIMEOUT_S:g} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
        return data


def _outcome(data: bytes) -> bytes:
    """The outcome in what ``opa eval --format json`` prints."""
    try:
        found: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        raise NoOutcomeError(f"opa's answer cannot be read: {data[:200]!r}") from None
    if not isinstance(found, dict):
        raise NoOutcomeError(f"opa's answer cannot be read: {data[:200]!r}")
    match found:
        case {"errors": [{"message": str(why)}, *_]}:
            raise PolicyError(why[:2000])
        case {"result": [{"expressions": [{"value": value}]}]}:
            return msgspec.json.encode(value)
        case {"errors": _}:
            raise PolicyError("opa refuses the policy")
    raise PolicyError("the policy gives no outcome")
