"""
Calls: at secret moments the verifier challenges the nodes that hold a channel open.

The clock runs from the moment that the call is pushed until the last byte of the answers arrives.
The answers travel alone; the signed evidence that follows repeats them.
"""

from __future__ import annotations

import asyncio
import random
from typing import Annotated, Any, Final

import structlog
from aiohttp import web
from msgspec import Meta, Struct

from verifier.challenges import posing
from verifier.errors import RequestError, VerifierError
from verifier.schemes.context import Answers, Channel, Node
from verifier.service import access
from verifier.service.access import Route
from verifier.service.call_plan import CallPlan, PlannedNode
from verifier.service.channels import Channels
from verifier.service.front import note_failure
from verifier.service.http import json_response, parse_json, read_body
from verifier.service.make_ups import SOON_S, MakeUps
from verifier.service.sessions import open_session, to_wire, wants_for
from verifier.service.state import Service, service_of
from verifier.service.widespread import is_widespread
from verifier.store import answers as stored_answers
from verifier.store import events, incidents, nodes, sessions
from verifier.store.database import Tx, UnavailableError
from verifier.store.ids import new_nonce
from verifier.store.nodes import LiveNode
from verifier.store.sessions import StoredSession

MAX_ANSWERS_BYTES: Final = 1 << 20
"""The size of the body of one request; 2,048 rows of several models fit."""
_TICK_S: Final = 0.1
_FIRST_RETURN_S: Final = 1.0
"""So long a due call waits before it is looked whether its node is back; then twice as long, up to `SOON_S`."""
_COUNT_EVERY_S: Final = 5.0
_GONE_WITHIN_S: Final = 900.0
"""Channels that ended together longer ago are no outage any more: the results of their nodes have expired."""
_LOOK_EVERY_S: Final = 1.0
"""How often it is looked whether nodes are back that missed a call; it is a query if several processes share."""
_SPARE_SHARE: Final = 0.2
"""After a change of the process that calls: so much of its life, a result is still to live at the next call."""
_OUTAGE_GRACE_S: Final = 60.0
"""How long a due call waits at least after an outage of ours: so long an attester may wait to come back."""

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
    Holds the channels of the nodes that are connected here, and decides when each node is called.

    Every node that is not retired has a moment for its next call, whether it is connected or not: a
    node must not choose when it is called by choosing when to connect.  If a node has no channel
    open when it is called, nor for a while afterwards, the call counts as missed.  A call that came to
    nothing is made up for (`verifier.service.make_ups`).

    Of several replicas the one with the lease decides.  A call is pushed by the replica that holds the
    node's channel.

    Args:
        rng: It must be unpredictable: a cheating node must not know the moments.
    """

    def __init__(self, service: Service, *, rng: random.Random | None = None) -> None:
        self._service = service
        self._rng = rng or random.SystemRandom()
        self._plan_anew()
        self.channels = Channels(service)
        self._deferred: dict[str, tuple[float, float]] = {}
        """By node whose due call waits for it: since when, and for how many seconds next."""
        self._seen = 0
        """The number of the last event whose node was taken in."""
        self._is_widespread = False
        """Whether most channels have ended, when it was looked last."""
        self._counted_at = float("-inf")
        self._counting = asyncio.Lock()
        self._look_at = float("-inf")
        """When it is looked next whether nodes are back."""

    def _plan_anew(self) -> None:
        self.plan = CallPlan(self._rng)
        self.make_ups = MakeUps(self.plan, self._rng, self._service.config.calls.max_interval_s)

    @property
    def connected(self) -> frozenset[str]:
        """The nodes that hold a channel open here."""
        return self.channels.here

    def close(self) -> None:
        """End all channels."""
        self.channels.close()

    async def serve(self, node: Node, request: web.Request) -> web.StreamResponse:
        """Hold one node's channel until it ends.  A newer channel of the same node ends it."""
        return await self.channels.serve(node, request)

    async def run(self) -> None:
        """Call the nodes whose moments come, until cancelled."""
        service = self._service
        leads = False
        while True:
            try:
                await self.channels.push_waiting()
                if service.duties.held:
                    if not leads:
                        # Moments from before another process has called are worth nothing.
                        self._plan_anew()
                        await self.refresh()
                    await self._take_changes()
                    await self.tick()
                leads = service.duties.held
            except VerifierError as error:
                if isinstance(error, UnavailableError):
                    service.duties.note_failure()
                _log.error("calls could not be made", error=str(error))
            await asyncio.sleep(_TICK_S)

    async def refresh(self) -> None:
        """Plan all nodes that are not retired, and no others."""
        service = self._service
        async with service.db.scan() as tx:
            _, self._seen = await events.bounds(tx)
            live = await nodes.live(tx)
        planned = {node.id: PlannedNode(node.operator, node.models) for node in live}
        within = {node.id: self._within_s(node) for node in live}
        self.plan.replace_all(planned, service.clock.monotonic(), within)

    def _within_s(self, node: LiveNode) -> float:
        """How long a node's call may wait that was planned by a process before us: not until its result expires."""
        service = self._service
        lifetime_s, max_s = service.config.results.lifetime_s, service.config.calls.max_interval_s
        left_s = (node.expires_ms - service.now_ms()) / 1000
        if left_s <= 0:
            return max_s
        return min(max(left_s - lifetime_s * _SPARE_SHARE, SOON_S), max_s)

    async def _take_changes(self) -> None:
        """Take in nodes that came or were retired since the last look."""
        service = self._service
        async with service.db.read() as tx:
            changes = await events.node_changes(tx, self._seen)
            found = {node_id: await nodes.by_id(tx, node_id) for node_id in changes.changed}
        self._seen = changes.newest
        for node_id, node in found.items():
            if node is None or node.state == "retired":
                self.make_ups.forget(node_id)
                self.plan.remove(node_id)
            else:
                planned = PlannedNode(node.operator, node.models)
                self.plan.add(
                    node_id, planned, service.clock.monotonic(), service.config.calls.max_interval_s
                )
        for node_id in changes.moved:
            # What it showed of another revision counts no more, and it is not its fault that nothing was asked yet.
            self.make_ups.owe(node_id, service.clock.monotonic(), is_void=True)

    async def tick(self) -> None:
        """Call the nodes whose moment has come, and draw their next moments."""
        now = self._service.clock.monotonic()
        for ended in self._service.duties.take_ended():
            self.make_ups.owe(ended.node_id, now, is_void=ended.is_void)
        await self._call_returned(now)
        due = self.plan.due(now)
        # All at once: their transactions share commits.
        made = [self._call_due(node_id, now) for node_id in due]
        for node_id, outcome in zip(due, await asyncio.gather(*made, return_exceptions=True), strict=True):
            if isinstance(outcome, VerifierError):
                if isinstance(outcome, UnavailableError):
                    self._service.duties.note_failure()
                _log.error("a call could not be made", node=node_id, error=str(outcome))
                self.make_ups.owe(node_id, now, is_void=True)
            elif isinstance(outcome, BaseException):
                raise outcome

    async def _call_returned(self, now: float) -> None:
        """Plan the make-up calls of the nodes that are back."""
        if not self.make_ups.absent or now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        for node_id in await self.channels.open_among(sorted(self.make_ups.absent)):
            self.make_ups.owe(node_id, now, is_void=True)

    async def _call_due(self, node_id: str, now: float) -> None:
        calls = self._service.config.calls
        if node_id in self.make_ups and not await self.channels.is_open(node_id):
            self.make_ups.wait_for(node_id, is_void=True)
            return
        self.plan.set(node_id, now + self._rng.uniform(calls.min_interval_s, calls.max_interval_s))
        drawn_together, drawn_wide, drawn_walk = (self._rng.random() for _ in range(3))
        models = self.plan.models(node_id)
        model = self._rng.choice(models) if models else None
        if (wait_s := await self._wait_for(node_id, now)) > 0:
            self.plan.set(node_id, now + wait_s)
            return
        must_walk = self.make_ups.begin(node_id)
        if self.make_ups.watches(node_id):
            # So that what it shows now lasts for one interval at most, the time to notice its silence included.
            longest_s = max(calls.max_interval_s - calls.answer_s, calls.min_interval_s)
            self.plan.set(node_id, now + self._rng.uniform(calls.min_interval_s, longest_s))
        size = self.plan.group_size(node_id, model)
        walk = must_walk or drawn_walk < calls.walk_share
        # The moment of any member may call the whole group.  The share is divided among them: otherwise
        # a large group would be called all the time.
        if size > 1 and drawn_together < calls.together_share / size:
            await self._call_together(node_id, self.plan.group(node_id, model), model, walk=walk)
        else:
            await self.call(node_id, walk=walk, wide=model if drawn_wide < calls.wide_share else None)

    async def _wait_for(self, node_id: str, now: float) -> float:
        """
        How many seconds a due call waits for its node to come back; 0 if it does not wait.

        It waits if the node's channel has only just ended, or if all channels may have ended for our sake.  It is
        looked again and again, at growing times, whether the node is back.
        """
        grace_s = self._service.config.calls.grace_s
        since, wait_s = self._deferred.pop(node_id, (now, _FIRST_RETURN_S))
        if await self.channels.is_open(node_id):
            return 0
        # After an outage of ours, nodes may still be on their way back.
        after_outage = self._service.duties.healthy_for_s < max(grace_s, _OUTAGE_GRACE_S)
        ended_s = await self.channels.ended_s(node_id)
        has_just_left = now - since < grace_s and ended_s is not None and ended_s < grace_s
        if not (after_outage or has_just_left):
            return 0
        # No longer than a failed call waits: after an outage the node's result may be about to expire.
        self._deferred[node_id] = (since, min(wait_s * 2, SOON_S))
        return wait_s

    async def _call_together(self, due: str, group: list[str], model: str | None, *, walk: bool) -> None:
        """
        Call a group at one moment, without waiting for one node before calling the next.

        Only nodes with an open channel and no waiting call count as called together, because only
        their devices are busy.  If the node *due* has no channel, it misses its call; the others do not.
        """
        connected = await self.channels.open_among(group)
        async with self._service.db.read() as tx:
            waiting = await sessions.waiting_calls(tx, group, self._service.now_ms())
        ready = [other for other in group if other in connected and other not in waiting]
        together = len(ready) if len(ready) > 1 else 0
        await asyncio.gather(
            *(
                self.call(other, walk=walk, wide=model, together=together if other in ready else 0)
                for other in {due, *ready}
            )
        )

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
            held = await incidents.holding(tx, node_id)
            rollout = await service.inputs.load_rollout(tx)
            policy = await service.inputs.load_bundle(tx, rollout.policy_for(node_id))
        if node is None or node.state == "retired":
            return
        if not await self.channels.is_open(node_id):
            await self._record_missed_call(node)
            return
        hardware = policy.thresholds.classes.get(node.hardware_class)
        if wide is not None and (hardware is None or hardware.int8_ops is None):
            # The table has no int8 rate of the class, so no deadline could be set: an ordinary walk instead.
            walk, wide, together = True, None, 0
        # The first call to a new node walks each of its models.
        if node_id in self.plan.needs_walk:
            walk, wide = True, None
        walk = walk or wide is not None
        if held is not None:
            # Only a person can let it go.  Until then no answer helps it, and others need the challenges.
            self.plan.needs_walk.add(node_id)
            walk, wide = False, None
        nonce = new_nonce(service.now_ms())
        wants = wants_for(node, walk=walk, wide=wide)
        session = await open_session(service, node, Channel.CALLED, nonce, wants, together=together)
        if session.ended is not None:
            service.duties.note_ended([session.ended])
        if walk and not any(e.kind != "read" for e in session.entries):
            # An earlier call still waits and has no walk, or the pool had none.  The walk that was due must follow.
            self.plan.needs_walk.add(node_id)
        elif walk:
            self.plan.needs_walk.discard(node_id)
        self.channels.push(node_id, {"session": session.id, **await to_wire(service, session)})

    async def _record_missed_call(self, node: Node) -> None:
        service = self._service
        if await self._most_are_gone():
            service.duties.note_widespread()
            self.make_ups.wait_for(node.id, is_void=True)
            return

        async def record(tx: Tx) -> None:
            references = await service.inputs.load_asked(tx, node, service.now_ms())
            await sessions.record_missed_call(tx, node.id, node.models, references, service.now_ms())

        await service.db.write(record)
        self.make_ups.wait_for(node.id, is_void=False)

    async def _most_are_gone(self) -> bool:
        """Whether the channels of most nodes have ended, so that the cause is not theirs."""
        async with self._counting:
            # Calls that are due together wait for one count.
            now = self._service.clock.monotonic()
            if now - self._counted_at >= _COUNT_EVERY_S:
                counts = await self.channels.census(_GONE_WITHIN_S, self.plan.operator)
                self._is_widespread, self._counted_at = is_widespread(*counts), now
            return self._is_widespread


CALL_SCHEDULER: web.AppKey[CallScheduler] = web.AppKey("call_scheduler", CallScheduler)


def routes() -> list[Route]:
    """The resources of this file."""
    return [
        Route(
            method="GET", path="/api/v1/nodes/{id}/calls", handler=hold, allowed=access.BY_NODE,
            summary="Hold a node's call channel open.", has_head=False, signs_body=True,
        ),
        access.post(
            "/api/v1/calls/{session}/answers", answer, access.BY_NODE, "Answer a call.", signs_body=True
        ),
    ]  # fmt: skip


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
    """
    Take the answers to a call.  The clock stops at their last byte, before anything is checked.

    If a walk follows, the node is told of it in return for its answer to the read.
    """
    service = service_of(request)
    body = await read_body(request, MAX_ANSWERS_BYTES)
    arrived = (service.clock.monotonic(), service.now_ms())
    session_id = request.match_info["session"]
    async with service.db.read() as tx:
        try:
            session = await sessions.get(tx, session_id)
        except RequestError:
            note_failure(request)
            raise
    elapsed_ms = request.app[CALL_SCHEDULER].channels.elapsed_ms(session, arrived)
    node, proof = await service.authenticate(request, body)
    if session.node_id != node.id:
        raise RequestError("this call is for another node", code="request.forbidden")
    service.spend_session(session_id, len(body))
    if session.expires_ms <= arrived[1]:
        raise RequestError("the call has expired", code="session.expired")
    answers = parse_json(body, _AnswersBody).answers
    by_model = {entry.model: Answers(entry.read, entry.walk) for entry in answers}
    if len(by_model) != len(answers):
        raise RequestError("there are two answers for the same model")

    async def use_and_keep(tx: Tx) -> StoredSession:
        await service.use(tx, proof)
        return await stored_answers.keep(tx, session_id, by_model, elapsed_ms, arrived[1])

    kept = await service.db.write(use_and_keep, of=node.id)
    answer: dict[str, Any] = {"elapsed_ms": elapsed_ms}
    if kept.awaits_walk:
        walks = [entry for entry in kept.entries if entry.kind != "read"]
        asked = posing.pose(walks, {}, service.pool_key)
        answer["challenge"] = posing.with_files(asked, await service.inputs.load_posed(service.db, asked))
        request.app[CALL_SCHEDULER].channels.note_told(session_id)
    return json_response(answer)
