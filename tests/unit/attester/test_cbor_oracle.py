"""
The reader against one that encodes everything again: the same values, the same refusals.

The oracle is the reader of version 0.1.0: it sorts the keys of each map by their encodings,
encodes the whole, and compares.  That is slow and plainly right.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import cbor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attester import cbor
from attester.errors import CBORError
from tests.unit.attester.test_cbor import REFUSED, TOP, VALUES, head


def normalize(value: Any, depth: int, left: list[int]) -> Any:
    """Plain containers, the keys of maps in order."""
    if depth < 0:
        raise CBORError(f"nested deeper than {cbor.MAX_DEPTH}")
    left[0] -= 1
    if left[0] < 0:
        raise CBORError(f"more than {cbor.MAX_ITEMS} values")
    if value is None or isinstance(value, (bool, bytes, str, int)):
        return value
    if isinstance(value, (list, tuple)):
        return [normalize(item, depth - 1, left) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, bool) or not isinstance(key, (int, str, bytes)):
                raise CBORError(f"a map key of type {type(key).__name__}")
        items = [(cbor2.dumps(k), k, normalize(v, depth - 1, left)) for k, v in value.items()]
        return {k: v for _, k, v in sorted(items, key=lambda item: item[0])}
    if isinstance(value, cbor2.CBORTag):
        return cbor2.CBORTag(value.tag, normalize(value.value, depth - 1, left))
    raise CBORError(f"a value of type {type(value).__name__}, which the profile does not have")


def oracle(data: bytes, tags: tuple[int, ...]) -> Any:
    def tag_hook(tag: cbor2.CBORTag, *_: object) -> cbor2.CBORTag:
        if tag.tag not in tags:
            cbor._refuse_tag()
        return tag

    if not data:
        raise CBORError("no bytes")
    stream = io.BytesIO(data)
    try:
        value = cbor2.load(
            stream,
            tag_hook=tag_hook,
            semantic_decoders=cbor._SEMANTIC_DECODERS,
            max_depth=cbor.MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
        )
    except CBORError:
        raise
    except (cbor2.CBORDecodeError, ValueError, OverflowError, RecursionError) as error:
        cause: BaseException = error
        while isinstance(cause.__cause__, (CBORError, cbor2.CBORDecodeError)):
            cause = cause.__cause__
        raise CBORError(" ".join(str(cause).split())[:200] or type(cause).__name__) from None
    value = normalize(value, cbor.MAX_DEPTH, [cbor.MAX_ITEMS])
    if rest := len(data) - stream.tell():
        raise CBORError(f"{rest} bytes after the end of the item")
    if cbor2.dumps(value) != data:
        raise CBORError("not in deterministic encoding (RFC 8949 §4.2.1)")
    return value


def read(reader: Any, data: bytes, tags: tuple[int, ...]) -> tuple[str, str]:
    """What a reader makes of *data*: its value with the types of everything in it, or its refusal."""
    try:
        return "value", repr(reader(data, tags))
    except CBORError as error:
        text = str(error)
        # Where several types are wrong, each reader names the one that it meets first.
        return "refused", "a wrong type" if text.startswith(
            ("a value of type", "a map key of type")
        ) else text


def compare(data: bytes, tags: tuple[int, ...] = ()) -> tuple[str, str]:
    ours = read(lambda data, tags: cbor.decode(data, max_size=1 << 20, tags=tags), data, tags)
    assert ours == read(oracle, data, tags)
    return ours


@st.composite
def loose_heads(draw: st.DrawFn, major: int, argument: int) -> bytes:
    """The head of an item, sometimes longer than it must be."""
    shortest = head(major, argument)
    if draw(st.integers(0, 19)):
        return shortest
    code, size = draw(st.sampled_from([(24, 1), (25, 2), (26, 4), (27, 8)]))
    return (
        bytes([major << 5 | code]) + argument.to_bytes(size, "big") if argument < 1 << 8 * size else shortest
    )


INTEGERS = st.one_of(st.integers(0, 30), st.sampled_from([255, 256, 65535, 65536, 1 << 32, TOP - 1]))
TEXTS = st.one_of(st.text("abc", max_size=4), st.text(max_size=3), st.text("aé€𝄞", max_size=4))
ODD = st.sampled_from(
    [bytes.fromhex(text) for text in ("f7", "f93c00", "f97e00", "e0", "f820", "c100", "c000")]
)
SIMPLE = st.sampled_from([b"\xf4", b"\xf5", b"\xf6"])


@st.composite
def loose_keys(draw: st.DrawFn) -> bytes:
    """The encoding of a key, mostly an integer or a string."""
    major = draw(st.sampled_from([0, 0, 1, 1, 2, 3, 3, 7]))
    if major == 7:
        return draw(st.one_of(SIMPLE, ODD, st.just(b"\x80")))
    if major < 2:
        return draw(loose_heads(major, draw(INTEGERS)))
    content = draw(TEXTS).encode() if major == 3 else draw(st.binary(max_size=3))
    return draw(loose_heads(major, len(content))) + content


@st.composite
def loose_items(draw: st.DrawFn, depth: int = 4) -> bytes:
    """CBOR that is nearly deterministic: a head may be long, two keys swapped, a type wrong."""
    kind = draw(
        st.sampled_from(["key", "simple", "odd", *(["list", "map", "map", "map", "tag"] if depth else [])])
    )
    if kind == "key":
        return draw(loose_keys())
    if kind in ("simple", "odd"):
        return draw(ODD if kind == "odd" and not draw(st.integers(0, 9)) else SIMPLE)
    if kind == "tag":
        return draw(loose_heads(6, draw(st.sampled_from([18, 18, 61, 2, 55799])))) + draw(
            loose_items(depth - 1)
        )
    if kind == "list":
        inner = draw(st.lists(loose_items(depth - 1), max_size=3))
        return draw(loose_heads(4, len(inner))) + b"".join(inner)
    keys = draw(st.lists(loose_keys(), max_size=4, unique=bool(draw(st.integers(0, 9)))))
    if draw(st.integers(0, 3)):
        keys.sort()
    return draw(loose_heads(5, len(keys))) + b"".join(key + draw(loose_items(depth - 1)) for key in keys)


@given(loose_items(), st.sampled_from([(), (18,), (18, 61), (18, 61)]))
@settings(max_examples=400)
@example(bytes.fromhex("a3 05 00 20 00 22 00"), ())
@example(bytes.fromhex("a3 20 00 05 00 22 00"), ())
@example(bytes.fromhex("a2 1818 00 20 00"), ())
@example(bytes.fromhex("a2 20 00 1818 00"), ())
@example(bytes.fromhex("a2 62c3a9 00 62c3aa 00"), ())
@example(bytes.fromhex("a2 636162 63 00 62c3a9 00"), ())
@example(bytes.fromhex("a2 6161 00 4161 00"), ())
@example(bytes.fromhex("d2 a2 6161 00 6162 a2 02 00 01 00"), (18,))
def test_nearly_deterministic_items_are_judged_as_by_encoding_again(data, tags):
    """Accepted with the same value, or refused with the same words."""
    compare(data, tags)


@given(VALUES, st.data())
@settings(max_examples=200)
def test_changed_encodings_are_judged_as_by_encoding_again(value, data):
    """Valid CBOR, and the same with a byte changed, put in or taken away."""
    encoded = bytearray(cbor.encode(value))
    assert compare(bytes(encoded))[0] == "value"
    place = data.draw(st.integers(0, len(encoded) - 1))
    match data.draw(st.sampled_from(["change", "insert", "delete"])):
        case "change":
            encoded[place] ^= data.draw(st.integers(1, 255))
        case "insert":
            encoded.insert(place, data.draw(st.integers(0, 255)))
        case _:
            del encoded[place]
    compare(bytes(encoded), (18, 61))


@given(st.binary(max_size=64))
@settings(max_examples=200)
def test_any_bytes_are_judged_as_by_encoding_again(data):
    """Whatever comes."""
    compare(data, (18, 61))


@pytest.mark.parametrize("name", REFUSED)
def test_every_known_departure_is_refused_in_the_same_words(name):
    """Alone, in a list, as a value in a map, and inside a tag."""
    data = bytes.fromhex(REFUSED[name])
    assert compare(data, (18,))[0] == "refused"
    for prefix in (b"\x82\xf6", b"\xa1\x01", b"\xd2", b"\xa1\x01\x81"):
        compare(prefix + data, (18,))


@given(
    st.dictionaries(
        st.one_of(st.integers(-TOP, TOP - 1), st.binary(max_size=3), TEXTS), st.none(), max_size=6
    ),
    st.randoms(),
)
@settings(max_examples=300)
def test_the_order_of_keys_is_that_of_their_encodings(value, random):
    """Any keys in any order: accepted exactly if their encodings ascend."""
    keys = [cbor2.dumps(key) for key in value]
    random.shuffle(keys)
    data = head(5, len(keys)) + b"".join(key + b"\xf6" for key in keys)
    assert (compare(data)[0] == "value") == (keys == sorted(keys))
    ordered = head(5, len(keys)) + b"".join(key + b"\xf6" for key in sorted(keys))
    assert compare(ordered)[0] == "value"


@given(loose_items(), st.integers(1, 12))
@settings(max_examples=200)
def test_a_limit_on_values_refuses_exactly_the_items_that_have_more(data, limit):
    """It changes nothing for an item that has no more, and says so for one that has."""
    try:
        cbor.decode(data, max_size=1 << 20, max_values=limit)
    except CBORError as error:
        if str(error) == f"more than {limit} values":
            assert count(data) > limit
            return
    assert count(data) <= limit
    without = read(lambda data, tags: cbor.decode(data, max_size=1 << 20), data, ())
    assert read(lambda data, tags: cbor.decode(data, max_size=1 << 20, max_values=limit), data, ()) == without


def count(data: bytes) -> int:
    """How many heads an item has.  What `loose_items` makes is well-formed."""

    def skip(place: int) -> tuple[int, int]:
        major, info = data[place] >> 5, data[place] & 31
        width = 0 if info < 24 else 1 << info - 24
        argument = info if info < 24 else int.from_bytes(data[place + 1 : place + 1 + width], "big")
        place, heads = place + 1 + width, 1
        if major in (2, 3):
            return place + argument, heads
        for _ in range({4: argument, 5: 2 * argument, 6: 1}.get(major, 0)):
            place, inner = skip(place)
            heads += inner
        return place, heads

    return skip(0)[1]


@pytest.mark.parametrize(
    "data",
    [
        head(4, 1 << 40) + b"\xa0" * 1000,
        head(5, 1 << 40) + b"\x00\xa0" * 1000,
        b"\x81" * 100_000 + b"\x00",
        b"\xc6" * 100_000 + b"\x00",
        head(4, 1000) + b"\xa0" * 1000,
        head(4, 2) + head(2, 500_000) + bytes(500_000) + head(4, 1000) + b"\xa0" * 1000,
    ],
    ids=[
        "array of 2^40",
        "map of 2^40",
        "nested arrays",
        "nested tags",
        "1,000 maps",
        "maps after much content",
    ],
)
def test_more_values_than_a_limit_are_refused_before_any_is_built(data, monkeypatch):
    """The library is not even asked."""
    monkeypatch.setattr(cbor.cbor2, "load", None)
    with pytest.raises(CBORError, match="more than 32 values"):
        cbor.decode(data, max_size=1 << 20, max_values=32)


@pytest.mark.parametrize(
    "text", ["", "9f", "5f", "ff", "1c", "1e", "18", "5b ffffffffffffffff", "82 00", "a1 00", "d2"]
)
def test_a_limit_leaves_what_is_not_well_formed_to_the_reader(text):
    """It is refused in the same words."""
    data = bytes.fromhex(text)
    without = read(lambda data, tags: cbor.decode(data, max_size=99, tags=tags), data, (18,))
    assert without[0] == "refused"
    assert (
        read(lambda data, tags: cbor.decode(data, max_size=99, max_values=9, tags=tags), data, (18,))
        == without
    )
