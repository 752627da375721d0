"""Routers as identities: each registers the certificate of its key, and nodes read whom they may serve."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Annotated, Final

import structlog
from aiohttp import web
from msgspec import Meta, Struct

from verifier.roles import Role
from verifier.router_certificates import MAX_CERTIFICATE, read_certificate
from verifier.service import access
from verifier.service.access import Route, caller_of
from verifier.service.credentials import digest_of_bearer
from verifier.service.http import base64_bytes, json_response, parse_json, read_body
from verifier.service.state import service_of
from verifier.store import routers
from verifier.store.routers import NewRegistration

_MAX_BODY: Final = 8 * 1024
_MAX_TEXT: Final = (MAX_CERTIFICATE + 2) // 3 * 4
_MAX_NAME: Final = 128
"""Characters of a name in the list: a token of an issuer can have a longer one, and nodes only show it."""

_log = structlog.get_logger("verifier")


class _Body(Struct, frozen=True, forbid_unknown_fields=True):
    certificate: Annotated[str, Meta(min_length=4, max_length=_MAX_TEXT)]
    """DER in base64."""
    signature: Annotated[str, Meta(min_length=88, max_length=88)]
    """Of `verifier.router_certificates.statement`, raw ES256 in base64."""


def routes() -> list[Route]:
    """The resources of this file."""
    path = "/api/v1/routers"
    return [
        access.get(
            path,
            list_routers,
            access.ROUTERS,
            "List the routers that nodes may serve; a router sees its own.",
        ),
        access.post(path, register, access.BY_ROUTER, "Register the certificate of a router, or renew it."),
    ]


async def list_routers(request: web.Request) -> web.Response:
    """The routers whose credentials live, by name, with their certificates."""
    service, caller = service_of(request), caller_of(request)
    now_ms = service.now_ms()
    async with service.db.read() as tx:
        found = await routers.listed(tx, now_ms, service.home_callers)
    only = caller.name if caller.roles == {Role.ROUTER} else None
    listed = [
        {
            "name": each.name[:_MAX_NAME],
            "certificate": base64.b64encode(each.certificate).decode(),
            "spki_sha256": each.spki.hex(),
        }
        for each in found
        if only in (None, each.name)
    ]
    return json_response({"routers": listed[: routers.MAX_ROUTERS]}, headers={"Cache-Control": "no-store"})


async def register(request: web.Request) -> web.Response:
    """
    Register the caller's certificate until its credential ends, at most for a day; the same again renews it.

    The answer says since when it is registered without a gap, and when it ends, in seconds from now.
    """
    service, caller = service_of(request), caller_of(request)
    body = parse_json(await read_body(request, _MAX_BODY), _Body)
    now_ms = service.now_ms()
    certificate = read_certificate(
        base64_bytes(body.certificate, "certificate"), datetime.fromtimestamp(now_ms / 1000, UTC)
    )
    credential = digest_of_bearer(request)
    certificate.check_statement(base64_bytes(body.signature, "signature"), service.issuer, credential)
    ends_ms = int(certificate.ends.timestamp() * 1000)
    # A token of an issuer is not kept: it is good until it expires, and nobody can look it up.
    is_token = caller.key is None and caller.until_ms is not None
    new = NewRegistration(
        spki=certificate.spki_sha256,
        certificate=certificate.der,
        name=caller.name,
        credential=None if is_token else credential,
        until_ms=ends_ms if caller.until_ms is None else min(ends_ms, caller.until_ms),
    )
    done = await service.db.write(lambda tx: routers.register(tx, new, now_ms, service.home_callers))
    if done.is_new:
        _log.info("a router was registered", name=caller.name, spki_sha256=new.spki.hex())
    for spki in done.dropped:
        _log.warning(
            "a router's registration made room for another one", spki_sha256=spki.hex(), by=caller.name
        )
    return json_response(
        {
            "name": caller.name,
            "spki_sha256": new.spki.hex(),
            "registered_for_s": (now_ms - done.since_ms) // 1000,
            "expires_in_s": (done.until_ms - now_ms) // 1000,
        }
    )
