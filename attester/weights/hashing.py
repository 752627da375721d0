"""
Digests of files: SHA-256 and BLAKE3, both from one read, on all cores.

Files are hashed beside each other.  A file that alone would keep the others waiting is
hashed by itself, BLAKE3 on all cores and SHA-256, which cannot be divided, on one.
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
from attester.weights.folder import Bytes, ModelFile, opened

SHA256: Final = "sha256"
BLAKE3: Final = "blake3"
ALGORITHMS: Final = (SHA256, BLAKE3)

Digests: TypeAlias = dict[str, bytes]
"""By the names of `ALGORITHMS`, 32 bytes each."""
Progress: TypeAlias = Callable[[int], None]
"""Called with the number of bytes just read, also from several threads at once."""

_SLICE_ALONE: Final = 128 << 20
"""The cores wait for each other at the end of each slice."""
_PIECE: Final = 1 << 20
"""Several digests take turns on a piece while it is in the cache."""


class _Hash(Protocol):
    def update(self, data: Any, /) -> Any: ...
    def digest(self) -> bytes: ...


class Pace:
    """
    Politeness: no more than *bytes_per_s* on average, whatever the number of threads.

    Args:
        clock: Monotonic seconds.
        sleep: Waits; a test replaces it.
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
        """Say that *count* bytes were read; returns when more may be."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / self._bytes_per_s
            wait_s = self._free_at - now
        self._sleep(wait_s)


def check_algorithms(names: Sequence[str]) -> tuple[str, ...]:
    """
    The algorithms named, in our order.

    Raises:
        WeightsError: none, or one that is not known.
    """
    if unknown := sorted(set(names) - set(ALGORITHMS)):
        raise WeightsError(f"no digest algorithm {unknown[0][:40]!r}; there are {', '.join(ALGORITHMS)}")
    if not names:
        raise WeightsError("no digest algorithm was named")
    return tuple(name for name in ALGORITHMS if name in names)


def hash_file(
    file: ModelFile, algorithms: Sequence[str] = (SHA256,), progress: Progress | None = None
) -> Digests:
    """
    Digests of a file, read now.

    Raises:
        WeightsError: it cannot be read, or changed since it was listed or while it was read.
    """
    hashes = {name: _new(name, alone=False) for name in algorithms}
    with opened(file) as stream:
        for data in stream.slices():
            for start in range(0, data.size, _PIECE if len(hashes) > 1 else data.size):
                piece = data if len(hashes) == 1 else data[start : start + _PIECE]
                for each in hashes.values():
                    each.update(piece)
            if progress is not None:
                progress(data.size)
    return {name: each.digest() for name, each in hashes.items()}


def _hash_alone(
    file: ModelFile, algorithms: Sequence[str], progress: Progress | None, pool: ThreadPoolExecutor
) -> Digests:
    """As `hash_file`, with all cores for the one file."""
    hashes = {name: _new(name, alone=True) for name in algorithms}

    def update(name: str, data: Bytes) -> None:
        hashes[name].update(data)

    with opened(file) as stream:
        for data in stream.slices(at_most=_SLICE_ALONE):
            updates = [pool.submit(update, name, data) for name in hashes]
            # Unmapping takes time too: the slice before goes while this one is hashed.
            held = [data]  # noqa: F841
            # The algorithms wait for each other, or the slower one would read the file again.
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
    Digests of *files*, in their order.

    Args:
        files: As listed.
        algorithms: Of `ALGORITHMS`.
        progress: Called with what was read; what it raises ends the work.
        done: Called with each file's digests as soon as they are there, in any order.

    Raises:
        WeightsError: as `hash_file`.
    """
    cores = len(os.sched_getaffinity(0))
    total = sum(file.size for file in files)
    found: dict[int, Digests] = {}

    def keep(number: int, digests: Digests) -> None:
        found[number] = digests
        if done is not None:
            done(files[number], digests)

    with ThreadPoolExecutor(max(cores, len(ALGORITHMS)), "hash") as pool:
        beside: dict[Future[Digests], int] = {}
        # The largest first, so that no core is left with one at the end.
        for number in sorted(range(len(files)), key=lambda n: -files[n].size):
            file = files[number]
            if BLAKE3 in algorithms and file.size * cores > total and file.size > _PIECE:
                keep(number, _hash_alone(file, algorithms, progress, pool))
            else:
                beside[pool.submit(hash_file, file, algorithms, progress)] = number
        try:
            for future in as_completed(beside):
                keep(beside[future], future.result())
        except BaseException:
            # What is under way ends first, and what was done is kept: a refusal loses no reading.
            pool.shutdown(wait=True, cancel_futures=True)
            for future, number in beside.items():
                if number not in found and not future.cancelled() and future.exception() is None:
                    keep(number, future.result())
            raise
    return [found[number] for number in range(len(files))]


def _new(name: str, *, alone: bool) -> _Hash:
    check_algorithms((name,))
    if name == SHA256:
        return hashlib.sha256()
    threads = blake3.blake3.AUTO if alone else 1
    hasher: _Hash = blake3.blake3(max_threads=threads)
    return hasher
