"""
Who may call what: the only place that knows it.

Every resource gives its routes with the roles that may call them, and `mount` is the only way into the
application.  A route cannot be written without that decision, and one that is added past `mount` is
answered as if it did not exist.  `docs/access.md` is written from the same routes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from aiohttp import hdrs, web

from verifier.errors import RequestError
from verifier.roles import Caller, Role

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Anyone:
    """No credential is asked for; *because* says why that is safe."""

    because: str
    costs_nothing: bool = False
    """Whether an answer costs no more than a refusal: then a limit would protect nothing."""
    counts_itself: bool = False
    """Whether the handler finds out whose a request with an Authorization is."""


Allowed: TypeAlias = frozenset[Role] | Anyone


def _reads(*roles: Role) -> frozenset[Role]:
    return frozenset({*roles, Role.AUDITOR, Role.ADMINISTRATOR})


def _changes(*roles: Role) -> frozenset[Role]:
    return frozenset({*roles, Role.ADMINISTRATOR})


PUBLIC: Final = Anyone("clients need it before they have a credential")
LOG: Final = Anyone("a log is there to be read by everybody; it has digests, ids and names")
HEALTH: Final = Anyone("load balancers ask for it; it says yes or no", costs_nothing=True)
NEW_SESSION: Final = Anyone(
    "a stranger gets a nonce and no challenges; a node gets challenges by its signature", counts_itself=True
)
SESSION: Final = Anyone("the id of the session, 128 random bits, is the capability", counts_itself=True)
ENROLMENT: Final = Anyone(
    "the one-time token in the body, and the signature by the key that is enrolled", counts_itself=True
)

BY_NODE: Final = frozenset({Role.NODE})
OWN_NODE: Final = _reads(Role.NODE, Role.OPERATOR, Role.REVIEWER)
NODES: Final = _reads(Role.OPERATOR, Role.REVIEWER)
NODE_RESULT: Final = _reads(Role.NODE, Role.OPERATOR, Role.RELYING_PARTY, Role.ROUTER, Role.REVIEWER)
RESULTS: Final = _reads(Role.OPERATOR, Role.RELYING_PARTY, Role.ROUTER, Role.REVIEWER)
EVENTS: Final = _reads(Role.ROUTER)
INCIDENTS: Final = _reads(Role.OPERATOR, Role.ROUTER, Role.REVIEWER)
SUSPICIONS: Final = _reads(Role.ROUTER, Role.REVIEWER)
SIDES: Final = _reads(Role.REVIEWER)
REPORT: Final = _changes(Role.ROUTER)
REVIEW: Final = _changes(Role.REVIEWER)
BY_ROUTER: Final = _changes(Role.ROUTER)
ROUTERS: Final = _reads(Role.NODE, Role.ROUTER)
POLICIES: Final = _reads(Role.RELYING_PARTY, Role.POLICY_AUTHOR, Role.POLICY_APPROVER)
POLICY_WORK: Final = _reads(Role.POLICY_AUTHOR, Role.POLICY_APPROVER)
AUTHOR: Final = _changes(Role.POLICY_AUTHOR)
APPROVE: Final = _changes(Role.POLICY_APPROVER)
MODEL_REFERENCE: Final = _reads(Role.NODE, Role.RELYING_PARTY, Role.POLICY_AUTHOR, Role.POLICY_APPROVER)
REVISIONS: Final = _reads(Role.NODE, Role.RELYING_PARTY, Role.ROUTER)
REFERENCES: Final = _reads(Role.RELYING_PARTY, Role.POLICY_AUTHOR, Role.POLICY_APPROVER)
STATE: Final = _reads()
ADMINISTER: Final = _changes()


@dataclass(frozen=True, kw_only=True)
class Route:
    """A method of a path, its handler, and who may call it."""

    method: str
    path: str
    handler: Handler
    allowed: Allowed
    summary: str
    has_head: bool = field(default=True)
    """Whether a GET can be asked as HEAD too: not where the answer never ends."""
    signs_body: bool = False
    """
    Whether the handler itself verifies the node's signature.

    It covers the body, and the clock of a call must stop before anything is verified.
    """
    on_loopback: bool = False
    """Whether a setting opens it without a credential to clients on the same machine."""


def get(path: str, handler: Handler, allowed: Allowed, summary: str, *, has_head: bool = True) -> Route:
    """A route that reads."""
    return Route(
        method=hdrs.METH_GET, path=path, handler=handler, allowed=allowed, summary=summary, has_head=has_head
    )


def post(path: str, handler: Handler, allowed: Allowed, summary: str, *, signs_body: bool = False) -> Route:
    """A route that changes something."""
    return Route(
        method=hdrs.METH_POST,
        path=path,
        handler=handler,
        allowed=allowed,
        summary=summary,
        signs_body=signs_body,
    )


def put(path: str, handler: Handler, allowed: Allowed, summary: str, *, signs_body: bool = False) -> Route:
    """A route that sets something, and does the same if it is called again."""
    return Route(
        method=hdrs.METH_PUT,
        path=path,
        handler=handler,
        allowed=allowed,
        summary=summary,
        signs_body=signs_body,
    )


def delete(path: str, handler: Handler, allowed: Allowed, summary: str) -> Route:
    """A route that ends something."""
    return Route(method=hdrs.METH_DELETE, path=path, handler=handler, allowed=allowed, summary=summary)


STRANGER: Final = Caller("stranger")
"""The caller of a route that needs no credential, whatever the request presents."""

CALLER: Final = web.RequestKey("caller", Caller)
TABLE: Final = web.AppKey("routes", dict[web.AbstractRoute, Route])

Identify: TypeAlias = Callable[[web.Request, Route], Awaitable[Caller]]


def mount(app: web.Application, routes: Iterable[Route], identify: Identify) -> None:
    """
    Mount *routes*, each behind its check.

    Args:
        identify: Gives the caller of a request for a route, or raises `RequestError`: the credential is
            missing or wrong, or its roles do not open the route.
    """
    table: dict[web.AbstractRoute, Route] = {}
    for route in routes:
        if route.method == hdrs.METH_GET and route.has_head:
            table[app.router.add_route(hdrs.METH_HEAD, route.path, route.handler)] = route
        table[app.router.add_route(route.method, route.path, route.handler)] = route
    app[TABLE] = table

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        found = request.match_info
        if found.http_exception is not None:
            # There is no such path, or no such method of it: the handler says so.
            return await handler(request)
        route = table.get(found.route)
        if route is None:
            raise RequestError("there is no such resource", code="request.not-found")
        request[CALLER] = await identify(request, route)
        # Here it is known who calls, and nothing was done for it yet.
        # - whoever counts connections by identity notes `request[CALLER]` here (a stranger's is `STRANGER`);
        # - rates by identity are spent here.
        return await handler(request)

    app.middlewares.append(guard)


def caller_of(request: web.Request) -> Caller:
    """The caller, with those of its roles only that open the route."""
    return request[CALLER]
