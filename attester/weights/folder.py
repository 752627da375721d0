"""
The files of a model: how they are listed, and how their bytes are read.

A model has every regular file below its folder, except junk (`attester.weights.roles`), the files of version
control at the top (the ones that OpenSSF Model Signing ignores) and those that the caller excludes.  Other places
of a model are `attester.weights.stores`.  A symbolic link is followed if it leads inside the folder or, in a
Hugging Face cache, inside the model's ``models--…`` folder, whose ``snapshots`` are links into ``blobs``.  Any
other link is refused.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from attester.errors import WeightsError
from attester.evidence import MAX_FILES
from attester.weights import stores
from attester.weights.patterns import Excluded
from attester.weights.roles import Role, Roles, is_junk, without_partial

IGNORED_AT_TOP: Final = frozenset({".git", ".gitattributes", ".github", ".gitignore", ".cache", "model.sig"})
"""The first four as in OMS; ``.cache``, where download tools keep their state; the publisher's signature."""
SLICE_BYTES: Final = 16 << 20
"""Bytes of a file that are read or mapped at a time."""
_MAX_NAME_BYTES = 1024

Bytes = npt.NDArray[np.int8]


class ModelFile(Struct, frozen=True, gc=False):
    """A file of a model: its name in the manifest, its path, and its size when it was listed."""

    name: str
    path: Path | str
    size: int
    stamp: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Device, inode, mtime and ctime in nanoseconds; with the size, they show whether the file changed."""


class Folder(Struct, frozen=True):
    """A model folder and its files, in the order of the UTF-8 bytes of their names."""

    root: Path
    files: tuple[ModelFile, ...]

    @property
    def total(self) -> int:
        """The size of all files in bytes."""
        return sum(file.size for file in self.files)


def open_folder(root: Path, ignore: Collection[str] = (), *, everything: bool = False) -> Folder:
    """
    List the files of a model.

    Args:
        root: The folder, or another place of a model (`attester.weights.stores`).
        ignore: Files and folders that are not the model's, by their names relative to *root*, or by patterns
            (`attester.weights.patterns`).
        everything: Junk too, as attesters before these rules had it.

    Raises:
        WeightsError: *root* is no place of a model, is empty, has too many files, a link that leads
            outside, a name that is not UTF-8, or an entry that is not a file, folder or link.
    """
    try:
        place = stores.find_place(root)
        found = _files_of(place, Excluded(ignore), everything=everything)
        files = sorted(found, key=lambda file: file.name.encode())
    except FileNotFoundError as error:
        raise WeightsError(f"{error.filename or root} does not exist") from None
    except RuntimeError:
        raise WeightsError(f"{root} has a symbolic link that leads in a circle") from None
    except ValueError:
        raise WeightsError(f"{str(root)!r} is not a valid path") from None
    except OSError as error:
        raise WeightsError(f"{error.filename or root} cannot be read: {error.strerror}") from None
    if not files:
        raise WeightsError(f"{root} has no files")
    # Opened again by its root, it is the same.
    return Folder(place.root / place.only[0] if place.only else place.root, tuple(files))


def restrict(folder: Folder, names: Collection[str]) -> Folder:
    """
    The files of these *names* alone: those that a challenge is about.

    Raises:
        WeightsError: one is not there.
    """
    wanted = frozenset(names)
    files = tuple(file for file in folder.files if file.name in wanted)
    if len(files) != len(wanted):
        missing = sorted(wanted - {file.name for file in files})
        raise WeightsError(f"{missing[0][:200]} is missing in {folder.root}, and the reference value has it")
    return Folder(folder.root, files)


def _files_of(place: stores.Place, excluded: Excluded, *, everything: bool) -> Iterator[ModelFile]:
    if place.layers:
        for layer in place.layers:
            if not excluded.covers(layer.name):
                if not stores.is_complete(layer):
                    raise WeightsError(
                        f"{layer.path} is missing or not complete: it is the {layer.name} of {place.root}"
                    )
                yield _model_file(layer.name, str(layer.path), layer.path.stat())
    elif place.only:
        for name in place.only:
            path = place.root / name
            yield _model_file(name, str(path), path.stat())
    else:
        found = list(_list(place.root, excluded, everything=everything))
        yield from found if everything else _without_leftovers(found)


def _without_leftovers(files: Sequence[ModelFile]) -> Iterator[ModelFile]:
    """*files* without what downloads left that have ended, or that were not of the model's gates."""
    names = {file.name for file in files}
    roles: Roles | None = None
    for file in files:
        whole = without_partial(file.name)
        if whole is not None:
            roles = roles or Roles(names)
            is_old = whole in names and not file.name.endswith(".aria2")
            if is_old or roles.of(whole) is not Role.GATE:
                continue
        yield file


def _list(root: Path, excluded: Excluded, *, everything: bool) -> Iterator[ModelFile]:
    allowed = _cache_root(root) or root
    pending = [(str(root), "")]
    repositories = []
    count = 0
    while pending:
        folder, prefix = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if not prefix and entry.name in IGNORED_AT_TOP:
                    continue
                name = prefix + entry.name
                # A fast test that most names pass; the full check is only for the others.
                if not name.isascii() or len(name) > _MAX_NAME_BYTES:
                    _check_name(name)
                if excluded.covers(name) or (not everything and is_junk(name)):
                    continue
                if entry.is_symlink():
                    _check_link(name, Path(entry.path), allowed)
                status = entry.stat()
                if stat.S_ISDIR(status.st_mode):
                    pending.append((entry.path, name + "/"))
                    if not prefix and name.startswith("models--"):
                        repositories.append(name)
                    continue
                if not stat.S_ISREG(status.st_mode):
                    raise WeightsError(f"{name} is neither a file nor a folder")
                count += 1
                if count > MAX_FILES:
                    raise WeightsError(f"{root} has more than {MAX_FILES} files")
                yield _model_file(name, entry.path, status)
        if repositories:
            raise stores.several(root, "the cache of several repositories", sorted(repositories))


def _check_link(name: str, path: Path, allowed: Path) -> None:
    target = path.resolve()
    if not target.is_relative_to(allowed):
        raise WeightsError(f"{name} is a link that leads out of the model's folder")
    if target.is_dir():
        raise WeightsError(f"{name} is a link to a folder")


def _model_file(name: str, path: str, status: os.stat_result) -> ModelFile:
    return ModelFile(name, path, status.st_size, stamp_of(status))


def stamp_of(status: os.stat_result) -> tuple[int, int, int, int]:
    """The stamp of a file, as `ModelFile.stamp`."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _cache_root(root: Path) -> Path | None:
    """``models--ORG--NAME`` if *root* is ``models--ORG--NAME/snapshots/REVISION``, else `None`."""
    repository = root.parent.parent
    if root.parent.name == "snapshots" and (
        repository.name.startswith("models--") or (repository / "blobs").is_dir()
    ):
        return repository
    return None


def _check_name(name: str) -> None:
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise WeightsError(f"{os.fsencode(name)!r}: the name is not UTF-8") from None
    if length > _MAX_NAME_BYTES:
        raise WeightsError(f"{name[:80]}…: the name has more than {_MAX_NAME_BYTES} bytes")


class OpenFile:
    """
    An open file of a model, whose bytes are read slice by slice.

    If the operating system grants a read lease (fcntl(2)), slices are mapped without a copy: a
    process that wants to write to the file or truncate it must then wait until this one has
    noticed.  Otherwise slices are copied: for example if the file has another owner, is on a
    network file system, or is open for writing.
    """

    def __init__(self, file: ModelFile, descriptor: int) -> None:
        self._file = file
        self._descriptor = descriptor
        self._leased = _lease(descriptor)

    def slices(self, start: int = 0, size: int | None = None, at_most: int | None = None) -> Iterator[Bytes]:
        """
        Yield the bytes from *start* on, in arrays of at most *at_most* bytes, `SLICE_BYTES` if not given.

        Raises:
            WeightsError: the file cannot be read, or changes while it is read.
        """
        end = self._file.size if size is None else start + size
        while start < end:
            count = min(at_most or SLICE_BYTES, end - start)
            yield self._mapped(start, count) if self._leased else self._copied(start, count)
            start += count

    def _mapped(self, start: int, count: int) -> Bytes:
        if fcntl.fcntl(self._descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            raise WeightsError(f"{self._file.name} is written to while it is read")
        before = start % mmap.ALLOCATIONGRANULARITY
        try:
            # Private pages, because torch takes only writable arrays.
            mapped = mmap.mmap(
                self._descriptor, before + count, access=mmap.ACCESS_COPY, offset=start - before
            )
        except (OSError, ValueError) as error:
            raise WeightsError(f"{self._file.name} cannot be mapped: {error}") from None
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        return np.frombuffer(mapped, np.int8, count, before)

    def _copied(self, start: int, count: int) -> Bytes:
        data = np.empty(count, np.int8)
        view = data.data.cast("B")
        done = 0
        while done < count:
            try:
                count_read = os.preadv(self._descriptor, [view[done:]], start + done)
            except OSError as error:
                raise WeightsError(f"{self._file.name} cannot be read: {error.strerror}") from None
            if not count_read:
                raise WeightsError(f"{self._file.name} changed while it was read")
            done += count_read
        return data


@contextmanager
def open_model_file(file: ModelFile) -> Iterator[OpenFile]:
    """
    Open a file of a model, and check that it is unchanged since it was listed, now and at the end.

    Raises:
        WeightsError: the file cannot be read, or changed since it was listed or while it was read.
    """
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise WeightsError(f"{file.name} cannot be read: {error.strerror}") from None
    try:
        before = os.fstat(descriptor)
        listed = before.st_size == file.size and (not any(file.stamp) or stamp_of(before) == file.stamp)
        _check_same(file, listed, "since it was listed")
        yield OpenFile(file, descriptor)
        after = os.fstat(descriptor)
        unchanged = before.st_size == after.st_size and stamp_of(before) == stamp_of(after)
        _check_same(file, unchanged, "while it was read")
    except BaseException:
        # The traceback keeps the mapping, and the mapping keeps the lease: writers must not wait for it.
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        raise
    finally:
        # The lease lasts as long as a slice is mapped.
        os.close(descriptor)


def _check_same(file: ModelFile, same: bool, when: str) -> None:  # noqa: FBT001
    if not same:
        raise WeightsError(f"{file.name} changed {when}")


def _lease(descriptor: int) -> bool:
    try:
        # A harmless signal announces a writer; the default signal would end the process.
        fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


_F_SETSIG: Final = 10
"""Linux's F_SETSIG, which the module `fcntl` of Python 3.11 does not have."""
