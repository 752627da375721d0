"""Dialects, usage and unhonoured settings at the gateway: what clients get, and whose it is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from router.choose.decision import Decision, replay
from router.gateway.openai import GATEWAY
from router.model.standing import Standing
from router.model.statistics import StatisticsAggregate
from router.model.tokens import Tokeniser, estimated
from tests.integration.gateway import CHAT, PROMPT, STREAM, VECTORS, Fleet, by, key, opened
from tests.unit.router.doubles import Handler, answers, until
from tests.unit.router.support import MODEL
from verifier.router_receipts import unb64url

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOOLS = CHAT | {"tools": [WEATHER]}
REQUIRED = TOOLS | {"tool_choice": "required"}
JSON = CHAT | {"response_format": {"type": "json_object"}}
USAGE = {
    "prompt_tokens": 39,
    "completion_tokens": 24,
    "total_tokens": 63,
    "prompt_tokens_details": {"cached_tokens": 38},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


ANSWERS = Path(__file__).parents[2] / "fixtures" / "answers"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


def call(arguments: Any = '{"city": "Paris"}', name: str = "get_weather") -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [
        {"index": 0, "id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    ]}  # fmt: skip


def says(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def whole(*messages: Any, end: str = "stop", **more: Any) -> dict[str, Any]:
    choices = [{"index": n, "finish_reason": end, "message": each} for n, each in enumerate(messages)]
    return {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL, "choices": choices, **more}


def events(*documents: Any) -> bytes:
    lines = [each if isinstance(each, str) else json.dumps(each) for each in documents]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def streamed(*messages: Any, end: str = "stop", usage: Any = None) -> bytes:
    """Each message as a choice of its own, in two chunks."""
    parts: list[Any] = []
    for index, message in enumerate(messages):
        parts.append({"choices": [{"index": index, "delta": message, "finish_reason": None}]})
        parts.append({"choices": [{"index": index, "delta": {}, "finish_reason": end}]})
    return events(*parts, *([] if usage is None else [{"choices": [], "usage": usage}]), "[DONE]")


def node_of(*messages: Any, end: str = "stop", usage: Any = None) -> Handler:
    """A node that always says this, whole or streamed as it is asked."""

    async def answer(request: web.Request) -> web.StreamResponse:
        more = {} if usage is None else {"usage": usage}
        if (await request.json()).get("stream"):
            body = streamed(*messages, end=end, usage=usage)
            return web.Response(body=body, content_type="text/event-stream")
        return web.json_response(whole(*messages, end=end, **more))

    return answer


async def start(fleet: Fleet, *acts: Handler, **settings: Any) -> None:
    for name, act in zip("abc", acts, strict=False):
        (await fleet.node(name)).act = act
    await fleet.start(**settings)
    fleet.establish(*"abc"[: len(acts)])
    fleet.in_order()


async def outcomes(fleet: Fleet, headers: Any) -> list[tuple[str, str, str]]:
    """The node, the outcome and the blame of each attempt."""
    return [(each["node"], each["outcome"], each["blame"]) for each in await fleet.record(headers)]


# Dialects.


@pytest.mark.parametrize("stream", [False, True])
async def test_arguments_as_an_object_are_no_fault(fleet: Fleet, stream: bool) -> None:  # noqa: FBT001
    """Tool-call `arguments` as an object: twelve requests with `tools`, and the node is as good as before."""
    await start(fleet, node_of(call({"city": "Paris"}), end="tool_calls"))
    for _ in range(12):
        heard = await fleet.ask(TOOLS | {"stream": stream})
        assert heard.status == 200
        assert await outcomes(fleet, heard.headers) == [("a", "completed", "nobody")]
    assert fleet.failed("a") == 0


@pytest.mark.parametrize("count", [1, 3])
async def test_a_cut_stream_with_empty_reasons_is_truncated(fleet: Fleet, count: int) -> None:
    """`finish_reason: ""` in every chunk: the client is told that the stream broke off."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": ""}]}] * count
    body = events(*chunks)
    await start(fleet, answers(200, body, Content_Type="text/event-stream"))
    heard = await fleet.ask()
    assert (heard.done, heard.error["code"]) == (False, "truncated")


@pytest.mark.parametrize(
    "body",
    [
        b"event: error\ndata: out of memory\n\n",
        b'error: {"code": 500, "message": "out of memory"}\n\n',
        b'data: {"object": "error", "message": "out of memory"}\n\ndata: [DONE]\n\n',
    ],
)
async def test_an_error_event_in_any_form_is_an_error(fleet: Fleet, body: bytes) -> None:
    """Before the first text another node is asked, and the first one is to blame once that one completes."""
    failing = answers(200, body, Content_Type="text/event-stream")
    await start(fleet, failing, node_of(says("yes")))
    heard = await fleet.ask()
    assert heard.text == "yes"
    assert await outcomes(fleet, heard.headers) == [("a", "crashed", "node"), ("b", "completed", "nobody")]


async def test_empty_events_and_comments_are_passed_over(fleet: Fleet) -> None:
    """`: ping`, `data:` and `data: null` are neither text nor a fault, and the client sees none of them."""
    body = b": ping\n\ndata:\n\ndata: \n\ndata: null\n\n" + streamed(says("yes"))
    await start(fleet, answers(200, body, Content_Type="text/event-stream"))
    heard = await fleet.ask()
    assert (heard.text, heard.done, len(heard.events)) == ("yes", True, 2)


# Usage.


async def test_the_usage_of_a_stream_is_the_nodes_with_its_details(fleet: Fleet) -> None:
    """Without a tokeniser, streamed `usage` is the node's own, details and all, and says that it is."""
    await start(fleet, node_of(says("yes"), usage=USAGE))
    heard = await fleet.ask(STREAM | {"stream_options": {"include_usage": True}})
    assert heard.usage == [USAGE]
    assert heard.events[-1]["usage_by"] == "node"


@pytest.mark.parametrize("engine", ["llama.cpp", "vllm"])
async def test_the_usage_of_a_real_stream_is_the_engines(fleet: Fleet, engine: str) -> None:
    """Recorded from a real run: the client gets 39 and 8, as the engine counts, and not what the bytes would give."""
    recorded = json.loads((ANSWERS / f"{engine}.json").read_text())["answers"]["chat, streamed"]
    await start(fleet, answers(200, recorded["body"].encode(), Content_Type=recorded["content_type"]))
    heard = await fleet.ask(STREAM | {"stream_options": {"include_usage": True}})
    (usage,) = heard.usage
    assert (heard.text, heard.done) == ("The capital of France is Paris.", True)
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (39, 8, 47)
    assert usage.get("prompt_tokens_details") == ({"cached_tokens": 38} if engine == "llama.cpp" else None)
    assert await outcomes(fleet, heard.headers) == [("a", "completed", "nobody")]


async def test_the_usage_of_a_whole_answer_is_the_nodes(fleet: Fleet) -> None:
    """As it is, and the answer says so."""
    await start(fleet, node_of(says("yes"), usage=USAGE))
    heard = await fleet.ask(CHAT)
    assert (heard.usage, heard.headers["X-Touchstone-Usage-By"]) == ([USAGE], "node")


@pytest.mark.parametrize("stream", [False, True])
async def test_with_a_tokeniser_the_usage_is_the_routers(fleet: Fleet, stream: bool) -> None:  # noqa: FBT001
    """Its counts, with the details that the node gives."""
    await start(fleet, node_of(says("yes"), usage=USAGE))
    fleet.app[GATEWAY].dispatcher.metering.tokenisers = {"tiny": Tokeniser(len)}
    heard = await fleet.ask(CHAT | {"stream": stream, "stream_options": {"include_usage": True}})
    counted = {"prompt_tokens": len(PROMPT), "completion_tokens": 3, "total_tokens": len(PROMPT) + 3}
    assert heard.usage == [USAGE | counted]
    whose = heard.events[-1]["usage_by"] if stream else heard.headers["X-Touchstone-Usage-By"]
    assert whose == "router"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("count", [None, 24.5, "24", -24, 10**20])
async def test_a_usage_that_cannot_be_one_is_replaced(fleet: Fleet, stream: bool, count: Any) -> None:  # noqa: FBT001
    """`usage.completion_tokens: null` or a float is no fault; the client gets the router's estimate, and is told so."""
    await start(fleet, node_of(says("yes"), usage=USAGE | {"completion_tokens": count}))
    heard = await fleet.ask(CHAT | {"stream": stream, "stream_options": {"include_usage": True}})
    (usage,) = heard.usage
    assert usage["completion_tokens"] == estimated(3)
    whose = heard.events[-1]["usage_by"] if stream else heard.headers["X-Touchstone-Usage-By"]
    assert (whose, await outcomes(fleet, heard.headers)) == ("router", [("a", "completed", "nobody")])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_usage_with_fractions_is_told_in_whole_numbers(fleet: Fleet, stream: bool) -> None:  # noqa: FBT001
    """It is the node's all the same: 24.0 is 24, and some clients read only that."""
    counts = {"prompt_tokens": 39.0, "completion_tokens": 24.0, "total_tokens": 63.0}
    await start(fleet, node_of(says("yes"), usage=USAGE | counts))
    heard = await fleet.ask(CHAT | {"stream": stream, "stream_options": {"include_usage": True}})
    (usage,) = heard.usage
    assert [(usage[name], type(usage[name])) for name in counts] == [(39, int), (24, int), (63, int)]
    whose = heard.events[-1]["usage_by"] if stream else heard.headers["X-Touchstone-Usage-By"]
    assert (whose, usage["prompt_tokens_details"]) == ("node", {"cached_tokens": 38})


# Settings that are not honoured.

UNHONOURED: dict[str, tuple[dict[str, Any], list[Any], bool]] = {
    "n": (CHAT | {"n": 2}, [says("one")], False),
    "stop": (CHAT | {"stop": ["END"]}, [says("one END two")], False),
    "response_format": (JSON, [says("no JSON")], True),
    "response_format, no object": (JSON, [says("[1]")], True),
    "tool_choice": (REQUIRED, [says("no call")], True),
    "tool_choice, named": (
        TOOLS | {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        [call(name="another")],
        True,
    ),
}
"""The request, an answer that does not keep to it, and whether that may be the model's doing."""
HONOURED: dict[str, list[Any]] = {
    "n": [says("one"), says("two")],
    "stop": [says("one")],
    "response_format": [says("{}")],
    "tool_choice": [call()],
}


@pytest.mark.parametrize("name", UNHONOURED)
async def test_an_unhonoured_setting_moves_on_to_the_next_node(fleet: Fleet, name: str) -> None:
    """
    Settings that a node does not honour are an outcome of their own, neither completed nor corrupted.

    It is the node's once another one honours it, unless the model may be what could not.
    """
    body, said, is_models = UNHONOURED[name]
    honoured = node_of(*HONOURED[name.partition(",")[0]])
    await start(fleet, node_of(*said), honoured)
    heard = await fleet.ask(body)
    blame = "nobody" if is_models else "node"
    assert await outcomes(fleet, heard.headers) == [("a", "unhonoured", blame), ("b", "completed", "nobody")]
    # It works for all who do not ask for that: it weighs one, and no breaker counts it.
    assert (fleet.failed("a"), fleet.statistics("a").load.failures_in_a_row) == (0 if is_models else 1, 0)


async def test_the_receipt_names_the_node_whose_answer_was_not_taken(fleet: Fleet) -> None:
    """It is not paid; but it has told its usage, may claim it, and must not be held for that."""
    body, said, _ = UNHONOURED["stop"]
    told = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    await start(fleet, node_of(*said, usage=told), node_of(*HONOURED["stop"], usage=told))
    heard = await fleet.ask(body)
    status, found = await fleet.get(
        f"/api/v1/receipts/{heard.headers['X-Touchstone-Receipt']}", Accept="application/json"
    )
    assert status == 200
    receipt = msgspec.json.decode(unb64url(found["receipt"].split(".")[1]))
    assert (receipt["node"]["id"], [each["node"] for each in receipt["passed"]]) == ("b", ["a"])


@pytest.mark.parametrize("name", UNHONOURED)
async def test_what_no_node_honours_is_answered_all_the_same(fleet: Fleet, name: str) -> None:
    """The client gets the answer, which it may use, pays for it, and nobody is to blame."""
    body, said, _ = UNHONOURED[name]
    await start(fleet, node_of(*said), node_of(*said))
    heard = await fleet.ask(body)
    assert heard.status == 200
    assert [choice["message"] for choice in heard.choices] == said
    assert [each[1:] for each in await outcomes(fleet, heard.headers)] == [("unhonoured", "nobody")] * 2
    assert (fleet.failed("a"), fleet.failed("b")) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_does_not_honour_a_setting_is_charged(fleet: Fleet, stream: bool) -> None:  # noqa: FBT001
    """By the router's count, as any other; a node's claim spends nobody's budget."""
    (await fleet.node("a")).act = node_of(says("no JSON"), usage=USAGE | {"completion_tokens": 10**9})
    await fleet.start(sections={"keys": [key("ada", tokens_per_day=10**6)]})
    heard = await fleet.ask(JSON | {"stream": stream}, **by("ada"))
    assert heard.status == 200
    keyring = fleet.app[GATEWAY].keyring
    await until(lambda: "ada" in keyring.spent())
    assert keyring.spent()["ada"][1] == estimated(len(PROMPT)) + estimated(len("no JSON"))


@pytest.mark.parametrize("name", UNHONOURED)
async def test_a_stream_that_does_not_honour_a_setting_ends_as_it_is(fleet: Fleet, name: str) -> None:
    """It has gone to the client, so no other node is asked, and nothing shows whose it is."""
    body, said, _ = UNHONOURED[name]
    await start(fleet, node_of(*said), node_of(says("{}")))
    heard = await fleet.ask(body | {"stream": True})
    assert heard.done
    assert await outcomes(fleet, heard.headers) == [("a", "unhonoured", "nobody")]
    assert fleet.failed("a") == 0


@pytest.mark.parametrize("body", [JSON, REQUIRED])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_text_that_was_cut_at_its_limit_keeps_to_all(fleet: Fleet, body: Any, stream: bool) -> None:  # noqa: FBT001
    """Its end would have shown it.  A real vLLM answers so: fixtures/answers."""
    await start(fleet, node_of(says('{"a": '), end="length"))
    heard = await fleet.ask(body | {"stream": stream})
    assert await outcomes(fleet, heard.headers) == [("a", "completed", "nobody")]


@pytest.mark.parametrize("stream", [False, True])
async def test_more_tokens_than_were_asked_for_are_unhonoured(fleet: Fleet, stream: bool) -> None:  # noqa: FBT001
    """By the node's own count; an engine that ends a little late is let be."""
    await start(fleet, node_of(says("yes"), usage=USAGE | {"completion_tokens": 900}))
    heard = await fleet.ask(CHAT | {"max_tokens": 16, "stream": stream})
    assert (await outcomes(fleet, heard.headers))[0][1] == "unhonoured"
    heard = await fleet.ask(CHAT | {"max_tokens": 880, "stream": stream})
    assert (await outcomes(fleet, heard.headers))[0][1] == "completed"


def embedding(*vectors: Any) -> Handler:
    data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
    body = json.dumps({"object": "list", "data": data, "model": MODEL, "usage": {"prompt_tokens": 1}})
    return answers(200, body.encode())


@pytest.mark.parametrize(
    ("given", "vectors"),
    [
        ({"input": "x", "dimensions": 2}, [[0.5, 0.5, 0.5]]),
        ({"input": "x", "dimensions": 2, "encoding_format": "base64"}, ["AAAAPwAAAD8AAAA/"]),
        ({"input": ["x", "y"]}, [[0.5, 0.5]]),
    ],
    ids=["dimensions", "dimensions in base64", "one of two"],
)
async def test_embeddings_of_another_length_or_too_few_are_unhonoured(
    fleet: Fleet, given: dict[str, Any], vectors: list[Any]
) -> None:
    """`dimensions` not honoured by the node does not count as completed; the next node is asked."""
    right = embedding([0.5, 0.5], [0.5, 0.5])
    await start(fleet, embedding(*vectors), right)
    _, _, headers = await fleet.post({"model": MODEL, **given}, VECTORS)
    assert await outcomes(fleet, headers) == [("a", "unhonoured", "node"), ("b", "completed", "nobody")]


async def test_embeddings_that_keep_to_the_request_are_completed(fleet: Fleet) -> None:
    """Also in base64, and a prompt of token ids is one text."""
    await start(fleet, embedding("AAAAPwAAAD8="))
    given = {"model": MODEL, "input": [1, 2, 3], "dimensions": 2, "encoding_format": "base64"}
    _, _, headers = await fleet.post(given, VECTORS)
    assert await outcomes(fleet, headers) == [("a", "completed", "nobody")]
    assert headers["X-Touchstone-Usage-By"] == "node"


# Calls of tools.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("message", "is_good"),
    [
        (call(), True),
        (call({"city": "Paris"}), True),
        (call('{"city": '), False),
        (call("{}"), False),
        (call("[]"), False),
        (call(name="another"), False),
        (call(""), False),
    ],
)
async def test_calls_of_tools_are_measured(
    fleet: Fleet,
    message: Any,
    is_good: bool,  # noqa: FBT001
    stream: bool,  # noqa: FBT001
) -> None:
    """Arguments parse as JSON, the tool is one that is offered, and what it requires is there.  It blames nobody."""
    await start(fleet, node_of(message, end="tool_calls"))
    heard = await fleet.ask(TOOLS | {"stream": stream})
    assert await outcomes(fleet, heard.headers) == [("a", "completed", "nobody")]
    standing = fleet.standing("a")
    assert (standing.calls, standing.bad_calls) == (1.0, 0.0 if is_good else 1.0)


async def test_an_answer_without_a_call_measures_none(fleet: Fleet) -> None:
    """Nobody had to call a tool."""
    await start(fleet, node_of(says("no need")))
    await fleet.ask(TOOLS)
    assert fleet.standing("a").calls == 0


def with_calls(fleet: Fleet, **bad: int) -> None:
    """Established nodes that were seen to call tools a hundred times, so many of them badly."""
    now = fleet.clock.ms / 1000
    for name, count in bad.items():
        seen = Standing(
            (100.0,) * 2, exchanges=100.0, at=now, latency_s=0.1, calls=100.0, bad_calls=float(count)
        )
        fleet.router.restore_statistics(name, "small", StatisticsAggregate(seen))


def firsts(fleet: Fleet, *, has_tools: bool) -> set[str]:
    """The nodes that are first, in decisions that can be made again from their records."""
    dispatcher, workload = fleet.app[GATEWAY].dispatcher, fleet.router.table.workloads["tiny"]
    found = set()
    for seed in range(40):
        dispatcher.seed = partial(int, seed)
        decision = dispatcher.decide(workload, has_tools=has_tools).decision
        assert replay(Decision.from_wire(decision.to_wire())) == decision
        found.add(decision.ranked[0].node)
    return found


async def test_work_with_tools_goes_to_nodes_that_call_them_well(fleet: Fleet) -> None:
    """And all other work goes to all."""
    await start(fleet, node_of(call()), node_of(call()))
    with_calls(fleet, a=60, b=2)
    assert firsts(fleet, has_tools=True) == {"b"}
    assert firsts(fleet, has_tools=False) == {"a", "b"}
    heard = await fleet.ask(TOOLS, **{"X-Touchstone-Explain": "1"})
    shown = heard.json["touchstone"]
    assert (shown["has_tools"], [each["node"] for each in shown["ranked"]]) == (True, ["b", "a"])
    assert shown["ranked"][0]["calls"] > 1 > shown["ranked"][1]["calls"]


async def test_a_models_own_errors_are_nobodys_fault(fleet: Fleet) -> None:
    """Both nodes are as bad at it: neither is preferred, and the grade of neither suffers."""
    await start(fleet, node_of(call()), node_of(call()))
    with_calls(fleet, a=60, b=60)
    assert firsts(fleet, has_tools=True) == {"a", "b"}
    assert {fleet.statistics(name).rating.grade for name in "ab"} == {"established"}


async def test_a_standing_shows_how_tools_are_called(fleet: Fleet) -> None:
    """Next to what is usual."""
    await start(fleet, node_of(call()), node_of(call()))
    with_calls(fleet, a=60, b=0)
    _, shown = await fleet.get("/api/v1/nodes/a/standing")
    assert shown["tiers"]["small"]["tool_calls"] == {"answers": 100.0, "bad": 60.0, "good_share": 0.4}
    compared = shown["workloads"]["tiny"]["tool_calls"]
    assert compared["compared"] < 1 < shown["tiers"]["small"]["tool_calls"]["answers"]


async def test_an_operators_own_work_measures_no_calls(fleet: Fleet) -> None:
    """Else it could show that its nodes call tools well."""
    node = await fleet.node("a")
    node.act = node_of(call())
    fleet.verifier.trust("a", endpoint=node.endpoint, operator="acme")
    await fleet.start(sections={"keys": [key("acme", operator="acme"), key("customer")]})
    for name, seen in (("acme", 0.0), ("customer", 1.0)):
        assert (await fleet.ask(TOOLS, **by(name))).status == 200
        await until(lambda: fleet.router.in_flight("a") == 0)
        assert fleet.standing("a").calls == seen
