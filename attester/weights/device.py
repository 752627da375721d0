"""
The walk on an accelerator, through torch: the weights stay where the engine has them.

State, inputs and products stay on the device; only seeds go there and digests' states come
back.  Work goes into a stream of its own at the lowest priority, and never more than two
chunks ahead, so that serving comes first.  The fold is one torch expression, fused by
torch.compile where there is a compiler (Triton on CUDA), and run as it stands where not.
Everything here runs on torch's CPU device too, which is how it is tested without a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, Final

import numpy as np

from attester.errors import WeightsError
from attester.weights.kernels import Chunk, K, Kernel, Words, first_state, has_torch, multipliers

_ROWS_AT_LEAST: Final = 32
"""`torch._int_mm` on CUDA takes more than 16 rows …"""
_COLUMNS_OF: Final = 8
"""… and columns in multiples of 8."""
_PRODUCT_WORDS: Final = 1 << 23
"""Products held at a time: 32 MiB, which stays in the second-level cache of a large GPU."""
_AHEAD: Final = 2


def candidates(device: str, *, fused: bool | None) -> Iterator[tuple[str, Callable[[], Kernel]]]:
    """Ways to walk on *device*, the fastest first."""
    for compiled in (True, False):
        if fused in (None, compiled):
            name = f"torch{' compiled' if compiled else ''} on {device}"
            yield name, partial(DeviceKernel, device, compiled=compiled)


class DeviceKernel:
    """
    A kernel on a torch device.

    Raises:
        WeightsError: torch or the device is not there, or the compiler fails.
    """

    def __init__(self, device: str, *, compiled: bool) -> None:
        if not has_torch():
            raise WeightsError("torch is not installed")
        import torch

        try:
            self._device = torch.device(device)
            # Not every build knows every device, and not every machine has it.
            torch.empty(1, device=self._device)
        except (RuntimeError, AssertionError) as error:
            raise WeightsError(
                f"torch cannot use {device[:40]!r}: {str(error).splitlines()[0][:120]}"
            ) from None
        self._fold = compiled_fold() if compiled else fold
        if compiled:
            _warm(self._fold, self._device)
        self.name = f"torch{' compiled' if compiled else ''} on {device}"

    def begin(self, words: Words) -> DeviceWalk:
        """As `Kernel.begin`."""
        return DeviceWalk(words, self._device, self._fold)


def _mix(x: Any) -> Any:
    """`kernels.mix` on int32: shifts are arithmetic there, so what they drag in is masked off."""
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
    """`fold`, fused; raises `WeightsError` where torch cannot compile at all."""
    import torch

    try:
        compiled: Callable[[Any, Any, Any], None] = torch.compile(fold, dynamic=True)
    except RuntimeError as error:
        raise WeightsError(f"torch cannot compile: {str(error)[:120]}") from None
    return compiled


def _warm(function: Callable[[Any, Any, Any], None], device: Any) -> None:
    """Compile now, before a call comes: for one block and for several."""
    import torch

    for blocks in (1, 3):
        total = torch.zeros((K, _COLUMNS_OF), dtype=torch.int32, device=device)
        products = torch.zeros((blocks, K, _COLUMNS_OF), dtype=torch.int32, device=device)
        try:
            function(total, products, products[:, 0])
        except Exception as error:  # noqa: BLE001
            # Compilers fail in ways of their own; without one there is a slower way.
            raise WeightsError(f"torch.compile fails ({type(error).__name__})") from None


class DeviceWalk:
    """As `Walk`, on a torch device."""

    def __init__(self, words: Words, device: Any, function: Callable[[Any, Any, Any], None]) -> None:
        import torch

        self._torch: Any = torch
        self._device = device
        self._fold = function
        self._stream = self._torch.cuda.Stream(device) if device.type == "cuda" else None
        self._under_way: deque[Any] = deque()
        self._rows = words.shape[0]
        # Rows beyond those asked are walked for nothing, so that the columns come out even.
        filler = np.zeros((-words.shape[0] % _COLUMNS_OF, 4), np.uint32)
        self._words = np.concatenate([words, filler])
        self._columns = self._words.shape[0]
        blocks = max(_PRODUCT_WORDS // (K * self._columns), 1)
        with self._in_stream():
            self._state = self._to_device(first_state(self._words).view(np.int32))
            self._products = torch.empty((blocks * K, self._columns), dtype=torch.int32, device=device)
            self._scratch = torch.empty((_ROWS_AT_LEAST, K), dtype=torch.int8, device=device)
            self._few = torch.empty((_ROWS_AT_LEAST, self._columns), dtype=torch.int32, device=device)
        self._block = 0
        self._begin_step()

    def _in_stream(self) -> Any:
        # The stream waits for what the engine has queued before: weights may just have been loaded.
        if self._stream is None:
            return self._torch.no_grad()
        self._stream.wait_stream(self._torch.cuda.current_stream(self._device))
        return self._torch.cuda.stream(self._stream)

    def _to_device(self, array: Any) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device, copy=True)

    def _begin_step(self) -> None:
        with self._in_stream():
            top = ((self._state >> 24) & 0xFF) | 1
            # Column-major, as cuBLASLt likes its right side.
            self._inputs = top.to(self._torch.uint8).view(self._torch.int8).t().contiguous().t()
            self._total = self._state.clone()
        self._filled = 0

    def feed(self, chunk: Chunk) -> None:
        """As `Walk.feed`."""
        with self._in_stream(), self._torch.no_grad():
            data = self._to_device(chunk) if isinstance(chunk, np.ndarray) else chunk
            if self._stream is not None:
                # Freed by its owner while we still read it, its memory must not be given to others.
                data.record_stream(self._stream)
            whole = data.numel() // K
            if whole:
                self._take(data[: whole * K].view(whole, K))
            if whole * K < data.numel():
                self._scratch[0].zero_()
                self._scratch[0, : data.numel() - whole * K] = data[whole * K :]
                self._take(self._scratch[:1])
            self._pace()

    def _take(self, rows: Any) -> None:
        capacity = self._products.shape[0]
        while rows.shape[0]:
            count = min(capacity - self._filled, rows.shape[0])
            part, rows = rows[:count], rows[count:]
            self._multiply(part, self._products[self._filled : self._filled + count])
            self._filled += count
            if self._filled == capacity:
                self._flush()

    def _multiply(self, rows: Any, out: Any) -> None:
        if rows.shape[0] >= _ROWS_AT_LEAST:
            self._torch._int_mm(rows, self._inputs, out=out)
            return
        if rows.data_ptr() != self._scratch.data_ptr():
            self._scratch[: rows.shape[0]] = rows
        self._torch._int_mm(self._scratch, self._inputs, out=self._few)
        out.copy_(self._few[: rows.shape[0]])

    def _flush(self) -> None:
        """Fold the products held: whole blocks at once, then the last one as far as it goes."""
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
        """Wait for the chunk before the last: the device must not be promised far ahead."""
        if self._stream is None:
            return
        event = self._torch.cuda.Event()
        event.record(self._stream)
        self._under_way.append(event)
        if len(self._under_way) > _AHEAD:
            self._under_way.popleft().synchronize()

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
