"""The pool: derivation, what the wire shows, and a minter that trusts no single library."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester.weights import possession
from attester.weights.cpu import CpuKernel, numpy_fold, numpy_products
from attester.weights.folder import open_folder
from attester.weights.kernels import Int8, Int32, Kernel, row_words
from attester.weights.select import kernel
from attester.weights.tensors import TensorFiles
from fixtures.simulator import MODEL
from verifier.challenges import posing
from verifier.challenges.minting import Minter
from verifier.challenges.pool_key import PoolKey, ReadParameters, WalkParameters
from verifier.errors import ReferenceValueError
from verifier.references import measured

KEY = PoolKey(bytes(range(32)))


def minter(folder: Path, using: Kernel | None = None) -> Minter:
    opened = open_folder(folder)
    return Minter(
        model=MODEL,
        folder=opened,
        tensors=TensorFiles(opened),
        key=KEY,
        kernel=using or kernel("numpy"),
        batch=1,
    )


def test_the_seed_is_the_published_formula() -> None:
    """SHAKE-256(key ‖ model ‖ kind ‖ LE64(i))."""
    data = KEY.secret + b"m" + b"walk" + (7).to_bytes(8, "little")
    assert KEY.seed("m", "walk", 7) == hashlib.shake_256(data).digest(32)


@given(st.integers(0, 1 << 40), st.integers(4, 2048))
def test_four_distinct_rows_are_checked(index: int, rows: int) -> None:
    """Within the rows asked, in rising order, whatever the index."""
    checked = KEY.checked_rows("m", "walk", index, rows)
    assert len(set(checked)) == 4
    assert list(checked) == sorted(checked)
    assert checked[0] >= 0
    assert checked[-1] < rows


def test_minted_commitments_are_those_of_honest_answers(model_folder: Path) -> None:
    """What is kept is the hash of what the weights answer, for the checked rows only."""
    (entries,) = minter(model_folder).walks(5, 2, WalkParameters(rows=16))
    for entry in entries:
        asked = posing.pose([entry], {}, KEY)[MODEL].walk
        assert asked is not None
        words = [row_words(bytes.fromhex(asked.seed), row) for row in asked.commitments]
        answers = possession.walk(TensorFiles(open_folder(model_folder)), words, 1, kernel("numpy"))
        assert [possession.commitment(a) for a in answers] == list(asked.commitments.values())


def test_the_wire_shows_no_commitment_and_no_checked_row(model_folder: Path) -> None:
    """Nodes learn seed, rows and passes, and nothing else."""
    (walks,) = minter(model_folder).walks(0, 1, WalkParameters(rows=16))
    reads = list(minter(model_folder).reads(0, 1, ReadParameters(8)))
    wire = posing.to_wire(posing.pose([*reads, *walks], {}, KEY))
    assert msgspec.to_builtins(wire) == [
        {
            "model": MODEL,
            "read": {"seed": KEY.seed(MODEL, "read", 0).hex(), "windows": 8},
            "walk": {"seed": KEY.seed(MODEL, "walk", 0).hex(), "rows": 16, "passes": 1},
        }
    ]


def test_a_library_that_computes_wrongly_poisons_no_pool(model_folder: Path) -> None:
    """The second implementation disagrees, and nothing of the group is kept."""

    def broken(inputs: Int8) -> Any:
        exact = numpy_products(inputs)

        def multiply(weights: Int8, out: Int32) -> None:
            exact(weights, out)
            out[0] += 1

        return multiply

    wrong = CpuKernel(broken, numpy_fold, "numpy", 1)
    with pytest.raises(ReferenceValueError, match="second implementation"):
        next(minter(model_folder, wrong).walks(0, 1, WalkParameters(rows=4)))


def test_a_document_keeps_its_identity(model_folder: Path) -> None:
    """Encoded and read back, it has the same digest."""
    document = measured.measure_folder(MODEL, open_folder(model_folder))
    again = measured.read_document(msgspec.json.encode(document))
    assert again.digest == document.digest
    assert again.to_reference() == document.to_reference()


@pytest.mark.parametrize("name", ["", "../x", "a b", "/a", "a/", "x" * 129, "a\n"])
def test_a_bad_model_name_is_refused(model_folder: Path, name: str) -> None:
    """Names go into submodules, URLs and files."""
    with pytest.raises(ReferenceValueError, match="not a model's name"):
        measured.measure_folder(name, open_folder(model_folder))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"model": "a"}', b"\xff"])
def test_a_broken_document_is_refused(data: bytes) -> None:
    """Nothing half imported."""
    with pytest.raises(ReferenceValueError):
        measured.read_document(data)
