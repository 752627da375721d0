"""JSON from outside: UTF-8, no name twice, no numbers that are none, never a surprise."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def loads(data: bytes) -> Any:
    """
    Read JSON strictly; bounding its size is the caller's.

    Raises:
        ValueError: it is not JSON in UTF-8, nests too deep, or a name stands twice.
    """
    try:
        # UTF-8 said, or json would take UTF-16 too.
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"{counts.most_common(1)[0][0][:80]!r} stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
