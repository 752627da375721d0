"""
Strict deterministic CBOR (RFC 8949 §4.2.1).

cbor2 reads and writes the bytes.  This module adds what cbor2 leaves to its callers: map keys
are in bytewise order of their encodings, there are no trailing bytes, only the shortest
encoding is accepted, and only tags that the caller names.  Values are integers of 64 bits,
byte strings, text, arrays, maps, booleans and null.  The profile has no floats, so equal
values have equal bytes.
"""

import io
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

import cbor2

from attester.errors import CBORError

MAX_DEPTH = 16
"""The deepest nesting of containers and tags.  Evidence needs 9."""
MAX_ITEMS = 60_000
"""The most values in one item.  4,096 files need 29,000; a million empty maps would take seconds."""

# Every tag that cbor2 6 interprets itself.  Decoding one would build bignums, compile regular
# expressions (35) or make cycles (28, 29) before this module could check the value.
_LIBRARY_TAGS = (
    *range(17),
    *range(21, 61),
    *range(62, 104),
    *range(256, 300),
    1004,
    43000,
    55799,
)


def _refuse_tag(*_: object) -> NoReturn:
    raise CBORError("a tag that this profile does not use")


_SEMANTIC_DECODERS: Mapping[int, Any] = dict.fromkeys(_LIBRARY_TAGS, _refuse_tag)


def encode(value: Any) -> bytes:
    """
    Encode *value* deterministically.

    Raises:
        CBORError: *value* holds a type or an integer that the profile does not have.
    """
    try:
        return cbor2.dumps(_Normalizer().normalize(value, MAX_DEPTH))
    except (UnicodeEncodeError, cbor2.CBOREncodeError):
        raise CBORError("text that is not Unicode") from None


class _Normalizer:
    """Sorts the keys of maps, and limits the number and the nesting of values."""

    def __init__(self) -> None:
        self._left = MAX_ITEMS

    def normalize(self, value: Any, depth: int) -> Any:
        if depth < 0:
            raise CBORError(f"nested deeper than {MAX_DEPTH}")
        self._left -= 1
        if self._left < 0:
            raise CBORError(f"more than {MAX_ITEMS} values")
        if value is None or isinstance(value, (bool, bytes, str)):
            return value
        if isinstance(value, int):
            if not -(1 << 64) <= value < 1 << 64:
                raise CBORError("an integer beyond 64 bits")
            return value
        if isinstance(value, (list, tuple)):
            return [self.normalize(item, depth - 1) for item in value]
        if isinstance(value, Mapping):
            items = [(cbor2.dumps(_key(k)), k, self.normalize(v, depth - 1)) for k, v in value.items()]
            items.sort(key=lambda item: item[0])
            return {k: v for _, k, v in items}
        if isinstance(value, cbor2.CBORTag):
            return cbor2.CBORTag(value.tag, self.normalize(value.value, depth - 1))
        raise CBORError(f"a value of type {type(value).__name__}, which the profile does not have")


def _key(key: Any) -> int | str | bytes:
    if isinstance(key, bool) or not isinstance(key, (int, str, bytes)):
        raise CBORError(f"a map key of type {type(key).__name__}")
    return key


def _keep_tag(number: int) -> Callable[..., cbor2.CBORTag]:
    """A decoder that leaves tag *number* as it is, instead of the library's own decoder."""

    def keep(value: Any, *_: object) -> cbor2.CBORTag:
        return cbor2.CBORTag(number, value)

    return keep


def decode(data: bytes, *, max_size: int, tags: Collection[int] = (), deterministic: bool = True) -> Any:
    """
    Decode one CBOR item that fills *data* exactly.

    Args:
        data: The bytes to decode.
        max_size: More bytes than this are refused before they are read.
        tags: Tags that may occur; they are returned as `cbor2.CBORTag`.  Tags that cbor2
            interprets itself may occur only if *deterministic* is false.
        deterministic: Whether the order of keys and the length of integers must be those of
            RFC 8949 §4.2.1.  Formats of other authors do not require it; all other checks
            apply to them too.

    Raises:
        CBORError: *data* is too long, not well-formed, of indefinite length, nested too deep or
            not in deterministic encoding, or has duplicate keys, trailing bytes or an unknown tag.
    """
    if len(data) > max_size:
        raise CBORError(f"{len(data)} bytes, but at most {max_size} are allowed")
    if not data:
        raise CBORError("no bytes")

    def tag_hook(tag: cbor2.CBORTag, *_: object) -> cbor2.CBORTag:
        if tag.tag not in tags:
            _refuse_tag()
        return tag

    decoders = _SEMANTIC_DECODERS
    if not deterministic:
        # Formats of other authors use tags that this profile never uses, e.g. times and UUIDs.
        decoders = {**decoders, **{number: _keep_tag(number) for number in tags}}
    stream = io.BytesIO(data)
    try:
        value = cbor2.load(
            stream,
            tag_hook=tag_hook,
            semantic_decoders=decoders,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
        )
    except CBORError:
        raise
    except (cbor2.CBORDecodeError, ValueError, OverflowError, RecursionError) as error:
        cause: BaseException = error
        while isinstance(cause.__cause__, (CBORError, cbor2.CBORDecodeError)):
            cause = cause.__cause__
        raise CBORError(_one_line(cause)) from None
    # Makes plain lists and dicts, because cbor2 returns immutable ones inside a tag.
    value = _Normalizer().normalize(value, MAX_DEPTH)
    if rest := len(data) - stream.tell():
        raise CBORError(f"{rest} bytes after the end of the item")
    if deterministic and cbor2.dumps(value) != data:
        raise CBORError("not in deterministic encoding (RFC 8949 §4.2.1)")
    return value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
