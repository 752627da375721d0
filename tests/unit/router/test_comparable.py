"""Which requests make a node's claim comparable with the router's count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model.comparable import is_comparable

PLAIN: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "tell me a story"}]}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"max_tokens": 16, "temperature": 0.7, "top_p": 1, "seed": 1, "user": "u", "n": 1},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": None, "max_completion_tokens": None, "n": None, "temperature": None},
        {"logprobs": True, "top_logprobs": 3},
        {"messages": [{"role": "system", "content": [{"type": "text", "text": "a"}]}]},
    ],
)
def test_what_bills_what_it_shows_is_evidence(extra: dict[str, Any]) -> None:
    """Whole answers and streams alike."""
    assert is_comparable(PLAIN | extra)


def test_a_prompt_of_text_is_evidence() -> None:
    """As of a chat."""
    assert is_comparable({"model": "m", "prompt": "once", "max_tokens": 5})


@pytest.mark.parametrize(
    "extra",
    [
        {"logit_bias": {"50256": 100}},
        {"best_of": 8},
        {"ignore_eos": True},
        {"stop": ["lorem " * 150]},
        {"stop": "x"},
        {"n": 2},
        {"n": True},
        {"echo": True},
        {"min_tokens": 100},
        {"skip_special_tokens": False},
        {"use_beam_search": True},
        {"temperature": 1.5},
        {"temperature": True},
        {"top_p": 2},
        {"frequency_penalty": -2},
        {"presence_penalty": 0},
        {"tools": []},
        {"response_format": {"type": "json_object"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"nobody knows this one": None},
        {"prompt": ["a", "b"]},
        {"prompt": [1, 2, 3]},
        {"messages": [{"role": "tool", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a", "name": "b"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": ["user"], "content": "a"}]},
        {"messages": ["a"]},
        {"messages": "a"},
    ],
    ids=str,
)
def test_what_can_bill_tokens_without_text_is_no_evidence(extra: dict[str, Any]) -> None:
    """What an engine makes of it, the client has asked for."""
    assert not is_comparable(PLAIN | extra)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=9) | st.sampled_from(["messages", "n", "stop", "prompt"]), JSON))
def test_any_request_is_judged(document: dict[str, Any]) -> None:
    """Of any form; and what is not known by name is never evidence."""
    known = {"model", "messages", "prompt", "stream", "n", "seed", "user", "logprobs", "top_p", "temperature"}
    assert is_comparable(document) in (True, False)
    if document.keys() - known:
        assert not is_comparable({**document, "unheard of": 1})
