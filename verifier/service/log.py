"""The log as anybody may read it: checkpoints, tiles and entries (c2sp.org/tlog-tiles), and proofs of single entries."""

from __future__ import annotations

import re
from typing import Any, Final

from aiohttp import web

from verifier.errors import LogFormatError, RequestError
from verifier.log.proofs import MEDIA_TYPE, LogProof
from verifier.log.tiles import WIDTH, Tile, encode_bundle
from verifier.service import access
from verifier.service.access import Route
from verifier.service.http import integer, json_response
from verifier.service.state import service_of
from verifier.store import log, log_proofs, log_tree
from verifier.store.database import Tx
from verifier.store.log_tree import Log, Placed

_FOR_EVER: Final = {"Cache-Control": "public, max-age=31536000, immutable"}
_NEVER: Final = {"Cache-Control": "no-store"}
_MAX_SUBJECT: Final = 512
_RETRY_AFTER_S: Final = 1
_LAST_PLACE: Final = (1 << 53) - 1
_NUMBER: Final = re.compile(r"[2-9]|[1-9][0-9]{1,8}", re.ASCII)
"""Of a later log.  Each has one address."""


def routes() -> list[Route]:
    """The resources of this file."""
    found = []
    for prefix in ("/log", "/log/{number}"):
        which = "the first log" if prefix == "/log" else "a later log"
        found += [
            access.get(f"{prefix}/checkpoint", checkpoint, access.LOG, f"The newest checkpoint of {which}."),
            access.get(
                f"{prefix}/tile/{{tile:.+}}", tile, access.LOG, f"Hashes or entries of {which} (tlog-tiles)."
            ),
        ]
    return [
        *found,
        access.get("/api/v1/log", state, access.LOG, "The logs, their keys, and how far they are."),
        access.get(
            "/api/v1/log/proof", proof, access.LOG, "The proof that an entry is in a log (tlog-proof)."
        ),
    ]


async def _log_of(tx: Tx, request: web.Request) -> Log:
    number = request.match_info.get("number")
    is_number = number is None or _NUMBER.fullmatch(number)
    found = await log_tree.by_number(tx, int(number or "1")) if is_number else None
    if found is None:
        raise RequestError("there is no such log", code="request.not-found")
    return found


async def checkpoint(request: web.Request) -> web.Response:
    """The newest checkpoint that the witnesses have cosigned, or have not cosigned for some seconds."""
    service = service_of(request)
    async with service.db.read() as tx:
        log = await _log_of(tx, request)
        found = await log_tree.shown(tx, log.number, len(service.config.log.witnesses), service.now_ms())
    if found is None:
        raise RequestError("the log has not been signed yet", code="log.pending", retry_after=_RETRY_AFTER_S)
    return web.Response(body=found.text.encode(), headers={**_NEVER, "Content-Type": MEDIA_TYPE})


async def tile(request: web.Request) -> web.Response:
    """A tile of hashes, or a bundle of entries.  What is given never changes."""
    try:
        asked = Tile.parse(f"tile/{request.match_info['tile']}")
    except LogFormatError as error:
        raise RequestError(str(error), code="request.not-found") from None
    async with service_of(request).db.read() as tx:
        found = await _log_of(tx, request)
        head = await log_tree.head(tx, found.number)
        if head is None or not asked.fits(head.size):
            raise RequestError("the log does not have so many entries", code="request.not-found")
        if asked.has_entries:
            start = asked.index * WIDTH
            data = encode_bundle(await log_tree.leaves(tx, found.number, start, start + asked.width))
        else:
            data = await log_tree.read_tile(tx, found.number, asked)
    return web.Response(body=data, headers={**_FOR_EVER, "Content-Type": "application/octet-stream"})


async def state(request: web.Request) -> web.Response:
    """The logs, the one that is written last; and whether it is."""
    service = service_of(request)
    async with service.db.read() as tx:
        known = await log_tree.every(tx)
        waiting = await log.count_waiting(tx)
        listed = [await _to_wire(tx, each) for each in known]
    told = {"logs": listed, "waiting": waiting, "stopped": service.sequencer.stopped is not None}
    witnesses = [{"url": each.url, "vkey": each.key} for each in service.config.log.witnesses]
    return json_response({**told, "witnesses": witnesses}, headers=_NEVER)


async def _to_wire(tx: Tx, known: Log) -> dict[str, Any]:
    head = await log_tree.head(tx, known.number)
    return {
        "number": known.number,
        "origin": known.origin,
        "vkey": known.vkey,
        "prefix": known.prefix,
        "size": 0 if head is None else head.size,
    }


async def proof(request: web.Request) -> web.Response:
    """
    The proof of the newest entry about ``id`` of the kind ``kind``, or of the entry at ``place`` of ``log``.

    Its ``extra`` is the entry, so that it needs nothing but the log's key to be verified.
    """
    async with service_of(request).db.read() as tx:
        found = await _find(tx, request)
        made = await _prove(tx, found)
    return web.Response(body=str(made).encode(), headers={**_NEVER, "Content-Type": MEDIA_TYPE})


async def _find(tx: Tx, request: web.Request) -> Placed:
    if "place" in request.query:
        number = integer(request, "log", default=0, low=0, high=1 << 30)
        place = integer(request, "place", default=0, low=0, high=_LAST_PLACE)
        known = await (log_tree.by_number(tx, number) if number else log_tree.newest(tx))
        at = None if known is None else await log_tree.at(tx, known.number, place)
        if at is None:
            raise RequestError("the log has no such place", code="request.not-found")
        return at
    kind, subject = request.query.get("kind", ""), request.query.get("id", "")[: _MAX_SUBJECT + 1]
    if kind not in log.SUBJECTS or not subject or len(subject) > _MAX_SUBJECT:
        raise RequestError(f"kind must be one of {', '.join(log.SUBJECTS)}, and id what the entry is about")
    found = await log_tree.find(tx, kind, subject)
    if await log.is_pending(tx, kind, subject):
        raise _pending()
    if found is None:
        raise RequestError(f"the log has no entry of kind {kind} about it", code="request.not-found")
    return found


async def _prove(tx: Tx, found: Placed) -> LogProof:
    made = await log_proofs.prove(tx, found)
    if made is None:
        raise _pending()
    return made


def _pending() -> RequestError:
    return RequestError(
        "the entry is written, and waits for its place", code="log.pending", retry_after=_RETRY_AFTER_S
    )
