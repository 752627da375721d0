"""Sessions: each has one nonce, which is used once, and the challenges that were taken for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from verifier.errors import RequestError
from verifier.schemes.context import Answers, Channel, IssuedChallenges
from verifier.store import incidents, pool, walks
from verifier.store.database import Row, Tx
from verifier.store.hourly import check_hourly_limit
from verifier.store.ids import in_pieces, new_id, new_nonce
from verifier.store.pool import Entry

_APPRAISING_MS: Final = 10_000
"""How long evidence that came in time may still be appraised: longer than a policy may take."""


@dataclass(frozen=True)
class EndedCall:
    """A call whose time is over."""

    node_id: str
    is_void: bool
    """Whether something of ours has failed meanwhile, so that it is held against nobody."""


class StoredSession(Struct, frozen=True, kw_only=True):
    """A session as stored, with the challenges that were taken for it."""

    id: str
    node_id: str | None
    channel: Channel
    nonce: bytes
    issued_ms: int
    expires_ms: int
    status: str
    exhausted: Mapping[str, tuple[str, ...]] = {}
    """By model, the kinds of challenges that the pool did not have."""
    revisions: Mapping[str, str] = {}
    """By model of these, the reference value of which it did not have them; empty for sessions of earlier versions."""
    answers: Mapping[str, Answers] | None = None
    """By model, the answers to a call."""
    answer_ms: int | None = None
    """By the verifier's clock, from the question to the last byte of the answers."""
    read_ms: int | None = 0
    """The same of the read, if the walk was told after it: `answer_ms` is then of the walk alone."""
    evidence_sha256: bytes | None = None
    appraisal_id: str | None = None
    """The id of the result, once there is one."""
    entries: tuple[Entry, ...] = ()
    """The challenges."""
    together: int = 0
    """How many nodes were called at the same moment, if more than one."""
    sealed: bool = False
    """Whether it has no row yet (`verifier.service.sealed`)."""
    asked: Mapping[str, IssuedChallenges] | None = None
    """By model, the challenges as they were posed; `None` if they were not posed yet."""
    pushed_ms: int | None = None
    """When the call was pushed, by the clock that all replicas share; `None` if one process works alone."""
    ended: EndedCall | None = None
    """The node's earlier call, if its time was over and it was ended for this session."""
    told_ms: int | None = None
    """When the node was told of the walk, by the same clock; `None` if it was told with the call, or not yet."""

    @property
    def awaits_walk(self) -> bool:
        """Whether the node has answered the read of its call, and was told of a walk that it has yet to answer."""
        return self.told_ms is not None and not has_walk(self.answers or {})

    @property
    def withholds_walk(self) -> bool:
        """
        Whether the node is not told yet if a walk follows: not before it has answered the read.

        Nodes that are called together are told at once: their walks must begin at the same moment.
        """
        is_called = self.channel == Channel.CALLED and self.together <= 1 and self.status == "waiting"
        return is_called and self.answers is None


@dataclass(frozen=True)
class WantedChallenge:
    """A challenge to take, if the pool has one."""

    model: str
    kind: str
    instead: str | None = None
    """The kind to take if the pool has none of `kind`."""


def _admit() -> None:
    pass


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
    admit: Callable[[], None] = _admit,
    together: int = 0,
    healthy_since_ms: int = 0,
) -> StoredSession:
    """
    Open a session and take its challenges, in one transaction.

    While a node's session waits, a repeated request gets the same session with its original time of
    issue: it uses up no challenge and gains no time.

    Args:
        references: By model, the digest of the reference value that the node is to be challenged on.
        hourly: How many sessions of this channel the node may open within an hour.  Each one uses up
            challenges, even if it is dropped at once.
        admit: Raises an error if there are no challenges for a new session.
        together: How many nodes are called at this moment, if more than one.
        healthy_since_ms: See `expire`.

    Raises:
        ConflictError: The nonce was issued before.
        RequestError: The node has opened too many sessions within the hour.
    """
    ended: list[EndedCall] = []
    if node_id is not None:
        waiting, ended = await _waiting(tx, node_id, channel, now_ms, healthy_since_ms)
        if waiting is not None:
            return waiting
        if hourly is not None:
            await check_hourly_limit(tx, node_id, channel, now_ms, hourly)
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
    lacking = await _note_exhausted(tx, session.id, exhausted, references)
    return replace(
        session, entries=entries, exhausted=exhausted, revisions=lacking, ended=ended[0] if ended else None
    )


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
) -> tuple[StoredSession | None, list[EndedCall]]:
    """Give the node's session that waits; one whose time is over is ended first, and given too if it is a call."""
    found = await tx.one(
        "SELECT id, expires_ms FROM sessions WHERE node_id = ? AND channel = ? AND status = 'waiting'",
        node_id,
        channel,
    )
    if found is None:
        return None, []
    if found["expires_ms"] > now_ms:
        return await get(tx, found["id"]), []
    return None, await expire(tx, now_ms, node_id=node_id, healthy_since_ms=healthy_since_ms)


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


async def _note_exhausted(
    tx: Tx, session_id: str, exhausted: Mapping[str, Sequence[str]], references: Mapping[str, str]
) -> dict[str, str]:
    """Note what the pool did not have; gives, by model, the reference value of which it had none."""
    lacking = {model: references[model] for model in exhausted if model in references}
    if exhausted:
        await tx.execute(
            "UPDATE sessions SET exhausted = ?, revisions = ? WHERE id = ?",
            msgspec.json.encode(exhausted).decode(),
            msgspec.json.encode(lacking).decode(),
            session_id,
        )
    return lacking


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


def has_walk(answers: Mapping[str, Answers]) -> bool:
    """Whether a walk is among these answers."""
    return any(answer.walk is not None for answer in answers.values())


async def drop(tx: Tx, session_id: str, now_ms: int) -> None:
    """Drop a session that waits.  Its nonce and its challenges stay used up."""
    row = await tx.one(
        "UPDATE sessions SET status = 'failed' WHERE id = ? AND status = 'waiting' RETURNING *", session_id
    )
    if row is not None:
        await _fail(tx, row, now_ms)


async def expire(
    tx: Tx, now_ms: int, *, node_id: str | None = None, healthy_since_ms: int = 0
) -> list[EndedCall]:
    """
    End the sessions whose time is over.  Calls that were not answered count as missed.

    Args:
        node_id: If given, only this node's sessions are ended, and at once.  Otherwise evidence that came in time
            has `_APPRAISING_MS` to be appraised.
        healthy_since_ms: Since when nothing of ours has failed.  A call from before it may have been answered in
            vain, so it does not count as missed.

    Returns:
        The calls among them.  Each is to be made up for.
    """
    only, values = ("", ()) if node_id is None else (" AND node_id = ?", (node_id,))
    rows = await tx.all(
        f"UPDATE sessions SET status = 'failed' WHERE status = 'waiting' AND expires_ms <= ?{only} RETURNING *",
        now_ms if node_id is not None or healthy_since_ms >= now_ms else now_ms - _APPRAISING_MS,
        *values,
    )
    ended = []
    for row in rows:
        is_void = row["issued_ms"] < healthy_since_ms
        if not is_void:
            await _fail(tx, row, now_ms)
        if row["channel"] == Channel.CALLED:
            ended.append(EndedCall(row["node_id"], is_void))
    return ended


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
    await walks.miss(tx, session_id, node_id, {model: references.get(model, "") for model in models}, now_ms)
    await incidents.note_missed_call(tx, node_id, session_id, now_ms)


async def end_for_others(tx: Tx, node_id: str, revisions: Mapping[str, str], now_ms: int) -> None:
    """
    End the sessions of a node that wait and whose challenges are for other revisions than it says it has.

    The walks of a call that is ended count as missed, but it is no incident: the node has said why.

    Args:
        revisions: The digest by model.
    """
    for channel in (Channel.CALLED, Channel.ANNOUNCED):
        session = await waiting(tx, node_id, channel, now_ms)
        others = () if session is None else [e for e in session.entries if _is_for_another(e, revisions)]
        if session is None or not others:
            continue
        await tx.execute("UPDATE sessions SET status = 'failed' WHERE id = ?", session.id)
        asked = {entry.model: entry.reference or "" for entry in session.entries if entry.kind != "read"}
        if channel == Channel.CALLED and asked:
            await walks.miss(tx, session.id, node_id, asked, now_ms)


def _is_for_another(entry: Entry, revisions: Mapping[str, str]) -> bool:
    return entry.model in revisions and entry.reference != revisions[entry.model]


async def _fail(tx: Tx, row: Row, now_ms: int) -> None:
    if row["channel"] != Channel.CALLED:
        return
    # The call ended without evidence, so the walks that it asked for were missed.
    asked = {
        entry.model: await pool.reference_of(tx, entry.batch)
        for entry in await pool.of_session(tx, row["id"])
        if entry.kind != "read"
    }
    if asked:
        await walks.miss(tx, row["id"], row["node_id"], asked, now_ms)
    await incidents.note_missed_call(tx, row["node_id"], row["id"], now_ms)


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
    answers, revisions = row["answers"], row["revisions"]
    return StoredSession(
        id=row["id"],
        node_id=row["node_id"],
        channel=Channel(row["channel"]),
        nonce=row["nonce"],
        issued_ms=row["issued_ms"],
        expires_ms=row["expires_ms"],
        status=row["status"],
        exhausted=msgspec.json.decode(row["exhausted"], type=dict[str, tuple[str, ...]]),
        revisions={} if revisions is None else msgspec.json.decode(revisions, type=dict[str, str]),
        answers=None if answers is None else msgspec.json.decode(answers, type=dict[str, Answers]),
        answer_ms=row["answer_ms"],
        evidence_sha256=row["evidence_sha256"],
        appraisal_id=row["appraisal_id"],
        together=row["together"],
        pushed_ms=row["pushed_ms"],
        told_ms=row["told_ms"],
        read_ms=0 if row["told_ms"] is None else row["read_ms"],
        entries=tuple(entries),
    )
