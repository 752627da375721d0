"""What a node answered to a check, as the verifier reads it."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given as drawn

from router.model.given import Timing, of_events, of_whole
from router.model.usage import Usage
from tests.unit.router.test_uniform import values
from verifier.answers.checks import MAX_TEXT, MAX_TOKENS, Call, decode_given, encode

WHOLE = Timing("completed", 1.5, claimed=Usage(3, 4))


def whole(document: Any) -> Any:
    return of_whole(json.dumps(document).encode(), WHOLE)


def chat(message: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **more}]}


def test_a_whole_answer() -> None:
    found = whole(chat({"role": "assistant", "content": "yes"}))
    assert (found.text, found.finish_reason, found.prompt_tokens, found.completion_tokens) == (
        "yes",
        "stop",
        3,
        4,
    )
    assert (found.seconds, found.streamed, found.tokens, found.family) == (1.5, False, None, "")


def test_an_older_completion() -> None:
    assert whole({"choices": [{"text": "yes", "finish_reason": "length"}]}).text == "yes"


def test_a_stream_is_put_together() -> None:
    parts = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"index": 0, "delta": {"content": "ye"}}]},
        {"choices": [{"index": 1, "delta": {"content": "another"}}]},
        {"choices": [{"index": 0, "delta": {"content": "s"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 1}},
    ]
    events = [json.dumps(part).encode() for part in parts]
    found = of_events([*events, b"[DONE]"], Timing("completed", 1.0, 0.25, None, streamed=True))
    assert (found.text, found.finish_reason, found.first_token_s, found.streamed) == (
        "yes",
        "stop",
        0.25,
        True,
    )


def test_calls_of_tools_are_put_together() -> None:
    def part(call: dict[str, Any]) -> bytes:
        return json.dumps({"choices": [{"delta": {"tool_calls": [call]}}]}).encode()

    events = [
        part({"index": 1, "function": {"name": "g", "arguments": ""}}),
        part({"index": 0, "function": {"name": "f", "arguments": '{"a"'}}),
        part({"index": 0, "function": {"arguments": ":1}"}}),
    ]
    calls = of_events(events, Timing("completed", 1.0, streamed=True)).calls
    assert calls == (Call(name="f", arguments='{"a":1}'), Call(name="g", arguments=""))


def test_log_probabilities_in_both_forms() -> None:
    top = [{"token": "b", "logprob": -2.5}, {"token": "a", "logprob": -0.5}]
    new = whole(chat({"content": "a"}, logprobs={"content": [{"token": "a", "top_logprobs": top}]})).tokens
    old_form = {"tokens": ["a"], "top_logprobs": [{"b": -2.5, "a": -0.5}]}
    old = whole({"choices": [{"text": "a", "finish_reason": "stop", "logprobs": old_form}]}).tokens
    assert new == old
    (token,) = new
    assert (token.text, token.margin, token.top) == ("a", 2.0, (("a", -0.5), ("b", -2.5)))


def test_vectors_in_both_forms_and_in_their_order() -> None:
    packed = struct.pack("<2f", 0.25, -0.5)
    plain = {"index": 1, "embedding": [1.0, 2]}
    coded = {"index": 0, "embedding": base64.b64encode(packed).decode()}
    assert whole({"data": [plain, coded]}).vectors == (packed, struct.pack("<2f", 1.0, 2.0))


@pytest.mark.parametrize(
    "data",
    [
        [],
        [7],
        [{"index": 1, "embedding": [1.0]}],
        [{"embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"embedding": []}],
        [{"embedding": ["x"]}],
        [{"embedding": [True]}],
        [{"embedding": [1e300]}],
        [{"embedding": "AAA"}],
        [{"embedding": "AAAA"}],
        [{"embedding": base64.b64encode(struct.pack("<f", float("nan"))).decode()}],
        [{"embedding": [1.0]}] * 65,
    ],
)
def test_what_are_no_vectors_is_left_out(data: Any) -> None:
    assert whole({"data": data}).vectors is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"choices": 4}', b'{"choices": [7]}', b"\xff"])
def test_what_is_no_answer_gives_nothing(body: bytes) -> None:
    found = of_whole(body, WHOLE)
    assert (found.text, found.vectors, found.tokens) == (None, None, None)


def test_what_is_too_long_is_cut_and_can_be_read() -> None:
    top = {"content": [{"token": "x" * 600, "top_logprobs": [{"token": "y", "logprob": -1}] * 30}] * 2000}
    found = whole(chat({"content": "x" * (MAX_TEXT + 1)}, logprobs=top))
    assert len(found.text) == MAX_TEXT
    assert len(found.tokens) == MAX_TOKENS
    assert decode_given(encode(found)) == found


def test_of_what_is_larger_than_a_report_the_text_is_left() -> None:
    top = {"content": [{"token": "x", "top_logprobs": [{"token": "y" * 600, "logprob": -1}] * 30}] * 2000}
    found = whole(chat({"content": "yes"}, logprobs=top))
    assert (found.text, found.tokens) == ("yes", None)
    assert decode_given(encode(found)) == found


@drawn(values)
def test_anything_that_a_node_sends_can_be_reported(content: Any) -> None:
    logprobs = {"content": [content, {"token": content, "top_logprobs": [content]}], "top_logprobs": content}
    choice = {
        "message": content,
        "delta": content,
        "text": content,
        "logprobs": logprobs,
        "finish_reason": content,
    }
    for document in (
        {"choices": [choice]},
        {"choices": content},
        {"data": [{"embedding": content}]},
        content,
    ):
        found = whole(document)
        assert decode_given(encode(found)) == found
