"""Recordings of what was appraised: kept for a time and a volume, read by trials."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import msgspec

from verifier import recording
from verifier.recording import AppraisalSummary, Record, Recording, RecordingHead
from verifier.store.database import Database, Row, Tx

_PAGE: Final = 256
_FIRST: Final = "r.appraisal_id, r.node_id, r.at_ms, r.input, r.gist"


@dataclass(frozen=True)
class Window:
    """Which recordings are meant: of whom, and from when."""

    nodes: tuple[str, ...] = ()
    """All, where empty."""
    operator: str | None = None
    since_ms: int = 0
    until_ms: int = 1 << 62
    newest_only: bool = False
    """Only the newest of each node."""


async def keep(
    tx: Tx,
    appraisal_id: str,
    at_ms: int,
    evidence: bytes,
    given: bytes,
    record: Record,
    gist: AppraisalSummary,
    *,
    public: bool,
) -> None:
    """Keep what was received and what its appraisal looked at."""
    packed = recording.pack(record)
    text = msgspec.json.encode(gist).decode()
    await tx.execute(
        "INSERT INTO recordings (appraisal_id, node_id, at_ms, evidence, input, gist, record, size, public)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        appraisal_id,
        record.node.id,
        at_ms,
        evidence,
        given.decode(),
        text,
        packed,
        len(evidence) + len(given) + len(text) + len(packed),
        int(public),
    )


async def evidence_of(tx: Tx, appraisal_id: str) -> bytes | None:
    """The evidence of an appraisal; `None` where it is no longer kept."""
    row = await tx.one("SELECT evidence FROM recordings WHERE appraisal_id = ?", appraisal_id)
    return None if row is None else bytes(row["evidence"])


async def of_appraisal(tx: Tx, appraisal_id: str) -> Recording | None:
    """The recording that an appraisal rests on; `None` where it is not kept, or from before there were any."""
    row = await tx.one(
        "SELECT evidence, input, record FROM recordings WHERE appraisal_id = ? AND input != ''", appraisal_id
    )
    if row is None:
        return None
    return Recording(bytes(row["evidence"]), row["input"].encode(), recording.unpack(row["record"]))


async def taken(tx: Tx, appraisal_id: str) -> RecordingHead | None:
    """The first of a recording; `None` where it is not kept, or from before there were any."""
    row = await tx.one(
        f"SELECT {_FIRST} FROM recordings r WHERE appraisal_id = ? AND input != ''", appraisal_id
    )
    return None if row is None else _taken(row)


async def count(tx: Tx, window: Window) -> int:
    """How many recordings a window has that can be replayed."""
    where, values = _where(window)
    row = await tx.one(f"SELECT count(*) AS n FROM recordings r WHERE {where}", *values)
    assert row is not None
    return int(row["n"])


async def pages(db: Database, window: Window) -> AsyncIterator[list[RecordingHead]]:
    """
    The recordings of a window, oldest first.

    Read in pages, so that what is recorded meanwhile is neither waited for nor in the way.
    """
    where, values = _where(window)
    at_ms, after = window.since_ms, ""
    while True:
        async with db.read() as tx:
            rows = await tx.all(
                f"SELECT {_FIRST} FROM recordings r WHERE {where} AND (r.at_ms, r.appraisal_id) > (?, ?)"
                " ORDER BY r.at_ms, r.appraisal_id LIMIT ?",
                *values,
                at_ms,
                after,
                _PAGE,
            )
        if not rows:
            return
        yield [_taken(row) for row in rows]
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


async def prune(tx: Tx, before_ms: int, max_bytes: int, live_ms: int) -> int:
    """
    Forget what is older than *before_ms*, and the oldest beyond *max_bytes*.

    What results from *live_ms* on rest on stays in any case: they may have to be judged anew.
    Returns how many were forgotten.
    """
    forgotten = await tx.execute("DELETE FROM recordings WHERE at_ms < ?", before_ms)
    row = await tx.one("SELECT coalesce(sum(size), 0) AS total FROM recordings")
    assert row is not None
    over = row["total"] - max_bytes
    while over > 0:
        oldest = await tx.all(
            "SELECT appraisal_id, size FROM recordings WHERE at_ms < ? ORDER BY at_ms LIMIT ?", live_ms, _PAGE
        )
        if not oldest:
            break
        for entry in oldest:
            if over <= 0:
                break
            await tx.execute("DELETE FROM recordings WHERE appraisal_id = ?", entry["appraisal_id"])
            over -= entry["size"]
            forgotten += 1
    return forgotten


def _taken(row: Row) -> RecordingHead:
    return RecordingHead(
        row["appraisal_id"],
        row["node_id"],
        row["at_ms"],
        row["input"].encode(),
        recording.read_summary(row["gist"]),
    )
