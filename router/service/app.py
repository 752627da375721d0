"""The application: feed, dispatcher and resources put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from router.config import RouterConfig
from router.feed import Clock, Feed
from router.gateway import openai, pinned
from router.gateway.dispatch import Dispatcher
from router.service import decisions
from verifier.service import problem

FEED: web.AppKey[Feed] = web.AppKey("feed", Feed)


def make_app(config: RouterConfig, clock: Clock | None = None) -> web.Application:
    """The router's application."""
    clock = clock or Clock(lambda: time.time_ns() // 1_000_000, time.monotonic)
    app = web.Application(middlewares=[problem.middleware])
    app[openai.CONFIG] = config
    app.add_routes([*openai.routes(), *decisions.routes(), web.get("/metrics", _metrics)])

    async def run(app: web.Application) -> AsyncIterator[None]:
        async with (
            aiohttp.ClientSession(trust_env=False) as to_verifier,
            pinned.open_session(allow_private=config.gateway.allow_private) as to_nodes,
        ):
            app[FEED] = feed = Feed(to_verifier, config.verifier, clock)
            app[openai.DISPATCHER] = Dispatcher(feed, to_nodes, config.gateway, clock)
            task = asyncio.create_task(feed.run(), name="feed")
            yield
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    app.cleanup_ctx.append(run)
    return app


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
