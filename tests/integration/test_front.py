"""What a stranger may cost on a connection, at the real verifier and the real router, on real sockets."""

from __future__ import annotations

import asyncio
import errno
import gzip
import logging
import resource
import secrets
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from fixtures.credentials import administrator
from tests.integration.front import QUIET, SERVICES, SMALL_LIMITS, Raw, Served, request, served, until
from tests.unit.router.support import MODEL
from verifier.config import Home, ServiceConfig
from verifier.service import listener, protocol, refusals
from verifier.service.front import Front

SECRET = "sk-a-secret-that-nobody-may-see-" + "x" * 40
both = pytest.mark.parametrize("kind", SERVICES)


def cut(reason: str) -> float:
    return REGISTRY.get_sample_value("touchstone_cut_total", {"reason": reason}) or 0.0


async def connect_many(service: Served, count: int, data: bytes = b"") -> list[Raw]:
    clients = [await service.connect() for _ in range(count)]
    for client in clients:
        await client.send(data)
    return clients


@both
@pytest.mark.parametrize("data", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_half_open_connections_keep_no_new_client_out(kind: str, data: bytes, tmp_path: Path) -> None:
    """Six hundred of them, of which each would wait for ever: each new client is served."""
    async with served(kind, tmp_path) as service:
        service.front.connections.limit(400)
        held = await connect_many(service, 600, data)
        for _ in range(5):
            assert (await service.get()).status in (200, 404)
        assert len(service.front.connections) <= 400
        for client in held:
            client.close()


@both
async def test_strangers_never_have_the_connections_of_the_known(kind: str, tmp_path: Path) -> None:
    """They are cut, the longest waiting first, and it is counted."""
    async with served(kind, tmp_path, **SMALL_LIMITS) as service:
        before = cut("address")
        held = await connect_many(service, 50)
        await until(lambda: cut("address") >= before + 30)
        assert service.front.connections.strangers <= 20
        for client in held:
            client.close()


@both
async def test_a_head_has_to_come_in_time(kind: str, tmp_path: Path) -> None:
    """Half of one is answered, nothing at all is closed, and both are counted."""
    async with served(kind, tmp_path, head_s=0.1) as service:
        before = cut("head")
        half, silent = await service.connect(), await service.connect()
        await half.send(b"GET / HTTP/1.1\r\nAuthorization: Bearer " + SECRET.encode())
        answer = await half.answer()
        assert (answer.status, answer.document["type"].partition("#")[2]) == (408, "request.too-slow")
        assert SECRET not in answer.data.decode()
        assert (await silent.answer()).data == b""
        assert cut("head") == before + 2


@both
async def test_the_head_of_a_further_request_has_the_same_time(kind: str, tmp_path: Path) -> None:
    """A connection that was good once is not good for ever."""
    async with served(kind, tmp_path, head_s=0.1) as service:
        client = await service.connect()
        await client.send(request("GET", QUIET[kind]))
        await client.reader.readuntil(b"}")
        await asyncio.sleep(0.15)
        await client.send(b"GET / HTTP/1.1\r\n")
        assert b" 408 " in (await client.answer()).data


@both
async def test_an_idle_connection_is_closed(kind: str, tmp_path: Path) -> None:
    """After its time, without a word."""
    async with served(kind, tmp_path, idle_s=0.1) as service:
        client = await service.connect()
        await client.send(request("GET", QUIET[kind]))
        answer = await client.answer()
        assert answer.status in (200, 404)


BOMBS = {
    "a long header": b"GET / HTTP/1.1\r\nAuthorization: Bearer " + SECRET.encode() * 200 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 200 + b"\r\n",
    "a long path": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
    "much of all": b"GET / HTTP/1.1\r\nHost: x\r\n"
    + b"".join(b"X-%d: %s\r\n" % (n, b"v" * 4000) for n in range(12))
    + b"\r\n",
    "a head without an end": b"GET / HTTP/1.1\r\nHost: x\r\n"
    + b"".join(b"X-%d: %s\r\n" % (n, b"v" * 4000) for n in range(12)),
}


@both
@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_head_that_is_too_large_is_431(kind: str, bomb: str, tmp_path: Path) -> None:
    """A problem document that repeats nothing of it."""
    async with served(kind, tmp_path) as service:
        client = await service.connect()
        await client.send(BOMBS[bomb])
        answer = await client.answer()
        assert answer.status == 431
        assert "application/problem+json" in answer.head
        assert answer.document["type"].endswith("#request.head-too-large")
        assert SECRET[:20] not in answer.data.decode()
        assert (await service.get()).status in (200, 404)


@both
@pytest.mark.parametrize(
    "head",
    [
        b"nonsense " + SECRET.encode() + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + SECRET.encode() + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: " + SECRET.encode() + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: " + SECRET.encode() + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: " + SECRET.encode() + b"\r\n\r\n",
        b"\x16\x03\x01" + SECRET.encode() + b"\r\n\r\n",
        b"POST /api/v1/decisions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: " + SECRET.encode() + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nExpect: " + SECRET.encode() + b"\r\n\r\n",
    ],
    ids=["no request", "no header", "version", "length", "two hosts", "TLS", "coding", "expect"],
)
async def test_a_malformed_head_is_a_problem_that_repeats_nothing(
    kind: str,
    head: bytes,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither to the client nor in the log, and no traceback."""
    caplog.set_level(logging.DEBUG)
    async with served(kind, tmp_path) as service:
        client = await service.connect()
        await client.send(head)
        answer = await client.answer()
        assert answer.status in (400, 417)
        assert "application/problem+json" in answer.head
        assert SECRET[:20] not in answer.data.decode()
    logged = "".join(capfd.readouterr()) + caplog.text
    assert SECRET[:20] not in logged
    assert "Traceback" not in logged


@both
async def test_a_large_head_leaves_nothing_of_the_key_in_the_log(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A line with a number, however many there were."""
    caplog.set_level(logging.DEBUG)
    async with served(kind, tmp_path) as service:
        for _ in range(5):
            client = await service.connect()
            await client.send(BOMBS["a long header"])
            await client.answer()
    logged = "".join(capfd.readouterr()) + caplog.text
    assert SECRET[:20] not in logged
    assert "Traceback" not in logged
    assert logged.count("refused or cut") == 1
    assert "head_too_large=5" in logged


async def test_requests_that_are_sent_ahead_fill_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind one that lasts."""
    async with served("verifier", tmp_path) as service:
        before = cut("head-too-large")
        client = await service.connect()
        begun, ends = asyncio.Event(), asyncio.Event()

        async def last(_: web.Request) -> web.Response:
            begun.set()
            await ends.wait()
            return web.Response()

        replace_handler(service, "/health", last, monkeypatch)
        await client.send(request("GET", "/health"))
        await begun.wait()
        try:
            for _ in range(40):
                await client.send(request("GET", QUIET["verifier"], X="v" * 8000))
            await client.answer()
        except ConnectionError:
            pass
        assert cut("head-too-large") == before + 1


def post_of(kind: str, length: int) -> bytes:
    """The head of a request with a body, at a resource that reads one before it knows who calls."""
    path = "/v1/embeddings" if kind == "router" else f"/api/v1/calls/{secrets.token_hex(8)}/answers"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
    # What a node signs covers the body, so it is read first.
    signed = "" if kind == "router" else "Authorization: Touchstone-Node AAAA\r\n"
    return f"{head}{signed}\r\n".encode()


@both
@pytest.mark.parametrize("sent", [b"", b"{"])
async def test_a_body_has_to_come_in_time(kind: str, sent: bytes, tmp_path: Path) -> None:
    """408, and it is counted."""
    async with served(kind, tmp_path, body_s=0.1) as service:
        before = cut("body")
        client = await service.connect()
        await client.send(post_of(kind, 1000) + sent)
        assert (await client.answer()).status == 408
        assert cut("body") == before + 1
        assert service.front.bytes.held == 0


@both
async def test_a_body_that_keeps_its_rate_may_take_longer(kind: str, tmp_path: Path) -> None:
    """Large uploads are judged by their pace: bytes that have come give more time."""
    async with served(kind, tmp_path, body_s=0.1, body_bytes_per_s=100_000) as service:
        client = await service.connect()
        await client.send(post_of(kind, 60_000) + bytes(40_000))
        await asyncio.sleep(0.2)
        await client.send(bytes(20_000))
        client.writer.write_eof()
        assert (await client.answer()).status in (400, 401, 404)


@both
async def test_unfinished_bodies_have_one_budget(kind: str, tmp_path: Path) -> None:
    """Sixty of them hold no more than it; those over it are told to come back, and all is given back."""
    async with served(kind, tmp_path, body_budget_mib=4, body_s=0.5, body_bytes_per_s=1 << 30) as service:
        before = cut("bytes")
        clients = []
        for _ in range(60):
            client = await service.connect()
            try:
                await client.send(post_of(kind, 1 << 20) + bytes(500_000))
            except ConnectionError:
                continue
            clients.append(client)
        await until(lambda: cut("bytes") > before)
        assert service.front.bytes.held <= 4 << 20
        answers = [
            answer for answer in await asyncio.gather(*(each.answer() for each in clients)) if answer.data
        ]
        assert {answer.status for answer in answers} == {408, 503}
        assert all("Retry-After: 1" in answer.head for answer in answers if answer.status == 503)
        await until(lambda: service.front.bytes.held == 0)


async def test_bodies_that_are_awaited_behind_a_proxy_are_counted_by_client(tmp_path: Path) -> None:
    """The proxy's connections have no limit of an address, so the requests on them have."""
    settings = {**SMALL_LIMITS, "connections_per_address": 3, "trusted_proxies": ["127.0.0.1"]}
    async with served("verifier", tmp_path, **settings) as service:

        async def begin(address: str) -> Raw:
            client = await service.connect()
            head = post_of("verifier", 1000)
            await client.send(
                head.replace(b"Host: x", b"Host: x\r\nX-Forwarded-For: " + address.encode()) + b"{"
            )
            return client

        before = cut("busy")
        held = [await begin("203.0.113.1") for _ in range(3)]
        await until(lambda: service.front._awaited.total() == 3)
        refused = await (await begin("203.0.113.1")).answer()
        assert (refused.status, cut("busy")) == (503, before + 1)
        held.append(await begin("203.0.113.2"))
        await until(lambda: service.front._awaited.total() == 4)
        for client in held:
            client.close()
        await until(lambda: not service.front._awaited)


async def test_a_key_has_bytes_that_strangers_cannot_take(tmp_path: Path) -> None:
    """Beside a flood of unfinished bodies, who has a key is served, and strangers' bodies are not read at all."""
    import hashlib

    keys = [{"name": "ada", "sha256": hashlib.sha256(b"ada").hexdigest()}]
    async with served("router", tmp_path, body_budget_mib=1, sections={"keys": keys}) as service:
        strangers = await connect_many(service, 10, post_of("router", 1 << 19) + bytes(100_000))
        client = await service.connect()
        body = b'{"model": "' + MODEL.encode() + b'", "input": "' + b"a" * 300_000 + b'"}'
        await client.send(
            request("POST", "/v1/embeddings", body, Authorization="Bearer ada", Connection="close")
        )
        # No node is there: but the body was taken.
        assert (await client.answer()).status == 503
        assert service.front.bytes.held == 0
        for stranger in strangers:
            stranger.close()


@both
@pytest.mark.parametrize("coding", ["identity", "Identity", "identity, IDENTITY"])
async def test_identity_is_no_compression(kind: str, coding: str, tmp_path: Path) -> None:
    """RFC 9110 §8.4: nobody should send it, and it means nothing."""
    async with served(kind, tmp_path) as service:
        client = await service.connect()
        path = "/challenge-response/v1/newSession" if kind == "verifier" else "/api/v1/decisions"
        body = b"" if kind == "verifier" else b'{"model": "%s"}' % MODEL.encode()
        await client.send(request("POST", path, body, Content_Encoding=coding, Connection="close"))
        assert (await client.answer()).status == 201


@both
@pytest.mark.parametrize("coding", ["gzip", "identity, gzip", "br", "compress"])
async def test_compression_is_refused(kind: str, coding: str, tmp_path: Path) -> None:
    """No bomb is opened."""
    async with served(kind, tmp_path) as service:
        client = await service.connect()
        path = "/challenge-response/v1/newSession" if kind == "verifier" else "/api/v1/decisions"
        await client.send(request("POST", path, b"{}", Content_Encoding=coding, Connection="close"))
        assert (await client.answer()).status == 400


@both
async def test_no_compressed_body_is_inflated(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where nobody reads it: aiohttp would, before any handler is asked."""
    bomb = gzip.compress(bytes(8 << 20))
    seen = []

    async def measure(request: web.Request) -> web.Response:
        seen.append(len(await request.content.read()))
        return web.Response()

    async with served(kind, tmp_path) as service:
        replace_handler(service, "/health", measure, monkeypatch)
        client = await service.connect()
        head = request(
            "GET", "/health", Content_Encoding="gzip", Content_Length=str(len(bomb)), Connection="close"
        )
        await client.send(head + bomb)
        assert (await client.answer()).status == 200
    assert seen == [len(bomb)]


def replace_handler(service: Served, path: str, handler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have another handler at a resource of the real application."""
    route = next(
        route
        for route in service.app.router.routes()
        if route.method == "GET" and route.resource and route.resource.canonical == path
    )
    monkeypatch.setattr(route, "_handler", handler)


@both
async def test_a_client_that_reads_nothing_is_given_up(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large answer must not wait in our memory for ever."""

    async def large(_: web.Request) -> web.Response:
        return web.Response(body=bytes(64 << 20))

    async with served(kind, tmp_path, write_s=0.1, body_bytes_per_s=1 << 30) as service:
        before = cut("write")
        replace_handler(service, "/health", large, monkeypatch)
        client = await service.connect()
        await client.send(request("GET", "/health"))
        await until(lambda: cut("write") == before + 1)
        await until(lambda: len(service.front.connections) == 0)
        client.close()


@pytest.mark.parametrize(
    ("soft", "hard", "expected"), [(400, 1000, 744), (64, 64, 16), (1 << 20, 1 << 20, 1000), (-1, -1, 1000)]
)
async def test_there_are_no_more_connections_than_open_files(
    soft: int, hard: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process asks for as many as it may have; if they are few, strangers have half of them at most."""
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.append(both))
    config = ServiceConfig(connections=1000, stranger_connections=900)
    front = Front(config, per_address_per_minute=1, strangers_per_minute=1, monotonic=float)
    listener.fit_open_files(front)
    assert front.connections.limits.total == expected
    assert front.connections.limits.strangers == (900 if expected == 1000 else expected // 2)
    assert limits[-1][0] in (hard, 1256)


@both
async def test_where_files_run_out_strangers_make_room(kind: str, tmp_path: Path) -> None:
    """Accepting goes on, and nobody spins."""
    async with served(kind, tmp_path) as service:
        before = cut("files")
        held = await connect_many(service, 5, b"GET")
        await until(lambda: service.front.connections.strangers == 5)
        accepting = service.listener._acceptor._sockets[0]
        service.listener._acceptor._accept(Exhausted(accepting))
        assert cut("files") == before + 1
        assert (await service.get()).status in (200, 404)
        for client in held:
            client.close()


class Exhausted:
    """A socket of a process that may open no more files."""

    def __init__(self, real: socket.socket) -> None:
        self.fileno = real.fileno

    def accept(self) -> None:
        raise OSError(errno.EMFILE, "too many open files")


async def test_a_flood_makes_one_line_of_log(capsys: pytest.CaptureFixture[str]) -> None:
    """With the numbers, once in a while."""
    counted = refusals.Refusals()
    for _ in range(1000):
        counted.note("head")
    counted.note("head-too-large")
    counted.flush()
    counted.flush()
    logged = capsys.readouterr().out
    assert logged.count("refused or cut") == 1
    assert "head=1000" in logged
    assert "head_too_large=1" in logged


async def test_aiohttp_is_what_we_have_built_on() -> None:
    """What our protocol uses of aiohttp's own: another version must be looked at."""
    from aiohttp.web_protocol import RequestHandler

    used = {"_waiter", "_messages", "_request_count", "_current_request", "_upgraded"}
    slots = {slot for base in RequestHandler.__mro__ for slot in getattr(base, "__slots__", ())}
    assert used <= slots
    assert issubclass(protocol.FrontProtocol, RequestHandler)


async def test_few_requests_of_strangers_are_worked_on_at_once(tmp_path: Path) -> None:
    """The others wait for a moment, and those who prove who they are do not wait behind them."""
    async with served("verifier", tmp_path, stranger_requests=1) as service:
        service.front.places._wait_s = 0.05
        leave = await service.front.places.take()
        refused: Any = await service.get()
        assert (refused.status, refused.document["type"].partition("#")[2]) == (503, "service.busy")
        assert "Retry-After: 1" in refused.head
        assert (await service.get(**administrator(Home(tmp_path / "verifier")))).status == 200
        for nonsense in ("Bearer nonsense", "Touchstone-Node nonsense"):
            assert (await service.get(Authorization=nonsense)).status == 503
        leave()
        assert (await service.get()).status == 200
