"""
Tensors of another rank of a sharded engine, fetched when their bytes are needed.

A `Remote` knows its shape, type and identity at once, so a state dict of them can be mapped to the
published layout like any other.  Slices of it stay remote; whatever else is done with it fetches the
values first, and then only those of the slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import torch

from attester.errors import EngineError

View = tuple[str, tuple[int, ...]]
"""A step from a tensor to a part of it: the name of the operation, and its integers."""

_END: Final = (1 << 63) - 1


@dataclass
class Origin:
    """Where the values of a remote tensor are, and how to get them."""

    rank: int
    name: str
    pointer: int
    """Equal for two names of one parameter of a rank."""
    fetch: Callable[[int, str, Sequence[View], torch.Tensor], torch.Tensor]
    """From the rank, the name, the views and an empty tensor of the result's shape to the values."""
    known: torch.Tensor | None = None
    """Its values, where they came with the listing."""
    twins: list[torch.Tensor] = field(default_factory=list)
    """The same parameter on other stages of a pipeline, which must have the same bytes."""


class Remote(torch.Tensor):
    """A tensor of another rank."""

    origin: Origin
    views: tuple[View, ...]
    shadow: torch.Tensor
    """Shape, strides and type of it, on the device ``meta``."""

    is_remote: Final = True
    """So it is read block by block."""
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    def __new__(cls, shadow: torch.Tensor, origin: Origin, device: Any, views: tuple[View, ...] = ()) -> Self:
        """Make one that looks like *shadow* and is used on *device*."""
        make: Any = torch.Tensor._make_wrapper_subclass
        made: Self = make(cls, shadow.shape, strides=shadow.stride(), dtype=shadow.dtype, device=device)
        made.origin, made.views, made.shadow = origin, views, shadow
        return made

    def __init__(self, *_: object) -> None:
        """Nothing: `__new__` has made it."""

    def data_ptr(self) -> int:
        """What tells apart the parameters of all ranks; no address of this process."""
        return self.origin.pointer

    def values(self) -> torch.Tensor:
        """
        Fetch the values.

        Raises:
            EngineError: the rank does not answer, or another stage of the pipeline has other bytes.
        """
        origin = self.origin
        if origin.known is not None:
            found = apply(origin.known, self.views)
        else:
            # Contiguous, whatever the strides of the view: so its bytes come.
            empty = torch.empty(tuple(self.shadow.shape), dtype=self.dtype, device=self.device)
            found = origin.fetch(origin.rank, origin.name, self.views, empty)
        for twin in origin.twins:
            other = twin.part(self.views).values() if isinstance(twin, Remote) else apply(twin, self.views)
            if not torch.equal(_raw(other), _raw(found)):
                raise EngineError(f"{origin.name[:120]}: its copies on two stages of the pipeline differ")
        return found

    def part(self, views: Sequence[View]) -> Remote:
        """The part that *views* lead to."""
        return Remote(apply(self.shadow, views), self.origin, self.device, (*self.views, *views))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it for tensors that have none
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Keep slices remote, and do anything else on the values."""
        first = args[0] if args else None
        if isinstance(first, Remote) and not kwargs and (views := _view(func, args[1:])) is not None:
            return first.part(views)
        return func(*_plain(args), **{name: _plain(value) for name, value in (kwargs or {}).items()})


def apply(tensor: torch.Tensor, views: Sequence[View]) -> torch.Tensor:
    """
    The part of *tensor* that *views* lead to.

    Raises:
        EngineError: there is no such view.
    """
    for name, numbers in views:
        if name == "slice" and len(numbers) == 4:
            dim, start, end, step = numbers
            tensor = tensor[(slice(None),) * (dim % tensor.ndim) + (slice(start, end, step),)]
        elif name == "select" and len(numbers) == 2:
            tensor = tensor.select(numbers[0], numbers[1])
        elif name == "transpose" and len(numbers) == 2:
            tensor = tensor.transpose(numbers[0], numbers[1])
        else:
            raise EngineError(f"there is no view {name[:20]!r}")
    return tensor


def _view(func: Any, args: tuple[Any, ...]) -> tuple[View, ...] | None:
    aten = torch.ops.aten
    if func in {aten.detach.default, aten.alias.default}:
        return ()
    if func is aten.select.int or func is aten.transpose.int:
        return (("select" if func is aten.select.int else "transpose", tuple(args)),)
    if func is aten.slice.Tensor:
        dim, start, end, step = args + (0, None, None, 1)[len(args) :]
        return (("slice", (dim, 0 if start is None else start, _END if end is None else end, step)),)
    return None


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _plain(value: Any) -> Any:
    """*value* with the values of each remote tensor in it."""
    if isinstance(value, Remote):
        return value.values()
    return type(value)(map(_plain, value)) if isinstance(value, (list, tuple)) else value
