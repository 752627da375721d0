"""`touchstone verifier check` finds each invariant that somebody broke by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import FakeClock
from tests.integration.maintenance import (
    attested,
    change,
    fill,
    place_of,
    real_clock,
    rows,
    serving,
    verifier_does,
)
from verifier.config import Home
from verifier.store.opening import open_whole
from verifier.store.whole import Use

STORES = ("sqlite", "postgres")

OLD = "(SELECT id FROM sessions WHERE status = 'complete' ORDER BY id LIMIT 1)"
ROUTER = "INSERT INTO routers (spki, name, credential, certificate, since_ms, renewed_ms, until_ms)"
API_KEY = "INSERT INTO api_keys (digest, name, roles, created_ms, created_by)"
BROKEN = {
    "every complete session has its one result": [f"DELETE FROM appraisals WHERE session_id = {OLD}"],
    "every result is the one of a complete session": [
        f"UPDATE sessions SET status = 'failed' WHERE id = {OLD}"
    ],
    "every challenge that is taken names its session": [
        "UPDATE pool SET session_id = 'nobody' WHERE idx = 0 AND kind = 'read'"
    ],
    "every reference leads to a row": ["UPDATE endpoints SET node_id = 'nobody'"],
    "no index of a challenge can come twice": ["UPDATE pool_indexes SET next_idx = 3 WHERE kind = 'read'"],
    "the counts of free challenges are right": [
        "UPDATE pool_counts SET minted = minted + 1 WHERE kind = 'read'"
    ],
    "no more challenges are taken than were counted": [
        "UPDATE pool_counts SET taken = 0, minted = minted - taken WHERE kind = 'read'"
    ],
    "the size of the recordings is right": ["UPDATE totals SET value = value - 1 WHERE name = 'recordings'"],
    "generations grow with the changes": ["UPDATE changes SET generation = seq + 1"],
    "no result is of a later generation": ["UPDATE appraisals SET generation = 99"],
    "every node has one current key": ["UPDATE node_keys SET current = 0"],
    "no nonce was used twice": ["UPDATE sessions SET nonce = (SELECT min(nonce) FROM sessions)"],
    "no node has two sessions of a kind that wait": [
        "UPDATE sessions SET status = 'waiting', channel = 'call'"
    ],
    "no signed request was accepted twice": [
        "INSERT INTO seen_requests SELECT * FROM seen_requests WHERE expires_ms >= 0"
    ],
    "every router is registered by the key whose name it has": [
        f"{API_KEY} SELECT kid, 'router-1', '[]', 1, 'x' FROM node_keys LIMIT 1",
        f"{ROUTER} SELECT digest, 'somebody', digest, digest, 1, 2, 3 FROM api_keys WHERE name = 'router-1'",
    ],
    "every router is registered for a time after its renewal": [
        f"{ROUTER} SELECT kid, 'router-1', NULL, kid, 1, 5, 3 FROM node_keys LIMIT 1"
    ],
    "no challenge serves two sessions": [
        "INSERT INTO pool SELECT * FROM pool WHERE session_id IS NOT NULL",
    ],
}
WITHOUT = {
    # SQLite keeps these keys in the table itself: nobody can break them by a statement.
    "sqlite": ("no signed request was accepted twice", "no challenge serves two sessions"),
    "postgresql": (),
}
OPEN = {
    "sqlite": {
        "no nonce was used twice": ["nonce"],
        "no node has two sessions of a kind that wait": ["DROP INDEX sessions_one_waiting"],
    },
    "postgresql": {
        "no nonce was used twice": ["ALTER TABLE sessions DROP CONSTRAINT sessions_nonce_key"],
        "no node has two sessions of a kind that wait": ["DROP INDEX sessions_one_waiting"],
        "no signed request was accepted twice": [
            "ALTER TABLE seen_requests DROP CONSTRAINT seen_requests_pkey"
        ],
        "no challenge serves two sessions": ["ALTER TABLE pool DROP CONSTRAINT pool_pkey"],
        "every challenge that is taken names its session": [
            "ALTER TABLE pool DROP CONSTRAINT pool_session_id_fkey"
        ],
        "every reference leads to a row": ["ALTER TABLE endpoints DROP CONSTRAINT endpoints_node_id_fkey"],
    },
}
"""How the database is kept from refusing what breaks an invariant."""


@pytest.fixture
def clock() -> FakeClock:
    return real_clock()


@pytest.fixture
async def home(verifier_home: Home, clock: FakeClock, model_folder: Path) -> Home:
    """A verifier that has attested two nodes, and whose database is in order."""
    await fill(verifier_home, clock, model_folder)
    async with serving(verifier_home, clock, model_folder) as running:
        for node in await attested(running, 2):
            await running.attest(node)
        await running.client(running.nodes[0]).open_session()
    check = await verifier_does("check", verifier_home)
    assert check.status == 0, check.said
    return verifier_home


@pytest.mark.parametrize("name", BROKEN)
async def test_it_finds(home: Home, name: str) -> None:
    """It names the invariant and the row, ends with 1, and changes nothing."""
    place = place_of(home)
    kind = "postgresql" if place.url else "sqlite"
    if name in WITHOUT[kind]:
        pytest.skip("this database cannot break it")
    if (kind, name) == ("sqlite", "no nonce was used twice"):
        await forget_unique_nonces(home)
    else:
        await change_unchecked(home, *OPEN[kind].get(name, ()), *BROKEN[name])
    before = await rows(place, "SELECT * FROM sessions ORDER BY id")
    done = await verifier_does("check", home)
    assert done.status == 1, done.said
    faults = [line for line in done.said.splitlines() if line.startswith("FAULT")]
    assert any(name in fault for fault in faults), done.said
    assert await rows(place, "SELECT * FROM sessions ORDER BY id") == before


async def change_unchecked(home: Home, *statements: str) -> None:
    """Change a database by hand; SQLite would look at its foreign keys before the commit."""
    place = place_of(home)
    if place.url:
        await change(place, *statements)
        return
    async with open_whole("", place.file, Use.WRITE) as whole:
        for statement in statements:
            await whole.tx.execute(statement)
        await whole.tx.execute("COMMIT")


async def forget_unique_nonces(home: Home) -> None:
    """Rewrite the schema, as a damaged file might."""
    async with open_whole("", home.database, Use.WRITE) as whole:
        await whole.tx.execute("PRAGMA writable_schema = ON")
        await whole.tx.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL UNIQUE', 'NOT NULL') WHERE name = 'sessions'"
        )
        await whole.tx.execute("DELETE FROM sqlite_master WHERE name = 'sqlite_autoindex_sessions_2'")
        await whole.tx.execute("COMMIT")
    await change_unchecked(home, *BROKEN["no nonce was used twice"])


async def test_it_finds_a_low_counter(home: Home) -> None:
    """The next event would have a number that was given."""
    place = place_of(home)
    await change_unchecked(
        home,
        "SELECT setval('events_seq_seq', 1)"
        if place.url
        else "UPDATE sqlite_sequence SET seq = 1 WHERE name = 'events'",
    )
    done = await verifier_does("check", home)
    assert done.status == 1
    assert "FAULT  every counter is above the numbers of its table: events" in done.said


async def test_it_finds_a_damaged_file(home: Home) -> None:
    """Pages that were overwritten; PostgreSQL's are the server's business."""
    if place_of(home).url:
        pytest.skip("only of files")
    data = bytearray(home.database.read_bytes())
    for page in range(10, len(data) // 4096, 3):
        data[page * 4096 : page * 4096 + 200] = b"\xff" * 200
    home.database.write_bytes(data)
    done = await verifier_does("check", home)
    assert done.status == 1
    assert "the database is whole" in done.said


async def test_it_finds_another_schema(home: Home) -> None:
    """A database that another version changed is not checked by rules that are not its own."""
    place = place_of(home)
    await change_unchecked(
        home, "UPDATE schema_version SET version = 999" if place.url else "PRAGMA user_version = 999"
    )
    done = await verifier_does("check", home)
    assert done.status == 1
    assert "has schema 999" in done.said


async def test_old_results_may_be_gone(home: Home, clock: FakeClock) -> None:
    """The sweep deletes results, and a session stays longer: that is no fault."""
    days = 40 * 24 * 3600 * 1000
    await change_unchecked(
        home,
        f"UPDATE sessions SET issued_ms = issued_ms - {days}, expires_ms = expires_ms - {days}",
        "DELETE FROM appraisals",
    )
    done = await verifier_does("check", home)
    assert done.status == 0, done.said
