"""Which answers a peer may score, what it is asked, and what its answer says: held against what vLLM has answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model import peers

VLLM: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "fixtures" / "vectors" / "vllm_prompt_logprobs.json").read_bytes()
)
CHAT, SCORED = VLLM["POST /v1/chat/completions"], VLLM["POST /v1/chat/completions scored"]
TEXT, TEXT_SCORED = VLLM["POST /v1/completions"], VLLM["POST /v1/completions scored"]
SAID = CHAT["choices"][0]["message"]["content"]
ASKED = {"model": "m", "messages": [{"role": "user", "content": "What is a harbour?"}], "temperature": 0}
PROMPT = {"model": "m", "prompt": "A harbour is", "temperature": 0}
CHATS, TEXTS = peers.OPERATIONS


def read(document: Any, text: str) -> peers.Score | None:
    return peers.read_scores(json.dumps(document).encode(), text)


def test_the_answers_own_tokens_are_scored() -> None:
    """By vLLM, of its own answer: twelve tokens, each its first choice."""
    score = read(SCORED, SAID)
    assert score is not None
    assert (score.tokens, score.disagreements, score.mean_gap, score.largest_gap) == (12, 0, 0.0, 0.0)
    assert score.mean_nll == pytest.approx(0.76, abs=0.05)


def test_the_tokens_of_a_text_are_in_its_choice() -> None:
    score = read(TEXT_SCORED, TEXT["choices"][0]["text"])
    assert score is not None
    assert (score.tokens, score.disagreements) == (12, 0)


def test_what_is_not_the_first_choice_is_counted() -> None:
    """Two words that the model would not say, and a space; one is as likely as the first choice, and so is no gap."""
    score = read(VLLM['POST /v1/chat/completions scored " two words "'], " two words ")
    assert score is not None
    assert (score.tokens, score.disagreements) == (3, 2)
    assert score.largest_gap == pytest.approx(25.802 - 0.115, abs=0.01)
    assert score.mean_gap == pytest.approx((25.687 + 5.5) / 3, abs=0.01)


def test_characters_of_several_tokens_are_one_text() -> None:
    text = "Grüße 🚢 naïve 漢字!"
    score = read(VLLM[f'POST /v1/chat/completions scored "{text}"'], text)
    assert score is not None
    assert score.tokens == 14


@pytest.mark.parametrize(
    "text", [SAID + "!", "!" + SAID, SAID[1:] + " ", "x", SAID.replace("vast", "huge"), SAID[1:]]
)
def test_another_text_than_the_tokens_has_no_score(text: str) -> None:
    if text == SAID[1:]:
        # "A" is one token: what is left of it is none.
        text = "harbour" + SAID.removeprefix("A harbour")
    assert read(SCORED, text) is None


def test_a_text_longer_than_all_tokens_has_no_score() -> None:
    everything = "".join(next(iter(each.values()))["decoded_token"] for each in SCORED["prompt_logprobs"][1:])
    assert read(SCORED, everything) is not None
    assert read(SCORED, "-" + everything) is None


@pytest.mark.parametrize(
    "document", [CHAT, TEXT, {}, [], 7, {"choices": []}, {**SCORED, "prompt_logprobs": []}]
)
def test_an_engine_without_scores_is_unable(document: Any) -> None:
    with pytest.raises(peers.UnableError):
        read(document, SAID)


def changed(position: Any) -> dict[str, Any]:
    return {**SCORED, "prompt_logprobs": [*SCORED["prompt_logprobs"][:-1], position]}


FIRST = {"logprob": -0.5, "rank": 1, "decoded_token": " wide"}


@pytest.mark.parametrize(
    "position",
    [
        None,
        {},
        [FIRST],
        {"1": None},
        {"1": {**FIRST, "rank": 2}},
        {"1": {**FIRST, "rank": True}},
        {"1": {**FIRST, "logprob": 0.5}},
        {"1": {**FIRST, "logprob": "-0.5"}},
        {"1": {**FIRST, "logprob": False}},
        {"1": {**FIRST, "logprob": -1e9}},
        {"1": {**FIRST, "decoded_token": None}},
        {"1": FIRST, "2": FIRST},
        {"1": FIRST, "2": {**FIRST, "rank": 3, "logprob": -0.1}},
        {"1": FIRST, "2": {**FIRST, "rank": 3}, "3": {**FIRST, "rank": 2}},
    ],
)
def test_a_position_in_another_form_has_no_score(position: Any) -> None:
    assert read(changed(position), SAID) is None


def test_a_position_in_its_form_has_one() -> None:
    """The negative cases above fail by what they change."""
    assert read(changed({"1": FIRST}), SAID) is not None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    )
)
def test_whatever_a_peer_says_is_a_score_or_none(found: Any) -> None:
    document = {"choices": [{}], "prompt_logprobs": found}
    try:
        score = peers.read_scores(json.dumps(document).encode(), "text")
    except peers.UnableError:
        return
    assert score is None


def test_a_request_at_temperature_0_may_be_scored() -> None:
    more = {
        "seed": 7, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 9, "n": 1, "top_p": 0.9,
        "frequency_penalty": 0.0, "presence_penalty": None, "logprobs": True, "top_logprobs": 5,
    }  # fmt: skip
    assert peers.may_be_scored({**ASKED, **more}, CHATS)
    assert peers.may_be_scored(PROMPT, TEXTS)


@pytest.mark.parametrize("temperature", [0.1, 1, None, False, "0", -1])
def test_only_at_temperature_0(temperature: Any) -> None:
    assert not peers.may_be_scored({**ASKED, "temperature": temperature}, CHATS)
    assert not peers.may_be_scored({name: ASKED[name] for name in ("model", "messages")}, CHATS)


@pytest.mark.parametrize(
    "more",
    [
        {"tools": []}, {"response_format": {"type": "json_object"}}, {"stop": ["."]}, {"n": 2}, {"n": True},
        {"frequency_penalty": 0.5}, {"repetition_penalty": 1.1}, {"logit_bias": {}}, {"guided_regex": "a"},
        {"chat_template_kwargs": {}}, {"provider": {}}, {"messages": []}, {"messages": "text"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]},
        {"messages": [{"role": "user", "content": "Hello", "name": "Anna"}]},
        {"messages": [{"role": "tool", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hel"}]},
    ],
)  # fmt: skip
def test_what_moves_the_first_choice_or_has_more_than_text_is_not_scored(more: dict[str, Any]) -> None:
    assert not peers.may_be_scored({**ASKED, **more}, CHATS)


@pytest.mark.parametrize("prompt", ["", ["A", "B"], [1, 2], None])
def test_only_one_prompt_of_text(prompt: Any) -> None:
    assert not peers.may_be_scored({**PROMPT, "prompt": prompt}, TEXTS)


@pytest.mark.parametrize("operation", ["embeddings", "", "responses", "messages"])
def test_no_other_operation(operation: str) -> None:
    assert not peers.may_be_scored(ASKED, operation)


def test_a_chat_is_asked_with_its_answer_last() -> None:
    assert peers.scored_request({**ASKED, "stream": True, "seed": 3}, CHATS, SAID, "salt") == {
        "model": "m", "messages": [*ASKED["messages"], {"role": "assistant", "content": SAID}],
        "add_generation_prompt": False, "continue_final_message": True, "max_tokens": 1, "temperature": 0,
        "prompt_logprobs": 1, "cache_salt": "salt",
    }  # fmt: skip


def test_a_text_is_asked_as_one() -> None:
    asked = peers.scored_request(PROMPT, TEXTS, " calm", "salt")
    assert asked["prompt"] == "A harbour is calm"
    assert "continue_final_message" not in asked


def test_the_text_of_an_answer_and_of_a_stream() -> None:
    assert peers.text_of([CHAT], CHATS) == SAID
    assert peers.text_of([TEXT], TEXTS) == TEXT["choices"][0]["text"]
    stream = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"index": 0, "delta": {"content": "A "}}]},
        {"choices": [{"index": 0, "delta": {"content": "sea"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {}},
    ]
    assert peers.text_of(stream, CHATS) == "A sea"
    assert peers.text_of(stream[:2], CHATS) is None


@pytest.mark.parametrize(
    "said",
    [
        {"content": ""}, {"content": None}, {"content": ["a"]}, {"content": "a", "tool_calls": [{}]},
        {"content": "a", "reasoning": "because"}, {"content": "a", "reasoning_content": "because"},
        {"content": "a", "refusal": "no"},
    ],
)  # fmt: skip
def test_an_answer_with_other_things_than_text_has_none(said: dict[str, Any]) -> None:
    assert peers.text_of([{"choices": [{"message": said, "finish_reason": "stop"}]}], CHATS) is None


@pytest.mark.parametrize("end", [None, "tool_calls", "content_filter", "abort"])
def test_an_answer_that_ended_otherwise_has_none(end: Any) -> None:
    assert peers.text_of([{"choices": [{"message": {"content": "a"}, "finish_reason": end}]}], CHATS) is None


def test_several_answers_have_none() -> None:
    choices = [{"index": n, "message": {"content": "a"}, "finish_reason": "stop"} for n in (0, 1)]
    assert peers.text_of([{"choices": choices}], CHATS) is None
