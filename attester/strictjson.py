"""Strict JSON for untrusted input: UTF-8, no duplicate names, no NaN or infinity."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

MAX_LISTS = 1 << 20
"""Lists and objects of one document.  What parsing costs goes by them, and not by the bytes."""


def loads(data: bytes) -> Any:
    """
    Parse JSON strictly.  The caller limits the size.

    Raises:
        ValueError: *data* is not JSON in UTF-8, has too many lists and objects, is nested too deep, or has
            a duplicate name.
    """
    if data.count(b"[") + data.count(b"{") > MAX_LISTS:
        raise ValueError(f"it has more than {MAX_LISTS} lists and objects")
    try:
        # Decoded here, because json would also accept UTF-16.
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"{counts.most_common(1)[0][0][:80]!r} occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
