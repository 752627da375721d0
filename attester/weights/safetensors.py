"""
The header of a safetensors file, read strictly and within bounds; errors name the file.

Format: the length in 8 bytes, little-endian; that many bytes of JSON; then the bytes of the
tensors without holes (huggingface/safetensors, README, "Format").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from attester import strictjson
from attester.errors import TruncatedError, WeightsError
from attester.weights.folder import ModelFile
from attester.weights.layout import MAX_TENSORS, TensorInfo

MAX_HEADER_BYTES: Final = 25_000_000
"""Bytes of JSON: a quarter of the reference implementation's limit, because parsed JSON takes much more memory."""

_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def read_header(file: ModelFile) -> tuple[TensorInfo, ...]:
    """
    Read the header of a safetensors file, strictly.

    Raises:
        WeightsError: the header is truncated, contradicts the file, has overlaps or holes, or is
            not JSON of the format.
    """
    try:
        with open(file.path, "rb") as stream:
            head = stream.read(9)
            if len(head) < 8:
                raise WeightsError(f"{file.name} is not a safetensors file ({file.size} bytes)")
            length = int.from_bytes(head[:8], "little")
            if length > MAX_HEADER_BYTES or length > file.size - 8:
                # Of the first bytes of anything else, a header is not the beginning.
                is_cut_off = length <= MAX_HEADER_BYTES and head[8:] == b"{"
                raise (TruncatedError if is_cut_off else WeightsError)(
                    f"{file.name}: its header claims {length} bytes, but the file has {file.size}"
                )
            text = (head[8:] + stream.read(max(length - 1, 0)))[:length]
    except OSError as error:
        raise WeightsError(f"{file.name} cannot be read: {error.strerror}") from None
    if len(text) != length:
        raise WeightsError(f"{file.name} is truncated in its header")
    return parse_header(file.name, text, file.size - 8 - length, 8 + length)


def parse_header(name: str, text: bytes, payload: int, start: int) -> tuple[TensorInfo, ...]:
    """
    Parse the JSON of a header.  The file has *payload* bytes of tensors, from offset *start* on.

    Raises:
        WeightsError: as `read_header`.
    """
    if not text.startswith(b"{"):
        raise WeightsError(f"{name}: its header does not begin with an opening brace")
    raw = load_json(name, text)
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
            what = "overlaps the previous one" if tensor.offset < end else "leaves a hole before it"
            raise WeightsError(f"{name}: tensor {tensor.name[:80]!r} {what}")
        end += tensor.size
    if end != start + payload:
        kind = TruncatedError if end > start + payload else WeightsError
        raise kind(f"{name}: its tensors need {end - start} bytes, but the file has {payload}")
    return tuple(tensors)


def _tensor(file: str, name: str, value: Any, start: int) -> TensorInfo:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
            len(value) == 3
        ):
            pass
        case _:
            raise WeightsError(
                f"{file}: tensor {name[:80]!r} must have exactly dtype, shape and data_offsets"
            )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise WeightsError(f"{file}: a tensor's name is not Unicode text") from None
    if dtype not in _BITS:
        raise WeightsError(f"{file}: tensor {name[:80]!r} has the unknown type {dtype[:32]!r}")
    whole = all(type(n) is int and 0 <= n < 1 << 62 for n in (*shape, begin, end))
    if not whole or len(shape) > 32 or end < begin:
        raise WeightsError(f"{file}: tensor {name[:80]!r} has an impossible shape or offset")
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or bits // 8 != end - begin:
        raise WeightsError(
            f"{file}: tensor {name[:80]!r} claims {end - begin} bytes, but its shape needs {bits // 8}"
        )
    return TensorInfo(name=name, dtype=dtype, shape=tuple(shape), offset=start + begin, size=end - begin)


def load_json(name: str, text: bytes) -> Any:
    """
    Parse the JSON of the file *name*.

    Raises:
        WeightsError: *text* is not JSON, or has a duplicate name.
    """
    try:
        return strictjson.loads(text)
    except ValueError as error:
        raise WeightsError(f"{name} is not JSON: {str(error)[:120]}") from None
