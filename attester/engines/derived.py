"""
Tensors that an engine adds to those it loads, and what each of them may be.

An engine registers tensors that no published file has.  Some are computed from ``config.json`` and
from nothing else.  Others are factors in the arithmetic: with another value, the same weights give
other answers, so such a tensor is accepted only with the value that the publication gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from attester.engines.module_state import EXPERT_MAP
from attester.errors import EngineError
from attester.weights.layout import TensorInfo
from attester.weights.tensors import FileTensor, Tensor


@dataclass(frozen=True)
class Derived:
    """A tensor that engines add, known by the last segment of its name."""

    last: str
    why: str
    """Why the module has it although no file has it."""
    value: float | None = None
    """The value it must have where the checkpoint publishes none; `None` if its values are not compared."""
    published: tuple[str, ...] = ()
    """Last segments of the names under which a checkpoint publishes a value of its own for it."""


TABLE: Final = (
    Derived("position_ids", "The numbers 0, 1, 2 …: an index of positions, made from the longest length."),
    Derived("token_type_ids", "Zeros, the type of a text without a second part."),
    Derived(
        "inv_freq", "Frequencies of rotary positions, computed from config.json when the module is made."
    ),
    Derived("cos_sin_cache", "Sines of the same frequencies for every position up to the longest length."),
    Derived("masked_bias", "The number that hides later tokens, a constant of old GPT code."),
    Derived(
        EXPERT_MAP, "Where each expert is on this rank; a wrong map finds other experts than were published."
    ),
    Derived(
        "_k_scale",
        "The scale of keys in a quantised cache. Attention divides and multiplies by it.",
        1.0,
        ("k_scale", "kv_scale"),
    ),
    Derived(
        "_v_scale",
        "The scale of values in a quantised cache. A checkpoint with one scale for both names it kv_scale or k_scale.",
        1.0,
        ("v_scale", "kv_scale", "k_scale"),
    ),
    Derived("_q_scale", "The scale of queries where attention itself runs in fp8.", 1.0, ("q_scale",)),
    Derived(
        "_prob_scale", "The scale of probabilities where attention itself runs in fp8.", 1.0, ("prob_scale",)
    ),
)
"""What engines derive.  Those with a value are compared with it at each walk."""

DERIVED: Final = tuple(row.last for row in TABLE if row.value is None)
"""Last segments of the names of buffers that engines compute and nobody publishes."""

_FACTORS: Final[Mapping[str, Derived]] = {row.last: row for row in TABLE if row.value is not None}
_PUBLISHED: Final = frozenset(name for row in TABLE for name in row.published)
_NUMBERS: Final[Mapping[str, str]] = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_MOST_BYTES: Final = 8
"""A scale is one number."""

Scales = Mapping[str, Tensor]
"""Published scales, by name."""


def last_of(name: str) -> str:
    """The last segment of a name."""
    return name.rpartition(".")[2]


def is_factor(name: str) -> bool:
    """Whether the tensor of this name is accepted only with a certain value."""
    return last_of(name) in _FACTORS


def published_scales(tensors: Sequence[FileTensor]) -> dict[str, Tensor]:
    """
    The scales of its own that a checkpoint has for its attention layers, with their bytes.

    Raises:
        WeightsError: a file cannot be read.
    """
    found = [t for t in tensors if last_of(t.name) in _PUBLISHED and 0 < t.size <= _MOST_BYTES]
    return {t.name: Tensor(t.name, t.data) for t in found if _owner(t.name) is not None}


def takes_in(name: str, prefix: str, state: Mapping[str, Any]) -> bool:
    """
    Whether the module has taken in the published scale *name* as the value of a tensor that it derived.

    Then the number itself is compared (`check_factors`), and the published bytes are those of the file.
    """
    owner = _owner(name)
    if owner is None or prefix + name in state:
        return False
    return any(
        is_factor(live)
        and live.startswith(prefix + owner)
        and last_of(name) in _FACTORS[last_of(live)].published
        for live in state
    )


def check_factors(
    state: Mapping[str, Any], names: Sequence[str], published: Sequence[TensorInfo], scales: Scales
) -> None:
    """
    Compare the factors *names* of *state* with what the publication makes them.

    Raises:
        EngineError: one has another value, or is not one number.
    """
    import torch

    dtypes = {info.name: info.dtype for info in published}
    for name in names:
        if state[name].numel() != 1 or not state[name].is_floating_point():
            raise EngineError(f"{name[:120]!r} has {state[name].numel()} values, and a scale has one")
    if not names:
        return
    # One copy from the device for all of them: each alone would wait for the engine's work.
    values = torch.cat([state[name].detach().reshape(1).to(torch.float64) for name in names]).tolist()
    for name, value in zip(names, values, strict=True):
        allowed = _allowed(name, scales, dtypes)
        if value not in allowed:
            raise EngineError(
                f"{name[:120]!r} is {value:g}, and the published configuration makes it "
                f"{' or '.join(f'{each:g}' for each in sorted(allowed))}: with another scale the same "
                "weights give other answers"
            )


def check_freed(info: TensorInfo, tensor: Any) -> None:
    """
    Tell of a parameter whose memory the engine has freed.

    Raises:
        EngineError: the tensor has no values, although its publication has some.
    """
    if tensor.numel() == 0 and info.size:
        raise EngineError(
            f"{info.name[:120]}: loaded as {tuple(tensor.shape)}, published as {info.shape}. The engine has packed "
            "this weight into a form of its own and freed the plain one, as vLLM does on a CPU (oneDNN), so "
            "its published bytes are no longer in memory. Use the adapter files"
        )


def _owner(name: str) -> str | None:
    """The attention layer that a published scale belongs to: ``layers.0.self_attn.`` of ``….k_proj.k_scale``."""
    parts = name.split(".")[:-1]
    while parts and parts[-1] in {"k_proj", "v_proj", "q_proj", "qkv_proj", "attn"}:
        parts.pop()
    return ".".join(parts) + "." if parts else None


def _allowed(name: str, scales: Scales, dtypes: Mapping[str, str]) -> set[float]:
    row = _FACTORS[last_of(name)]
    found = {
        number
        for published, tensor in scales.items()
        if last_of(published) in row.published
        and (_owner(published) or "?") in name
        and (number := _number(tensor, dtypes.get(published, ""))) is not None
    }
    # A cache that is not quantised uses no scale, and engines then keep 1 whatever is published.
    return found | ({row.value} if row.value is not None else set())


def _number(tensor: Tensor, dtype: str) -> float | None:
    data = tensor.data.tobytes()
    if dtype == "BF16" and len(data) == 2:
        return float(np.frombuffer(b"\0\0" + data, "<f4")[0])
    if dtype not in _NUMBERS or len(data) != np.dtype(_NUMBERS[dtype]).itemsize:
        return None
    return float(np.frombuffer(data, _NUMBERS[dtype])[0])
