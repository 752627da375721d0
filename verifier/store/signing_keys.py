"""
The keys that sign results: when each begins, and when it leaves.  Their private parts are files of the home.

All replicas share the table, so they agree on who signs, and each lists the keys of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import msgspec

from verifier.errors import StoreError
from verifier.result_keys import VerifyingKey, jwt_header
from verifier.store import events, log, revocations
from verifier.store.database import Row, Tx

MAX_LISTED: Final = 32
"""Keys in a JWKS: half of what routers read."""


@dataclass(frozen=True, kw_only=True)
class StoredKey:
    """What is known of a key."""

    kid: str
    key: VerifyingKey
    signs_ms: int
    """From when on it signs, unless a later key does."""
    leaves_ms: int | None = None
    """From when on it is listed no more; `None`: it stays."""
    withdrawn_ms: int | None = None

    def is_listed(self, now_ms: int) -> bool:
        """Whether the JWKS lists it: before it signs, and as long as a result that it signed may live."""
        return self.withdrawn_ms is None and (self.leaves_ms is None or now_ms < self.leaves_ms)


async def all_keys(tx: Tx) -> list[StoredKey]:
    """Give all keys, the one that signs last at the end."""
    rows = await tx.all("SELECT * FROM signing_keys ORDER BY signs_ms, kid")
    return [_key(row) for row in rows]


def _key(row: Row) -> StoredKey:
    key = VerifyingKey.from_jwk(msgspec.json.decode(row["jwk"]))
    return StoredKey(
        kid=row["kid"],
        key=key,
        signs_ms=row["signs_ms"],
        leaves_ms=row["leaves_ms"],
        withdrawn_ms=row["withdrawn_ms"],
    )


async def note(tx: Tx, known: Sequence[VerifyingKey], now_ms: int) -> None:
    """Take in the keys of a home, in the order in which they began to sign; those that are known stay as they are."""
    for number, key in enumerate(known):
        is_new = await tx.execute(
            "INSERT INTO signing_keys (kid, jwk, signs_ms) VALUES (?, ?, ?) ON CONFLICT (kid) DO NOTHING",
            key.kid,
            _jwk(key),
            number,
        )
        if is_new:
            await _write_down(tx, "made", key.kid, now_ms)


async def rotate(
    tx: Tx, new: VerifyingKey, now_ms: int, *, signs_ms: int, leaves_ms: int, actor: str | None = None
) -> None:
    """
    Add a key that signs from a moment on, and let all others leave after it.

    Args:
        actor: Who does it.

    Raises:
        StoreError: Too many keys are listed.
    """
    listed = [each for each in await all_keys(tx) if each.is_listed(now_ms)]
    if len(listed) >= MAX_LISTED:
        raise StoreError(f"{len(listed)} keys are listed already; wait until some of them have left")
    await tx.execute("UPDATE signing_keys SET leaves_ms = ? WHERE leaves_ms IS NULL", leaves_ms)
    await tx.execute(
        "INSERT INTO signing_keys (kid, jwk, signs_ms) VALUES (?, ?, ?)", new.kid, _jwk(new), signs_ms
    )
    await _write_down(tx, "made", new.kid, now_ms, actor)
    await _tell(tx, now_ms)


async def withdraw(tx: Tx, kid: str, now_ms: int, actor: str | None = None) -> int:
    """
    Withdraw a key: every live result that it signed is revoked.  If another one was to sign later, it signs now.

    Returns:
        How many results were revoked.

    Raises:
        StoreError: There is no such key, or no other that could sign.
    """
    known = await all_keys(tx)
    if all(each.kid != kid for each in known):
        raise StoreError(f"there is no key {kid!r}")
    left = [each for each in known if each.kid != kid and each.is_listed(now_ms)]
    if not left:
        raise StoreError("no other key could sign. Next: touchstone verifier signing-key rotate --at-once")
    await tx.execute(
        "UPDATE signing_keys SET withdrawn_ms = ? WHERE kid = ? AND withdrawn_ms IS NULL", now_ms, kid
    )
    if all(each.signs_ms > now_ms for each in left):
        await tx.execute("UPDATE signing_keys SET signs_ms = ? WHERE kid = ?", now_ms, left[0].kid)
    if all(each.leaves_ms is not None for each in left):
        # Somebody must go on signing.
        await tx.execute("UPDATE signing_keys SET leaves_ms = NULL WHERE kid = ?", left[-1].kid)
    await _write_down(tx, "withdrawn", kid, now_ms, actor)
    count = await revoke_signed(tx, kid, now_ms)
    await _tell(tx, now_ms)
    return count


async def revoke_signed(tx: Tx, kid: str, now_ms: int) -> int:
    """Revoke the unexpired results that a key has signed, and tell routers; gives how many there were."""
    head = jwt_header(kid)
    ended = await tx.all(
        "UPDATE appraisals SET revoked_ms = ? WHERE revoked_ms IS NULL AND expires_ms > ?"
        " AND substr(token, 1, ?) = ? RETURNING node_id, id, seq, sequence",
        now_ms,
        now_ms - revocations.CLOCKS_MS,
        len(head),
        head,
    )
    ended.sort(key=lambda row: row["node_id"])
    for node_id, rows in groupby(ended, key=lambda row: str(row["node_id"])):
        newest = await tx.one(
            "SELECT seq FROM appraisals WHERE node_id = ? AND public = 1 ORDER BY seq DESC LIMIT 1", node_id
        )
        ours = await revocations.write_down(tx, node_id, list(rows), now_ms, "key-withdrawn")
        # An earlier result than the newest one counts nowhere any more.
        if newest is not None and newest["seq"] == ours[-1]["seq"]:
            await revocations.announce(tx, node_id, ours, now_ms)
    return len(ended)


async def _write_down(tx: Tx, change: str, kid: str, now_ms: int, actor: str | None = None) -> None:
    """Log what became of a key."""
    entry = {"change": change, "kid": kid, "use": "results"}
    await log.append(tx, now_ms, "key", entry if actor is None else {**entry, "actor": log.clip(actor)})


async def _tell(tx: Tx, now_ms: int) -> None:
    """Tell routers to look at the JWKS."""
    await events.append(tx, now_ms, "key", {})


def _jwk(key: VerifyingKey) -> str:
    return msgspec.json.encode(key.jwk()).decode()
