"""
The front's HTTP: aiohttp's parser in a protocol of the front's own, with limits of time and size.

Nothing here waits: what has come is parsed and passed on in the same call.  A task for each request, as aiohttp's
server has one, costs more than all the rest.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Final, Protocol, cast

import msgspec
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage

from attester.front.listener import Registry
from attester.front_config import FrontSection

MAX_HEAD: Final = 32 * 1024
"""Bytes of a request's line and headers."""
_MAX_LINE: Final = 8190
_MAX_HEADERS: Final = 64
_MAX_AHEAD: Final = 8
"""Further requests that a client may send while one is in progress."""
_MAX_AHEAD_BYTES: Final = 64 * 1024
_BUFFER: Final = 64 * 1024
_LINGER_S: Final = 2.0
_TOO_MANY: Final = "Too many headers received"
_REASONS: Final = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 408: "Request Timeout", 413: "Content Too Large",
    431: "Request Header Fields Too Large", 502: "Bad Gateway", 504: "Gateway Timeout",
}  # fmt: skip


class Answerer(Protocol):
    """A request in progress, as its connection sees it."""

    def begin(self) -> None:
        """Answer it."""

    def body_received(self) -> None:
        """More of its body may have come."""

    def refuse(self, status: int, code: str, message: str) -> None:
        """End it with this error, or cut the connection if an answer has begun."""

    def hold_answer(self, *, is_held: bool) -> None:
        """The client reads more slowly than we write, or not any more."""

    def client_lost(self) -> None:
        """Nobody waits for the answer."""


class Answers(Protocol):
    """Makes what answers a request."""

    def take(self, client: FrontProtocol, message: RawRequestMessage, body: StreamReader) -> Answerer:
        """Take a request that came over *client*; its body may still be coming."""


def refusal(
    status: int, code: str, message: str, *, kind: str = "invalid_request_error", is_last: bool
) -> bytes:
    """An error as OpenAI's API has it: the whole answer."""
    return whole_answer(status, refusal_body(code, message, kind), is_last=is_last)


def refusal_body(code: str, message: str, kind: str = "invalid_request_error") -> bytes:
    """The body of an error."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


def whole_answer(status: int, body: bytes, *, is_last: bool, content_type: str = "application/json") -> bytes:
    """An answer of the front's own, head and body."""
    close = "Connection: close\r\n" if is_last else ""
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nServer: touchstone\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n{close}\r\n"
    ).encode() + body


class FrontProtocol(asyncio.Protocol):
    """
    One connection.

    Args:
        answers: Answers requests.
        registry: Who is let in.
        config: The limits.
    """

    transport: asyncio.Transport

    def __init__(self, answers: Answers, registry: Registry, config: FrontSection) -> None:
        self.name = ""
        self.certificate = b""
        self.is_full = False
        """Whether the client reads more slowly than we write."""
        self._answers = answers
        self._registry = registry
        self._config = config
        self.loop = asyncio.get_running_loop()
        self._parser = HttpRequestParser(
            # Of its protocol it wants no more than that reading stops and goes on.
            cast("BaseProtocol", self), self.loop, _BUFFER,
            max_line_size=_MAX_LINE, max_field_size=_MAX_LINE, max_headers=_MAX_HEADERS, auto_decompress=False,
        )  # fmt: skip
        self._current: Answerer | None = None
        self._body: StreamReader | None = None
        """That of the current request; of the last one, if the connection lingers."""
        self._ahead: deque[tuple[RawRequestMessage, StreamReader]] = deque()
        self._ahead_bytes = 0
        self._head_bytes = 0
        self._is_last = False
        """No other request is answered."""
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress."""
        return self._current is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = cast("asyncio.Transport", transport)
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        self.certificate = tls.getpeercert(binary_form=True) or b""
        name = self._registry.admit(self.certificate)
        if name is None:
            self.abort()
            return
        self.name = name
        self._registry.add(self)
        self._wait(self._config.head_s)

    def connection_lost(self, _: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._registry.remove(self)
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        current, self._current = self._current, None
        self._is_last = True
        if current is not None:
            current.client_lost()

    def abort(self) -> None:
        """End the connection at once."""
        self.transport.abort()

    def close(self) -> None:
        """End the connection when nothing is in progress on it."""
        self._is_last = True
        if self._current is None:
            self.transport.close()

    # The parser wants to stop who reads too little; here all is taken after each call of it.

    def pause_reading(self) -> None:
        """See `aiohttp.StreamReader`."""

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002  # aiohttp's signature
        """See `aiohttp.StreamReader`."""

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if not self.name or self.transport.is_closing():
            return
        current, body = self._current, self._body
        is_ahead = current is not None and (body is None or body.is_eof())
        try:
            messages, is_upgrade, _ = self._parser.feed_data(data)
        except HttpProcessingError as error:
            self._refuse_malformed(error)
            return
        if self._is_last and current is None:
            self._linger()
            return
        self._ahead.extend(messages)
        if is_ahead:
            self._ahead_bytes += len(data)
        if len(self._ahead) > _MAX_AHEAD or self._ahead_bytes > _MAX_AHEAD_BYTES:
            # To stop reading instead would hide that the client goes away.
            self._registry.refused["ahead"] += 1
            self.abort()
        elif current is not None:
            current.body_received()
        elif messages:
            self._next(is_last=is_upgrade)
        else:
            self._count_head(len(data))

    def done(self, *, is_last: bool) -> None:
        """The current request was answered; its connection ends if it is the *last* one."""
        self._current = None
        # Perhaps the engine did not read all of the request.
        self.transport.resume_reading()
        if is_last or self._is_last:
            self._is_last = True
            self._wait(min(_LINGER_S, self._config.body_s))
            self._linger()
        elif self._ahead:
            self._next()
        else:
            self._wait(self._config.idle_s)

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        self.is_full = True
        left = self.transport.get_write_buffer_size()
        wait_s = self._config.body_s + left / self._config.body_bytes_per_s
        self._write_timer = self.loop.call_later(wait_s, self._give_up_writing)
        if self._current is not None:
            self._current.hold_answer(is_held=True)

    def resume_writing(self) -> None:
        """It has read."""
        self.is_full = False
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        if self._current is not None:
            self._current.hold_answer(is_held=False)

    def _next(self, *, is_last: bool = False) -> None:
        message, self._body = self._ahead.popleft()
        self._head_bytes = self._ahead_bytes = 0
        # Whatever follows an upgrade is not HTTP.
        self._is_last = self._is_last or is_last or message.upgrade
        self._current = self._answers.take(self, message, self._body)
        self._current.begin()

    def _linger(self) -> None:
        """Read what still comes of the last request, so that its client can read the answer."""
        if self._body is not None and not self._body.is_eof():
            self._body.read_nowait()
        else:
            self.transport.close()

    def _count_head(self, size: int) -> None:
        """Limits of a head that has not come whole."""
        if not self._head_bytes:
            self._wait(self._config.head_s)
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD:
            self._refuse_head(431, "head_too_large", "the head of the request is too large")

    def _refuse_malformed(self, error: HttpProcessingError) -> None:
        """Nothing that the client has sent is in the answer."""
        self._registry.refused["malformed"] += 1
        if isinstance(error, LineTooLong) or error.message == _TOO_MANY:
            given = (431, "head_too_large", "the head of the request is too large")
        else:
            given = (400, "malformed_request", "the request is not HTTP/1.1 as RFC 9112 has it")
        # The rest cannot be read.
        self._body = None
        if self._current is not None:
            self._current.refuse(*given)
        elif not self._is_last:
            self.transport.write(refusal(*given, is_last=True))
        self.transport.close()

    def _refuse_head(self, status: int, code: str, message: str) -> None:
        """Answer half a head, and end the connection."""
        self._registry.refused["head"] += 1
        self.transport.write(refusal(status, code, message, is_last=True))
        self.transport.close()

    def _wait(self, seconds: float) -> None:
        """Let the connection wait for so long, for a head or for the end of the last request."""
        self._deadline = self.loop.time() + seconds
        # A timer that runs already looks at the deadline when it ends: most requests need no new one.
        if self._timer is not None and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self.loop.call_at(self._deadline, self._look_at_deadline)

    def _look_at_deadline(self) -> None:
        self._timer = None
        if self._current is not None or self.transport.is_closing():
            return
        if self.loop.time() < self._deadline:
            self._timer = self.loop.call_at(self._deadline, self._look_at_deadline)
        elif self._head_bytes:
            self._refuse_head(408, "too_slow", "the head of the request came too slowly")
        else:
            # Routers open connections ahead of requests.
            self.transport.close()

    def _give_up_writing(self) -> None:
        self._write_timer = None
        self._registry.refused["reader"] += 1
        self.abort()
