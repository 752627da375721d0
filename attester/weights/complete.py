"""
Whether the files of a model are all there, with all of their bytes.

A folder in the middle of a download has a manifest too, but not the model's.  It is refused, and the file is named.
Only gates are looked at (`attester.weights.roles`): a model without its pictures is whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Final

from attester import strictjson
from attester.errors import TruncatedError, WeightsError
from attester.weights.folder import Folder, ModelFile
from attester.weights.roles import Role, Roles, without_partial
from attester.weights.stores import shard_of
from attester.weights.tensors import read_header

_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_MAX_POINTER_BYTES: Final = 1024
_MAX_INDEX_BYTES: Final = 100_000_000
_INDEX_END: Final = ".index.json"
_AGAIN: Final = "Download it again"


@lru_cache(maxsize=32)
def check_complete(folder: Folder) -> None:
    """
    Check that no file of a model is missing in part or in whole, as far as the files say it themselves.

    Raises:
        WeightsError: the first file that is not whole, by its name.
    """
    # The files' stamps are part of the key: they are looked at again only after a change.
    names = frozenset(file.name for file in folder.files)
    roles = Roles(names)
    for file in folder.files:
        if roles.of(file.name) is not Role.GATE:
            continue
        why = _what_is_wrong(file, names)
        if why is not None:
            raise WeightsError(f"the folder is not complete: {file.name} {why}. {_AGAIN}")


def _what_is_wrong(file: ModelFile, names: frozenset[str]) -> str | None:
    if without_partial(file.name) is not None:
        return "is a download that has not ended"
    if file.size <= _MAX_POINTER_BYTES and _begins(file, len(_POINTER)) == _POINTER:
        return "is a pointer of Git LFS and not the file itself: run git lfs pull"
    if (shard := shard_of(file.name)) is not None:
        missing = next((name for name in shard.names() if name not in names), None)
        if missing is not None:
            return f"is one of {shard.count} parts, and {missing} is missing"
    if file.name.endswith(_INDEX_END):
        missing = next((name for name in _named_by_index(file) if name not in names), None)
        return None if missing is None else f"names {missing[:120]}, which is missing"
    return _cut_off(file) if file.name.endswith((".safetensors", ".gguf")) else None


def _begins(file: ModelFile, count: int) -> bytes:
    try:
        with open(file.path, "rb", buffering=0) as stream:
            return stream.read(count)
    except OSError:
        # Whoever reads it for its digest says so.
        return b""


def _named_by_index(file: ModelFile) -> Iterator[str]:
    """The files that an index of shards names; none if it is no index, which a walk refuses."""
    if file.size > _MAX_INDEX_BYTES:
        return
    try:
        raw: Any = strictjson.loads(_begins(file, file.size))
    except ValueError:
        return
    shards = raw.get("weight_map") if isinstance(raw, dict) else None
    if isinstance(shards, dict):
        folder = PurePosixPath(file.name).parent
        named = {each for each in shards.values() if isinstance(each, str)}
        yield from sorted((folder / each).as_posix() for each in named)


def _cut_off(file: ModelFile) -> str | None:
    """Why a file of weights is shorter than its own header says; `None` if it is not, or has no such header."""
    if not file.size:
        return "has no bytes"
    try:
        read_header(file)
    except TruncatedError as error:
        return f"is cut off ({str(error).removeprefix(file.name).lstrip(': ')})"
    except WeightsError:
        # A walk refuses such a header; the file may be whole all the same.
        pass
    return None
