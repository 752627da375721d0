"""
Receipts and their batches.

A receipt is written with its batch, or ahead of it: when somebody asks for it, or because a batch is written in
several transactions.  What is ahead and whose batch never came is put into the next one (`readdress`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from router.store.batches import in_batches
from verifier.store.database import Row, Tx

MAX_WANTED = 1000
"""Receipts of one router that wait for its signature."""
_MAX_KEYS = 64


class StoredReceipt(NamedTuple):
    """A receipt as the store has it."""

    id: str
    kid: str
    caller: str
    batch: int
    place: int
    payload: bytes
    signature: bytes | None = None
    """Of the token, once somebody has asked for it."""
    front: str | None = None
    """What the node's front has signed of it, once somebody has asked for that."""


class StoredBatch(NamedTuple):
    """A batch as the store has it."""

    batch: bytes
    leaves: bytes
    entry: str | None


async def save(
    tx: Tx,
    kid: str,
    receipts: Sequence[tuple[str, int, str, int, int, bytes]],
    *,
    is_ahead: bool,
) -> None:
    """
    Write receipts: id, time, caller, number of the batch, place in it, payload.  A known one is left as it is.

    Args:
        kid: Of the key that will sign them.
        is_ahead: Whether their batches are not written yet.
    """
    rows = [(i, at, kid, caller, n, place, int(is_ahead), data) for i, at, caller, n, place, data in receipts]
    for marks, values in in_batches(rows):
        await tx.execute(
            "INSERT INTO receipts (id, at_ms, kid, caller, batch, place, ahead, payload)"
            f" VALUES {marks} ON CONFLICT DO NOTHING",
            *values,
        )


async def save_batch(tx: Tx, kid: str, number: int, to_ms: int, stored: StoredBatch) -> None:
    """Write a batch that is closed."""
    await tx.execute(
        "INSERT INTO receipt_batches (kid, number, to_ms, batch, leaves) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        kid, number, to_ms, stored.batch, stored.leaves,
    )  # fmt: skip
    await tx.execute("UPDATE receipts SET ahead = 0 WHERE kid = ? AND ahead = 1 AND batch = ?", kid, number)


async def save_chains(tx: Tx, kid: str, chains: Mapping[str, tuple[int, str]]) -> None:
    """Write where chains are: by pseudonym, how many receipts they have and the digest of the last."""
    rows = [(pseudonym, kid, seq, head) for pseudonym, (seq, head) in chains.items()]
    for marks, values in in_batches(rows):
        await tx.execute(
            f"INSERT INTO receipt_chains (pseudonym, kid, seq, head) VALUES {marks} ON CONFLICT (pseudonym)"
            " DO UPDATE SET seq = excluded.seq, head = excluded.head",
            *values,
        )


async def chains(tx: Tx, kid: str) -> dict[str, tuple[int, str]]:
    """Where the chains of a key are."""
    rows = await tx.all("SELECT pseudonym, seq, head FROM receipt_chains WHERE kid = ?", kid)
    return {row["pseudonym"]: (row["seq"], row["head"]) for row in rows}


async def last_batch(tx: Tx, kid: str) -> bytes | None:
    """The newest batch of a key."""
    row = await tx.one("SELECT batch FROM receipt_batches WHERE kid = ? ORDER BY number DESC LIMIT 1", kid)
    return None if row is None else bytes(row["batch"])


async def ahead(tx: Tx, kid: str) -> list[StoredReceipt]:
    """The receipts that were written ahead of batches that never came, in their order."""
    rows = await tx.all("SELECT * FROM receipts WHERE kid = ? AND ahead = 1 ORDER BY batch, place", kid)
    return [_stored(row) for row in rows]


async def readdress(tx: Tx, receipt_id: str, number: int, place: int) -> None:
    """Put a receipt that is ahead into another batch."""
    await tx.execute("UPDATE receipts SET batch = ?, place = ? WHERE id = ?", number, place, receipt_id)


async def find(tx: Tx, receipt_id: str) -> StoredReceipt | None:
    """A receipt."""
    row = await tx.one("SELECT * FROM receipts WHERE id = ?", receipt_id)
    return None if row is None else _stored(row)


async def want(tx: Tx, receipt_id: str, kid: str) -> None:
    """Ask a receipt's router to sign it, unless it is asked for too many already."""
    row = await tx.one("SELECT count(*) AS many FROM receipts WHERE kid = ? AND wanted = 1", kid)
    if row is not None and row["many"] < MAX_WANTED:
        await tx.execute("UPDATE receipts SET wanted = 1 WHERE id = ? AND signature IS NULL", receipt_id)


async def wanted(tx: Tx, kid: str) -> list[StoredReceipt]:
    """The receipts that somebody waits for."""
    rows = await tx.all("SELECT * FROM receipts WHERE kid = ? AND wanted = 1 LIMIT ?", kid, MAX_WANTED)
    return [_stored(row) for row in rows]


async def sign(tx: Tx, receipt_id: str, signature: bytes) -> None:
    """Keep the signature of a receipt."""
    await tx.execute("UPDATE receipts SET signature = ?, wanted = 0 WHERE id = ?", signature, receipt_id)


async def keep_front(tx: Tx, receipt_id: str, front: str) -> None:
    """Keep what a node's front has signed."""
    await tx.execute("UPDATE receipts SET front = ? WHERE id = ?", front, receipt_id)


async def find_batch(tx: Tx, kid: str, number: int) -> StoredBatch | None:
    """A batch."""
    row = await tx.one("SELECT * FROM receipt_batches WHERE kid = ? AND number = ?", kid, number)
    return None if row is None else StoredBatch(bytes(row["batch"]), bytes(row["leaves"]), row["entry"])


async def unsent(tx: Tx, kid: str, limit: int) -> list[bytes]:
    """The oldest batches that the verifier has not taken yet, in their order."""
    rows = await tx.all(
        "SELECT batch FROM receipt_batches WHERE kid = ? AND entry IS NULL ORDER BY number LIMIT ?",
        kid, limit,
    )  # fmt: skip
    return [bytes(row["batch"]) for row in rows]


async def closed(tx: Tx, from_ms: int, to_ms: int) -> list[bytes]:
    """The batches whose last receipt is of a time."""
    rows = await tx.all("SELECT batch FROM receipt_batches WHERE to_ms >= ? AND to_ms < ?", from_ms, to_ms)
    return [bytes(row["batch"]) for row in rows]


async def note_sent(tx: Tx, kid: str, number: int, entry: str) -> None:
    """Note as which entry the verifier has taken a batch."""
    await tx.execute("UPDATE receipt_batches SET entry = ? WHERE kid = ? AND number = ?", entry, kid, number)


async def forget(tx: Tx, until_ms: int, *, limit: int) -> bool:
    """
    Drop the oldest receipts, up to those that began at *until_ms*: their ids begin with the time.

    Returns:
        Whether there may be more: at most *limit* are dropped at a time.
    """
    dropped = await tx.execute(
        "DELETE FROM receipts WHERE id IN (SELECT id FROM receipts WHERE id < ? ORDER BY id LIMIT ?)",
        f"{until_ms + 1:012x}", limit,
    )  # fmt: skip
    return dropped >= limit


async def forget_batches(tx: Tx, until_ms: int, *, limit: int) -> bool:
    """
    Drop the oldest batches, up to those of *until_ms*, but the newest of each key: the next one follows it.

    Returns:
        Whether there may be more: at most *limit* are dropped at a time.
    """
    dropped = await tx.execute(
        "DELETE FROM receipt_batches WHERE (kid, number) IN (SELECT b.kid, b.number FROM receipt_batches b"
        " WHERE b.to_ms <= ? AND EXISTS (SELECT 1 FROM receipt_batches n WHERE n.kid = b.kid AND n.number > b.number)"
        " ORDER BY b.to_ms LIMIT ?)",
        until_ms, limit,
    )  # fmt: skip
    return dropped >= limit


async def add_key(tx: Tx, kid: str, router: str, x: bytes, now_ms: int) -> None:
    """Note a router's receipt key.  A known one is left as it is."""
    await tx.execute(
        "INSERT INTO receipt_keys (kid, router, x, since_ms) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        kid, router, x, now_ms,
    )  # fmt: skip


async def keys(tx: Tx) -> list[tuple[str, bytes]]:
    """The newest receipt keys of all routers: the router's name, and the key."""
    rows = await tx.all("SELECT router, x FROM receipt_keys ORDER BY since_ms DESC, kid LIMIT ?", _MAX_KEYS)
    return [(row["router"], bytes(row["x"])) for row in rows]


def _stored(row: Row) -> StoredReceipt:
    signature = row["signature"]
    return StoredReceipt(
        id=row["id"],
        kid=row["kid"],
        caller=row["caller"],
        batch=row["batch"],
        place=row["place"],
        payload=bytes(row["payload"]),
        signature=None if signature is None else bytes(signature),
        front=row["front"],
    )
