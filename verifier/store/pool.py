"""The pool of single-use challenges, minted from reference values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from verifier.errors import ReferenceValueError
from verifier.store import references
from verifier.store.database import ConflictError, Row, Statement, Tx

FIRST_INDEX: Final = "first index"
"""The row of `totals` with the first index for new models."""
_TAKE_START: Final = "UPDATE pool SET session_id = ? WHERE model = ? AND kind = ? AND idx = ("
_TAKE_END: Final = (
    ") RETURNING *, (SELECT first_used_ms FROM batches WHERE id = batch) AS batch_used,"
    " (SELECT reference FROM batches WHERE id = batch) AS reference"
)
_FREE: Final = "  WHERE b.reference = ? AND p.model = ? AND p.kind = ? AND p.session_id IS NULL ORDER BY b.id, p.idx LIMIT 1"
_TAKE: Final = Statement(
    # The index of the free entries is named, batch by batch.  Otherwise the planner would walk past every
    # used entry, and past all those that are left of values no longer in force.
    sqlite=(
        f"{_TAKE_START} SELECT p.idx FROM batches b CROSS JOIN pool p INDEXED BY pool_free ON p.batch = b.id"
        f"{_FREE}{_TAKE_END}"
    ),
    # What another process is taking is passed over, and not waited for.
    postgres=(
        f"{_TAKE_START} SELECT p.idx FROM batches b JOIN pool p ON p.batch = b.id"
        f"{_FREE} FOR UPDATE OF p SKIP LOCKED{_TAKE_END}"
    ),
)


class Entry(Struct, frozen=True):
    """A challenge of the pool.  Its seed and its checked rows are derived from its place and the pool key."""

    model: str
    kind: str
    index: int
    batch: int
    parameters: str
    commitments: bytes
    reference: str | None = None
    """The digest of the reference value that it was minted from; `None` while it is not taken."""
    gates: bytes | None = None
    """Of a read, the commitment to the answer over the gates alone (`attester.weights.roles`), if there is one."""
    gate_table: int | None = None
    """The version of the table of gates."""


async def open_batch(tx: Tx, model: str, digest: str, now_ms: int, goal: str = "{}") -> int:
    """
    Open a batch of challenges.

    Args:
        digest: The reference value that the challenges are minted from.
        goal: What to mint, as JSON, for a later run that continues this one.

    Returns:
        The id of the batch.

    Raises:
        ReferenceValueError: The model has no such reference value, or the value is retired.
    """
    known = await references.by_digest(tx, digest)
    if known is None or known["model"] != model or known["state"] not in references.USABLE:
        raise ReferenceValueError(f"{model}: the folder does not match a reference value that can be used")
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
    """Whether the reference value of a batch is in force, or may come into force, also if it was so before."""
    row = await tx.one(
        "SELECT r.state FROM batches b JOIN reference_values r ON r.digest = b.reference WHERE b.id = ?",
        batch,
    )
    return row is not None and row["state"] in references.USABLE


async def reference_of(tx: Tx, batch: int) -> str:
    """Give the digest of the reference value that a batch was minted from."""
    row = await tx.one("SELECT reference FROM batches WHERE id = ?", batch)
    assert row is not None
    return str(row["reference"])


async def last_batch(tx: Tx, model: str, digest: str | None = None) -> Row | None:
    """Give the newest batch of a model, or of one of its reference values."""
    if digest is not None:
        return await tx.one("SELECT * FROM batches WHERE reference = ? ORDER BY id DESC LIMIT 1", digest)
    return await tx.one("SELECT * FROM batches WHERE model = ? ORDER BY id DESC LIMIT 1", model)


async def minted(tx: Tx, batch: int) -> dict[str, int]:
    """Count the entries of a batch by kind, with those that are used."""
    rows = await tx.all("SELECT kind, minted FROM pool_counts WHERE batch = ?", batch)
    return {row["kind"]: row["minted"] for row in rows}


async def next_index(tx: Tx, model: str, kind: str) -> int:
    """Give the first index that was never used: no seed may come twice."""
    row = await tx.one("SELECT next_idx FROM pool_indexes WHERE model = ? AND kind = ?", model, kind)
    return await first_index(tx) if row is None else int(row["next_idx"])


async def first_index(tx: Tx) -> int:
    """Give the first index for a model that has none yet: 0, unless a restore left out some."""
    row = await tx.one("SELECT value FROM totals WHERE name = ?", FIRST_INDEX)
    return 0 if row is None else int(row["value"])


async def add(tx: Tx, entries: Sequence[Entry]) -> None:
    """
    Add minted entries.

    Raises:
        ConflictError: An entry has an index that was used before, also if the challenge that used it is deleted.
    """
    added = Counter((e.model, e.kind, e.batch) for e in entries)
    for (model, kind, batch), count in added.items():
        lowest = min(e.index for e in entries if (e.model, e.kind) == (model, kind))
        highest = max(e.index for e in entries if (e.model, e.kind) == (model, kind))
        if lowest < await next_index(tx, model, kind):
            raise ConflictError(f"{kind} challenges of {model} from index {lowest} on were minted before")
        await tx.execute(
            "INSERT INTO pool_indexes (model, kind, next_idx) VALUES (?, ?, ?)"
            " ON CONFLICT (model, kind) DO UPDATE SET next_idx = excluded.next_idx",
            model,
            kind,
            highest + 1,
        )
        await tx.execute(
            "INSERT INTO pool_counts (batch, kind, minted, taken) VALUES (?, ?, ?, 0)"
            " ON CONFLICT (batch, kind) DO UPDATE SET minted = pool_counts.minted + excluded.minted",
            batch,
            kind,
            count,
        )
    for e in entries:
        await tx.execute(
            "INSERT INTO pool (model, kind, idx, batch, parameters, commitments, gates, gate_table)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            e.model,
            e.kind,
            e.index,
            e.batch,
            e.parameters,
            e.commitments,
            e.gates,
            e.gate_table,
        )


async def take(tx: Tx, model: str, kind: str, reference: str, session_id: str, now_ms: int) -> Entry | None:
    """Take the next free entry that was minted from a reference value.  It is never free again."""
    row = await tx.one(
        _TAKE,
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
    await tx.last(
        "UPDATE pool_counts SET taken = taken + 1 WHERE batch = ? AND kind = ?", row["batch"], row["kind"]
    )
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
    """Count the entries that were ever minted and those that are free, by model, kind and reference value."""
    return await tx.all(
        "SELECT b.model, c.kind, b.reference, r.state, CAST(sum(c.minted) AS BIGINT) AS minted,"
        " CAST(sum(c.minted - c.taken) AS BIGINT) AS free FROM pool_counts c JOIN batches b ON b.id = c.batch"
        " JOIN reference_values r ON r.digest = b.reference GROUP BY b.model, c.kind, b.reference, r.state"
    )


async def free_of(tx: Tx, digest: str) -> dict[str, int]:
    """Count the free entries that were minted from a reference value, by kind."""
    rows = await tx.all(
        "SELECT c.kind, CAST(sum(c.minted - c.taken) AS BIGINT) AS free FROM pool_counts c"
        " JOIN batches b ON b.id = c.batch WHERE b.reference = ? GROUP BY c.kind",
        digest,
    )
    return {row["kind"]: row["free"] for row in rows}


def _entry(row: Row) -> Entry:
    return Entry(
        model=row["model"],
        kind=row["kind"],
        index=row["idx"],
        batch=row["batch"],
        parameters=row["parameters"],
        commitments=row["commitments"],
        reference=row["reference"],
        gates=row["gates"],
        gate_table=row["gate_table"],
    )
