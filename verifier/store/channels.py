"""Which replica holds a node's channel: a call is made by that replica."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from verifier.store.database import Tx
from verifier.store.ids import in_pieces

REPLICA_LEASE = "replica "
"""A replica that lives renews the lease of this name and its own."""
_WITH_LEASE: Final = f"FROM channels c LEFT JOIN leases l ON l.name = '{REPLICA_LEASE}' || c.replica"


async def open_channel(tx: Tx, node_id: str, replica: str) -> None:
    """Note that *replica* holds a node's channel now."""
    await tx.execute(
        "INSERT INTO channels (node_id, replica, closed_ms) VALUES (?, ?, NULL)"
        " ON CONFLICT (node_id) DO UPDATE SET replica = excluded.replica, closed_ms = NULL",
        node_id,
        replica,
    )


async def close_channel(tx: Tx, node_id: str, replica: str, now_ms: int) -> None:
    """Note that *replica* holds a node's channel no longer, unless another one holds it by now."""
    await tx.execute(
        "UPDATE channels SET closed_ms = ? WHERE node_id = ? AND replica = ? AND closed_ms IS NULL",
        now_ms,
        node_id,
        replica,
    )


async def open_among(tx: Tx, node_ids: Sequence[str], now_ms: int) -> frozenset[str]:
    """Give those of *node_ids* whose channel a living replica holds."""
    found: set[str] = set()
    for marks, some in in_pieces(node_ids):
        rows = await tx.all(
            f"SELECT c.node_id {_WITH_LEASE} WHERE c.node_id IN ({marks})"
            " AND c.closed_ms IS NULL AND l.until_ms > ?",
            *some,
            now_ms,
        )
        found.update(row["node_id"] for row in rows)
    return frozenset(found)


async def census(tx: Tx, now_ms: int, within_ms: int) -> tuple[Counter[str], Counter[str]]:
    """Count by operator the nodes whose channel ended within *within_ms*, and those whose channel is open."""
    rows = await tx.all(
        "SELECT n.operator, count(*) AS nodes, c.closed_ms IS NULL AND coalesce(l.until_ms, 0) > ? AS is_open"
        f" {_WITH_LEASE} JOIN nodes n ON n.id = c.node_id"
        " WHERE n.state <> 'retired' AND coalesce(c.closed_ms, l.until_ms, 0) > ? GROUP BY n.operator, is_open",
        now_ms,
        now_ms - within_ms,
    )
    lost, here = (
        Counter({row["operator"]: row["nodes"] for row in rows if bool(row["is_open"]) is is_open})
        for is_open in (False, True)
    )
    return lost, here


async def ended_ms(tx: Tx, node_id: str, now_ms: int) -> int | None:
    """
    Give when a node's channel ended; `None` if it is open, or there never was one.

    The channels of a replica that is dead ended when it was last known to live.
    """
    row = await tx.one(f"SELECT c.closed_ms, l.until_ms {_WITH_LEASE} WHERE c.node_id = ?", node_id)
    if row is None:
        return None
    if row["closed_ms"] is not None:
        return int(row["closed_ms"])
    return None if (row["until_ms"] or 0) > now_ms else int(row["until_ms"] or 0)


async def calls_to_push(tx: Tx, replica: str, now_ms: int) -> list[tuple[str, str]]:
    """Give the calls that wait for *replica* to push them: session and node."""
    rows = await tx.all(
        "SELECT s.id, s.node_id FROM sessions s JOIN channels c ON c.node_id = s.node_id"
        " WHERE s.channel = 'call' AND s.status = 'waiting' AND s.pushed_ms IS NULL AND s.expires_ms > ?"
        " AND c.replica = ? AND c.closed_ms IS NULL",
        now_ms,
        replica,
    )
    return [(row["id"], row["node_id"]) for row in rows]


async def note_push(tx: Tx, node_id: str, session_id: str, replica: str, now_ms: int) -> bool:
    """
    Note when a call was pushed and by whom.  Only the first time counts: that is when the node could begin.

    Returns:
        Whether *replica* still holds the node's channel.  If not, another one pushes the call, and nothing is noted.
    """
    if not await tx.one(
        "SELECT 1 AS one FROM channels WHERE node_id = ? AND replica = ? AND closed_ms IS NULL",
        node_id,
        replica,
    ):
        return False
    await tx.execute(
        "UPDATE sessions SET pushed_ms = ?, pushed_by = ? WHERE id = ? AND pushed_ms IS NULL",
        now_ms,
        replica,
        session_id,
    )
    return True


async def end_calls_of_the_dead(tx: Tx, now_ms: int) -> list[str]:
    """
    End the calls that wait for answers and that a dead replica has pushed, or was to push.

    They may not have reached their nodes, so they are held against nobody.

    Returns:
        The nodes.  They are to be called again soon.
    """
    rows = await tx.all(
        "UPDATE sessions SET status = 'failed' WHERE channel = 'call' AND status = 'waiting' AND answers IS NULL"
        " AND id IN (SELECT s.id FROM sessions s JOIN channels c ON c.node_id = s.node_id"
        f"  LEFT JOIN leases l ON l.name = '{REPLICA_LEASE}' || coalesce(s.pushed_by, c.replica)"
        "  WHERE s.channel = 'call' AND s.status = 'waiting' AND coalesce(l.until_ms, 0) <= ?)"
        " RETURNING node_id",
        now_ms,
    )
    return [row["node_id"] for row in rows]
