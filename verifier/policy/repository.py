"""The bundles and the Rego files below some folders, as a repository has them, and how the files are laid out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from verifier.errors import BundleError
from verifier.policy.bundle import MAX_REGO
from verifier.policy.content import is_left_out
from verifier.policy.process import MEMORY_BYTES, Worker

MANIFEST: Final = "bundle.json"
_LAYOUT_TIMEOUT_S: Final = 30.0
_MAX_FOLDERS: Final = 20_000
_MAX_FOUND: Final = 1_000


def bundles_in(paths: Sequence[Path]) -> list[Path]:
    """
    The folders with a ``bundle.json``: each of *paths* itself, or else all of them below it.

    Raises:
        BundleError: there is none, or the folders are too many.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir() or (path / MANIFEST).exists():
            found[path] = None
            continue
        below = [folder for folder, files, _ in _walk(path) if MANIFEST in files]
        if not below:
            raise BundleError(f"{path}: neither here nor in a folder below is a {MANIFEST}")
        found |= dict.fromkeys(_outermost(below))
    return _bounded(list(found))


def _outermost(folders: Sequence[Path]) -> Iterator[Path]:
    """The folders that are in no other one of them."""
    known = set(folders)
    return (folder for folder in folders if known.isdisjoint(folder.parents))


def sources_in(paths: Sequence[Path]) -> dict[str, str]:
    """
    The texts of the Rego files: each of *paths* itself, or else all of them below it.

    Raises:
        BundleError: one cannot be read, is too large or not UTF-8, or they are too many.
    """
    files: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            files[path] = None
            continue
        for folder, names, _ in _walk(path):
            files |= dict.fromkeys(folder / name for name in names if name.endswith(".rego"))
    return {str(file): _text(file) for file in _bounded(list(files))}


async def laid_out(sources: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """
    Lay out sources by file name, in a process of its own, because the text may be hostile to the parser.

    Returns:
        The sources as they should be, and for each that cannot be laid out why not.

    Raises:
        PolicyError: a source makes the parser crash, or take too long.
    """
    worker = await Worker.start()
    setup = {"task": "format", "modules": list(sources.items()), "memory_bytes": MEMORY_BYTES}
    try:
        answer: Any = await worker.ask(setup, _LAYOUT_TIMEOUT_S)
    finally:
        await worker.stop()
    return answer["formatted"], answer["errors"]


def _text(file: Path) -> str:
    try:
        if file.is_symlink() or not file.is_file():
            raise BundleError(f"{file}: this is not a file")
        with open(file, "rb") as stream:
            data = stream.read(MAX_REGO + 1)
        if len(data) > MAX_REGO:
            raise BundleError(f"{file}: more than {MAX_REGO} bytes")
        return data.decode()
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BundleError(f"{file}: the file is not UTF-8") from None


def _walk(path: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Folders with their files, without hidden ones and links, in the order of names."""
    for count, (folder, folders, files) in enumerate(os.walk(path)):
        if count >= _MAX_FOLDERS:
            raise BundleError(
                f"{path}: there are more than {_MAX_FOLDERS} folders below. Name the bundle's own"
            )
        folders[:] = sorted(name for name in folders if not is_left_out(name))
        at = Path(folder)
        yield at, sorted(n for n in files if not is_left_out(n) and not (at / n).is_symlink()), folders


def _bounded(found: list[Path]) -> list[Path]:
    if len(found) > _MAX_FOUND:
        raise BundleError(f"there are more than {_MAX_FOUND} of them. Name fewer")
    return found
