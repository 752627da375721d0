"""
What every kernel shares: the protocols, the types, and the arithmetic of the walk.

A kernel starts a `Walk`, which holds the state of the rows and receives the weights step by
step.  `cpu` and `device` implement kernels; `select` picks one.  The arithmetic is specified
in ``docs/possession.md``.
"""

from __future__ import annotations

import hashlib
import importlib.util
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

K: Final = 4096
"""Width of a row of weights, and of the state."""

Int8: TypeAlias = npt.NDArray[np.int8]
Int32: TypeAlias = npt.NDArray[np.int32]
Words: TypeAlias = npt.NDArray[np.uint32]
Chunk: TypeAlias = Any
"""Bytes of weights, one-dimensional int8: a numpy array, or a torch tensor on a device."""

WALK_DOMAIN: Final = b"touchstone/weight-walk/1"
LARGE_CHUNK_BYTES: Final = 4 << 20
"""The memory of a chunk of at least this size may be overwritten once the next chunk is fed."""

Backend: TypeAlias = Literal["numpy", "torch", "C"]
"""What multiplies.  C is for a handful of rows: it needs no library, which would take seconds to load."""


class Walk(Protocol):
    """A walk in progress: the state of some rows after the weights fed so far."""

    def feed(self, chunk: Chunk) -> None:
        """Feed bytes of the current step: a multiple of K, except the last chunk of a tensor."""
        ...

    def end_step(self) -> None:
        """End the step after its last tensor: mix the state and compute the next inputs."""
        ...

    def states(self) -> Words:
        """The states, uint32 [rows, K]."""
        ...


class Kernel(Protocol):
    """Starts walks on one device."""

    @property
    def name(self) -> str:
        """The library and the device, for people: ``torch and C on the CPU``."""
        ...

    def begin(self, words: Words) -> Walk:
        """Start a walk of the rows with these words, uint32 [rows, 4]."""
        ...


def row_words(seed: bytes, row: int) -> tuple[int, int, int, int]:
    """The four words s0 … s3 of row *row* under *seed*."""
    digest = hashlib.shake_256(WALK_DOMAIN + seed + row.to_bytes(4, "little")).digest(16)
    s0, s1, s2, s3 = np.frombuffer(digest, "<u4").tolist()
    return s0, s1, s2, s3


def mix(x: npt.ArrayLike) -> Words:
    """The walk's bijection on 32-bit words, of each element of *x*."""
    mixed = np.array(x, dtype=np.uint32)
    mix_in_place(mixed, np.empty_like(mixed))
    return mixed


def mix_in_place(x: Words, scratch: Words) -> None:
    """`mix`, written back into *x*; *scratch* is working memory of the same shape."""
    np.right_shift(x, _16, out=scratch)
    x ^= scratch
    x *= _M1
    np.right_shift(x, _15, out=scratch)
    x ^= scratch
    x *= _M2
    np.right_shift(x, _15, out=scratch)
    x ^= scratch


_15, _16 = np.uint32(15), np.uint32(16)
_M1, _M2 = np.uint32(0x21F0AAAD), np.uint32(0x735A2D97)


def first_state(words: Words, part: slice = slice(K)) -> Words:
    """``S[k] = mix(mix(k ⊕ s2) + s3)``, uint32 [K, rows]: one column for each row of the challenge."""
    index = np.arange(K, dtype=np.uint32)[part]
    return mix(mix(index[:, None] ^ words[:, 2]) + words[:, 3])


def inputs_of(state: Words) -> Int8:
    """X: the top byte of each word with its lowest bit set, so it is never 0 or −128."""
    return ((state >> np.uint32(24)) | np.uint32(1)).astype(np.uint8).view(np.int8)


def multipliers(words: Words, first: int, count: int) -> Words:
    """C of *count* blocks from block *first* on, uint32 [count, rows]: odd, and different for each block."""
    blocks = (np.arange(first, first + count) & 0xFFFFFFFF).astype(np.uint32)[:, None]
    return mix(mix(blocks ^ words[:, 0]) + words[:, 1]) | np.uint32(1)


def has_torch() -> bool:
    """Whether torch is installed."""
    return importlib.util.find_spec("torch") is not None
