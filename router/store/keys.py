"""
The API keys of all routers that share a store.

A key is made and revoked, and otherwise never changed.  Its name is never given again, so that a name in
records, budgets and reviews is one credential for ever.  The key itself is not here, only its SHA-256.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct, structs

from router.config import ApiKey
from router.model.errors import KeyStepError
from verifier.store.database import Row, Tx

MAX_KEYS: Final = 10_000
"""Keys in one store, revoked ones included: routers have all of them in memory."""


class StoredKey(Struct, frozen=True, kw_only=True):
    """A key, and since when it is there."""

    key: ApiKey
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None

    def state(self, now_ms: int) -> str:
        """Say whether it is ``live``, ``revoked`` or ``expired``."""
        if self.revoked_ms is not None:
            return "revoked"
        return "expired" if self.expires_ms is not None and self.expires_ms <= now_ms else "live"


async def revision(tx: Tx) -> int:
    """A number that grows with each key that is made or revoked."""
    row = await tx.one("SELECT coalesce(max(revision), 0) AS revision FROM api_keys")
    return 0 if row is None else int(row["revision"])


async def list_all(tx: Tx) -> list[StoredKey]:
    """All keys by name, revoked ones included."""
    rows = await tx.all("SELECT * FROM api_keys ORDER BY name")
    return [_stored(row) for row in rows]


async def add(tx: Tx, key: ApiKey, now_ms: int, *, expires_ms: int | None = None) -> None:
    """
    Write a new key.

    Raises:
        KeyStepError: its name was given before, or there are too many keys.
    """
    row = await tx.one(
        "SELECT count(*) AS many, count(CASE WHEN name = ? THEN 1 END) AS named FROM api_keys", key.name
    )
    assert row is not None
    if row["named"]:
        raise KeyStepError(f"there is or was a key {key.name}. Names are never given again: choose another")
    if row["many"] >= MAX_KEYS:
        raise KeyStepError(f"there are {MAX_KEYS} keys, and there can be no more")
    await _insert(tx, StoredKey(key=key, created_ms=now_ms, expires_ms=expires_ms))


async def revoke(tx: Tx, name: str, now_ms: int, configured: ApiKey | None = None) -> None:
    """
    Revoke a key.

    Args:
        configured: The entry of ``[[keys]]`` of this name, if there is one: it is refused from now on.

    Raises:
        KeyStepError: there is no such key, or it is revoked.
    """
    row = await tx.one("SELECT sha256, revoked_ms FROM api_keys WHERE name = ?", name)
    if row is None:
        if configured is None:
            raise KeyStepError(f"there is no key {name}. See: touchstone router key list")
        await _insert(tx, StoredKey(key=configured, created_ms=now_ms, revoked_ms=now_ms))
        return
    if configured is not None and configured.sha256 != row["sha256"]:
        raise KeyStepError(f"{name} in router.toml is another key than the one of the store: remove it there")
    if row["revoked_ms"] is not None:
        raise KeyStepError(f"{name} is revoked already")
    await tx.execute(
        "UPDATE api_keys SET revoked_ms = ?, revision = ? WHERE name = ?",
        now_ms, await revision(tx) + 1, name,
    )  # fmt: skip


async def list_revoked(tx: Tx) -> list[StoredKey]:
    """The keys that are revoked, to be given to `revoke_again`."""
    rows = await tx.all("SELECT * FROM api_keys WHERE revoked_ms IS NOT NULL ORDER BY name")
    return [_stored(row) for row in rows]


async def revoke_again(tx: Tx, revoked: Sequence[StoredKey]) -> None:
    """Revoke in a restored store what was revoked before it: nobody gets back what was taken from them."""
    for stored in revoked:
        await tx.execute(
            "DELETE FROM api_keys WHERE name = ? OR sha256 = ?", stored.key.name, stored.key.sha256
        )
        await _insert(tx, stored)


async def _insert(tx: Tx, stored: StoredKey) -> None:
    # In a transaction that nobody writes beside, so the number is given once.
    await tx.execute(
        "INSERT INTO api_keys (name, sha256, settings, created_ms, expires_ms, revoked_ms, revision)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        stored.key.name, stored.key.sha256, msgspec.json.encode(stored.key), stored.created_ms,
        stored.expires_ms, stored.revoked_ms, await revision(tx) + 1,
    )  # fmt: skip


def _stored(row: Row) -> StoredKey:
    name, digest, revoked_ms = row["name"], row["sha256"], row["revoked_ms"]
    try:
        key = msgspec.json.decode(row["settings"], type=ApiKey)
    except (msgspec.DecodeError, UnicodeError):
        # Another router wrote it, perhaps of a later version: what cannot be read lets nobody in.
        key, revoked_ms = ApiKey(name=name, sha256=digest), revoked_ms or row["created_ms"]
    # A key is looked up and revoked by the columns.
    key = structs.replace(key, name=name, sha256=digest)
    return StoredKey(
        key=key, created_ms=row["created_ms"], expires_ms=row["expires_ms"], revoked_ms=revoked_ms
    )
