"""Records of decisions, limited by number and age."""

from __future__ import annotations

from collections.abc import Sequence

from router.store.batches import in_batches
from verifier.store.database import Tx


async def save(tx: Tx, router: str, records: Sequence[tuple[str, int, bytes]]) -> None:
    """Write records: id, time and JSON.  A known record is left as it is."""
    for marks, values in in_batches([(i, at_ms, router, record) for i, at_ms, record in records]):
        await tx.execute(
            f"INSERT INTO decisions (id, at_ms, router, record) VALUES {marks} ON CONFLICT DO NOTHING",
            *values,
        )


async def find(tx: Tx, record_id: str) -> bytes | None:
    """A record's JSON."""
    row = await tx.one("SELECT record FROM decisions WHERE id = ?", record_id)
    return None if row is None else bytes(row["record"])


async def forget(tx: Tx, now_ms: int, *, keep_days: int, keep: int, limit: int) -> bool:
    """
    Drop the oldest: those older than *keep_days*, and those beyond the newest *keep*.

    Returns:
        Whether there may be more: about *limit* are dropped at a time.
    """
    until_ms = now_ms - keep_days * 86400 * 1000 - 1
    row = await tx.one("SELECT at_ms FROM decisions ORDER BY at_ms DESC LIMIT 1 OFFSET ?", keep)
    if row is not None:
        until_ms = max(until_ms, row["at_ms"])
    some = await tx.one("SELECT at_ms FROM decisions ORDER BY at_ms LIMIT 1 OFFSET ?", limit)
    is_last = some is None or some["at_ms"] >= until_ms
    await tx.execute(
        "DELETE FROM decisions WHERE at_ms <= ?", until_ms if some is None or is_last else some["at_ms"]
    )
    return not is_last
