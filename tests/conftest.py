"""A running verifier on a real socket over a real database, with a clock that tests move."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

from attester.client import Session, VerifierClient
from attester.evidence import MEDIA_TYPE
from attester.settings import to_toml
from attester.weights.folder import open_folder
from fixtures.credentials import bearer
from fixtures.fleet import free_port
from fixtures.postgres import (
    NoPostgresError,
    drop_database,
    keep_nothing,
    make_database,
    postgres_server,
    url_of,
)
from fixtures.published import publish
from fixtures.simulator import ENGINE, ENGINE_VERSION, MODEL, SimulatedNode, tiny_model
from fixtures.transactions import transaction
from tests import quick_start
from verifier import result_keys, results
from verifier.challenges import posing
from verifier.config import Home, StoreConfig, VerifierConfig
from verifier.policy import bundle as bundles
from verifier.policy.bundle import Bundle
from verifier.references import measured
from verifier.references.measured import Document
from verifier.roles import Role
from verifier.service.app import make_app, open_service
from verifier.service.calls import CALL_SCHEDULER, CallScheduler
from verifier.service.clock import Clock
from verifier.service.serve import listening
from verifier.service.sessions import open_session, wants_for
from verifier.service.state import Service
from verifier.store import api_keys, nodes, policies
from verifier.store.api_keys import NewKey
from verifier.store.nodes import Grant
from verifier.store.opening import open_database
from verifier.store.policies import ChangeAuthor
from verifier.store.postgres import PostgresDatabase
from verifier.store.sqlite import SqliteDatabase

# A slow machine fails no test. `make test` draws the same examples each time and keeps none, so that
# its verdict depends on the code alone; `make fuzz` draws new ones and keeps those that fail.
_SLOW = [HealthCheck.too_slow]
settings.register_profile("test", deadline=None, derandomize=True, database=None, suppress_health_check=_SLOW)
settings.register_profile("fuzz", deadline=None, print_blob=True, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("TOUCHSTONE_PROPERTIES", "test"))
if settings.get_current_profile_name() == "test":
    # Hypothesis also draws constants of all modules that a process has imported so far, which depends on the tests
    # that it has run.  No setting says otherwise.
    providers._get_local_constants = providers.Constants


@pytest.fixture(scope="session", autouse=True)
def starts_quickly() -> Iterator[None]:
    """`python -m touchstone` starts as a copy of a process that has imported it (`tests.quick_start`)."""
    if not quick_start.is_possible():
        yield
        return
    parent = quick_start.Parent()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "_execute_child", quick_start.starting_through(parent))
        yield
    parent.end()


@dataclass
class FakeClock:
    """Wall and monotonic time, moved by hand."""

    ms: int = 1_795_000_000_000
    ticks: float = 1000.0

    def forward(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)
        self.ticks += seconds

    @property
    def seconds(self) -> int:
        return self.ms // 1000

    def clock(self) -> Clock:
        return Clock(lambda: self.ms, lambda: self.ticks)


@dataclass
class RunningVerifier:
    """A verifier, and what a test needs to talk to it."""

    service: Service
    app: web.Application
    url: str
    http: aiohttp.ClientSession
    """It presents the key of the administrator `KIM`, unless a request brings another credential."""
    stranger: aiohttp.ClientSession
    """It presents nothing."""
    clock: FakeClock
    home: Home
    model_folder: Path
    nodes: list[SimulatedNode] = field(default_factory=list)
    keys: dict[str, dict[str, str]] = field(default_factory=dict)
    """The credentials by name that tests have asked for."""

    def client(self, node: SimulatedNode) -> VerifierClient:
        return VerifierClient(self.http, self.url, node.key, now=lambda: self.clock.seconds)

    async def token(self, operator: str = "acme", **grant: Any) -> str:
        async with transaction(self.service.db) as tx:
            return await nodes.issue_token(tx, Grant(operator, (MODEL,), **grant), self.clock.ms, 3_600_000)

    async def enrol(self, node: SimulatedNode | None = None, operator: str = "acme") -> SimulatedNode:
        node = node or SimulatedNode(self.model_folder)
        token = await self.token(operator, hardware_class=node.hardware_class)
        given = await self.client(node).enrol(token, [node.model])
        node.id, node.audience = given["node"], given["verifier"]
        node.ueid = result_keys.unb64url(given["ueid"].replace("+", "-").replace("/", "_").rstrip("="))
        self.nodes.append(node)
        return node

    async def call(self, node: SimulatedNode, *, walk: bool = True) -> Session:
        """A called session of a connected node, without the stream."""
        async with self.service.db.read() as tx:
            stored = await nodes.by_id(tx, node.id)
        assert stored is not None
        session = await open_session(
            self.service, stored, "call", secrets.token_bytes(32), wants_for(stored, walk=walk)
        )
        asked = posing.pose(session.entries, session.exhausted, self.service.pool_key, session.revisions)
        self.app[CALL_SCHEDULER].channels._pushed[session.id] = self.clock.ticks
        return Session(session.id, session.nonce, tuple(posing.to_wire(asked)))

    async def attest(self, node: SimulatedNode, *, walk: bool = True) -> dict[str, Any]:
        """A whole call, answered honestly from the node's folder; the result's claims."""
        session = await self.call(node, walk=walk)
        answers = node.answers(session)
        await self.client(node).answer_call(session, answers)
        return await self.submit(
            session, node.evidence(session, iat=self.clock.seconds, answers=answers), node
        )

    async def submit(self, session: Session, evidence: bytes, node: SimulatedNode) -> dict[str, Any]:
        token = await self.client(node).submit(session, evidence)
        result = results.decode_jwt(
            token, self.service.verifying_keys(), issuer=self.url, now=self.clock.seconds
        )
        # As JSON has it: lists, not tuples.
        claims: dict[str, Any] = json.loads(json.dumps(result.to_claims()))
        return claims

    async def post(self, session: Session, data: bytes, content_type: str | None = None) -> tuple[int, Any]:
        """Submit raw bytes; status and JSON."""
        async with self.http.post(
            f"{self.url}/challenge-response/v1/session/{session.id}",
            data=data,
            headers={"Content-Type": content_type or MEDIA_TYPE},
        ) as response:
            return response.status, await response.json(content_type=None)

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.http.get(self.url + path, headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def policy(self) -> Bundle:
        """The active policy."""
        async with self.service.db.read() as tx:
            rollout = await self.service.inputs.load_rollout(tx)
            return await self.service.inputs.load_bundle(tx, rollout.active)

    async def key(self, name: str, *roles: Role, **more: Any) -> dict[str, str]:
        """The header of somebody with a key of their own, which is made when it is first asked for."""
        if name not in self.keys:
            new = NewKey(name, roles or (Role.ADMINISTRATOR,), **more)
            self.keys[name] = bearer(
                await self.service.db.write(lambda tx: api_keys.create(tx, new, "os:test", self.clock.ms))
            )
        return self.keys[name]

    async def rows(self, sql: str, *parameters: Any) -> list[Any]:
        async with self.service.db.read() as tx:
            return [dict(row) for row in await tx.all(sql, *parameters)]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def model_folder(tiny_folder: Path) -> Path:
    """The model of the tests; a test module may override this."""
    return tiny_folder


@pytest.fixture
def only_our_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan calls nobody by itself: the nodes of these tests hold no channel, and would miss its calls."""

    async def call_nobody(_scheduler: CallScheduler) -> None:
        pass

    monkeypatch.setattr(CallScheduler, "tick", call_nobody)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    """Settings of ``verifier.toml``; a test module may override this."""
    return {"calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0}, "policy": {"workers": 1}}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """
    Run the tests of a module with `STORES` on each of them.

    ``TOUCHSTONE_TEST_STORE=postgres`` runs every test of the verifier on that store.
    """
    if "store_url" not in metafunc.fixturenames:
        return
    forced = os.environ.get("TOUCHSTONE_TEST_STORE")
    stores = (forced,) if forced else getattr(metafunc.module, "STORES", ("sqlite",))
    if stores != ("sqlite",):
        metafunc.parametrize("store_url", stores, indirect=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server; skipped, saying so, where there is none."""
    # A folder of its own: another run of the tests may delete pytest's.
    with tempfile.TemporaryDirectory(prefix="touchstone-postgres-", ignore_cleanup_errors=True) as folder:
        yield from _server(Path(folder))


def _server(folder: Path) -> Iterator[str]:
    try:
        with postgres_server(folder) as server:
            if "TEST_PG_DSN" not in os.environ:
                # The first test that asks for it may have a loop of its own already.
                with ThreadPoolExecutor(1) as aside:
                    aside.submit(asyncio.run, keep_nothing(server)).result()
            yield server
    except NoPostgresError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def postgres_template(postgres: str) -> str:
    """A database with the verifier's tables, which is copied for each test."""

    async def make() -> str:
        name = await make_database(postgres)
        async with PostgresDatabase(url_of(postgres, name)):
            return name

    return asyncio.run(make())


@pytest.fixture(scope="session")
def made_database(made_home: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database file of `made_home`, with its policy, a reference value and challenges."""
    home = Home(tmp_path_factory.mktemp("database") / "verifier")
    shutil.copytree(made_home, home.path)
    asyncio.run(fill(home, tiny_folder))
    assert [path.name for path in home.path.glob("verifier.db*")] == ["verifier.db"]
    return home.database


@pytest.fixture(scope="session")
def made_postgres(
    made_home: Path,
    tiny_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    postgres: str,
    postgres_template: str,
) -> str:
    """The same as a database of PostgreSQL, which is copied too."""
    home = Home(tmp_path_factory.mktemp("database") / "verifier")
    shutil.copytree(made_home, home.path)
    name = asyncio.run(make_database(postgres, postgres_template))
    config = msgspec.structs.replace(home.config(), store=StoreConfig(url=url_of(postgres, name)))
    (home.path / "verifier.toml").write_text(to_toml(config), encoding="utf-8")
    asyncio.run(fill(home, tiny_folder))
    return name


@pytest.fixture
def begins_made(request: pytest.FixtureRequest) -> bool:
    """Whether the verifier of this test begins with a copy of the database that all can share."""
    if not {"verifier", "clock", "model_folder"} <= set(request.fixturenames):
        return False
    of_test = request.getfixturevalue("clock").ms, request.getfixturevalue("model_folder")
    return of_test == (FakeClock.ms, request.getfixturevalue("tiny_folder"))


@pytest.fixture
def store_url(request: pytest.FixtureRequest, *, begins_made: bool) -> Iterator[str]:
    """The ``store.url`` of the verifier of this test: empty for SQLite, or a fresh database."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield ""
        return
    server = request.getfixturevalue("postgres")
    template = request.getfixturevalue("made_postgres" if begins_made else "postgres_template")
    name = asyncio.run(make_database(server, template))
    yield url_of(server, name)
    asyncio.run(drop_database(server, name))


@pytest.fixture(scope="session")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that is copied for each test: its keys are the same in all of them."""
    home = Home(tmp_path_factory.mktemp("made") / "verifier")
    home.create(VerifierConfig())
    path = home.path / "policy" / "data.json"
    data = json.loads(path.read_text())
    data["approved_engines"] = {ENGINE: {"versions": [ENGINE_VERSION, "0.9"], "weak": ["0.9"]}}
    path.write_text(json.dumps(data))
    return home.path


@pytest.fixture
def verifier_home(tmp_path: Path, verifier_settings: dict[str, Any], store_url: str, made_home: Path) -> Home:
    listen = f"127.0.0.1:{free_port()}"
    given = {
        "service": {"listen": listen, "url": f"http://{listen}"}, "store": {"url": store_url}, **verifier_settings
    }  # fmt: skip
    home = Home(tmp_path / "verifier")
    shutil.copytree(made_home, home.path)
    (home.path / "verifier.toml").write_text(
        to_toml(msgspec.convert(given, VerifierConfig)), encoding="utf-8"
    )
    return home


async def seed(home: Home, now_ms: int) -> None:
    """Make the home's policy active without linting and testing it each time."""
    bundle = bundles.load(home.path / "policy")
    who = ChangeAuthor("test", "the home's policy")
    async with open_database(home.config().store.url, home.database) as db, transaction(db) as tx:
        await policies.publish(tx, bundle, bundles.sign(bundle, home.author_key()), "home", who, now_ms)
        await policies.activate_first(tx, bundle, who, now_ms)


async def fill(home: Home, folder: Path) -> None:
    """What the verifiers of most tests begin with, at the moment at which their clock begins."""
    await seed(home, FakeClock.ms)
    async with open_database(home.config().store.url, home.database) as db:
        await publish(db, home.pool_key(), folder, FakeClock.ms, document=_measured(folder))


KIM = "kim"
"""The administrator who takes every step that a test does not give to somebody else."""


@asynccontextmanager
async def clients(
    service: Service, now_ms: int
) -> AsyncIterator[tuple[aiohttp.ClientSession, aiohttp.ClientSession]]:
    """A client with the key of `KIM`, and one without a credential."""
    new = NewKey(KIM, (Role.ADMINISTRATOR,))
    secret = await service.db.write(lambda tx: api_keys.create(tx, new, "os:test", now_ms))
    async with (
        aiohttp.ClientSession(headers=bearer(secret)) as http,
        aiohttp.ClientSession() as stranger,
    ):
        yield http, stranger


@cache
def _measured(folder: Path) -> Document:
    """What is measured of a folder: once, because most tests begin with the same one."""
    return measured.measure_folder(MODEL, open_folder(folder))


@pytest.fixture
async def verifier(
    verifier_home: Home,
    clock: FakeClock,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    made_database: Path,
    *,
    begins_made: bool,
) -> AsyncIterator[RunningVerifier]:
    config = verifier_home.config()
    if not begins_made:
        await seed(verifier_home, clock.ms)
    elif not config.store.url:
        shutil.copyfile(made_database, verifier_home.database)
    # The clock that the test moves is the one that all replicas share.
    monkeypatch.setattr(PostgresDatabase, "ahead_ms", SqliteDatabase.ahead_ms)
    async with open_service(verifier_home, config, clock.clock()) as service:
        if not begins_made:
            await publish(
                service.db, service.pool_key, model_folder, clock.ms, document=_measured(model_folder)
            )
        app = make_app(service)
        async with (
            listening(app, config.service.listen, shutdown_timeout=1),
            clients(service, clock.ms) as (http, stranger),
        ):
            yield RunningVerifier(
                service, app, service.issuer, http, stranger, clock, verifier_home, model_folder
            )


@pytest.fixture(scope="session")
def minilm() -> Iterator[Path]:
    """The published weights; skipped, saying so, where the package is not installed."""
    from fixtures.minilm import published_folder

    try:
        yield published_folder()
    except RuntimeError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class LlamaServer:
    """The real llama.cpp server, and the folder with the GGUF file that it serves."""

    url: str
    folder: Path
    file: Path


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """One for all tests of a process; skipped, saying so, where its wheel or its weights are not installed."""
    from fixtures import llama_server, smollm

    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp, the real llama.cpp server, is not installed")
    root = tmp_path_factory.mktemp("llama")
    try:
        folder = smollm.publish_into(root / "model")
    except RuntimeError as error:
        pytest.skip(str(error))
    file = folder / smollm.FILE
    listen = f"127.0.0.1:{free_port()}"
    try:
        with llama_server.running(file, listen, smollm.MODEL, root / "llama.log") as url:
            yield LlamaServer(url, folder, file)
    finally:
        # pytest keeps its folders, and this one has 98 MB.
        shutil.rmtree(folder)
