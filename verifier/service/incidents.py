"""Incidents: people review them, and routers report what they have seen."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from verifier.errors import RequestError
from verifier.roles import with_note
from verifier.service import access
from verifier.service.access import Route, caller_of
from verifier.service.http import MAX_JSON, json_response, page_of, parse_json, read_body
from verifier.service.state import service_of
from verifier.store import incidents, nodes, reports
from verifier.store.database import Row, Tx
from verifier.store.reports import Report
from verifier.triage import Fault

_MAX_EVIDENCE_BYTES: Final = 4096
"""Of JSON."""
_MAX_EVIDENCE_DEPTH: Final = 8

_Text = Annotated[str, Meta(min_length=1, max_length=2000)]


class _StepBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    actor: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    """On whose behalf: a note, kept with the reason.  Who takes the step is the caller."""
    reason: _Text
    fault: Fault | None = None
    """Whether the node was at fault, if the person says so."""


class _ReportBody(Struct, frozen=True, forbid_unknown_fields=True):
    node: Annotated[str, Meta(max_length=64)]
    kind: Annotated[str, Meta(max_length=64)]
    detail: _Text
    evidence: dict[str, Any] | None = None
    """Counts, times and ids of decisions; stored with the incident."""
    report: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")] | None = None
    """The router's id of the report.  The same report sent again gives the same incident, and is not counted."""


def routes() -> list[Route]:
    """The resources of this file."""
    incident = "/api/v1/incidents/{id}"
    return [
        access.get("/api/v1/incidents", list_incidents, access.INCIDENTS, "List incidents."),
        access.post("/api/v1/incidents", report, access.REPORT, "Report what a router has seen."),
        access.get(incident, show, access.INCIDENTS, "Show an incident."),
        access.post(f"{incident}/{{step}}", take_step, access.REVIEW, "Take a step on an incident."),
    ]


async def list_incidents(request: web.Request) -> web.Response:
    """Incidents by id: all, those that hold or may yet hold a node (``open=1``), or those of a node (``node=ID``)."""
    service = service_of(request)
    after, limit = page_of(request)
    async with service.db.read() as tx:
        rows = await incidents.page(
            tx,
            open_only=request.query.get("open") == "1",
            after=after,
            limit=limit,
            node_id=request.query.get("node"),
            operator=caller_of(request).only_operator,
        )
    following = rows[-1]["id"] if len(rows) == limit else None
    now_ms = service.now_ms()
    return json_response({"incidents": [to_wire(row, now_ms) for row in rows], "next": following})


async def show(request: web.Request) -> web.Response:
    """One incident with its history and the reports of routers."""
    service = service_of(request)
    async with service.db.read() as tx:
        found = await describe(tx, request.match_info["id"], service.now_ms())
    if not caller_of(request).sees(found["node"], found["operator"]):
        # As if there were none: that it exists is not told.
        raise RequestError(f"there is no incident {found['id'][:40]!r}", code="request.not-found")
    return json_response(found)


async def take_step(request: web.Request) -> web.Response:
    """
    Take the step ``quarantine``, ``review``, ``release`` or ``retire``.

    The caller takes it, and the body says why.  If a release needs two people, the first one's answer has
    ``awaiting_second``, and the second must have another credential.
    """
    service = service_of(request)
    step = parse_json(await read_body(request, MAX_JSON), _StepBody)
    now_ms = service.now_ms()
    incident_id, name = request.match_info["id"], request.match_info["step"]
    actor = caller_of(request).name
    reason = with_note(step.reason, actor, step.actor)
    two_person = service.config.incidents.two_person
    row = await service.db.write(
        lambda tx: incidents.take_step(
            tx, incident_id, name, actor, reason, now_ms, two_person=two_person, fault=step.fault
        )
    )
    return json_response(to_wire(row, now_ms))


async def report(request: web.Request) -> web.Response:
    """Take a router's report of what it has seen or metered itself; 201 with the incident that it belongs to."""
    service = service_of(request)
    body = parse_json(await read_body(request, MAX_JSON), _ReportBody)
    evidence = None if body.evidence is None else _evidence_text(body.evidence)

    async def take(tx: Tx) -> Row:
        node = await nodes.by_id(tx, body.node)
        if node is None:
            raise RequestError("there is no such node", code="request.not-found")
        received = Report(
            node=node,
            kind=body.kind,
            detail=body.detail,
            reporter=caller_of(request).name,
            id=body.report,
            evidence=evidence,
        )
        return await reports.take_report(tx, received, service.now_ms())

    row = await service.db.write(take)
    return json_response({"id": row["id"], "state": row["state"]}, status=201)


def _evidence_text(evidence: dict[str, Any]) -> str:
    if not _is_shallow(evidence, _MAX_EVIDENCE_DEPTH):
        raise RequestError(f"the evidence is nested deeper than {_MAX_EVIDENCE_DEPTH}")
    text = msgspec.json.encode(evidence)
    if len(text) > _MAX_EVIDENCE_BYTES:
        raise RequestError(f"the evidence has {len(text)} bytes, more than {_MAX_EVIDENCE_BYTES}")
    return text.decode()


def _is_shallow(value: Any, depth: int) -> bool:
    """Whether *value* has at most *depth* maps and lists inside each other, so that parsers can read it again."""
    if not isinstance(value, (dict, list)):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(each, depth - 1) for each in inner)


async def describe(tx: Tx, incident_id: str, now_ms: int) -> dict[str, Any]:
    """
    An incident with all that belongs to it.

    Raises:
        RequestError: it does not exist.
    """
    row = await incidents.get(tx, incident_id)
    return {
        **to_wire(row, now_ms),
        "causes": await incidents.causes(tx, incident_id),
        "history": [
            # What nobody decided says so, beside its reason.
            {**step, "automatic": step["step"] is None}
            for step in await incidents.steps(tx, incident_id)
        ],
        "reports": await reports.of_incident(tx, incident_id),
    }


def to_wire(row: Row, now_ms: int) -> dict[str, Any]:
    """An incident as JSON, with the time left until it should be reviewed."""
    names = ("id", "kind", "severity", "state", "operator", "code", "detail", "cause", "count")
    return {
        **{name: row[name] for name in names},
        "node": row["node_id"],
        "opened": row["opened_ms"] // 1000,
        "last": row["last_ms"] // 1000,
        "review_due_in_s": (row["due_ms"] - now_ms) // 1000,
        "awaiting_second": row["proposed_by"] is not None,
        "proposed_by": row["proposed_by"],
    }
