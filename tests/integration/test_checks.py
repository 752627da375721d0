"""Nodes are asked what a trusted engine has answered already, as users ask (docs/adr/0057)."""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from router.choose.candidates import Lane
from router.gateway.openai import GATEWAY
from router.model.arrivals import Arrivals
from router.receipts import payload
from router.receipts.payload import Receipt
from router.service.state import STATE
from tests.integration.checking import (
    Minter,
    Recorded,
    asks,
    check,
    checks_of,
    learn,
    record,
    sections,
    settle,
)
from tests.integration.gateway import CHAT, Fleet, by, key, opened
from tests.unit.router.doubles import answers, until
from tests.unit.router.support import MODEL
from verifier.answers.shapes import decode_profile

LEARNT = 130
"""Requests after which the traffic is known, if every second one makes a check."""
WAYS = {"temperature": 0, "max_tokens": 8}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as made:
        yield made


def minting(**ways: Any) -> Callable[[str], dict[str, Any]]:
    numbers = itertools.count()

    def make(operation: str) -> dict[str, Any]:
        assert operation == "chat.completions"
        return {**WAYS, **ways, "messages": [{"content": f"minted {next(numbers)}", "role": "user"}]}

    return make


async def started(
    fleet: Fleet, folder: Path, *, more: Any = None, workload: Any = None, **checks: Any
) -> Minter:
    """A router that asks, by draws that are the same each time."""
    minter = fleet.verifier.offers = Minter(minting())
    await fleet.start(workload, sections={**sections(folder, **checks), **(more or {})})
    checks_of(fleet)._draw = random.Random(5).random
    return minter


async def talk(
    fleet: Fleet, count: int = LEARNT, headers: dict[str, str] | None = None, **given: Any
) -> None:
    for number in range(count):
        heard = await fleet.ask(asks(f"question {number}", **WAYS, **given), **(headers or {}))
        assert heard.status == 200
    await settle(fleet)


async def knowing(fleet: Fleet, folder: Path, *like: dict[str, Any], **given: Any) -> Minter:
    """A router that knows its traffic already."""
    minter = await started(fleet, folder, **given)
    learn(fleet, *(like or (asks("a question", **WAYS),)))
    return minter


def reports(fleet: Fleet, what: str) -> list[dict[str, Any]]:
    return [report for all_of in fleet.verifier.given.values() for report in all_of if what in report]


def is_check(seen: Any) -> bool:
    return "minted" in seen.document["messages"][0]["content"]


async def test_checks_follow_requests(fleet: Fleet, tmp_path: Path) -> None:
    """The whole way: requests come, the verifier is found to have checks, and nodes are asked among them."""
    node = await fleet.engine("a")
    minter = await started(fleet, tmp_path)
    seen = record(node)
    await talk(fleet)
    answered = {name: all_of[0] for name, all_of in fleet.verifier.given.items() if "given" in all_of[0]}
    asked = {each.document["messages"][0]["content"] for each in seen if is_check(each)}
    assert answered
    assert {minter.offered[name]["body"]["messages"][0]["content"] for name in answered} == asked
    assert {(wanted["model"], wanted["node"], wanted["count"]) for wanted in minter.wanted} == {
        (MODEL, "a", 1)
    }


async def test_what_a_node_answers_is_reported(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a")
    await knowing(fleet, tmp_path)
    report = await check(fleet)
    assert report["node"] == "a"
    assert report["result"] == fleet.router.view("a").result.jti  # type: ignore[union-attr]
    given = report["given"]
    assert (given["outcome"], given["completion_tokens"], given["streamed"]) == ("completed", 8, False)
    assert given["text"]


async def test_a_streamed_check_is_read_to_its_end(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a")
    minter = await knowing(fleet, tmp_path, asks("a question", **WAYS, stream=True))
    minter._streamed = lambda: True
    given = (await check(fleet))["given"]
    assert (given["streamed"], given["finish_reason"], given["completion_tokens"]) == (True, "length", 8)
    assert given["text"]
    assert given["first_token_s"] is not None


async def test_vectors_are_reported_in_either_encoding(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.node("a")
    minter = await started(fleet, tmp_path)
    learn(fleet, {"model": MODEL, "input": "text", "encoding_format": "float"}, operation="embeddings")
    minter._make = lambda _: {"input": "minted"}
    assert struct.unpack("<2f", base64.b64decode((await check(fleet))["given"]["vectors"][0])) == (0.25, -0.5)


async def test_a_check_and_a_request_have_one_form(fleet: Fleet, tmp_path: Path) -> None:
    """The heads are equal byte for byte but for what is drawn for each, and the bodies but for the words."""
    node = await fleet.engine("a")
    await knowing(fleet, tmp_path)
    seen = record(node)
    await check(fleet)
    await fleet.ask(
        {"user": "somebody", **asks("a question", **WAYS), "n": 1, "temperature": 0.0, "metadata": None}
    )

    def form(each: Recorded) -> Any:
        head = [(n, v) for n, v in each.head if n not in (b"Content-Length", b"X-Touchstone-Request")]
        words = each.document["messages"][0]["content"].encode()
        return each.path, head, [name for name, _ in each.head], each.body.replace(words, b"")

    (asked, work) = seen
    assert form(asked) == form(work)
    assert asked.peer == work.peer


async def test_nobody_pays_for_a_check_and_no_record_is_kept(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a")
    more = {
        "keys": [key("ada"), key("auditor", roles=["auditor"])],
        "store": {"path": str(tmp_path / "r.db")},
    }
    await knowing(fleet, tmp_path, more=more)
    assert "given" in await check(fleet)
    _, used = await fleet.get("/api/v1/usage", **by("auditor"))
    assert {(each["in_flight"], each["tokens_of_day"]) for each in used["keys"]} == {(0, 0)}
    records = fleet.app[STATE].records
    assert (records.newest(), records.drain()) == ([], [])


async def test_checks_earn_a_node_no_standing(fleet: Fleet, tmp_path: Path) -> None:
    """As many executions leave no trace as there are checks, drawn by lot: no single one tells what it was."""
    await fleet.engine("a")
    await knowing(fleet, tmp_path)
    checks, workload = checks_of(fleet), fleet.router.table.workloads["tiny"]
    lots = random.Random(5)
    checks._draw = lots.random
    run: Any = SimpleNamespace(request=SimpleNamespace(workload=workload))
    earned = sum(not checks._is_unrated(run, "a") for _ in range(30_000))
    # One check for two requests: two in three are counted, whichever they are.
    assert abs(earned - 20_000) < 500
    before = fleet.standing("a").completed[1]
    checks._is_unrated = fleet.app[GATEWAY].dispatcher.is_unrated = lambda _run, _node: True  # type: ignore[method-assign]
    await fleet.ask(asks("a user's", **WAYS))
    await check(fleet)
    assert fleet.standing("a").completed[1] == before
    fleet.app[GATEWAY].dispatcher.is_unrated = lambda _run, _node: False
    await check(fleet)
    assert fleet.standing("a").completed[1] > before


async def test_a_check_takes_no_place_that_work_needs(fleet: Fleet, tmp_path: Path) -> None:
    node = await fleet.engine("a")
    await knowing(fleet, tmp_path, workload={"concurrency": 1})
    checks, workload = checks_of(fleet), fleet.router.table.workloads["tiny"]
    node.gate.clear()
    held = asyncio.create_task(check(fleet))
    await until(lambda: node.waiting == 1)
    # A second one waits for its place.
    assert not await checks._ask(workload, Lane.PROBATION)
    work = asyncio.create_task(fleet.ask(asks("a user's", **WAYS)))
    await until(lambda: node.waiting == 2)
    node.gate.set()
    assert (await work).status == 200
    await held
    assert fleet.router.in_flight("a") == 0


async def test_a_router_that_is_nearly_full_asks_nothing(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a")
    minter = await knowing(fleet, tmp_path)
    gateway = fleet.app[GATEWAY]
    gateway.in_flight += gateway.config.max_in_flight * 3 // 4
    assert not await checks_of(fleet)._ask_once("tiny", Lane.PROBATION)
    gateway.in_flight = 0
    assert await checks_of(fleet)._ask_once("tiny", Lane.PROBATION)
    assert len(minter.wanted) == 1


async def test_an_older_verifier_has_none_and_requests_stay_as_they_are(
    fleet: Fleet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    node = await fleet.engine("a")
    await started(fleet, tmp_path)
    fleet.verifier.offers = lambda _: None
    learn(fleet, asks("a question"))
    checks_of(fleet)._models.clear()
    seen = record(node)
    for _ in range(2):
        assert await checks_of(fleet)._ask_once("tiny", Lane.PROBATION)
    await fleet.ask(asks("a question", user="me"))
    assert not fleet.verifier.given
    assert [each.body for each in seen] == [msgspec.json.encode(asks("a question", user="me"))]
    assert capfd.readouterr().out.count("no checks of answers") == 1


async def test_a_verifier_that_has_none_is_left_alone_for_a_while(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a")
    minter = await knowing(fleet, tmp_path)
    checks, workload = checks_of(fleet), fleet.router.table.workloads["tiny"]
    arrivals = Arrivals()
    for number in range(40):
        arrivals.note(number * 1e-6)
    fleet.verifier.offers = lambda _: None
    assert await checks._ask_once("tiny", Lane.PROBATION)
    fleet.verifier.offers = minter
    checks._propose(workload, Lane.PROBATION, arrivals)
    assert not checks._tasks
    fleet.clock.forward(61)
    checks._propose(workload, Lane.PROBATION, arrivals)
    assert len(checks._tasks) == 1
    await settle(fleet)


@pytest.mark.parametrize(
    ("status", "outcome"), [(500, "crashed"), (400, "refused"), (503, "busy"), (404, "unserved")]
)
async def test_what_a_node_does_not_answer_is_no_verdict(
    fleet: Fleet, tmp_path: Path, status: int, outcome: str
) -> None:
    node = await fleet.node("a")
    await knowing(fleet, tmp_path)
    node.act = answers(status)
    assert await check(fleet) == {"node": "a", "failed": outcome}


async def test_what_the_network_does_costs_the_node_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """Another key answers at the node's address, as in front of a user's request."""
    node = await fleet.engine("a")
    fleet.verifier.trust("a", endpoint={"url": node.url, "spki_sha256": "00" * 32})
    await knowing(fleet, tmp_path)
    assert await check(fleet) == {"node": "a", "failed": "impostor"}
    assert fleet.standing("a").failed == (0.0, 0.0)


async def test_a_check_like_nobodys_request_is_not_sent(fleet: Fleet, tmp_path: Path) -> None:
    node = await fleet.engine("a")
    minter = await knowing(fleet, tmp_path)
    minter._make = minting(temperature=0.3, seed=5)
    seen = record(node)
    assert await check(fleet) == {"node": "a", "failed": "unlike"}
    assert not seen


async def test_the_first_check_waits_until_requests_have_the_one_form(fleet: Fleet, tmp_path: Path) -> None:
    """A node that sees seeds only on checks knows them."""
    node = await fleet.engine("a")
    minter = await knowing(fleet, tmp_path, asks("a question", temperature=0.7, max_tokens=8))
    minter._make = minting(temperature=0.7, seed=5)
    checks = checks_of(fleet)
    checks._models.clear()
    seen = record(node)
    assert (await check(fleet))["failed"] == "unlike"
    assert (await check(fleet))["failed"] == "unlike"
    await fleet.ask(asks("a user's", temperature=0.7, max_tokens=8))
    assert ["seed" in each.document for each in seen] == [True]
    learn(fleet, asks("a question", temperature=0.7, max_tokens=8))
    assert "given" in await check(fleet)


async def test_a_request_sent_again_gets_its_answer_again(fleet: Fleet, tmp_path: Path) -> None:
    """The seed that the router adds is drawn anew, and is not what the client has sent."""
    node = await fleet.engine("a")
    await knowing(fleet, tmp_path)
    seen = record(node)
    first, second = [await fleet.ask(CHAT, **{"Idempotency-Key": "one"}) for _ in range(2)]
    assert ["seed" in each.document for each in seen] == [True]
    assert (first.status, second.status) == (200, 200)
    assert second.headers["Idempotent-Replayed"] == "true"
    assert first.body == second.body


async def test_a_failed_check_goes_on_as_work_does(fleet: Fleet, tmp_path: Path) -> None:
    """Nodes that agree would find checks among what they have refused: those would come to no other node."""
    nodes = [await fleet.node(name) for name in ("a", "b")]
    for node in nodes:
        node.act = answers(503)
    await knowing(fleet, tmp_path)
    report = await check(fleet)
    assert report["failed"] == "busy"
    (bodies,) = {tuple(node.bodies) for node in nodes}
    assert len(bodies) == 1


async def test_suspicion_lowers_the_lane_until_it_ends(fleet: Fleet, tmp_path: Path) -> None:
    for name in ("a", "b"):
        await fleet.engine(name)
    await started(fleet, tmp_path)
    fleet.establish("a", "b")
    workload = fleet.router.table.workloads["tiny"]
    fleet.verifier.send("suspicion", node="a", model=MODEL, level="suspected", since_ms=1)
    await until(lambda: fleet.router.lane("a", workload) is Lane.DEGRADED)
    assert fleet.router.lane("b", workload) is Lane.ESTABLISHED
    assert checks_of(fleet).share("a", workload, Lane.DEGRADED) == 0.5
    fleet.verifier.send("suspicion", node="a", model=MODEL, level="none", since_ms=2)
    await until(lambda: fleet.router.lane("a", workload) is Lane.ESTABLISHED)


async def test_suspicion_for_another_model_changes_nothing(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a")
    await started(fleet, tmp_path)
    fleet.establish("a")
    fleet.verifier.send("suspicion", node="a", model="example/other", level="suspected", since_ms=1)
    await until(lambda: fleet.router.suspected("a"))
    assert fleet.router.lane("a", fleet.router.table.workloads["tiny"]) is Lane.ESTABLISHED


async def test_a_router_that_starts_knows_who_is_suspected(fleet: Fleet, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        await fleet.engine(name)
    fleet.verifier.suspicions = [
        {"node": name, "model": MODEL, "level": "suspected", "since_ms": 1} for name in ("a", "c", "unknown")
    ]
    await started(fleet, tmp_path)
    workload = fleet.router.table.workloads["tiny"]
    lanes = {name: fleet.router.lane(name, workload) for name in ("a", "b", "c")}
    assert lanes == {"a": Lane.DEGRADED, "b": Lane.PROBATION, "c": Lane.DEGRADED}


async def test_an_operator_is_not_told_of_a_suspicion(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a", operator="acme")
    roles = {"op": ["operator"], "auditor": ["auditor"], "reviewer": ["reviewer"]}
    keys = [key(name, roles=roles[name], **({"operator": "acme"} if name == "op" else {})) for name in roles]
    await started(fleet, tmp_path, more={"keys": keys})
    fleet.establish("a")
    _, before = await fleet.get("/api/v1/nodes/a/standing", **by("op"))
    fleet.verifier.send("suspicion", node="a", model=MODEL, level="suspected", since_ms=1)
    await until(lambda: fleet.router.suspected("a"))
    _, after = await fleet.get("/api/v1/nodes/a/standing", **by("op"))
    assert after["workloads"] == before["workloads"]
    for name in ("auditor", "reviewer"):
        _, seen = await fleet.get("/api/v1/nodes/a/standing", **by(name))
        assert (seen["workloads"]["tiny"]["lane"], seen["workloads"]["tiny"]["suspected"]) == (
            "degraded",
            True,
        )


async def test_a_node_that_is_never_chosen_is_asked_too(fleet: Fleet, tmp_path: Path) -> None:
    for name in ("a", "b"):
        await fleet.engine(name)
    await started(fleet, tmp_path, workload={"degraded_per_mille": 0, "probation_per_mille": 0})
    fleet.establish("a")
    fleet.verifier.send("suspicion", node="b", model=MODEL, level="suspected", since_ms=1)
    await until(lambda: fleet.router.suspected("b"))
    learn(fleet, asks("a question", **WAYS))
    assert {(await check(fleet))["node"] for _ in range(8)} == {"a"}
    fleet.clock.forward(25 * 3600)
    for name in ("a", "b"):
        endpoint = fleet.router.view(name).endpoint
        assert endpoint is not None
        told = {"url": endpoint[0], "spki_sha256": endpoint[1]}
        fleet.verifier.send("result", node=name, token=fleet.verifier.token(name, endpoint=told))
    fleet.verifier.beat()
    await until(lambda: fleet.router.verdict("b", fleet.router.table.workloads["tiny"]) is None)
    lots = random.Random(3)
    for _ in range(8):
        checks_of(fleet)._draw = lots.random
        checks_of(fleet)._draw_operation = lambda _: "chat.completions"  # type: ignore[method-assign]
        await checks_of(fleet)._ask(fleet.router.table.workloads["tiny"], Lane.ESTABLISHED)
    assert "b" in {report["node"] for report in reports(fleet, "given")}


async def test_of_the_routers_of_a_store_one_asks_an_idle_node(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a")
    await started(fleet, tmp_path)
    checks = checks_of(fleet)
    names = [f"router-{number}" for number in range(4)]
    checks._routers = lambda: names
    owners: dict[str, list[str]] = {f"node-{number}": [] for number in range(200)}
    for name in names:
        checks._name = name
        for node in owners:
            owners[node] += [name] * checks._is_own(node)
    assert {len(own) for own in owners.values()} == {1}
    assert {own[0] for own in owners.values()} == set(names)


@pytest.mark.parametrize("how", ["workload", "router"])
async def test_checks_may_be_left_out(fleet: Fleet, tmp_path: Path, how: str) -> None:
    await fleet.engine("a")
    off: dict[str, Any] = (
        {"workload": {"checks": {"enabled": False}}} if how == "workload" else {"enabled": False}
    )
    minter = await started(fleet, tmp_path, **off)
    await talk(fleet, 40)
    assert not minter.wanted
    assert bool(checks_of(fleet).profile().models) == (how == "router")


async def test_a_router_that_stops_gives_checks_up(fleet: Fleet, tmp_path: Path) -> None:
    node = await fleet.engine("a")
    await knowing(fleet, tmp_path)
    checks = checks_of(fleet)
    node.gate.clear()
    checks._tasks.add(asyncio.create_task(checks._ask_once("tiny", Lane.PROBATION)))  # type: ignore[arg-type]
    await until(lambda: node.waiting == 1)
    before = fleet.standing("a").failed
    await checks.close()
    node.gate.set()
    assert not checks._tasks or all(task.done() for task in checks._tasks)
    assert fleet.standing("a").failed == before
    assert fleet.router.in_flight("a") == 0


async def test_the_profile_is_for_auditors_and_administrators(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a")
    roles = ("auditor", "administrator", "operator", "relying-party", "reviewer")
    keys = [key(role, roles=[role], **({"operator": "acme"} if role == "operator" else {})) for role in roles]
    await started(fleet, tmp_path, more={"keys": keys})
    await talk(fleet, 3, headers=by("relying-party"))
    seen = {}
    for role in roles:
        async with fleet.http.get(fleet.url + "/api/v1/traffic-profile", headers=by(role)) as response:
            seen[role] = response.status
            data = await response.read()
            if response.status == 200:
                (shape,) = decode_profile(data).models[MODEL]
                assert (shape.count, shape.max_tokens, shape.temperature) == (3, 8, 0)
                assert b"question" not in data
    assert seen == dict.fromkeys(roles, 403) | {"auditor": 200, "administrator": 200}


def paid(fleet: Fleet) -> list[Receipt]:
    receipts = fleet.app[STATE].receipts
    assert receipts is not None
    found = [receipts.book.get(each) for each in receipts.book._newest.ids()]
    return [payload.decode(each.payload) for each in found if each is not None]


async def test_a_check_is_paid_like_any_other_work(fleet: Fleet, tmp_path: Path) -> None:
    """Else who reads which answers were paid could tell which of them were checks."""
    await fleet.engine("a")
    await knowing(fleet, tmp_path)
    await check(fleet)
    assert (await fleet.ask(asks("a question", **WAYS))).status == 200
    of_check, of_work = paid(fleet)
    for each in (of_check, of_work):
        assert each.node is not UNSET
        assert each.metered is not UNSET
        assert (each.node.id, each.metered.completion > 0) == ("a", True)
    names = set(msgspec.to_builtins(of_work)) - set(msgspec.to_builtins(of_check))
    assert names == {"decision"}
