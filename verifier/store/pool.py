"""The pool of single-use challenges, minted from reference values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verifier.errors import ReferenceValueError
from verifier.store import references
from verifier.store.database import Row, Tx


@dataclass(frozen=True)
class Entry:
    """An entry of the pool.  Seed and checked rows are derived from its place and the pool key."""

    model: str
    kind: str
    index: int
    batch: int
    parameters: str
    commitments: bytes
    reference: str | None = None
    """The reference value that it was minted from, once it is taken."""


async def open_batch(tx: Tx, model: str, digest: str, now_ms: int, goal: str = "{}") -> int:
    """
    Begin a batch of challenges.

    Args:
        goal: What is to be minted, JSON, for a run that takes it up again.

    Raises:
        ReferenceValueError: the reference is not one of the model's that is in force, or may come to be.
    """
    known = await references.by_digest(tx, digest)
    if known is None or known["model"] != model or known["state"] not in references.LIVE:
        raise ReferenceValueError(f"{model}: the folder is not the one of a live reference value")
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
    """Whether a batch is of a reference value that is in force, or may come to be."""
    row = await tx.one(
        "SELECT r.state FROM batches b JOIN reference_values r ON r.digest = b.reference WHERE b.id = ?",
        batch,
    )
    return row is not None and row["state"] in references.LIVE


async def reference_of(tx: Tx, batch: int) -> str:
    """The digest of the reference value that a batch was minted from."""
    row = await tx.one("SELECT reference FROM batches WHERE id = ?", batch)
    assert row is not None
    return str(row["reference"])


async def last_batch(tx: Tx, model: str) -> Row | None:
    """The newest batch of a model."""
    return await tx.one("SELECT * FROM batches WHERE model = ? ORDER BY id DESC LIMIT 1", model)


async def minted(tx: Tx, batch: int) -> dict[str, int]:
    """How many entries of each kind a batch has, used ones too."""
    rows = await tx.all("SELECT kind, count(*) AS n FROM pool WHERE batch = ? GROUP BY kind", batch)
    return {row["kind"]: row["n"] for row in rows}


async def next_index(tx: Tx, model: str, kind: str) -> int:
    """The first index never used: a seed must not come twice."""
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
    """Take the next free entry that was minted from a reference value, for ever."""
    row = await tx.one(
        "UPDATE pool SET session_id = ? WHERE model = ? AND kind = ? AND idx = ("
        # By the index of the free, batch by batch, said: the planner would walk past every used one,
        # and past all that are left of values that are no longer in force.
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
    """The entries that a session has used."""
    rows = await tx.all(
        "SELECT p.*, b.reference FROM pool p JOIN batches b ON b.id = p.batch WHERE p.session_id = ?"
        " ORDER BY p.model, p.kind, p.idx",
        session_id,
    )
    return [_entry(row) for row in rows]


async def levels(tx: Tx) -> list[Row]:
    """Per model and kind: how many entries are free, of how many."""
    return await tx.all(
        "SELECT p.model, p.kind,"
        " sum(p.session_id IS NULL AND r.state IN ('active', 'candidate')) AS free, count(*) AS minted"
        " FROM pool p JOIN batches b ON b.id = p.batch"
        " JOIN reference_values r ON r.digest = b.reference GROUP BY p.model, p.kind"
    )


def _entry(row: Row) -> Entry:
    return Entry(
        row["model"],
        row["kind"],
        row["idx"],
        row["batch"],
        row["parameters"],
        row["commitments"],
        row["reference"],
    )
