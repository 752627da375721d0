"""
What is done to a verifier's database that was restored, so that nothing is free again which was used.

The backup does not know what happened after it.  The high-water marks say which challenges and event numbers may
have been given out since (`verifier.store.marks`); everything else that could be used a second time is ended.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from verifier.store import answer_checks, answer_pool, log_tree, policies, pool
from verifier.store.database import Tx
from verifier.store.marks import Marks
from verifier.store.policies import ChangeAuthor
from verifier.store.whole import Whole

CLOCKS_MS: Final = 5_000
"""By how much the clock of a replica may have been ahead of the clock here."""
_RESTORED, _SIGNED = "restored", "restored signed"
"""The rows of `totals` with the moments of `Fence`."""
_PER_SECOND: Final = 1 << 20
"""More than anybody mints challenges or writes events, on average."""


@dataclass(frozen=True)
class Fence:
    """What may have been used before the database was restored; milliseconds since 1970, 0 if it never was."""

    restored_ms: int = 0
    """Sessions that the verifier sealed up to this moment, by its own clock."""
    signed_ms: int = 0
    """Requests that nodes signed up to this moment, by their clocks."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How to restore."""

    marks: Marks
    all_known: bool
    """Whether *marks* are those of every replica.  Otherwise every challenge of the backup may have been used."""
    keep_tokens: bool
    now_ms: int
    skew_s: int
    """The setting of the service that ran last."""
    author: ChangeAuthor
    made_ms: int
    """When the backup was made."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was ended."""

    sessions: int
    tokens: int
    challenges: int
    results: int
    free: int
    """Challenges that are left."""
    logs: int
    """Logs that ended: their keys may have signed more than the backup has."""


async def known_marks(whole: Whole) -> Marks:
    """Give what a database itself says was given out, before it is replaced."""
    taken: dict[str, dict[str, int]] = {}
    for row in await whole.tx.all(
        "SELECT model, kind, max(idx) + 1 AS mark FROM pool WHERE session_id IS NOT NULL GROUP BY model, kind"
        f" UNION ALL SELECT model, '{answer_pool.KIND}', max(idx) + 1 AS mark FROM answer_checks GROUP BY model"
    ):
        taken.setdefault(row["model"], {})[row["kind"]] = row["mark"]
    return Marks(since_ms=0, pool=taken, events=(await whole.counters()).get("events", 0))


async def end_what_may_be_used(whole: Whole, wish: Wish) -> Report:
    """End everything in a restored database that may have been used after the backup, in its transaction."""
    tx, now_ms = whole.tx, wish.now_ms
    # Nobody is to blame for these.
    sessions = await tx.execute("UPDATE sessions SET status = 'failed' WHERE status = 'waiting'")
    await answer_checks.end_open(tx, now_ms)
    tokens = 0
    if not wish.keep_tokens:
        tokens = await tx.execute(
            "UPDATE tokens SET expires_ms = ? WHERE used_ms IS NULL AND expires_ms > ?", now_ms, now_ms
        )
    # One may have been revoked since, or its node retired: nodes get new ones within minutes.
    results = await tx.execute(
        "UPDATE appraisals SET revoked_ms = ? WHERE revoked_ms IS NULL AND expires_ms > ?", now_ms, now_ms
    )
    challenges = await _end_challenges(tx, wish)
    # Which process holds what: none of them lives.
    await tx.execute("DELETE FROM leases")
    await tx.execute("DELETE FROM channels")
    # One may have been removed since.  Routers register again, when a node refuses them or within an hour.
    await tx.execute("DELETE FROM routers WHERE removed_ms IS NULL")
    await _set_total(tx, _RESTORED, now_ms + CLOCKS_MS)
    # The clock of a node may be ahead too.
    await _set_total(tx, _SIGNED, now_ms + CLOCKS_MS + wish.skew_s * 1000)
    await _begin_events_anew(whole, wish, results)
    left = await tx.one(
        "SELECT (SELECT count(*) FROM pool WHERE session_id IS NULL)"
        " + (SELECT count(*) FROM minted_answers WHERE check_id IS NULL) AS n"
    )
    assert left is not None
    logs = await log_tree.end_all(tx, now_ms)
    return Report(
        sessions=sessions,
        tokens=tokens,
        challenges=challenges,
        results=results,
        free=left["n"],
        logs=logs,
    )


async def _end_challenges(tx: Tx, wish: Wish) -> int:
    """Delete the free challenges that may have been used, and let no index come twice; gives how many there were."""
    rows = await tx.all("SELECT model, kind, next_idx FROM pool_indexes")
    following = {(row["model"], row["kind"]): row["next_idx"] for row in rows}
    for model, kinds in wish.marks.pool.items():
        for kind, mark in kinds.items():
            following[model, kind] = max(following.get((model, kind), 0), mark)
    ended = 0
    for (model, kind), next_idx in following.items():
        below = wish.marks.pool.get(model, {}).get(kind, 0) if wish.all_known else next_idx
        if kind == answer_pool.KIND:
            ended += await answer_pool.end_below(tx, model, below)
        gone = await tx.all(
            "DELETE FROM pool WHERE session_id IS NULL AND model = ? AND kind = ? AND idx < ? RETURNING batch",
            model,
            kind,
            below,
        )
        for batch, count in Counter(row["batch"] for row in gone).items():
            await tx.execute(
                "UPDATE pool_counts SET taken = taken + ? WHERE batch = ? AND kind = ?", count, batch, kind
            )
        ended += len(gone)
        await tx.execute(
            "INSERT INTO pool_indexes (model, kind, next_idx) VALUES (?, ?, ?)"
            " ON CONFLICT (model, kind) DO UPDATE SET next_idx = excluded.next_idx",
            model,
            kind,
            next_idx if wish.all_known else max(next_idx, _leap(wish.now_ms)),
        )
    if not wish.all_known:
        # Challenges of a model that the backup does not know may have been minted and taken too.
        await _set_total(tx, pool.FIRST_INDEX, max(await pool.first_index(tx), _leap(wish.now_ms)))
    return ended


def _leap(now_ms: int) -> int:
    """
    Give an index, or a number of an event, that nobody gave out before *now_ms*.

    It grows with the time, so that two restores of the same backup leave out different ones.
    """
    return now_ms // 1000 * _PER_SECOND


async def _begin_events_anew(whole: Whole, wish: Wish, results: int) -> None:
    """
    Leave out every number that an event may have had, and keep no earlier event.

    So whoever follows the events meets a gap, and takes a fresh snapshot instead of going on with what it knows.

    Args:
        results: How many live results the restore has revoked.
    """
    await whole.tx.execute("DELETE FROM events")
    drawn = max((await whole.counters()).get("events", 0), wish.marks.events)
    if not wish.all_known:
        drawn = max(drawn, _leap(wish.now_ms))
    # One more is left out: a number that follows on the last one that was shown would look like no gap.
    await whole.set_counter(whole.tables["events"], drawn + 1)
    detail = {"made_ms": wish.made_ms, "all_marks": wish.all_known, "results": results}
    await policies.note(whole.tx, "restore", "database", wish.author, wish.now_ms, detail)


async def _set_total(tx: Tx, name: str, value: int) -> None:
    await tx.execute(
        "INSERT INTO totals (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        name,
        value,
    )


async def read_fence(tx: Tx) -> Fence:
    """Give what the service must not accept any more."""
    rows = await tx.all("SELECT name, value FROM totals WHERE name IN (?, ?)", _RESTORED, _SIGNED)
    found = {row["name"]: row["value"] for row in rows}
    return Fence(found.get(_RESTORED, 0), found.get(_SIGNED, 0))
