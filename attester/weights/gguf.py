"""
The header of a GGUF file, read strictly and within bounds; errors name the file.

Format (ggml-org/ggml, docs/gguf.md): magic, version, counts, typed key-value pairs, tensor
table, padding to ``general.alignment``, then the tensors' bytes, each aligned.  Versions 2
and 3, little-endian.  Only what a walk needs is kept, and ``general.file_type``.  The other
metadata is skipped, but every length in it is checked against the rest of the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from attester.errors import TruncatedError, WeightsError
from attester.weights.folder import ModelFile
from attester.weights.layout import MAX_TENSORS, TensorInfo

MAGIC: Final = b"GGUF"
"""The first bytes of a file."""
MAX_HEADER_BYTES: Final = 64 << 20
"""Bytes before the tensors, which include the vocabulary."""
_MAX_NAME_BYTES: Final = 1 << 10
_MAX_KEYS: Final = 1 << 16
_MAX_DEPTH: Final = 4
_ALIGNMENT: Final = "general.alignment"
_FILE_TYPE: Final = "general.file_type"

_TYPES: Final[Mapping[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
"""ggml's types in files: name, elements of a block, bytes of a block."""

_SCALARS: Final[Mapping[int, int]] = {
    0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8,
}  # fmt: skip
"""Bytes of a scalar value by its type; 7 is a bool."""
_STRING, _ARRAY, _U32 = 8, 9, 4


@dataclass(frozen=True)
class Header:
    """What is kept of a header."""

    tensors: tuple[TensorInfo, ...]
    file_type: int | None
    """The number of llama.cpp's name for the mixture of types (``LLAMA_FTYPE``), if the file says it."""


def read_header(file: ModelFile) -> Header:
    """
    Read the header of a GGUF file, strictly.

    Raises:
        WeightsError: the header is truncated, contradicts the file, or is not GGUF of version 2 or 3.
    """
    try:
        with open(file.path, "rb") as stream:
            # Most headers are small; more is read only if the header needs it.
            data = stream.read(min(file.size, 1 << 20))
            while True:
                try:
                    return parse_header(file.name, data, file.size)
                except _TruncatedHeader:
                    if len(data) >= min(file.size, MAX_HEADER_BYTES):
                        if len(data) == file.size:
                            raise TruncatedError(f"{file.name} is truncated in its header") from None
                        raise WeightsError(f"{file.name} has too long a header") from None
                    more = stream.read(min(7 * len(data), MAX_HEADER_BYTES - len(data)))
                    if not more:
                        raise WeightsError(f"{file.name} changed while it was read") from None
                    data += more
    except OSError as error:
        raise WeightsError(f"{file.name} cannot be read: {error.strerror}") from None


class _TruncatedHeader(Exception):  # noqa: N818
    """The bytes read so far end within the header."""


class _Reader:
    """A cursor over the header, which checks every length before it uses it."""

    def __init__(self, name: str, data: bytes, size: int) -> None:
        self.name = name
        self.at = 0
        self._data = data
        self._size = size

    def refuse(self, what: str) -> WeightsError:
        return WeightsError(f"{self.name}: {what}")

    def skip(self, count: int) -> int:
        """Skip *count* bytes; returns where they begin."""
        start = self.at
        if start + count > self._size:
            what = f"{self.name}: its header claims {count} bytes at {start}, but the file has {self._size}"
            # More than any header has was never there: such a file is damaged, and not cut off.
            raise (TruncatedError if count <= MAX_HEADER_BYTES else WeightsError)(what)
        if start + count > len(self._data):
            raise _TruncatedHeader
        self.at = start + count
        return start

    def u32(self) -> int:
        value: int = struct.unpack_from("<I", self._data, self.skip(4))[0]
        return value

    def u64(self) -> int:
        value: int = struct.unpack_from("<Q", self._data, self.skip(8))[0]
        return value

    def text(self, what: str, limit: int) -> str:
        length = self.u64()
        if length > limit:
            raise self.refuse(f"{what} claims {length} bytes, but at most {limit} are allowed")
        start = self.skip(length)
        try:
            return self._data[start : start + length].decode()
        except UnicodeDecodeError:
            raise self.refuse(f"{what} is not UTF-8") from None

    def skip_value(self, key: str, kind: int, depth: int = 0) -> None:
        """Skip the value of a key."""
        if kind in _SCALARS:
            self.skip(_SCALARS[kind])
        elif kind == _STRING:
            self.skip(self.u64())
        elif kind == _ARRAY:
            self._skip_array(key, depth)
        else:
            raise self.refuse(f"{key[:80]!r} has the unknown type {kind}")

    def _skip_array(self, key: str, depth: int) -> None:
        if depth == _MAX_DEPTH:
            raise self.refuse(f"{key[:80]!r} has arrays that are nested too deep")
        kind, count = self.u32(), self.u64()
        if kind in _SCALARS:
            self.skip(_SCALARS[kind] * count)
            return
        if kind not in (_STRING, _ARRAY):
            raise self.refuse(f"{key[:80]!r} holds values of the unknown type {kind}")
        # Each value has at least its length field, so the rest of the file limits the count.
        least = 8 if kind == _STRING else 12
        if count * least > self._size - self.at:
            raise self.refuse(f"{key[:80]!r} claims {count} values, more than the file could hold")
        for _ in range(count):
            self.skip_value(key, kind, depth + 1)


def parse_header(name: str, data: bytes, size: int) -> Header:
    """
    Parse the header of a file of *size* bytes, which begins with *data*.

    Raises:
        WeightsError: as `read_header`.
    """
    reader = _Reader(name, data, size)
    if size < 24 or data[:4] != MAGIC:
        raise WeightsError(f"{name} is not a GGUF file ({size} bytes)")
    reader.skip(4)
    version = reader.u32()
    if version not in (2, 3):
        other = " (big-endian?)" if version in (2 << 24, 3 << 24) else ""
        raise reader.refuse(f"version {version}{other} is not supported, only 2 and 3")
    tensors, keys = reader.u64(), reader.u64()
    if tensors > MAX_TENSORS or keys > _MAX_KEYS:
        raise reader.refuse(f"claims {tensors} tensors and {keys} keys, which are too many")
    alignment, file_type = _metadata(reader, keys)
    infos = [_tensor(reader) for _ in range(tensors)]
    if len({info.name for info in infos}) != len(infos):
        seen: set[str] = set()
        duplicate = next(i.name for i in infos if i.name in seen or seen.add(i.name))  # type: ignore[func-returns-value]
        raise reader.refuse(f"tensor {duplicate[:80]!r} occurs twice")
    start = reader.at + -reader.at % alignment
    return Header(_placed(reader, infos, start, alignment, size), file_type)


def _metadata(reader: _Reader, keys: int) -> tuple[int, int | None]:
    """The alignment, and the number of the file's type."""
    alignment, file_type = 32, None
    seen = set()
    for _ in range(keys):
        key = reader.text("a key", _MAX_NAME_BYTES)
        if key in seen:
            raise reader.refuse(f"key {key[:80]!r} occurs twice")
        seen.add(key)
        kind = reader.u32()
        if key == _FILE_TYPE and kind == _U32:
            file_type = reader.u32()
        elif key != _ALIGNMENT:
            reader.skip_value(key, kind)
        elif kind != _U32:
            raise reader.refuse(f"{_ALIGNMENT} must be a 32-bit number")
        else:
            alignment = reader.u32()
            if alignment == 0 or alignment % 8 or alignment > 1 << 16:
                raise reader.refuse(f"an alignment of {alignment} is not allowed")
    return alignment, file_type


def _tensor(reader: _Reader) -> TensorInfo:
    name = reader.text("a tensor's name", _MAX_NAME_BYTES)
    dimensions = reader.u32()
    if dimensions > 4:
        raise reader.refuse(f"tensor {name[:80]!r} has {dimensions} dimensions")
    shape = tuple(reader.u64() for _ in range(dimensions))
    kind = reader.u32()
    offset = reader.u64()
    if kind not in _TYPES:
        raise reader.refuse(f"tensor {name[:80]!r} has the unknown type {kind}")
    dtype, block, block_bytes = _TYPES[kind]
    if any(n >= 1 << 62 for n in shape):
        raise reader.refuse(f"tensor {name[:80]!r} has an impossible shape")
    elements = math.prod(shape)
    row = shape[0] if shape else 1
    if row % block:
        raise reader.refuse(f"tensor {name[:80]!r}: rows of {row} do not divide into blocks of {block}")
    # ggml lists the fastest dimension first, and all other formats list it last.
    size = elements // block * block_bytes
    return TensorInfo(name=name, dtype=dtype, shape=shape[::-1], offset=offset, size=size)


def _placed(
    reader: _Reader, infos: list[TensorInfo], start: int, alignment: int, size: int
) -> tuple[TensorInfo, ...]:
    """The tensors with offsets in the file, which must be aligned, without overlap and without holes."""
    end = 0
    for info in sorted(infos, key=lambda info: (info.offset, info.size)):
        expected = end + -end % alignment
        if info.offset != expected:
            if info.offset % alignment:
                what = "is not aligned"
            else:
                what = "overlaps the previous one" if info.offset < end else "leaves a hole before it"
            raise reader.refuse(f"tensor {info.name[:80]!r} {what}")
        end = info.offset + info.size
    # A file without tensors need not be padded, and nothing follows its metadata.
    available = max(size - start, 0) if not infos else size - start
    if not end <= available <= end + -end % alignment:
        what = f"{reader.name}: its tensors need {end} bytes, but the file has {max(available, 0)}"
        raise (TruncatedError if available < end else WeightsError)(what)
    return tuple(replace(info, offset=start + info.offset) for info in infos)
