"""Both challenges against second implementations, and the kernels against broken ones."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attester.errors import WeightsError
from attester.weights import cpu, kernels, possession, reference, select
from attester.weights.cpu import CpuKernel, numpy_fold, numpy_products
from attester.weights.folder import open_folder
from attester.weights.kernels import K, row_words
from attester.weights.possession import ModelChallenge, ReadChallenge, WalkChallenge
from attester.weights.select import kernel
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
    words = [row_words(seed, row) for row in rows]
    return possession.walk(tensors(data), words, passes, kernel("numpy"))


@given(SIZES.filter(any), SEEDS, st.lists(st.integers(0, 2047), min_size=1, max_size=3), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_a_walk_agrees_with_the_second_implementation(sizes, seed, rows, passes):
    """Any tensors, rows and passes: the fast way and the slow way meet."""
    data = parts(sizes)
    pieces = [[part] for part in data]
    assert walk(data, seed, rows, passes) == [reference.walk_row(pieces, seed, row, passes) for row in rows]


@pytest.mark.parametrize(
    "sizes",
    [[K * K], [K * K + 1], [K * (K - 1), 1, 5], [K * (K - 1) + 1, 7], [3, K * K, 3]],
    ids=["a step", "a step and a byte", "a step in two tensors", "a ragged step", "over a step"],
)
def test_a_walk_agrees_at_the_edge_of_a_step(sizes):
    """Where one step ends and the next begins, and blocks within a step."""
    data = [(noise(number, 4099) * (size // 4099 + 1))[:size] for number, size in enumerate(sizes)]
    assert walk(data) == [reference.walk_row([[part] for part in data], SEED, 0, 1)]


@given(st.lists(st.tuples(SEEDS, st.integers(0, 2047)), min_size=2, max_size=6), st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_walking_many_rows_at_once_equals_walking_each_alone(rows, passes):
    """Rows of many challenges do not see each other."""
    words = [row_words(seed, row) for seed, row in rows]
    given_tensors = tensors(parts([5000, 0, 77]))
    together = possession.walk(given_tensors, words, passes, kernel("numpy"))
    alone = [possession.walk(given_tensors, [word], passes, kernel("numpy"))[0] for word in words]
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
        possession.walk(once, [row_words(SEED, 0)], 2, kernel("numpy"))


def test_progress_of_a_walk_counts_bytes_of_each_pass():
    """Padding is not counted."""
    done = []
    rows = [row_words(SEED, 0)]
    possession.walk(tensors([noise(0, 5000), b"x"]), rows, 3, kernel("numpy"), done.append)
    assert sum(done) == 3 * 5001


def test_a_walk_does_not_change_the_weights():
    """The engine's own tensors are walked."""
    given_tensors = tensors([noise(0, 5000)])
    possession.walk(given_tensors, [row_words(SEED, 0)], 2, kernel("numpy"))
    assert given_tensors[0].data.tobytes() == noise(0, 5000)


@given(SEEDS, st.integers(0, 2047))
@settings(max_examples=50)
def test_the_words_of_a_row(seed, row):
    """Four little-endian words of SHAKE-256, from the specification."""
    digest = hashlib.shake_256(b"touchstone/weight-walk/1" + seed + row.to_bytes(4, "little")).digest(16)
    expected = tuple(int.from_bytes(digest[i : i + 4], "little") for i in (0, 4, 8, 12))
    assert row_words(seed, row) == expected


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
    with pytest.raises(WeightsError, match="has no bytes"):
        possession.read(write(tmp_path, [b"", b""]), SEED, 1)


@pytest.mark.parametrize(
    ("whole_up_to", "when"),
    [(-1, "while it was read"), (1 << 26, "since it was listed")],
    ids=["by windows", "whole"],
)
def test_a_file_that_shrank_is_refused(tmp_path, whole_up_to, when):
    """The answer is over the files as they were listed, or there is none."""
    folder = write(tmp_path, [noise(0, 5000)])
    (tmp_path / "000").write_bytes(b"short")
    with pytest.raises(WeightsError, match=f"^000 changed {when}"):
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


def on_cpu(products=numpy_products, fold=numpy_fold) -> CpuKernel:
    """A kernel of these parts, whose rows come in their order."""
    return CpuKernel(products, fold, "numpy", 1)


def broken(spoil):
    """Products that are right, and then spoilt; told which row of the walk is the first of them."""

    def products(inputs):
        multiply = numpy_products(inputs)

        def wrong(weights, out):
            multiply(weights, out)
            spoil(weights, out, products.rows)
            products.rows += out.shape[0]

        return wrong

    products.rows = 0
    return products


ROWS_OF_FIRST_STEP = sum(-(-data.size // K) for data in select.known_weights()[:3])


def add(place, by=1):
    def spoil(_, out, first):
        out[place] += by

    return spoil


def at(row, column):
    """One product of the whole walk is off by one, and nothing else."""

    def spoil(_, out, first):
        if first <= row < first + out.shape[0]:
            out[row - first, column] += 1

    return spoil


def saturated(low, high):
    return lambda _, out, first: np.clip(out, low, high, out=out)


def rounded(_, out, first):
    out[:] = out.astype(np.float16).astype(np.float32).clip(-(2**31), 2**31 - 1).astype(np.int32)


def rounded_to_ten_bits(_, out, first):
    """As TF32 keeps of a sum."""
    out[:] = (
        (out.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.int32)
    )


def unsigned(weights, out, first):
    out[weights[:, 0] == -128] *= -1


SPOILT = {
    "first product": add((0, 0)),
    "last product": add((-1, -1)),
    "one less": add((0, -1), -1),
    "a bit high up": add((0, 0), 1 << 24),
    "the first product of all": at(0, 0),
    "one product of the large tensor": at(2048, 16),
    "the first of a tile": at(1024, 0),
    "the last of a tile": at(2047, 31),
    "the last row of a block": at(K - 1, 31),
    "the first row of the next block": at(K, 0),
    "the tail of 18 rows": at(49, 0),
    "the last row of a step": at(ROWS_OF_FIRST_STEP - 1, 0),
    "the second step": at(ROWS_OF_FIRST_STEP, 0),
    "the last row of all": at(ROWS_OF_FIRST_STEP + 5, 31),
    "saturated at 25 bits": saturated(-(1 << 24), (1 << 24) - 1),
    # Random inputs make no sum beyond ±2²⁵, so neither does the known walk.
    "saturated near 26 bits": saturated(-(1 << 25), 33_500_000),
    "saturated below": saturated(-(1 << 24), (1 << 30)),
    "rounded to half precision": rounded,
    "rounded to ten bits": rounded_to_ten_bits,
    "−128 taken for 128": unsigned,
    "nothing written": lambda _, out, first: out.fill(0),
    "transposed": lambda _, out, first: out.__setitem__(slice(None), out[::-1].copy()),
}


def test_the_known_walk_has_the_rows_that_are_spoilt():
    """Two steps, the first of more than a block, the second of six rows."""
    rows = [-(-data.size // K) for data in select.known_weights()]
    assert rows == [32, 18, ROWS_OF_FIRST_STEP - 50, 6]
    assert K < ROWS_OF_FIRST_STEP < 2 * K


@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_broken_kernel_is_caught(name):
    """One wrong product is enough."""
    assert not select.is_exact(on_cpu(broken(SPOILT[name])))


def test_a_spoiler_that_spoils_nothing_is_not_caught():
    """What is caught above is the spoiling, and not how it is done."""
    assert select.is_exact(on_cpu(broken(lambda _, out, first: None)))


def test_a_kernel_that_adds_in_single_precision_is_caught():
    """Sums need 26 bits: the parts of the split must be added as integers."""

    def products(inputs):
        parts = [inputs[start : start + 1024].astype(np.float32) for start in range(0, K, 1024)]

        def multiply(weights, out):
            total = np.zeros(out.shape, np.float32)
            for number, part in enumerate(parts):
                total += weights[:, number * 1024 : (number + 1) * 1024].astype(np.float32) @ part
            out[:] = total.astype(np.int32)

        return multiply

    assert not select.is_exact(on_cpu(products))


def test_a_kernel_with_sums_of_16_bits_is_caught():
    """As processors without VNNI add pairs, saturating."""

    def products(inputs):
        right = inputs.astype(np.int32)

        def multiply(weights, out):
            total = np.zeros(out.shape, np.int32)
            left = weights.astype(np.int32)
            for start in range(0, K, 1024):
                pairs = left[:, start : start + 1024] @ right[start : start + 1024]
                total += np.clip(pairs, -32768, 32767)
            out[:] = total

        return multiply

    assert not select.is_exact(on_cpu(products))


def signed_shift(total, products, factor):
    x = products * factor.view(np.int32)
    for shift, by in ((16, 0x21F0AAAD), (15, 0x735A2D97), (15, 1)):
        x ^= x >> shift
        x *= np.int32(by)
    total += x.view(np.uint32)


def unmixed(total, products, factor):
    total += products.view(np.uint32) * factor


def mixed_before(total, products, factor):
    total += kernels.mix(products.view(np.uint32)) * factor


def last_column_left_out(total, products, factor):
    before = total[:, -1].copy()
    numpy_fold(total, products, factor)
    total[:, -1] = before


def in_float(total, products, factor):
    numpy_fold(total, (products.astype(np.float32)).astype(np.int32), factor)


def overwritten(total, products, factor):
    total[:] = 0
    numpy_fold(total, products, factor)


FOLDS = {
    "shifts that drag the sign in": signed_shift,
    "not mixed": unmixed,
    "mixed before it is multiplied": mixed_before,
    "another column's factor": lambda total, products, factor: numpy_fold(
        total, products, np.roll(factor, 1)
    ),
    "the first block's factor": lambda total, products, factor: numpy_fold(total, products, factor | 3),
    "the last column left out": last_column_left_out,
    "by way of single precision": in_float,
    "nothing added": lambda total, products, factor: None,
    "overwritten": overwritten,
}


@pytest.mark.parametrize("name", FOLDS)
def test_a_broken_fold_is_caught(name):
    """Products alone are not the walk."""
    assert not select.is_exact(on_cpu(fold=FOLDS[name]))


def test_the_numpy_kernel_is_exact():
    """On this machine, as it says of itself."""
    assert select.is_exact(on_cpu())


def test_the_known_answer_is_the_second_implementations():
    """All rows of the known walk, by the way that shares nothing with the kernels."""
    pieces = [[data.tobytes()] for data in select.known_weights()]
    rows = range(select.KNOWN_ROWS)
    answers = b"".join(reference.walk_row(pieces, select.KNOWN_SEED, row, 1) for row in rows)
    assert hashlib.sha256(answers).hexdigest() == select.KNOWN_ANSWER


def test_no_kernel_is_handed_out_that_is_not_exact(monkeypatch):
    """An operator sees a sentence, not a wrong answer."""
    monkeypatch.setattr(cpu, "numpy_products", broken(SPOILT["last product"]))
    with pytest.raises(WeightsError, match="not exact on this machine"):
        select.kernel.__wrapped__("numpy")


@pytest.fixture
def inexact_torch(monkeypatch):
    """A torch that is there and wrong, whether there is one or not."""
    monkeypatch.setattr(cpu, "torch_products", broken(SPOILT["last product"]))
    monkeypatch.setattr(cpu, "has_torch", lambda: True)
    monkeypatch.setattr(cpu, "threads", lambda: 1)


def test_an_inexact_torch_is_passed_over(inexact_torch):
    """Numpy takes its place where nothing was named."""
    assert select.kernel.__wrapped__().name.startswith("numpy and ")


def test_an_inexact_torch_that_was_named_is_an_error(inexact_torch):
    """It is not replaced behind the caller's back."""
    with pytest.raises(WeightsError, match="torch and numpy: not exact on this machine"):
        select.kernel.__wrapped__("torch")


def test_a_missing_torch_that_was_named_is_an_error(monkeypatch):
    """And the sentence says so."""
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match="torch is not installed"):
        select.kernel.__wrapped__("torch")


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(cpu, "library", cpu.library.__wrapped__)
    monkeypatch.setattr(cpu, "c_fold", cpu.c_fold.__wrapped__)


def test_without_a_compiler_there_is_a_slower_way(no_compiler):
    """It folds by numpy, and is as exact."""
    assert select.kernel.__wrapped__("numpy").name == "numpy and numpy on the CPU"


def test_a_compiler_that_was_named_and_is_missing_is_an_error(no_compiler):
    """And the sentence says so."""
    with pytest.raises(WeightsError, match="numpy and C: there is no C compiler"):
        select.kernel.__wrapped__("numpy", fused=True)


@pytest.mark.parametrize("script", ["exit 1", "exit 0"], ids=["that fails", "that makes nothing"])
def test_a_compiler_that_is_broken_is_passed_over(no_compiler, monkeypatch, tmp_path, script):
    """Its name is said where there is no other way."""
    compiler = tmp_path / "mycc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert select.kernel.__wrapped__("numpy").name == "numpy and numpy on the CPU"
    with pytest.raises(WeightsError, match="mycc cannot compile the fold"):
        select.kernel.__wrapped__("numpy", fused=True)


def test_a_compiled_fold_that_is_wrong_is_passed_over(monkeypatch):
    """What a compiler makes is held to the known walk like any library."""
    monkeypatch.setattr(cpu, "c_fold", lambda: FOLDS["shifts that drag the sign in"])
    assert select.kernel.__wrapped__("numpy").name == "numpy and numpy on the CPU"
    with pytest.raises(WeightsError, match="numpy and C: not exact on this machine"):
        select.kernel.__wrapped__("numpy", fused=True)


@pytest.mark.parametrize("device", ["nothing", "cuda:99", ""])
def test_a_device_that_is_not_there_is_an_error(device):
    """Named, and in a sentence."""
    with pytest.raises(WeightsError, match="no kernel can walk on "):
        select.kernel.__wrapped__(device=device, fused=False)
