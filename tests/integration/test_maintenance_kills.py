"""kill -9 at any moment: of a backup, a restore, a migration, and of the verifier that keeps the marks."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import asyncpg
import msgspec
import pytest

from fixtures.fleet import Fleet
from fixtures.load import Load
from fixtures.postgres import drop_database, make_database, url_of
from fixtures.simulator import MODEL
from tests.conftest import FakeClock
from tests.integration.maintenance import (
    PACKAGE,
    WHY,
    attested,
    change,
    digests,
    fill,
    lose_database,
    place_of,
    real_clock,
    serving,
    verifier_does,
)
from tests.integration.test_kills import prepare
from verifier.config import Home
from verifier.store.maintenance import Place
from verifier.store.marks import Marks, read_marks

STORES = ("sqlite", "postgres")
EVENTS = 3_000
KILLER = """
import asyncio, importlib, inspect, os, signal, sys
module, place, number, when = sys.argv[1:5]
owner = importlib.import_module(module)
*path, name = place.split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, name), [0]

def die(now):
    if now == when and calls[0] == int(number):
        os.kill(os.getpid(), signal.SIGKILL)

def begin():
    calls[0] += 1
    die("before")

if inspect.iscoroutinefunction(original):
    async def patched(*given, **named):
        begin()
        result = await original(*given, **named)
        die("after")
        return result
else:
    def patched(*given, **named):
        begin()
        result = original(*given, **named)
        die("after")
        return result
setattr(owner, name, patched)
from touchstone import main
main(sys.argv[5:])
"""
"""Runs a command that kills itself before or after the n-th call of a function."""
SQLITE, POSTGRES, FILES = (
    "verifier.store.whole_sqlite",
    "verifier.store.whole_postgres",
    "verifier.store.files",
)


@pytest.fixture
def clock() -> FakeClock:
    return real_clock()


@pytest.fixture
async def home(verifier_home: Home, clock: FakeClock, model_folder: Path) -> Home:
    """A verifier that was stopped, with some pages of rows."""
    await fill(verifier_home, clock, model_folder)
    async with serving(verifier_home, clock, model_folder) as running:
        await attested(running, 2)
    await change(
        place_of(verifier_home),
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
        f" WHERE i < {EVENTS}) INSERT INTO events (at_ms, type, data) SELECT i, 'node', '{{\"node\": \"n\"}}' FROM n",
    )
    return verifier_home


async def killed(point: tuple[str, str, int, str], *arguments: str | Path) -> None:
    """Run a command that is killed at a point of its work."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLER, *map(str, point), *map(str, arguments),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL, (process.returncode, output.decode())


@pytest.mark.parametrize(
    "point",
    [
        (SQLITE, "SqliteWhole.insert", 1, "before"),
        (SQLITE, "SqliteWhole.insert", 9, "after"),
        (SQLITE, "SqliteWhole.commit", 1, "before"),
        (SQLITE, "SqliteWhole.commit", 1, "after"),
        (FILES, "_sync", 1, "after"),
    ],
    ids=lambda point: f"{point[3]} {point[1]} {point[2]}",
)
async def test_a_killed_backup_leaves_no_file_of_that_name(
    home: Home, tmp_path: Path, point: tuple[str, str, int, str]
) -> None:
    """It is complete or absent, and an older one stays until the new one is complete."""
    folder = tmp_path / "backups"
    folder.mkdir()
    file = folder / "b.db"
    await killed(point, "verifier", "backup", file, "--home", home.path)
    assert not file.exists()
    await verifier_does("backup", home, file)
    good = file.read_bytes()
    await killed(point, "verifier", "backup", file, "--home", home.path, "--force")
    assert file.read_bytes() == good
    await lose_database(home)
    done = await verifier_does("restore", home, file, "--all-marks", *WHY)
    assert done.status == 0, done.said


async def test_a_backup_that_was_killed_after_its_end_is_complete(home: Home, tmp_path: Path) -> None:
    """The name comes last."""
    file = tmp_path / "b.db"
    await killed((FILES, "_sync", 2, "before"), "verifier", "backup", file, "--home", home.path)
    await lose_database(home)
    done = await verifier_does("restore", home, file, "--all-marks", *WHY)
    assert done.status == 0, done.said


WRITES = [
    ("insert", 1, "before"),
    ("insert", 9, "after"),
    ("set_counter", 1, "after"),
    ("commit", 1, "before"),
    ("commit", 1, "after"),
]


def writing(place: Place, point: tuple[str, int, str]) -> tuple[str, str, int, str]:
    """The same point of the work on either database."""
    name, number, when = point
    if place.url:
        return POSTGRES, f"PostgresWhole.{name}", number, when
    return SQLITE, f"SqliteWhole.{name}", number, when


@pytest.mark.parametrize("point", WRITES, ids=lambda point: f"{point[2]} {point[0]} {point[1]}")
async def test_a_killed_restore_has_done_all_or_nothing(
    home: Home, tmp_path: Path, point: tuple[str, int, str]
) -> None:
    """Until it is committed the database is the old one, and the next try succeeds."""
    file = tmp_path / "b.db"
    await verifier_does("backup", home, file)
    place = place_of(home)
    await change(place, "UPDATE nodes SET operator = 'after the backup'")
    before = await digests(place)
    given = ("restore", file, "--home", home.path, "--replace", "--yes", "--all-marks", *WHY)
    await killed(writing(place, point), "verifier", *given)
    await gone(place)
    after = await digests(place)
    if point == ("commit", 1, "after"):
        assert after["nodes"] != before["nodes"]
    else:
        assert after == before
    done = await verifier_does("restore", home, *given[1:2], *given[4:])
    assert done.status == 0, done.said
    check = await verifier_does("check", home)
    assert check.status == 0, check.said
    assert (await digests(place))["nodes"] != before["nodes"]


async def test_marks_are_kept_before_a_restore_counts(home: Home, tmp_path: Path) -> None:
    """Those of other replicas are in this home's file, or the database is still the old one."""
    file, other = tmp_path / "b.db", tmp_path / "other.json"
    await verifier_does("backup", home, file)
    other.write_bytes(msgspec.json.encode(Marks(since_ms=1, pool={MODEL: {"read": 777}})))
    given = ("restore", file, "--home", home.path, "--replace", "--yes", "--all-marks", "--mark", other, *WHY)
    await killed(writing(place_of(home), ("commit", 1, "after")), "verifier", *given)
    marks = read_marks(home.high_water)
    assert marks is not None
    assert marks.pool[MODEL]["read"] == 777


async def gone(place: Place) -> None:
    """PostgreSQL notices after a moment that a client is gone."""
    if not place.url:
        return
    connection = await asyncpg.connect(place.url)
    try:
        async with asyncio.timeout(30):
            while await connection.fetchval(  # noqa: ASYNC110
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name LIKE '%maintenance'"
            ):
                await asyncio.sleep(0.05)
    finally:
        await connection.close()


@pytest.fixture
async def empty_url(postgres: str) -> AsyncIterator[str]:
    name = await make_database(postgres)
    yield url_of(postgres, name)
    await drop_database(postgres, name)


@pytest.mark.parametrize("point", WRITES, ids=lambda point: f"{point[2]} {point[0]} {point[1]}")
@pytest.mark.parametrize("to", ["a file", "PostgreSQL"])
async def test_a_killed_migration_leaves_an_empty_target(
    home: Home, empty_url: str, tmp_path: Path, to: str, point: tuple[str, int, str]
) -> None:
    """Empty or absent until it is committed, and the source as it was; the next try succeeds."""
    folder = tmp_path / "new"
    folder.mkdir()
    place = Place(empty_url, Path(), PACKAGE) if to == "PostgreSQL" else Place("", folder / "v.db", PACKAGE)
    before = await digests(place_of(home))
    given = ("migrate", "--to", place.url or place.file, "--home", home.path)
    await killed(writing(place, point), "verifier", *given)
    await gone(place_of(home))
    await gone(place)
    assert await digests(place_of(home)) == before
    if place.url and point == ("commit", 1, "after"):
        assert await digests(place) == before
        return
    if place.url:
        assert sum(each.rows for name, each in (await digests(place)).items() if name != "totals") == 0
    else:
        assert not place.file.exists()
    done = await verifier_does("migrate", home, *given[1:3])
    assert done.status == 0, done.said
    assert await digests(place) == before
    assert await digests(place_of(home)) == before


async def attest_and_kill(fleet: Fleet, load: Load, seconds: float, tokens: list[str]) -> None:
    async with aiohttp.ClientSession() as http:
        tasks = [asyncio.create_task(load.attest(http, fleet.verifier_url, token)) for token in tokens]
        await asyncio.sleep(seconds)
        os.kill(fleet.processes[-1].pid, signal.SIGKILL)
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.timeout(200)
def test_the_marks_of_a_killed_verifier_are_above_what_it_took(tmp_path: Path, model_folder: Path) -> None:
    """At whatever moment it is killed, no challenge that it took and no event that it showed is at a mark or above."""
    rng = random.Random(7)
    fleet = Fleet(
        tmp_path,
        {
            "sessions": {
                "per_node_per_minute": 100_000,
                "per_address_per_minute": 1_000_000,
                "strangers_per_minute": 1_000_000,
            }
        },
    )
    try:
        fleet.make_verifier()
        asyncio.run(prepare(fleet, model_folder, 500))
        load = Load(model_folder)
        home = Home(fleet.verifier_home)
        taken = 0
        for _ in range(5):
            fleet.start_verifier()
            tokens = [fleet.token(f"operator-{i}", MODEL) for i in range(4)]
            asyncio.run(attest_and_kill(fleet, load, rng.uniform(0.2, 1.0), tokens))
            marks = read_marks(home.high_water)
            assert marks is not None
            with sqlite3.connect(home.database) as db:
                for kind in ("read", "walk"):
                    (highest,) = db.execute(
                        "SELECT max(idx) FROM pool WHERE session_id IS NOT NULL AND kind = ?", (kind,)
                    ).fetchone()
                    assert marks.pool[MODEL][kind] > highest
                    assert marks.pool[MODEL][kind] <= highest + 2 * 256
                    taken = highest
            db.close()
        assert taken > 20
    finally:
        fleet.stop()
