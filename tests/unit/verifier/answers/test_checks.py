"""The wire forms of minted and given answers: what is written is read again, and what is out of bounds is refused."""

from __future__ import annotations

import math
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.answers import checks
from verifier.answers.checks import Call, EngineUsed, Given, Minted, Token, Verdict
from verifier.errors import RequestError

ENGINE = EngineUsed(name="vllm", version="0.32.0", dtype="bfloat16", family="vllm")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.floats(-100, 100)
TOKENS = st.builds(
    Token,
    text=TEXTS,
    margin=st.floats(0, 100),
    top=st.lists(st.tuples(TEXTS, NUMBERS), max_size=5).map(tuple),
)
VECTORS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8).map(
    lambda numbers: struct.pack(f"<{len(numbers)}f", *numbers)
)
MINTED = st.builds(
    Minted,
    operation=st.sampled_from(["chat.completions", "completions", "embeddings"]),
    body=st.dictionaries(TEXTS, st.one_of(TEXTS, st.integers(0, 9), st.booleans()), max_size=3),
    engine=st.just(ENGINE),
    made_ms=st.integers(0, 1 << 40),
    text=st.none() | TEXTS,
    finish_reason=st.none() | st.sampled_from(["stop", "length"]),
    calls=st.lists(st.builds(Call, name=TEXTS, arguments=TEXTS), max_size=2).map(tuple),
    prompt_tokens=st.integers(0, 100),
    prompt_ids=st.none() | st.lists(st.integers(0, 1000), max_size=5).map(tuple),
    tokens=st.none() | st.lists(TOKENS, max_size=4).map(tuple),
    vectors=st.none() | st.lists(VECTORS, max_size=3).map(tuple),
    seeded=st.booleans(),
    stable=st.integers(0, 100),
    whole=st.booleans(),
)
GIVEN = st.builds(
    Given,
    outcome=st.sampled_from(["completed", "truncated"]),
    text=st.none() | TEXTS,
    tokens=st.none() | st.lists(TOKENS, max_size=4).map(tuple),
    vectors=st.none() | st.lists(VECTORS, max_size=3).map(tuple),
    seconds=st.none() | st.floats(0, 1000),
    streamed=st.booleans(),
)


@given(MINTED)
def test_a_minted_answer_is_read_as_it_was_written(minted: Minted) -> None:
    data = checks.encode(minted)
    assert checks.decode_minted(data) == minted
    assert checks.encode(checks.decode_minted(data)) == data


@given(GIVEN)
def test_a_given_answer_is_read_as_it_was_written(value: Given) -> None:
    assert checks.decode_given(checks.encode(value)) == value


def test_a_verdict_is_read_as_it_was_written() -> None:
    verdict = Verdict(kind="differs", at=3, margin=1.5, matched=3, code="answers.text.differs", detail="x")
    assert checks.decode_verdict(checks.encode(verdict)) == verdict


@given(st.binary(max_size=60))
def test_no_bytes_make_another_error(data: bytes) -> None:
    for decode in (checks.decode_given, checks.decode_minted, checks.decode_verdict):
        with pytest.raises(RequestError):
            decode(data)


@pytest.mark.parametrize(
    "change",
    [
        {"unknown": 1},
        {"outcome": 3},
        {"outcome": "x" * 129},
        {"text": "x" * (checks.MAX_TEXT + 1)},
        {"prompt_tokens": -1},
        {"prompt_tokens": True},
        {"prompt_tokens": 1.5},
        {"seconds": -1.0},
        {"tokens": [{"text": "a", "margin": -0.1}]},
        {"tokens": [{"text": "a", "margin": 0.1}] * (checks.MAX_TOKENS + 1)},
        {"tokens": [{"text": "a", "margin": 0.1, "top": [["a", -0.1]] * 21}]},
        {"vectors": ["AAAA"]},
        {"vectors": [""]},
        {"vectors": ["not base64!"]},
        {"vectors": ["AACAfw=="]},
        {"vectors": ["AADAfw=="]},
        {"vectors": ["AAAAAA=="] * (checks.MAX_VECTORS + 1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_out_of_bounds_is_refused(change: dict[str, object]) -> None:
    """One fault each; the last numbers of `vectors` are an infinity and a NaN."""
    with pytest.raises(RequestError):
        checks.decode_given(msgspec.json.encode({"outcome": "completed", **change}))


def test_a_number_that_is_not_finite_is_refused_in_json_too() -> None:
    with pytest.raises(RequestError):
        checks.decode_given(b'{"outcome":"completed","seconds":1e999}')


def test_what_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(RequestError, match="at most"):
        checks.decode_given(b"[" * (checks.MAX_GIVEN + 1))


def test_what_is_nested_too_deep_is_refused() -> None:
    deep = b'{"operation":"embeddings","made_ms":1,"engine":{},"body":{"a":' + b"[" * 100_000
    with pytest.raises(RequestError):
        checks.decode_minted(deep)


def test_the_numbers_of_a_vector_are_float32_little_endian() -> None:
    assert checks.floats(struct.pack("<2f", 1.5, -2.0)) == (1.5, -2.0)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_vector_has_finite_numbers(number: float) -> None:
    with pytest.raises(RequestError):
        checks.floats(struct.pack("<f", number))
