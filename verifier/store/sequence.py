"""
The numbers of results, by which readers tell which of a node's results is the newest.

They grow with each result of a node over its whole life, whatever clocks do.  A number is above that of the node's
result before it, and above that of every event so far.  Each result that is made known has an event, and the numbers of
events never come back after a restore (`verifier.store.marks`): so neither do these.
"""

from __future__ import annotations

from typing import Final

from verifier.store.database import Tx

_ABOVE: Final = (
    "SELECT coalesce((SELECT max(seq) FROM events), 0) AS events,"
    " coalesce((SELECT sequence FROM appraisals WHERE node_id = ? AND public = 1 ORDER BY seq DESC LIMIT 1), 0) AS before"
)


async def next_sequence(tx: Tx, node_id: str) -> int:
    """Give the number of a node's next result, in the transaction that stores it."""
    row = await tx.one(_ABOVE, node_id)
    assert row is not None
    return max(int(row["events"]), int(row["before"])) + 1
