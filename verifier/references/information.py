"""
How much information the tensors of a model hold, and the digest of each tensor.

Weights that compress can be moved faster than raw ones, so a rate is counted in information
and not in bytes.  Equal tensors count once, and each byte counts the order-0 entropy of its
plane (a plane is the first bytes of all elements, or their second bytes, and so on).  A cheat
that codes bytes one by one cannot move less; a cleverer coder could.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import blake3
import numpy as np
import numpy.typing as npt

from attester.errors import WeightsError
from attester.weights import cpu
from attester.weights.kernels import Words
from attester.weights.tensors import FileTensor, TensorFiles

_PIECE: Final = 1 << 20
"""Bytes, and a multiple of every element: a piece ends between two of them."""
_MAX_COUNTED: Final = 1 << 31
"""Bytes that are counted in 32 bits."""
_WIDTHS: Final = {
    "BF16": 2, "F16": 2, "I16": 2, "U16": 2,
    "F32": 4, "I32": 4, "U32": 4,
    "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of an element; 1 for all other types, whose elements have at most a byte or come in blocks."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TensorSummary:
    """The BLAKE3 digest of each tensor in walking order, and the information that all of them hold."""

    digests: tuple[bytes, ...]
    information_bytes: int


def examine(tensors: TensorFiles, progress: Callable[[int], None] | None = None) -> TensorSummary:
    """
    Read every tensor once.

    Raises:
        WeightsError: a file cannot be read, or changed.
    """
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "examine") as pool:
        found = list(pool.map(lambda tensor: _examine(tensor, progress), tensors))
    distinct = {digest: bits for digest, bits in found}  # noqa: C416  # the names make it readable
    return TensorSummary(tuple(digest for digest, _ in found), math.ceil(sum(distinct.values()) / 8))


def _examine(tensor: FileTensor, progress: Callable[[int], None] | None) -> tuple[bytes, float]:
    hasher = blake3.blake3()
    counter = _Counter(_WIDTHS.get(tensor.info.dtype, 1))
    for data in tensor.chunks():
        for start in range(0, data.size, _PIECE):
            piece = data[start : start + _PIECE].view(np.uint8)
            # Both read the piece while it is in the cache.
            hasher.update(piece.data)
            counter.add(piece)
        if progress is not None:
            progress(data.size)
    # Never more than its bytes: the logarithms are not exact in their last digits.
    return hasher.digest(), min(sum(_bits(plane) for plane in counter.planes()), 8.0 * tensor.size)


class _Counter:
    """How often each byte stands in each plane of a tensor, whose elements have *width* bytes."""

    def __init__(self, width: int) -> None:
        self._planes = np.zeros((width, 256), np.int64)
        self._pairs = max(width // 2, 1)
        # Two bytes at a time: counting them as one number of 16 bits is faster.
        self._tables = np.zeros((self._pairs, 2, 1 << 16), np.uint32)
        self._counted = 0

    def add(self, piece: npt.NDArray[np.uint8]) -> None:
        """Count a piece, which ends between two elements."""
        if self._counted + piece.size > _MAX_COUNTED:
            self._carry()
        self._counted += piece.size
        even = piece.size - piece.size % 2
        numbers = piece[:even].view("<u2")
        for pair in range(self._pairs if even else 0):
            _count(numbers[pair:], self._pairs, self._tables[pair])
        if even < piece.size:
            self._planes[0] += np.bincount(piece[even:], minlength=256)

    def planes(self) -> Counts:
        """The counts of all pieces."""
        self._carry()
        return self._planes

    def _carry(self) -> None:
        """Move the counts of pairs, which have 32 bits, to the planes."""
        joint = self._tables.sum(axis=1, dtype=np.int64).reshape(-1, 256, 256)
        for pair, each in enumerate(joint):
            if len(self._planes) == 1:
                self._planes[0] += each.sum(axis=0) + each.sum(axis=1)
            else:
                self._planes[2 * pair] += each.sum(axis=0)
                self._planes[2 * pair + 1] += each.sum(axis=1)
        self._tables[:] = 0
        self._counted = 0


def _count(numbers: npt.NDArray[np.uint16], stride: int, tables: Words) -> None:
    try:
        cpu.count_numbers(numbers, stride, tables)
    except WeightsError:
        # There is no compiler: slower, and the same numbers.
        tables[0] += np.bincount(numbers[::stride], minlength=1 << 16).astype(np.uint32)


def _bits(counts: Counts) -> float:
    """The order-0 information of a plane in bits, from the count of each byte value."""
    total = int(counts.sum())
    if not total:
        return 0.0
    some = counts[counts > 0].astype(np.float64)
    return float(total * math.log2(total) - (some * np.log2(some)).sum())
