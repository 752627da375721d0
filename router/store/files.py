"""
The files of callers: what they have uploaded, and the results of their jobs.

What is uploaded is kept in parts.  The results of a job are not copied: a file of results is the rows of its lines.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from verifier.store.database import Row, Tx

PART: Final = 256 << 10
"""Bytes of each part but the last."""
INCOMING, READY, GOING = 0, 1, 2
"""States of a file: it is written; it is there; it is deleted.  Its owner sees it only while it is there."""
_ROW: Final = 4096
_LINES_AT_ONCE: Final = 200
_PARTS_AT_ONCE: Final = 16


class StoredFile(Struct, frozen=True, kw_only=True):
    """A file, without what is in it."""

    id: str
    owner: str
    purpose: str
    name: str
    bytes: int
    created_ms: int
    expires_ms: int | None = None
    job: str | None = None
    """The job whose results it is."""
    side: int = 0
    """Which results: 0 answers, 1 errors."""


async def add(tx: Tx, file: StoredFile, *, state: int) -> None:
    """Write a file."""
    await tx.execute(
        "INSERT INTO files (id, owner, purpose, name, bytes, created_ms, expires_ms, state, job, side)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        file.id, file.owner, file.purpose, file.name, file.bytes, file.created_ms, file.expires_ms, state,
        file.job, file.side,
    )  # fmt: skip


async def set_ready(tx: Tx, file_id: str) -> bool:
    """Let its owner see a file; returns whether it is there."""
    changed = await tx.execute(
        "UPDATE files SET state = ? WHERE id = ? AND state = ?", READY, file_id, INCOMING
    )
    return changed > 0


async def add_part(tx: Tx, file_id: str, number: int, data: bytes) -> None:
    """Write a part."""
    await tx.execute("INSERT INTO file_parts (file, number, data) VALUES (?, ?, ?)", file_id, number, data)


async def find(tx: Tx, file_id: str, owner: str) -> StoredFile | None:
    """A file of *owner*."""
    row = await tx.one("SELECT * FROM files WHERE id = ? AND owner = ? AND state = ?", file_id, owner, READY)
    return None if row is None else _stored(row)


async def stored_bytes(tx: Tx, owner: str) -> int:
    """The bytes of all files of *owner*; each counts some kilobytes more, for its row."""
    row = await tx.one(
        "SELECT coalesce(sum(bytes), 0) AS bytes, count(*) AS files FROM files WHERE owner = ?", owner
    )
    return 0 if row is None else int(row["bytes"]) + int(row["files"]) * _ROW


async def page(tx: Tx, owner: str, *, after: str, limit: int, rising: bool, purpose: str) -> list[StoredFile]:
    """Some files of *owner*, by their ids, which begin with the time; those behind *after*, if it is one."""
    side, order = (">", "ASC") if rising else ("<", "DESC")
    if not after:
        # No id is as small, or as large.
        after = "" if rising else "g"
    rows = await tx.all(
        f"SELECT * FROM files WHERE owner = ? AND id {side} ? AND state = ? AND (? = '' OR purpose = ?)"
        f" ORDER BY id {order} LIMIT ?",
        owner, after, READY, purpose, purpose, limit,
    )  # fmt: skip
    return [_stored(row) for row in rows]


async def parts(tx: Tx, file_id: str, first: int, last: int) -> list[bytes]:
    """The parts of a file from *first* to *last*."""
    rows = await tx.all(
        "SELECT data FROM file_parts WHERE file = ? AND number >= ? AND number <= ? ORDER BY number",
        file_id, first, last,
    )  # fmt: skip
    return [bytes(row["data"]) for row in rows]


async def result_lines(tx: Tx, job: str, side: int, after: int) -> list[tuple[int, bytes]]:
    """Some lines of results, each with its number, behind line *after*."""
    rows = await tx.all(
        "SELECT line, data FROM job_lines WHERE job = ? AND failed = ? AND line > ? ORDER BY line LIMIT ?",
        job, side, after, _LINES_AT_ONCE,
    )  # fmt: skip
    return [(row["line"], bytes(row["data"])) for row in rows]


async def begin_deleting(tx: Tx, file_id: str, owner: str) -> bool:
    """Take a file from its owner; returns whether it was there.  `delete_some` deletes what is in it."""
    changed = await tx.execute(
        "UPDATE files SET state = ? WHERE id = ? AND owner = ? AND state = ?", GOING, file_id, owner, READY
    )
    return changed > 0


async def begin_deleting_old(tx: Tx, now_ms: int, forgotten_ms: int) -> None:
    """
    Take from their owners the files whose time is over, except what an open job reads.

    Args:
        now_ms: The time.
        forgotten_ms: What was begun to be written before, and is not there, never will be.
    """
    await tx.execute(
        "UPDATE files SET state = ? WHERE expires_ms IS NOT NULL AND expires_ms <= ? AND state = ? AND NOT EXISTS"
        " (SELECT 1 FROM jobs WHERE jobs.input_file = files.id AND jobs.is_open = 1)",
        GOING, now_ms, READY,
    )  # fmt: skip
    await tx.execute(
        "UPDATE files SET state = ? WHERE state <> 1 AND state = ? AND created_ms <= ?",
        GOING, INCOMING, forgotten_ms,
    )  # fmt: skip


async def going(tx: Tx) -> list[StoredFile]:
    """Some files that are being deleted."""
    rows = await tx.all("SELECT * FROM files WHERE state <> 1 AND state = ? LIMIT 100", GOING)
    return [_stored(row) for row in rows]


async def delete_some(tx: Tx, file: StoredFile) -> bool:
    """Delete a part of what is in a file, and at last the file; returns whether there is more."""
    if file.job is None:
        deleted = await tx.execute(
            "DELETE FROM file_parts WHERE file = ? AND number IN"
            " (SELECT number FROM file_parts WHERE file = ? ORDER BY number LIMIT ?)",
            file.id, file.id, _PARTS_AT_ONCE,
        )  # fmt: skip
        more = deleted >= _PARTS_AT_ONCE
    else:
        deleted = await tx.execute(
            "DELETE FROM job_lines WHERE job = ? AND line IN"
            " (SELECT line FROM job_lines WHERE job = ? AND failed = ? ORDER BY line LIMIT ?)",
            file.job, file.job, file.side, _LINES_AT_ONCE,
        )  # fmt: skip
        more = deleted >= _LINES_AT_ONCE
    if not more:
        await tx.execute("DELETE FROM files WHERE id = ?", file.id)
    return more


def _stored(row: Row) -> StoredFile:
    return StoredFile(
        id=row["id"],
        owner=row["owner"],
        purpose=row["purpose"],
        name=row["name"],
        bytes=row["bytes"],
        created_ms=row["created_ms"],
        expires_ms=row["expires_ms"],
        job=row["job"],
        side=row["side"],
    )
