"""
The walk on an accelerator, through torch: the weights stay where the engine has loaded them.

State, inputs and products stay on the device; only the rows' words are sent to it, and only
the final states come back.  The work runs in its own stream at the lowest priority, at most
two chunks ahead, so that serving comes first.  The fold is one torch expression.  torch.compile
fuses it if there is a compiler (Triton on CUDA); otherwise torch runs it step by step.  All of
this also runs on torch's CPU device, and is tested there without a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np

from attester.errors import WeightsError
from attester.weights.kernels import Chunk, K, Words, first_state, has_torch, multipliers

_MIN_ROWS: Final = 32
"""`torch._int_mm` on CUDA needs more than 16 rows."""
_COLUMN_MULTIPLE: Final = 8
"""`torch._int_mm` on CUDA needs a multiple of 8 columns."""
_PRODUCT_WORDS: Final = 1 << 23
"""Products held at a time: 32 MiB, which fit the second-level cache of a large GPU."""
_MAX_CHUNKS_AHEAD: Final = 2


class DeviceKernel:
    """
    Starts walks on a torch device.

    Raises:
        WeightsError: torch is not installed, it cannot use the device, or the compiler fails.
    """

    def __init__(self, device: str, *, compiled: bool) -> None:
        if not has_torch():
            raise WeightsError("torch is not installed")
        import torch

        try:
            self._device = torch.device(device)
            # Fails if this build of torch does not know the device, or this machine does not have it.
            torch.empty(1, device=self._device)
        except (RuntimeError, AssertionError) as error:
            raise WeightsError(
                f"torch cannot use {device[:40]!r}: {str(error).splitlines()[0][:120]}"
            ) from None
        self._fold = compiled_fold() if compiled else fold
        if compiled:
            _compile_now(self._fold, self._device)
        self.name = f"torch{' compiled' if compiled else ''} on {device}"

    def begin(self, words: Words) -> DeviceWalk:
        """As `Kernel.begin`."""
        return DeviceWalk(words, self._device, self._fold)


def _mix(x: Any) -> Any:
    """`kernels.mix` on int32, where shifts copy the sign bit: the copies are masked off."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x21F0AAAD
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * 0x735A2D97
    return x ^ ((x >> 15) & 0x1FFFF)


def fold(total: Any, products: Any, factors: Any) -> None:
    """``total += Σ mix(products · factors)`` over blocks: [K, n] += [blocks, K, n] · [blocks, n]."""
    import torch

    total += _mix(products * factors[:, None, :]).sum(0, dtype=torch.int32)


@cache
def compiled_fold() -> Callable[[Any, Any, Any], None]:
    """`fold`, fused by torch.compile.  Raises `WeightsError` if torch cannot compile at all."""
    import torch

    try:
        compiled: Callable[[Any, Any, Any], None] = torch.compile(fold, dynamic=True)
    except RuntimeError as error:
        raise WeightsError(f"torch cannot compile: {str(error)[:120]}") from None
    return compiled


def _compile_now(function: Callable[[Any, Any, Any], None], device: Any) -> None:
    """Compile for one block and for several blocks before the verifier calls."""
    import torch

    for blocks in (1, 3):
        total = torch.zeros((K, _COLUMN_MULTIPLE), dtype=torch.int32, device=device)
        products = torch.zeros((blocks, K, _COLUMN_MULTIPLE), dtype=torch.int32, device=device)
        try:
            function(total, products, products[:, 0])
        except Exception as error:  # noqa: BLE001
            # Compilers raise many kinds of errors; a slower kernel works without them.
            raise WeightsError(f"torch.compile fails ({type(error).__name__})") from None


class DeviceWalk:
    """As `Walk`, on a torch device."""

    def __init__(self, words: Words, device: Any, function: Callable[[Any, Any, Any], None]) -> None:
        import torch

        self._torch: Any = torch
        self._device = device
        self._fold = function
        self._stream = self._torch.cuda.Stream(device) if device.type == "cuda" else None
        self._events: deque[Any] = deque()
        self._rows = words.shape[0]
        # Extra rows, whose states are dropped, fill the columns up to a multiple.
        filler = np.zeros((-words.shape[0] % _COLUMN_MULTIPLE, 4), np.uint32)
        self._words = np.concatenate([words, filler])
        self._columns = self._words.shape[0]
        blocks = max(_PRODUCT_WORDS // (K * self._columns), 1)
        with self._in_stream():
            self._state = self._to_device(first_state(self._words).view(np.int32))
            self._products = torch.empty((blocks * K, self._columns), dtype=torch.int32, device=device)
            self._scratch = torch.empty((_MIN_ROWS, K), dtype=torch.int8, device=device)
            self._small_products = torch.empty((_MIN_ROWS, self._columns), dtype=torch.int32, device=device)
        self._block = 0
        self._begin_step()

    def _in_stream(self) -> Any:
        # Wait for the engine's earlier work: it may still be loading weights.
        if self._stream is None:
            return self._torch.no_grad()
        self._stream.wait_stream(self._torch.cuda.current_stream(self._device))
        return self._torch.cuda.stream(self._stream)

    def _to_device(self, array: Any) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device, copy=True)

    def _begin_step(self) -> None:
        with self._in_stream():
            top = ((self._state >> 24) & 0xFF) | 1
            # Column-major: cuBLASLt needs the right side in this layout.
            self._inputs = top.to(self._torch.uint8).view(self._torch.int8).t().contiguous().t()
            self._total = self._state.clone()
        self._filled = 0

    def feed(self, chunk: Chunk) -> None:
        """As `Walk.feed`."""
        with self._in_stream(), self._torch.no_grad():
            data = self._to_device(chunk) if isinstance(chunk, np.ndarray) else chunk
            if self._stream is not None:
                # If the owner frees the chunk while the walk reads it, its memory must not be reused yet.
                data.record_stream(self._stream)
            whole = data.numel() // K
            if whole:
                self._multiply_rows(data[: whole * K].view(whole, K))
            if whole * K < data.numel():
                self._scratch[0].zero_()
                self._scratch[0, : data.numel() - whole * K] = data[whole * K :]
                self._multiply_rows(self._scratch[:1])
            self._pace()

    def _multiply_rows(self, rows: Any) -> None:
        capacity = self._products.shape[0]
        while rows.shape[0]:
            count = min(capacity - self._filled, rows.shape[0])
            part, rows = rows[:count], rows[count:]
            self._multiply(part, self._products[self._filled : self._filled + count])
            self._filled += count
            if self._filled == capacity:
                self._flush()

    def _multiply(self, rows: Any, out: Any) -> None:
        if rows.shape[0] >= _MIN_ROWS:
            self._torch._int_mm(rows, self._inputs, out=out)
            return
        if rows.data_ptr() != self._scratch.data_ptr():
            self._scratch[: rows.shape[0]] = rows
        self._torch._int_mm(self._scratch, self._inputs, out=self._small_products)
        out.copy_(self._small_products[: rows.shape[0]])

    def _flush(self) -> None:
        """Fold the products held: all whole blocks at once, then the part of the last block."""
        whole, rest = divmod(self._filled, K)
        count = whole + (rest > 0)
        if not count:
            return
        factors = self._to_device(multipliers(self._words, self._block, count).view(np.int32))
        if whole:
            blocks = self._products[: whole * K].view(whole, K, self._columns)
            self._fold(self._total, blocks, factors[:whole])
        if rest:
            last = self._products[whole * K : whole * K + rest].view(1, rest, self._columns)
            self._fold(self._total[:rest], last, factors[whole:])
        self._block += count
        self._filled = 0

    def _pace(self) -> None:
        """Wait for older chunks, so that only a little work is queued on the device."""
        if self._stream is None:
            return
        event = self._torch.cuda.Event()
        event.record(self._stream)
        self._events.append(event)
        if len(self._events) > _MAX_CHUNKS_AHEAD:
            self._events.popleft().synchronize()

    def end_step(self) -> None:
        """As `Walk.end_step`."""
        with self._in_stream(), self._torch.no_grad():
            self._flush()
            self._state = _mix(self._total)
        self._begin_step()

    def states(self) -> Words:
        """As `Walk.states`."""
        if self._stream is not None:
            self._stream.synchronize()
        found = self._state.t().contiguous().cpu().numpy().view(np.uint32)
        states: Words = np.ascontiguousarray(found[: self._rows])
        return states
