"""Incidents: people look and decide, routers report what they saw."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct

from verifier.errors import RequestError
from verifier.service.http import MAX_JSON, json_response, page_of, parse_json, read_body, require_bearer
from verifier.service.state import service_of
from verifier.store import incidents, nodes
from verifier.store.database import Row

_Text = Annotated[str, Meta(min_length=1, max_length=2000)]


class _StepBody(Struct, frozen=True, forbid_unknown_fields=True):
    actor: Annotated[str, Meta(min_length=1, max_length=128)]
    reason: _Text


class _ReportBody(Struct, frozen=True, forbid_unknown_fields=True):
    node: Annotated[str, Meta(max_length=64)]
    kind: Annotated[str, Meta(max_length=64)]
    detail: _Text


def routes() -> list[web.RouteDef]:
    """The resources of this file."""
    return [
        web.get("/api/v1/incidents", list_incidents),
        web.post("/api/v1/incidents", report),
        web.get("/api/v1/incidents/{id}", show),
        web.post("/api/v1/incidents/{id}/{step}", take_step),
    ]


async def list_incidents(request: web.Request) -> web.Response:
    """Incidents by id; ``open=1`` for those that hold or may come to hold a node."""
    service = service_of(request)
    after, limit = page_of(request)
    async with service.db.read() as tx:
        rows = await incidents.page(tx, open_only=request.query.get("open") == "1", after=after, limit=limit)
    following = rows[-1]["id"] if len(rows) == limit else None
    now_ms = service.now_ms()
    return json_response({"incidents": [to_wire(row, now_ms) for row in rows], "next": following})


async def show(request: web.Request) -> web.Response:
    """One incident with its history."""
    service = service_of(request)
    async with service.db.read() as tx:
        row = await incidents.get(tx, request.match_info["id"])
        history = await incidents.steps(tx, row["id"])
        causes = await incidents.causes(tx, row["id"])
    return json_response({**to_wire(row, service.now_ms()), "causes": causes, "history": history})


async def take_step(request: web.Request) -> web.Response:
    """``review``, ``release`` or ``retire``, with who and why; for administrators."""
    service = service_of(request)
    require_bearer(request, service.admin_token)
    given = parse_json(await read_body(request, MAX_JSON), _StepBody)
    now_ms = service.now_ms()
    async with service.db.write() as tx:
        row = await incidents.take_step(
            tx, request.match_info["id"], request.match_info["step"], given.actor, given.reason, now_ms
        )
    return json_response(to_wire(row, now_ms))


async def report(request: web.Request) -> web.Response:
    """What a router has seen and metered itself."""
    service = service_of(request)
    require_bearer(request, service.router_token)
    given = parse_json(await read_body(request, MAX_JSON), _ReportBody)
    now_ms = service.now_ms()
    async with service.db.write() as tx:
        node = await nodes.by_id(tx, given.node)
        if node is None:
            raise RequestError("no such node", code="request.not-found")
        await incidents.report(tx, node, given.kind, f"router.{given.kind}", given.detail, now_ms)
    return web.Response(status=204)


def to_wire(row: Row, now_ms: int) -> dict[str, Any]:
    """An incident as people see it, with the time left to the review target."""
    shown = ("id", "kind", "severity", "state", "operator", "code", "detail", "cause", "count")
    return {
        **{name: row[name] for name in shown},
        "node": row["node_id"],
        "opened": row["opened_ms"] // 1000,
        "last": row["last_ms"] // 1000,
        "review_due_in_s": (row["due_ms"] - now_ms) // 1000,
    }
