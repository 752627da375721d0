"""The routers' store: backups, restores, migrations and checks of it, and names that are unique."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attester.errors import ConfigError
from attester.settings import to_toml
from fixtures.postgres import drop_database, make_database, url_of
from router.config import RouterConfig, StoreSection
from router.model.clock import Clock
from router.model.standing import Standing
from router.model.statistics import StatisticsAggregate
from router.state.name import NameLease, Process
from router.store import decisions, holds, standings
from router.store.holds import Hold
from tests.integration.lifecycle import stepping
from tests.integration.maintenance import Ended, change, digests, rows, touchstone
from tests.integration.test_router_restart import FLUSH_S, Place, at, eventually
from verifier.errors import StoreError
from verifier.store import maintenance
from verifier.store.database import Database
from verifier.store.opening import open_database, open_whole
from verifier.store.whole import Use

PACKAGE = "router.store"
STORES = ("sqlite", "postgres")
CLOCK = Clock(lambda: time.time_ns() // 1_000_000, time.monotonic)


@pytest.fixture(params=STORES)
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The store's URL; empty for a file."""
    if request.param == "sqlite":
        yield ""
        return
    server = request.getfixturevalue("postgres")
    name = await make_database(server)
    yield url_of(server, name)
    await drop_database(server, name)


@pytest.fixture
async def empty_url(postgres: str) -> AsyncIterator[str]:
    name = await make_database(postgres)
    yield url_of(postgres, name)
    await drop_database(postgres, name)


def write_config(folder: Path, url: str, path: str = "router.db") -> Path:
    store = {"url": url} if url else {"path": path}
    config = msgspec.convert(
        {"verifier": {"url": "http://127.0.0.1:9", "router_token_file": "router.token"}, "store": store},
        RouterConfig,
    )
    (folder / "router.token").write_text("the-routers-key")
    file = folder / "router.toml"
    file.write_text(to_toml(config).replace("keys = []\n", ""), encoding="utf-8")
    return file


@pytest.fixture
async def config(tmp_path: Path, url: str) -> Path:
    """The configuration of a router whose store has something of each kind."""
    hold = Hold(
        id="r-1", node="n", operator="acme", kind="settlement-mismatch", code="c", detail="d", evidence={"a": 1},
        holding=True, opened_ms=1, due_ms=2,
    )  # fmt: skip
    async with opened(tmp_path, url) as db:

        async def fill(tx: Any) -> None:
            await holds.add(tx, hold)
            await holds.add_step(tx, "r-1", step="note", actor="kim", reason="looked", now_ms=3)
            many = [(f"d-{number:05}", number, "ada", b"\x00\xffrecord" * 9) for number in range(3000)]
            await decisions.save(tx, "one", many)
            await standings.save_budgets(tx, "one", {"ada": (20000, 7)})
            await standings.save(tx, "one", [("n", "small", StatisticsAggregate(Standing()))], 5)

        await db.write(fill)
    return write_config(tmp_path, url)


def opened(folder: Path, url: str) -> Any:
    return open_database(url, folder / "router.db", schema=PACKAGE)


def place_of(config: Path, url: str) -> maintenance.Place:
    return maintenance.Place(url, config.parent / "router.db", PACKAGE)


async def router_does(command: str, config: Path, *given: str | Path) -> Ended:
    return await touchstone("router", command, *given, "--config", config)


async def test_there_and_back(config: Path, url: str, empty_url: str, tmp_path: Path) -> None:
    """By a backup and a restore, and by migrations to either database: every table is equal."""
    before = await digests(place_of(config, url))
    assert {name: before[name].rows for name in ("decisions", "holds", "hold_steps", "budgets", "standings")} == {
        "decisions": 3000, "holds": 1, "hold_steps": 1, "budgets": 1, "standings": 1
    }  # fmt: skip
    done = await router_does("backup", config, tmp_path / "b.db")
    assert done.status == 0, done.said
    await change(place_of(config, url), "DELETE FROM decisions", "UPDATE budgets SET tokens = 0")
    done = await router_does("restore", config, tmp_path / "b.db", "--replace", "--yes")
    assert done.status == 0, done.said
    assert await digests(place_of(config, url)) == before
    done = await router_does("migrate", config, "--to", empty_url)
    assert done.status == 0, done.said
    assert f'url = "{empty_url}"' in done.said
    there = write_config(tmp_path, empty_url)
    assert await digests(place_of(there, empty_url)) == before
    done = await router_does("migrate", there, "--to", tmp_path / "back.db")
    assert done.status == 0, done.said
    assert await digests(maintenance.Place("", tmp_path / "back.db", PACKAGE)) == before


async def test_a_backup_of_the_verifier_is_refused(config: Path, tmp_path: Path) -> None:
    async with open_database("", tmp_path / "v.db"):
        pass
    await maintenance.back_up(maintenance.Place("", tmp_path / "v.db", "verifier.store"), tmp_path / "b.db")
    done = await router_does("restore", config, tmp_path / "b.db", "--replace", "--yes")
    assert done.status == 1
    assert "is a backup of the verifier" in done.said


async def test_nothing_is_changed_while_a_router_has_its_name(
    config: Path, url: str, empty_url: str, tmp_path: Path
) -> None:
    """A backup and a check may be made."""
    async with opened(config.parent, url) as db:
        lease = NameLease(db, "one", CLOCK)
        await lease.take()
        done = await router_does("backup", config, tmp_path / "b.db")
        assert done.status == 0, done.said
        for command, given in (
            ("restore", (tmp_path / "b.db", "--replace", "--yes")), ("migrate", ("--to", empty_url))
        ):  # fmt: skip
            done = await router_does(command, config, *given)
            assert (done.status, "Stop it first" in done.said) == (1, True)
        await lease.give_back()
    done = await router_does("migrate", config, "--to", empty_url)
    assert done.status == 0, done.said


BROKEN = {
    "no node is held twice for the same": [
        "DROP INDEX holds_once",
        "CREATE TABLE copy AS SELECT * FROM holds",
        "UPDATE copy SET id = 'r-2'",
        "INSERT INTO holds SELECT * FROM copy",
        "DROP TABLE copy",
    ],
    "every hold is open or released": ["UPDATE holds SET state = 'gone'"],
    "the steps of each hold are numbered from 1": ["UPDATE hold_steps SET number = 2"],
    "every revision of a standing": ["UPDATE standings SET revision = 9223372036854775807"],
    "nothing negative was spent": ["UPDATE budgets SET tokens = -1"],
}


@pytest.mark.parametrize("name", BROKEN)
async def test_check_finds(config: Path, url: str, name: str) -> None:
    config.with_name("workloads.yaml").write_text(
        '{"tiers": {"small": {}}, "workloads": {"w": {"model": "a/b", "tier": "small"}}}'
    )
    done = await router_does("check", config)
    assert done.status == 0, done.said
    await change(place_of(config, url), *BROKEN[name])
    done = await router_does("check", config)
    assert done.status == 1
    assert f"FAULT  {name}" in done.said
    done = await router_does("check", config, "--config-only")
    assert done.status == 0, done.said


async def test_check_without_a_store(tmp_path: Path) -> None:
    """A router that was never started has none, and none is made."""
    config = write_config(tmp_path, "")
    config.with_name("workloads.yaml").write_text(
        '{"tiers": {"small": {}}, "workloads": {"w": {"model": "a/b", "tier": "small"}}}'
    )
    done = await router_does("check", config)
    assert done.status == 0, done.said
    assert not (tmp_path / "router.db").exists()


def test_a_store_is_a_file_or_a_database() -> None:
    """Not both: it would not be clear which one routers share."""
    with pytest.raises(ValueError, match="one of them"):
        StoreSection(path="router.db", url="postgresql://x/y")


# Names.


@pytest.fixture
async def db(tmp_path: Path, url: str) -> AsyncIterator[Database]:
    async with opened(tmp_path, url) as db:
        yield db


async def hold_elsewhere(db: Database, name: str, for_s: float, **given: Any) -> None:
    """A lease of a router on another machine."""
    process = Process(
        **{"host": "elsewhere", "machine": "other", "pid": 1, "began": "1", "token": "t", **given}
    )
    holder = msgspec.json.encode(process).decode()
    until_ms = CLOCK.now_ms() + int(for_s * 1000)

    async def write(tx: Any) -> None:
        await tx.execute("DELETE FROM leases")
        await tx.execute("INSERT INTO leases VALUES (?, ?, ?)", f"router {name}", holder, until_ms)

    await db.write(write)


async def test_a_name_belongs_to_one_router(db: Database) -> None:
    """The second one is told which process has it, and other names are free."""
    first = NameLease(db, "one", CLOCK)
    await first.take()
    with pytest.raises(ConfigError, match=r"is called one \(process \d+ on .*set name in \[service\]"):
        await NameLease(db, "one", CLOCK).take()
    await NameLease(db, "two", CLOCK).take()
    await first.give_back()
    await NameLease(db, "one", CLOCK).take()


async def test_a_router_elsewhere_is_waited_for(db: Database) -> None:
    """Whether it lives cannot be seen: until its lease ends, or is renewed."""
    await hold_elsewhere(db, "one", 1.5)
    began = time.monotonic()
    await NameLease(db, "one", CLOCK).take()
    assert time.monotonic() - began > 1
    await hold_elsewhere(db, "one", 15)
    waiting = asyncio.create_task(NameLease(db, "one", CLOCK).take())
    await asyncio.sleep(0.8)
    await hold_elsewhere(db, "one", 16)
    with pytest.raises(ConfigError, match="on elsewhere"):
        await waiting


@pytest.mark.parametrize(
    "gone", [{"pid": 1 << 30}, {"began": "12345"}], ids=["no process", "another process"]
)
async def test_a_dead_router_of_this_machine_is_not_waited_for(db: Database, gone: dict[str, Any]) -> None:
    """Its number is free, or was given again."""
    own = msgspec.to_builtins(Process.own())
    await hold_elsewhere(db, "one", 600, **{**own, **gone})
    async with asyncio.timeout(5):
        await NameLease(db, "one", CLOCK).take()


async def test_nothing_is_written_under_a_name_that_another_took(db: Database) -> None:
    """After an outage of its own, a router may be the second one."""
    lease = NameLease(db, "one", CLOCK)
    await lease.take()
    await db.write(lease.confirm)
    await hold_elsewhere(db, "one", 15)
    with pytest.raises(StoreError, match="another router is called one"):
        await db.write(lease.confirm)


def test_the_default_name_has_the_machine() -> None:
    """Routers of two machines may listen on the same address."""
    given = {"verifier": {"url": "http://127.0.0.1:9"}, "service": {"listen": "0.0.0.0:8450"}}
    name = msgspec.convert(given, RouterConfig).name
    assert name.endswith("/0.0.0.0:8450")
    assert len(name) > len("/0.0.0.0:8450")


# Processes.


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with at(tmp_path) as place:
        yield place


def store_of(place: Place, url: str) -> dict[str, Any]:
    return {"flush_s": FLUSH_S, **({"url": url} if url else {"path": str(place.folder / "shared.db")})}


async def test_a_second_router_of_the_name_does_not_start(place: Place, url: str) -> None:
    """It says so in a sentence; a router that was killed is followed at once."""
    await place.node()
    first = place.router("one", store=store_of(place, url))
    await first.start()
    second = place.router("two", store=store_of(place, url))
    second.config.write_text(second.config.read_text().replace('name = "two"', 'name = "one"'))
    status, said = await second.touchstone("serve", "--config", str(second.config))
    assert status == 1
    assert "Error: another router of this store is called one" in said
    assert "Traceback" not in said
    await first.end(signal.SIGKILL)
    async with stepping() as stepped_s:
        await second.start()
        assert stepped_s() < 12


async def test_routers_share_postgresql(place: Place, empty_url: str) -> None:
    """What one measured the other knows, and it is there after both were killed."""
    await place.node()
    routers = [place.router(name, store=store_of(place, empty_url)) for name in ("one", "two")]
    for each in routers:
        await each.start()
    for _ in range(3):
        assert (await place.chat(routers[0])).status == 200

    async def known() -> bool:
        return round(await place.completed(routers[1], here=False)) == 3

    await eventually(known)
    for each in routers:
        await each.end(signal.SIGKILL)
    await routers[0].start()
    assert round(await place.completed(routers[0])) == 3
    async with open_whole(empty_url, Path(), Use.READ, schema=PACKAGE) as whole:
        assert await rows(
            maintenance.Place(empty_url, Path(), PACKAGE), "SELECT count(*) AS n FROM standings"
        )
        assert whole.version == 5
