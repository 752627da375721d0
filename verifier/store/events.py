"""Events: what routers and relying parties follow, numbered for ever."""

from __future__ import annotations

from typing import Any

import msgspec

from verifier.store.database import Row, Tx


async def append(tx: Tx, now_ms: int, kind: str, data: dict[str, Any]) -> None:
    """Add an event to the transaction that it tells of."""
    await tx.execute(
        "INSERT INTO events (at_ms, type, data) VALUES (?, ?, ?)",
        now_ms,
        kind,
        msgspec.json.encode(data).decode(),
    )


async def after(tx: Tx, seq: int, limit: int) -> list[Row]:
    """Events with numbers above *seq*, oldest first."""
    return await tx.all("SELECT * FROM events WHERE seq > ? ORDER BY seq LIMIT ?", seq, limit)


async def bounds(tx: Tx) -> tuple[int, int]:
    """The numbers of the oldest and the newest event kept; (0, 0) where there is none."""
    row = await tx.one("SELECT coalesce(min(seq), 0) AS low, coalesce(max(seq), 0) AS high FROM events")
    assert row is not None
    return row["low"], row["high"]


async def prune(tx: Tx, before_ms: int) -> None:
    """Forget events older than *before_ms*, but never the newest."""
    await tx.execute("DELETE FROM events WHERE at_ms < ? AND seq < (SELECT max(seq) FROM events)", before_ms)
