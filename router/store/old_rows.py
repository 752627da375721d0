"""Decisions and receipts that are moved into an archive: read, and deleted once they are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from verifier.archive.moving import unchanged
from verifier.archive.rows import DECISIONS, RECEIPTS, Table
from verifier.store.database import Tx

_MOVED: Final = {
    # A receipt that is ahead of its batch will be put into another one.
    RECEIPTS.name: "SELECT {columns} FROM receipts WHERE ahead = 0 AND at_ms < ? ORDER BY at_ms LIMIT ?",
    DECISIONS.name: "SELECT {columns} FROM decisions WHERE at_ms < ? ORDER BY at_ms LIMIT ?",
}


async def oldest(tx: Tx, table: Table, before_ms: int, limit: int) -> list[dict[str, Any]]:
    """Give up to *limit* of the oldest rows from before *before_ms*."""
    rows = await tx.all(_MOVED[table.name].format(columns=", ".join(table.columns)), before_ms, limit)
    return [_row(table, row) for row in rows]


async def surplus_before(tx: Tx, table: Table, keep: int) -> int:
    """Give the time before which rows are too many, if the newest *keep* stay; 0 if none are."""
    row = await tx.one(f"SELECT at_ms FROM {table.name} ORDER BY at_ms DESC LIMIT 1 OFFSET ?", keep)
    return 0 if row is None else int(row["at_ms"]) + 1


async def remove(tx: Tx, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Delete rows that an archive has, unless they were changed since."""
    marks = ", ".join("?" * len(rows))
    keys = [row[table.key] for row in rows]
    columns = ", ".join(table.columns)
    there = await tx.all(f"SELECT {columns} FROM {table.name} WHERE {table.key} IN ({marks})", *keys)
    keys = [row[table.key] for row in unchanged(table, rows, [_row(table, row) for row in there])]
    if keys:
        marks = ", ".join("?" * len(keys))
        await tx.execute(f"DELETE FROM {table.name} WHERE {table.key} IN ({marks})", *keys)


def _row(table: Table, row: Any) -> dict[str, Any]:
    # Databases have types of their own for bytes.
    return {
        name: bytes(row[name]) if kind == "bytes" and row[name] is not None else row[name]
        for name, kind in table.columns.items()
    }
