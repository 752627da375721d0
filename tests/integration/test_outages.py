"""
The database cannot be used for a while: clear errors, nothing acknowledged lost, and nothing held against a node.

Each outage is one that operators meet: a full disk, a lock of another program, no free connection, a server that
is stopped.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import pytest

from attester.errors import VerifierError
from fixtures.postgres import url_of
from verifier.errors import StoreError
from verifier.service import sweep
from verifier.service.calls import CALL_SCHEDULER
from verifier.store import postgres, sqlite
from verifier.store.database import RETRY_AFTER_S, ConflictError, Tx, UnavailableError
from verifier.store.sqlite import SqliteDatabase

STORES = ("sqlite", "postgres")
Outage: TypeAlias = Callable[[Any], AbstractAsyncContextManager[None]]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lasts 25 s in truth, and is given up after 10 s, lasts some tenths of a second."""
    monkeypatch.setattr(sqlite, "_BUSY_MS", 100)
    monkeypatch.setattr(postgres, "_LOCK_WAIT", "100ms")
    monkeypatch.setattr(postgres, "_ACQUIRE_S", 0.1)


@asynccontextmanager
async def full(verifier: Any) -> AsyncIterator[None]:
    """The disk has no room for another page."""
    raw = verifier.service.db._writer.raw
    raw.execute(f"PRAGMA max_page_count = {raw.execute('PRAGMA page_count').fetchone()['page_count']}")
    # What is free in pages that there are is used up first: the proof of no request has a place.
    kid, expires_ms = verifier.nodes[-1].key.public.kid, verifier.clock.ms + 32_000
    refused = 0
    while refused < 200:
        try:
            await verifier.service.db.write(
                lambda tx: tx.execute(
                    "INSERT INTO seen_requests VALUES (?, ?, ?)", kid, secrets.token_bytes(16), expires_ms
                )
            )
        except UnavailableError:
            refused += 1
        else:
            refused = 0
    yield
    raw.execute("PRAGMA max_page_count = 1000000")


@asynccontextmanager
async def locked(verifier: Any) -> AsyncIterator[None]:
    """Another program holds the lock, for example a backup that has stopped halfway."""
    url = verifier.service.config.store.url
    if not url:
        other = sqlite3.connect(verifier.home.database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        yield
        other.close()
        return
    connection = await asyncpg.connect(url)
    await connection.execute(f"SELECT pg_advisory_lock({postgres._LOCK_SPACE}, {postgres._ALL})")
    yield
    await connection.close()


@asynccontextmanager
async def dry(verifier: Any) -> AsyncIterator[None]:
    """Every connection is in use."""
    async with AsyncExitStack() as stack:
        for _ in range(verifier.service.db._connections):
            async with asyncio.timeout(5):
                while True:
                    # The background tasks use some of them now and then.
                    try:
                        await stack.enter_async_context(verifier.service.db.read())
                        break
                    except UnavailableError:
                        pass
        yield


@asynccontextmanager
async def stopped(verifier: Any) -> AsyncIterator[None]:
    """The server ends all connections and takes no new ones."""
    url = verifier.service.config.store.url
    name = urlsplit(url).path.strip("/")
    server = await asyncpg.connect(url_of(url, "postgres"))
    await server.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false')
    await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    yield
    await server.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true')
    await server.close()


@pytest.fixture(params=[full, locked, dry, stopped], ids=lambda outage: outage.__name__)
def outage(request: pytest.FixtureRequest, store_url: str) -> Outage:
    if request.param not in ((locked, dry, stopped) if store_url else (full, locked)):
        pytest.skip("this database has no such outage")
    made: Outage = request.param
    return made


async def is_refused(asked: Any) -> None:
    """A problem document that says to try again, and when."""
    with pytest.raises(VerifierError) as caught:
        await asked
    assert (caught.value.status, caught.value.code) == (503, "store.unavailable")
    assert caught.value.retry_after_s == RETRY_AFTER_S
    assert "Try again after the seconds of Retry-After." in str(caught.value)


async def test_requests_are_503_with_retry_after_and_the_service_recovers(verifier, outage: Outage) -> None:
    """Nothing acknowledged before is lost, and nobody starts anything again."""
    node = await verifier.enrol()
    before = await verifier.attest(node)
    async with outage(verifier):
        for _ in range(3):
            await is_refused(verifier.client(node).open_session())
    after = await verifier.attest(node)
    assert (before["ear_status"], after["ear_status"]) == ("affirming", "affirming")
    kept = await verifier.rows("SELECT id FROM appraisals ORDER BY seq")
    assert [row["id"] for row in kept] == [before["jti"], after["jti"]]


async def test_a_call_that_ran_out_meanwhile_is_held_against_no_node(verifier, outage: Outage) -> None:
    """Its answers had no way to us."""
    node = await verifier.enrol()
    await verifier.attest(node)
    session = await verifier.call(node)
    async with outage(verifier):
        await is_refused(verifier.client(node).answer_call(session, node.answers(session)))
        verifier.clock.forward(verifier.service.config.sessions.lifetime_s + 30)
        # A full disk may have room for this.
        with suppress(UnavailableError):
            await sweep.end_expired(verifier.service)
    await sweep.end_expired(verifier.service)
    await is_blameless(verifier, session.id)
    assert (await verifier.attest(node))["ear_status"] == "affirming"


async def test_nor_if_only_a_request_has_met_the_outage(verifier, outage: Outage) -> None:
    """It was shorter than the time between two rounds of the sweep."""
    node = await verifier.enrol()
    await verifier.attest(node)
    session = await verifier.call(node)
    async with outage(verifier):
        await is_refused(verifier.client(node).answer_call(session, node.answers(session)))
    verifier.clock.forward(verifier.service.config.sessions.lifetime_s + 30)
    await sweep.end_expired(verifier.service)
    await is_blameless(verifier, session.id)


async def test_nor_if_the_next_call_finds_it_first(verifier, outage: Outage) -> None:
    """A new call ends an old one whose time is over."""
    node = await verifier.enrol()
    await verifier.attest(node)
    session = await verifier.call(node)
    async with outage(verifier):
        await is_refused(verifier.client(node).answer_call(session, node.answers(session)))
        verifier.clock.forward(1)
    await sweep.end_expired(verifier.service)
    verifier.clock.forward(verifier.service.config.sessions.lifetime_s + 1)
    assert (await verifier.attest(node))["ear_status"] == "affirming"
    await is_blameless(verifier, session.id)


async def is_blameless(verifier: Any, session_id: str) -> None:
    (row,) = await verifier.rows("SELECT status FROM sessions WHERE id = ?", session_id)
    assert row["status"] == "failed"
    assert await verifier.rows("SELECT * FROM incidents") == []
    assert await verifier.rows("SELECT * FROM walks WHERE session_id = ?", session_id) == []


async def test_answers_that_come_late_for_it_are_not_late(verifier, outage: Outage) -> None:
    """Their time says nothing about the node; the median of the others does."""
    node = await verifier.enrol()
    await verifier.attest(node)
    session = await verifier.call(node)
    answers = node.answers(session)
    async with outage(verifier):
        await is_refused(verifier.client(node).answer_call(session, answers))
        verifier.clock.forward(100)
    await verifier.client(node).answer_call(session, answers)
    evidence = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
    assert (await verifier.submit(session, evidence, node))["ear_status"] == "affirming"
    (row,) = await verifier.rows("SELECT answer_ms FROM sessions WHERE id = ?", session.id)
    assert row["answer_ms"] is None


async def test_without_an_outage_a_call_that_ran_out_is_missed(verifier) -> None:
    """So the tests above show something."""
    node = await verifier.enrol()
    await verifier.attest(node)
    await verifier.call(node)
    verifier.clock.forward(verifier.service.config.sessions.lifetime_s + 30)
    await sweep.end_expired(verifier.service)
    (incident,) = await verifier.rows("SELECT kind FROM incidents")
    assert incident["kind"] == "challenge-unanswered"


async def test_nodes_have_a_minute_to_come_back_after_it(verifier, outage: Outage) -> None:
    """A channel ends with an outage, and an attester may wait so long before it opens the next one."""
    node = await verifier.enrol()
    caller = verifier.app[CALL_SCHEDULER]
    verifier.clock.forward(3600)
    async with outage(verifier):
        await is_refused(verifier.client(node).open_session())
    await sweep.end_expired(verifier.service)
    for seconds, waits in ((1, True), (57, True), (3, False)):
        verifier.clock.forward(seconds)
        assert (await caller._wait_for(node.id, verifier.clock.ticks) > 0) is waits


# What the drivers owe for it.


async def test_of_writes_that_share_a_commit_none_waits_for_ever(tmp_path: Path) -> None:
    """The disk is full in the middle of a group: all of it is refused, and what is acknowledged is stored."""
    async with SqliteDatabase(tmp_path / "full.db") as db:
        pages = db._writer.raw.execute("PRAGMA page_count").fetchone()["page_count"]
        db._writer.raw.execute(f"PRAGMA max_page_count = {pages + 200}")

        async def insert(number: int) -> int:
            async def work(tx: Tx) -> int:
                await tx.execute("INSERT INTO seen_requests VALUES (?, ?, 0)", b"x" * 50_000, b"%d" % number)
                return number

            return await db.write(work)

        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*(insert(n) for n in range(400)), return_exceptions=True)
        acknowledged = {b"%d" % n for n in outcomes if isinstance(n, int)}
        assert {type(outcome) for outcome in outcomes} <= {int, UnavailableError}
        assert any(isinstance(outcome, UnavailableError) for outcome in outcomes)
        db._writer.raw.execute("PRAGMA max_page_count = 1000000")
        assert await insert(1000) == 1000
        async with db.read() as tx:
            kept = {row["random"] for row in await tx.all("SELECT random FROM seen_requests")}
    assert kept == acknowledged | {b"1000"}


async def test_a_transaction_in_which_a_statement_failed_is_not_taken_for_committed(verifier) -> None:
    """PostgreSQL answers its COMMIT with ROLLBACK, and calls that no error; SQLite undoes the statement alone."""
    db = verifier.service.db
    # What is kept until a time that has come is deleted meanwhile.
    row = b"a", b"a", 1 << 50

    async def work(tx: Tx) -> None:
        await tx.execute("INSERT INTO seen_requests VALUES (?, ?, ?)", *row)
        with pytest.raises(ConflictError):
            await tx.execute("INSERT INTO seen_requests VALUES (?, ?, ?)", *row)

    try:
        await db.write(work)
    except StoreError:
        assert db.shared
        assert await verifier.rows("SELECT * FROM seen_requests WHERE kid = ?", b"a") == []
    else:
        assert len(await verifier.rows("SELECT * FROM seen_requests WHERE kid = ?", b"a")) == 1


async def test_a_connection_that_waited_in_vain_for_a_lock_is_good_again(verifier, monkeypatch) -> None:
    """It must not go back to the pool in the middle of a transaction."""
    async with locked(verifier):
        for _ in range(20):
            with pytest.raises(UnavailableError):
                await verifier.service.db.write(lambda tx: tx.one("SELECT 1 AS one"))
            with pytest.raises(UnavailableError):
                await verifier.service.db.write(lambda tx: tx.one("SELECT 1 AS one"), of="a")
    # Twenty at once may wait for each other.
    monkeypatch.setattr(postgres, "_ACQUIRE_S", 10.0)
    async with asyncio.timeout(10):
        found = await asyncio.gather(
            *(verifier.service.db.write(lambda tx: tx.one("SELECT 1 AS one"), of=f"{n}") for n in range(20))
        )
    assert found == [{"one": 1}] * 20
