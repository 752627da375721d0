"""The forms in which engines word answers: what is read of them, and that no form makes a cut stream a whole one."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.gateway.sse import EventParser
from router.model.answers import ChunkReader, StreamPart, without_usage
from router.model.dialects import chunk_of, is_end, read_chunk, read_completion
from router.model.errors import AttemptError
from router.model.operations import OPERATIONS
from router.model.outcomes import Outcome
from router.model.usage import Usage
from router.model.wishes import Form, read_wishes

ANSWERS = Path(__file__).parents[3] / "fixtures" / "answers"
ENGINES = sorted(path.stem for path in ANSWERS.glob("*.json"))
CHAT, COMPLETIONS = "chat/completions", "completions"


def recorded(engine: str) -> dict[str, Any]:
    """What a real engine answered, by the name of the request."""
    found: dict[str, Any] = json.loads((ANSWERS / f"{engine}.json").read_text())["answers"]
    return found


RECORDED = [(engine, name) for engine in ENGINES for name in recorded(engine)]
STREAMS = [(engine, name) for engine, name in RECORDED if name.endswith("streamed")]
NAMES = [f"{engine}: {name}" for engine, name in STREAMS]


def data(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def choice(delta: Any, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None, **more}]}


TEXT = choice({"content": "a"})
END = choice({}, finish_reason="stop")


def read(*events: Any, reader: ChunkReader | None = None) -> tuple[ChunkReader, list[StreamPart]]:
    reader = reader or ChunkReader()
    return reader, [reader.read(data(event)) for event in events]


def text_of(parts: list[StreamPart]) -> str:
    return "".join(part.text for part in parts)


CALL = {"name": "f", "arguments": '{"a":1}'}

DIALECTS: dict[str, tuple[list[Any], str]] = {
    "OpenAI": ([TEXT, END], "a"),
    "arguments as an object": (
        [choice({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": {"a": 1}}}]}), END],
        'f{"a":1}',
    ),
    "arguments as an object, older form": (
        [choice({"function_call": {"name": "f", "arguments": {"a": 1}}}), END],
        'f{"a":1}',
    ),
    "arguments null": (
        [choice({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": None}}]}), END],
        "f",
    ),
    "a call without an index": ([choice({"tool_calls": [{"function": CALL}]}), END], 'f{"a":1}'),
    "a call with an index null": (
        [choice({"tool_calls": [{"index": None, "function": CALL}]}), END],
        'f{"a":1}',
    ),
    "a call with an index as text": (
        [choice({"tool_calls": [{"index": "0", "function": CALL}]}), END],
        'f{"a":1}',
    ),
    "a call with a function null": ([choice({"content": "a", "tool_calls": [{"function": None}]}), END], "a"),
    "calls as an empty object": ([choice({"content": "a", "tool_calls": {}}), END], "a"),
    "calls as one object": ([choice({"tool_calls": {"function": CALL}}), END], 'f{"a":1}'),
    "a call null": ([choice({"content": "a", "tool_calls": [None]}), END], "a"),
    "calls null": ([choice({"content": "a", "tool_calls": None, "function_call": None}), END], "a"),
    "a function call as text": ([choice({"content": "a", "function_call": ""}), END], "a"),
    "choices null in the usage event": (
        [TEXT, END, {"choices": None, "usage": {"completion_tokens": 1}}],
        "a",
    ),
    "no choices in the usage event": ([TEXT, END, {"usage": {"completion_tokens": 1}}], "a"),
    "index null": ([choice({"content": "a"}, index=None), choice({}, index=None, finish_reason="stop")], "a"),
    "index as text": ([choice({"content": "a"}, index="0"), choice({}, index=0, finish_reason="stop")], "a"),
    "index as a fraction": ([choice({"content": "a"}, index=0.0), END], "a"),
    "index odd": ([choice({"content": "a"}, index={}), END], "a"),
    "index missing": ([{"choices": [{"delta": {"content": "a"}}]}, END], "a"),
    "content as parts": ([choice({"content": [{"type": "text", "text": "a"}]}), END], "a"),
    "content as a thought and a text": (
        [
            choice({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "b"}]}]}),
            choice({"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}),
            END,
        ],
        "ba",
    ),
    "content as a list of texts": ([choice({"content": ["a", "b"]}), END], "ab"),
    "content an empty list": ([TEXT, choice({"content": []}), END], "a"),
    "content null with calls": (
        [choice({"content": None, "tool_calls": [{"function": CALL}]}), END],
        'f{"a":1}',
    ),
    "an empty event": ([b"", TEXT, b" ", END, b""], "a"),
    "an event null": ([b"null", TEXT, END], "a"),
    "an event of nothing": ([{}, TEXT, END], "a"),
    "no end as an empty text": ([choice({"content": "a"}, finish_reason=""), END], "a"),
    "no end as words": ([choice({"content": "a"}, finish_reason="null"), END], "a"),
    "no end as an odd value": ([choice({"content": "a"}, finish_reason=False), END], "a"),
    "an end of calls": (
        [choice({"tool_calls": [{"function": CALL}]}), choice({}, finish_reason="tool_calls")],
        'f{"a":1}',
    ),
    "an end of an older call": (
        [choice({"function_call": CALL}), choice({}, finish_reason="function_call")],
        'f{"a":1}',
    ),
    "an end by a token": ([TEXT, choice({}, finish_reason="eos_token")], "a"),
    "an end without a delta": ([TEXT, {"choices": [{"index": 0, "finish_reason": "stop"}]}], "a"),
    "a delta null": ([TEXT, choice(None, finish_reason="stop")], "a"),
    "a delta empty": ([choice("", text=None), TEXT, choice([], finish_reason="stop")], "a"),
    "content empty": ([choice({"content": {}}), TEXT, choice({"content": False}), END], "a"),
    "a delta without anything": ([choice({}), TEXT, END], "a"),
    "a role alone": ([choice({"role": "assistant"}), TEXT, END], "a"),
    "a role null": ([choice({"role": None, "content": "a"}), END], "a"),
    "the text at the end": ([choice({"content": "a"}, finish_reason="stop")], "a"),
    "text and delta": ([choice({"content": "a"}, text="a"), END], "a"),
    "an empty text beside the delta": ([choice({"content": "a"}, text=""), END], "a"),
    "messages in a stream": ([{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}], "a"),
    "reasoning": ([choice({"reasoning": "b"}), choice({"reasoning_content": "c"}), TEXT, END], "bca"),
    "reasoning as parts": ([choice({"reasoning": [{"type": "text", "text": "b"}]}), TEXT, END], "ba"),
    "reasoning that is odd": ([choice({"reasoning": 1, "content": "a"}), END], "a"),
    "a refusal that is odd": ([choice({"refusal": False, "content": "a"}), END], "a"),
    "logprobs": ([choice({"content": "a"}, logprobs={"content": [{"token": "a"}]}), END], "a"),
    "half of a surrogate pair": (
        [b'{"choices": [{"delta": {"content": "\\ud83d"}}], "usage": {}}', END],
        "\ud83d",
    ),
    "unknown members": ([choice({"content": "a", "x": [1]}, y={}) | {"z": None, "timings": {}}, END], "a"),
    "error null": ([TEXT | {"error": None}, END], "a"),
    "error empty": ([TEXT | {"error": {}}, END | {"error": ""}], "a"),
    "usage null": ([TEXT | {"usage": None}, END], "a"),
    "usage in every event": ([TEXT | {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}, END], "a"),
    "usage empty": ([TEXT | {"usage": {}}, END], "a"),
    "usage as a list": ([TEXT | {"usage": []}, END], "a"),
}
"""Of streams: each form with its text.  docs/dialects.md names who sends it."""


@pytest.mark.parametrize(("events", "text"), DIALECTS.values(), ids=DIALECTS)
def test_a_stream_of_each_dialect_is_whole(events: list[Any], text: str) -> None:
    """Dialects are nobody's fault: the text is read, the end is seen, and the last event closes it."""
    reader, parts = read(*events)
    assert text_of(parts) == text
    assert reader.is_finished
    read(b"[DONE]", reader=reader)
    assert reader.is_done


@pytest.mark.parametrize(("events", "text"), DIALECTS.values(), ids=DIALECTS)
def test_a_cut_stream_of_each_dialect_is_not_whole(events: list[Any], text: str) -> None:
    """Without what ends its text it is truncated, whatever came before."""
    ends = [n for n, event in enumerate(events) if _ends(event)]
    assert ends, text
    reader, _ = read(*events[: ends[0]])
    assert not reader.is_finished
    with pytest.raises(AttemptError) as caught:
        read(b"[DONE]", reader=reader)
    assert caught.value.outcome is Outcome.TRUNCATED


def _ends(event: Any) -> bool:
    chunk = read_chunk(data(event))
    return chunk is not None and any(each.has_ended for each in chunk.choices)


@pytest.mark.parametrize("empty", ["", " ", "null", "None", None, False, 0, [], {}])
def test_an_empty_value_is_not_an_end(empty: Any) -> None:
    """`finish_reason: ""` in every chunk: a cut stream does not count as whole."""
    reader, _ = read(*[choice({"content": "a"}, finish_reason=empty)] * 3)
    assert not reader.is_finished


def test_a_reason_in_every_chunk_is_no_end_without_the_last_event() -> None:
    """Text came after it: so the reasons of this engine say nothing, and a cut stream does not count as whole."""
    chunk = choice({"content": "a"}, finish_reason="stop")
    reader, _ = read(chunk, chunk)
    assert not reader.is_finished
    read(b"[DONE]", reader=reader)
    assert reader.is_finished


def test_text_after_an_end_needs_an_end_of_its_own() -> None:
    """What was said to be the end was none."""
    reader, _ = read(TEXT, END, TEXT)
    assert not reader.is_finished
    with pytest.raises(AttemptError, match="without an end"):
        read(b"[DONE]", reader=reader)


def asked(**document: Any) -> ChunkReader:
    wishes = read_wishes(document, Form.TEXTS, None)
    assert wishes is not None
    reader = ChunkReader()
    reader.watch(wishes)
    return reader


def test_a_stream_that_is_cut_before_its_second_choice_is_not_whole() -> None:
    """Two were asked for, and the other one never began."""
    reader, _ = read(TEXT, END, reader=asked(n=2))
    assert not reader.is_finished


def test_two_choices_without_an_index_are_not_one() -> None:
    """In one event their places tell them apart."""
    both = {"choices": [{"index": None, "delta": {"content": word}} for word in "ab"]}
    ends = {"choices": [{"index": None, "delta": {}, "finish_reason": "stop"}, {"index": None, "delta": {}}]}
    reader, _ = read(both, ends, reader=asked(n=2))
    assert not reader.is_finished


@pytest.mark.parametrize("done", [b"[DONE]", b" [DONE] ", b"[done]", b'"[DONE]"'])
def test_the_last_event_in_any_spelling(done: bytes) -> None:
    reader, _ = read(TEXT, END, done)
    assert reader.is_done


ERRORS = [
    {"error": {"message": "out of memory", "code": 500}},
    {"error": "out of memory"},
    {"error": ["out of memory"]},
    {"error": True},
    {"error": {"message": "x"}, "choices": []},
    {"error": {"message": "x"}, "choices": "none"},
    {"error": "x", "error_type": "generation"},
    {"object": "error", "message": "x", "type": "BadRequestError", "code": 400},
    {"type": "error", "error": {"type": "overloaded_error"}},
    {"errors": [{"message": "x"}]},
    choice({"content": ""}, finish_reason="error"),
    choice({"content": ""}, finish_reason="error") | {"error": {"code": 502}},
    choice({}, finish_reason="abort"),
]
"""From vLLM, SGLang, Text Generation Inference, llama.cpp and OpenRouter."""


@pytest.mark.parametrize("event", ERRORS, ids=json.dumps)
def test_an_error_in_any_form_is_an_error(event: Any) -> None:
    """It is never a text, an end or nothing.  What the request may have caused is in doubt."""
    with pytest.raises(AttemptError) as caught:
        read(TEXT, event)
    assert (caught.value.outcome, caught.value.is_doubtful) == (Outcome.CRASHED, True)


@pytest.mark.parametrize(
    "event",
    [
        b"{", b"ping", b'{"choices": [], "x": NaN, "y": "\\ud83d"}', b'{"choices": [], "x": 1e999, "y": "\\ud83d"}',
        b"[]", b"1", b'"a"', b"\xff", b'{"choices": [{"delta": {"content": "\xff"}}]}',
        {"choices": "a"}, {"choices": {}}, {"choices": [None]}, choice("a"), choice([1]), choice({"content": 1}),
        choice({"content": {"a": 1}}), choice({"content": 0}), choice({"tool_calls": "f"}),
        choice({"tool_calls": [1]}), choice({}, text=[]),
    ],
    ids=repr,
)  # fmt: skip
def test_what_the_router_must_understand_is_read_strictly(event: Any) -> None:
    """A text that cannot be read may be any text.  It is in doubt, because the request may have caused it."""
    with pytest.raises(AttemptError) as caught:
        read(TEXT, event)
    assert (caught.value.outcome, caught.value.is_doubtful) == (Outcome.CORRUPTED, True)


# Usage.


@pytest.mark.parametrize(
    ("usage", "claimed"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, Usage(3, 4)),
        ({"prompt_tokens": 3.0, "completion_tokens": 4.0}, Usage(3, 4)),
        ({"prompt_tokens": 3, "completion_tokens": None}, Usage(3, 0)),
        ({"prompt_tokens": 3, "completion_tokens": 4.5}, Usage(3, 0)),
        ({"prompt_tokens": "3", "completion_tokens": 4}, Usage(0, 4)),
        ({"prompt_tokens": -3, "completion_tokens": 4}, Usage(0, 4)),
        ({"prompt_tokens": 3, "completion_tokens": 10**30}, Usage(3, 0)),
        ({"prompt_tokens": 3, "completion_tokens": True}, Usage(3, 0)),
        ({"prompt_tokens": [], "completion_tokens": {}}, None),
        ({}, None),
        ([], None),
        ("x", None),
        (0, None),
    ],
)
def test_a_usage_claims_the_counts_that_can_be_counts(usage: Any, claimed: Usage | None) -> None:
    """Null, fractions, text, negative and huge numbers claim nothing, and are no fault; they never reach a client."""
    _, (part,) = read(TEXT | {"usage": usage})
    assert part.claimed == claimed
    assert part.forward is not None
    assert "usage" not in json.loads(part.forward)
    body = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": usage}
    answer = OPERATIONS[CHAT].judge(200, data(body))
    assert (answer.outcome, answer.content.claimed) == (Outcome.COMPLETED, claimed)


# Whole answers.


def whole(message: Any, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **more}]}


WHOLE: dict[str, tuple[Any, str]] = {
    "arguments as an object": (
        whole({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}),
        'f{"a":1}',
    ),
    "content as parts": (whole({"content": [{"type": "text", "text": "a"}]}), "a"),
    "index null": (whole({"content": "a"}, index=None), "a"),
    "calls null": (whole({"content": "a", "tool_calls": None}), "a"),
    "usage odd": (whole({"content": "a"}) | {"usage": {"completion_tokens": None}}, "a"),
    "an end by a token": (whole({"content": "a"}, finish_reason="eos"), "a"),
    "no id, no object, no model": (whole({"content": "a"}), "a"),
    "error null": (whole({"content": "a"}) | {"error": None}, "a"),
}


@pytest.mark.parametrize(("body", "text"), WHOLE.values(), ids=WHOLE)
def test_a_whole_answer_of_each_dialect_is_whole(body: Any, text: str) -> None:
    """As streams."""
    answer = OPERATIONS[CHAT].judge(200, data(body))
    assert (answer.outcome, answer.content.text, answer.body) == (Outcome.COMPLETED, text, data(body))


@pytest.mark.parametrize("reason", ["", "null", None, 0, "error", "abort"])
def test_a_whole_answer_without_an_end_is_none(reason: Any) -> None:
    answer = OPERATIONS[CHAT].judge(200, data(whole({"content": "a"}, finish_reason=reason)))
    assert answer.outcome is Outcome.CORRUPTED


@pytest.mark.parametrize("error", ["x", {"code": 500}, ["x"]])
def test_a_whole_answer_with_an_error_is_none(error: Any) -> None:
    answer = OPERATIONS[CHAT].judge(200, data(whole({"content": "a"}) | {"error": error}))
    assert answer.outcome is Outcome.CORRUPTED


# What real engines answered.


@pytest.mark.parametrize(("engine", "name"), RECORDED, ids=[f"{e}: {n}" for e, n in RECORDED])
def test_what_a_real_engine_answered_is_whole(engine: str, name: str) -> None:
    """Recorded from real runs: each answer is read to its end, with the usage that the engine claims."""
    answer = recorded(engine)[name]
    body = answer["body"].encode()
    operation = OPERATIONS[answer["path"].removeprefix("/v1/")]
    if not answer["request"].get("stream"):
        judged = operation.judge(answer["status"], body)
        expected = Outcome.COMPLETED if answer["status"] == 200 else Outcome.REFUSED
        assert judged.outcome is expected
        assert (judged.content.claimed is not None) is (expected is Outcome.COMPLETED)
        return
    reader, parts = stream(answer)
    assert reader.is_done
    assert text_of(parts)
    assert [part.claimed for part in parts if part.claimed is not None]


def stream(answer: dict[str, Any], size: int | None = None) -> tuple[ChunkReader, list[StreamPart]]:
    wishes = read_wishes(answer["request"], Form.TEXTS, None)
    reader = ChunkReader()
    if wishes is not None:
        reader.watch(wishes)
    events = list(EventParser().feed(answer["body"].encode()[:size]))
    return reader, [reader.read(event.data) for event in events if not reader.is_done]


@pytest.mark.parametrize(("engine", "name"), STREAMS, ids=NAMES)
def test_a_real_stream_that_is_cut_is_not_whole(engine: str, name: str) -> None:
    """Wherever it is cut before the last of its ends."""
    answer = recorded(engine)[name]
    body, count = answer["body"], answer["request"].get("n", 1)
    at = 0
    for _ in range(count):
        at = min(found for reason in ("stop", "length", "tool_calls")
                 if (found := body.find(f'"finish_reason":"{reason}"', at + 1)) > 0)  # fmt: skip
    for size in range(0, at, 37):
        assert not stream(answer, size)[0].is_finished


# Any JSON in any field.


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["choices", "index", "delta", "message", "text", "finish_reason", "content", "tool_calls", "function_call",
          "reasoning", "reasoning_content", "refusal", "usage", "prompt_tokens", "completion_tokens", "error", "object",
          "function", "name", "arguments", "role", "id", "type"]  # fmt: skip


def with_odd(document: Any, field: str, value: Any) -> Any:
    """A document with another value in each field of a name, and the field added where objects have none."""
    if isinstance(document, dict):
        return {key: with_odd(inner, field, value) for key, inner in document.items()} | {field: value}
    return [with_odd(inner, field, value) for inner in document] if isinstance(document, list) else document


TEMPLATE = choice({"content": "a", "tool_calls": [{"index": 0, "function": CALL}]}) | {
    "usage": {"prompt_tokens": 1, "completion_tokens": 1}
}


@given(st.sampled_from(FIELDS), JSON)
def test_any_json_in_any_field_is_read_or_refused(field: str, value: Any) -> None:
    """It raises nothing but the outcome of the attempt."""
    event = data(with_odd(TEMPLATE, field, value))
    with suppress(AttemptError):
        part = ChunkReader().read(event)
        assert isinstance(part.text, str)
        assert part.forward is None or json.loads(part.forward).get("usage") is None


@given(st.sampled_from([field for field in FIELDS if field != "finish_reason"]), JSON)
def test_no_json_in_any_other_field_makes_a_cut_stream_whole(field: str, value: Any) -> None:
    """Only a reason to finish ends a text."""
    odd = with_odd(TEMPLATE, field, value)
    if field in ("choices", "message", "delta") and b"finish_reason" in data(value):
        return
    reader = ChunkReader()
    try:
        read(TEXT, odd, odd, reader=reader)
    except AttemptError:
        return
    assert not reader.is_finished


@given(JSON)
def test_no_end_that_is_not_in_words_makes_a_cut_stream_whole(value: Any) -> None:
    reader, _ = read(
        TEXT, choice({"content": "b"}, finish_reason=value if not isinstance(value, str) else " ")
    )
    assert not reader.is_finished


@given(st.lists(st.sampled_from([TEXT, END, *ERRORS[:2], b"", b"x", {}]), max_size=6))
def test_a_stream_is_whole_only_if_its_last_text_has_an_end(events: list[Any]) -> None:
    """Whatever came before."""
    reader = ChunkReader()
    try:
        read(*events, reader=reader)
    except AttemptError:
        return
    said = [event for event in events if event in (TEXT, END)]
    assert reader.is_finished is (bool(said) and said[-1] == END and not _goes_on(said))


def _goes_on(said: list[Any]) -> bool:
    """Whether there is text after some end: then only the last event of the protocol closes it."""
    return END in said and TEXT in said[said.index(END) :]


@given(JSON)
def test_both_ways_to_read_give_the_same(value: Any) -> None:
    """What OpenAI's own form allows is read alike by the fast decoder and the lenient one."""
    for document in (TEMPLATE | {"x": value}, END | {"x": value}, {"x": value}):
        assert read_chunk(data(document)) == chunk_of(json.loads(data(document)))
    body = whole({"content": "a", "x": value}) | {"y": value}
    assert read_completion(data(body)) is not None


def test_words_that_are_an_end() -> None:
    assert [word for word in ("stop", "length", "eos", "", " ", "null", "NONE") if is_end(word)] == [
        "stop", "length", "eos",
    ]  # fmt: skip


def test_an_event_without_its_usage_keeps_the_rest() -> None:
    assert json.loads(without_usage(b'{"choices": [], "usage": 1, "x": 2}')) == {"choices": [], "x": 2}


def test_the_page_lists_every_dialect() -> None:
    """Each once, and no other."""
    page = (ANSWERS.parents[1] / "docs" / "dialects.md").read_text()
    table = page.partition("## Accepted\n")[2].partition('\n\n"–"')[0]
    assert sorted(re.findall(r"^\| ([^|]+) \| [^|]+ \|$", table, re.MULTILINE)[1:]) == sorted(DIALECTS)
