"""
The tensors of a live module as they are: other bytes than the files, where loading cast or repacked them.

What they must be, nobody has published.  The reference is an engine of the same build that is trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from attester.engines.derived import DERIVED, last_of
from attester.engines.joined import State, Whole
from attester.engines.module_state import EXPERT_MAP
from attester.errors import EngineError
from attester.weights.tensors import Source, Tensor

_LEFT_OUT: Final = frozenset(DERIVED) - {EXPERT_MAP}
"""Their sizes follow settings such as the longest length, and they say nothing of weights.  A map of experts does."""
_MAY_BE_EMPTY: Final = ("g_idx", "sort_indices", "zeros", "zp", "zero_point")
"""Ends of the names of tensors that an engine leaves empty because its model has none: orders, and zero points."""


class AsLoaded:
    """
    All tensors of a live module under their own names, for a reference value of this build of the engine.

    The walk begins with a listing of names, types and shapes, as deterministic JSON: the same bytes under
    another name, type or shape are another walk.  The tensors follow in the order of the UTF-8 bytes of their
    names, rank by rank, each in the order of its elements, whatever its strides.

    Args:
        state: What `module_state.state_of` gives; of a sharded module, that of each rank in order.

    Raises:
        EngineError: a tensor's memory was freed, or it is no plain tensor: its bytes could not be walked.
    """

    def __init__(self, state: State | Sequence[State]) -> None:
        states = [state] if isinstance(state, Mapping) else list(state)
        listed: list[tuple[int, str, str, tuple[int, ...]]] = []
        self._tensors: list[_Loaded] = []
        for rank, each in enumerate(states):
            for name in sorted(each, key=str.encode):
                if last_of(name) in _LEFT_OUT:
                    continue
                _check(name, each[name])
                listed.append((rank, name, str(each[name].dtype), tuple(each[name].shape)))
                self._tensors.append(_Loaded(name, each[name].detach()))
        if not any(tensor.size for tensor in self._tensors):
            raise EngineError("the engine has loaded no tensor with any bytes")
        self._listing = Tensor("", np.frombuffer(msgspec.json.encode(listed), np.int8))

    def __iter__(self) -> Iterator[Source]:
        yield self._listing
        yield from self._tensors

    def __len__(self) -> int:
        return 1 + len(self._tensors)


class _Loaded:
    """A tensor as it is loaded."""

    def __init__(self, name: str, tensor: Any) -> None:
        self.name = name
        self.size = int(tensor.numel()) * int(tensor.element_size())
        self._tensor = tensor

    def chunks(self) -> Iterator[Any]:
        """As `Source.chunks`: one view, or copies of blocks if its elements do not lie in order."""
        for data in Whole([self._tensor], 0, tuple(self._tensor.shape)).blocks():
            yield data.numpy() if data.device.type == "cpu" else data


def _check(name: str, tensor: Any) -> None:
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided or tensor.is_conj():
        raise EngineError(f"{name[:120]!r} is not a plain tensor, so its bytes cannot be walked")
    if not tensor.numel() and not last_of(name).endswith(_MAY_BE_EMPTY):
        raise EngineError(
            f"{name[:120]!r} is empty: the engine has packed this weight into a form of its own and freed the plain "
            "one, as vLLM does on a CPU (oneDNN), so no tensor has it. Use the adapter files"
        )
