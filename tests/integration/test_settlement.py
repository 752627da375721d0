"""Periods settled in both databases: from receipts as routers write them to statements that are verified offline."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attester import cose, usage_claims
from fixtures.postgres import drop_database, make_database, url_of
from router.config import RouterConfig
from router.model.clock import Clock
from router.model.errors import SettlementError
from router.receipts.payload import Claimed, Metered, Node, Price, Request, Response
from router.settlement import pages, statements
from router.settlement.exchanges import Exchange
from router.settlement.periods import read_period
from router.settlement.reconciling import Gap, Verdict
from router.state.exporting import verify, write
from router.state.receipt_keeper import ReceiptKeeper
from router.state.receipts import ReceiptBook
from router.state.settling import Settler
from router.store import holds
from router.store import settlement as store
from tests.unit.router.settlement.quarter import SimulatedNode, claims_of, simulate
from tests.unit.router.test_receipts import KEY
from verifier.router_receipts import ReceiptKey
from verifier.store.database import Database
from verifier.store.opening import open_database

STORES = ("sqlite", "postgres")
PERIOD = read_period("2026-10")
AFTER_MS = PERIOD.to_ms + 3 * 86_400_000
CONFIG = msgspec.convert(
    {
        "verifier": {"url": "https://v.example"},
        "store": {"path": "router.db", "keep_days": 400},
        "settlement": {"unit": "EUR", "decimals": 2},
        "service": {"name": "one"},
    },
    RouterConfig,
)
KEYS = {ReceiptKey(KEY.public).kid: ReceiptKey(KEY.public)}
NODE_KEY = cose.PrivateKey.generate(cose.ED25519)


@pytest.fixture(params=STORES)
async def db(request: Any, tmp_path: Path) -> AsyncIterator[Database]:
    url = ""
    if request.param == "postgres":
        server = request.getfixturevalue("postgres")
        name = await make_database(server)
        url = url_of(server, name)
    async with open_database(url, tmp_path / "router.db", schema="router.store") as db:
        yield db
    if url:
        await drop_database(server, name)


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database("", tmp_path / "router.db", schema="router.store") as db:
        yield db


def members_of(exchange: Exchange) -> dict[str, Any]:
    claimed = exchange.claimed
    assert claimed is not None
    return {
        "model": exchange.model,
        "workload": exchange.workload,
        "outcome": "completed",
        "node": Node(id=exchange.node),
        "price": Price(input=exchange.price.input, output=exchange.price.output),
        "metered": Metered(
            claimed=Claimed(completion=claimed.completion, prompt=claimed.prompt),
            completion=exchange.counted.completion,
            exact=True,
            operator=exchange.operator,
            prompt=exchange.counted.prompt,
            tier=exchange.tier,
        ),
        "request": Request(method="POST", path="/v1/chat/completions", salted=False),
        "response": Response(bytes=1, complete=True, sha256="0" * 64, status=200, streamed=False),
    }


async def keep(db: Database, exchanges: list[Exchange]) -> None:
    """Write receipts as a router does."""
    now = exchanges[0].at_ms if exchanges else 0
    book = ReceiptBook(KEY, "one", writes=True)
    keeper = ReceiptKeeper(db, book, CONFIG.store, Clock(lambda: now, lambda: 1000.0))
    await keeper.load()
    for number, each in enumerate(sorted(exchanges, key=lambda each: each.at_ms)):
        book.end(book.new_id(each.at_ms), each.client, each.at_ms, members_of(each))
        if number % 50 == 49:
            await keeper.flush()
    await keeper.flush()


async def claim(db: Database, fleet: list[SimulatedNode]) -> None:
    async def write_all(tx: Any) -> None:
        for operator, each in claims_of(fleet):
            data = usage_claims.sign(each, NODE_KEY)
            await store.add_claim(
                tx, node=each.node, router=each.router, day=each.day, operator=operator, at_ms=1, claim=data
            )

    await db.write(write_all)


async def filled(db: Database, nodes: int = 20, **how: Any) -> list[SimulatedNode]:
    fleet, exchanges = simulate(nodes, period=PERIOD, **how)
    await keep(db, list(exchanges))
    await claim(db, fleet)
    return fleet


def settler(db: Database, folder: Path, now_ms: int = AFTER_MS) -> Settler:
    return Settler(db, CONFIG, folder, KEY, now_ms)


async def test_a_month_is_settled_exactly(db: Database, tmp_path: Path) -> None:
    fleet = await filled(db)
    found = await settler(db, tmp_path).run(PERIOD)
    assert (found.unreadable, found.missing, found.known) == (0, 0, 0)
    made = {each.operator: statements.open_signed(each.token, KEYS)[1] for each in found.statements}
    for node in fleet:
        lines = [line for line in made[node.operator].lines if line.node == node.id]
        assert [(int(line.amount), line.exchanges) for line in lines] == [(node.expected, node.exchanges)]
    async with db.read() as tx:
        opened = {each.node: each for each in await holds.list_open(tx)}
    assert {node.kind for node in fleet if node.id in opened} == {"minor", "serious"}
    assert {node.kind for node in fleet if node.id in opened and opened[node.id].holding} == {"serious"}


async def test_settling_again_changes_nothing(db: Database, tmp_path: Path) -> None:
    await filled(db, 6)
    first = await settler(db, tmp_path).run(PERIOD)
    async with db.read() as tx:
        before = await holds.list_open(tx)
    again = await settler(db, tmp_path, AFTER_MS + 1).run(PERIOD)
    assert (again.statements, again.known) == ((), len(first.statements))
    async with db.read() as tx:
        assert await holds.list_open(tx) == before
        found = await store.find_statement(tx, first.statements[0].id)
    assert found == first.statements[0]


async def test_a_period_that_is_not_over_is_not_settled(small: Database, tmp_path: Path) -> None:
    with pytest.raises(SettlementError, match="hours after its end"):
        await settler(small, tmp_path, PERIOD.to_ms + 47 * 3_600_000).run(PERIOD)


async def test_a_statement_is_verified_offline(db: Database, tmp_path: Path) -> None:
    await filled(db, 4)
    desk = settler(db, tmp_path)
    found = (await desk.run(PERIOD)).statements[0]
    out = tmp_path / "out"
    made = statements.content(found.token)
    await write(db, desk, found, out, lambda _: found.token)
    checked = verify(out, KEYS)
    assert checked.name == found.id
    assert checked.receipts == checked.batched == sum(line.exchanges for line in made.lines)
    assert not checked.logged


@pytest.mark.parametrize(
    ("name", "old", "new", "what"),
    [
        ("receipts.jsonl", b'\\"completion\\":', b'\\"completion\\":1', "receipt"),
        ("receipts.jsonl", b'"place":', b'"place":1', "not at its place"),
        ("batches.jsonl", b'"leaves":"', b'"leaves":"00', "batch"),
        ("statement.jws", b".", b".A", "malformed|altered"),
    ],
)
async def test_what_was_altered_in_an_export_is_found(
    small: Database, tmp_path: Path, name: str, old: bytes, new: bytes, what: str
) -> None:
    await filled(small, 2)
    desk = settler(small, tmp_path)
    found = (await desk.run(PERIOD)).statements[0]
    out = tmp_path / "out"
    await write(small, desk, found, out, lambda _: found.token)
    data = (out / name).read_bytes()
    assert old in data
    (out / name).write_bytes(data.replace(old, new, 1))
    with pytest.raises(SettlementError, match=what):
        verify(out, KEYS)


async def test_a_receipt_that_is_left_out_of_an_export_is_missed(small: Database, tmp_path: Path) -> None:
    await filled(small, 2)
    desk = settler(small, tmp_path)
    found = (await desk.run(PERIOD)).statements[0]
    out = tmp_path / "out"
    await write(small, desk, found, out, lambda _: found.token)
    lines = (out / "receipts.jsonl").read_bytes().splitlines(keepends=True)
    (out / "receipts.jsonl").write_bytes(b"".join(lines[1:]))
    with pytest.raises(SettlementError, match="line 1"):
        verify(out, KEYS)


async def test_receipts_that_were_dropped_are_counted(small: Database, tmp_path: Path) -> None:
    await filled(small, 4)
    await small.write(lambda tx: tx.execute("DELETE FROM receipts WHERE place % 10 = 3 AND batch > 1"))
    found = await settler(small, tmp_path).run(PERIOD)
    assert found.missing > 3
    assert statements.content(found.statements[0].token).missing == found.missing


async def test_a_correction_names_what_it_corrects_and_leaves_it_as_it_is(
    db: Database, tmp_path: Path
) -> None:
    await filled(db, 4)
    desk = settler(db, tmp_path)
    old = (await desk.run(PERIOD)).statements[0]
    new = await desk.correct(old.id, actor="ada", reason="agreed on the phone", adjustment=(1, -250_000_000))
    data, made = statements.open_signed(new.token, KEYS)
    before = statements.content(old.token)
    assert (made.number, made.previous) == (2, old.id)
    assert int(made.total) == int(before.total) - 250_000_000
    assert made.adjustments[0].actor == "ada"
    assert made.lines == before.lines
    assert statements.digest(data) == new.id
    async with db.read() as tx:
        assert await store.find_statement(tx, old.id) == old
    with pytest.raises(SettlementError, match="corrected already"):
        await desk.correct(old.id, actor="ada", reason="once more")
    third = await desk.correct(new.id, actor="eve", reason="nothing new")
    assert statements.content(third.token).total == made.total


async def test_a_receipt_that_comes_late_comes_into_a_correction(small: Database, tmp_path: Path) -> None:
    fleet, exchanges = simulate(2, period=PERIOD)
    read = list(exchanges)
    await keep(small, read[:-40])
    desk = settler(small, tmp_path)
    found = (await desk.run(PERIOD)).statements
    await keep(small, read[-40:])
    assert (await desk.run(PERIOD)).statements == ()
    corrected = [await desk.correct(each.id, actor="ada", reason="receipts came late") for each in found]
    totals = {each.operator: int(statements.content(each.token).total) for each in corrected}
    assert sum(totals.values()) == sum(node.expected for node in fleet)


async def test_no_node_answers_for_receipts_that_a_router_has_lost(small: Database, tmp_path: Path) -> None:
    """Half of them are lost, which the router knows; without that, the node would be held."""
    fleet, exchanges = simulate(1, period=PERIOD, kinds=("honest",))
    await keep(small, [each for number, each in enumerate(exchanges) if number % 2])
    await claim(small, fleet)
    desk = settler(small, tmp_path)
    read = await desk._read(PERIOD)
    assert desk._judge(read)[0].verdict is Verdict.SERIOUS
    gap = Gap("one", PERIOD.from_ms, PERIOD.from_ms + 1000, 20, "killed")
    await small.write(partial(store.add_gap, gap=gap))
    found = await desk.run(PERIOD)
    assert [each.verdict for each in found.judgements] == [Verdict.WITHIN]
    assert statements.content(found.statements[0].token).lost[0].lost == 20


async def test_receipts_from_the_archive_count_once(small: Database, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from verifier.archive import parquet
    from verifier.archive.rows import RECEIPTS

    fleet = await filled(small, 2)
    async with small.scan() as tx:
        rows = await tx.all(f"SELECT {', '.join(RECEIPTS.columns)} FROM receipts ORDER BY id")
    folder = tmp_path / "archive" / "receipts"
    folder.mkdir(parents=True)
    parquet.write(folder / "1.parquet", RECEIPTS, rows[:30])
    # Of these, some are still in the store too.
    await small.write(lambda tx: tx.execute("DELETE FROM receipts WHERE id < ?", rows[20]["id"]))
    config = msgspec.structs.replace(CONFIG, store=msgspec.structs.replace(CONFIG.store, archive="archive"))
    found = await Settler(small, config, tmp_path, KEY, AFTER_MS).run(PERIOD)
    totals = [int(statements.content(each.token).total) for each in found.statements]
    assert sum(totals) == sum(node.expected for node in fleet)
    shutil.rmtree(folder)


async def test_every_number_of_the_table_and_the_page_is_in_the_records(
    small: Database, tmp_path: Path
) -> None:
    await filled(small, 2)
    found = (await settler(small, tmp_path).run(PERIOD)).statements[0]
    made = statements.content(found.token)
    table = pages.to_csv(found.id, made).splitlines()
    assert len(table) == 1 + len(made.lines)
    page = pages.to_html(found.id, made)
    for line in made.lines:
        assert f",{line.amount},{line.amount_exact}," in table[line.number]
        assert f"<td>{line.amount_exact}</td>" in page
    assert made.total_exact in page
