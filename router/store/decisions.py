"""Records of decisions; `router.store.forgetting` limits their number and age."""

from __future__ import annotations

from collections.abc import Sequence

from router.store.batches import in_batches
from verifier.store.database import Tx


async def save(tx: Tx, router: str, records: Sequence[tuple[str, int, str, bytes]]) -> None:
    """Write records: id, time, caller and JSON.  A known record is left as it is."""
    rows = [(i, at_ms, router, caller, record) for i, at_ms, caller, record in records]
    for marks, values in in_batches(rows):
        await tx.execute(
            f"INSERT INTO decisions (id, at_ms, router, caller, record) VALUES {marks} ON CONFLICT DO NOTHING",
            *values,
        )


async def find(tx: Tx, record_id: str) -> bytes | None:
    """A record's JSON."""
    row = await tx.one("SELECT record FROM decisions WHERE id = ?", record_id)
    return None if row is None else bytes(row["record"])
