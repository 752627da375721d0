"""The pool of single-use challenges, minted from reference values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verifier.errors import ReferenceValueError
from verifier.store import references
from verifier.store.database import Row, Tx


@dataclass(frozen=True)
class Entry:
    """A challenge of the pool.  Its seed and its checked rows are derived from its place and the pool key."""

    model: str
    kind: str
    index: int
    batch: int
    parameters: str
    commitments: bytes
    reference: str | None = None
    """The digest of the reference value that it was minted from; `None` while it is not taken."""


async def open_batch(tx: Tx, model: str, digest: str, now_ms: int, goal: str = "{}") -> int:
    """
    Open a batch of challenges.

    Args:
        digest: The reference value that the challenges are minted from.
        goal: What to mint, as JSON, for a later run that continues this one.

    Returns:
        The id of the batch.

    Raises:
        ReferenceValueError: The model has no such reference value, or the value is superseded or retired.
    """
    known = await references.by_digest(tx, digest)
    if known is None or known["model"] != model or known["state"] not in references.LIVE:
        raise ReferenceValueError(
            f"{model}: the folder does not match a reference value that is active or a candidate"
        )
    row = await tx.one(
        "INSERT INTO batches (model, reference, minted_ms, goal) VALUES (?, ?, ?, ?) RETURNING id",
        model,
        digest,
        now_ms,
        goal,
    )
    assert row is not None
    batch: int = row["id"]
    return batch


async def is_live(tx: Tx, batch: int) -> bool:
    """Whether the reference value of a batch is in force, or may come into force."""
    row = await tx.one(
        "SELECT r.state FROM batches b JOIN reference_values r ON r.digest = b.reference WHERE b.id = ?",
        batch,
    )
    return row is not None and row["state"] in references.LIVE


async def reference_of(tx: Tx, batch: int) -> str:
    """Give the digest of the reference value that a batch was minted from."""
    row = await tx.one("SELECT reference FROM batches WHERE id = ?", batch)
    assert row is not None
    return str(row["reference"])


async def last_batch(tx: Tx, model: str) -> Row | None:
    """Give the newest batch of a model."""
    return await tx.one("SELECT * FROM batches WHERE model = ? ORDER BY id DESC LIMIT 1", model)


async def minted(tx: Tx, batch: int) -> dict[str, int]:
    """Count the entries of a batch by kind, with those that are used."""
    rows = await tx.all("SELECT kind, count(*) AS n FROM pool WHERE batch = ? GROUP BY kind", batch)
    return {row["kind"]: row["n"] for row in rows}


async def next_index(tx: Tx, model: str, kind: str) -> int:
    """Give the first index that was never used: no seed may come twice."""
    row = await tx.one(
        "SELECT coalesce(max(idx), -1) + 1 AS next FROM pool WHERE model = ? AND kind = ?", model, kind
    )
    assert row is not None
    index: int = row["next"]
    return index


async def add(tx: Tx, entries: Sequence[Entry]) -> None:
    """Add minted entries."""
    for e in entries:
        await tx.execute(
            "INSERT INTO pool (model, kind, idx, batch, parameters, commitments) VALUES (?, ?, ?, ?, ?, ?)",
            e.model,
            e.kind,
            e.index,
            e.batch,
            e.parameters,
            e.commitments,
        )


async def take(tx: Tx, model: str, kind: str, reference: str, session_id: str, now_ms: int) -> Entry | None:
    """Take the next free entry that was minted from a reference value.  It is never free again."""
    row = await tx.one(
        "UPDATE pool SET session_id = ? WHERE model = ? AND kind = ? AND idx = ("
        # The index of the free entries is named, batch by batch.  Otherwise the planner would walk past every
        # used entry, and past all those that are left of values no longer in force.
        "  SELECT p.idx FROM batches b CROSS JOIN pool p INDEXED BY pool_free ON p.batch = b.id"
        "  WHERE b.reference = ? AND p.model = ? AND p.kind = ? AND p.session_id IS NULL"
        "  ORDER BY b.id, p.idx LIMIT 1"
        ") RETURNING *, (SELECT first_used_ms FROM batches WHERE id = batch) AS batch_used,"
        " (SELECT reference FROM batches WHERE id = batch) AS reference",
        session_id,
        model,
        kind,
        reference,
        model,
        kind,
    )
    if row is None:
        return None
    if row["batch_used"] is None:
        await tx.execute("UPDATE batches SET first_used_ms = ? WHERE id = ?", now_ms, row["batch"])
    return _entry(row)


async def of_session(tx: Tx, session_id: str) -> list[Entry]:
    """Give the entries that a session has taken."""
    rows = await tx.all(
        "SELECT p.*, b.reference FROM pool p JOIN batches b ON b.id = p.batch WHERE p.session_id = ?"
        " ORDER BY p.model, p.kind, p.idx",
        session_id,
    )
    return [_entry(row) for row in rows]


async def levels(tx: Tx) -> list[Row]:
    """Count the free entries and all entries, by model and kind."""
    return await tx.all(
        "SELECT p.model, p.kind,"
        " sum(p.session_id IS NULL AND r.state IN ('active', 'candidate')) AS free, count(*) AS minted"
        " FROM pool p JOIN batches b ON b.id = p.batch"
        " JOIN reference_values r ON r.digest = b.reference GROUP BY p.model, p.kind"
    )


def _entry(row: Row) -> Entry:
    return Entry(
        model=row["model"],
        kind=row["kind"],
        index=row["idx"],
        batch=row["batch"],
        parameters=row["parameters"],
        commitments=row["commitments"],
        reference=row["reference"],
    )
