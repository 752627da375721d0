"""Decisions as a resource: look one up, or ask for one and dispatch yourself."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from msgspec import Meta, Struct

from router.gateway.openai import CONFIG, DISPATCHER, has_key
from verifier.errors import RequestError
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body


class _DecisionBody(Struct, frozen=True, forbid_unknown_fields=True):
    model: Annotated[str, Meta(max_length=128)]
    explain: bool = True


def routes() -> list[web.RouteDef]:
    """The resources of this file."""
    return [
        web.post("/api/v1/decisions", make),
        web.get("/api/v1/decisions/{id}", show),
    ]


def _require_key(request: web.Request) -> None:
    if not has_key(request):
        raise RequestError("a valid API key is needed", code="request.unauthorised")


async def make(request: web.Request) -> web.Response:
    """Decide for someone who dispatches the work: endpoints and pins come with it."""
    _require_key(request)
    given = parse_json(await read_body(request, MAX_JSON), _DecisionBody)
    workload = request.app[CONFIG].workload_for(given.model)
    if workload is None:
        raise RequestError("no workload for this model", code="request.not-found")
    dispatcher = request.app[DISPATCHER]
    record = dispatcher.decide(workload)
    wire = record.to_wire(full=given.explain)
    wire["endpoints"] = dispatcher.endpoints(record)
    return json_response(wire, status=201, headers={"Location": f"/api/v1/decisions/{record.id}"})


async def show(request: web.Request) -> web.Response:
    """A decision with every verdict and term, and what became of it."""
    _require_key(request)
    record = request.app[DISPATCHER].record(request.match_info["id"])
    if record is None:
        raise RequestError("no such decision is kept", code="request.not-found")
    return json_response(record.to_wire())
