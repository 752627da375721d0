"""Calls that are answered, and calls that are not: what the sweep goes by."""

from __future__ import annotations

from collections import Counter

from verifier.store.database import Tx


async def overdue(tx: Tx, before_ms: int, healthy_since_ms: int) -> dict[str, str]:
    """
    Give the nodes that were called before a moment, with a walk, and have not answered it, with their operators.

    Args:
        before_ms: The moment.
        healthy_since_ms: See `expire`.
    """
    rows = await tx.all(
        "SELECT s.node_id, n.operator FROM sessions s JOIN nodes n ON n.id = s.node_id"
        " WHERE s.status = 'waiting' AND s.channel = 'call'"
        " AND s.issued_ms <= ? AND s.issued_ms >= ? AND (s.answers IS NULL OR s.told_ms IS NOT NULL)"
        " AND s.answer_ms IS NULL"
        " AND EXISTS (SELECT 1 FROM pool p WHERE p.session_id = s.id AND p.kind <> 'read')",
        before_ms,
        healthy_since_ms,
    )
    return {row["node_id"]: row["operator"] for row in rows}


async def count_answered(tx: Tx, after_ms: int, until_ms: int) -> Counter[str]:
    """Count by operator the calls with a result whose sessions expire after *after_ms*, and not after *until_ms*."""
    rows = await tx.all(
        "SELECT n.operator, count(*) AS calls FROM sessions s JOIN nodes n ON n.id = s.node_id"
        " WHERE s.status <> 'waiting' AND s.status = 'complete' AND s.channel = 'call'"
        " AND s.expires_ms > ? AND s.expires_ms <= ? GROUP BY n.operator",
        after_ms,
        until_ms,
    )
    return Counter({row["operator"]: row["calls"] for row in rows})
