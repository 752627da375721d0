"""Whose fault it is: what the router itself, or the network, could not do is booked on no node."""

from __future__ import annotations

import asyncio
import errno
import json
import pydoc
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fixtures.fleet import free_port
from router.gateway import probe
from router.gateway.openai import GATEWAY
from router.model.answers import Answer
from router.model.load import BREAKER_OPEN_S
from router.model.operations import Operation
from router.model.outcomes import Failure
from router.service.state import STATE
from router.state.prober import Prober
from tests.integration.gateway import CHAT, STREAM, Fleet, Running, opened
from tests.unit.router.doubles import FakeNode, answers, until
from tests.unit.router.support import PIN


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


def untouched(fleet: Fleet, name: str) -> bool:
    """Whether nothing at all is held against a node."""
    seen = fleet.statistics(name)
    return (seen.own.failed, seen.own.rejects, seen.load.failures_in_a_row) == ((0.0, 0.0), 0.0, 0)


async def two(fleet: Fleet, **gateway: Any) -> FakeNode:
    """A router that asks its first node, which it returns, before its second."""
    node = await fleet.node("a")
    await fleet.node("b")
    await fleet.start(**gateway)
    fleet.establish("a")
    fleet.in_order()
    return node


# The router's own configuration.


async def test_a_node_of_the_local_network_is_excluded_and_not_blamed(fleet: Fleet) -> None:
    """Six requests with the default `allow_private = false`: none is sent, none counts, and the answer names the setting."""
    node = await fleet.node("a")
    await fleet.start(allow_private=False)
    for _ in range(6):
        status, document, headers = await fleet.post(**{"X-Touchstone-Explain": "1"})
        assert (status, await fleet.record(headers)) == (503, [])
    assert "1 address.not-allowed" in document["error"]["message"]
    verdict = document["touchstone"]["excluded"]["a"]
    assert (verdict["code"], "[gateway] allow_private = true" in verdict["detail"]) == (
        "address.not-allowed",
        True,
    )
    assert (node.requests, untouched(fleet, "a")) == ([], True)


async def test_a_name_that_leads_to_a_private_address_is_found_out_before_work_is_sent(fleet: Fleet) -> None:
    """No request fails for it: while it is looked up, the node is not asked."""
    node = await fleet.node("a")
    endpoint = {"url": node.url.replace("127.0.0.1", "localhost"), "spki_sha256": node.pin}
    fleet.verifier.trust("a", endpoint=endpoint)
    await fleet.start(allow_private=False)
    workload = fleet.router.table.workloads["tiny"]

    def code() -> str | None:
        verdict = fleet.router.verdict("a", workload)
        return None if verdict is None else verdict.code

    assert code() in ("address.pending", "address.not-allowed")
    assert (await fleet.post())[0] == 503
    await until(lambda: code() == "address.not-allowed")
    assert (node.requests, untouched(fleet, "a")) == ([], True)


async def test_a_name_that_nobody_can_look_up_waits_for_no_lookup(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that is down keeps nobody out: the attempt tells."""
    fleet.verifier.trust("a", endpoint={"url": "https://node.test:9", "spki_sha256": PIN})

    async def down(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EAGAIN, "no name server")

    monkeypatch.setattr("aiohttp.ThreadedResolver.resolve", down)
    await fleet.start(allow_private=False)
    workload = fleet.router.table.workloads["tiny"]
    await until(lambda: fleet.router.verdict("a", workload) is None)
    assert await fleet.attempts() == [("a", "unreachable")]
    assert fleet.failed("a") == 0


async def test_a_name_that_turns_private_is_refused_at_the_attempt_and_the_next_node_asked(
    fleet: Fleet,
) -> None:
    """It is no attempt of the three, it counts for nothing, and the node is out from then on."""
    node = await fleet.node("a")
    await fleet.node("b")
    endpoint = {"url": node.url.replace("127.0.0.1", "localhost"), "spki_sha256": node.pin}
    fleet.verifier.trust("a", endpoint=endpoint)
    await fleet.start(attempts=1)
    names = fleet.app[GATEWAY].dispatcher._exchanges._upstream._connector.names
    names._allow_private = False
    assert await fleet.attempts() == [("a", "not-allowed"), ("b", "completed")]
    assert await fleet.attempts() == [("b", "completed")]
    assert (node.requests, untouched(fleet, "a")) == ([], True)


async def test_a_probe_of_what_the_router_may_not_ask_is_no_silence(fleet: Fleet) -> None:
    """The node is out for its address, and for nothing else."""
    await fleet.node("a")
    await fleet.start()
    state = fleet.app[STATE]
    http = fleet.app[GATEWAY].dispatcher._exchanges._upstream._session
    prober = Prober(fleet.router, partial(probe.ask, http, allow_private=False), state.clock, every_s=5)
    for _ in range(10):
        assert not await prober.probe("a")
        fleet.clock.forward(5)
        fleet.router.note_verifier_contact()
    verdict = fleet.router.verdict("a", fleet.router.table.workloads["tiny"])
    assert verdict is not None
    assert verdict.code == "address.not-allowed"
    heartbeat = fleet.router.heartbeat("a")
    assert heartbeat is not None
    assert heartbeat.phi(fleet.clock.ticks) == 0


# The router's machine, and the network.


def failing(monkeypatch: pytest.MonkeyPatch, node: str, error: Exception) -> None:
    """From now on every new connection to a node fails here."""
    import aiohappyeyeballs

    connect = aiohappyeyeballs.start_connection
    port = int(node.rpartition(":")[2])

    async def start_connection(addr_infos: Any, **given: Any) -> Any:
        if addr_infos[0][4][1] == port:
            raise error
        return await connect(addr_infos, **given)

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)


OURS = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EPERM]
THE_NETWORKS = [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EACCES]


@pytest.mark.parametrize("number", OURS, ids=errno.errorcode.get)
async def test_what_the_routers_machine_lacks_is_held_against_nobody(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Twenty requests without a socket: no standing, no breaker, and the next node completes them."""
    node = await two(fleet)
    failing(monkeypatch, node.url, OSError(number, "here"))
    for _ in range(20):
        assert await fleet.attempts() == [("a", "hindered"), ("b", "completed")]
    assert untouched(fleet, "a")
    monkeypatch.undo()
    assert await fleet.attempts() == [("a", "completed")]


@pytest.mark.parametrize("number", THE_NETWORKS, ids=errno.errorcode.get)
async def test_what_the_network_lacks_moves_no_standing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Also if other nodes are reached: one way of several may be cut.  Work waits ten seconds, and never longer."""
    node = await two(fleet)
    failing(monkeypatch, node.url, OSError(number, "between"))
    for _ in range(3):
        assert await fleet.attempts() == [("a", "unreachable"), ("b", "completed")]
    assert await fleet.attempts() == [("b", "completed")]
    assert fleet.standing("a").failed == (0.0, 0.0)
    assert fleet.statistics("a").load.open_until <= fleet.clock.ticks + BREAKER_OPEN_S


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(errno.ECONNREFUSED, ""), ConnectionResetError(errno.ECONNRESET, "")]
)
async def test_what_the_node_does_is_the_nodes(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """Who refuses or resets connections is there to do it."""
    node = await two(fleet)
    failing(monkeypatch, node.url, error)
    assert await fleet.attempts() == [("a", "crashed"), ("b", "completed")]
    assert fleet.failed("a") == 3


async def test_no_connection_in_time_anywhere_blames_nobody(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router's way out is cut: every node is as silent as the next, and none is to blame."""
    nodes = [await fleet.node(name) for name in "abc"]
    await fleet.start()
    for node in nodes:
        failing(monkeypatch, node.url, TimeoutError(errno.ETIMEDOUT, "cut"))
    for _ in range(4):
        assert {outcome for _, outcome in await fleet.attempts()} == {"crashed"}
    assert [untouched(fleet, name) for name in "abc"] == [True] * 3


async def test_no_connection_in_time_to_one_node_alone_is_the_nodes(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one completed the same request, so the way out was open."""
    node = await two(fleet)
    failing(monkeypatch, node.url, TimeoutError(errno.ETIMEDOUT, "dropped"))
    assert await fleet.attempts() == [("a", "crashed"), ("b", "completed")]
    assert fleet.failed("a") == 3


async def test_a_probe_that_never_came_to_the_node_is_no_silence(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute without a socket: the node is as it was, and not broken."""
    node = await fleet.node("a")
    await fleet.start()
    state = fleet.app[STATE]
    http = fleet.app[GATEWAY].dispatcher._exchanges._upstream._session
    ask = partial(probe.ask, http, allow_private=True)
    prober = Prober(fleet.router, ask, state.clock, every_s=5)
    failing(monkeypatch, node.url, OSError(errno.EMFILE, "here"))
    assert await ask((node.url, node.pin)) is Failure.NO_SOCKETS
    for _ in range(12):
        assert not await prober.probe("a")
        fleet.clock.forward(5)
        fleet.router.note_verifier_contact()
    assert fleet.router.verdict("a", fleet.router.table.workloads["tiny"]) is None


async def test_time_that_ran_out_while_the_router_stood_still_is_the_routers(fleet: Fleet) -> None:
    """The loop is blocked while a node would have answered in time."""
    node = await fleet.node("a")
    await fleet.node("b")

    async def answers_late(request: web.Request) -> web.StreamResponse:
        # The node is in this process, and so it is the router that stands still.
        time.sleep(0.7)  # noqa: ASYNC251
        await asyncio.sleep(5)
        return web.Response()

    node.act = answers_late
    await fleet.start(attempt_timeout_s=0.5, watches_stalls=True)
    assert (await fleet.attempts())[0] == ("a", "hindered")
    assert untouched(fleet, "a")


async def test_a_router_that_stops_blames_no_client(fleet: Fleet) -> None:
    """What it breaks off itself is its own doing."""
    node = await fleet.engine("a")
    await fleet.start()
    records = fleet.app[STATE].records
    node.gate.clear()
    asking = asyncio.create_task(fleet.ask(CHAT))
    await until(lambda: node.waiting)
    fleet.app[GATEWAY].dispatcher.stop()
    asking.cancel()
    await until(lambda: any(record["attempts"] for record in records.newest()))
    (attempt,) = records.newest()[-1]["attempts"]
    assert (attempt["outcome"], attempt["blame"]) == ("hindered", "router")


# One moment.

_SERVER = """
import asyncio, ssl, sys
async def act(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    if sys.argv[4] == "stream":
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nConnection: close\\r\\n\\r\\n")
        writer.write(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\\n\\n')
        await writer.drain()
    print("taken", flush=True)
    await asyncio.sleep(60)
async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    server = await asyncio.start_server(act, "127.0.0.1", int(sys.argv[3]), ssl=context)
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["whole", "stream"])
async def test_an_engine_that_is_killed_with_twelve_requests_is_back_at_once(
    tmp_path: Path, kind: str
) -> None:
    """Its breaker has seen one failure: the next request goes to it, and not in five minutes."""
    async with opened(tmp_path, Running()) as fleet:
        certificate, port = fleet.certificate("a"), free_port()
        files = [str(tmp_path / "tls" / f"a.{end}") for end in ("crt", "key")]
        command = [sys.executable, "-c", _SERVER, *files, str(port), kind]
        engine = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert engine.stdout is not None
        try:
            assert await engine.stdout.readline() == b"ready\n"
            fleet.verifier.trust(
                "a", endpoint={"url": f"https://127.0.0.1:{port}", "spki_sha256": certificate.pin}
            )
            await fleet.engine("b")
            await fleet.start({"concurrency": 64})
            fleet.establish("a")
            asking = [asyncio.create_task(fleet.ask(STREAM if kind == "stream" else CHAT)) for _ in range(12)]
            for _ in range(12):
                assert await engine.stdout.readline() == b"taken\n"
        finally:
            engine.kill()
            await engine.wait()
        await asyncio.gather(*asking)
        load = fleet.statistics("a").load
        assert (load.failures_in_a_row, load.breaker_is_open(fleet.clock.ticks)) == (1, False)
        if kind == "stream":
            # What was lost is lost each time, and weighs three times once.
            assert fleet.failed("a") == pytest.approx(3 + 11, abs=0.1)


async def test_what_nobody_foresaw_is_held_against_nobody(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours that every answer meets blames no node."""
    await fleet.node("a")
    await fleet.node("b")
    await fleet.start()
    monkeypatch.setattr("router.model.operations.Operation.judge", lambda *_: 1 / 0)
    assert [outcome for _, outcome in await fleet.attempts()] == ["hindered", "hindered"]
    assert (untouched(fleet, "a"), untouched(fleet, "b")) == (True, True)


async def test_who_alone_brings_the_router_to_fail_is_to_blame(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node completed the same request: a node must not be able to hide behind a fault of ours."""
    node = await two(fleet)
    node.act = answers(200, b'{"a bug": 1}')
    judge = Operation.judge

    def fails_at_one(operation: Operation, status: int, body: bytes) -> Answer:
        assert b"a bug" not in body
        return judge(operation, status, body)

    monkeypatch.setattr(Operation, "judge", fails_at_one)
    assert await fleet.attempts() == [("a", "hindered"), ("b", "completed")]
    assert fleet.failed("a") == 3


# Large bodies.


async def test_a_body_of_too_many_values_is_refused(fleet: Fleet) -> None:
    """15 MiB of empty lists are five million values; the client is told what it may send."""
    node = await fleet.node("a")
    await fleet.start()
    body = b'{"model":"example/tiny","input":[' + b"[]," * (5 << 20) + b"[]]}"
    status, document, _ = await fleet.post(body)
    assert (status, document["error"]["code"]) == (413, "too_many_values")
    assert node.requests == []


@pytest.mark.parametrize(("size", "is_aside"), [(1000, False), (300 << 10, True)])
async def test_large_bodies_and_answers_are_read_aside(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, size: int, *, is_aside: bool
) -> None:
    """In a thread, so that no other request waits; small ones at once."""
    node = await fleet.node("a")
    await fleet.start()
    vector = {"object": "embedding", "index": 0, "embedding": [0.5] * (size // 4)}
    node.act = answers(200, json.dumps({"object": "list", "data": [vector]}).encode())
    threads = []
    for place in ("router.gateway.body._document", "router.model.answers._embeddings"):
        decoder = pydoc.locate(place)

        class Noting:
            def __init__(self, inner: Any) -> None:
                self.inner = inner

            def decode(self, data: bytes) -> Any:
                threads.append(threading.current_thread() is not threading.main_thread())
                return self.inner.decode(data)

        monkeypatch.setattr(place, Noting(decoder))
    status, _, _ = await fleet.post(
        {"model": "example/tiny", "input": "x" * size}, **{"Idempotency-Key": "k"}
    )
    assert (status, threads) == (200, [is_aside, is_aside])


async def test_an_answer_of_too_many_values_is_not_read(fleet: Fleet) -> None:
    """A hostile node must not keep other requests waiting either."""
    node = await two(fleet)
    node.act = answers(200, b'{"object":"list","data":[' + b"[]," * (1 << 20) + b"[]]}")
    assert await fleet.attempts() == [("a", "corrupted"), ("b", "completed")]
