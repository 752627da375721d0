"""
Bodies of requests, bounded before they are parsed.

What a body costs goes by how many values it has, and not by its bytes: 15 MiB of ``[],`` are five
million lists.  So the values are counted on the bytes first, and depth is bounded too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from router.gateway.errors import GatewayError

MAX_DEPTH: Final = 64
"""How deep lists and objects may be nested: engines in other languages fail earlier than we do."""
LARGE: Final = 256 << 10
"""Bytes from which a body is parsed aside, so that no other request waits for it."""
MANY: Final = 1 << 14
"""Values from which it is."""
_document: Final = msgspec.json.Decoder(dict[str, Any])


def is_large(data: bytes) -> bool:
    """Whether a body must be parsed aside."""
    return len(data) > LARGE or _count(data) > MANY


def decode(data: bytes, max_values: int) -> dict[str, Any]:
    """
    Read a body, which is a JSON object.

    Raises:
        GatewayError: 413 if it has more than *max_values* values; 400 if it is nested too deep, or is
            no JSON object.
    """
    if _count(data) > max_values and _count_outside_strings(data, max_values) > max_values:
        raise GatewayError(
            413,
            "invalid_request_error",
            f"the body has more than {max_values} values (items of lists, members of objects): send it in parts",
            code="too_many_values",
        )
    try:
        document = _document.decode(data)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise GatewayError(400, "invalid_request_error", str(error)) from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_deeper(document):
        raise _too_deep()
    return document


def _count(data: bytes) -> int:
    """At least as many as the values in *data*: each follows a comma, or opens a list or an object."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _count_outside_strings(data: bytes, most: int) -> int:
    """The same without what is in strings.  In what can be parsed, from its beginning on, quotes come in pairs."""
    if data.count(b'"') // 4 > most:
        # Each string is a value or the name of one.
        return most + 1
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    return _count(b"".join(plain.split(b'"')[::2]))


def _is_deeper(document: Mapping[str, Any]) -> bool:
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        inner = [value for each in level for value in (each.values() if isinstance(each, dict) else each)]
        level = [value for value in inner if isinstance(value, (dict, list))]
        if not level:
            return False
    return True


def _too_deep() -> GatewayError:
    return GatewayError(400, "invalid_request_error", f"the body is nested more than {MAX_DEPTH} levels deep")
