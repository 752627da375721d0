"""Receipts as a resource: the signed receipt alone, with all that goes with it, or in the forms of others."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import hdrs, web

from router.gateway.openai import GATEWAY
from router.model.errors import ReceiptError
from router.receipts import aci, air, batches, payload, tokens
from router.receipts.payload import Receipt
from router.service.state import STATE
from router.state.receipting import Receipting
from router.store.receipts import StoredReceipt
from verifier.errors import RequestError
from verifier.roles import Role
from verifier.router_receipts import read_batch
from verifier.service.access import caller_of
from verifier.service.http import json_response

MEDIA_TYPE: Final = "application/jwt"
_SEE_ALL: Final = frozenset({Role.AUDITOR, Role.ADMINISTRATOR})
_MAX_ID: Final = 64
_NOT_YET_S: Final = 2
"""By then a running router has signed what it was asked for."""
_KEYS_S: Final = 300
"""How long others may keep the keys."""


async def keys(request: web.Request) -> web.Response:
    """The keys that sign receipts, of all routers that share the store (RFC 7517)."""
    receipts = request.app[STATE].receipts
    listed = [] if receipts is None else await receipts.keeper.keys()
    return web.Response(
        body=tokens.write_keys(listed),
        content_type="application/jwk-set+json",
        headers={"Cache-Control": f"public, max-age={_KEYS_S}"},
    )


async def show(request: web.Request) -> web.Response:
    """
    A receipt, to whom the answer was given, and to auditors.

    It is a JWS.  As JSON it comes with the node's result, its batch, its place there and the proof that the log has
    the batch.  ``form=aci`` and ``form=air`` give the same in the forms of others.
    """
    state = request.app[STATE]
    form = request.query.get("form", "")
    if form not in ("", "aci", "air"):
        raise RequestError("form is aci or air")
    receipts = state.receipts
    if receipts is None:
        raise RequestError("this router makes no receipts", code="receipt.unknown")
    found = await _find(request, receipts)
    token = await receipts.keeper.token(found)
    if token is None:
        raise RequestError(
            "another router has made it, and is asked to sign it",
            code="receipt.not-yet",
            retry_after=_NOT_YET_S,
        )
    receipt = payload.decode(found.payload)
    if form:
        return await _in_form(form, receipt, receipts, found)
    if "json" not in request.headers.get(hdrs.ACCEPT, ""):
        return web.Response(text=token, content_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})
    document = {
        "receipt": token,
        **await _accompany(receipts, found, receipt),
        "front": await _ask_front(request, found, receipt),
    }
    return json_response(document, headers={"Cache-Control": "no-store"})


async def _find(request: web.Request, receipts: Receipting) -> StoredReceipt:
    receipt_id, caller = request.match_info["id"][:_MAX_ID], caller_of(request)
    sees_all = not caller.roles.isdisjoint(_SEE_ALL)
    running = receipts.book.whose(receipt_id)
    if running is not None and (sees_all or running == caller.name):
        raise RequestError("the answer has not ended", code="receipt.not-yet", retry_after=_NOT_YET_S)
    found = await receipts.keeper.find(receipt_id)
    if found is None or not (sees_all or found.caller == caller.name):
        # The same for both: whether others have such a receipt is not told.
        raise RequestError("no such receipt is kept", code="receipt.unknown")
    return found


async def _accompany(receipts: Receipting, found: StoredReceipt, receipt: Receipt) -> dict[str, Any]:
    """What goes with a receipt, as far as it is there by now."""
    result = await _result(receipts, receipt)
    document: dict[str, Any] = {"result": result, "batch": None, "index": None, "path": None, "log": None}
    stored = await receipts.keeper.find_batch(found)
    if stored is not None:
        document["batch"] = batches.to_wire(read_batch(stored.batch))
        document["index"] = found.place
        document["path"] = batches.path(stored.leaves, found.place)
        if stored.entry is not None:
            document["log"] = await receipts.sender.proof(stored.entry)
    return document


async def _ask_front(request: web.Request, found: StoredReceipt, receipt: Receipt) -> dict[str, Any] | None:
    """What the front of the node that answered has signed itself, and whether it is of what the router received."""
    gateway = request.app[GATEWAY]
    if gateway.fronts is None or not receipt.node:
        return None
    endpoint = gateway.dispatcher.fleet.view(receipt.node.id).endpoint
    word = await gateway.fronts.ask(found, receipt, endpoint)
    return None if word is None else {"jws": word.jws, "agrees": word.agrees}


async def _in_form(form: str, receipt: Receipt, receipts: Receipting, found: StoredReceipt) -> web.Response:
    book = receipts.book
    if found.kid != book.public.kid:
        raise RequestError(
            f"this form is signed by the router that made the receipt: ask {receipt.iss}",
            code="request.not-acceptable",
        )
    try:
        if form == "air":
            return web.Response(body=air.from_receipt(receipt, book.key), content_type="application/eat+cwt")
        return json_response(aci.from_receipt(receipt, book.key, await _result(receipts, receipt)))
    except ReceiptError as error:
        raise RequestError(f"the receipt has no such form: {error}", code="request.not-acceptable") from None


async def _result(receipts: Receipting, receipt: Receipt) -> str | None:
    node = receipt.node or receipt.tried
    return await receipts.sender.result(node) if node else None
