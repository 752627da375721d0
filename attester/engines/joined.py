"""Published tensors put together from parts of live tensors: of ranks, of stacks, of fused matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from attester.engines.layouts import Place
from attester.engines.module_state import EXPERT_MAP
from attester.errors import EngineError
from attester.weights.kernels import K
from attester.weights.layout import TensorInfo

_VOCABULARIES: Final = ("embed", "lm_head", "wte", "decoder")
"""Parts of the names of parameters with one row per token: engines pad only these."""

_BLOCK_BYTES: Final = 16 << 20
"""What is copied at a time where parts must be joined or turned."""

State = Mapping[str, Any]
"""A state dict: names to torch tensors."""


@dataclass(frozen=True)
class Whole:
    """A published tensor, as parts of live tensors that are joined along one axis."""

    parts: Sequence[Any]
    axis: int
    shape: tuple[int, ...]
    compared: bool = False
    """Whether it rests on bytes that were compared: with copies on other ranks, or with padding."""

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
            return raw(self.parts[0])[first : first + count]
        row = self._row_bytes
        rows = self.rows(first // row, -(-(first + count) // row))
        return raw(rows)[first % row : first % row + count]

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * int(self.parts[0].element_size())

    def blocks(self) -> Iterator[Any]:
        """The bytes in order, one-dimensional int8; copied only block by block, and if they must be."""
        is_remote = bool(self.shape) and any(getattr(part, "is_remote", False) for part in self.parts)
        is_view = len(self.parts) == 1 and (not self.shape or self.parts[0][: self.shape[0]].is_contiguous())
        if is_view and not is_remote:
            yield raw(self.rows(0, self.shape[0] if self.shape else 0))
            return
        row_bytes = self._row_bytes
        # Each block but the last is a multiple of K bytes.
        unit = K // math.gcd(row_bytes, K)
        count = max(1, _BLOCK_BYTES // (row_bytes * unit)) * unit if row_bytes else 1
        for first in range(0, self.shape[0], count):
            yield raw(self.rows(first, min(first + count, self.shape[0])))


def whole_of(info: TensorInfo, place: Place, states: Sequence[State]) -> Whole:
    """
    A published tensor, by its place.

    Args:
        states: The state dicts of all ranks, in order.

    Raises:
        EngineError: the parts do not make the whole, or copies of it differ.
    """
    parts = [state[place.name].detach() for state in states]
    if place.experts is not None:
        parts = _of_expert(info, place, parts, states)
    if place.turned:
        parts = [part.transpose(-1, -2) for part in parts]
    return _unsharded(info, place, parts) if place.rows is None else _unfused(info, place, parts)


def _of_expert(info: TensorInfo, place: Place, parts: Sequence[Any], states: Sequence[State]) -> list[Any]:
    """The one expert on each rank that has it; for all experts, the stacks of the ranks."""
    published = place.experts or 0
    held = [part.shape[0] if part.ndim else 0 for part in parts]
    everywhere = all(count == published for count in held)
    if not everywhere and sum(held) != published:
        raise EngineError(f"{info.name[:120]}: {held} experts on the ranks, published are {published}")
    maps = [state.get(f"{place.name.rpartition('.')[0]}.{EXPERT_MAP}") for state in states]
    if place.expert is None:
        if not everywhere and not _are_in_order(maps):
            raise EngineError(f"{info.name[:120]}: the experts of the ranks are not in order")
        return list(parts)
    found, start = [], 0
    for part, count, where in zip(parts, held, maps, strict=True):
        here = place.expert - start if where is None else int(where[place.expert])
        index = place.expert if everywhere else here
        if 0 <= index < count:
            found.append(part[index])
        start += count
    if not found:
        raise EngineError(f"{info.name[:120]}: no rank has this expert")
    return found


def _are_in_order(maps: Sequence[Any]) -> bool:
    """Whether the first rank has the first experts, and so on; without maps nothing says otherwise."""
    order = [
        number for each in maps if each is not None for number in each.ge(0).nonzero().flatten().tolist()
    ]
    return order == sorted(order)


def _unsharded(info: TensorInfo, place: Place, parts: Sequence[Any]) -> Whole:
    shapes = {tuple(part.shape) for part in parts}
    if shapes == {info.shape} and _are_copies(parts):
        return Whole(parts[:1], 0, info.shape, compared=len(parts) > 1)
    if place.sections and len(parts) > 1:
        return _of_sections(info, place.sections, parts)
    # Of what may not be cut, a stack of experts may be: by its first axis.
    axes = len(info.shape) if not place.whole or len(parts) == 1 else int(place.experts is not None)
    for axis in range(axes):
        others = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes if len(shape) == len(info.shape)}
        if others != {(*info.shape[:axis], *info.shape[axis + 1 :])}:
            continue
        whole = Whole(parts, axis, info.shape)
        size = sum(part.shape[axis] for part in parts)
        if size == info.shape[axis]:
            return whole
        if axis == 0 and _is_padded(info, whole, size):
            return replace(whole, compared=True)
    if shapes == {info.shape}:
        raise EngineError(f"{info.name[:120]}: the copies on the ranks differ")
    loaded = " and ".join(str(shape) for shape in sorted(shapes))
    if place.whole and len(parts) > 1:
        raise EngineError(
            f"{info.name[:120]}: cut over {len(parts)} ranks as {loaded}, and it is not known how"
        )
    raise EngineError(f"{info.name[:120]}: loaded as {loaded}, published as {info.shape}")


def _of_sections(info: TensorInfo, sections: Sequence[int], parts: Sequence[Any]) -> Whole:
    """A matrix that was published fused: its parts one after the other, each put together from all ranks."""
    ranks = len(parts)
    shape = (info.shape[0] // ranks, *info.shape[1:])
    if any(rows % ranks for rows in sections) or any(tuple(part.shape) != shape for part in parts):
        raise EngineError(f"{info.name[:120]}: its parts are not shared evenly by the {ranks} ranks")
    starts = [sum(sections[:number]) // ranks for number in range(len(sections))]
    found = [
        part[start : start + rows // ranks]
        for start, rows in zip(starts, sections, strict=True)
        for part in parts
    ]
    return Whole(found, 0, info.shape)


def _is_padded(info: TensorInfo, whole: Whole, size: int) -> bool:
    """Engines pad vocabularies with rows of zeros; rows with any other value are not padding."""
    rows = info.shape[0]
    vocabulary = any(part in info.name for part in _VOCABULARIES)
    return vocabulary and size > rows and not raw(whole.rows(rows, size)).count_nonzero()


def _are_copies(parts: Sequence[Any]) -> bool:
    import torch

    if len(parts) == 1:
        # Of another rank, even this one would be fetched.
        return True
    # Compared as bytes, because NaN does not equal itself.
    first = raw(parts[0])
    return all(torch.equal(raw(part), first) for part in parts[1:])


def raw(tensor: Any) -> Any:
    """A tensor's bytes, one-dimensional int8: a view if it is contiguous."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.int8)


def _unfused(info: TensorInfo, place: Place, parts: Sequence[Any]) -> Whole:
    counts = {part.shape[0] if part.ndim else 0 for part in parts}
    whole = place.rows or 0
    if counts == {whole}:
        if not _are_copies(parts):
            raise EngineError(f"{info.name[:120]}: the copies on the ranks differ")
        found = [parts[0][place.start : place.start + info.shape[0]]]
    else:
        found = _shares(info, place, parts, max(counts) if len(counts) == 1 else 0)
    if any(part.shape[1:] != info.shape[1:] for part in found):
        raise EngineError(f"{info.name[:120]}: loaded as {tuple(parts[0].shape)}, published as {info.shape}")
    return Whole(found, 0, info.shape, compared=len(found) < len(parts))


def _shares(info: TensorInfo, place: Place, parts: Sequence[Any], rows: int) -> list[Any]:
    """
    The shares of a part on all ranks: each rank stacks *rows* rows, its share of each part.

    With fewer heads of keys than ranks, some ranks have a copy of the same head.
    """
    ranks, whole = len(parts), place.rows or 0
    first = whole - place.shared
    copies = _copies(rows * ranks, whole, place.shared)
    own = copies if place.shared and place.start >= first else 1
    if not copies or ranks % copies or first % ranks or info.shape[0] * own % ranks:
        raise EngineError(
            f"{info.name[:120]}: fused into {rows} rows on each of {ranks} ranks, published as {whole} rows"
        )
    before = place.start if own == 1 else first + (place.start - first) * copies
    if before % ranks:
        raise EngineError(f"{info.name[:120]}: its rows are not shared evenly by the {ranks} ranks")
    start, count = before // ranks, info.shape[0] * own // ranks
    shares = [part[start : start + count] for part in parts]
    for group in range(0, ranks, own):
        if not _are_copies(shares[group : group + own]):
            raise EngineError(f"{info.name[:120]}: the copies on the ranks differ")
    return shares[::own]


def _copies(rows: int, whole: int, shared: int) -> int:
    """How many copies of the *shared* rows there are in *rows* of all ranks; 0 if no whole number fits."""
    if rows == whole:
        return 1
    copies, rest = divmod(rows - (whole - shared), shared) if shared else (0, 0)
    return copies if rest == 0 and copies > 1 else 0
