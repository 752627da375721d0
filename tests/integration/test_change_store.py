"""Changes of the table of workloads in the store, of both kinds: one is live at a time, and every step stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from fixtures.postgres import drop_database, make_database, url_of
from router.model.change import Bounds, Settings, Stage
from router.model.errors import ChangeError
from router.store import changes
from router.store.changes import Change, Step
from verifier.store.database import Database, Tx
from verifier.store.opening import open_database

STORES = ("sqlite", "postgres")


@pytest.fixture
def router_url(request: pytest.FixtureRequest, store_url: str) -> Iterator[str]:
    """A store of routers, of the same kind as the verifier's."""
    if not store_url:
        yield ""
        return
    server = request.getfixturevalue("postgres")
    name = asyncio.run(make_database(server))
    yield url_of(server, name)
    asyncio.run(drop_database(server, name))


@pytest.fixture
async def db(router_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(router_url, tmp_path / "router.db", schema="router.store") as opened:
        yield opened


def change(name: str) -> Change:
    return Change(
        id=name,
        number=0,
        stage=Stage.SHADOW,
        share=0,
        base="a",
        digest="b",
        document="tiers: {ü: 1}".encode(),
        settings=Settings(by="conversation", bounds=Bounds(cost_percent=7)),
        secret=bytes(range(32)),
    )


async def test_what_is_written_is_read(db: Database) -> None:
    first = await db.write(lambda tx: changes.add(tx, change("c-1")))
    step = Step(step="propose", actor="ada", reason="why ü", at_ms=5, evidence={"cost": 1.5})
    await db.write(lambda tx: changes.add_step(tx, "c-1", step))
    await db.write(lambda tx: changes.save_sight(tx, "c-1", "one", b"{}", 7))
    await db.write(lambda tx: changes.save_sight(tx, "c-1", "one", b'{"decided":1}', 8))
    async with db.read() as tx:
        assert await changes.find_live(tx) == await changes.get(tx, "c-1") == first
        assert await changes.steps(tx, "c-1") == [step]
        assert list(await changes.sights(tx, "c-1")) == [("one", b'{"decided":1}')]
        assert await changes.newest(tx, 5) == [first]
    promoted = msgspec.structs.replace(first, stage=Stage.PROMOTED, shared_ms=9)
    await db.write(lambda tx: changes.update(tx, promoted))
    async with db.read() as tx:
        assert await changes.find_live(tx) is None
        assert [each.id for each in await changes.promoted(tx)] == ["c-1"]
        assert await changes.revision(tx) == 2


async def test_of_two_at_once_one_is_live(db: Database) -> None:
    async def add(name: str) -> str:
        try:
            await db.write(lambda tx: changes.add(tx, change(name)))
        except ChangeError:
            return "refused"
        return "added"

    found = await asyncio.gather(*(add(f"c-{number}") for number in range(4)))
    assert sorted(found) == ["added", "refused", "refused", "refused"]


async def test_of_a_later_version_it_decides_nothing(db: Database) -> None:
    await db.write(lambda tx: changes.add(tx, change("c-1")))

    async def spoil(tx: Tx) -> None:
        await tx.execute("UPDATE changes SET settings = ?", b'{"by":"moon"}')

    await db.write(spoil)
    async with db.read() as tx:
        found = await changes.find_live(tx)
    assert found is not None
    assert found.stage is Stage.ABORTED
