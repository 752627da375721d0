"""A database of the first version opens with this one, and nothing in it is lost or free again."""

from __future__ import annotations

import sqlite3
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fixtures.simulator import MODEL
from fixtures.transactions import transaction
from verifier.challenges.runs import Goal, start_or_resume
from verifier.errors import StoreError
from verifier.schemes.context import WalkRecord
from verifier.store import incidents, nodes, pool, recordings, sessions, walks
from verifier.store.database import ConflictError
from verifier.store.pool import Entry
from verifier.store.sqlite import SqliteDatabase

NOW_MS = 1_795_000_000_000
DIGEST = "d" * 64
CHANGED = ("pool", "sessions", "walks", "batches", "incidents", "incident_steps")
MIGRATIONS = resources.files("verifier.store") / "migrations"
NEWEST = max(int(entry.name[:4]) for entry in MIGRATIONS.iterdir() if entry.name.endswith(".sql"))
RECORD = {"channel": "call", "verdict": "right", "at_ms": 5, "source": "engine", "reference": DIGEST}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """What the first version left: a node, two sessions with their challenges, walks, free challenges."""
    path = tmp_path / "verifier.db"
    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.executescript((MIGRATIONS / "0001_initial.sql").read_text())
        db.execute("PRAGMA user_version = 1")
        put(db, "nodes", "n", bytes(17), "acme", f'["{MODEL}"]', "cpu", "active", 1)
        key = bytes.fromhex("a4") + b"not read here"
        put(db, "node_keys", bytes(32), "n", key, 1, 1)
        put(db, "reference_values", DIGEST, MODEL, "{}", 1, 1)
        put(db, "batches", 7, MODEL, DIGEST, 2, 3)
        answers = f'{{"{MODEL}":{{"read":"{"0" * 64}","walk":null}}}}'
        put(
            db, "sessions", "s1", "n", "call", b"1" * 32, 1, 2, "complete", "{}", answers, 40, bytes(32), "a1"
        )
        put(db, "sessions", "s2", "n", "announced", b"2" * 32, 1, 1 << 50, "waiting", "{}", *[None] * 4)
        for kind in ("read", "walk"):
            for index in range(4):
                used = {0: "s1", 1: "s2"}.get(index)
                put(db, "pool", MODEL, kind, index, 7, '{"rows":8,"passes":1}', b"c" * 128, used)
        put(db, "walks", 11, "s1", "n", MODEL, 1, msgspec.json.encode(RECORD).decode(), 5)
        put(db, "walks", 12, "s2", "n", MODEL, 0, msgspec.json.encode(RECORD).decode(), 6)
        put(db, "appraisals", "a1", "s1", "n", 1, 2, "affirming", "t", "{}", b"e", 1, None)
        put(db, "endpoints", "pin", "n")
        for number, operator in enumerate(("acme", None)):
            said = (
                "challenge-unanswered",
                "minor",
                "noted",
                "n",
                operator,
                "weights.walk.missed",
                "d",
                None,
                "s1",
            )
            put(db, "incidents", f"i{number}", *said, 1, 5, 5, 9)
        put(
            db,
            "incidents",
            "i2",
            "reference-suspect",
            "serious",
            "open",
            *[None] * 2,
            "c",
            "d",
            "c@r",
            None,
            1,
            5,
            5,
            9,
        )
        put(db, "incident_steps", "i0", 5, "verifier", "noted", "d")
    db.close()
    return path


def put(db: sqlite3.Connection, table: str, *values: Any) -> None:
    db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' for _ in values)})", values)


def rows(path: Path, table: str) -> list[dict[str, Any]]:
    with sqlite3.connect(path) as db:
        db.row_factory = sqlite3.Row
        found = [dict(row) for row in db.execute(f"SELECT * FROM {table}")]
    db.close()
    return sorted(found, key=repr)


def all_rows(path: Path) -> dict[str, list[dict[str, Any]]]:
    with sqlite3.connect(path) as db:
        tables = [
            row[0]
            for row in db.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            )
        ]
    db.close()
    return {table: rows(path, table) for table in tables}


async def test_every_row_is_kept_as_it_was(old: Path) -> None:
    """New columns have what an old row means; no old value is another."""
    before = all_rows(old)
    assert all(before[table] for table in CHANGED)
    async with SqliteDatabase(old):
        pass
    after = all_rows(old)
    for row in before["incidents"]:
        # Calls without an answer were noted without the operator.
        row["operator"] = None if row["node_id"] is None else "acme"
    new = {
        "sessions": {"together": 0, "pushed_ms": None, "pushed_by": None, "read_ms": None, "told_ms": None, "revisions": None},
        "walks": {"wide": 0},
        "batches": {"goal": "{}"},
        "pool": {"gates": None, "gate_table": None},
        "incident_steps": {"step": None},
        "appraisals": {"seq": 1, "origin": "a1", "basis": "", "generation": 0, "sequence": 0},
        "reference_values": {
            "state": "active", "source": "measured", "signer": None, "not_before": None, "not_after": None,
            "grace_until_ms": 0,
        },
    }  # fmt: skip
    gone = {"appraisals": {"evidence"}, "reference_values": {"active"}}
    for table, kept in before.items():
        expected = [
            {k: v for k, v in {**row, **new.get(table, {})}.items() if k not in gone.get(table, ())}
            for row in kept
        ]
        found = [dict(sorted(row.items())) for row in after[table]]
        assert sorted(found, key=repr) == sorted((dict(sorted(row.items())) for row in expected), key=repr), (
            table
        )
    assert after["devices"] == []


async def test_evidence_moves_and_is_not_lost(old: Path) -> None:
    """It is kept with the recordings; what its appraisal looked at was not, so it cannot be replayed."""
    async with SqliteDatabase(old) as db, db.read() as tx:
        assert await recordings.evidence_of(tx, "a1") == b"e"
        assert await recordings.of_appraisal(tx, "a1") is None


async def test_it_is_whole_and_of_this_version(old: Path) -> None:
    """Nothing dangles, and opening it again changes nothing."""
    async with SqliteDatabase(old):
        pass
    once = all_rows(old)
    async with SqliteDatabase(old):
        pass
    assert all_rows(old) == once
    with sqlite3.connect(old) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (NEWEST,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    db.close()


async def test_no_table_column_or_index_of_the_first_version_is_lost(old: Path) -> None:
    """A table that is made anew has its indexes made anew; some have a column more."""

    def form(path: Path) -> dict[tuple[str, str], set[Any]]:
        with sqlite3.connect(path) as db:
            found = {}
            for kind, name, statement in db.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
                info = "table_info" if kind == "table" else "index_info"
                columns = {
                    row[1] if kind == "table" else row[2] for row in db.execute(f"PRAGMA {info}({name})")
                }
                _, _, where = (statement or "").partition(" WHERE ")
                found[kind, name] = {*columns, where if kind == "index" else ""}
        db.close()
        return found

    before = form(old)
    async with SqliteDatabase(old):
        pass
    after = form(old)
    # The one result of a session is an index of its own now, and evidence lies with the recordings.
    before.pop(("index", "sqlite_autoindex_appraisals_2"), None)
    before["table", "appraisals"] -= {"evidence"}
    before["table", "reference_values"] -= {"active"}
    before["index", "appraisals_node"] -= {"issued_ms"}
    before["index", "reference_values_active"] -= {"active = 1"}
    # Of each node only the newest result counts, and it is found by the node.
    before.pop(("index", "appraisals_live"))
    before.pop(("index", "appraisals_issued"))
    assert before.keys() <= after.keys()
    assert [name for name, columns in before.items() if not columns <= after[name]] == []


async def test_challenges_that_were_used_stay_used(old: Path) -> None:
    """A new session is given the first free ones, and after the last there are none."""
    async with SqliteDatabase(old) as db, transaction(db) as tx:
        taken = []
        for number in range(3):
            session = await sessions.open_session(
                tx,
                node_id=None,
                channel="open",
                nonce=bytes([number] * 32),
                now_ms=NOW_MS,
                lifetime_ms=1000,
                wants=[
                    sessions.WantedChallenge(MODEL, "read"),
                    sessions.WantedChallenge(MODEL, "wide", instead="walk"),
                ],
                references={MODEL: DIGEST},
            )
            taken.append(sorted((e.kind, e.index) for e in session.entries))
            assert session.exhausted == ({} if number < 2 else {MODEL: ("read", "walk")})
        assert taken == [[("read", 2), ("walk", 2)], [("read", 3), ("walk", 3)], []]
        used = {(e.kind, e.index) for e in await pool.of_session(tx, "s1")}
        assert used == {("read", 0), ("walk", 0)}
        (first_used,) = await tx.all("SELECT first_used_ms FROM batches")
        assert first_used["first_used_ms"] == 3


async def test_seeds_that_were_used_do_not_come_again(old: Path) -> None:
    """The next index is beyond all that were ever minted, for each kind."""
    async with SqliteDatabase(old) as db, transaction(db) as tx:
        indexes = {kind: await pool.next_index(tx, MODEL, kind) for kind in ("read", "walk", "wide")}
        assert indexes == {"read": 4, "walk": 4, "wide": 0}
        await pool.add(tx, [Entry(MODEL, "wide", 0, 7, '{"rows":2048,"passes":1}', b"w" * 128)])
        assert await pool.minted(tx, 7) == {"read": 4, "walk": 4, "wide": 1}


async def test_what_keeps_challenges_single_holds(old: Path) -> None:
    """No index twice, no kind that is not known, no batch that is not there."""
    for entry in (
        Entry(MODEL, "walk", 0, 7, "{}", b""),
        Entry(MODEL, "deep", 0, 7, "{}", b""),
        Entry(MODEL, "wide", 0, 99, "{}", b""),
    ):
        with pytest.raises(ConflictError):
            async with SqliteDatabase(old) as db, transaction(db) as tx:
                await pool.add(tx, [entry])
    assert len(rows(old, "pool")) == 8


async def test_the_nonces_and_waiting_sessions_hold(old: Path) -> None:
    """A used nonce stays used, and a node that asks again gets the session that waits."""
    async with SqliteDatabase(old) as db:
        with pytest.raises(ConflictError):
            async with transaction(db) as tx:
                await open_announced(tx, node_id=None, nonce=b"1" * 32)
        async with transaction(db) as tx:
            again = await open_announced(tx, node_id="n", nonce=b"3" * 32)
    assert (again.id, again.nonce, again.together) == ("s2", b"2" * 32, 0)
    assert sorted((e.kind, e.index) for e in again.entries) == [("read", 1), ("walk", 1)]


async def open_announced(tx: Any, *, node_id: str | None, nonce: bytes) -> sessions.StoredSession:
    return await sessions.open_session(
        tx,
        node_id=node_id,
        channel="announced",
        nonce=nonce,
        now_ms=NOW_MS,
        lifetime_ms=1000,
        wants=[sessions.WantedChallenge(MODEL, "read")],
        references={MODEL: DIGEST},
    )


async def test_what_was_shown_before_is_history(old: Path) -> None:
    """Old records are read as narrow ones, of which nobody knows how long they took."""
    async with SqliteDatabase(old) as db, db.read() as tx:
        found = await walks.history(tx, "n", MODEL, 16)
        session = await sessions.get(tx, "s1")
    assert (
        found
        == (WalkRecord(channel="call", verdict="right", at_ms=5, source="engine", reference=DIGEST),) * 2
    )
    assert (found[0].wide, found[0].together, found[0].ms) == (False, False, None)
    assert session.answers is not None
    assert session.answers[MODEL].read == "0" * 64


async def test_a_run_of_the_first_version_has_nothing_to_take_up(old: Path) -> None:
    """What it set out to make was not kept; it is not made up either."""
    async with SqliteDatabase(old) as db, transaction(db) as tx:
        batch, goal = await start_or_resume(tx, MODEL, DIGEST, None, NOW_MS)
    assert (batch, goal) == (7, Goal())
    assert goal.count == 0


async def test_devices_are_those_of_nodes(old: Path) -> None:
    """One node a device, and the node must be there."""
    async with SqliteDatabase(old) as db:
        async with transaction(db) as tx:
            await tx.execute("INSERT INTO devices VALUES ('GPU-1', 'n')")
        for row in (("GPU-1", "n"), ("GPU-2", "nobody")):
            with pytest.raises(ConflictError):
                async with transaction(db) as tx:
                    await tx.execute("INSERT INTO devices VALUES (?, ?)", *row)


async def test_an_incident_knows_its_operator(old: Path) -> None:
    """Also one that was noted without; one that holds no node has none."""
    async with SqliteDatabase(old) as db, db.read() as tx:
        found = await incidents.page(tx, open_only=False, after="", limit=10)
        assert [row["operator"] for row in found] == ["acme", "acme", None]
        assert [row["proposed_by"] for row in found] == [None] * 3
        assert [step["step"] for step in await incidents.steps(tx, "i0")] == [None]


async def test_a_migration_that_fails_leaves_the_first_version(old: Path) -> None:
    """All of it or nothing: with a stray table in its way, the old file is as it was."""
    with sqlite3.connect(old) as db:
        db.execute("CREATE TABLE devices (x)")
    db.close()
    before = all_rows(old)
    with pytest.raises(StoreError):
        async with SqliteDatabase(old):
            pass
    assert all_rows(old) == before
    with sqlite3.connect(old) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        db.execute("DROP TABLE devices")
    db.close()
    async with SqliteDatabase(old) as opened, opened.read() as tx:
        assert len(await tx.all("SELECT * FROM pool")) == 8
        assert [node.id for node in await nodes.live(tx)] == ["n"]


async def test_a_newer_file_is_refused_untouched(old: Path) -> None:
    """An older version must not write to what it does not understand."""
    with sqlite3.connect(old) as db:
        db.execute(f"PRAGMA user_version = {NEWEST + 1}")
    db.close()
    before = all_rows(old)
    with pytest.raises(StoreError, match="newer than"):
        async with SqliteDatabase(old):
            pass
    assert all_rows(old) == before
