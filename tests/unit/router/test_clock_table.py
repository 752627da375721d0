"""
The clocks of verifier and router, set ahead and back at every point of a result's life and of a feed.

Three nodes: one attests every minute, one attests once and is silent, one attests well once and badly from then on.
Time is the test's: sockets and databases are in `tests/integration/test_router_clocks.py` and `test_clock_steps.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import aiohttp
import msgspec
import pytest

from router.config import VerifierSection
from router.model.workload import Table
from router.state.feed import Feed
from router.state.feed_source import Event, FeedSource, Heard, Incident, ListedResult, ResultsPage
from router.state.fleet import Fleet
from tests.unit.router.doubles import Moved, Wrong, result_key
from tests.unit.router.support import ISSUER, WEIGHTS, WORKLOAD, ear
from verifier.results import encode_jwt

PATIENT = msgspec.structs.replace(WORKLOAD, max_age_s=86400)
HOUR_S = 3600.0
STEPS = [HOUR_S, -HOUR_S, 24 * HOUR_S, -24 * HOUR_S]
WHOSE = ["verifier", "router", "both"]
POINTS = ["before the result", "between result and event", "during the snapshot", "after"]
LIFE_S, EVERY_S, WRONG_FOR_S, TICK_S = 300, 60, 900, 10
KEY = result_key()
BAD = {**WEIGHTS, "executables": 96}
NODES = ("bad", "good", "silent")


class World:
    """A verifier and a router that hears it, tick by tick."""

    def __init__(self) -> None:
        self.passing = Moved()
        self.clocks = {"verifier": Wrong(self.passing), "router": Wrong(self.passing)}
        clock = self.clocks["router"].clock()
        self.fleet = Fleet(Table([PATIENT]), clock)
        self.feed = Feed(cast("aiohttp.ClientSession", None), VerifierSection(ISSUER), clock, self.fleet)
        self.feed._source = cast("FeedSource", self)
        self.feed._place = 0
        self.sequence = 0
        self.tokens: dict[str, tuple[int, str]] = {}
        self.issued_at: dict[str, float] = {}
        self.between_pages: Any = lambda: None
        self.told_bad = False

    # The verifier.

    def sign(self, node: str, *, bad: bool = False) -> Event:
        self.sequence += 1
        iat = self.clocks["verifier"].seconds
        made = ear(
            node,
            iat=iat,
            exp=iat + LIFE_S,
            sequence=self.sequence,
            weights=BAD if bad else None,
            operator=node,
        )
        token = encode_jwt(made, KEY)
        self.tokens[node] = (self.sequence, token)
        self.issued_at[node] = self.passing.ticks
        return Event(node=node, token=token, sequence=self.sequence)

    async def tell(self, event: Event, kind: str = "result") -> None:
        await self.feed._take_event(Heard(kind, event, None), event)

    async def attest(self, node: str, *, bad: bool = False) -> None:
        before = self.tokens.get(node)
        event = self.sign(node, bad=bad)
        if bad and before is not None:
            await self.tell(Event(node=node, sequence=before[0]), "revocation")
        await self.tell(event)
        self.told_bad = self.told_bad or bad

    async def keys(self) -> Any:
        return {KEY.kid: KEY.verifying}

    async def results(self, after: str) -> AsyncGenerator[ResultsPage, None]:
        for number, node in enumerate(NODES):
            sequence, token = self.tokens[node]
            listed = [ListedResult(node, token, sequence, 0)]
            following = node if number < len(NODES) - 1 else None
            yield ResultsPage(following, listed, 0, self.clocks["verifier"].ms)
            if number == 0:
                self.between_pages()

    async def open_incidents(self) -> list[Incident]:
        return []

    async def suspicions(self) -> dict[str, frozenset[str]]:
        return {}

    # Time.

    def set_clocks(self, whose: str, off_s: float) -> None:
        for name in ("verifier", "router") if whose == "both" else (whose,):
            self.clocks[name].off_s = off_s

    async def beat(self) -> None:
        await self.feed._beat(self.clocks["verifier"].ms)
        self.fleet.note_verifier_contact()

    async def snapshot(self) -> None:
        self.feed._begun = None
        await self.feed._take_snapshot()

    def may(self) -> set[str]:
        """Who may do the work; whatever happens, no dead result and no bad one lets anybody do it."""
        found = {node for node in NODES if self.fleet.verdict(node, PATIENT) is None}
        for node in found:
            assert self.passing.ticks - self.issued_at[node] < LIFE_S + 1, (
                f"{node} gets work by a dead result"
            )
        if self.told_bad:
            assert "bad" not in found, "work by a result that is replaced"
        return found

    async def forward(self, seconds: float, tick_s: float = TICK_S) -> None:
        """Time passes; the good node attests every minute, or as often as it can."""
        for _ in range(int(seconds // tick_s)):
            self.passing.forward(tick_s)
            await self.beat()
            if self.passing.ticks - self.issued_at["good"] >= EVERY_S:
                await self.attest("good")
            self.may()


async def begun(world: World) -> None:
    """Everybody has attested once, and the router has heard it."""
    await world.feed._fetch_keys()
    for node in NODES:
        await world.attest(node)
    await world.beat()


async def stepped(world: World, whose: str, step_s: float, point: str) -> None:
    """The clocks are set at a point."""

    def step() -> None:
        world.set_clocks(whose, step_s)

    match point:
        case "before the result":
            step()
            await world.attest("good")
        case "between result and event":
            event = world.sign("good")
            step()
            await world.tell(event)
        case "during the snapshot":
            world.between_pages = step
            await world.snapshot()
            world.between_pages = lambda: None
        case _:
            await world.attest("good")
            step()
    world.may()


async def wrong_for_a_while(whose: str, step_s: float, point: str) -> None:
    world = World()
    await begun(world)
    assert world.may() == set(NODES)
    await stepped(world, whose, step_s, point)
    if whose == "verifier":
        # What was good before is good beside a verifier whose clock is wrong.
        assert {"good", "silent"} <= world.may()
    await world.attest("bad", bad=True)
    await world.forward(WRONG_FOR_S)
    world.set_clocks(whose, 0.0)
    world.may()
    # The verifier calls nodes whose results count no more.
    await world.forward(TICK_S)
    if whose != "router":
        await world.attest("good")
    assert world.may() == {"good"}
    await world.forward(abs(step_s) + HOUR_S, abs(step_s) / 40)


async def wrong_from_the_start(whose: str, step_s: float, point: str) -> None:
    world = World()
    world.set_clocks(whose, step_s)
    await begun(world)
    await world.forward(60)
    world.may()

    match point:
        case "before the result":
            world.set_clocks(whose, 0.0)
            await world.attest("good")
        case "between result and event":
            event = world.sign("good")
            world.set_clocks(whose, 0.0)
            await world.tell(event)
        case "during the snapshot":
            world.between_pages = lambda: world.set_clocks(whose, 0.0)
            await world.snapshot()
            world.between_pages = lambda: None
        case _:
            await world.attest("good")
            world.set_clocks(whose, 0.0)
    world.may()
    await world.attest("bad", bad=True)
    await world.forward(TICK_S)
    if whose != "router":
        await world.attest("good")
    assert "good" in world.may()
    await world.forward(LIFE_S)
    assert world.may() == {"good"}
    await world.forward(abs(step_s) + HOUR_S, abs(step_s) / 40)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step_s", STEPS)
@pytest.mark.parametrize("whose", WHOSE)
def test_a_clock_is_wrong_for_a_while(whose: str, step_s: float, point: str) -> None:
    """No dead or bad result lets anybody do the work, and all is well within a minute of the clock being right."""
    asyncio.run(wrong_for_a_while(whose, step_s, point))


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step_s", STEPS)
@pytest.mark.parametrize("whose", WHOSE)
def test_a_clock_is_wrong_from_the_start(whose: str, step_s: float, point: str) -> None:
    """Likewise, when it is set right."""
    asyncio.run(wrong_from_the_start(whose, step_s, point))
