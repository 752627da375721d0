"""Nodes: enrolment, key roll, retirement, and what is known of them."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from attester.cose import PublicKey
from attester.errors import CBORError, COSEError
from attester.kinds import MODEL_NAME
from attester.proof import Proof
from verifier import results
from verifier.errors import RequestError
from verifier.schemes.base import Node
from verifier.service.http import MAX_JSON, json_response, page_of, parse_json, read_body, require_bearer
from verifier.service.state import address_of, service_of
from verifier.store import appraisals, events, incidents, nodes

_Key = Annotated[str, Meta(max_length=200)]


class _EnrolBody(Struct, frozen=True, forbid_unknown_fields=True):
    token: Annotated[str, Meta(min_length=1, max_length=128)]
    key: _Key
    models: Annotated[tuple[Annotated[str, Meta(max_length=128)], ...], Meta(min_length=1, max_length=32)]


class _RollBody(Struct, frozen=True, forbid_unknown_fields=True):
    key: _Key
    proof: Annotated[str, Meta(max_length=4096)]
    """An Authorization value for this same request with an empty body, by the new key."""


def routes() -> list[web.RouteDef]:
    """The resources of this file."""
    return [
        web.post("/api/v1/nodes", enrol),
        web.get("/api/v1/nodes", list_nodes),
        web.get("/api/v1/nodes/{id}", show),
        web.delete("/api/v1/nodes/{id}", retire),
        web.post("/api/v1/nodes/{id}/key", roll),
        web.get("/api/v1/nodes/{id}/result", result),
        web.get("/api/v1/results", list_results),
        web.get("/api/v1/results/{jti}", show_result),
    ]


async def enrol(request: web.Request) -> web.Response:
    """Enrol a node: the token says what it may be, its key signs the request."""
    service = service_of(request)
    service.address_rates.spend(address_of(request))
    body = await read_body(request, MAX_JSON)
    given = parse_json(body, _EnrolBody)
    for model in given.models:
        if not MODEL_NAME.fullmatch(model):
            raise RequestError(f"{model[:80]!r} is not a model's name")
    if len(set(given.models)) != len(given.models):
        raise RequestError("a model stands twice")
    key = _key(given.key)
    proof = service.proof(request)
    service.verify(proof, request, body, key)
    now_ms = service.now_ms()
    # One transaction: a refused enrolment leaves the token as it was.
    async with service.db.write() as tx:
        await service.use(tx, proof)
        grant = await nodes.use_token(tx, given.token, now_ms)
        node = await nodes.enrol(tx, grant, given.models, key, now_ms)
    return json_response(
        {
            "node": node.id,
            "ueid": base64.b64encode(node.ueid).decode(),
            "operator": node.operator,
            "models": node.models,
            "verifier": service.issuer,
        },
        status=201,
        headers={"Location": f"/api/v1/nodes/{node.id}"},
    )


async def roll(request: web.Request) -> web.Response:
    """Give a node a new key: the old one signs the request, the new one proves itself in it."""
    service = service_of(request)
    body = await read_body(request, MAX_JSON)
    node, proof = await service.authenticate(request, body)
    if node.id != request.match_info["id"]:
        raise RequestError("a node rolls its own key only", code="request.forbidden")
    given = parse_json(body, _RollBody)
    key = _key(given.key)
    service.verify(Proof.decode(given.proof), request, b"", key)
    async with service.db.write() as tx:
        await service.use(tx, proof)
        await nodes.replace_key(tx, node.id, key, service.now_ms())
    return json_response({"node": node.id, "kid": results.b64url(key.kid)})


def _key(text: str) -> PublicKey:
    try:
        return PublicKey.decode(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, CBORError, COSEError) as error:
        raise RequestError(f"key is not a base64 COSE_Key: {error}") from None


async def retire(request: web.Request) -> web.Response:
    """Retire a node; for administrators."""
    service = service_of(request)
    require_bearer(request, service.admin_token)
    async with service.db.write() as tx:
        await nodes.retire(tx, request.match_info["id"], service.now_ms())
    return web.Response(status=204)


async def list_nodes(request: web.Request) -> web.Response:
    """Nodes by id."""
    service = service_of(request)
    after, limit = page_of(request)
    async with service.db.read() as tx:
        found = await nodes.page(tx, after, limit)
    following = found[-1].id if len(found) == limit else None
    return json_response({"nodes": [_to_wire(node) for node in found], "next": following})


async def show(request: web.Request) -> web.Response:
    """One node, with what holds it."""
    service = service_of(request)
    async with service.db.read() as tx:
        node = await nodes.by_id(tx, request.match_info["id"])
        if node is None:
            raise RequestError("no such node", code="request.not-found")
        held = await incidents.holding(tx, node.id)
        newest = await appraisals.latest(tx, node.id)
    wire = _to_wire(node)
    wire["quarantined_by"] = held
    wire["result"] = None if newest is None else newest["id"]
    return json_response(wire)


def _to_wire(node: Node) -> dict[str, Any]:
    return {
        "node": node.id,
        "ueid": results.b64url(node.ueid),
        "kid": results.b64url(node.key.kid),
        "operator": node.operator,
        "models": node.models,
        "state": node.state,
    }


async def result(request: web.Request) -> web.Response:
    """A node's newest result, while it lives: as JWT, as CWT, or decoded."""
    service = service_of(request)
    async with service.db.read() as tx:
        row = await appraisals.latest(tx, request.match_info["id"])
    if row is None or row["revoked_ms"] is not None or row["expires_ms"] <= service.now_ms():
        raise RequestError("the node has no live result", code="request.not-found")
    form = _form(request.headers.get("Accept", "*/*"))
    if form == "application/eat+jwt":
        return web.Response(body=row["token"].encode(), headers={"Content-Type": results.MEDIA_TYPE_JWT})
    if form == "application/eat+cwt":
        claims = msgspec.json.decode(row["claims"], type=results.AttestationResult)
        data = results.encode_cwt(claims, service.keys[-1])
        return web.Response(body=data, headers={"Content-Type": results.MEDIA_TYPE_CWT})
    return web.Response(body=row["claims"].encode(), content_type="application/json")


_FORMS = ("application/eat+jwt", "application/eat+cwt", "application/json")


def _form(accept: str) -> str:
    """The first form that is accepted; parameters and weights do not change the order."""
    accepted = [part.partition(";")[0].strip().lower() for part in accept[:512].split(",")]
    for kind in accepted:
        if kind in _FORMS:
            return kind
        if kind in ("*/*", "application/*", ""):
            return _FORMS[0]
    raise RequestError(f"none of {', '.join(_FORMS)} is accepted", code="request.not-acceptable")


async def list_results(request: web.Request) -> web.Response:
    """The live results, one a node, by node id; `seq` is where to follow events from."""
    service = service_of(request)
    after, limit = page_of(request)
    now_ms = service.now_ms()
    async with service.db.read() as tx:
        # First the number, then the results: an event in between is told again, none is lost.
        _, newest = await events.bounds(tx)
        rows = await appraisals.newest(tx, now_ms, after, limit)
    following = rows[-1]["node_id"] if len(rows) == limit else None
    found = [
        {"node": row["node_id"], "result": row["id"], "token": row["token"]}
        for row in rows
        if row["revoked_ms"] is None
    ]
    return json_response({"results": found, "next": following, "seq": newest})


async def show_result(request: web.Request) -> web.Response:
    """What has become of a result: where `status` in an EAR points."""
    service = service_of(request)
    async with service.db.read() as tx:
        row = await appraisals.by_id(tx, request.match_info["jti"])
    if row is None:
        raise RequestError("no such result", code="request.not-found")
    expired = row["expires_ms"] <= service.now_ms()
    return json_response(
        {
            "result": row["id"],
            "node": row["node_id"],
            "state": "revoked" if row["revoked_ms"] is not None else "expired" if expired else "live",
            "status": row["status"],
            "issued": row["issued_ms"] // 1000,
            "expires": row["expires_ms"] // 1000,
        }
    )
