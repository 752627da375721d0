"""Every kernel gives the answers of the second implementation, whatever the sizes and the columns."""

from __future__ import annotations

import hashlib
import shutil
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attester.errors import WeightsError
from attester.weights import device as device_module
from attester.weights import possession, reference, select
from attester.weights.cpu import CpuKernel, numpy_fold, numpy_products
from attester.weights.device import DeviceKernel
from attester.weights.kernels import LARGE_CHUNK_BYTES, K, has_torch, row_words
from attester.weights.select import kernel

SEED = bytes(range(32))
NO_TORCH = pytest.mark.skipif(not has_torch(), reason="torch is not installed")
NO_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler"
)

MAKERS = {
    "numpy and C": lambda: kernel("numpy", fused=True),
    "numpy": lambda: kernel("numpy", fused=False),
    "numpy in 5 threads": lambda: CpuKernel(numpy_products, numpy_fold, "numpy", 5),
    "numpy in 70 threads": lambda: CpuKernel(numpy_products, numpy_fold, "numpy", 70),
    "torch and C": lambda: kernel("torch", fused=True),
    "torch": lambda: kernel("torch", fused=False),
    "a device": lambda: DeviceKernel("cpu", compiled=False),
}
MARKS = {
    "numpy and C": [NO_COMPILER],
    "torch and C": [NO_TORCH, NO_COMPILER],
    "torch": [NO_TORCH],
    "a device": [NO_TORCH],
}
EVERY = pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in MAKERS])


@cache
def made(name: str):
    return MAKERS[name]()


class Chunked:
    """A tensor that comes in the chunks it is given."""

    name = "a tensor"

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts
        self.size = sum(map(len, parts))

    def chunks(self):
        for part in self.parts:
            yield np.frombuffer(bytearray(part), np.int8)


@cache
def noise(number: int, size: int) -> bytes:
    return hashlib.shake_256(b"kernels" + bytes([number])).digest(size)


def words_of(rows) -> list[tuple[int, int, int, int]]:
    return [row_words(SEED, row) for row in rows]


def slow(data: list[bytes], rows, passes: int = 1) -> list[bytes]:
    return [reference.walk_row([[part] for part in data], SEED, row, passes) for row in rows]


def cut(data: bytes, *rows: int) -> Chunked:
    """A tensor in chunks that end after these rows of K."""
    places = [0, *(row * K for row in rows), len(data)]
    return Chunked(*(data[a:b] for a, b in pairwise(places)))


@EVERY
@given(
    st.lists(
        st.one_of(st.sampled_from([0, 1, K - 1, K, K + 1, 2 * K, 31 * K, 32 * K + 7]), st.integers(0, 9000)),
        min_size=1,
        max_size=5,
    ).filter(any),
    st.integers(1, 9),
    st.integers(1, 3),
    st.data(),
)
@settings(max_examples=15, deadline=None)
def test_any_tensors_in_any_chunks_have_the_answer_of_the_second_implementation(
    name, sizes, columns, passes, data
):
    parts = [noise(number, size) for number, size in enumerate(sizes)]
    tensors = [
        cut(part, *sorted(data.draw(st.sets(st.integers(1, max(len(part) // K, 1)), max_size=3))))
        if len(part) > K
        else Chunked(part)
        for part in parts
    ]
    rows = range(columns)
    assert possession.walk(tensors, words_of(rows), passes, made(name)) == slow(parts, rows, passes)


@cache
def narrow_answers(columns: int) -> list[bytes]:
    return slow([noise(0, 40 * K + 99), noise(1, 17)], range(columns))


@EVERY
@pytest.mark.parametrize("columns", [1, 5, 8, 33, 300])
def test_any_number_of_rows_go_through_together(name, columns):
    tensors = [Chunked(noise(0, 40 * K + 99)), Chunked(noise(1, 17))]
    assert possession.walk(tensors, words_of(range(columns)), 1, made(name)) == narrow_answers(columns)


BLOCKS = (noise(2, 5 * K) * 300)[: 2 * K * K // 3 + 5], (noise(3, 7 * K) * 700)[: K * K + 3 * K + 1], b"end"
"""Two tensors in a step of more than a block, and one in a step of its own."""


@cache
def block_answers() -> list[bytes]:
    return slow(list(BLOCKS), range(3), 2)


@EVERY
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
def test_more_than_a_block_and_more_than_a_step(name, chunked):
    first, second, third = BLOCKS
    cuts = [cut(first, 1, 1000), cut(second, 30, 1100, 1101, 4096), cut(third)]
    tensors = cuts if chunked else [cut(part) for part in BLOCKS]
    assert possession.walk(tensors, words_of(range(3)), 2, made(name)) == block_answers()


@NO_TORCH
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_device_that_holds_few_products_folds_them_in_between(monkeypatch, blocks):
    monkeypatch.setattr(device_module, "_PRODUCT_WORDS", blocks * 8 * K)
    answers = possession.walk([cut(part) for part in BLOCKS], words_of(range(3)), 2, made("a device"))
    assert answers == block_answers()


@NO_TORCH
def test_a_device_walks_tensors_that_are_there_already():
    import torch

    class Loaded(Chunked):
        def chunks(self):
            for chunk in super().chunks():
                yield torch.from_numpy(chunk)

    data = noise(0, 40 * K + 99)
    answers = possession.walk([Loaded(data)], words_of(range(5)), 1, made("a device"))
    assert answers == slow([data], range(5))


@EVERY
def test_a_large_chunk_may_be_overwritten_when_the_next_is_taken(name):
    data = (noise(4, 3 * K) * 2000)[: 3 * LARGE_CHUNK_BYTES + 9]
    buffer = np.empty(LARGE_CHUNK_BYTES, np.int8)

    class Reused(Chunked):
        def chunks(self):
            for part in self.parts:
                chunk = buffer[: len(part)]
                chunk[:] = np.frombuffer(part, np.int8)
                yield chunk
                buffer[:] = 0

    tensor = Reused(
        *(
            data[start : start + LARGE_CHUNK_BYTES]
            for start in range(0, 3 * LARGE_CHUNK_BYTES, LARGE_CHUNK_BYTES)
        )
    )
    tail = Chunked(data[3 * LARGE_CHUNK_BYTES :])
    answers = possession.walk([tensor, tail], words_of([0]), 1, made(name))
    assert answers == slow([data[: 3 * LARGE_CHUNK_BYTES], data[3 * LARGE_CHUNK_BYTES :]], [0])


@EVERY
def test_two_walks_at_once_do_not_see_each_other(name):
    ours, theirs = noise(0, 40 * K + 99), noise(1, 33 * K + 1)
    walks = [made(name).begin(np.array(words_of([row]), np.uint32)) for row in (0, 1)]
    for walk, data in zip(walks, (ours, theirs), strict=True):
        walk.feed(np.frombuffer(bytearray(data), np.int8))
    for walk in walks:
        walk.end_step()
    found = [hashlib.sha256(walk.states()[0].astype("<u4").tobytes()).digest() for walk in walks]
    assert found == [*slow([ours], [0]), *slow([theirs], [1])]


@EVERY
def test_the_weights_stay_as_they_are(name):
    data = np.frombuffer(bytearray(noise(0, 40 * K + 99)), np.int8)
    walk = made(name).begin(np.array(words_of(range(5)), np.uint32))
    walk.feed(data)
    walk.end_step()
    assert data.tobytes() == noise(0, 40 * K + 99)


@EVERY
def test_every_kernel_answers_the_known_walk(name):
    assert select.is_exact(made(name))


@pytest.mark.parametrize(
    ("backend", "fused", "name"),
    [
        ("numpy", False, "numpy and numpy on the CPU"),
        pytest.param("numpy", True, "numpy and C on the CPU", marks=NO_COMPILER),
        pytest.param("torch", False, "torch and numpy on the CPU", marks=NO_TORCH),
        pytest.param("torch", True, "torch and C on the CPU", marks=[NO_TORCH, NO_COMPILER]),
        pytest.param(None, None, "torch and C on the CPU", marks=[NO_TORCH, NO_COMPILER]),
        pytest.param("numpy", None, "numpy and C on the CPU", marks=NO_COMPILER),
        pytest.param(None, False, "torch and numpy on the CPU", marks=NO_TORCH),
    ],
)
def test_a_kernel_is_the_one_that_was_named_or_the_fastest(backend, fused, name):
    assert kernel(backend, fused=fused).name == name


@NO_TORCH
@pytest.mark.parametrize("slip", ["fold", "_mix"])
def test_a_device_that_computes_wrongly_is_refused(monkeypatch, slip):
    right = getattr(device_module, slip)

    def wrong(*parts):
        if slip == "_mix":
            return right(*parts) ^ 1
        return right(parts[0], parts[1] + (parts[1] == parts[1].max()), parts[2])

    monkeypatch.setattr(device_module, slip, wrong)
    assert not select.is_exact(DeviceKernel("cpu", compiled=False))


@NO_TORCH
def test_a_device_whose_compiler_fails_walks_without_it(monkeypatch):
    def fails(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(device_module, "compiled_fold", lambda: fails)
    with pytest.raises(WeightsError, match=r"torch\.compile fails \(RuntimeError\)"):
        DeviceKernel("cpu", compiled=True)
    tried = dict(select.device_candidates("cpu", fused=None))
    assert list(tried) == ["torch compiled on cpu", "torch on cpu"]
    assert tried["torch on cpu"]().name == "torch on cpu"


@NO_TORCH
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler")
def test_a_compiled_device_has_the_same_answers():
    compiled = DeviceKernel("cpu", compiled=True)
    assert select.is_exact(compiled)
    assert possession.walk([cut(part) for part in BLOCKS], words_of(range(3)), 2, compiled) == block_answers()
    for columns in (1, 33):
        tensors = [Chunked(noise(0, 40 * K + 99)), Chunked(noise(1, 17))]
        assert possession.walk(tensors, words_of(range(columns)), 1, compiled) == narrow_answers(columns)
