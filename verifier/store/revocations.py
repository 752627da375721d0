"""Revocation of the results that a node still has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

from verifier.store import events, log
from verifier.store.database import Row, Tx

Why: TypeAlias = Literal[
    "worse",  # the node has a newer result, which is not affirming
    "appraised-anew",  # under another policy, reference value or block
    "incident",  # what holds the node
    "key-rolled",  # the node has another key
    "retired",
    "unanswered",  # a call that asked for a walk
    "another-revision",  # the node has, or says that it has
    "clock",  # it was issued later than now
    "key-withdrawn",  # the key that signed it
]
_PER_ENTRY: Final = 64
"""Ids that one entry of the log has room for."""

CLOCKS_MS: Final = 48 * 3600 * 1000
"""By how much our clock may be fast: a result that has run out by it may live for a router whose clock is right."""


async def end_results(tx: Tx, node_id: str, now_ms: int, why: Why) -> list[Row]:
    """
    Mark the unexpired results of a node as revoked: a relying party sees this at their status.

    The newest one is marked even if it has run out by our clock, which may be wrong.

    Returns:
        Their ids and numbers (`verifier.store.sequence`), the newest last.
    """
    ended = await tx.all(
        "UPDATE appraisals SET revoked_ms = ? WHERE node_id = ? AND revoked_ms IS NULL AND expires_ms > ?"
        " AND (expires_ms > ? OR seq ="
        "  (SELECT max(b.seq) FROM appraisals b WHERE b.node_id = appraisals.node_id AND b.public = 1))"
        " RETURNING id, seq, sequence",
        now_ms,
        node_id,
        now_ms - CLOCKS_MS,
        now_ms,
    )
    return await write_down(tx, node_id, ended, now_ms, why)


async def write_down(tx: Tx, node_id: str, ended: Sequence[Row], now_ms: int, why: Why) -> list[Row]:
    """Log which results of a node are revoked; gives them, the newest last."""
    found = sorted(ended, key=lambda row: row["seq"])
    for start in range(0, len(found), _PER_ENTRY):
        ids = [str(row["id"]) for row in found[start : start + _PER_ENTRY]]
        await log.append(tx, now_ms, "revocation", {"ids": ids, "node": node_id, "why": why})
    return found


async def revoke_results(tx: Tx, node_id: str, now_ms: int, why: Why) -> None:
    """Mark the unexpired results of a node as revoked, and tell routers if there were any."""
    await announce(tx, node_id, await end_results(tx, node_id, now_ms, why), now_ms)


async def announce(tx: Tx, node_id: str, ended: Sequence[Row], now_ms: int) -> None:
    """
    Tell routers which results of a node are revoked, if any are.

    The event names the newest of them: with a result, those before it are void, and none after it is.
    """
    if not ended:
        return
    newest = ended[-1]
    data: dict[str, Any] = {"node": node_id, "result": newest["id"]}
    if newest["sequence"]:
        data["sequence"] = newest["sequence"]
    await events.append(tx, now_ms, "revocation", data)
