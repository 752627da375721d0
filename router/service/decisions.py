"""Decisions as a resource: look one up, or ask for one and dispatch the work yourself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from router.choose.decision import Decision
from router.config import ApiKey
from router.gateway.commitments import COMMITMENT_HEADER
from router.gateway.errors import GatewayError
from router.gateway.handler import Gateway
from router.gateway.openai import GATEWAY, KEY, admit
from router.gateway.terms import REQUIRE_HEADER, one_header, require
from router.model.errors import WorkloadError
from router.service.state import STATE
from router.state.records import decode_record, with_excluded
from verifier.errors import RequestError
from verifier.roles import Role
from verifier.service.access import caller_of
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body

_MOST_COMMITMENTS: Final = 64
_SEE_ALL: Final = frozenset({Role.AUDITOR, Role.ADMINISTRATOR})


class _DecisionBody(Struct, frozen=True, forbid_unknown_fields=True):
    model: Annotated[str, Meta(max_length=128)]
    workload: Annotated[str, Meta(max_length=64)] | None = None
    explain: bool = True
    tools: bool = False
    """Whether the work may call tools."""
    require: dict[str, Any] | None = None
    """What the caller itself requires, as ``provider.touchstone`` of requests for work has it."""


async def make(request: web.Request) -> web.Response:
    """
    Decide for a caller that dispatches the work itself.

    It counts against the limits of its key as work does.  Endpoints and pins come with the decision if the
    key may dispatch: who has them reaches nodes without the router.
    """
    gateway, key = request.app[GATEWAY], request[KEY]
    try:
        admit(gateway, key)
    except GatewayError as error:
        raise RequestError(str(error), code="request.too-often", retry_after=error.retry_after) from None
    gateway.in_flight += 1
    try:
        return await _make(request, gateway, key)
    except GatewayError as error:
        # What is wrong with requirements or a nonce is said as it is in answers to work.
        return error.response()
    finally:
        gateway.in_flight -= 1
        gateway.keyring.leave(key, 0)


async def _make(request: web.Request, gateway: Gateway, key: ApiKey) -> web.Response:
    given = parse_json(await read_body(request, MAX_JSON), _DecisionBody)
    try:
        workload = gateway.table.route(given.model, given.workload, key.workloads)
    except WorkloadError as error:
        code = "request.not-found" if error.code == "model_not_found" else "request.malformed"
        raise RequestError(str(error), code=code) from None
    dispatcher = gateway.dispatcher
    required = require(workload, given.require, one_header(request, REQUIRE_HEADER))
    narrowed = await gateway.terms.narrow(workload, required, key.name)
    chosen = gateway.terms.choose(request, key.name)
    record = dispatcher.decide(workload, key.name, has_tools=given.tools, narrowed=narrowed, chosen=chosen)
    dispatcher.records.finish(record)
    wire = record.to_wire(dispatcher.excluded(record.decision) if given.explain else None)
    wire["endpoints"] = dispatcher.endpoints(record) if key.may_dispatch else None
    headers = {
        "Location": f"/api/v1/decisions/{record.id}",
        COMMITMENT_HEADER: gateway.terms.commitments.issue(key.name),
    }
    return json_response(wire, status=201, headers=headers)


async def commit(request: web.Request) -> web.Response:
    """Commitments for the caller's next requests, before the router sees the nonces that they bring."""
    text = request.query.get("count", "1")
    if not (text.isascii() and text.isdigit() and len(text) <= 2 and 1 <= int(text) <= _MOST_COMMITMENTS):
        raise RequestError(f"count must be 1 to {_MOST_COMMITMENTS}", code="request.malformed")
    commitments, name = request.app[GATEWAY].terms.commitments, request[KEY].name
    given = [commitments.issue(name) for _ in range(int(text))]
    return json_response({"commitments": given, "expires_ms": commitments.expires_ms()})


async def show(request: web.Request) -> web.Response:
    """A decision with every verdict and every term, and what became of it: for whose work it was, and for auditors."""
    state = request.app[STATE]
    record_id = request.match_info["id"]
    dispatcher = request.app[GATEWAY].dispatcher
    found = state.records.get(record_id)
    stored = await state.persistence.find(record_id[:64]) if found is None else None
    data = found or stored
    try:
        wire = None if data is None else decode_record(data)
    except (msgspec.DecodeError, UnicodeError):
        # Another router wrote it, perhaps of another version.
        wire = None
    if wire is None or not _may_see(request, wire):
        # The same for both: whether others have such a decision is not told.
        raise RequestError("no such decision is kept", code="request.not-found")
    if found is not None:
        wire = with_excluded(wire, dispatcher.excluded(Decision.from_wire(wire)))
    return json_response(wire)


def _may_see(request: web.Request, wire: Mapping[str, Any]) -> bool:
    caller = caller_of(request)
    return not caller.roles.isdisjoint(_SEE_ALL) or wire.get("caller") == caller.name
