"""All requests have one form, and what was added for all is taken away from those that did not ask for it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model.uniform import MAX_SEED, NOTHING, Added, hide, without_added, write_uniform

CHAT, TEXT, VECTORS = OPERATIONS = ("messages", "prompt", "input")
"""By the member that holds the text."""
MESSAGES = [{"role": "user", "content": "hello"}]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-2, 2) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "model", "messages", "prompt", "input", "temperature", "top_p", "n", "seed", "stream", "stream_options", "user",
    "logprobs", "top_logprobs", "echo", "best_of", "stop",
)  # fmt: skip


def uniform(
    document: dict[str, Any], operation: str = CHAT, *, logprobs: bool = False, seeds: bool = True
) -> tuple[dict[str, Any], Added]:
    return write_uniform(
        document, generates=operation != VECTORS, with_logprobs=logprobs, with_seed=seeds, seed=lambda: 7
    )


def body(document: dict[str, Any], **how: Any) -> bytes:
    return msgspec.json.encode(uniform(document, **how)[0])


def test_the_order_of_members_tells_nothing() -> None:
    one = {"model": "m", "temperature": 0, "messages": [{"content": "hello", "role": "user", "name": "x"}]}
    other = {"messages": [{"role": "user", "content": "hello", "name": "x"}], "temperature": 0, "model": "m"}
    assert body(one) == body(other)


@pytest.mark.parametrize("name", ["temperature", "top_p", "frequency_penalty", "min_p"])
def test_how_a_number_is_written_tells_nothing(name: str) -> None:
    assert body({name: 1.0, "seed": 1}) == body({name: 1, "seed": 1})


@pytest.mark.parametrize(
    "more",
    [{"user": "u"}, {"metadata": {}}, {"store": True}, {"service_tier": "auto"}, {"n": 1}, {"stop": None}],
)
def test_what_no_engine_uses_does_not_go_to_nodes(more: dict[str, Any]) -> None:
    assert body({"messages": MESSAGES, "temperature": 0} | more) == body(
        {"messages": MESSAGES, "temperature": 0}
    )


def test_what_is_within_tools_stays_in_its_order() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": None}}}]
    assert uniform({"messages": MESSAGES, "tools": tools})[0]["tools"] == tools


@pytest.mark.parametrize("temperature", [None, 0.2, 1.0, 2])
@pytest.mark.parametrize("operation", [CHAT, TEXT])
def test_what_is_drawn_has_a_seed(temperature: float | None, operation: str) -> None:
    found, added = uniform({"temperature": temperature, "messages": MESSAGES}, operation)
    assert found["seed"] == 7
    assert added.seed


@pytest.mark.parametrize(
    "more", [{"temperature": 0}, {"temperature": 0.0}, {"n": 2}, {"best_of": 2}, {"seed": 3}]
)
def test_what_is_not_drawn_once_gets_none(more: dict[str, Any]) -> None:
    found, added = uniform({"messages": MESSAGES} | more)
    assert found.get("seed") == more.get("seed")
    assert not added.seed


def test_vectors_have_no_seed() -> None:
    assert uniform({"input": "text"}, VECTORS) == ({"input": "text"}, NOTHING)


def test_a_request_sent_again_is_the_same_but_for_its_seed() -> None:
    first, added = uniform({"messages": MESSAGES})
    second, _ = write_uniform(
        {"messages": MESSAGES},
        generates=True,
        with_logprobs=False,
        with_seed=True,
        seed=lambda: MAX_SEED - 1,
    )
    assert first != second
    assert without_added(first, added) == without_added(second, added)


def test_every_stream_tells_its_usage() -> None:
    found, added = uniform({"messages": MESSAGES, "stream": True})
    assert found["stream_options"] == {"include_usage": True}
    assert added.usage
    same, asked = uniform({"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}})
    assert same == found
    assert not asked.usage


@pytest.mark.parametrize("operation", [CHAT, TEXT])
def test_all_ask_for_log_probabilities(operation: str) -> None:
    asked = {"logprobs": True, "top_logprobs": 5} if operation == CHAT else {"logprobs": 5}
    text = {operation: MESSAGES if operation == CHAT else "hello"}
    plain, added = uniform(text, operation, logprobs=True)
    assert {name: plain[name] for name in asked} == asked
    assert added.hides_logprobs
    assert added.shown is None
    few, added = uniform(
        text | ({"logprobs": True, "top_logprobs": 2} if operation == CHAT else {"logprobs": 2}),
        operation,
        logprobs=True,
    )
    assert few == plain
    assert added.shown == 2
    same, added = uniform(text | asked, operation, logprobs=True)
    assert same == plain
    assert not added.hides_logprobs


def test_who_asks_for_more_gets_more() -> None:
    found, added = uniform({"messages": MESSAGES, "logprobs": True, "top_logprobs": 9}, logprobs=True)
    assert found["top_logprobs"] == 9
    assert not added.hides_logprobs


@pytest.mark.parametrize(
    "odd", [{"logprobs": "yes"}, {"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 1.5}]
)
def test_what_an_engine_refuses_is_left_to_it(odd: dict[str, Any]) -> None:
    found, added = uniform({"messages": MESSAGES, "temperature": 0} | odd, logprobs=True)
    assert odd.items() <= found.items()
    assert not added.hides_logprobs


def test_logprobs_of_a_prompt_are_never_added() -> None:
    found, added = uniform({"prompt": "x", "echo": True, "temperature": 0}, TEXT, logprobs=True)
    assert "logprobs" not in found
    assert not added.hides_logprobs


def position(token: str, count: int = 5) -> dict[str, Any]:
    top = [{"token": f"{token}{n}", "logprob": -float(n), "bytes": [n]} for n in range(count)]
    return {"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": top}


def answer(logprobs: Any) -> bytes:
    choice = {"index": 0, "message": {"content": '"logprobs"'}, "logprobs": logprobs}
    return json.dumps({"id": "x", "choices": [choice], "usage": {"prompt_tokens": 3}}).encode()


def test_log_probabilities_are_taken_away() -> None:
    hidden = json.loads(hide(answer({"content": [position("a")]}), Added(hides_logprobs=True)))
    assert hidden == json.loads(answer(None))


def test_who_asked_for_two_gets_two() -> None:
    hidden = json.loads(hide(answer({"content": [position("a")]}), Added(hides_logprobs=True, shown=2)))
    assert hidden == json.loads(answer({"content": [position("a", 2)]}))


def test_the_older_form_is_cut_to_the_likeliest() -> None:
    old = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"b": -3.0, "a": -1.0, "c": -2.0}]}
    hidden = json.loads(hide(answer(old), Added(hides_logprobs=True, shown=2)))
    assert hidden == json.loads(answer({**old, "top_logprobs": [{"a": -1.0, "c": -2.0}]}))


@pytest.mark.parametrize(
    "data", [b"", b"[DONE]", b'{"logprobs": 1}', b'{"choices": 4, "logprobs": 1}', b'\xff"logprobs"']
)
def test_what_is_no_answer_stays(data: bytes) -> None:
    assert hide(data, Added(hides_logprobs=True)) == data


def test_an_answer_to_who_asked_stays_byte_for_byte() -> None:
    assert hide(answer({"content": [position("a")]}), NOTHING) == answer({"content": [position("a")]})


@given(
    st.dictionaries(st.sampled_from(NAMES), values),
    st.sampled_from(OPERATIONS),
    st.tuples(st.booleans(), st.booleans()),
)
def test_the_form_is_one_for_any_request(
    document: dict[str, Any], operation: str, added_to_all: tuple[bool, bool]
) -> None:
    logprobs, seeds = added_to_all
    found, added = uniform(document, operation, logprobs=logprobs, seeds=seeds)
    again, _ = uniform(dict(reversed(document.items())), operation, logprobs=logprobs, seeds=seeds)
    assert msgspec.json.encode(found) == msgspec.json.encode(again)
    twice, more = uniform(found, operation, logprobs=logprobs, seeds=seeds)
    assert twice == found
    assert not more.seed
    assert list(found) == sorted(found)
    assert added.seed <= ("seed" not in document or document["seed"] is None)


@given(values, st.integers(0, 5) | st.none())
def test_anything_can_be_hidden_in(document: Any, shown: int | None) -> None:
    data = msgspec.json.encode({"choices": [{"logprobs": document}], "x": document})
    hide(data, Added(hides_logprobs=True, shown=shown))
