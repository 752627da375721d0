"""
The walk on the CPU: integer products by torch or numpy, the fold in C or numpy.

Threads own the rows of a block by turns, a tile each, and fold a tile's products while
they are in their core's cache.  Products are exact: torch's are int8 × int8 → int32;
numpy's are float32 of blocks of 1,024, where every sum stays below 2²⁴.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from attester.errors import WeightsError
from attester.weights.kernels import (
    LARGE,
    Backend,
    Chunk,
    Int8,
    Int32,
    K,
    Kernel,
    Words,
    first_state,
    has_torch,
    inputs_of,
    mix_in_place,
    multipliers,
)

Multiply: TypeAlias = Callable[[Int8, Int32], None]
"""``multiply(weights, out)`` writes weights · inputs into *out*."""
Products: TypeAlias = Callable[[Int8], Multiply]
"""``products(inputs)`` takes the inputs of a step, int8 [K, columns]."""
Fold: TypeAlias = Callable[[Words, Int32, Words], None]
"""``fold(total, products, factor)``: ``total += mix(products · factor)``; may spoil *products*."""

_SPLIT: Final = 1024
_TILE: Final = 1024
"""Rows of a tile: at 32 columns its products stay in a core's cache until they are folded."""
_PART_WORDS: Final = 1 << 17
_COMPILE_S: Final = 60.0


def candidates(backend: Backend | None, *, fused: bool | None) -> Iterator[tuple[str, Callable[[], Kernel]]]:
    """Ways to walk on the CPU, the fastest first."""
    for name in ("torch", "numpy"):
        if backend not in (None, name):
            continue
        for compiled in (True, False):
            if fused in (None, compiled):
                yield f"{name} and {'C' if compiled else 'numpy'}", partial(_make, name, compiled)


def _make(name: str, compiled: bool) -> Kernel:  # noqa: FBT001
    fold = c_fold() if compiled else numpy_fold
    if name == "numpy":
        # BLAS brings threads of its own.
        return CpuKernel(numpy_products, fold, "numpy", 1)
    if not has_torch():
        raise WeightsError("torch is not installed")
    return CpuKernel(torch_products, fold, "torch", threads())


def threads() -> int:
    """How many threads walk: one for each core we may use, or as many as OMP_NUM_THREADS says."""
    cores = len(os.sched_getaffinity(0))
    told = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(told))) if told.isdecimal() else cores


class CpuKernel:
    """A kernel on the CPU."""

    def __init__(self, products: Products, fold: Fold, label: str, threads: int) -> None:
        self._products = products
        self._fold = fold
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "walk", _one_thread if label == "torch" else None)
        self.name = f"{label} and {'numpy' if fold is numpy_fold else 'C'} on the CPU"

    def begin(self, words: Words) -> CpuWalk:
        """As `Kernel.begin`."""
        return CpuWalk(words, self._products, self._fold, self._pool, self._threads)


def _one_thread() -> None:
    # OpenMP's setting, and so this thread's alone: each of ours multiplies by itself.
    import torch

    torch.set_num_threads(1)


class CpuWalk:
    """As `Walk`, on the CPU."""

    def __init__(
        self, words: Words, products: Products, fold: Fold, pool: ThreadPoolExecutor, threads: int
    ) -> None:
        self._words = words
        self._products = products
        self._fold = fold
        self._pool = pool
        self._threads = threads
        # Smaller ones would stay in a nearer cache, but each product packs its right side anew.
        self._tile = min(_TILE, max(K // threads, 64))
        self._out = [np.empty((self._tile, words.shape[0]), np.int32) for _ in range(threads)]
        self._block = 0
        self._state = np.empty((K, words.shape[0]), np.uint32)
        self._inputs = np.empty((K, words.shape[0]), np.int8)
        self._each_part(self._make_first)
        self._begin_step()

    def _each_part(self, work: Callable[[slice], None]) -> None:
        """Do *work* on parts of the state's rows small enough for a cache, on all threads."""
        rows = max(_PART_WORDS // max(self._state.shape[1], 1), 1)
        parts = [slice(start, start + rows) for start in range(0, K, rows)]
        if self._threads == 1:
            for part in parts:
                work(part)
        else:
            list(self._pool.map(work, parts, chunksize=1))

    def _make_first(self, part: slice) -> None:
        self._state[part] = first_state(self._words, part)
        self._inputs[part] = inputs_of(self._state[part])

    def _mix(self, part: slice) -> None:
        state = self._state[part]
        mix_in_place(state, np.empty_like(state))
        self._inputs[part] = inputs_of(state)

    def _begin_step(self) -> None:
        # The sum begins with the state, of which nothing but the inputs is needed any more: it is summed in place.
        self._multiply = self._products(self._inputs)
        self._rows = 0
        self._pending: list[tuple[int, Int8]] = []
        self._waiting = 0

    def feed(self, chunk: Chunk) -> None:
        """As `Walk.feed`."""
        whole = chunk.size - chunk.size % K
        if whole:
            self._take(chunk[:whole].reshape(-1, K))
        if whole < chunk.size:
            # Only ragged tails are copied, to be padded.
            tail = np.zeros((1, K), np.int8)
            tail[0, : chunk.size - whole] = chunk[whole:]
            self._take(tail)
        if self._waiting >= LARGE:
            self._flush()

    def _take(self, rows: Int8) -> None:
        self._pending.append((self._rows, rows))
        self._rows += rows.shape[0]
        self._waiting += rows.size

    def end_step(self) -> None:
        """As `Walk.end_step`."""
        self._flush()
        self._block += -(-self._rows // K)
        self._each_part(self._mix)
        self._begin_step()

    def states(self) -> Words:
        """As `Walk.states`."""
        return np.ascontiguousarray(self._state.T)

    def _flush(self) -> None:
        if not self._pending:
            return
        first = self._pending[0][0] // K
        factors = multipliers(self._words, self._block + first, -(-self._rows // K) - first)
        work = partial(self._work, self._pending, first, factors)
        if self._threads == 1:
            work(0)
        else:
            list(self._pool.map(work, range(self._threads)))
        self._pending, self._waiting = [], 0

    def _work(self, pending: list[tuple[int, Int8]], first: int, factors: Words, thread: int) -> None:
        """Multiply and fold the tiles that are *thread*'s."""
        tile, out = self._tile, self._out[thread]
        for start, rows in pending:
            at = 0
            while at < rows.shape[0]:
                place = (start + at) % K
                count = min(tile - place % tile, K - place, rows.shape[0] - at)
                if place // tile % self._threads == thread:
                    products = out[:count]
                    self._multiply(rows[at : at + count], products)
                    factor = factors[(start + at) // K - first]
                    self._fold(self._state[place : place + count], products, factor)
                at += count


def torch_products(inputs: Int8) -> Multiply:
    """`torch._int_mm`."""
    import torch

    right = torch.from_numpy(np.ascontiguousarray(inputs))

    def multiply(weights: Int8, out: Int32) -> None:
        torch._int_mm(torch.from_numpy(weights), right, out=torch.from_numpy(out))

    return multiply


def numpy_products(inputs: Int8) -> Multiply:
    """Float32 products of blocks short enough to be exact."""
    parts = [
        np.ascontiguousarray(inputs[start : start + _SPLIT], dtype=np.float32)
        for start in range(0, K, _SPLIT)
    ]

    def multiply(weights: Int8, out: Int32) -> None:
        left = weights.astype(np.float32)
        out[:] = 0
        for number, part in enumerate(parts):
            out += (left[:, number * _SPLIT : (number + 1) * _SPLIT] @ part).astype(np.int32)

    return multiply


def numpy_fold(total: Words, products: Int32, factor: Words) -> None:
    """The fold where there is no compiler."""
    x = products.view(np.uint32)
    x *= factor
    mix_in_place(x, np.empty_like(x))
    total += x


@cache
def c_fold() -> Fold:
    """
    The fold compiled for this processor, in a folder that nobody else can write to.

    Raises:
        WeightsError: no C compiler, or it fails.
    """
    function = _compile(Path(__file__).with_name("fold.c"))
    function.restype = None
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_size_t] * 2

    def fold(total: Words, products: Int32, factor: Words) -> None:
        rows, columns = products.shape
        function(total.ctypes.data, products.ctypes.data, factor.ctypes.data, rows, columns)

    return fold


def _compile(source: Path) -> ctypes._NamedFuncPointer:
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise WeightsError("no C compiler")
    try:
        with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
            library = Path(folder) / "fold.so"
            command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", str(library), str(source)]
            subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_S)  # noqa: S603
            return ctypes.CDLL(str(library)).touchstone_fold
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        raise WeightsError(f"{compiler} cannot compile the fold ({type(error).__name__})") from None
