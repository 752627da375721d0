"""
Where reference values are from, and who did what to them.

One value may come from several sources: measured here, and signed by its publisher, this year and the next.
Each is kept.  The source that counts, with its signer and its validity, is in the value's own row, and only a person
who activates it changes that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from verifier.errors import ReferenceValueError
from verifier.schemes.context import Source
from verifier.store.database import Row, Tx
from verifier.store.policies import ChangeAuthor

UNNAMED: Final = ("corim",)
"""Sources that name their models themselves: no value of theirs comes into force without being asked for."""
_FIELDS: Final = ("source", "signer", "not_before", "not_after")
MAX_HISTORY: Final = 1000


@dataclass(frozen=True)
class Provenance:
    """Where a value is from, and from when and until when it is valid, in seconds since 1970."""

    source: Source = "measured"
    signer: str | None = None
    not_before: int | None = None
    not_after: int | None = None

    @classmethod
    def of(cls, row: Row) -> Provenance:
        """Give the provenance in a row of a value, or of a source."""
        return cls(*(row[name] for name in _FIELDS))


async def add(tx: Tx, value: Row, provenance: Provenance, author: ChangeAuthor, now_ms: int) -> bool:
    """
    Keep a further source of a value.

    Args:
        value: The value's row.

    Returns:
        Whether it is another one than the newest that is known.
    """
    known = await every(tx, value)
    if Provenance.of(known[-1]) == provenance:
        return False
    if known[0]["actor"] is None:
        # A policy has brought the value, or a process of an earlier version has added it.
        await insert(
            tx,
            value["digest"],
            1,
            Provenance.of(value),
            ChangeAuthor("unknown", "known before"),
            value["added_ms"],
        )
    await insert(tx, value["digest"], known[-1]["number"] + 1, provenance, author, now_ms)
    return True


async def insert(
    tx: Tx, digest: str, number: int, provenance: Provenance, author: ChangeAuthor, now_ms: int
) -> None:
    """Store one source."""
    await tx.execute(
        "INSERT INTO reference_sources (digest, number, at_ms, source, signer, not_before, not_after, actor, reason)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        digest,
        number,
        now_ms,
        provenance.source,
        provenance.signer,
        provenance.not_before,
        provenance.not_after,
        author.actor,
        author.reason,
    )


async def every(tx: Tx, value: Row) -> list[Row]:
    """Give the sources of a value in their order; at least the one in its own row, as number 1 of nobody."""
    found = await tx.all("SELECT * FROM reference_sources WHERE digest = ? ORDER BY number", value["digest"])
    own = {name: value[name] for name in ("digest", *_FIELDS)}
    return found or [{**own, "number": 1, "at_ms": value["added_ms"], "actor": None, "reason": None}]


async def choose(tx: Tx, value: Row, number: int | None) -> Provenance:
    """
    Give the source of a value that is to count: that with *number*, or the newest.

    Raises:
        ReferenceValueError: there is no such source.
    """
    known = await every(tx, value)
    if number is None:
        return Provenance.of(known[-1])
    for row in known:
        if row["number"] == number:
            return Provenance.of(row)
    raise ReferenceValueError(f"the value has {len(known)} sources, and none has the number {number}")


async def waiting(tx: Tx) -> dict[str, int]:
    """By digest, how many sources a value has, for values with more than one."""
    rows = await tx.all(
        "SELECT digest, count(*) AS sources FROM reference_sources GROUP BY digest HAVING count(*) > 1"
    )
    return {row["digest"]: row["sources"] for row in rows}


async def history(tx: Tx, model: str | None = None, *, limit: int = MAX_HISTORY) -> list[dict[str, Any]]:
    """
    Give what was done to the reference values of all models, or of one: who, when and why, the newest first.

    The roll-outs of models (``rollout-…``) are among them.
    """
    only = ""
    values: tuple[str, ...] = ()
    if model is not None:
        only, values = " AND subject IN (SELECT digest FROM reference_values WHERE model = ?)", (model,)
    rows = await tx.all(
        "SELECT seq, at_ms, actor, reason, action, subject, detail FROM changes"
        f" WHERE (action LIKE 'reference-%' OR action LIKE 'rollout-%'){only} ORDER BY seq DESC LIMIT ?",
        *values,
        limit,
    )
    models = {
        row["digest"]: row["model"] for row in await tx.all("SELECT digest, model FROM reference_values")
    }
    return [
        {
            "at": row["at_ms"] // 1000,
            "actor": row["actor"],
            "reason": row["reason"],
            "action": row["action"].removeprefix("reference-"),
            "digest": row["subject"],
            "model": models.get(row["subject"]),
            "detail": msgspec.json.decode(row["detail"]),
        }
        for row in rows
    ]


async def last_changes(tx: Tx) -> dict[str, dict[str, Any]]:
    """Give the newest change of each value: who, when and why."""
    newest: dict[str, dict[str, Any]] = {}
    for change in await history(tx):
        newest.setdefault(change["digest"], change)
    return newest


async def last(tx: Tx, digest: str, action: str) -> Row | None:
    """Give the newest change of a value of one kind."""
    return await tx.one(
        "SELECT at_ms, actor, reason FROM changes WHERE subject = ? AND action = ? ORDER BY seq DESC LIMIT 1",
        digest,
        f"reference-{action}",
    )
