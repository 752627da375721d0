"""What sessions have shown of the weights that nodes have loaded: the records that later appraisals look at."""

from __future__ import annotations

from collections.abc import Mapping
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
_DECODER: Final = msgspec.json.Decoder(WalkRecord)


async def keep(tx: Tx, session_id: str, node_id: str, model: str, record: WalkRecord) -> None:
    """Store what a session showed about a model, for later appraisals."""
    if record.channel == Channel.CALLED:
        record = walks.weighed(record, await history(tx, node_id, model, 1))
    await tx.execute(
        "INSERT INTO walks (session_id, node_id, model, called, wide, record, at_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
        session_id,
        node_id,
        model,
        int(record.channel == Channel.CALLED),
        int(record.wide),
        msgspec.json.encode(record).decode(),
        record.at_ms,
    )


async def miss(tx: Tx, session_id: str, node_id: str, references: Mapping[str, str], now_ms: int) -> None:
    """
    Note that a node has not answered a call with walks.  The results that it still has are revoked.

    Args:
        references: By model whose walk was asked for, the digest of the reference value that it was made from.
    """
    for model, reference in references.items():
        missed = WalkRecord(channel=Channel.CALLED, verdict="missed", at_ms=now_ms, reference=reference)
        await keep(tx, session_id, node_id, model, missed)
    await revocations.revoke_results(tx, node_id, now_ms)


async def history(tx: Tx, node_id: str, model: str, limit: int) -> tuple[WalkRecord, ...]:
    """
    Give the newest walks of a node and model, oldest first: up to *limit* calls, wide calls and others each.

    The three have separate limits.  So a node cannot displace its calls by asking for challenges itself,
    and the wide calls, which are rare, are not displaced by the others.
    """
    found = await tx.all(_HISTORY, *(node_id, model, limit) * len(_HISTORIES))
    found.sort(key=lambda row: row["seq"])
    return tuple(_DECODER.decode(row["record"]) for row in found)


async def prune(tx: Tx, before_ms: int, limit: int) -> int:
    """Delete up to *limit* of the oldest walks from before *before_ms*."""
    rows = await tx.all("SELECT seq, at_ms FROM walks ORDER BY seq LIMIT ?", limit)
    old = [row["seq"] for row in rows if row["at_ms"] < before_ms]
    return await tx.execute("DELETE FROM walks WHERE seq <= ?", old[-1]) if old else 0
