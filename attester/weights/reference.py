"""
A second `walk`, written from the specification alone: slow, short, float64 products.

It shares no code with `possession` and `kernels`, so that a wrong library or a slip there
cannot poison a pool unseen: every minted batch is spot-checked with it.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

_MASK = 0xFFFFFFFF


def walk_row(tensors: Sequence[bytes], seed: bytes, row: int, passes: int) -> bytes:
    """The answer of one row; *tensors* are raw bytes in walking order."""
    head = hashlib.shake_256(b"touchstone/weight-walk/1" + seed + row.to_bytes(4, "little"))
    words = head.digest(16)
    s0, s1, s2, s3 = (int.from_bytes(words[i : i + 4], "little") for i in range(0, 16, 4))
    state = (_mixed(_mixed(np.arange(4096, dtype=np.int64) ^ s2) + s3)) & _MASK
    g = 0
    for _ in range(passes):
        pending = b""
        rest = list(tensors)
        while rest:
            padded = rest.pop(0)
            pending += padded + bytes(-len(padded) % 4096)
            if not pending or (rest and len(pending) < 4096 * 4096):
                continue
            weights = np.frombuffer(pending, np.int8).reshape(-1, 4096)
            pending = b""
            x = ((state >> 24) | 1).astype(np.uint8).view(np.int8).astype(np.float64)
            y = np.concatenate(
                [weights[i : i + 512].astype(np.float64) @ x for i in range(0, len(weights), 512)]
            ).astype(np.int64)
            acc = state.copy()
            for start in range(0, len(y), 4096):
                block = y[start : start + 4096]
                c = int(_mixed(_mixed(np.array([g ^ s0])) + s1)[0]) | 1
                g += 1
                # Two's complement first, or the product would not fit in 64 bits.
                acc[: len(block)] += _mixed((block & _MASK) * c)
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
