"""Requests are drawn like the traffic, from the pool key alone, and never twice; an operator's file is read strictly."""

from __future__ import annotations

import contextlib
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.answers import shapes
from verifier.answers.checks import Operation
from verifier.answers.composing import MAX_SEED, Composed, compose
from verifier.answers.draws import Draws
from verifier.answers.material import Asked, Material, read_material
from verifier.answers.shapes import Profile, Shape, decode_profile, encode_profile
from verifier.challenges import sealing
from verifier.challenges.pool_key import PoolKey
from verifier.errors import ReferenceValueError, RequestError

KEY = PoolKey(b"k" * 32)
NONE = Material()


def composed(
    number: int = 0,
    *given_shapes: Shape,
    material: Material = NONE,
    operation: Operation = "chat.completions",
) -> Composed:
    draws = Draws(sealing.draws_secret(KEY, "m", number))
    made = compose(draws, given_shapes, material, lambda _: True, operation)
    assert made is not None
    return made


def shape(**more: object) -> Shape:
    return msgspec.convert({"count": 1, "operation": "chat.completions", **more}, Shape)


def test_the_same_place_of_the_same_key_makes_the_same_request() -> None:
    assert composed(3) == composed(3)


def test_other_places_and_other_keys_make_other_requests() -> None:
    made = {composed(number).texts for number in range(300)}
    assert len(made) > 295
    other = Draws(sealing.draws_secret(PoolKey(b"o" * 32), "m", 3))
    assert compose(other, (), NONE, lambda _: True, "chat.completions") != composed(3)


def test_shapes_come_as_often_as_in_the_traffic() -> None:
    given_shapes = (shape(count=3, max_tokens=11), shape(count=1, max_tokens=22))
    counted = Counter(composed(number, *given_shapes).body["max_tokens"] for number in range(2000))
    # 1500 ± 4.1 standard deviations.
    assert 1420 < counted[11] < 1580
    assert counted.total() == 2000


def test_a_request_has_all_the_features_of_its_shape() -> None:
    made = composed(
        1,
        shape(
            streamed=True,
            temperature=0.5,
            top_p=0.9,
            max_tokens=40,
            limit="max_completion_tokens",
            messages=3,
            system=True,
            tools=2,
            characters=[400, 500],
        ),
    )
    assert made.streamed
    assert len(made.earlier) == 1
    assert [message["role"] for message in made.body["messages"]] == ["system", "user"]
    assert len({tool["function"]["name"] for tool in made.body["tools"]}) == 2
    assert {name: made.body[name] for name in ("temperature", "top_p", "max_completion_tokens")} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_completion_tokens": 40,
    }
    words = sum(len(message["content"]) for message in made.body["messages"]) + len(made.earlier[0])
    # An answer earlier in the conversation has about 200 more.
    assert 380 <= words + 200 < 500


def test_what_is_drawn_has_a_seed_and_what_is_greedy_has_none() -> None:
    seeds = [composed(number, shape(temperature=0.7)).body["seed"] for number in range(50)]
    assert all(0 <= seed < MAX_SEED for seed in seeds)
    assert len(set(seeds)) == 50
    assert "seed" in composed(0, shape()).body
    assert "seed" not in composed(0, shape(temperature=0)).body
    assert "seed" in composed(0, shape(temperature=0, seed=True)).body


def test_embeddings_have_as_many_texts_as_their_shape() -> None:
    one = composed(0, shape(operation="embeddings", inputs=1), operation="embeddings")
    assert isinstance(one.body["input"], str)
    many = composed(0, shape(operation="embeddings", inputs=5, characters=[500, 600]), operation="embeddings")
    assert len(many.body["input"]) == 5
    assert "seed" not in many.body


def ask_until_empty(
    material: Material, *given_shapes: Shape, operation: Operation = "chat.completions"
) -> list[Composed]:
    """All requests that can be made of it."""
    asked: set[str] = set()
    found: list[Composed] = []
    for number in range(100):
        draws = Draws(sealing.draws_secret(KEY, "m", number))
        made = compose(draws, given_shapes, material, lambda text: text not in asked, operation)
        if made is None:
            return found
        asked.update(made.texts)
        found.append(made)
    raise AssertionError("there is no end")


def test_each_text_of_a_file_is_asked_once() -> None:
    """Whatever the system prompt beside it: who remembers texts recognises none."""
    material = Material(texts=("one", "two", "three"), systems=("Be brief.", "Be kind."))
    made = ask_until_empty(material, shape(temperature=0, system=True))
    assert sorted(each.body["messages"][-1]["content"] for each in made) == ["one", "three", "two"]


def test_no_text_is_in_two_lists_of_embeddings() -> None:
    """Nor twice in one; what is left over makes no shorter list."""
    texts = tuple(f"text {number}" for number in range(11))
    lists = ask_until_empty(
        Material(texts=texts), shape(operation="embeddings", inputs=3), operation="embeddings"
    )
    used = [text for each in lists for text in each.body["input"]]
    assert len(used) == len(set(used)) == 9


def test_where_few_texts_are_left_a_shape_that_needs_fewer_is_taken() -> None:
    texts = tuple(f"text {number}" for number in range(11))
    both = (
        shape(count=1_000_000, operation="embeddings", inputs=3),
        shape(count=1, operation="embeddings", inputs=1),
    )
    lists = ask_until_empty(Material(texts=texts), *both, operation="embeddings")
    assert sorted(len(each.texts) for each in lists) == [1, 1, 3, 3, 3]


def test_texts_and_requests_of_a_file_are_all_asked() -> None:
    own = tuple(
        Asked(
            operation="chat.completions",
            body={"messages": [{"role": "user", "content": word}]},
            streamed=False,
        )
        for word in ("own one", "own two")
    )
    made = ask_until_empty(Material(texts=("a text", "another"), asked=own), shape(temperature=0))
    assert sorted(each.texts[0] for each in made) == ["a text", "another", "own one", "own two"]


@pytest.mark.parametrize("bucket", [(16, 32), (32, 64), (256, 512), (2048, 4096)], ids=str)
def test_prompts_of_our_own_are_as_long_as_the_traffics(bucket: tuple[int, int]) -> None:
    """So that no router passes them over, and no node sees that they are longer."""
    low, high = bucket
    for number in range(60):
        made = composed(number, shape(characters=bucket, temperature=0))
        assert low <= len(made.body["messages"][0]["content"]) < high


def test_requests_of_a_file_are_asked_as_they_are() -> None:
    """With a seed if they are drawn and have none."""
    own = Asked(
        operation="chat.completions",
        body={"messages": [{"role": "user", "content": "Hi"}], "top_p": 0.5},
        streamed=True,
    )
    made = composed(0, material=Material(asked=(own,)))
    assert made.streamed
    assert made.body["top_p"] == 0.5
    assert "seed" in made.body


def test_a_file_without_anything_left_composes_nothing() -> None:
    draws = Draws(b"x")
    own = Asked(operation="completions", body={"prompt": "Hi"}, streamed=False)
    assert compose(draws, (), Material(asked=(own,)), lambda _: False, "completions") is None
    assert compose(draws, (), Material(texts=("a", "b")), lambda _: False, "completions") is None


def test_a_file_is_read() -> None:
    lines = (
        b'"a text"\n',
        b'{"text": "another"}',
        b"",
        b'{"system": "Be brief."}',
        b'{"tool": {"type": "function", "function": {"name": "f", "parameters": {}}}}',
        b'{"model": "x", "messages": [{"role": "user", "content": "q"}], "stream": true, "user": "someone", "n": 1}',
        b'{"prompt": "p", "max_tokens": 5}',
        b'{"input": ["a", "b"]}',
    )
    read = read_material(lines)
    assert read.texts == ("a text", "another")
    assert read.systems == ("Be brief.",)
    assert [each.operation for each in read.asked] == ["chat.completions", "completions", "embeddings"]
    assert read.asked[0].body == {"messages": [{"role": "user", "content": "q"}]}
    assert read.asked[0].streamed
    assert len(read.tools) == 1


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"3",
        b"[]",
        b'""',
        b'{"text": ""}',
        b'{"text": 3}',
        b'{"messages": []}',
        b'{"prompt": ["several"]}',
        b'{"tool": {"function": {}}}',
        b'{"messages": [{"role": "user", "content": "q"}], "n": 2}',
        b'{"messages": [{"role": "user", "content": "q"}], "logit_bias": {}}',
        b"[" * 100_000,
        b'"' + b"x" * (1 << 18) + b'"',
        b'"\xff"',
    ],
    ids=range(14),
)
def test_a_line_that_is_nothing_of_that_is_named(line: bytes) -> None:
    with pytest.raises(RequestError, match="line 2"):
        read_material([b'"fine"', line])


@given(st.lists(st.binary(max_size=40), max_size=3))
def test_no_file_makes_another_error(lines: list[bytes]) -> None:
    with contextlib.suppress(RequestError):
        read_material(lines)


def test_a_profile_is_read_as_it_was_written() -> None:
    profile = Profile(models={"m": (shape(count=7, streamed=True, temperature=0.3, characters=[16, 32]),)})
    assert decode_profile(encode_profile(profile)) == profile


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0},
        {"operation": "rerank"},
        {"temperature": 3},
        {"top_p": 0},
        {"max_tokens": 0},
        {"characters": [5, 5]},
        {"characters": [5]},
        {"messages": -1},
        {"unknown": 1},
        {"temperature": "0"},
    ],
    ids=str,
)
def test_a_malformed_shape_is_refused(change: dict[str, object]) -> None:
    given_shape = {"count": 1, "operation": "chat.completions", **change}
    with pytest.raises(RequestError, match="profile"):
        decode_profile(msgspec.json.encode({"v": 1, "models": {"m": [given_shape]}}))


def test_too_many_shapes_are_refused() -> None:
    with pytest.raises(RequestError):
        decode_profile(encode_profile(Profile(models={"m": (shape(),) * (shapes.MAX_SHAPES + 1)})))


def test_what_was_sealed_opens_at_its_place_alone() -> None:
    sealed = sealing.seal(KEY, "m", 3, b"secret", b"s" * 16)
    assert sealing.unseal(KEY, "m", 3, sealed) == b"secret"
    assert b"secret" not in sealed
    for key, model, index, data in (
        (KEY, "m", 4, sealed),
        (KEY, "n", 3, sealed),
        (PoolKey(b"o" * 32), "m", 3, sealed),
        (KEY, "m", 3, sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (KEY, "m", 3, b"t" + sealed[1:]),
        (KEY, "m", 3, b""),
    ):
        with pytest.raises(ReferenceValueError):
            sealing.unseal(key, model, index, data)


def test_the_name_of_a_prompt_needs_the_pool_key() -> None:
    """So that nobody with the database alone can try prompts."""
    assert sealing.prompt_name(KEY, "m", "p") == sealing.prompt_name(KEY, "m", "p")
    assert sealing.prompt_name(PoolKey(b"o" * 32), "m", "p") != sealing.prompt_name(KEY, "m", "p")


@given(st.integers(1, 1 << 40), st.binary(min_size=1, max_size=8))
def test_a_draw_is_below_its_bound(bound: int, secret: bytes) -> None:
    assert 0 <= Draws(secret).below(bound) < bound
