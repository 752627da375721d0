"""Nodes are asked what a trusted engine has answered already, as users ask (docs/adr/0057)."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router.choose.candidates import Lane
from router.gateway.openai import GATEWAY
from router.service.state import STATE
from tests.integration.checking import Minter, asks, checks_of, record, sections, settle
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


def reports(fleet: Fleet, what: str) -> list[dict[str, Any]]:
    return [report for all_of in fleet.verifier.given.values() for report in all_of if what in report]


def is_check(seen: Any) -> bool:
    return "minted" in seen.document["messages"][0]["content"]


async def test_what_a_node_answers_is_reported(fleet: Fleet, tmp_path: Path) -> None:
    node = await fleet.engine("a")
    minter = await started(fleet, tmp_path)
    seen = record(node)
    await talk(fleet)
    answered = {check: all_of[0] for check, all_of in fleet.verifier.given.items() if "given" in all_of[0]}
    asked = {each.document["messages"][0]["content"] for each in seen if is_check(each)}
    assert len(answered) >= 5
    assert {minter.offered[check]["body"]["messages"][0]["content"] for check in answered} == asked
    for report in answered.values():
        assert report["node"] == "a"
        assert report["result"] == fleet.router.view("a").result.jti  # type: ignore[union-attr]
        assert report["given"]["outcome"] == "completed"
        assert (report["given"]["completion_tokens"], bool(report["given"]["text"])) == (8, True)
    assert {(wanted["model"], wanted["node"], wanted["count"]) for wanted in minter.wanted} == {
        (MODEL, "a", 1)
    }


async def test_a_streamed_check_is_read_to_its_end(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a")
    minter = await started(fleet, tmp_path)
    minter._streamed = lambda: True
    await talk(fleet, stream=True)
    given = [report["given"] for report in reports(fleet, "given")]
    assert given
    for each in given:
        assert (each["streamed"], each["finish_reason"], each["completion_tokens"]) == (True, "length", 8)
        assert each["text"]
        assert each["first_token_s"] is not None


async def test_a_check_and_a_request_have_one_form(fleet: Fleet, tmp_path: Path) -> None:
    """The heads are equal byte for byte but for the length, and the bodies but for the words."""
    node = await fleet.engine("a")
    await started(fleet, tmp_path)
    seen = record(node)
    await talk(fleet, user="somebody", n=1, metadata=None)
    checks, requests = [e for e in seen if is_check(e)], [e for e in seen if not is_check(e)][LEARNT // 2 :]
    assert checks

    def form(each: Any) -> Any:
        head = [
            (name, value)
            for name, value in each.head
            if name not in (b"Content-Length", b"X-Touchstone-Request")
        ]
        words = each.document["messages"][0]["content"].encode()
        return each.path, head, each.body.replace(words, b"")

    assert {repr(form(each)) for each in checks} == {repr(form(each)) for each in requests}
    assert {each.peer for each in checks} <= {each.peer for each in seen if not is_check(each)}


async def test_nobody_pays_for_checks_and_no_record_is_kept(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a")
    more = {
        "keys": [key("ada"), key("auditor", roles=["auditor"])],
        "store": {"path": str(tmp_path / "r.db")},
    }
    await started(fleet, tmp_path, more=more)
    headers = by("ada")
    first = await fleet.ask(asks("question 0", **WAYS), **headers)
    _, before = await fleet.get("/api/v1/usage", **by("ada"))
    await talk(fleet, headers=headers)
    _, after = await fleet.get("/api/v1/usage", **by("ada"))
    assert len(reports(fleet, "given")) >= 5
    spent = [found["keys"][0]["tokens_of_day"] for found in (before, after)]
    each = [len(f"question {number}") for number in range(LEARNT)]
    assert spent[1] - spent[0] <= LEARNT * spent[0] + sum(each)
    assert spent[1] < (LEARNT + 2) * spent[0] * 1.2
    assert {found["in_flight"] for found in after["keys"]} == {0}
    records = fleet.app[STATE].records
    assert len(records.newest()) == LEARNT + 1
    assert len(records.drain()) <= LEARNT + 1
    assert {found["caller"] for found in records.newest()} == {"ada"}
    assert first.status == 200


async def test_checks_earn_a_node_no_standing(fleet: Fleet, tmp_path: Path) -> None:
    """As many executions leave no trace as there are checks, drawn by lot: no single one tells what it was."""
    await fleet.engine("a")
    await started(fleet, tmp_path)
    await talk(fleet)
    began = fleet.standing("a").completed[1]
    sent = len(reports(fleet, "given"))
    await talk(fleet, 300)
    sent = len(reports(fleet, "given")) - sent
    earned = fleet.standing("a").completed[1] - began
    assert sent > 100
    # The lot: 300 + 150 executions, of which one in three leaves no trace; six standard deviations of it.
    assert abs(earned - (300 + sent) / 1.5) < 60
    assert earned < 300 + sent - 60


async def test_a_check_takes_no_place_that_work_needs(fleet: Fleet, tmp_path: Path) -> None:
    node = await fleet.engine("a")
    await started(fleet, tmp_path, workload={"concurrency": 1})
    await talk(fleet)
    await talk(fleet, 60)
    checks, workload = checks_of(fleet), fleet.router.table.workloads["tiny"]
    node.gate.clear()
    held = asyncio.create_task(checks._ask(workload, fleet.router.lane("a", workload)))  # type: ignore[arg-type]
    await until(lambda: node.waiting == 1)
    # A second one would wait for its place.
    assert not await checks._ask(workload, Lane.ESTABLISHED)
    work = asyncio.create_task(fleet.ask(asks("a user's", **WAYS)))
    await until(lambda: node.waiting == 2)
    node.gate.set()
    assert (await work).status == 200
    await held


async def test_a_router_that_is_nearly_full_asks_nothing(fleet: Fleet, tmp_path: Path) -> None:
    node = await fleet.engine("a")
    await started(fleet, tmp_path)
    await talk(fleet)
    seen = record(node)
    gateway = fleet.app[GATEWAY]
    gateway.in_flight += gateway.config.max_in_flight * 3 // 4
    await talk(fleet, 30)
    assert not [each for each in seen if is_check(each)]


async def test_an_older_verifier_has_none_and_requests_stay_as_they_are(
    fleet: Fleet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    node = await fleet.engine("a")
    fleet.verifier.offers = lambda _: None
    await fleet.start(sections=sections(tmp_path))
    seen = record(node)
    for _ in range(60):
        await fleet.ask(asks("a question", user="me"))
    await settle(fleet)
    assert not fleet.verifier.given
    assert {each.body for each in seen} == {msgspec.json.encode(asks("a question", user="me"))}
    assert capfd.readouterr().out.count("no checks of answers") == 1


@pytest.mark.parametrize("kind", ["crashes", "refuses", "busy", "unsupported"])
async def test_what_a_node_does_not_answer_is_no_verdict(fleet: Fleet, tmp_path: Path, kind: str) -> None:
    node = await fleet.node("a")
    await started(fleet, tmp_path)
    chat = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "yes"}}]}
    honest, status = (
        answers(200, msgspec.json.encode(chat)),
        {"crashes": 500, "refuses": 400, "busy": 503, "unsupported": 404},
    )
    wrong = answers(status[kind], b"{}")
    outcome = {"crashes": "crashed", "refuses": "refused", "busy": "busy", "unsupported": "unserved"}[kind]

    async def act(request: Any) -> Any:
        return await (wrong if b"minted" in await request.read() else honest)(request)

    node.act = act
    await talk(fleet)
    failed = {report["failed"] for report in reports(fleet, "failed")}
    assert outcome in failed
    assert not reports(fleet, "given")


async def test_what_the_network_does_costs_the_node_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """Another key answers at the node's address, as in front of a user's request."""
    node = await fleet.engine("a")
    await started(fleet, tmp_path)
    await talk(fleet)
    before = fleet.standing("a").failed
    fleet.verifier.send(
        "result",
        node="a",
        token=fleet.verifier.token("a", endpoint={"url": node.url, "spki_sha256": "00" * 32}),
    )
    await until(lambda: fleet.router.view("a").endpoint[1] == "00" * 32)  # type: ignore[index]
    checks, workload = checks_of(fleet), fleet.router.table.workloads["tiny"]
    await checks._ask(workload, fleet.router.lane("a", workload))  # type: ignore[arg-type]
    assert reports(fleet, "failed")[-1] == {"node": "a", "failed": "impostor"}
    assert fleet.standing("a").failed[0] <= before[0]


async def test_a_check_like_nobodys_request_is_not_sent(fleet: Fleet, tmp_path: Path) -> None:
    node = await fleet.engine("a")
    minter = await started(fleet, tmp_path)
    minter._make = minting(temperature=0.3, seed=5)
    seen = record(node)
    await talk(fleet)
    assert not [each for each in seen if is_check(each)]
    assert {report["failed"] for report in reports(fleet, "failed")} == {"unlike"}


async def test_before_the_first_check_requests_have_the_one_form(fleet: Fleet, tmp_path: Path) -> None:
    """A node that sees seeds only on checks knows them."""
    node = await fleet.engine("a")
    minter = await started(fleet, tmp_path)
    minter._make = minting(temperature=0.7, seed=5)
    seen = record(node)
    for number in range(LEARNT):
        await fleet.ask(asks(f"question {number}", temperature=0.7, max_tokens=8))
    await settle(fleet)
    first = next(place for place, each in enumerate(seen) if is_check(each))
    with_seed = [place for place, each in enumerate(seen) if "seed" in each.document]
    assert first - with_seed[0] >= 50


async def test_a_request_sent_again_gets_its_answer_again(fleet: Fleet, tmp_path: Path) -> None:
    """The seed that the router adds is drawn anew, and is not what the client has sent."""
    await fleet.engine("a")
    await started(fleet, tmp_path)
    await talk(fleet, 80)
    assert checks_of(fleet).asks(fleet.router.table.workloads["tiny"])
    first, second = [await fleet.ask(CHAT, **{"Idempotency-Key": "one"}) for _ in range(2)]
    assert (first.status, second.status) == (200, 200)
    assert second.headers["Idempotent-Replayed"] == "true"
    assert first.body == second.body


async def test_a_failed_check_goes_on_as_work_does(fleet: Fleet, tmp_path: Path) -> None:
    """Nodes that agree would find checks among what they have refused: it would come to no other node."""
    for name in ("a", "b"):
        node = await fleet.node(name)
        node.act = answers(503)
    await started(fleet, tmp_path)
    checks, workload = checks_of(fleet), fleet.router.table.workloads["tiny"]
    chat = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "yes"}}]}
    nodes = [await fleet.node(name) for name in ("c", "d")]
    for node in nodes:
        fleet.verifier.send(
            "result", node=node.name, token=fleet.verifier.token(node.name, endpoint=node.endpoint)
        )
        node.act = answers(200, msgspec.json.encode(chat))
    await until(lambda: len(fleet.router) == 4)
    await talk(fleet, 60)
    for node in nodes:
        node.act = answers(503)
        node.bodies.clear()
    decision = checks._decide(workload, Lane.PROBATION) or checks._decide(workload, Lane.ESTABLISHED)
    assert decision is not None
    assert len(decision.ranked) > 1


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
    await talk(fleet)
    assert {report["node"] for report in reports(fleet, "given")} == {"a"}
    fleet.clock.forward(25 * 3600)
    for name in ("a", "b"):
        endpoint = fleet.router.view(name).endpoint
        assert endpoint is not None
        told = {"url": endpoint[0], "spki_sha256": endpoint[1]}
        fleet.verifier.send("result", node=name, token=fleet.verifier.token(name, endpoint=told))
    fleet.verifier.beat()
    await until(lambda: fleet.router.verdict("b", fleet.router.table.workloads["tiny"]) is None)
    await talk(fleet, 60)
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


async def test_a_workload_may_leave_checks_out(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a")
    minter = await started(fleet, tmp_path, workload={"checks": {"enabled": False}})
    await talk(fleet, 60)
    assert not minter.wanted
    assert not checks_of(fleet).profile().models


async def test_a_router_may_leave_checks_out(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.engine("a")
    minter = await started(fleet, tmp_path, enabled=False)
    await talk(fleet, 60)
    assert not minter.wanted
    assert checks_of(fleet).profile().models


async def test_a_router_that_stops_gives_checks_up(fleet: Fleet, tmp_path: Path) -> None:
    node = await fleet.engine("a")
    await started(fleet, tmp_path)
    await talk(fleet)
    checks, workload = checks_of(fleet), fleet.router.table.workloads["tiny"]
    node.gate.clear()
    checks._tasks.add(asyncio.create_task(checks._ask_once("tiny", fleet.router.lane("a", workload))))  # type: ignore[arg-type]
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
