"""
The tensors of a live torch module, converted back to their published layout.

Engines fuse, shard and pad the tensors that they load.  The tables below say which names they
fuse; the shapes say the rest.  Tensors that cannot be restored byte for byte, because loading
cast or quantised them, are refused: such an engine needs its own reference value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from attester.engines import derived as derivation
from attester.engines.derived import DERIVED, Scales
from attester.errors import EngineError
from attester.weights.layout import TensorInfo
from attester.weights.tensors import Source


@dataclass(frozen=True)
class Fusion:
    """Published parameters that an engine stacks by rows into one parameter."""

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
"""Segments of names: the rows of ``layers.0.self_attn.q_proj.weight`` are in ``….qkv_proj.weight``."""

TIES: Final = (
    ("lm_head.weight", "model.embed_tokens.weight"),
    ("lm_head.weight", "transformer.wte.weight"),
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
)
"""Tied parameters, which share storage: a module may have both under either name."""

_VOCABULARIES: Final = ("embed", "lm_head", "wte", "decoder")
"""Parts of the names of parameters with one row per token: engines pad only these."""

_DTYPES: Final[Mapping[str, str]] = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "uint16": "U16", "uint32": "U32", "uint64": "U64", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
"""The names in safetensors of torch's types."""

State = Mapping[str, Any]
"""A state dict: names to torch tensors."""


@dataclass(frozen=True)
class _Place:
    """Where the rows of a published tensor are: the live tensor, and the first row in it."""

    name: str
    start: int = 0
    rows: int | None = None
    """Rows of the whole fused tensor as published; `None` if the tensor is not fused."""
    shared: int = 0
    """Rows of the whole that ranks may have in copies, if there are more ranks than heads of keys."""


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
        """As `Source.chunks`: one view, or one copy if columns or parts must be joined."""
        data = self.read()
        yield data.numpy() if data.device.type == "cpu" else data

    def read(self) -> Any:
        """The published bytes, one-dimensional int8.  Raises `EngineError` if they are not what was published."""
        data = _bytes_of(self.info, self.place, self.states)
        if data.numel() != self.info.size:
            raise EngineError(f"{self.info.name}: its size in the module differs from the published size")
        return data


class LiveTensors:
    """
    The tensors of a live module in walking order and in their published layout.

    Args:
        published: The tensors of the published files.
        states: The module's state dict; if the module is sharded, the state dicts of all ranks in order.
        prefix: The prefix that the module's names have before the published names.
        derived: Last segments of the names of tensors that need not be published.
        scales: The checkpoint's own scales of attention, from `derived.published_scales`.
        is_deferred: Whether sizes and copies are compared only when a tensor is walked, because reading is dear.

    Raises:
        EngineError: a published tensor is missing or has another type or shape, or the module
            has a tensor that was not published.
    """

    def __init__(
        self,
        published: Sequence[TensorInfo],
        states: Sequence[State],
        *,
        prefix: str = "",
        derived: Collection[str] = DERIVED,
        scales: Scales | None = None,
        is_deferred: bool = False,
    ) -> None:
        infos = {info.name: info for info in published}
        _check_states(states)
        first, used = states[0], set()
        scales = scales or {}
        self._tensors: list[Source] = []
        for info in sorted(published, key=lambda info: info.name.encode()):
            if info.name in scales and derivation.takes_in(info.name, prefix, first):
                self._tensors.append(scales[info.name])
                continue
            place = _find(info, infos, first, prefix)
            tensor = LiveTensor(info, place, states)
            for state in states:
                derivation.check_freed(info, state[place.name])
                _check_dtype(info, state[place.name])
            # Checked now, so that the operator learns of a mismatch before a call comes.
            if not is_deferred:
                tensor.read()
            used.add(place.name)
            self._tensors.append(tensor)
        for state in states:
            factors = _check_rest(state, used, derived)
            derivation.check_factors(state, factors, published, scales)

    def __iter__(self) -> Iterator[Source]:
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
                # Only the second and the third of three parts are keys and values.
                shared = sum(rows[1:]) if len(rows) == 3 else 0
                return _Place(prefix + named(fusion.fused), sum(rows[:before]), sum(rows), shared)
    for one, other in TIES:
        for name, tied in ((one, other), (other, one)):
            if info.name == name and prefix + tied in state:
                return _Place(prefix + tied)
    raise EngineError(f"the module does not have {info.name[:120]!r}, which the published files have")


def _check_dtype(info: TensorInfo, tensor: Any) -> None:
    dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."), str(tensor.dtype))
    if dtype != info.dtype:
        raise EngineError(
            f"{info.name[:120]}: loaded as {dtype}, published as {info.dtype}. Weights that are cast or "
            "quantised while loading need their own reference value"
        )


def _check_states(states: Sequence[State]) -> None:
    import torch

    if not states:
        raise EngineError("there is no state dict")
    for state in states:
        if state.keys() != states[0].keys():
            missing = sorted(state.keys() ^ states[0].keys())
            raise EngineError(f"{missing[0][:120]!r} is not on every rank")
        for name, tensor in state.items():
            if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided or tensor.is_conj():
                raise EngineError(f"{name[:120]!r} is not a plain tensor, so its bytes cannot be walked")


def _check_rest(state: State, used: set[str], derived: Collection[str]) -> list[str]:
    """Refuse what is not published; returns the names of tensors that need a certain value."""
    walked = {_identity(state[name]) for name in used}
    factors = []
    for name, tensor in state.items():
        if name in used or name.rpartition(".")[2] in derived or tensor.numel() == 0:
            continue
        if derivation.is_factor(name):
            factors.append(name)
        elif _identity(tensor) not in walked:
            raise EngineError(
                f"the module has {name[:120]!r}, which the published files do not have. Is an adapter loaded?"
            )
    return factors


def _identity(tensor: Any) -> tuple[int, int, str]:
    """Equal for two names of one parameter, and different for any two other tensors."""
    return tensor.data_ptr(), tensor.numel(), str(tensor.dtype)


def _bytes_of(info: TensorInfo, place: _Place, states: Sequence[State]) -> Any:
    """The published bytes, one-dimensional int8; a view if the layout allows it."""
    parts = [state[place.name].detach() for state in states]
    whole = _unsharded(info, parts) if place.rows is None else _unfused(info, place, parts)
    return _raw(whole)


def _unsharded(info: TensorInfo, parts: Sequence[Any]) -> Any:
    import torch

    shape = tuple(parts[0].shape)
    if any(tuple(part.shape) != shape for part in parts):
        raise EngineError(f"{info.name[:120]}: its shapes differ between the ranks")
    if shape == info.shape and _are_copies(parts):
        return parts[0]
    if len(shape) == len(info.shape) > 0 and shape[1:] == info.shape[1:]:
        whole = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        # Engines pad vocabularies with rows of zeros; rows with any other value are not padding.
        rows = info.shape[0]
        vocabulary = any(part in info.name for part in _VOCABULARIES)
        padded = vocabulary and whole.shape[0] > rows and not _raw(whole[rows:]).count_nonzero()
        if whole.shape[0] == rows or padded:
            return whole[:rows]
    if shape == info.shape:
        raise EngineError(f"{info.name[:120]}: the copies on the ranks differ")
    if len(shape) == len(info.shape) > 1 and shape[0] == info.shape[0]:
        whole = torch.cat(list(parts), dim=1)
        if tuple(whole.shape) == info.shape:
            return whole
    raise EngineError(f"{info.name[:120]}: loaded as {shape}, published as {info.shape}")


def _are_copies(parts: Sequence[Any]) -> bool:
    import torch

    if len(parts) == 1:
        return True
    # Compared as bytes, because NaN does not equal itself.
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
            raise EngineError(f"{info.name[:120]}: the copies on the ranks differ")
        return parts[0][place.start : place.start + info.shape[0]]
    # Each rank stacks its share of each part.  With fewer heads of keys than ranks, some share a copy.
    count, copies = len(parts), _copies(place, rows, len(parts))
    is_shared = copies > 1 and place.start >= whole - place.shared
    own = copies if is_shared else 1
    if copies == 0 or info.shape[0] * own % count or (whole - place.shared) % count:
        raise EngineError(
            f"{info.name[:120]}: fused into {rows} rows on each of {count} ranks, published as {whole} rows"
        )
    first = whole - place.shared
    before = place.start if not is_shared else first + (place.start - first) * copies
    start, taken = before // count, info.shape[0] * own // count
    shares = [part[start : start + taken] for part in parts]
    for rank in range(count):
        if rank % own and not _are_copies([shares[rank - rank % own], shares[rank]]):
            raise EngineError(f"{info.name[:120]}: the copies on the ranks differ")
    return torch.cat(shares[::own])


def _copies(place: _Place, rows: int, ranks: int) -> int:
    """On how many ranks each head of keys and values is; 0 if no number gives as many *rows* a rank."""
    whole = place.rows or 0
    if rows * ranks == whole:
        return 1
    if not place.shared:
        return 0
    copies, rest = divmod(rows * ranks - (whole - place.shared), place.shared)
    return copies if rest == 0 and copies > 1 and ranks % copies == 0 else 0
