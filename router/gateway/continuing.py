"""
One request whose stream broke, and what another node needs to go on with it (docs/adr/0068).

Off unless the workload and the caller want it.  Before each further node the gates are asked again, as before any
attempt; here is what else must hold: the same reference digest of the model, the same engine in the same version, a
text that can be gone on from, and a count of it that the model's own tokeniser has made.
"""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web
from msgspec import Struct, structs
from prometheus_client import Counter

from router.gateway.attempts import Attempt
from router.gateway.errors import GatewayError
from router.gateway.metering import Metering
from router.gateway.request import NodeRequest
from router.gateway.sink import Sink
from router.gateway.terms import one_header
from router.model.continuing import (
    CHAT,
    CHAT_ENGINES,
    PartTold,
    Splice,
    ask_to_go_on,
    may_be_seam,
    may_go_on,
)
from router.model.node import NodeView
from router.model.outcomes import Failure, Outcome
from router.model.usage import Usage
from router.model.workload import GoesOn, Workload
from router.state.fleet import Fleet

CONTINUE_HEADER: Final = "X-Touchstone-Continue"
"""``1``: the caller wants its stream gone on with by another node if one breaks; ``0``: it does not."""
_BROKEN: Final = frozenset({Outcome.CRASHED, Outcome.STALLED, Outcome.TRUNCATED, Outcome.HINDERED})
"""After these what had come is an honest beginning, as far as anybody knows."""
_PERFORMANCE: Final = frozenset({"floors", "capacity"})
"""Gates that say nothing against what a node has answered already."""

_seams: Final = Counter(
    "touchstone_router_broken_streams_total", "Streams that broke, by what followed.", ["how"]
)


class Part(Struct, frozen=True):
    """What one node has given of an answer that another one went on with."""

    attempt: Attempt
    tokens: int
    """By the model's tokeniser."""


class FreshSink:
    """A client's side that has been used already, as the next node's attempt sees it: nothing of its own has gone out."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.has_begun = False

    @property
    def is_open(self) -> bool:
        """See `Sink`."""
        return self._sink.is_open

    async def prepare(self) -> None:
        """See `Sink`."""
        await self._sink.prepare()

    def name_revision(self, revision: str) -> None:
        """See `Sink`: the head has gone out, and all parts are of the revision that it names."""

    def may_block(self, size: int) -> bool:
        """See `Sink`."""
        return self._sink.may_block(size)

    async def send(self, data: bytes) -> None:
        """See `Sink`."""
        self.has_begun = True
        await self._sink.send(data)


class Continuing:
    """
    The parts of one answer.

    Args:
        request: As the first node gets it.
        fleet: What is known of nodes now.
        metering: Counts what has come.
    """

    def __init__(self, request: NodeRequest, fleet: Fleet, metering: Metering) -> None:
        self.asked = request
        """What the next node is sent."""
        self.parts: list[Part] = []
        self._request = request
        self._fleet = fleet
        self._metering = metering
        self._text = ""

    @property
    def tokens(self) -> int:
        """How many have come in the parts before."""
        return sum(part.tokens for part in self.parts)

    def with_parts(self, own: Usage) -> Usage:
        """What the client is charged for, if the last node has given so much."""
        return Usage(own.prompt, own.completion + self.tokens)

    def told(self) -> list[PartTold]:
        """The parts before, as the client is told."""
        return [PartTold(each.attempt.node, each.attempt.outcome, each.tokens) for each in self.parts]

    def splice(self) -> Splice | None:
        """What joins the next node's chunks to those before; `None` if there are none before."""
        if not self.parts:
            return None
        first = self.parts[0].attempt.stream
        head = None if first is None or first.delivered is None else first.delivered.head
        return Splice(head or {}, self.told())

    async def begin(self, attempt: Attempt, sink: Sink) -> bool:
        """
        Prepare that another node goes on after an attempt whose stream broke; returns whether one may.

        Raises:
            ClientGoneError: the client is gone.
        """
        part = await self._part_of(attempt)
        text = None if part is None else self._delivered(attempt)
        asked = (
            None if part is None or text is None else self._ask(self._text + text, self.tokens + part.tokens)
        )
        if part is None or text is None or asked is None:
            _seams.labels("ended").inc()
            return False
        if attempt.stream is not None and attempt.stream.unsent:
            # Whole events that came before the one that broke it: what is gone on from must be what the client has.
            await sink.send(attempt.stream.unsent)
        self._text += text
        self.parts.append(part)
        self.asked = asked
        _seams.labels("continued").inc()
        return True

    def obstacle(self, node: str) -> str:
        """Why a node may not go on with what has come; empty if it may."""
        before = self.parts[-1].attempt
        if any(part.attempt.node == node for part in self.parts):
            return "the stream broke at it"
        view = self._fleet.view(node)
        if view.revision(self._request.workload.model) != before.revision:
            return "it has another revision of the model"
        if before.view is None or view.engine != before.view.engine:
            return "it has another engine, or another version of it"
        return ""

    async def _part_of(self, attempt: Attempt) -> Part | None:
        if (
            not attempt.has_begun
            or attempt.outcome not in _BROKEN
            or attempt.failure is Failure.STOPPING
            or attempt.view is None
            or not attempt.revision
            or not self._is_known(attempt.view)
            or self._is_distrusted(attempt.node)
            or not self._metering.has_tokeniser(self._request)
        ):
            return None
        counted = await self._metering.count_answer(self._request, attempt)
        return Part(attempt, counted.tokens) if counted.is_exact else None

    def _is_known(self, view: NodeView) -> bool:
        if view.engine is None:
            return False
        return self._request.operation.name != CHAT or view.engine[0] in CHAT_ENGINES

    def _is_distrusted(self, node: str) -> bool:
        """Whether something has come to light against what the node has answered: nothing is built on that."""
        verdict = self._fleet.verdict(node, self._request.workload)
        return verdict is not None and verdict.gate not in _PERFORMANCE

    def _delivered(self, attempt: Attempt) -> str | None:
        stream = attempt.stream
        text = None if stream is None or stream.delivered is None else stream.delivered.text
        if text is None or not may_be_seam(self._text + text, self._request.operation.name):
            return None
        return text

    def _ask(self, text: str, tokens: int) -> NodeRequest | None:
        request, operation = self._request, self._request.operation
        document = ask_to_go_on(request.document, operation.name, text, tokens, operation.limits)
        if document is None:
            return None
        return structs.replace(request, document=document, body=msgspec.json.encode(document))


def wants_continuing(workload: Workload, header: str | None) -> bool:
    """Whether a broken stream is to be gone on with, by the workload and by what the caller says."""
    match workload.continuing:
        case GoesOn.ALWAYS:
            return header != "0"
        case GoesOn.ASKED:
            return header == "1"
    return False


def read_continue(request: web.Request) -> str | None:
    """
    What a caller says of continuing; `None` if it says nothing.

    Raises:
        GatewayError: it says something else than 0 or 1, or several things.
    """
    header = one_header(request, CONTINUE_HEADER)
    if header not in (None, "0", "1"):
        raise GatewayError(
            400, "invalid_request_error", f"{CONTINUE_HEADER} must be 0 or 1", param=CONTINUE_HEADER
        )
    return header


def make_continuing(
    request: NodeRequest, header: str | None, fleet: Fleet, metering: Metering
) -> Continuing | None:
    """What a request needs if its stream breaks; `None` if it ends then."""
    if not wants_continuing(request.workload, header):
        return None
    if not may_go_on(request.document, request.operation.name, request.added):
        return None
    return Continuing(request, fleet, metering)
