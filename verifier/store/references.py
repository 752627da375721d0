"""
Reference values: one in force for each model, those it replaced, and those that wait.

A value that is added while another is in force waits as a candidate: a person decides between sources that disagree.
A value that was replaced is only a warning for nodes that still have it, until its grace period ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from verifier.errors import ReferenceValueError
from verifier.references.measured import Document, read_document
from verifier.schemes.context import ModelReference, Source
from verifier.store import events, model_rollouts, policies
from verifier.store.database import Row, Tx
from verifier.store.policies import ChangeAuthor

LIVE: Final = ("active", "candidate")
"""The states of values that are in force, or may come into force."""
USABLE: Final = (*LIVE, "superseded")
"""The states of values that nodes may be challenged on: one that was replaced may come back by a roll-out."""
_MIN_PREFIX: Final = 6
_COLUMNS: Final = "digest, model, added_ms, state, source, signer, not_before, not_after, grace_until_ms"


@dataclass(frozen=True)
class Provenance:
    """Where a value is from, and from when and until when it is valid, in seconds since 1970."""

    source: Source = "measured"
    signer: str | None = None
    not_before: int | None = None
    not_after: int | None = None


async def add(
    tx: Tx,
    document: Document,
    provenance: Provenance,
    author: ChangeAuthor,
    now_ms: int,
    *,
    replace: bool = False,
    grace_ms: int = 0,
) -> str:
    """
    Store a value.  The first value of a model is in force at once; a further one waits, unless *replace* is true.

    Returns:
        Its state: active, candidate, or superseded if another value has replaced it earlier.

    Raises:
        ReferenceValueError: The value was retired.
    """
    known = await tx.one("SELECT state FROM reference_values WHERE digest = ?", document.digest)
    if known is not None and known["state"] == "retired":
        raise ReferenceValueError(f"{document.digest} was retired. A retired value does not come back")
    if known is None:
        await _insert(tx, document, provenance, author, now_ms)
    else:
        await _renew(tx, document, provenance, author, now_ms)
    current = await active(tx, document.model)
    if current is not None and current["digest"] == document.digest:
        return "active"
    if current is None or replace:
        await activate(tx, document.digest, author, now_ms, grace_ms=grace_ms)
        return "active"
    return "candidate" if known is None else str(known["state"])


async def _insert(
    tx: Tx, document: Document, provenance: Provenance, author: ChangeAuthor, now_ms: int
) -> None:
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
    await policies.note(tx, "reference-add", document.digest, author, now_ms, detail)


async def _renew(
    tx: Tx, document: Document, provenance: Provenance, author: ChangeAuthor, now_ms: int
) -> None:
    """Update the provenance of a known value: the same files may come from another source, or with other dates."""
    await tx.execute(
        "UPDATE reference_values SET source = ?, signer = ?, not_before = ?, not_after = ? WHERE digest = ?",
        provenance.source,
        provenance.signer,
        provenance.not_before,
        provenance.not_after,
        document.digest,
    )
    detail = {"model": document.model}
    await policies.note(tx, "reference-renew", document.digest, author, now_ms, detail, decides=True)


async def activate(tx: Tx, digest: str, author: ChangeAuthor, now_ms: int, *, grace_ms: int) -> None:
    """
    Put a value in force.  The earlier one is superseded, and becomes a mismatch only after *grace_ms*.

    Raises:
        ReferenceValueError: There is no such value, or it is active or retired.
        RequestError: A roll-out of its model runs.
    """
    row = await tx.one("SELECT model, state FROM reference_values WHERE digest = ?", digest)
    if row is None or row["state"] in ("retired", "active"):
        state = "unknown" if row is None else row["state"]
        raise ReferenceValueError(f"the reference value {digest[:64]} is {state}")
    await model_rollouts.check_none(tx, row["model"])
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
        author,
        now_ms,
        {"model": row["model"], "grace_s": grace_ms // 1000},
        decides=True,
    )
    await events.append(tx, now_ms, "reference", {"model": row["model"], "digest": digest})


async def retire(tx: Tx, digest: str, author: ChangeAuthor, now_ms: int) -> None:
    """
    Retire a value, without a grace period.

    Raises:
        ReferenceValueError: There is no such value, or it is retired already.
        RequestError: A roll-out runs in which it is valid.
    """
    if any(digest in (each.old, each.new) for each in await model_rollouts.running(tx)):
        await model_rollouts.check_none(tx, (await find(tx, digest))["model"])
    changed = await tx.execute(
        "UPDATE reference_values SET state = 'retired', grace_until_ms = 0 WHERE digest = ? AND state != 'retired'",
        digest,
    )
    if not changed:
        raise ReferenceValueError(f"there is no reference value {digest[:64]!r} that can be retired")
    await policies.note(tx, "reference-retire", digest, author, now_ms, decides=True)


async def add_with_policy(tx: Tx, document: Document, now_ms: int, grace_ms: int = 0) -> None:
    """
    Store a value that comes into force with a policy; its age counts from now.

    For nodes under the policy, the value that is otherwise in force is a warning until *grace_ms* is over.

    Raises:
        ReferenceValueError: The value was retired.
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


async def supersede_with_policy(
    tx: Tx, document: Document, now_ms: int, grace_ms: int, *, restores: bool
) -> None:
    """
    Let a value go with its policy: it is a warning until *grace_ms* is over.

    Args:
        restores: Whether the value that is otherwise in force counts again; its age counts from now.
    """
    await tx.execute(
        "UPDATE reference_values SET state = 'superseded', grace_until_ms = ? WHERE digest = ? AND state = 'candidate'",
        now_ms + grace_ms,
        document.digest,
    )
    if restores:
        await tx.execute(
            "UPDATE reference_values SET added_ms = ?, grace_until_ms = 0 WHERE model = ? AND state = 'active'"
            " AND digest != ?",
            now_ms,
            document.model,
            document.digest,
        )


async def active(tx: Tx, model: str) -> Row | None:
    """Give the value in force for a model, with its document."""
    return await tx.one("SELECT * FROM reference_values WHERE model = ? AND state = 'active'", model)


async def by_digest(tx: Tx, digest: str) -> Row | None:
    """Give a value with its document."""
    return await tx.one("SELECT * FROM reference_values WHERE digest = ?", digest)


async def find(tx: Tx, name: str) -> Row:
    """
    Give a value by its digest, or by the first digits of the digest.

    Raises:
        ReferenceValueError: There is no such value, or more than one.
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
    """Give all values, or those of one model, without their documents."""
    only, values = ("", ()) if model is None else (" WHERE model = ?", (model,))
    return await tx.all(
        f"SELECT {_COLUMNS} FROM reference_values{only} ORDER BY model, state, added_ms DESC", *values
    )


async def documents(tx: Tx, states: tuple[str, ...]) -> list[Row]:
    """Give all values in *states* with their documents, by model."""
    marks = ", ".join("?" for _ in states)
    return await tx.all(
        f"SELECT * FROM reference_values WHERE state IN ({marks}) ORDER BY model, added_ms", *states
    )


async def comparable(tx: Tx) -> list[Row]:
    """
    Give every value that evidence may be compared with: in force, in its grace, or retired.

    In its grace is what was superseded, and what waits again because its roll-out was aborted.
    """
    return await tx.all(
        f"SELECT {_COLUMNS} FROM reference_values"
        " WHERE state IN ('active', 'retired') OR (state IN ('superseded', 'candidate') AND grace_until_ms > 0)"
        " ORDER BY model, added_ms DESC"
    )


def to_reference(row: Row) -> ModelReference:
    """Give the reference value of a row with its document, in the form that the appraisal takes."""
    return read_document(row["document"]).to_reference(
        source=row["source"], signer=row["signer"], not_before=row["not_before"], not_after=row["not_after"]
    )
