"""
The front's HTTP: aiohttp's protocol with a deadline and a bound for heads, and errors in OpenAI's form.

aiohttp's own has no deadline for the head of a request, and answers what it cannot parse with a part of it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from attester.front.listener import Registry
from attester.front_config import FrontSection

MAX_HEAD: Final = 32 * 1024
"""Bytes of a request's line and headers."""
_MAX_LINE: Final = 8190
_MAX_HEADERS: Final = 64
_MAX_AHEAD: Final = 8
"""Further requests that a client may send while one is in progress."""
_BUFFER: Final = 64 * 1024
"""Bytes of a body that wait to be read; a connection holds about twice as many at most."""
_LINGER_S: Final = 2.0
_TOO_MANY: Final = "Too many headers received"

_log = structlog.get_logger("front")

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def refusal(status: int, code: str, message: str, *, kind: str = "invalid_request_error") -> web.Response:
    """An error as OpenAI's API has it."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    answer = web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")
    answer.headers["Server"] = "touchstone"
    return answer


class FrontProtocol(web.RequestHandler):
    """
    One connection.

    Args:
        server: The server.
        registry: Who is let in.
        config: The limits.
    """

    __slots__ = (
        "_head_bytes", "_head_timer", "_registry", "_section", "_write_timer", "certificate", "is_idle", "name",
    )  # fmt: skip

    def __init__(self, server: web.Server, registry: Registry, config: FrontSection, **options: Any) -> None:
        super().__init__(
            server,
            keepalive_timeout=config.idle_s,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_LINE,
            max_headers=_MAX_HEADERS,
            lingering_time=min(_LINGER_S, config.body_s),
            read_bufsize=_BUFFER,
            auto_decompress=False,
            **options,
        )
        self.name = ""
        self.certificate = b""
        self.is_idle = True
        self._registry = registry
        self._section = config
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        self.certificate = tls.getpeercert(binary_form=True) or b""
        name = self._registry.admit(self.certificate)
        super().connection_made(transport)
        if name is None:
            self.abort()
            return
        self.name = name
        self._registry.add(self)
        self._begin_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol`."""
        self._registry.remove(self)
        self._end_head()
        self._end_write()
        super().connection_lost(exc)

    def abort(self) -> None:
        """End the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if not self.name:
            return
        is_head = self._waiter is not None or not self._request_count
        if not is_head or self._messages or not data:
            self._receive_more(data)
            return
        heads = self._request_count
        self._head_bytes += len(data)
        super().data_received(data)
        if self._request_count != heads:
            self._end_head()
        elif self._head_bytes > MAX_HEAD:
            self._refuse_head(431, "head_too_large", "the head of the request is too large")
        elif self._head_timer is None:
            self._begin_head()

    def begin(self) -> None:
        """A request is in progress."""
        self.is_idle = False

    def end(self) -> None:
        """It is not any more."""
        self.is_idle = True

    def _receive_more(self, data: bytes) -> None:
        super().data_received(data)
        if len(self._messages) > _MAX_AHEAD:
            # aiohttp would stop reading, and then not see that the client goes away.
            self._registry.refused["ahead"] += 1
            self.abort()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        left = 0 if self.transport is None else self.transport.get_write_buffer_size()
        wait_s = self._section.body_s + left / self._section.body_bytes_per_s
        self._write_timer = self._loop.call_later(wait_s, self._give_up_writing)

    def resume_writing(self) -> None:
        """It has read."""
        self._end_write()
        super().resume_writing()

    def log_exception(self, *_: Any, **__: Any) -> None:
        """Count what aiohttp would log with a traceback each time."""
        self._registry.refused["failed"] += 1

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
            answer = refusal(
                500, "internal_error", "the node could not serve the request", kind="server_error"
            )
        elif isinstance(exc, LineTooLong) or message == _TOO_MANY:
            answer = refusal(431, "head_too_large", "the head of the request is too large")
        else:
            answer = refusal(400, "malformed_request", "the request is not HTTP/1.1 as RFC 9112 has it")
        self._registry.refused["malformed"] += 1
        answer.force_close()
        return answer

    def _begin_head(self) -> None:
        self._head_timer = self._loop.call_later(self._section.head_s, self._give_up_head)

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
            self._refuse_head(408, "too_slow", "the head of the request came too slowly")
        else:
            # Routers open connections ahead of requests.
            self.force_close()

    def _give_up_writing(self) -> None:
        self._write_timer = None
        self._registry.refused["reader"] += 1
        self.abort()

    def _refuse_head(self, status: int, code: str, message: str) -> None:
        """Answer half a head, and end the connection."""
        self._registry.refused["head"] += 1
        answer = refusal(status, code, message)
        body = answer.body
        assert isinstance(body, bytes)
        head = (
            f"HTTP/1.1 {answer.status} {answer.reason}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        if self.transport is not None:
            self.transport.write(head.encode() + body)
        self.force_close()


class FrontServer(web.Server):
    """
    Makes the protocols of connections.

    Args:
        handler: Answers a request.
        registry: Who is let in.
        config: The limits.
    """

    def __init__(self, handler: Handler, registry: Registry, config: FrontSection) -> None:
        super().__init__(self._guarded(handler), handler_cancellation=True)
        self._registry = registry
        self._config = config

    def make(self) -> FrontProtocol:
        """The protocol of a new connection."""
        return FrontProtocol(self, self._registry, self._config, loop=self._loop, access_log=None)

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.BaseRequest) -> web.StreamResponse:
            protocol = request.protocol
            assert isinstance(protocol, FrontProtocol)
            protocol.begin()
            try:
                return await handler(request)
            except web.HTTPException:
                # What aiohttp refuses by itself: an unknown Expect.
                answer = refusal(417, "malformed_request", "the request expects what is not known here")
                answer.force_close()
                return answer
            finally:
                protocol.end()

        return guarded
