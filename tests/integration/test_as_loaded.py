"""An engine that casts weights while it loads them: a reference value of its build, and nodes that walk by it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from attester.client import VerifierClient
from attester.config import AttesterConfig, Enrolment, Home
from attester.engines.as_loaded import AsLoaded
from attester.engines.host import HostedEngine
from attester.engines.module_state import state_of
from attester.engines.walker import Walker
from attester.identity import write_private
from attester.weights.folder import open_folder
from attester.weights.select import kernel
from attester.weights.tensors import Source, TensorFiles
from fixtures.simulator import MODEL, SimulatedNode
from fixtures.transactions import transaction
from tests.conftest import FakeClock, RunningVerifier
from tests.integration.test_running_attester import RealClock, Running, describe
from tests.unit.router.doubles import serving
from touchstone import main
from verifier.challenges.keeping import Keeper, KeptModels
from verifier.service.calls import CALL_SCHEDULER
from verifier.store import nodes
from verifier.store.database import Tx
from verifier.store.nodes import Grant

torch = pytest.importorskip("torch", reason="torch is not installed")

BUILD = f"{MODEL}/touchstone-fixture-engine-1.0.0-cpu"
SECRET = "shared with the engine"


@pytest.fixture
def clock() -> FakeClock:
    return RealClock(ms=time.time_ns() // 1_000_000)


@pytest.fixture(autouse=True)
def quick_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that needs no time to prove itself."""
    monkeypatch.setattr("verifier.commands.challenges.best_device", lambda: "cpu")
    monkeypatch.setattr("verifier.commands.challenges.kernel", lambda **_: kernel("numpy"))


class Cast(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch is imported by a call
    """The tensors of a folder in fp8, each with a scale: what no file has."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        for tensor in TensorFiles(open_folder(folder)):
            if not tensor.size:
                continue
            bytes_ = torch.from_numpy(tensor.data.copy()).view(torch.uint8).to(torch.float32)
            scale = bytes_.abs().max() / 448
            name = tensor.name.replace(".", "__")
            self.register_parameter(
                name, torch.nn.Parameter((bytes_ / scale).to(torch.float8_e4m3fn), requires_grad=False)
            )
            self.register_buffer(f"{name}_scale", scale)


def hosting(load: Callable[[], Iterable[Source]]) -> Any:
    return serving(HostedEngine(describe, {BUILD: load}, Walker(backend="numpy")).app(SECRET))


async def touchstone(*arguments: str) -> Result:
    """A command of the verifier, beside the engine and the verifier in this process."""
    return await asyncio.to_thread(CliRunner().invoke, main, list(arguments))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    write_private(tmp_path / "engine.secret", SECRET.encode())
    return tmp_path / "engine.secret"


async def measure(verifier: RunningVerifier, url: str, secret: Path) -> Result:
    return await touchstone(
        *(
            "reference",
            "measure",
            str(verifier.model_folder),
            "--model",
            BUILD,
            "--device",
            "cpu",
            "--engine",
            url,
        ),
        *("--engine-secret", str(secret), "--home", str(verifier.home.path)),
    )


async def mint(verifier: RunningVerifier, *arguments: str, model: str = BUILD) -> Result:
    return await touchstone(
        *("challenges", "mint", "--model", model, "--dir", str(verifier.model_folder), "--reads", "3"),
        *("--walks", "3", "--rows", "8", "--home", str(verifier.home.path), *arguments),
    )


@pytest.fixture
async def minted(verifier: RunningVerifier, secret: Path) -> None:
    """A reference value of what a trusted engine has loaded, and challenges that it has answered."""
    trusted = Cast(verifier.model_folder)
    async with hosting(lambda: AsLoaded(state_of(trusted))) as url:
        measured = await measure(verifier, url, secret)
        assert measured.exit_code == 0, measured.output
        assert "walks over what touchstone-fixture-engine 1.0.0 has loaded, as it is (" in measured.output
        done = await mint(verifier, "--engine", url, "--engine-secret", str(secret))
        assert done.exit_code == 0, done.output
        assert (
            f"Minted 3 reads and 3 walks for {BUILD} from {url}. It gave each walk twice, alike."
            in done.output
        )


async def node(
    stack: AsyncExitStack,
    verifier: RunningVerifier,
    folder: Path,
    load: Callable[[], Iterable[Source]],
    walk: str,
) -> Running:
    """An enrolled home for the build, whose attester runs."""
    url = await stack.enter_async_context(hosting(load))
    given = {
        "verifier": {"url": verifier.url},
        "models": {BUILD: {"dir": str(verifier.model_folder), "walk": walk}},
        "serve": {"url": "https://127.0.0.1:9"},
        "engine": {"url": url},
    }
    home = Home(folder / "node")
    home.create(msgspec.convert(given, AttesterConfig))
    (home.path / "engine.secret").write_text(SECRET)
    async with transaction(verifier.service.db) as tx:
        grant = Grant("acme", (BUILD,), hardware_class="cpu")
        token = await nodes.issue_token(tx, grant, verifier.clock.ms, 3_600_000)
    client = VerifierClient(verifier.http, verifier.url, home.node_key())
    enrolment = msgspec.convert(await client.enrol(token, [BUILD]), Enrolment)
    home.save_enrolment(enrolment)
    running = Running(verifier, home, enrolment.node)
    stack.push_async_callback(running.end)
    await running.start()
    return running


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def called(verifier: RunningVerifier, running: Running) -> dict[str, Any]:
    """A call with a walk that the attester has answered; the appraisal of the model."""
    before = await running.results()
    await running.until(running.is_connected)
    await verifier.app[CALL_SCHEDULER].call(running.node, walk=True)

    async def is_there() -> bool:
        return await running.results() > before

    await running.until(is_there)
    rows = await verifier.rows("SELECT claims FROM appraisals WHERE node_id = ?", running.node)
    found: dict[str, Any] = json.loads(rows[-1]["claims"])["submods"][f"model/{BUILD}"]
    return found


def codes(found: dict[str, Any]) -> set[str]:
    return {reason["code"] for reason in found["ear_verifier_claims"].get("reasons", ())}


async def test_a_node_of_the_same_build_is_affirmed(
    verifier: RunningVerifier, minted: None, stack: AsyncExitStack, tmp_path: Path
) -> None:
    """Row: engines that hold other bytes than the file have a reference value of their own build."""
    loaded = Cast(verifier.model_folder)
    running = await node(stack, verifier, tmp_path, lambda: AsLoaded(state_of(loaded)), "as-loaded")
    found = await called(verifier, running)
    assert found["ear_status"] == "affirming", found
    checked = await touchstone("attester", "check", "--home", str(running.home.path))
    assert "read correct; walk correct, from loaded on " in checked.output


async def test_a_node_with_another_scale_is_wrong(
    verifier: RunningVerifier, minted: None, stack: AsyncExitStack, tmp_path: Path
) -> None:
    """No published file has the scale, and the weights beside it are right."""
    loaded = Cast(verifier.model_folder)
    name = next(name for name, _ in loaded.named_buffers())
    getattr(loaded, name).mul_(1.001)
    running = await node(stack, verifier, tmp_path, lambda: AsLoaded(state_of(loaded)), "as-loaded")
    assert "weights.walk.wrong" in codes(await called(verifier, running))


async def test_a_node_that_walks_as_published_is_told_so_and_not_blamed(
    verifier: RunningVerifier, minted: None, stack: AsyncExitStack, tmp_path: Path
) -> None:
    """It is misconfigured: its walk counts as none, and there is no incident."""
    files = TensorFiles(open_folder(verifier.model_folder))
    running = await node(stack, verifier, tmp_path, lambda: list(files), "published")
    found = await called(verifier, running)
    assert {"weights.walk.other", "weights.walk.unanswered"} <= codes(found)
    assert "weights.walk.wrong" not in codes(found)
    assert found["ear_status"] != "affirming"
    assert await verifier.rows("SELECT * FROM incidents") == []


# What is not minted.


async def test_a_keeper_keeps_the_reads_alone(verifier: RunningVerifier, minted: None) -> None:
    """It has the folder and no engine: it says where walks come from."""
    async with transaction(verifier.service.db) as tx:
        token = await nodes.issue_token(tx, Grant("acme", (BUILD,)), verifier.clock.ms, 3_600_000)
    await verifier.client(node := SimulatedNode(verifier.model_folder, model=BUILD)).enrol(
        token, [node.model]
    )
    kept = KeptModels(folders={BUILD: [verifier.model_folder]}, hours=24, calls=verifier.service.config.calls)

    async def no_wide_classes(_tx: Tx) -> tuple[str, ...]:
        return ()

    keeper = Keeper(
        verifier.service.db, kept, key=verifier.service.pool_key, kernel=kernel("numpy"),
        wide_classes=no_wide_classes, cache=None, now_ms=lambda: verifier.clock.ms, monotonic=lambda: 0.0,
    )  # fmt: skip
    with capture_logs() as logs:
        while await keeper.round():
            pass
    rows = await verifier.rows("SELECT kind, count(*) AS n FROM pool WHERE model = ? GROUP BY kind", BUILD)
    found = {row["kind"]: row["n"] for row in rows}
    assert found["read"] > 3
    assert found["walk"] == 3
    assert any("touchstone challenges mint --engine URL" in entry.get("why", "") for entry in logs)


async def test_an_engine_that_answers_in_two_ways_is_not_minted_from(
    verifier: RunningVerifier, secret: Path
) -> None:
    """A device that errs now and then."""
    loaded = Cast(verifier.model_folder)
    name = next(name for name, _ in loaded.named_buffers())

    def unsteady() -> AsLoaded:
        getattr(loaded, name).mul_(1.01)
        return AsLoaded(state_of(loaded))

    async with hosting(unsteady) as url:
        done = await measure(verifier, url, secret)
    assert done.exit_code == 1
    assert "the engine answers the same walk in two ways" in done.output


async def test_an_engine_of_another_build_is_not_minted_from(
    verifier: RunningVerifier, minted: None, secret: Path
) -> None:
    """It answers the practice challenge otherwise."""
    other = Cast(verifier.model_folder).half()
    async with hosting(lambda: AsLoaded(state_of(other))) as url:
        done = await mint(verifier, "--engine", url, "--engine-secret", str(secret))
    assert done.exit_code == 1
    assert "another build, another device, or other weights" in done.output


async def test_walks_of_a_build_are_not_minted_from_the_files(
    verifier: RunningVerifier, minted: None
) -> None:
    """They would be wrong for every honest node."""
    done = await mint(verifier)
    assert done.exit_code == 1
    assert "Say with --engine where a trusted engine of that build is" in done.output


async def test_walks_of_published_tensors_are_not_minted_from_an_engine(
    verifier: RunningVerifier, secret: Path
) -> None:
    loaded = Cast(verifier.model_folder)
    async with hosting(lambda: AsLoaded(state_of(loaded))) as url:
        command = ("--engine", url, "--engine-secret", str(secret))
        done = await mint(verifier, *command, model=MODEL)
    assert done.exit_code == 1
    assert "walks of example/tiny go over the tensors of the files. Leave --engine out" in done.output


async def test_an_engine_that_walks_as_published_is_not_measured(
    verifier: RunningVerifier, secret: Path
) -> None:
    files = TensorFiles(open_folder(verifier.model_folder))
    async with hosting(lambda: list(files)) as url:
        done = await measure(verifier, url, secret)
    assert done.exit_code == 1
    assert "as published" in done.output
