"""How many sessions with challenges a node may open itself within an hour."""

from __future__ import annotations

from typing import Final

from verifier.errors import RequestError
from verifier.store.database import Tx
from verifier.store.early import CLOCKS_MS

_HOUR_MS: Final = 3600 * 1000


async def check_hourly_limit(tx: Tx, node_id: str, channel: str, now_ms: int, hourly: int) -> None:
    """
    Check that a node may open one more.

    Raises:
        RequestError: It has opened too many.
    """
    row = await tx.one(
        "SELECT count(*) AS n, min(issued_ms) AS oldest FROM sessions"
        " WHERE node_id = ? AND channel = ? AND issued_ms > ? AND issued_ms <= ?",
        node_id,
        channel,
        now_ms - _HOUR_MS,
        # What is from further ahead is from before the clock was set back.
        now_ms + CLOCKS_MS,
    )
    if row is not None and row["n"] >= hourly:
        wait_s = (row["oldest"] + _HOUR_MS - now_ms) // 1000 + 1
        raise RequestError(
            f"a node may open {hourly} sessions with challenges an hour",
            code="request.too-often",
            retry_after=wait_s,
        )
