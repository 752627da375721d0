"""Our vectors: every answer, on every backend we have, and by the second implementation."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attester.weights import possession, reference
from attester.weights.device import DeviceKernel
from attester.weights.folder import open_folder
from attester.weights.kernels import Kernel, has_torch, row_words
from attester.weights.select import kernel
from attester.weights.tensors import Tensor

VECTORS = Path(__file__).parents[2] / "fixtures" / "vectors" / "possession.json"
CASES: list[dict[str, Any]] = json.loads(VECTORS.read_text())["cases"]
IDS = [f"{case['case']}-{case['seed'][:4]}" for case in CASES]

NO_TORCH = pytest.mark.skipif(not has_torch(), reason="torch is not installed")
BEST = [
    pytest.param(("numpy", None), id="numpy"),
    pytest.param(("torch", None), marks=NO_TORCH, id="torch"),
]
OTHERS = [
    pytest.param(("numpy", False), id="numpy without C"),
    pytest.param(("torch", False), marks=NO_TORCH, id="torch without C"),
    pytest.param(("device", False), marks=NO_TORCH, id="a device"),
]


Way = tuple[str, bool | None]
"""The backend, and whether a compiler helps it."""


def kernel_of(way: Way) -> Kernel:
    backend, fused = way
    if backend not in ("numpy", "torch"):
        return DeviceKernel("cpu" if backend == "device" else backend, compiled=bool(fused))
    return kernel("torch" if backend == "torch" else "numpy", fused=fused)


@cache
def part(case: str, name: str, size: int) -> bytes:
    return hashlib.shake_256(f"touchstone/vector/{case}/{name}".encode()).digest(size)


def parts(case: dict[str, Any]) -> list[tuple[str, bytes]]:
    found = [(p["name"], part(case["case"], p["name"], p["size"])) for p in case["parts"]]
    return sorted(found, key=lambda pair: pair[0].encode())


def test_the_copy_is_the_published_one() -> None:
    """The vectors' digest is pinned, so that nobody edits an answer to fit the code."""
    digest = hashlib.sha256(VECTORS.read_bytes()).hexdigest()
    assert digest == "526653b231f911ab87ce239831d056da84fe0d68c6ff29414597ae65d16d76e8"


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_read(case: dict[str, Any], tmp_path: Path) -> None:
    """`read` gives the published answer and commitment for every number of windows."""
    for name, data in parts(case):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    folder = open_folder(tmp_path)
    seed = bytes.fromhex(case["seed"])
    for row in case["read"]:
        answer = possession.read(folder, seed, row["windows"], whole_up_to=row["whole_up_to"])
        assert answer.hex() == row["answer"]
        assert possession.commitment(answer).hex() == row["commitment"]


@pytest.mark.parametrize("way", BEST)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_walk(case: dict[str, Any], way: Way) -> None:
    """`walk` gives the published answers, all rows of a challenge in one go."""
    tensors = [Tensor(name, np.frombuffer(bytearray(data), np.int8)) for name, data in parts(case)]
    seed = bytes.fromhex(case["seed"])
    for passes in {row["passes"] for row in case["walk"]}:
        expected = {row["row"]: row for row in case["walk"] if row["passes"] == passes}
        words = [row_words(seed, row) for row in expected]
        answers = possession.walk(tensors, words, passes, kernel_of(way))
        assert {row: answer.hex() for row, answer in zip(expected, answers, strict=True)} == {
            row: vector["answer"] for row, vector in expected.items()
        }
        assert [possession.commitment(answer).hex() for answer in answers] == [
            vector["commitment"] for vector in expected.values()
        ]


@pytest.mark.parametrize("way", OTHERS)
@pytest.mark.parametrize("case", CASES[::3], ids=IDS[::3])
def test_walk_by_every_other_kernel(case: dict[str, Any], way: Way) -> None:
    """Every case once, with what stands in where there is no compiler, and as accelerators walk."""
    test_walk(case, way)


@pytest.mark.parametrize("compiled", [True, False])
def test_every_walk_on_cuda(*, compiled: bool) -> None:
    """Every vector on a GPU, where there is one."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here: CUDA was not tried")
    for case in CASES:
        test_walk(case, ("cuda:0", compiled))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_walk_by_the_second_implementation(case: dict[str, Any]) -> None:
    """The spot check of the minter reaches the published answers by a way of its own."""
    row = case["walk"][-1]
    tensors = [[data] for _, data in parts(case)]
    answer = reference.walk_row(tensors, bytes.fromhex(case["seed"]), row["row"], row["passes"])
    assert answer.hex() == row["answer"]
