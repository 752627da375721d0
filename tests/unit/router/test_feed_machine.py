"""The feed against one that never broke: after any breaks, resumptions and snapshots both know the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, cast

import aiohttp
import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config import VerifierSection
from router.model.workload import Table
from router.state.feed import Feed
from router.state.feed_source import (
    Event,
    FeedError,
    FeedSource,
    Heard,
    Incident,
    ListedResult,
    LostPlaceError,
    ResultsPage,
)
from router.state.fleet import Fleet
from tests.unit.router.doubles import Moved, result_key
from tests.unit.router.support import ISSUER, WEIGHTS, WORKLOAD, ear
from verifier.result_keys import ResultKey, VerifyingKey
from verifier.results import encode_jwt

NODES = ("a", "b", "c", "d", "e")
OPERATORS = {"a": "acme", "b": "acme", "c": "beta", "d": "beta", "e": "acme"}
PATIENT = msgspec.structs.replace(WORKLOAD, max_age_s=86400)
LONG_S = 80_000
KEYS = [result_key() for _ in range(3)]

CHANGES = (
    "attest",
    "fail",
    "revoke",
    "rejudge",
    "rejudge",
    "hold",
    "review",
    "release",
    "retire",
    "rotate",
    "prune",
)
ENDS = (*["no"] * 14, "break", "break", "garbled", "fault", "refused")
WAITS_S = (*[0] * 12, *[1] * 4, 61, 601)
TURN = st.tuples(
    st.lists(st.tuples(st.sampled_from(CHANGES), st.sampled_from(NODES)), max_size=3),
    st.sampled_from(WAITS_S),
    st.sampled_from(ENDS),
    st.integers(1, 3),
)
"""Changes before an answer, seconds that pass, how the connection ends, and the size of a page."""


class World:
    """A verifier: its state, the events of each change, and who hears them at once."""

    def __init__(self, clock: Moved) -> None:
        self.clock = clock
        self.keys = KEYS[:1]
        self.signer = 0
        self.tokens: dict[str, str] = {}
        self.incidents: dict[str, Incident] = {}
        self.retired: set[str] = set()
        self.log: list[Event | None] = [None]
        """By number; `None` if it is pruned."""
        self.kinds = [""]
        self.hear: Callable[[Heard], Any] = lambda _: None
        self.count = 0

    @property
    def newest(self) -> int:
        return len(self.log) - 1

    async def tell(self, kind: str, **said: Any) -> None:
        self.kinds.append(kind)
        self.log.append(Event(**said))
        await self.hear(Heard(kind, self.log[-1], self.newest))

    def key(self) -> ResultKey:
        return KEYS[self.signer]

    async def change(self, what: str, node: str) -> None:
        """One change of the verifier's, as a transaction: what pages show and its events."""
        self.count += 1
        incident = self.incidents.get(node)
        match what:
            case "attest" | "fail" if node not in self.retired:
                bad = what == "fail" or incident is not None
                weights = {**WEIGHTS, "executables": 96} if bad else WEIGHTS
                now = self.clock.seconds
                result = ear(
                    node,
                    iat=now,
                    exp=now + LONG_S,
                    weights=weights,
                    operator=OPERATORS[node],
                    jti=f"{self.count}",
                )
                self.tokens[node] = encode_jwt(result, self.key())
                await self.tell("result", node=node, token=self.tokens[node])
            case "rejudge" if node in self.tokens:
                await self._revoke(node)
                await self.change("attest", node)
            case "revoke":
                await self._revoke(node)
            case "hold" if incident is None:
                held = Incident(f"i{self.count}", "open", node, OPERATORS[node], float(self.clock.seconds))
                await self._say(held)
                await self._revoke(node)
            case "review" if incident is not None:
                await self._say(msgspec.structs.replace(incident, state="under-review"))
            case "release" if incident is not None:
                await self._say(msgspec.structs.replace(incident, state="released"))
            case "retire" if node not in self.retired:
                self.retired.add(node)
                await self._revoke(node)
                await self.tell("node", node=node, state="retired")
            case "rotate" if self.signer + 1 < len(KEYS):
                self.keys = KEYS[: len(self.keys) + 1]
                # A key is listed for a while before it is used: routers ask for keys at most every 30 s.
                self.clock.forward(31)
                self.signer += 1
            case "prune":
                self.log[:-1] = [None] * self.newest

    async def _revoke(self, node: str) -> None:
        if self.tokens.pop(node, None) is not None:
            await self.tell("revocation", node=node)

    async def _say(self, incident: Incident) -> None:
        assert incident.node is not None
        if incident.state == "released":
            del self.incidents[incident.node]
        else:
            self.incidents[incident.node] = incident
        await self.tell(
            "incident",
            node=incident.node,
            incident=incident.id,
            state=incident.state,
            operator=incident.operator,
            opened=incident.opened,
        )


class Breaking:
    """The verifier's API.  At each answer the verifier may change, time may pass, and the connection may break."""

    def __init__(self, world: World, turn: Callable[[], Any]) -> None:
        self.world = world
        self.turn = turn
        self.is_calm = asyncio.Event()
        """Set once everything has been told, and nothing happens any more."""

    async def keys(self) -> dict[str, VerifyingKey]:
        await self.turn()
        return {key.kid: key.verifying for key in self.world.keys}

    async def results(self, after: str) -> AsyncGenerator[ResultsPage, None]:
        while True:
            size = await self.turn()
            names = sorted(name for name in self.world.tokens if name > after)[:size]
            listed = [ListedResult(name, self.world.tokens[name]) for name in names]
            following = names[-1] if len(names) == size else None
            yield ResultsPage(following, listed, self.world.newest)
            if following is None:
                return
            after = following

    async def newest_event(self) -> int:
        await self.turn()
        return self.world.newest

    async def open_incidents(self) -> list[Incident]:
        await self.turn()
        return list(self.world.incidents.values())

    async def suspicions(self) -> dict[str, frozenset[str]]:
        return {}

    async def knows_incident(self, incident: str) -> bool:
        await self.turn()
        return True

    async def events(self, after: int) -> AsyncGenerator[Heard, None]:
        log = self.world.log
        if after > self.world.newest or None in log[after + 1 :]:
            raise LostPlaceError("the number is unknown")
        yield Heard("heartbeat", None, None)
        while True:
            while after < self.world.newest:
                await self.turn()
                after += 1
                event = log[after]
                if event is None:
                    # A stream that lags behind is ended.
                    return
                yield Heard(self.world.kinds[after], event, after)
            if await self.turn() is None and after == self.world.newest:
                self.is_calm.set()
                await asyncio.Event().wait()
            yield Heard("heartbeat", None, after)


def feed_of(world: World, fleet: Fleet, source: Any) -> Feed:
    feed = Feed(cast("aiohttp.ClientSession", None), VerifierSection(ISSUER), world.clock.clock(), fleet)
    feed._source = cast("FeedSource", source)
    return feed


def known(fleet: Fleet) -> dict[str, Any]:
    """What one may do about each node, by which result, and why it is held."""
    found: dict[str, Any] = {}
    for name in NODES:
        view = fleet.view(name)
        is_open = fleet.verdict(name, PATIENT) is None
        jti = view.result.jti if is_open and view.result is not None else None
        found[name] = (is_open, jti, view.incidents)
    found.update({name: fleet._operator_holds.since(name) for name in set(OPERATORS.values())})
    return found


async def played(turns: list[Any]) -> None:
    """One history: a router that breaks and one that does not."""
    clock = Moved()
    world = World(clock)
    left = list(turns)

    async def calm() -> int | None:
        return None

    unbroken = Fleet(Table([PATIENT]), clock.clock())
    reference = feed_of(world, unbroken, Breaking(world, calm))

    async def hear(heard: Heard) -> None:
        assert heard.event is not None
        # It hears of a new key when it is used.
        reference._reader.use_keys({key.kid: key.verifying for key in world.keys})
        await reference._take_event(heard, heard.event)

    world.hear = hear

    async def turn() -> int | None:
        """What happens before an answer; the size of a page, or `None` once it is calm."""
        if not left:
            return None
        changes, wait_s, end, size = left.pop(0)
        for what, node in changes:
            await world.change(what, node)
        clock.forward(wait_s)
        match end:
            case "break":
                raise aiohttp.ClientError
            case "garbled":
                raise LostPlaceError("an event cannot be read")
            case "fault":
                raise RuntimeError("nobody thought of it")
            case "refused":
                raise FeedError("503")
        return size

    async def at_once(_: float) -> None:
        await asyncio.sleep(0)

    for name in NODES:
        await world.change("attest", name)
    broken = Fleet(Table([PATIENT]), clock.clock())
    source = Breaking(world, turn)
    task = asyncio.create_task(feed_of(world, broken, source).run(at_once))
    try:
        async with asyncio.timeout(60):
            await source.is_calm.wait()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    unbroken.note_verifier_contact()
    assert broken.silent_s == 0
    assert known(broken) == known(unbroken)


@settings(max_examples=40)
@given(st.lists(TURN, min_size=8, max_size=50))
def test_after_any_breaks_the_same_is_known(turns: list[Any]) -> None:
    """Whatever happened while nobody listened, and wherever the connection broke."""
    asyncio.run(played(turns))
