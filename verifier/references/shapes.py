"""
Checks of the shapes of decoded CBOR.  A refusal is a sentence about its place, e.g. ``tags[0].triples``.

Decoded values are as `attester.cbor` gives them: tags are `cbor2.CBORTag`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import cbor2

from attester import cbor
from attester.errors import CBORError
from verifier.errors import ReferenceValueError

Raw = Mapping[int | str, Any]


def refuse(place: str, what: str) -> NoReturn:
    """Raise `ReferenceValueError` for the value at *place*; *what* is the rest of the sentence, e.g. ``is missing``."""
    raise ReferenceValueError(f"{place} {what}")


def decode(data: bytes, place: str, tags: Collection[int], max_size: int) -> Any:
    """Decode one CBOR item.  Raises `ReferenceValueError` if `attester.cbor` refuses it."""
    try:
        return cbor.decode(data, max_size=max_size, tags=tags, deterministic=False)
    except CBORError as error:
        raise ReferenceValueError(f"{place}: {error}") from None


def map_of(value: Any, place: str, keys: Collection[int] | None = None) -> dict[int | str, Any]:
    """Check that *value* is a map that is not empty, and has no other keys than *keys* if these are not `None`."""
    if not isinstance(value, dict):
        refuse(place, f"must be a map, not {kind_of(value)}")
    if not value:
        refuse(place, "is an empty map")
    for key in value:
        if isinstance(key, bytes):
            refuse(place, "has a key of bytes, which must be an integer or text")
        if keys is not None and key not in keys:
            refuse(place, f"has the key {shown_key(key)}, which it must not have")
    return value


def list_of(value: Any, place: str) -> list[Any]:
    """Check that *value* is an array that is not empty."""
    if not isinstance(value, list):
        refuse(place, f"must be an array, not {kind_of(value)}")
    if not value:
        refuse(place, "is an empty array")
    return value


def text_of(value: Any, place: str) -> str:
    """Check that *value* is text."""
    if not isinstance(value, str):
        refuse(place, f"must be text, not {kind_of(value)}")
    return value


def optional_text(raw: Raw, key: int, place: str) -> str | None:
    """The text at *key*, or `None` if the map does not have the key."""
    return text_of(raw[key], place) if key in raw else None


def identifier_of(value: Any, place: str) -> str | bytes:
    """Check that *value* is one of the two kinds of an identifier: text, or a UUID as 16 bytes."""
    if isinstance(value, str) or (isinstance(value, bytes) and len(value) == 16):
        return value
    refuse(place, f"must be text or the 16 bytes of a UUID, not {kind_of(value)}")


def optional_count(raw: Raw, key: int, place: str) -> int | None:
    """The unsigned integer at *key*, or `None` if the map does not have the key."""
    if key not in raw:
        return None
    value = raw[key]
    if type(value) is not int or value < 0:
        refuse(place, f"must be an unsigned integer, not {kind_of(value)}")
    return value


def optional_value(raw: Raw, key: int, place: str) -> Any:
    """The value at *key*, or `None` if the map does not have the key; so a null there is refused."""
    if key in raw and raw[key] is None:
        refuse(place, "must not be null")
    return raw.get(key)


def required(raw: Raw, key: int, place: str) -> Any:
    """The value at *key*, which the map must have."""
    if key not in raw:
        refuse(place, "is missing")
    return raw[key]


def joined(known: Raw, extra: Raw, what: str) -> dict[int | str, Any]:
    """Both maps in one.  Raises `ReferenceValueError` if they have a key in common."""
    if both := known.keys() & extra.keys():
        raise ReferenceValueError(f"{what} has the key {shown_key(min(both, key=str))} twice")
    return {**known, **extra}


def without_absent(values: Mapping[int, Any]) -> dict[int | str, Any]:
    """*values* without the keys whose value is `None`."""
    return {key: value for key, value in values.items() if value is not None}


def shown_key(key: int | str) -> str:
    """A key in bounded length, to be shown to people."""
    return repr(key[:40]) if isinstance(key, str) else str(key)


def kind_of(value: Any) -> str:
    """What kind of CBOR value *value* is, to be shown to people."""
    if isinstance(value, cbor2.CBORTag):
        return f"tag {value.tag}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    names = {bool: "a boolean", int: "an integer", str: "text", list: "an array", dict: "a map"}
    return names.get(type(value), "null")
