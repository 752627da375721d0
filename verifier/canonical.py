"""
Canonical JSON for what is signed and hashed: entries of the log, receipts, batches of receipts.  Pure.

Members are in the order of their code points, without spaces, and values are objects, lists, printable ASCII text,
whole numbers, true and false.  For these, and for no others, plain JSON with sorted members is the form of RFC 8785:
its rules for floats, for escapes and for the order by UTF-16 never apply.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec

from verifier.errors import CanonicalError

_MOST: Final = (1 << 53) - 1
"""The largest whole number that every reader of JSON has exactly (RFC 7493 §2.2)."""
_MAX_DEPTH: Final = 16
_NEVER: Final = (bytes, bytearray, memoryview, datetime, date, time, timedelta, Decimal, UUID)
"""What the library would write as text."""

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """
    Encode a value, or a `msgspec.Struct`, whose absent members are its defaults.

    Raises:
        CanonicalError: it holds something that has no form here.
    """
    plain = msgspec.to_builtins(value, builtin_types=_NEVER)
    _check(plain, _MAX_DEPTH)
    return msgspec.json.encode(plain, order="sorted")


def decode(data: bytes, type: type[T], *, max_size: int) -> T:  # noqa: A002  # as msgspec has it
    """
    Read a value of *type* in its one form.

    Raises:
        CanonicalError: it is too large, not of the type, or not in canonical form: with spaces, members in another
            order or twice, a number or a text in another spelling.
    """
    if len(data) > max_size:
        raise CanonicalError(f"it has {len(data)} bytes, more than {max_size}")
    try:
        value = msgspec.json.decode(data, type=type)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise CanonicalError(f"it cannot be read: {error}") from None
    if encode(value) != data:
        raise CanonicalError("it is not in canonical form")
    return value


def _check(value: Any, depth: int) -> None:
    if not depth:
        raise CanonicalError("it is nested too deeply")
    match value:
        case bool():
            return
        case int() if -_MOST <= value <= _MOST:
            return
        case str() if value.isascii() and (value.isprintable() or not value):
            return
        case dict():
            for name, part in value.items():
                if not isinstance(name, str):
                    raise CanonicalError("the name of a member must be text")
                _check(name, depth - 1)
                _check(part, depth - 1)
        case list() | tuple():
            for part in value:
                _check(part, depth - 1)
        case _:
            raise CanonicalError(f"it holds what has no canonical form: {repr(value)[:40]}")
