"""What is read of a node's answers: what the model said in them, and nothing of the malformed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.gateway.answers import judge, read_chunk, with_usage, without_usage
from router.model.outcomes import Outcome
from router.model.usage import Usage

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"delta": {"content": "a"}}, "a"),
        ({"delta": {"content": ""}}, ""),
        ({"delta": {"role": "assistant"}}, ""),
        ({"delta": {"content": None, "refusal": "a"}}, "a"),
        ({"delta": {"content": "a", "reasoning_content": "b"}}, "ba"),
        ({"delta": {"reasoning": "b", "reasoning_content": "b"}}, "b"),
        ({"delta": {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}}, "f{}"),
        ({"delta": {"function_call": {"name": "f", "arguments": "{}"}}}, "f{}"),
        ({"text": "a"}, "a"),
    ],
)
def test_the_text_of_a_chunk(choice: Any, text: str) -> None:
    """All that the model wrote, once, whatever it is for."""
    chunk = read_chunk(json.dumps({"choices": [choice]}).encode())
    assert chunk is not None
    assert [each.said for each in chunk.choices] == [text]


@pytest.mark.parametrize(
    "choice",
    [{"delta": "a"}, {"delta": {"content": 1}}, {"delta": {"tool_calls": "a"}}, "a", None, {"text": []}],
)
def test_a_malformed_chunk_is_none(choice: Any) -> None:
    """Nothing is guessed."""
    assert read_chunk(json.dumps({"choices": [choice]}).encode()) is None


def test_a_call_of_a_tool_is_no_empty_answer() -> None:
    """It has no content, and that is as it should be."""
    call = {"message": {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}
    body = json.dumps({"choices": [{**call, "finish_reason": "tool_calls"}]}).encode()
    assert judge(CHAT, 200, body).outcome is Outcome.COMPLETED


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_answer_without_its_end_is_no_answer(path: str) -> None:
    """Why it stopped is part of it."""
    body = json.dumps({"choices": [{"message": {"content": "a"}, "text": "a"}]}).encode()
    assert judge(path, 200, body).outcome is Outcome.CORRUPTED


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS]), st.integers(100, 599), plain)
def test_any_answer_is_judged(path: str, status: int, body: Any) -> None:
    """However malformed: as one of the outcomes, and never by an exception."""
    found = judge(path, status, json.dumps(body).encode())
    assert found.outcome in Outcome
    assert found.outcome is not Outcome.COMPLETED or status == 200


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | plain.map(lambda value: json.dumps(value).encode()))
def test_any_event_is_read_or_none(data: bytes) -> None:
    """Bytes of any kind."""
    chunk = read_chunk(data)
    assert chunk is None or isinstance(chunk.choices, list)


def test_usage_is_the_routers() -> None:
    """What else the node says of it stays."""
    body = with_usage(b'{"usage": {"completion_tokens": 900, "details": 1}, "x": [1]}', Usage(3, 4))
    usage = {"completion_tokens": 4, "details": 1, "prompt_tokens": 3, "total_tokens": 7}
    assert json.loads(body) == {"usage": usage, "x": [1]}


def test_an_event_can_be_rid_of_its_usage() -> None:
    """And of nothing else."""
    assert json.loads(without_usage(b'{"choices": [], "usage": {}}')) == {"choices": []}
