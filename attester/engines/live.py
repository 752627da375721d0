"""
The tensors of a live torch module, brought back to the layout they were published in.

Engines fuse, shard and pad what they load.  A small table says how; everything else is
told by the shapes.  What cannot be brought back byte for byte (weights that were cast or
quantised while loading) is refused: such an engine needs a reference value of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from attester.errors import EngineError
from attester.weights.layout import TensorInfo


@dataclass(frozen=True)
class Fusion:
    """Published parameters whose rows an engine stacks into one."""

    fused: str
    parts: tuple[str, ...]


FUSIONS: Final = (
    Fusion("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    Fusion("gate_up_proj", ("gate_proj", "up_proj")),
    Fusion("qkv_proj", ("query", "key", "value")),
    Fusion("qkv", ("query", "key", "value")),
    Fusion("qkv", ("q_proj", "k_proj", "v_proj")),
    Fusion("c_attn", ("q_attn", "k_attn", "v_attn")),
)
"""Segments of a parameter's name: ``layers.0.self_attn.q_proj.weight`` is rows of ``….qkv_proj.weight``."""

TIES: Final = (
    ("lm_head.weight", "model.embed_tokens.weight"),
    ("lm_head.weight", "transformer.wte.weight"),
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
)
"""Parameters of one storage: either name may stand for both."""

DERIVED: Final = ("position_ids", "token_type_ids", "inv_freq", "cos_sin_cache", "masked_bias")
"""Last segments of buffers that engines make themselves and nobody publishes."""

_VOCABULARIES: Final = ("embed", "lm_head", "wte", "decoder")
"""In the names of parameters with a row for each token: the only ones that engines pad."""

_DTYPES: Final[Mapping[str, str]] = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "uint16": "U16", "uint32": "U32", "uint64": "U64", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
"""Torch's types by the names of safetensors."""

State = Mapping[str, Any]
"""A state dict: names to torch tensors."""


@dataclass(frozen=True)
class _Place:
    """Where a published tensor's rows stand: in which live one, from which of its rows on, of how many."""

    name: str
    start: int = 0
    rows: int | None = None
    """Rows of the whole fused tensor as published; `None` where it is not fused."""


@dataclass(frozen=True)
class LiveTensor:
    """A published tensor, read from the live module when it is walked."""

    info: TensorInfo
    place: _Place
    states: Sequence[State]

    @property
    def name(self) -> str:
        """As `Source.name`."""
        return self.info.name

    @property
    def size(self) -> int:
        """As `Source.size`."""
        return self.info.size

    def chunks(self) -> Iterator[Any]:
        """As `Source.chunks`: one view, or one copy where columns or parts must be put together."""
        data = _bytes_of(self.info, self.place, self.states)
        yield data.numpy() if data.device.type == "cpu" else data


class LiveTensors:
    """
    A live module's tensors in walking order, in their published layout.

    Args:
        published: The tensors of the published files.
        states: The module's state dict; those of all ranks, in order, where it is sharded.
        prefix: What the module's names have before the published ones.
        derived: Last segments of names that need not be published.

    Raises:
        EngineError: the module lacks a published tensor, holds one that was not published,
            or has one in another type or shape.
    """

    def __init__(
        self,
        published: Sequence[TensorInfo],
        states: Sequence[State],
        *,
        prefix: str = "",
        derived: Collection[str] = DERIVED,
    ) -> None:
        infos = {info.name: info for info in published}
        _check_states(states)
        first = states[0]
        self._tensors = []
        for info in sorted(published, key=lambda info: info.name.encode()):
            place = _find(info, infos, first, prefix)
            tensor = LiveTensor(info, place, states)
            # Now, not when a call comes: what does not fit is for the operator to hear.
            for state in states:
                _check_dtype(info, state[place.name])
            if _bytes_of(info, place, states).numel() != info.size:
                raise EngineError(f"{info.name}: the module has another number of bytes of it")
            self._tensors.append(tensor)
        for state in states:
            _check_rest(state, {tensor.place.name for tensor in self._tensors}, derived)

    def __iter__(self) -> Iterator[LiveTensor]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _find(info: TensorInfo, infos: Mapping[str, TensorInfo], state: State, prefix: str) -> _Place:
    if prefix + info.name in state:
        return _Place(prefix + info.name)
    segments = info.name.split(".")
    for fusion in FUSIONS:
        for number, segment in enumerate(segments):
            if segment not in fusion.parts:
                continue

            def named(part: str, number: int = number) -> str:
                return ".".join([*segments[:number], part, *segments[number + 1 :]])

            if prefix + named(fusion.fused) not in state:
                continue
            siblings = [infos.get(named(part)) for part in fusion.parts]
            rows = [sibling.shape[0] for sibling in siblings if sibling is not None and sibling.shape]
            if len(rows) == len(fusion.parts):
                before = fusion.parts.index(segment)
                return _Place(prefix + named(fusion.fused), sum(rows[:before]), sum(rows))
    for one, other in TIES:
        for name, tied in ((one, other), (other, one)):
            if info.name == name and prefix + tied in state:
                return _Place(prefix + tied)
    raise EngineError(f"the module has no {info.name[:120]!r}, which the published files have")


def _check_dtype(info: TensorInfo, tensor: Any) -> None:
    dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."), str(tensor.dtype))
    if dtype != info.dtype:
        raise EngineError(
            f"{info.name[:120]}: loaded as {dtype}, published as {info.dtype}; weights that are cast or "
            "quantised while loading need a reference value of their own"
        )


def _check_states(states: Sequence[State]) -> None:
    import torch

    if not states:
        raise EngineError("there is no state dict")
    for state in states:
        if state.keys() != states[0].keys():
            differ = sorted(state.keys() ^ states[0].keys())
            raise EngineError(f"{differ[0][:120]!r} is not on every rank")
        for name, tensor in state.items():
            if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided or tensor.is_conj():
                raise EngineError(f"{name[:120]!r} is no plain tensor, so its bytes cannot be walked")


def _check_rest(state: State, used: set[str], derived: Collection[str]) -> None:
    kept = {_identity(state[name]) for name in used}
    for name, tensor in state.items():
        if name in used or name.rpartition(".")[2] in derived or tensor.numel() == 0:
            continue
        if _identity(tensor) not in kept:
            raise EngineError(
                f"the module holds {name[:120]!r}, which the published files have not (an adapter?)"
            )


def _identity(tensor: Any) -> tuple[int, int, str]:
    """The same for two names of one parameter, and for nothing else."""
    return tensor.data_ptr(), tensor.numel(), str(tensor.dtype)


def _bytes_of(info: TensorInfo, place: _Place, states: Sequence[State]) -> Any:
    """The published bytes, one-dimensional int8; a view where the layout allows."""
    parts = [state[place.name].detach() for state in states]
    whole = _unsharded(info, parts) if place.rows is None else _unfused(info, place, parts)
    return _raw(whole)


def _unsharded(info: TensorInfo, parts: Sequence[Any]) -> Any:
    import torch

    shape = tuple(parts[0].shape)
    if any(tuple(part.shape) != shape for part in parts):
        raise EngineError(f"{info.name[:120]}: the ranks have unequal shares of it")
    if shape == info.shape and _are_copies(parts):
        return parts[0]
    if len(shape) == len(info.shape) > 0 and shape[1:] == info.shape[1:]:
        whole = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        # Vocabularies are rounded up by rows of zeros; rows that hold anything are not padding.
        rows = info.shape[0]
        vocabulary = any(part in info.name for part in _VOCABULARIES)
        padded = vocabulary and whole.shape[0] > rows and not _raw(whole[rows:]).count_nonzero()
        if whole.shape[0] == rows or padded:
            return whole[:rows]
    if shape == info.shape:
        raise EngineError(f"{info.name[:120]}: the ranks have different copies of it")
    if len(shape) == len(info.shape) > 1 and shape[0] == info.shape[0]:
        whole = torch.cat(list(parts), dim=1)
        if tuple(whole.shape) == info.shape:
            return whole
    raise EngineError(f"{info.name[:120]}: loaded as {shape}, published as {info.shape}")


def _are_copies(parts: Sequence[Any]) -> bool:
    import torch

    # Their bytes: as numbers, no NaN equals itself.
    first = _raw(parts[0])
    return all(torch.equal(_raw(part), first) for part in parts[1:])


def _raw(tensor: Any) -> Any:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.int8)


def _unfused(info: TensorInfo, place: _Place, parts: Sequence[Any]) -> Any:
    import torch

    rows, whole = parts[0].shape[0], place.rows or 0
    if rows == whole:
        if not _are_copies(parts):
            raise EngineError(f"{info.name[:120]}: the ranks have different copies of it")
        return parts[0][place.start : place.start + info.shape[0]]
    # Each rank has its share of each part, stacked.
    if rows * len(parts) != whole or place.start % len(parts) or info.shape[0] % len(parts):
        raise EngineError(
            f"{info.name[:120]}: fused into {rows} rows of {len(parts)} ranks, published {whole}"
        )
    start, count = place.start // len(parts), info.shape[0] // len(parts)
    return torch.cat([part[start : start + count] for part in parts])
