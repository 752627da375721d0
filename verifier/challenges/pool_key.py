"""
The pool key, and how a challenge follows from it.

Entry *i* of a model and kind has a seed and checked rows that follow from its place and
the pool key, a secret outside the database; the database holds commitments to answers.
So a stolen database lets nobody answer, and nobody learns which rows are checked.
(Ateniese, Di Pietro, Mancini, Tsudik: Scalable and Efficient Provable Data Possession, 2008.)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta, Struct

CHECKED_ROWS: Final = 4
POOL_KEY_BYTES: Final = 32
_FIRST_ROWS_BYTES: Final = 64
_ROWS_BYTES: Final = 4096
WIDE_ROWS: Final = 2048
"""Rows of a wide walk: with so many, arithmetic and not memory limits how fast it is answered."""


class ReadParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """The size of a `read` challenge."""

    windows: Annotated[int, Meta(ge=1, le=65536)] = 256


class WalkParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """The size of a `walk` challenge."""

    rows: Annotated[int, Meta(ge=CHECKED_ROWS, le=2048)] = 32
    passes: Annotated[int, Meta(ge=1, le=64)] = 1


@dataclass(frozen=True)
class PoolKey:
    """The secret from which seeds and checked rows follow."""

    secret: bytes

    def seed(self, model: str, kind: str, index: int) -> bytes:
        """``SHAKE-256(key ‖ model ‖ kind ‖ LE64(i))[0:32]``; all kinds have four letters, so no two inputs clash."""
        return self._derive(model, kind, index, b"", 32)

    def checked_rows(self, model: str, kind: str, index: int, rows: int) -> tuple[int, ...]:
        """The distinct rows of a walk that are checked, in rising order."""
        # A longer digest begins as a shorter one, which almost always has enough distinct rows.
        for size in (_FIRST_ROWS_BYTES, _ROWS_BYTES):
            chosen: set[int] = set()
            stream = self._derive(model, kind, index, b"rows", size)
            for start in range(0, len(stream), 4):
                chosen.add(int.from_bytes(stream[start : start + 4], "little") % rows)
                if len(chosen) == CHECKED_ROWS:
                    return tuple(sorted(chosen))
        return tuple(sorted(chosen))

    def _derive(self, model: str, kind: str, index: int, suffix: bytes, size: int) -> bytes:
        place = model.encode() + kind.encode() + index.to_bytes(8, "little")
        return hashlib.shake_256(self.secret + place + suffix).digest(size)
