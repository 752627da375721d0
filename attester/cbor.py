"""
Deterministic CBOR (RFC 8949 §4.2.1), strictly.

cbor2 reads and writes the bytes.  What it leaves to its callers is done here: keys in
bytewise order of their encodings, no trailing bytes, no encoding but the shortest, and
no tag except those a caller names.  Values are integers of 64 bits, byte strings, text,
arrays, maps, booleans and null; the profile has no floats, so equal values have equal
bytes.
"""

import io
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

import cbor2

from attester.errors import CBORError

MAX_DEPTH = 16
"""Containers and tags inside each other.  Evidence needs 9."""
MAX_ITEMS = 60_000
"""Values in one item.  4,096 files need 29,000; a million empty maps would take seconds."""

# Every tag cbor2 6 gives a meaning of its own.  Decoding one would build bignums, compile
# regular expressions (35) or make cycles (28, 29) before we could look at the value.
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
        CBORError: *value* holds a type or an integer the profile does not have.
    """
    try:
        return cbor2.dumps(_Order().of(value, MAX_DEPTH))
    except (UnicodeEncodeError, cbor2.CBOREncodeError):
        raise CBORError("text that is not Unicode") from None


class _Order:
    """Puts the keys of maps in order, and counts what it meets."""

    def __init__(self) -> None:
        self._left = MAX_ITEMS

    def of(self, value: Any, depth: int) -> Any:
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
            return [self.of(item, depth - 1) for item in value]
        if isinstance(value, Mapping):
            items = [(cbor2.dumps(_key(k)), k, self.of(v, depth - 1)) for k, v in value.items()]
            items.sort(key=lambda item: item[0])
            return {k: v for _, k, v in items}
        if isinstance(value, cbor2.CBORTag):
            return cbor2.CBORTag(value.tag, self.of(value.value, depth - 1))
        raise CBORError(f"a value of type {type(value).__name__}, which the profile does not have")


def _key(key: Any) -> int | str | bytes:
    if isinstance(key, bool) or not isinstance(key, (int, str, bytes)):
        raise CBORError(f"a map key of type {type(key).__name__}")
    return key


def _kept(number: int) -> Callable[..., cbor2.CBORTag]:
    """Leaves a tag as it is, where the library would make something else of it."""

    def keep(value: Any, *_: object) -> cbor2.CBORTag:
        return cbor2.CBORTag(number, value)

    return keep


def decode(data: bytes, *, max_size: int, tags: Collection[int] = (), deterministic: bool = True) -> Any:
    """
    Decode one CBOR item that fills *data* exactly.

    Args:
        data: What came.
        max_size: Refuse more bytes than this before reading them.
        tags: Tags that may occur; they come back as `cbor2.CBORTag`.  Those to which the
            library gives a meaning may occur only where *deterministic* is not asked.
        deterministic: Whether the order of keys and the length of integers must be those of
            RFC 8949 §4.2.1.  Others' formats do not ask for it; all else is asked of them too.

    Raises:
        CBORError: too long, not well-formed, indefinite, with duplicate keys, too deep,
            with trailing bytes, with an unknown tag, or not in deterministic encoding.
    """
    if len(data) > max_size:
        raise CBORError(f"{len(data)} bytes, more than the {max_size} allowed")
    if not data:
        raise CBORError("no bytes")

    def tag_hook(tag: cbor2.CBORTag, *_: object) -> cbor2.CBORTag:
        if tag.tag not in tags:
            _refuse_tag()
        return tag

    decoders = _SEMANTIC_DECODERS
    if not deterministic:
        # Others' formats use what our profile never does, e.g. times, addresses and UUIDs.
        decoders = {**decoders, **{number: _kept(number) for number in tags}}
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
    # Plain lists and dicts: cbor2 hands out immutable ones inside a tag.
    value = _Order().of(value, MAX_DEPTH)
    if rest := len(data) - stream.tell():
        raise CBORError(f"{rest} bytes after the end of the item")
    if deterministic and cbor2.dumps(value) != data:
        raise CBORError("not in deterministic encoding (RFC 8949 §4.2.1)")
    return value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
