"""What adding a reference value does, or would do: said in data, for the service and for the commands."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from verifier.references import acceptable, conflicts
from verifier.references.conflicts import Conflict
from verifier.references.measured import Document
from verifier.schemes.context import ModelReference
from verifier.store import reference_sources, references
from verifier.store.database import Row, Tx
from verifier.store.policies import ChangeAuthor
from verifier.store.reference_sources import Provenance


class Added(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a value that was added."""

    model: str
    digest: str
    state: str
    in_force: str | None = None
    """The digest of the value that stays in force for the model, if it is another one."""
    differs: Conflict | None = None
    """Where it differs from that one (``one``), file by file."""
    retired: str | None = None
    """The digest of a value with the same files that was retired."""
    source: int | None = None
    """The number of the source that was added; only if it does not count, because another one does."""
    counts: dict[str, Any] | None = None
    """The source that does: ``source``, ``signer``, ``not_before`` and ``not_after``."""


class DryRunError(Exception):
    """Ends the transaction of a dry run; it has what would have been done."""

    def __init__(self, added: list[Added]) -> None:
        super().__init__()
        self.added = added


async def add(
    tx: Tx,
    values: list[tuple[Document, Provenance]],
    author: ChangeAuthor,
    now_ms: int,
    *,
    replace: bool,
    grace_ms: int,
    dry_run: bool = False,
) -> list[Added]:
    """
    Add values, and say what became of each.

    Args:
        replace: Whether they come into force.
        dry_run: Change nothing: the transaction ends with `DryRunError`.

    Raises:
        ReferenceValueError: one of them was retired, or cannot be one.
        DryRunError: *dry_run* is true.
    """
    added = [
        await _add_one(tx, document, provenance, author, now_ms, replace=replace, grace_ms=grace_ms)
        for document, provenance in values
    ]
    if dry_run:
        raise DryRunError(added)
    return added


async def _add_one(
    tx: Tx,
    document: Document,
    provenance: Provenance,
    author: ChangeAuthor,
    now_ms: int,
    *,
    replace: bool,
    grace_ms: int,
) -> Added:
    acceptable.check(document)
    state = await references.add(tx, document, provenance, author, now_ms, replace=replace, grace_ms=grace_ms)
    current = await references.active(tx, document.model)
    if state == "active" and current is not None:
        return await _say_source(tx, document, current)
    one = None if current is None else references.to_reference(current)
    other = document.to_reference()
    return Added(
        model=document.model,
        digest=document.digest,
        state=state,
        in_force=None if current is None else current["digest"],
        differs=None if one is None else conflicts.compare(document.model, one, other),
        retired=await _retired_alike(tx, other, document.model),
    )


async def _retired_alike(tx: Tx, value: ModelReference, model: str) -> str | None:
    """A retired value with the same files: a value's digest is another one if its files have further digests."""
    for row in await references.retired(tx, model):
        if conflicts.compare(model, references.to_reference(row), value) is None:
            return str(row["digest"])
    return None


async def _say_source(tx: Tx, document: Document, value: Row) -> Added:
    newest = (await reference_sources.every(tx, value))[-1]
    in_force = Provenance.of(value)
    if Provenance.of(newest) == in_force:
        return Added(model=document.model, digest=document.digest, state="active")
    return Added(
        model=document.model,
        digest=document.digest,
        state="active",
        source=newest["number"],
        counts=msgspec.to_builtins(in_force),
    )
