"""A small model as tensor- and pipeline-parallel engines split it, and processes that hold the parts."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

Work = Callable[[int, Path], Any]
JOIN_S = 60


def model(layers: int = 2, kv_heads: int = 2, *, tied: bool = False) -> dict[str, Any]:
    """A llama with 4 heads of 16 and a vocabulary of 100, as published."""
    import torch

    drawn = torch.Generator().manual_seed(7)

    def noise(*shape: int) -> Any:
        return torch.randn(shape, generator=drawn, dtype=torch.bfloat16)

    tensors = {"model.embed_tokens.weight": noise(100, 64), "model.norm.weight": noise(64)}
    if not tied:
        tensors["lm_head.weight"] = noise(100, 64)
    for number in range(layers):
        layer = f"model.layers.{number}"
        tensors |= {
            f"{layer}.self_attn.q_proj.weight": noise(64, 64),
            f"{layer}.self_attn.k_proj.weight": noise(16 * kv_heads, 64),
            f"{layer}.self_attn.v_proj.weight": noise(16 * kv_heads, 64),
            f"{layer}.self_attn.q_proj.bias": noise(64),
            f"{layer}.self_attn.k_proj.bias": noise(16 * kv_heads),
            f"{layer}.self_attn.v_proj.bias": noise(16 * kv_heads),
            f"{layer}.self_attn.o_proj.weight": noise(64, 64),
            f"{layer}.mlp.gate_proj.weight": noise(128, 64),
            f"{layer}.mlp.up_proj.weight": noise(128, 64),
            f"{layer}.mlp.down_proj.weight": noise(64, 128),
            f"{layer}.input_layernorm.weight": noise(64),
        }
    return tensors


def split(published: dict[str, Any], rank: int, shards: int, stages: int = 1) -> dict[str, Any]:
    """What *rank* has loaded, as vLLM splits, fuses and pads it."""
    import torch

    stage, shard = divmod(rank, shards)
    layers = sorted({name.split(".")[2] for name in published if ".layers." in name}, key=int)
    mine = layers[stage * len(layers) // stages : (stage + 1) * len(layers) // stages]
    state: dict[str, Any] = {}

    def rows(name: str, copies: int = 1) -> Any:
        return published[name].chunk(shards // copies)[shard // copies]

    def vocabulary(name: str) -> Any:
        padded = torch.cat([published[name], torch.zeros(28, 64, dtype=torch.bfloat16)])
        return padded.chunk(shards)[shard].clone()

    is_tied = "lm_head.weight" not in published
    if stage == 0 or (is_tied and stage == stages - 1):
        state["model.embed_tokens.weight"] = vocabulary("model.embed_tokens.weight")
    for number in mine:
        layer = f"model.layers.{number}"
        copies = max(shards * 16 // published[f"{layer}.self_attn.k_proj.weight"].shape[0], 1)
        for kind in ("weight", "bias"):
            parts = [
                rows(f"{layer}.self_attn.{part}_proj.{kind}", 1 if part == "q" else copies) for part in "qkv"
            ]
            state[f"{layer}.self_attn.qkv_proj.{kind}"] = torch.cat(parts)
        for last in ("_k_scale", "_v_scale", "_q_scale", "_prob_scale"):
            state[f"{layer}.self_attn.attn.{last}"] = torch.tensor(1.0)
        state[f"{layer}.self_attn.o_proj.weight"] = (
            published[f"{layer}.self_attn.o_proj.weight"].chunk(shards, dim=1)[shard].contiguous()
        )
        gate_up = [rows(f"{layer}.mlp.{part}_proj.weight") for part in ("gate", "up")]
        state[f"{layer}.mlp.gate_up_proj.weight"] = torch.cat(gate_up)
        down = published[f"{layer}.mlp.down_proj.weight"].chunk(shards, dim=1)[shard]
        state[f"{layer}.mlp.down_proj.weight"] = down.contiguous()
        state[f"{layer}.input_layernorm.weight"] = published[f"{layer}.input_layernorm.weight"].clone()
    if stage == stages - 1:
        state["model.norm.weight"] = published["model.norm.weight"].clone()
        state["lm_head.weight"] = (
            state["model.embed_tokens.weight"] if is_tied else vocabulary("lm_head.weight")
        )
    return state


def _run(work: Work, rank: int, size: int, folder: Path, results: Any) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    try:
        store = distributed.FileStore(str(folder / "store"), size)
        distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=JOIN_S)
        )
        results.put((rank, work(rank, folder)))
    except BaseException:
        results.put((rank, {"raised": traceback.format_exc()}))
        raise


def run_ranks(work: Work, size: int, folder: Path) -> list[Any]:
    """Run *work* in *size* real processes that talk over gloo; returns what each has returned, by rank."""
    # Forked: torch is imported once, and not by each process again.
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=_run, args=(work, rank, size, folder, results), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(results.get(timeout=JOIN_S) for _ in processes)
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    raised = [each["raised"] for each in found.values() if isinstance(each, dict) and "raised" in each]
    assert not raised, "\n".join(raised)
    return [found[rank] for rank in range(size)]
