"""Replicas whose clocks differ, one that lags behind, and one too many: leases, times and feeds hold."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from attester.client import Session, VerifierClient
from attester.cose import PrivateKey
from attester.proof import Request
from attester.sse import read_events
from fixtures.agents import enrol
from fixtures.credentials import administrator
from fixtures.fleet import Fleet, free_port
from fixtures.published import publish
from fixtures.simulator import MODEL, SimulatedNode
from fixtures.transactions import transaction
from tests.conftest import seed
from verifier.config import Home
from verifier.service.app import make_app, open_service
from verifier.service.calls import CALL_SCHEDULER
from verifier.service.clock import Clock
from verifier.service.events import FEED
from verifier.service.state import Service
from verifier.store import events, nodes
from verifier.store.nodes import Grant

STORES = ("postgres",)
AHEAD_MS = 60_000


@asynccontextmanager
async def replica(
    home: Home, listen: str, clock: Clock | None = None
) -> AsyncIterator[tuple[Service, web.Application, str]]:
    """A replica in this process, with a clock of its own."""
    config = msgspec.structs.replace(
        home.config(),
        calls=msgspec.structs.replace(home.config().calls, min_interval_s=3000, max_interval_s=3600),
    )
    async with open_service(home, config, clock) as service:
        app = make_app(service)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        host, _, port = listen.rpartition(":")
        await web.TCPSite(runner, host, int(port)).start()
        yield service, app, f"http://{listen}"
        await runner.cleanup()


class Client(VerifierClient):
    """Asks one replica, as a load balancer would let it."""

    def __init__(self, http: aiohttp.ClientSession, url: str, key: PrivateKey, issuer: str) -> None:
        super().__init__(http, url, key)
        self._issuer = issuer

    def _request(self, method: str, target: str, body: bytes) -> Request:
        return Request(method, self._issuer.partition("://")[2], target, body)


class Pair:
    """Two replicas of one service: the first one's clock is right, the other's a minute fast."""

    def __init__(self, first: Any, second: Any, http: aiohttp.ClientSession, folder: Path) -> None:
        self.first, self.first_app, self.first_url = first
        self.second, self.second_app, self.second_url = second
        self.http = http
        self.folder = folder

    def client(self, node: SimulatedNode, url: str) -> VerifierClient:
        """Requests to one of the two, signed for the service."""
        return Client(self.http, url, node.key, self.first.issuer)

    async def enrol(self) -> SimulatedNode:
        now_ms = time.time_ns() // 1_000_000
        async with transaction(self.first.db) as tx:
            token = await nodes.issue_token(tx, Grant("acme", (MODEL,)), now_ms, 3_600_000)
        return await enrol(self.http, self.first_url, self.folder, token)

    @asynccontextmanager
    async def channel(self, node: SimulatedNode, url: str) -> AsyncIterator[asyncio.Future[Session]]:
        """A channel of a node at one of the two; gives the first call that comes down."""
        async with aclosing(self.client(node, url).calls(node.id)) as calls:
            waiting = asyncio.ensure_future(anext(calls))
            app = self.first_app if url == self.first_url else self.second_app
            await until(lambda: node.id in app[CALL_SCHEDULER].connected)
            yield waiting
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def row(self, sql: str, *parameters: Any) -> dict[str, Any]:
        async with self.first.db.read() as tx:
            (row,) = await tx.all(sql, *parameters)
            return dict(row)


@pytest.fixture
async def pair(verifier_home: Home, model_folder: Path) -> AsyncIterator[Pair]:
    now_ms = time.time_ns() // 1_000_000
    await seed(verifier_home, now_ms)
    fast = Clock(lambda: time.time_ns() // 1_000_000 + AHEAD_MS, time.monotonic)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(replica(verifier_home, verifier_home.config().service.listen))
        second = await stack.enter_async_context(replica(verifier_home, f"127.0.0.1:{free_port()}", fast))
        await publish(first[0].db, first[0].pool_key, model_folder, now_ms)
        http = await stack.enter_async_context(aiohttp.ClientSession(headers=administrator(verifier_home)))
        yield Pair(first, second, http, model_folder)


async def until(holds: Any) -> None:
    for _ in range(200):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not happen within ten seconds")


async def test_both_go_by_one_clock(pair: Pair) -> None:
    """That of the database: what one writes, the other compares."""
    assert pair.second.clock.wall_ms() - pair.first.clock.wall_ms() > AHEAD_MS - 1000
    assert abs(pair.second.now_ms() - pair.first.now_ms()) < 2000


async def test_a_fast_clock_takes_no_lease_away(pair: Pair) -> None:
    """For it the lease of the other would be over all the time."""
    for _ in range(3):
        await pair.second.duties.renew()
        await pair.first.duties.renew()
        assert pair.first.duties.held
        assert not pair.second.duties.held


async def test_a_lease_that_is_given_back_is_taken_at_once(pair: Pair) -> None:
    """By one of the two, and by one alone."""
    await pair.first.duties.give_back()
    await pair.second.duties.renew()
    await pair.first.duties.renew()
    assert pair.second.duties.held
    assert not pair.first.duties.held


@pytest.mark.parametrize("fast_has_the_channel", [True, False])
async def test_a_call_is_timed_right_wherever_its_answers_arrive(
    pair: Pair, *, fast_has_the_channel: bool
) -> None:
    """The replica with the lease decides, the one with the channel pushes, and the other takes the answers."""
    node = await pair.enrol()
    here, there = pair.first_url, pair.second_url
    if fast_has_the_channel:
        here, there = there, here
    async with pair.channel(node, here) as waiting:
        await pair.first_app[CALL_SCHEDULER].call(node.id, walk=True)
        async with asyncio.timeout(10):
            session = await waiting
    answers = await node.answer_call(pair.client(node, there), session)
    kept = await pair.row("SELECT answer_ms FROM sessions WHERE id = ?", session.id)
    assert 0 <= kept["answer_ms"] < 5000
    evidence = node.evidence(session, iat=int(time.time()), answers=answers)
    await pair.client(node, there).submit(session, evidence)
    result = await pair.row("SELECT status, issued_ms FROM appraisals WHERE session_id = ?", session.id)
    assert result["status"] == "affirming"
    assert abs(result["issued_ms"] - time.time() * 1000) < 5000


async def test_a_call_follows_a_node_whose_old_channel_has_not_ended_yet(pair: Pair) -> None:
    """A connection may be dead for a while before we notice; a call into it would be lost, and missed."""
    node = await pair.enrol()
    async with pair.channel(node, pair.first_url) as old, pair.channel(node, pair.second_url) as new:
        await until(lambda: node.id in pair.second_app[CALL_SCHEDULER].connected)
        await asyncio.sleep(0.3)
        assert node.id in pair.first_app[CALL_SCHEDULER].connected
        await pair.first_app[CALL_SCHEDULER].call(node.id, walk=True)
        async with asyncio.timeout(10):
            session = await new
        await until(lambda: node.id not in pair.first_app[CALL_SCHEDULER].connected)
        assert not old.done() or old.exception() is not None
    pushed = await pair.row("SELECT pushed_by FROM sessions WHERE id = ?", session.id)
    assert pushed["pushed_by"] == pair.second.duties.replica


async def test_an_outage_at_one_is_held_against_no_node_at_the_other(pair: Pair) -> None:
    """Answers that could not be taken there are missed here."""
    await pair.first.duties.renew()
    before_ms = pair.first.duties.healthy_since_ms
    await asyncio.sleep(0.05)
    pair.second.duties.note_failure()
    assert pair.second.duties.has_failed_since(pair.second.now_ms())
    await pair.second.duties.renew()
    assert not pair.second.duties.has_failed_since(pair.second.now_ms() + 1)
    await pair.first.duties.renew()
    assert pair.first.duties.healthy_since_ms > before_ms
    assert pair.first.duties.healthy_for_s < 10


class Slow:
    """A database that one replica reads late."""

    def __init__(self, service: Service, behind_s: float) -> None:
        self.clock, self.marks = service.clock, service.marks
        self.db = self
        self._real = service.db
        self._behind_s = behind_s

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Any]:
        await asyncio.sleep(self._behind_s)
        async with self._real.read() as tx:
            yield tx
            await asyncio.sleep(self._behind_s)

    def scan(self) -> Any:
        return self._real.scan()


async def numbers_from(
    http: aiohttp.ClientSession, url: str, after: int, seconds: float
) -> tuple[list[int], set[str]]:
    """The numbers of the events that a stream gives, and the kinds of all it sends, until it ends."""
    found: list[int] = []
    kinds: set[str] = set()
    try:
        async with (
            asyncio.timeout(seconds),
            http.get(f"{url}/api/v1/events?after={after}") as response,
            aclosing(read_events(response.content, max_size=1 << 20)) as stream,
        ):
            async for event in stream:
                kinds.add(event.kind)
                # A heartbeat repeats the number of the last event.
                if event.id and event.kind != "heartbeat":
                    found.append(int(event.id))
    except TimeoutError:
        pass
    return found, kinds


async def test_a_feed_that_is_behind_ends_its_streams_and_nothing_is_lost(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat would say that nothing was missed; the client comes to the other replica, with its number."""
    monkeypatch.setattr("verifier.service.events._MAX_POLL_AGE_S", 1.0)
    monkeypatch.setattr(pair.second_app[FEED], "_service", Slow(pair.second, 2.0))
    async with pair.first.db.read() as tx:
        _, start = await events.bounds(tx)
    writing = asyncio.create_task(write_events(pair.first, 40))
    first, kinds = await numbers_from(pair.http, pair.second_url, start, 20)
    await writing
    assert "reset" not in kinds
    after = first[-1] if first else start
    rest, kinds = await numbers_from(pair.http, pair.first_url, after, 2)
    assert "reset" not in kinds
    async with pair.first.db.read() as tx:
        stored = [row["seq"] for row in await events.after(tx, start, 1000)]
    assert first + rest == stored
    assert len(stored) >= 40


async def test_a_number_that_a_late_feed_has_not_seen_is_no_reset(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that comes from the other replica knows more than this one's feed, and gets nothing twice."""
    monkeypatch.setattr(pair.second_app[FEED], "_service", Slow(pair.second, 1.0))
    await asyncio.sleep(0.3)
    await write_events(pair.first, 10)
    async with pair.first.db.read() as tx:
        _, newest = await events.bounds(tx)
    writing = asyncio.create_task(write_events(pair.first, 10))
    found, kinds = await numbers_from(pair.http, pair.second_url, newest, 6)
    await writing
    assert "reset" not in kinds
    async with pair.first.db.read() as tx:
        stored = [row["seq"] for row in await events.after(tx, newest, 1000)]
    assert found == stored


async def write_events(service: Service, count: int) -> None:
    for number in range(count):
        await service.db.write(
            lambda tx, n=number: events.append(
                tx, service.now_ms(), "node", {"node": f"{n}", "state": "active"}
            )
        )
        await asyncio.sleep(0.02)


@pytest.mark.timeout(120)
def test_a_second_process_on_a_home_with_a_file_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    """It says what several processes need."""
    fleet = Fleet(tmp_path, {"policy": {"workers": 1}})
    try:
        fleet.make_verifier()
        first = fleet.start_verifier()
        command = [
            sys.executable,
            "-m",
            "touchstone",
            "verifier",
            "serve",
            "--home",
            str(fleet.verifier_home),
        ]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode != 0
        assert f"another process serves {fleet.verifier_home}" in second.stderr
        assert "set store.url" in second.stderr
        assert "Traceback" not in second.stderr
        assert first.poll() is None
        assert fleet.ask("nodes") is not None
    finally:
        fleet.stop()


async def test_replicas_that_start_at_once_on_an_empty_database_agree_on_the_policy(
    verifier_home: Home,
) -> None:
    """One of them publishes it, and the other finds it there."""
    listens = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    async with AsyncExitStack() as stack:
        found = await asyncio.gather(
            *(stack.enter_async_context(replica(verifier_home, listen)) for listen in listens)
        )
        async with found[0][0].db.read() as tx:
            changes = await tx.all("SELECT action FROM changes ORDER BY seq")
    assert [row["action"] for row in changes].count("activate") <= 1
    assert len({row["action"] for row in changes}) == len(changes)
