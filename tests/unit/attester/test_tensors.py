"""Headers of safetensors files: what agrees with the format is read, the rest refused by name."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from attester.errors import WeightsError
from attester.weights import safetensors as header_module
from attester.weights import tensors as tensors_module
from attester.weights.folder import open_folder
from attester.weights.layout import TensorInfo
from attester.weights.safetensors import parse_header
from attester.weights.tensors import TensorFiles, read_header

START = 1000


def entry(shape=(2,), begin=0, end=8, dtype="F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def parse(header: object, payload: int = 8) -> tuple[TensorInfo, ...]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return parse_header("f", text, payload, START)


def whole(header: object, payload: bytes = b"", length: int | None = None) -> bytes:
    """A file: length, header, payload; the length lies where it is given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def put(root, name: str, data: bytes):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def shard(*names: str, size: int = 4) -> bytes:
    header = {name: entry([size], i * size, (i + 1) * size, "U8") for i, name in enumerate(names)}
    return whole(header, bytes(range(size * len(names))))


def index(weight_map: object, **more: object) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weight_map, **more}).encode()


def files(root) -> TensorFiles:
    return TensorFiles(open_folder(root))


def listed(root) -> list[str]:
    return [info.name for info in files(root).infos]


def head_of(root, data: bytes) -> tuple[TensorInfo, ...]:
    put(root, "m.safetensors", data)
    return read_header(open_folder(root).files[0])


def test_a_header_is_read(tmp_path):
    """Names, types, shapes, and places counted from the start of the file."""
    data = whole({"a": entry([1, 2]), "__metadata__": {"format": "pt"}}, bytes(8))
    assert head_of(tmp_path, data) == (
        TensorInfo(name="a", dtype="F32", shape=(1, 2), offset=len(data) - 8, size=8),
    )


def test_tensors_may_stand_in_any_order():
    """The header's order is free; the bytes' is not."""
    header = {"b": entry(begin=8, end=16), "a": entry()}
    assert [(t.name, t.offset) for t in parse(header, 16)] == [("b", START + 8), ("a", START)]


@pytest.mark.parametrize(
    ("shape", "bytes_"), [([], 4), ([0], 0), ([3, 0, 7], 0), ([1] * 32, 4), ([2, 1], 8)], ids=str
)
def test_shapes_that_are_possible(shape, bytes_):
    """Scalars, empty tensors and many dimensions."""
    assert parse({"a": entry(shape, 0, bytes_)}, bytes_)[0].size == bytes_


def test_empty_tensors_may_share_a_place():
    """No bytes overlap none."""
    header = {"e": entry([0], 0, 0), "a": entry(), "f": entry([0], 8, 8), "g": entry([0], 8, 8)}
    assert len(parse(header, 8)) == 4


def test_a_header_without_tensors_is_a_header():
    """The format allows it."""
    assert parse({}, 0) == ()


def test_a_header_may_be_padded():
    """With spaces, as the reference implementation pads."""
    assert len(parse(json.dumps({"a": entry()}).encode() + b"   ")) == 1


@pytest.mark.parametrize("size", range(8))
def test_a_file_shorter_than_a_length_is_refused(tmp_path, size):
    """Eight bytes are the least."""
    with pytest.raises(WeightsError, match=rf"not a safetensors file \({size} bytes\)"):
        head_of(tmp_path, bytes(size))


@pytest.mark.parametrize(
    "length",
    [1 << 63, (1 << 64) - 1, 1 << 62, 100_000_001, 1 << 32],
    ids=["2^63", "2^64-1", "2^62", "limit+1", "2^32"],
)
def test_a_length_beyond_the_file_is_refused(tmp_path, length):
    """Before a byte of it is asked for."""
    with pytest.raises(WeightsError, match=f"its header claims {length} bytes"):
        head_of(tmp_path, whole({"a": entry()}, bytes(8), length))


def test_a_length_of_the_whole_file_is_refused(tmp_path):
    """The length does not count itself."""
    data = whole({"a": entry()}, bytes(8))
    with pytest.raises(WeightsError, match=f"claims {len(data)} bytes"):
        head_of(tmp_path, len(data).to_bytes(8, "little") + data[8:])


def test_a_length_one_byte_beyond_the_file_is_refused(tmp_path):
    """To the byte."""
    with pytest.raises(WeightsError, match="its header claims 3 bytes"):
        head_of(tmp_path, whole(b"{}", b"", 3))


def test_a_header_larger_than_the_limit_is_refused(tmp_path, monkeypatch):
    """Even where the file is large enough to hold it."""
    monkeypatch.setattr(header_module, "MAX_HEADER_BYTES", 10)
    with pytest.raises(WeightsError, match="its header claims 11 bytes"):
        head_of(tmp_path, whole(b"{}" + b" " * 9))


def test_a_file_cut_after_it_was_listed_is_refused(tmp_path):
    """The header must come whole."""
    path = put(tmp_path, "m.safetensors", whole({"a": entry()}, bytes(8)))
    file = open_folder(tmp_path).files[0]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(WeightsError, match="truncated in its header"):
        read_header(file)


def test_a_file_cut_in_its_payload_is_refused(tmp_path):
    """The last tensor must come whole."""
    with pytest.raises(WeightsError, match="its tensors need 8 bytes, but the file has 7"):
        head_of(tmp_path, whole({"a": entry()}, bytes(7)))


def test_bytes_after_the_last_tensor_are_refused(tmp_path):
    """No room for what is hashed and not walked."""
    with pytest.raises(WeightsError, match="its tensors need 8 bytes, but the file has 9"):
        head_of(tmp_path, whole({"a": entry()}, bytes(9)))


def test_bytes_without_a_tensor_are_refused(tmp_path):
    """Nor in a file without tensors."""
    with pytest.raises(WeightsError, match="its tensors need 0 bytes, but the file has 1"):
        head_of(tmp_path, whole({}, b"x"))


def test_more_tensors_than_allowed_are_refused(monkeypatch):
    """The number is bounded."""
    monkeypatch.setattr(header_module, "MAX_TENSORS", 1)
    with pytest.raises(WeightsError, match="more than 1 tensors"):
        parse({"a": entry(), "b": entry([0], 8, 8)})


HEADERS = {
    "empty": b"",
    "array": b"[]",
    "text": b'"{}"',
    "null": b"null",
    "number": b"1",
    "leading space": b' {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "leading newline": b"\n{}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "UTF-16 without its mark": "{}".encode("utf-16-le"),
    "UTF-32": "{}".encode("utf-32-le"),
    "Latin-1": '{"é": {}}'.encode("latin-1"),
    "cut": b'{"a": {"dtype"',
    "two objects": b"{}{}",
    "comma at the end": b'{"a": {},}',
    "single quotes": b"{'a': 1}",
    "comment": b"{}//",
    "NUL padding": b"{}\x00",
    "surrogate byte": b'{"\xed\xa0\x80": {}}',
    "bomb of arrays": b'{"a":' + b"[" * 200_000,
    "bomb of objects": b'{"a":' * 100_000,
    "number of 5,000 digits": b'{"a": ' + b"1" * 5000 + b"}",
    "name twice": b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": '
    b'{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "name twice by an escape": b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "\\u0061": '
    b'{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "dtype twice": b'{"a": {"dtype": "U8", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "shape twice": b'{"a": {"dtype": "F32", "shape": [9], "shape": [2], "data_offsets": [0, 8]}}',
    "__metadata__ twice": b'{"__metadata__": {}, "__metadata__": {}}',
    "metadata's key twice": b'{"__metadata__": {"a": "1", "a": "2"}}',
    "name a surrogate": b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "dtype a surrogate": b'{"a": {"dtype": "\\ud800", "shape": [2], "data_offsets": [0, 8]}}',
    "NaN in a shape": b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}',
    "infinite offset": b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, Infinity]}}',
    "offset 8e0": b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8e0]}}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_not_the_formats_json_is_refused(name):
    """One JSON object in UTF-8 from the first byte, each name once, and bounded errors."""
    with pytest.raises(WeightsError) as refusal:
        parse(HEADERS[name])
    assert len(str(refusal.value)) < 300


ENTRIES = {
    "null": None,
    "list": ["F32", [2], [0, 8]],
    "empty": {},
    "no dtype": {"shape": [2], "data_offsets": [0, 8]},
    "no shape": {"dtype": "F32", "data_offsets": [0, 8]},
    "no offsets": {"dtype": "F32", "shape": [2]},
    "a member more": {**entry(), "x": 1},
    "dtype a number": {**entry(), "dtype": 1},
    "dtype null": {**entry(), "dtype": None},
    "dtype unknown": entry(dtype="F33"),
    "dtype lower case": entry(dtype="f32"),
    "dtype numpy's": entry(dtype="<f4"),
    "dtype empty": entry(dtype=""),
    "dtype with a space": entry(dtype="F32 "),
    "shape a number": {**entry(), "shape": 2},
    "shape null": {**entry(), "shape": None},
    "shape text": {**entry(), "shape": "2"},
    "shape of text": entry(["2"]),
    "shape of floats": entry([2.0]),
    "shape of true": entry([True, 2]),
    "shape of null": entry([None]),
    "shape nested": entry([[2]]),
    "shape negative": entry([-2]),
    "shape negative twice": entry([-1, -2]),
    "shape beyond 2^62": entry([1 << 62, 0], 0, 0),
    "shape of 33": entry([1] * 32 + [2]),
    "offsets a number": {**entry(), "data_offsets": 8},
    "offsets of one": {**entry(), "data_offsets": [8]},
    "offsets of three": {**entry(), "data_offsets": [0, 4, 8]},
    "offsets of text": {**entry(), "data_offsets": ["0", "8"]},
    "offsets of floats": {**entry(), "data_offsets": [0.0, 8.0]},
    "offsets false and 8": {**entry(), "data_offsets": [False, 8]},
    "offsets 0 and true": {**entry([1], dtype="U8"), "data_offsets": [0, True]},
    "offsets an object": {**entry(), "data_offsets": {"0": 0, "1": 8}},
    "offsets negative": entry([2], -8, 0),
    "offsets backwards": entry([2], 8, 0),
    "offsets beyond 2^64": entry([2], 1 << 64, (1 << 64) + 8),
    "beyond the file": entry([2], 8, 16),
    "a hole at the start": entry([1], 4, 8),
    "a byte too few": entry([2], 0, 7),
    "a byte too many": entry([2], 0, 9),
    "empty with bytes": entry([0], 0, 8),
    "wrapping at 2^64": entry([1 << 61, 1 << 61, 16], 0, 8),
    "F4 of half a byte": entry([1], 0, 1, "F4"),
    "F4 of nothing": entry([1], 0, 0, "F4"),
    "F4 counted as bytes": entry([8], 0, 8, "F4"),
    "F6 of six bits": entry([1], 0, 1, "F6_E2M3"),
    "F6 of twelve bits": entry([2], 0, 2, "F6_E3M2"),
}


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("payload", [0, 1, 8])
def test_a_tensor_that_cannot_be_is_refused(name, payload):
    """By its name, whatever the file has: dtype, shape and data_offsets, and the bytes that they say."""
    with pytest.raises(WeightsError, match="tensor 'a' "):
        parse({"a": ENTRIES[name]}, payload)


LAYOUTS = {
    "the same bytes": [(0, 8), (0, 8)],
    "one inside the other": [(0, 8), (2, 4)],
    "over the edge": [(0, 5), (4, 8)],
    "a hole between": [(0, 3), (4, 8)],
    "a hole at the start": [(1, 4), (4, 8)],
    "a hole at the end": [(0, 3), (3, 7)],
    "an empty one in the midst": [(0, 8), (4, 4)],
    "an empty one beyond": [(0, 8), (9, 9)],
    "out of the file": [(0, 8), (8, 9)],
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("turned", [False, True], ids=["in order", "turned"])
def test_bytes_that_are_nobodys_or_twos_are_refused(name, turned):
    """Tensors lie back to back over the whole payload."""
    header = {f"t{i}": entry([end - begin], begin, end, "U8") for i, (begin, end) in enumerate(LAYOUTS[name])}
    with pytest.raises(WeightsError, match=r"overlaps|leaves a hole|its tensors need"):
        parse(dict(reversed(header.items())) if turned else header)


@pytest.mark.parametrize("value", [None, [], "x", 1, {"a": 1}, {"a": None}, {"a": {"b": "c"}}, {"a": ["b"]}])
def test_metadata_of_another_type_is_refused(value):
    """A map of text to text, as the format has it."""
    with pytest.raises(WeightsError, match="__metadata__ is not a map of text to text"):
        parse({"__metadata__": value, "a": entry()})


@pytest.mark.parametrize(
    ("dtype", "count", "size"),
    [("F4", 2, 1), ("F4", 16, 8), ("F6_E2M3", 4, 3), ("F6_E3M2", 8, 6), ("F8_E8M0", 3, 3), ("C64", 1, 8)],
)
def test_types_of_other_widths(dtype, count, size):
    """Types below a byte are counted in bits, and fill whole bytes."""
    assert parse({"a": entry([count], 0, size, dtype)}, size)[0].size == size


def reference_takes(dtype: str) -> bool:
    """Whether the reference implementation reads a tensor of this type."""
    for size in (1, 2, 3, 4, 8, 16):
        for count in (1, 2, 4):
            try:
                safetensors.deserialize(whole({"a": entry([count], 0, size, dtype)}, bytes(size)))
            except safetensors.SafetensorError:
                continue
            return True
    return False


@pytest.mark.parametrize("dtype", sorted(header_module._BITS))
def test_every_type_of_ours_is_one_of_the_formats(dtype):
    """No type is read here that the reference implementation would refuse."""
    assert reference_takes(dtype)


@pytest.mark.parametrize("dtype", ["F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_every_type_of_the_format_is_one_of_ours(dtype):
    """A model that the reference implementation reads can be walked."""
    assert reference_takes(dtype)
    assert parse({"a": entry([8], 0, 8, dtype)})[0].size == 8


BOMBS = {
    "nesting in a tensor": b'{"a": {"dtype": "F32", "shape": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "nesting in a tensor's dtype": b'{"a": {"dtype": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}}",
    "nesting in the metadata": b'{"__metadata__": ' + b'{"a":' * 50_000 + b"{}" + b"}" * 50_000 + b"}",
    "nesting just short of the limit": b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
    "offset of 10,000 digits": b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, '
    + b"9" * 10_000
    + b"]}}",
    "offset of 4,000 digits": b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, '
    + b"9" * 4000
    + b"]}}",
    "shape of 4,000 digits": b'{"a": {"dtype": "F32", "shape": ['
    + b"9" * 4000
    + b'], "data_offsets": [0, 8]}}',
    "shape of -4,000 digits": b'{"a": {"dtype": "F32", "shape": [-'
    + b"9" * 4000
    + b'], "data_offsets": [0, 8]}}',
    "shape of 1e999999999": b'{"a": {"dtype": "F32", "shape": [1e999999999], "data_offsets": [0, 8]}}',
    "shape of 1e-999999999": b'{"a": {"dtype": "F32", "shape": [1e-999999999], "data_offsets": [0, 8]}}',
    "shape of 32 times 2^61": json.dumps({"a": entry([1 << 61] * 32)}).encode(),
    "shape of a million": json.dumps({"a": entry([1] * 1_000_000)}).encode(),
    "200,000 names": json.dumps({str(number): None for number in range(200_000)}).encode(),
    "200,000 members": json.dumps({"a": {str(number): 0 for number in range(200_000)}}).encode(),
    "200,000 times one name": b"{" + b'"a":0,' * 200_000 + b'"b":0}',
    "50,000 empty tensors and a hole": json.dumps(
        {str(number): entry([0], 0, 0) for number in range(50_000)}
    ).encode(),
    "a metadata of a megabyte that is a number": b'{"__metadata__": {"' + b"a" * 1_000_000 + b'": 1}}',
    "text without end": b'{"a": "' + b"a" * 1_000_000,
    "escapes without end": b'{"a": "' + b"\\u0061" * 100_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_header_that_would_burst_is_refused_at_once(name):
    """Whatever a header makes of its bytes, it is our error, short, and soon."""
    began = time.process_time()
    with pytest.raises(WeightsError) as refusal:
        parse(BOMBS[name])
    assert time.process_time() - began < 5
    assert len(str(refusal.value)) < 1000


# A name stands in the refusal as long as it is: a header of 100 MB makes a message of 100 MB.
@pytest.mark.parametrize("value", [None, entry(dtype="F33"), entry([3])], ids=["entry", "type", "size"])
def test_a_name_without_end_is_cut_in_its_refusal(value):
    """Refusals go into logs and answers."""
    with pytest.raises(WeightsError) as refusal:
        parse({"a" * 1_000_000: value})
    assert len(str(refusal.value)) < 1000


NUMBERS = st.one_of(
    st.integers(-2, 20),
    st.integers(-(1 << 70), 1 << 70),
    st.sampled_from([1 << 62, (1 << 62) - 1, 1 << 63, 1 << 64]),
)


@given(
    st.dictionaries(
        st.text(max_size=4),
        st.tuples(st.sampled_from([*header_module._BITS]), st.lists(NUMBERS, max_size=4), NUMBERS, NUMBERS),
        max_size=4,
    ),
    st.integers(0, 100),
)
@settings(max_examples=150)
def test_any_numbers_in_a_header_are_read_or_refused(wanted, payload):
    """Sizes and offsets of any width."""
    header = {name: entry(shape, begin, end, dtype) for name, (dtype, shape, begin, end) in wanted.items()}
    try:
        found = parse(header, payload)
    except WeightsError:
        return
    assert sum(t.size for t in found) == payload


@given(st.binary(max_size=40), st.one_of(st.integers(0, 60), st.integers(0, (1 << 64) - 1)))
@settings(max_examples=100)
def test_any_file_is_read_or_refused(tmp_path_factory, data, length):
    """With any length before any bytes."""
    root = tmp_path_factory.mktemp("any")
    try:
        found = head_of(root, whole(b"{" + data, b"", length))
    except WeightsError:
        return
    assert sum(t.size for t in found) == 1 + len(data) - length


@given(
    st.dictionaries(
        st.text(st.characters(blacklist_categories=["Cs"]), max_size=6).filter(lambda n: n != "__metadata__"),
        st.tuples(
            st.sampled_from([*header_module._BITS]), st.lists(st.sampled_from([0, 1, 2, 4, 8]), max_size=3)
        ),
        max_size=6,
    ),
    st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
    st.randoms(use_true_random=False),
)
@settings(max_examples=100)
def test_whatever_is_written_is_read(wanted, metadata, order):
    """Any types and shapes that fill bytes, in any order of the header."""
    header, expected, end = {}, {}, 0
    for name, (dtype, shape) in wanted.items():
        bits = math.prod(shape) * header_module._BITS[dtype]
        shape = [*shape, 8] if bits % 8 else shape  # noqa: PLW2901
        size = math.prod(shape) * header_module._BITS[dtype] // 8
        header[name] = entry(shape, end, end + size, dtype)
        expected[name] = TensorInfo(name=name, dtype=dtype, shape=tuple(shape), offset=START + end, size=size)
        end += size
    names = list(header)
    order.shuffle(names)
    found = parse({"__metadata__": metadata} | {name: header[name] for name in names}, end)
    assert found == tuple(expected[name] for name in names)


@given(st.binary(max_size=60), st.integers(0, 64))
@settings(max_examples=100)
def test_any_bytes_are_a_header_or_refused(text, payload):
    """Whatever comes, parsing raises nothing but our error."""
    for data in (text, b"{" + text, b'{"' + text + b"}"):
        try:
            found = parse(data, payload)
        except WeightsError:
            continue
        assert sum(t.size for t in found) == payload


@given(st.data())
@settings(max_examples=150)
def test_a_changed_header_keeps_to_the_file_or_is_refused(data):
    """Bytes changed in a valid header: refused, or every tensor still lies inside, back to back."""
    header = {"a": entry(), "b.c": entry([3], 8, 14, "F16"), "__metadata__": {"k": "v"}}
    text = bytearray(json.dumps(header).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.one_of(
                st.binary(max_size=2), st.sampled_from([b"0", b"-", b"9", b"e", b".", b",", b"]", b"["])
            )
        )
    try:
        found = parse(bytes(text), 14)
    except WeightsError:
        return
    places = sorted((t.offset, t.offset + t.size) for t in found)
    assert [end for _, end in places] == [begin for begin, _ in places[1:]] + [START + 14]


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-2, 20), st.floats(), st.text(max_size=4)),
        lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(st.text(max_size=4), x, max_size=3)),
        max_leaves=6,
    ),
    st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]),
)
@settings(max_examples=150)
def test_any_json_is_a_header_or_refused(value, where):
    """Any value in any place of a header raises nothing but our error."""
    header = {"a": entry()}
    if where in ("a", "__metadata__"):
        header[where] = value
    else:
        header["a"][where] = value
    try:
        found = parse(header)
    except WeightsError:
        return
    assert sum(t.size for t in found) == 8


DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


@given(
    st.dictionaries(
        st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=10).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(
            st.sampled_from([*DTYPES]),
            st.lists(st.integers(0, 5), max_size=3).map(tuple),
            st.integers(0, 255),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=60)
def test_files_of_the_reference_implementation_are_read_as_it_reads_them(tmp_path_factory, wanted):
    """Names, types, shapes and bytes are those that were saved, in the order of the names' bytes."""
    root = tmp_path_factory.mktemp("saved")
    noise = np.random.default_rng(1)
    saved = {
        name: np.asarray(noise.integers(0, 256, shape) + fill, DTYPES[dtype])
        for name, (dtype, shape, fill) in wanted.items()
    }
    saved["always"] = np.ones(1, np.float32)
    save_file(saved, root / "m.safetensors", {"format": "np"})
    read = files(root)
    dtypes = {name: dtype for name, (dtype, _, _) in wanted.items()} | {"always": "F32"}
    order = sorted(saved, key=lambda name: name.encode())
    assert [(i.name, i.dtype, i.shape) for i in read.infos] == [(n, dtypes[n], saved[n].shape) for n in order]
    assert [(t.name, t.data.tobytes()) for t in read] == [(n, saved[n].tobytes()) for n in order]
    assert load_file(root / "m.safetensors").keys() == saved.keys()


def test_tensors_come_in_the_order_of_their_names_bytes(tmp_path):
    """Over all files, whatever order the files have."""
    put(tmp_path, "a.safetensors", shard("z", "\uffee", "B"))
    put(tmp_path, "sub/b.safetensors", shard("\U0001f999", "a", "é"))
    assert listed(tmp_path) == ["B", "a", "z", "é", "\uffee", "\U0001f999"]


def test_one_tensor_in_two_files_is_refused(tmp_path):
    """By name, with both files."""
    put(tmp_path, "1.safetensors", shard("a"))
    put(tmp_path, "2.safetensors", shard("a", "b"))
    with pytest.raises(WeightsError, match=r"tensor 'a' is in 1.safetensors and in 2.safetensors"):
        files(tmp_path)


def test_a_name_that_two_folders_have_is_told_apart_by_the_folder(tmp_path):
    """The parts of a pipeline, or 2_Dense and 3_Dense of a model for embeddings, have tensors of the same name."""
    put(tmp_path, "x.safetensors", shard("a"))
    put(tmp_path, "unet/x.safetensors", shard("a"))
    put(tmp_path, "vae/x.safetensors", shard("b"))
    assert [info.name for info in TensorFiles(open_folder(tmp_path)).infos] == ["a", "b", "unet/a"]


def test_a_name_that_would_be_made_twice_is_refused(tmp_path):
    """A tensor may not take the name that another one's folder gives it."""
    put(tmp_path, "x.safetensors", shard("unet/a"))
    put(tmp_path, "y.safetensors", shard("a"))
    put(tmp_path, "unet/x.safetensors", shard("a"))
    with pytest.raises(WeightsError, match="tensor 'unet/a' is in"):
        files(tmp_path)


def test_a_folder_without_tensors_is_refused(tmp_path):
    """Other formats are not walked."""
    put(tmp_path, "pytorch_model.bin", b"x")
    with pytest.raises(WeightsError, match="has no safetensors file"):
        files(tmp_path)


def test_tensors_without_bytes_are_refused(tmp_path):
    """Nothing to walk is no walk."""
    put(tmp_path, "m.safetensors", whole({"a": entry([0], 0, 0)}))
    with pytest.raises(WeightsError, match="no tensor with any bytes"):
        files(tmp_path)


def test_one_bad_file_is_refused_with_its_name(tmp_path):
    """A folder is read whole or not at all."""
    put(tmp_path, "1.safetensors", shard("a"))
    put(tmp_path, "2.safetensors", b"garbage!garbage!")
    with pytest.raises(WeightsError, match=r"2.safetensors: its header claims"):
        files(tmp_path)


def test_a_file_that_changed_before_it_is_walked_is_refused(tmp_path):
    """Bytes are those of the header that was read."""
    path = put(tmp_path, "m.safetensors", shard("a"))
    opened = files(tmp_path)
    path.write_bytes(shard("a", "b"))
    with pytest.raises(WeightsError, match="changed since it was listed"):
        [tensor.data for tensor in opened]


def test_walking_does_not_write_to_the_files(tmp_path):
    """What is changed in memory stays there."""
    path = put(tmp_path, "m.safetensors", shard("a"))
    for tensor in files(tmp_path):
        for chunk in tensor.chunks():
            chunk[:] = 0
    assert path.read_bytes() == shard("a")


def test_an_index_names_its_shards(tmp_path):
    """Files beside them are not walked."""
    put(tmp_path, "1.safetensors", shard("a"))
    put(tmp_path, "2.safetensors", shard("b"))
    put(tmp_path, "consolidated.safetensors", shard("a", "b"))
    put(tmp_path, "m.safetensors.index.json", index({"b": "2.safetensors", "a": "1.safetensors"}))
    assert listed(tmp_path) == ["a", "b"]


def test_an_index_speaks_for_its_own_folder(tmp_path):
    """Another folder has its own, or none."""
    put(tmp_path, "1.safetensors", shard("a"))
    put(tmp_path, "m.safetensors.index.json", index({"a": "1.safetensors"}))
    put(tmp_path, "extra.safetensors", shard("a"))
    put(tmp_path, "sub/2.safetensors", shard("b"))
    put(tmp_path, "sub2/3.safetensors", shard("c"))
    put(tmp_path, "sub2/m.safetensors.index.json", index({"c": "3.safetensors"}))
    assert listed(tmp_path) == ["a", "b", "c"]


def test_two_indexes_in_a_folder_are_refused(tmp_path):
    """Which one the engine loads is not ours to guess."""
    put(tmp_path, "1.safetensors", shard("a"))
    for name in ("m.safetensors.index.json", "m.fp16.safetensors.index.json"):
        put(tmp_path, name, index({"a": "1.safetensors"}))
    with pytest.raises(WeightsError, match="both index files"):
        files(tmp_path)


INDEXES = {
    "a shard that is not there": (
        index({"a": "1.safetensors", "b": "3.safetensors"}),
        "names '3.safetensors'",
    ),
    "a tensor in the other shard": (
        index({"a": "2.safetensors", "b": "1.safetensors"}),
        "is not in the file that the index names",
    ),
    "a tensor that is nowhere": (
        index({"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}),
        "'c' is not in the file that the index names",
    ),
    "a tensor of a named shard left out": (index({"a": "3.safetensors"}), "names '3.safetensors'"),
    "a path": (index({"a": "./1.safetensors", "b": "2.safetensors"}), "which is not a file in its folder"),
    "a path out": (index({"a": "../1.safetensors"}), "which is not a file in its folder"),
    "an absolute path": (index({"a": "/etc/passwd"}), "which is not a file in its folder"),
    "a file in a sub-folder": (index({"a": "sub/4.safetensors"}), "which is not a file in its folder"),
    "an empty name": (index({"a": ""}), "which is not a file in its folder"),
    "another kind of file": (index({"a": "x.bin"}), "which is not a file in its folder"),
    "names that are numbers": (index({"a": 1}), "does not name files"),
    "names that are lists": (index({"a": ["1.safetensors"]}), "does not name files"),
    "nothing": (index({}), "does not name files"),
    "a list": (index(["1.safetensors"]), "does not name files"),
    "no map": (b"{}", "does not name files"),
    "an array": (b"[]", "does not name files"),
    "null": (b"null", "does not name files"),
    "a name twice": (b'{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}', "occurs twice"),
    "two maps": (b'{"weight_map": {"a": "1.safetensors"}, "weight_map": {}}', "occurs twice"),
    "empty": (b"", "not JSON"),
    "cut": (b'{"weight_map"', "not JSON"),
    "UTF-16": (index({"a": "1.safetensors"}).decode().encode("utf-16"), "not JSON"),
    "a bomb": (b"[" * 200_000, "not JSON"),
    "a surrogate as a file": (b'{"weight_map": {"a": "\\ud800"}}', "which is not a file in its folder"),
    "a surrogate as a tensor": (
        b'{"weight_map": {"a": "1.safetensors", "\\ud800": "1.safetensors"}}',
        "is not in the file that the index names",
    ),
}


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_that_does_not_fit_is_refused(tmp_path, name):
    """An index says where each tensor of its shards is, and says it truly."""
    data, words = INDEXES[name]
    put(tmp_path, "1.safetensors", shard("a"))
    put(tmp_path, "2.safetensors", shard("b"))
    put(tmp_path, "sub/4.safetensors", shard("d"))
    put(tmp_path, "x.bin", b"x")
    put(tmp_path, "m.safetensors.index.json", data)
    with pytest.raises(WeightsError, match=words):
        files(tmp_path)


def test_an_index_that_leaves_out_a_tensor_of_its_shard_is_refused(tmp_path):
    """What a shard holds is loaded, whether the index says so or not."""
    put(tmp_path, "1.safetensors", shard("a", "b"))
    put(tmp_path, "m.safetensors.index.json", index({"a": "1.safetensors"}))
    with pytest.raises(WeightsError, match="'b' is not in the file that the index names"):
        files(tmp_path)


def test_an_index_too_large_is_refused(tmp_path, monkeypatch):
    """Before it is read."""
    monkeypatch.setattr(tensors_module, "_MAX_INDEX_BYTES", 10)
    put(tmp_path, "1.safetensors", shard("a"))
    put(tmp_path, "m.safetensors.index.json", index({"a": "1.safetensors"}))
    with pytest.raises(WeightsError, match="bytes, but an index has at most"):
        files(tmp_path)


def test_an_index_alone_is_refused(tmp_path):
    """An index without its shards is no model."""
    put(tmp_path, "m.safetensors.index.json", index({"a": "1.safetensors"}))
    with pytest.raises(WeightsError, match=r"names '1.safetensors', which is not a file in its folder"):
        files(tmp_path)
