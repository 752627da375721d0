"""Claims, reports, statements and disputes at a running router: who may do what, and what follows from it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from attester import cose, usage_claims
from attester.claim_keeper import ClaimKeeper
from attester.usage_claims import make, sign
from fixtures.replies import count_tokens
from fixtures.streaming import Behaviour
from router.gateway.claims import ClaimFetcher
from router.gateway.openai import GATEWAY
from router.model.clock import Clock
from router.model.tokens import Tokeniser
from router.receipts import payload
from router.service.state import STATE
from router.settlement import dispatched, exchanges
from router.settlement.dispatched import DispatchReceipt
from router.settlement.periods import day_of
from router.state import claims
from router.store import settlement as store
from router.store.settlement import StoredStatement
from tests.integration.gateway import CHAT, STREAM, Fleet, by, key, opened
from tests.integration.test_front_and_router import fronted_router
from tests.integration.test_settlement import PERIOD, filled, settler
from tests.unit.router.doubles import until
from tests.unit.router.support import MODEL
from verifier.result_keys import jwk_of
from verifier.router_receipts import ReceiptKey, unb64url

NODE_KEY = cose.PrivateKey.generate(cose.ED25519)
OTHER_KEY = cose.PrivateKey.generate(cose.ED25519)
PARTY_KEY = cose.PrivateKey.generate(cose.ED25519)
X = ReceiptKey(PARTY_KEY.public).x
TELLING = {**STREAM, "stream_options": {"include_usage": True}}
STATEMENTS = "/api/v1/settlement/statements"
KEYS = [
    key("auditor", roles=["auditor"]),
    key("reviewer", roles=["reviewer"]),
    key("second", roles=["reviewer"]),
    key("ada", may_dispatch=True, receipt_key=X),
    key("bob", may_dispatch=True, receipt_key=X),
    key("carl"),
    key("own", roles=["operator"], operator="operator-0000"),
    key("other", roles=["operator"], operator="operator-0001"),
]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as made:
        made.verifier.trust("node-0001", operator="operator-0000", cnf={"jwk": jwk_of(NODE_KEY.public)})
        await made.start(sections={"keys": KEYS})
        made.app[STATE].claims._router = lambda: "router-1"
        yield made


async def call(fleet: Fleet, who: str, path: str, body: Any = None) -> tuple[int, Any]:
    data = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
    method = fleet.http.get if body is None else fleet.http.post
    async with method(
        fleet.url + path, headers=by(who), **({} if body is None else {"data": data})
    ) as response:
        text = await response.read()
        if "json" not in response.content_type:
            return response.status, text.decode()
        document = msgspec.json.decode(text)
        if "type" in document:
            document["code"] = document["type"].rpartition("/")[2].rpartition(":")[2].rpartition("#")[2]
        return response.status, document


# Claims.


def yesterday(fleet: Fleet, days: int = 1) -> str:
    return day_of(fleet.app[STATE].clock.now_ms() - days * 86_400_000)


def claim(fleet: Fleet, *, by_key: cose.PrivateKey = NODE_KEY, tokens: int = 5, **how: Any) -> bytes:
    given = {"node": "node-0001", "router": "router-1", "day": yesterday(fleet), **how}
    return sign(make(given["node"], given["router"], given["day"], {MODEL: (1, tokens, tokens)}), by_key)


async def post(fleet: Fleet, data: bytes, who: str = "own") -> tuple[int, Any]:
    return await call(fleet, who, "/api/v1/settlement/claims", data)


async def kept(fleet: Fleet) -> int:
    async with fleet.app[STATE].db.read() as tx:
        return len(await store.claims(tx, "2000-01-01", "9999-12-31"))


async def test_a_claim_is_taken_once_however_often_it_comes(fleet: Fleet) -> None:
    data = claim(fleet)
    assert await post(fleet, data) == (201, {"new": True})
    assert await post(fleet, data) == (200, {"new": False})
    assert await kept(fleet) == 1


async def test_another_claim_for_the_same_day_is_refused_and_the_first_stays(fleet: Fleet) -> None:
    assert (await post(fleet, claim(fleet)))[0] == 201
    status, problem = await post(fleet, claim(fleet, tokens=500))
    assert (status, problem["code"]) == (409, "settlement.conflict")
    async with fleet.app[STATE].db.read() as tx:
        rows = await store.claims(tx, "2000-01-01", "9999-12-31")
    assert usage_claims.read(rows[0].claim).claim.used[0].prompt == 5


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({"by_key": OTHER_KEY}, "settlement.key"),
        ({"node": "node-0002"}, "settlement.unknown"),
        ({"router": "router-2"}, "settlement.never-routed"),
        ({"day": "2999-01-01"}, "settlement.day"),
        ({"day": "2001-01-01"}, "settlement.day"),
    ],
)
async def test_a_claim_that_cannot_be_is_refused_and_leaves_nothing(
    fleet: Fleet, how: dict[str, Any], code: str
) -> None:
    _, problem = await post(fleet, claim(fleet, **how))
    assert problem["code"] == code
    assert await kept(fleet) == 0


async def test_a_claim_that_was_altered_is_refused(fleet: Fleet) -> None:
    data = bytearray(claim(fleet))
    data[-70] ^= 1
    assert (await post(fleet, bytes(data)))[0] in (400, 403, 404, 409)
    assert await kept(fleet) == 0


async def test_today_is_not_claimed_before_it_is_over(fleet: Fleet) -> None:
    _, problem = await post(fleet, claim(fleet, day=yesterday(fleet, 0)))
    assert problem["code"] == "settlement.day"


async def test_an_operator_claims_for_its_own_nodes_alone(fleet: Fleet) -> None:
    status, problem = await post(fleet, claim(fleet), "other")
    assert (status, problem["code"]) == (404, "settlement.unknown")


async def test_a_claim_that_is_too_large_is_not_read(fleet: Fleet) -> None:
    assert (await post(fleet, b"\xd2" * (usage_claims.MAX_CLAIM + 1)))[0] == 413


# Fetched from a front.


@pytest.mark.parametrize("body", [CHAT, TELLING], ids=["whole", "streamed"])
async def test_what_a_front_has_passed_on_is_claimed_as_the_router_heard_it(
    tmp_path: Path, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real front, a real router: its claim is the sum of what receipts say was told."""
    async with fronted_router(tmp_path) as node:
        state = node.fleet.app[STATE]
        heard = [await node.fleet.ask(body) for _ in range(3)]
        assert {each.status for each in heard} == {200}
        told = []
        for each in heard:
            receipt = payload.decode(
                msgspec.json.encode((await node.receipt(each.headers))["payload"], order="sorted")
            )
            told.append(exchanges.of_receipt(receipt, "")[0].claimed)
        folder = node.usage
        keeper = ClaimKeeper(folder, "a", lambda: NODE_KEY, now=lambda: time.time() + 2 * 86_400)
        # The stand-in for a verifier names no key of a node.
        monkeypatch.setattr(claims, "cose_key_of", lambda _: NODE_KEY.public)
        assert len(keeper.keep()) == 1
        late = Clock(lambda: time.time_ns() // 1_000_000 + 2 * 86_400_000, time.monotonic)
        state.claims._clock, state.claims._router = late, lambda: "router"
        fronts = node.fleet.app[GATEWAY].fronts
        assert fronts is not None
        fetcher = ClaimFetcher(fronts._http, state.claims, state.fleet, allow_private=True)
        assert await fetcher.fetch_all() == 1
        assert await fetcher.fetch_all() == 0
        async with state.db.read() as tx:
            rows = await store.claims(tx, "2000-01-01", "9999-12-31")
    used = usage_claims.read(rows[0].claim).claim.used
    assert [(each.model, each.exchanges) for each in used] == [(MODEL, 3)]
    assert used[0].prompt == sum(each.prompt for each in told if each)
    assert used[0].completion == sum(each.completion for each in told if each) > 0


# Work that a relying party has dispatched itself.


async def decided(fleet: Fleet, who: str = "ada") -> str:
    status, decision = await call(fleet, who, "/api/v1/decisions", {"model": MODEL})
    assert status == 201
    return str(decision["id"])


def report(decision: str, by_key: cose.PrivateKey = PARTY_KEY, **how: Any) -> bytes:
    given = {"v": 1, "decision": decision, "node": "node-0001", "at": 1, "outcome": "completed", **how}
    return dispatched.sign(DispatchReceipt(**given), by_key).encode()


async def hand_in(fleet: Fleet, data: bytes, who: str = "ada") -> tuple[int, Any]:
    return await call(fleet, who, "/api/v1/settlement/dispatched", data)


async def test_a_report_is_taken_once_and_pays_nobody(fleet: Fleet) -> None:
    data = report(await decided(fleet), prompt=10**15, completion=10**15)
    assert await hand_in(fleet, data) == (201, {"new": True})
    assert await hand_in(fleet, data) == (200, {"new": False})
    status, problem = await hand_in(fleet, report(await decided(fleet), by_key=OTHER_KEY))
    assert (status, problem["code"]) == (400, "settlement.malformed")


async def test_a_report_in_other_words_is_refused(fleet: Fleet) -> None:
    decision = await decided(fleet)
    assert (await hand_in(fleet, report(decision)))[0] == 201
    status, problem = await hand_in(fleet, report(decision, outcome="failed"))
    assert (status, problem["code"]) == (409, "settlement.conflict")


@pytest.mark.parametrize("what", ["no decision", "of another", "another node", "sent by the router"])
async def test_a_report_of_work_that_was_never_routed_is_refused(fleet: Fleet, what: str) -> None:
    decision = await decided(fleet, "bob" if what == "of another" else "ada")
    data = report(
        "0" * 16 if what == "no decision" else decision, node="x" if what == "another node" else "node-0001"
    )
    if what == "sent by the router":
        async with fleet.http.post(
            f"{fleet.url}/v1/chat/completions", headers=by("ada"), json=CHAT
        ) as response:
            data = report(response.headers["X-Touchstone-Decision"])
    status, problem = await hand_in(fleet, data)
    assert (status, problem["code"]) == (409, "settlement.never-routed")


async def test_a_key_that_may_not_dispatch_reports_nothing(fleet: Fleet) -> None:
    assert (await hand_in(fleet, b"x", "carl"))[0] == 409


# Statements.


async def settled(fleet: Fleet, tmp_path: Path) -> list[StoredStatement]:
    db = fleet.app[STATE].db
    await filled(db, 4, kinds=("honest",))
    return list((await settler(db, tmp_path).run(PERIOD)).statements)


async def test_an_operator_sees_its_own_statements_alone(fleet: Fleet, tmp_path: Path) -> None:
    made = {each.operator: each for each in await settled(fleet, tmp_path)}
    own, other = made["operator-0000"], made["operator-0001"]
    listed = (await call(fleet, "own", STATEMENTS))[1]["statements"]
    assert [each["id"] for each in listed] == [own.id]
    assert (await call(fleet, "own", f"{STATEMENTS}/{own.id}"))[0] == 200
    status, problem = await call(fleet, "own", f"{STATEMENTS}/{other.id}")
    assert (status, problem["code"]) == (404, "settlement.unknown")
    assert (await call(fleet, "own", f"{STATEMENTS}/{other.id}/receipts"))[0] == 404
    assert len((await call(fleet, "auditor", STATEMENTS))[1]["statements"]) == 2


async def test_a_statement_comes_in_each_form(fleet: Fleet, tmp_path: Path) -> None:
    found = (await settled(fleet, tmp_path))[0]
    place = f"{STATEMENTS}/{found.id}"
    assert (await call(fleet, "auditor", f"{place}?form=jws"))[1] == found.token
    assert (await call(fleet, "auditor", f"{place}?form=csv"))[1].startswith("statement,operator,period")
    page = (await call(fleet, "auditor", f"{place}?form=html"))[1]
    assert "<script" not in page
    assert "node-0000" in page
    assert (await call(fleet, "auditor", f"{place}?form=pdf"))[0] == 400


async def test_a_line_is_followed_to_its_receipts(fleet: Fleet, tmp_path: Path) -> None:
    """What they come to is the line; an operator gets no payload, and an auditor does."""
    found = next(each for each in await settled(fleet, tmp_path) if each.operator == "operator-0000")
    document = (await call(fleet, "own", f"{STATEMENTS}/{found.id}"))[1]
    line = document["statement"]["lines"][0]
    listed = (await call(fleet, "own", f"{STATEMENTS}/{found.id}/receipts?line=1"))[1]["receipts"]
    assert sum(int(each["amount"]) for each in listed) == int(line["amount"])
    assert len(listed) == line["exchanges"]
    assert all("payload" not in each and each["batch"] for each in listed)
    seen = (await call(fleet, "auditor", f"{STATEMENTS}/{found.id}/receipts"))[1]["receipts"]
    assert all("payload" in each for each in seen)


async def test_a_node_whose_claims_are_far_too_high_is_held_by_every_router_of_the_store(
    fleet: Fleet, tmp_path: Path
) -> None:
    """What `touchstone settle run` writes is read by routers as another router's hold is."""
    state = fleet.app[STATE]
    simulated = await filled(state.db, 20)
    cheat = next(node for node in simulated if node.kind == "serious")
    await settler(state.db, tmp_path).run(PERIOD)
    await state.holds.sync()
    held = {hold.node: hold for hold in state.holds._known.values() if hold.holding}
    assert set(held) == {cheat.id}
    assert held[cheat.id].evidence["claimed_tokens"] > held[cheat.id].evidence["allowed_tokens"]


# Disputes.


async def test_a_dispute_opens_a_review_and_changes_nothing(fleet: Fleet, tmp_path: Path) -> None:
    found = next(each for each in await settled(fleet, tmp_path) if each.operator == "operator-0000")
    place = f"{STATEMENTS}/{found.id}"
    body = {"statement": found.id, "line": 1, "reason": "we have counted more"}
    status, made = await call(fleet, "own", "/api/v1/settlement/disputes", body)
    assert (status, made["state"]) == (201, "open")
    assert (await call(fleet, "own", "/api/v1/settlement/disputes", body))[0] == 409
    await until(lambda: bool(fleet.app[STATE].holds._known))
    hold = next(iter(fleet.app[STATE].holds._known.values()))
    assert (hold.kind, hold.holding, hold.node) == ("settlement-dispute", False, "node-0000")
    assert ",yes," in (await call(fleet, "own", f"{place}?form=csv"))[1]
    answer = {"outcome": "rejected", "reason": "the receipts are right"}
    status, ended = await call(fleet, "reviewer", f"/api/v1/settlement/disputes/{made['id']}/resolve", answer)
    assert (status, ended["state"], ended["resolver"], ended["resolution"]) == (
        200, "rejected", "reviewer", "the receipts are right",
    )  # fmt: skip
    assert (await call(fleet, "second", f"/api/v1/settlement/disputes/{made['id']}/resolve", answer))[
        0
    ] == 409
    assert (await call(fleet, "own", f"{place}?form=jws"))[1] == found.token


async def test_nobody_disputes_what_is_not_theirs(fleet: Fleet, tmp_path: Path) -> None:
    found = next(each for each in await settled(fleet, tmp_path) if each.operator == "operator-0000")
    body = {"statement": found.id, "line": 1, "reason": "r"}
    assert (await call(fleet, "other", "/api/v1/settlement/disputes", body))[0] == 404
    assert (await call(fleet, "ada", "/api/v1/settlement/disputes", body))[0] == 403
    for wrong in ({**body, "line": 99}, {"reason": "r"}, {**body, "receipt": "0" * 32}):
        assert (await call(fleet, "own", "/api/v1/settlement/disputes", wrong))[0] == 400


async def test_a_relying_party_disputes_a_receipt_of_its_own(fleet: Fleet, tmp_path: Path) -> None:
    found = (await settled(fleet, tmp_path))[0]
    db = fleet.app[STATE].db
    await db.write(lambda tx: tx.execute("UPDATE receipts SET caller = 'ada' WHERE caller = 'key-1'"))
    async with db.read() as tx:
        row = await tx.one(
            "SELECT id FROM receipts WHERE caller = 'ada' AND at_ms >= ? LIMIT 1", PERIOD.from_ms
        )
        foreign = await tx.one("SELECT id FROM receipts WHERE caller = 'key-2' LIMIT 1")
    assert row is not None
    assert foreign is not None
    body = {"receipt": row["id"], "reason": "the answer was empty"}
    status, made = await call(fleet, "ada", "/api/v1/settlement/disputes", body)
    assert (status, made["receipt"]) == (201, row["id"])
    assert (await call(fleet, "bob", "/api/v1/settlement/disputes", body))[0] == 404
    assert (await call(fleet, "ada", "/api/v1/settlement/disputes", {**body, "receipt": foreign["id"]}))[
        0
    ] == 404
    assert found.token


# What a receipt says of what was metered.


async def metered_of(fleet: Fleet, headers: Any, who: str) -> payload.Receipt:
    document = (await call_json(fleet, who, f"/api/v1/receipts/{headers['X-Touchstone-Receipt']}"))["receipt"]
    return payload.decode(unb64url(document.split(".")[1]))


async def call_json(fleet: Fleet, who: str, path: str) -> Any:
    async with fleet.http.get(
        fleet.url + path, headers={**by(who), "Accept": "application/json"}
    ) as response:
        return msgspec.json.decode(await response.read())


@pytest.mark.parametrize("counts", [True, False], ids=["counted", "estimated"])
async def test_a_receipt_says_what_was_counted_and_what_was_claimed(tmp_path: Path, *, counts: bool) -> None:
    """Only a count by the model's own tokeniser is held against a claim."""
    async with opened(tmp_path) as fleet:
        await fleet.engine("a", Behaviour("usage", factor=10), operator="acme")
        await fleet.start(sections={"keys": KEYS})
        if counts:
            fleet.app[GATEWAY].dispatcher.metering.tokenisers = {"tiny": Tokeniser(count_tokens)}
        async with fleet.http.post(
            f"{fleet.url}/v1/chat/completions", headers=by("carl"), json=CHAT
        ) as heard:
            assert heard.status == 200
        receipt = await metered_of(fleet, heard.headers, "carl")
    found, (exchange,) = receipt.metered, exchanges.of_receipt(receipt, "carl")
    assert found is not UNSET
    assert found.claimed is not UNSET
    assert (found.exact, found.operator, found.tier) == (counts, "acme", "small")
    assert found.claimed.completion > found.completion
    assert (found.template > 0) is counts
    assert (exchange.node, exchange.counted.completion) == ("a", found.completion)
