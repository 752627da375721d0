"""
Every operation through the router, with what real engines answered (fixtures/answers/forms).

The node replays a recorded answer; the client gets it as the engine gave it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from router.config import ApiKey
from router.gateway.errors import GatewayError
from router.gateway.request import NodeRequest, read_request
from router.model.operations import OPERATIONS
from router.model.standing import Standing
from router.model.workload import Table, Workload
from tests.integration.gateway import CHAT, CHATS, STREAM, TEXT, TEXTS, Fleet, Heard, key, official, opened
from tests.unit.router.doubles import FakeNode
from tests.unit.router.support import MODEL
from tests.unit.router.test_forms import ALL

ONE_KEY = {"keys": [key("ada"), key("auditor", roles=["auditor"])]}
BY_ADA = {"Authorization": "Bearer sk-ada"}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


def recorded(*names: str) -> Any:
    found = [
        pytest.param(answer, id=f"{engine}-{name}")
        for engine, name, answer in ALL
        if name in names and answer["status"] == 200
    ]
    assert found, names
    return pytest.mark.parametrize("answer", found)


def replays(answer: dict[str, Any], *, cut_after: int | None = None) -> Any:
    """A node that answers as it is recorded, or drops the connection after so many events."""

    async def act(request: web.Request) -> web.StreamResponse:
        assert request.path == answer["path"]
        body = answer["body"].encode()
        kind = answer["content_type"].partition(";")[0]
        response = web.StreamResponse(status=answer["status"], headers={"Content-Type": kind})
        await response.prepare(request)
        if cut_after is None:
            await response.write(body)
            return response
        await response.write(b"".join(event + b"\n\n" for event in body.split(b"\n\n")[:cut_after]))
        assert request.transport is not None
        request.transport.close()
        return response

    return act


async def start(fleet: Fleet, answer: dict[str, Any], **gateway: Any) -> FakeNode:
    node = await fleet.node("a")
    node.act = replays(answer)
    await fleet.start(**gateway)
    return node


async def ask(fleet: Fleet, answer: dict[str, Any], **headers: str) -> Heard:
    return await fleet.ask({**answer["request"], "model": MODEL}, answer["path"], **headers)


def events(body: str) -> list[tuple[str, Any]]:
    """The name and the data of each event, without what is not part of an answer."""
    found = []
    for block in body.strip().split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.split("\n"))
        data = fields["data"]
        if data not in ("null", "[DONE]"):
            found.append((fields.get("event", ""), json.loads(data)))
    return found


NEW_WHOLE = (
    "responses",
    "responses-messages",
    "responses-tool",
    "messages",
    "messages-blocks",
    "messages-tool",
)
NEW_STREAMS = ("responses-stream", "responses-tool-stream", "messages-stream", "messages-tool-stream")
SCORES = ("rerank", "rerank-top", "score")


@recorded(*NEW_WHOLE, *SCORES)
async def test_a_whole_answer_reaches_the_client(fleet: Fleet, answer: dict[str, Any]) -> None:
    """`/v1/responses`, `/v1/messages`, `/v1/rerank` and `/v1/score` were 404."""
    await start(fleet, answer)
    heard = await ask(fleet, answer)
    assert (heard.status, heard.json) == (200, json.loads(answer["body"]))
    (attempt,) = await fleet.record(heard.headers)
    assert attempt["outcome"] == "completed"


@recorded(*NEW_STREAMS)
async def test_a_stream_reaches_the_client(fleet: Fleet, answer: dict[str, Any]) -> None:
    """Event by event, with their names, and with nothing of another form: no `[DONE]`."""
    await start(fleet, answer)
    heard = await ask(fleet, answer)
    assert events(heard.body.decode()) == events(answer["body"])
    assert b"[DONE]" not in heard.body
    (attempt,) = await fleet.record(heard.headers)
    assert (attempt["outcome"], attempt.get("unclean", False)) == ("completed", False)


@recorded("responses", "responses-stream", "messages", "messages-stream", *SCORES)
async def test_the_caller_is_charged(fleet: Fleet, answer: dict[str, Any]) -> None:
    """By the router's count of what was asked and answered."""
    node = await fleet.node("a")
    node.act = replays(answer)
    await fleet.start(sections=ONE_KEY)
    await ask(fleet, answer, **BY_ADA)
    _, used = await fleet.get("/api/v1/usage", **BY_ADA)
    (found,) = [each for each in used["keys"] if each["name"] == "ada"]
    assert 3 <= found["tokens_of_day"] <= 60


@recorded(*NEW_STREAMS)
async def test_a_stream_that_is_cut_ends_with_an_error(fleet: Fleet, answer: dict[str, Any]) -> None:
    """In the operation's own form: an event `error`."""
    node = await fleet.node("a")
    node.act = replays(answer, cut_after=len(events(answer["body"])) - 2)
    await fleet.start()
    heard = await ask(fleet, answer)
    name, data = events(heard.body.decode())[-1]
    assert (name, data["type"], data["error"]["code"]) == ("error", "error", "truncated")
    assert fleet.failed("a") > 0


@recorded("messages-stream")
async def test_the_last_event_alone_may_be_missing(fleet: Fleet, answer: dict[str, Any]) -> None:
    """As with `[DONE]`: the answer is whole, and the client gets its end from the router."""
    node = await fleet.node("a")
    node.act = replays(answer, cut_after=len(events(answer["body"])) - 1)
    await fleet.start()
    heard = await ask(fleet, answer)
    assert events(heard.body.decode()) == events(answer["body"])
    (attempt,) = await fleet.record(heard.headers)
    assert (attempt["outcome"], attempt["unclean"]) == ("completed", True)


@recorded("responses-stream", "messages-stream")
async def test_a_stream_is_explained_in_an_event_of_its_own(fleet: Fleet, answer: dict[str, Any]) -> None:
    """After the node's last one."""
    await start(fleet, answer)
    heard = await ask(fleet, answer, **{"X-Touchstone-Explain": "1"})
    *before, (name, data) = events(heard.body.decode())
    assert before == events(answer["body"])
    assert (name, data["type"], data["touchstone"]["chosen"]) == ("touchstone", "touchstone", "a")


@pytest.mark.parametrize(
    ("member", "value"),
    [("previous_response_id", "resp_1"), ("store", True), ("background", True), ("conversation", "c")],
)
async def test_what_needs_a_servers_memory_is_refused(fleet: Fleet, member: str, value: Any) -> None:
    """Clearly, and before a node is asked."""
    node = await fleet.node("a")
    await fleet.start()
    heard = await fleet.ask({"model": MODEL, "input": "x", member: value}, "/v1/responses")
    assert (heard.status, heard.error["code"], node.requests) == (400, "state_not_kept", [])
    assert heard.error["message"].startswith(member)


async def test_a_members_other_spelling_is_refused(fleet: Fleet) -> None:
    """A node might read it, and the router would not."""
    await fleet.start()
    heard = await fleet.ask({"model": MODEL, "input": "x", "Store": True}, "/v1/responses")
    assert (heard.status, "lower case" in heard.error["message"]) == (400, True)


@recorded("responses")
async def test_nodes_are_told_to_keep_nothing(fleet: Fleet, answer: dict[str, Any]) -> None:
    """OpenAI's default is to keep a response."""
    node = await start(fleet, answer)
    await fleet.ask({"model": MODEL, "input": "x"}, "/v1/responses")
    assert json.loads(node.bodies[-1])["store"] is False


async def test_errors_of_messages_have_the_form_that_their_clients_read(fleet: Fleet) -> None:
    """With a type beside the error."""
    await fleet.start()
    heard = await fleet.ask({"model": MODEL, "messages": [], "max_tokens": 8}, "/v1/messages")
    assert (heard.status, heard.json["type"], "message" in heard.error) == (503, "error", True)
    heard = await fleet.ask({"model": 1}, "/v1/messages")
    assert (heard.status, heard.json["type"]) == (400, "error")


@pytest.mark.parametrize("name", ["rerank", "score"])
async def test_scores_cannot_be_streamed(fleet: Fleet, name: str) -> None:
    """There is no text."""
    await fleet.start()
    heard = await fleet.ask({"model": MODEL, "stream": True}, f"/v1/{name}")
    assert (heard.status, heard.error["message"]) == (400, f"{name} cannot be streamed")


@recorded("responses", "messages", "rerank", "score")
async def test_a_workload_may_close_an_operation(fleet: Fleet, answer: dict[str, Any]) -> None:
    """The list of a workload holds for the new operations too."""
    node = await fleet.node("a")
    node.act = replays(answer)
    await fleet.start({"operations": ["chat/completions"]})
    assert ((await ask(fleet, answer)).status, node.requests) == (404, [])


@recorded("responses-stream")
async def test_more_text_than_was_asked_for_is_corrupted(fleet: Fleet, answer: dict[str, Any]) -> None:
    """Also where the limit is called `max_output_tokens`."""
    more = answer["body"].replace("\n\n", "\n\n", 1)
    event = next(block for block in answer["body"].split("\n\n") if ".delta" in block)
    node = await start(fleet, {**answer, "body": more.replace(event, "\n\n".join([event] * 40))})
    heard = await fleet.ask(
        {"model": MODEL, "input": "x", "max_output_tokens": 8, "stream": True}, "/v1/responses"
    )
    (attempt,) = await fleet.record(heard.headers)
    assert (attempt["outcome"], len(node.requests)) == ("corrupted", 1)


@recorded("responses", "responses-stream")
async def test_the_official_client_reads_responses(fleet: Fleet, answer: dict[str, Any]) -> None:
    """As it does with OpenAI."""
    await start(fleet, answer)
    streamed = answer["request"].get("stream", False)
    async with official(fleet) as client:
        if not streamed:
            response = await client.responses.create(model=MODEL, input="Say hello.")
            assert response.output_text
            return
        stream = await client.responses.create(model=MODEL, input="Say hello.", stream=True)
        kinds = [event.type async for event in stream]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")


# Several answers.

SEVERAL = ("chat-n2", "completions-list", "completions-list-n2")
SEVERAL_STREAMED = ("chat-n2-stream", "completions-list-stream")


@recorded(*SEVERAL)
async def test_several_answers_are_served(fleet: Fleet, answer: dict[str, Any]) -> None:
    """`n` > 1 and a list of prompts were refused."""
    await start(fleet, answer)
    heard = await ask(fleet, answer)
    assert (heard.status, heard.json) == (200, json.loads(answer["body"]))


@recorded(*SEVERAL_STREAMED)
async def test_several_answers_are_streamed(fleet: Fleet, answer: dict[str, Any]) -> None:
    """Choices by their index, each to its end, with one usage; llama.cpp begins some with an event `null`."""
    await start(fleet, answer)
    heard = await ask(fleet, answer)
    expected = [choice for _, data in events(answer["body"]) for choice in data["choices"]]
    assert (heard.choices, heard.done, len(heard.usage)) == (expected, True, 1)
    ends = {choice["index"] for choice in heard.choices if choice["finish_reason"] == "length"}
    assert ends == {0, 1}
    (attempt,) = await fleet.record(heard.headers)
    assert (attempt["outcome"], attempt.get("unclean", False)) == ("completed", False)


@recorded("chat-n2-stream")
async def test_an_answer_that_never_began_is_missed(fleet: Fleet, answer: dict[str, Any]) -> None:
    """The first has come to its end, and the connection breaks before the second begins: that is half of what was asked."""

    def of_first(block: str) -> bool:
        return all(choice["index"] == 0 for _, data in events(block) for choice in data["choices"])

    blocks = [block for block in answer["body"].split("\n\n") if block and "[DONE]" not in block]
    first = [block for block in blocks if '"choices":[{' in block and of_first(block)]
    node = await fleet.node("a")
    node.act = replays({**answer, "body": "\n\n".join(first) + "\n\n"}, cut_after=len(first))
    await fleet.start()
    heard = await ask(fleet, answer)
    assert (heard.done, heard.error["code"]) == (False, "truncated")


@recorded("chat-n2-stream")
async def test_several_answers_say_nothing_of_a_nodes_claims(fleet: Fleet, answer: dict[str, Any]) -> None:
    """llama.cpp claims the tokens of one of them alone."""
    await start(fleet, answer)
    await ask(fleet, answer)
    assert fleet.standing("a") != Standing()
    assert fleet.standing("a").rejects == 0


@pytest.mark.parametrize(
    "body",
    [CHAT | {"n": 129}, TEXT | {"n": 128, "prompt": ["x"] * 33}, TEXT | {"prompt": ["x"] * 4097}],
    ids=["choices", "both", "prompts"],
)
async def test_so_many_answers_are_refused(fleet: Fleet, body: dict[str, Any]) -> None:
    """An engine begins all of them at once."""
    node = await fleet.node("a")
    await fleet.start()
    heard = await fleet.ask(body, CHATS if "messages" in body else TEXTS)
    assert (heard.status, node.requests) == (400, [])


@recorded("chat-n2-stream")
async def test_the_official_client_reads_several_answers(fleet: Fleet, answer: dict[str, Any]) -> None:
    """Streamed, by index."""
    await start(fleet, answer)
    texts = {0: "", 1: ""}
    async with official(fleet) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=STREAM["messages"], stream=True, n=2, max_tokens=4
        )
        async for each in stream:
            for choice in each.choices:
                texts[choice.index] += choice.delta.content or ""
    assert all(texts.values())


# How much work a request is.

WORKLOADS = Table([Workload(model=MODEL, name="tiny")])


def request(body: dict[str, Any], path: str = TEXTS) -> NodeRequest:
    data = json.dumps({"model": MODEL, **body}).encode()
    operation = OPERATIONS[path.removeprefix("/v1/")]
    return read_request(data, operation, WORKLOADS, ApiKey(name="a", sha256="0" * 64), workload=None)


@pytest.mark.parametrize(
    ("body", "path", "tokens"),
    [
        ({"prompt": "a", "max_tokens": 8}, TEXTS, 8),
        ({"prompt": ["a", "b"], "max_tokens": 8}, TEXTS, 16),
        ({"prompt": [1, 2, 3], "max_tokens": 8}, TEXTS, 8),
        ({"prompt": [[1, 2], [3]], "max_tokens": 8}, TEXTS, 16),
        ({"prompt": ["a", "b"], "n": 3, "max_tokens": 8}, TEXTS, 48),
        ({"prompt": "a", "n": 2, "best_of": 5, "max_tokens": 8}, TEXTS, 40),
        ({"messages": [], "n": 3, "max_completion_tokens": 8}, CHATS, 24),
        ({"messages": []}, CHATS, None),
        ({"input": "a", "max_output_tokens": 8, "n": 3}, "/v1/responses", 8),
        ({"messages": [], "max_tokens": 8}, "/v1/messages", 8),
        ({"query": "a", "documents": ["b"]}, "/v1/rerank", 0),
        ({"input": ["a", "b"]}, "/v1/embeddings", 0),
    ],
)
def test_the_size_of_a_request(body: dict[str, Any], path: str, tokens: int | None) -> None:
    """max_tokens · n · prompts, as far as the operation knows them."""
    assert request(body, path).size.answer == tokens


def test_a_limit_must_be_a_number_where_it_is_read() -> None:
    """Router and engine must read it alike."""
    with pytest.raises(GatewayError):
        request({"input": "a", "max_output_tokens": "8"}, "/v1/responses")
