"""
The tensors of a model in walking order, from safetensors or GGUF files.

The order is that of the names' UTF-8 bytes, whatever file each stands in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol

import numpy as np

from attester.errors import WeightsError
from attester.weights import gguf, safetensors
from attester.weights.folder import Bytes, Folder, ModelFile, opened
from attester.weights.layout import TensorInfo

_MAX_INDEX: Final = 100_000_000
_SAFETENSORS: Final = ".safetensors"
_INDEX: Final = ".safetensors.index.json"
_GGUF: Final = ".gguf"


class Source(Protocol):
    """A tensor to walk, wherever its bytes are."""

    @property
    def name(self) -> str:
        """Its published name."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def chunks(self) -> Iterator[Any]:
        """
        Its raw little-endian bytes as one-dimensional int8, numpy arrays or torch tensors.

        Each but the last is a multiple of 4,096 bytes.
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
    """A tensor in a file, read slice by slice, so that it may be larger than memory."""

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
        """As `Source.chunks`; raises `WeightsError` where the file cannot be read or changes."""
        with opened(self.file) as stream:
            yield from stream.slices(self.info.offset, self.info.size)

    @property
    def data(self) -> Bytes:
        """All bytes at once, read now."""
        return np.concatenate([np.empty(0, np.int8), *self.chunks()])


class TensorFiles:
    """
    The tensors of a folder in walking order.

    Which files: in each folder, the shards its ``*.safetensors.index.json`` names if it
    has one, else all its ``*.safetensors``; a folder without any has its ``*.gguf``.

    Raises:
        WeightsError: no tensor file, an index that does not fit, a tensor's name twice, no
            bytes at all, or a header that is refused.
    """

    def __init__(self, folder: Folder) -> None:
        placed: dict[str, FileTensor] = {}
        for file in _tensor_files(folder):
            for tensor in read_header(file):
                if tensor.name in placed:
                    raise WeightsError(
                        f"tensor {tensor.name[:80]!r} is in {placed[tensor.name].file.name} and in {file.name}"
                    )
                placed[tensor.name] = FileTensor(tensor, file)
        self._placed = sorted(placed.values(), key=lambda tensor: tensor.name.encode())
        if not any(tensor.size for tensor in self._placed):
            raise WeightsError(f"{folder.root} holds no tensor with any bytes")

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        """What there is, in walking order."""
        return tuple(tensor.info for tensor in self._placed)

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self._placed)

    def __len__(self) -> int:
        return len(self._placed)

    def __iter__(self) -> Iterator[FileTensor]:
        return iter(self._placed)


def read_header(file: ModelFile) -> tuple[TensorInfo, ...]:
    """
    What a file's header says of its tensors.

    Raises:
        WeightsError: truncated, lying, overlapping, or not of its format.
    """
    return gguf.read_header(file) if file.name.endswith(_GGUF) else safetensors.read_header(file)


def tensor_files(folder: Folder) -> tuple[ModelFile, ...]:
    """The files that hold tensors, or say where they are."""
    return tuple(file for file in folder.files if file.name.endswith((_SAFETENSORS, _INDEX, _GGUF)))


def _tensor_files(folder: Folder) -> list[ModelFile]:
    by_folder: dict[PurePosixPath, list[ModelFile]] = {}
    for file in tensor_files(folder):
        by_folder.setdefault(PurePosixPath(file.name).parent, []).append(file)
    chosen: list[ModelFile] = []
    for files in by_folder.values():
        indexes = [file for file in files if file.name.endswith(_INDEX)]
        shards = [file for file in files if file.name.endswith(_SAFETENSORS)]
        if len(indexes) > 1:
            raise WeightsError(f"two index files: {indexes[0].name} and {indexes[1].name}")
        if indexes:
            chosen += _shards(indexes[0], shards)
        else:
            chosen += shards or files
    if not chosen:
        raise WeightsError(f"{folder.root} holds no safetensors file and no GGUF file")
    return chosen


def _shards(index: ModelFile, files: Sequence[ModelFile]) -> list[ModelFile]:
    if index.size > _MAX_INDEX:
        raise WeightsError(f"{index.name}: {index.size} bytes are no index")
    try:
        raw = safetensors.load_json(index.name, Path(index.path).read_bytes())
    except OSError as error:
        raise WeightsError(f"{index.name} cannot be read: {error.strerror}") from None
    names = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise WeightsError(f"{index.name}: its weight_map does not name files")
    present = {PurePosixPath(file.name).name: file for file in files}
    if missing := sorted(set(names.values()) - present.keys()):
        raise WeightsError(f"{index.name} names {missing[0][:80]!r}, which is not there")
    shards = [present[name] for name in sorted(set(names.values()))]
    holds = {tensor.name: PurePosixPath(file.name).name for file in shards for tensor in read_header(file)}
    if holds != names:
        wrong = sorted(name for name in holds.keys() | names.keys() if holds.get(name) != names.get(name))
        raise WeightsError(f"{index.name}: tensor {wrong[0][:80]!r} is not where it says")
    return shards
