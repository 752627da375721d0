"""
Calls: at secret moments the verifier challenges the nodes that hold a channel open.

The clock runs from the moment that the call is pushed until the last byte of the answers arrives.
The answers travel alone; the signed evidence that follows repeats them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Annotated, Any, Final

import structlog
from aiohttp import web
from msgspec import Meta, Struct

from verifier.errors import RequestError, VerifierError
from verifier.schemes.context import Answers, Channel, Node
from verifier.service.http import json_response, parse_json, read_body
from verifier.service.sessions import open_session, to_wire, wants_for
from verifier.service.sse import Stream
from verifier.service.state import Service, service_of
from verifier.store import nodes, sessions
from verifier.store.database import Tx

MAX_ANSWERS_BYTES: Final = 1 << 20
"""The size of the body of one request; 2,048 rows of several models fit."""
_KEEPALIVE_S: Final = 10.0
_TICK_S: Final = 0.1
_REFRESH_EVERY_TICKS: Final = 10

_Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_log = structlog.get_logger("verifier")


class _ModelAnswers(Struct, frozen=True, forbid_unknown_fields=True):
    model: Annotated[str, Meta(max_length=128)]
    read: _Hex32 | None = None
    walk: Annotated[tuple[_Hex32, ...], Meta(max_length=2048)] | None = None


class _AnswersBody(Struct, frozen=True, forbid_unknown_fields=True):
    answers: Annotated[tuple[_ModelAnswers, ...], Meta(max_length=64)]


class CallScheduler:
    """
    Holds the channels of the connected nodes, and decides when each node is called.

    Every node that is not retired has a moment for its next call, whether it is connected or not: a
    node must not choose when it is called by choosing when to connect.  If a node has no channel
    open when it is called, the call counts as missed.

    Args:
        rng: It must be unpredictable: a cheating node must not know the moments.
    """

    def __init__(self, service: Service, *, rng: random.Random | None = None) -> None:
        self._service = service
        self._rng = rng or random.SystemRandom()
        # All by the id of a node, except the last.
        self._channels: dict[str, asyncio.Queue[Mapping[str, Any]]] = {}
        self._operators: dict[str, str] = {}
        self._models: dict[str, tuple[str, ...]] = {}
        self._due: dict[str, float] = {}
        self._needs_walk: set[str] = set()
        """Nodes whose next call must have a walk."""
        self._pushed: dict[str, float] = {}
        """By session, when its call was pushed."""

    @property
    def connected(self) -> frozenset[str]:
        """The nodes that hold a channel open."""
        return frozenset(self._channels)

    def close(self) -> None:
        """End all channels."""
        for queue in self._channels.values():
            _end_channel(queue)

    async def serve(self, node: Node, request: web.Request) -> web.StreamResponse:
        """Hold one node's channel until it ends.  A newer channel of the same node ends it."""
        stream = await Stream.open(request)
        if (older := self._channels.get(node.id)) is not None:
            _end_channel(older)
        queue: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue(maxsize=1)
        self._channels[node.id] = queue
        try:
            while self._channels.get(node.id) is queue:
                try:
                    async with asyncio.timeout(_KEEPALIVE_S):
                        call = await queue.get()
                except TimeoutError:
                    await stream.send("keepalive", {})
                    continue
                if not call:
                    break
                self._pushed.setdefault(call["session"], self._service.clock.monotonic())
                await stream.send("call", call)
        except ConnectionError:
            # The node may disconnect.  If it stays away, it misses its next call.
            pass
        finally:
            if self._channels.get(node.id) is queue:
                del self._channels[node.id]
        return stream.response

    async def run(self) -> None:
        """Call the nodes whose moments come, until cancelled."""
        rounds = 0
        while True:
            try:
                if rounds % _REFRESH_EVERY_TICKS == 0:
                    await self.refresh()
                await self.tick()
            except VerifierError as error:
                _log.error("calls could not be made", error=str(error))
            rounds += 1
            await asyncio.sleep(_TICK_S)

    async def refresh(self) -> None:
        """Take in new nodes, and drop those that were retired."""
        async with self._service.db.read() as tx:
            live = await nodes.live_ids(tx)
        self._operators = {node_id: operator for node_id, operator, _ in live}
        self._models = {node_id: models for node_id, _, models in live}
        now, max_wait_s = self._service.clock.monotonic(), self._service.config.calls.max_interval_s
        for node_id in self._due.keys() - self._operators.keys():
            del self._due[node_id]
        for node_id in self._operators.keys() - self._due.keys():
            self._due[node_id] = now + self._rng.uniform(0, max_wait_s)
            self._needs_walk.add(node_id)

    async def tick(self) -> None:
        """Call the nodes whose moment has come, and draw their next moments."""
        calls, now = self._service.config.calls, self._service.clock.monotonic()
        for node_id in [node_id for node_id, due in self._due.items() if due <= now]:
            self._due[node_id] = now + self._rng.uniform(calls.min_interval_s, calls.max_interval_s)
            drawn_together, drawn_wide, drawn_walk = (self._rng.random() for _ in range(3))
            models = self._models.get(node_id, ())
            model = self._rng.choice(models) if models else None
            group = self._operator_group(node_id, model)
            walk = drawn_walk < calls.walk_share
            # The moment of any member may call the whole group.  The share is divided among them: otherwise
            # a large group would be called all the time.
            if len(group) > 1 and drawn_together < calls.together_share / len(group):
                await self._call_together(node_id, group, model, walk=walk)
            else:
                await self.call(node_id, walk=walk, wide=model if drawn_wide < calls.wide_share else None)

    async def _call_together(self, due: str, group: list[str], model: str | None, *, walk: bool) -> None:
        """
        Call a group at one moment, without waiting for one node before calling the next.

        Only nodes with an open channel and no waiting call count as called together, because only
        their devices are busy.  If the node *due* has no channel, it misses its call; the others do not.
        """
        async with self._service.db.read() as tx:
            waiting = await sessions.waiting_calls(tx, self._service.now_ms())
        ready = [other for other in group if other in self._channels and other not in waiting]
        together = len(ready) if len(ready) > 1 else 0
        await asyncio.gather(
            *(
                self.call(other, walk=walk, wide=model, together=together if other in ready else 0)
                for other in {due, *ready}
            )
        )

    def _operator_group(self, node_id: str, model: str | None) -> list[str]:
        """All nodes of one node's operator that have *model*: one GPU cannot answer for several in time."""
        operator = self._operators.get(node_id)
        return [
            other
            for other, its_operator in self._operators.items()
            if its_operator == operator and model in self._models.get(other, ())
        ] or [node_id]

    async def call(self, node_id: str, *, walk: bool, wide: str | None = None, together: int = 0) -> None:
        """
        Challenge a node now.  If its last call still waits for answers, that call is pushed again.

        Args:
            walk: Whether each model is walked, and not only read.
            wide: The one model to walk with many rows, if the pool has such a walk.
            together: How many nodes are called at this moment.
        """
        service = self._service
        async with service.db.read() as tx:
            node = await nodes.by_id(tx, node_id)
            rollout = await service.inputs.load_rollout(tx)
            policy = await service.inputs.load_bundle(tx, rollout.policy_for(node_id))
        if node is None or node.state == "retired":
            return
        if node_id not in self._channels:
            await self._record_missed_call(node)
            return
        self._forget_expired_calls()
        hardware = policy.thresholds.classes.get(node.hardware_class)
        if wide is not None and (hardware is None or hardware.int8_ops is None):
            # The table has no int8 rate of the class, so no deadline could be set: an ordinary walk instead.
            walk, wide, together = True, None, 0
        # The first call to a new node walks each of its models.
        if node_id in self._needs_walk:
            walk, wide = True, None
        walk = walk or wide is not None
        nonce = self._rng.randbytes(32)
        wants = wants_for(node, walk=walk, wide=wide)
        session = await open_session(service, node, Channel.CALLED, nonce, wants, together=together)
        if walk and session.nonce != nonce and not any(e.kind != "read" for e in session.entries):
            # An earlier call still waits and has no walk.  The walk that was due must follow.
            self._needs_walk.add(node_id)
        else:
            self._needs_walk.discard(node_id)
        queue = self._channels.get(node_id)
        if queue is not None and not queue.full():
            queue.put_nowait({"session": session.id, **to_wire(service, session)})

    async def _record_missed_call(self, node: Node) -> None:
        service = self._service

        async def record(tx: Tx) -> None:
            references = await service.inputs.load_reference_digests(tx, node.id)
            await sessions.record_missed_call(tx, node.id, node.models, references, service.now_ms())

        await service.db.write(record)

    def _forget_expired_calls(self) -> None:
        """Drop the start times of calls that have expired."""
        oldest = self._service.clock.monotonic() - 2 * self._service.config.sessions.lifetime_s
        while self._pushed and next(iter(self._pushed.values())) < oldest:
            del self._pushed[next(iter(self._pushed))]

    def elapsed_ms(self, session_id: str, issued_ms: int, arrived: tuple[float, int]) -> int:
        """
        The time from the call pushed to the answers' arrival.

        If the verifier restarted in between, the wall clock measures it, from the session's issue.

        Args:
            arrived: The arrival by both clocks: monotonic seconds, and wall milliseconds.
        """
        pushed = self._pushed.get(session_id)
        if pushed is None:
            return max(arrived[1] - issued_ms, 0)
        return int((arrived[0] - pushed) * 1000)


def _end_channel(queue: asyncio.Queue[Mapping[str, Any]]) -> None:
    """Make the stream behind *queue* end.  A call in it that was not sent yet is pushed again later."""
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait({})


CALL_SCHEDULER: web.AppKey[CallScheduler] = web.AppKey("call_scheduler", CallScheduler)


def routes() -> list[web.RouteDef]:
    """The resources of this file."""
    return [
        web.get("/api/v1/nodes/{id}/calls", hold, allow_head=False),
        web.post("/api/v1/calls/{session}/answers", answer),
    ]


async def hold(request: web.Request) -> web.StreamResponse:
    """A node's channel: server-sent events, each of which is a call with a session object."""
    service = service_of(request)
    node, proof = await service.authenticate(request, b"")
    service.node_rates.spend(node.id)
    await service.db.write(lambda tx: service.use(tx, proof), of=node.id)
    if node.id != request.match_info["id"]:
        raise RequestError("a node can hold only its own channel", code="request.forbidden")
    return await request.app[CALL_SCHEDULER].serve(node, request)


async def answer(request: web.Request) -> web.Response:
    """Take the answers to a call.  The clock stops at their last byte, before anything is checked."""
    service = service_of(request)
    body = await read_body(request, MAX_ANSWERS_BYTES)
    arrived = (service.clock.monotonic(), service.now_ms())
    session_id = request.match_info["session"]
    async with service.db.read() as tx:
        session = await sessions.get(tx, session_id)
    elapsed_ms = request.app[CALL_SCHEDULER].elapsed_ms(session_id, session.issued_ms, arrived)
    node, proof = await service.authenticate(request, body)
    if session.node_id != node.id:
        raise RequestError("this call is for another node", code="request.forbidden")
    if session.expires_ms <= arrived[1]:
        raise RequestError("the call has expired", code="session.expired")
    answers = parse_json(body, _AnswersBody).answers
    by_model = {entry.model: Answers(entry.read, entry.walk) for entry in answers}
    if len(by_model) != len(answers):
        raise RequestError("there are two answers for the same model")

    async def use_and_keep(tx: Tx) -> None:
        await service.use(tx, proof)
        await sessions.keep_answers(tx, session_id, by_model, elapsed_ms)

    await service.db.write(use_and_keep, of=node.id)
    return json_response({"elapsed_ms": elapsed_ms})
