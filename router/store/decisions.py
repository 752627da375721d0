"""Records of decisions, limited by number and age."""

from __future__ import annotations

from collections.abc import Collection, Sequence

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


def fair_share(counts: Collection[int], keep: int) -> int:
    """How many each caller may have, so that together they have at most *keep* and who has fewer loses none."""
    left = keep
    for place, count in enumerate(sorted(counts)):
        share = left // (len(counts) - place)
        if count > share:
            return share
        left -= count
    return max(counts, default=0)


async def find_surplus(tx: Tx, keep: int) -> list[tuple[str, int]]:
    """The callers whose records are too many if *keep* are kept in all, each with the time of its newest surplus."""
    rows = await tx.all("SELECT caller, count(*) AS many FROM decisions GROUP BY caller ORDER BY caller")
    share = fair_share([row["many"] for row in rows], keep)
    found = []
    for caller in (row["caller"] for row in rows if row["many"] > share):
        row = await tx.one(
            "SELECT at_ms FROM decisions WHERE caller = ? ORDER BY at_ms DESC LIMIT 1 OFFSET ?", caller, share
        )
        if row is not None:
            found.append((caller, int(row["at_ms"])))
    return found


async def forget_of(tx: Tx, caller: str, until_ms: int, *, limit: int) -> bool:
    """
    Drop a caller's oldest, up to those of *until_ms*.

    Returns:
        Whether there may be more: about *limit* are dropped at a time.
    """
    some = await tx.one(
        "SELECT at_ms FROM decisions WHERE caller = ? ORDER BY at_ms LIMIT 1 OFFSET ?", caller, limit
    )
    is_last = some is None or some["at_ms"] >= until_ms
    await tx.execute(
        "DELETE FROM decisions WHERE caller = ? AND at_ms <= ?",
        caller, until_ms if some is None or is_last else some["at_ms"],
    )  # fmt: skip
    return not is_last


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
