"""Open incidents by what they rest on, side by side, and their release in one step."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from msgspec import Meta, Struct

from verifier.roles import with_note
from verifier.service import access
from verifier.service.access import Route, caller_of
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body
from verifier.service.state import service_of
from verifier.store import incident_causes
from verifier.triage import Fault


class _ReleaseBody(Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, Meta(max_length=2000)]
    actor: Annotated[str, Meta(max_length=128)] | None = None
    """On whose behalf: a note, kept with the reason."""
    fault: Fault | None = None
    """Whether the nodes were at fault; if it is not said, they were not."""


def routes() -> list[Route]:
    """The resources of this file."""
    base = "/api/v1/incident-causes"
    return [
        access.get(base, list_causes, access.INCIDENTS, "List what open incidents rest on."),
        access.get(f"{base}/{{id}}", show, access.INCIDENTS, "Show the open incidents of a cause."),
        access.post(f"{base}/{{id}}/release", release, access.REVIEW, "Release all that rests on a cause."),
    ]


async def list_causes(request: web.Request) -> web.Response:
    """What open incidents rest on, with how many nodes; and how many incidents rest on nothing of ours."""
    service, operator = service_of(request), caller_of(request).only_operator
    async with service.db.read() as tx:
        things = await incident_causes.every(tx, operator)
        alone = await incident_causes.without(tx, operator)
    now_ms = service.now_ms()
    return json_response(
        {"causes": [incident_causes.to_wire(each, now_ms) for each in things], "without_cause": alone}
    )


async def show(request: web.Request) -> web.Response:
    """The open incidents that rest on a cause, each with what was expected and what the evidence had."""
    service, operator = service_of(request), caller_of(request).only_operator
    async with service.db.read() as tx:
        found = await incident_causes.find(tx, request.match_info["id"], operator)
        sides = await incident_causes.side_by_side(tx, found, operator)
    return json_response({**incident_causes.to_wire(found, service.now_ms()), "side_by_side": sides})


async def release(request: web.Request) -> web.Response:
    """Release all open incidents that rest on a cause, with one reason; if it takes two people, the first proposes."""
    service = service_of(request)
    body = parse_json(await read_body(request, MAX_JSON), _ReleaseBody)
    actor = caller_of(request).name
    reason = with_note(body.reason, actor, body.actor)
    two_person = service.config.incidents.two_person
    name, now_ms = request.match_info["id"], service.now_ms()
    found, released, waiting = await service.db.write(
        lambda tx: incident_causes.release(
            tx, name, actor, reason, now_ms, two_person=two_person, fault=body.fault
        )
    )
    return json_response({"thing": found.thing, "released": released, "awaiting_second": waiting})
