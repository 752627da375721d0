"""The client's side of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import HttpVersion11, web

from router.gateway.exchange import ClientGoneError
from router.gateway.idempotency import CachedResponse
from router.gateway.sse import DONE, event

_CONTENT_TYPE: Final = "text/event-stream"
_WAITING: Final = 32 << 10
"""Bytes on their way to the kernel; with less, half of where the transport asks for a pause, no write waits."""
_KEEP: Final = 1 << 20
"""Bytes of a stream that are kept to be given again."""


class _Response(web.StreamResponse):
    """Its head goes out with its first bytes, in one packet, and not before."""

    _send_headers_immediately = False


class ClientStream:
    """
    Begins with the first bytes that are sent, and not before.

    What a client does not read waits in the kernel and in 64 KiB here; beyond that the node
    is read no further either, so that slow readers cost no memory.
    """

    def __init__(
        self, request: web.Request, headers: Mapping[str, str], *, write_timeout_s: float, keep: bool
    ) -> None:
        self._request = request
        self._headers = {
            **headers,
            "Content-Type": _CONTENT_TYPE,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
        }
        self._timeout_s = write_timeout_s
        self._response: _Response | None = None
        self._begun = False
        self._parts = bytearray() if keep else None

    @property
    def begun(self) -> bool:
        """Whether anything has gone to the client."""
        return self._begun

    async def ready(self) -> None:
        """Make the head ready, which takes its time, while the node has not answered yet."""
        if self._response is None:
            response = _Response(headers=self._headers)
            try:
                await response.prepare(self._request)
            except ConnectionError:
                raise ClientGoneError("the client is gone") from None
            self._response = response

    def instead(self, response: web.Response) -> web.Response:
        """Another answer, where nothing of the stream has gone out."""
        if self._response is not None and self._request.version >= HttpVersion11:
            # As the head was made ready for, and may be no longer.
            response.enable_chunked_encoding()
        return response

    def may_wait(self, size: int) -> bool:
        """Whether sending so many bytes may have to wait for the client to read."""
        transport = self._request.transport
        return transport is None or transport.get_write_buffer_size() + size >= _WAITING

    async def send(self, data: bytes) -> None:
        """Send whole events on.  Raises `ClientGoneError` where the client is gone or does not read."""
        try:
            await self.ready()
            assert self._response is not None
            self._begun = True
            if not self.may_wait(len(data)):
                await self._response.write(data)
            else:
                async with asyncio.timeout(self._timeout_s):
                    await self._response.write(data)
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ClientGoneError("the client does not read") from None
        except ConnectionError:
            raise ClientGoneError("the client is gone") from None
        self._remember(data)

    def _remember(self, data: bytes) -> None:
        if self._parts is not None:
            self._parts += data
            if len(self._parts) > _KEEP:
                self._parts = None

    async def give(self, document: Mapping[str, Any]) -> None:
        """An event of the router's own."""
        await self.send(event(msgspec.json.encode(document)))

    async def done(self) -> None:
        """The last event of a whole answer."""
        await self.send(event(DONE))

    def end(self) -> web.StreamResponse:
        """Nothing more comes, or nothing more is taken: the server closes it, and bears with a client that is gone."""
        return self._response if self._response is not None and self._begun else web.Response(status=503)

    def kept(self) -> CachedResponse | None:
        """The stream as it was, where it was to be kept and is not too large."""
        if self._parts is None:
            return None
        headers = {k: v for k, v in self._headers.items() if k != "Content-Type"}
        return CachedResponse(200, _CONTENT_TYPE, tuple(headers.items()), bytes(self._parts))
