"""Nodes: enrolment, change of key, retirement, and their results."""

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
from verifier import result_keys, results
from verifier.errors import RequestError
from verifier.schemes.context import Node
from verifier.service import access
from verifier.service.access import Route, caller_of
from verifier.service.front import spend_stranger, take_place
from verifier.service.http import MAX_JSON, json_response, page_of, parse_json, read_body
from verifier.service.state import service_of
from verifier.store import appraisals, events, incidents, nodes
from verifier.store.database import Tx

_Key = Annotated[str, Meta(max_length=200)]


class _EnrolBody(Struct, frozen=True, forbid_unknown_fields=True):
    token: Annotated[str, Meta(min_length=1, max_length=128)]
    key: _Key
    models: Annotated[tuple[Annotated[str, Meta(max_length=128)], ...], Meta(min_length=1, max_length=32)]


class _RollBody(Struct, frozen=True, forbid_unknown_fields=True):
    key: _Key
    proof: Annotated[str, Meta(max_length=4096)]
    """An Authorization value by the new key, for this same request with an empty body."""


def routes() -> list[Route]:
    """The resources of this file."""
    node = "/api/v1/nodes/{id}"
    return [
        access.post("/api/v1/nodes", enrol, access.ENROLMENT, "Enrol a node."),
        access.get("/api/v1/nodes", list_nodes, access.NODES, "List nodes."),
        access.get(node, show, access.OWN_NODE, "Show a node."),
        access.delete(node, retire, access.ADMINISTER, "Retire a node."),
        access.post(f"{node}/key", roll, access.BY_NODE, "Change a node's key.", signs_body=True),
        access.get(f"{node}/result", result, access.NODE_RESULT, "Give a node's newest result."),
        access.get("/api/v1/results", list_results, access.RESULTS, "List the live results."),
        access.get("/api/v1/results/{jti}", show_result, access.NODE_RESULT, "Show what became of a result."),
    ]


async def enrol(request: web.Request) -> web.Response:
    """Enrol a node: the token says what the node may be, and the node's key signs the request."""
    service = service_of(request)
    spend_stranger(request)
    body = await read_body(request, MAX_JSON)
    await take_place(request)
    enrolment = parse_json(body, _EnrolBody)
    for model in enrolment.models:
        if not MODEL_NAME.fullmatch(model):
            raise RequestError(f"models: {model[:80]!r} does not have the form of a model's name")
    if len(set(enrolment.models)) != len(enrolment.models):
        raise RequestError("models: a model is named twice")
    key = _read_key(enrolment.key)
    proof = service.proof(request)
    service.verify(proof, request, body, key)
    now_ms = service.now_ms()

    async def use_and_enrol(tx: Tx) -> Node:
        # All in one transaction: a refused enrolment must not use up the token.
        await service.use(tx, proof)
        grant = await nodes.use_token(tx, enrolment.token, now_ms)
        return await nodes.enrol(tx, grant, enrolment.models, key, now_ms)

    node = await service.db.write(use_and_enrol)
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
    """Give a node a new key: the old one signs the request, and the new one signs the proof in the body."""
    service = service_of(request)
    body = await read_body(request, MAX_JSON)
    node, proof = await service.authenticate(request, body)
    service.node_rates.spend(node.id)
    if node.id != request.match_info["id"]:
        raise RequestError("a node can change only its own key", code="request.forbidden")
    change = parse_json(body, _RollBody)
    key = _read_key(change.key)
    service.verify(Proof.decode(change.proof), request, b"", key)

    async def use_and_replace(tx: Tx) -> None:
        await service.use(tx, proof)
        await nodes.replace_key(tx, node.id, key, service.now_ms())

    await service.db.write(use_and_replace)
    return json_response({"node": node.id, "kid": result_keys.b64url(key.kid)})


def _read_key(text: str) -> PublicKey:
    try:
        return PublicKey.decode(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, CBORError, COSEError) as error:
        raise RequestError(f"key must be a COSE_Key in base64: {error}") from None


async def retire(request: web.Request) -> web.Response:
    """Retire a node."""
    service = service_of(request)
    await service.db.write(lambda tx: nodes.retire(tx, request.match_info["id"], service.now_ms()))
    return web.Response(status=204)


async def list_nodes(request: web.Request) -> web.Response:
    """Nodes by id."""
    service = service_of(request)
    after, limit = page_of(request)
    async with service.db.scan() as tx:
        found = await nodes.page(tx, after, limit, caller_of(request).only_operator)
    following = found[-1].id if len(found) == limit else None
    return json_response({"nodes": [_to_wire(node) for node in found], "next": following})


async def show(request: web.Request) -> web.Response:
    """One node, with the incident that holds it in quarantine and its newest result."""
    service = service_of(request)
    async with service.db.read() as tx:
        node = await _seen_node(tx, request)
        incident = await incidents.holding(tx, node.id)
        newest = await appraisals.latest(tx, node.id)
    wire = _to_wire(node)
    wire["quarantined_by"] = incident
    wire["result"] = None if newest is None else newest["id"]
    return json_response(wire)


async def _seen_node(tx: Tx, request: web.Request) -> Node:
    """
    The node of the path.

    Raises:
        RequestError: There is none, or none that the caller may see: which of both is not said.
    """
    node = await nodes.by_id(tx, request.match_info["id"])
    if node is None or not caller_of(request).sees(node.id, node.operator):
        raise RequestError("there is no such node", code="request.not-found")
    return node


def _to_wire(node: Node) -> dict[str, Any]:
    return {
        "node": node.id,
        "ueid": result_keys.b64url(node.ueid),
        "kid": result_keys.b64url(node.key.kid),
        "operator": node.operator,
        "models": node.models,
        "state": node.state,
    }


async def result(request: web.Request) -> web.Response:
    """A node's newest result, if it is live: as JWT, as CWT, or decoded."""
    service = service_of(request)
    async with service.db.read() as tx:
        row = await appraisals.latest(tx, (await _seen_node(tx, request)).id)
    if row is None or row["revoked_ms"] is not None or row["expires_ms"] <= service.now_ms():
        raise RequestError("the node has no live result", code="request.not-found")
    form = _choose_form(request.headers.get("Accept", "*/*"))
    if form == "application/eat+jwt":
        return web.Response(body=row["token"].encode(), headers={"Content-Type": results.MEDIA_TYPE_JWT})
    if form == "application/eat+cwt":
        claims = msgspec.json.decode(row["claims"], type=results.AttestationResult)
        data = results.encode_cwt(claims, service.keys[-1])
        return web.Response(body=data, headers={"Content-Type": results.MEDIA_TYPE_CWT})
    return web.Response(body=row["claims"].encode(), content_type="application/json")


_FORMS = ("application/eat+jwt", "application/eat+cwt", "application/json")


def _choose_form(accept: str) -> str:
    """The first media type in *accept* that can be given.  Parameters and weights are ignored."""
    accepted = [part.partition(";")[0].strip().lower() for part in accept[:512].split(",")]
    for kind in accepted:
        if kind in _FORMS:
            return kind
        if kind in ("*/*", "application/*", ""):
            return _FORMS[0]
    raise RequestError(f"Accept names none of {', '.join(_FORMS)}", code="request.not-acceptable")


async def list_results(request: web.Request) -> web.Response:
    """The live results, one for each node, by node id; `seq` is the event to follow from."""
    service = service_of(request)
    after, limit = page_of(request)
    now_ms = service.now_ms()
    async with service.db.scan() as tx:
        # The number is read before the results: so an event in between is sent again, and none is lost.
        _, newest = await events.bounds(tx)
        rows = await appraisals.newest(tx, now_ms, after, limit, caller_of(request).only_operator)
    service.marks.cover_event(newest)
    following = rows[-1]["node_id"] if len(rows) == limit else None
    found = [
        {"node": row["node_id"], "result": row["id"], "token": row["token"]}
        for row in rows
        if row["revoked_ms"] is None
    ]
    return json_response({"results": found, "next": following, "seq": newest})


async def show_result(request: web.Request) -> web.Response:
    """What has become of a result.  The `status` of an EAR points here."""
    service = service_of(request)
    async with service.db.read() as tx:
        row = await appraisals.by_id(tx, request.match_info["jti"])
        node = None if row is None else await nodes.by_id(tx, row["node_id"])
    if row is None or node is None or not caller_of(request).sees(node.id, node.operator):
        raise RequestError("there is no such result", code="request.not-found")
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
