"""
Who calls: the credential of a request, verified.

A node signs (`attester.proof`).  Everybody else has a bearer (RFC 6750): a key of the database, a token of the
home, or a token of the configured issuer.  Names of schemes are compared without regard to case (RFC 9110 §11.1).
"""

from __future__ import annotations

import ipaddress
from typing import Final

from aiohttp import hdrs, web

from attester.proof import SCHEME
from verifier.errors import RequestError
from verifier.roles import Caller, Role
from verifier.service.access import STRANGER, Anyone, Route
from verifier.service.front import note_failure, note_identity, spend_stranger, take_place
from verifier.service.state import Service, service_of
from verifier.store import api_keys

_MAX_BEARER: Final = 8192
_FORWARDED: Final = (hdrs.FORWARDED, "X-Forwarded-For", "X-Real-IP", hdrs.VIA)
"""A request with one of these came through a proxy, wherever the proxy is."""


async def identify(request: web.Request, route: Route) -> Caller:
    """
    Give the caller of a request for *route*, with those of its roles only that open it.

    Raises:
        RequestError: The credential is missing, wrong, revoked or expired; or it does not open the route.
        COSEError, CBORError, ClaimError: A node's signature is malformed.
    """
    if isinstance(route.allowed, Anyone):
        if hdrs.AUTHORIZATION in request.headers and not (
            route.allowed.costs_nothing or route.allowed.counts_itself
        ):
            await _count(request)
        return STRANGER
    service = service_of(request)
    if route.on_loopback and service.config.access.metrics_on_loopback and _is_local(request):
        return STRANGER
    scheme, value = _authorization(request)
    match scheme:
        case "bearer":
            caller = await _bearer(request, value)
        case _ if scheme == SCHEME.lower():
            if Role.NODE not in route.allowed:
                raise RequestError("the signature of a node does not open this", code="request.forbidden")
            # The handler must see the body first, and verifies the signature itself.
            return STRANGER if route.signs_body else await _node(service, request)
        case "":
            raise RequestError("this needs a credential", code="request.unauthorised")
        case _:
            note_failure(request)
            raise RequestError("the Authorization has another scheme", code="request.unauthorised")
    acting = caller.acting_as(route.allowed)
    if not acting.roles:
        names = ", ".join(sorted(route.allowed))
        raise RequestError(
            f"the credential does not open this. It needs the role {names}", code="request.forbidden"
        )
    return acting


async def check_other(request: web.Request) -> None:
    """
    Refuse a request whose credential is not a signature and is wrong, where none is needed.

    Raises:
        RequestError: It is neither a bearer nor one that is known.
    """
    scheme, value = _authorization(request)
    if scheme != "bearer":
        note_failure(request)
        raise RequestError("the Authorization has another scheme", code="request.unauthorised")
    await _bearer(request, value)


def digest_of_bearer(request: web.Request) -> bytes:
    """The digest of the bearer that a request presents, whose caller is known already."""
    return api_keys.digest_of(_authorization(request)[1])


def has_signature(request: web.Request) -> bool:
    """Whether a request claims to be signed by a node."""
    return request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")[0].lower() == SCHEME.lower()


async def is_still_good(service: Service, caller: Caller) -> bool:
    """Whether the credential of a caller is not revoked and has not expired since the request began."""
    now_ms = service.now_ms()
    if caller.until_ms is not None and caller.until_ms <= now_ms:
        return False
    if caller.key is None:
        return True
    async with service.db.read() as tx:
        return await api_keys.caller_with(tx, caller.key, now_ms) is not None


def _authorization(request: web.Request) -> tuple[str, str]:
    """The scheme, in lower case, and the value; empty if there is none."""
    found = request.headers.getall(hdrs.AUTHORIZATION, [])
    if len(found) > 1:
        raise RequestError("the request has more than one Authorization", code="request.unauthorised")
    scheme, _, value = (found[0] if found else "").partition(" ")
    return scheme.lower(), value.strip(" ")


async def _bearer(request: web.Request, value: str) -> Caller:
    """The caller with a bearer.  A failure counts against the caller's address, and a success never does."""
    try:
        caller = await _caller_with(service_of(request), value)
    except RequestError:
        note_failure(request)
        raise
    _note_caller(request, caller)
    return caller


async def _count(request: web.Request) -> None:
    """Find out whose a request is where no credential is needed: without a good bearer it is a stranger's."""
    scheme, value = _authorization(request)
    try:
        caller = await _caller_with(service_of(request), value if scheme == "bearer" else "")
    except RequestError:
        spend_stranger(request)
        await take_place(request)
        return
    _note_caller(request, caller)


def _note_caller(request: web.Request, caller: Caller) -> None:
    note_identity(request, f"caller:{caller.name}")
    service_of(request).caller_rates.spend(caller.name)


async def _caller_with(service: Service, value: str) -> Caller:
    wrong = RequestError("the bearer is unknown, revoked or expired", code="request.unauthorised")
    if not value or len(value) > _MAX_BEARER:
        raise wrong
    digest = api_keys.digest_of(value)
    if (builtin := service.home_callers.get(digest)) is not None:
        return builtin
    if value.startswith(api_keys.PREFIX):
        async with service.db.read() as tx:
            caller = await api_keys.caller_with(tx, digest, service.now_ms())
        if caller is None:
            raise wrong
        return caller
    if service.oidc is not None:
        return service.oidc.caller(value, service.now_ms())
    raise wrong


async def _node(service: Service, request: web.Request) -> Caller:
    node, proof = await service.authenticate(request, b"")
    service.node_rates.spend(node.id)
    await service.db.write(lambda tx: service.use(tx, proof), of=node.id)
    return Caller(f"node:{node.id}", frozenset({Role.NODE}), node=node.id)


def _is_local(request: web.Request) -> bool:
    """Whether a request comes from this machine, and through no proxy."""
    if any(name in request.headers for name in _FORWARDED):
        return False
    peer = None if request.transport is None else request.transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return False
    address = ipaddress.ip_address(peer[0].partition("%")[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
