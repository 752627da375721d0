"""The newer forms of answers, as real engines gave them (fixtures/answers/forms), and as nobody should."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.answers import forms
from router.gateway.sse import EventParser
from router.model import messages, responses, scores
from router.model.answers import AnswerFormatError, ChunkReader, Content, StreamPart, StreamReader
from router.model.errors import AttemptError, RequestFormError
from router.model.operations import OPERATIONS
from router.model.outcomes import Outcome
from router.model.usage import Usage

RECORDED = Path(forms.__file__).parent
ENGINES = {path.stem: json.loads(path.read_text()) for path in sorted(RECORDED.glob("*.json"))}
ALL = [
    (engine, name, answer)
    for engine, document in ENGINES.items()
    for name, answer in document["answers"].items()
]


def named(*names: str) -> Any:
    """Each recorded answer of one of these names, of each engine that gave it with status 200."""
    found = [
        pytest.param(answer, id=f"{engine}-{name}")
        for engine, name, answer in ALL
        if name in names and answer["status"] == 200
    ]
    return pytest.mark.parametrize("answer", found)


def operation(answer: dict[str, Any]) -> Any:
    return OPERATIONS[answer["path"].removeprefix("/v1/")]


def read_all(reader: StreamReader, body: bytes) -> list[StreamPart]:
    events = EventParser().feed(body)
    return [reader.read(event.data) for event in events]


WHOLE = ("responses", "responses-messages", "messages", "messages-blocks")
STREAMS = ("responses-stream", "responses-tool-stream", "messages-stream", "messages-tool-stream")


def test_both_engines_were_recorded() -> None:
    """What is not recorded is not known."""
    assert set(ENGINES) == {"llama.cpp", "vllm"}


@named(*WHOLE, "responses-tool", "messages-tool", "messages-no-max")
def test_whole_answers_of_real_engines_are_read(answer: dict[str, Any]) -> None:
    """`/v1/responses` and `/v1/messages` are served: text, and the usage that the node claims."""
    judged = operation(answer).judge(200, answer["body"].encode())
    assert judged.outcome is Outcome.COMPLETED
    assert judged.content.text
    assert judged.content.claimed is not None
    assert 1 <= judged.content.claimed.completion <= 60
    assert 20 <= judged.content.claimed.prompt <= 60


@named(*STREAMS)
def test_streams_of_real_engines_are_read(answer: dict[str, Any]) -> None:
    """Each event goes on, the text is counted once, the end is seen, and the usage is the node's."""
    reader = operation(answer).read_stream()
    parts = read_all(reader, answer["body"].encode())
    claimed = [part.claimed for part in parts if part.claimed is not None]
    assert (reader.is_done, reader.is_finished, len(claimed)) == (True, True, 1)
    assert all(part.forward is not None for part in parts)
    text = "".join(part.text for part in parts)
    # A delta that holds half a character is empty in both engines, so that a token may show no text.
    assert text
    assert 0 < sum(bool(part.text) for part in parts) <= claimed[0].completion + 1


@named(*STREAMS)
def test_a_stream_that_is_cut_anywhere_is_not_finished(answer: dict[str, Any]) -> None:
    """The last events alone end it."""
    events = list(EventParser().feed(answer["body"].encode()))
    for cut in range(len(events) - 2):
        reader = operation(answer).read_stream()
        for event in events[:cut]:
            reader.read(event.data)
        assert not reader.is_finished


@named("rerank", "rerank-top", "score")
def test_scores_of_real_engines_are_read(answer: dict[str, Any]) -> None:
    """`/v1/rerank` and `/v1/score` through the table of operations."""
    judged = operation(answer).judge(200, answer["body"].encode())
    assert judged.outcome is Outcome.COMPLETED
    assert judged.content.claimed is not None
    assert judged.content.claimed.prompt >= 10


@named("chat-n2", "completions-list", "completions-list-n2")
def test_several_answers_of_real_engines_are_read(answer: dict[str, Any]) -> None:
    """`n` > 1 and lists of prompts: the text of every choice counts."""
    judged = operation(answer).judge(200, answer["body"].encode())
    choices = json.loads(answer["body"])["choices"]
    texts = [each.get("text") or each["message"]["content"] for each in choices]
    assert (judged.outcome, judged.content.text) == (Outcome.COMPLETED, "".join(texts))


@named("chat-n2-stream", "completions-list-stream")
def test_several_streamed_answers_of_real_engines_are_read(answer: dict[str, Any]) -> None:
    """Their parts come in any order, and each has its own end."""
    reader = ChunkReader()
    read_all(reader, answer["body"].encode())
    assert (reader.is_done, reader.ended) == (True, 2)


@pytest.mark.parametrize(
    ("engine", "name", "answer"),
    [pytest.param(*each, id=f"{each[0]}-{each[1]}") for each in ALL if each[2]["status"] in (400, 404)],
)
def test_refusals_of_real_engines_are_nobodys_crash(engine: str, name: str, answer: dict[str, Any]) -> None:
    """What a client asked for wrongly counts against no node."""
    judged = operation(answer).judge(answer["status"], answer["body"].encode())
    assert judged.outcome in (Outcome.REFUSED, Outcome.UNSUPPORTED)


# Usage.


def test_tokens_that_were_cached_are_of_the_prompt() -> None:
    """llama.cpp counts them apart in messages."""
    body = ENGINES["llama.cpp"]["answers"]["messages"]["body"].encode()
    usage = json.loads(body)["usage"]
    assert usage["cache_read_input_tokens"] > 0
    claimed = messages.read_message(body).claimed
    assert claimed is not None
    assert claimed.prompt == usage["cache_read_input_tokens"] + usage["input_tokens"]


@named("messages", "responses")
def test_the_routers_count_can_take_the_place_of_the_nodes(answer: dict[str, Any]) -> None:
    """In the form of the operation, with the other members as they were."""
    form = operation(answer)
    body = form.write_usage(answer["body"].encode(), Usage(50, 7))
    assert form.judge(200, body).content.claimed == Usage(50, 7)
    before, after = json.loads(answer["body"]), json.loads(body)
    assert {**after, "usage": None} == {**before, "usage": None}


@pytest.mark.parametrize(
    "usage", [None, [], "x", {}, {"input_tokens": 1}, {"input_tokens": -1, "output_tokens": 2}]
)
def test_a_usage_that_cannot_be_read_is_none(usage: Any) -> None:
    """Nothing but the count rests on it."""
    body = {"content": [{"type": "text", "text": "a"}], "stop_reason": "end_turn", "usage": usage}
    assert messages.read_message(json.dumps(body).encode()) == Content("a", None)


# What is no answer.


def whole(reader: Callable[[bytes], Content], document: Any) -> Content:
    return reader(document if isinstance(document, bytes) else json.dumps(document).encode())


@pytest.mark.parametrize(
    "document",
    [
        b"", b"[]", b"{}", b"\xff", {"output": None}, {"output": [1]}, {"output": {}},
        {"output": [], "status": "in_progress"}, {"output": [], "status": "failed"}, {"output": [], "status": 1},
        {"output": [{"type": "message"}]}, {"output": [{"type": "message", "content": "text"}]},
        {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]},
    ],
)  # fmt: skip
def test_what_is_no_response_is_refused(document: Any) -> None:
    """The status 200 alone is no answer."""
    with pytest.raises(AnswerFormatError):
        whole(responses.read_response, document)


@pytest.mark.parametrize(
    "document",
    [
        b"", b"[]", b"{}", b"\xff", {"content": None, "stop_reason": "end_turn"}, {"content": [1], "stop_reason": "x"},
        {"content": [{"type": "text", "text": "a"}]}, {"content": [{"type": "text", "text": "a"}], "stop_reason": ""},
        {"content": [{"type": "text", "text": "a"}], "stop_reason": None},
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(document: Any) -> None:
    """Nor is one without an end; an empty value is not an end."""
    with pytest.raises(AnswerFormatError):
        whole(messages.read_message, document)


@pytest.mark.parametrize(
    "document",
    [
        b"", b"[]", b"{}", b"\xff", {"results": []}, {"results": [{"index": 0}]}, {"results": [{"relevance_score": 1}]},
        {"results": [{"index": -1, "relevance_score": 1}]}, {"results": [{"index": 0, "relevance_score": "1"}]},
        b'{"results": [{"index": 0, "relevance_score": NaN}]}',
    ],
)  # fmt: skip
def test_what_is_no_ranking_is_refused(document: Any) -> None:
    """Each document has an index and a number."""
    with pytest.raises(AnswerFormatError):
        whole(scores.read_ranking, document)


@pytest.mark.parametrize(
    "document", [b"", b"{}", {"data": []}, {"data": [{"score": None}]}, {"data": [{"embedding": [0.1]}]}]
)
def test_what_is_no_list_of_scores_is_refused(document: Any) -> None:
    """Each pair has a number."""
    with pytest.raises(AnswerFormatError):
        whole(scores.read_scores, document)


@pytest.mark.parametrize(
    ("read", "document"),
    [
        (responses.read_response, {"output": []}),
        (responses.read_response, {"output": [{"type": "message", "content": []}]}),
        (responses.read_response, {"output": [{"type": "reasoning", "summary": []}]}),
        (messages.read_message, {"content": [], "stop_reason": "end_turn"}),
        (messages.read_message, {"content": [{"type": "text", "text": ""}], "stop_reason": "end_turn"}),
    ],
)
def test_an_answer_may_have_nothing_in_it(read: Callable[[bytes], Content], document: Any) -> None:
    """Perhaps the request asks for just that."""
    assert whole(read, document).is_empty


@pytest.mark.parametrize(
    ("read", "document"),
    [
        (responses.read_response, {"output": [{"type": "web_search_call", "id": "x"}]}),
        (responses.read_response, {"output": [{"type": "function_call", "name": "f", "arguments": {}}]}),
        (
            messages.read_message,
            {"content": [{"type": "tool_use", "name": "f", "input": {}}], "stop_reason": "x"},
        ),
        (
            messages.read_message,
            {"content": [{"type": "redacted_thinking", "data": "x"}], "stop_reason": "x"},
        ),
    ],
)
def test_what_the_router_does_not_understand_is_something(
    read: Callable[[bytes], Content], document: Any
) -> None:
    """It is lenient about what it does not use."""
    assert not whole(read, document).is_empty


RESPONSE_EVENTS = [
    {"type": "response.created", "response": {"id": "r"}},
    {"type": "response.output_text.delta", "delta": "a"},
    {"type": "response.output_text.done", "text": "a"},
    {"type": "response.completed", "response": {"output": []}},
]


@pytest.mark.parametrize(
    ("form", "data", "outcome"),
    [
        ("responses", b"[DONE]", Outcome.TRUNCATED),
        ("responses", b'{"type": "response.failed", "response": {}}', Outcome.CRASHED),
        ("responses", b'{"type": "error", "message": "x"}', Outcome.CRASHED),
        ("responses", b'{"error": {"message": "x"}}', Outcome.CRASHED),
        ("responses", b"{}", Outcome.CORRUPTED),
        ("responses", b"nonsense", Outcome.CORRUPTED),
        ("responses", b"\xff", Outcome.CORRUPTED),
        ("messages", b"[DONE]", Outcome.TRUNCATED),
        ("messages", b'{"type": "message_stop"}', Outcome.TRUNCATED),
        ("messages", b'{"type": "error", "error": {"type": "overloaded_error"}}', Outcome.CRASHED),
        ("messages", b'{"type": "content_block_delta"}', Outcome.CORRUPTED),
        ("messages", b"[]", Outcome.CORRUPTED),
    ],
)
def test_what_ends_a_stream_badly(form: str, data: bytes, outcome: Outcome) -> None:
    """Each with its outcome."""
    read_stream = OPERATIONS[form].read_stream
    assert read_stream is not None
    with pytest.raises(AttemptError) as raised:
        read_stream().read(data)
    assert raised.value.outcome is outcome


def test_a_call_without_arguments_is_text_too() -> None:
    """Its name: otherwise such an answer looks empty."""
    item = {"type": "function_call", "name": "now", "arguments": ""}
    event = json.dumps({"type": "response.output_item.added", "item": item}).encode()
    assert responses.ResponseReader().read(event).text == "now"


def test_a_block_that_is_open_keeps_a_message_open() -> None:
    """A reason to stop is not the end while text may come."""
    reader = messages.MessageReader()
    reader.read(b'{"type": "content_block_start", "index": 0, "content_block": {"type": "text"}}')
    reader.read(b'{"type": "message_delta", "delta": {"stop_reason": "end_turn"}}')
    assert not reader.is_finished


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "output", "content", "status", "stop_reason", "usage", "text", "name", "input", "arguments", "delta",
         "index", "item", "response", "summary", "results", "data", "score", "relevance_score", "input_tokens",
         "output_tokens", "message", "content_block", "error", "partial_json"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
KINDS = st.sampled_from([
    "response.created", "response.output_text.delta", "response.output_item.added", "response.completed",
    "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
    "message_stop", "ping", "text_delta", "tool_use", "text", "message", "function_call", "completed", "end_turn",
])  # fmt: skip


@given(st.binary(max_size=40) | JSON.map(msgspec.json.encode))
@pytest.mark.parametrize(
    "read",
    [responses.read_response, messages.read_message, scores.read_ranking, scores.read_scores],
    ids=["responses", "messages", "rerank", "score"],
)
def test_no_body_raises_anything_else(read: Callable[[bytes], Content], body: bytes) -> None:
    """A body is an answer, or it is refused as none."""
    try:
        found = read(body)
    except AnswerFormatError:
        return
    assert isinstance(found.text, str)
    assert found.claimed is None or found.claimed.total >= 0


@given(st.lists(st.binary(max_size=20) | JSON.map(msgspec.json.encode) | st.builds(
    lambda kind, more: msgspec.json.encode({**more, "type": kind}),
    KINDS,
    st.dictionaries(st.sampled_from(["delta", "item", "response", "index", "message", "usage", "content_block"]), JSON),
), max_size=6))  # fmt: skip
@pytest.mark.parametrize(
    "make", [responses.ResponseReader, messages.MessageReader], ids=["responses", "messages"]
)
def test_no_event_raises_anything_else(make: Callable[[], StreamReader], events: list[bytes]) -> None:
    """An event is read, or it ends the attempt with an outcome."""
    reader = make()
    try:
        for event in events:
            part = reader.read(event)
            assert part.forward == event
    except AttemptError:
        return
    assert reader.is_finished or not reader.is_done


# Requests.


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("conversation", {"id": "conv_1"}),
        ("store", True),
        ("background", True),
        ("input", [{"type": "item_reference", "id": "msg_1"}]),
    ],
)
def test_what_needs_a_servers_memory_is_refused(member: str, value: Any) -> None:
    """The next request may go to another node, which knows nothing of this one."""
    with pytest.raises(RequestFormError, match=member) as raised:
        responses.prepare_request({"model": "m", "input": "x", member: value})
    assert raised.value.code == "state_not_kept"


@pytest.mark.parametrize("member", ["previous_response_id", "conversation", "store", "background"])
def test_what_says_nothing_of_memory_is_served(member: str) -> None:
    """As many clients write what they do not want; and no node keeps anything."""
    document: dict[str, Any] = {"model": "m", "input": "x", member: None}
    responses.prepare_request(document)
    assert document["store"] is False


def test_the_prompt_of_a_response_is_all_that_is_read() -> None:
    """Instructions, texts, and what calls gave."""
    document = {
        "instructions": "a",
        "input": [
            {"role": "user", "content": "b"},
            {"role": "user", "content": [{"type": "input_text", "text": "c"}, {"type": "input_image"}]},
            {"type": "function_call", "name": "f", "arguments": "d"},
            {"type": "function_call_output", "output": "e"},
        ],
    }
    assert responses.prompt_text(document) == "a\nb\nc\nd\ne"


def test_the_prompt_of_a_message_is_all_that_is_read() -> None:
    """The system prompt, texts, calls and their results."""
    document = {
        "system": [{"type": "text", "text": "a"}],
        "messages": [
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"c": 1}}]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "content": [{"type": "text", "text": "d"}]}],
            },
        ],
    }
    assert messages.prompt_text(document) == 'a\nb\n{"c":1}\nd'


def test_the_prompt_of_scores_is_the_texts_of_both_sides() -> None:
    """As strings, or as objects with a text."""
    assert scores.prompt_text({"query": "a", "documents": ["b", {"text": "c"}]}) == "a\nb\nc"
    assert scores.prompt_text({"text_1": "a", "text_2": ["b", "c"]}) == "a\nb\nc"


@given(
    st.dictionaries(
        st.sampled_from(["input", "instructions", "messages", "system", "query", "documents"]), JSON
    )
)
@pytest.mark.parametrize("name", ["responses", "messages", "rerank", "score"])
def test_no_request_breaks_the_reading_of_its_prompt(name: str, document: dict[str, Any]) -> None:
    """Malformed parts contribute nothing."""
    assert isinstance(OPERATIONS[name].prompt_text(document), str)
