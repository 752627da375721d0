"""
The tensors of a model in walking order, from safetensors or GGUF files.

Walking order is the order of the names' UTF-8 bytes, across all files.

A GGUF file is known by its first bytes, not by its name: stores of engines name files by their
digests, without a suffix.  A safetensors file begins with a number, so it is known by its name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

import numpy as np

from attester.errors import NoTensorsError, WeightsError
from attester.evidence import MAX_FILES
from attester.weights import gguf, safetensors
from attester.weights.folder import Bytes, Folder, ModelFile, open_model_file
from attester.weights.layout import TensorInfo

_MAX_INDEX_BYTES: Final = 100_000_000
_SAFETENSORS: Final = ".safetensors"
_INDEX: Final = ".safetensors.index.json"
_GGUF: Final = ".gguf"
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
_OF_PICKLES: Final = (
    ": files of pickles are measured as files alone. Save it as safetensors to have it walked"
)
_VARIANT: Final = re.compile(r"(?P<stem>.*?)\.[A-Za-z0-9_]+(?:-\d{5}-of-\d{5})?\.safetensors")
_MAX_NAMED: Final = 20
"""A refusal names at most so many files."""


class Source(Protocol):
    """A tensor to walk: in memory, in a file, or on a device."""

    @property
    def name(self) -> str:
        """The published name."""
        ...

    @property
    def size(self) -> int:
        """The size in bytes."""
        ...

    def chunks(self) -> Iterator[Any]:
        """
        Yield the raw little-endian bytes as one-dimensional int8: numpy arrays or torch tensors.

        The size of each chunk except the last is a multiple of 4,096.
        """
        ...


@dataclass(frozen=True)
class Tensor:
    """A tensor in memory."""

    name: str
    data: Bytes

    @property
    def size(self) -> int:
        """As `Source.size`."""
        return self.data.size

    def chunks(self) -> Iterator[Bytes]:
        """As `Source.chunks`."""
        yield self.data


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file, read slice by slice, because it may be larger than memory."""

    info: TensorInfo
    file: ModelFile

    @property
    def name(self) -> str:
        """As `Source.name`."""
        return self.info.name

    @property
    def size(self) -> int:
        """As `Source.size`."""
        return self.info.size

    def chunks(self) -> Iterator[Bytes]:
        """As `Source.chunks`; raises `WeightsError` if the file cannot be read or has changed."""
        with open_model_file(self.file) as stream:
            yield from stream.slices(self.info.offset, self.info.size)

    def part(self, first: int, count: int) -> bytes:
        """*count* bytes from *first* on; raises `WeightsError` if the file cannot be read or has changed."""
        with open_model_file(self.file) as stream:
            return b"".join(data.tobytes() for data in stream.slices(self.info.offset + first, count))

    @property
    def data(self) -> Bytes:
        """All bytes in one array, read now."""
        return np.concatenate([np.empty(0, np.int8), *self.chunks()])


class TensorFiles:
    """
    The tensors of a folder in walking order.

    In each folder, the tensors come from the shards that ``*.safetensors.index.json`` names; if
    there is no index, from all ``*.safetensors`` but the variants of others; if there are none, from all GGUF
    files.  A variant of ``NAME.safetensors`` is ``NAME.fp16.safetensors``, if they have a tensor in common.
    A tensor's name that several folders have begins with its folder.

    Raises:
        WeightsError: the folder has no tensor file or no bytes of tensors, an index does not
            match its shards, two tensors have the same name, or a header is refused.
    """

    def __init__(self, folder: Folder) -> None:
        by_folder: dict[str, dict[str, FileTensor]] = {}
        for file in _chosen_files(folder):
            found = by_folder.setdefault(file.name.rpartition("/")[0], {})
            for tensor in read_header(file):
                if tensor.name in found:
                    raise _in_two(folder, tensor.name, found[tensor.name].file, file)
                found[tensor.name] = FileTensor(tensor, file)
        self._tensors = sorted(_joined(by_folder), key=lambda tensor: tensor.name.encode())
        if not any(tensor.size for tensor in self._tensors):
            raise WeightsError(f"{folder.root} has no tensor with any bytes")

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        """Name, type, shape and place of each tensor, in walking order."""
        return tuple(tensor.info for tensor in self._tensors)

    @property
    def total(self) -> int:
        """The size of all tensors in bytes."""
        return sum(tensor.size for tensor in self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[FileTensor]:
        return iter(self._tensors)


def read_header(file: ModelFile) -> tuple[TensorInfo, ...]:
    """
    Read the header of a safetensors or GGUF file.

    Raises:
        WeightsError: the header is truncated, contradicts the file, or is not of its format.
    """
    return gguf.read_header(file).tensors if is_gguf(file) else safetensors.read_header(file)


def tensor_files(folder: Folder) -> tuple[ModelFile, ...]:
    """The files that hold tensors, and the index files."""
    return tuple(file for file in folder.files if file.name.endswith((_SAFETENSORS, _INDEX)) or is_gguf(file))


def is_gguf(file: ModelFile) -> bool:
    """
    Whether a file is GGUF by its first bytes.

    A file with the suffix of GGUF that does not begin so is one too: its header is then refused by
    name.  A file that cannot be opened is none; whoever needs it will say so.
    """
    if file.name.endswith(_GGUF):
        return True
    # Without a stamp nothing would show that the file has changed.
    return _begins_as_gguf(file) if any(file.stamp) else _begins_as_gguf.__wrapped__(file)


@lru_cache(maxsize=MAX_FILES)
def _begins_as_gguf(file: ModelFile) -> bool:
    # The file's stamp is part of the key: it is opened again only if it has changed.
    if file.size < len(gguf.MAGIC):
        return False
    try:
        with open(file.path, "rb", buffering=0) as stream:
            return stream.read(len(gguf.MAGIC)) == gguf.MAGIC
    except OSError:
        return False


def _joined(by_folder: dict[str, dict[str, FileTensor]]) -> list[FileTensor]:
    """The tensors of all folders.  A name that several have (``2_Dense``, ``3_Dense``) is told apart by its folder."""
    if len(by_folder) == 1:
        return list(next(iter(by_folder.values())).values())
    counts = Counter(name for found in by_folder.values() for name in found)
    joined: dict[str, FileTensor] = {}
    for place, found in by_folder.items():
        for name, tensor in found.items():
            own = f"{place}/{name}" if place and counts[name] > 1 else name
            if own in joined:
                raise WeightsError(
                    f"tensor {own[:80]!r} is in {joined[own].file.name} and in {tensor.file.name}"
                )
            joined[own] = tensor if own == name else FileTensor(replace(tensor.info, name=own), tensor.file)
    return list(joined.values())


def _in_two(folder: Folder, tensor: str, one: ModelFile, other: ModelFile) -> WeightsError:
    if not (is_gguf(one) and is_gguf(other)):
        return WeightsError(f"tensor {tensor[:80]!r} is in {one.name} and in {other.name}")
    place = one.name.rpartition("/")[0]
    names = [file.name for file in folder.files if is_gguf(file) and file.name.rpartition("/")[0] == place]
    shown = ", ".join(names[:_MAX_NAMED]) + (", …" if len(names) > _MAX_NAMED else "")
    return WeightsError(
        f"{folder.root} has {len(names)} GGUF files, which are several models: {shown}. "
        "Name one with --file, or as file in attester.toml"
    )


def _chosen_files(folder: Folder) -> list[ModelFile]:
    by_folder: dict[PurePosixPath, list[ModelFile]] = {}
    for file in tensor_files(folder):
        by_folder.setdefault(PurePosixPath(file.name).parent, []).append(file)
    chosen: list[ModelFile] = []
    for files in by_folder.values():
        indexes = [file for file in files if file.name.endswith(_INDEX)]
        shards = [file for file in files if file.name.endswith(_SAFETENSORS) and not is_gguf(file)]
        if len(indexes) > 1:
            raise WeightsError(
                f"{indexes[0].name} and {indexes[1].name} are both index files; only one may be in a folder"
            )
        if indexes:
            chosen += _shards(indexes[0], shards)
        else:
            chosen += _without_variants(shards) or files
    if not chosen:
        raise NoTensorsError(
            f"{folder.root} has no safetensors file and no GGUF file"
            + (_OF_PICKLES if any(file.name.endswith(_PICKLES) for file in folder.files) else "")
        )
    return chosen


def variants(files: Sequence[ModelFile]) -> dict[str, str]:
    """Of files in one folder, by the name of a variant that of the file that engines load if nobody asks for one."""
    names = {file.name: file for file in files}
    found: dict[str, str] = {}
    for name, file in names.items():
        parts = _VARIANT.fullmatch(name)
        plain = None if parts is None else names.get(f"{parts['stem']}{_SAFETENSORS}")
        if plain is not None and {t.name for t in read_header(file)} & {t.name for t in read_header(plain)}:
            found[name] = plain.name
    return found


def _without_variants(files: Sequence[ModelFile]) -> list[ModelFile]:
    left_out = variants(files)
    return [file for file in files if file.name not in left_out]


def _shards(index: ModelFile, files: Sequence[ModelFile]) -> list[ModelFile]:
    if index.size > _MAX_INDEX_BYTES:
        raise WeightsError(
            f"{index.name} has {index.size} bytes, but an index has at most {_MAX_INDEX_BYTES}"
        )
    try:
        raw = safetensors.load_json(index.name, Path(index.path).read_bytes())
    except OSError as error:
        raise WeightsError(f"{index.name} cannot be read: {error.strerror}") from None
    names = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise WeightsError(f"{index.name}: its weight_map does not name files")
    present = {PurePosixPath(file.name).name: file for file in files}
    if missing := sorted(set(names.values()) - present.keys()):
        raise WeightsError(f"{index.name} names {missing[0][:80]!r}, which is not a file in its folder")
    shards = [present[name] for name in sorted(set(names.values()))]
    holds = {tensor.name: PurePosixPath(file.name).name for file in shards for tensor in read_header(file)}
    if holds != names:
        wrong = sorted(name for name in holds.keys() | names.keys() if holds.get(name) != names.get(name))
        raise WeightsError(f"{index.name}: tensor {wrong[0][:80]!r} is not in the file that the index names")
    return shards
