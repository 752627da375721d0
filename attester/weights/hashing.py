"""
Digests of files: SHA-256 and BLAKE3, both from one read, on all cores.

Files are hashed in parallel.  A file that is larger than one core's share of the bytes is
hashed alone: BLAKE3 on all cores, and SHA-256, which cannot be divided, on one core.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, Final, Protocol, TypeAlias

import blake3

from attester.errors import WeightsError
from attester.weights.folder import Bytes, ModelFile, open_model_file

SHA256: Final = "sha256"
BLAKE3: Final = "blake3"
ALGORITHMS: Final = (SHA256, BLAKE3)

Digests: TypeAlias = dict[str, bytes]
"""By the names in `ALGORITHMS`, 32 bytes each."""
Progress: TypeAlias = Callable[[int], None]
"""Called with the number of bytes just read, possibly from several threads at once."""

_ALONE_SLICE_BYTES: Final = 128 << 20
"""Slices of a file that is hashed alone.  Large, because the cores wait for each other after each slice."""
_PIECE_BYTES: Final = 1 << 20
"""Several digests read the same piece in turn, while it is in the cache."""


class _Hash(Protocol):
    def update(self, data: Any, /) -> Any: ...
    def digest(self) -> bytes: ...


class Pace:
    """
    Limits the reading rate of all threads together to *bytes_per_s* on average.

    Args:
        clock: Monotonic seconds.
        sleep: Waits for a number of seconds; tests replace it.
    """

    def __init__(
        self,
        bytes_per_s: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        """Record that *count* bytes were read, and wait until more may be read."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / self._bytes_per_s
            wait_s = self._free_at - now
        self._sleep(wait_s)


def check_algorithms(names: Sequence[str]) -> tuple[str, ...]:
    """
    The named algorithms, in the order of `ALGORITHMS`.

    Raises:
        WeightsError: *names* is empty, or has an unknown algorithm.
    """
    if unknown := sorted(set(names) - set(ALGORITHMS)):
        raise WeightsError(f"there is no digest algorithm {unknown[0][:40]!r}; use {' or '.join(ALGORITHMS)}")
    if not names:
        raise WeightsError("no digest algorithm is named")
    return tuple(name for name in ALGORITHMS if name in names)


def hash_file(
    file: ModelFile, algorithms: Sequence[str] = (SHA256,), progress: Progress | None = None
) -> Digests:
    """
    Read a file now and return its digests.

    Raises:
        WeightsError: the file cannot be read, or changed since it was listed or while it was read.
    """
    hashes = {name: _new(name, alone=False) for name in algorithms}
    with open_model_file(file) as stream:
        for data in stream.slices():
            for start in range(0, data.size, _PIECE_BYTES if len(hashes) > 1 else data.size):
                piece = data if len(hashes) == 1 else data[start : start + _PIECE_BYTES]
                for each in hashes.values():
                    each.update(piece)
            if progress is not None:
                progress(data.size)
    return {name: each.digest() for name, each in hashes.items()}


def _hash_alone(
    file: ModelFile, algorithms: Sequence[str], progress: Progress | None, pool: ThreadPoolExecutor
) -> Digests:
    """As `hash_file`, with all cores for this file."""
    hashes = {name: _new(name, alone=True) for name in algorithms}

    def update(name: str, data: Bytes) -> None:
        hashes[name].update(data)

    with open_model_file(file) as stream:
        for data in stream.slices(at_most=_ALONE_SLICE_BYTES):
            updates = [pool.submit(update, name, data) for name in hashes]
            # Unmapping takes time: the previous slice is unmapped while this one is hashed.
            held = [data]  # noqa: F841
            # The algorithms wait for each other; otherwise the slower one would read the slice from disk again.
            for each in updates:
                each.result()
            if progress is not None:
                progress(data.size)
    return {name: each.digest() for name, each in hashes.items()}


def hash_files(
    files: Sequence[ModelFile],
    algorithms: Sequence[str],
    progress: Progress | None = None,
    done: Callable[[ModelFile, Digests], None] | None = None,
) -> list[Digests]:
    """
    Read *files* now and return their digests, in the same order.

    Args:
        files: As listed by `folder.open_folder`.
        algorithms: Names from `ALGORITHMS`.
        progress: Called with the number of bytes just read; an exception from it stops the work.
        done: Called with each file's digests as soon as they are known, in any order.

    Raises:
        WeightsError: as `hash_file`.
    """
    cores = len(os.sched_getaffinity(0))
    total = sum(file.size for file in files)
    found: dict[int, Digests] = {}

    def record(number: int, digests: Digests) -> None:
        found[number] = digests
        if done is not None:
            done(files[number], digests)

    with ThreadPoolExecutor(max(cores, len(ALGORITHMS)), "hash") as pool:
        parallel: dict[Future[Digests], int] = {}
        # The largest first, so that no core still has a large file at the end.
        for number in sorted(range(len(files)), key=lambda n: -files[n].size):
            file = files[number]
            if BLAKE3 in algorithms and file.size * cores > total and file.size > _PIECE_BYTES:
                record(number, _hash_alone(file, algorithms, progress, pool))
            else:
                parallel[pool.submit(hash_file, file, algorithms, progress)] = number
        try:
            for future in as_completed(parallel):
                record(parallel[future], future.result())
        except BaseException:
            # Running reads finish and are recorded, so that the next attempt need not repeat them.
            pool.shutdown(wait=True, cancel_futures=True)
            for future, number in parallel.items():
                if number not in found and not future.cancelled() and future.exception() is None:
                    record(number, future.result())
            raise
    return [found[number] for number in range(len(files))]


def _new(name: str, *, alone: bool) -> _Hash:
    check_algorithms((name,))
    if name == SHA256:
        return hashlib.sha256()
    threads = blake3.blake3.AUTO if alone else 1
    hasher: _Hash = blake3.blake3(max_threads=threads)
    return hasher
