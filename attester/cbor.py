"""
Strict deterministic CBOR (RFC 8949 §4.2.1).

cbor2 reads and writes the bytes.  This module adds what cbor2 leaves to its callers: map keys
are in bytewise order of their encodings, there are no trailing bytes, only the shortest
encoding is accepted, and only tags that the caller names.  Values are integers of 64 bits,
byte strings, text, arrays, maps, booleans and null.  The profile has no floats, so equal
values have equal bytes.
"""

import io
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, NoReturn

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


def decode(
    data: bytes,
    *,
    max_size: int,
    max_values: int | None = None,
    tags: Collection[int] = (),
    deterministic: bool = True,
) -> Any:
    """
    Decode one CBOR item that fills *data* exactly.

    Args:
        data: The bytes to decode.
        max_size: More bytes than this are refused before they are read.
        max_values: More values than this are refused before any is built, map keys counted too.
            It is for small items of strangers.  `None`: `MAX_ITEMS`, counted afterwards.
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
    if max_values is not None:
        _count_values(data, max_values)
    value, end = _load(data, tags, deterministic=deterministic)
    if not deterministic:
        # Makes plain lists and dicts, because cbor2 returns immutable ones inside a tag.
        value = _Normalizer().normalize(value, MAX_DEPTH)
    else:
        if tags:
            value = _thaw(value)
        is_sorted = _check_values(value)
    if rest := len(data) - end:
        raise CBORError(f"{rest} bytes after the end of the item")
    # cbor2 writes keys in the order in which it read them, and every head in its shortest form.
    if deterministic and not (is_sorted and cbor2.dumps(value) == data):
        raise CBORError("not in deterministic encoding (RFC 8949 §4.2.1)")
    return value


def _load(data: bytes, tags: Collection[int], *, deterministic: bool) -> tuple[Any, int]:
    """
    What cbor2 makes of the item at the beginning of *data*, and where the item ends.

    Raises:
        CBORError: as `decode`, except for what this module checks itself.
    """

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
    return value, stream.tell()


def _thaw(value: Any) -> Any:
    """*value* with plain lists and dicts, because cbor2 returns immutable ones inside a tag."""
    if isinstance(value, (list, tuple)):
        return [_thaw(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _thaw(item) for key, item in value.items()}
    if isinstance(value, cbor2.CBORTag):
        return cbor2.CBORTag(value.tag, _thaw(value.value))
    return value


_KEY_TYPES: Final = frozenset((int, bytes, str))
_TEXT_ONLY: Final = frozenset((str,))
_INTEGERS_ONLY: Final = frozenset((int,))
_SCALAR_TYPES: Final = _KEY_TYPES | {bool, type(None)}
_TYPES: Final = _SCALAR_TYPES | {list, dict, cbor2.CBORTag}


def _check_values(value: Any) -> bool:
    """
    Check the number, the nesting and the types of the values in *value*, as cbor2 has read it.

    It goes by levels, not by values, so that most of the work is a few calls for a whole level.

    Returns:
        Whether the keys of every map are in bytewise order of their encodings.

    Raises:
        CBORError: there are too many, nested too deep, or one of a type that the profile does not have.
    """
    is_sorted = True
    left = MAX_ITEMS
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        left -= len(level)
        if left < 0:
            raise CBORError(f"more than {MAX_ITEMS} values")
        types = set(map(type, level))
        if types <= _SCALAR_TYPES:
            return is_sorted
        if not types <= _TYPES:
            raise CBORError(f"a value of type {_name_one(types - _TYPES)}, which the profile does not have")
        below: list[Any] = []
        for each in level:
            kind = type(each)
            if kind is dict:
                if each:
                    is_sorted = _check_keys(each) and is_sorted
                    below.extend(each.values())
            elif kind is list:
                below.extend(each)
            elif kind is cbor2.CBORTag:
                below.append(each.value)
        level = below
    raise CBORError(f"nested deeper than {MAX_DEPTH}")


def _check_keys(value: dict[Any, Any]) -> bool:
    """
    Whether the keys of a map are in bytewise order of their encodings (RFC 8949 §4.2.1).

    Raises:
        CBORError: a key is neither an integer nor a string.
    """
    types = set(map(type, value))
    if not types <= _KEY_TYPES:
        raise CBORError(f"a map key of type {_name_one(types - _KEY_TYPES)}")
    if len(value) < 2:
        return True
    # The usual cases first: a head holds the length of a text, and -1 - n of a negative integer n.
    if types == _TEXT_ONLY and "".join(value).isascii():
        size, previous = 0, ""
        for key in value:
            if len(key) < size or (len(key) == size and key < previous):
                return False
            size, previous = len(key), key
        return True
    keys = list(value)
    if types == _INTEGERS_ONLY and (keys[0] < 0) == (keys[-1] < 0):
        return keys == sorted(keys, reverse=keys[0] < 0)
    ranks = [_rank(key) for key in keys]
    return ranks == sorted(ranks)


def _rank(key: int | str | bytes) -> tuple[int, int, bytes]:
    """Keys compare as their encodings do: by major type, by the number in the head, then by content."""
    if isinstance(key, int):
        return (0, key, b"") if key >= 0 else (1, -1 - key, b"")
    major, content = (2, key) if isinstance(key, bytes) else (3, key.encode())
    return major, len(content), content


def _name_one(types: Iterable[type]) -> str:
    return min(each.__name__ for each in types)


def _count_values(data: bytes, limit: int) -> None:
    """
    Skim the heads of the item at the beginning of *data*, and build nothing.

    It stops where *data* is not well-formed, because there cbor2 stops too.

    Raises:
        CBORError: the item has more than *limit* values; the keys of maps are counted.
    """
    place, pending, left, size = 0, 1, limit, len(data)
    while pending:
        if not left:
            raise CBORError(f"more than {limit} values")
        if place >= size:
            return
        major, info = data[place] >> 5, data[place] & 31
        place += 1
        if info >= 28:
            # Reserved, or of indefinite length.
            return
        argument = info
        if info >= 24:
            width = 1 << info - 24
            argument = int.from_bytes(data[place : place + width], "big")
            place += width
        pending, left = pending - 1, left - 1
        if major in (2, 3):
            place += argument
        elif major == 4:
            pending += argument
        elif major == 5:
            pending += 2 * argument
        elif major == 6:
            pending += 1


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
