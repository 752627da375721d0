"""
Forgetting what is too much: records of decisions, and receipts.

Of too many, each caller loses its own oldest, and who has fewer loses none.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Literal, TypeAlias

from verifier.store.database import Database, Tx

Table: TypeAlias = Literal["decisions", "receipts"]
"""A table with an index of its columns ``caller`` and ``at_ms``."""


def fair_share(counts: Collection[int], keep: int) -> int:
    """How many each caller may have, so that together they have at most *keep* and who has fewer loses none."""
    left = keep
    for place, count in enumerate(sorted(counts)):
        share = left // (len(counts) - place)
        if count > share:
            return share
        left -= count
    return max(counts, default=0)


async def find_surplus(tx: Tx, table: Table, keep: int) -> list[tuple[str, int]]:
    """The callers whose rows are too many if *keep* are kept in all, each with the time of its newest surplus."""
    rows = await tx.all(f"SELECT caller, count(*) AS many FROM {table} GROUP BY caller ORDER BY caller")
    share = fair_share([row["many"] for row in rows], keep)
    found = []
    for caller in (row["caller"] for row in rows if row["many"] > share):
        row = await tx.one(
            f"SELECT at_ms FROM {table} WHERE caller = ? ORDER BY at_ms DESC LIMIT 1 OFFSET ?", caller, share
        )
        if row is not None:
            found.append((caller, int(row["at_ms"])))
    return found


async def forget_of(tx: Tx, table: Table, caller: str, until_ms: int, *, limit: int) -> bool:
    """
    Drop a caller's oldest, up to those of *until_ms*.

    Returns:
        Whether there may be more: about *limit* are dropped at a time.
    """
    some = await tx.one(
        f"SELECT at_ms FROM {table} WHERE caller = ? ORDER BY at_ms LIMIT 1 OFFSET ?", caller, limit
    )
    is_last = some is None or some["at_ms"] >= until_ms
    await tx.execute(
        f"DELETE FROM {table} WHERE caller = ? AND at_ms <= ?",
        caller, until_ms if some is None or is_last else some["at_ms"],
    )  # fmt: skip
    return not is_last


async def thin(db: Database, table: Table, keep: int, *, at_once: int) -> None:
    """
    Drop what is too much, in small steps.

    Args:
        db: The store.
        table: What is thinned.
        keep: How many rows may stay.
        at_once: About so many are dropped in one transaction.
    """
    async with db.scan() as tx:
        surplus = await find_surplus(tx, table, keep)
    for caller, newest_ms in surplus:
        drop = partial(forget_of, table=table, caller=caller, until_ms=newest_ms, limit=at_once)
        while await db.write(drop):
            pass
