"""Both challenges against second implementations, and the kernels against broken ones."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attester.errors import WeightsError
from attester.weights import kernels, possession, reference
from attester.weights.kernels import K, numpy_kernel
from attester.weights.manifest import open_folder
from attester.weights.possession import ModelChallenge, ReadChallenge, WalkChallenge
from attester.weights.tensors import Tensor

SEED = bytes(range(32))
SEEDS = st.binary(min_size=32, max_size=32)
SIZES = st.lists(st.one_of(st.integers(0, 9000), st.sampled_from([1, 4095, 4096, 4097, 8192])), max_size=5)


def noise(number: int, size: int) -> bytes:
    return hashlib.shake_256(b"test" + bytes([number])).digest(size)


def parts(sizes: list[int]) -> list[bytes]:
    return [noise(number, size) for number, size in enumerate(sizes)]


def tensors(data: list[bytes]) -> list[Tensor]:
    return [Tensor(str(i), np.frombuffer(bytearray(part), np.int8)) for i, part in enumerate(data)]


def walk(data: list[bytes], seed: bytes = SEED, rows=(0,), passes: int = 1) -> list[bytes]:
    words = [possession.row_words(seed, row) for row in rows]
    return possession.walk(tensors(data), words, passes, numpy_kernel)


@given(SIZES.filter(any), SEEDS, st.lists(st.integers(0, 2047), min_size=1, max_size=3), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_a_walk_agrees_with_the_second_implementation(sizes, seed, rows, passes):
    """Any tensors, rows and passes: the fast way and the slow way meet."""
    data = parts(sizes)
    assert walk(data, seed, rows, passes) == [reference.walk_row(data, seed, row, passes) for row in rows]


@pytest.mark.parametrize(
    "sizes",
    [[K * K], [K * K + 1], [K * (K - 1), 1, 5], [K * (K - 1) + 1, 7], [3, K * K, 3]],
    ids=["a step", "a step and a byte", "a step in two tensors", "a ragged step", "over a step"],
)
def test_a_walk_agrees_at_the_edge_of_a_step(sizes):
    """Where one step ends and the next begins, and blocks within a step."""
    data = [(noise(number, 4099) * (size // 4099 + 1))[:size] for number, size in enumerate(sizes)]
    assert walk(data) == [reference.walk_row(data, SEED, 0, 1)]


@given(st.lists(st.tuples(SEEDS, st.integers(0, 2047)), min_size=2, max_size=6), st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_walking_many_rows_at_once_equals_walking_each_alone(rows, passes):
    """Rows of many challenges do not see each other."""
    words = [possession.row_words(seed, row) for seed, row in rows]
    given_tensors = tensors(parts([5000, 0, 77]))
    together = possession.walk(given_tensors, words, passes, numpy_kernel)
    alone = [possession.walk(given_tensors, [word], passes, numpy_kernel)[0] for word in words]
    assert together == alone


@given(SIZES.filter(any), st.data())
@settings(max_examples=40, deadline=None)
def test_one_flipped_bit_changes_the_answer(sizes, data):
    """Any bit of any byte of any tensor."""
    before = parts(sizes)
    number = data.draw(st.sampled_from([i for i, size in enumerate(sizes) if size]))
    place = data.draw(st.integers(0, sizes[number] - 1))
    changed = bytearray(before[number])
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    assert walk(before) != walk([*before[:number], bytes(changed), *before[number + 1 :]])


CHANGED = {
    "two tensors traded": [noise(1, 5000), noise(0, 5000)],
    "two tensors joined": [noise(0, 5000) + noise(1, 5000)],
    "one left out": [noise(0, 5000)],
    "one twice": [noise(0, 5000), noise(1, 5000), noise(1, 5000)],
    "a byte more": [noise(0, 5000), noise(1, 5000) + b"\x01"],
    "a byte less": [noise(0, 5000), noise(1, 4999)],
    "rows traded": [noise(0, 5000), noise(1, 5000)[4096:] + bytes(3192) + noise(1, 4096)],
}


@pytest.mark.parametrize("name", CHANGED)
def test_other_weights_have_another_answer(name):
    """The same bytes elsewhere are other weights."""
    assert walk(CHANGED[name]) != walk([noise(0, 5000), noise(1, 5000)])


@pytest.mark.parametrize(
    "changes",
    [{"seed": bytes(32)}, {"rows": (1,)}, {"rows": (256,)}, {"passes": 2}],
    ids=["seed", "row", "row of two bytes", "passes"],
)
def test_another_challenge_has_another_answer(changes):
    """What was learned from one challenge answers no other."""
    assert walk([noise(0, 100)], **changes) != walk([noise(0, 100)])


def test_no_row_is_answered_by_another():
    """All rows of one challenge differ."""
    answers = walk([noise(0, 100)], rows=range(64))
    assert len({*answers}) == 64


def test_empty_tensors_are_skipped():
    """Wherever they stand."""
    data = noise(0, 5000)
    assert walk([b"", data, b""]) == walk([data])


@pytest.mark.parametrize("data", [[], [b""], [b"", b""]], ids=["none", "one empty", "two empty"])
def test_a_walk_over_no_bytes_is_an_error(data):
    """An answer that needs no weights is none."""
    with pytest.raises(WeightsError, match="no bytes to walk"):
        walk(data)


def test_tensors_that_run_out_after_a_pass_are_an_error():
    """Each pass walks all of them again: a stream that ends is not taken for a short model."""
    once = iter(tensors([noise(0, 100)]))
    with pytest.raises(WeightsError, match="no bytes to walk"):
        possession.walk(once, [possession.row_words(SEED, 0)], 2, numpy_kernel)


def test_progress_of_a_walk_counts_bytes_of_each_pass():
    """Padding is not counted."""
    done = []
    rows = [possession.row_words(SEED, 0)]
    possession.walk(tensors([noise(0, 5000), b"x"]), rows, 3, numpy_kernel, done.append)
    assert sum(done) == 3 * 5001


def test_a_walk_does_not_change_the_weights():
    """The engine's own tensors are walked."""
    given_tensors = tensors([noise(0, 5000)])
    possession.walk(given_tensors, [possession.row_words(SEED, 0)], 2, numpy_kernel)
    assert given_tensors[0].data.tobytes() == noise(0, 5000)


@given(SEEDS, st.integers(0, 2047))
@settings(max_examples=50)
def test_the_words_of_a_row(seed, row):
    """Four little-endian words of SHAKE-256, from the specification."""
    digest = hashlib.shake_256(b"touchstone/weight-walk/1" + seed + row.to_bytes(4, "little")).digest(16)
    expected = tuple(int.from_bytes(digest[i : i + 4], "little") for i in (0, 4, 8, 12))
    assert possession.row_words(seed, row) == expected


def naive_read(contents: list[bytes], seed: bytes, windows: int, whole_up_to: int) -> bytes:
    """`read` from the specification alone, with everything in memory."""
    everything = b"".join(contents)
    text = b"touchstone/possession-read/1" + seed
    for content in contents:
        if len(content) <= whole_up_to:
            text += hashlib.sha256(content).digest()
    for j in range(windows):
        drawn = hashlib.shake_256(b"touchstone/possession-read/1" + seed + j.to_bytes(4, "little")).digest(16)
        p = int.from_bytes(drawn, "little") % (len(everything) + 4095) - 4095
        text += everything[max(p, 0) : min(p + 4096, len(everything))]
    return hashlib.sha256(text).digest()


def write(root, contents: list[bytes]):
    for number, content in enumerate(contents):
        (root / f"{number:03}").write_bytes(content)
    return open_folder(root)


@given(SIZES.filter(any), SEEDS, st.integers(1, 20), st.sampled_from([0, 1, 4096, 1 << 26]))
@settings(max_examples=60, deadline=None)
def test_a_read_agrees_with_a_naive_one(tmp_path_factory, sizes, seed, windows, whole_up_to):
    """Any files, empty ones included, and windows over their edges."""
    contents = parts(sizes)
    folder = write(tmp_path_factory.mktemp("read"), contents)
    answer = possession.read(folder, seed, windows, whole_up_to=whole_up_to)
    assert answer == naive_read(contents, seed, windows, whole_up_to)


READS = {
    "one byte": [b"x"],
    "a window": [noise(0, 4096)],
    "a window less a byte": [noise(0, 4095)],
    "a window and a byte": [noise(0, 4097)],
    "many single bytes": [bytes([number]) for number in range(200)],
    "empty files around": [b"", b"", noise(0, 3), b"", b""],
    "empty files between": [noise(0, 3000), b"", b"", noise(1, 3000)],
    "empty file at the end": [noise(0, 3000), b""],
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("whole_up_to", [-1, 0, 1 << 26], ids=["windows alone", "empty whole", "all whole"])
def test_a_read_at_the_edges(tmp_path, name, whole_up_to):
    """Windows that begin before the first byte, end after the last, or cover many files."""
    folder = write(tmp_path, READS[name])
    answer = possession.read(folder, SEED, 100, whole_up_to=whole_up_to)
    assert answer == naive_read(READS[name], SEED, 100, whole_up_to)


@given(SEEDS, st.integers(0, 65535), st.integers(1, 1 << 50))
@settings(max_examples=100)
def test_a_window_lies_inside(seed, number, total):
    """Never empty, never beyond, never longer than 4,096 bytes."""
    begin, end = possession.window(seed, number, total)
    assert 0 <= begin < end <= total
    assert end - begin <= 4096


def test_windows_reach_the_first_and_the_last_byte():
    """Edges are as likely as the middle: each byte of a small model is hit."""
    total = 5000
    hit = np.zeros(total, bool)
    for number in range(200):
        begin, end = possession.window(SEED, number, total)
        hit[begin:end] = True
    assert hit.all()


def test_one_changed_byte_in_a_small_file_changes_the_read(tmp_path):
    """Small files are hashed whole, whatever the windows hit."""
    folder = write(tmp_path, [noise(0, 200_000)])
    before = possession.read(folder, SEED, 1)
    changed = bytearray(noise(0, 200_000))
    changed[123_456] ^= 1
    assert possession.read(write(tmp_path, [bytes(changed)]), SEED, 1) != before


def test_an_empty_file_counts(tmp_path):
    """A file without bytes is a file of the model."""
    before = possession.read(write(tmp_path, [b"x"]), SEED, 1)
    assert possession.read(write(tmp_path, [b"x", b""]), SEED, 1) != before


def test_a_read_of_no_bytes_is_an_error(tmp_path):
    """There is nothing to possess."""
    with pytest.raises(WeightsError, match="holds no bytes"):
        possession.read(write(tmp_path, [b"", b""]), SEED, 1)


@pytest.mark.parametrize("whole_up_to", [-1, 1 << 26], ids=["by windows", "whole"])
def test_a_file_that_shrank_is_refused(tmp_path, whole_up_to):
    """The answer is over the files as they were listed, or there is none."""
    folder = write(tmp_path, [noise(0, 5000)])
    (tmp_path / "000").write_bytes(b"short")
    with pytest.raises(WeightsError, match="changed while it was read"):
        possession.read(folder, SEED, 50, whole_up_to=whole_up_to)


@pytest.mark.parametrize("whole_up_to", [-1, 1 << 26], ids=["by windows", "whole"])
def test_a_file_that_is_gone_is_refused(tmp_path, whole_up_to):
    """By its name."""
    folder = write(tmp_path, [noise(0, 5000)])
    (tmp_path / "000").unlink()
    with pytest.raises(WeightsError, match=r"^000 cannot be read"):
        possession.read(folder, SEED, 50, whole_up_to=whole_up_to)


def test_a_commitment_is_the_digest_of_the_answer():
    """What the pool keeps lets nobody answer."""
    assert possession.commitment(b"a" * 32) == hashlib.sha256(b"a" * 32).digest()


CHALLENGES = {
    "seed short": (ReadChallenge, {"seed": "0" * 63, "windows": 1}),
    "seed long": (ReadChallenge, {"seed": "0" * 65, "windows": 1}),
    "seed capital": (ReadChallenge, {"seed": "A" * 64, "windows": 1}),
    "seed with a newline": (ReadChallenge, {"seed": "0" * 64 + "\n", "windows": 1}),
    "seed after a newline": (ReadChallenge, {"seed": "\n" + "0" * 64, "windows": 1}),
    "seed of Arabic digits": (ReadChallenge, {"seed": "٠" * 64, "windows": 1}),
    "no windows": (ReadChallenge, {"seed": "0" * 64, "windows": 0}),
    "windows without end": (ReadChallenge, {"seed": "0" * 64, "windows": 65537}),
    "windows true": (ReadChallenge, {"seed": "0" * 64, "windows": True}),
    "three rows": (WalkChallenge, {"seed": "0" * 64, "rows": 3, "passes": 1}),
    "rows without end": (WalkChallenge, {"seed": "0" * 64, "rows": 2049, "passes": 1}),
    "no passes": (WalkChallenge, {"seed": "0" * 64, "rows": 4, "passes": 0}),
    "passes without end": (WalkChallenge, {"seed": "0" * 64, "rows": 4, "passes": 65}),
    "rows a float": (WalkChallenge, {"seed": "0" * 64, "rows": 4.5, "passes": 1}),
    "a member more": (WalkChallenge, {"seed": "0" * 64, "rows": 4, "passes": 1, "x": 1}),
    "a model's name long": (ModelChallenge, {"model": "a" * 129}),
    "a challenge more": (ModelChallenge, {"model": "a", "run": {}}),
}


@pytest.mark.parametrize("name", CHALLENGES)
def test_a_challenge_out_of_bounds_is_refused(name):
    """What a verifier may ask of a node is bounded on the node's side."""
    kind, value = CHALLENGES[name]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(value, kind)


def broken(spoil):
    """A kernel that multiplies rightly and then spoils its result."""

    def kernel(inputs):
        multiply = numpy_kernel(inputs)

        def wrong(weights, out):
            multiply(weights, out)
            spoil(weights, out)

        return wrong

    return kernel


def add(place, by=1):
    def spoil(_, out):
        out[place] += by

    return spoil


def at(row, column):
    """One product among the largest batch is off by one, and nothing else."""

    def spoil(weights, out):
        if weights.shape[0] == K:
            out[row, column] += 1

    return spoil


def in_tail(_, out):
    if out.shape[0] == 17:
        out[16, 0] += 1


def saturate(_, out):
    np.clip(out, -(1 << 25), (1 << 25) - 1, out=out)


def below_float(_, out):
    out[:] = out.astype(np.float16).astype(np.float32).clip(-(2**31), 2**31 - 1).astype(np.int32)


def unsigned(weights, out):
    out[weights[:, 0] == -128] *= -1


SPOILT = {
    "first product": add((0, 0)),
    "last product": add((-1, -1)),
    "one less": add((0, -1), -1),
    "a bit high up": add((0, 0), 1 << 24),
    "one product of the large batch": at(2048, 16),
    "the first of a tile": at(512, 0),
    "the last row": at(K - 1, 31),
    "the tail of 17 rows": in_tail,
    "saturated": saturate,
    "rounded to half precision": below_float,
    "−128 taken for 128": unsigned,
    "nothing written": lambda _, out: out.fill(0),
    "transposed": lambda _, out: out.__setitem__(slice(None), out[::-1].copy()),
}


@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_broken_kernel_is_caught(name):
    """One wrong product is enough."""
    assert not kernels.is_exact(broken(SPOILT[name]))


def test_a_kernel_that_adds_in_single_precision_is_caught():
    """Sums need 26 bits: the parts of the split must be added as integers."""

    def kernel(inputs):
        parts = [inputs[start : start + 1024].astype(np.float32) for start in range(0, K, 1024)]

        def multiply(weights, out):
            total = np.zeros(out.shape, np.float32)
            for number, part in enumerate(parts):
                total += weights[:, number * 1024 : (number + 1) * 1024].astype(np.float32) @ part
            out[:] = total.astype(np.int32)

        return multiply

    assert not kernels.is_exact(kernel)


def test_a_kernel_with_sums_of_16_bits_is_caught():
    """As processors without VNNI add pairs, saturating."""

    def kernel(inputs):
        right = inputs.astype(np.int32)

        def multiply(weights, out):
            total = np.zeros(out.shape, np.int32)
            left = weights.astype(np.int32)
            for start in range(0, K, 1024):
                pairs = left[:, start : start + 1024] @ right[start : start + 1024]
                total += np.clip(pairs, -32768, 32767)
            out[:] = total

        return multiply

    assert not kernels.is_exact(kernel)


def test_the_numpy_kernel_is_exact():
    """On this machine, as it says of itself."""
    assert kernels.is_exact(numpy_kernel)


def test_no_kernel_is_handed_out_that_is_not_exact(monkeypatch):
    """An operator sees a sentence, not a wrong answer."""
    monkeypatch.setattr(kernels, "numpy_kernel", broken(SPOILT["last product"]))
    with pytest.raises(WeightsError, match="not exact on this machine"):
        kernels.kernel.__wrapped__("numpy")


def test_an_inexact_torch_is_passed_over(monkeypatch):
    """Numpy takes its place where nothing was named."""
    monkeypatch.setattr(kernels, "torch_kernel", broken(SPOILT["last product"]))
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda _: object())
    assert kernels.kernel.__wrapped__() is numpy_kernel


def test_an_inexact_torch_that_was_named_is_an_error(monkeypatch):
    """It is not replaced behind the caller's back."""
    monkeypatch.setattr(kernels, "torch_kernel", broken(SPOILT["last product"]))
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda _: object())
    with pytest.raises(WeightsError, match=r"torch\._int_mm is not exact"):
        kernels.kernel.__wrapped__("torch")


def test_a_missing_torch_that_was_named_is_an_error(monkeypatch):
    """And the sentence says so."""
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match="torch is not installed"):
        kernels.kernel.__wrapped__("torch")
