"""
The published names of a transformers model's tensors, by the conversions that the library made when it loaded them.

transformers 5 renames and splits what checkpoints have, by a table for each architecture, and can revert
it to save a model.  The reversal is tried here on twins without memory.  What comes out of it as a view is
a view of the real tensor; what it would copy keeps its own name, and is left to `layouts`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

Revert = Callable[[Any, dict[str, Any]], Mapping[str, Any]]
"""A module and its state dict to tensors by their published names."""


def reversal_of(module: Any) -> Revert | None:
    """How the library that loaded *module* would revert its conversions; `None` if it made none."""
    if not getattr(module, "_weight_conversions", None):
        return None
    if importlib.util.find_spec("transformers") is None:
        return None
    loading: Any = importlib.import_module("transformers.core_model_loading")
    revert: Revert = loading.revert_weight_conversion
    return revert


def reverted(module: Any, state: Mapping[str, Any], revert: Revert) -> dict[str, Any]:
    """
    The state by published names, as far as that needs no copy.

    Args:
        state: The module's state dict.
        revert: The library's reversal.
    """
    import torch

    twins = {
        name: torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        for name, tensor in state.items()
    }
    originals = {_memory(twin): name for name, twin in twins.items()}
    found: dict[str, Any] = {}
    elements = dict.fromkeys(state, 0)
    for name, twin in revert(module, dict(twins)).items():
        original = originals.get(_memory(twin))
        if original is None:
            continue
        tensor = state[original]
        offset = tensor.storage_offset() + twin.storage_offset()
        found[name] = tensor.detach().as_strided(twin.shape, twin.stride(), offset)
        elements[original] += twin.numel()
    # What is not wholly among the views stays, so that nothing is lost from sight.
    return found | {name: state[name] for name, count in elements.items() if count != state[name].numel()}


def _memory(twin: Any) -> int:
    """Equal for views of one twin: tensors without memory have no address."""
    memory: int = twin.untyped_storage()._cdata  # noqa: SLF001  # torch has no other name of it
    return memory
