"""What the header of a weights file says about a tensor, in any format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_TENSORS: Final = 262_144


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Where its bytes begin, from the start of the file."""
    size: int
    """Bytes."""
