"""
Recordings of appraisals: kept up to an age and a total size, and read by trials.

If all together are too large, the nodes that have most of them lose their oldest first: no node pushes
out what was recorded of others.  What an undecided incident rests on stays until a person decides it.
These are few for each node: it has one such incident of each serious kind, and each is made in one session.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from verifier import recording
from verifier.recording import AppraisalSummary, Record, Recording, RecordingHead
from verifier.store.database import Database, Row, Tx
from verifier.store.incident_facts import HOLDING_SQL

_PAGE: Final = 256
_HEAD: Final = "r.appraisal_id, r.node_id, r.at_ms, r.input, r.gist"
_NOT_NEEDED: Final = (
    "NOT EXISTS (SELECT 1 FROM incidents i WHERE i.node_id = r.node_id"
    f" AND i.state IN ({HOLDING_SQL}, 'suspected') AND i.session_id = r.session_id)"
)
"""That no incident which a person may yet have to decide was made in the session of the recording."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A choice of recordings, by node, operator and time."""

    nodes: tuple[str, ...] = ()
    """Ids of nodes; all nodes if empty."""
    operator: str | None = None
    """All operators if `None`."""
    since_ms: int = 0
    until_ms: int = 1 << 62
    newest_only: bool = False
    """Whether only the newest recording of each node is chosen."""


async def keep(
    tx: Tx,
    appraisal_id: str,
    session_id: str,
    at_ms: int,
    evidence: bytes,
    policy_input: bytes,
    record: Record,
    summary: AppraisalSummary,
    *,
    public: bool,
) -> None:
    """Store the evidence as received, and everything else that its appraisal looked at."""
    packed = recording.pack(record)
    text = msgspec.json.encode(summary).decode()
    size = len(evidence) + len(policy_input) + len(text) + len(packed)
    await tx.execute(
        "INSERT INTO recordings"
        " (appraisal_id, node_id, at_ms, evidence, input, gist, record, size, public, session_id)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        appraisal_id,
        record.node.id,
        at_ms,
        evidence,
        policy_input.decode(),
        text,
        packed,
        size,
        int(public),
        session_id,
    )
    await _add_to_total(tx, size)


async def evidence_of(tx: Tx, appraisal_id: str) -> bytes | None:
    """Give the evidence of an appraisal; `None` if it is no longer stored."""
    row = await tx.one("SELECT evidence FROM recordings WHERE appraisal_id = ?", appraisal_id)
    return None if row is None else bytes(row["evidence"])


async def evidence_of_session(tx: Tx, session_id: str | None) -> bytes | None:
    """Give the evidence that was received in a session; `None` if none was, or it is no longer stored."""
    row = await tx.one(
        "SELECT r.evidence FROM appraisals a JOIN recordings r ON r.appraisal_id = a.id"
        " WHERE a.session_id = ? AND a.id = a.origin",
        session_id,
    )
    return None if row is None else bytes(row["evidence"])


async def of_appraisal(tx: Tx, appraisal_id: str) -> Recording | None:
    """Give the recording of an appraisal; `None` if it is no longer stored, or older than recordings with inputs."""
    row = await tx.one(
        "SELECT evidence, input, record FROM recordings WHERE appraisal_id = ? AND input != ''", appraisal_id
    )
    if row is None:
        return None
    return Recording(bytes(row["evidence"]), row["input"].encode(), recording.unpack(row["record"]))


async def read_head(tx: Tx, appraisal_id: str) -> RecordingHead | None:
    """Give the head of a recording; `None` if it is no longer stored, or older than recordings with inputs."""
    row = await tx.one(
        f"SELECT {_HEAD} FROM recordings r WHERE appraisal_id = ? AND input != ''", appraisal_id
    )
    return None if row is None else _head(row)


async def count(tx: Tx, window: Window) -> int:
    """Count the recordings in a window that can be replayed."""
    where, values = _where(window)
    row = await tx.one(f"SELECT count(*) AS n FROM recordings r WHERE {where}", *values)
    assert row is not None
    return int(row["n"])


async def pages(db: Database, window: Window) -> AsyncIterator[list[RecordingHead]]:
    """
    Give the recordings of a window, the oldest first.

    They are read in pages, so that appraisals can be recorded meanwhile.
    """
    where, values = _where(window)
    at_ms, after = window.since_ms, ""
    while True:
        async with db.scan() as tx:
            rows = await tx.all(
                f"SELECT {_HEAD} FROM recordings r WHERE {where} AND (r.at_ms, r.appraisal_id) > (?, ?)"
                " ORDER BY r.at_ms, r.appraisal_id LIMIT ?",
                *values,
                at_ms,
                after,
                _PAGE,
            )
        if not rows:
            return
        yield [_head(row) for row in rows]
        at_ms, after = rows[-1]["at_ms"], rows[-1]["appraisal_id"]


def _where(window: Window) -> tuple[str, tuple[object, ...]]:
    parts = ["r.public = 1 AND r.at_ms >= ? AND r.at_ms < ?"]
    values: list[object] = [window.since_ms, window.until_ms]
    if window.nodes:
        parts.append(f"r.node_id IN ({', '.join('?' for _ in window.nodes)})")
        values += window.nodes
    if window.operator is not None:
        parts.append("r.node_id IN (SELECT id FROM nodes WHERE operator = ?)")
        values.append(window.operator)
    if window.newest_only:
        parts.append(
            "NOT EXISTS (SELECT 1 FROM recordings n WHERE n.node_id = r.node_id AND n.public = 1"
            " AND n.at_ms > r.at_ms AND n.at_ms < ?)"
        )
        values.append(window.until_ms)
    return " AND ".join(parts), tuple(values)


async def prune(tx: Tx, before_ms: int, max_bytes: int, live_ms: int, limit: int) -> int:
    """
    Delete up to *limit* recordings: those from before *before_ms*, and what is over *max_bytes* for all together.

    Recordings from *live_ms* on stay in any case, because their results may have to be appraised again.
    So do those that undecided incidents rest on.

    Returns:
        How many recordings were deleted.
    """
    old = await tx.all(
        f"SELECT appraisal_id, size FROM recordings r WHERE at_ms < ? AND {_NOT_NEEDED}"
        " ORDER BY at_ms, appraisal_id LIMIT ?",
        min(before_ms, live_ms),
        limit,
    )
    await _delete(tx, old)
    deleted = len(old)
    total = await tx.one("SELECT value FROM totals WHERE name = 'recordings'")
    assert total is not None
    if total["value"] > max_bytes and deleted < limit:
        deleted += await _delete_largest(tx, total["value"] - max_bytes, live_ms, limit - deleted)
    return deleted


async def _delete_largest(tx: Tx, over: int, live_ms: int, limit: int) -> int:
    """Delete the oldest recordings of the nodes that have most, until *over* bytes are freed."""
    nodes = await tx.all("SELECT node_id, sum(size) AS size FROM recordings GROUP BY node_id")
    sizes = {row["node_id"]: int(row["size"]) for row in nodes}
    share = fair_share(sizes.values(), sum(sizes.values()) - over)
    deleted = 0
    for node_id in sorted(sizes, key=sizes.__getitem__, reverse=True):
        excess = min(sizes[node_id] - share, over)
        if excess <= 0 or deleted >= limit:
            break
        freed, chosen = 0, []
        for row in await tx.all(
            f"SELECT appraisal_id, size FROM recordings r WHERE node_id = ? AND at_ms < ? AND {_NOT_NEEDED}"
            " ORDER BY at_ms LIMIT ?",
            node_id,
            live_ms,
            limit - deleted,
        ):
            if freed >= excess:
                break
            chosen.append(row)
            freed += row["size"]
        await _delete(tx, chosen)
        deleted += len(chosen)
        over -= freed
    return deleted


def fair_share(sizes: Collection[int], total: int) -> int:
    """Give how much each may have at most, so that all together have no more than *total*."""
    left, share = max(total, 0), 0
    ordered = sorted(sizes)
    for number, size in enumerate(ordered):
        share = left // (len(ordered) - number)
        if size > share:
            return share
        left -= size
    return max(ordered, default=0)


async def _delete(tx: Tx, rows: Sequence[Row]) -> None:
    for row in rows:
        await tx.execute("DELETE FROM recordings WHERE appraisal_id = ?", row["appraisal_id"])
    if rows:
        await _add_to_total(tx, -sum(row["size"] for row in rows))


async def _add_to_total(tx: Tx, size: int) -> None:
    await tx.last("UPDATE totals SET value = value + ? WHERE name = 'recordings'", size)


def _head(row: Row) -> RecordingHead:
    return RecordingHead(
        appraisal_id=row["appraisal_id"],
        node_id=row["node_id"],
        at_ms=row["at_ms"],
        input=row["input"].encode(),
        summary=recording.read_summary(row["gist"]),
    )
