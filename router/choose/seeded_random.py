"""SeededRandom that can be had again: numbers that follow from a seed, in any version of Python."""

from __future__ import annotations

import hashlib
import struct
from typing import Final

_BLOCK: Final = struct.Struct("<8Q")


class SeededRandom:
    """Uniform draws by BLAKE2b over the seed and a counter (RFC 7693)."""

    __slots__ = ("_counter", "_left", "_seed")

    def __init__(self, seed: int) -> None:
        """*seed*: of 64 bits."""
        self._seed = seed.to_bytes(8, "little")
        self._counter = 0
        self._left: list[int] = []

    def below(self, bound: int) -> int:
        """A whole number from 0 to before *bound*; biased by at most bound / 2⁶⁴."""
        if not self._left:
            data = hashlib.blake2b(self._seed, salt=self._counter.to_bytes(16, "little")).digest()
            self._left = list(_BLOCK.unpack(data))
            self._counter += 1
        return self._left.pop() * bound >> 64
