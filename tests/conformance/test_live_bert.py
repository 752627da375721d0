"""A walk over a live, fused torch model gives the answers that its published file gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attester.engines.live import LiveTensors
from attester.weights import possession
from attester.weights.device import DeviceKernel
from attester.weights.folder import open_folder
from attester.weights.kernels import row_words
from attester.weights.select import kernel
from attester.weights.tensors import TensorFiles
from fixtures.minilm import MiniLM

torch = pytest.importorskip("torch", reason="torch is not installed")

FUSED = "encoder.layer.3.attention.self.qkv_proj"
WORDS = [row_words(bytes(range(32)), row) for row in range(5)]
PASSES = 2
SENTENCES = [
    "A quick brown fox.",
    "Trust is good, a second look at the weights is better, and both take a while.",
    "Überall gelten Zahlen.",
]


@pytest.fixture
def bert(minilm: Path) -> Any:
    from fixtures.torch_bert import TorchMiniLM

    return TorchMiniLM(minilm).eval()


@pytest.fixture(scope="module")
def files(minilm: Path) -> TensorFiles:
    return TensorFiles(open_folder(minilm))


@pytest.fixture(scope="module")
def published(files: TensorFiles) -> list[bytes]:
    """Answers from the file, by the plainest way there is."""
    return possession.walk(files, WORDS, PASSES, kernel("numpy", fused=False))


def live_walk(bert: Any, files: TensorFiles, on: Any = None) -> list[bytes]:
    live = LiveTensors(files.infos, [bert.state_dict()])
    return possession.walk(live, WORDS, PASSES, on or kernel())


def embed(bert: Any, folder: Path) -> Any:
    ids, mask = MiniLM(folder).tokenize(SENTENCES)
    with torch.no_grad():
        return bert(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()


def flip(bert: Any, name: str, row: int) -> None:
    """Change the lowest bit of one weight of the running model."""
    words = bert.state_dict()[name].view(torch.int32)
    words.view(words.shape[0], -1)[row, 0] ^= 1


def test_its_embeddings_are_those_of_the_fixture(bert: Any, minilm: Path) -> None:
    """It is the real model, whatever its layout: to 1e-4, with padding and without."""
    expected, _ = MiniLM(minilm).embed(SENTENCES)
    assert np.abs(embed(bert, minilm) - expected).max() < 1e-4


def test_its_layout_is_not_the_published_one(bert: Any, files: TensorFiles) -> None:
    """Otherwise nothing here would be brought back."""
    state, names = bert.state_dict(), {info.name for info in files.infos}
    assert names - state.keys() == {
        f"encoder.layer.{layer}.attention.self.{part}.{kind}"
        for layer in range(6)
        for part in ("query", "key", "value")
        for kind in ("weight", "bias")
    }
    assert state[f"{FUSED}.weight"].shape == (3 * 384, 384)


def test_a_walk_over_the_live_model_is_a_walk_over_the_file(
    bert: Any, files: TensorFiles, published: list[bytes]
) -> None:
    """Every row, twice through, on the kernel that an attester would choose."""
    assert live_walk(bert, files) == published


def test_a_walk_on_the_device_kernel_is_a_walk_over_the_file(
    bert: Any, files: TensorFiles, published: list[bytes]
) -> None:
    """The kernel of accelerators, on torch's own processor device."""
    assert live_walk(bert, files, DeviceKernel("cpu", compiled=False)) == published


@pytest.mark.parametrize("name", [f"{FUSED}.weight", f"{FUSED}.bias"])
@pytest.mark.parametrize("row", [0, 384, 1151], ids=lambda row: f"row {row}")
def test_one_bit_of_a_fused_weight_changes_every_answer(
    bert: Any, files: TensorFiles, published: list[bytes], name: str, row: int
) -> None:
    """Anywhere in query, key or value; changed back, all is as it was."""
    flip(bert, name, row)
    changed = live_walk(bert, files)
    assert not set(changed) & set(published)
    flip(bert, name, row)
    assert live_walk(bert, files) == published


def test_one_bit_is_seen_by_the_device_kernel_too(
    bert: Any, files: TensorFiles, published: list[bytes]
) -> None:
    """No answer of a changed model passes for one of the published."""
    flip(bert, f"{FUSED}.weight", 700)
    assert not set(live_walk(bert, files, DeviceKernel("cpu", compiled=False))) & set(published)


def test_a_change_while_serving_is_seen_at_the_next_walk(
    bert: Any, files: TensorFiles, published: list[bytes]
) -> None:
    """The tensors are read when they are walked, not when they were found."""
    live = LiveTensors(files.infos, [bert.state_dict()])
    before = possession.walk(live, WORDS, PASSES, kernel())
    flip(bert, f"{FUSED}.weight", 384)
    assert before == published
    assert not set(possession.walk(live, WORDS, PASSES, kernel())) & set(published)


def test_what_is_walked_is_what_the_arithmetic_uses(bert: Any, minilm: Path) -> None:
    """Zeroed through the walked tensors, the model embeds otherwise."""
    before = embed(bert, minilm)
    bert.state_dict()[f"{FUSED}.weight"].zero_()
    assert np.abs(embed(bert, minilm) - before).max() > 1e-3
