"""The queue of reviews, in the order in which people should look."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from verifier import triage
from verifier.config import IncidentsConfig
from verifier.service import access
from verifier.service.access import Route
from verifier.service.http import json_response, page_of
from verifier.service.state import service_of
from verifier.store import reviews
from verifier.store.database import Tx
from verifier.triage import Costs


def routes() -> list[Route]:
    """The resources of this file."""
    return [access.get("/api/v1/reviews", show, access.SIDES, "List what people should look at first.")]


async def show(request: web.Request) -> web.Response:
    """What waits for a person, what leaving it costs most first."""
    service = service_of(request)
    _, limit = page_of(request)
    now_ms = service.now_ms()
    async with service.db.read() as tx:
        found = await queue(tx, service.config.incidents, now_ms, limit)
    return json_response(found)


async def queue(tx: Tx, config: IncidentsConfig, now_ms: int, limit: int) -> dict[str, Any]:
    """The first *limit* entries of the queue as JSON, with all that their order follows from."""
    found = await reviews.read_queue(tx, now_ms)
    costs = Costs(held=config.hour_held_costs, trusted=config.hour_trusted_costs)
    entries = [
        {
            **triage.to_wire(waiting, priority, now_ms),
            "incidents": found.incidents.get(waiting.id, 0),
            "cause": found.causes.get(waiting.id),
        }
        for waiting, priority in triage.in_order(found.entries, costs, now_ms)[:limit]
    ]
    return {
        "reviews": entries,
        "waiting": len(found.entries),
        "costs": {"hour_held": costs.held, "hour_trusted": costs.trusted},
    }
