"""Incidents: people look and decide, routers report what they saw."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from verifier.errors import RequestError
from verifier.service.http import MAX_JSON, json_response, page_of, parse_json, read_body, require_bearer
from verifier.service.state import service_of
from verifier.store import incidents, nodes, reports
from verifier.store.database import Row, Tx
from verifier.store.reports import Report

_MAX_EVIDENCE: Final = 4096
"""Bytes of JSON."""
_MAX_DEPTH: Final = 8

_Text = Annotated[str, Meta(min_length=1, max_length=2000)]


class _StepBody(Struct, frozen=True, forbid_unknown_fields=True):
    actor: Annotated[str, Meta(min_length=1, max_length=128)]
    reason: _Text


class _ReportBody(Struct, frozen=True, forbid_unknown_fields=True):
    node: Annotated[str, Meta(max_length=64)]
    kind: Annotated[str, Meta(max_length=64)]
    detail: _Text
    evidence: dict[str, Any] | None = None
    """Counts, times, ids of decisions: kept with the incident."""
    report: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")] | None = None
    """The router's id for it: sent again it answers the same incident and counts nothing."""


def routes() -> list[web.RouteDef]:
    """The resources of this file."""
    return [
        web.get("/api/v1/incidents", list_incidents),
        web.post("/api/v1/incidents", report),
        web.get("/api/v1/incidents/{id}", show),
        web.post("/api/v1/incidents/{id}/{step}", take_step),
    ]


async def list_incidents(request: web.Request) -> web.Response:
    """Incidents by id; ``open=1`` for those that hold or may come to hold a node, ``node=ID`` for those of one."""
    service = service_of(request)
    after, limit = page_of(request)
    async with service.db.read() as tx:
        rows = await incidents.page(
            tx,
            open_only=request.query.get("open") == "1",
            after=after,
            limit=limit,
            node_id=request.query.get("node"),
        )
    following = rows[-1]["id"] if len(rows) == limit else None
    now_ms = service.now_ms()
    return json_response({"incidents": [to_wire(row, now_ms) for row in rows], "next": following})


async def show(request: web.Request) -> web.Response:
    """One incident with its history, and what routers gave with their reports."""
    service = service_of(request)
    async with service.db.read() as tx:
        return json_response(await describe(tx, request.match_info["id"], service.now_ms()))


async def take_step(request: web.Request) -> web.Response:
    """
    ``quarantine``, ``review``, ``release`` or ``retire``, with who and why; for administrators.

    Where two people are asked for, the first release gives ``awaiting_second``.
    """
    service = service_of(request)
    require_bearer(request, service.admin_token)
    given = parse_json(await read_body(request, MAX_JSON), _StepBody)
    now_ms = service.now_ms()
    async with service.db.write() as tx:
        row = await incidents.take_step(
            tx,
            request.match_info["id"],
            request.match_info["step"],
            given.actor,
            given.reason,
            now_ms,
            two_person=service.config.incidents.two_person,
        )
    return json_response(to_wire(row, now_ms))


async def report(request: web.Request) -> web.Response:
    """What a router has seen and metered itself; 201 with the incident that now stands."""
    service = service_of(request)
    require_bearer(request, service.router_token)
    given = parse_json(await read_body(request, MAX_JSON), _ReportBody)
    evidence = None if given.evidence is None else _evidence(given.evidence)
    async with service.db.write() as tx:
        node = await nodes.by_id(tx, given.node)
        if node is None:
            raise RequestError("no such node", code="request.not-found")
        made = Report(node=node, kind=given.kind, detail=given.detail, id=given.report, evidence=evidence)
        row = await reports.take_report(tx, made, service.now_ms())
    return json_response({"id": row["id"], "state": row["state"]}, status=201)


def _evidence(given: dict[str, Any]) -> str:
    if not _is_shallow(given, _MAX_DEPTH):
        raise RequestError(f"the evidence is nested deeper than {_MAX_DEPTH}")
    text = msgspec.json.encode(given)
    if len(text) > _MAX_EVIDENCE:
        raise RequestError(f"the evidence has {len(text)} bytes, and at most {_MAX_EVIDENCE} are kept")
    return text.decode()


def _is_shallow(value: Any, depth: int) -> bool:
    """Whether *value* has no more than *depth* maps and lists inside each other: it is to be read again."""
    if not isinstance(value, (dict, list)):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(each, depth - 1) for each in inner)


async def describe(tx: Tx, incident_id: str, now_ms: int) -> dict[str, Any]:
    """
    All that there is of an incident.

    Raises:
        RequestError: there is none.
    """
    row = await incidents.get(tx, incident_id)
    return {
        **to_wire(row, now_ms),
        "causes": await incidents.causes(tx, incident_id),
        "history": await incidents.steps(tx, incident_id),
        "reports": await reports.of_incident(tx, incident_id),
    }


def to_wire(row: Row, now_ms: int) -> dict[str, Any]:
    """An incident as people see it, with the time left to the review target."""
    shown = ("id", "kind", "severity", "state", "operator", "code", "detail", "cause", "count")
    return {
        **{name: row[name] for name in shown},
        "node": row["node_id"],
        "opened": row["opened_ms"] // 1000,
        "last": row["last_ms"] // 1000,
        "review_due_in_s": (row["due_ms"] - now_ms) // 1000,
        "awaiting_second": row["proposed_by"] is not None,
        "proposed_by": row["proposed_by"],
    }
