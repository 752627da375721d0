"""Results that are moved into an archive: read, and deleted once they are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from verifier.archive.moving import unchanged
from verifier.archive.rows import RESULTS
from verifier.store.database import Tx

_COLUMNS = ", ".join(RESULTS.columns)


async def oldest(tx: Tx, before_ms: int, limit: int) -> list[dict[str, Any]]:
    """Give up to *limit* of the oldest results that were issued before *before_ms*, in their order."""
    rows = await tx.all(f"SELECT {_COLUMNS} FROM appraisals ORDER BY seq LIMIT ?", limit)
    found = []
    for row in rows:
        if row["issued_ms"] >= before_ms:
            break
        found.append(dict(row))
    return found


async def remove(tx: Tx, rows: Sequence[dict[str, Any]]) -> None:
    """Delete results that an archive has, unless they were changed since."""
    marks = ", ".join("?" * len(rows))
    places = [row["seq"] for row in rows]
    there = await tx.all(f"SELECT {_COLUMNS} FROM appraisals WHERE seq IN ({marks})", *places)
    places = [row["seq"] for row in unchanged(RESULTS, rows, [dict(row) for row in there])]
    if places:
        marks = ", ".join("?" * len(places))
        await tx.execute(f"DELETE FROM appraisals WHERE seq IN ({marks})", *places)
