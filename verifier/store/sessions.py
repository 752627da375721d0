"""Sessions: each has one nonce, which is used once, and the challenges that were taken for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from verifier.errors import RequestError
from verifier.schemes.context import Answers, Channel, WalkRecord
from verifier.store import incidents, pool
from verifier.store.database import Row, Tx
from verifier.store.ids import in_pieces, new_id, new_nonce
from verifier.store.pool import Entry

_APPRAISING_MS: Final = 10_000
"""How long evidence that came in time may still be appraised: longer than a policy may take."""
_HOUR_MS: Final = 3600 * 1000
_HISTORIES: Final = ("called = 0 AND wide = 0", "called = 1 AND wide = 0", "called = 1 AND wide = 1")
_HISTORY: Final = " UNION ALL ".join(
    f"SELECT * FROM (SELECT seq, record FROM walks WHERE node_id = ? AND model = ? AND {kind}"
    f" ORDER BY seq DESC LIMIT ?) AS walks_{number}"
    for number, kind in enumerate(_HISTORIES)
)
"""The newest walks of each kind, in one statement."""


@dataclass(frozen=True, kw_only=True)
class StoredSession:
    """A session as stored, with the challenges that were taken for it."""

    id: str
    node_id: str | None
    channel: Channel
    nonce: bytes
    issued_ms: int
    expires_ms: int
    status: str
    exhausted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By model, the kinds of challenges that the pool did not have."""
    answers: Mapping[str, Answers] | None = None
    """By model, the answers to a call."""
    answer_ms: int | None = None
    """By the verifier's clock, from the call to the last byte of the answers."""
    evidence_sha256: bytes | None = None
    appraisal_id: str | None = None
    """The id of the result, once there is one."""
    entries: tuple[Entry, ...] = ()
    """The challenges."""
    together: int = 0
    """How many nodes were called at the same moment, if more than one."""
    sealed: bool = False
    """Whether it has no row yet (`verifier.service.sealed`)."""
    pushed_ms: int | None = None
    """When the call was pushed, by the clock that all replicas share; `None` if one process works alone."""


@dataclass(frozen=True)
class WantedChallenge:
    """A challenge to take, if the pool has one."""

    model: str
    kind: str
    instead: str | None = None
    """The kind to take if the pool has none of `kind`."""


async def open_session(
    tx: Tx,
    *,
    node_id: str | None,
    channel: Channel,
    nonce: bytes,
    now_ms: int,
    lifetime_ms: int,
    wants: Sequence[WantedChallenge],
    references: Mapping[str, str],
    hourly: int | None = None,
    admit: Callable[[], None] | None = None,
    together: int = 0,
    healthy_since_ms: int = 0,
) -> StoredSession:
    """
    Open a session and take its challenges, in one transaction.

    While a node's session waits, a repeated request gets the same session with its original time of
    issue: it uses up no challenge and gains no time.

    Args:
        references: By model, the digest of the reference value in force for the node; challenges are made from it.
        hourly: How many sessions of this channel the node may open within an hour.  Each one uses up
            challenges, even if it is dropped at once.
        admit: Raises an error if there are no challenges for a new session.
        together: How many nodes are called at this moment, if more than one.
        healthy_since_ms: See `expire`.

    Raises:
        ConflictError: The nonce was issued before.
        RequestError: The node has opened too many sessions within the hour.
    """
    if node_id is not None:
        waiting = await _waiting(tx, node_id, channel, now_ms, healthy_since_ms)
        if waiting is not None:
            return waiting
        if hourly is not None:
            await _check_hourly_limit(tx, node_id, channel, now_ms, hourly)
    if admit is not None:
        admit()
    session = StoredSession(
        id=new_id(now_ms),
        node_id=node_id,
        channel=channel,
        nonce=nonce,
        issued_ms=now_ms,
        expires_ms=now_ms + lifetime_ms,
        status="waiting",
        together=together,
    )
    await _insert(tx, session)
    entries, exhausted = await _take_challenges(tx, session.id, wants, references, now_ms)
    if exhausted:
        await tx.execute(
            "UPDATE sessions SET exhausted = ? WHERE id = ?",
            msgspec.json.encode(exhausted).decode(),
            session.id,
        )
    return replace(session, entries=entries, exhausted=exhausted)


async def waiting(tx: Tx, node_id: str, channel: Channel, now_ms: int) -> StoredSession | None:
    """Give the node's session that waits for evidence; `None` if there is none."""
    row = await tx.one(
        "SELECT id FROM sessions WHERE node_id = ? AND channel = ? AND status = 'waiting' AND expires_ms > ?",
        node_id,
        channel,
        now_ms,
    )
    return None if row is None else await get(tx, row["id"])


async def _waiting(
    tx: Tx, node_id: str, channel: Channel, now_ms: int, healthy_since_ms: int
) -> StoredSession | None:
    """Give the node's session that waits; one whose time is over is ended first."""
    found = await tx.one(
        "SELECT id, expires_ms FROM sessions WHERE node_id = ? AND channel = ? AND status = 'waiting'",
        node_id,
        channel,
    )
    if found is None:
        return None
    if found["expires_ms"] > now_ms:
        return await get(tx, found["id"])
    await expire(tx, now_ms, node_id=node_id, healthy_since_ms=healthy_since_ms)
    return None


async def _insert(tx: Tx, session: StoredSession) -> None:
    await tx.execute(
        "INSERT INTO sessions (id, node_id, channel, nonce, issued_ms, expires_ms, status, exhausted, together)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, '{}', ?)",
        session.id,
        session.node_id,
        session.channel,
        session.nonce,
        session.issued_ms,
        session.expires_ms,
        session.status,
        session.together,
    )


async def _take_challenges(
    tx: Tx, session_id: str, wants: Sequence[WantedChallenge], references: Mapping[str, str], now_ms: int
) -> tuple[tuple[Entry, ...], dict[str, tuple[str, ...]]]:
    """Take the wanted challenges from the pool; gives also, by model, the kinds that the pool did not have."""
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
    return tuple(entries), exhausted


async def waiting_calls(tx: Tx, node_ids: Sequence[str], now_ms: int) -> frozenset[str]:
    """Give those of *node_ids* whose call still waits for its answer."""
    found: set[str] = set()
    for marks, some in in_pieces(node_ids):
        rows = await tx.all(
            f"SELECT node_id FROM sessions WHERE node_id IN ({marks})"
            " AND channel = 'call' AND status = 'waiting' AND expires_ms > ?",
            *some,
            now_ms,
        )
        found.update(row["node_id"] for row in rows)
    return frozenset(found)


async def get(tx: Tx, session_id: str) -> StoredSession:
    """
    Give a session by its id.

    Raises:
        RequestError: There is none.
    """
    session = await find(tx, session_id)
    if session is None:
        raise RequestError("no such session", code="request.not-found")
    return session


async def state_of(tx: Tx, session: StoredSession) -> StoredSession:
    """
    Give a session that was read earlier as it stands now.  Its challenges have not changed.

    Raises:
        RequestError: It is no longer stored.
    """
    row = await tx.one(
        "SELECT status, expires_ms, appraisal_id, evidence_sha256 FROM sessions WHERE id = ?", session.id
    )
    if row is None:
        raise RequestError("no such session", code="request.not-found")
    return replace(session, **row)


async def find(tx: Tx, session_id: str) -> StoredSession | None:
    """Give a session by its id; `None` if it has no row."""
    row = await tx.one("SELECT * FROM sessions WHERE id = ?", session_id)
    return None if row is None else _session(row, await pool.of_session(tx, session_id))


async def store_sealed(tx: Tx, session: StoredSession) -> StoredSession:
    """
    Give a sealed session its row, unless it has one; returns it as it is stored.

    Raises:
        ConflictError: Another session has used the nonce.
    """
    known = await find(tx, session.id)
    if known is None:
        await _insert(tx, session)
        return session
    return known


async def is_used(tx: Tx, nonce: bytes) -> bool:
    """Whether a stored session has this nonce."""
    return await tx.one("SELECT 1 AS one FROM sessions WHERE nonce = ?", nonce) is not None


async def keep_answers(
    tx: Tx, session_id: str, answers: Mapping[str, Answers], answer_ms: int | None
) -> None:
    """
    Store the answers to a call.  Only the first answers count.

    Args:
        answer_ms: The time that they took; `None` if it could not be measured.

    Raises:
        RequestError: The call is answered already, or no longer waits.
    """
    changed = await tx.execute(
        "UPDATE sessions SET answers = ?, answer_ms = ?"
        " WHERE id = ? AND channel = 'call' AND status = 'waiting' AND answers IS NULL",
        msgspec.json.encode(answers).decode(),
        answer_ms,
        session_id,
    )
    if not changed:
        raise RequestError("this call is answered already, or no longer waits", code="session.closed")


async def drop(tx: Tx, session_id: str, now_ms: int) -> None:
    """Drop a session that waits.  Its nonce and its challenges stay used up."""
    row = await tx.one(
        "UPDATE sessions SET status = 'failed' WHERE id = ? AND status = 'waiting' RETURNING *", session_id
    )
    if row is not None:
        await _fail(tx, row, now_ms)


async def expire(tx: Tx, now_ms: int, *, node_id: str | None = None, healthy_since_ms: int = 0) -> int:
    """
    End the sessions whose time is over.  Calls that were not answered count as missed.

    Args:
        node_id: If given, only this node's sessions are ended, and at once.  Otherwise evidence that came in time
            has `_APPRAISING_MS` to be appraised.
        healthy_since_ms: Since when nothing of ours has failed.  A call from before it may have been answered in
            vain, so it does not count as missed.

    Returns:
        How many sessions ended.
    """
    only, values = ("", ()) if node_id is None else (" AND node_id = ?", (node_id,))
    rows = await tx.all(
        f"UPDATE sessions SET status = 'failed' WHERE status = 'waiting' AND expires_ms <= ?{only} RETURNING *",
        now_ms if node_id is not None or healthy_since_ms >= now_ms else now_ms - _APPRAISING_MS,
        *values,
    )
    for row in rows:
        if row["issued_ms"] >= healthy_since_ms:
            await _fail(tx, row, now_ms)
    return len(rows)


async def record_missed_call(
    tx: Tx, node_id: str, models: Sequence[str], references: Mapping[str, str], now_ms: int
) -> None:
    """Record a call that was due while the node held no channel open.  It uses up no challenge."""
    session_id = new_id(now_ms)
    await tx.execute(
        "INSERT INTO sessions (id, node_id, channel, nonce, issued_ms, expires_ms, status, exhausted)"
        " VALUES (?, ?, 'call', ?, ?, ?, 'failed', '{}')",
        session_id,
        node_id,
        new_nonce(now_ms),
        now_ms,
        now_ms,
    )
    for model in models:
        await _miss_walk(tx, session_id, node_id, model, references.get(model, ""), now_ms)
    await incidents.note_missed_call(tx, node_id, session_id, now_ms)


async def _fail(tx: Tx, row: Row, now_ms: int) -> None:
    if row["channel"] != Channel.CALLED:
        return
    # The call ended without evidence, so the walks that it asked for were missed.
    for entry in await pool.of_session(tx, row["id"]):
        if entry.kind != "read":
            reference = await pool.reference_of(tx, entry.batch)
            await _miss_walk(tx, row["id"], row["node_id"], entry.model, reference, now_ms)
    await incidents.note_missed_call(tx, row["node_id"], row["id"], now_ms)


async def _miss_walk(tx: Tx, session_id: str, node_id: str, model: str, reference: str, now_ms: int) -> None:
    await keep_walk(
        tx,
        session_id,
        node_id,
        model,
        WalkRecord(channel=Channel.CALLED, verdict="missed", at_ms=now_ms, reference=reference),
    )


async def _check_hourly_limit(tx: Tx, node_id: str, channel: str, now_ms: int, hourly: int) -> None:
    row = await tx.one(
        "SELECT count(*) AS n, min(issued_ms) AS oldest FROM sessions"
        " WHERE node_id = ? AND channel = ? AND issued_ms > ?",
        node_id,
        channel,
        now_ms - _HOUR_MS,
    )
    if row is not None and row["n"] >= hourly:
        wait_s = (row["oldest"] + _HOUR_MS - now_ms) // 1000 + 1
        raise RequestError(
            f"a node may open {hourly} sessions with challenges an hour",
            code="request.too-often",
            retry_after=wait_s,
        )


async def keep_walk(tx: Tx, session_id: str, node_id: str, model: str, record: WalkRecord) -> None:
    """Store what a session showed about a model, for later appraisals."""
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


async def history(tx: Tx, node_id: str, model: str, limit: int) -> tuple[WalkRecord, ...]:
    """
    Give the newest walks of a node and model, oldest first: up to *limit* calls, wide calls and others each.

    The three have separate limits.  So a node cannot displace its calls by asking for challenges itself,
    and the wide calls, which are rare, are not displaced by the others.
    """
    found = await tx.all(_HISTORY, *(node_id, model, limit) * len(_HISTORIES))
    found.sort(key=lambda row: row["seq"])
    return tuple(msgspec.json.decode(row["record"], type=WalkRecord) for row in found)


async def prune_walks(tx: Tx, before_ms: int, limit: int) -> int:
    """Delete up to *limit* of the oldest walks from before *before_ms*."""
    rows = await tx.all("SELECT seq, at_ms FROM walks ORDER BY seq LIMIT ?", limit)
    old = [row["seq"] for row in rows if row["at_ms"] < before_ms]
    return await tx.execute("DELETE FROM walks WHERE seq <= ?", old[-1]) if old else 0


async def prune(tx: Tx, before_ms: int, limit: int) -> int:
    """
    Delete up to *limit* sessions that ended before *before_ms*, with the challenges that they used.

    A session stays as long as its result and its walks.  Evidence for a deleted session is refused, because
    there is no such session; so its nonce brings no second result.
    """
    rows = await tx.all(
        "SELECT id FROM sessions s WHERE status <> 'waiting' AND expires_ms < ?"
        " AND NOT EXISTS (SELECT 1 FROM appraisals a WHERE a.session_id = s.id)"
        " AND NOT EXISTS (SELECT 1 FROM walks w WHERE w.session_id = s.id)"
        " ORDER BY expires_ms LIMIT ?",
        before_ms,
        limit,
    )
    if not rows:
        return 0
    ids, marks = [row["id"] for row in rows], ", ".join("?" for _ in rows)
    await tx.execute(f"DELETE FROM pool WHERE session_id IN ({marks})", *ids)
    return await tx.execute(f"DELETE FROM sessions WHERE id IN ({marks})", *ids)


def _session(row: Row, entries: Sequence[Entry]) -> StoredSession:
    answers = row["answers"]
    return StoredSession(
        id=row["id"],
        node_id=row["node_id"],
        channel=Channel(row["channel"]),
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
        pushed_ms=row["pushed_ms"],
        entries=tuple(entries),
    )
