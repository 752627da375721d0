"""What a live module holds: its state dict, and what no state dict has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from attester.engines.published_names import reversal_of, reverted

ADAPTER: Final = re.compile(r"(?:^|[._])lora_|(?:^|\.)full_(?:weight|bias)_stacked")
"""
Attributes and tensors of low-rank adapters.

vLLM keeps room for adapters in plain attributes of its layers (``lora_a_stacked``,
``w13_lora_b_stacked``, ``full_weight_stacked``), PEFT in parameters (``lora_A.default.weight``).
"""

EXPERT_MAP: Final = "_expert_map"
"""vLLM's buffer that says where each expert is in this rank's stack, −1 where it is not; in no state dict."""


def state_of(module: Any) -> Mapping[str, Any]:
    """
    The state dict of a torch module, with what is needed to read it and is not in it.

    These are the weights of adapters in attributes that are no parameters, without which an adapter that is
    loaded into vLLM would not be seen, and the places of experts that are spread over ranks.
    """
    maps = {name: each for name, each in module.named_buffers() if name.rpartition(".")[2] == EXPERT_MAP}
    state = dict(module.state_dict())
    if (revert := reversal_of(module)) is not None:
        state = reverted(module, state, revert)
    state |= maps
    for path, layer in module.named_modules():
        for attribute, value in vars(layer).items():
            if ADAPTER.search(attribute):
                state |= dict(_tensors(f"{path}.{attribute}" if path else attribute, value))
    return state


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (tuple, list)):
        for number, each in enumerate(value):
            yield from _tensors(f"{name}.{number}", each)
