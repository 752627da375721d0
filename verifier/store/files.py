"""Files that are complete or absent, and that only their owner can read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verifier.errors import StoreError


@contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """
    Make a file: gives the path of an empty one, which gets its name at the end of the block, when it is durable.

    Args:
        force: Whether a file of that name is replaced.

    Raises:
        StoreError: The file exists already, or cannot be written.
    """
    exists = f"{path} exists already. Give another name" + ("" if force else ", or --force")
    if path.exists() and not force:
        raise StoreError(exists)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            yield temporary
            _sync(temporary)
            if force:
                temporary.replace(path)
            else:
                # Unlike a renaming, a link never replaces a file.
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)
    except FileExistsError:
        raise StoreError(exists) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from None


def replace_file(path: Path, data: bytes) -> None:
    """
    Write a small file in place of the one that is there, durably.  Only one process at a time may do so.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
