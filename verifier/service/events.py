"""The stream of events: results, revocations and incidents, with a heartbeat every second; clients resume by id."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, NamedTuple

import structlog
from aiohttp import web

from verifier.errors import RequestError, StoreError
from verifier.roles import Caller
from verifier.service import access
from verifier.service.access import Route, caller_of
from verifier.service.credentials import is_still_good
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
_RECHECK_S: Final = 1.0
"""So long a stream goes on at most after its credential was revoked or has expired."""

_log = structlog.get_logger("verifier")


class _Frame(NamedTuple):
    """An event as it is sent to everybody who follows."""

    seq: int
    data: bytes


class EventFeed:
    """
    Reads new events from the database once for all streams, and encodes each of them once.

    It polls: so the events of other processes (the command line, another verifier on the same
    database) reach routers as fast as its own.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._recent: deque[_Frame] = deque(maxlen=_RECENT_EVENTS)
        self._newest = 0
        self._latest = (0, b"")
        """What the last poll brought, as one piece: most streams send just that."""
        self._polled = self._service.clock.monotonic()
        self._told = self._polled
        self._signal = asyncio.Event()
        """It is set, and replaced, when there are new events or a heartbeat is due: streams need no timer each."""
        self.closing = False

    async def run(self) -> None:
        """Poll until cancelled."""
        started = False
        while True:
            rows: list[Row] = []
            # What comes shows how things stood when they were asked for.
            asked = self._service.clock.monotonic()
            try:
                async with self._service.db.read() as tx:
                    if not started:
                        _, self._newest = await events.bounds(tx)
                        started = True
                    found = await events.after(tx, self._newest, _BATCH)
                self._polled = asked
                if found:
                    self._service.marks.cover_event(found[-1]["seq"])
                rows = found
            except StoreError as error:
                _log.error("events cannot be read", error=str(error))
            if rows:
                frames = [_frame(row) for row in rows]
                self._recent.extend(frames)
                self._latest = (self._newest, b"".join(frame.data for frame in frames))
                self._newest = frames[-1].seq
            if rows or asyncio.get_running_loop().time() - self._told >= _HEARTBEAT_S:
                self._tell()
            if len(rows) < _BATCH:
                await asyncio.sleep(_POLL_S)

    def _tell(self) -> None:
        self._told = asyncio.get_running_loop().time()
        told, self._signal = self._signal, asyncio.Event()
        told.set()

    async def close(self) -> None:
        """End all streams."""
        self.closing = True
        self._tell()

    async def follow(self, stream: Stream, seq: int, caller: Caller) -> None:
        """Send events above *seq* as they come, until the client goes, its credential ends or the service ends."""
        async with self._service.db.read() as tx:
            low, high = await events.bounds(tx)
        self._service.marks.cover_event(high)
        if seq > high or (low and seq < low - 1):
            # The number was never given, or its event is deleted.  The client needs a fresh snapshot.
            await stream.send("reset", {"seq": high})
            seq = high
        await stream.send("heartbeat", {"seq": seq})
        checked = self._service.clock.monotonic()
        while not self.closing:
            if self._service.clock.monotonic() - checked >= _RECHECK_S:
                if not await is_still_good(self._service, caller):
                    return
                checked = self._service.clock.monotonic()
            signal = self._signal
            newest, data = await self._after(seq)
            if data:
                await stream.write(data)
                seq = newest
                continue
            await signal.wait()
            if self.closing or self._newest > seq:
                continue
            if self._service.clock.monotonic() - self._polled > _MAX_POLL_AGE_S:
                # A heartbeat says that the client has missed nothing, and that is not known now.
                return
            await stream.send("heartbeat", {"seq": seq})

    async def _after(self, seq: int) -> tuple[int, bytes]:
        """Give the next events above *seq*, as they are sent, and the number of the last of them."""
        if self._newest <= seq:
            return seq, b""
        start, latest = self._latest
        if latest and start == seq:
            return self._newest, latest
        if self._recent and self._recent[0].seq <= seq + 1:
            frames = [frame for frame in self._recent if frame.seq > seq][:_BATCH]
        else:
            async with self._service.db.scan() as tx:
                frames = [_frame(row) for row in await events.after(tx, seq, _BATCH)]
            if frames:
                self._service.marks.cover_event(frames[-1].seq)
        return (frames[-1].seq if frames else seq), b"".join(frame.data for frame in frames)


def _frame(row: Row) -> _Frame:
    # The stored data is a JSON object: the time goes in front of its members.
    data = f'{{"at_ms":{row["at_ms"]},{row["data"][1:]}'
    return _Frame(row["seq"], f"id: {row['seq']}\nevent: {row['type']}\ndata: {data}\n\n".encode())


FEED: web.AppKey[EventFeed] = web.AppKey("feed", EventFeed)


def routes() -> list[Route]:
    """The resources of this file."""
    return [access.get("/api/v1/events", follow, access.EVENTS, "Follow events.", has_head=False)]


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
        await request.app[FEED].follow(stream, seq, caller_of(request))
    except ConnectionError:
        pass
    except StoreError as error:
        # The response has begun, so no problem document can be sent: the stream ends.
        _log.error("a stream of events was ended", error=str(error))
    return stream.response
