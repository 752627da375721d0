"""How many bytes of weights a token reads at least."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from touchstone import main
from verifier.errors import ReferenceValueError
from verifier.references.active import active_bytes

DENSE = [
    ("model.embed_tokens.weight", 1000), ("model.layers.0.self_attn.q_proj.weight", 10),
    ("model.layers.1.mlp.up_proj.weight", 20), ("model.norm.weight", 1), ("lm_head.weight", 500),
]  # fmt: skip
EXPERTS = [
    *DENSE, ("model.layers.0.mlp.experts.0.w1", 400), ("model.layers.0.mlp.experts.1.w1", 400),
]  # fmt: skip
SENT = {"num_hidden_layers": 2, "num_local_experts": 8, "num_experts_per_tok": 2}


def test_layers_and_output_are_read_and_embeddings_looked_up() -> None:
    """Of a dense model with an output of its own."""
    assert active_bytes(DENSE, {"num_hidden_layers": 2}) == 530


def test_tied_embeddings_are_the_output() -> None:
    """They are multiplied by."""
    assert active_bytes(DENSE[:-1], {"num_hidden_layers": 2}) == 1030


def test_experts_count_by_the_share_that_a_token_is_sent_to() -> None:
    """Two of eight."""
    assert active_bytes(EXPERTS, SENT) == 530 + 200
    assert active_bytes(EXPERTS, {"text_config": SENT}) == 530 + 200


@pytest.mark.parametrize(
    "config", [{}, {"num_local_experts": 8}, {"num_local_experts": 2, "num_experts_per_tok": 3}]
)
def test_experts_of_which_nothing_is_said_are_refused(config: dict) -> None:
    """A guess would accuse."""
    with pytest.raises(ReferenceValueError, match="experts"):
        active_bytes(EXPERTS, config)


def test_what_may_not_be_used_is_left_out() -> None:
    """Images, drafting heads, and layers beyond those of the model."""
    more = [
        *DENSE, ("model.visual.layers.0.w", 7000), ("mtp.layers.0.w", 7000), ("model.layers.2.extra.weight", 7000),
    ]  # fmt: skip
    assert active_bytes(more, {"num_hidden_layers": 2}) == 530


def test_names_of_gguf_are_known() -> None:
    """blk.N, token_embd, output."""
    tensors = [("token_embd.weight", 100), ("blk.0.attn_q.weight", 10), ("output.weight", 50)]
    assert active_bytes(tensors, {}) == 60


def test_files_without_layers_are_refused() -> None:
    """Under names that nobody knows."""
    with pytest.raises(ReferenceValueError, match="layers"):
        active_bytes([("something.weight", 10)], {})


def test_the_command_says_what_to_write(tmp_path: Path) -> None:
    """Into the policy's data."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"model.layers.0.w.weight": np.zeros((4, 8), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"num_hidden_layers": 1}')
    result = CliRunner().invoke(main, ["reference", "active", "example/tiny", str(folder)])
    assert result.exit_code == 0, result.output
    assert '"active_bytes":{"example/tiny":128}' in result.output
