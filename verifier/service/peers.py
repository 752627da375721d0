"""Scores that nodes gave to other nodes' answers: routers report them, and people look at what stands out."""

from __future__ import annotations

import hashlib

import structlog
from aiohttp import web
from prometheus_client import Counter

from attester.kinds import model_submod
from verifier.answers import sequence, tables
from verifier.answers.peering import PeerReport
from verifier.errors import RequestError
from verifier.schemes.context import AnswerBoundaries, Node
from verifier.service import access
from verifier.service.access import Route, caller_of
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body
from verifier.service.state import Service, service_of
from verifier.store import appraisals, nodes, peer_scores, revisions, served_engine
from verifier.store.database import Row, Tx
from verifier.store.peer_scores import Limits

_LATE_MS = 3600 * 1000
"""A result may have ended so long before its node's score comes: routers try again while the verifier is away."""

_log = structlog.get_logger("verifier")
_reported = Counter("touchstone_peer_scores_total", "Scores of nodes for other nodes' answers.", ["how"])


def routes() -> list[Route]:
    """The resources of this file."""
    path = "/api/v1/answer-checks/peers"
    return [access.post(path, take, access.BY_ROUTER, "Report how a node scores another's answer.")]


async def take(request: web.Request) -> web.Response:
    """
    Take a score, which counts for both nodes.

    The same bytes again get the same answer.  A review may open; nothing else follows.
    """
    service, router = service_of(request), caller_of(request).name
    data = await read_body(request, MAX_JSON)
    report = parse_json(data, PeerReport)
    digest = hashlib.sha256(data).digest()
    config = service.config.answers
    limits = Limits(per_hour=config.router_per_hour, per_node_hour=config.router_per_node_hour)

    async def work(tx: Tx) -> tuple[bool, list[str]]:
        if await peer_scores.reported_before(tx, report.id, router, digest):
            return False, []
        now_ms = service.now_ms()
        node, limit = await _check(tx, report, now_ms)
        await peer_scores.check_room(tx, report, router, limits, now_ms)
        boundaries = await _boundaries(service, tx, node)
        boundary = sequence.boundary(boundaries.suspicion_per_million)
        return True, await peer_scores.take(tx, report, router, digest, boundary, limit, now_ms)

    is_new, opened = await service.db.write(work)
    if is_new:
        _reported.labels("taken").inc()
    for node_id in opened:
        _log.warning("scores of peers: a person should look", node=node_id, model=report.model)
    return json_response({"id": report.id}, status=201 if is_new else 200)


async def _check(tx: Tx, report: PeerReport, now_ms: int) -> tuple[Node, float]:
    """
    The node that answered, and the limit for the two engines.

    Raises:
        RequestError: the nodes are not two of two operators, with results for one revision of the model.
    """
    node, by = await nodes.by_id(tx, report.node), await nodes.by_id(tx, report.by)
    if node is None or by is None or "retired" in (node.state, by.state):
        raise RequestError("there is no such enrolled node", code="request.not-found")
    if node.operator == by.operator:
        raise RequestError("a node of the same operator scores no answer")
    own = await _reference(tx, node.id, report.result, report.model, now_ms)
    if own != await _reference(tx, by.id, report.by_result, report.model, now_ms):
        raise RequestError("the two nodes have not the same revision of the model")
    families = [(await served_engine.engine_of(tx, each))[0] for each in (report.result, report.by_result)]
    return node, tables.peer_limit(*families)


async def _reference(tx: Tx, node_id: str, result: str, model: str, now_ms: int) -> str:
    """The digest of the reference value of a model that a result names.  Raises `RequestError`."""
    row: Row | None = await appraisals.by_id(tx, result)
    if row is None or row["node_id"] != node_id:
        raise RequestError("the node has no such result", code="answers.result.unknown")
    if row["expires_ms"] + _LATE_MS < now_ms:
        raise RequestError("the result ended long ago", code="answers.check.expired")
    reference = revisions.compared_with(row["claims"]).get(model_submod(model))
    if reference is None:
        raise RequestError("the result is not about the model", code="answers.result.unknown")
    return reference


async def _boundaries(service: Service, tx: Tx, node: Node) -> AnswerBoundaries:
    rollout = await service.inputs.load_rollout(tx)
    return (await service.inputs.load_bundle(tx, rollout.policy_for(node.id))).thresholds.answers
