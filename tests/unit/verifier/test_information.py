"""What tensors hold: never more than their bytes, and the same as a naive computation."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import blake3
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attester.weights.folder import open_folder
from attester.weights.tensors import TensorFiles
from verifier.references import information
from verifier.references.information import TensorSummary, examine

WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F4": 1, "F6_E2M3": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
BITS = {"F4": 4, "F6_E2M3": 6}
Tensors = dict[str, tuple[str, bytes]]


def tensors_of(folder: Path, tensors: Tensors) -> TensorFiles:
    """A model of these tensors, each a type and bytes."""
    header, start = {}, 0
    for name, (dtype, data) in tensors.items():
        elements = len(data) * 8 // BITS.get(dtype, WIDTHS[dtype] * 8)
        header[name] = {"dtype": dtype, "shape": [elements], "data_offsets": [start, start + len(data)]}
        start += len(data)
    text = json.dumps(header).encode()
    payload = b"".join(data for _, data in tensors.values())
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + payload)
    return TensorFiles(open_folder(folder))


def examined(folder: Path, tensors: Tensors) -> TensorSummary:
    return examine(tensors_of(folder, tensors))


def naive(tensors: Tensors) -> int:
    """Every byte at the entropy of its plane, each content once."""
    bits = 0.0
    for dtype, data in {data: (dtype, data) for dtype, data in tensors.values()}.values():
        for plane in range(WIDTHS[dtype]):
            counts = Counter(data[plane :: WIDTHS[dtype]])
            total = sum(counts.values())
            bits += sum(count * math.log2(total / count) for count in counts.values())
    return math.ceil(bits / 8)


def noise(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def test_random_bytes_hold_almost_what_they_are(tmp_path: Path) -> None:
    """And never more."""
    size = 1 << 20
    held = examined(tmp_path, {"a": ("U8", noise(size))}).information_bytes
    assert size - 100 < held <= size


def test_zeros_hold_nothing(tmp_path: Path) -> None:
    """Nor does any other one value."""
    tensors: Tensors = {"a": ("F32", bytes(4096)), "b": ("I8", b"\x07" * 1000)}
    assert examined(tmp_path, tensors).information_bytes == 0


def test_two_values_hold_a_bit_each(tmp_path: Path) -> None:
    """An eighth of the bytes."""
    assert examined(tmp_path, {"a": ("U8", bytes([0, 1]) * 4000)}).information_bytes == 1000


def test_every_value_once_holds_all_of_it(tmp_path: Path) -> None:
    """Eight bits a byte."""
    assert examined(tmp_path, {"a": ("U8", bytes(range(256)) * 3)}).information_bytes == 768


def test_rounding_adds_nothing(tmp_path: Path) -> None:
    """Never more than the bytes there are, however the floating point falls."""
    assert examined(tmp_path, {"a": ("U8", bytes(range(256)) * 7)}).information_bytes == 1792


def test_a_tensor_that_stands_twice_counts_once(tmp_path: Path) -> None:
    """Tied embeddings are moved once."""
    data, other = noise(5000), noise(5000, 2)
    once = examined(tmp_path / "once", {"a": ("U8", data), "b": ("U8", other)})
    twice = examined(tmp_path / "twice", {"a": ("U8", data), "b": ("U8", other), "c": ("U8", data)})
    assert twice.information_bytes == once.information_bytes
    assert twice.digests == (blake3.blake3(data).digest(), blake3.blake3(other).digest(), once.digests[0])


def test_the_planes_of_bf16_are_counted_apart(tmp_path: Path) -> None:
    """Sign and exponent of weights vary little, their mantissa is noise: about eleven bits of sixteen."""
    values = np.random.default_rng(1).normal(scale=0.02, size=100_000).astype(np.float32)
    data = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    by_planes = examined(tmp_path / "planes", {"a": ("BF16", data)}).information_bytes
    in_one = examined(tmp_path / "one", {"a": ("U8", data)}).information_bytes
    assert by_planes == naive({"a": ("BF16", data)})
    assert 0.6 * len(data) < by_planes < 0.75 * len(data)
    assert by_planes < in_one


def test_a_plane_that_never_changes_holds_nothing(tmp_path: Path) -> None:
    """Noise in every second byte."""
    data = bytearray(8192)
    data[0::2] = noise(4096)
    assert 4000 < examined(tmp_path, {"a": ("F16", bytes(data))}).information_bytes <= 4096


@pytest.mark.parametrize("dtype", WIDTHS)
def test_every_type_is_as_a_naive_computation_has_it(tmp_path: Path, dtype: str) -> None:
    """Planes by the type's width, also where the bytes are few or the values are packed."""
    skewed = bytes(min(byte & 63, 40) for byte in noise(2400))
    tensors: Tensors = {"a": (dtype, skewed), "b": (dtype, noise(24, 2))}
    assert examined(tmp_path, tensors).information_bytes == naive(tensors)


def test_pieces_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor is counted piece by piece; so is its digest."""
    tensors: Tensors = {"a": ("F64", noise(8 * 1001)), "b": ("U8", noise(7777))}
    whole = examined(tmp_path, tensors)
    monkeypatch.setattr(information, "_PIECE", 64)
    assert examined(tmp_path, tensors) == whole
    assert whole.information_bytes == naive(tensors)


def test_every_byte_is_told_of_once(tmp_path: Path) -> None:
    """Progress adds up to the tensors' bytes."""
    told: list[int] = []
    examine(tensors_of(tmp_path, {"a": ("U8", noise(5000)), "b": ("F16", noise(600))}), told.append)
    assert sum(told) == 5600


def test_an_empty_tensor_holds_nothing(tmp_path: Path) -> None:
    """And has the digest of nothing."""
    found = examined(tmp_path, {"a": ("F32", b""), "b": ("U8", bytes(range(256)))})
    assert found.information_bytes == 256
    assert found.digests[0] == blake3.blake3(b"").digest()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.tuples(st.sampled_from(sorted(WIDTHS)), st.binary(max_size=40)),
        min_size=1,
    )
)
def test_any_tensors_hold_what_the_naive_computation_says(tmp_path: Path, drawn: Tensors) -> None:
    """To a byte, which is where floating point may round either way."""
    tensors: Tensors = {"zz": ("U8", b"x")}
    seen: dict[bytes, str] = {}
    for name, (dtype, data) in drawn.items():
        whole = data[: len(data) // 24 * 24]
        # The same bytes under two types are held once, and which type counts is nobody's business.
        tensors[name] = (seen.setdefault(whole, dtype), whole)
    held = examined(tmp_path, tensors).information_bytes
    assert abs(held - naive(tensors)) <= 1
