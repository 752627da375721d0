"""
The load: requests over kept connections, as cheap as they can be, so that little of it is measured.

    python -m bench.gateway_peers.load

Reads one job a line and answers each with one line, both JSON.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import msgspec
import uvloop

from bench.gateway_peers import answers


class Job(msgspec.Struct):
    """What to ask, how often, and how many at a time."""

    url: str
    body: str
    key: str
    count: int
    concurrency: int = 1
    warm: int = 0
    """Requests before, on the same connections, that are not counted."""


class Report(msgspec.Struct):
    """How it went; seconds."""

    latencies: list[float]
    first: list[float]
    """Until the first token of an answer's text; a role alone is none."""
    seconds: float
    status: int
    """200, or the first other that came: then nothing else counts."""


class RefusedError(Exception):
    """An answer that is not what was asked for."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._got = bytearray()
        self._length = -1
        """Of head and body; -1 before the head, -2 where it is in chunks."""
        self._head = 0
        self._begun = 0.0
        self.first = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell those that wait."""
        if not self._done.done():
            self._done.set_exception(exc or ConnectionResetError("closed before the whole answer"))

    def data_received(self, data: bytes) -> None:
        """Take it in, and look whether that was all."""
        got = self._got
        got += data
        if self._length == -1:
            end = got.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head = end + 4
            head = bytes(got[: self._head]).lower()
            place = head.find(b"content-length:")
            self._length = -2 if place < 0 else self._head + int(head[place + 15 :].split(b"\r\n", 1)[0])
        if not self.first and got.find(answers.FIRST_TOKEN, self._head) >= 0:
            self.first = perf_counter() - self._begun
        if len(got) == self._length or (self._length == -2 and got.endswith(b"\r\n0\r\n\r\n")):
            self._done.set_result(None)

    async def ask(self, request: bytes) -> bytes:
        """A whole answer, head and body."""
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._got, self._length, self.first = bytearray(), -1, 0.0
        self._begun = perf_counter()
        self._transport.write(request)
        await self._done
        return bytes(self._got)

    def close(self) -> None:
        """End it."""
        if not self._done.done():
            self._done.cancel()
        if self._transport is not None:
            self._transport.abort()


async def run(job: Job) -> Report:
    """Do a job."""
    parts = urlsplit(job.url)
    host, port = parts.hostname or "", parts.port or 0
    streamed = '"stream":true' in job.body
    request = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {job.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(job.body)}\r\n\r\n{job.body}"
    ).encode()
    context = None
    if parts.scheme == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    report = Report([], [], 0.0, 200)
    loop = asyncio.get_running_loop()
    left = 0

    async def once(connection: Connection) -> None:
        start = perf_counter()
        answer = await connection.ask(request)
        report.latencies.append(perf_counter() - start)
        report.first.append(connection.first)
        status = int(answer[9:12])
        if status != 200 or (b"[DONE]" if streamed else b'"choices"') not in answer:
            raise RefusedError(status)

    async def repeat(connection: Connection) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await once(connection)

    connections: list[Connection] = []
    try:
        for _ in range(job.concurrency):
            _, connection = await loop.create_connection(Connection, host, port, ssl=context)
            connections.append(connection)
        left = job.warm
        await asyncio.gather(*(repeat(connection) for connection in connections))
        report.latencies.clear()
        report.first.clear()
        left = job.count
        start = perf_counter()
        await asyncio.gather(*(repeat(connection) for connection in connections))
        report.seconds = perf_counter() - start
    except RefusedError as error:
        report.status = error.status if error.status != 200 else 0
    except OSError:
        report.status = 0
    finally:
        for connection in connections:
            connection.close()
    return report


def main() -> None:
    """Job by job, until there are no more."""
    decoder = msgspec.json.Decoder(Job)
    for line in sys.stdin.buffer:
        report = uvloop.run(run(decoder.decode(line)))
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
