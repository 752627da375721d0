"""
Comments for clients that wait: a stream that says nothing for long looks dead to clients, and to proxies between.

A comment is sent only while nothing else is: a stream that flows gets none.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from router.gateway.client import ClientStream
from router.gateway.sink import ClientGoneError


class KeepAlive:
    """
    Sends a comment whenever *every_s* seconds have passed without anything else, while its block runs.

    With 0 it sends none.
    """

    __slots__ = ("_every_s", "_handle", "_loop", "_sink", "_task")

    def __init__(self, sink: ClientStream, every_s: float) -> None:
        self._sink = sink
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        if self._every_s:
            self._handle = self._loop.call_later(self._every_s, self._come_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._task is not None:
            self._task.cancel()

    def _come_up(self) -> None:
        left_s = self._sink.sent_at + self._every_s - self._loop.time()
        if left_s <= 0:
            self._task = self._loop.create_task(self._send(), name="keep-alive")
            left_s = self._every_s
        self._handle = self._loop.call_later(left_s, self._come_up)

    async def _send(self) -> None:
        # The request's own task hears of a client that is gone too.
        with suppress(ClientGoneError):
            await self._sink.keep_alive()
