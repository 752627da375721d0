"""Backups and migrations: what is copied is equal, on both databases and between them."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.postgres import drop_database, make_database, url_of
from tests.conftest import FakeClock, RunningVerifier
from tests.integration.maintenance import (
    PACKAGE,
    WHY,
    at_rest,
    attested,
    digests,
    fill,
    place_of,
    real_clock,
    rows,
    serving,
    touchstone,
    verifier_does,
)
from verifier.config import Home
from verifier.errors import StoreError
from verifier.store.backups import open_backup
from verifier.store.maintenance import Place
from verifier.store.sqlite import SqliteDatabase

STORES = ("sqlite", "postgres")


@pytest.fixture
def clock() -> FakeClock:
    return real_clock()


@pytest.fixture
async def running(
    verifier_home: Home, clock: FakeClock, model_folder: Path
) -> AsyncIterator[RunningVerifier]:
    await fill(verifier_home, clock, model_folder)
    async with serving(verifier_home, clock, model_folder) as running:
        yield running


@pytest.fixture
async def empty_url(postgres: str) -> AsyncIterator[str]:
    """An empty PostgreSQL database."""
    name = await make_database(postgres)
    yield url_of(postgres, name)
    await drop_database(postgres, name)


def mode_of(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_a_backup_of_a_running_verifier_is_what_it_had(
    running: RunningVerifier, tmp_path: Path
) -> None:
    """Every table by its digest, and the file is only for its owner."""
    await attested(running, 2)
    await at_rest(running)
    file = tmp_path / "backup.db"
    done = await verifier_does("backup", running.home, file)
    assert done.status == 0, done.said
    now = await digests(place_of(running.home))
    async with open_backup(file, PACKAGE) as backup:
        made = backup.manifest.tables
    # Leases are renewed all the time.
    assert {**made, "leases": None} == {**now, "leases": None}
    assert made["appraisals"].rows == 2
    assert mode_of(file) == 0o600
    assert names_in(tmp_path) == {"backup.db", "verifier"}


async def test_a_backup_is_one_moment(running: RunningVerifier, tmp_path: Path) -> None:
    """Made under load, each complete session in it has its result, and each count is right."""
    nodes = await attested(running, 3)

    async def load() -> None:
        for _ in range(4):
            for node in nodes:
                await running.attest(node)

    loading = asyncio.create_task(load())
    await asyncio.sleep(0.05)
    done = await verifier_does("backup", running.home, tmp_path / "b.db")
    await loading
    assert done.status == 0, done.said
    with sqlite3.connect(tmp_path / "b.db") as db:
        complete = db.execute("SELECT count(*) FROM sessions WHERE status = 'complete'").fetchone()
        assert complete == db.execute("SELECT count(*) FROM appraisals").fetchone()
        free = db.execute("SELECT count(*) FROM pool WHERE session_id IS NULL").fetchone()
        assert free == db.execute("SELECT sum(minted - taken) FROM pool_counts").fetchone()
    db.close()


async def test_a_file_is_replaced_only_by_force(running: RunningVerifier, tmp_path: Path) -> None:
    file = tmp_path / "b.db"
    file.write_bytes(b"precious")
    done = await verifier_does("backup", running.home, file)
    assert (done.status, file.read_bytes()) == (1, b"precious")
    assert "exists already" in done.said
    done = await verifier_does("backup", running.home, file, "--force")
    assert done.status == 0, done.said
    assert file.read_bytes()[:6] == b"SQLite"


async def test_no_service_works_on_a_backup(running: RunningVerifier, tmp_path: Path) -> None:
    """It would pose used challenges again."""
    await verifier_does("backup", running.home, tmp_path / "b.db")
    with pytest.raises(StoreError, match="is a backup"):
        async with SqliteDatabase(tmp_path / "b.db"):
            pass


async def test_check_of_a_running_verifier(running: RunningVerifier) -> None:
    """Nothing is found where nothing is wrong, and nothing changes."""
    await attested(running, 2)
    await running.call(running.nodes[0])
    await at_rest(running)
    before = await digests(place_of(running.home))
    done = await verifier_does("check", running.home)
    assert done.status == 0, done.said
    assert "All of it holds." in done.said
    assert {**before, "leases": None} == {**await digests(place_of(running.home)), "leases": None}


@pytest.fixture
async def stopped(verifier_home: Home, clock: FakeClock, model_folder: Path) -> Home:
    """The home of a verifier that has worked and was stopped."""
    await fill(verifier_home, clock, model_folder)
    async with serving(verifier_home, clock, model_folder) as running:
        await attested(running, 2)
        await running.call(running.nodes[0])
    return verifier_home


async def test_a_restored_database_is_the_backup(stopped: Home, tmp_path: Path) -> None:
    """But for what is ended on purpose."""
    file = tmp_path / "b.db"
    await verifier_does("backup", stopped, file)
    before = await digests(place_of(stopped))
    done = await verifier_does("restore", stopped, file, "--replace", "--yes", "--all-marks", *WHY)
    assert done.status == 0, done.said
    after = await digests(place_of(stopped))
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {
        "sessions", "appraisals", "pool", "pool_counts", "pool_indexes", "totals", "events", "changes", "channels",
        "leases", "logs", "log_pending",
    }  # fmt: skip
    check = await verifier_does("check", stopped)
    assert check.status == 0, check.said


async def test_there_and_back(stopped: Home, empty_url: str, tmp_path: Path) -> None:
    """From either database to PostgreSQL and to a file, every table is equal, and numbers go on above."""
    first = place_of(stopped)
    before = await digests(first)
    done = await verifier_does("migrate", stopped, "--to", empty_url)
    assert done.status == 0, done.said
    assert f'[store] url = "{empty_url}"' in done.said
    assert await digests(first) == before
    there = Place(empty_url, Path(), PACKAGE)
    assert await digests(there) == before
    config = stopped.path / "verifier.toml"
    text = config.read_text()
    config.write_text(text.replace(f'url = "{first.url}"\n\n[pool]', f'url = "{empty_url}"\n\n[pool]'))
    assert stopped.config().store.url == empty_url
    file = tmp_path / "back.db"
    done = await verifier_does("migrate", stopped, "--to", file)
    assert done.status == 0, done.said
    back = Place("", file, PACKAGE)
    assert await digests(back) == before
    highest = (await rows(first, "SELECT max(seq) AS n FROM events"))[0]["n"]
    for place in (there, back):
        assert await next_event(place) == highest + 1


async def next_event(place: Place) -> int:
    from verifier.store import events
    from verifier.store.opening import open_database

    async with open_database(place.url, place.file) as db:
        await db.write(lambda tx: events.append(tx, 1, "node", {"node": "n"}))
    return int((await rows(place, "SELECT max(seq) AS n FROM events"))[0]["n"])


async def test_a_migrated_verifier_goes_on(
    stopped: Home, empty_url: str, clock: FakeClock, model_folder: Path
) -> None:
    """The same nodes attest on the new database, with challenges that were never posed."""
    used = await rows(place_of(stopped), "SELECT kind, idx FROM pool WHERE session_id IS NOT NULL")
    first = place_of(stopped).url
    await verifier_does("migrate", stopped, "--to", empty_url)
    config = stopped.path / "verifier.toml"
    config.write_text(
        config.read_text().replace(f'url = "{first}"\n\n[pool]', f'url = "{empty_url}"\n\n[pool]')
    )
    async with serving(stopped, clock, model_folder) as running:
        node = await running.enrol()
        session = await running.call(node)
        asked = await running.rows("SELECT kind, idx FROM pool WHERE session_id = ?", session.id)
        assert len(asked) == 2
        assert not [each for each in asked if each in used]


@pytest.mark.parametrize("command", ["restore", "migrate"])
async def test_nothing_is_changed_while_a_verifier_runs(
    command: str, running: RunningVerifier, tmp_path: Path, empty_url: str
) -> None:
    await attested(running)
    file = tmp_path / "b.db"
    await verifier_does("backup", running.home, file)
    given: dict[str, tuple[Any, ...]] = {
        "restore": (file, "--replace", "--yes", "--all-marks", *WHY),
        "migrate": ("--to", empty_url),
    }
    done = await verifier_does(command, running.home, *given[command])
    assert done.status == 1
    assert "Stop it first" in done.said
    await running.attest(running.nodes[0])


async def test_only_an_empty_database_is_filled(stopped: Home, empty_url: str, tmp_path: Path) -> None:
    """Neither a restore nor a migration adds to what is there."""
    file = tmp_path / "b.db"
    await verifier_does("backup", stopped, file)
    before = await digests(place_of(stopped))
    done = await verifier_does("restore", stopped, file, "--all-marks", *WHY)
    assert done.status == 1
    assert "is not empty" in done.said
    await verifier_does("migrate", stopped, "--to", empty_url)
    done = await verifier_does("migrate", stopped, "--to", empty_url)
    assert done.status == 1
    assert "is not empty" in done.said
    done = await verifier_does("migrate", stopped, "--to", file)
    assert done.status == 1
    assert "exists already" in done.said
    assert await digests(place_of(stopped)) == before


async def test_replacing_asks_a_person(stopped: Home, tmp_path: Path) -> None:
    """Without a terminal nobody answers, and nothing is replaced."""
    await verifier_does("backup", stopped, tmp_path / "b.db")
    before = await digests(place_of(stopped))
    done = await verifier_does("restore", stopped, tmp_path / "b.db", "--replace", "--all-marks", *WHY)
    assert done.status == 1
    assert await digests(place_of(stopped)) == before


def flip(file: Path, needle: bytes) -> None:
    """Change the last byte of some text in a file."""
    data = bytearray(file.read_bytes())
    at = data.rindex(needle) + len(needle) - 1
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("what", ["a row", "the manifest", "the end", "pages"])
async def test_a_damaged_backup_is_refused(what: str, stopped: Home, tmp_path: Path) -> None:
    """One bit of a row, of the manifest or of a page, or a missing end: nothing of it is restored."""
    file = tmp_path / "b.db"
    await verifier_does("backup", stopped, file)
    before = await digests(place_of(stopped))
    match what:
        case "a row":
            flip(file, b"operator-1")
        case "the manifest":
            flip(file, b'"made_ms":17')
        case "the end":
            file.write_bytes(file.read_bytes()[:-4096])
        case _:
            data = bytearray(file.read_bytes())
            # One alone may be of an index, which is not read.
            for page in range(10, len(data) // 4096):
                data[page * 4096 : page * 4096 + 64] = bytes(64)
            file.write_bytes(data)
    done = await verifier_does("restore", stopped, file, "--replace", "--yes", "--all-marks", *WHY)
    assert done.status == 1, done.said
    assert await digests(place_of(stopped)) == before


async def test_another_file_is_no_backup(stopped: Home, tmp_path: Path) -> None:
    """A database, the routers' backup, or anything else is refused with a sentence."""
    (tmp_path / "text").write_text("hello")
    async with SqliteDatabase(tmp_path / "other.db"):
        pass
    for name, said in (("text", "not a database"), ("other.db", "is not a backup")):
        done = await verifier_does(
            "restore", stopped, tmp_path / name, "--replace", "--yes", "--all-marks", *WHY
        )
        assert done.status == 1
        assert said in done.said


async def test_a_missing_database_is_not_made(verifier_home: Home, tmp_path: Path) -> None:
    """Neither by a backup nor by a check."""
    if verifier_home.config().store.url:
        pytest.skip("the database is there")
    for command, given in (
        ("backup", (tmp_path / "b.db",)),
        ("check", ()),
        ("migrate", ("--to", tmp_path / "c")),
    ):
        done = await touchstone("verifier", command, *given, "--home", verifier_home.path)
        assert done.status == 1
        assert "does not exist" in done.said
    assert not verifier_home.database.exists()
