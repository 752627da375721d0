"""Whether the router works: a word for load balancers, and the whole of it for people."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from router.choose.gates import FEED_SILENT_S
from router.gateway.openai import GATEWAY
from router.model.clock import Clock
from router.service.state import STATE, State
from router.state.fleet import Fleet
from verifier.service.http import json_response


async def health(_: web.Request) -> web.Response:
    """That the process answers."""
    return json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """Whether work can be done; 503 while the verifier is silent or no node may do any work.  Why is in the status."""
    state = request.app[STATE]
    state.fleet.advance()
    is_ready = _hears(state) and any(any(lanes.values()) for lanes in state.fleet.census().values())
    return json_response({"status": "ok" if is_ready else "unavailable"}, status=200 if is_ready else 503)


async def show(request: web.Request) -> web.Response:
    """Whether work can be done, and if not, why; 503 while the verifier is silent."""
    state, gateway = request.app[STATE], request.app[GATEWAY]
    fleet = state.fleet
    fleet.advance()
    open_to_work = _hears(state)
    document = {
        "router": state.config.name,
        "open": open_to_work,
        "anyone_may_send_work": gateway.keyring.is_open,
        "feed_silent_s": round(fleet.silent_s, 1),
        "clock": _clock_to_wire(state.clock, state.config.verifier.skew_s),
        "identity": state.registrar.to_wire(),
        "receipts": None if state.receipts is None else state.receipts.sender.to_wire(),
        "table": fleet.table.digest,
        "change": _change(state),
        "snapshot": fleet.version,
        "nodes": len(fleet),
        "in_flight": gateway.in_flight,
        "workloads": {
            name: {"lanes": lanes, "closed": fleet.closed(name), **_revisions(fleet, name)}
            for name, lanes in fleet.census().items()
        },
    }
    return json_response(document, status=200 if open_to_work else 503)


def _change(state: State) -> dict[str, Any] | None:
    """The change of the table that is live, and whether it decides here."""
    changes = state.changes
    latest = changes.latest
    if latest is None and not changes.problem:
        return None
    return {
        "id": None if latest is None else latest.change.id,
        "share_percent": 0 if latest is None else latest.change.share,
        "decides_here": changes.trial is not None,
        "problem": changes.problem or None,
    }


def _revisions(fleet: Fleet, name: str) -> dict[str, Any]:
    """The model of a workload, and its revisions: who has which, and which are asked for."""
    workload = fleet.table.workloads[name]
    return {
        "model": workload.model,
        "revisions": {
            digest: {
                "nodes": has,
                "may_work": may,
                "allowed": not workload.digests or digest in workload.digests,
                "required": digest in workload.digests,
            }
            for digest, (has, may) in fleet.revisions(name).items()
        },
    }


def _hears(state: State) -> bool:
    return state.fleet.silent_s <= FEED_SILENT_S


def _clock_to_wire(clock: Clock, skew_s: int) -> dict[str, float | str | None]:
    """What is known of the clock.  If it differs from the verifier's, nobody here knows which of the two is wrong."""
    ahead_s = clock.ahead_s()
    return {
        "ahead_of_verifier_s": None if ahead_s is None else round(ahead_s, 1),
        "stepped_s": clock.stepped_ms / 1000 if clock.steps else None,
        "steady_s": round(clock.steady_s, 1),
        "warning": clock.describe_difference(skew_s) or None,
    }
