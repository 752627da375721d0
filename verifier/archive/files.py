"""A file of an archive and the proof beside it: what is logged of it, and whether it still is that."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from verifier.archive import parquet
from verifier.archive.rows import Row, Table, root_of
from verifier.errors import AuditError
from verifier.log.checkpoints import SignedCheckpoint
from verifier.log.notes import Note
from verifier.log.proofs import MAX_PROOF, LogProof

KIND: Final = "archive"
"""The kind of its entry in the log."""
_CHUNK: Final = 1 << 20


class ArchiveEntry(msgspec.Struct, frozen=True):
    """What the log says of a file."""

    table: str
    digest: str
    """SHA-256 of the file, hex: by it the entry is found."""
    rows: int
    root: str
    """Of the tree over its rows, hex."""
    first: str
    """The keys of its first row and of its last."""
    last: str
    from_: int = msgspec.field(name="from")
    """The times of its first row and of its last, in milliseconds since 1970."""
    to: int

    def members(self) -> dict[str, Any]:
        """The members of the entry."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hex.  Raises `AuditError`."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(_CHUNK):
                digest.update(part)
    except OSError as error:
        raise AuditError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def describe(path: Path) -> tuple[ArchiveEntry, list[dict[str, Any]]]:
    """
    What is to be logged of a file, from what is on the disk; and its rows.

    Raises:
        AuditError: it is not a file of an archive, or it has no rows.
    """
    digest = digest_of(path)
    table, rows = parquet.read(path)
    if not rows:
        raise AuditError(f"{path} has no rows")
    return _entry(table, digest, rows), rows


def _entry(table: Table, digest: str, rows: list[dict[str, Any]]) -> ArchiveEntry:
    return ArchiveEntry(
        table=table.name,
        digest=digest,
        rows=len(rows),
        root=root_of(table, rows).hex(),
        first=rows[0][table.key],
        last=rows[-1][table.key],
        from_=rows[0][table.at],
        to=rows[-1][table.at],
    )


def proof_of(path: Path) -> Path:
    """The file of the proof."""
    return path.with_suffix(".tlog-proof")


@dataclass(frozen=True)
class Proven:
    """A file that is what the log says."""

    entry: ArchiveEntry
    rows: list[dict[str, Any]]
    at_ms: int
    signed: SignedCheckpoint | None


def check(path: Path, accept: Callable[[Note], SignedCheckpoint] | None) -> Proven:
    """
    Verify a file by the proof beside it.

    Args:
        accept: Verifies the checkpoint; None: the proof is our own, and only the file is compared with it.

    Raises:
        AuditError: the file is not what the proof is of.
        LogError: the proof does not hold.
    """
    proof = LogProof.parse(_read_proof(proof_of(path)))
    if proof.extra is None:
        raise AuditError(f"{proof_of(path)} does not carry its entry")
    signed = None if accept is None else proof.verify(proof.extra, accept)
    try:
        members = msgspec.json.decode(proof.extra)
        entry = msgspec.convert(members, ArchiveEntry)
        at_ms = int(members["at"])
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError, ValueError) as error:
        raise AuditError(f"{proof_of(path)} is not of a file of an archive: {error}") from None
    if members.get("kind") != KIND:
        raise AuditError(f"{proof_of(path)} is not of a file of an archive")
    # Before anything of the file is read as Parquet.
    if digest_of(path) != entry.digest:
        raise AuditError(f"{path} is not the file that was logged: it was changed")
    found, rows = describe(path)
    if found != entry:
        raise AuditError(f"the rows of {path} are not those that were logged")
    return Proven(entry, rows, at_ms, signed)


def _read_proof(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_PROOF + 1)
    except OSError as error:
        raise AuditError(f"{path} cannot be read: {error.strerror}") from None


def same(table: Table, row: Row, other: Row) -> bool:
    """Whether two rows are equal in every column of their table."""
    return all(row[name] == other[name] for name in table.columns)
