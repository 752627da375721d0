"""Files of routers' archives: their digests and the roots of their rows go into the log."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from verifier.archive.rows import DECISIONS, RECEIPTS
from verifier.errors import RequestError
from verifier.service import access
from verifier.service.access import Route, caller_of
from verifier.service.http import json_response, parse_json, read_body
from verifier.service.state import service_of
from verifier.store import archive_entries, log

_MAX_BODY: Final = 2048
_OF_ROUTERS: Final = (DECISIONS.name, RECEIPTS.name)

_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Key = Annotated[str, Meta(pattern=r"^[\x21-\x7e]{1,128}\Z")]
_Count = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]


class FileBody(Struct, frozen=True, forbid_unknown_fields=True):
    """See `verifier.archive.files.ArchiveEntry`."""

    table: Annotated[str, Meta(max_length=16)]
    digest: _Digest
    rows: Annotated[int, Meta(ge=1, le=1_000_000)]
    root: _Digest
    first: _Key
    last: _Key
    from_: _Count = msgspec.field(name="from")
    to: _Count
    router: Annotated[str, Meta(pattern=r"^[\x20-\x7e]{1,128}\Z")]
    """The router's own name."""

    def __post_init__(self) -> None:
        if self.table not in _OF_ROUTERS:
            raise ValueError(f"table must be one of {', '.join(_OF_ROUTERS)}")


def routes() -> list[Route]:
    """The resources of this file."""
    return [
        access.post("/api/v1/log/archives", take, access.BY_ROUTER, "Log a file of a router's archive."),
    ]


async def take(request: web.Request) -> web.Response:
    """Log a file, under the name of the credential.  The same digest again changes nothing."""
    service, caller = service_of(request), caller_of(request)
    body = parse_json(await read_body(request, _MAX_BODY), FileBody)
    members: dict[str, log.Value] = {**msgspec.to_builtins(body), "actor": log.clip(caller.name)}
    now_ms = service.now_ms()
    if service.sequencer.stopped is not None:
        # A router would wait for its proof for ever.
        raise RequestError("the log is not written now", code="log.pending", retry_after=60)
    is_new = await service.db.write(lambda tx: archive_entries.take(tx, members, now_ms))
    return json_response({"entry": body.digest}, status=201 if is_new else 200)
