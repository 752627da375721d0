"""
One request on its way to the engine, and the answer on its way back.

Neither is held back: each part goes on as it comes, and a side that does not read holds up the other one.
Of the headers go on those that the two tables name.  What a client says about itself, about who sent it, or about
this connection, stays here; the engine's own key is added.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, MutableMapping
from typing import Final

import aiohttp
import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion11
from multidict import CIMultiDict

from attester.front.engine import EnginePool, Exchange
from attester.front.protocol import refusal
from attester.front_config import FrontSection

REQUEST_HEADERS: Final = (
    "Content-Type", "Content-Encoding", "Accept", "X-Request-Id", "Traceparent", "Tracestate",
    "Anthropic-Version", "Anthropic-Beta", "OpenAI-Beta",
)  # fmt: skip
"""What the engine may see of a request."""
ANSWER_HEADERS: Final = (
    "Content-Type", "Content-Encoding", "Cache-Control", "Retry-After", "X-Request-Id", "OpenAI-Processing-Ms",
)  # fmt: skip
"""What the client may see of an answer."""
_FIXED: Final = {"Server": "touchstone"}
_log = structlog.get_logger("front")


class _Passed(web.StreamResponse):
    """An answer that has gone out already, as it came."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._is_kept = keep_alive

    @property
    def keep_alive(self) -> bool:
        """Whether the connection serves another request."""
        return self._is_kept

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """See `web.StreamResponse`."""
        return request.writer

    async def write_eof(self, data: bytes = b"") -> None:
        """See `web.StreamResponse`."""


class Forwarder:
    """
    Passes requests on to one engine.

    Args:
        engine: The engine.
        methods: The paths that are passed on, each with its method.
        config: The limits.
        key: The engine's own key, if it has one.
    """

    def __init__(
        self, engine: EnginePool, *, methods: Mapping[str, str], config: FrontSection, key: str | None
    ) -> None:
        self._engine = engine
        self._config = config
        self._targets = {(method, path): path for path, method in methods.items()}
        self._added = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._is_gone = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        # As it was sent: nothing is decoded or normalised before it is compared.
        target = self._targets.get((request.method, request.raw_path))
        if target is None:
            # Its body is not read, so the connection cannot be used again.
            answer = refusal(404, "unknown_url", "this node has no such operation")
            return _last(answer) if request.can_read_body else answer
        size = request.content_length
        if size is not None and size > self._config.max_body:
            return self._too_large()
        failed: list[web.Response] = []
        headers = dict(self._added)
        _copy(request.headers, REQUEST_HEADERS, headers)
        body = self._body(request, size, headers, failed)
        try:
            exchange = await self._engine.ask(request.method, target, headers, body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return failed[0] if failed else self._engine_failed(error)
        self._note_engine(is_gone=False)
        try:
            return await self._pass_back(request, exchange)
        finally:
            await self._engine.give_back(exchange)

    def _body(
        self,
        request: web.BaseRequest,
        size: int | None,
        headers: dict[str, str],
        failed: list[web.Response],
    ) -> bytes | AsyncIterator[bytes] | None:
        if not request.can_read_body:
            return None
        if request.content.is_eof():
            # The usual case: the whole body has arrived with its head.
            return request.content.read_nowait()
        if size is not None:
            headers["Content-Length"] = str(size)
        return self._stream(request, failed)

    async def _stream(self, request: web.BaseRequest, failed: list[web.Response]) -> AsyncIterator[bytes]:
        """The parts of the body, within the limits of time and size."""
        loop, config = asyncio.get_running_loop(), self._config
        deadline, taken = loop.time() + config.body_s, 0
        try:
            while not request.content.at_eof():
                async with asyncio.timeout_at(deadline + taken / config.body_bytes_per_s):
                    part = await request.content.readany()
                taken += len(part)
                if taken > config.max_body:
                    failed.append(self._too_large())
                    break
                if part:
                    yield part
        except TimeoutError:
            failed.append(_last(refusal(408, "too_slow", "the body of the request came too slowly")))
        if failed:
            # Ends the request to the engine, which must not take this for the whole body.
            raise aiohttp.ClientPayloadError

    async def _pass_back(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        """Send the answer as it comes."""
        content, writer = exchange.content, request.writer
        headers: CIMultiDict[str] = CIMultiDict(_FIXED)
        _copy(exchange.headers, ANSWER_HEADERS, headers)
        is_kept = bool(request.keep_alive)
        length = exchange.headers.get("Content-Length") if not content.is_eof() else str(content.total_bytes)
        if length is not None:
            headers["Content-Length"] = length
        elif request.version >= HttpVersion11:
            headers["Transfer-Encoding"] = "chunked"
            writer.enable_chunking()
        else:
            # Its end is that of the connection.
            is_kept = False
        if not is_kept:
            headers["Connection"] = "close"
        status = f"HTTP/1.1 {exchange.status} {exchange.reason}"
        await writer.write_headers(status, headers)
        while not content.at_eof():
            try:
                part = await content.readany()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                _log.warning("the engine broke off an answer", why=type(error).__name__)
                # The client must not take what came so far for the whole answer.
                if request.transport is not None:
                    request.transport.abort()
                break
            await writer.write(part)
        await writer.write_eof()
        return _Passed(keep_alive=is_kept)

    def _engine_failed(self, error: Exception) -> web.Response:
        if isinstance(error, TimeoutError) and not isinstance(
            error, aiohttp.ServerTimeoutError | aiohttp.ConnectionTimeoutError
        ):
            return refusal(504, "engine_timeout", "the engine did not answer in time", kind="server_error")
        self._note_engine(is_gone=True, why=type(error).__name__)
        if isinstance(error, aiohttp.SocketTimeoutError):
            return refusal(504, "engine_timeout", "the engine did not answer in time", kind="server_error")
        return refusal(502, "engine_unreachable", "the engine does not answer", kind="server_error")

    def _note_engine(self, *, is_gone: bool, why: str = "") -> None:
        if is_gone and not self._is_gone:
            _log.error("the engine does not answer", why=why)
        elif self._is_gone and not is_gone:
            _log.info("the engine answers again")
        self._is_gone = is_gone

    def _too_large(self) -> web.Response:
        return _last(refusal(413, "body_too_large", f"a body may have {self._config.max_body} bytes here"))


def _last(answer: web.Response) -> web.Response:
    """The answer to a request whose body was not read to its end: the connection cannot be used again."""
    answer.force_close()
    return answer


def _copy(source: Mapping[str, str], names: tuple[str, ...], target: MutableMapping[str, str]) -> None:
    for name in names:
        value = source.get(name)
        if value is not None:
            target[name] = value
