"""
The tensors of a live torch module, converted back to their published layout.

Engines rename, fuse, stack, shard and pad the tensors that they load: `layouts` says where each is.
Tensors that cannot be restored byte for byte, because loading cast or quantised them, are refused:
such an engine needs its own reference value.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from attester.engines.layouts import Layout, Place
from attester.engines.module_state import ADAPTER, EXPERT_MAP
from attester.errors import EngineError
from attester.weights.kernels import K
from attester.weights.layout import TensorInfo
from attester.weights.tensors import FileTensor


DERIVED: Final = ("position_ids", "token_type_ids", "inv_freq", "cos_sin_cache", "masked_bias", EXPERT_MAP)
"""Last segments of the names of buffers that engines compute and nobody publishes."""

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

_BLOCK_BYTES: Final = 16 << 20
"""What is copied at a time where parts must be joined or turned."""

_SAMPLE_BYTES: Final = 4096

State = Mapping[str, Any]
"""A state dict: names to torch tensors."""


@dataclass(frozen=True)
class LiveTensor:
    """A published tensor, read from the live module when it is walked."""

    info: TensorInfo
    place: Place
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
        """As `Source.chunks`: one view, or copies of blocks if parts must be joined or turned."""
        for data in _whole(self.info, self.place, self.states).blocks():
            yield data.numpy() if data.device.type == "cpu" else data

    def part(self, first: int, count: int) -> bytes:
        """*count* bytes from *first* on."""
        found: bytes = _whole(self.info, self.place, self.states).part(first, count).cpu().numpy().tobytes()
        return found


class LiveTensors:
    """
    The tensors of a live module in walking order and in their published layout.

    Args:
        published: The tensors of the published files.
        states: The module's state dict; if the module is sharded, the state dicts of all ranks in order.
        prefix: The prefix that the module's names have before the published names.
        derived: Last segments of the names of tensors that need not be published.

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
    ) -> None:
        _check_states(states)
        layout = Layout(published, {name: tuple(tensor.shape) for name, tensor in states[0].items()}, prefix)
        self._tensors = []
        for info in sorted(published, key=lambda info: info.name.encode()):
            place = layout.find(info)
            tensor = LiveTensor(info, place, states)
            # Checked now, so that the operator learns of a mismatch before a call comes.
            for state in states:
                _check_dtype(info, state[place.name])
            whole = _whole(info, place, states)
            if math.prod(whole.shape) * whole.parts[0].element_size() != info.size:
                raise EngineError(f"{info.name}: its size in the module differs from the published size")
            self._tensors.append(tensor)
        for state in states:
            _check_rest(state, {tensor.place.name for tensor in self._tensors}, derived)

    def __iter__(self) -> Iterator[LiveTensor]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


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


def _check_rest(state: State, used: set[str], derived: Collection[str]) -> None:
    walked = {_identity(state[name]) for name in used}
    for name, tensor in state.items():
        if name in used or name.rpartition(".")[2] in derived or tensor.numel() == 0:
            continue
        if ADAPTER.search(name):
            if _raw(tensor.detach()).count_nonzero():
                raise EngineError(f"an adapter is loaded: {name[:120]!r} is not zero")
            continue
        if _identity(tensor) not in walked:
            raise EngineError(
                f"the module has {name[:120]!r}, which the published files do not have. Is an adapter loaded?"
            )


def _identity(tensor: Any) -> tuple[int, int, str]:
    """Equal for two names of one parameter, and different for any two other tensors."""
    return tensor.data_ptr(), tensor.numel(), str(tensor.dtype)


@dataclass(frozen=True)
class _Whole:
    """A published tensor, as parts of live tensors that are joined along one axis."""

    parts: Sequence[Any]
    axis: int
    shape: tuple[int, ...]

    def rows(self, first: int, last: int) -> Any:
        """The rows from *first* up to *last*: a view if they are in one part."""
        import torch

        if not self.shape:
            return self.parts[0]
        if self.axis:
            return torch.cat([part[first:last] for part in self.parts], dim=self.axis)
        found, start = [], 0
        for part in self.parts:
            if first < start + part.shape[0] and last > start:
                found.append(part[max(first - start, 0) : last - start])
            start += part.shape[0]
        return found[0] if len(found) == 1 else torch.cat(found) if found else self.parts[0][:0]

    def part(self, first: int, count: int) -> Any:
        """*count* bytes from *first* on, one-dimensional int8."""
        if not count or not self.shape:
            return _raw(self.parts[0])[first : first + count]
        row = self._row_bytes
        rows = self.rows(first // row, -(-(first + count) // row))
        return _raw(rows)[first % row : first % row + count]

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * int(self.parts[0].element_size())

    def blocks(self) -> Iterator[Any]:
        """The bytes in order, one-dimensional int8; copied only block by block, and if they must be."""
        if len(self.parts) == 1 and (not self.shape or self.parts[0][: self.shape[0]].is_contiguous()):
            yield _raw(self.rows(0, self.shape[0] if self.shape else 0))
            return
        row_bytes = self._row_bytes
        # Each block but the last is a multiple of K bytes.
        unit = K // math.gcd(row_bytes, K)
        count = max(1, _BLOCK_BYTES // (row_bytes * unit)) * unit if row_bytes else 1
        for first in range(0, self.shape[0], count):
            yield _raw(self.rows(first, min(first + count, self.shape[0])))


def _whole(info: TensorInfo, place: Place, states: Sequence[State]) -> _Whole:
    parts = [state[place.name].detach() for state in states]
    if place.experts is not None:
        parts = _of_expert(info, place, parts, states)
    if place.turned:
        parts = [part.transpose(-1, -2) for part in parts]
    return _unsharded(info, place, parts) if place.rows is None else _unfused(info, place, parts)


def _of_expert(
    info: TensorInfo, place: Place, parts: Sequence[Any], states: Sequence[State]
) -> list[Any]:
    """The one expert on each rank that has it; for all experts, the stacks of the ranks."""
    held = [part.shape[0] if part.ndim else 0 for part in parts]
    maps = [state.get(f"{place.name.rpartition('.')[0]}.{EXPERT_MAP}") for state in states]
    if all(count == place.experts for count in held):
        local = [[*range(count)] for count in held]
    elif all(each is not None for each in maps):
        local = [each.tolist() for each in maps]
    elif sum(held) == place.experts:
        starts = [sum(held[:rank]) for rank in range(len(held))]
        local = [
            [n - start if 0 <= n - start < count else -1 for n in range(place.experts)]
            for start, count in zip(starts, held, strict=True)
        ]
    else:
        raise EngineError(f"{info.name[:120]}: {held} experts on the ranks, published are {place.experts}")
    if place.expert is None:
        order = [n for where in local for n in range(len(where)) if where[n] >= 0]
        if len(parts) > 1 and held[0] != place.experts and order != [*range(place.experts)]:
            raise EngineError(f"{info.name[:120]}: the experts of the ranks are not in order")
        return list(parts)
    found = [
        part[where[place.expert]]
        for part, where, count in zip(parts, local, held, strict=True)
        if place.expert < len(where) and 0 <= where[place.expert] < count
    ]
    if not found:
        raise EngineError(f"{info.name[:120]}: no rank has this expert")
    return found


def _unsharded(info: TensorInfo, place: Place, parts: Sequence[Any]) -> _Whole:
    shapes = {tuple(part.shape) for part in parts}
    if shapes == {info.shape} and _are_copies(parts):
        return _Whole(parts[:1], 0, info.shape)
    if place.sections and len(parts) > 1:
        return _of_sections(info, place.sections, parts)
    # Of what may not be cut, a stack of experts may be: by its first axis.
    axes = len(info.shape) if not place.whole or len(parts) == 1 else int(place.experts is not None)
    for axis in range(axes):
        others = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes if len(shape) == len(info.shape)}
        if others != {(*info.shape[:axis], *info.shape[axis + 1 :])}:
            continue
        whole = _Whole(parts, axis, info.shape)
        size = sum(part.shape[axis] for part in parts)
        if size == info.shape[axis] or (axis == 0 and _is_padded(info, whole, size)):
            return whole
    if shapes == {info.shape}:
        raise EngineError(f"{info.name[:120]}: the copies on the ranks differ")
    loaded = " and ".join(str(shape) for shape in sorted(shapes))
    if place.whole and len(parts) > 1:
        raise EngineError(f"{info.name[:120]}: cut over {len(parts)} ranks as {loaded}, and it is not known how")
    raise EngineError(f"{info.name[:120]}: loaded as {loaded}, published as {info.shape}")


def _of_sections(info: TensorInfo, sections: Sequence[int], parts: Sequence[Any]) -> _Whole:
    """A matrix that was published fused: its parts one after the other, each put together from all ranks."""
    ranks = len(parts)
    shape = (info.shape[0] // ranks, *info.shape[1:])
    if any(rows % ranks for rows in sections) or any(tuple(part.shape) != shape for part in parts):
        raise EngineError(f"{info.name[:120]}: its parts are not shared evenly by the {ranks} ranks")
    starts = [sum(sections[:number]) // ranks for number in range(len(sections))]
    found = [
        part[start : start + rows // ranks] for start, rows in zip(starts, sections, strict=True) for part in parts
    ]
    return _Whole(found, 0, info.shape)


def _is_padded(info: TensorInfo, whole: _Whole, size: int) -> bool:
    """Engines pad vocabularies with rows of zeros; rows with any other value are not padding."""
    rows = info.shape[0]
    vocabulary = any(part in info.name for part in _VOCABULARIES)
    return vocabulary and size > rows and not _raw(whole.rows(rows, size)).count_nonzero()


def _are_copies(parts: Sequence[Any]) -> bool:
    import torch

    # Compared as bytes, because NaN does not equal itself.
    first = _raw(parts[0])
    return all(torch.equal(_raw(part), first) for part in parts[1:])


def _raw(tensor: Any) -> Any:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.int8)


def _unfused(info: TensorInfo, place: Place, parts: Sequence[Any]) -> _Whole:
    counts = {part.shape[0] if part.ndim else 0 for part in parts}
    whole = place.rows or 0
    if counts == {whole}:
        if not _are_copies(parts):
            raise EngineError(f"{info.name[:120]}: the copies on the ranks differ")
        found = [parts[0][place.start : place.start + info.shape[0]]]
    else:
        # Each rank stacks its share of each part.
        ranks = len(parts)
        if counts != {whole / ranks} or place.start % ranks or info.shape[0] % ranks:
            raise EngineError(
                f"{info.name[:120]}: fused into {max(counts)} rows on each of {ranks} ranks, "
                f"published as {whole} rows"
            )
        start, count = place.start // ranks, info.shape[0] // ranks
        found = [part[start : start + count] for part in parts]
    if any(part.shape[1:] != info.shape[1:] for part in found):
        raise EngineError(f"{info.name[:120]}: loaded as {tuple(parts[0].shape)}, published as {info.shape}")
    return _Whole(found, 0, info.shape)


def confirm(live: Iterable[LiveTensor], files: Iterable[FileTensor]) -> None:
    """
    Compare samples of what is loaded with the files, before a call comes.

    A walk would meet every other byte, and the node would be blamed for it.  Here its operator learns
    that the engine has laid out weights in a way that no rule knows and no shape shows.

    Args:
        files: The published tensors in walking order.

    Raises:
        EngineError: a sample differs.
        WeightsError: a file cannot be read.
    """
    for loaded, published in zip(live, files, strict=True):
        count = min(_SAMPLE_BYTES, published.size)
        for first in sorted({0, (published.size - count) // 2, published.size - count}):
            if loaded.part(first, count) != published.part(first, count):
                raise EngineError(
                    f"{loaded.name[:120]}: loaded with other bytes than published. Either the engine packs or "
                    "reorders its weights, or it has loaded another checkpoint"
                )
