"""What engines add to a module is accepted for a reason each, and scales only with their published value."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from attester.engines import derived
from attester.engines.derived import TABLE, published_scales
from attester.engines.live import LiveTensors
from attester.errors import EngineError
from attester.weights.folder import open_folder
from attester.weights.tensors import TensorFiles

torch = pytest.importorskip("torch", reason="torch is not installed")

LAYER = "model.layers.0.self_attn"
FACTORS = [row.last for row in TABLE if row.value is not None]


def weights() -> dict[str, Any]:
    return {f"{LAYER}.o_proj.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4)}


def scaled(**values: float) -> dict[str, Any]:
    """The module as vLLM 0.32 has it: four scales in each attention layer."""
    scales = {f"{LAYER}.attn.{last}": torch.tensor(1.0) for last in FACTORS}
    return weights() | scales | {f"{LAYER}.attn.{k}": torch.tensor(v) for k, v in values.items()}


def live(folder: Path, published: dict[str, Any], *states: dict[str, Any], prefix: str = "") -> LiveTensors:
    from safetensors.torch import save_file

    save_file(published, folder / "model.safetensors")
    files = TensorFiles(open_folder(folder))
    return LiveTensors(files.infos, states, prefix=prefix, scales=published_scales(list(files)))


def test_the_scales_that_vllm_registers_are_accepted_while_they_are_one(tmp_path):
    """Row: vLLM registers `_k_scale, _v_scale, _q_scale, _prob_scale` in every attention layer."""
    assert [tensor.name for tensor in live(tmp_path, weights(), scaled())] == [f"{LAYER}.o_proj.weight"]


@pytest.mark.parametrize("value", [0.5, 2.0, 0.0, -1.0, 1.0000001, math.nan, math.inf])
@pytest.mark.parametrize("last", FACTORS)
def test_a_scale_with_another_value_is_refused(tmp_path, last, value):
    """With the same weights it gives other answers."""
    with pytest.raises(EngineError, match=rf"{last}' is \S+, and the published configuration makes it 1: "):
        live(tmp_path, weights(), scaled(**{last: value}))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_scale_is_compared_on_every_rank(tmp_path, rank):
    states = [scaled(), scaled()]
    states[rank][f"{LAYER}.attn._v_scale"] = torch.tensor(3.0)
    with pytest.raises(EngineError, match=r"_v_scale' is 3"):
        live(tmp_path, weights(), *states)


@pytest.mark.parametrize(
    "hidden",
    [torch.ones(2), torch.ones(3, 4), torch.tensor(1), torch.tensor([True])],
    ids=["two numbers", "a matrix", "an integer", "a truth value"],
)
def test_a_tensor_is_not_hidden_under_the_name_of_a_scale(tmp_path, hidden):
    """An adapter's matrix of ones is refused like any other."""
    state = scaled() | {f"{LAYER}.attn._k_scale": hidden}
    with pytest.raises(EngineError, match="and a scale has one"):
        live(tmp_path, weights(), state)


OWN = {
    f"{LAYER}.attn.k_scale": ("_k_scale",),
    f"{LAYER}.k_proj.k_scale": ("_k_scale",),
    f"{LAYER}.k_scale": ("_k_scale",),
    f"{LAYER}.v_proj.v_scale": ("_v_scale",),
    f"{LAYER}.kv_scale": ("_k_scale", "_v_scale"),
    f"{LAYER}.attn.q_scale": ("_q_scale",),
    f"{LAYER}.attn.prob_scale": ("_prob_scale",),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OWN)
def test_a_scale_of_the_checkpoint_is_accepted(tmp_path, name, dtype):
    """The live number is the published one, and the walk has the published bytes."""
    published = weights() | {name: torch.tensor([0.25], dtype=dtype)}
    found = live(tmp_path, published, scaled(**dict.fromkeys(OWN[name], 0.25)))
    sources = {tensor.name: b"".join(bytes(c.tobytes()) for c in tensor.chunks()) for tensor in found}
    assert sources[name] == bytes(published[name].view(torch.uint8).numpy().tobytes())
    assert len(found) == 2


def test_a_cache_that_is_not_quantised_keeps_the_scale_one(tmp_path):
    """Then vLLM leaves the checkpoint's own unused."""
    live(tmp_path, weights() | {f"{LAYER}.attn.k_scale": torch.tensor(0.25)}, scaled())


def test_a_scale_that_is_neither_one_nor_the_checkpoints_is_refused(tmp_path):
    published = weights() | {f"{LAYER}.attn.k_scale": torch.tensor(0.25)}
    with pytest.raises(EngineError, match=r"is 0\.5, and the published configuration makes it 0\.25 or 1"):
        live(tmp_path, published, scaled(_k_scale=0.5))


def test_the_scale_of_another_layer_is_not_taken(tmp_path):
    """Each layer has its own."""
    published = weights() | {f"{LAYER}.attn.k_scale": torch.tensor(0.25)}
    other = {"model.layers.1.self_attn.attn._k_scale": torch.tensor(0.25)}
    with pytest.raises(
        EngineError, match=r"layers\.1\S* is 0\.25, and the published configuration makes it 1:"
    ):
        live(tmp_path, published, scaled() | other)


def test_a_published_scale_that_the_module_does_not_have_is_missing(tmp_path):
    """Nothing is taken from the file without a live number beside it."""
    published = weights() | {f"{LAYER}.attn.k_scale": torch.tensor(0.25)}
    with pytest.raises(EngineError, match=r"the module does not have 'model\S+k_scale'"):
        live(tmp_path, published, weights())


def test_a_module_with_a_prefix_has_its_scales_compared_too(tmp_path):
    published = weights() | {f"{LAYER}.attn.k_scale": torch.tensor(0.25)}
    inner = {f"inner.{name}": tensor for name, tensor in scaled(_k_scale=0.25).items()}
    assert len(live(tmp_path, published, inner, prefix="inner.")) == 2


def test_a_weight_that_was_packed_and_freed_is_told_of_by_its_cause(tmp_path):
    """Row: on a CPU vLLM packs its linear layers: the operator reads why, and what to do."""
    state = scaled() | {f"{LAYER}.o_proj.weight": torch.empty(0)}
    with pytest.raises(
        EngineError,
        match=r"loaded as \(0,\), published as \(3, 4\)\. The engine has packed .*oneDNN.*adapter files$",
    ):
        live(tmp_path, weights(), state)


def test_every_row_of_the_table_says_why():
    """One row for each name, a sentence in each; what is compared may have a published name."""
    assert len({row.last for row in TABLE}) == len(TABLE)
    assert all(row.why.endswith(".") and len(row.why) > 30 for row in TABLE)
    assert all(row.value is not None for row in TABLE if row.published)
    assert set(derived.DERIVED).isdisjoint(FACTORS)
