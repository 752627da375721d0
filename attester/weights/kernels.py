"""
Kernels: what carries the rows of a walk over the weights, on this or that device.

A kernel begins a `Walk`, which holds the rows' state and is fed the weights step by step.
Whichever is used has just answered a known walk exactly, on this machine and this device:
some libraries return wrong integers on some processors, and a wrong answer would be held
against the node.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from attester.errors import WeightsError

K: Final = 4096
"""Width of a row of weights, and of the state."""

Int8: TypeAlias = npt.NDArray[np.int8]
Int32: TypeAlias = npt.NDArray[np.int32]
Words: TypeAlias = npt.NDArray[np.uint32]
Chunk: TypeAlias = Any
"""Bytes of weights, one-dimensional int8: a numpy array, or a torch tensor on a device."""

WALK_DOMAIN: Final = b"touchstone/weight-walk/1"
LARGE: Final = 4 << 20
"""A chunk of at least so many bytes may be overwritten once the next one is taken."""

Backend: TypeAlias = Literal["numpy", "torch"]


class Walk(Protocol):
    """The state of some rows on their way through the weights."""

    def feed(self, chunk: Chunk) -> None:
        """Take bytes of the step, a multiple of K at a time but for a tensor's last."""
        ...

    def end_step(self) -> None:
        """All tensors of the step were fed: mix, and make the next inputs."""
        ...

    def states(self) -> Words:
        """The states, uint32 [rows, K]."""
        ...


class Kernel(Protocol):
    """Begins walks on one device."""

    @property
    def name(self) -> str:
        """What it is and where, for people: ``torch and C on the CPU``."""
        ...

    def begin(self, words: Words) -> Walk:
        """A walk of rows with the given words, uint32 [rows, 4]."""
        ...


def row_words(seed: bytes, row: int) -> tuple[int, int, int, int]:
    """The four words s0 … s3 of row *row* under *seed*."""
    digest = hashlib.shake_256(WALK_DOMAIN + seed + row.to_bytes(4, "little")).digest(16)
    s0, s1, s2, s3 = np.frombuffer(digest, "<u4").tolist()
    return s0, s1, s2, s3


def mix(x: npt.ArrayLike) -> Words:
    """The bijection of the walk on 32 bits."""
    mixed = np.array(x, dtype=np.uint32)
    mix_in_place(mixed, np.empty_like(mixed))
    return mixed


def mix_in_place(x: Words, scratch: Words) -> None:
    """`mix` of *x* where it stands; *scratch* is of its shape."""
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
    """X: the top byte of each word, its lowest bit set, so never 0 nor −128."""
    return ((state >> np.uint32(24)) | np.uint32(1)).astype(np.uint8).view(np.int8)


def multipliers(words: Words, first: int, count: int) -> Words:
    """C of *count* blocks from block *first* on, uint32 [count, rows]: odd, another for every block."""
    blocks = (np.arange(first, first + count) & 0xFFFFFFFF).astype(np.uint32)[:, None]
    return mix(mix(blocks ^ words[:, 0]) + words[:, 1]) | np.uint32(1)


@cache
def kernel(backend: Backend | None = None, device: str = "cpu", *, fused: bool | None = None) -> Kernel:
    """
    A kernel that has just proved itself exact.

    Args:
        backend: `numpy`, `torch`, or whichever is best.
        device: ``cpu``, or torch's name of an accelerator, such as ``cuda:0``.
        fused: With a compiler's help, without, or as it can be had.

    Raises:
        WeightsError: there is none, with what each candidate lacked.
    """
    from attester.weights import cpu
    from attester.weights import device as devices

    tried: list[str] = []
    makers = (
        cpu.candidates(backend, fused=fused) if device == "cpu" else devices.candidates(device, fused=fused)
    )
    for name, make in makers:
        try:
            candidate = make()
            if is_exact(candidate):
                return candidate
            tried.append(f"{name}: not exact on this machine")
        except Exception as error:  # noqa: BLE001
            # Whatever ails a library here, the next one may do.
            tried.append(f"{name}: {str(error)[:120] or type(error).__name__}")
    raise WeightsError(f"no kernel can walk on {device} ({'; '.join(tried)})")


def has_torch() -> bool:
    """Whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def best_device() -> str:
    """``cuda:0`` where torch has a GPU, else ``cpu``."""
    if not has_torch():
        return "cpu"
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


KNOWN_ANSWER: Final = "01b5aa7d778227dc54f35638e4547e7850ea518731843377a5ae9e377faeb13e"
"""SHA-256 of the answers to the known walk, by `attester.weights.reference`; a test holds the two together."""
KNOWN_SEED: Final = b"touchstone/known-walk/1".ljust(32, b"\0")
KNOWN_ROWS: Final = 32


@cache
def known_weights() -> tuple[Int8, ...]:
    """
    The weights of the known walk: two steps, more than one block, ragged tails, and extremes.

    Rows that agree in sign with the first inputs, or disagree everywhere, make sums beyond
    ±2²⁴ with odd low bits: what float32 or TF32 would round away.
    """
    # A copy: torch takes only arrays that could be written to.
    noise = np.frombuffer(hashlib.shake_256(KNOWN_SEED).digest((K + 40) * K + 1234), np.int8).copy()
    words = np.array([row_words(KNOWN_SEED, row) for row in range(KNOWN_ROWS)], np.uint32)
    agrees = inputs_of(first_state(words)).T > 0
    # As large as sums get, and as small.
    agrees[1::2] ^= True
    extremes = np.where(agrees, 127, -128).astype(np.int8)
    extremes -= (noise[: extremes.size].reshape(extremes.shape) & 3) * np.sign(extremes)
    lowest = np.full(17 * K + 1, -128, np.int8)
    return extremes.reshape(-1), lowest, noise, noise[: 5 * K + 7]


def is_exact(candidate: Kernel) -> bool:
    """Whether *candidate* answers the known walk."""
    rows = [row_words(KNOWN_SEED, row) for row in range(KNOWN_ROWS)]
    states = walk_states(candidate, known_weights(), rows)
    answers = b"".join(hashlib.sha256(state.astype("<u4").tobytes()).digest() for state in states)
    if hashlib.sha256(answers).hexdigest() != KNOWN_ANSWER:
        return False
    # Libraries go other ways for few columns, and for odd numbers of them; rows are independent.
    return all(
        np.array_equal(walk_states(candidate, known_weights(), rows[:count]), states[:count])
        for count in (1, 5)
    )


def walk_states(
    candidate: Kernel, weights: Iterable[Int8], rows: Sequence[tuple[int, int, int, int]]
) -> Words:
    """The states after one pass over whole tensors: the plain form of `possession.walk`."""
    walk = candidate.begin(np.array(rows, np.uint32))
    filled = 0
    for data in weights:
        walk.feed(data)
        filled += -(-data.size // K)
        if filled >= K:
            walk.end_step()
            filled = 0
    if filled:
        walk.end_step()
    return walk.states()
