"""
The numbers of results, by which readers tell which of a node's results is the newest.

They grow with each result of a node over its whole life, whatever clocks do.  A number is above that of the node's
result before it, and above that of every event so far.  Each result that is made known has an event, and the numbers of
events never come back after a restore (`verifier.store.marks`): so neither do these.
"""

from __future__ import annotations

from typing import Final

from verifier.store.database import Row, Tx

_EVENTS: Final = "coalesce((SELECT max(seq) FROM events), 0) AS events"
_BEFORE: Final = (
    "coalesce((SELECT a.sequence FROM appraisals a WHERE a.node_id = {node} AND a.public = 1"
    " ORDER BY a.seq DESC LIMIT 1), 0) AS before"
)
ABOVE_SQL: Final = f"{_EVENTS}, {_BEFORE.format(node='n.id')}"
"""What the number of the next result of a node ``n`` must be above: for `number_above`."""
_ABOVE: Final = f"SELECT {_EVENTS}, {_BEFORE.format(node='?')}"


def number_above(row: Row) -> int:
    """Give the number of a node's next result, from a row with `ABOVE_SQL`."""
    return max(int(row["events"]), int(row["before"])) + 1


async def next_sequence(tx: Tx, node_id: str) -> int:
    """Give the number of a node's next result, in the transaction that stores it."""
    row = await tx.one(_ABOVE, node_id)
    assert row is not None
    return number_above(row)
