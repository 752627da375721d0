"""
The files of a model folder: which there are, and how their bytes are read.

Which files: every regular file below the folder, except version control's own at the
top (as OpenSSF Model Signing ignores them) and what the caller names.  Symbolic links are
followed where they lead inside the folder, or, in a Hugging Face cache, inside the model's
``models--…`` folder, whose ``snapshots`` are links into ``blobs``; any other link is
refused by name.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from attester.errors import WeightsError
from attester.evidence import MAX_FILES

IGNORED_AT_TOP: Final = frozenset({".git", ".gitattributes", ".github", ".gitignore", ".cache", "model.sig"})
"""The first four as OMS has them; where download tools keep their own notes; a publisher's signature."""
SLICE: Final = 16 << 20
"""Bytes of a file that are at hand at a time."""
_MAX_NAME = 1024

Bytes = npt.NDArray[np.int8]


class ModelFile(Struct, frozen=True, gc=False):
    """A file of a model: its name in the manifest, where it lies, its size when listed."""

    name: str
    path: Path | str
    size: int
    stamp: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Device, inode, mtime and ctime in nanoseconds: with the size, what a cache goes by."""


class Folder(Struct, frozen=True):
    """A model folder whose files were listed, ordered by the UTF-8 bytes of their names."""

    root: Path
    files: tuple[ModelFile, ...]

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def open_folder(root: Path, ignore: Collection[str] = ()) -> Folder:
    """
    List the files of a model.

    Args:
        root: The folder.
        ignore: Names, relative to it, of files and folders that are not the model's.

    Raises:
        WeightsError: not a folder, empty, too many files, a link that leads outside, a
            name that is not UTF-8, or something that is neither file, folder nor link.
    """
    try:
        real = root.resolve(strict=True)
        if not real.is_dir():
            raise WeightsError(f"{root} is not a folder")
        files = sorted(_list(real, frozenset(ignore)), key=lambda file: file.name.encode())
    except FileNotFoundError as error:
        raise WeightsError(f"{error.filename or root} does not exist") from None
    except RuntimeError:
        raise WeightsError(f"{root} holds a symbolic link that leads in a circle") from None
    except ValueError:
        raise WeightsError(f"{str(root)!r} is no folder's name") from None
    except OSError as error:
        raise WeightsError(f"{error.filename or root} cannot be read: {error.strerror}") from None
    if not files:
        raise WeightsError(f"{root} holds no files")
    return Folder(real, tuple(files))


def _list(root: Path, ignore: frozenset[str]) -> Iterator[ModelFile]:
    allowed = _cache_root(root) or root
    pending = [(str(root), "")]
    count = 0
    while pending:
        folder, prefix = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if not prefix and entry.name in IGNORED_AT_TOP:
                    continue
                name = prefix + entry.name
                # What most names are is seen at once; the others are looked at.
                if not name.isascii() or len(name) > _MAX_NAME:
                    _check_name(name)
                if name in ignore:
                    continue
                if entry.is_symlink():
                    target = Path(entry.path).resolve()
                    if not target.is_relative_to(allowed):
                        raise WeightsError(f"{name} is a link that leads out of the model's folder")
                    if target.is_dir():
                        raise WeightsError(f"{name} is a link to a folder")
                status = entry.stat()
                if stat.S_ISDIR(status.st_mode):
                    pending.append((entry.path, name + "/"))
                    continue
                if not stat.S_ISREG(status.st_mode):
                    raise WeightsError(f"{name} is neither a file nor a folder")
                count += 1
                if count > MAX_FILES:
                    raise WeightsError(f"{root} holds more than {MAX_FILES} files")
                stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
                yield ModelFile(name, entry.path, status.st_size, stamp)


def stamp_of(status: os.stat_result) -> tuple[int, int, int, int]:
    """What, with the size, tells that a file is the one it was."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _cache_root(root: Path) -> Path | None:
    """``models--ORG--NAME`` for ``models--ORG--NAME/snapshots/REVISION``."""
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        return root.parent.parent
    return None


def _check_name(name: str) -> None:
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise WeightsError(f"{os.fsencode(name)!r}: the name is not UTF-8") from None
    if length > _MAX_NAME:
        raise WeightsError(f"{name[:80]}…: a name of more than {_MAX_NAME} bytes")


class OpenFile:
    """
    An open file of a model, whose bytes are read slice by slice.

    Mapped, without a copy, where the kernel grants a read lease (fcntl(2)): then whoever
    wants to write to the file or cut it short waits until we have noticed, and a mapping
    cannot be pulled from under us.  Copied where it does not (another owner, a network
    file system, a file that somebody has open for writing).
    """

    def __init__(self, file: ModelFile, descriptor: int) -> None:
        self._file = file
        self._descriptor = descriptor
        self._leased = _lease(descriptor)

    def slices(self, start: int = 0, size: int | None = None, at_most: int | None = None) -> Iterator[Bytes]:
        """
        The bytes from *start* on, in arrays of at most *at_most* bytes, `SLICE` if not given.

        Raises:
            WeightsError: the file cannot be read, or is changed while it is read.
        """
        end = self._file.size if size is None else start + size
        while start < end:
            count = min(at_most or SLICE, end - start)
            yield self._mapped(start, count) if self._leased else self._copied(start, count)
            start += count

    def _mapped(self, start: int, count: int) -> Bytes:
        if fcntl.fcntl(self._descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            raise WeightsError(f"{self._file.name} is written to while it is read")
        before = start % mmap.ALLOCATIONGRANULARITY
        try:
            # Private pages: torch takes only arrays that could be written to.
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
                got = os.preadv(self._descriptor, [view[done:]], start + done)
            except OSError as error:
                raise WeightsError(f"{self._file.name} cannot be read: {error.strerror}") from None
            if not got:
                raise WeightsError(f"{self._file.name} changed while it was read")
            done += got
        return data


@contextmanager
def opened(file: ModelFile) -> Iterator[OpenFile]:
    """
    Open a file of a model, which must be as it was listed, and still be at the end.

    Raises:
        WeightsError: it cannot be read, or changed since it was listed or while it was read.
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
        # What is mapped keeps the lease, and a traceback keeps what is mapped: nobody must wait for that.
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        raise
    finally:
        # The lease lasts for as long as a slice is mapped.
        os.close(descriptor)


def _check_same(file: ModelFile, same: bool, when: str) -> None:  # noqa: FBT001
    if not same:
        raise WeightsError(f"{file.name} changed {when}")


def _lease(descriptor: int) -> bool:
    try:
        # What tells of a writer must be a signal that nobody minds: the default one kills.
        fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


_F_SETSIG: Final = 10
"""Linux's; the module `fcntl` of Python 3.11 does not name it."""
