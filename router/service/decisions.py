"""Decisions as a resource: look one up, or ask for one and dispatch yourself."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from router.choose.decision import Decision
from router.gateway.openai import GATEWAY
from router.model.errors import WorkloadError
from router.service.state import STATE, require_key
from router.state.records import shown, with_excluded
from verifier.errors import RequestError
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body


class _DecisionBody(Struct, frozen=True, forbid_unknown_fields=True):
    model: Annotated[str, Meta(max_length=128)]
    workload: Annotated[str, Meta(max_length=64)] | None = None
    explain: bool = True


def routes() -> list[web.RouteDef]:
    """The resources of this file."""
    return [
        web.post("/api/v1/decisions", make),
        web.get("/api/v1/decisions/{id}", show),
    ]


async def make(request: web.Request) -> web.Response:
    """Decide for someone who dispatches the work: endpoints and pins come with it."""
    key = require_key(request)
    given = parse_json(await read_body(request, MAX_JSON), _DecisionBody)
    gateway = request.app[GATEWAY]
    try:
        workload = gateway.table.route(given.model, given.workload, key.workloads)
    except WorkloadError as error:
        code = "request.not-found" if error.code == "model_not_found" else "request.malformed"
        raise RequestError(str(error), code=code) from None
    dispatcher = gateway.dispatcher
    record = dispatcher.decide(workload, key.name)
    dispatcher.records.ended(record)
    wire = record.to_wire(dispatcher.excluded(record.decision) if given.explain else None)
    wire["endpoints"] = dispatcher.endpoints(record)
    return json_response(wire, status=201, headers={"Location": f"/api/v1/decisions/{record.id}"})


async def show(request: web.Request) -> web.Response:
    """A decision with every verdict and term, and what became of it."""
    require_key(request)
    state = request.app[STATE]
    record_id = request.match_info["id"]
    dispatcher = request.app[GATEWAY].dispatcher
    record = state.records.get(record_id)
    if record is not None:
        wire = shown(record)
        return json_response(with_excluded(wire, dispatcher.excluded(Decision.from_wire(wire))))
    written = await state.keeper.find(record_id[:64])
    if written is None:
        raise RequestError("no such decision is kept", code="request.not-found")
    return json_response(msgspec.Raw(written))
