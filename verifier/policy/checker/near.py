"""Names that are nearly right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from heapq import nsmallest
from itertools import islice
from typing import Final

_MAX_CANDIDATES: Final = 2_000
_MAX_COMPARED: Final = 64
_MIN_LENGTH: Final = 2
_MAX_LENGTH: Final = 100
_CUTOFF: Final = 0.65


def suggestion(name: str, candidates: Iterable[str]) -> str:
    """`` Did you mean NAME?`` with a space before it, or nothing."""
    near = nearest(name, candidates)
    return f" Did you mean {near}?" if near else ""


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that is most like *name*, if one is like it."""
    pool = {
        c for c in islice(candidates, _MAX_CANDIDATES) if _MIN_LENGTH <= len(c) <= _MAX_LENGTH and c != name
    }
    # To compare letter by letter is slow, so it is done with few.
    likely = nsmallest(_MAX_COMPARED, pool, key=lambda c: (-_common(name, c), abs(len(c) - len(name)), c))
    for candidate in likely:
        if _letters(candidate) == _letters(name):
            return candidate
    found = difflib.get_close_matches(name[:_MAX_LENGTH], likely, n=1, cutoff=_CUTOFF)
    return found[0] if found else None


def _common(a: str, b: str) -> int:
    """How long the beginnings and the ends are that two names have in common."""
    a, b = a.lower(), b.lower()
    return _start(a, b) + _start(a[::-1], b[::-1])


def _start(a: str, b: str) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _letters(name: str) -> str:
    """What is left of a name if nobody looks at case and at which sign joins its words."""
    return "".join(c for c in name.lower() if c.isalnum())
