"""A witness's HTTP service (c2sp.org/tlog-witness), and the loop that follows logs which do not call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog
from aiohttp import web

from verifier.errors import LogError
from verifier.log.notes import VerifierKey
from verifier.log.witnessing import MAX_REQUEST, Refusal, RefusalError, origin_of
from verifier.service import problem
from verifier.service.front import FRONT, Front, spend_stranger, take_place
from verifier.service.http import read_body
from verifier.store.files import new_file
from verifier.watching.home import WitnessConfig, WitnessHome, place_of
from verifier.watching.pulling import pull
from verifier.watching.sources import open_source
from verifier.watching.witness import Witness

_WITNESS: Final = web.AppKey("witness", Witness)
_SIZE_TYPE: Final = "text/x.tlog.size"
_CHECKPOINT: Final = "/logs/{place}/checkpoint"

_log = structlog.get_logger("witness")


def make_app(home: WitnessHome, config: WitnessConfig, witness: Witness) -> web.Application:
    """The application of a witness; while it runs, it follows the logs that have a URL."""
    app = web.Application(middlewares=[problem.middleware, _limit])
    app[_WITNESS] = witness
    app[FRONT] = Front(
        config.service,
        per_address_per_minute=config.service.per_address_per_minute,
        strangers_per_minute=config.service.strangers_per_minute,
        monotonic=time.monotonic,
    )
    app.router.add_get("/", _about)
    app.router.add_get(_CHECKPOINT, _checkpoint)
    app.router.add_post("/add-checkpoint", _add_checkpoint)

    async def following(_: web.Application) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(_follow(home, witness, key, url, config.every_s))
            for key, url in config.followed()
            if url is not None
        ]
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    app.cleanup_ctx.append(following)
    return app


@web.middleware
async def _limit(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Nobody proves who they are before the checkpoint is read: every caller is a stranger."""
    spend_stranger(request)
    await take_place(request)
    return await handler(request)


async def _add_checkpoint(request: web.Request) -> web.Response:
    body = await read_body(request, MAX_REQUEST)
    try:
        signature = await asyncio.to_thread(lambda: request.app[_WITNESS].add(origin_of(body)))
    except RefusalError as error:
        status = problem.WITNESS_STATUS[error.refusal]
        if error.refusal is Refusal.STALE:
            return web.Response(status=status, text=f"{error.size}\n", content_type=_SIZE_TYPE)
        return web.Response(status=status, text=f"{error}\n")
    return web.Response(text=f"{signature}\n")


async def _about(request: web.Request) -> web.Response:
    """Everything that somebody needs who wants to trust the witness, or to follow what it has signed."""
    witness = request.app[_WITNESS]
    lines = [f"witness {witness.signer.key}"]
    for origin in sorted({key.name for key in witness.keys}):
        lines.append(f"log {origin} {_CHECKPOINT.format(place=place_of(origin))}")
        evidence = await asyncio.to_thread(witness.seen.evidence, origin)
        lines += [f"evidence {origin} {at_s} {why}" for at_s, why, _ in evidence]
    return web.Response(text="".join(f"{line}\n" for line in lines))


async def _checkpoint(request: web.Request) -> web.Response:
    witness = request.app[_WITNESS]
    origins = {place_of(key.name): key.name for key in witness.keys}
    origin = origins.get(request.match_info["place"])
    note = None if origin is None else await asyncio.to_thread(witness.seen.cosigned, origin)
    if note is None:
        raise web.HTTPNotFound
    return web.Response(text=note, headers={"Cache-Control": "no-cache"})


async def _follow(home: WitnessHome, witness: Witness, key: VerifierKey, url: str, every_s: float) -> None:
    while True:
        with suppress(LogError):
            await follow_once(home, witness, key, url)
        await asyncio.sleep(every_s)


async def follow_once(home: WitnessHome, witness: Witness, key: VerifierKey, url: str) -> None:
    """
    Read a log, cosign its checkpoint, and write it to its file.

    Raises:
        LogError: it was not cosigned, which was told in the log.
    """
    try:
        async with open_source(url) as source:
            await pull(source, key, witness)
    except LogError as error:
        _log.warning("a log was not cosigned", origin=key.name, why=str(error))
        raise
    note = await asyncio.to_thread(witness.seen.cosigned, key.name)
    assert note is not None
    await asyncio.to_thread(_publish, home, key.name, note)


def _publish(home: WitnessHome, origin: str, note: str) -> None:
    path = home.checkpoint(origin)
    with new_file(path, force=True) as temporary:
        temporary.write_text(note, encoding="utf-8")
        # It is there to be published.
        temporary.chmod(0o644)
