"""Sessions: one nonce each, used once, with the challenges taken for it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from verifier.errors import RequestError
from verifier.schemes.base import Answers, Channel, WalkRecord
from verifier.store import incidents, pool
from verifier.store.database import Row, Tx
from verifier.store.pool import Entry


@dataclass(frozen=True)
class StoredSession:
    """A session as kept; its challenges are in `entries`."""

    id: str
    node_id: str | None
    channel: Channel
    nonce: bytes
    issued_ms: int
    expires_ms: int
    status: str
    exhausted: Mapping[str, tuple[str, ...]]
    answers: Mapping[str, Answers] | None
    answer_ms: int | None
    evidence_sha256: bytes | None
    appraisal_id: str | None
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Want:
    """A challenge to take, if the pool has one."""

    model: str
    kind: str


async def open_session(
    tx: Tx,
    *,
    node_id: str | None,
    channel: Channel,
    nonce: bytes,
    now_ms: int,
    lifetime_ms: int,
    wants: Sequence[Want],
) -> StoredSession:
    """
    Open a session and take its challenges, in one transaction.

    While a node's session waits, asking again gives the same one with its original time of
    issue: a repeated request burns nothing and buys no time.

    Raises:
        ConflictError: the nonce was issued before.
    """
    if node_id is not None:
        await expire(tx, now_ms)
        waiting = await tx.one(
            "SELECT id FROM sessions WHERE node_id = ? AND channel = ? AND status = 'waiting'",
            node_id,
            channel,
        )
        if waiting is not None:
            return await get(tx, waiting["id"])
    session_id = secrets.token_hex(16)
    await tx.execute(
        "INSERT INTO sessions (id, node_id, channel, nonce, issued_ms, expires_ms, status, exhausted)"
        " VALUES (?, ?, ?, ?, ?, ?, 'waiting', '{}')",
        session_id,
        node_id,
        channel,
        nonce,
        now_ms,
        now_ms + lifetime_ms,
    )
    exhausted: dict[str, list[str]] = {}
    for want in wants:
        if await pool.take(tx, want.model, want.kind, session_id) is None:
            exhausted.setdefault(want.model, []).append(want.kind)
    if exhausted:
        await tx.execute(
            "UPDATE sessions SET exhausted = ? WHERE id = ?",
            msgspec.json.encode(exhausted).decode(),
            session_id,
        )
    return await get(tx, session_id)


async def get(tx: Tx, session_id: str) -> StoredSession:
    """
    A session by id.

    Raises:
        RequestError: there is none.
    """
    row = await tx.one("SELECT * FROM sessions WHERE id = ?", session_id)
    if row is None:
        raise RequestError("no such session", code="request.not-found")
    return _session(row, await pool.of_session(tx, session_id))


async def keep_answers(tx: Tx, session_id: str, answers: Mapping[str, Answers], answer_ms: int) -> None:
    """
    Keep the answers to a call; the first ones count.

    Raises:
        RequestError: answered already, or not waiting.
    """
    changed = await tx.execute(
        "UPDATE sessions SET answers = ?, answer_ms = ?"
        " WHERE id = ? AND channel = 'call' AND status = 'waiting' AND answers IS NULL",
        msgspec.json.encode(answers).decode(),
        answer_ms,
        session_id,
    )
    if not changed:
        raise RequestError("this call is answered, or no longer waits", code="session.closed")


async def drop(tx: Tx, session_id: str, now_ms: int) -> None:
    """Drop a session that waits.  Its nonce and its challenges stay used."""
    row = await tx.one(
        "UPDATE sessions SET status = 'failed' WHERE id = ? AND status = 'waiting' RETURNING *", session_id
    )
    if row is not None:
        await _fail(tx, row, now_ms)


async def expire(tx: Tx, now_ms: int) -> int:
    """End the sessions whose time is over; calls that were not answered are missed."""
    rows = await tx.all(
        "UPDATE sessions SET status = 'failed' WHERE status = 'waiting' AND expires_ms <= ? RETURNING *",
        now_ms,
    )
    for row in rows:
        await _fail(tx, row, now_ms)
    return len(rows)


async def _fail(tx: Tx, row: Row, now_ms: int) -> None:
    if row["channel"] != "call":
        return
    # Ended without evidence: whatever walk it asked for was missed.
    for entry in await pool.of_session(tx, row["id"]):
        if entry.kind == "walk":
            record = WalkRecord("call", "missed", "file", 0, now_ms)
            await keep_walk(tx, row["id"], row["node_id"], entry.model, record)
    await incidents.note_missed(tx, row["node_id"], row["id"], now_ms)


async def keep_walk(tx: Tx, session_id: str, node_id: str, model: str, record: WalkRecord) -> None:
    """Keep what a session showed about a model, for later appraisals."""
    await tx.execute(
        "INSERT INTO walks (session_id, node_id, model, record, at_ms) VALUES (?, ?, ?, ?, ?)",
        session_id,
        node_id,
        model,
        msgspec.json.encode(record).decode(),
        record.at_ms,
    )


async def history(tx: Tx, node_id: str, model: str, limit: int) -> tuple[WalkRecord, ...]:
    """The newest walks of a node and model, oldest first."""
    rows = await tx.all(
        "SELECT record FROM walks WHERE node_id = ? AND model = ? ORDER BY at_ms DESC LIMIT ?",
        node_id,
        model,
        limit,
    )
    return tuple(msgspec.json.decode(row["record"], type=WalkRecord) for row in reversed(rows))


def _session(row: Row, entries: Sequence[Entry]) -> StoredSession:
    answers = row["answers"]
    return StoredSession(
        id=row["id"],
        node_id=row["node_id"],
        channel=row["channel"],
        nonce=row["nonce"],
        issued_ms=row["issued_ms"],
        expires_ms=row["expires_ms"],
        status=row["status"],
        exhausted=msgspec.json.decode(row["exhausted"], type=dict[str, tuple[str, ...]]),
        answers=None if answers is None else msgspec.json.decode(answers, type=dict[str, Answers]),
        answer_ms=row["answer_ms"],
        evidence_sha256=row["evidence_sha256"],
        appraisal_id=row["appraisal_id"],
        entries=tuple(entries),
    )
