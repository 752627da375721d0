"""Sessions: one nonce each, used once, with the challenges taken for it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from verifier.errors import RequestError
from verifier.schemes.context import Answers, Channel, WalkRecord
from verifier.store import incidents, pool
from verifier.store.database import Row, Tx
from verifier.store.pool import Entry

_APPRAISING_MS: Final = 10_000
"""Longer than a policy may take."""
_HOUR_MS: Final = 3600 * 1000


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
    together: int = 0


@dataclass(frozen=True)
class Want:
    """A challenge to take, if the pool has one."""

    model: str
    kind: str
    instead: str | None = None
    """The kind to take where there is none of this one."""


async def open_session(
    tx: Tx,
    *,
    node_id: str | None,
    channel: Channel,
    nonce: bytes,
    now_ms: int,
    lifetime_ms: int,
    wants: Sequence[Want],
    references: Mapping[str, str],
    hourly: int | None = None,
    together: int = 0,
) -> StoredSession:
    """
    Open a session and take its challenges, in one transaction.

    While a node's session waits, asking again gives the same one with its original time of
    issue: a repeated request burns nothing and buys no time.

    Args:
        references: By model the reference value in force for the node: challenges are of it.
        hourly: How many sessions of this channel the node may open within an hour: each
            costs the pool, also one that is dropped at once.
        together: How many nodes are called at this moment, where more than one.

    Raises:
        ConflictError: the nonce was issued before.
        RequestError: too many within the hour.
    """
    if node_id is not None:
        waiting = await tx.one(
            "SELECT id, expires_ms FROM sessions WHERE node_id = ? AND channel = ? AND status = 'waiting'",
            node_id,
            channel,
        )
        if waiting is not None and waiting["expires_ms"] > now_ms:
            return await get(tx, waiting["id"])
        if waiting is not None:
            await expire(tx, now_ms, node_id=node_id)
        if hourly is not None:
            await _spend(tx, node_id, channel, now_ms, hourly)
    session_id = secrets.token_hex(16)
    await tx.execute(
        "INSERT INTO sessions (id, node_id, channel, nonce, issued_ms, expires_ms, status, exhausted, together)"
        " VALUES (?, ?, ?, ?, ?, ?, 'waiting', '{}', ?)",
        session_id,
        node_id,
        channel,
        nonce,
        now_ms,
        now_ms + lifetime_ms,
        together,
    )
    entries: list[Entry] = []
    exhausted: dict[str, tuple[str, ...]] = {}
    for want in wants:
        reference = references.get(want.model, "")
        entry = await pool.take(tx, want.model, want.kind, reference, session_id, now_ms)
        if entry is None and want.instead is not None:
            entry = await pool.take(tx, want.model, want.instead, reference, session_id, now_ms)
        if entry is None:
            exhausted[want.model] = (*exhausted.get(want.model, ()), want.instead or want.kind)
        else:
            entries.append(entry)
    if exhausted:
        await tx.execute(
            "UPDATE sessions SET exhausted = ? WHERE id = ?",
            msgspec.json.encode(exhausted).decode(),
            session_id,
        )
    return StoredSession(
        id=session_id,
        node_id=node_id,
        channel=channel,
        nonce=nonce,
        issued_ms=now_ms,
        expires_ms=now_ms + lifetime_ms,
        status="waiting",
        exhausted=exhausted,
        answers=None,
        answer_ms=None,
        evidence_sha256=None,
        appraisal_id=None,
        entries=tuple(entries),
        together=together,
    )


async def waiting_calls(tx: Tx, now_ms: int) -> frozenset[str]:
    """The nodes whose call still waits for its answer."""
    rows = await tx.all(
        "SELECT node_id FROM sessions WHERE channel = 'call' AND status = 'waiting' AND expires_ms > ?",
        now_ms,
    )
    return frozenset(row["node_id"] for row in rows)


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


async def expire(tx: Tx, now_ms: int, *, node_id: str | None = None, blame: bool = True) -> int:
    """
    End the sessions whose time is over; calls that were not answered are missed.

    Args:
        node_id: Only this node's, at once.  Otherwise evidence that came in time and is
            still being appraised is given a moment.
        blame: False after we were down ourselves: nobody could have answered.
    """
    rows = await tx.all(
        "UPDATE sessions SET status = 'failed' WHERE status = 'waiting' AND expires_ms <= ?"
        " AND (? IS NULL OR node_id = ?) RETURNING *",
        now_ms if node_id is not None or not blame else now_ms - _APPRAISING_MS,
        node_id,
        node_id,
    )
    for row in rows if blame else ():
        await _fail(tx, row, now_ms)
    return len(rows)


async def miss(
    tx: Tx, node_id: str, models: Sequence[str], references: Mapping[str, str], now_ms: int
) -> None:
    """A call was due and the node held no channel open: missed, without burning a challenge."""
    session_id = secrets.token_hex(16)
    await tx.execute(
        "INSERT INTO sessions (id, node_id, channel, nonce, issued_ms, expires_ms, status, exhausted)"
        " VALUES (?, ?, 'call', ?, ?, ?, 'failed', '{}')",
        session_id,
        node_id,
        secrets.token_bytes(32),
        now_ms,
        now_ms,
    )
    for model in models:
        await _miss_walk(tx, session_id, node_id, model, references.get(model, ""), now_ms)
    await incidents.note_missed(tx, node_id, session_id, now_ms)


async def _fail(tx: Tx, row: Row, now_ms: int) -> None:
    if row["channel"] != "call":
        return
    # Ended without evidence: whatever walk it asked for was missed.
    for entry in await pool.of_session(tx, row["id"]):
        if entry.kind != "read":
            reference = await pool.reference_of(tx, entry.batch)
            await _miss_walk(tx, row["id"], row["node_id"], entry.model, reference, now_ms)
    await incidents.note_missed(tx, row["node_id"], row["id"], now_ms)


async def _miss_walk(tx: Tx, session_id: str, node_id: str, model: str, reference: str, now_ms: int) -> None:
    await keep_walk(
        tx,
        session_id,
        node_id,
        model,
        WalkRecord(channel="call", verdict="missed", at_ms=now_ms, reference=reference),
    )


async def _spend(tx: Tx, node_id: str, channel: str, now_ms: int, hourly: int) -> None:
    row = await tx.one(
        "SELECT count(*) AS n, min(issued_ms) AS oldest FROM sessions"
        " WHERE node_id = ? AND channel = ? AND issued_ms > ?",
        node_id,
        channel,
        now_ms - _HOUR_MS,
    )
    if row is not None and row["n"] >= hourly:
        wait = (row["oldest"] + _HOUR_MS - now_ms) // 1000 + 1
        raise RequestError(
            f"{hourly} sessions with challenges an hour", code="request.too-often", retry_after=wait
        )


async def keep_walk(tx: Tx, session_id: str, node_id: str, model: str, record: WalkRecord) -> None:
    """Keep what a session showed about a model, for later appraisals."""
    await tx.execute(
        "INSERT INTO walks (session_id, node_id, model, called, wide, record, at_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
        session_id,
        node_id,
        model,
        int(record.channel == "call"),
        int(record.wide),
        msgspec.json.encode(record).decode(),
        record.at_ms,
    )


async def history(tx: Tx, node_id: str, model: str, limit: int) -> tuple[WalkRecord, ...]:
    """
    The newest walks of a node and model, oldest first: calls, wide calls, and as many of the others.

    Apart, so that a node cannot push its calls out by asking for challenges itself, and
    wide ones, which are rare, are not pushed out by the others.
    """
    found: list[Row] = []
    for called, wide in ((0, 0), (1, 0), (1, 1)):
        found += await tx.all(
            "SELECT seq, record FROM walks WHERE node_id = ? AND model = ? AND called = ? AND wide = ?"
            " ORDER BY seq DESC LIMIT ?",
            node_id,
            model,
            called,
            wide,
            limit,
        )
    found.sort(key=lambda row: row["seq"])
    return tuple(msgspec.json.decode(row["record"], type=WalkRecord) for row in found)


async def prune(tx: Tx, before_ms: int) -> None:
    """Forget old walks, and sessions that ended without evidence and used no challenge."""
    await tx.execute("DELETE FROM walks WHERE at_ms < ?", before_ms)
    await tx.execute(
        "DELETE FROM sessions WHERE status = 'failed' AND expires_ms < ?"
        " AND NOT EXISTS (SELECT 1 FROM pool p WHERE p.session_id = sessions.id)"
        " AND NOT EXISTS (SELECT 1 FROM walks w WHERE w.session_id = sessions.id)",
        before_ms,
    )


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
        together=row["together"],
        entries=tuple(entries),
    )
