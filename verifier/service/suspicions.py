"""Nodes whose answers are suspected: for routers, which prefer others, and for the reviewers who decide."""

from __future__ import annotations

from typing import Annotated, Any, Final

from aiohttp import web
from msgspec import Meta, Struct

from verifier.errors import RequestError
from verifier.roles import with_note
from verifier.service import access
from verifier.service.access import Route, caller_of
from verifier.service.http import MAX_JSON, json_response, page_of, parse_json, read_body
from verifier.service.state import service_of
from verifier.store import answer_differences, answer_scores, nodes, peer_scores, suspicions
from verifier.store.database import Tx

_LEAST_POOLED: Final = 13.8
"""Operators with this score or more are shown: one false alarm in a million checks."""


class _StepBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=256)]
    reason: Annotated[str, Meta(min_length=1, max_length=2000)]
    actor: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    """On whose behalf: a note, kept with the reason."""


def routes() -> list[Route]:
    """The resources of this file."""
    review = "/api/v1/answer-reviews"
    return [
        access.get("/api/v1/suspicions", list_suspected, access.SUSPICIONS, "List suspected nodes."),
        access.get(review, list_reviews, access.SIDES, "List whose answers a person should look at."),
        access.get(f"{review}/{{id}}", show, access.SIDES, "Show the answers of a node side by side."),
        access.post(f"{review}/{{id}}/{{step}}", take_step, access.REVIEW, "Clear or quarantine a node."),
    ]


async def list_suspected(request: web.Request) -> web.Response:
    """Suspected nodes by id, with their models: what a router loads at start, and follows as ``suspicion`` events."""
    after, limit = page_of(request)
    async with service_of(request).db.read() as tx:
        rows, following = await suspicions.page(tx, after, limit)
    found = [
        {"node": row["node_id"], **{name: row[name] for name in ("model", "level", "since_ms")}}
        for row in rows
    ]
    return json_response({"suspicions": found, "next": following})


async def list_reviews(request: web.Request) -> web.Response:
    """Nodes that are suspected or render prompts otherwise, and operators whose nodes together are at the boundary."""
    async with service_of(request).db.read() as tx:
        found = await reviews(tx)
    return json_response(found)


async def show(request: web.Request) -> web.Response:
    """A node's scores, and its answers that differ: asked, expected and found."""
    async with service_of(request).db.read() as tx:
        found = await describe(tx, request.match_info["id"])
    return json_response(found)


async def take_step(request: web.Request) -> web.Response:
    """Take the step ``clear`` (the score begins at 0) or ``quarantine`` (an incident is made)."""
    service = service_of(request)
    node, step = request.match_info["id"], request.match_info["step"]
    body = parse_json(await read_body(request, MAX_JSON), _StepBody)
    actor = caller_of(request).name
    reason = with_note(body.reason, actor, body.actor)
    now_ms = service.now_ms()
    incident = await service.db.write(
        lambda tx: step_by_name(tx, step, node, body.model, actor, reason, now_ms)
    )
    return json_response({"node": node, "model": body.model, "step": step, "incident": incident})


async def step_by_name(
    tx: Tx, step: str, node_id: str, model: str, actor: str, reason: str, now_ms: int
) -> str | None:
    """
    Take a person's step; gives the incident that it makes.

    Raises:
        RequestError: There is no such step or node, the reason is blank, or there is nothing to decide.
    """
    if step == "clear":
        await suspicions.clear(tx, node_id, model, actor, reason, now_ms)
        return None
    if step == "quarantine":
        return await suspicions.quarantine(tx, node_id, model, actor, reason, now_ms)
    raise RequestError(f"there is no step {step[:40]!r}. The steps are clear and quarantine")


async def reviews(tx: Tx) -> dict[str, Any]:
    """What a person should look at, as JSON."""
    return {
        "nodes": [_score(row) for row in await suspicions.review(tx)],
        "operators": await answer_scores.operators(tx, _LEAST_POOLED),
        "peers": await peer_scores.reviews(tx),
    }


async def describe(tx: Tx, node_id: str) -> dict[str, Any]:
    """
    A node's scores and differences, as JSON.

    Raises:
        RequestError: there is no such node.
    """
    node = await nodes.by_id(tx, node_id)
    if node is None:
        raise RequestError("there is no such node", code="request.not-found")
    return {
        "node": node_id,
        "operator": node.operator,
        "scores": [_score(row) for row in await answer_scores.of_node(tx, node_id)],
        "differences": await answer_differences.of_node(tx, node_id),
        "peers": await peer_scores.of_node(tx, node_id),
    }


def _score(row: dict[str, Any]) -> dict[str, Any]:
    found = {"node": row["node_id"], **{name: value for name, value in row.items() if name != "node_id"}}
    return {**found, "score": round(row["score"], 3)}
