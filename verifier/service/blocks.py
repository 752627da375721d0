"""Emergency blocks: at once, for all nodes, above every policy."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from msgspec import Meta

from verifier.schemes import blocking
from verifier.service import access
from verifier.service.access import Route
from verifier.service.http import MAX_JSON, json_response, parse_json, read_body
from verifier.service.policies import AuthorBody
from verifier.service.state import service_of
from verifier.store import blocks


class _BlockBody(AuthorBody, frozen=True):
    kind: Annotated[str, Meta(max_length=32)]
    value: Annotated[str, Meta(max_length=512)]
    anyway: bool = False
    """Whether what hits no node is blocked too."""
    dry_run: bool = False
    """Whether only the nodes are counted that it would hit."""


def routes() -> list[Route]:
    """The resources of this file."""
    base = "/api/v1/policies/blocks"
    return [
        access.get(base, list_blocks, access.POLICY_WORK, "List what is blocked."),
        access.post(base, block, access.APPROVE, "Block something at once."),
        access.post(f"{base}/{{id}}/lift", lift, access.APPROVE, "Lift a block."),
    ]


async def list_blocks(request: web.Request) -> web.Response:
    """What is blocked now: by whom, why, and which nodes it hits; ``all=1`` adds what was lifted."""
    service = service_of(request)
    everything = request.query.get("all") == "1"
    async with service.db.read() as tx:
        rows = await (blocks.every(tx) if everything else blocks.live(tx))
    fleet = await blocks.look(service.db, [(row["kind"], row["value"]) for row in rows], service.now_ms())
    found = [blocks.to_wire(row, fleet.hits[row["kind"], row["value"]]) for row in rows]
    return json_response({"blocks": found})


async def block(request: web.Request) -> web.Response:
    """
    Block a digest, versions of an engine, or a device: at once, and for all nodes.

    The answer has the nodes that it hits.  What hits none is refused, unless ``anyway`` is true.
    """
    body = parse_json(await read_body(request, MAX_JSON), _BlockBody)
    service = service_of(request)
    value = blocking.normalise(body.kind, body.value)
    fleet = await blocks.look(service.db, [(body.kind, value)], service.now_ms())
    hits = blocks.hits_to_wire(fleet.hits[body.kind, value])
    if body.dry_run:
        return json_response({"kind": body.kind, "value": value, "hits": hits})
    if not body.anyway:
        blocks.check_hits(body.kind, value, fleet)
    author = body.author(request)
    block_id = await service.db.write(lambda tx: blocks.block(tx, body.kind, value, author, service.now_ms()))
    return json_response({"block": block_id, "value": value, "hits": hits}, status=201)


async def lift(request: web.Request) -> web.Response:
    """Lift a block, at once."""
    body = parse_json(await read_body(request, MAX_JSON), AuthorBody)
    service = service_of(request)
    await service.db.write(
        lambda tx: blocks.lift(tx, request.match_info["id"], body.author(request), service.now_ms())
    )
    return web.Response(status=204)
