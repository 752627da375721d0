"""What a file's header says of its tensors, whatever the format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_TENSORS: Final = 262_144


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file: where its bytes lie, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
