"""
The two challenges that only the weights can answer: `read` and `walk`.

Integers and hashes only, so the same answer on every device and library; exact to the
byte in ``docs/possession.md``, with vectors in ``fixtures/vectors``.  Both sides use this
module: the node to answer, the minter to know the answers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from attester.errors import WeightsError
from attester.weights.kernels import K, Kernel
from attester.weights.manifest import Folder, hash_file
from attester.weights.tensors import Bytes, Tensor

READ_DOMAIN: Final = b"touchstone/possession-read/1"
WALK_DOMAIN: Final = b"touchstone/weight-walk/1"
WHOLE_UP_TO: Final = 67108864
WINDOW: Final = 4096
SEED_BYTES: Final = 32

Words = npt.NDArray[np.uint32]


class ReadChallenge(Struct, frozen=True, forbid_unknown_fields=True):
    """A `read` challenge as a session carries it."""

    seed: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    windows: Annotated[int, Meta(ge=1, le=65536)]


class WalkChallenge(Struct, frozen=True, forbid_unknown_fields=True):
    """A `walk` challenge as a session carries it."""

    seed: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    rows: Annotated[int, Meta(ge=4, le=2048)]
    passes: Annotated[int, Meta(ge=1, le=64)]


class ModelChallenge(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a session asks about one model."""

    model: Annotated[str, Meta(max_length=128)]
    read: ReadChallenge | None = None
    walk: WalkChallenge | None = None


def commitment(answer: bytes) -> bytes:
    """What the pool keeps of an answer: a stolen database lets nobody answer."""
    return hashlib.sha256(answer).digest()


def row_words(seed: bytes, row: int) -> tuple[int, int, int, int]:
    """The four words s0 … s3 of row *row* under *seed*."""
    digest = hashlib.shake_256(WALK_DOMAIN + seed + row.to_bytes(4, "little")).digest(16)
    s0, s1, s2, s3 = np.frombuffer(digest, "<u4").tolist()
    return s0, s1, s2, s3


def window(seed: bytes, index: int, total: int) -> tuple[int, int]:
    """The half-open range of bytes that window *index* covers of *total* bytes in all."""
    digest = hashlib.shake_256(READ_DOMAIN + seed + index.to_bytes(4, "little")).digest(16)
    place = int.from_bytes(digest, "little") % (total + WINDOW - 1) - (WINDOW - 1)
    return max(place, 0), min(place + WINDOW, total)


def read(folder: Folder, seed: bytes, windows: int, *, whole_up_to: int = WHOLE_UP_TO) -> bytes:
    """
    Answer a `read` challenge from the files as they are now.

    Args:
        folder: The model's files.
        seed: 32 bytes.
        windows: How many.
        whole_up_to: Files of at most so many bytes are hashed whole; for tests only.

    Returns:
        32 bytes.

    Raises:
        WeightsError: a file cannot be read or changed, or there are no bytes at all.
    """
    total = folder.total
    if total == 0:
        raise WeightsError(f"{folder.root} holds no bytes")
    digest = hashlib.sha256(READ_DOMAIN + seed)
    for file in folder.files:
        if file.size <= whole_up_to:
            digest.update(hash_file(file))
    with ExitStack() as stack:
        handles: dict[int, int] = {}
        starts = np.cumsum([0, *(file.size for file in folder.files)]).tolist()

        def piece(number: int, start: int, size: int) -> bytes:
            file = folder.files[number]
            try:
                if number not in handles:
                    handles[number] = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
                    stack.callback(os.close, handles[number])
                data = os.pread(handles[number], size, start)
            except OSError as error:
                raise WeightsError(f"{file.name} cannot be read: {error.strerror}") from None
            if len(data) != size:
                raise WeightsError(f"{file.name} changed while it was read")
            return data

        for index in range(windows):
            begin, end = window(seed, index, total)
            number = int(np.searchsorted(starts, begin, side="right")) - 1
            while begin < end:
                upto = min(end, starts[number + 1])
                if upto > begin:
                    digest.update(piece(number, begin - starts[number], upto - begin))
                begin, number = upto, number + 1
    return digest.digest()


def walk(
    tensors: Iterable[Tensor],
    rows: Sequence[tuple[int, int, int, int]],
    passes: int,
    kernel: Kernel,
    progress: Callable[[int], None] | None = None,
) -> list[bytes]:
    """
    Push *rows* through every byte of *tensors*, *passes* times.

    Rows are independent, so that rows of many challenges can go through in one pass.

    Args:
        tensors: In walking order; iterated once for each pass.
        rows: The words of each row, from `row_words`.
        passes: How often.
        kernel: What multiplies.
        progress: Called with the number of bytes just walked.

    Returns:
        32 bytes for each row, in order.

    Raises:
        WeightsError: the tensors have no bytes at all.
    """
    words = np.array(rows, dtype=np.uint32).reshape(-1, 4)
    s0, s1, s2, s3 = (np.ascontiguousarray(words[:, i]) for i in range(4))
    # One column for each row of the challenge, so that W · X needs no transposition.
    state = _mix(_mix(np.arange(K, dtype=np.uint32)[:, None] ^ s2) + s3)
    products = np.empty(state.shape, np.int32)
    scratch = np.empty_like(state)
    block = 0
    for _ in range(passes):
        walked = 0
        for step in _steps(tensors):
            inputs = ((state >> np.uint32(24)) | np.uint32(1)).astype(np.uint8).view(np.int8)
            multiply = kernel(inputs)
            total = state.copy()
            filled = 0
            for chunk in _chunks(step):
                rest = chunk
                while rest.shape[0]:
                    part, rest = rest[: K - filled], rest[K - filled :]
                    multiply(part, products[filled : filled + part.shape[0]])
                    filled += part.shape[0]
                    if filled == K:
                        _fold(total, products, _multiplier(block, s0, s1), scratch)
                        block, filled = block + 1, 0
            if filled:
                _fold(total[:filled], products[:filled], _multiplier(block, s0, s1), scratch)
                block += 1
            state = _mix(total)
            size = sum(data.size for data in step)
            walked += size
            if progress is not None:
                progress(size)
        if not walked:
            raise WeightsError("there are no bytes to walk")
    return [
        hashlib.sha256(np.ascontiguousarray(state[:, column]).astype("<u4").tobytes()).digest()
        for column in range(state.shape[1])
    ]


def _multiplier(block: int, s0: Words, s1: Words) -> Words:
    """C, one for each row: odd, and another for every block."""
    return _mix(_mix(np.uint32(block & 0xFFFFFFFF) ^ s0) + s1) | np.uint32(1)


def _fold(total: Words, products: npt.NDArray[np.int32], factor: Words, scratch: Words) -> None:
    """``total += mix(products · factor)``, in tiles that stay in the cache."""
    for start in range(0, total.shape[0], _TILE):
        tile = slice(start, start + _TILE)
        x = products[tile].view(np.uint32)
        x *= factor
        _mix_in_place(x, scratch[: x.shape[0]])
        total[tile] += x


def _steps(tensors: Iterable[Tensor]) -> Iterable[list[Bytes]]:
    """Whole tensors, stacked until a step has at least K rows."""
    step: list[Bytes] = []
    rows = 0
    for tensor in tensors:
        if tensor.data.size == 0:
            continue
        step.append(tensor.data)
        rows += -(-tensor.data.size // K)
        if rows >= K:
            yield step
            step, rows = [], 0
    if step:
        yield step


def _chunks(step: Sequence[Bytes]) -> Iterable[Bytes]:
    """The bytes of a step as rows of K; only ragged tails are copied, to be padded."""
    for data in step:
        yield from _rows(data)


def _rows(data: Bytes) -> Iterable[Bytes]:
    whole = data.size - data.size % K
    if whole:
        yield data[:whole].reshape(-1, K)
    if whole < data.size:
        tail = np.zeros((1, K), np.int8)
        tail[0, : data.size - whole] = data[whole:]
        yield tail


def _mix(x: Words) -> Words:
    """The bijection of the walk on 32 bits."""
    mixed = np.array(x, dtype=np.uint32)
    _mix_in_place(mixed, np.empty_like(mixed))
    return mixed


def _mix_in_place(x: Words, scratch: Words) -> None:
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
_TILE: Final = 512
"""Rows of a fold that are worked on together."""
