"""Which revisions of a model are valid now, and which one a node has, as it says itself."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from verifier.errors import RequestError
from verifier.references import measured
from verifier.schemes.context import ModelReference, Node
from verifier.service import access
from verifier.service.access import Route, caller_of
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body
from verifier.service.inputs import ValidRevision
from verifier.service.state import Service, service_of
from verifier.store import nodes, references, revisions
from verifier.store.database import Row, Tx

_Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class RevisionsBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Which revision of each model a node has: the digest of a reference value, by model."""

    revisions: Annotated[
        dict[Annotated[str, Meta(max_length=128)], _Hex32], Meta(min_length=1, max_length=32)
    ]


def routes() -> list[Route]:
    """The resources of this file."""
    return [
        access.get(
            "/api/v1/revisions/{model:.+}",
            list_revisions,
            access.REVISIONS,
            "List the revisions of a model that are valid now.",
        ),
        access.put(
            "/api/v1/nodes/{id}/revisions",
            say,
            access.BY_NODE,
            "Say which revisions the node has.",
            signs_body=True,
        ),
    ]


async def list_revisions(request: web.Request) -> web.Response:
    """
    The reference values of a model that evidence may be judged on now, with the digests of their files.

    A node sees those of its own models, as the policy that judges it has them.
    """
    service, caller, model = service_of(request), caller_of(request), request.match_info["model"]
    async with service.db.read() as tx:
        node = None if caller.node is None else await nodes.by_id(tx, caller.node)
        is_hidden = node is not None and model not in node.models
        node_id = "" if node is None else node.id
        found = [] if is_hidden else await service.inputs.load_valid(tx, node_id, model, service.now_ms())
        rows = [await references.by_digest(tx, each.reference.digest) for each in found]
    if not found:
        raise RequestError("there is no reference value of such a model", code="request.not-found")
    wire = [_to_wire(each, row) for each, row in zip(found, rows, strict=True)]
    return json_response({"model": model, "revisions": wire})


def _to_wire(revision: ValidRevision, row: Row | None) -> dict[str, Any]:
    """A revision with its practice challenge, by which a node sees whether its engine has it; policies bring none."""
    reference = revision.reference
    practice = None if row is None else measured.read_document(row["document"]).practice
    return {
        "digest": reference.digest,
        "state": revision.state,
        "until": None if revision.until_ms is None else revision.until_ms // 1000,
        "walk": "loaded" if reference.as_loaded else "tensors" if reference.tensor_bytes else "none",
        "files": files_to_wire(reference),
        # Those that change no answers: a node may lack them, or have others.
        "neutral": sorted(reference.files.keys() - reference.gates),
        "practice": msgspec.to_builtins(practice),
    }


def files_to_wire(reference: ModelReference) -> dict[str, dict[str, Any]]:
    """The files of a reference value: their sizes, as far as these are known, and their digests in hex."""
    return {
        name: {"size": file.size, **{kind: digest.hex() for kind, digest in sorted(file.digests.items())}}
        for name, file in sorted(reference.files.items())
    }


async def say(request: web.Request) -> web.Response:
    """
    Take in which revisions the node has.

    Its challenges are for these from now on.  If it said others before, its results for those are revoked and it is
    called soon.
    """
    service = service_of(request)
    body = await read_body(request, MAX_JSON)
    node, proof = await service.authenticate(request, body)
    service.node_rates.spend(node.id)
    if node.id != request.match_info["id"]:
        raise RequestError("there is no such node", code="request.not-found")
    said = parse_json(body, RevisionsBody).revisions

    async def keep(tx: Tx) -> None:
        await service.use(tx, proof)
        await _check(service, tx, node, said)
        await revisions.say(tx, node.id, said, service.now_ms())

    await service.db.write(keep, of=node.id)
    return web.Response(status=204)


async def _check(service: Service, tx: Tx, node: Node, said: dict[str, str]) -> None:
    """
    Check that a node may say so.

    Raises:
        RequestError: it is not enrolled with a model, or a revision is not valid now.
    """
    for model, digest in said.items():
        if model not in node.models:
            raise RequestError(f"the node is not enrolled with {model}", code="revision.model")
        found = await service.inputs.load_valid(tx, node.id, model, service.now_ms())
        if digest not in {each.reference.digest for each in found}:
            raise RequestError(f"no revision {digest} of {model} is valid now", code="revision.unknown")
