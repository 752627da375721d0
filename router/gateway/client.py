"""The client's side of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import HttpVersion11, web

from router.gateway.errors import DECISION_HEADER, REVISION_HEADER
from router.gateway.idempotency import CachedResponse
from router.gateway.receipting import Draft
from router.gateway.sink import ClientGoneError
from router.gateway.sse import KEEP_ALIVE

_CONTENT_TYPE: Final = "text/event-stream"
_UNBLOCKED_BYTES: Final = 32 << 10
"""Bytes in the transport's buffer up to which no write waits: half of where it asks for a pause."""
_MAX_CACHED: Final = 1 << 20
"""Bytes of a stream that are cached, to be given again."""


class _Response(web.StreamResponse):
    """Its head is sent with its first bytes, in one packet."""

    _send_headers_immediately = False


class ClientStream:
    """
    A `Sink` that opens with the first bytes that are sent.

    What a client does not read waits in the kernel and in 64 KiB here.  Beyond that the node is
    read no further either, so that slow readers cost no memory.
    """

    def __init__(
        self,
        request: web.Request,
        headers: Mapping[str, str],
        *,
        write_timeout_s: float,
        is_cached: bool,
        draft: Draft | None = None,
        heard: Callable[[bytes], None] | None = None,
    ) -> None:
        self._draft = draft
        self._heard = heard
        self._request = request
        self._headers = {
            **headers,
            "Content-Type": _CONTENT_TYPE,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
        }
        self._timeout_s = write_timeout_s
        self._response: _Response | None = None
        self._has_begun = self._is_open = self._has_ended = self._is_for_chunks = False
        self._loop = asyncio.get_running_loop()
        self.sent_at = self._loop.time()
        """When something was last sent, by the loop's clock; at first, when the stream was made."""
        self._cached = bytearray() if is_cached else None

    @property
    def has_begun(self) -> bool:
        """See `Sink`."""
        return self._has_begun

    @property
    def is_open(self) -> bool:
        """See `Sink`."""
        return self._is_open

    async def keep_alive(self) -> None:
        """
        Send a comment, which clients pass over.  It opens the stream, and begins no answer.

        Raises:
            ClientGoneError: the client is gone.
        """
        if self._has_ended or self.may_block(len(KEEP_ALIVE)):
            # Who does not read what there is needs no comments.
            return
        # Another node may take over yet, and have another revision.
        self.name_revision("")
        await self.prepare()
        assert self._response is not None
        self._is_open = True
        self.sent_at = self._loop.time()
        self._note(KEEP_ALIVE)
        try:
            await self._response.write(KEEP_ALIVE)
        except ConnectionError:
            raise ClientGoneError("the client is gone") from None

    async def prepare(self) -> None:
        """Prepare the head, which takes time, while the node has not answered yet."""
        if self._response is None:
            response = _Response(headers=self._headers)
            try:
                await response.prepare(self._request)
            except ConnectionError:
                raise ClientGoneError("the client is gone") from None
            self._response = response
            self._is_for_chunks = self._request.version >= HttpVersion11

    def name_decision(self, decision: str) -> None:
        """Name another decision in the head, unless the head has gone to the client."""
        if not self._is_open:
            self._headers[DECISION_HEADER] = decision
            # What was prepared says something else.
            self._response = None

    def name_revision(self, revision: str) -> None:
        """See `Sink`."""
        if self._is_open or self._headers.get(REVISION_HEADER, "") == revision:
            return
        self._headers.pop(REVISION_HEADER, None)
        if revision:
            self._headers[REVISION_HEADER] = revision
        # What was prepared says something else.
        self._response = None

    def replace_with(self, response: web.Response) -> web.Response:
        """Another answer, if nothing of the stream has gone out."""
        if self._is_for_chunks:
            # The connection was prepared for chunks, and cannot be prepared again.
            response.enable_chunked_encoding()
        return response

    def may_block(self, size: int) -> bool:
        """See `Sink`."""
        transport = self._request.transport
        if transport is None or transport.is_closing():
            return True
        return transport.get_write_buffer_size() + size >= _UNBLOCKED_BYTES

    async def send(self, data: bytes, *, is_last: bool = False) -> None:
        """See `Sink`.  The last bytes end the stream in the same packet, if they need not wait for the client."""
        try:
            await self.prepare()
            assert self._response is not None
            self._has_begun = self._is_open = True
            self._has_ended = is_last
            self.sent_at = self._loop.time()
            self._note(data)
            if not self.may_block(len(data)):
                await (self._response.write_eof(data) if is_last else self._response.write(data))
            else:
                async with asyncio.timeout(self._timeout_s):
                    await self._response.write(data)
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ClientGoneError("the client does not read") from None
        except ConnectionError:
            raise ClientGoneError("the client is gone") from None
        self._cache(data)
        if self._heard is not None:
            self._heard(data)

    def _note(self, data: bytes) -> None:
        """Have the receipt digest what is handed to the connection now.  Nothing else may be sent in between."""
        transport = self._request.transport
        if self._draft is not None and transport is not None and not transport.is_closing():
            self._draft.note_sent(data)

    def _cache(self, data: bytes) -> None:
        if self._cached is not None:
            self._cached += data
            if len(self._cached) > _MAX_CACHED:
                self._cached = None

    def end(self) -> web.StreamResponse:
        """End the stream.  The server closes it, also if the client is gone."""
        self._has_ended = True
        return self._response if self._response is not None and self._is_open else web.Response(status=503)

    def cached_response(self) -> CachedResponse | None:
        """The whole stream, if it was to be cached and is not too large."""
        if self._cached is None:
            return None
        headers = {k: v for k, v in self._headers.items() if k != "Content-Type"}
        return CachedResponse(200, _CONTENT_TYPE, tuple(headers.items()), bytes(self._cached))
