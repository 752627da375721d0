"""The manifest of a model: every file with its size and digests; unchanged files come from the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

from attester.errors import WeightsError
from attester.evidence import Cached, File, Manifest
from attester.weights.cache import DigestCache
from attester.weights.folder import Folder
from attester.weights.hashing import SHA256, Digests, Progress, hash_files
from attester.weights.tensors import TensorFiles, tensor_files


@dataclass(frozen=True)
class FolderMeasurement:
    """The digests of a folder's files, in the files' order, and how many came from the cache."""

    folder: Folder
    digests: tuple[Digests, ...]
    cached: int
    oldest: int | None
    """When the oldest digest from the cache was computed, in seconds since 1970."""

    def to_claim(self) -> Manifest:
        """The manifest claim for evidence."""
        return self._claim

    @cached_property
    def _claim(self) -> Manifest:
        pairs = zip(self.folder.files, self.digests, strict=True)
        return Manifest(
            files=tuple(File(name=file.name, size=file.size, **digests) for file, digests in pairs),
            dtypes=_dtypes(self.folder),
            cached=None if self.oldest is None else Cached(files=self.cached, oldest=self.oldest),
        )


def measure(
    folder: Folder,
    algorithms: Sequence[str] = (SHA256,),
    progress: Progress | None = None,
    cache: DigestCache | None = None,
    max_age_s: int | None = None,
    pace: Progress | None = None,
) -> FolderMeasurement:
    """
    The digests of a folder's files; each file is read at most once, and unchanged files not at all.

    After an interruption, the next call reads only the rest: finished files are in the cache.

    Args:
        folder: As listed now.
        algorithms: Names from `hashing.ALGORITHMS`.
        progress: Called with the number of bytes just read or found in the cache.
        cache: Where digests are looked up and stored; `None` reads every file.
        max_age_s: Older digests are computed again.
        pace: Called with the number of bytes just read; it may wait before it returns.

    Raises:
        WeightsError: a file cannot be read, or changed while it was read.
    """
    known: FolderMeasurement | None = None if cache is None else cache.recent.get(_place(folder, algorithms))
    if cache is not None and known is not None:
        fresh = max_age_s is None or cache.now - (known.oldest or 0) <= max_age_s
        if known.folder == folder and fresh:
            if progress is not None:
                progress(folder.total)
            return known
    found: list[Digests | None] = [None] * len(folder.files)
    oldest: int | None = None
    if cache is not None:
        for number, file in enumerate(folder.files):
            hit = cache.find(file, algorithms, max_age_s)
            if hit is not None:
                found[number] = hit[0]
                oldest = hit[1] if oldest is None else min(oldest, hit[1])
    rest = [number for number, entry in enumerate(found) if entry is None]
    cached = len(found) - len(rest)
    if progress is not None and cached:
        progress(folder.total - sum(folder.files[number].size for number in rest))

    def report(count: int) -> None:
        for callback in (pace, progress):
            if callback is not None:
                callback(count)

    files = [folder.files[number] for number in rest]
    store = None if cache is None else partial(cache.store, began=cache.now)
    computed = hash_files(files, algorithms, report, store) if files else []
    for number, entry in zip(rest, computed, strict=True):
        found[number] = entry
    digests = tuple(entry for entry in found if entry is not None)
    measured = FolderMeasurement(folder, digests, cached, oldest)
    if cache is not None and not rest:
        cache.recent[_place(folder, algorithms)] = measured
    return measured


def _place(folder: Folder, algorithms: Sequence[str]) -> tuple[str, ...]:
    return (str(folder.root), *algorithms)


def _dtypes(folder: Folder) -> dict[str, int]:
    try:
        return bytes_by_dtype(folder)
    except WeightsError:
        # A walk refuses inconsistent headers; the manifest still lists the files.
        return {}


def bytes_by_dtype(folder: Folder) -> dict[str, int]:
    """
    Bytes of weights by type, which show a quantised copy at once; empty if the folder has no tensors.

    Raises:
        WeightsError: a header is refused.
    """
    files = tensor_files(folder)
    return dict(_bytes_by_dtype(Folder(folder.root, files))) if files else {}


@lru_cache(maxsize=32)
def _bytes_by_dtype(folder: Folder) -> dict[str, int]:
    # The files' stamps are part of the cache key, so headers are read again only after a change.
    found: dict[str, int] = {}
    for tensor in TensorFiles(folder).infos:
        found[tensor.dtype] = found.get(tensor.dtype, 0) + tensor.size
    return found
