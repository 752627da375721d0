"""
Connections to the engine, kept between requests.

aiohttp's client does more for each request than all of the rest here (redirects, cookies, proxies, tracing, a task
that waits), so its parser is used without it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Final, Protocol, cast
from urllib.parse import urlsplit

import aiohttp
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpResponseParser, RawResponseMessage

IDLE_S: Final = 4.0
"""Connections are kept for less time than engines keep theirs: uvicorn and llama.cpp, 5 s."""
_CONNECT_S: Final = 5.0
_BUFFER: Final = 64 * 1024
_MAX_LINE: Final = 8190
_MAX_HEADERS: Final = 128


class Receiver(Protocol):
    """Who has asked."""

    def received(self, head: RawResponseMessage | None, part: bytes, *, is_over: bool) -> None:
        """A part of the answer has come; *head* with the first one."""

    def failed(self, error: Exception) -> None:
        """The connection has ended, and the answer with it."""

    def hold_request(self, *, is_held: bool) -> None:
        """The engine reads more slowly than we write, or not any more."""


class EngineConnection(asyncio.Protocol):
    """
    One connection, with one request in progress at most.

    Args:
        answer_s: Seconds in which the engine must send something.
    """

    transport: asyncio.Transport

    def __init__(self, answer_s: float) -> None:
        self.is_open = True
        self.is_full = False
        """Whether the engine reads more slowly than we write."""
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._answer_s = answer_s
        self._parser = HttpResponseParser(
            # Of its protocol it wants no more than that reading stops and goes on.
            cast("BaseProtocol", self), self._loop, _BUFFER, read_until_eof=True, auto_decompress=False,
            max_line_size=_MAX_LINE, max_field_size=_MAX_LINE, max_headers=_MAX_HEADERS,
        )  # fmt: skip
        self._receiver: Receiver | None = None
        self._content: StreamReader | None = None
        self._must_close = False
        self._is_held = False
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, receiver: Receiver, data: bytes) -> None:
        """Send a request, or the begin of one."""
        self._receiver, self._content = receiver, None
        self.write(data)
        if self._timer is None:
            self._timer = self._loop.call_later(self._answer_s, self._look)

    def write(self, data: bytes) -> None:
        """Send more of it."""
        self._heard = self._loop.time()
        self.transport.write(data)

    def release(self) -> bool:
        """The answer has come to its end; whether the connection can carry another request."""
        self._receiver = self._content = None
        if self._is_held:
            self.hold(is_held=False)
        return self.is_open and not self._must_close and not self.transport.is_closing()

    def abort(self) -> None:
        """End it at once, and so the engine's work."""
        self._receiver = None
        self.is_open = False
        self.transport.abort()

    def hold(self, *, is_held: bool) -> None:
        """Read no more for now, or again."""
        self._is_held = is_held
        self._heard = self._loop.time()
        if is_held:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    # The parser wants to stop who reads too little; here all is taken after each call of it.

    def pause_reading(self) -> None:
        """See `aiohttp.StreamReader`."""

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002  # aiohttp's signature
        """See `aiohttp.StreamReader`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.is_full = True
        if self._receiver is not None:
            self._receiver.hold_request(is_held=True)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.is_full = False
        if self._receiver is not None:
            self._receiver.hold_request(is_held=False)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        receiver = self._receiver
        if receiver is None:
            # Nobody has asked.
            self.abort()
            return
        self._heard = self._loop.time()
        head = None
        try:
            messages, is_upgrade, _ = self._parser.feed_data(data)
            for message, content in messages:
                # 100 and 103 announce the answer.
                if 100 <= message.code < 200 and not is_upgrade:
                    continue
                if self._content is not None or is_upgrade:
                    raise aiohttp.ClientPayloadError("more than one answer")
                head, self._content, self._must_close = message, content, message.should_close
        except (HttpProcessingError, aiohttp.ClientError) as error:
            self._fail(error)
            return
        if self._content is not None:
            part = self._content.read_nowait()
            receiver.received(head, part, is_over=self._content.is_eof())

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return
        if self._content is not None and exc is None:
            try:
                # The end of the connection may be that of the answer.
                self._parser.feed_eof()
            except HttpProcessingError as error:
                exc = error
            else:
                receiver.received(None, b"", is_over=True)
                return
        receiver.failed(exc or aiohttp.ServerDisconnectedError())

    def _look(self) -> None:
        self._timer = None
        if self._receiver is None:
            return
        left = self._answer_s if self._is_held else self._heard + self._answer_s - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._fail(TimeoutError())

    def _fail(self, error: Exception) -> None:
        receiver = self._receiver
        self.abort()
        if receiver is not None:
            receiver.failed(error)


class EnginePool:
    """
    Connections to one engine.

    Args:
        url: Its base URL.
        answer_s: Seconds in which it must send something.
    """

    def __init__(self, url: str, answer_s: float) -> None:
        parts = urlsplit(url)
        self.authority = parts.netloc
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._answer_s = answer_s
        self._loop = asyncio.get_running_loop()
        self._idle: deque[EngineConnection] = deque()

    def close(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            self._idle.pop().abort()

    def take(self) -> EngineConnection | None:
        """A kept connection, if there is one."""
        # The last one used first: the others grow old and are closed.
        while self._idle:
            connection = self._idle.pop()
            if self._loop.time() - connection.idle_since < IDLE_S and connection.release():
                return connection
            connection.abort()
        return None

    def give_back(self, connection: EngineConnection, *, is_sent: bool) -> None:
        """The answer was read to its end, and perhaps the request was not *sent* to its own."""
        if not connection.release() or not is_sent:
            connection.abort()
            return
        now = connection.idle_since = self._loop.time()
        self._idle.append(connection)
        while now - self._idle[0].idle_since >= IDLE_S:
            self._idle.popleft().abort()

    async def connect(self) -> EngineConnection:
        """
        A new connection.

        Raises:
            OSError, TimeoutError: there is none.
        """
        async with asyncio.timeout(_CONNECT_S):
            _, connection = await self._loop.create_connection(
                lambda: EngineConnection(self._answer_s), self._host, self._port, ssl=self._tls
            )
        return connection
