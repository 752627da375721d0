"""
Decides for requests that another gateway passes on: who asks, what for, and which endpoints may do it.

It is the router's own path up to the choice of a node: the same keys and limits, the same reading of bodies, the same
gates, requirements and records.  The choice is the picker's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from msgspec import Struct
from prometheus_client import Histogram

from router.choose.decision import Decision
from router.choose.offering import OfferedNode, offer
from router.config import ApiKey
from router.ext_proc_config import ExtProcSection
from router.gateway import openai
from router.gateway.body import is_large
from router.gateway.dispatch import closed_since
from router.gateway.errors import GatewayError, nobody_may
from router.gateway.handler import Gateway
from router.gateway.keys import ANONYMOUS
from router.gateway.request import read_request, route_request
from router.gateway.terms import require
from router.model.operations import Operation
from router.model.requirements import CallerRequirements
from router.model.workload import Workload
from router.service import access
from router.service.ext_proc.head import MODEL_HEADER, Head, check_model, operation_of
from router.service.ext_proc.picked import ENDPOINT_NOT_ALLOWED
from router.service.ext_proc.places import Places
from router.service.state import State
from router.state.records import Record
from verifier.errors import RequestError

_offered = Histogram(
    "touchstone_router_ext_proc_offered_nodes",
    "Nodes that were offered for a request.",
    buckets=(0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)


class Asked(Struct, frozen=True, kw_only=True):
    """What a request is for."""

    workload: Workload
    required: CallerRequirements | None
    has_tools: bool = False
    tokens: int
    """What it may cost at most, as far as that is known before it is answered."""
    body: bytes | None = None
    """What a node is to get instead of the body that came; `None`: that one."""


class Offer(Struct, frozen=True, kw_only=True):
    """Where a request may go."""

    record: str
    decision: Decision
    scores: dict[str, float]
    """By endpoint."""
    nodes: dict[str, list[str]]
    """By endpoint, the nodes that are there."""


class EmptyOfferError(Exception):
    """No node may do the work; *error* says why, and *record* is the id of the decision."""

    def __init__(self, error: GatewayError, record: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.record = record


class Offers:
    """Decides for one service."""

    def __init__(self, state: State, gateway: Gateway, config: ExtProcSection, places: Places) -> None:
        self._state = state
        self._gateway = gateway
        self._config = config
        self._places = places
        self._open: dict[str, Offer] = {}
        """Offers of requests that are under way, by the ids of their decisions."""

    def admit(self, head: Head) -> tuple[ApiKey, Operation]:
        """
        Give a request a place among those of its key, until `leave`.

        Raises:
            GatewayError: it is for nothing that can be done here, nobody knows who asks, or a limit is reached.
        """
        operation = operation_of(head)
        try:
            key = self._key_of(head)
        except RequestError as error:
            raise openai.refusal_of(error) from None
        openai.admit(self._gateway, key)
        self._gateway.in_flight += 1
        return key, operation

    def _key_of(self, head: Head) -> ApiKey:
        """Whose request it is.  Raises `RequestError`: nobody's who may send work."""
        key = access.key_of(head.authorization, self._state, self._gateway.keyring)
        if key is None and self._config.open:
            key = ANONYMOUS
        if key is None:
            raise access.needed()
        if key is not ANONYMOUS and access.SEND.isdisjoint(key.roles):
            names = ", ".join(sorted(access.SEND))
            raise RequestError(
                f"the key does not open this. It needs the role {names}", code="request.forbidden"
            )
        return key

    def leave(self, key: ApiKey, tokens: int) -> None:
        """Free the place of a request, and count what it may have cost at most."""
        self._gateway.in_flight -= 1
        self._gateway.keyring.leave(key, tokens)

    def read_by_header(self, head: Head, operation: Operation, key: ApiKey) -> Asked:
        """
        What a request is for, by its headers alone.

        Raises:
            GatewayError: they do not say it, or no workload is for it.
        """
        if head.model is None:
            raise GatewayError(400, "invalid_request_error", f"{MODEL_HEADER} is missing", param=MODEL_HEADER)
        workload = route_request(self._gateway.table, head.model, head.workload, key)
        if operation.name not in workload.operations:
            raise GatewayError(404, "invalid_request_error", "the model does not have this operation")
        typical = workload.typical
        return Asked(
            workload=workload,
            required=require(workload, None, head.required),
            tokens=typical.input + typical.output,
        )

    async def read_by_body(self, head: Head, operation: Operation, key: ApiKey, data: bytes) -> Asked:
        """
        What a request is for, by its body, which is read as strictly as the router's own gateway does.

        Raises:
            GatewayError: the body is too large or malformed, or no workload is for it.
        """
        if len(data) > min(self._config.max_body, operation.max_request):
            raise GatewayError(413, "invalid_request_error", "the body is too large")
        read = partial(
            read_request,
            data,
            operation,
            self._gateway.table,
            key,
            workload=head.workload,
            required=head.required,
        )
        request = await self._gateway.aside.run(read) if is_large(data) else read()
        check_model(head, request.workload.model, self._config)
        answer = request.size.answer
        return Asked(
            workload=request.workload,
            required=request.required,
            has_tools=request.has_tools,
            tokens=request.size.prompt + (request.workload.typical.output if answer is None else answer),
            body=None if request.body == data else request.body,
        )

    async def decide(self, asked: Asked, key: ApiKey, within: frozenset[str] | None = None) -> Offer:
        """
        Decide where a request may go.

        Args:
            asked: What it is for.
            key: Whose it is.
            within: The endpoints that the gateway itself allows; `None`: any.

        Raises:
            GatewayError: the caller has asked for too many different requirements.
            EmptyOfferError: no node may do it, or none that a gateway can be told of.
        """
        gateway = self._gateway
        narrowed = await gateway.terms.narrow(asked.workload, asked.required, key.name)
        record = gateway.dispatcher.decide(
            asked.workload, key.name, has_tools=asked.has_tools, narrowed=narrowed
        )
        # In the same turn of the loop: the pool is still what the decision was drawn from.
        pool = self._state.fleet.view_for(asked.workload, narrowed).pool
        nodes = offer(pool, record.decision, self._config.most)
        try:
            made = await self._locate(nodes, record, within)
            _offered.observe(len(record.offered))
        finally:
            gateway.dispatcher.records.finish(record)
        if not made.scores:
            raise EmptyOfferError(self._why_empty(record, nodes), record.id)
        return made

    @contextmanager
    def keeping(self, made: Offer) -> Iterator[None]:
        """Keep an offer in mind as long as its request is under way, for `recheck`."""
        self._open[made.record] = made
        try:
            yield
        finally:
            del self._open[made.record]

    def recheck(self, record: str, picked: Sequence[str]) -> GatewayError | None:
        """
        What is wrong with the endpoints that were picked from an offer, as far as this router has made it.

        A request may have waited in the picker's queue, and its nodes may have lost their trust meanwhile.
        """
        made = self._open.get(record)
        if made is None:
            # Another router has made it.
            return None
        for endpoint in picked:
            nodes = made.nodes.get(endpoint, ())
            if all(closed_since(self._state.fleet, node, made.decision) is not None for node in nodes):
                message = "the node may no longer do the work"
                return GatewayError(
                    503, "service_unavailable", message, code=ENDPOINT_NOT_ALLOWED, retry_after=1
                )
        return None

    async def _locate(self, nodes: list[OfferedNode], record: Record, within: frozenset[str] | None) -> Offer:
        fleet = self._state.fleet
        urls = {each.node: served[0] for each in nodes if (served := fleet.view(each.node).endpoint)}
        found = await self._places.find(urls.values(), within_s=self._config.message_timeout_s / 2)
        scores: dict[str, float] = {}
        there: dict[str, list[str]] = {}
        for each in nodes:
            endpoint = found.get(urls.get(each.node, ""))
            # Names may have taken a while: a node that has lost its trust meanwhile is left out.
            if endpoint is None or (within is not None and endpoint not in within):
                continue
            if closed_since(fleet, each.node, record.decision) is not None:
                continue
            there.setdefault(endpoint, []).append(each.node)
            scores[endpoint] = max(each.score, scores.get(endpoint, 0.0))
        record.offered = tuple(node for nodes in there.values() for node in nodes)
        return Offer(record=record.id, decision=record.decision, scores=scores, nodes=there)

    def _why_empty(self, record: Record, nodes: list[OfferedNode]) -> GatewayError:
        decision = record.decision
        if nodes:
            message = (
                f"{len(nodes)} nodes may do this work, and none of them has an address that can be told"
                " and that the gateway allows"
            )
            return GatewayError(503, "service_unavailable", message, code="address.unknown", retry_after=2)
        gateway = self._gateway
        shortfalls: Counter[str] = gateway.dispatcher.shortfalls(decision)
        return nobody_may(decision, shortfalls, gateway.clock.describe_difference(gateway.skew_s))
