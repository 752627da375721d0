"""A router's batches reach a real verifier's log, in order and also after an outage, and receipts verify against it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from attester.cose import PrivateKey
from router.config import StoreSection
from router.model.clock import Clock
from router.receipts import batches, checking, tokens
from router.receipts.commands import receipt as command
from router.receipts.payload import Node, Request, Response, digest_body
from router.state.receipt_keeper import ReceiptKeeper
from router.state.receipt_sender import ReceiptSender
from router.state.receipts import ReceiptBook
from tests.integration.test_receipt_batches import a_router
from verifier.log.notes import VerifierKey
from verifier.router_receipts import generate_key, read_batch
from verifier.store.opening import open_database

STORES = ("sqlite",)
BODY, ANSWER, SALT = b'{"model": "m"}', b"data: hello\n\n", b"0123456789abcdef"


@dataclass
class Router:
    """What a router has for its receipts, over a real verifier."""

    keeper: ReceiptKeeper
    sender: ReceiptSender
    key: PrivateKey
    now: list[float]

    def make(self, caller: str = "ada", **more: Any) -> str:
        """A receipt."""
        book = self.keeper.book
        receipt_id = book.new_id(1_795_000_000_000)
        sent = Request(
            method="POST", path="/v1/chat/completions", salted=True, sha256=digest_body(SALT, BODY)
        )
        got = Response(
            bytes=len(ANSWER), complete=True, sha256=digest_body(SALT, ANSWER), status=200, streamed=True
        )
        members = {"outcome": "completed", "request": sent, "response": got, **more}
        book.end(receipt_id, caller, 1_795_000_000_000, members)
        return receipt_id

    async def send(self) -> None:
        self.now[0] += 100
        await self.sender.send()

    async def document(self, receipt_id: str) -> dict[str, Any]:
        """As the router's API gives it."""
        found = await self.keeper.find(receipt_id)
        assert found is not None
        stored = await self.keeper.find_batch(found)
        assert stored is not None
        return {
            "receipt": await self.keeper.token(found),
            "batch": batches.to_wire(read_batch(stored.batch)),
            "index": found.place,
            "path": batches.path(stored.leaves, found.place),
            "log": None if stored.entry is None else await self.sender.proof(stored.entry),
        }


@pytest.fixture
async def router(verifier: Any, tmp_path: Path) -> AsyncIterator[Router]:
    identity, token = await a_router(verifier)
    key, now = generate_key(), [1000.0]
    clock = Clock(lambda: 1_795_000_000_000, lambda: now[0])
    async with (
        open_database("", tmp_path / "router.db", schema="router.store") as db,
        aiohttp.ClientSession() as http,
    ):
        config = StoreSection(path="router.db")
        keeper = ReceiptKeeper(db, ReceiptBook(key, "gpu-1/0.0.0.0:8450", writes=True), config, clock)
        await keeper.load()
        sender = ReceiptSender(http, verifier.url, identity, keeper, clock=clock, token=lambda: token)
        yield Router(keeper, sender, key, now)


async def log_key(verifier: Any) -> str:
    async with verifier.stranger.get(f"{verifier.url}/api/v1/log") as response:
        return str((await response.json())["logs"][-1]["vkey"])


async def logged(router: Router, receipt_id: str) -> dict[str, Any]:
    """The document, once the log has its batch."""
    deadline = time.monotonic() + 20
    while (document := await router.document(receipt_id))["log"] is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    return document


async def test_a_receipt_verifies_against_the_log(verifier: Any, router: Router, tmp_path: Path) -> None:
    """Offline, by the router's key and the log's; each byte that is changed is found."""
    receipt_id = router.make(node=Node(id="a", result="r", result_sha256="a" * 64))
    router.make("bob")
    await router.keeper.flush()
    await router.send()
    document = await logged(router, receipt_id)
    vkey = await log_key(verifier)
    means = checking.Means(
        keys={router.keeper.book.public.kid: router.keeper.book.public},
        log_key=VerifierKey.parse(vkey),
        request=BODY,
        response=ANSWER,
        salt=SALT,
    )
    import msgspec

    data = msgspec.json.encode({**document, "result": None, "front": None})
    found, steps = checking.check(checking.read_document(data), means)
    assert found.jti == receipt_id
    assert [step.number for step in steps if not step.is_taken] == [4, 5]
    (tmp_path / "receipt.json").write_bytes(data)
    (tmp_path / "keys.json").write_bytes(tokens.write_keys([router.keeper.book.public]))
    (tmp_path / "request").write_bytes(BODY)
    (tmp_path / "response").write_bytes(ANSWER)
    arguments = [
        "verify", str(tmp_path / "receipt.json"), "--router-keys", str(tmp_path / "keys.json"), "--log-key", vkey,
        "--request", str(tmp_path / "request"), "--response", str(tmp_path / "response"),
        "--salt", "MDEyMzQ1Njc4OWFiY2RlZg",
    ]  # fmt: skip
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "7. the log has the batch: right." in result.output
    for at in range(0, len(data), 7):
        for other in (data[at] ^ 1, data[at] ^ 0x20):
            changed = data[:at] + bytes([other]) + data[at + 1 :]
            with pytest.raises(checking.ReceiptError):
                checking.check(checking.read_document(changed), means)


async def test_batches_wait_out_an_outage_in_order(verifier: Any, router: Router) -> None:
    """What the verifier did not take is in the store, and is sent again, the oldest first."""
    url, router.sender._issuer = router.sender._issuer, "http://127.0.0.1:1"
    ids = []
    for _ in range(3):
        ids.append(router.make())
        await router.keeper.flush()
        await router.send()
    assert [batch.number for batch in await router.keeper.unsent(10)] == [1, 2, 3]
    router.sender._issuer = url
    await router.send()
    assert await router.keeper.unsent(10) == []
    for receipt_id in ids:
        assert (await logged(router, receipt_id))["log"] is not None


async def test_a_batch_is_sent_again_if_its_answer_was_lost(verifier: Any, router: Router) -> None:
    """The verifier has it already, and says the same again."""
    router.make()
    await router.keeper.flush()
    await router.send()
    async with router.keeper._db.read() as tx:
        (row,) = await tx.all("SELECT entry FROM receipt_batches")
    await router.keeper._db.write(lambda tx: tx.execute("UPDATE receipt_batches SET entry = NULL"))
    await router.send()
    async with router.keeper._db.read() as tx:
        assert (await tx.one("SELECT entry FROM receipt_batches"))["entry"] == row["entry"]


async def test_a_store_that_is_older_than_the_log_is_told(verifier: Any, router: Router) -> None:
    """A second batch of one number is a fork: the router says what to do, and sends no more of them."""
    router.make()
    await router.keeper.flush()
    await router.send()
    await router.keeper._db.write(lambda tx: tx.execute("DELETE FROM receipt_batches"))
    await router.keeper.load()
    router.make()
    await router.keeper.flush()
    await router.send()
    assert "Delete the file of its receipt key" in router.sender.to_wire()["problem"]


async def test_a_verifier_without_a_log(router: Router) -> None:
    """Receipts are signed and batched as ever."""
    from tests.unit.router.doubles import Moved, fake_verifier

    async with fake_verifier(Moved()) as older:
        router.sender._issuer = older.url
        receipt_id = router.make()
        await router.keeper.flush()
        await router.send()
        assert "keeps no log" in router.sender.to_wire()["problem"]
        document = await router.document(receipt_id)
        assert document["log"] is None
        assert document["batch"]["number"] == 1
