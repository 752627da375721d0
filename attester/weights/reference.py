"""
A second implementation of `walk`, written from the specification alone: short, slow, with float64 products.

It shares no code with `possession` and `kernels`.  Minting spot-checks its answers with it, so
that an error in a library or in those modules cannot fill a pool with wrong answers unnoticed.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

_MASK = 0xFFFFFFFF


def walk_row(tensors: Sequence[Iterable[bytes]], seed: bytes, row: int, passes: int) -> bytes:
    """
    The answer of row *row*, 32 bytes.

    Args:
        tensors: In walking order, each as pieces of its raw bytes; every piece except the last
            of a tensor is a multiple of 4,096 bytes.  Iterated once for each pass.
        seed: 32 bytes.
        row: The number of the row.
        passes: How often the row passes all tensors.
    """
    head = hashlib.shake_256(b"touchstone/weight-walk/1" + seed + row.to_bytes(4, "little"))
    words = head.digest(16)
    s0, s1, s2, s3 = (int.from_bytes(words[i : i + 4], "little") for i in range(0, 16, 4))
    state = (_mixed(_mixed(np.arange(4096, dtype=np.int64) ^ s2) + s3)) & _MASK
    g = 0
    for _ in range(passes):
        rest = list(tensors)
        while rest:
            x = ((state >> 24) | 1).astype(np.uint8).view(np.int8).astype(np.float64)
            acc = state.copy()
            rows = 0
            while rest and rows < 4096:
                for piece in rest.pop(0):
                    for start in range(0, len(piece), 512 * 4096):
                        part = piece[start : start + 512 * 4096]
                        padded = part + bytes(-len(part) % 4096)
                        weights = np.frombuffer(padded, np.int8).reshape(-1, 4096)
                        y = (weights.astype(np.float64) @ x).astype(np.int64)
                        index = np.arange(rows, rows + len(y))
                        c = _mixed(_mixed((g + index // 4096) ^ s0) + s1) | 1
                        # 64 bits hold the product of two words.  At most 512 rows, so no index of acc repeats.
                        product = (y & _MASK).astype(np.uint64) * c.astype(np.uint64)
                        acc[index % 4096] += _mixed((product & np.uint64(_MASK)).astype(np.int64))
                        rows += len(y)
            if rows:
                g += -(-rows // 4096)
                state = _mixed(acc)
    return hashlib.sha256(state.astype("<u4").tobytes()).digest()


def _mixed(
    values: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    x = values.astype(np.uint64) & np.uint64(_MASK)
    x ^= x >> np.uint64(16)
    x = x * np.uint64(0x21F0AAAD) & np.uint64(_MASK)
    x ^= x >> np.uint64(15)
    x = x * np.uint64(0x735A2D97) & np.uint64(_MASK)
    x ^= x >> np.uint64(15)
    return x.astype(np.int64)
