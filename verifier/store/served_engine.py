"""Which engine serves a node, by the evidence behind its result.  A router cannot know it, and is not asked."""

from __future__ import annotations

from verifier.store.blocks import engine_of as engine_in
from verifier.store.database import Tx


async def engine_of(tx: Tx, result_id: str) -> tuple[str, str]:
    """Give name and version of the engine behind a result, in lower case; empty if they are not known, or no longer."""
    row = await tx.one(
        "SELECT r.input FROM appraisals a JOIN recordings r ON r.appraisal_id = a.origin WHERE a.id = ?",
        result_id,
    )
    found = engine_in(row["input"]) if row is not None and row["input"] else None
    return ("", "") if found is None else (found[0].lower(), found[1].lower())
