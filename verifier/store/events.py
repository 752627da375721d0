"""Events, which routers and relying parties follow.  A number is never given twice."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from verifier.store.database import Row, Tx

MOVED: Final = "revision"
"""The type of the event that a node has another revision of a model now."""


async def append(tx: Tx, now_ms: int, kind: str, data: dict[str, Any]) -> None:
    """Add an event, in the transaction of the change that it announces.  Its number comes last of all."""
    await tx.last(
        "INSERT INTO events (at_ms, type, data) VALUES (?, ?, ?)",
        now_ms,
        kind,
        msgspec.json.encode(data).decode(),
    )


async def after(tx: Tx, seq: int, limit: int) -> list[Row]:
    """Give the events with numbers above *seq*, the oldest first."""
    return await tx.all("SELECT * FROM events WHERE seq > ? ORDER BY seq LIMIT ?", seq, limit)


class NodeChanges(Struct, frozen=True):
    """What has become of nodes since an event."""

    newest: int
    """The number of the newest event."""
    changed: tuple[str, ...]
    """The nodes that came or changed their state."""
    moved: tuple[str, ...]
    """The nodes that have another revision of a model (`verifier.store.revisions`)."""


async def node_changes(tx: Tx, seq: int) -> NodeChanges:
    """Give what has become of nodes after event *seq*."""
    rows = await tx.all(
        "SELECT seq, type, CASE WHEN type IN ('node', 'revision') THEN data END AS data FROM events"
        " WHERE seq > ? ORDER BY seq",
        seq,
    )
    found: dict[str, dict[str, None]] = {"node": {}, MOVED: {}}
    for row in rows:
        if row["type"] in found:
            found[row["type"]][msgspec.json.decode(row["data"])["node"]] = None
    return NodeChanges(rows[-1]["seq"] if rows else seq, tuple(found["node"]), tuple(found[MOVED]))


async def bounds(tx: Tx) -> tuple[int, int]:
    """Give the numbers of the oldest and of the newest stored event; (0, 0) if there is none."""
    # Each in a statement of its own: SQLite would look at all rows for both together.
    row = await tx.one(
        "SELECT coalesce((SELECT min(seq) FROM events), 0) AS low, coalesce((SELECT max(seq) FROM events), 0) AS high"
    )
    assert row is not None
    return row["low"], row["high"]


async def prune(tx: Tx, before_ms: int, limit: int) -> int:
    """Delete up to *limit* of the oldest events from before *before_ms*, but never the newest event."""
    rows = await tx.all("SELECT seq, at_ms FROM events ORDER BY seq LIMIT ?", limit + 1)
    old = [row["seq"] for row in rows[:-1] if row["at_ms"] < before_ms]
    return await tx.execute("DELETE FROM events WHERE seq <= ?", old[-1]) if old else 0
