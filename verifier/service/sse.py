"""Server-sent events: how a stream is written (WHATWG HTML §9.2)."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from verifier.service.front import leave_place

MEDIA_TYPE = "text/event-stream"


class Stream:
    """An open stream to one client.  A write waits for a slow client, so nothing queues up in memory."""

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response

    @classmethod
    async def open(cls, request: web.Request) -> Stream:
        """Begin the response to *request*."""
        response = web.StreamResponse(
            headers={"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        leave_place(request)
        await response.prepare(request)
        return cls(response)

    async def send(self, kind: str, data: Any, *, seq: int | None = None) -> None:
        """Send an event; *data* becomes one line of JSON."""
        head = "" if seq is None else f"id: {seq}\n"
        await self._response.write(
            f"{head}event: {kind}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"
        )

    async def write(self, data: bytes) -> None:
        """Send events that are encoded already."""
        await self._response.write(data)

    @property
    def response(self) -> web.StreamResponse:
        """What the handler returns."""
        return self._response
