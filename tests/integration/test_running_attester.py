"""A running attester, as a process: one for each home, its keys as they are now, and what SIGHUP does."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attester.client import VerifierClient
from attester.config import AttesterConfig, Enrolment, Home
from attester.engines.base import Description
from attester.engines.host import HostedEngine
from attester.engines.walker import Walker
from attester.errors import ConfigError
from attester.identity import create_key
from attester.weights.folder import open_folder
from attester.weights.tensors import TensorFiles
from fixtures.simulator import ENGINE, ENGINE_VERSION, MODEL
from tests.conftest import FakeClock, RunningVerifier
from tests.unit.router.doubles import serving
from verifier.service.calls import CALL_SCHEDULER
from verifier.service.clock import Clock


class RealClock(FakeClock):
    """The time of the attester's process, however long that takes to start."""

    def clock(self) -> Clock:
        return Clock(lambda: time.time_ns() // 1_000_000, time.monotonic)


@pytest.fixture
def clock() -> FakeClock:
    return RealClock(ms=time.time_ns() // 1_000_000)


def describe() -> Description:
    return Description(
        engine=ENGINE, version=ENGINE_VERSION, arguments={}, packages={}, python="3", context_length=512
    )


@asynccontextmanager
async def engine_of(folder: Path, secret: str) -> AsyncIterator[str]:
    """An engine that walks what it has loaded, so that the attester's process need not; its URL."""
    tensors = list(TensorFiles(open_folder(folder)))
    async with serving(
        HostedEngine(describe, {MODEL: lambda: tensors}, Walker(backend="numpy")).app(secret)
    ) as url:
        yield url


class Running:
    """A home that is enrolled, and the process that attests for it."""

    def __init__(self, verifier: RunningVerifier, home: Home, node: str) -> None:
        self.verifier = verifier
        self.home = home
        self.node = node
        self.log = ""
        self.process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.process = await self.command("run", "--log-json")
        self._reading = asyncio.create_task(self._read())
        await self.until(self.is_connected)

    async def command(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "touchstone", "attester", *arguments, "--home", str(self.home.path)),
            stderr=asyncio.subprocess.PIPE,
        )

    async def _read(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.log += line.decode()

    async def is_connected(self) -> bool:
        return await self.verifier.app[CALL_SCHEDULER].channels.is_open(self.node)

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        try:
            async with asyncio.timeout(15):
                while not await condition():
                    assert self.process is None or self.process.returncode is None, self.log
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(self.log) from None

    async def logged(self, text: str) -> None:
        async def has() -> bool:
            return text in self.log

        await self.until(has)

    async def results(self) -> int:
        return len(await self.verifier.rows("SELECT id FROM appraisals WHERE node_id = ?", self.node))

    async def call(self) -> None:
        """A call is answered with evidence that the verifier takes, and makes no incident."""
        before = await self.results()
        await self.until(self.is_connected)
        await self.verifier.app[CALL_SCHEDULER].call(self.node, walk=False)

        async def is_there() -> bool:
            return await self.results() > before

        await self.until(is_there)
        assert await self.verifier.rows("SELECT * FROM incidents") == []

    async def end(self) -> None:
        if self.process is not None:
            if self.process.returncode is None:
                self.process.terminate()
            await self.process.wait()
        if self._reading is not None:
            await self._reading


@asynccontextmanager
async def enrolled(verifier: RunningVerifier, folder: Path) -> AsyncIterator[Running]:
    async with AsyncExitStack() as stack:
        yield await enrol(stack, verifier, folder)


async def enrol(stack: AsyncExitStack, verifier: RunningVerifier, folder: Path) -> Running:
    given = {
        "verifier": {"url": verifier.url},
        "models": {MODEL: {"dir": str(verifier.model_folder)}},
        "serve": {"url": "https://127.0.0.1:9"},
    }
    home = Home(folder / "node")
    home.create(msgspec.convert(given, AttesterConfig))
    url = await stack.enter_async_context(engine_of(verifier.model_folder, home.engine_secret()))
    path = home.path / "attester.toml"
    path.write_text(path.read_text().replace("http://127.0.0.1:8000", url))
    client = VerifierClient(verifier.http, verifier.url, home.node_key())
    enrolment = msgspec.convert(await client.enrol(await verifier.token(), [MODEL]), Enrolment)
    home.save_enrolment(enrolment)
    running = Running(verifier, home, enrolment.node)
    stack.push_async_callback(running.end)
    return running


@pytest.fixture
async def running(verifier: RunningVerifier, tmp_path: Path) -> AsyncIterator[Running]:
    async with enrolled(verifier, tmp_path) as running:
        await running.start()
        yield running


# One for each home.


async def test_a_second_attester_of_a_home_is_refused(running: Running) -> None:
    """It says which process has the home and what to do; the first one goes on."""
    assert running.process is not None
    second = await running.command("run")
    _, said = await second.communicate()
    assert second.returncode == 1
    assert f"(process {running.process.pid})" in said.decode()
    assert "Stop that one" in said.decode()
    await running.call()


def test_a_home_is_free_again_once_nobody_holds_it(tmp_path: Path) -> None:
    """Also after a crash: the system lets go of it, and the file that stays says nothing."""
    home = Home(tmp_path)
    for _ in range(2):
        with home.hold(), pytest.raises(ConfigError, match="another attester"), home.hold():
            raise AssertionError


def test_a_file_system_without_locks_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attester says so, and runs."""

    def no_locks(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with Home(tmp_path).hold():
        pass


# Keys.


async def test_a_running_attester_takes_up_a_rolled_key(running: Running) -> None:
    """No restart, and the next call is answered by the new key."""
    await running.call()
    rolling = await running.command("roll")
    _, said = await rolling.communicate()
    assert rolling.returncode == 0, said
    await running.call()
    assert "the node has another key" in running.log


async def test_a_key_that_the_verifier_knows_before_its_file_has_its_name(running: Running) -> None:
    """A roll that stopped in between, or that a call falls into: the call is answered all the same."""
    home = running.home
    new = create_key(home.path / "node.key.new", home.node_key().public.alg)
    client = VerifierClient(running.verifier.http, running.verifier.url, home.node_key())
    await client.roll(running.node, new)
    await running.call()
    # Then the roll is finished.
    (home.path / "node.key.new").replace(home.path / "node.key")
    await running.call()


async def test_evidence_names_the_tls_key_that_the_home_has(running: Running) -> None:
    """The engine was given another one: routers must not take it for an impostor."""
    await running.call()
    home = running.home
    (home.path / "tls.key").unlink()
    create_key(home.path / "tls.key", home.node_key().public.alg)
    await running.call()
    await running.logged("the engine must serve with it too")


# SIGHUP.


async def test_sighup_reads_the_home_anew(running: Running) -> None:
    """The process goes on, with the configuration that it finds."""
    assert running.process is not None
    path = running.home.path / "attester.toml"
    path.write_text(
        path.read_text().replace('hardware_class = "cpu"', 'hardware_class = "gpu-of-another-kind"')
    )
    running.process.send_signal(signal.SIGHUP)
    await running.logged("the home was read anew")
    await running.call()
    rows = await running.verifier.rows("SELECT claims FROM appraisals")
    assert "gpu-of-another-kind" in rows[-1]["claims"]


async def test_sighup_with_a_configuration_that_cannot_be_used_changes_nothing(running: Running) -> None:
    """It says why."""
    assert running.process is not None
    (running.home.path / "attester.toml").write_text("this is [not TOML")
    running.process.send_signal(signal.SIGHUP)
    await running.logged("nothing is read anew")
    await running.call()
