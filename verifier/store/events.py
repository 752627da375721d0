"""Events, which routers and relying parties follow.  A number is never given twice."""

from __future__ import annotations

from typing import Any

import msgspec

from verifier.store.database import Row, Tx


async def append(tx: Tx, now_ms: int, kind: str, data: dict[str, Any]) -> None:
    """Add an event, in the transaction of the change that it announces."""
    await tx.execute(
        "INSERT INTO events (at_ms, type, data) VALUES (?, ?, ?)",
        now_ms,
        kind,
        msgspec.json.encode(data).decode(),
    )


async def after(tx: Tx, seq: int, limit: int) -> list[Row]:
    """Give the events with numbers above *seq*, the oldest first."""
    return await tx.all("SELECT * FROM events WHERE seq > ? ORDER BY seq LIMIT ?", seq, limit)


async def bounds(tx: Tx) -> tuple[int, int]:
    """Give the numbers of the oldest and of the newest stored event; (0, 0) if there is none."""
    row = await tx.one("SELECT coalesce(min(seq), 0) AS low, coalesce(max(seq), 0) AS high FROM events")
    assert row is not None
    return row["low"], row["high"]


async def prune(tx: Tx, before_ms: int) -> None:
    """Delete events from before *before_ms*, but never the newest event."""
    await tx.execute("DELETE FROM events WHERE at_ms < ? AND seq < (SELECT max(seq) FROM events)", before_ms)
