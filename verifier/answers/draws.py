"""
Choices that follow from a secret: the same secret makes the same choices, and nobody else can foretell them.  Pure.

They are numbers of SHAKE-256 (FIPS 202), counted; with 128 bits each, the bias of the remainder cannot be seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, TypeVar

_NUMBER_BYTES: Final = 16
T = TypeVar("T")


class Draws:
    """The choices of one place of the pool."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._count = 0

    def below(self, bound: int) -> int:
        """Draw a number from 0 to *bound* − 1."""
        self._count += 1
        place = self._secret + self._count.to_bytes(8, "little")
        return int.from_bytes(hashlib.shake_256(place).digest(_NUMBER_BYTES), "little") % bound

    def pick(self, values: Sequence[T]) -> T:
        """Draw one of *values*."""
        return values[self.below(len(values))]

    def chance(self, share: float) -> bool:
        """Whether something happens that happens in this share of the cases."""
        return self.below(1 << 32) < share * (1 << 32)

    def weighted(self, weights: Sequence[int]) -> int:
        """Draw a place of *weights*, each as likely as its weight says."""
        left = self.below(sum(weights))
        for place, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return place
        raise AssertionError("the weights are not what was summed")
