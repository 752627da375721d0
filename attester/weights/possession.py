"""
The two challenges that only the weights can answer: `read` and `walk`.

They use only integers and hashes, so every device and library gives the same answer.
``docs/possession.md`` specifies them to the byte, and ``fixtures/vectors`` has test vectors.
Both sides use this module: the node to answer, and the minter to compute the answers in advance.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta, Struct

from attester.errors import WeightsError
from attester.weights.folder import Folder
from attester.weights.hashing import SHA256, hash_file
from attester.weights.kernels import K, Kernel
from attester.weights.tensors import Source

READ_DOMAIN: Final = b"touchstone/possession-read/1"
WHOLE_UP_TO: Final = 67108864
"""Files of at most this many bytes are hashed whole."""
WINDOW: Final = 4096
"""Bytes of one window."""
SEED_BYTES: Final = 32


class ReadChallenge(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A `read` challenge as a session carries it."""

    seed: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    windows: Annotated[int, Meta(ge=1, le=65536)]
    files: tuple[str, ...] | None = None
    """The files that are read, which the session names beside the challenges; `None`: all of the folder."""


class WalkChallenge(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A `walk` challenge as a session carries it."""

    seed: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    rows: Annotated[int, Meta(ge=4, le=2048)]
    passes: Annotated[int, Meta(ge=1, le=64)]
    files: tuple[str, ...] | None = None
    """The files whose tensors are walked; `None`: all of the folder."""


class ModelChallenge(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The challenges of a session for one model."""

    model: Annotated[str, Meta(max_length=128)]
    read: ReadChallenge | None = None
    walk: WalkChallenge | None = None

    def about(self, files: tuple[str, ...] | None) -> ModelChallenge:
        """The same challenges, about these files alone."""
        if files is None:
            return self
        return ModelChallenge(
            self.model,
            None if self.read is None else msgspec.structs.replace(self.read, files=files),
            None if self.walk is None else msgspec.structs.replace(self.walk, files=files),
        )


def commitment(answer: bytes) -> bytes:
    """What the pool stores of an answer: a stolen database does not let anyone answer."""
    return hashlib.sha256(answer).digest()


def window(seed: bytes, index: int, total: int) -> tuple[int, int]:
    """The half-open range of bytes that window *index* covers, out of *total* bytes."""
    digest = hashlib.shake_256(READ_DOMAIN + seed + index.to_bytes(4, "little")).digest(16)
    place = int.from_bytes(digest, "little") % (total + WINDOW - 1) - (WINDOW - 1)
    return max(place, 0), min(place + WINDOW, total)


def read(folder: Folder, seed: bytes, windows: int, *, whole_up_to: int = WHOLE_UP_TO) -> bytes:
    """
    Answer a `read` challenge from the files as they are now.

    Args:
        folder: The model's files.
        seed: 32 bytes.
        windows: The number of windows.
        whole_up_to: Files of at most this many bytes are hashed whole; only tests change it.

    Returns:
        32 bytes.

    Raises:
        WeightsError: a file cannot be read, a file changed, or the files have no bytes at all.
    """
    total = folder.total
    if total == 0:
        raise WeightsError(f"{folder.root} has no bytes")
    digest = hashlib.sha256(READ_DOMAIN + seed)
    for file in folder.files:
        if file.size <= whole_up_to:
            digest.update(hash_file(file)[SHA256])
    starts = np.cumsum([0, *(file.size for file in folder.files)]).tolist()

    def piece(number: int, start: int, size: int) -> bytes:
        # Opened for each window: a model may have more files than a process may have open.
        file = folder.files[number]
        try:
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(descriptor, size, start)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise WeightsError(f"{file.name} cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise WeightsError(f"{file.name} changed while it was read")
        return data

    for index in range(windows):
        begin, end = window(seed, index, total)
        number = int(np.searchsorted(starts, begin, side="right")) - 1
        while begin < end:
            stop = min(end, starts[number + 1])
            if stop > begin:
                digest.update(piece(number, begin - starts[number], stop - begin))
            begin, number = stop, number + 1
    return digest.digest()


def walk(
    tensors: Iterable[Source],
    rows: Sequence[tuple[int, int, int, int]],
    passes: int,
    kernel: Kernel,
    progress: Callable[[int], None] | None = None,
) -> list[bytes]:
    """
    Walk *rows* through every byte of *tensors*, *passes* times.

    Rows are independent, so one walk can answer rows of many challenges.

    Args:
        tensors: In walking order; iterated once for each pass.
        rows: The words of each row, from `row_words`.
        passes: How often the rows pass all tensors.
        kernel: Computes the walk on its device.
        progress: Called with the number of bytes just fed; an exception from it stops the walk.

    Returns:
        32 bytes for each row, in order.

    Raises:
        WeightsError: the tensors have no bytes at all.
    """
    walk_state = kernel.begin(np.array(rows, dtype=np.uint32).reshape(-1, 4))
    for _ in range(passes):
        walked = 0
        filled = 0
        for tensor in tensors:
            if tensor.size == 0:
                continue
            for chunk in tensor.chunks():
                walk_state.feed(chunk)
                walked += len(chunk)
                if progress is not None:
                    progress(len(chunk))
            # A step has whole tensors, as many as give at least K rows.
            filled += -(-tensor.size // K)
            if filled >= K:
                walk_state.end_step()
                filled = 0
        if filled:
            walk_state.end_step()
        if not walked:
            raise WeightsError("there are no bytes to walk")
    return [hashlib.sha256(state.astype("<u4").tobytes()).digest() for state in walk_state.states()]
