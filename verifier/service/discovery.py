"""Discovery: the verifier's key, formats, state and metrics, and how many challenges are left."""

from __future__ import annotations

import math

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest

from attester.evidence import MEDIA_TYPE
from verifier import results
from verifier.service import access
from verifier.service.access import Route
from verifier.service.http import json_response
from verifier.service.sessions import PREFIX, SESSION_TYPE
from verifier.service.state import service_of
from verifier.store import log_tree

_statements = Gauge("touchstone_store_statements", "Statements since the start.")
_transactions = Gauge("touchstone_store_transactions", "Transactions that were committed since the start.")
_commits = Gauge("touchstone_store_commits", "Commits since the start; several transactions may share one.")


def routes() -> list[Route]:
    """The resources of this file."""
    return [
        access.get("/.well-known/veraison/verification", verification, access.PUBLIC, "Discovery."),
        access.get("/.well-known/jwks.json", jwks, access.PUBLIC, "The keys that sign results."),
        access.get("/health", live, access.HEALTH, "Whether the process serves."),
        access.get("/ready", ready, access.HEALTH, "Whether it can use its database."),
        access.get("/api/v1/challenges", levels, access.STATE, "How many challenges are left."),
        Route(
            method="GET", path="/metrics", handler=metrics, allowed=access.STATE,
            summary="Counters for Prometheus.", on_loopback=True,
        ),
    ]  # fmt: skip


async def live(_: web.Request) -> web.Response:
    """Say that the process serves."""
    return json_response({"status": "live"}, headers={"Cache-Control": "no-store"})


async def ready(request: web.Request) -> web.Response:
    """Say that the database can be used; 503 if it cannot."""
    await service_of(request).readiness.check()
    return json_response({"status": "ready"}, headers={"Cache-Control": "no-store"})


async def verification(request: web.Request) -> web.Response:
    """The discovery document of Veraison's verification service."""
    service = service_of(request)
    async with service.db.read() as tx:
        policy = await service.inputs.load_bundle(tx, (await service.inputs.load_rollout(tx)).active)
        log = await log_tree.newest(tx)
    document = {
        "ear-verification-key": service.signing_key.verifying.jwk(),
        "media-types": [MEDIA_TYPE],
        "attestation-schemes": ["touchstone-platform", "touchstone-weights", "touchstone-exposure"],
        "version": results.BUILD,
        "service-state": "READY",
        "api-endpoints": {
            "newChallengeResponseSession": f"{PREFIX}/newSession",
            "jwks": "/.well-known/jwks.json",
            "events": "/api/v1/events",
        },
        "session-media-type": SESSION_TYPE,
        "issuer": service.issuer,
        "policy": policy.id,
        # What anybody needs to verify the log; null in the first half second.
        "log": None if log is None else {"origin": log.origin, "vkey": log.vkey, "prefix": log.prefix},
        # Seconds since 1970, so that a node can tell that its clock is wrong.
        "time": service.now_ms() // 1000,
        "clock": service.duties.clock_to_wire(),
    }
    return json_response(
        document,
        headers={"Cache-Control": "max-age=60"},
        content_type="application/vnd.veraison.discovery+json",
    )


async def jwks(request: web.Request) -> web.Response:
    """Every key that can have signed a live result (RFC 7517 §5)."""
    return web.Response(
        body=service_of(request).jwks,
        headers={"Cache-Control": "max-age=60"},
        content_type="application/jwk-set+json",
    )


async def levels(request: web.Request) -> web.Response:
    """How many challenges are left, and for how many hours; null where no node uses them."""
    pools = service_of(request).pools
    await pools.refresh()
    return json_response(
        {
            "pools": [
                {
                    "model": level.model,
                    "kind": level.kind,
                    "minted": level.minted,
                    "free": level.free,
                    "in_force": level.in_force,
                    "hours": None if math.isinf(level.hours) else round(level.hours, 2),
                    "low": pools.is_low(level),
                }
                for level in pools.levels
            ]
        }
    )


async def metrics(request: web.Request) -> web.Response:
    """Counters for Prometheus."""
    service = service_of(request)
    await service.reviews.refresh()
    stats = service.db.stats
    _statements.set(stats.statements)
    _transactions.set(stats.transactions)
    _commits.set(stats.commits)
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
