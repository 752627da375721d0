"""The manifest of a model: every file with size and digests, what is unchanged from the cache."""

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
class Measured:
    """Digests of a folder's files, in their order, and which of them came from the cache."""

    folder: Folder
    digests: tuple[Digests, ...]
    cached: int
    oldest: int | None
    """When the oldest digest from the cache was taken, seconds since 1970."""

    def to_claim(self) -> Manifest:
        """As evidence carries it."""
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
) -> Measured:
    """
    Digests of a folder's files: each read once, files in parallel, unchanged ones not at all.

    A run that was interrupted goes on where it was: what was hashed is in the cache.

    Args:
        folder: As listed now.
        algorithms: `hashing.ALGORITHMS`, or some of them.
        progress: Called with the bytes just read, or found in the cache.
        cache: Where digests are found and kept; `None` reads everything.
        max_age_s: Digests older than that are taken anew.
        pace: Called with the bytes just read; returns when more may be.

    Raises:
        WeightsError: a file cannot be read, or changed while it was read.
    """
    known: Measured | None = None if cache is None else cache.recent.get(_place(folder, algorithms))
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
            entry = cache.find(file, algorithms, max_age_s)
            if entry is not None:
                found[number] = entry[0]
                oldest = entry[1] if oldest is None else min(oldest, entry[1])
    rest = [number for number, digests in enumerate(found) if digests is None]
    cached = len(found) - len(rest)
    if progress is not None and cached:
        progress(folder.total - sum(folder.files[number].size for number in rest))

    def told(count: int) -> None:
        for tell in (pace, progress):
            if tell is not None:
                tell(count)

    files = [folder.files[number] for number in rest]
    keep = None if cache is None else partial(cache.keep, began=cache.now)
    taken = hash_files(files, algorithms, told, keep) if files else []
    for number, digests in zip(rest, taken, strict=True):
        found[number] = digests
    measured = Measured(folder, tuple(digests for digests in found if digests is not None), cached, oldest)
    if cache is not None and not rest:
        cache.recent[_place(folder, algorithms)] = measured
    return measured


def _place(folder: Folder, algorithms: Sequence[str]) -> tuple[str, ...]:
    return (str(folder.root), *algorithms)


def _dtypes(folder: Folder) -> dict[str, int]:
    try:
        return bytes_by_dtype(folder)
    except WeightsError:
        # Headers that do not fit together are for a walk to refuse; the files are listed all the same.
        return {}


def bytes_by_dtype(folder: Folder) -> dict[str, int]:
    """
    How many bytes of weights there are of each type: what tells a quantised copy at a glance.

    Empty where the folder holds no tensors.  Raises `WeightsError` where their headers are refused.
    """
    files = tensor_files(folder)
    return dict(_bytes_by_dtype(Folder(folder.root, files))) if files else {}


@lru_cache(maxsize=32)
def _bytes_by_dtype(folder: Folder) -> dict[str, int]:
    # By the files' stamps: headers are read again only where one has changed.
    found: dict[str, int] = {}
    for tensor in TensorFiles(folder).infos:
        found[tensor.dtype] = found.get(tensor.dtype, 0) + tensor.size
    return found
