"""
Who may call what at a router: the only place that knows it.

The router has no other routes than those of this table, and `verifier.service.access.mount` puts each behind its
check.  `docs/routing.md` has the same table.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from router.config import ROLES, ApiKey
from router.gateway import openai
from router.gateway.jobs import resources
from router.gateway.keys import ANONYMOUS, Keyring
from router.gateway.openai import GATEWAY, KEY
from router.model.operations import OPERATIONS
from router.service import (
    batches,
    changes,
    decisions,
    incidents,
    receipts,
    settlement,
    standing,
    status,
    traffic,
    usage,
)
from router.service.state import STATE, State
from verifier.errors import RequestError
from verifier.roles import Caller, Role
from verifier.service.access import HEALTH, PUBLIC, STRANGER, Anyone, Route, delete, get, post
from verifier.service.front import note_failure, note_identity

_DOTS: Final = 2
"""In a token: its header, its claims and its signature."""
_MAX_TOKEN: Final = 8192
_ALL: Final = {Role.AUDITOR, Role.ADMINISTRATOR}
SEND: Final = frozenset({Role.RELYING_PARTY, Role.ADMINISTRATOR})
OWN_WORK: Final = frozenset({Role.RELYING_PARTY, *_ALL})
STANDING: Final = frozenset({Role.OPERATOR, Role.REVIEWER, *_ALL})
INCIDENTS: Final = frozenset({Role.REVIEWER, *_ALL})
CHANGES: Final = frozenset({Role.REVIEWER, *_ALL})
CHANGE: Final = frozenset({Role.ADMINISTRATOR})
REVIEW: Final = frozenset({Role.REVIEWER, Role.ADMINISTRATOR})
STATEMENTS: Final = frozenset({Role.OPERATOR, *_ALL})
CLAIM: Final = frozenset({Role.OPERATOR, Role.ADMINISTRATOR})
DISPUTES: Final = frozenset({Role.OPERATOR, Role.RELYING_PARTY, Role.ADMINISTRATOR})
STATUS: Final = frozenset(ROLES)
METRICS: Final = frozenset(_ALL)


def routes() -> list[Route]:
    """The table.  It is made anew, because operations can be added."""
    return [
        get("/health", status.health, HEALTH, "Whether the process answers."),
        get("/ready", status.ready, HEALTH, "Whether work can be done: yes, or 503."),
        get("/v1/models", openai.list_models, OWN_WORK, "The models that there is a workload for."),
        get("/v1/models/{model:.+}", openai.show_model, OWN_WORK, "One of them."),
        *(
            post(each.path, partial(openai.serve, each), SEND, f"Work: {each.name}.")
            for each in OPERATIONS.values()
        ),
        *_batch_routes(),
        post(
            "/api/v1/decisions", decisions.make, SEND, "A decision; with endpoints if the key may dispatch."
        ),
        get(
            "/api/v1/commitments",
            decisions.commit,
            OWN_WORK,
            "What the choices of the caller's next requests will follow from.",
        ),
        get("/api/v1/decisions/{id}", decisions.show, OWN_WORK, "A decision; a relying party sees its own."),
        get(
            "/api/v1/traffic-profile",
            traffic.show,
            METRICS,
            "What the traffic of each model looks like, without anybody's text: answers are minted by it.",
        ),
        get("/api/v1/receipts/{id}", receipts.show, OWN_WORK, "A receipt; a relying party sees its own."),
        get("/.well-known/touchstone-receipts.json", receipts.keys, PUBLIC, "The keys that sign receipts."),
        get("/api/v1/usage", usage.show, OWN_WORK, "What was used of limits; a relying party sees its own."),
        get(
            "/api/v1/nodes/{id}/standing",
            standing.show,
            STANDING,
            "A standing; an operator sees its own nodes alone.",
        ),
        get("/api/v1/incidents", incidents.list_open, INCIDENTS, "What waits for a person."),
        get("/api/v1/incidents/{id}", incidents.show, INCIDENTS, "One of them."),
        post("/api/v1/incidents/{id}/release", incidents.release, REVIEW, "Release a node to probation."),
        *_settlement(),
        *_changes(),
        get("/api/v1/status", status.show, STATUS, "Whether work can be done, and why not."),
        get("/metrics", _metrics, METRICS, "Figures for Prometheus."),
    ]


def _settlement() -> list[Route]:
    return [
        get(
            "/api/v1/settlement/statements",
            settlement.list_statements,
            STATEMENTS,
            "Statements of what nodes are paid; an operator sees its own.",
        ),
        get(
            "/api/v1/settlement/statements/{id}",
            settlement.show,
            STATEMENTS,
            "One of them: JSON, CSV, a page, or as it is signed.",
        ),
        get(
            "/api/v1/settlement/statements/{id}/receipts",
            settlement.show_receipts,
            STATEMENTS,
            "The receipts that it rests on; payloads are for auditors.",
        ),
        post(
            "/api/v1/settlement/claims",
            settlement.take_claim,
            CLAIM,
            "A node's usage claim, as it is signed.",
        ),
        post(
            "/api/v1/settlement/dispatched",
            settlement.take_report,
            SEND,
            "A receipt of work that its caller has dispatched itself.",
        ),
        post(
            "/api/v1/settlement/disputes",
            settlement.dispute,
            DISPUTES,
            "Dispute a line of a statement, or the receipt of an own answer.",
        ),
        post(
            "/api/v1/settlement/disputes/{id}/resolve",
            settlement.resolve,
            REVIEW,
            "What became of a dispute.",
        ),
    ]


def _changes() -> list[Route]:
    return [
        get("/api/v1/changes", changes.list_newest, CHANGES, "Changes of the table of workloads."),
        get("/api/v1/changes/{id}", changes.show, CHANGES, "One of them, with both arms side by side."),
        post("/api/v1/changes", changes.propose, CHANGE, "Have a table decide beside the one in force."),
        post("/api/v1/changes/{id}/share", changes.share, CHANGE, "Give it a share of the traffic."),
        post("/api/v1/changes/{id}/promote", changes.promote, CHANGE, "Put it in force."),
        post("/api/v1/changes/{id}/abort", changes.abort, CHANGE, "Go back to the table before, at once."),
    ]


def _batch_routes() -> list[Route]:
    """Files and batches are their owner's alone; people who look after a router see how batches go, and no text."""
    return [
        post("/v1/files", resources.upload, SEND, "Keep a file of requests; it is the caller's alone."),
        get("/v1/files", resources.list_files, OWN_WORK, "The caller's files."),
        get("/v1/files/{id}", resources.show_file, OWN_WORK, "One of them."),
        get("/v1/files/{id}/content", resources.show_content, OWN_WORK, "What is in it."),
        delete("/v1/files/{id}", resources.delete_file, SEND, "Delete it."),
        post("/v1/batches", resources.create, SEND, "Have the requests of a file done in the background."),
        get("/v1/batches", resources.list_jobs, OWN_WORK, "The caller's batches."),
        get("/v1/batches/{id}", resources.show, OWN_WORK, "One of them."),
        post("/v1/batches/{id}/cancel", resources.cancel, SEND, "Cancel it: what is done stays."),
        get(
            "/api/v1/batches",
            batches.list_all,
            OWN_WORK,
            "How batches go, without what is in them; a relying party sees its own.",
        ),
        get("/api/v1/batches/{id}", batches.show, OWN_WORK, "One of them."),
        post("/api/v1/batches/{id}/cancel", batches.cancel, SEND, "Cancel a batch; a relying party its own."),
    ]


async def identify(request: web.Request, route: Route) -> Caller:
    """
    Give the caller of a request for *route*, with those of its roles only that open it.

    Raises:
        RequestError: The credential is missing, unknown, revoked or expired; or it does not open the route.
    """
    if isinstance(route.allowed, Anyone):
        return STRANGER
    try:
        key = _key_of(request)
        if key is None:
            raise needed()
    except RequestError:
        note_failure(request)
        raise
    # Where anyone may use the gateway, all its callers are one.
    note_identity(request, f"key:{key.name}")
    caller = Caller(key.name, frozenset(key.roles), operator=key.operator).acting_as(route.allowed)
    if not caller.roles:
        if key is ANONYMOUS:
            raise needed()
        names = ", ".join(sorted(route.allowed))
        raise RequestError(f"the key does not open this. It needs the role {names}", code="request.forbidden")
    request[KEY] = key
    return caller


def needed() -> RequestError:
    """The refusal of who shows no key."""
    return RequestError("a valid API key is needed", code="request.unauthorised")


def _key_of(request: web.Request) -> ApiKey | None:
    shown = request.headers.getall(hdrs.AUTHORIZATION, [])
    return key_of(shown, request.app[STATE], request.app[GATEWAY].keyring)


def key_of(shown: Sequence[str], state: State, keyring: Keyring) -> ApiKey | None:
    """
    Whose request it is, by the values of its ``Authorization``; `None`: nobody's who is known.

    Raises:
        RequestError: there are several, or one is a token of the issuer that opens nothing.
    """
    if len(shown) > 1:
        # Which of them a proxy has checked is not known.
        raise RequestError("the request has more than one Authorization", code="request.unauthorised")
    key = keyring.find(shown[0] if shown else None)
    if state.issuer is None or not shown or (key is not None and key is not ANONYMOUS):
        return key
    scheme, _, token = shown[0].partition(" ")
    if scheme.lower() != "bearer" or token.count(".") != _DOTS or len(token) > _MAX_TOKEN:
        return key
    caller = state.issuer.caller(token.strip(" "), state.clock.now_ms())
    if caller.roles.isdisjoint(ROLES):
        # A key without a role would be a relying party's.
        raise RequestError("the token opens nothing at a router", code="request.forbidden")
    return keyring.welcome(_guest(state, caller))


def _guest(state: State, caller: Caller) -> ApiKey:
    """A person with a token of the issuer, as a key with the limits of such persons."""
    limits = state.config.access.limits
    return ApiKey(
        name=caller.name,
        sha256="",
        roles=tuple(role for role in ROLES if role in caller.roles),
        operator=caller.operator,
        workloads=limits.workloads,
        requests_per_minute=limits.requests_per_minute,
        concurrency=limits.concurrency,
        tokens_per_minute=limits.tokens_per_minute,
        tokens_per_day=limits.tokens_per_day,
    )


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
