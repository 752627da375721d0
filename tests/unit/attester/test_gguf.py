"""Headers of GGUF files: what agrees with the format is read, the rest refused by name."""

from __future__ import annotations

import struct
import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attester.errors import WeightsError
from attester.weights import gguf as header_module
from attester.weights.folder import open_folder
from attester.weights.gguf import parse_header
from attester.weights.layout import TensorInfo
from attester.weights.manifest import bytes_by_dtype
from attester.weights.tensors import TensorFiles, read_header

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
TYPE_F32, TYPE_F16, TYPE_Q8_0, TYPE_I8 = 0, 1, 8, 24
BLOCKS = {kind: (elements, size) for kind, (_, elements, size) in header_module._TYPES.items()}


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return u64(len(data) if length is None else length) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + u32(kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return u32(kind) + u64(count) + values


def alignment(value: int) -> bytes:
    return pair("general.alignment", U32, u32(value))


def tensor(name: str | bytes = "a", shape=(4,), kind: int = TYPE_I8, offset: int = 0) -> bytes:
    """An entry of the table; the shape is given as the file has it, the fastest dimension first."""
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


def head(
    tensors=(),
    keys=(),
    *,
    magic=b"GGUF",
    version=3,
    tensor_count: int | None = None,
    key_count: int | None = None,
) -> bytes:
    counts = u64(len(tensors) if tensor_count is None else tensor_count) + u64(
        len(keys) if key_count is None else key_count
    )
    return magic + u32(version) + counts + b"".join(keys) + b"".join(tensors)


def padded(data: bytes, to: int = 32) -> bytes:
    return data + bytes(-len(data) % to)


ONE = (tensor(),)


def whole(tensors=ONE, keys=(), payload: bytes = b"abcd", to: int = 32, **more: object) -> bytes:
    return padded(head(tensors, keys, **more), to) + payload


def parse(data: bytes, size: int | None = None) -> tuple[TensorInfo, ...]:
    return parse_header("f", data, len(data) if size is None else size).tensors


def put(root, data: bytes, name: str = "m.gguf"):
    path = root / name
    path.write_bytes(data)
    return path


def head_of(root, data: bytes) -> tuple[TensorInfo, ...]:
    put(root, data)
    return read_header(open_folder(root).files[0])


def test_a_header_is_read(tmp_path):
    data = whole([tensor("a", (3, 2), TYPE_F32)], [pair("k", STRING, text("v"))], bytes(24))
    assert head_of(tmp_path, data) == (
        TensorInfo(name="a", dtype="F32", shape=(2, 3), offset=len(data) - 24, size=24),
    )


def test_version_2_is_read():
    assert parse(whole(version=2)) == parse(whole(version=3))


def test_a_file_without_tensors_is_read():
    assert parse(head([], [pair("k", U8, b"x")])) == ()


def test_the_bytes_of_a_tensor_are_those_of_its_place(tmp_path):
    data = whole([tensor("b"), tensor("a", (2,), TYPE_I8, 32)], (), padded(b"bbbb") + b"aa")
    put(tmp_path, data)
    assert [(t.name, t.data.tobytes()) for t in TensorFiles(open_folder(tmp_path))] == [
        ("a", b"aa"),
        ("b", b"bbbb"),
    ]


VALUES = {
    "u8": (U8, b"\xff"),
    "i8": (I8, b"\xff"),
    "u16": (U16, b"\xff" * 2),
    "i16": (I16, b"\xff" * 2),
    "u32": (U32, b"\xff" * 4),
    "i32": (I32, b"\xff" * 4),
    "f32": (F32, b"\xff" * 4),
    "bool": (BOOL, b"\1"),
    "text": (STRING, text("é")),
    "text that is not UTF-8": (STRING, text(b"\xff")),
    "text of a NUL": (STRING, text(b"\0")),
    "empty text": (STRING, text("")),
    "u64": (U64, b"\xff" * 8),
    "i64": (I64, b"\xff" * 8),
    "f64": (F64, b"\xff" * 8),
    "empty array": (ARRAY, array(U8, 0)),
    "empty array of text": (ARRAY, array(STRING, 0)),
    "array of bytes": (ARRAY, array(U8, 5, b"abcde")),
    "array of f64": (ARRAY, array(F64, 2, bytes(16))),
    "array of text": (ARRAY, array(STRING, 2, text("a") + text("bc"))),
    "array of arrays": (ARRAY, array(ARRAY, 2, array(U16, 1, b"ab") + array(STRING, 1, text("c")))),
    "arrays four deep": (ARRAY, array(ARRAY, 1, array(ARRAY, 1, array(ARRAY, 1, array(U8, 1, b"x"))))),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_are_stepped_over(name):
    keys = [pair("before", U8, b"x"), pair("k", *VALUES[name]), pair("after", STRING, text("y"))]
    assert [t.name for t in parse(whole(keys=keys))] == ["a"]


@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_is_cut_is_refused(name):
    kind, value = VALUES[name]
    data = head([], [pair("k", kind, value)])
    for end in range(len(data) - len(value), len(data)):
        with pytest.raises(WeightsError):
            parse(data[:end])


@pytest.mark.parametrize("value", [8, 16, 24, 32, 64, 4096, 1 << 16])
def test_alignments_that_are_possible(value):
    (found,) = parse(whole(keys=[alignment(value)], to=value))
    assert found.offset % value == 0


@pytest.mark.parametrize("value", [0, 1, 7, 33, (1 << 16) + 8, 1 << 31, (1 << 32) - 1])
def test_alignments_that_are_not(value):
    with pytest.raises(WeightsError, match=f"an alignment of {value} is not allowed$"):
        parse(whole(keys=[alignment(value)]))


@pytest.mark.parametrize(
    ("kind", "value"),
    [(U64, u64(32)), (I32, u32(32)), (U8, b" "), (STRING, text("32")), (ARRAY, array(U32, 1, u32(32)))],
)
def test_an_alignment_of_another_type_is_refused(kind, value):
    with pytest.raises(WeightsError, match=r"general\.alignment must be a 32-bit number"):
        parse(whole(keys=[pair("general.alignment", kind, value)]))


def test_the_alignment_counts_wherever_it_stands():
    keys = [pair("a", U8, b"x"), alignment(64), pair("b", U8, b"y")]
    assert parse(whole(keys=keys, to=64))[0].offset % 64 == 0


STARTS = {
    "empty": b"",
    "magic alone": b"GGUF",
    "23 bytes": head()[:23],
    "another magic": head(magic=b"GGML"),
    "magic in lower case": head(magic=b"gguf"),
    "magic turned": head(magic=b"FUGG"),
    "safetensors": (2).to_bytes(8, "little") + b"{}" + bytes(30),
}


@pytest.mark.parametrize("name", STARTS)
def test_what_is_no_gguf_file_is_refused(tmp_path, name):
    with pytest.raises(WeightsError, match=r"m\.gguf is not a GGUF file \(\d+ bytes\)"):
        head_of(tmp_path, STARTS[name])


@pytest.mark.parametrize("version", [0, 1, 4, 1 << 31, (1 << 32) - 1])
def test_other_versions_are_refused(version):
    with pytest.raises(WeightsError, match=f"version {version} is not supported, only 2 and 3"):
        parse(whole(version=version))


@pytest.mark.parametrize("version", [2, 3])
def test_a_big_endian_file_is_said_to_be_one(version):
    with pytest.raises(WeightsError, match="big-endian"):
        parse(whole(version=version << 24))


BOUNDS = [1 << 63, (1 << 64) - 1, 1 << 32]

DEFECTS = {
    "tensor twice": (whole([tensor(), tensor(offset=32)], (), padded(b"abcd") + b"abcd"), "'a' occurs twice"),
    "key twice": (whole(keys=[pair("k", U8, b"x")] * 2), "key 'k' occurs twice"),
    "key twice of two types": (whole(keys=[pair("k", U8, b"x"), pair("k", U32, u32(1))]), "occurs twice"),
    "alignment twice": (whole(keys=[alignment(32)] * 2), "occurs twice"),
    "key not UTF-8": (whole(keys=[pair(b"\xff", U8, b"x")]), "a key is not UTF-8"),
    "key a surrogate": (whole(keys=[pair(b"\xed\xa0\x80", U8, b"x")]), "a key is not UTF-8"),
    "key too long": (whole(keys=[pair("k" * 1025, U8, b"x")]), "a key claims 1025 bytes"),
    "key without end": (head([], [text("k", 1 << 63)]), f"a key claims {1 << 63} bytes"),
    "name not UTF-8": (whole([tensor(b"\xff")]), "a tensor's name is not UTF-8"),
    "name a surrogate": (whole([tensor(b"\xed\xa0\x80")]), "a tensor's name is not UTF-8"),
    "name too long": (whole([tensor("a" * 1025)]), "a tensor's name claims 1025 bytes"),
    "name without end": (head([text("a", 1 << 63)]), f"a tensor's name claims {1 << 63} bytes"),
    "value of type 13": (whole(keys=[pair("k", 13, b"x")]), "'k' has the unknown type 13"),
    "value of type 2^32-1": (whole(keys=[pair("k", (1 << 32) - 1, b"x")]), "has the unknown type"),
    "array of type 13": (whole(keys=[pair("k", ARRAY, array(13, 1, b"x"))]), "unknown type 13"),
    "empty array of type 13": (whole(keys=[pair("k", ARRAY, array(13, 0))]), "unknown type 13"),
    "text without end": (head([], [pair("k", STRING, text("v", 1 << 63))]), f"claims {1 << 63} bytes"),
    "arrays five deep": (
        whole(keys=[pair("k", ARRAY, array(ARRAY, 1) * 4 + array(U8, 1, b"x"))]),
        "'k' has arrays that are nested too deep",
    ),
    "arrays without end": (whole(keys=[pair("k", ARRAY, array(ARRAY, 1) * 50_000)]), "too deep"),
    "five dimensions": (whole([tensor(shape=(1, 1, 1, 1, 4))]), "'a' has 5 dimensions"),
    "dimensions without end": (
        head([text("a") + u32((1 << 32) - 1)], (), tensor_count=1),
        "dimensions",
    ),
    "tensor of type 4": (whole([tensor(kind=4)]), "'a' has the unknown type 4"),
    "tensor of type 2^32-1": (whole([tensor(kind=(1 << 32) - 1)]), "has the unknown type"),
    "dimension of 2^63": (whole([tensor(shape=(1 << 63,))]), "'a' has an impossible shape"),
    "dimension of 2^62": (whole([tensor(shape=(0, 1 << 62))], (), b""), "'a' has an impossible shape"),
    "shape that wraps at 2^64": (
        whole([tensor(shape=(1 << 32, 1 << 32, 1 << 32, 1 << 32))]),
        "its tensors need",
    ),
    "part of a block": (whole([tensor(shape=(31,), kind=TYPE_Q8_0)]), "do not divide into blocks of 32"),
    "rows of part of a block": (
        whole([tensor(shape=(16, 2), kind=TYPE_Q8_0)], (), bytes(34)),
        "rows of 16 do not divide into blocks of 32",
    ),
    # IndexError comes out of here: a tensor of blocks without a dimension has no row to name.
    "blocks without a dimension": (whole([tensor(shape=(), kind=TYPE_Q8_0)], (), bytes(34)), "blocks of 32"),
    "not aligned": (whole([tensor("a"), tensor("b", offset=4)], (), b"abcdefgh"), "'b' is not aligned"),
    "first not at the start": (whole([tensor(offset=32)], (), bytes(36)), "'a' leaves a hole before it"),
    "hole": (whole([tensor("a"), tensor("b", offset=64)], (), bytes(68)), "'b' leaves a hole before it"),
    "offset of 2^63": (whole([tensor(offset=1 << 63)]), "leaves a hole before it"),
    "offset of 2^64-32": (whole([tensor(offset=(1 << 64) - 32)]), "leaves a hole before it"),
    "same place": (whole([tensor("a"), tensor("b")]), "'b' overlaps the previous one"),
    "overlap": (
        whole([tensor("a", (40,)), tensor("b", offset=32)], (), bytes(72)),
        "'b' overlaps the previous one",
    ),
    "one inside the other": (
        whole([tensor("a", (400,)), tensor("b", offset=32)], (), bytes(400)),
        "'b' overlaps the previous one",
    ),
    "a byte too few": (whole(payload=b"abc"), "its tensors need 4 bytes, but the file has 3"),
    "no payload": (padded(head([tensor()])), "its tensors need 4 bytes, but the file has 0"),
    "no padding": (head([tensor()]), "its tensors need 4 bytes, but the file has 0"),
    "more than the padding": (
        whole(payload=b"abcd" + bytes(29)),
        "its tensors need 4 bytes, but the file has 33",
    ),
    "a tensor of empty ones beyond": (
        whole([tensor("a", (64,)), tensor("e", (0,), offset=96)], (), bytes(64)),
        "'e' leaves a hole before it",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_header_with_one_defect_is_refused(tmp_path, name):
    data, words = DEFECTS[name]
    with pytest.raises(WeightsError, match=words) as refusal:
        head_of(tmp_path, data)
    assert str(refusal.value).startswith("m.gguf")
    assert len(str(refusal.value)) < 300


def test_a_file_may_be_padded_at_its_end():
    assert parse(whole(payload=padded(b"abcd"))) == parse(whole())


def test_empty_tensors_have_a_place():
    tensors = [tensor("e", (0,)), tensor("a"), tensor("f", (3, 0), offset=32)]
    assert [t.size for t in parse(whole(tensors, (), padded(b"abcd")))] == [0, 4, 0]


# This one is not refused: bytes of a file without tensors are hashed and not walked.
def test_bytes_without_a_tensor_are_refused():
    with pytest.raises(WeightsError):
        parse(padded(head()) + bytes(100_000))


@pytest.mark.parametrize("count", BOUNDS)
@pytest.mark.parametrize("what", ["tensor_count", "key_count"])
def test_counts_without_end_are_refused(tmp_path, what, count):
    with pytest.raises(WeightsError, match=r"claims \d+ tensors and \d+ keys"):
        head_of(tmp_path, whole(**{what: count}))


@pytest.mark.parametrize("what", ["tensor_count", "key_count"])
def test_one_more_than_there_are_is_refused(tmp_path, what):
    with pytest.raises(WeightsError):
        head_of(tmp_path, head([tensor()], [pair("k", U8, b"x")], **{what: 2}))


@pytest.mark.parametrize("count", [*BOUNDS, 1 << 61, 1 << 60, 1 << 24])
@pytest.mark.parametrize("kind", [U8, F64, STRING, ARRAY])
@pytest.mark.parametrize("deep", [0, 1, 2])
def test_an_array_larger_than_the_file_is_refused_at_once(tmp_path, count, kind, deep):
    value = array(ARRAY, 1) * deep + array(kind, count, bytes(2000))
    data = head([], [pair("k", ARRAY, value)])
    put(tmp_path, data)
    file = open_folder(tmp_path).files[0]
    tracemalloc.start()
    try:
        began = time.process_time()
        with pytest.raises(WeightsError, match="claims"):
            read_header(file)
        assert time.process_time() - began < 1
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_many_tensors_in_a_small_file_are_refused(tmp_path):
    data = head([tensor(str(number)) for number in range(100)], tensor_count=250_000)
    with pytest.raises(WeightsError, match="but the file has"):
        head_of(tmp_path, data)


def test_a_header_is_read_further_when_it_is_long(tmp_path):
    key = pair("vocabulary", ARRAY, array(STRING, 200_000, text("word") * 200_000))
    assert [t.name for t in head_of(tmp_path, whole(keys=[key]))] == ["a"]


def test_a_header_longer_than_allowed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(header_module, "MAX_HEADER_BYTES", 1 << 20)
    key = pair("vocabulary", STRING, text(bytes(1 << 20)))
    with pytest.raises(WeightsError, match=r"m\.gguf has too long a header"):
        head_of(tmp_path, whole(keys=[key]))


def test_a_file_cut_after_it_was_listed_is_refused(tmp_path):
    path = put(tmp_path, whole(keys=[pair("k", STRING, text("v" * 100))]))
    file = open_folder(tmp_path).files[0]
    for size in (0, 3, 30, 60):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(WeightsError, match=r"m\.gguf"):
            read_header(file)


def test_a_file_that_is_gone_is_said(tmp_path):
    path = put(tmp_path, whole())
    file = open_folder(tmp_path).files[0]
    path.unlink()
    with pytest.raises(WeightsError, match=r"m\.gguf cannot be read: No such file"):
        read_header(file)


FULL = whole(
    [tensor("a", (32, 2), TYPE_Q8_0), tensor("b", (), TYPE_F32, 96)],
    [pair(name, *value) for name, value in VALUES.items()] + [alignment(32)],
    padded(bytes(68)) + b"bbbb",
)


def test_a_file_truncated_at_any_byte_is_refused(tmp_path):
    assert [t.size for t in parse(FULL)] == [68, 4]
    put(tmp_path, FULL)
    file = open_folder(tmp_path).files[0]
    for end in range(len(FULL)):
        with pytest.raises(WeightsError):
            parse(FULL[:end])
        with pytest.raises(WeightsError):
            read_header(type(file)(file.name, put(tmp_path, FULL[:end]), end))


SCALARS = st.one_of(
    st.tuples(st.sampled_from([U8, I8, BOOL]), st.binary(min_size=1, max_size=1)),
    st.tuples(st.sampled_from([U16, I16]), st.binary(min_size=2, max_size=2)),
    st.tuples(st.sampled_from([U32, I32, F32]), st.binary(min_size=4, max_size=4)),
    st.tuples(st.sampled_from([U64, I64, F64]), st.binary(min_size=8, max_size=8)),
    st.tuples(st.just(STRING), st.binary(max_size=20).map(text)),
)


def arrays_of(values):
    """Arrays of up to three values of one type."""
    alike = values.flatmap(
        lambda first: st.lists(values.filter(lambda v: v[0] == first[0]), max_size=2).map(
            lambda rest: [first, *rest]
        )
    )
    return alike.map(
        lambda found: (ARRAY, array(found[0][0], len(found), b"".join(value for _, value in found)))
    )


NAMES = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)


@given(
    st.dictionaries(NAMES, st.recursive(SCALARS, arrays_of, max_leaves=4), max_size=5),
    st.dictionaries(
        NAMES,
        st.tuples(st.sampled_from(sorted(BLOCKS)), st.lists(st.integers(0, 3), max_size=4)),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([8, 32, 64]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150)
def test_whatever_is_written_is_read(pairs, wanted, to, order):
    pairs.pop("general.alignment", None)
    keys = [pair(key, *value) for key, value in pairs.items()]
    keys.insert(order.randrange(len(keys) + 1), alignment(to))
    table, payload, expected = [], b"", []
    for name, (kind, dimensions) in wanted.items():
        elements, size = BLOCKS[kind]
        shape = list(dimensions)
        if elements > 1:
            shape = [(shape or [1])[0] * elements, *shape[1:]]
        count = int(np.prod(shape, dtype=object)) // elements * size if shape else size
        payload = padded(payload, to)
        table.append(tensor(name, shape, kind, len(payload)))
        expected.append((name, header_module._TYPES[kind][0], tuple(shape[::-1]), len(payload), count))
        payload += bytes(count)
    places = list(range(len(table)))
    order.shuffle(places)
    data = whole([table[place] for place in places], keys, payload, to)
    start = len(data) - len(payload)
    assert parse(data) == tuple(
        TensorInfo(name=name, dtype=dtype, shape=shape, offset=start + offset, size=size)
        for name, dtype, shape, offset, size in (expected[place] for place in places)
    )


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"GGUF", b"GGUF" + u32(3), head([], [b""]), head([b""])])
)
@settings(max_examples=300)
def test_any_bytes_are_a_header_or_refused(data, start):
    try:
        found = parse(start + data)
    except WeightsError:
        return
    assert sum(t.size for t in found) <= len(data)


@given(st.data())
@settings(max_examples=400)
def test_a_changed_header_keeps_to_the_file_or_is_refused(data):
    changed = bytearray(FULL)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(changed) - 1))
        new = data.draw(
            st.one_of(
                st.binary(max_size=8), st.sampled_from([u64(1 << 63), u64((1 << 64) - 1), u32(9), u64(0)])
            )
        )
        changed[place : place + data.draw(st.sampled_from([0, 1, len(new)]))] = new
    try:
        found = parse(bytes(changed))
    except WeightsError:
        return
    places = sorted((t.offset, t.offset + t.size) for t in found)
    assert all(0 <= begin <= end <= len(changed) for begin, end in places)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(places))


@given(st.data())
@settings(max_examples=400)
def test_any_number_in_any_place_of_the_table_is_read_or_refused(data):
    numbers = st.one_of(
        st.integers(0, 40), st.integers(0, (1 << 64) - 1), st.sampled_from([1 << 62, 1 << 63])
    )
    shape = data.draw(st.lists(numbers, max_size=5))
    kind = data.draw(st.one_of(st.sampled_from(sorted(BLOCKS)), st.integers(0, 50)))
    entry = tensor("a", shape, kind, data.draw(numbers))
    try:
        (found,) = parse(whole([entry], (), bytes(96)))
    except WeightsError:
        return
    assert found.size <= 96


def test_a_folder_may_hold_gguf_files_alone(tmp_path):
    put(tmp_path, whole([tensor("b")]), "1.gguf")
    put(tmp_path, whole([tensor("a")]), "2.gguf")
    assert [t.name for t in TensorFiles(open_folder(tmp_path))] == ["a", "b"]


def test_one_tensor_in_two_gguf_files_is_refused(tmp_path):
    put(tmp_path, whole(), "1.gguf")
    put(tmp_path, whole(), "2.gguf")
    with pytest.raises(WeightsError, match=r"2 GGUF files, which are several models: 1\.gguf, 2\.gguf"):
        TensorFiles(open_folder(tmp_path))


BLOB = "sha256-" + "ab" * 32


def test_a_gguf_file_without_a_suffix_is_known_by_its_first_bytes(tmp_path):
    """Ollama's blobs: GGUF known by its magic and not by its name."""
    put(tmp_path, whole(), BLOB)
    folder = open_folder(tmp_path)
    assert [t.name for t in TensorFiles(folder)] == ["a"]
    assert bytes_by_dtype(folder) == {"I8": 4}


def test_a_folder_of_blobs_has_the_tensors_of_those_that_are_gguf(tmp_path):
    """Beside the weights a store keeps a template, parameters and a licence, named alike."""
    put(tmp_path, whole(), BLOB)
    for number, data in enumerate((b'{"stop": []}', b"MIT License", b"GG", b"", b"gguf" + bytes(40))):
        put(tmp_path, data, "sha256-" + f"{number:064x}")
    (tmp_path / "deep").mkdir()
    put(tmp_path / "deep", whole([tensor("b")]), "weights.bin")
    assert [t.name for t in TensorFiles(open_folder(tmp_path))] == ["a", "b"]


def test_another_suffix_does_not_hide_gguf(tmp_path):
    """Of safetensors either, whose first bytes would claim a header of 1.2 GB."""
    put(tmp_path, whole(), "model.safetensors")
    assert [t.name for t in TensorFiles(open_folder(tmp_path))] == ["a"]


def test_the_suffix_alone_makes_no_gguf(tmp_path):
    """And it is refused by name, not passed over."""
    put(tmp_path, whole(), BLOB)
    put(tmp_path, b"something else, and long enough", "m.gguf")
    with pytest.raises(WeightsError, match=r"^m\.gguf is not a GGUF file"):
        TensorFiles(open_folder(tmp_path))


def test_a_blob_that_changes_is_looked_at_again(tmp_path):
    """What it was is remembered only as long as it is the same file."""
    put(tmp_path, b"not weights at all", BLOB)
    with pytest.raises(WeightsError, match="no safetensors file and no GGUF file"):
        TensorFiles(open_folder(tmp_path))
    put(tmp_path, whole(), BLOB)
    assert len(TensorFiles(open_folder(tmp_path))) == 1


def test_a_blob_with_a_defect_is_refused_by_its_name(tmp_path):
    put(tmp_path, whole(magic=b"GGUF", version=9), BLOB)
    with pytest.raises(WeightsError, match=rf"^{BLOB}: version 9 is not supported"):
        TensorFiles(open_folder(tmp_path))


@pytest.mark.parametrize("kind", [U32, STRING])
def test_the_type_of_the_file_is_kept_if_it_is_a_number(kind):
    """``general.file_type``; of another type it is skipped as any value."""
    value = u32(15) if kind == U32 else text("15")
    data = whole(keys=[pair("general.file_type", kind, value)])
    assert parse_header("f", data, len(data)).file_type == (15 if kind == U32 else None)


def writer_of(path, **more):
    package = pytest.importorskip("gguf")
    return package.GGUFWriter(path, "llama", **more)


def finish(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_every_type_is_one_of_the_formats():
    constants = pytest.importorskip("gguf.constants")
    for kind, (name, *sizes) in header_module._TYPES.items():
        theirs = constants.GGMLQuantizationType(kind)
        assert (name, *sizes) == (theirs.name, *constants.GGML_QUANT_SIZES[theirs])


@pytest.mark.parametrize("alignment_of", [None, 64])
def test_files_of_the_formats_own_writer_are_read_as_they_were_written(tmp_path, alignment_of):
    package = pytest.importorskip("gguf")
    writer = writer_of(tmp_path / "m.gguf")
    if alignment_of:
        writer.add_custom_alignment(alignment_of)
    writer.add_string("some.text", "é")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("flags", [True, False])
    writer.add_float64("f", 0.5)
    writer.add_bool("b", val=True)
    writer.add_uint64("u", 1 << 63)
    writer.add_int8("i", -1)
    noise = np.random.default_rng(1)
    saved = {
        "z.f32": noise.standard_normal((3, 5), np.float32),
        "f16": noise.standard_normal((2, 3, 4), np.float32).astype(np.float16),
        "i8": noise.integers(-128, 128, 7, np.int8),
        "i32": noise.integers(-128, 128, (1, 1, 2, 3), np.int32),
        "f64": noise.standard_normal(1),
    }
    for name, values in saved.items():
        writer.add_tensor(name, values)
    quantised = {}
    for name in ("Q8_0", "Q4_0", "BF16", "Q5_1"):
        kind = package.GGMLQuantizationType[name]
        quantised[name] = package.quantize(noise.standard_normal((4, 64), np.float32), kind)
        writer.add_tensor(name, quantised[name], raw_dtype=kind)
    finish(writer)
    tensors = {t.name: t for t in TensorFiles(open_folder(tmp_path))}
    dtypes = {"z.f32": "F32", "f16": "F16", "i8": "I8", "i32": "I32", "f64": "F64"}
    assert list(tensors) == sorted([*saved, *quantised], key=str.encode)
    for name, values in saved.items():
        assert (tensors[name].info.dtype, tensors[name].info.shape) == (dtypes[name], values.shape)
        assert tensors[name].data.tobytes() == values.tobytes()
    for name, values in quantised.items():
        assert (tensors[name].info.dtype, tensors[name].info.shape) == (name, (4, 64))
        assert tensors[name].data.tobytes() == values.tobytes()
    for theirs in package.GGUFReader(tmp_path / "m.gguf").tensors:
        ours = tensors[theirs.name].info
        assert (ours.offset, ours.size) == (theirs.data_offset, theirs.n_bytes)
        assert (ours.dtype, list(ours.shape[::-1])) == (theirs.tensor_type.name, theirs.shape.tolist())


@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF), min_size=1, max_size=10),
        st.tuples(
            st.sampled_from([np.float32, np.float16, np.int8, np.int16, np.int64, np.float64]),
            st.lists(st.integers(1, 5), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 70),
)
@settings(max_examples=30)
def test_any_tensors_of_the_formats_own_writer_are_read(tmp_path_factory, wanted, length):
    root = tmp_path_factory.mktemp("written")
    writer = writer_of(root / "m.gguf")
    writer.add_string("some.text", "x" * length)
    saved = {}
    for number, (name, (dtype, shape)) in enumerate(wanted.items()):
        saved[name] = np.full(shape, number + 1, dtype)
        writer.add_tensor(name, saved[name])
    finish(writer)
    found = {t.name: (t.info.shape, t.data.tobytes()) for t in TensorFiles(open_folder(root))}
    assert found == {name: (values.shape, values.tobytes()) for name, values in saved.items()}
