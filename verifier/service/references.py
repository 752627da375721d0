"""Reference values: how they are listed, added, put in force and withdrawn; and where they conflict."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web
from msgspec import Meta

from verifier.errors import RequestError
from verifier.references import conflicts, corim, handwritten, measured, profile
from verifier.references.anchors import Anchor
from verifier.references.measured import Document
from verifier.schemes.context import ModelReference
from verifier.service import access, reference_imports
from verifier.service.access import Route, caller_of
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body
from verifier.service.policies import AuthorBody, author_of_query
from verifier.service.reference_imports import DryRunError
from verifier.service.state import service_of
from verifier.store import nodes, reference_sources, references
from verifier.store.database import Row
from verifier.store.reference_sources import Provenance

MAX_DOCUMENT_BYTES: Final = 64 << 20
CORIM: Final = "application/rim+cose"
_DOCUMENT: Final = "application/json"
_YAML: Final = "application/yaml"


class _ActivateBody(AuthorBody, frozen=True):
    grace_s: Annotated[int, Meta(ge=0, le=365 * 86400)] | None = None
    source: Annotated[int, Meta(ge=1)] | None = None
    """The number of the source that is to count.  Default: the newest."""


def routes() -> list[Route]:
    """The resources of this file."""
    base = "/api/v1/reference-values"
    one = f"{base}/{{digest:[0-9a-f]{{64}}}}"
    return [
        access.get(base, list_references, access.REFERENCES, "List reference values."),
        access.post(base, add, access.ADMINISTER, "Add reference values."),
        access.get(f"{base}/conflicts", list_conflicts, access.REFERENCES, "List values that disagree."),
        access.get(
            f"{base}/history", list_history, access.POLICY_WORK, "Who did what to values, when and why."
        ),
        access.get(one, show_one, access.REFERENCES, "Show a reference value."),
        access.get(f"{one}/corim", export, access.REFERENCES, "Give a value as a CoRIM."),
        access.post(f"{one}/activate", activate, access.ADMINISTER, "Put a value in force."),
        access.post(f"{one}/retire", retire, access.ADMINISTER, "Withdraw a value."),
        access.post(
            f"{one}/restore", restore, access.ADMINISTER, "Make a withdrawn value a candidate again."
        ),
        access.get(
            f"{base}/{{model:.+}}", show_active, access.MODEL_REFERENCE, "Show a model's value in force."
        ),
    ]


async def list_references(request: web.Request) -> web.Response:
    """
    The values in force and those that are rolled out, without their contents.

    ``all=1`` adds the others, and ``model`` selects one model's.
    """
    service = service_of(request)
    async with service.db.read() as tx:
        rows = await references.every(tx, request.query.get("model"))
    everything = request.query.get("all") == "1"
    found = [
        to_wire(row, service.now_ms())
        for row in rows
        if everything or row["state"] == "active" or row["rolling_out"]
    ]
    return json_response({"reference_values": found})


async def show_active(request: web.Request) -> web.Response:
    """A model's value in force, with its practice challenge and answers.  A node sees those of its own models."""
    model, caller = request.match_info["model"], caller_of(request)
    async with service_of(request).db.read() as tx:
        node = None if caller.node is None else await nodes.by_id(tx, caller.node)
        is_hidden = node is not None and model not in node.models
        row = None if is_hidden else await references.active(tx, model)
    return _document(row)


async def show_one(request: web.Request) -> web.Response:
    """A value by its digest."""
    async with service_of(request).db.read() as tx:
        row = await references.by_digest(tx, request.match_info["digest"])
    return _document(row)


def _document(row: Row | None) -> web.Response:
    if row is None:
        raise RequestError("there is no such reference value", code="request.not-found")
    document = measured.read_document(row["document"])
    return json_response({"digest": row["digest"], "state": row["state"], **msgspec.to_builtins(document)})


async def export(request: web.Request) -> web.Response:
    """A value as an unsigned CoRIM.  It counts only after somebody who vouches for it has signed it."""
    async with service_of(request).db.read() as tx:
        row = await references.by_digest(tx, request.match_info["digest"])
    if row is None:
        raise RequestError("there is no such reference value", code="request.not-found")
    document = measured.read_document(row["document"])
    data = corim.encode(
        profile.from_document(document, not_before=row["not_before"], not_after=row["not_after"])
    )
    return web.Response(body=data, content_type="application/rim+cbor")


async def add(request: web.Request) -> web.Response:
    """
    Add values: a document (JSON), values written by hand (YAML), or a CoRIM that a trust anchor has signed.

    ``?reason=…`` says why.  ``activate=1`` puts them in force at once.  ``dry_run=1`` says what would come of it, and
    changes nothing.
    """
    service = service_of(request)
    who = author_of_query(request)
    limit = corim.MAX_CORIM if request.content_type == CORIM else MAX_DOCUMENT_BYTES
    body = await read_body(request, limit)
    now_ms = service.now_ms()
    # Megabytes may have to be parsed, and other requests must not wait.
    read = await asyncio.to_thread(read_values, request.content_type, body, service.anchors, now_ms)
    try:
        added = await service.db.write(
            lambda tx: reference_imports.add(
                tx,
                read,
                who,
                now_ms,
                replace=request.query.get("activate") == "1",
                grace_ms=service.config.references.grace_s * 1000,
                dry_run=request.query.get("dry_run") == "1",
            )
        )
    except DryRunError as stopped:
        return json_response({"reference_values": msgspec.to_builtins(stopped.added), "dry_run": True})
    return json_response({"reference_values": msgspec.to_builtins(added)}, status=201)


def read_values(
    kind: str, body: bytes, anchors: Callable[[], Mapping[str, Anchor]], now_ms: int
) -> list[tuple[Document, Provenance]]:
    """
    The values in a body of the content type *kind*.

    Raises:
        ReferenceValueError: it cannot be read, or no trust anchor has signed it.
        RequestError: it has another content type.
    """
    match kind:
        case "application/json":
            document = measured.read_document(body)
            return [(document, provenance_of(document))]
        case "application/yaml":
            return [(handwritten.read_yaml(body), Provenance("yaml"))]
        case "application/rim+cose":
            verified = corim.read_signed(body).verify(anchors(), now_ms // 1000)
            provenance = Provenance("corim", verified.signer, verified.not_before, verified.not_after)
            return [(document, provenance) for document in profile.to_documents(verified.corim)]
        case _:
            raise RequestError(f"the content type is {kind[:80]!r}: send {_DOCUMENT}, {_YAML} or {CORIM}")


def provenance_of(document: Document) -> Provenance:
    """Where a document comes from, as it says itself.  The person who adds it vouches for that."""
    if document.publisher is None:
        return Provenance("measured")
    return Provenance("oms", document.publisher.signer)


async def activate(request: web.Request) -> web.Response:
    """Put a value in force.  For a grace period, the value that it replaces is a warning and not a mismatch."""
    service = service_of(request)
    body = parse_json(await read_body(request, MAX_JSON), _ActivateBody)
    grace_s = service.config.references.grace_s if body.grace_s is None else body.grace_s
    digest = request.match_info["digest"]
    await service.db.write(
        lambda tx: references.activate(
            tx, digest, body.author(request), service.now_ms(), grace_ms=grace_s * 1000, source=body.source
        )
    )
    return web.Response(status=204)


async def retire(request: web.Request) -> web.Response:
    """Withdraw a value at once, without a grace period."""
    service = service_of(request)
    body = parse_json(await read_body(request, MAX_JSON), AuthorBody)
    await service.db.write(
        lambda tx: references.retire(tx, request.match_info["digest"], body.author(request), service.now_ms())
    )
    return web.Response(status=204)


async def restore(request: web.Request) -> web.Response:
    """Take back that a value was withdrawn.  It comes into force only when somebody activates it."""
    service = service_of(request)
    body = parse_json(await read_body(request, MAX_JSON), AuthorBody)
    digest = request.match_info["digest"]
    await service.db.write(lambda tx: references.restore(tx, digest, body.author(request), service.now_ms()))
    return web.Response(status=204)


async def list_history(request: web.Request) -> web.Response:
    """What was done to the values of all models, or of the one in ``model``: who, when and why, the newest first."""
    async with service_of(request).db.read() as tx:
        found = await reference_sources.history(tx, request.query.get("model"))
    return json_response({"changes": found})


async def list_conflicts(request: web.Request) -> web.Response:
    """Pairs of values of one model that disagree, if both are in force or may come into force."""
    async with service_of(request).db.read() as tx:
        rows = await references.documents(tx, references.LIVE)
    return json_response({"conflicts": msgspec.to_builtins(conflicts.between(by_model(rows)))})


def by_model(rows: list[Row]) -> dict[str, list[ModelReference]]:
    """The reference values of rows with documents, by model."""
    found: dict[str, list[ModelReference]] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(references.to_reference(row))
    return found


def to_wire(row: Row, now_ms: int) -> dict[str, Any]:
    """A value as JSON, without its contents."""
    grace_left_s = (row["grace_until_ms"] - now_ms) // 1000
    not_after = row["not_after"]
    return {
        "model": row["model"],
        "digest": row["digest"],
        "state": row["state"],
        "rolling_out": bool(row.get("rolling_out")),
        "source": row["source"],
        "signer": row["signer"],
        "added": row["added_ms"] // 1000,
        "not_before": row["not_before"],
        "not_after": not_after,
        "expires_in_s": None if not_after is None else not_after - now_ms // 1000,
        "grace_left_s": grace_left_s if row["state"] != "active" and grace_left_s > 0 else None,
    }
