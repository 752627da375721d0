"""
The pool of minted answers: each is asked once, of one node, through one router.

It is the pool of challenges (`verifier.store.pool`) in tables of its own, because an entry is sealed whole, belongs to
no session, and is of one build of an engine.  The numbers of entries are drawn where those of challenges are: no number
comes twice, also after a restore.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final

import msgspec
from msgspec import Struct

from verifier.answers.checks import EngineUsed
from verifier.errors import ReferenceValueError
from verifier.store import pool, references
from verifier.store.database import ConflictError, Row, Statement, Tx

KIND: Final = "answ"
"""The kind of these entries in `pool_indexes` and in the high-water marks."""
_FREE: Final = (
    "SELECT p.idx FROM answer_batches b {join} minted_answers p {index} ON p.batch = b.id"
    "  WHERE b.reference = ? AND b.model = ? AND b.family = ? AND b.operation = ? AND p.check_id IS NULL"
    "  AND p.drawn <= ? ORDER BY b.id, p.idx LIMIT 1"
)
_TAKE_START: Final = "UPDATE minted_answers SET check_id = ? WHERE model = ? AND idx = ("
_TAKE_END: Final = ") RETURNING model, idx, batch, drawn, sealed"
_TAKE: Final = Statement(
    # As in `verifier.store.pool`: the free entries are found batch by batch, and those in use are passed over.
    sqlite=_TAKE_START + _FREE.format(join="CROSS JOIN", index="INDEXED BY minted_answers_free") + _TAKE_END,
    postgres=_TAKE_START + _FREE.format(join="JOIN", index="") + " FOR UPDATE OF p SKIP LOCKED" + _TAKE_END,
)


class Kept(Struct, frozen=True, kw_only=True):
    """An entry as it is stored."""

    model: str
    index: int
    batch: int
    sealed: bytes
    drawn: bool = False
    """Whether the answer was drawn with a seed: then only engines of its family can give it again."""

    @property
    def kind(self) -> str:
        """As of a challenge, for the high-water marks."""
        return KIND


class Batch(Struct, frozen=True, kw_only=True):
    """Answers of one run, of one build of an engine."""

    id: int
    model: str
    reference: str
    operation: str
    engine: EngineUsed
    minted_ms: int
    wanted: int
    minted: int
    taken: int


async def open_batch(
    tx: Tx, model: str, digest: str, operation: str, engine: EngineUsed, *, wanted: int, now_ms: int
) -> Batch:
    """
    Open a batch of minted answers.

    Raises:
        ReferenceValueError: The model has no such reference value, or the value is retired.
    """
    known = await references.by_digest(tx, digest)
    if known is None or known["model"] != model or known["state"] not in references.USABLE:
        raise ReferenceValueError(f"{model}: there is no such reference value that can be used")
    row = await tx.one(
        "INSERT INTO answer_batches (model, reference, operation, family, engine, minted_ms, wanted, minted, taken)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0) RETURNING *",
        model,
        digest,
        operation,
        engine.family,
        msgspec.json.encode(engine).decode(),
        now_ms,
        wanted,
    )
    assert row is not None
    return _batch(row)


async def last_batch(tx: Tx, model: str, digest: str) -> Batch | None:
    """Give the newest batch of a model's reference value."""
    row = await tx.one(
        "SELECT * FROM answer_batches WHERE reference = ? AND model = ? ORDER BY id DESC LIMIT 1",
        digest,
        model,
    )
    return None if row is None else _batch(row)


async def add(tx: Tx, kept: Kept, prompts: Collection[bytes]) -> None:
    """
    Add an entry, and remember its texts.

    Args:
        prompts: The texts, as `verifier.challenges.sealing.prompt_name` names them.

    Raises:
        ReferenceValueError: The reference value of its batch is no longer live.
        ConflictError: Its number or one of its texts was used before.
    """
    batch = await tx.one(
        "SELECT r.state FROM answer_batches b JOIN reference_values r ON r.digest = b.reference WHERE b.id = ?",
        kept.batch,
    )
    if batch is None or batch["state"] not in references.USABLE:
        raise ReferenceValueError(
            f"the reference value of {kept.model} was replaced during this run, so its answers are of no use"
        )
    if kept.index < await pool.next_index(tx, kept.model, KIND):
        raise ConflictError(f"answer {kept.index} of {kept.model} was minted before")
    await tx.execute(
        "INSERT INTO pool_indexes (model, kind, next_idx) VALUES (?, ?, ?)"
        " ON CONFLICT (model, kind) DO UPDATE SET next_idx = excluded.next_idx",
        kept.model,
        KIND,
        kept.index + 1,
    )
    for prompt in sorted(set(prompts)):
        await tx.execute("INSERT INTO answer_prompts (model, prompt) VALUES (?, ?)", kept.model, prompt)
    await tx.execute(
        "INSERT INTO minted_answers (model, idx, batch, drawn, sealed) VALUES (?, ?, ?, ?, ?)",
        kept.model,
        kept.index,
        kept.batch,
        int(kept.drawn),
        kept.sealed,
    )
    await tx.execute("UPDATE answer_batches SET minted = minted + 1 WHERE id = ?", kept.batch)


async def asked_prompts(tx: Tx, model: str) -> set[bytes]:
    """Give the names of all prompts that were minted for a model."""
    return {
        bytes(row["prompt"])
        for row in await tx.all("SELECT prompt FROM answer_prompts WHERE model = ?", model)
    }


async def free_places(tx: Tx, model: str, reference: str) -> list[Row]:
    """Count the free answers of a reference value by engine family and operation."""
    return await tx.all(
        "SELECT family, operation, CAST(sum(minted - taken) AS BIGINT) AS free FROM answer_batches"
        " WHERE reference = ? AND model = ? AND minted > taken GROUP BY family, operation"
        " ORDER BY family, operation",
        reference,
        model,
    )


async def take(
    tx: Tx, model: str, reference: str, family: str, operation: str, check_id: str, *, drawn_too: bool
) -> Kept | None:
    """Take the next free answer, also a drawn one if *drawn_too*.  It is never free again."""
    row = await tx.one(_TAKE, check_id, model, reference, model, family, operation, int(drawn_too))
    if row is None:
        return None
    await tx.last("UPDATE answer_batches SET taken = taken + 1 WHERE id = ?", row["batch"])
    return _kept(row)


async def of_check(tx: Tx, model: str, index: int) -> Kept | None:
    """Give the entry of a check; `None` if it was deleted."""
    row = await tx.one(
        "SELECT model, idx, batch, drawn, sealed FROM minted_answers WHERE model = ? AND idx = ?",
        model,
        index,
    )
    return None if row is None else _kept(row)


async def end_below(tx: Tx, model: str, below: int) -> int:
    """Delete the free answers whose numbers are below *below*; gives how many there were."""
    gone = await tx.all(
        "DELETE FROM minted_answers WHERE check_id IS NULL AND model = ? AND idx < ? RETURNING batch",
        model,
        below,
    )
    for batch, count in Counter(row["batch"] for row in gone).items():
        await tx.execute("UPDATE answer_batches SET taken = taken + ? WHERE id = ?", count, batch)
    return len(gone)


async def levels(tx: Tx) -> list[Row]:
    """Count the answers that were ever minted and those that are free, by model, family and reference value."""
    return await tx.all(
        "SELECT b.model, b.family, b.operation, b.reference, r.state, CAST(sum(b.minted) AS BIGINT) AS minted,"
        " CAST(sum(b.minted - b.taken) AS BIGINT) AS free FROM answer_batches b"
        " JOIN reference_values r ON r.digest = b.reference"
        " GROUP BY b.model, b.family, b.operation, b.reference, r.state"
    )


def _kept(row: Row) -> Kept:
    return Kept(
        model=row["model"],
        index=row["idx"],
        batch=row["batch"],
        sealed=bytes(row["sealed"]),
        drawn=bool(row["drawn"]),
    )


def _batch(row: Row) -> Batch:
    return Batch(
        id=row["id"],
        model=row["model"],
        reference=row["reference"],
        operation=row["operation"],
        engine=msgspec.json.decode(row["engine"], type=EngineUsed),
        minted_ms=row["minted_ms"],
        wanted=row["wanted"],
        minted=row["minted"],
        taken=row["taken"],
    )
