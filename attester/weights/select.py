"""
Picks the kernel that walks on a device.

A kernel is used only if it has just answered a known walk exactly, on this machine and this
device: some libraries return wrong integers on some processors, and the verifier would hold
a wrong answer against the node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Final

import numpy as np

from attester.errors import WeightsError
from attester.weights import cpu
from attester.weights.device import DeviceKernel
from attester.weights.kernels import (
    Backend,
    Int8,
    K,
    Kernel,
    Words,
    first_state,
    has_torch,
    inputs_of,
    row_words,
)

KNOWN_ANSWER: Final = "01b5aa7d778227dc54f35638e4547e7850ea518731843377a5ae9e377faeb13e"
"""SHA-256 of the answers to the known walk.  A test computes it with `attester.weights.reference`."""
KNOWN_SEED: Final = b"touchstone/known-walk/1".ljust(32, b"\0")
KNOWN_ROWS: Final = 32


@cache
def kernel(backend: Backend | None = None, device: str = "cpu", *, fused: bool | None = None) -> Kernel:
    """
    The fastest kernel that answers the known walk exactly.

    Args:
        backend: `numpy` or `torch`; `None` tries both.
        device: ``cpu``, or torch's name of an accelerator, such as ``cuda:0``.
        fused: Whether a compiler fuses the fold; `None` tries with a compiler, then without.

    Raises:
        WeightsError: no candidate is exact; the message says why each one failed.
    """
    tried: list[str] = []
    makers = (
        cpu_candidates(backend, fused=fused) if device == "cpu" else device_candidates(device, fused=fused)
    )
    for name, make in makers:
        try:
            candidate = make()
            if is_exact(candidate):
                return candidate
            tried.append(f"{name}: not exact on this machine")
        except Exception as error:  # noqa: BLE001
            # A library may fail in any way here; the next candidate may still work.
            tried.append(f"{name}: {str(error)[:120] or type(error).__name__}")
    raise WeightsError(f"no kernel can walk on {device} ({'; '.join(tried)})")


def small_kernel() -> Kernel:
    """A kernel for a handful of rows, which loads no library; `kernel` if there is no compiler."""
    try:
        return kernel("C")
    except WeightsError:
        return kernel()


def best_device() -> str:
    """``cuda:0`` if torch has a GPU, else ``cpu``."""
    if not has_torch():
        return "cpu"
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def cpu_candidates(
    backend: Backend | None, *, fused: bool | None
) -> Iterator[tuple[str, Callable[[], Kernel]]]:
    """Names and makers of the kernels for the CPU, the fastest first."""
    if backend == "C":
        yield "C", partial(cpu.make_kernel, "C", compiled=True)
        return
    libraries: tuple[Backend, ...] = ("torch", "numpy")
    for library in libraries:
        if backend not in (None, library):
            continue
        for compiled in (True, False):
            if fused in (None, compiled):
                name = f"{library} and {'C' if compiled else 'numpy'}"
                yield name, partial(cpu.make_kernel, library, compiled=compiled)


def device_candidates(device: str, *, fused: bool | None) -> Iterator[tuple[str, Callable[[], Kernel]]]:
    """Names and makers of the kernels for an accelerator, the fastest first."""
    for compiled in (True, False):
        if fused in (None, compiled):
            name = f"torch{' compiled' if compiled else ''} on {device}"
            yield name, partial(DeviceKernel, device, compiled=compiled)


@cache
def known_weights() -> tuple[Int8, ...]:
    """
    The weights of the known walk: two steps, more than one block, ragged tails, and extremes.

    Rows whose signs all agree with the first inputs, or all disagree, give sums beyond ±2²⁴
    with odd low bits, which float32 or TF32 would round away.
    """
    # A copy, because torch takes only writable arrays.
    noise = np.frombuffer(hashlib.shake_256(KNOWN_SEED).digest((K + 40) * K + 1234), np.int8).copy()
    words = np.array([row_words(KNOWN_SEED, row) for row in range(KNOWN_ROWS)], np.uint32)
    agrees = inputs_of(first_state(words)).T > 0
    # Odd rows give the smallest possible sums, even rows the largest.
    agrees[1::2] ^= True
    extremes = np.where(agrees, 127, -128).astype(np.int8)
    extremes -= (noise[: extremes.size].reshape(extremes.shape) & 3) * np.sign(extremes)
    lowest = np.full(17 * K + 1, -128, np.int8)
    return extremes.reshape(-1), lowest, noise, noise[: 5 * K + 7]


def is_exact(candidate: Kernel) -> bool:
    """Whether *candidate* answers the known walk correctly."""
    rows = [row_words(KNOWN_SEED, row) for row in range(KNOWN_ROWS)]
    states = walk_states(candidate, known_weights(), rows)
    answers = b"".join(hashlib.sha256(state.astype("<u4").tobytes()).digest() for state in states)
    if hashlib.sha256(answers).hexdigest() != KNOWN_ANSWER:
        return False
    # Libraries use other code paths for few columns and for odd numbers of columns.
    return all(
        np.array_equal(walk_states(candidate, known_weights(), rows[:count]), states[:count])
        for count in (1, 5)
    )


def walk_states(
    candidate: Kernel, weights: Iterable[Int8], rows: Sequence[tuple[int, int, int, int]]
) -> Words:
    """The states after one pass over whole tensors: `possession.walk` in its simplest form."""
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
