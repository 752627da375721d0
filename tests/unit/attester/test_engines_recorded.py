"""What real libraries load is walked as it was published, by recordings of them: `fixtures.loaded`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from attester.engines.live import DERIVED, LiveTensors, confirm
from attester.engines.module_state import state_of
from attester.errors import EngineError
from attester.weights import possession
from attester.weights.folder import open_folder
from attester.weights.kernels import row_words
from attester.weights.select import kernel
from attester.weights.tensors import TensorFiles
from fixtures import loaded
from fixtures.loaded import Recording

torch = pytest.importorskip("torch", reason="torch is not installed")

RECORDINGS = {name: loaded.read(name) for name in loaded.names()}
WALKED = [name for name, recording in RECORDINGS.items() if recording.refused is None]
REFUSED = [name for name, recording in RECORDINGS.items() if recording.refused is not None]
WORDS = [row_words(bytes(range(32)), row) for row in range(4)]


def noise(recording: Recording) -> dict[str, Any]:
    """Bytes without a pattern for every published tensor."""
    drawn = torch.Generator().manual_seed(7)
    tensors = {}
    for name, (dtype, shape) in recording.published.items():
        kind = getattr(torch, dtype)
        size = kind.itemsize
        for length in shape:
            size *= length
        data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=drawn)
        tensors[name] = data.view(kind).reshape(shape)
    return tensors


class Engine:
    """An engine as it was recorded, with published files of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        from safetensors.torch import save_file

        recording = RECORDINGS[name]
        self.published = noise(recording)
        save_file(self.published, folder / "model.safetensors")
        self.files = TensorFiles(open_folder(folder))
        self.states: Sequence[dict[str, Any]] = recording.states(self.published)

    def live(self) -> LiveTensors:
        return LiveTensors(self.files.infos, self.states, derived=(*DERIVED, *loaded.SCALES))

    def is_walked_as_published(self) -> bool:
        return walk(self.live()) == walk(self.files)

    def differing(self) -> set[str]:
        """The published tensors whose bytes are not those of the files."""
        pairs = zip(self.live(), self.files, strict=True)
        return {file.name for live, file in pairs if joined(live) != joined(file)}

    def tensor(self, ending: str, rank: int = 0) -> Any:
        """The one live tensor whose name ends so."""
        (found,) = [tensor for name, tensor in self.states[rank].items() if name.endswith(ending)]
        return found


def walk(tensors: Any) -> list[bytes]:
    return possession.walk(tensors, WORDS, 1, kernel())


def joined(tensor: Any) -> bytes:
    return b"".join(bytes(chunk.tobytes()) for chunk in tensor.chunks())


@pytest.mark.parametrize("name", WALKED)
def test_what_a_library_has_loaded_is_walked_as_published(name, tmp_path):
    """
    LoRA-enabled vLLM, mixtures of experts, transformers 5's Mixtral, Qwen3-MoE, GPT-NeoX: refused before.

    The real library has put each byte where the recording says; the walk is that of the files.
    """
    engine = Engine(name, tmp_path)
    confirm(engine.live(), engine.files)
    assert engine.is_walked_as_published()


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_library_has_reordered_is_refused_by_name(name, tmp_path):
    """No rule brings it back, and so it is not walked wrongly in its operator's name either."""
    engine = Engine(name, tmp_path)
    refused = str(RECORDINGS[name].refused)
    with pytest.raises(EngineError) as error:
        confirm(engine.live(), engine.files)
    assert str(error.value) == refused


def test_there_are_recordings_of_at_least_eight_architectures_of_each_library():
    """Hand-made listings said what documentation says."""
    for library in ("transformers", "vllm"):
        assert len({r.architecture for r in RECORDINGS.values() if r.library == library}) >= 8


EXPERTS = {
    "transformers-mixtral": "layers.0.mlp.experts.gate_up_proj",
    "transformers-qwen3-moe": "layers.1.mlp.experts.down_proj",
    "vllm-qwen3-moe": "layers.0.mlp.experts.routed_experts.w13_weight",
    "vllm-mixtral": "layers.1.block_sparse_moe.experts.routed_experts.w2_weight",
    "vllm-qwen3-moe-lora": "layers.0.mlp.experts.base_layer.routed_experts.w13_weight",
    "vllm-gpt-oss": "layers.0.mlp.experts.routed_experts.w2_weight",
}


@pytest.mark.parametrize("name", EXPERTS)
def test_an_expert_that_was_swapped_is_walked_so(name, tmp_path):
    """Two experts of one layer have each other's weights: nothing else can tell them apart."""
    engine = Engine(name, tmp_path)
    stack = engine.tensor(EXPERTS[name])
    stack[[0, 1]] = stack[[1, 0]].clone()
    assert not engine.is_walked_as_published()
    with pytest.raises(EngineError, match=r"experts.*: loaded with other bytes than published"):
        confirm(engine.live(), engine.files)


@pytest.mark.parametrize("name", EXPERTS)
def test_one_bit_of_one_expert_is_walked(name, tmp_path):
    """In the middle of the last expert."""
    engine = Engine(name, tmp_path)
    raw = engine.tensor(EXPERTS[name])[-1].view(torch.uint8)
    raw[raw.shape[0] // 2, 3] ^= 1
    assert len(engine.differing()) == 1
    assert not engine.is_walked_as_published()


def test_one_bit_of_an_expert_on_one_rank_is_walked(tmp_path):
    """Each rank has half of every expert; the other rank's half is as published."""
    engine = Engine("vllm-qwen3-moe-tp2", tmp_path)
    engine.tensor("layers.1.mlp.experts.routed_experts.w13_weight", rank=1)[2].view(torch.uint8)[0, 0] ^= 1
    assert engine.differing() == {"model.layers.1.mlp.experts.2.gate_proj.weight"}


def test_one_bit_of_an_expert_that_only_one_rank_has_is_walked(tmp_path):
    """Each rank has half of the experts."""
    engine = Engine("vllm-mixtral-ep2", tmp_path)
    engine.tensor("layers.0.block_sparse_moe.experts.routed_experts.w2_weight", rank=1)[1].view(torch.uint8)[
        5, 0
    ] ^= 1
    assert engine.differing() == {"model.layers.0.block_sparse_moe.experts.3.w2.weight"}


def test_experts_whose_places_the_ranks_exchanged_are_found_by_the_map(tmp_path):
    """Engines may place experts otherwise than in order: the rank's own map says which it has."""
    engine = Engine("vllm-mixtral-ep2", tmp_path)
    base = "layers.0.block_sparse_moe.experts.routed_experts."
    for suffix in ("w13_weight", "w2_weight"):
        one, other = (engine.tensor(base + suffix, rank=rank) for rank in (0, 1))
        kept = one[1].clone()
        one[1] = other[0]
        other[0] = kept
    engine.tensor(base + "_expert_map", rank=0)[:] = torch.tensor([0, -1, 1, -1])
    engine.tensor(base + "_expert_map", rank=1)[:] = torch.tensor([-1, 0, -1, 1])
    assert engine.is_walked_as_published()


def test_an_expert_that_no_rank_has_is_refused(tmp_path):
    """It is published, so it must be somewhere."""
    engine = Engine("vllm-mixtral-ep2", tmp_path)
    engine.tensor("layers.0.block_sparse_moe.experts.routed_experts._expert_map", rank=1)[:] = -1
    with pytest.raises(EngineError, match=r"experts\.2\..*: no rank has this expert"):
        engine.live()


def test_ranks_without_the_last_experts_are_refused(tmp_path):
    """Three of four experts are no mixture of four."""
    engine = Engine("vllm-mixtral", tmp_path)
    (name,) = [
        name
        for name in engine.states[0]
        if name.endswith("layers.0.block_sparse_moe.experts.routed_experts.w2_weight")
    ]
    engine.states[0][name] = engine.states[0][name][:3]
    with pytest.raises(EngineError, match=r"\[3\] experts on the ranks, published are 4"):
        engine.live()


def test_an_adapter_that_is_loaded_is_refused_by_name(tmp_path):
    """The LoRA weights of vLLM are in no state dict; recorded with a real adapter."""
    assert "an adapter is loaded" in str(RECORDINGS["vllm-llama-adapter"].refused)
    engine = Engine("vllm-llama-adapter", tmp_path)
    with pytest.raises(EngineError, match=r"an adapter is loaded: '.*o_proj\.lora_.*' is not zero"):
        engine.live()


def test_room_for_adapters_is_let_be_only_while_it_is_zero(tmp_path):
    """One number in one slot of one layer changes what is answered."""
    engine = Engine("vllm-qwen3-moe-lora", tmp_path)
    assert engine.is_walked_as_published()
    engine.tensor("layers.1.self_attn.o_proj.lora_b_stacked.0").view(-1)[7] = 1e-30
    with pytest.raises(
        EngineError, match=r"an adapter is loaded: '.*layers\.1\.self_attn\.o_proj\.lora_b_stacked\.0'"
    ):
        engine.live()


TURNED = {
    "vllm-gpt2": "h.0.attn.c_proj.weight",
    "vllm-gpt-oss": "layers.1.mlp.experts.routed_experts.w2_weight",
    "vllm-llama": "layers.0.self_attn.o_proj.weight",
    "transformers-gpt2": "h.1.attn.c_proj.weight",
    "transformers-qwen3-moe": "layers.0.mlp.experts.down_proj",
}


@pytest.mark.parametrize("name", TURNED)
def test_a_weight_that_was_transposed_is_not_walked_as_published(name, tmp_path):
    """A square matrix has the same shape when it is turned: nothing but its bytes shows it."""
    engine = Engine(name, tmp_path)
    weight = engine.tensor(TURNED[name])
    if weight.shape[-1] != weight.shape[-2]:
        (full,) = [key for key in engine.states[0] if key.endswith(TURNED[name])]
        engine.states[0][full] = weight.transpose(-1, -2).contiguous()
        with pytest.raises(EngineError, match=r"published as|other bytes"):
            confirm(engine.live(), engine.files)
    else:
        weight.copy_(weight.transpose(-1, -2).clone())
        assert not engine.is_walked_as_published()
        with pytest.raises(EngineError, match="loaded with other bytes than published"):
            confirm(engine.live(), engine.files)


def test_gate_and_up_of_an_expert_in_the_other_order_are_told_before_a_call(tmp_path):
    """Some of vLLM's kernels want the up matrix first; no name and no shape says so."""
    engine = Engine("vllm-qwen3-moe", tmp_path)
    stack = engine.tensor("layers.0.mlp.experts.routed_experts.w13_weight")
    half = stack.shape[1] // 2
    stack.copy_(torch.cat([stack[:, half:], stack[:, :half]], dim=1))
    with pytest.raises(
        EngineError, match=r"experts\.0\.gate_proj\.weight: loaded with other bytes than published"
    ):
        confirm(engine.live(), engine.files)


def test_an_expert_is_walked_where_it_lies(tmp_path):
    """A stack of experts is not copied: the engine's memory is not needed twice."""
    engine = Engine("vllm-mixtral", tmp_path)
    stack = engine.tensor("layers.0.block_sparse_moe.experts.routed_experts.w13_weight")
    begin, end = stack.data_ptr(), stack.data_ptr() + stack.numel() * stack.element_size()
    for tensor in engine.live():
        if "layers.0.block_sparse_moe.experts" in tensor.name and ".w2." not in tensor.name:
            (chunk,) = tensor.chunks()
            assert begin <= chunk.ctypes.data < end


class Layer(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch may be without types
    """A layer as vLLM wraps it, with room for an adapter in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = torch.nn.Linear(3, 3, bias=False)
        self.lora_b_stacked = (torch.zeros(1, 3, 2), torch.zeros(1, 3, 2))
        self.register_buffer("_expert_map", torch.tensor([0, -1]), persistent=False)


def test_the_weights_of_adapters_are_part_of_the_state():
    """A state dict alone would not show them."""
    module = torch.nn.ModuleDict({"layer": Layer()})
    assert set(state_of(module)) == {
        "layer.base_layer.weight", "layer.lora_b_stacked.0", "layer.lora_b_stacked.1", "layer._expert_map",
    }  # fmt: skip
