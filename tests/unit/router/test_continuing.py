"""What can be gone on with, what the next node is asked, and how chunks are joined."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.gateway.attempts import Attempt, Continue, Fail, Return, decide_after_seam
from router.gateway.continuing import wants_continuing
from router.model import dialects
from router.model.answers import ChunkReader
from router.model.continuing import (
    CHAT,
    TEXT,
    Delivered,
    PartTold,
    Splice,
    ask_to_go_on,
    may_be_seam,
    may_go_on,
)
from router.model.errors import AttemptError
from router.model.outcomes import Outcome
from router.model.table import read_table
from router.model.uniform import NOTHING, Added
from router.model.workload import GoesOn, Workload

SAID = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]
CHATTED = {"model": "m", "messages": SAID, "stream": True}
WRITTEN = {"model": "m", "prompt": "once", "stream": True}
PARTS = [PartTold("a", "truncated", 6)]


def chunk(content: str | None = None, **more: Any) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta | more.pop("delta", {}), "finish_reason": more.pop("finish", None)}
    return json.dumps({"id": "c-1", "created": 5, "model": "m", "choices": [choice], **more}).encode()


def delivered(*events: bytes) -> Delivered:
    reader = ChunkReader()
    reader.delivered = Delivered()
    for event in events:
        reader.read(event)
    return reader.delivered


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "seed": 5},
        {"n": 1, "max_tokens": 20, "max_completion_tokens": 20},
        {"stop": None, "tools": [], "logprobs": False, "response_format": {"type": "text"}},
        {"stream_options": {"include_usage": True}, "user": "u", "presence_penalty": 0},
        {"repetition_penalty": 1.0},
    ],
)
def test_a_plain_chat_can_be_gone_on_with(more: dict[str, Any]) -> None:
    assert may_go_on(CHATTED | more, CHAT, NOTHING)


@pytest.mark.parametrize(
    "more",
    [
        {"stream": False},
        {"n": 2},
        {"best_of": 2},
        {"stop": "x"},
        {"stop": ["x"]},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "auto"},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"guided_regex": "a+"},
        {"structured_outputs": {"regex": "a+"}},
        {"logprobs": True},
        {"frequency_penalty": 0.1},
        {"repetition_penalty": 1.1},
        {"min_tokens": 5},
        {"logit_bias": {"5": 1}},
        {"reasoning_effort": "high"},
        {"chat_template_kwargs": {}},
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"max_tokens": 0},
        {"messages": [*SAID, {"role": "assistant", "content": "I"}]},
        {"messages": [*SAID, {"role": "tool", "content": "5", "tool_call_id": "c"}]},
        {"messages": [{"role": "assistant", "tool_calls": []}, *SAID]},
        {"messages": [{"role": "user", "content": "x", "name": "n"}]},
        {"messages": []},
        {"messages": "hello"},
        {"what_nobody_knows": 1},
    ],
)
def test_a_chat_with_anything_else_cannot(more: dict[str, Any]) -> None:
    assert not may_go_on(CHATTED | more, CHAT, NOTHING)


@pytest.mark.parametrize(
    "more", [{"prompt": ["a"]}, {"prompt": [1, 2]}, {"echo": True}, {"suffix": "x"}, {"logprobs": 1}]
)
def test_a_completion_of_several_or_of_ids_or_with_more_cannot(more: dict[str, Any]) -> None:
    assert may_go_on(WRITTEN, TEXT, NOTHING)
    assert not may_go_on(WRITTEN | more, TEXT, NOTHING)


@pytest.mark.parametrize("operation", ["embeddings", "responses", "messages", "rerank", "score"])
def test_other_operations_cannot(operation: str) -> None:
    assert not may_go_on(CHATTED, operation, NOTHING)


def test_log_probabilities_that_the_client_does_not_see_do_not_matter() -> None:
    asked = CHATTED | {"logprobs": True, "top_logprobs": 5}
    assert may_go_on(asked, CHAT, Added(hides_logprobs=True, shown=None))
    assert not may_go_on(asked, CHAT, Added(hides_logprobs=True, shown=2))


@given(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=4)))
def test_a_member_that_is_not_known_is_never_passed_over(more: dict[str, Any]) -> None:
    unknown = {name: value for name, value in more.items() if value is not None}
    may = may_go_on(CHATTED | unknown, CHAT, NOTHING)
    known = {"model", "messages", "stream", "n", "user", "seed", "stop", "tools", "store", "echo"}
    assert not may or set(unknown) <= known | {"top_p", "top_k", "min_p", "metadata", "logprobs"}


# Where a seam may be.


@pytest.mark.parametrize(
    "text", ["hello", "Hello,", "試金石", "café", "two\n\nlines", "🪄", "a < b | c", "5 [THINKING]"]
)
def test_a_text_that_ends_with_a_whole_character_can_be_gone_on_from(text: str) -> None:
    assert may_be_seam(text, CHAT)
    assert may_be_seam(text, TEXT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "half a char\ufffd",
        "half a pair \ud83e",
        "<think>I wonder",
        "a</think>b",
        "<|im_end|>",
        "[THINK]so",
    ],
)
def test_a_text_that_ends_within_one_or_has_signs_of_a_template_cannot(text: str) -> None:
    assert not may_be_seam(text, CHAT)
    assert not may_be_seam(text, TEXT)


@pytest.mark.parametrize("text", ["one\n", "one ", " one", "\tone", "one\u3000"])
def test_what_a_chat_template_would_strip_is_no_seam_of_a_chat(text: str) -> None:
    assert not may_be_seam(text, CHAT)
    assert may_be_seam(text, TEXT)


# What came.


def test_the_text_of_one_plain_choice_is_kept() -> None:
    found = delivered(chunk("", delta={"role": "assistant"}), chunk("one"), chunk(" two"))
    assert found.text == "one two"
    assert found.head == {"id": "c-1", "created": 5}


@pytest.mark.parametrize(
    "event",
    [
        chunk(delta={"reasoning_content": "hm"}),
        chunk(delta={"reasoning": "hm"}),
        chunk(delta={"refusal": "no"}),
        chunk(delta={"tool_calls": [{"index": 0, "function": {"name": "f"}}]}),
        chunk(delta={"function_call": {"name": "f"}}),
        chunk("x", finish="stop"),
        chunk(finish="length"),
        chunk("x").replace(b'"index": 0', b'"index": 1'),
    ],
)
def test_of_anything_else_there_is_no_text_to_go_on_from(event: bytes) -> None:
    assert delivered(chunk("one"), event).text is None


def test_a_text_that_is_too_long_is_not_kept() -> None:
    assert delivered(chunk("a" * (1 << 20))).text is not None
    assert delivered(chunk("a" * (1 << 20)), chunk("b")).text is None


def test_an_event_that_breaks_the_stream_adds_nothing() -> None:
    reader = ChunkReader()
    reader.delivered = Delivered()
    reader.read(chunk("one"))
    with pytest.raises(AttemptError):
        reader.read(chunk(" two", error={"message": "no"}))
    assert reader.delivered.text == "one"


# What the next node is asked.


def test_a_chat_gets_an_open_message_and_what_is_left_of_its_limits() -> None:
    asked = ask_to_go_on(
        CHATTED | {"max_tokens": 20, "max_completion_tokens": 30},
        CHAT,
        "one two",
        6,
        ("max_tokens", "max_completion_tokens"),
    )
    assert asked is not None
    assert asked["messages"] == [*SAID, {"role": "assistant", "content": "one two"}]
    assert (asked["max_tokens"], asked["max_completion_tokens"]) == (14, 24)
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
    assert len(SAID) == 2


def test_a_completion_gets_a_longer_prompt() -> None:
    asked = ask_to_go_on(WRITTEN, TEXT, " upon", 1, ("max_tokens",))
    assert asked == WRITTEN | {"prompt": "once upon"}


@pytest.mark.parametrize("tokens", [20, 21])
def test_where_no_tokens_are_left_nobody_is_asked(tokens: int) -> None:
    assert ask_to_go_on(CHATTED | {"max_tokens": 20}, CHAT, "one", tokens, ("max_tokens",)) is None


# How chunks are joined.


def test_the_first_chunk_gets_the_mark_and_all_get_the_head() -> None:
    splice = Splice({"id": "first", "created": 1}, PARTS)
    one, two = [json.loads(splice.join(chunk(text, delta={"role": "assistant"}))) for text in ("a", "b")]
    assert one["touchstone"] == {"continued": [{"node": "a", "outcome": "truncated", "tokens": 6}]}
    assert "touchstone" not in two
    for each in (one, two):
        assert (each["id"], each["created"]) == ("first", 1)
        assert "role" not in each["choices"][0]["delta"]


def test_a_node_writes_no_mark_of_ours() -> None:
    splice = Splice({}, PARTS)
    splice.join(chunk("a"))
    assert "touchstone" not in json.loads(splice.join(chunk("b", touchstone={"continued": []})))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["choices", "delta", "role", "id", "x"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_whatever_json_a_chunk_is_it_can_be_joined(document: Any) -> None:
    joined = dialects.decode(Splice({"id": "first"}, PARTS).join(msgspec.json.encode(document)))
    if isinstance(document, dict):
        assert joined["id"] == "first"
    else:
        assert joined == document


# Who wants it, and what follows.


@pytest.mark.parametrize(
    ("continuing", "header", "wanted"),
    [
        ("never", None, False), ("never", "1", False),
        ("asked", None, False), ("asked", "0", False), ("asked", "1", True),
        ("always", None, True), ("always", "0", False), ("always", "1", True),
    ],
)  # fmt: skip
def test_workload_and_caller_must_want_it(continuing: str, header: str | None, *, wanted: bool) -> None:
    workload = Workload(model="m", tokeniser="t", continuing=GoesOn(continuing))
    assert wants_continuing(workload, header) is wanted


def test_a_workload_without_a_tokeniser_cannot_have_it() -> None:
    with pytest.raises(ValueError, match="needs a tokeniser"):
        Workload(model="m", continuing=GoesOn.ALWAYS)


def test_the_settings_of_a_workload_are_read_from_the_table() -> None:
    table = b"""
tiers: {small: {}}
workloads:
  chat: {model: m, tier: small, tokeniser: t.json, continuing: asked, affinity_per_cent: 150, cache_salt: false}
  plain: {model: other, tier: small}
"""
    found = read_table(table).workloads
    assert found["chat"].continuing is GoesOn.ASKED
    assert (found["chat"].affinity_per_cent, found["chat"].cache_salt) == (150, False)
    plain = found["plain"]
    assert (plain.continuing, plain.affinity_per_cent, plain.cache_salt) == (GoesOn.NEVER, 0, True)


def attempt(outcome: Outcome, *, begun: bool) -> Attempt:
    return Attempt(node="n", operator="o", outcome=outcome, detail="", seconds=1.0, has_begun=begun)


@pytest.mark.parametrize("outcome", [o for o in Outcome if o not in (Outcome.TIMED_OUT, Outcome.ABANDONED)])
def test_after_a_seam_whatever_fails_without_a_text_may_be_done_by_another(outcome: Outcome) -> None:
    assert isinstance(decide_after_seam(attempt(outcome, begun=False)), Continue)


@pytest.mark.parametrize("outcome", [Outcome.TRUNCATED, Outcome.STALLED, Outcome.CORRUPTED])
def test_after_a_seam_what_breaks_again_fails(outcome: Outcome) -> None:
    assert decide_after_seam(attempt(outcome, begun=True)) == Fail(outcome)


@pytest.mark.parametrize("outcome", [Outcome.TIMED_OUT, Outcome.ABANDONED])
def test_after_a_seam_the_callers_end_is_the_end(outcome: Outcome) -> None:
    assert decide_after_seam(attempt(outcome, begun=False)) == Fail(outcome)


def test_a_refusal_to_go_on_is_no_answer() -> None:
    assert not isinstance(decide_after_seam(attempt(Outcome.REFUSED, begun=False)), Return)
