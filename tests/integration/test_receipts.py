"""Receipts: every answer of the gateway has one, whoever gave it and however it ended."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec import UNSET
from prometheus_client import REGISTRY

from router.receipts import aci, batches, payload, tokens
from router.receipts.costs import UNIT, costs_of
from router.receipts.payload import Price, Receipt
from router.service.state import STATE
from tests.integration.gateway import CHAT, CHATS, STREAM, WORK, Fleet, by, key, opened
from tests.unit.router.doubles import until
from tests.unit.router.support import MODEL
from verifier.result_keys import b64url
from verifier.router_receipts import generate_key

COSTS = (
    "touchstone_router_decided_requests_total",
    "touchstone_router_completed_requests_total",
    "touchstone_router_cost_units_total",
)


def measured(name: str) -> float:
    return REGISTRY.get_sample_value(name, {"workload": "tiny"}) or 0.0


SALT = b64url(b"0123456789abcdef")
HEADER = "X-Touchstone-Receipt"
KEYS = [key("ada"), key("bob"), key("auditor", roles=["auditor"])]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


async def begin(fleet: Fleet, **sections: Any) -> None:
    """A router with three keys."""
    await fleet.start(sections={"keys": KEYS, **sections})


def stored(folder: Path, name: str = "one") -> dict[str, Any]:
    """The sections of a router with a store, which is written when a test says so."""
    return {"store": {"path": str(folder / "shared.db"), "flush_s": 600}, "service": {"name": name}}


async def send(
    fleet: Fleet, body: Any = WORK, path: str = "/v1/embeddings", *, who: str = "ada", **headers: str
) -> tuple[int, bytes, dict[str, str], bytes]:
    """Status, bytes and headers of an answer, and the bytes of the request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with fleet.http.post(fleet.url + path, data=data, headers={**by(who), **headers}) as response:
        return response.status, await response.read(), dict(response.headers), data


async def fetch(fleet: Fleet, receipt_id: str, *, who: str = "ada", query: str = "", **headers: str) -> Any:
    """Status and answer for a receipt."""
    url = f"{fleet.url}/api/v1/receipts/{receipt_id}{query}"
    async with fleet.http.get(url, headers={**by(who), **headers}) as response:
        data = await response.read()
        return response.status, json.loads(data) if "json" in response.content_type else data


async def keys_of(fleet: Fleet) -> dict[str, Any]:
    async with fleet.http.get(fleet.url + "/.well-known/touchstone-receipts.json") as response:
        return tokens.read_keys(await response.read())


async def read(fleet: Fleet, headers: dict[str, str], *, who: str = "ada") -> Receipt:
    """The receipt that an answer names, verified."""
    status, token = await fetch(fleet, headers[HEADER], who=who)
    assert status == 200, token
    return tokens.verify(token.decode(), await keys_of(fleet)).receipt


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


async def test_a_whole_answer(fleet: Fleet) -> None:
    """The receipt has the digests of both bodies, and the grounds on which the node was asked."""
    node = await fleet.node("a")
    await begin(fleet)
    status, body, headers, sent = await send(fleet, **{"X-Touchstone-Salt": SALT})
    assert status == 200
    receipt = await read(fleet, headers)
    assert receipt.request.sha256 == digest(b"0123456789abcdef", sent)
    assert receipt.request.salted
    assert (receipt.response.sha256, receipt.response.bytes) == (digest(b"0123456789abcdef", body), len(body))
    assert (receipt.response.status, receipt.response.complete, receipt.response.streamed) == (
        200,
        True,
        False,
    )
    assert (receipt.jti, receipt.model, receipt.workload) == (headers[HEADER], MODEL, "tiny")
    assert (receipt.outcome, receipt.decision) == ("completed", headers["X-Touchstone-Decision"])
    assert receipt.node
    assert (receipt.node.id, receipt.node.spki_sha256) == ("a", node.pin)
    assert receipt.node.result_sha256 == digest(fleet.verifier.results["a"].encode())
    assert (receipt.node.status, receipt.node.assurance) == ("affirming", "challenged")
    assert receipt.usage


async def test_the_price_that_the_decision_saw(fleet: Fleet) -> None:
    """By the hardware class in the node's result."""
    await fleet.engine("a", operator="acme")
    dear = {"input": 250_000, "output": 800_000}
    await fleet.start(
        {"prices": {"*": {"output": 1}}, "prices_by_hardware": {"cpu": {"*": dear}}}, sections={"keys": KEYS}
    )
    _, _, headers, _ = await send(fleet)
    receipt = await read(fleet, headers)
    assert receipt.price == Price(**dear)


async def test_the_cost_in_the_metrics_is_that_of_the_receipts(fleet: Fleet) -> None:
    """Exactly, as statements have it: the price in each receipt for the tokens in it."""
    await fleet.engine("a", operator="acme")
    await fleet.start({"prices": {"*": {"input": 250_000, "output": 800_000}}}, sections={"keys": KEYS})
    before = {name: measured(name) for name in COSTS}
    receipts = [await read(fleet, (await send(fleet))[2]) for _ in range(3)]
    found = costs_of(receipts)
    gained = {name: measured(name) - before[name] for name in COSTS}
    assert found.amount > 0
    assert gained == {
        "touchstone_router_decided_requests_total": 3,
        "touchstone_router_completed_requests_total": 3,
        "touchstone_router_cost_units_total": pytest.approx(found.amount / UNIT),
    }
    assert found.per_answer == Fraction(found.amount, UNIT * 3)
    tokens = sum(r.metered.prompt + r.metered.completion for r in receipts if r.metered)
    assert found.per_million_tokens == Fraction(found.amount * 10**6, UNIT * tokens)


async def test_without_a_table_of_prices_a_receipt_has_none(fleet: Fleet) -> None:
    """It is left out, as what is not known is."""
    await fleet.node("a")
    await begin(fleet)
    _, _, headers, _ = await send(fleet)
    assert b'"price"' not in payload.encode(await read(fleet, headers))


async def test_the_bytes_of_the_node_are_digested_before_they_are_rewritten(fleet: Fleet) -> None:
    """What the node sent is not what the client got, if the explanation was added."""
    await fleet.node("a")
    await begin(fleet)
    _, plain, headers, _ = await send(fleet)
    first = await read(fleet, headers)
    _, explained, headers, _ = await send(fleet, **{"X-Touchstone-Explain": "1"})
    second = await read(fleet, headers)
    assert plain != explained
    assert first.node
    assert second.node
    assert first.node.answer_sha256 == second.node.answer_sha256 == digest(plain)
    assert second.response.sha256 == digest(explained)


async def test_a_stream_is_digested_to_its_last_byte(fleet: Fleet) -> None:
    """Framing, comments and all."""
    await fleet.engine("a")
    await begin(fleet)
    status, body, headers, sent = await send(fleet, STREAM, CHATS)
    assert status == 200
    receipt = await read(fleet, headers)
    assert body.endswith(b"data: [DONE]\n\n")
    assert (receipt.response.sha256, receipt.response.bytes) == (digest(body), len(body))
    assert (receipt.response.complete, receipt.response.streamed) == (True, True)
    assert receipt.request.sha256 == digest(sent)


async def test_comments_of_a_stream_are_digested(fleet: Fleet) -> None:
    """A client that waits gets comments, which are bytes of its answer."""
    node = await fleet.engine("a")
    node.gate.clear()
    await fleet.start(sections={"keys": KEYS}, keep_alive_s=0.05)
    asking = asyncio.create_task(send(fleet, STREAM, CHATS))
    await until(lambda: node.waiting)
    await asyncio.sleep(0.15)
    node.gate.set()
    _, body, headers, _ = await asking
    assert body.startswith(b": ")
    receipt = await read(fleet, headers)
    assert (receipt.response.sha256, receipt.response.bytes) == (digest(body), len(body))


async def test_a_stream_that_ends_with_an_error(fleet: Fleet) -> None:
    """Its last event is the router's own, and it is digested too."""
    node = await fleet.engine("a")
    node.behave("cuts", tokens=20)
    await begin(fleet)
    _, body, headers, _ = await send(fleet, STREAM, CHATS)
    receipt = await read(fleet, headers)
    assert receipt.outcome != "completed"
    assert (receipt.response.sha256, receipt.response.complete) == (digest(body), True)


async def test_a_client_that_leaves_a_stream(fleet: Fleet) -> None:
    """The receipt says that the answer is not complete, and is of the bytes that went out."""
    node = await fleet.engine("a")
    node.behave(tokens=400, token_s=0.01)
    await begin(fleet)
    got = b""
    async with fleet.http.post(fleet.url + CHATS, json=STREAM, headers=by("ada")) as response:
        receipt_id = response.headers[HEADER]
        async for part in response.content.iter_any():
            got += part
            if len(got) > 500:
                break
        status, answer = await fetch(fleet, receipt_id)
        assert (status, answer["type"].rpartition("#")[2]) == (425, "receipt.not-yet")
        response.close()
    book = fleet.app[STATE].receipts
    assert book is not None
    await until(lambda: book.book.get(receipt_id))
    receipt = await read(fleet, {HEADER: receipt_id})
    assert not receipt.response.complete
    assert receipt.response.bytes >= len(got)
    assert receipt.outcome == "abandoned"


async def test_a_client_that_leaves_before_its_answer(fleet: Fleet) -> None:
    """Nothing was sent, and the work was done for it all the same."""
    node = await fleet.engine("a")
    node.gate.clear()
    await begin(fleet)
    leaving = asyncio.create_task(send(fleet, CHAT, CHATS))
    await until(lambda: node.waiting)
    leaving.cancel()
    receipts = fleet.app[STATE].receipts
    assert receipts is not None
    await until(lambda: len(receipts.book._newest))
    (receipt_id,) = receipts.book._newest.ids()
    receipt = await read(fleet, {HEADER: receipt_id})
    assert (receipt.response.bytes, receipt.response.complete, receipt.outcome) == (0, False, "abandoned")
    assert receipt.tried
    assert receipt.usage


ERRORS: dict[str, tuple[int, Any, str, dict[str, str]]] = {
    "malformed": (400, b"{", "/v1/embeddings", {}),
    "another model": (404, {"model": "no", "input": "x"}, "/v1/embeddings", {}),
    "a bad salt": (400, WORK, "/v1/embeddings", {"X-Touchstone-Salt": "short"}),
    "no node": (503, WORK, "/v1/embeddings", {}),
}


@pytest.mark.parametrize("what", ERRORS)
async def test_a_refusal_has_a_receipt(fleet: Fleet, what: str) -> None:
    """Its digest is of the error's body."""
    status, body, path, more = ERRORS[what]
    await begin(fleet)
    found, answer, headers, sent = await send(fleet, body, path, **more)
    assert found == status
    receipt = await read(fleet, headers)
    assert (receipt.response.status, receipt.response.sha256) == (status, digest(answer))
    assert receipt.node is UNSET
    assert receipt.key
    if what != "a bad salt":
        assert receipt.request.sha256 == digest(sent)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/none", 404), ("GET", CHATS, 405), ("POST", CHATS, 401)]
)
async def test_a_stranger_has_a_receipt_without_a_key(
    fleet: Fleet, tmp_path: Path, method: str, path: str, status: int
) -> None:
    """It is kept at hand alone: strangers must not fill the store, nor a batch."""
    await begin(fleet, **stored(tmp_path))
    async with fleet.http.request(method, fleet.url + path) as response:
        assert response.status == status
        body, headers = await response.read(), dict(response.headers)
    receipt = await read(fleet, headers, who="auditor")
    assert (receipt.key, receipt.seq, receipt.request.sha256) == (UNSET, UNSET, UNSET)
    assert receipt.response.sha256 == digest(body)
    keeper = fleet.app[STATE].receipts
    assert keeper is not None
    await keeper.keeper.flush()
    async with keeper.keeper._db.read() as tx:
        assert await tx.all("SELECT id FROM receipts") == []
        assert await tx.all("SELECT number FROM receipt_batches") == []


async def test_a_limit_has_a_receipt(fleet: Fleet) -> None:
    """The request's body was not read, so there is no digest of it."""
    await fleet.node("a")
    await fleet.start(sections={"keys": [key("ada", requests_per_minute=1)]})
    await send(fleet)
    status, body, headers, _ = await send(fleet)
    assert status == 429
    receipt = await read(fleet, headers)
    assert (receipt.request.sha256, receipt.response.sha256) == (UNSET, digest(body))
    assert receipt.seq == 2


async def test_the_list_of_models_has_a_receipt(fleet: Fleet) -> None:
    await begin(fleet)
    async with fleet.http.get(fleet.url + "/v1/models", headers=by("ada")) as response:
        body, headers = await response.read(), dict(response.headers)
    receipt = await read(fleet, headers)
    assert (receipt.request.method, receipt.request.path) == ("GET", "/v1/models")
    assert receipt.response.sha256 == digest(body)


async def test_the_routers_own_failure_has_a_receipt(fleet: Fleet, monkeypatch) -> None:
    await fleet.node("a")
    await begin(fleet)
    from router.gateway.dispatch import Dispatcher

    monkeypatch.setattr(Dispatcher, "run", None)
    status, body, headers, _ = await send(fleet)
    assert status == 500
    receipt = await read(fleet, headers)
    assert (receipt.outcome, receipt.response.sha256) == ("failed-here", digest(body))


async def test_a_node_that_fails_is_named_as_the_one_tried(fleet: Fleet) -> None:
    node = await fleet.engine("a")
    node.behave("status", status=500)
    await begin(fleet)
    status, _, headers, _ = await send(fleet, CHAT, CHATS)
    receipt = await read(fleet, headers)
    assert status >= 500
    assert receipt.tried
    assert (receipt.tried.id, receipt.node) == ("a", UNSET)


# The chain.


async def test_the_receipts_of_a_key_are_a_chain(fleet: Fleet) -> None:
    """Also of requests at the same time; each key has its own."""
    await fleet.node("a")
    await begin(fleet)
    answers = await asyncio.gather(*(send(fleet, who=who) for who in ("ada", "bob") for _ in range(8)))
    for who, some in (("ada", answers[:8]), ("bob", answers[8:])):
        verified = []
        for _, _, headers, _ in some:
            _, token = await fetch(fleet, headers[HEADER], who=who)
            verified.append(tokens.verify(token.decode(), await keys_of(fleet)))
        verified.sort(key=lambda each: each.receipt.seq)
        assert [each.receipt.seq for each in verified] == list(range(1, 9))
        assert verified[0].receipt.prev is UNSET
        for before, after in itertools.pairwise(verified):
            assert after.receipt.prev == digest(before.payload)


async def test_a_chain_goes_on_after_a_restart(fleet: Fleet, tmp_path: Path) -> None:
    """And the receipts from before are still there."""
    await fleet.node("a")
    fleet.receipt_key = generate_key()
    await begin(fleet, **stored(tmp_path))
    _, _, first, _ = await send(fleet)
    await fleet.stop()
    await begin(fleet, **stored(tmp_path))
    _, _, second, _ = await send(fleet)
    before, after = await read(fleet, first), await read(fleet, second)
    assert (before.seq, after.seq, before.key) == (1, 2, after.key)


async def test_what_was_signed_survives_a_kill(fleet: Fleet, tmp_path: Path) -> None:
    """Two signed receipts of a key never have one number; what nobody has seen is lost."""
    await fleet.node("a")
    fleet.receipt_key = generate_key()
    await begin(fleet, **stored(tmp_path))
    _, _, seen, _ = await send(fleet)
    before = await read(fleet, seen)
    _, _, unseen, _ = await send(fleet)
    receipts = fleet.app[STATE].receipts
    assert receipts is not None
    # Nothing is written at the end, as if the process were killed.
    receipts.book.drain()
    receipts.book.take_open()
    await fleet.stop()
    await begin(fleet, **stored(tmp_path))
    assert (await read(fleet, seen)).seq == before.seq == 1
    assert (await fetch(fleet, unseen[HEADER]))[0] == 404
    _, _, third, _ = await send(fleet)
    assert (await read(fleet, third)).seq == 2
    receipts = fleet.app[STATE].receipts
    assert receipts is not None
    await receipts.keeper.flush()
    for headers in (seen, third):
        _, document = await fetch(fleet, headers[HEADER], Accept="application/json")
        verified = tokens.verify(document["receipt"], await keys_of(fleet))
        batch = batches.from_wire(document["batch"])
        batches.check_path(verified.payload, document["index"], batch, document["path"])


async def test_two_routers_on_one_store(fleet: Fleet, tmp_path: Path) -> None:
    """Each has its own chain and its own key; each finds the other's receipts, once the other has signed them."""
    await fleet.node("a")
    other = fleet.another()
    await begin(fleet, **stored(tmp_path))
    await begin(other, **stored(tmp_path, "two"))
    _, _, headers, _ = await send(fleet)
    _, _, theirs, _ = await send(other)
    assert (await read(fleet, headers)).seq == (await read(other, theirs)).seq == 1
    _, _, headers, _ = await send(fleet)
    keeper = fleet.app[STATE].receipts
    assert keeper is not None
    await keeper.keeper.flush()
    status, answer = await fetch(other, headers[HEADER])
    assert (status, answer["type"].rpartition("#")[2]) == (425, "receipt.not-yet")
    await keeper.keeper.flush()
    receipt = await read(other, headers)
    assert (receipt.iss, receipt.seq) == ("one", 2)


# Who sees them.


async def test_another_key_does_not_see_a_receipt(fleet: Fleet) -> None:
    await fleet.node("a")
    await begin(fleet)
    _, _, headers, _ = await send(fleet)
    status, answer = await fetch(fleet, headers[HEADER], who="bob")
    assert (status, answer["type"].rpartition("#")[2]) == (404, "receipt.unknown")
    assert (await fetch(fleet, headers[HEADER], who="auditor"))[0] == 200


async def test_no_receipt_can_be_read_without_a_key(fleet: Fleet) -> None:
    await fleet.node("a")
    await begin(fleet)
    _, _, headers, _ = await send(fleet)
    async with fleet.http.get(f"{fleet.url}/api/v1/receipts/{headers[HEADER]}") as response:
        assert response.status == 401


# Salts and repeated requests.


@pytest.mark.parametrize(
    "salt",
    ["", "c2hvcnQ", SALT + "==", "A" * 88, "!" * 24, b64url(b"x" * 15), b64url(b"x" * 65), SALT[:-1] + "h"],
)
async def test_a_salt_that_cannot_be_used(fleet: Fleet, salt: str) -> None:
    """Too short, too long, padded, in another spelling: the caller could verify nothing, so it is told at once."""
    await fleet.node("a")
    await begin(fleet)
    status, body, headers, _ = await send(fleet, **{"X-Touchstone-Salt": salt})
    assert (status, json.loads(body)["error"]["code"]) == (400, "salt_invalid")
    assert not (await read(fleet, headers)).request.salted


async def test_two_salts(fleet: Fleet) -> None:
    """Which of them counts would be a guess."""
    await fleet.node("a")
    await begin(fleet)
    given = [*by("ada").items(), ("X-Touchstone-Salt", SALT), ("X-Touchstone-Salt", SALT)]
    async with fleet.http.post(
        fleet.url + "/v1/embeddings", json=WORK, headers=aiohttp.typedefs.CIMultiDict(given)
    ) as r:
        assert (r.status, (await r.json())["error"]["code"]) == (400, "salt_invalid")


async def test_a_repeated_request_has_the_same_receipt(fleet: Fleet) -> None:
    """The answer is the same, so its receipt is; the chain does not grow."""
    await fleet.node("a")
    await begin(fleet)
    again = {"Idempotency-Key": "k1", "X-Touchstone-Salt": SALT}
    _, first, one, _ = await send(fleet, **again)
    _, second, two, _ = await send(fleet, **again)
    assert (first, one[HEADER]) == (second, two[HEADER])
    assert two["Idempotent-Replayed"] == "true"
    _, _, three, _ = await send(fleet)
    assert (await read(fleet, three)).seq == 2


async def test_a_repeated_stream_has_the_same_receipt(fleet: Fleet) -> None:
    await fleet.engine("a")
    await begin(fleet)
    again = {"Idempotency-Key": "k1"}
    _, first, one, _ = await send(fleet, STREAM, CHATS, **again)
    _, second, two, _ = await send(fleet, STREAM, CHATS, **again)
    assert (first, one[HEADER]) == (second, two[HEADER])
    assert (await read(fleet, one)).response.sha256 == digest(second)


async def test_a_repeated_request_with_another_salt(fleet: Fleet) -> None:
    """Its receipt would be of the first salt, and could not be verified by the second."""
    await fleet.node("a")
    await begin(fleet)
    await send(fleet, **{"Idempotency-Key": "k1", "X-Touchstone-Salt": SALT})
    status, body, _, _ = await send(fleet, **{"Idempotency-Key": "k1"})
    assert (status, json.loads(body)["error"]["code"]) == (422, "idempotency_key_reused")


# Forms, and no receipts.


async def test_the_form_of_aci(fleet: Fleet) -> None:
    """It verifies as ACI says, and its session names what the verifier found of the weights."""
    await fleet.node("a")
    await begin(fleet)
    _, body, headers, sent = await send(fleet)
    status, found = await fetch(fleet, headers[HEADER], query="?form=aci")
    assert status == 200
    aci.verify(found["receipt"], found["workload_keyset"])
    events = {event["type"]: event for event in found["receipt"]["event_log"]}
    assert events["request.received"]["body_hash"] == f"sha256:{digest(sent)}"
    assert events["response.returned"]["body_hash"] == f"sha256:{digest(body)}"
    assert events["upstream.verified"]["session_id"] == aci.session_id(found["session"])
    assert found["session"]["claims"]["tee_attested"] == {"status": "unknown"}


@pytest.mark.parametrize("form", ["aci", "air"])
async def test_a_salted_receipt_has_no_other_form(fleet: Fleet, form: str) -> None:
    """Those forms have no salt: their digests would be of something else than they say."""
    await fleet.node("a")
    await begin(fleet)
    _, _, headers, _ = await send(fleet, **{"X-Touchstone-Salt": SALT})
    status, answer = await fetch(fleet, headers[HEADER], query=f"?form={form}")
    assert (status, answer["type"].rpartition("#")[2]) == (406, "request.not-acceptable")


async def test_a_router_without_receipts(fleet: Fleet) -> None:
    await fleet.node("a")
    await begin(fleet, receipts={"enabled": False})
    _, _, headers, _ = await send(fleet)
    assert HEADER not in headers
    assert (await fetch(fleet, "0" * 32))[0] == 404
