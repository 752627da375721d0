"""How answers move over time, for reviewers: by model, engine version and node; and what is usual, by a person's word."""

from __future__ import annotations

from typing import Annotated, Any, Final

from aiohttp import web
from msgspec import Meta, Struct
from prometheus_client import Gauge

from verifier.answers import days
from verifier.errors import RequestError
from verifier.roles import with_note
from verifier.service import access
from verifier.service.access import Route, caller_of
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body
from verifier.service.state import Service, service_of
from verifier.store import answer_days, drift_views
from verifier.store.database import Tx

DEFAULT_DAYS: Final = 14

_share = Gauge(
    "touchstone_answer_share",
    "Share of checked answers since yesterday that differ, say nothing, part somewhere, or are near the limit.",
    ["model", "engine", "what"],
)
_checks = Gauge("touchstone_answer_checked", "Checked answers since yesterday.", ["model", "engine"])
_reviews = Gauge(
    "touchstone_answer_drift_reviews", "Nodes that wait for a person because their answers moved."
)
_suspect = Gauge(
    "touchstone_answer_versions_suspect",
    "Engine versions all of whose nodes have moved: the reference is suspect.",
)


class _AcceptBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=128)]
    reference: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    family: Annotated[str, Meta(min_length=1, max_length=128)]
    """The engine's name, without its version."""
    reason: Annotated[str, Meta(min_length=1, max_length=2000)]
    actor: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    """On whose behalf: a note, kept with the reason."""


def routes() -> list[Route]:
    """The resources of this file."""
    base = "/api/v1/answer-drift"
    return [
        access.get(base, show_all, access.SIDES, "Show how answers move, by model and engine version."),
        access.get(
            f"{base}/templates", show_templates, access.SIDES, "Show chat templates and defaults in use."
        ),
        access.get(f"{base}/nodes/{{id}}", show_node, access.SIDES, "Show how a node's answers move."),
        access.post(f"{base}/accept", accept, access.REVIEW, "Accept what an engine's nodes do as usual."),
    ]


async def show_all(request: web.Request) -> web.Response:
    """All models, or `?model=`, over the last `?days=`: rates with counts and intervals, scores, and what is suspect."""
    service = service_of(request)
    model, span = request.query.get("model"), _days(request)
    async with service.db.read() as tx:
        found = await drift_views.overview(tx, service.now_ms(), span, model)
    return json_response(found)


async def show_node(request: web.Request) -> web.Response:
    """One node over the last `?days=`, with the templates and sampling defaults that it had."""
    service = service_of(request)
    async with service.db.read() as tx:
        found = await drift_views.of_node(tx, request.match_info["id"], service.now_ms(), _days(request))
    return json_response(found)


async def show_templates(request: web.Request) -> web.Response:
    """Which chat templates and sampling defaults nodes of `?model=` have, and who changed one without a new revision."""
    model = request.query.get("model", "")
    if not model:
        raise RequestError("name the model: ?model=")
    async with service_of(request).db.read() as tx:
        found = await drift_views.templates(tx, model)
    return json_response(found)


async def accept(request: web.Request) -> web.Response:
    """Take what the nodes of an engine family do as usual, from now on."""
    service = service_of(request)
    body = parse_json(await read_body(request, MAX_JSON), _AcceptBody)
    actor = caller_of(request).name
    reason = with_note(body.reason, actor, body.actor)
    now_ms = service.now_ms()

    async def work(tx: Tx) -> dict[str, Any]:
        return await drift_views.accept(
            tx, body.model, body.reference, body.family.lower(), (actor, reason), now_ms
        )

    return json_response(await service.db.write(work))


def _days(request: web.Request) -> int:
    text = request.query.get("days", str(DEFAULT_DAYS))
    if not (text.isascii() and text.isdigit() and len(text) <= 4):
        raise RequestError("days must be a whole number")
    return int(text)


async def measure(service: Service) -> None:
    """Set the metrics.  Raises `StoreError`."""
    # Yesterday too, so that no night begins with nothing.
    day = service.now_ms() // days.DAY_MS
    async with service.db.read() as tx:
        rows = await answer_days.sums(tx, day)
        waiting, suspect = await drift_views.open_reviews(tx)
    _share.clear()
    _checks.clear()
    for row in rows:
        counted = row["agrees"] + row["differs"]
        _checks.labels(row["model"], row["engine"]).set(counted + row["censored"])
        for what, count, of in (
            ("differs", row["differs"], counted),
            ("censored", row["censored"], counted + row["censored"]),
            ("parts", row["parts"], row["parts_of"]),
            ("far", row["far"], row["far_of"]),
        ):
            if of:
                _share.labels(row["model"], row["engine"], what).set(count / of)
    _reviews.set(waiting)
    _suspect.set(suspect)
