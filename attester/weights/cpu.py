"""
The walk on the CPU: integer products by torch or numpy, the fold in C or numpy.

The tiles of a block are dealt to the threads in turn.  A thread folds the products of a tile
while they are still in its core's cache.  Products are exact: torch multiplies
int8 × int8 → int32; numpy multiplies float32 in blocks of 1,024 columns, so every sum stays
below 2²⁴.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from attester.errors import WeightsError
from attester.weights.kernels import (
    LARGE_CHUNK_BYTES,
    Backend,
    Chunk,
    Int8,
    Int32,
    K,
    Words,
    first_state,
    has_torch,
    inputs_of,
    mix_in_place,
    multipliers,
)

Multiply: TypeAlias = Callable[[Int8, Int32], None]
"""``multiply(weights, out)`` writes weights · inputs into *out*, int32 [rows, columns]."""
Products: TypeAlias = Callable[[Int8], Multiply]
"""``products(inputs)`` returns the `Multiply` of one step; *inputs* is int8 [K, columns]."""
Fold: TypeAlias = Callable[[Words, Int32, Words], None]
"""``fold(total, products, factor)``: ``total += mix(products · factor)``; may overwrite *products*."""

_EXACT_COLUMNS: Final = 1024
"""Columns of one float32 product: its sums stay below 2²⁴ and are exact."""
_TILE_ROWS: Final = 1024
"""Rows of a tile: with 32 columns its products stay in a core's cache until they are folded."""
_PART_WORDS: Final = 1 << 17
_COMPILE_TIMEOUT_S: Final = 60.0


def make_kernel(backend: Backend, *, compiled: bool) -> CpuKernel:
    """
    A kernel with the products of *backend*; the fold is in C if *compiled*, else in numpy.

    Raises:
        WeightsError: torch is not installed, or no C compiler works.
    """
    fold = c_fold() if compiled else numpy_fold
    if backend == "C":
        return CpuKernel(c_products, fold, "C", threads())
    if backend == "numpy":
        # BLAS starts its own threads.
        return CpuKernel(numpy_products, fold, "numpy", 1)
    if not has_torch():
        raise WeightsError("torch is not installed")
    return CpuKernel(torch_products, fold, "torch", threads())


def threads() -> int:
    """How many threads walk: one for each core this process may use, but at most OMP_NUM_THREADS."""
    cores = len(os.sched_getaffinity(0))
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(limit))) if limit.isdecimal() else cores


class CpuKernel:
    """Starts walks on the CPU."""

    def __init__(self, products: Products, fold: Fold, label: str, threads: int) -> None:
        self._products = products
        self._fold = fold
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "walk", _one_thread if label == "torch" else None)
        self.name = (
            f"{label} and {'numpy' if fold is numpy_fold else 'C'} on the CPU"
            if label != "C"
            else "C on the CPU"
        )

    def begin(self, words: Words) -> CpuWalk:
        """As `Kernel.begin`."""
        return CpuWalk(words, self._products, self._fold, self._pool, self._threads)


def _one_thread() -> None:
    # OpenMP keeps this setting for each thread.  Each walking thread multiplies alone.
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
        # Smaller tiles would fit a nearer cache, but each product packs its right side again.
        self._tile = min(_TILE_ROWS, max(K // threads, 64))
        self._out = [np.empty((self._tile, words.shape[0]), np.int32) for _ in range(threads)]
        self._block = 0
        self._state = np.empty((K, words.shape[0]), np.uint32)
        self._inputs = np.empty((K, words.shape[0]), np.int8)
        self._for_each_part(self._init_part)
        self._begin_step()

    def _for_each_part(self, work: Callable[[slice], None]) -> None:
        """Run *work* on slices of the state's rows that fit a cache, on all threads."""
        rows = max(_PART_WORDS // max(self._state.shape[1], 1), 1)
        parts = [slice(start, start + rows) for start in range(0, K, rows)]
        if self._threads == 1:
            for part in parts:
                work(part)
        else:
            list(self._pool.map(work, parts, chunksize=1))

    def _init_part(self, part: slice) -> None:
        self._state[part] = first_state(self._words, part)
        self._inputs[part] = inputs_of(self._state[part])

    def _mix_part(self, part: slice) -> None:
        state = self._state[part]
        mix_in_place(state, np.empty_like(state))
        self._inputs[part] = inputs_of(state)

    def _begin_step(self) -> None:
        # The sum starts from the state, and the products need only the inputs: so the sum is made in place.
        self._multiply = self._products(self._inputs)
        self._rows = 0
        self._pending: list[tuple[int, Int8]] = []
        self._pending_bytes = 0

    def feed(self, chunk: Chunk) -> None:
        """As `Walk.feed`."""
        whole = chunk.size - chunk.size % K
        if whole:
            self._queue(chunk[:whole].reshape(-1, K))
        if whole < chunk.size:
            # Only a ragged tail is copied, to pad it.
            tail = np.zeros((1, K), np.int8)
            tail[0, : chunk.size - whole] = chunk[whole:]
            self._queue(tail)
        if self._pending_bytes >= LARGE_CHUNK_BYTES:
            self._flush()

    def _queue(self, rows: Int8) -> None:
        self._pending.append((self._rows, rows))
        self._rows += rows.shape[0]
        self._pending_bytes += rows.size

    def end_step(self) -> None:
        """As `Walk.end_step`."""
        self._flush()
        self._block += -(-self._rows // K)
        self._for_each_part(self._mix_part)
        self._begin_step()

    def states(self) -> Words:
        """As `Walk.states`."""
        return np.ascontiguousarray(self._state.T)

    def _flush(self) -> None:
        if not self._pending:
            return
        first = self._pending[0][0] // K
        factors = multipliers(self._words, self._block + first, -(-self._rows // K) - first)
        work = partial(self._fold_tiles, self._pending, first, factors)
        if self._threads == 1:
            work(0)
        else:
            list(self._pool.map(work, range(self._threads)))
        self._pending, self._pending_bytes = [], 0

    def _fold_tiles(self, pending: list[tuple[int, Int8]], first: int, factors: Words, thread: int) -> None:
        """Multiply and fold the tiles that belong to *thread*."""
        tile, out = self._tile, self._out[thread]
        for start, rows in pending:
            done = 0
            while done < rows.shape[0]:
                place = (start + done) % K
                count = min(tile - place % tile, K - place, rows.shape[0] - done)
                if place // tile % self._threads == thread:
                    products = out[:count]
                    self._multiply(rows[done : done + count], products)
                    factor = factors[(start + done) // K - first]
                    self._fold(self._state[place : place + count], products, factor)
                done += count


def torch_products(inputs: Int8) -> Multiply:
    """Products by `torch._int_mm`."""
    import torch

    right = torch.from_numpy(np.ascontiguousarray(inputs))

    def multiply(weights: Int8, out: Int32) -> None:
        torch._int_mm(torch.from_numpy(weights), right, out=torch.from_numpy(out))

    return multiply


def c_products(inputs: Int8) -> Multiply:
    """Products by our own C, for few rows of a challenge."""
    function = library().touchstone_multiply
    function.restype = None
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_size_t] * 3
    right = np.ascontiguousarray(inputs.T, dtype=np.int16)
    columns, k = right.shape

    def multiply(weights: Int8, out: Int32) -> None:
        left = np.ascontiguousarray(weights)
        function(left.ctypes.data, right.ctypes.data, out.ctypes.data, left.shape[0], k, columns)

    return multiply


def count_numbers(numbers: npt.NDArray[np.uint16], stride: int, tables: Words) -> None:
    """
    Count how often each number of 16 bits stands at every *stride*-th place.

    Args:
        tables: uint32 [2, 65536], to which is added; their sum is the count.

    Raises:
        WeightsError: there is no C compiler, or it fails.
    """
    function = library().touchstone_count
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
    count = -(-numbers.size // stride)
    function(numbers.ctypes.data, count, stride, tables[0].ctypes.data, tables[1].ctypes.data)


def numpy_products(inputs: Int8) -> Multiply:
    """Float32 products of blocks that are narrow enough to be exact."""
    parts = [
        np.ascontiguousarray(inputs[start : start + _EXACT_COLUMNS], dtype=np.float32)
        for start in range(0, K, _EXACT_COLUMNS)
    ]

    def multiply(weights: Int8, out: Int32) -> None:
        left = weights.astype(np.float32)
        out[:] = 0
        for number, part in enumerate(parts):
            out += (left[:, number * _EXACT_COLUMNS : (number + 1) * _EXACT_COLUMNS] @ part).astype(np.int32)

    return multiply


def numpy_fold(total: Words, products: Int32, factor: Words) -> None:
    """The fold in numpy, for machines without a compiler."""
    x = products.view(np.uint32)
    x *= factor
    mix_in_place(x, np.empty_like(x))
    total += x


@cache
def library() -> ctypes.CDLL:
    """
    ``fold.c``, compiled for this processor in a folder that only this user can write to.

    Raises:
        WeightsError: there is no C compiler, or it fails.
    """
    return _compile(Path(__file__).with_name("fold.c"))


@cache
def c_fold() -> Fold:
    """The fold.  Raises `WeightsError` as `library`."""
    function = library().touchstone_fold
    function.restype = None
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_size_t] * 2

    def fold(total: Words, products: Int32, factor: Words) -> None:
        rows, columns = products.shape
        function(total.ctypes.data, products.ctypes.data, factor.ctypes.data, rows, columns)

    return fold


def _compile(source: Path) -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise WeightsError("there is no C compiler")
    try:
        with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
            built = Path(folder) / "fold.so"
            command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", str(built), str(source)]
            subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_TIMEOUT_S)  # noqa: S603
            return ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        raise WeightsError(f"{compiler} cannot compile the fold ({type(error).__name__})") from None
