"""
The files of a model folder, and their digests.

Which files: every regular file below the folder, except version control's own at the
top (as OpenSSF Model Signing ignores them).  Symbolic links are followed where they lead
inside the folder, or, in a Hugging Face cache, inside the model's ``models--…`` folder,
whose ``snapshots`` are links into ``blobs``; any other link is refused by name.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from attester.errors import WeightsError
from attester.evidence import MAX_FILES, File, Manifest

_IGNORED_AT_TOP = frozenset({".git", ".gitattributes", ".github", ".gitignore", ".cache"})
_MAX_NAME = 1024
_BUFFER = 256 * 1024


@dataclass(frozen=True)
class ModelFile:
    """A file of a model: its name in the manifest, where it lies, its size when listed."""

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class Folder:
    """A model folder whose files were listed, ordered by the UTF-8 bytes of their names."""

    root: Path
    files: tuple[ModelFile, ...]

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def open_folder(root: Path) -> Folder:
    """
    List the files of a model.

    Raises:
        WeightsError: not a folder, empty, too many files, a link that leads outside, a
            name that is not UTF-8, or something that is neither file, folder nor link.
    """
    try:
        real = root.resolve(strict=True)
        if not real.is_dir():
            raise WeightsError(f"{root} is not a folder")
        files = sorted(_list(real), key=lambda file: file.name.encode())
    except FileNotFoundError as error:
        raise WeightsError(f"{error.filename or root} does not exist") from None
    except RuntimeError:
        raise WeightsError(f"{root} holds a symbolic link that leads in a circle") from None
    except OSError as error:
        raise WeightsError(f"{error.filename or root} cannot be read: {error.strerror}") from None
    if not files:
        raise WeightsError(f"{root} holds no files")
    return Folder(real, tuple(files))


def _list(root: Path) -> Iterator[ModelFile]:
    allowed = _cache_root(root) or root
    pending = [root]
    count = 0
    while pending:
        folder = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if folder == root and entry.name in _IGNORED_AT_TOP:
                    continue
                name = _name(root, entry.path)
                if entry.is_symlink():
                    target = Path(entry.path).resolve()
                    if not target.is_relative_to(allowed):
                        raise WeightsError(f"{name} is a link that leads out of the model's folder")
                    if target.is_dir():
                        raise WeightsError(f"{name} is a link to a folder")
                if entry.is_dir():
                    pending.append(Path(entry.path))
                    continue
                status = entry.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise WeightsError(f"{name} is neither a file nor a folder")
                count += 1
                if count > MAX_FILES:
                    raise WeightsError(f"{root} holds more than {MAX_FILES} files")
                yield ModelFile(name, Path(entry.path), status.st_size)


def _cache_root(root: Path) -> Path | None:
    """``models--ORG--NAME`` for ``models--ORG--NAME/snapshots/REVISION``."""
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        return root.parent.parent
    return None


def _name(root: Path, path: str) -> str:
    name = os.path.relpath(path, root).replace(os.sep, "/")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise WeightsError(f"{os.fsencode(path)!r}: the name is not UTF-8") from None
    if len(encoded) > _MAX_NAME:
        raise WeightsError(f"{name[:80]}…: a name of more than {_MAX_NAME} bytes")
    return name


def hash_file(file: ModelFile, progress: Callable[[int], None] | None = None) -> bytes:
    """
    SHA-256 of a file, read now.

    Args:
        file: As listed; its size must still be the same.
        progress: Called with the number of bytes just read.

    Raises:
        WeightsError: it cannot be read, or changed since it was listed or while it was read.
    """
    digest = hashlib.sha256()
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    read = 0
    try:
        with open(file.path, "rb", buffering=0) as stream:
            before = os.fstat(stream.fileno())
            while count := stream.readinto(buffer):
                digest.update(view[:count])
                read += count
                if read > file.size:
                    # It grows as fast as we read: enough is known.
                    break
                if progress is not None:
                    progress(count)
            after = os.fstat(stream.fileno())
    except OSError as error:
        raise WeightsError(f"{file.name} cannot be read: {error.strerror}") from None
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size) or read != file.size:
        raise WeightsError(f"{file.name} changed while it was read")
    return digest.digest()


def measure(folder: Folder, progress: Callable[[int], None] | None = None) -> Manifest:
    """
    The manifest of *folder*, every file read once, files in parallel.

    Raises:
        WeightsError: a file cannot be read, or changed while it was read.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        digests = list(pool.map(lambda file: hash_file(file, progress), folder.files))
    return Manifest(
        files=tuple(
            File(name=file.name, size=file.size, sha256=digest)
            for file, digest in zip(folder.files, digests, strict=True)
        )
    )
