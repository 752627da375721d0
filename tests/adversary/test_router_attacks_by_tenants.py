"""What a tenant with an API key can do to nodes and to other tenants: each test is one attack, on real sockets."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from router.gateway.openai import GATEWAY
from router.model.tokens import Tokeniser
from router.model.usage import ANSWERS
from router.service.state import STATE
from tests.adversary.test_router_attacks_on_rank import count_tokens
from tests.integration.gateway import CHAT, CHATS, STREAM, Fleet, Running, by, key, opened
from tests.unit.router.doubles import until

TENANTS = ("ada", "bob", "cy")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path, Running()) as fleet:
        yield fleet


async def bills(request: web.Request) -> web.Response:
    """An honest engine: it bills each token that it makes, also those that show no text."""
    body = await request.json()
    made = 4
    if "best_of" in body:
        made *= body["best_of"]
    if "stop" in body:
        made += sum(len(text.split()) for text in body["stop"])
    if body.keys() & {"logit_bias", "ignore_eos", "min_tokens", "an engine's own"}:
        made = body.get("max_tokens", 500)
    prompt = sum(len(message["content"].split()) for message in body["messages"])
    message = {"role": "assistant", "content": "the answer is 42"}
    return web.json_response(
        {
            "id": "x",
            "object": "chat.completion",
            "choices": [{"index": 0, "finish_reason": "length", "message": message}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made},
        }
    )


async def lies(request: web.Request) -> web.Response:
    """An engine that claims a hundred times what it makes."""
    answer = json.loads((await bills(request)).body or b"")
    answer["usage"] = {"prompt_tokens": 4, "completion_tokens": 400, "total_tokens": 404}
    return web.json_response(answer)


async def engine(fleet: Fleet, act: Any) -> None:
    (await fleet.node("a")).act = act
    await fleet.start(sections={"keys": [key(name) for name in TENANTS]})
    fleet.app[GATEWAY].dispatcher.metering.tokenisers = {"tiny": Tokeniser(count_tokens)}


def code(fleet: Fleet) -> str | None:
    verdict = fleet.router.verdict("a", fleet.router.table.workloads["tiny"])
    return None if verdict is None else verdict.code


@pytest.mark.parametrize(
    "extra",
    [
        {"max_tokens": 200, "logit_bias": {"50256": 100}},
        {"max_tokens": 200, "ignore_eos": True},
        {"max_tokens": 200, "min_tokens": 200},
        {"best_of": 80},
        {"stop": ["lorem " * 150]},
        {"an engine's own": 1},
    ],
    ids=max,
)
async def test_tokens_without_text_hold_no_node(fleet: Fleet, extra: dict[str, Any]) -> None:
    """Three tenants together ask for tokens that show nothing: an honest node is held, or unclean, for its true bill."""
    await engine(fleet, bills)
    for number in range(3 * ANSWERS):
        assert (await fleet.post(CHAT | extra, CHATS, **by(TENANTS[number % 3])))[0] == 200
    assert (code(fleet), fleet.standing("a").rejects) == (None, 0.0)
    assert await fleet.app[STATE].holds.list_open() == []


async def test_what_is_no_evidence_is_charged_by_the_routers_count(fleet: Fleet) -> None:
    """The tenant pays for what it was shown, and not for what the node claims."""
    await engine(fleet, bills)
    _, answer, _ = await fleet.post(CHAT | {"best_of": 80}, CHATS, **by("ada"))
    await until(lambda: not fleet.app[GATEWAY].in_flight)
    counted = answer["usage"]["total_tokens"]
    assert (answer["usage"]["completion_tokens"], fleet.app[GATEWAY].keyring.spent()["ada"][1]) == (
        4,
        counted,
    )


async def test_tokens_without_text_make_no_node_slow(fleet: Fleet) -> None:
    """A tenant asks for tokens that show nothing: the few that it is shown come slowly, and close the floor of pace."""
    await fleet.engine("a")
    await fleet.start()
    measured = []
    for body in (STREAM | {"ignore_eos": True}, STREAM):
        assert (await fleet.ask(body)).done
        await until(lambda: not fleet.app[GATEWAY].in_flight)
        measured.append("token" in fleet.statistics("a").recent)
    assert measured == [False, True]


async def test_a_large_body_is_no_evidence(fleet: Fleet) -> None:
    """To look through its messages would hold up all other requests."""
    await engine(fleet, lies)
    large = {**CHAT, "messages": [{"role": "user", "content": "a " * (129 << 10)}]}
    assert (await fleet.post(large, CHATS, **by("ada")))[0] == 200
    assert fleet.app[GATEWAY].dispatcher.metering._meter._sums == {}


async def test_one_tenant_alone_holds_no_node(fleet: Fleet) -> None:
    """Whatever one tenant found that makes claims differ: a person is asked once, and the node goes on."""
    await engine(fleet, lies)
    for _ in range(3 * ANSWERS):
        assert (await fleet.post(CHAT, CHATS, **by("ada")))[0] == 200
    await until(lambda: fleet.app[STATE].holds._known)
    (review,) = await fleet.app[STATE].holds.list_open()
    assert (review.kind, review.holding, code(fleet)) == ("settlement-unconfirmed", False, None)


async def test_three_tenants_hold_a_liar(fleet: Fleet) -> None:
    """The rule lets nobody go whom several clients' plain requests show."""
    await engine(fleet, lies)
    for number in range(ANSWERS):
        assert (await fleet.post(CHAT, CHATS, **by(TENANTS[number % 3])))[0] == 200
    await until(lambda: fleet.app[STATE].holds._known)
    assert code(fleet) == "incident.quarantine"


async def test_an_operators_own_work_is_no_evidence_about_its_nodes(fleet: Fleet) -> None:
    """Who asks its own nodes could have them claim the truth towards itself, and hide what others see."""
    await fleet.engine("a", operator="acme")
    await fleet.start(sections={"keys": [key("ada", operator="acme")]})
    fleet.app[GATEWAY].dispatcher.metering.tokenisers = {"tiny": Tokeniser(count_tokens)}
    for _ in range(ANSWERS):
        assert (await fleet.post(CHAT, CHATS, **by("ada")))[0] == 200
    assert fleet.app[GATEWAY].dispatcher.metering._meter._sums == {}


async def test_counting_large_prompts_holds_up_no_lookup_of_names(fleet: Fleet) -> None:
    """A few large chats fill the threads that look up nodes' names and read the feed, and nodes look stalled."""
    go = threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))

    def slow(text: str) -> int:
        if len(text) > 10_000:
            go.wait(20)
        return len(text) // 4

    (await fleet.node("a")).act = bills
    await fleet.start(sections={"keys": [key(name) for name in TENANTS]})
    fleet.app[GATEWAY].dispatcher.metering.tokenisers = {"tiny": Tokeniser(slow)}
    large = {**CHAT, "messages": [{"role": "user", "content": "attestation of nodes " * 5_000}]}
    tasks = [asyncio.create_task(fleet.post(large, CHATS, **by("ada"))) for _ in range(4)]
    try:
        threads = fleet.app[GATEWAY].dispatcher.metering._threads
        await until(lambda: threads.waiting > 300_000)
        assert await asyncio.wait_for(asyncio.to_thread(len, "abc"), 5) == 3
        assert (await asyncio.wait_for(fleet.post(CHAT, CHATS, **by("bob")), 5))[0] == 200
    finally:
        go.set()
        await asyncio.gather(*tasks)


async def test_a_prompt_costs_also_who_leaves_before_the_first_text(fleet: Fleet) -> None:
    """A tenant lets nodes read prompts of a million tokens for nothing, by leaving each time."""
    asked = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        await request.read()
        asked.set()
        await asyncio.sleep(60)
        return web.Response(status=500)

    await engine(fleet, slow)
    for body in (STREAM, CHAT):
        asked.clear()
        large = {**body, "messages": [{"role": "user", "content": "word " * 20_000}]}
        task = asyncio.create_task(fleet.post(large, CHATS, **by(TENANTS["stream" in body])))
        await asyncio.wait_for(asked.wait(), 5)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, aiohttp.ClientError)):
            await task
    keyring = fleet.app[GATEWAY].keyring
    await until(lambda: len(keyring.spent()) == 2)
    assert all(20_000 <= tokens <= 30_000 for _, tokens in keyring.spent().values())


def echoing(**extra: Any) -> tuple[dict[str, Any], Any]:
    """A request that asks for its prompt again, and an honest engine that gives it token by token."""
    body = {"model": CHAT["model"], "stream": True, "echo": True, "max_tokens": 1, **extra}

    async def act(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        prompts = asked["prompt"] if isinstance(asked["prompt"], list) else [asked["prompt"]]
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)

        async def event(index: int, text: str, end: str | None = None) -> None:
            choice = {"index": index, "text": text, "finish_reason": end}
            chunk = {"id": "x", "object": "text_completion", "choices": [choice]}
            await answer.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

        for index, prompt in enumerate(prompts * asked.get("n", 1)):
            for word in (*prompt.split(), "done"):
                await event(index, f"{word} ")
            await event(index, "", "length")
        await answer.write(b"data: [DONE]\n\n")
        return answer

    return body, act


@pytest.mark.parametrize(
    "extra",
    [{"prompt": "word " * 300}, {"prompt": "word " * 100, "n": 3}, {"prompt": ["word " * 90, "word " * 80]}],
    ids=["echo", "several", "prompts"],
)
async def test_a_prompt_that_is_asked_for_again_is_no_fault(fleet: Fleet, extra: dict[str, Any]) -> None:
    """More events than `max_tokens`, because the client wants its prompt too: booked as the node's corruption."""
    body, act = echoing(**extra)
    (await fleet.node("a")).act = act
    await fleet.start({"operations": ["completions"]})
    heard = await fleet.ask(body, "/v1/completions")
    assert (heard.status, heard.done) == (200, True)
    await until(lambda: not fleet.app[GATEWAY].in_flight)
    assert (fleet.failed("a"), fleet.standing("a").rejects) == (0, 0.0)


async def test_more_than_was_asked_for_stays_a_fault(fleet: Fleet) -> None:
    """An echo is bounded by its prompt: a node that goes on and on is not let go for it."""
    body, act = echoing(prompt="word " * 300)
    (await fleet.node("a")).act = act
    await fleet.start({"operations": ["completions"]})
    await fleet.ask({**body, "echo": False}, "/v1/completions")
    await until(lambda: not fleet.app[GATEWAY].in_flight)
    assert fleet.failed("a") > 0
