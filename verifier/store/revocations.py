"""Revocation of the results that a node still has."""

from __future__ import annotations

from verifier.store import events
from verifier.store.database import Tx


async def end_results(tx: Tx, node_id: str, now_ms: int) -> int:
    """
    Mark the unexpired results of a node as revoked: a relying party sees this at their status.

    Returns:
        How many results there were.
    """
    return await tx.execute(
        "UPDATE appraisals SET revoked_ms = ? WHERE node_id = ? AND revoked_ms IS NULL AND expires_ms > ?",
        now_ms,
        node_id,
        now_ms,
    )


async def revoke_results(tx: Tx, node_id: str, now_ms: int) -> None:
    """Mark the unexpired results of a node as revoked, and tell routers if there were any."""
    if await end_results(tx, node_id, now_ms):
        await events.append(tx, now_ms, "revocation", {"node": node_id})
