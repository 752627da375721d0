"""
Who may call what at a router: the only place that knows it.

The router has no other routes than those of this table, and `verifier.service.access.mount` puts each behind its
check.  `docs/routing.md` has the same table.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from router.config import ROLES, ApiKey
from router.gateway import openai
from router.gateway.keys import ANONYMOUS
from router.gateway.openai import GATEWAY, KEY
from router.model.operations import OPERATIONS
from router.service import decisions, incidents, receipts, settlement, standing, status, traffic, usage
from router.service.state import STATE, State
from verifier.errors import RequestError
from verifier.roles import Caller, Role
from verifier.service.access import HEALTH, PUBLIC, STRANGER, Anyone, Route, get, post
from verifier.service.front import note_failure, note_identity

_DOTS: Final = 2
"""In a token: its header, its claims and its signature."""
_MAX_TOKEN: Final = 8192
_ALL: Final = {Role.AUDITOR, Role.ADMINISTRATOR}
SEND: Final = frozenset({Role.RELYING_PARTY, Role.ADMINISTRATOR})
OWN_WORK: Final = frozenset({Role.RELYING_PARTY, *_ALL})
STANDING: Final = frozenset({Role.OPERATOR, Role.REVIEWER, *_ALL})
INCIDENTS: Final = frozenset({Role.REVIEWER, *_ALL})
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
            raise _needed()
    except RequestError:
        note_failure(request)
        raise
    # Where anyone may use the gateway, all its callers are one.
    note_identity(request, f"key:{key.name}")
    caller = Caller(key.name, frozenset(key.roles), operator=key.operator).acting_as(route.allowed)
    if not caller.roles:
        if key is ANONYMOUS:
            raise _needed()
        names = ", ".join(sorted(route.allowed))
        raise RequestError(f"the key does not open this. It needs the role {names}", code="request.forbidden")
    request[KEY] = key
    return caller


def _needed() -> RequestError:
    return RequestError("a valid API key is needed", code="request.unauthorised")


def _key_of(request: web.Request) -> ApiKey | None:
    shown = request.headers.getall(hdrs.AUTHORIZATION, [])
    if len(shown) > 1:
        # Which of them a proxy has checked is not known.
        raise RequestError("the request has more than one Authorization", code="request.unauthorised")
    state, keyring = request.app[STATE], request.app[GATEWAY].keyring
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
