"""
Somebody edits the database, cuts it, or puts another in its place: nothing more is signed, and the place is named.

Each time the service is down meanwhile, and what it finds at its next start is all that it can know.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from attester.cose import PrivateKey
from fixtures.transactions import transaction
from tests.conftest import FakeClock, RunningVerifier, seed
from tests.integration.maintenance import (
    WHY,
    Ended,
    change,
    place_of,
    real_clock,
    rows,
    serving,
    touchstone,
    verifier_does,
)
from verifier.config import Home
from verifier.errors import LogDivergedError
from verifier.log.checkpoints import open_checkpoint
from verifier.log.notes import VerifierKey
from verifier.service.sequencer import Sequencer
from verifier.store import log, log_tree
from verifier.store.log_guard import read_guard

STORES = ("sqlite", "postgres")
SIZE = 600


@pytest.fixture
def clock() -> FakeClock:
    return real_clock()


@pytest.fixture(autouse=True)
def only_our_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sequencer does a round when a test says so."""

    async def rest(_sequencer: Sequencer) -> None:
        pass

    monkeypatch.setattr(Sequencer, "run", rest)


async def add(running: RunningVerifier, count: int, name: str = "key") -> None:
    async with transaction(running.service.db) as tx:
        for number in range(count):
            await log.append(
                tx, running.clock.ms, "key", {"change": "made", "kid": f"{name}-{number}", "use": "test"}
            )
    await running.service.sequencer.round()


@pytest.fixture
async def logged(verifier_home: Home, clock: FakeClock, model_folder: Path) -> Home:
    """A home whose verifier has logged three tiles, and is stopped."""
    await seed(verifier_home, clock.ms)
    async with serving(verifier_home, clock, model_folder) as running:
        await running.service.sequencer.round()
        size = (await head(running)).size
        await add(running, SIZE - size)
    return verifier_home


async def head(running: RunningVerifier) -> log_tree.Stored:
    async with running.service.db.read() as tx:
        newest = await log_tree.newest(tx)
        assert newest is not None
        found = await log_tree.head(tx, newest.number)
    assert found is not None
    return found


async def found(home: Home, clock: FakeClock, folder: Path, signed: int = 0) -> LogDivergedError:
    """
    What the sequencer says after the start.

    Args:
        signed: How many checkpoints it may have signed before it has read so far.
    """
    async with serving(home, clock, folder) as running:
        before = await running.rows("SELECT log, size, note FROM log_checkpoints ORDER BY log, size")
        sequencer = running.service.sequencer
        with pytest.raises(LogDivergedError) as refused:
            await rounds(running, signed + 1)
        await sequencer._stop(refused.value)
        assert sequencer.stopped is not None
        await is_stopped(running)
        after = await running.rows("SELECT log, size, note FROM log_checkpoints ORDER BY log, size")
    assert len(after) <= len(before) + signed
    return refused.value


async def rounds(running: RunningVerifier, count: int) -> None:
    for _ in range(count):
        async with transaction(running.service.db) as tx:
            await log.append(tx, running.clock.ms, "key", {"change": "made", "kid": "later", "use": "test"})
        await running.service.sequencer.round()


async def is_stopped(running: RunningVerifier) -> None:
    """Everybody is told, and nodes get results all the same."""
    async with running.stranger.get(f"{running.url}/api/v1/log") as response:
        assert (await response.json())["stopped"] is True
    async with running.http.get(f"{running.url}/metrics") as response:
        assert "touchstone_log_stopped 1.0" in await response.text()


async def verified(home: Home, clock: FakeClock, folder: Path) -> Ended:
    """`touchstone log verify` against the running verifier."""
    async with serving(home, clock, folder) as running:
        vkey = (await touchstone("log", "key", "--home", home.path)).said.strip()
        state = home.path.parent / "watcher"
        return await touchstone("log", "verify", f"{running.url}/log", "--key", vkey, "--state", state)


async def test_an_untouched_log_goes_on(logged: Home, clock: FakeClock, model_folder: Path) -> None:
    """The other tests find what they changed, and not what a restart does."""
    async with serving(logged, clock, model_folder) as running:
        await add(running, 10)
        assert (await head(running)).size == SIZE + 10
    done = await verified(logged, clock, model_folder)
    assert done.status == 0, done.said


async def test_an_entry_of_the_last_tile_was_edited(
    logged: Home, clock: FakeClock, model_folder: Path
) -> None:
    await edit_entry(logged, 599)
    assert (await found(logged, clock, model_folder)).places == (599, 600)


async def test_an_entry_of_an_old_tile_was_edited(logged: Home, clock: FakeClock, model_folder: Path) -> None:
    """The whole log is read again and again, a tile each time."""
    await edit_entry(logged, 300)
    assert (await found(logged, clock, model_folder, signed=1)).places == (300, 301)


async def test_whoever_verifies_the_log_finds_an_edited_entry(
    logged: Home, clock: FakeClock, model_folder: Path
) -> None:
    await edit_entry(logged, 300)
    done = await verified(logged, clock, model_folder)
    assert done.status != 0
    assert "300" in done.said


async def edit_entry(home: Home, place: int) -> None:
    (row,) = await rows(place_of(home), "SELECT entry FROM log_entries WHERE place = ?", place)
    data = bytes(row["entry"]).replace(b'"made"', b'"kept"')
    assert data != bytes(row["entry"])
    await change(place_of(home), f"UPDATE log_entries SET entry = {blob(home, data)} WHERE place = {place}")


def blob(home: Home, data: bytes) -> str:
    return f"'\\x{data.hex()}'::bytea" if home.config().store.url else f"x'{data.hex()}'"


async def test_a_tile_was_edited(logged: Home, clock: FakeClock, model_folder: Path) -> None:
    """One hash of an old tile: the entry is not the one that it is the hash of."""
    await edit_tile(logged, 0, 1, 5)
    assert (await found(logged, clock, model_folder, signed=1)).places == (261, 262)


async def test_the_last_tile_was_edited(logged: Home, clock: FakeClock, model_folder: Path) -> None:
    await edit_tile(logged, 0, 2, 0)
    # A subtree differs from what the guard has; a look at all tiles finds which entry.
    first, end = (await found(logged, clock, model_folder)).places
    assert first <= 512 < end


async def test_a_tile_above_was_edited(logged: Home, clock: FakeClock, model_folder: Path) -> None:
    await edit_tile(logged, 1, 0, 1)
    first, end = (await found(logged, clock, model_folder)).places
    assert first <= 256 < end


async def test_whoever_verifies_the_log_finds_an_edited_tile(
    logged: Home, clock: FakeClock, model_folder: Path
) -> None:
    await edit_tile(logged, 0, 1, 5)
    done = await verified(logged, clock, model_folder)
    assert done.status != 0
    assert "261" in done.said


async def edit_tile(home: Home, level: int, number: int, index: int) -> None:
    where = f"WHERE level = {level} AND number = {number}"
    (row,) = await rows(place_of(home), f"SELECT hashes FROM log_tiles {where}")
    data = bytearray(row["hashes"])
    data[32 * index] ^= 1
    await change(place_of(home), f"UPDATE log_tiles SET hashes = {blob(home, bytes(data))} {where}")


async def test_an_entry_and_all_hashes_above_it_were_edited(
    logged: Home, clock: FakeClock, model_folder: Path
) -> None:
    """Whoever can write everything but cannot sign: the tree is not the one that was signed."""
    async with serving(logged, clock, model_folder) as running:
        await rebuild(running, 100)
    first, end = (await found(logged, clock, model_folder)).places
    assert first <= 100 < end


async def rebuild(running: RunningVerifier, place: int) -> None:
    """Edit an entry, and write the whole tree anew that follows from it."""
    from verifier.log.tree import CompactRange, leaf_hash

    async with transaction(running.service.db) as tx:
        entry = bytes((await tx.one("SELECT entry FROM log_entries WHERE place = ?", place))["entry"])
        await tx.execute(
            "UPDATE log_entries SET entry = ? WHERE place = ?", entry.replace(b"made", b"kept"), place
        )
        leaves = await log_tree.leaves(tx, 1, 0, SIZE)
        await tx.execute("DELETE FROM log_tiles")
        tree = CompactRange()
        made = [node for leaf in leaves for node in tree.append(leaf_hash(leaf))]
        await log_tree.write_nodes(tx, 1, 0, made)
        await tx.execute("UPDATE log_checkpoints SET root = ? WHERE size = ?", tree.root(), SIZE)


async def test_a_checkpoint_of_another_key_counts_for_nothing(
    logged: Home, clock: FakeClock, model_folder: Path
) -> None:
    """Whoever writes the whole database can sign with a key of their own, and it is not the log's."""
    other = VerifierKey("x.example/log", PrivateKey.generate(-19).public.point)
    await change(place_of(logged), f"UPDATE logs SET vkey = '{other}', origin = '{other.name}'")
    async with serving(logged, clock, model_folder) as running:
        with pytest.raises(LogDivergedError, match="not in this home"):
            await running.service.sequencer.look()


async def test_the_last_entries_were_deleted(logged: Home, clock: FakeClock, model_folder: Path) -> None:
    await change(place_of(logged), "DELETE FROM log_entries WHERE place >= 590")
    assert (await found(logged, clock, model_folder)).places == (590, 600)


async def test_an_entry_in_between_was_deleted(logged: Home, clock: FakeClock, model_folder: Path) -> None:
    await change(place_of(logged), "DELETE FROM log_entries WHERE place = 40")
    assert (await found(logged, clock, model_folder)).places == (40, 41)


async def test_an_entry_was_added(logged: Home, clock: FakeClock, model_folder: Path) -> None:
    await change(
        place_of(logged),
        f"INSERT INTO log_entries (log, place, kind, subject, entry) VALUES (1, 600, 'key', 'k', {blob(logged, b'{}')})",
    )
    assert (await found(logged, clock, model_folder)).places == (600, 601)


async def test_the_log_was_deleted(logged: Home, clock: FakeClock, model_folder: Path) -> None:
    """The database looks like one that never had a log.  The guard knows better."""
    tables = ("log_checkpoints", "log_tiles", "log_entries", "logs")
    await change(place_of(logged), *(f"DELETE FROM {name}" for name in tables))
    assert (await found(logged, clock, model_folder)).places == (0, 600)


async def test_the_end_was_cut_with_all_that_belongs_to_it(
    logged: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """An earlier state of the database, which agrees with itself: as after a restore by a copy of the file."""
    if logged.config().store.url:
        pytest.skip("a file is put in the place of another")
    shutil.copy(logged.database, tmp_path / "earlier.db")
    async with serving(logged, clock, model_folder) as running:
        await add(running, 30)
    swap(logged, tmp_path / "earlier.db")
    assert (await found(logged, clock, model_folder)).places == (600, 630)


def swap(home: Home, file: Path) -> None:
    for path in home.path.glob("verifier.db*"):
        path.unlink()
    shutil.copy(file, home.database)


async def test_a_fork_was_put_in_its_place(
    logged: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """A longer log that the same key has signed, and that agrees with itself: its history is another one."""
    if logged.config().store.url:
        pytest.skip("a file is put in the place of another")
    shutil.copytree(logged.path, tmp_path / "twin")
    async with serving(logged, clock, model_folder) as running:
        await add(running, 30)
    async with serving(Home(tmp_path / "twin"), clock, model_folder) as running:
        await add(running, 50, "other")
    swap(logged, tmp_path / "twin" / "verifier.db")
    first, end = (await found(logged, clock, model_folder)).places
    assert first <= 600 < end


async def test_whoever_saw_the_log_before_finds_the_fork(
    logged: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """`touchstone log verify` keeps the checkpoint that it saw."""
    if logged.config().store.url:
        pytest.skip("a file is put in the place of another")
    shutil.copytree(logged.path, tmp_path / "twin")
    async with serving(logged, clock, model_folder) as running:
        await add(running, 30)
    assert (await verified(logged, clock, model_folder)).status == 0
    async with serving(Home(tmp_path / "twin"), clock, model_folder) as running:
        await add(running, 50, "other")
    swap(logged, tmp_path / "twin" / "verifier.db")
    assert (await verified(logged, clock, model_folder)).status != 0


async def test_it_goes_on_when_the_database_is_as_it_was(
    logged: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """Nothing is lost: what waited gets its places."""
    (row,) = await rows(place_of(logged), "SELECT entry FROM log_entries WHERE place = 599")
    await edit_entry(logged, 599)
    await found(logged, clock, model_folder)
    was = blob(logged, bytes(row["entry"]))
    await change(place_of(logged), f"UPDATE log_entries SET entry = {was} WHERE place = 599")
    async with serving(logged, clock, model_folder) as running:
        await running.service.sequencer.round()
        assert (await head(running)).size > SIZE


# A restore, and a new log.


async def test_a_restored_log_has_ended_and_a_new_one_names_it(
    logged: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """Its key may have signed more than the backup has, so it never signs it again; proofs of before stay good."""
    assert (await verifier_does("backup", logged, tmp_path / "b.db")).status == 0
    async with serving(logged, clock, model_folder) as running:
        await add(running, 30)
        last = await head(running)
    done = await verifier_does(
        "restore", logged, tmp_path / "b.db", "--replace", "--yes", "--all-marks", *WHY
    )
    assert done.status == 0, done.said
    assert "touchstone log begin" in done.said
    await found(logged, clock, model_folder)
    begun = await touchstone("log", "begin", "--home", logged.path, *WHY)
    assert begun.status == 0, begun.said
    async with serving(logged, clock, model_folder) as running:
        await running.service.sequencer.round()
        await proves_both(running, last)
    assert (await verifier_does("check", logged)).status == 0


async def proves_both(running: RunningVerifier, last: log_tree.Stored) -> None:
    async with running.service.db.read() as tx:
        old, new = await log_tree.every(tx)
    assert (new.origin, new.prefix) == (f"{old.origin}/2", "/log/2")
    async with running.stranger.get(f"{running.url}/log/2/checkpoint") as response:
        signed = open_checkpoint(await response.read(), [VerifierKey.parse(new.vkey)])
    assert signed.checkpoint.size > 1
    async with running.service.db.read() as tx:
        (first,) = await log_tree.leaves(tx, new.number, 0, 1)
    said = json.loads(first)
    assert (said["previous"], said["previous_size"]) == (old.origin, SIZE + 30)
    assert said["previous_root"] == last.root.hex()
    async with running.stranger.get(f"{running.url}/log/checkpoint") as response:
        earlier = open_checkpoint(await response.read(), [VerifierKey.parse(old.vkey)])
    assert earlier.checkpoint.size == SIZE


async def test_a_guard_follows_what_another_replica_has_begun(
    logged: Home, clock: FakeClock, model_folder: Path, tmp_path: Path
) -> None:
    """Only homes have the key, so a log that it has signed was begun by one of them."""
    guard = logged.log_guard.read_bytes()
    assert (await touchstone("log", "begin", "--home", logged.path, *WHY)).status == 0
    logged.log_guard.write_bytes(guard)
    async with serving(logged, clock, model_folder) as running:
        await running.service.sequencer.look()
    known = read_guard(logged.log_guard)
    assert known is not None
    assert known.number == 2


async def test_a_new_log_in_the_database_alone_is_not_signed(
    logged: Home, clock: FakeClock, model_folder: Path
) -> None:
    """Whoever writes the database cannot begin a log: its first checkpoint is not signed."""
    (row,) = await rows(place_of(logged), "SELECT vkey FROM logs")
    key = VerifierKey.parse(row["vkey"])
    new = VerifierKey(f"{key.name}/2", key.public)
    await change(
        place_of(logged),
        f"INSERT INTO logs (number, origin, vkey, begun_ms) VALUES (2, '{new.name}', '{new}', 1)",
    )
    await found(logged, clock, model_folder)


async def test_a_home_without_the_key_signs_nothing(
    logged: Home, clock: FakeClock, model_folder: Path
) -> None:
    """Of a replica that has not got it yet: it makes none of its own."""
    (logged.path / "log-key.pem").unlink()
    async with serving(logged, clock, model_folder) as running:
        with pytest.raises(LogDivergedError, match=r"Copy log-key\.pem"):
            await running.service.sequencer.look()
    assert not (logged.path / "log-key.pem").exists()


async def test_a_home_of_an_earlier_version_gets_a_key(
    verifier_home: Home, clock: FakeClock, model_folder: Path
) -> None:
    (verifier_home.path / "log-key.pem").unlink()
    await seed(verifier_home, clock.ms)
    async with serving(verifier_home, clock, model_folder) as running:
        await running.service.sequencer.round()
        assert (await head(running)).size > 0
