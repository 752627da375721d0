"""
The tensors of a live torch module, converted back to their published layout.

Engines rename, fuse, stack, shard and pad the tensors that they load: `layouts` says where each is.
Tensors that cannot be restored byte for byte, because loading cast or quantised them, are refused:
such an engine needs its own reference value.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from attester.engines.derived import DERIVED, Scales, check_factors, check_freed, is_factor, takes_in
from attester.engines.joined import State, Whole, raw, whole_of
from attester.engines.layouts import Place, find_all
from attester.engines.module_state import ADAPTER
from attester.errors import EngineError
from attester.weights.layout import TensorInfo
from attester.weights.tensors import FileTensor, Source

_DTYPES: Final[Mapping[str, str]] = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "uint16": "U16", "uint32": "U32", "uint64": "U64", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
"""The names in safetensors of torch's types."""

_SAMPLE_BYTES: Final = 4096


@dataclass(frozen=True)
class LiveTensor:
    """A published tensor, read from the live module when it is walked."""

    info: TensorInfo
    place: Place
    states: Sequence[State]
    found: Whole | None = None
    """Views of the live tensors, as they were when the module was mapped; `None` if that is done at each walk."""

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
        for data in self._now().blocks():
            yield data.numpy() if data.device.type == "cpu" else data

    def part(self, first: int, count: int) -> bytes:
        """*count* bytes from *first* on."""
        found: bytes = self._now().part(first, count).cpu().numpy().tobytes()
        return found

    def whole(self) -> Whole:
        """The tensor put together.  Raises `EngineError` if it is not as it was published."""
        whole = whole_of(self.info, self.place, self.states)
        if math.prod(whole.shape) * whole.parts[0].element_size() != self.info.size:
            raise EngineError(f"{self.info.name}: its size in the module differs from the published size")
        return whole

    def _now(self) -> Whole:
        # What was found equal may differ by now.
        return self.whole() if self.found is None or self.found.compared else self.found


class LiveTensors:
    """
    The tensors of a live module in walking order and in their published layout.

    Args:
        published: The tensors of the published files.
        states: The module's state dict; if the module is sharded, the state dicts of all ranks in order.
        prefix: The prefix that the module's names have before the published names.
        derived: Last segments of the names of tensors that need not be published.
        scales: The checkpoint's own scales of attention, from `derived.published_scales`.
        is_deferred: Whether shapes and copies are compared only when a tensor is walked: reading another rank is dear.

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
        _check_states(states)
        scales, used = scales or {}, set()
        ordered = tuple(sorted(published, key=lambda info: info.name.encode()))
        taken_in = {
            info.name for info in ordered if info.name in scales and takes_in(info.name, prefix, states[0])
        }
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in states[0].items())
        places = iter(find_all(tuple(info for info in ordered if info.name not in taken_in), shapes, prefix))
        self._tensors: list[Source] = []
        for info in ordered:
            if info.name in taken_in:
                self._tensors.append(scales[info.name])
                continue
            place = next(places)
            for state in states:
                check_freed(info, state[place.name])
                _check_dtype(info, state[place.name])
            # Checked now, so that the operator learns of a mismatch before a call comes.
            tensor = LiveTensor(info, place, states)
            used.add(place.name)
            self._tensors.append(tensor if is_deferred else replace(tensor, found=tensor.whole()))
        for state in states:
            check_factors(state, _check_rest(state, used, derived), published, scales)

    def __iter__(self) -> Iterator[Source]:
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


def _check_rest(state: State, used: set[str], derived: Collection[str]) -> list[str]:
    """Refuse what is not published; returns the names of tensors that need a certain value."""
    factors = []
    walked = {_identity(state[name]) for name in used}
    for name, tensor in state.items():
        if name in used or name.rpartition(".")[2] in derived or tensor.numel() == 0:
            continue
        if ADAPTER.search(name):
            if raw(tensor.detach()).count_nonzero():
                raise EngineError(f"an adapter is loaded: {name[:120]!r} is not zero")
            continue
        if is_factor(name):
            factors.append(name)
        elif _identity(tensor) not in walked:
            raise EngineError(
                f"the module has {name[:120]!r}, which the published files do not have. Is an adapter loaded?"
            )
    return factors


def _identity(tensor: Any) -> tuple[int, int, str]:
    """Equal for two names of one parameter, and different for any two other tensors."""
    return tensor.data_ptr(), tensor.numel(), str(tensor.dtype)


def confirm(live: Iterable[Source], files: Iterable[FileTensor]) -> None:
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
        if not isinstance(loaded, LiveTensor):
            # A scale, whose number has been compared.
            continue
        count = min(_SAMPLE_BYTES, published.size)
        for first in sorted({0, (published.size - count) // 2, published.size - count}):
            if loaded.part(first, count) != published.part(first, count):
                raise EngineError(
                    f"{loaded.name[:120]}: loaded with other bytes than published. Either the engine packs or "
                    "reorders its weights, or it has loaded another checkpoint"
                )
