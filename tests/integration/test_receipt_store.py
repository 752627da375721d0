"""Receipts in both databases: written, found, signed for another router, forgotten; no statement scans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.postgres import drop_database, make_database, url_of
from router.config import StoreSection
from router.model.clock import Clock
from router.receipts import tokens
from router.state.receipt_keeper import Losses, ReceiptKeeper
from router.state.receipts import ReceiptBook
from router.store import receipts as store
from router.store import settlement
from tests.unit.router.test_receipts import KEY, end
from verifier.errors import StoreError
from verifier.router_receipts import generate_key
from verifier.store.database import Database
from verifier.store.opening import open_database

STORES = ("sqlite", "postgres")
KIND = "router.store"


@pytest.fixture(params=STORES)
async def db(request: Any, tmp_path: Path) -> AsyncIterator[Database]:
    url = ""
    if request.param == "postgres":
        server = request.getfixturevalue("postgres")
        name = await make_database(server)
        url = url_of(server, name)
    async with open_database(url, tmp_path / "router.db", schema=KIND) as db:
        yield db
    if url:
        await drop_database(server, name)


class Moving:
    ms, s = 1_795_000_000_000, 1000.0

    def forward(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)
        self.s += seconds


def keeper_of(db: Database, moving: Moving | None = None, key: Any = KEY, **config: Any) -> ReceiptKeeper:
    at = moving or Moving()
    book = ReceiptBook(key, "one", writes=True)
    return ReceiptKeeper(db, book, StoreSection(path="x", **config), Clock(lambda: at.ms, lambda: at.s))


async def test_what_is_written_is_found(db: Database) -> None:
    """More than one transaction of them, by any router of the store."""
    keeper = keeper_of(db)
    await keeper.load()
    ids = [end(keeper.book, f"k{n % 3}") for n in range(1203)]
    await keeper.flush()
    other = keeper_of(db, key=generate_key())
    await other.load()
    found = [await other.find(each) for each in ids[::100]]
    assert all(each is not None and each.batch == 1 for each in found)
    batch = await other.find_batch(found[-1])
    assert batch is not None
    assert len(batch.leaves) == 1203 * 32
    async with db.read() as tx:
        assert await store.ahead(tx, keeper.book.public.kid) == []
        assert {seq for seq, _ in (await store.chains(tx, keeper.book.public.kid)).values()} == {401}


async def test_another_router_has_it_signed(db: Database) -> None:
    """The store carries the question and the answer."""
    one, other = keeper_of(db), keeper_of(db, key=generate_key())
    await one.load()
    await other.load()
    receipt_id = end(one.book, "ada")
    await one.flush()
    found = await other.find(receipt_id)
    assert found is not None
    assert await other.token(found) is None
    await one.flush()
    found = await other.find(receipt_id)
    assert found is not None
    token = await other.token(found)
    assert token is not None
    assert tokens.verify(token, {each.kid: each for each in await other.keys()}).receipt.jti == receipt_id


async def test_a_receipt_that_cannot_be_written_is_not_signed(db: Database) -> None:
    """Or two signed receipts of a key could have one number."""

    class Lost:
        async def confirm(self, tx: Any) -> None:
            raise StoreError("another router is called so by now")

    keeper = keeper_of(db)
    await keeper.load()
    keeper._lease = Lost()
    found = await keeper.find(end(keeper.book, "ada"))
    assert found is not None
    with pytest.raises(StoreError):
        await keeper.token(found)
    keeper._lease = None
    assert await keeper.token(found) is not None
    await keeper.flush()
    assert (await keeper.find(found.id)).batch == 1


async def test_an_outage_loses_nothing(db: Database, monkeypatch) -> None:
    """Batch, receipts and chains are written by the next round."""
    keeper = keeper_of(db)
    await keeper.load()
    ids = [end(keeper.book, "ada")]
    write = keeper._db.write

    async def fails(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(keeper._db, "write", fails)
    for _ in range(3):
        with pytest.raises(StoreError):
            await keeper.flush()
        ids.append(end(keeper.book, "ada"))
    monkeypatch.setattr(keeper._db, "write", write)
    await keeper.flush()
    await keeper.flush()
    found = [await keeper.find(each) for each in ids]
    assert [(each.batch, each.place) for each in found if each is not None] == [
        (1, 0),
        (2, 0),
        (2, 1),
        (2, 2),
    ]
    async with db.read() as tx:
        assert await store.ahead(tx, keeper.book.public.kid) == []


async def test_old_receipts_and_batches_are_forgotten(db: Database) -> None:
    """The newest batch stays: the next one follows it."""
    moving = Moving()
    keeper = keeper_of(db, moving, keep_days=1)
    await keeper.load()
    old = end(keeper.book, "ada", moving.ms)
    await keeper.flush()
    moving.forward(90_000)
    middle = end(keeper.book, "ada", moving.ms)
    await keeper.flush()
    assert await keeper.find(old) is None
    assert await keeper.find(middle) is not None
    async with db.read() as tx:
        assert [row["number"] for row in await tx.all("SELECT number FROM receipt_batches")] == [2]


async def test_too_many_receipts_are_thinned_fairly(db: Database) -> None:
    moving = Moving()
    keeper = keeper_of(db, moving, keep_decisions=50)
    await keeper.load()
    few = [end(keeper.book, "ada", moving.ms) for _ in range(5)]
    for number in range(200):
        end(keeper.book, "flood", moving.ms + number)
    moving.forward(700)
    await keeper.flush()
    assert all([await keeper.find(each) for each in few])
    async with db.read() as tx:
        assert (await tx.one("SELECT count(*) AS many FROM receipts"))["many"] <= 50


async def test_no_statement_scans(db: Database, monkeypatch) -> None:
    """SQLite says SCAN, PostgreSQL says Seq Scan; counting for fairness and the few keys may look at all."""
    from verifier.store import postgres, sqlite

    found: dict[str, tuple[Any, ...]] = {}
    module, kind = (postgres, postgres.PostgresTx) if db.shared else (sqlite, sqlite.SqliteTx)
    for name in ("execute", "one", "all"):
        original = getattr(kind, name)

        def noted(self: Any, sql: Any, *parameters: Any, _original: Any = original) -> Any:
            found[module._text(sql)] = parameters
            return _original(self, sql, *parameters)

        monkeypatch.setattr(kind, name, noted)
    moving = Moving()
    keeper = keeper_of(db, moving)
    await keeper.load()
    receipt_id = end(keeper.book, "ada", moving.ms)
    stored = await keeper.find(receipt_id)
    assert stored is not None
    await keeper.token(stored)
    moving.forward(700)
    await keeper.flush()
    await keeper.load()
    stored = await keeper.find(receipt_id)
    assert stored is not None
    await keeper.find_batch(stored)
    await db.write(lambda tx: store.want(tx, receipt_id, stored.kid))
    await db.write(lambda tx: store.readdress(tx, receipt_id, 1, 0))
    for batch in await keeper.unsent(10):
        await keeper.note_sent(batch, "entry")
    await keeper.keys()
    scans = [sql for sql, parameters in list(found.items()) if await scanned(db, sql, parameters)]
    assert [sql for sql in scans if "receipt_keys" not in sql and "GROUP BY caller" not in sql] == []


async def scanned(db: Database, sql: str, parameters: tuple[Any, ...]) -> bool:
    if not sql.lstrip().startswith(("SELECT", "UPDATE", "DELETE")):
        return False
    if not db.shared:
        async with db.read() as tx:
            rows = await tx.all(f"EXPLAIN QUERY PLAN {sql}", *parameters)
        return any(row["detail"].startswith("SCAN receipt") and "INDEX" not in row["detail"] for row in rows)

    async def explain(tx: Any) -> bool:
        await tx.execute("SET LOCAL enable_seqscan = off")
        rows = await tx.all(f"EXPLAIN {sql}", *parameters)
        return any("Seq Scan on receipt" in next(iter(row.values())) for row in rows)

    return bool(await db.write(explain))


async def test_what_was_lost_is_noted_for_settlement(db: Database) -> None:
    """A router that could not write all of its receipts says so: no node answers for that."""
    losses, at = Losses(), Moving()
    book = ReceiptBook(KEY, "one", writes=True, lost=losses, max_unwritten=5)
    keeper = ReceiptKeeper(
        db, book, StoreSection(path="x"), Clock(lambda: at.ms, lambda: at.s), losses=losses
    )
    await keeper.load()
    for _ in range(12):
        end(book, "ada")
    await keeper.flush()
    await keeper.flush()
    async with db.read() as tx:
        found = await settlement.gaps(tx, 0, 1 << 50)
    assert [(each.router, each.lost) for each in found] == [("one", 7)]
