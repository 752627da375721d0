"""Records of decisions; `router.store.forgetting` limits their number."""

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


async def forget(tx: Tx, until_ms: int, *, limit: int) -> bool:
    """
    Drop the oldest, up to those of *until_ms*.

    Returns:
        Whether there may be more: about *limit* are dropped at a time.
    """
    some = await tx.one("SELECT at_ms FROM decisions ORDER BY at_ms LIMIT 1 OFFSET ?", limit)
    is_last = some is None or some["at_ms"] >= until_ms
    await tx.execute(
        "DELETE FROM decisions WHERE at_ms <= ?", until_ms if some is None or is_last else some["at_ms"]
    )
    return not is_last
