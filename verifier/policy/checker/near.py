"""Names that are nearly right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from typing import Final

_MAX_CANDIDATES: Final = 2_000
_MIN_LENGTH: Final = 2
_MAX_LENGTH: Final = 100
_CUTOFF: Final = 0.65


def suggestion(name: str, candidates: Iterable[str]) -> str:
    """`` Did you mean NAME?`` with a space before it, or nothing."""
    near = nearest(name, candidates)
    return f" Did you mean {near}?" if near else ""


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that is most like *name*, if one is like it."""
    pool = sorted(
        {c for c in islice(candidates, _MAX_CANDIDATES) if _MIN_LENGTH <= len(c) <= _MAX_LENGTH and c != name}
    )
    by_letters = {_letters(candidate): candidate for candidate in reversed(pool)}
    if (same := by_letters.get(_letters(name))) is not None:
        return same
    found = difflib.get_close_matches(name[:_MAX_LENGTH], pool, n=1, cutoff=_CUTOFF)
    return found[0] if found else None


def _letters(name: str) -> str:
    """What is left of a name if nobody looks at case and at which sign joins its words."""
    return "".join(c for c in name.lower() if c.isalnum())
