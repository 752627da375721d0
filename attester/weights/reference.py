"""
A second `walk`, written from the specification alone: slow, short, float64 products.

It shares no code with `possession` and `kernels`, so that a wrong library or a slip there
cannot poison a pool unseen: every minted batch is spot-checked with it.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

_MASK = 0xFFFFFFFF


def walk_row(tensors: Sequence[Iterable[bytes]], seed: bytes, row: int, passes: int) -> bytes:
    """
    The answer of one row.

    Args:
        tensors: In walking order, each its raw bytes in pieces; all pieces but a tensor's
            last are multiples of 4,096 bytes.  Iterated once for each pass.
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
                        # Unsigned 64 bits hold the product of two words; at most 512 rows, so none comes twice.
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
