"""
The channels of the nodes that are connected to this replica, and where the others are.

A channel is a stream of server-sent events, each of which is a call.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog
from aiohttp import web

from verifier.errors import StoreError
from verifier.schemes.context import Channel, Node
from verifier.service.sessions import to_wire
from verifier.service.sse import Stream
from verifier.service.state import Service
from verifier.store import channels, sessions
from verifier.store.sessions import StoredSession

_KEEPALIVE_S: Final = 10.0
_REMEMBERED: Final = 100_000
"""Channels that ended here and are remembered: for longer than a grace period lasts."""

_log = structlog.get_logger("verifier")

_Call = Mapping[str, Any]


class Channels:
    """Holds channels open, and pushes calls through them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # By the id of a node.
        self._queues: dict[str, asyncio.Queue[_Call]] = {}
        self._ended_at: dict[str, float] = {}
        self._pushed: dict[str, float] = {}
        """By session, when its call was pushed."""
        self._told: dict[str, float] = {}
        """By session, when its node was told of the walk."""

    @property
    def here(self) -> frozenset[str]:
        """The nodes that hold a channel open here."""
        return frozenset(self._queues)

    def close(self) -> None:
        """End all channels."""
        for queue in self._queues.values():
            _end_channel(queue)

    async def serve(self, node: Node, request: web.Request) -> web.StreamResponse:
        """Hold one node's channel until it ends.  A newer channel of the same node ends it."""
        stream = await Stream.open(request)
        if (older := self._queues.get(node.id)) is not None:
            _end_channel(older)
        queue: asyncio.Queue[_Call] = asyncio.Queue(maxsize=1)
        self._queues[node.id] = queue
        try:
            await self._note_opened(node.id)
            await self._push_again(node.id)
            while self._queues.get(node.id) is queue:
                try:
                    async with asyncio.timeout(_KEEPALIVE_S):
                        call = await queue.get()
                except TimeoutError:
                    await stream.send("keepalive", {})
                    continue
                if not call or not await self._note_push(node.id, call["session"]):
                    break
                await stream.send("call", call)
        except ConnectionError:
            # The node may disconnect.  If it stays away, it misses its next call.
            pass
        except StoreError as error:
            # The response has begun, so no problem document can be sent: the node comes again.
            self._service.duties.note_failure()
            _log.error("a channel was ended", node=node.id, error=str(error))
        finally:
            if self._queues.get(node.id) is queue:
                del self._queues[node.id]
                await self._note_ended(node.id)
        return stream.response

    def push(self, node_id: str, call: _Call) -> None:
        """Push a call, if the node's channel is here.  Otherwise the replica that holds it finds the call."""
        queue = self._queues.get(node_id)
        if queue is not None and not queue.full():
            queue.put_nowait(call)

    async def push_waiting(self) -> None:
        """Push the calls that another replica decided on, to the nodes that are connected here."""
        service = self._service
        if not service.db.shared or not self._queues:
            return
        async with service.db.read() as tx:
            found = await channels.calls_to_push(tx, service.duties.replica, service.now_ms())
            calls = [(node_id, await sessions.get(tx, session)) for session, node_id in found]
        for node_id, session in calls:
            self.push(node_id, {"session": session.id, **await to_wire(service, session)})

    async def _push_again(self, node_id: str) -> None:
        """Push the call that still waits for a node: it may have been lost with the node's last channel."""
        service = self._service
        async with service.db.read() as tx:
            session = await sessions.waiting(tx, node_id, Channel.CALLED, service.now_ms())
        if session is not None:
            self.push(node_id, {"session": session.id, **await to_wire(service, session)})

    async def is_open(self, node_id: str) -> bool:
        """Whether a node holds a channel open, here or at another replica."""
        return node_id in await self.open_among([node_id])

    async def open_among(self, node_ids: Sequence[str]) -> frozenset[str]:
        """Those of *node_ids* that hold a channel open, here or at another replica."""
        here = frozenset(node_ids) & self._queues.keys()
        others = [node_id for node_id in node_ids if node_id not in here]
        if not self._service.db.shared or not others:
            return here
        async with self._service.db.read() as tx:
            return here | await channels.open_among(tx, others, self._service.now_ms())

    async def census(
        self, within_s: float, operator_of: Callable[[str], str | None]
    ) -> tuple[Counter[str], Counter[str]]:
        """
        Count by operator the nodes whose channel has ended and that are not back, and those with an open one.

        Args:
            within_s: Channels that ended longer ago are left out.
            operator_of: Gives the operator of a node; `None` if it is not to be called.
        """
        service = self._service
        if service.db.shared:
            async with service.db.read() as tx:
                return await channels.census(tx, service.now_ms(), int(within_s * 1000))
        since = service.clock.monotonic() - within_s
        ended = {node_id for node_id, at in self._ended_at.items() if at >= since} - self._queues.keys()
        counts = [Counter(map(operator_of, nodes)) for nodes in (ended, self._queues)]
        lost, here = (Counter({name: n for name, n in count.items() if name is not None}) for count in counts)
        return lost, here

    async def ended_s(self, node_id: str) -> float | None:
        """How many seconds ago a node's channel ended; `None` if it never had one, or that is forgotten."""
        service = self._service
        if service.db.shared:
            async with service.db.read() as tx:
                ended_ms = await channels.ended_ms(tx, node_id, service.now_ms())
            return None if ended_ms is None else (service.now_ms() - ended_ms) / 1000
        ended_at = self._ended_at.get(node_id)
        return None if ended_at is None else service.clock.monotonic() - ended_at

    def elapsed_ms(self, session: StoredSession, arrived: tuple[float, int]) -> int | None:
        """
        The time from the question to the answers' arrival; `None` if something of ours has failed in between.

        Answers may have met the failure, and come late for it.

        The question is the call pushed, or the walk of which the node was told later.  If another replica asked it,
        or this one restarted in between, the wall clock measures it: from then, or from the session's issue if the
        push was not noted.

        Args:
            arrived: The arrival by both clocks: monotonic seconds, and wall milliseconds.
        """
        asked_ms = session.told_ms or session.pushed_ms or session.issued_ms
        if self._service.duties.has_failed_since(asked_ms):
            return None
        asked = (self._pushed if session.told_ms is None else self._told).get(session.id)
        if asked is not None:
            return int((arrived[0] - asked) * 1000)
        return max(arrived[1] - asked_ms, 0)

    def note_told(self, session_id: str) -> None:
        """Note that a node is told of its walk now.  Only the first time counts."""
        self._forget_expired_calls()
        self._told.setdefault(session_id, self._service.clock.monotonic())

    async def _note_opened(self, node_id: str) -> None:
        service = self._service
        if service.db.shared:
            replica = service.duties.replica
            await service.db.write(lambda tx: channels.open_channel(tx, node_id, replica), of=node_id)

    async def _note_ended(self, node_id: str) -> None:
        service = self._service
        self._ended_at.pop(node_id, None)
        self._ended_at[node_id] = service.clock.monotonic()
        while len(self._ended_at) > _REMEMBERED:
            del self._ended_at[next(iter(self._ended_at))]
        if not service.db.shared:
            return
        replica, now_ms = service.duties.replica, service.now_ms()
        try:
            await service.db.write(
                lambda tx: channels.close_channel(tx, node_id, replica, now_ms), of=node_id
            )
        except StoreError as error:
            _log.warning("the end of a channel could not be noted", node=node_id, error=str(error))

    async def _note_push(self, node_id: str, session_id: str) -> bool:
        """Note that a call is pushed now.  Gives whether it may be: the node may have gone to another replica."""
        service = self._service
        self._forget_expired_calls()
        if service.db.shared:
            replica, now_ms = service.duties.replica, service.now_ms()
            if not await service.db.write(
                lambda tx: channels.note_push(tx, node_id, session_id, replica, now_ms), of=node_id
            ):
                return False
        self._pushed.setdefault(session_id, service.clock.monotonic())
        return True

    def _forget_expired_calls(self) -> None:
        """Drop the start times of calls that have expired."""
        oldest = self._service.clock.monotonic() - 2 * self._service.config.sessions.lifetime_s
        for starts in (self._pushed, self._told):
            while starts and next(iter(starts.values())) < oldest:
                del starts[next(iter(starts))]


def _end_channel(queue: asyncio.Queue[_Call]) -> None:
    """Make the stream behind *queue* end.  A call in it that was not sent yet is pushed again later."""
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait({})
