"""What nodes and clients say, in the router's log: nothing that moves a terminal, and nothing secret."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fixtures.streaming import CONTROL, Behaviour
from tests.integration.gateway import (
    CHAT,
    CHATS,
    STREAM,
    VECTORS,
    WORK,
    Fleet,
    RouterProcess,
    Running,
    ask,
    opened,
)

SECRET = b"tell me a story"
MARK = b"\x1b[31mEVIL\x1b[0m"
EVIL = {
    "status": b"HTTP/1.1 500 " + MARK + b"\r\nContent-Length: 0\r\n\r\n",
    "header": b"HTTP/1.1 200 OK\r\nX-Evil: " + MARK + b"\rlevel=info\r\nContent-Length: 2\r\n\r\n{}",
    "header name": b"HTTP/1.1 200 OK\r\n" + MARK + b": x\r\nContent-Length: 2\r\n\r\n{}",
    "cookie": b"HTTP/1.1 200 OK\r\nSet-Cookie: " + MARK + b"=1; Path=/\r\nContent-Length: 2\r\n\r\n{}",
    "type": b"HTTP/1.1 200 OK\r\nContent-Type: " + MARK + b"\r\nContent-Length: 2\r\n\r\n{}",
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: " + MARK + b"\r\n\r\n{}",
    "encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: " + MARK + b"\r\nContent-Length: 2\r\n\r\n{}",
    "chunk size": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + MARK
    + b"\r\n",
    "event": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: " + MARK + b"\n\n",
    "error event": b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {"error": "'
    + MARK
    + b'"}\n\n',
    "location": b"HTTP/1.1 302 Found\r\nLocation: https://" + MARK + b"/\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": MARK + b"\r\n\r\n",
}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path, Running()) as fleet:
        yield fleet


@pytest.mark.parametrize("option", [(), ("--log-json",)], ids=["for people", "JSON"])
async def test_nothing_that_a_node_sends_reaches_the_log_unescaped(
    fleet: Fleet, tmp_path: Path, option: tuple[str, ...]
) -> None:
    """Neither from heads nor from bodies nor from events, and of the requests not a word."""
    said = list(EVIL.values())

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said[0])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    node = await fleet.engine("b", Behaviour("control", token_s=0.01))
    await fleet.raw("a", talk)
    router = RouterProcess(tmp_path / "router", fleet.verifier, gateway={"attempts": 1, "stall_s": 0.5})
    await router.start(*option)
    try:
        for _ in range(len(EVIL)):
            for body, path in ((STREAM, CHATS), (CHAT, CHATS), (WORK, VECTORS)):
                await ask(fleet.http, router.url, body, path)
            said.append(said.pop(0))
    finally:
        await router.end(signal.SIGTERM)
    log = router.log.read_bytes()
    failed = b'"event": "an attempt failed"' if option else b"an attempt failed"
    assert log.count(failed) > len(EVIL)
    assert node.engine.requests > 0
    assert [
        word for word in (b"EVIL", b"\x1b", b"\r", CONTROL.encode(), SECRET, b"secret prompt") if word in log
    ] == []
    assert all(32 <= byte < 127 or byte == 10 for byte in log)


async def test_nothing_that_a_client_sends_reaches_the_log_unescaped(fleet: Fleet, tmp_path: Path) -> None:
    """Whatever it calls its model, its workload, its key or its path; and no key at all."""
    await fleet.engine("a")
    router = RouterProcess(tmp_path / "router", fleet.verifier)
    await router.start()
    host, port = router.listen.split(":")
    requests = [
        b"GET /v1/" + MARK + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/%1b%5b31mEVIL HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api/v1/decisions/%1b%5b31mEVIL HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nX: " + MARK + b"\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-secret\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: " + MARK + b"\r\n\r\n{}",
        MARK + b"\r\n\r\n",
    ]
    try:
        for request in requests:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(request)
            writer.write_eof()
            async with asyncio.timeout(5):
                await reader.read(-1)
            writer.close()
        model = {**CHAT, "model": MARK.decode()}
        await ask(fleet.http, router.url, model, **{"Idempotency-Key": "k", "X-Touchstone-Workload": "x"})
    finally:
        await router.end(signal.SIGTERM)
    log = router.log.read_bytes()
    assert [byte for byte in log if not (32 <= byte < 127 or byte == 10)] == []
    assert b"sk-secret" not in log
