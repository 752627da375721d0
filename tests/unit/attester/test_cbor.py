"""The strict CBOR reader: one encoding for each value, and one error for everything else."""

from __future__ import annotations

import itertools

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attester import cbor
from attester.errors import CBORError

TOP = 1 << 64

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-TOP, TOP - 1),
    st.binary(max_size=40),
    st.text(max_size=20),
)
KEYS = st.one_of(st.integers(-TOP, TOP - 1), st.binary(max_size=8), st.text(max_size=8))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=20,
)


def head(major: int, argument: int) -> bytes:
    """The shortest head of an item, written here from RFC 8949 §3."""
    if argument < 24:
        return bytes([major << 5 | argument])
    for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * size:
            return bytes([major << 5 | code]) + argument.to_bytes(size, "big")
    raise AssertionError(argument)


def decode(data: bytes, *, max_size: int = 1 << 20, tags: tuple[int, ...] = ()) -> object:
    return cbor.decode(data, max_size=max_size, tags=tags)


def shuffled(value: object, order: int) -> object:
    """The same value with the keys of every map in another order."""
    if isinstance(value, dict):
        items = list(value.items())
        turn = order % len(items) if items else 0
        return {k: shuffled(v, order) for k, v in items[turn:][::-1] + items[:turn][::-1]}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


def nested(depth: int, inner: bytes = b"\x00") -> bytes:
    return b"\x81" * depth + inner


@given(VALUES)
@settings(max_examples=150)
def test_what_was_written_is_read_back(value):
    """Every value of the profile survives the way out and in."""
    assert decode(cbor.encode(value)) == value


@given(VALUES, st.integers(0, 4))
@settings(max_examples=150)
def test_the_order_of_keys_does_not_change_the_bytes(value, order):
    """Two maps that are equal have equal bytes, in whatever order they were filled."""
    assert cbor.encode(shuffled(value, order)) == cbor.encode(value)


@given(st.dictionaries(KEYS, st.none(), min_size=1, max_size=12))
@settings(max_examples=100)
def test_keys_stand_in_the_order_of_their_encodings(value):
    """Bytewise order of the encoded keys (RFC 8949 §4.2.1), computed apart from the product."""
    expected = head(5, len(value)) + b"".join(sorted(cbor2.dumps(key) + b"\xf6" for key in value))
    assert cbor.encode(value) == expected


@given(st.integers(0, TOP - 1))
@settings(max_examples=100)
def test_an_integer_has_its_shortest_head(value):
    """Unsigned and negative integers have one encoding each."""
    assert (cbor.encode(value), cbor.encode(-1 - value)) == (head(0, value), head(1, value))


@given(st.binary(max_size=64))
@settings(max_examples=150)
def test_any_bytes_are_read_or_refused(data):
    """Whatever comes, the answer is a value whose bytes are those, or a CBORError."""
    try:
        value = decode(data, tags=(18, 61))
    except CBORError:
        return
    assert cbor.encode(value) == data


@given(VALUES, st.data())
@settings(max_examples=150)
def test_a_changed_encoding_is_never_read_as_the_same_value(value, data):
    """One byte changed in valid CBOR is refused, or is the one encoding of another value."""
    encoded = bytearray(cbor.encode(value))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    try:
        other = decode(bytes(encoded))
    except CBORError:
        return
    assert cbor.encode(other) == bytes(encoded)


@given(VALUES, st.binary(min_size=1, max_size=9))
@settings(max_examples=60)
def test_bytes_after_the_item_are_refused(value, more):
    """An item fills its bytes exactly."""
    with pytest.raises(CBORError):
        decode(cbor.encode(value) + more)


@given(VALUES, st.data())
@settings(max_examples=60)
def test_a_truncated_item_is_refused(value, data):
    """No prefix of an item is an item."""
    encoded = cbor.encode(value)
    with pytest.raises(CBORError):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


def test_no_tag_is_accepted_unnamed():
    """Every tag number up to 70,000, whatever a library makes of it, is refused."""
    accepted = []
    for tag, inner in itertools.product((*range(70_001), 1 << 32, TOP - 1), (b"\x00", b"\x41\x00")):
        try:
            decode(head(6, tag) + inner)
        except CBORError:
            continue
        accepted.append((tag, inner))
    assert accepted == []


@pytest.mark.parametrize("inner", ["60", "6161", "80", "820102", "a0", "a10102", "f6", "d81c80", "c24101"])
def test_no_tag_is_accepted_whatever_it_holds(inner):
    """Tags that a library decodes by their content are refused for every kind of content."""
    accepted = []
    for tag in (*range(300), 1004, 43000, 55799):
        try:
            decode(head(6, tag) + bytes.fromhex(inner))
        except CBORError:
            continue
        accepted.append(tag)
    assert accepted == []


def test_a_named_tag_comes_back_as_a_tag():
    """What a caller names is handed out as it stands, its content in plain containers."""
    value = decode(bytes.fromhex("d28301a101a002"), tags=(18,))
    assert value == cbor2.CBORTag(18, [1, {1: {}}, 2])
    assert [type(value.value), type(value.value[1]), type(value.value[1][1])] == [list, dict, dict]


def test_a_named_tag_allows_no_other():
    """Naming one tag opens no door for the next."""
    with pytest.raises(CBORError, match="a tag that this profile does not use"):
        decode(bytes.fromhex("d83dd100"), tags=(61,))


@pytest.mark.parametrize("tag", [0, 1, 2, 3, 4, 5, 28, 29, 35, 258, 260])
def test_a_tag_of_the_librarys_is_refused_even_where_it_is_named(tag):
    """A tag with a meaning in the library would not come back as a tag, so it never comes back."""
    with pytest.raises(CBORError, match="a tag that this profile does not use"):
        decode(head(6, tag) + b"\x00", tags=(tag,))


def test_a_tag_with_a_longer_head_is_refused():
    """The number of a tag has one encoding too."""
    with pytest.raises(CBORError, match="deterministic"):
        decode(bytes.fromhex("d81200"), tags=(18,))


REFUSED = {
    "no bytes": "",
    "indefinite array": "9f00ff",
    "indefinite map": "bf0000ff",
    "indefinite bytes": "5f4100ff",
    "indefinite text": "7f6161ff",
    "empty indefinite array": "9fff",
    "indefinite inside": "819f00ff",
    "break alone": "ff",
    "break in an array": "82 00 ff",
    "duplicate integer key": "a201000100",
    "duplicate text key": "a2616100616101",
    "duplicate bytes key": "a2414100414101",
    "duplicate key inside": "81a201000100",
    "duplicate by another encoding": "a20100180100",
    "1 and true": "a20100f500",
    "unsorted integers": "a202000100",
    "unsorted, length first": "a2 6161 00 20 00",
    "unsorted by length of text": "a2 626161 00 6162 00",
    "unsorted inside": "81a202000100",
    "integer in two bytes": "1817",
    "integer in three bytes": "1900ff",
    "integer in five bytes": "1a0000ffff",
    "integer in nine bytes": "1b00000000ffffffff",
    "negative in two bytes": "3800",
    "length in two bytes": "580100",
    "text length in three bytes": "79000161",
    "array length in two bytes": "980100",
    "map length in two bytes": "b8010000",
    "reserved length 28": "1c",
    "reserved length 30": "1e",
    "half float": "f93c00",
    "single float": "fa47c35000",
    "double float": "fb3ff199999999999a",
    "float that is an integer": "f90000",
    "negative zero": "f98000",
    "not a number": "f97e00",
    "infinity": "f97c00",
    "float in a map": "a101f93c00",
    "simple 0": "e0",
    "simple 19": "f3",
    "simple 32": "f820",
    "simple 255": "f8ff",
    "simple in two bytes": "f814",
    "true in two bytes": "f815",
    "undefined": "f7",
    "undefined inside": "81f7",
    "NaN as a key": "a1f97e0000",
    "two NaN keys": "a2f97e0000f97e0000",
    "float as a key": "a1f93c0000",
    "true as a key": "a1f500",
    "null as a key": "a1f600",
    "array as a key": "a1810100",
    "map as a key": "a1a000",
    "undefined as a key": "a1f700",
    "simple as a key": "a1e000",
    "tag as a key": "a1c000 00",
    "trailing zero": "0000",
    "trailing null": "80f6",
    "text not UTF-8": "61ff",
    "text cut in a character": "61c3",
    "text overlong": "62c080",
    "text with a surrogate": "63eda080",
    "text beyond Unicode": "64f4908080",
    "text key not UTF-8": "a161ff00",
    "array shorter than said": "8300",
    "map without its value": "a100",
    "bytes shorter than said": "4300",
    "bytes of 2^64-1": "5bffffffffffffffff",
    "text of 2^63": "7b8000000000000000",
    "array of 2^64-1": "9bffffffffffffffff",
    "map of 2^64-1": "bbffffffffffffffff",
    "positive bignum": "c249010000000000000000",
    "small bignum": "c24101",
    "negative bignum": "c349010000000000000000",
    "shared value": "d81c80",
    "reference to oneself": "d81c81d81d00",
    "regular expression": "d823645b612d7a",
    "self-described": "d9d9f700",
}


@pytest.mark.parametrize("name", REFUSED)
def test_bytes_outside_the_profile_are_refused(name):
    """Each departure from deterministic CBOR is a CBORError of one line."""
    with pytest.raises(CBORError) as refusal:
        decode(bytes.fromhex(REFUSED[name]))
    assert len(str(refusal.value).splitlines()) == 1


def test_a_message_does_not_repeat_what_was_sent_at_length():
    """A key of 60,000 characters that occurs twice does not fill the log."""
    key = head(3, 60_000) + b"x" * 60_000
    with pytest.raises(CBORError) as refusal:
        decode(b"\xa2" + key + b"\x00" + key + b"\x01")
    assert len(str(refusal.value)) <= 200


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (TOP - 1, "1bffffffffffffffff"),
        (-TOP, "3bffffffffffffffff"),
        (1 << 63, "1b8000000000000000"),
        (-(1 << 63) - 1, "3b8000000000000000"),
    ],
)
def test_integers_at_the_bounds_of_64_bits(value, encoded):
    """The widest integers are written, and read as themselves."""
    assert (cbor.encode(value).hex(), decode(bytes.fromhex(encoded))) == (encoded, value)


@pytest.mark.parametrize("value", [TOP, -TOP - 1, 1 << 100])
def test_an_integer_beyond_64_bits_is_not_written(value):
    """No bignum is made behind the caller's back."""
    with pytest.raises(CBORError, match="beyond 64 bits"):
        cbor.encode([value])


@pytest.mark.parametrize(
    "value",
    [1.0, float("nan"), {1, 2}, object(), bytearray(b"x"), memoryview(b"x"), cbor2.undefined, 1j, range(2)],
    ids=["float", "nan", "set", "object", "bytearray", "memoryview", "undefined", "complex", "range"],
)
def test_a_value_of_another_type_is_not_written(value):
    """The writer refuses what the reader would."""
    with pytest.raises(CBORError, match="which the profile does not have"):
        cbor.encode({"a": [value]})


@pytest.mark.parametrize("key", [True, None, 1.0, (1, 2), frozenset()], ids=repr)
def test_a_key_of_another_type_is_not_written(key):
    """Keys are integers, text or bytes."""
    with pytest.raises(CBORError, match="a map key of type"):
        cbor.encode({key: 1})


@pytest.mark.parametrize("value", ["\ud800", {"\ud800": 1}], ids=["value", "key"])
def test_text_that_is_not_unicode_is_not_written(value):
    """A lone surrogate is a CBORError like any other value that the profile does not have."""
    with pytest.raises(CBORError):
        cbor.encode(value)


def test_the_deepest_allowed_item_is_read():
    """MAX_DEPTH containers inside each other."""
    value = decode(nested(cbor.MAX_DEPTH))
    assert cbor.encode(value) == nested(cbor.MAX_DEPTH)


@pytest.mark.parametrize("depth", [cbor.MAX_DEPTH + 1, 1000, 100_000])
@pytest.mark.parametrize("opener", ["81", "a100", "d2"], ids=["arrays", "maps", "tags"])
def test_one_level_deeper_is_refused(opener, depth):
    """Depth is bounded before a stack can be, whatever is nested."""
    with pytest.raises(CBORError):
        decode(bytes.fromhex(opener) * depth + b"\x00", tags=(18,))


def test_a_cycle_is_not_written():
    """A list that holds itself is refused, not followed."""
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(CBORError, match="nested deeper"):
        cbor.encode(cycle)


def test_max_items_counts_every_value():
    """As many values as allowed are read, the containers counted too."""
    count = cbor.MAX_ITEMS - 1
    assert decode(head(4, count) + b"\x00" * count) == [0] * count


@pytest.mark.parametrize(
    "data",
    [
        head(4, cbor.MAX_ITEMS) + b"\x00" * cbor.MAX_ITEMS,
        head(4, 2) + 2 * (head(4, cbor.MAX_ITEMS // 2) + b"\xa0" * (cbor.MAX_ITEMS // 2)),
    ],
    ids=["in one array", "in two"],
)
def test_one_value_more_is_refused(data):
    """The bound holds over the whole item, not for one container."""
    with pytest.raises(CBORError, match="more than 60000 values"):
        decode(data)


def test_more_values_than_allowed_are_not_written():
    """What could not be read back is not written."""
    with pytest.raises(CBORError, match="more than 60000 values"):
        cbor.encode([0] * cbor.MAX_ITEMS)


@pytest.mark.parametrize("size", [0, 1, 8])
def test_a_byte_more_than_allowed_is_refused(size):
    """The size is compared before a byte is read: even valid bytes are refused for it."""
    with pytest.raises(CBORError, match=f"{size + 1} bytes, but at most {size} are allowed"):
        decode(b"\x40" + b"\xff" * size, max_size=size)


def test_exactly_the_allowed_size_is_read():
    """The bound itself is allowed."""
    assert decode(b"\x47" + b"\xff" * 7, max_size=8) == b"\xff" * 7


def test_what_is_read_can_be_changed():
    """Containers come back as plain lists and dicts."""
    value = decode(bytes.fromhex("a1018102"))
    assert (type(value), type(value[1])) == (dict, list)
