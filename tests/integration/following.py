"""What tests of the feed share: a feed that follows a fake verifier, and what it knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp

from router.config import VerifierSection
from router.model.node import NodeView
from router.model.workload import Table
from router.state.feed import Feed
from router.state.fleet import Fleet
from tests.unit.router.doubles import FakeVerifier, until
from tests.unit.router.support import WORKLOAD


@asynccontextmanager
async def followed(
    verifier: FakeVerifier, *, ready: bool = True, given: Mapping[str, Any] | None = None, **section: Any
) -> AsyncIterator[Feed]:
    """A feed that follows; it comes back at once where it breaks.  *given* is for the feed."""

    async def at_once(_: float) -> None:
        await asyncio.sleep(0.002)

    async with aiohttp.ClientSession() as http:
        clock = verifier.clock.clock()
        fleet = Fleet(Table([WORKLOAD]), clock)
        feed = Feed(http, VerifierSection(verifier.url, **section), clock, fleet, **(given or {}))
        task = asyncio.create_task(feed.run(at_once))
        try:
            if ready:
                await until(lambda: verifier.followers)
            yield feed
            assert not task.done(), "the feed ended"
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def node(feed: Feed, name: str = "a") -> NodeView:
    return feed.fleet.view(name)


def code(feed: Feed, name: str = "a") -> str | None:
    """The gate that is closed to a node; None where it may do the work."""
    verdict = feed.fleet.verdict(name, WORKLOAD)
    return None if verdict is None else verdict.code


async def settled(verifier: FakeVerifier, feed: Feed) -> None:
    """Everything sent so far has been read: a marker came through after it."""
    verifier.send("node", node="marker", state="retired")
    await until(lambda: node(feed, "marker").retired)
