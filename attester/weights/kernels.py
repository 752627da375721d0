"""
Exact integer products for `walk`, W · X with W int8 [rows, K] and X int8 [K, columns].

Two kernels.  `numpy` splits K into blocks of 1,024 and multiplies in float32, where every
sum stays below 2²⁴ and so is exact in any order.  `torch` uses `torch._int_mm`; some of
its builds return wrong numbers on CPUs without VNNI, so a kernel proves itself exact on
this machine before it is handed out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from attester.errors import WeightsError

K: Final = 4096
"""Width of a row of weights, and of the state."""

Int8: TypeAlias = npt.NDArray[np.int8]
Int32: TypeAlias = npt.NDArray[np.int32]
Multiply: TypeAlias = Callable[[Int8, Int32], None]
"""``multiply(weights, out)`` writes weights · inputs into *out*."""
Kernel: TypeAlias = Callable[[Int8], Multiply]
"""``kernel(inputs)`` takes the inputs of a step, int8 [K, columns], never −128."""

Backend: TypeAlias = Literal["numpy", "torch"]

_SPLIT: Final = 1024
_TILE: Final = 512


def numpy_kernel(inputs: Int8) -> Multiply:
    """Float32 products of blocks short enough to be exact."""
    parts = [
        np.ascontiguousarray(inputs[start : start + _SPLIT], dtype=np.float32)
        for start in range(0, K, _SPLIT)
    ]

    def multiply(weights: Int8, out: Int32) -> None:
        for top in range(0, weights.shape[0], _TILE):
            tile = weights[top : top + _TILE].astype(np.float32)
            total = np.zeros((tile.shape[0], inputs.shape[1]), np.int32)
            for number, part in enumerate(parts):
                product = tile[:, number * _SPLIT : (number + 1) * _SPLIT] @ part
                total += product.astype(np.int32)
            out[top : top + _TILE] = total

    return multiply


def torch_kernel(inputs: Int8) -> Multiply:
    """`torch._int_mm` on the CPU."""
    import torch  # slow to import, and not every node has it

    right = torch.from_numpy(np.ascontiguousarray(inputs))

    def multiply(weights: Int8, out: Int32) -> None:
        torch._int_mm(torch.from_numpy(weights), right, out=torch.from_numpy(out))

    return multiply


@cache
def kernel(backend: Backend | None = None) -> Kernel:
    """
    A kernel that has just proved itself exact; torch where it is there and exact, else numpy.

    Raises:
        WeightsError: *backend* was named, and is missing or not exact on this machine.
    """
    if backend in (None, "torch"):
        missing = importlib.util.find_spec("torch") is None
        if not missing and is_exact(torch_kernel):
            return torch_kernel
        if backend == "torch":
            raise WeightsError(
                "torch is not installed" if missing else "torch._int_mm is not exact on this machine"
            )
    if not is_exact(numpy_kernel):
        raise WeightsError("numpy's float32 products are not exact on this machine")
    return numpy_kernel


def is_exact(candidate: Kernel) -> bool:
    """Whether *candidate* multiplies extremes and noise exactly, in the shapes a walk has."""
    noise = np.random.default_rng(20260526)
    for rows, columns in ((1, 1), (1, 4), (17, 5), (K, 32)):
        weights = noise.integers(-128, 128, (rows, K), dtype=np.int8)
        # Sums above 2²⁴ with odd low bits: what float32 would round away.
        weights[0] = 127 - noise.integers(0, 4, K)
        weights[-1] = -128 + noise.integers(0, 4, K)
        inputs = (noise.integers(-64, 64, (K, columns), dtype=np.int8) * 2 + 1).astype(np.int8)
        inputs[:, 0] = 127
        inputs[:, -1] = -127
        out = np.empty((rows, columns), np.int32)
        candidate(inputs)(weights, out)
        if not np.array_equal(out, _products(weights, inputs)):
            return False
    return True


def _products(weights: Int8, inputs: Int8) -> npt.NDArray[np.float64]:
    """The products in float64, where they are exact by a wide margin, and fast through BLAS."""
    right = inputs.astype(np.float64)
    tiles = range(0, weights.shape[0], _TILE)
    return np.concatenate([weights[top : top + _TILE].astype(np.float64) @ right for top in tiles])
