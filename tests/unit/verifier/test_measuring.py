"""Measuring a reference value: the same document by fewer passes, without a library that takes seconds to load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester.errors import WeightsError
from attester.weights import cpu, select
from attester.weights.folder import open_folder
from attester.weights.select import is_exact, kernel, small_kernel
from fixtures.simulator import MODEL
from verifier.errors import ReferenceValueError
from verifier.references import information, measured
from verifier.references.information import _Counter

ROOT = Path(__file__).parents[3]


def test_measuring_imports_no_torch(model_folder: Path) -> None:
    """Torch is imported for the practice challenge: four rows need none, and it takes seconds to load."""
    program = (
        "import sys; from touchstone import main; "
        f"main(['reference', 'measure', {str(model_folder)!r}, '--model', 'a/b', '--no-cache'], standalone_mode=False); "
        "assert 'torch' not in sys.modules, 'torch'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_the_bar_moves_to_its_end(model_folder: Path) -> None:
    """With a bar that moves: the steps come from all passes, and are what was promised."""
    folder = open_folder(model_folder)
    steps: list[int] = []
    measured.measure_folder(MODEL, folder, steps.append)
    assert sum(steps) == measured.work_of(folder)
    assert len(steps) > 3 * len(folder.files) - 3


def test_the_kernel_in_c_is_exact() -> None:
    """By the known walk of `select`, whose answer another implementation gave."""
    assert is_exact(kernel("C"))
    assert kernel("C").name == "C on the CPU"


@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_products_in_c_are_those_of_numpy(columns: int, rows: int, seed: int) -> None:
    """Also for numbers of columns that four does not divide."""
    noise = np.random.default_rng(seed)
    weights = noise.integers(-128, 128, (rows, 4096), dtype=np.int8)
    inputs = noise.integers(-127, 128, (4096, columns), dtype=np.int8)
    ours, theirs = (np.empty((rows, columns), np.int32) for _ in range(2))
    cpu.c_products(inputs)(weights, ours)
    cpu.numpy_products(inputs)(weights, theirs)
    assert np.array_equal(ours, theirs)


def test_without_a_compiler_the_document_is_the_same(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer, and its digest is what other machines have."""
    folder = open_folder(model_folder)
    with_compiler = measured.measure_folder(MODEL, folder)

    def none(*_: object) -> None:
        raise WeightsError("there is no C compiler")

    monkeypatch.setattr(cpu, "count_numbers", none)
    monkeypatch.setattr(measured, "small_kernel", lambda: kernel("numpy"))
    assert measured.measure_folder(MODEL, folder).digest == with_compiler.digest


def test_without_a_compiler_another_kernel_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest that there is."""
    asked = []

    def chosen(backend: str | None = None, device: str = "cpu") -> str:
        asked.append(backend)
        if backend == "C":
            raise WeightsError("there is no C compiler")
        return device

    monkeypatch.setattr(select, "kernel", chosen)
    assert (small_kernel(), asked) == ("cpu", ["C", None])


@given(st.binary(max_size=64), st.sampled_from([1, 2, 4, 8]))
def test_each_byte_is_counted_in_its_plane(data: bytes, width: int) -> None:
    """Over pieces of any sizes that end between elements, and when the tables are emptied meanwhile."""
    data = data[: len(data) - len(data) % width]
    counter = _Counter(width)
    values = np.frombuffer(data, np.uint8)
    for start in range(0, len(data), 2 * width):
        counter.add(values[start : start + 2 * width].copy())
        counter._carry()
    expected = [np.bincount(values[plane::width], minlength=256) for plane in range(width)]
    assert np.array_equal(counter.planes(), expected)


def test_tables_are_emptied_before_they_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor may have more elements than 32 bits count."""
    monkeypatch.setattr(information, "_MAX_COUNTED", 8)
    counter = _Counter(1)
    for _ in range(5):
        counter.add(np.zeros(6, np.uint8))
    assert counter.planes()[0][0] == 30
    assert counter._counted == 0


def test_what_fails_in_one_pass_ends_the_other(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is told at once, and no thread goes on reading."""

    def fail(*_: object) -> None:
        raise WeightsError("model.safetensors changed while it was read")

    monkeypatch.setattr(measured, "examine", fail)
    with pytest.raises(ReferenceValueError, match="changed while it was read"):
        measured.measure_folder(MODEL, open_folder(model_folder))
