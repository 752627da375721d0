"""
The tensors of a model folder: names, types, shapes and raw bytes, from safetensors.

The header of a safetensors file is input like any other: bounded before it is read,
parsed strictly, refused by name.  Format: 8 bytes little-endian length, that many bytes
of JSON, then the tensors' bytes back to back without holes.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from attester.errors import WeightsError
from attester.weights.manifest import Folder, ModelFile

MAX_HEADER = 100_000_000
"""Bytes of JSON; the limit of the reference implementation."""
MAX_TENSORS = 1_000_000
_MAX_INDEX = 100_000_000

_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

Bytes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file: where its bytes lie, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Tensor:
    """A tensor to walk: its raw little-endian bytes as int8, without a copy where possible."""

    name: str
    data: Bytes


def read_header(file: ModelFile) -> tuple[TensorInfo, ...]:
    """
    Read the header of a safetensors file, strictly.

    Raises:
        WeightsError: truncated, lying, overlapping, with holes, or not JSON of the format.
    """
    try:
        with open(file.path, "rb") as stream:
            head = stream.read(8)
            if len(head) < 8:
                raise WeightsError(f"{file.name}: {file.size} bytes are no safetensors file")
            length = int.from_bytes(head, "little")
            if length > MAX_HEADER or length > file.size - 8:
                raise WeightsError(
                    f"{file.name}: its header claims {length} bytes, and the file has {file.size}"
                )
            text = stream.read(length)
    except OSError as error:
        raise WeightsError(f"{file.name} cannot be read: {error.strerror}") from None
    if len(text) != length:
        raise WeightsError(f"{file.name}: truncated in its header")
    return parse_header(file.name, text, file.size - 8 - length, 8 + length)


def parse_header(name: str, text: bytes, payload: int, start: int) -> tuple[TensorInfo, ...]:
    """
    Parse the JSON of a header for a file with *payload* bytes of tensors from *start* on.

    Raises:
        WeightsError: as `read_header`.
    """
    if not text.startswith(b"{"):
        raise WeightsError(f"{name}: its header does not begin as the format has it")
    raw = _load_json(name, text)
    if not isinstance(raw, dict):
        raise WeightsError(f"{name}: its header is not an object")
    if len(raw) > MAX_TENSORS:
        raise WeightsError(f"{name}: more than {MAX_TENSORS} tensors")
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise WeightsError(f"{name}: its __metadata__ is not a map of text to text")
    tensors = [_tensor(name, key, value, start) for key, value in raw.items()]
    end = start
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.size)):
        if tensor.offset != end:
            what = "overlaps the one before" if tensor.offset < end else "leaves a hole before it"
            raise WeightsError(f"{name}: tensor {tensor.name!r} {what}")
        end += tensor.size
    if end != start + payload:
        raise WeightsError(f"{name}: its tensors need {end - start} bytes, and the file has {payload}")
    return tuple(tensors)


def _tensor(file: str, name: str, value: Any, start: int) -> TensorInfo:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
            len(value) == 3
        ):
            pass
        case _:
            raise WeightsError(f"{file}: tensor {name!r} is not dtype, shape and data_offsets")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise WeightsError(f"{file}: a tensor's name is not Unicode text") from None
    if dtype not in _BITS:
        raise WeightsError(f"{file}: tensor {name!r} has the unknown type {dtype[:32]!r}")
    whole = all(type(n) is int and 0 <= n < 1 << 62 for n in (*shape, begin, end))
    if not whole or len(shape) > 32 or end < begin:
        raise WeightsError(f"{file}: tensor {name!r} has an impossible shape or offset")
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or bits // 8 != end - begin:
        raise WeightsError(
            f"{file}: tensor {name!r} claims {end - begin} bytes, and its shape needs {bits // 8}"
        )
    return TensorInfo(name, dtype, tuple(shape), start + begin, end - begin)


def _load_json(name: str, text: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = counts.most_common(1)[0][0]
            raise WeightsError(f"{name}: {twice[:80]!r} stands twice")
        return found

    try:
        # UTF-8 said, or json would take UTF-16 too.
        return json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{name}: not JSON: {str(error)[:80]}") from None


class TensorFiles:
    """
    The tensors of a folder in walking order: by the UTF-8 bytes of their names.

    Which files: in each folder, the shards its ``*.safetensors.index.json`` names if it
    has one, else all its ``*.safetensors``.

    Raises:
        WeightsError: no tensor file, an index that does not fit, a tensor's name twice, no
            bytes at all, or a header that is refused.
    """

    def __init__(self, folder: Folder) -> None:
        placed: dict[str, tuple[TensorInfo, ModelFile]] = {}
        for file in _tensor_files(folder):
            for tensor in read_header(file):
                if tensor.name in placed:
                    raise WeightsError(
                        f"tensor {tensor.name!r} is in {placed[tensor.name][1].name} and in {file.name}"
                    )
                placed[tensor.name] = (tensor, file)
        self._placed = sorted(placed.values(), key=lambda pair: pair[0].name.encode())
        if not any(tensor.size for tensor, _ in self._placed):
            raise WeightsError(f"{folder.root} holds no tensor with any bytes")
        self._maps: dict[ModelFile, Bytes] = {}

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        """What there is, in walking order."""
        return tuple(tensor for tensor, _ in self._placed)

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor, _ in self._placed)

    def __len__(self) -> int:
        return len(self._placed)

    def __iter__(self) -> Iterator[Tensor]:
        for info, file in self._placed:
            whole = self._map(file)
            yield Tensor(info.name, whole[info.offset : info.offset + info.size])

    def _map(self, file: ModelFile) -> Bytes:
        if file not in self._maps:
            try:
                with open(file.path, "rb") as stream:
                    if os.fstat(stream.fileno()).st_size != file.size:
                        raise WeightsError(f"{file.name} changed since it was listed")
                    # Private pages: torch takes only arrays that could be written to.
                    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError as error:
                raise WeightsError(f"{file.name} cannot be read: {error.strerror}") from None
            self._maps[file] = np.frombuffer(mapped, dtype=np.int8)
        return self._maps[file]


def _tensor_files(folder: Folder) -> list[ModelFile]:
    by_folder: dict[PurePosixPath, list[ModelFile]] = {}
    for file in folder.files:
        if file.name.endswith((".safetensors", ".safetensors.index.json")):
            by_folder.setdefault(PurePosixPath(file.name).parent, []).append(file)
    chosen: list[ModelFile] = []
    for files in by_folder.values():
        indexes = [file for file in files if file.name.endswith(".index.json")]
        shards = [file for file in files if file.name.endswith(".safetensors")]
        if len(indexes) > 1:
            raise WeightsError(f"two index files: {indexes[0].name} and {indexes[1].name}")
        chosen += _shards(indexes[0], shards) if indexes else shards
    if not chosen:
        raise WeightsError(f"{folder.root} holds no safetensors file")
    return chosen


def _shards(index: ModelFile, files: Sequence[ModelFile]) -> list[ModelFile]:
    if index.size > _MAX_INDEX:
        raise WeightsError(f"{index.name}: {index.size} bytes are no index")
    try:
        raw = _load_json(index.name, index.path.read_bytes())
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
