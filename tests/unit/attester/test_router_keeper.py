"""How the list of routers in the home is kept up to date."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from attester.errors import VerifierError
from attester.front.clients import ANCHORS, ASKED, LIST, kept_routers
from attester.front.keeper import RouterKeeper
from attester.router_list import KnownRouter
from fixtures.fronted import Identity, make_home

DAY_S = 86_400


@dataclass
class Verifier:
    """Answers with a list, or not."""

    routers_now: tuple[KnownRouter, ...] = ()
    error: VerifierError | None = None
    asked: int = 0

    async def routers(self) -> tuple[KnownRouter, ...]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.routers_now


@dataclass
class World:
    """A keeper, its verifier and its clock."""

    path: Path
    at: float = 1_000_000.0
    verifier: Verifier = field(default_factory=Verifier)

    def __post_init__(self) -> None:
        self.home = make_home(self.path, "http://127.0.0.1:9")
        self.one, self.two = Identity(self.path, "one"), Identity(self.path, "two")
        client: Any = self.verifier
        self.keeper = RouterKeeper(client, self.home, DAY_S, now=lambda: self.at, tick=lambda: self.at)

    async def after(self, seconds: float) -> None:
        self.at += seconds
        await self.keeper.step()

    @property
    def kept(self) -> tuple[KnownRouter, ...]:
        return kept_routers(self.home, max_age_s=DAY_S, now=self.at)

    @property
    def anchors(self) -> int:
        return (self.home.path / ANCHORS).read_text().count("BEGIN CERTIFICATE")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_the_list_is_fetched_each_minute(world: World) -> None:
    """And kept in the home, for the front and for proxies."""
    world.verifier.routers_now = (world.one.known,)
    await world.after(0)
    assert (world.kept, world.anchors) == ((world.one.known,), 2)
    world.verifier.routers_now = (world.one.known, world.two.known)
    await world.after(59)
    assert world.verifier.asked == 1
    await world.after(1)
    assert (world.kept, world.anchors) == (world.verifier.routers_now, 3)


async def test_it_is_fetched_at_once_if_the_front_asks(world: World) -> None:
    """But at most every five seconds."""
    await world.after(0)
    (world.home.path / ASKED).touch()
    await world.after(4)
    assert world.verifier.asked == 1
    await world.after(1)
    assert world.verifier.asked == 2
    await world.after(10)
    assert world.verifier.asked == 2


async def test_what_was_asked_before_it_ran_is_over(world: World) -> None:
    """The first fetch answers it."""
    (world.home.path / ASKED).touch()
    await world.after(0)
    await world.after(10)
    assert world.verifier.asked == 1


async def test_while_the_verifier_is_away_the_last_list_stays_for_a_day(world: World) -> None:
    """Then proxies lose it too; the log says so once."""
    world.verifier.routers_now = (world.one.known,)
    await world.after(0)
    world.verifier.error = VerifierError("it cannot be reached")
    with capture_logs() as logs:
        await world.after(60)
        await world.after(DAY_S - 60)
    assert (world.kept, world.anchors) == ((world.one.known,), 2)
    assert [each["event"] for each in logs] == ["the list of routers cannot be fetched"]
    await world.after(1)
    assert (world.kept, world.anchors) == ((), 1)


async def test_a_verifier_without_the_list_is_named_as_older(world: World) -> None:
    """Its 404 says nothing to an operator."""
    world.verifier.error = VerifierError("no such resource", status=404)
    with capture_logs() as logs:
        await world.after(0)
    assert "older version" in logs[0]["why"]


async def test_a_list_that_is_empty_is_a_list(world: World) -> None:
    """Nobody is served any more."""
    world.verifier.routers_now = (world.one.known,)
    await world.after(0)
    world.verifier.routers_now = ()
    await world.after(60)
    assert (world.kept, world.anchors) == ((), 1)


async def test_anchors_are_written_only_when_they_change(world: World) -> None:
    """A proxy is reloaded for that."""
    world.verifier.routers_now = (world.one.known,)
    await world.after(0)
    written = (world.home.path / ANCHORS).stat().st_mtime_ns
    await world.after(60)
    assert (world.home.path / ANCHORS).stat().st_mtime_ns == written
    assert (world.home.path / LIST).exists()
