"""What the traffic looks like, and which checks look like it."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model.arrivals import LONGEST_S, Arrivals
from router.model.traffic import ENOUGH, Kind, ModelTraffic, describe, profile_of
from router.model.uniform import NOTHING, Added
from tests.unit.router.test_uniform import NAMES, values
from verifier.answers.shapes import MAX_SHAPES, Shape, decode_profile, encode_profile

CHAT, TEXTS, VECTORS = OPERATIONS = ("chat.completions", "completions", "embeddings")
USER = {"role": "user", "content": "hello there"}


def seen(document: dict[str, Any], operation: str = CHAT, added: Added = NOTHING) -> tuple[Shape, Kind]:
    found = describe(document, operation, added)
    assert found is not None
    shape, kind = found
    assert shape is not None
    return shape, kind


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [USER], **more}


def test_a_shape_has_all_features_together() -> None:
    shape, _ = seen(
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "be kind"},
                USER,
                {"role": "assistant", "content": "x"},
            ],
            "temperature": 0.701,
            "top_p": 0.9,
            "max_completion_tokens": 64,
            "stream": True,
            "seed": 4,
            "tools": [{}, {}],
        }
    )
    assert shape == Shape(
        count=1,
        operation="chat.completions",
        streamed=True,
        temperature=0.7,
        top_p=0.9,
        max_tokens=64,
        limit="max_completion_tokens",
        messages=2,
        system=True,
        tools=2,
        characters=(16, 32),
        seed=True,
    )


def test_a_seed_of_the_routers_is_nobodys() -> None:
    shape, kind = seen(chat(seed=4), added=Added(seed=True))
    assert not shape.seed
    assert kind.has_seed


def test_vectors_and_texts_have_shapes_too() -> None:
    assert seen({"input": ["ab", "c"]}, "embeddings")[0].inputs == 2
    assert seen({"input": "ab", "encoding_format": "base64"}, "embeddings")[1].encoding == "base64"
    assert seen({"prompt": "abc"}, "completions")[0].characters == (2, 4)


@pytest.mark.parametrize("dropped", [{"user": "u"}, {"n": 1}, {"stop": None}, {"metadata": {"a": 1}}])
def test_what_nodes_do_not_see_makes_no_other_shape(dropped: dict[str, Any]) -> None:
    assert describe(chat(**dropped), CHAT, NOTHING) == describe(chat(), CHAT, NOTHING)


@pytest.mark.parametrize(
    "document",
    [
        chat(max_tokens=0),
        chat(max_tokens="many"),
        chat(temperature="hot"),
        chat(temperature=3),
        chat(temperature=True),
        chat(top_p=0),
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
        {"messages": "x"},
        {"messages": [7]},
        {"messages": [USER] * 1001},
        {"input": [1, 2]},
        {},
    ],
)
def test_what_no_check_has_has_no_shape(document: dict[str, Any]) -> None:
    assert describe(document, CHAT, NOTHING) is None


@pytest.mark.parametrize(
    ("more", "others"),
    [
        ({"stop": ["x"]}, ("stop",)),
        ({"response_format": {"type": "json_object"}, "n": 2}, ("n", "response_format")),
        ({"presence_penalty": 0.5}, ("presence_penalty",)),
    ],
)
def test_what_a_shape_cannot_tell_of_is_a_kind_of_its_own(
    more: dict[str, Any], others: tuple[str, ...]
) -> None:
    found = describe(chat(**more), CHAT, NOTHING)
    assert found is not None
    assert (found[0], found[1].others) == (None, others)
    assert describe(chat(**{f"x{number}": 1 for number in range(17)}), CHAT, NOTHING) is None
    assert describe(chat(**{"x" * 65: 1}), CHAT, NOTHING) is None


def test_other_operations_have_no_shape() -> None:
    assert describe(chat(), "", NOTHING) is None


@given(st.dictionaries(st.sampled_from(NAMES), values), st.sampled_from(OPERATIONS))
def test_any_request_can_be_described(document: dict[str, Any], operation: str) -> None:
    traffic = ModelTraffic()
    traffic.note(describe(document, operation, NOTHING))
    data = encode_profile(profile_of([("m", traffic)]))
    assert sum(shape.count for shape in decode_profile(data).models.get("m", ())) + traffic.undescribed == 1


def test_a_profile_has_nobodys_words() -> None:
    traffic = ModelTraffic()
    traffic.note(describe(chat(), CHAT, NOTHING))
    assert b"hello" not in encode_profile(profile_of([("m", traffic)]))


def test_the_commonest_shapes_are_kept_and_no_more() -> None:
    traffic = ModelTraffic()
    for number in range(3 * MAX_SHAPES):
        traffic.note(seen(chat(max_tokens=number + 1)))
        traffic.note(seen(chat(temperature=0.5)))
    shapes = traffic.shapes()
    assert len(shapes) == MAX_SHAPES
    assert shapes[0].temperature == 0.5
    assert shapes[0].count == 3 * MAX_SHAPES
    assert sum(shape.count for shape in shapes) == 6 * MAX_SHAPES


def test_what_the_traffic_was_fades() -> None:
    traffic = ModelTraffic()
    for _ in range(1 << 16):
        traffic.note(seen(chat()))
    assert traffic.requests == 1 << 15
    assert traffic.shapes()[0].count == 1 << 15


def test_before_enough_is_known_no_check_is_like_it() -> None:
    traffic, (shape, kind) = ModelTraffic(), seen(chat())
    for _ in range(ENOUGH - 1):
        traffic.note((shape, kind))
    assert not traffic.admits(kind)
    traffic.note((shape, kind))
    assert traffic.admits(kind)


def test_what_nobody_asks_is_no_check() -> None:
    traffic = ModelTraffic()
    for _ in range(ENOUGH):
        traffic.note(seen(chat(temperature=0.7, stream=True)))
    for odd in (chat(temperature=0), chat(temperature=0.7), chat(temperature=0.7, stream=True, seed=1)):
        assert not traffic.admits(seen(odd)[1])


def test_what_nodes_saw_in_another_form_is_not_what_they_see() -> None:
    traffic, (shape, kind) = ModelTraffic(), seen(chat())
    for _ in range(ENOUGH):
        traffic.note((shape, kind))
    traffic.forget_kinds()
    assert not traffic.admits(kind)
    assert traffic.shapes()[0].count == ENOUGH


def test_no_kind_is_commoner_among_checks() -> None:
    traffic = ModelTraffic()
    rare, common = seen(chat(temperature=0)), seen(chat(temperature=0.7))
    for number in range(1000):
        traffic.note(rare if number % 20 == 0 else common)
    sent = {rare[1]: 0, common[1]: 0}
    for _ in range(400):
        # Half of what is minted is rare.
        for kind in sent:
            if traffic.admits(kind):
                traffic.note_check(kind)
                sent[kind] += 1
    assert sent[common[1]] == 400
    assert 0.02 < sent[rare[1]] / 400 < 0.09


def test_a_check_comes_after_up_to_48_gaps() -> None:
    arrivals, lots = Arrivals(), random.Random(1)
    for number in range(31):
        arrivals.note(number * 2.0)
    assert arrivals.draw_delay_s(lots.random) is None
    arrivals.note(62.0)
    found = sorted(arrivals.draw_delay_s(lots.random) or 0.0 for _ in range(2000))
    assert 0 <= found[0] < 2
    assert found[1000] == pytest.approx(48, abs=3)
    assert 94 < found[-1] <= 96


def test_in_bursts_a_check_comes_as_bursts_do() -> None:
    """Four in five gaps are within a burst, so some checks are too; others come in a later one."""
    arrivals, lots, now = Arrivals(), random.Random(1), 0.0
    for number in range(32):
        now += 60.0 if number % 16 == 0 else 0.01
        arrivals.note(now)
    found = [arrivals.draw_delay_s(lots.random) or 0.0 for _ in range(1000)]
    assert 100 < sum(delay < 1 for delay in found) < 900


def test_nobody_waits_for_ever() -> None:
    arrivals = Arrivals()
    for number in range(40):
        arrivals.note(number * 1e6)
    assert arrivals.draw_delay_s(lambda: 0.9) == LONGEST_S


def test_the_profile_is_what_minting_reads() -> None:
    traffic = ModelTraffic()
    traffic.note(seen(chat(temperature=0)))
    profile = decode_profile(encode_profile(profile_of([("org/m", traffic), ("silent", ModelTraffic())])))
    assert list(profile.models) == ["org/m"]
    assert msgspec.to_builtins(profile.models["org/m"][0])["temperature"] == 0
