"""The stream of events: results, revocations and incidents, with a heartbeat every second; clients resume by id."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

import msgspec
import structlog
from aiohttp import web

from verifier.errors import RequestError, StoreError
from verifier.service.sse import Stream
from verifier.service.state import Service, service_of
from verifier.store import events
from verifier.store.database import Row

_POLL_S: Final = 0.1
_HEARTBEAT_S: Final = 1.0
_RECENT_EVENTS: Final = 4096
_MAX_POLL_AGE_S: Final = 10.0
"""If the last look at the database is older, streams end: a heartbeat would say too much."""
_BATCH: Final = 500

_log = structlog.get_logger("verifier")


class EventFeed:
    """
    Reads new events from the database once for all streams.

    It polls: so the events of other processes (the command line, another verifier on the same
    database) reach routers as fast as its own.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._recent: deque[Row] = deque(maxlen=_RECENT_EVENTS)
        self._newest = 0
        self._polled = self._service.clock.monotonic()
        self._arrived = asyncio.Condition()
        self.closing = False

    async def run(self) -> None:
        """Poll until cancelled."""
        started = False
        while True:
            try:
                async with self._service.db.read() as tx:
                    if not started:
                        _, self._newest = await events.bounds(tx)
                        started = True
                    rows = await events.after(tx, self._newest, _BATCH)
                self._polled = self._service.clock.monotonic()
            except StoreError as error:
                _log.error("events cannot be read", error=str(error))
                rows = []
            if rows:
                self._recent.extend(rows)
                self._newest = rows[-1]["seq"]
                async with self._arrived:
                    self._arrived.notify_all()
            if len(rows) < _BATCH:
                await asyncio.sleep(_POLL_S)

    async def close(self) -> None:
        """End all streams."""
        self.closing = True
        async with self._arrived:
            self._arrived.notify_all()

    async def follow(self, stream: Stream, seq: int) -> None:
        """Send events above *seq* as they come, until the client goes or the service ends."""
        async with self._service.db.read() as tx:
            low, high = await events.bounds(tx)
        if seq > high or (low and seq < low - 1):
            # The number was never given, or its event is deleted.  The client needs a fresh snapshot.
            await stream.send("reset", {"seq": high})
            seq = high
        await stream.send("heartbeat", {"seq": seq})
        while not self.closing:
            rows = await self._after(seq)
            for row in rows:
                data = {"at_ms": row["at_ms"], **msgspec.json.decode(row["data"])}
                await stream.send(row["type"], data, seq=row["seq"])
                seq = row["seq"]
            if rows:
                continue
            if await self._wait_for_more(seq):
                continue
            if self._service.clock.monotonic() - self._polled > _MAX_POLL_AGE_S:
                # A heartbeat says that the client has missed nothing, and that is not known now.
                return
            await stream.send("heartbeat", {"seq": seq})

    async def _wait_for_more(self, seq: int) -> bool:
        """Wait as long as a heartbeat; returns whether there are more events, or the feed ends."""
        async with self._arrived:
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT_S):
                    await self._arrived.wait_for(lambda: self.closing or self._newest > seq)
                    return True
        return False

    async def _after(self, seq: int) -> list[Row]:
        if self._newest <= seq:
            return []
        if self._recent and self._recent[0]["seq"] <= seq + 1:
            return [row for row in self._recent if row["seq"] > seq][:_BATCH]
        async with self._service.db.read() as tx:
            return await events.after(tx, seq, _BATCH)


FEED: web.AppKey[EventFeed] = web.AppKey("feed", EventFeed)


def routes() -> list[web.RouteDef]:
    """The resources of this file."""
    return [web.get("/api/v1/events", follow, allow_head=False)]


async def follow(request: web.Request) -> web.StreamResponse:
    """Follow events, from ``after`` or ``Last-Event-ID`` on, or from now."""
    service = service_of(request)
    text = request.headers.get("Last-Event-ID", request.query.get("after"))
    if text is None:
        async with service.db.read() as tx:
            _, seq = await events.bounds(tx)
    elif text.isascii() and text.isdigit() and len(text) <= 18:
        seq = int(text)
    else:
        raise RequestError("after must be the number of an event")
    stream = await Stream.open(request)
    try:
        await request.app[FEED].follow(stream, seq)
    except ConnectionError:
        pass
    except StoreError as error:
        # The response has begun, so no problem document can be sent: the stream ends.
        _log.error("a stream of events was ended", error=str(error))
    return stream.response
