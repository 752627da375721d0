"""Receipts of routers: their keys, and the roots of the batches that the log commits to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
import structlog
from aiohttp import web
from msgspec import Meta, Struct

from attester.cose import PublicKey
from verifier.errors import RequestError
from verifier.router_certificates import read_certificate
from verifier.router_receipts import (
    MAX_BATCH,
    ReceiptKey,
    RouterName,
    check_key_statement,
    key_statement,
    read_batch,
    unb64url,
)
from verifier.service import access
from verifier.service.access import Route, caller_of
from verifier.service.credentials import digest_of_bearer
from verifier.service.http import base64_bytes, json_response, parse_json, read_body
from verifier.service.state import service_of
from verifier.store import receipt_batches, routers
from verifier.store.receipt_batches import NewKey

_MAX_BODY: Final = 1024

_log = structlog.get_logger("verifier")

_Signature = Annotated[str, Meta(min_length=88, max_length=88)]
"""64 bytes in base64."""


class _KeyBody(Struct, frozen=True, forbid_unknown_fields=True):
    x: Annotated[str, Meta(min_length=43, max_length=43)]
    """The receipt key: 32 bytes in base64url."""
    signature: _Signature
    """Of `verifier.router_receipts.key_statement`, by the identity: raw ES256."""
    possession: _Signature
    """Of the same, by the receipt key: Ed25519."""


def routes() -> list[Route]:
    """The resources of this file."""
    return [
        access.put(
            "/api/v1/routers/{name}/receipt-key",
            register,
            access.BY_ROUTER,
            "Register the key by which a router signs receipts.",
        ),
        access.post(
            "/api/v1/log/receipts", take, access.BY_ROUTER, "Log the root of a batch of a router's receipts."
        ),
    ]


async def register(request: web.Request) -> web.Response:
    """Register a receipt key for which an identity that the same credential registered vouches."""
    service, caller = service_of(request), caller_of(request)
    body = parse_json(await read_body(request, _MAX_BODY), _KeyBody)
    name = _name_of(request)
    key = ReceiptKey.from_bytes(unb64url(body.x))
    statement = key_statement(service.issuer, digest_of_bearer(request), name, key.public.point)
    signature, possession = (
        base64_bytes(body.signature, "signature"),
        base64_bytes(body.possession, "possession"),
    )
    now_ms = service.now_ms()
    async with service.db.read() as tx:
        registered = await routers.listed(tx, now_ms, service.home_callers)
    own = [each for each in registered if each.name == caller.name]
    if not own:
        raise RequestError(
            "this credential has registered no router. POST /api/v1/routers first",
            code="registration.signature",
        )
    spki = _who_vouches(own, statement, key, signature, possession, now_ms)
    new = NewKey(key, name, caller.name, spki)
    is_new = await service.db.write(lambda tx: receipt_batches.register(tx, new, now_ms))
    if is_new:
        _log.info("a receipt key was registered", router=name, caller=caller.name, kid=key.kid)
    return json_response({"router": name, "kid": key.kid}, status=201 if is_new else 200)


def _name_of(request: web.Request) -> str:
    try:
        return msgspec.convert(request.match_info["name"], RouterName)
    except msgspec.ValidationError:
        raise RequestError("the name of a router is printable ASCII, at most 128 characters") from None


def _who_vouches(
    own: list[routers.Registration],
    statement: bytes,
    key: ReceiptKey,
    signature: bytes,
    possession: bytes,
    now_ms: int,
) -> bytes:
    """
    The digest of the identity that has signed the statement.

    Raises:
        RequestError: None of them has, or the receipt key itself has not.
    """
    refused: RequestError | None = None
    for each in own:
        try:
            check_key_statement(
                statement, _key_of(each, now_ms), key, signature=signature, possession=possession
            )
        except RequestError as error:
            refused = error
        else:
            return each.spki
    assert refused is not None
    raise refused


def _key_of(registration: routers.Registration, now_ms: int) -> PublicKey:
    return read_certificate(registration.certificate, datetime.fromtimestamp(now_ms / 1000, UTC)).key


async def take(request: web.Request) -> web.Response:
    """Log a batch.  The same again is the same answer; another for the same number is refused, and reviewed."""
    service, caller = service_of(request), caller_of(request)
    batch = read_batch(await read_body(request, MAX_BATCH))
    async with service.db.read() as tx:
        known = await receipt_batches.find(tx, batch.kid)
    is_own = known is not None and (known.caller, known.router) == (caller.name, batch.router)
    if known is None or known.is_removed or not is_own:
        raise RequestError(
            f"this credential has not registered the receipt key {batch.kid} for {batch.router}",
            code="receipts.key",
        )
    batch.check(known.key)
    now_ms = service.now_ms()
    # Alone, as a review may follow.
    taken = await service.db.write(lambda tx: receipt_batches.take(tx, batch, caller.name, now_ms))
    if taken.fork is not None:
        _log.error(
            "a router has two histories of its receipts",
            router=batch.router,
            caller=caller.name,
            why=taken.fork,
        )
        raise RequestError(f"batch {batch.number}: {taken.fork}", code=receipt_batches.FORKED)
    return json_response({"entry": taken.entry}, status=201 if taken.is_new else 200)
