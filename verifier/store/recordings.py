"""Recordings of appraisals: kept up to an age and a total size, and read by trials."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import msgspec

from verifier import recording
from verifier.recording import AppraisalSummary, Record, Recording, RecordingHead
from verifier.store.database import Database, Row, Tx

_PAGE: Final = 256
_HEAD: Final = "r.appraisal_id, r.node_id, r.at_ms, r.input, r.gist"


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
        "INSERT INTO recordings (appraisal_id, node_id, at_ms, evidence, input, gist, record, size, public)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        appraisal_id,
        record.node.id,
        at_ms,
        evidence,
        policy_input.decode(),
        text,
        packed,
        size,
        int(public),
    )
    await _add_to_total(tx, size)


async def evidence_of(tx: Tx, appraisal_id: str) -> bytes | None:
    """Give the evidence of an appraisal; `None` if it is no longer stored."""
    row = await tx.one("SELECT evidence FROM recordings WHERE appraisal_id = ?", appraisal_id)
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
    Delete up to *limit* recordings: those from before *before_ms*, and the oldest ones while all are over *max_bytes*.

    Recordings from *live_ms* on stay in any case, because their results may have to be appraised again.

    Returns:
        How many recordings were deleted.
    """
    total = await tx.one("SELECT value FROM totals WHERE name = 'recordings'")
    assert total is not None
    over = total["value"] - max_bytes
    deleted = freed = 0
    for entry in await tx.all(
        "SELECT appraisal_id, at_ms, size FROM recordings WHERE at_ms < ? ORDER BY at_ms, appraisal_id LIMIT ?",
        live_ms,
        limit,
    ):
        if entry["at_ms"] >= before_ms and over - freed <= 0:
            break
        await tx.execute("DELETE FROM recordings WHERE appraisal_id = ?", entry["appraisal_id"])
        freed += entry["size"]
        deleted += 1
    if freed:
        await _add_to_total(tx, -freed)
    return deleted


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
