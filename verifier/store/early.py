"""What was issued later than now: a clock that has been set back since has left it."""

from __future__ import annotations

from typing import Final

from verifier.schemes.context import Channel
from verifier.store import revocations
from verifier.store.database import Tx

CLOCKS_MS: Final = 5_000
"""By how much the clocks of replicas may differ."""


async def end_sessions(tx: Tx, now_ms: int) -> list[str]:
    """
    End the sessions that wait and were issued later than now.

    Evidence signed now would be older than they are.  They are held against nobody.

    Returns:
        The nodes whose call is ended.  They are to be called again soon.
    """
    rows = await tx.all(
        "UPDATE sessions SET status = 'failed' WHERE status = 'waiting' AND issued_ms > ? RETURNING node_id, channel",
        now_ms + CLOCKS_MS,
    )
    return [row["node_id"] for row in rows if row["channel"] == Channel.CALLED]


async def revoke_results(tx: Tx, node_id: str, early_ms: int, now_ms: int) -> int:
    """
    Revoke the results of a node that were issued after *early_ms*, and tell routers if the newest is one of them.

    Returns:
        How many results there were.
    """
    ended = await tx.all(
        "UPDATE appraisals SET revoked_ms = ? WHERE node_id = ? AND revoked_ms IS NULL AND expires_ms > ?"
        " AND issued_ms > ? RETURNING id, seq, sequence",
        now_ms,
        node_id,
        early_ms,
        early_ms,
    )
    found = await revocations.write_down(tx, node_id, ended, now_ms, "clock")
    await revocations.announce(tx, node_id, found, now_ms)
    return len(found)
