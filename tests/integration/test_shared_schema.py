"""An old process and a new one on one PostgreSQL, across a change of the schema."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from fixtures.postgres import drop_database, make_database, url_of
from verifier.errors import StoreError
from verifier.service import sweep
from verifier.store import postgres
from verifier.store.postgres import PostgresDatabase
from verifier.store.scripts import Script, read_scripts

STORES = ("postgres",)
FIRST = "CREATE TABLE things (name TEXT PRIMARY KEY, size BIGINT NOT NULL);"
ADDS = "-- oldest: 1\nALTER TABLE things ADD COLUMN colour TEXT;"
CHANGES = "ALTER TABLE things RENAME COLUMN size TO weight;"


@pytest.fixture
async def url(postgres: str) -> Any:
    """An empty database."""
    name = await make_database(postgres)
    yield url_of(postgres, name)
    await drop_database(postgres, name)


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Make a version of a program: a package with the scripts of its schema."""
    program = f"scratch_{secrets.token_hex(4)}"
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / program).mkdir()
    (tmp_path / program / "__init__.py").touch()

    def make(name: str, *scripts: str) -> str:
        folder = tmp_path / program / name / "postgres"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").touch()
        for number, text in enumerate(scripts, 1):
            (folder / f"{number:04d}_step.sql").write_text(text)
        return f"{program}.{name}"

    return make


async def put(db: PostgresDatabase, name: str) -> None:
    await db.write(lambda tx: tx.execute("INSERT INTO things (name, size) VALUES (?, 1)", name))


async def everything(db: PostgresDatabase) -> list[dict[str, Any]]:
    async with db.read() as tx:
        return [dict(row) for row in await tx.all("SELECT * FROM things ORDER BY name")]


async def test_a_step_that_only_adds_keeps_the_old_process_working(url: str, version) -> None:
    """The one that runs goes on, with the statements that it has prepared; and it can be started again."""
    old, new = version("old", FIRST), version("new", FIRST, ADDS)
    async with PostgresDatabase(url, schema=old) as running:
        await put(running, "a")
        # Every connection of the pool knows the statement.
        await asyncio.gather(*(everything(running) for _ in range(20)))
        async with PostgresDatabase(url, schema=new) as newer:
            await newer.write(lambda tx: tx.execute("INSERT INTO things VALUES ('b', 2, 'red')"))
            found = await asyncio.gather(*(everything(running) for _ in range(20)))
            assert all([row["name"] for row in rows] == ["a", "b"] for rows in found)
            await put(running, "c")
            assert [row["name"] for row in await everything(newer)] == ["a", "b", "c"]
        async with PostgresDatabase(url, schema=old) as again:
            await put(again, "d")
            assert len(await everything(again)) == 4


async def test_a_statement_that_the_change_makes_invalid_within_a_transaction_is_done_again(
    url: str, version
) -> None:
    """The transaction begins anew, and nothing is done twice."""
    old, new = version("old", FIRST), version("new", FIRST, ADDS)
    async with PostgresDatabase(url, schema=old, connections=2) as running:
        select = "SELECT * FROM things ORDER BY name"
        for _ in range(10):
            await running.write(lambda tx: tx.all(select))
        async with PostgresDatabase(url, schema=new):
            tries = 0

            async def work(tx: Any) -> list[Any]:
                nonlocal tries
                tries += 1
                await tx.execute("INSERT INTO things (name, size) VALUES ('a', 1)")
                return list(await tx.all(select))

            rows = await running.write(work)
        assert [row["name"] for row in rows] == ["a"]
        assert tries >= 1
        assert len(await everything(running)) == 1


async def test_a_step_that_changes_something_refuses_an_old_process(url: str, version) -> None:
    """It says which versions can go on, and it changes nothing."""
    old, new = version("old", FIRST), version("new", FIRST, CHANGES)
    async with PostgresDatabase(url, schema=old) as db:
        await put(db, "a")
    async with PostgresDatabase(url, schema=new) as newer:
        with pytest.raises(
            StoreError, match=r"has schema 2, which versions of schema 2 and later can use;.* schema 1"
        ):
            async with PostgresDatabase(url, schema=old):
                pass
        assert [row["weight"] for row in await everything(newer)] == [1]


async def test_a_later_step_that_only_adds_does_not_let_an_older_process_in_again(url: str, version) -> None:
    """What the steps between have changed is still changed."""
    oldest = version("oldest", FIRST)
    newest = version("newest", FIRST, CHANGES, ADDS.replace("oldest: 1", "oldest: 2"))
    middle = version("middle", FIRST, CHANGES)
    async with PostgresDatabase(url, schema=newest):
        pass
    async with PostgresDatabase(url, schema=middle):
        pass
    with pytest.raises(StoreError, match="schema 2 and later"):
        async with PostgresDatabase(url, schema=oldest):
            pass


@pytest.mark.parametrize("step", [ADDS, CHANGES])
async def test_processes_that_migrate_at_once_all_succeed(url: str, version, step: str) -> None:
    """One does it, and the others find it done; so also with an empty database."""
    old, new = version("old", FIRST), version("new", FIRST, step)
    for schema in (old, new):
        async with AsyncExitStack() as stack:
            opened = [PostgresDatabase(url, schema=schema, connections=2) for _ in range(6)]
            await asyncio.gather(*(stack.enter_async_context(db) for db in opened))
            found = await asyncio.gather(*(everything(db) for db in opened))
            assert found == [[]] * 6


async def test_a_step_that_fails_leaves_the_old_schema(url: str, version) -> None:
    """Also what earlier steps of the same start have done is undone; the old process goes on."""
    old, broken = (
        version("old", FIRST),
        version("broken", FIRST, ADDS, "ALTER TABLE nowhere ADD COLUMN x TEXT;"),
    )
    async with PostgresDatabase(url, schema=old) as running:
        await put(running, "a")
        with pytest.raises(StoreError, match="nowhere"):
            async with PostgresDatabase(url, schema=broken):
                pass
        assert [sorted(row) for row in await everything(running)] == [["name", "size"]]
        async with running.read() as tx:
            assert await tx.all("SELECT * FROM schema_version") == [{"version": 1, "oldest": 1}]
    async with PostgresDatabase(url, schema=version("mended", FIRST, ADDS)) as db:
        assert [sorted(row) for row in await everything(db)] == [["colour", "name", "size"]]


async def test_a_verifier_goes_on_when_a_newer_one_adds_a_column_to_every_table(
    verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enrolment, calls, sessions, results, the sweep: nothing depends on the columns there are."""
    node = await verifier.enrol()
    before = await verifier.attest(node)
    url = verifier.service.config.store.url
    known = read_scripts("verifier.store", "postgres")
    newest = known[-1].number
    tables = await verifier.rows(
        "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'touchstone_verifier'"
    )
    text = "\n".join(
        f"ALTER TABLE {row['name']} ADD COLUMN added_later TEXT;"
        for row in tables
        if row["name"] != "schema_version"
    )
    step = Script(newest + 1, text, known[-1].oldest)
    with monkeypatch.context() as patch:
        patch.setattr(postgres, "read_scripts", lambda *_: [*known, step])
        async with PostgresDatabase(url):
            pass
    for _ in range(3):
        after = await verifier.attest(node)
        assert (before["ear_status"], after["ear_status"]) == ("affirming", "affirming")
    await verifier.attest(await verifier.enrol())
    await sweep.sweep(verifier.service)
    assert (await verifier.get(f"/api/v1/nodes/{node.id}"))[0] == 200
    assert (await verifier.get("/api/v1/results"))[0] == 200
    async with PostgresDatabase(url) as again, again.read() as tx:
        assert await tx.all("SELECT version FROM schema_version") == [{"version": newest + 1}]
