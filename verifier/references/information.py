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

from attester.weights.tensors import FileTensor, TensorFiles

_PIECE: Final = 1 << 20
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
    width = _WIDTHS.get(tensor.info.dtype, 1)
    hasher = blake3.blake3()
    planes = np.zeros((width, 256), np.int64)
    for data in tensor.chunks():
        for start in range(0, data.size, _PIECE):
            piece = data[start : start + _PIECE].view(np.uint8)
            hasher.update(piece.data)
            _count(piece, planes)
        if progress is not None:
            progress(data.size)
    # Never more than its bytes: the logarithms are not exact in their last digits.
    return hasher.digest(), min(sum(_bits(plane) for plane in planes), 8.0 * tensor.size)


def _count(piece: npt.NDArray[np.uint8], planes: Counts) -> None:
    width = planes.shape[0]
    if width == 1:
        planes[0] += np.bincount(piece, minlength=256)
        return
    # Two planes at a time: counting their bytes as one number of 16 bits is faster.
    pairs = piece.view("<u2").reshape(-1, width // 2)
    for pair in range(width // 2):
        joint = np.bincount(pairs[:, pair], minlength=1 << 16).reshape(256, 256)
        planes[2 * pair] += joint.sum(axis=0)
        planes[2 * pair + 1] += joint.sum(axis=1)


def _bits(counts: Counts) -> float:
    """The order-0 information of a plane in bits, from the count of each byte value."""
    total = int(counts.sum())
    if not total:
        return 0.0
    some = counts[counts > 0].astype(np.float64)
    return float(total * math.log2(total) - (some * np.log2(some)).sum())
