"""
Our HTTP protocol: aiohttp's, with deadlines, a bound for heads, and errors that repeat nothing of what was sent.

aiohttp's own protocol has no deadline for a request's head, logs a traceback with the first hundred bytes of what it
could not parse, and sends them back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from verifier.service import problem
from verifier.service.connections import Connection
from verifier.service.front import Front, FrontedProtocol

MAX_HEAD: Final = 32 * 1024
"""Bytes of a request's line and headers."""
_MAX_AHEAD: Final = 128 * 1024
"""Bytes of further requests that a client may send while one is in progress."""
_MAX_LINE: Final = 8190
_MAX_HEADERS: Final = 100
_BUFFER: Final = 32 * 1024
"""Bytes of a body that wait to be read; a connection holds about twice as many at most."""
_LINGER_S: Final = 2.0
"""How long the rest of a refused body is read and thrown away, so that the client sees why."""
_TOO_MANY: Final = "Too many headers received"

_log = structlog.get_logger("service")

_Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class FrontProtocol(FrontedProtocol):
    """
    One connection.

    Args:
        server: The server.
        front: The limits of the process.
        connection: What the connection is counted as.
        options: Of aiohttp's protocol.
    """

    __slots__ = ("_bytes_ahead", "_front", "_head_bytes", "_head_timer", "_write_timer", "has_large_head")

    def __init__(self, server: web.Server, front: Front, connection: Connection, **options: Any) -> None:
        super().__init__(
            server,
            keepalive_timeout=front.config.idle_s,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_LINE,
            max_headers=_MAX_HEADERS,
            lingering_time=min(_LINGER_S, front.config.body_s),
            read_bufsize=_BUFFER,
            auto_decompress=False,
            **options,
        )
        self.connection = connection
        self.has_large_head = False
        self._front = front
        self._bytes_ahead = 0
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        assert self.transport is not None
        self.connection.abort = self.transport.abort
        self._begin_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol`."""
        self._front.connections.remove(self.connection)
        self._end_head()
        self._end_write()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        is_head = self._waiter is not None or not self._request_count
        if not is_head or self._messages or not data:
            self._receive_more(data)
            return
        heads = self._request_count
        self._head_bytes += len(data)
        super().data_received(data)
        if self._request_count != heads:
            self.has_large_head = self._head_bytes > MAX_HEAD
            self._end_head()
        elif self._head_bytes > MAX_HEAD:
            self._refuse("request.head-too-large", "head-too-large")
        elif self._head_timer is None and not self._upgraded:
            self._begin_head()

    def begin_request(self) -> None:
        """A handler has the request: what comes from now on is its body, or of the next request."""
        self._bytes_ahead = 0

    def _receive_more(self, data: bytes) -> None:
        request = self._current_request
        last = self._messages[-1][1] if self._messages else None if request is None else request.content
        if last is not None and last.is_eof():
            # A client that sends the next request already must not fill our memory behind the one in progress.
            self._bytes_ahead += len(data)
            if self._bytes_ahead > _MAX_AHEAD and self.transport is not None:
                self._front.refusals.note("head-too-large")
                self.transport.abort()
                return
        super().data_received(data)

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        config = self._front.config
        left = 0 if self.transport is None else self.transport.get_write_buffer_size()
        self._write_timer = self._loop.call_later(
            config.write_s + left / config.body_bytes_per_s, self._give_up_writing
        )

    def resume_writing(self) -> None:
        """It has read."""
        self._end_write()
        super().resume_writing()

    def log_exception(self, *_: Any, **__: Any) -> None:
        """Count what aiohttp logs with a traceback each time: clients can bring it about."""
        self._front.refusals.note("failed")

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What the client gets if its request could not be parsed, or if a handler failed: nothing that it has sent."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if status >= 500:
            _log.error("a request failed", exc_info=exc)
            answer = problem.response("verifier.internal", problem.INTERNAL)
        elif isinstance(exc, LineTooLong) or message == _TOO_MANY:
            self._front.refusals.note("head-too-large")
            answer = head_too_large()
        else:
            self._front.refusals.note("head-malformed")
            answer = problem.response("request.malformed", "the request is not HTTP/1.1 as RFC 9112 has it")
        answer.force_close()
        return answer

    def _begin_head(self) -> None:
        self._head_timer = self._loop.call_later(self._front.config.head_s, self._give_up_head)

    def _end_head(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _give_up_head(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self._refuse("request.too-slow", "head")
        else:
            self._front.refusals.note("head")
            self.force_close()

    def _give_up_writing(self) -> None:
        self._write_timer = None
        self._front.refusals.note("write")
        if self.transport is not None:
            self.transport.abort()

    def _refuse(self, code: str, reason: str) -> None:
        """Answer half a head, and end the connection."""
        self._front.refusals.note(reason)
        answer = problem.response(code, "the head of the request was not taken")
        body = answer.body
        assert isinstance(body, bytes)
        head = (
            f"HTTP/1.1 {answer.status} {answer.reason}\r\nContent-Type: {problem.MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        if self.transport is not None:
            self.transport.write(head.encode() + body)
        self.force_close()


def head_too_large() -> web.Response:
    """What the client gets whose head is too large."""
    return problem.response(
        "request.head-too-large",
        f"a line may have {_MAX_LINE} bytes, there may be {_MAX_HEADERS} headers, and {MAX_HEAD} bytes of all",
    )


class FrontServer(web.Server):
    """
    Makes the protocols of connections.

    Args:
        handle: The application's handler.
        front: The limits of the process.
        request_factory: Makes requests of what was parsed.
        options: Of aiohttp's protocol.
    """

    def __init__(self, handle: Any, front: Front, *, request_factory: Any, **options: Any) -> None:
        super().__init__(self._guarded(handle), request_factory=request_factory, handler_cancellation=True)
        self.front = front
        self._options = options

    def make(self, connection: Connection) -> FrontProtocol:
        """The protocol of a new connection."""
        return FrontProtocol(self, self.front, connection, loop=self._loop, **self._options)

    def _guarded(self, handle: _Handle) -> _Handle:
        async def guarded(request: web.BaseRequest) -> web.StreamResponse:
            protocol = request.protocol
            assert isinstance(protocol, FrontProtocol)
            connections, connection = self.front.connections, protocol.connection
            connections.begin(connection)
            protocol.begin_request()
            try:
                if protocol.has_large_head and _size_of_head(request) > MAX_HEAD:
                    self.front.refusals.note("head-too-large")
                    answer = head_too_large()
                    answer.force_close()
                    return answer
                return await handle(request)
            except web.HTTPException as error:
                # What aiohttp refuses before any middleware: an unknown Expect, which it would repeat.
                answer = problem.from_aiohttp(error)
                answer.force_close()
                return answer
            finally:
                connections.end(connection)

        return guarded


def _size_of_head(request: web.BaseRequest) -> int:
    return len(request.raw_path) + sum(len(name) + len(value) + 4 for name, value in request.raw_headers)


class FrontRunner(web.AppRunner):
    """
    Runs an application with our protocol.

    Args:
        app: The application.
        front: The limits of the process.
        shutdown_timeout: Seconds that requests in flight have at the end.
    """

    def __init__(self, app: web.Application, front: Front, *, shutdown_timeout: float) -> None:
        super().__init__(app, access_log=None, handler_cancellation=True, shutdown_timeout=shutdown_timeout)
        self._front = front

    async def _make_server(self) -> FrontServer:
        made = await super()._make_server()
        return FrontServer(
            made.request_handler, self._front, request_factory=made.request_factory, access_log=None
        )
