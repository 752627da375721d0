"""
Reference values: one in force for each model, those it replaced, and those that wait.

A value that is added while another is in force waits as a candidate: a person decides between sources that disagree.
Adding a value that is known changes nothing but the list of its sources (`verifier.store.reference_sources`).
A value that was replaced is only a warning for nodes that still have it, until its grace period ends.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec

from verifier.errors import ReferenceValueError
from verifier.policy.archive import read_archive
from verifier.references.measured import Document, read_document
from verifier.schemes.context import ModelReference
from verifier.store import change_entries, events, model_rollouts, policies, reference_sources
from verifier.store.database import Row, Tx
from verifier.store.policies import ChangeAuthor
from verifier.store.reference_sources import UNNAMED

Provenance = reference_sources.Provenance
LIVE: Final = ("active", "candidate")
"""The states of values that are in force, or may come into force."""
USABLE: Final = (*LIVE, "superseded")
"""The states of values that nodes may be challenged on: one that was replaced may come back by a roll-out."""
_MIN_PREFIX: Final = 6
_COLUMNS: Final = "digest, model, added_ms, state, source, signer, not_before, not_after, grace_until_ms"


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
    Store a value, or a further source of a value that is known.

    The first value that a model ever has is in force at once if a person has named the model: nobody had passed with
    another.  One whose model a CoRIM has named waits, and so does a further one, unless *replace* is true.  What is in
    force, and from whom and until when it counts, changes only if *replace* is true.

    Returns:
        Its state: active, candidate, or superseded if another value has replaced it earlier.

    Raises:
        ReferenceValueError: The value was retired.
    """
    known = await by_digest(tx, document.digest)
    if known is not None and known["state"] == "retired":
        raise ReferenceValueError(await _why_retired(tx, document.digest))
    if known is None:
        await _insert(tx, document, provenance, author, now_ms)
    elif await reference_sources.add(tx, known, provenance, author, now_ms):
        await _note(tx, "source", document.digest, author, now_ms, document.model, provenance)
    if known is not None and known["state"] == "active":
        if replace:
            await _adopt(tx, known, provenance, author, now_ms)
        return "active"
    if replace or (provenance.source not in UNNAMED and await _is_first(tx, document.model)):
        await activate(tx, document.digest, author, now_ms, grace_ms=grace_ms)
        return "active"
    return "candidate" if known is None else str(known["state"])


async def _is_first(tx: Tx, model: str) -> bool:
    """Whether no value of the model was ever in force for all nodes, or withdrawn."""
    used = await tx.one(
        "SELECT 1 FROM reference_values WHERE model = ? AND state != 'candidate' LIMIT 1", model
    )
    restored = await tx.one(
        "SELECT 1 FROM reference_values v JOIN changes c ON c.subject = v.digest"
        " WHERE v.model = ? AND c.action IN ('reference-activate', 'reference-retire') LIMIT 1",
        model,
    )
    return used is None and restored is None


async def _why_retired(tx: Tx, digest: str) -> str:
    done = await reference_sources.last(tx, digest, "retire")
    by = ""
    if done is not None:
        on = datetime.fromtimestamp(done["at_ms"] // 1000, UTC).date()
        by = f" by {done['actor']} on {on} ({done['reason']})"
    return (
        f"{digest} was retired{by}. A retired value does not come back by itself:"
        f" `touchstone reference restore {digest[:12]} --reason …` makes it a candidate again"
    )


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
    await reference_sources.insert(tx, document.digest, 1, provenance, author, now_ms)
    await _note(tx, "add", document.digest, author, now_ms, document.model, provenance)


async def _note(
    tx: Tx, action: str, digest: str, author: ChangeAuthor, now_ms: int, model: str, provenance: Provenance
) -> None:
    detail = {
        "model": model,
        "source": provenance.source,
        "signer": provenance.signer,
        "not_after": provenance.not_after,
    }
    await policies.note(tx, f"reference-{action}", digest, author, now_ms, detail, decides=action == "adopt")


async def _adopt(tx: Tx, value: Row, provenance: Provenance, author: ChangeAuthor, now_ms: int) -> None:
    """Let another source of a value in force count, with its signer and its validity."""
    if Provenance.of(value) == provenance:
        return
    await _set_provenance(tx, value["digest"], provenance)
    await _note(tx, "adopt", value["digest"], author, now_ms, value["model"], provenance)


async def _set_provenance(tx: Tx, digest: str, provenance: Provenance) -> None:
    await tx.execute(
        "UPDATE reference_values SET source = ?, signer = ?, not_before = ?, not_after = ? WHERE digest = ?",
        provenance.source,
        provenance.signer,
        provenance.not_before,
        provenance.not_after,
        digest,
    )


async def activate(
    tx: Tx, digest: str, author: ChangeAuthor, now_ms: int, *, grace_ms: int, source: int | None = None
) -> None:
    """
    Put a value in force.  The earlier one is superseded, and becomes a mismatch only after *grace_ms*.

    Of a value that is in force already, another source comes to count.

    Args:
        source: The number of the source that is to count.  `None`: the newest.

    Raises:
        ReferenceValueError: There is no such value or source, it is active and nothing would change, or it is retired.
        RequestError: A roll-out of its model runs.
    """
    row = await by_digest(tx, digest)
    if row is None:
        raise ReferenceValueError(f"the reference value {digest[:64]} is unknown")
    if row["state"] == "retired":
        raise ReferenceValueError(await _why_retired(tx, digest))
    provenance = await reference_sources.choose(tx, row, source)
    if row["state"] == "active":
        if provenance == Provenance.of(row):
            raise ReferenceValueError(f"the reference value {digest[:64]} is active")
        await _adopt(tx, row, provenance, author, now_ms)
        return
    await model_rollouts.check_none(tx, row["model"])
    await _set_provenance(tx, digest, provenance)
    await put_in_force(tx, row["model"], digest, author, now_ms, grace_ms=grace_ms)


async def put_in_force(
    tx: Tx, model: str, digest: str, author: ChangeAuthor, now_ms: int, *, grace_ms: int
) -> None:
    """Put a value in force as it is: whoever asks for it has checked that it may be."""
    await tx.execute(
        "UPDATE reference_values SET state = 'superseded', grace_until_ms = ? WHERE model = ? AND state = 'active'",
        now_ms + grace_ms,
        model,
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
        {"model": model, "grace_s": grace_ms // 1000},
        decides=True,
    )
    await events.append(tx, now_ms, "reference", {"model": model, "digest": digest})


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


async def restore(tx: Tx, digest: str, author: ChangeAuthor, now_ms: int) -> None:
    """
    Take back that a value was retired: it waits as a candidate, until somebody activates it.

    Raises:
        ReferenceValueError: There is no such value, it is not retired, or a policy would put it in force at once.
    """
    row = await by_digest(tx, digest)
    if row is None or row["state"] != "retired":
        state = "unknown" if row is None else row["state"]
        raise ReferenceValueError(
            f"the reference value {digest[:64]} is {state}, and only a retired one is restored"
        )
    rollout = await policies.rollout(tx)
    for policy in () if rollout is None else (rollout.active, rollout.canary):
        if policy is not None and await _brings(tx, policy, digest):
            raise ReferenceValueError(
                f"the policy {policy[:12]} brings {digest[:12]} and would put it in force at once. Roll that policy"
                " back, or put another in its place, and then restore the value"
            )
    await tx.execute(
        "UPDATE reference_values SET state = 'candidate', grace_until_ms = 0 WHERE digest = ?", digest
    )
    await policies.note(
        tx, "reference-restore", digest, author, now_ms, {"model": row["model"]}, decides=True
    )


async def _brings(tx: Tx, policy: str, digest: str) -> bool:
    row = await tx.one("SELECT archive FROM policies WHERE digest = ?", policy)
    if row is None:
        return False
    bundle, _ = read_archive(row["archive"])
    return any(document.digest == digest for document in bundle.documents)


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
    await change_entries.follow_policy(tx, now_ms, "came-with-policy", document.model, document.digest)


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
    await change_entries.follow_policy(tx, now_ms, "went-with-policy", document.model, document.digest)


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
        f"SELECT {_COLUMNS}, (SELECT count(*) FROM model_rollouts m WHERE m.new = digest) AS rolling_out"
        f" FROM reference_values{only} ORDER BY model, state, added_ms DESC",
        *values,
    )


async def documents(tx: Tx, states: tuple[str, ...]) -> list[Row]:
    """Give all values in *states* with their documents, by model."""
    marks = ", ".join("?" for _ in states)
    return await tx.all(
        f"SELECT * FROM reference_values WHERE state IN ({marks}) ORDER BY model, added_ms", *states
    )


async def retired(tx: Tx, model: str) -> list[Row]:
    """Give the retired values of a model with their documents."""
    return await tx.all("SELECT * FROM reference_values WHERE model = ? AND state = 'retired'", model)


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
