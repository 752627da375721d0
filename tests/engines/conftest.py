"""Real vLLM servers, the models they serve, and a verifier that has these as reference values."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attester.config import AttesterConfig, Enrolment, Home
from attester.weights.folder import open_folder
from attester.weights.select import kernel
from attester.weights.tensors import TensorFiles
from fixtures import vllm_server
from fixtures.fleet import free_port
from fixtures.simulator import MODEL
from fixtures.transactions import transaction
from tests.conftest import FakeClock, RunningVerifier, clients, seed
from tests.integration.test_running_attester import RealClock, Running
from verifier.challenges.minting import Minter
from verifier.challenges.pool_key import ReadParameters, WalkParameters
from verifier.references import measured
from verifier.service.app import make_app, open_service
from verifier.service.serve import listening
from verifier.service.state import Service
from verifier.store import pool, references
from verifier.store.policies import ChangeAuthor

_START_S = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all of them where the environment is not there."""
    if not vllm_server.is_installed():
        why = f"{vllm_server.ENVIRONMENT} is not there; `make test-engines` installs it"
        for item in items:
            item.add_marker(pytest.mark.skip(why))


class Vllm:
    """A server of vLLM on this machine."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log

    def request(self, path: str, body: object = None) -> Any:
        """One request to it, and its JSON."""
        data = None if body is None else msgspec.json.encode(body)
        asked = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=120) as response:
            return msgspec.json.decode(response.read() or b"null")


@contextmanager
def vllm(folder: Path, log: Path, *arguments: str, extension: str, **more: str) -> Iterator[Vllm]:
    """A server that serves *folder*, until the end of the block."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = vllm_server.command(folder, port, MODEL, *arguments, extension=extension)
    with log.open("wb") as out:
        environment = vllm_server.environment(**more)
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            server = Vllm(url, log)
            deadline = time.monotonic() + _START_S
            while not vllm_server.is_ready(url):
                assert process.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.5)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return vllm_server.model("smollm2")


@pytest.fixture(scope="session")
def tiny() -> Path:
    return vllm_server.model("tiny")


@pytest.fixture(scope="session")
def gptq() -> Path:
    return vllm_server.model("gptq")


@pytest.fixture(scope="module")
def chat(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """The chat model on one worker."""
    with vllm(smollm2, tmp_path_factory.mktemp("vllm") / "chat.log", extension=vllm_server.PLAIN) as server:
        yield server


@pytest.fixture
def clock() -> FakeClock:
    return RealClock(ms=time.time_ns() // 1_000_000)


async def publish(service: Service, folder: Path, now_ms: int) -> None:
    """Make a folder the reference value, with some challenges: as `reference measure` and `challenges mint`."""
    opened = open_folder(folder)
    document = measured.measure_folder(MODEL, opened)
    async with transaction(service.db) as tx:
        author = ChangeAuthor("test", "measured")
        await references.add(tx, document, references.Provenance(), author, now_ms, replace=True)
        batch = await pool.open_batch(tx, MODEL, document.digest, now_ms)
        minter = Minter(
            model=MODEL,
            folder=opened,
            tensors=TensorFiles(opened),
            key=service.pool_key,
            kernel=kernel(),
            batch=batch,
        )
        await pool.add(tx, list(minter.reads(0, 6, ReadParameters(16))))
        for group in minter.walks(0, 6, WalkParameters(rows=8, passes=1)):
            await pool.add(tx, group)


@pytest.fixture
async def verifier(verifier_home: Any, clock: FakeClock, smollm2: Path) -> AsyncIterator[RunningVerifier]:
    """A verifier that approves this vLLM."""
    path = verifier_home.path / "policy" / "data.json"
    data = msgspec.json.decode(path.read_bytes())
    data["approved_engines"] = {"vllm": {"versions": [vllm_server.VERSION]}}
    path.write_bytes(msgspec.json.encode(data))
    config = verifier_home.config()
    await seed(verifier_home, clock.ms)
    async with open_service(verifier_home, config, clock.clock()) as service:
        await publish(service, smollm2, clock.ms)
        app = make_app(service)
        async with (
            listening(app, config.service.listen, shutdown_timeout=1),
            clients(service, clock.ms) as (http, stranger),
        ):
            yield RunningVerifier(service, app, service.issuer, http, stranger, clock, verifier_home, smollm2)


@pytest.fixture
async def node(verifier: RunningVerifier, chat: Vllm, tmp_path: Path) -> AsyncIterator[Running]:
    """An enrolled home for the chat model on vLLM; nothing runs yet."""
    given = {
        "verifier": {"url": verifier.url},
        "models": {MODEL: {"dir": str(verifier.model_folder)}},
        "serve": {"url": "https://127.0.0.1:9"},
        "engine": {"adapter": "vllm", "url": chat.url},
    }
    home = Home(tmp_path / "node")
    home.create(msgspec.convert(given, AttesterConfig))
    from attester.client import VerifierClient

    client = VerifierClient(verifier.http, verifier.url, home.node_key())
    enrolment = msgspec.convert(
        await client.enrol(await verifier.token(hardware_class="cpu"), [MODEL]), Enrolment
    )
    home.save_enrolment(enrolment)
    running = Running(verifier, home, enrolment.node)
    yield running
    await running.end()
