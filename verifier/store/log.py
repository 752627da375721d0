"""
What is to be logged: written with what it records, in one transaction.

An entry is canonical JSON (RFC 8785): its members sorted, no spaces, integers only.  It has digests, ids and names,
nothing secret, because a log is public and never forgets.  It waits here until the sequencer gives it its place
(`verifier.service.sequencer`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from verifier.errors import StoreError
from verifier.store.database import Row, Tx

VERSION: Final = 1
MAX_ENTRY: Final = 4096
"""Bytes."""
MAX_COUNTED: Final = 4096
"""Entries that wait and are looked at for one request: more wait only while nothing is signed."""
_MAX_PARTS: Final = 2048
_MAX_TEXT: Final = 512
"""Bytes of a text that a person wrote, as JSON."""

Value: TypeAlias = "str | int | bool | Sequence[str] | Mapping[str, str]"

SUBJECTS: Final[Mapping[str, tuple[str, ...]]] = {
    "result": ("id",),
    "revocation": ("node",),
    "policy": ("digest",),
    "reference": ("digest",),
    "block": ("id",),
    "incident": ("id",),
    "release": ("id",),
    "node": ("node",),
    "key": ("kid",),
    "router": ("spki_sha256",),
    "router-key": ("kid",),
    "receipts": ("kid", "number"),
    "database": ("change",),
    "log": ("origin",),
    "archive": ("digest",),
}
"""By kind of entry, the members by which it is found: joined by ``/`` they are its subject."""

_encoder: Final = msgspec.json.Encoder(order="sorted")


def encode(now_ms: int, kind: str, members: Mapping[str, Value]) -> bytes:
    """
    Give the bytes of an entry.

    Args:
        now_ms: Milliseconds since 1970.

    Raises:
        StoreError: It is too large.
    """
    data = _encoder.encode({**members, "at": now_ms, "kind": kind, "v": VERSION})
    if len(data) > MAX_ENTRY:
        raise StoreError(f"an entry of the log of kind {kind} has {len(data)} bytes, more than {MAX_ENTRY}")
    return data


def subject_of(kind: str, members: Mapping[str, Value]) -> str:
    """Give what an entry is found by."""
    return "/".join(str(members[name]) for name in SUBJECTS[kind])


async def append(tx: Tx, now_ms: int, kind: str, members: Mapping[str, Value]) -> None:
    """
    Write an entry, in the transaction of what it records: one row, that nobody else waits for.

    Args:
        kind: One of `SUBJECTS`.
        members: What it says; `None` and floats have no place in it.

    Raises:
        StoreError: It is too large: nothing of the transaction must happen.
    """
    await tx.execute(
        "INSERT INTO log_pending (kind, subject, entry) VALUES (?, ?, ?)",
        kind,
        subject_of(kind, members),
        encode(now_ms, kind, members),
    )


def clip(text: str) -> str:
    """Give a text that a person wrote, cut so that an entry has room for it."""
    if len(msgspec.json.encode(text)) <= _MAX_TEXT:
        return text
    kept = text[:_MAX_TEXT]
    while len(msgspec.json.encode(kept)) > _MAX_TEXT - 3:
        kept = kept[: len(kept) * 9 // 10]
    return kept + "…"


def bounded(name: str, members: Mapping[str, str]) -> dict[str, Value]:
    """Give a member with many parts, or its SHA-256 as ``NAME_sha256`` if an entry has no room for it."""
    data = _encoder.encode(members)
    if len(data) <= _MAX_PARTS:
        return {name: members}
    return {f"{name}_sha256": hashlib.sha256(data).hexdigest()}


async def is_waiting(tx: Tx) -> bool:
    """Whether an entry waits for its place."""
    return await tx.one("SELECT 1 AS one FROM log_pending LIMIT 1") is not None


async def count_waiting(tx: Tx) -> int:
    """How many entries wait for their place; `MAX_COUNTED` if there are more."""
    row = await tx.one(
        "SELECT count(*) AS n FROM (SELECT 1 AS one FROM log_pending LIMIT ?) AS w", MAX_COUNTED
    )
    assert row is not None
    return int(row["n"])


async def is_pending(tx: Tx, kind: str, subject: str) -> bool:
    """Whether an entry about this is among the newest that wait for their place."""
    found = await tx.one(
        "SELECT 1 AS one FROM (SELECT kind, subject FROM log_pending ORDER BY seq DESC LIMIT ?) AS w"
        " WHERE kind = ? AND subject = ? LIMIT 1",
        MAX_COUNTED,
        kind,
        subject,
    )
    return found is not None


async def take(tx: Tx, limit: int) -> list[Row]:
    """
    Take the oldest entries that wait, up to *limit*, in their order.

    One statement takes and gives them: what is committed beside it stays for the next time.
    """
    rows = await tx.all(
        "DELETE FROM log_pending WHERE seq IN (SELECT seq FROM log_pending ORDER BY seq LIMIT ?)"
        " RETURNING seq, kind, subject, entry",
        limit,
    )
    return sorted(rows, key=lambda row: row["seq"])


async def take_about(tx: Tx, kind: str, subject: str) -> list[Row]:
    """Take the entries that wait and are about this."""
    rows = await tx.all(
        "DELETE FROM log_pending WHERE kind = ? AND subject = ? RETURNING seq, kind, subject, entry",
        kind,
        subject,
    )
    return sorted(rows, key=lambda row: row["seq"])
