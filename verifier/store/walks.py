"""What sessions have shown of the weights that nodes have loaded: the records that later appraisals look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from verifier.schemes import walks
from verifier.schemes.context import Channel, WalkRecord
from verifier.store import revocations
from verifier.store.database import Tx

_HISTORIES: Final = ("called = 0 AND wide = 0", "called = 1 AND wide = 0", "called = 1 AND wide = 1")
_HISTORY: Final = " UNION ALL ".join(
    f"SELECT * FROM (SELECT seq, record FROM walks WHERE node_id = ? AND model = ? AND {kind}"
    f" ORDER BY seq DESC LIMIT ?) AS walks_{number}"
    for number, kind in enumerate(_HISTORIES)
)
"""The newest walks of each kind, in one statement."""
NEWEST_SQL: Final = (
    "SELECT coalesce(max(seq), 0) FROM ("
    + " UNION ALL ".join(
        f"SELECT max(seq) AS seq FROM walks WHERE node_id = n.id AND model = ? AND {kind}"
        for kind in _HISTORIES
    )
    + ") AS walks_newest"
)
"""The number of the newest of all of them, for a node ``n``; 0 if there is none.  It takes `newest_of`."""
_DECODER: Final = msgspec.json.Decoder(WalkRecord)


async def keep(
    tx: Tx, session_id: str, node_id: str, model: str, record: WalkRecord
) -> tuple[int, WalkRecord]:
    """Store what a session showed about a model, for later appraisals; gives it as stored, with its number."""
    if record.channel == Channel.CALLED:
        record = walks.weighed(record, await history(tx, node_id, model, 1))
    row = await tx.one(
        "INSERT INTO walks (session_id, node_id, model, called, wide, record, at_ms) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " RETURNING seq",
        session_id,
        node_id,
        model,
        int(record.channel == Channel.CALLED),
        int(record.wide),
        msgspec.json.encode(record).decode(),
        record.at_ms,
    )
    assert row is not None
    return int(row["seq"]), record


async def miss(tx: Tx, session_id: str, node_id: str, references: Mapping[str, str], now_ms: int) -> None:
    """
    Note that a node has not answered a call with walks.  The results that it still has are revoked.

    Args:
        references: By model whose walk was asked for, the digest of the reference value that it was made from.
    """
    for model, reference in references.items():
        missed = WalkRecord(channel=Channel.CALLED, verdict="missed", at_ms=now_ms, reference=reference)
        await keep(tx, session_id, node_id, model, missed)
    await revocations.revoke_results(tx, node_id, now_ms, "unanswered")


async def history(tx: Tx, node_id: str, model: str, limit: int) -> tuple[WalkRecord, ...]:
    """
    Give the newest walks of a node and model, oldest first: up to *limit* calls, wide calls and others each.

    The three have separate limits.  So a node cannot displace its calls by asking for challenges itself,
    and the wide calls, which are rare, are not displaced by the others.
    """
    found, _ = await history_and_newest(tx, node_id, model, limit)
    return found


async def history_and_newest(
    tx: Tx, node_id: str, model: str, limit: int
) -> tuple[tuple[WalkRecord, ...], int]:
    """As `history`, with the number of the newest of them; 0 if there is none."""
    found = await tx.all(_HISTORY, *(node_id, model, limit) * len(_HISTORIES))
    found.sort(key=lambda row: row["seq"])
    return tuple(_DECODER.decode(row["record"]) for row in found), found[-1]["seq"] if found else 0


def newest_of(model: str) -> Sequence[str]:
    """Give the parameters of `NEWEST_SQL` for a model."""
    return (model,) * len(_HISTORIES)


def extend(known: Sequence[WalkRecord], record: WalkRecord, limit: int) -> tuple[WalkRecord, ...]:
    """Give what `history` gives after one more walk was kept."""
    if record.wide and record.channel != Channel.CALLED:
        # It has no place there.
        return tuple(known)
    alike = [each for each in known if _kind(each) == _kind(record)]
    oldest = alike[0] if len(alike) >= limit else None
    return (*(each for each in known if each is not oldest), record)


def _kind(record: WalkRecord) -> tuple[bool, bool]:
    return record.channel == Channel.CALLED, record.wide


async def prune(tx: Tx, before_ms: int, limit: int) -> int:
    """Delete up to *limit* of the oldest walks from before *before_ms*."""
    rows = await tx.all("SELECT seq, at_ms FROM walks ORDER BY seq LIMIT ?", limit)
    old = [row["seq"] for row in rows if row["at_ms"] < before_ms]
    return await tx.execute("DELETE FROM walks WHERE seq <= ?", old[-1]) if old else 0
