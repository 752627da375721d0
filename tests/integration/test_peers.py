"""
Another operator's node scores a sample of real answers, where a workload says so (docs/adr/0060).

The nodes answer what vLLM has answered: fixtures/vectors/vllm_prompt_logprobs.json.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from router.gateway import peers
from router.gateway.checks import CheckSourceError
from router.gateway.openai import GATEWAY
from tests.integration.checking import asks, checks_of
from tests.integration.gateway import CHATS, TEXTS, Fleet, opened
from tests.unit.router.doubles import CHAT as OTHER
from tests.unit.router.doubles import FakeNode, Handler, until
from tests.unit.router.support import MODEL
from tests.unit.router.test_peers import CHAT, SAID, SCORED, TEXT, TEXT_SCORED, VLLM

QUESTION = "What is a harbour?"
ALL = {"checks": {"peers": 1000}}
GREEDY = {"temperature": 0, "max_tokens": 12}
REVISION = "ab" * 32


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as made:
        yield made


async def vllm(request: web.Request) -> web.StreamResponse:
    """It answers, and scores what is answered already."""
    asked = await request.json()
    is_text = request.path == TEXTS
    if "prompt_logprobs" in asked:
        return web.json_response(TEXT_SCORED if is_text else SCORED)
    if not asked.get("stream"):
        return web.json_response(TEXT if is_text else CHAT)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for place, piece in enumerate((SAID[:9], SAID[9:])):
        choice = {"index": 0, "delta": {"content": piece}, "finish_reason": "length" if place else None}
        await response.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


def but_scores(how: Handler) -> Handler:
    """It answers as vLLM does, and something else if it is to score."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return await (how if "prompt_logprobs" in await request.json() else vllm)(request)

    return answer


async def unable(_: web.Request) -> web.StreamResponse:
    """llama.cpp passes over ``prompt_logprobs``, and answers."""
    return web.json_response(OTHER)


def gives(status: int) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=status)

    return answer


async def node(
    fleet: Fleet, name: str, operator: str, act: Handler = vllm, revision: str | None = REVISION
) -> FakeNode:
    found = await fleet.node(name)
    found.act = act
    fleet.verifier.trust(name, endpoint=found.endpoint, operator=operator, revision=revision)
    return found


async def start(fleet: Fleet, folder: Path, workload: dict[str, Any] | None = None, **checks: Any) -> None:
    token = folder / "router.token"
    token.write_text("the-routers-key")
    await fleet.start(
        ALL if workload is None else workload,
        sections={"verifier": {"router_token_file": str(token)}, "checks": checks},
    )


async def talk(fleet: Fleet, body: dict[str, Any] | None = None, path: str = CHATS, **headers: str) -> Any:
    heard = await fleet.ask(asks(QUESTION, **GREEDY) if body is None else body, path, **headers)
    assert heard.status == 200
    await settle(fleet)
    return heard


async def settle(fleet: Fleet) -> None:
    async with asyncio.timeout(10):
        # The request is booked in a later turn of the loop than its answer is heard.
        while checks_of(fleet).peers._tasks or fleet.app[GATEWAY].in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def scoring(*nodes: FakeNode) -> list[dict[str, Any]]:
    bodies = [msgspec.json.decode(body) for each in nodes for body in each.bodies]
    return [body for body in bodies if "prompt_logprobs" in body]


def reports(fleet: Fleet) -> list[dict[str, Any]]:
    return fleet.verifier.given.get("peers", [])


async def pair(fleet: Fleet, act: Handler = vllm) -> tuple[FakeNode, FakeNode]:
    """Two nodes of two operators; the second one scores."""
    return await node(fleet, "a", "acme"), await node(fleet, "b", "blue", act)


async def test_off_by_default(fleet: Fleet, tmp_path: Path) -> None:
    nodes = await pair(fleet)
    await start(fleet, tmp_path, {})
    await talk(fleet)
    assert scoring(*nodes) == reports(fleet) == []


async def test_another_operators_node_scores_the_answer(fleet: Fleet, tmp_path: Path) -> None:
    first, second = await pair(fleet)
    await start(fleet, tmp_path)
    await talk(fleet)
    (asked,) = scoring(first, second)
    assert asked["messages"] == [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": SAID},
    ]
    assert (asked["continue_final_message"], asked["add_generation_prompt"], asked["max_tokens"]) == (
        True,
        False,
        1,
    )
    (report,) = reports(fleet)
    names = {"a": first, "b": second}
    assert scoring(names[report["by"]]) == [asked]
    assert {report["node"], report["by"]} == {"a", "b"}
    assert report["result"] == fleet.router.view(report["node"]).result.jti  # type: ignore[union-attr]
    assert report["by_result"] == fleet.router.view(report["by"]).result.jti  # type: ignore[union-attr]
    assert (report["model"], report["tokens"], report["disagreements"], report["mean_gap"]) == (
        MODEL,
        12,
        0,
        0,
    )
    assert QUESTION not in json.dumps(report)
    assert SAID not in json.dumps(report)


async def test_each_scored_request_has_a_salt_of_its_own(fleet: Fleet, tmp_path: Path) -> None:
    nodes = await pair(fleet)
    await start(fleet, tmp_path)
    for _ in range(3):
        await talk(fleet)
    salts = [asked["cache_salt"] for asked in scoring(*nodes)]
    assert len(set(salts)) == len(salts) == 3


async def test_a_streamed_answer_is_scored(fleet: Fleet, tmp_path: Path) -> None:
    nodes = await pair(fleet)
    await start(fleet, tmp_path)
    heard = await talk(fleet, asks(QUESTION, **GREEDY, stream=True))
    assert heard.text == SAID
    (asked,) = scoring(*nodes)
    assert asked["messages"][-1]["content"] == SAID
    assert "stream" not in asked
    assert len(reports(fleet)) == 1


async def test_a_text_completion_is_scored(fleet: Fleet, tmp_path: Path) -> None:
    nodes = await pair(fleet)
    await start(fleet, tmp_path)
    await talk(fleet, {"model": MODEL, "prompt": "A harbour is", **GREEDY}, TEXTS)
    (asked,) = scoring(*nodes)
    assert asked["prompt"] == "A harbour is" + TEXT["choices"][0]["text"]
    assert reports(fleet)[0]["tokens"] == 12


async def test_a_share_is_drawn(fleet: Fleet, tmp_path: Path) -> None:
    nodes = await pair(fleet)
    await start(fleet, tmp_path, {"checks": {"peers": 5}})
    checks = checks_of(fleet)
    for draw in (0.005, 0.9, 0.0049):
        checks._draw = lambda draw=draw: draw
        await talk(fleet)
    assert len(scoring(*nodes)) == 1


async def test_never_a_node_of_the_same_operator(fleet: Fleet, tmp_path: Path) -> None:
    nodes = [await node(fleet, name, "acme") for name in "abc"]
    await start(fleet, tmp_path)
    await talk(fleet)
    assert scoring(*nodes) == reports(fleet) == []


async def test_the_other_operators_node_among_many(fleet: Fleet, tmp_path: Path) -> None:
    operators = {"a": "acme", "b": "blue", "c": "acme", "d": "acme"}
    for name, operator in operators.items():
        await node(fleet, name, operator)
    await start(fleet, tmp_path)
    for _ in range(4):
        await talk(fleet)
    assert reports(fleet)
    for report in reports(fleet):
        assert operators[report["node"]] != operators[report["by"]]


async def test_not_a_node_with_another_revision(fleet: Fleet, tmp_path: Path) -> None:
    nodes = await node(fleet, "a", "acme"), await node(fleet, "b", "blue", revision="cd" * 32)
    await start(fleet, tmp_path)
    await talk(fleet)
    assert scoring(*nodes) == []


async def test_not_a_node_that_may_do_no_such_work(fleet: Fleet, tmp_path: Path) -> None:
    """Its result has gone; the gate of results is the one for work."""
    first, second = await pair(fleet)
    await start(fleet, tmp_path)
    fleet.verifier.send("revocation", node="b", results=[fleet.router.view("b").result.jti])  # type: ignore[union-attr]
    await until(lambda: fleet.router.verdict("b", fleet.router.table.workloads["tiny"]) is not None)
    await talk(fleet)
    assert scoring(first, second) == []


async def test_not_a_node_without_a_place(fleet: Fleet, tmp_path: Path) -> None:
    nodes = await pair(fleet)
    await start(fleet, tmp_path)
    checks_of(fleet).has_room = lambda: False
    await talk(fleet)
    assert scoring(*nodes) == []


@pytest.mark.parametrize("given", [{"temperature": 0.7}, {"temperature": None}, {"temperature": 0, "n": 2}])
async def test_not_what_is_drawn(fleet: Fleet, tmp_path: Path, given: dict[str, Any]) -> None:
    nodes = await pair(fleet)
    await start(fleet, tmp_path)
    await fleet.ask(asks(QUESTION, max_tokens=12, **given))
    await settle(fleet)
    assert scoring(*nodes) == []


@pytest.mark.parametrize("value", ["no", "never", "yes", ""])
async def test_not_what_a_caller_keeps_for_one_node(fleet: Fleet, tmp_path: Path, value: str) -> None:
    """Whatever it says: a caller that names the header does not want it."""
    nodes = await pair(fleet)
    await start(fleet, tmp_path)
    await talk(fleet, **{peers.OPT_OUT_HEADER: value})
    assert scoring(*nodes) == []


async def test_not_what_has_requirements_of_its_own(fleet: Fleet, tmp_path: Path) -> None:
    nodes = await pair(fleet)
    await start(fleet, tmp_path)
    await talk(fleet, asks(QUESTION, **GREEDY, provider={"touchstone": {"max_age_s": 300}}))
    assert scoring(*nodes) == []


async def test_not_if_the_workload_or_the_router_checks_nothing(fleet: Fleet, tmp_path: Path) -> None:
    nodes = await pair(fleet)
    await start(fleet, tmp_path, {"checks": {"peers": 1000, "enabled": False}})
    await talk(fleet)
    await fleet.stop()
    await start(fleet, tmp_path, enabled=False)
    await talk(fleet)
    assert scoring(*nodes) == []


async def test_not_what_is_long(fleet: Fleet, tmp_path: Path) -> None:
    nodes = await pair(fleet)
    await start(fleet, tmp_path)
    await talk(fleet, asks("x" * (33 << 10), **GREEDY))
    assert scoring(*nodes) == []


async def test_not_what_failed(fleet: Fleet, tmp_path: Path) -> None:
    nodes = await node(fleet, "a", "acme", gives(500)), await node(fleet, "b", "blue", gives(500))
    await start(fleet, tmp_path)
    assert (await fleet.ask(asks(QUESTION, **GREEDY))).status >= 500
    await settle(fleet)
    assert scoring(*nodes) == []


def standings(fleet: Fleet, name: str) -> Any:
    statistics = fleet.statistics(name)
    load = statistics.load
    return statistics.own, load.failures_in_a_row, load.refusals_in_a_row, load.open_until, load.in_flight


@pytest.mark.parametrize("how", [unable, gives(400), gives(404)], ids=["passed over", "400", "404"])
async def test_a_peer_that_cannot_is_asked_once_and_loses_nothing(
    fleet: Fleet, tmp_path: Path, how: Handler
) -> None:
    nodes = await node(fleet, "a", "acme", but_scores(how)), await node(fleet, "b", "blue", but_scores(how))
    await start(fleet, tmp_path)
    for _ in range(6):
        await talk(fleet)
    assert len(scoring(nodes[0])) <= 1
    assert len(scoring(nodes[1])) <= 1
    assert scoring(*nodes)
    assert reports(fleet) == []
    assert [fleet.failed(name) for name in "ab"] == [0, 0]


async def test_after_an_hour_it_is_asked_again(fleet: Fleet, tmp_path: Path) -> None:
    """Its engine may be another one by then."""
    nodes = await pair(fleet)
    await start(fleet, tmp_path)
    workload, scores = fleet.router.table.workloads["tiny"], checks_of(fleet).peers
    for name in "ab":
        scores._note_unable(name, workload)
    await talk(fleet)
    assert scoring(*nodes) == []
    for key in scores._unable:
        scores._unable[key] -= peers._UNABLE_S
    await talk(fleet)
    assert len(scoring(*nodes)) == 1


@pytest.mark.parametrize("how", [gives(500), gives(503), gives(429)], ids=["500", "503", "429"])
async def test_a_peer_that_fails_at_it_loses_nothing(fleet: Fleet, tmp_path: Path, how: Handler) -> None:
    nodes = await node(fleet, "a", "acme", but_scores(how)), await node(fleet, "b", "blue", but_scores(how))
    await start(fleet, tmp_path)
    workload = fleet.router.table.workloads["tiny"]
    for _ in range(6):
        await talk(fleet)
    assert len(scoring(*nodes)) == 6
    assert reports(fleet) == []
    for name in "ab":
        assert fleet.failed(name) == 0
        assert fleet.statistics(name).load.failures_in_a_row == 0
        assert fleet.router.verdict(name, workload) is None


async def test_a_network_that_fails_costs_nobody(fleet: Fleet, tmp_path: Path) -> None:
    async def breaks_off(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    nodes = (
        await node(fleet, "a", "acme", but_scores(breaks_off)),
        await node(fleet, "b", "blue", but_scores(breaks_off)),
    )
    await start(fleet, tmp_path)
    for _ in range(4):
        await talk(fleet)
    assert scoring(*nodes)
    assert reports(fleet) == []
    assert [fleet.failed(name) for name in "ab"] == [0, 0]


async def test_an_answer_that_is_not_the_text_is_not_reported(fleet: Fleet, tmp_path: Path) -> None:
    async def another(_: web.Request) -> web.StreamResponse:
        return web.json_response(VLLM['POST /v1/chat/completions scored " two words "'])

    nodes = (
        await node(fleet, "a", "acme", but_scores(another)),
        await node(fleet, "b", "blue", but_scores(another)),
    )
    await start(fleet, tmp_path)
    await talk(fleet)
    assert len(scoring(*nodes)) == 1
    assert reports(fleet) == []


async def test_a_score_leaves_no_trace_but_its_report(fleet: Fleet, tmp_path: Path) -> None:
    """In standing, records, the key's budget and what is in flight: the same as without."""
    first, second = await pair(fleet)
    await start(fleet, tmp_path)
    before = {name: standings(fleet, name) for name in "ab"}
    heard = await talk(fleet)
    (report,) = reports(fleet)
    assert standings(fleet, report["by"]) == before[report["by"]]
    assert standings(fleet, report["node"]) != before[report["node"]]
    (attempt,) = await fleet.record(heard.headers)
    assert attempt["node"] == report["node"]
    kept = fleet.app[GATEWAY].dispatcher.records.newest()
    assert [each["id"] for each in kept] == [heard.headers["X-Touchstone-Decision"]]
    assert (len(first.bodies), len(second.bodies)) == (1, 1)
    assert heard.json["usage"] == CHAT["usage"]


async def test_a_caller_waits_for_no_score(fleet: Fleet, tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def slow(_: web.Request) -> web.StreamResponse:
        await go_on.wait()
        return web.json_response(SCORED)

    nodes = await node(fleet, "a", "acme", but_scores(slow)), await node(fleet, "b", "blue", but_scores(slow))
    await start(fleet, tmp_path)
    assert (await fleet.ask(asks(QUESTION, **GREEDY))).status == 200
    await until(lambda: scoring(*nodes))
    assert reports(fleet) == []
    go_on.set()
    await settle(fleet)
    assert len(reports(fleet)) == 1


async def test_a_verifier_that_was_away_gets_the_same_report(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_REPORT_AFTER_S", (0.0, 0.0, 0.0))
    await pair(fleet)
    await start(fleet, tmp_path)
    source, tries = checks_of(fleet)._source, []
    assert source is not None
    report_score = source.report_score

    async def lost(report: dict[str, Any]) -> bool:
        tries.append(report)
        await report_score(report)
        if len(tries) == 1:
            raise CheckSourceError("the answer was lost")
        return True

    monkeypatch.setattr(source, "report_score", lost)
    await talk(fleet)
    assert len(tries) == 2
    assert reports(fleet)[0] == reports(fleet)[1]


async def test_a_router_that_stops_gives_scores_up(fleet: Fleet, tmp_path: Path) -> None:
    async def never(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    nodes = (
        await node(fleet, "a", "acme", but_scores(never)),
        await node(fleet, "b", "blue", but_scores(never)),
    )
    await start(fleet, tmp_path)
    await fleet.ask(asks(QUESTION, **GREEDY))
    await until(lambda: scoring(*nodes))
    scores = checks_of(fleet).peers
    await fleet.stop()
    assert not scores._tasks
    assert reports(fleet) == []
