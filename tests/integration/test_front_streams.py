"""What the front does with engines and clients that keep to HTTP in unusual ways, and with very many streams."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from attester.front import process
from fixtures.fleet import free_port
from fixtures.fronted import Fronted, Identity, RecordingEngine, keep_list, make_home
from tests.conftest import FakeClock

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ASK = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def before(
    engine: Callable[[], asyncio.Protocol], path: Path, clock: FakeClock, **sections: Any
) -> AsyncIterator[Fronted]:
    """A front before this engine."""
    port, router = free_port(), Identity(path, "router-1")
    home = make_home(path, f"http://127.0.0.1:{port}", **sections)
    keep_list(home, [router], clock.seconds)
    server = await asyncio.get_running_loop().create_server(engine, "127.0.0.1", port)
    async with process.serving(home, home.config(), now=lambda: float(clock.seconds)) as (
        front,
        serving_port,
    ):
        yield Fronted(home, front, serving_port, router, router, RecordingEngine())
    server.close()


async def connected(node: Fronted) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", node.port, ssl=node.router.context)


class Busy(asyncio.Protocol):
    """Streams a few tokens, and closes a connection when HTTP allows it: with an answer, after it, or while idle."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._got = b""
        self._left = chance.randint(1, 6)
        self._ends = chance.choice(["says so", "closes", "resets", "is idle"])
        self._is_busy = False
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, end, body = self._got.partition(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0] or b"0")
        if self._is_busy or not end or len(body) < length:
            return
        self._got, self._is_busy, self._left = body[length:], True, self._left - 1
        close = b"Connection: close\r\n" if not self._left and self._ends == "says so" else b""
        self._transport.write(b"HTTP/1.1 200 OK\r\n" + close + b"Transfer-Encoding: chunked\r\n\r\n")
        self._token(self._chance.randint(1, 6))

    def _token(self, left: int) -> None:
        end = b"0\r\n\r\n" if left == 1 else b""
        self._transport.write(b"8\r\ndata: %d\n\r\n" % left + end)
        if left > 1:
            self._loop.call_later(self._chance.choice([0, 0.001]), self._token, left - 1)
            return
        self._is_busy = False
        if self._ends == "is idle":
            self._loop.call_later(self._chance.random() * 0.002, self._close_if_idle)
        elif not self._left:
            (self._transport.abort if self._ends == "resets" else self._transport.close)()

    def _close_if_idle(self) -> None:
        if not self._is_busy and not self._got:
            self._transport.close()


async def whole_answer(reader: asyncio.StreamReader) -> bytes:
    """To its end, which a length tells if it came to the front at once."""
    head = await reader.readuntil(b"\r\n\r\n")
    if b"Transfer-Encoding" in head:
        return head + await reader.readuntil(b"\n\r\n0\r\n\r\n")
    return head + await reader.readexactly(int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]))


async def ask_often(node: Fronted, count: int, chance: random.Random, bad: list[bytes]) -> None:
    """Ask on one connection, now and then with a body in two parts."""
    reader, writer = await connected(node)
    for _ in range(count):
        head, body = ASK.split(b"{}")[0], b"{}"
        writer.write(head + body[:1])
        if chance.random() < 0.3:
            await asyncio.sleep(0.001)
        writer.write(body[1:])
        try:
            answer = await asyncio.wait_for(whole_answer(reader), 10)
        except asyncio.IncompleteReadError as error:
            bad.append(error.partial or b"nothing")
            break
        if not answer.startswith(b"HTTP/1.1 200 ") or b"data: 1\n" not in answer:
            bad.append(answer)
    writer.transport.abort()


async def test_no_stream_is_cut_by_an_engine_that_closes_its_connections(
    tmp_path: Path, clock: FakeClock
) -> None:
    """Neither with the end of an answer, nor while the next request is on its way."""
    chance, bad = random.Random(7), list[bytes]()  # no secret
    async with before(lambda: Busy(chance), tmp_path, clock) as node:
        with capture_logs() as logs:
            await asyncio.gather(*(ask_often(node, 40, chance, bad) for _ in range(8)))
    assert bad == []
    assert logs == []


class Scripted(asyncio.Protocol):
    """Answers each read with the next bytes of the script, and closes where that has none."""

    def __init__(self, script: list[bytes | None]) -> None:
        self._script = script
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        while self._script:
            part = self._script.pop(0)
            if part is None:
                self._transport.close()
            else:
                self._transport.write(part)
            if self._script[:1] != [None]:
                break


async def answered(path: Path, clock: FakeClock, script: list[bytes | None], request: bytes = ASK) -> bytes:
    """What a client gets of an engine that answers by this script."""
    async with before(lambda: Scripted(script), path, clock) as node:
        return await node.raw(request)


async def test_an_answer_that_ends_with_its_connection_is_whole(tmp_path: Path, clock: FakeClock) -> None:
    """It has neither a length nor chunks; the client gets chunks with an end."""
    answer = await answered(tmp_path, clock, [b"HTTP/1.1 200 OK\r\n\r\nabc", None])
    assert answer.endswith(b"3\r\nabc\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "end", [b"Content-Length: 9\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"]
)
async def test_an_answer_without_its_end_does_not_get_one(
    tmp_path: Path, clock: FakeClock, end: bytes
) -> None:
    """The client sees that it was cut."""
    script: list[bytes | None] = [b"HTTP/1.1 200 OK\r\n" + end, None]
    async with before(lambda: Scripted(script), tmp_path, clock) as node:
        reader, writer = await connected(node)
        writer.write(ASK)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert answer == b"" or not answer.endswith((b"0\r\n\r\n", b"abcabcabc"))


async def test_what_announces_an_answer_is_none(tmp_path: Path, clock: FakeClock) -> None:
    """100 and 103 stay here."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    answer = await answered(tmp_path, clock, [b"HTTP/1.1 100 Continue\r\n\r\n" + hints + OK])
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "answer",
    [
        OK + OK,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_an_engine_that_does_not_speak_http_is_502(
    tmp_path: Path, clock: FakeClock, answer: bytes
) -> None:
    """Two answers to one request, another protocol, or noise: nobody gets anything of it."""
    assert (await answered(tmp_path, clock, [answer])).startswith(b"HTTP/1.1 502 ")


async def test_what_an_engine_says_unasked_answers_nobody(tmp_path: Path, clock: FakeClock) -> None:
    """It comes after the end of one answer, and would be taken for the next one."""
    evil = OK.replace(b"ok", b"no")

    class Talking(Scripted):
        def data_received(self, data: bytes) -> None:
            self._transport.write(OK)
            asyncio.get_running_loop().call_later(0.05, self._transport.write, evil)

    async with before(lambda: Talking([]), tmp_path, clock) as node:
        for _ in range(2):
            assert (await node.raw(ASK)).endswith(b"\r\n\r\nok")


async def test_requests_sent_ahead_are_answered_in_their_order(tmp_path: Path, clock: FakeClock) -> None:
    """Each after the one before it, and the last one ends the connection."""
    script: list[bytes | None] = [OK.replace(b"ok", b"%02d" % number) for number in range(3)]
    last = ASK.replace(b"Host: x", b"Host: x\r\nConnection: close")
    async with before(lambda: Scripted(script), tmp_path, clock) as node:
        reader, writer = await connected(node)
        writer.write(ASK + ASK + last)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert [part[:2] for part in answer.split(b"\r\n\r\n")[1:]] == [b"00", b"01", b"02"]


async def test_bytes_piled_up_behind_a_request_end_the_connection(tmp_path: Path, clock: FakeClock) -> None:
    """The body of a second request would fill the memory while the first one lasts."""
    async with before(lambda: Scripted([b"HTTP/1.1 200 OK\r\n\r\n"]), tmp_path, clock) as node:
        reader, writer = await connected(node)
        writer.write(ASK)
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.write(ASK.replace(b"2\r\n", b"9000000\r\n"))
        with contextlib.suppress(OSError):
            for _ in range(100):
                writer.write(b"x" * 100_000)
                await writer.drain()
            await reader.read()
        assert node.front.registry.refused["ahead"] == 1
        writer.transport.abort()


async def test_a_client_of_http_1_0_gets_its_answer_and_the_end(tmp_path: Path, clock: FakeClock) -> None:
    """It knows no chunks."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    async with before(lambda: Scripted([chunked, b"0\r\n\r\n"]), tmp_path, clock) as node:
        reader, writer = await connected(node)
        writer.write(ASK.replace(b"HTTP/1.1", b"HTTP/1.0"))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert b"Connection: close\r\n" in head
        assert b"Transfer-Encoding" not in head
        assert await asyncio.wait_for(reader.readexactly(3), 10) == b"abc"
        writer.transport.abort()


async def test_an_engine_may_answer_before_the_body_has_come(tmp_path: Path, clock: FakeClock) -> None:
    """What still comes of the body is not taken for a request."""
    script: list[bytes | None] = [OK]
    async with before(lambda: Scripted(script), tmp_path, clock) as node:
        reader, writer = await connected(node)
        writer.write(ASK.replace(b"2\r\n\r\n{}", b"%d\r\n\r\n{" % (len(ASK) + 1)))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert b"Connection: close\r\n" in head
        writer.write(ASK)
        assert await asyncio.wait_for(reader.read(), 10) == b"ok"
        writer.transport.abort()


async def test_a_body_that_stops_to_be_http_is_no_whole_one(tmp_path: Path, clock: FakeClock) -> None:
    """The client is told, and the engine's connection ends without the end of a body."""
    got = bytearray()

    class Listening(Scripted):
        def data_received(self, data: bytes) -> None:
            got.extend(data)

    async with before(lambda: Listening([]), tmp_path, clock) as node:
        reader, writer = await connected(node)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
        )
        async with asyncio.timeout(10):
            while b"{}" not in got:  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.01)
        writer.write(b"nonsense\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 400 ")
        writer.transport.abort()
    assert b"0\r\n\r\n" not in got


@pytest.mark.parametrize("length", [0, 1])
async def test_a_connection_that_waits_is_closed(tmp_path: Path, clock: FakeClock, length: int) -> None:
    """After `idle_s` without a request, although one was served before; or after `head_s` without any."""
    async with before(lambda: Scripted([OK]), tmp_path, clock, front={"idle_s": 0.1, "head_s": 0.2}) as node:
        reader, writer = await connected(node)
        writer.write(ASK * length)
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"ok" * length)
        writer.close()


async def test_a_connection_that_has_served_waits_for_longer(tmp_path: Path, clock: FakeClock) -> None:
    """`head_s` is for the first request and for heads, `idle_s` for the next request."""
    script: list[bytes | None] = [OK, OK]
    async with before(lambda: Scripted(script), tmp_path, clock, front={"head_s": 0.2}) as node:
        reader, writer = await connected(node)
        for _ in range(2):
            writer.write(ASK)
            assert (await asyncio.wait_for(reader.readuntil(b"ok"), 10)).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.3)
        writer.close()


async def test_an_answer_in_progress_comes_to_its_end_when_the_front_ends(
    tmp_path: Path, clock: FakeClock
) -> None:
    """It has ten seconds; who waits for nothing goes at once."""
    script: list[bytes | None] = [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab"]
    engines: list[Scripted] = []

    def make() -> Scripted:
        engines.append(Scripted(script))
        return engines[-1]

    async with before(make, tmp_path, clock) as node:
        reader, writer = await connected(node)
        idle, other = await connected(node)
        writer.write(ASK)
        await asyncio.wait_for(reader.readuntil(b"ab"), 10)
        ending = asyncio.create_task(node.front.registry.end_all(10))
        assert await asyncio.wait_for(idle.read(), 10) == b""
        engines[0]._transport.write(b"cd")
        assert await asyncio.wait_for(reader.read(), 10) == b"cd"
        await asyncio.wait_for(ending, 10)
        writer.close()
        other.close()
