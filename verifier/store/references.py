"""
Reference values: one in force for each model, those it replaced, and those that wait.

A value that is added where another is in force waits as a candidate: sources that disagree
are a conflict for a person, not a race.  One that is replaced is only a warning for nodes
that still have it, until its grace period ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from verifier.errors import ReferenceValueError
from verifier.references.measured import Document, read_document
from verifier.schemes.context import ModelReference, Source
from verifier.store import events, policies
from verifier.store.database import Row, Tx
from verifier.store.policies import Who

LIVE: Final = ("active", "candidate")
_MIN_PREFIX: Final = 6
_COLUMNS: Final = "digest, model, added_ms, state, source, signer, not_before, not_after, grace_until_ms"


@dataclass(frozen=True)
class Provenance:
    """Where a value is from, and until when it holds, seconds since 1970."""

    source: Source = "measured"
    signer: str | None = None
    not_before: int | None = None
    not_after: int | None = None


async def add(
    tx: Tx,
    document: Document,
    provenance: Provenance,
    who: Who,
    now_ms: int,
    *,
    replace: bool = False,
    grace_ms: int = 0,
) -> str:
    """
    Keep a value.  The first of a model is in force at once; a further one waits, unless it is to *replace*.

    Returns:
        Its state: active, candidate, or, where it was replaced before, superseded.

    Raises:
        ReferenceValueError: it was withdrawn before.
    """
    known = await tx.one("SELECT state FROM reference_values WHERE digest = ?", document.digest)
    if known is not None and known["state"] == "retired":
        raise ReferenceValueError(f"{document.digest} was retired; a retired value does not come back")
    if known is None:
        await tx.execute(
            "INSERT INTO reference_values (digest, model, document, added_ms, state, source, signer, not_before,"
            " not_after) VALUES (?, ?, ?, ?, 'candidate', ?, ?, ?, ?)",
            document.digest,
            document.model,
            msgspec.json.encode(document).decode(),
            now_ms,
            provenance.source,
            provenance.signer,
            provenance.not_before,
            provenance.not_after,
        )
        detail = {"model": document.model, "source": provenance.source, "signer": provenance.signer}
        await policies.note(tx, "reference-add", document.digest, who, now_ms, detail)
    else:
        # The same files from another source: what it says of itself may be newer.
        await tx.execute(
            "UPDATE reference_values SET source = ?, signer = ?, not_before = ?, not_after = ? WHERE digest = ?",
            provenance.source,
            provenance.signer,
            provenance.not_before,
            provenance.not_after,
            document.digest,
        )
        await policies.note(
            tx, "reference-renew", document.digest, who, now_ms, {"model": document.model}, decides=True
        )
    current = await active(tx, document.model)
    if current is not None and current["digest"] == document.digest:
        return "active"
    if current is None or replace:
        await activate(tx, document.digest, who, now_ms, grace_ms=grace_ms)
        return "active"
    return "candidate" if known is None else str(known["state"])


async def activate(tx: Tx, digest: str, who: Who, now_ms: int, *, grace_ms: int) -> None:
    """
    Put a value in force; the one before is superseded, and a mismatch only after *grace_ms*.

    Raises:
        ReferenceValueError: there is none that could be.
    """
    row = await tx.one("SELECT model, state FROM reference_values WHERE digest = ?", digest)
    if row is None or row["state"] in ("retired", "active"):
        state = "unknown" if row is None else row["state"]
        raise ReferenceValueError(f"the reference value {digest[:64]} is {state}")
    await tx.execute(
        "UPDATE reference_values SET state = 'superseded', grace_until_ms = ? WHERE model = ? AND state = 'active'",
        now_ms + grace_ms,
        row["model"],
    )
    await tx.execute(
        "UPDATE reference_values SET state = 'active', added_ms = ?, grace_until_ms = 0 WHERE digest = ?",
        now_ms,
        digest,
    )
    await policies.note(
        tx,
        "reference-activate",
        digest,
        who,
        now_ms,
        {"model": row["model"], "grace_s": grace_ms // 1000},
        decides=True,
    )
    await events.append(tx, now_ms, "reference", {"model": row["model"], "digest": digest})


async def retire(tx: Tx, digest: str, who: Who, now_ms: int) -> None:
    """
    Withdraw a value, without grace.

    Raises:
        ReferenceValueError: there is none that could be.
    """
    changed = await tx.execute(
        "UPDATE reference_values SET state = 'retired', grace_until_ms = 0 WHERE digest = ? AND state != 'retired'",
        digest,
    )
    if not changed:
        raise ReferenceValueError(f"no reference value {digest[:64]!r} that could be retired")
    await policies.note(tx, "reference-retire", digest, who, now_ms, decides=True)


async def announce(tx: Tx, document: Document, now_ms: int, grace_ms: int = 0) -> None:
    """
    A value that comes into force with a policy: known from now on, as if just added.

    The one that is in force otherwise is a warning for nodes under the policy until *grace_ms* is over.

    Raises:
        ReferenceValueError: it was retired.
    """
    row = await by_digest(tx, document.digest)
    if row is not None and row["state"] == "retired":
        raise ReferenceValueError(
            f"the policy brings {document.digest} for {document.model}, which was retired"
        )
    if row is not None and row["state"] == "active":
        return
    await tx.execute(
        "INSERT INTO reference_values (digest, model, document, added_ms, state, source)"
        " VALUES (?, ?, ?, ?, 'candidate', 'bundle') ON CONFLICT (digest) DO UPDATE SET"
        " added_ms = excluded.added_ms, state = 'candidate', grace_until_ms = 0",
        document.digest,
        document.model,
        msgspec.json.encode(document).decode(),
        now_ms,
    )
    await tx.execute(
        "UPDATE reference_values SET grace_until_ms = ? WHERE model = ? AND state = 'active'",
        now_ms + grace_ms,
        document.model,
    )


async def dismiss(tx: Tx, document: Document, now_ms: int, grace_ms: int, *, again: bool) -> None:
    """
    A value that goes with a policy: a warning until *grace_ms* is over.

    Args:
        again: Whether the value that was in force before it is so again, as if just added.
    """
    await tx.execute(
        "UPDATE reference_values SET state = 'superseded', grace_until_ms = ? WHERE digest = ? AND state = 'candidate'",
        now_ms + grace_ms,
        document.digest,
    )
    if again:
        await tx.execute(
            "UPDATE reference_values SET added_ms = ?, grace_until_ms = 0 WHERE model = ? AND state = 'active'"
            " AND digest != ?",
            now_ms,
            document.model,
            document.digest,
        )


async def active(tx: Tx, model: str) -> Row | None:
    """The model's value in force, with its document."""
    return await tx.one("SELECT * FROM reference_values WHERE model = ? AND state = 'active'", model)


async def by_digest(tx: Tx, digest: str) -> Row | None:
    """A value with its document."""
    return await tx.one("SELECT * FROM reference_values WHERE digest = ?", digest)


async def find(tx: Tx, name: str) -> Row:
    """
    A value by its digest or the beginning of it.

    Raises:
        ReferenceValueError: none, or several.
    """
    rows: list[Row] = []
    if len(name) >= _MIN_PREFIX and set(name) <= set("0123456789abcdef"):
        rows = await tx.all(
            "SELECT * FROM reference_values WHERE digest >= ? AND digest < ? LIMIT 2", name, name + "g"
        )
    if len(rows) != 1:
        raise ReferenceValueError(
            f"{'several reference values begin' if rows else 'no reference value begins'} with {name[:64]!r}"
        )
    return rows[0]


async def every(tx: Tx, model: str | None = None) -> list[Row]:
    """All values, of one model where it is named, without documents."""
    return await tx.all(
        f"SELECT {_COLUMNS} FROM reference_values WHERE ? IS NULL OR model = ? ORDER BY model, state, added_ms DESC",
        model,
        model,
    )


async def documents(tx: Tx, states: tuple[str, ...]) -> list[Row]:
    """All values in *states* with their documents, by model."""
    marks = ", ".join("?" for _ in states)
    return await tx.all(
        f"SELECT * FROM reference_values WHERE state IN ({marks}) ORDER BY model, added_ms", *states
    )


async def weighed(tx: Tx) -> list[Row]:
    """Every value that appraisals may be held against, in force or replaced; and what was retired."""
    return await tx.all(
        f"SELECT {_COLUMNS} FROM reference_values"
        " WHERE state IN ('active', 'retired') OR (state = 'superseded' AND grace_until_ms > 0)"
        " ORDER BY model, added_ms DESC"
    )


def to_reference(row: Row) -> ModelReference:
    """A row with its document, as the appraisal takes it."""
    return read_document(row["document"]).to_reference(
        source=row["source"], signer=row["signer"], not_before=row["not_before"], not_after=row["not_after"]
    )
