"""
API keys: who may call the verifier besides nodes.

A key is 32 random bytes, and its row holds their SHA-256.  No slow hash and no salt are needed: those make
guessing expensive where there is little to guess, and nobody guesses 256 random bits.  The key is found by its
digest, so no comparison tells by its time how near a guess was.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from verifier.errors import RequestError
from verifier.roles import GRANTED, ROLES, Caller, Role
from verifier.store import log
from verifier.store.database import ConflictError, Row, Tx

PREFIX: Final = "touchstone_"
"""What every key begins with, so that scanners for leaked secrets find it."""
_SECRET_BYTES: Final = 32
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_RESERVED: Final = "home-"


@dataclass(frozen=True)
class ApiKey:
    """A row of the table."""

    name: str
    roles: frozenset[Role]
    operator: str | None
    created_ms: int
    created_by: str
    expires_ms: int | None
    revoked_ms: int | None

    def state(self, now_ms: int) -> str:
        """Say whether it is ``live``, ``revoked`` or ``expired``."""
        if self.revoked_ms is not None:
            return "revoked"
        return "expired" if self.expires_ms is not None and self.expires_ms <= now_ms else "live"


@dataclass(frozen=True)
class NewKey:
    """What is asked for."""

    name: str
    roles: Sequence[Role]
    operator: str | None = None
    expires_ms: int | None = None

    def __post_init__(self) -> None:
        """Raise `RequestError` if it cannot be made."""
        if not _NAME.fullmatch(self.name) or self.name.startswith(_RESERVED):
            raise RequestError(
                f"the name of a key has letters, digits, '.', '_' and '-', at most 64 of them,"
                f" and does not begin with {_RESERVED!r}"
            )
        if not self.roles or not set(self.roles) <= set(GRANTED):
            raise RequestError(f"a key needs one of the roles {', '.join(GRANTED)}")
        if (Role.OPERATOR in self.roles) != bool(self.operator):
            raise RequestError("a key names an operator if, and only if, it has the role operator")


def digest_of(secret: str) -> bytes:
    """Give the digest by which a secret is looked up.  Any text may come: headers are not always UTF-8."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()


def new_secret() -> str:
    """Give the secret of a new key: of a verifier, or of a router."""
    return PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


async def create(tx: Tx, new: NewKey, created_by: str, now_ms: int) -> str:
    """
    Make a key.  Only its digest is stored, so it can be shown once.

    Raises:
        RequestError: A key of this name exists that is not revoked.
    """
    secret = new_secret()
    try:
        await tx.execute(
            "INSERT INTO api_keys (digest, name, roles, operator, created_ms, created_by, expires_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            digest_of(secret),
            new.name,
            msgspec.json.encode(sorted(set(new.roles))).decode(),
            new.operator,
            now_ms,
            created_by,
            new.expires_ms,
        )
    except ConflictError:
        raise RequestError(f"there is a key {new.name!r}. Revoke it first", code="key.exists") from None
    entry: dict[str, log.Value] = {
        "change": "made",
        "kid": new.name,
        "use": "api",
        "actor": log.clip(created_by),
    }
    entry["roles"] = sorted(set(new.roles))
    if new.operator is not None:
        entry["operator"] = new.operator
    await log.append(tx, now_ms, "key", entry)
    return secret


async def every(tx: Tx) -> list[ApiKey]:
    """Give all keys by name, the revoked ones too, the oldest first."""
    return [_key(row) for row in await tx.all("SELECT * FROM api_keys ORDER BY name, created_ms, digest")]


async def revoke(tx: Tx, name: str, now_ms: int, actor: str | None = None) -> None:
    """
    Revoke a key.  It opens nothing from the end of the transaction on, in no replica.

    Args:
        actor: Who does it.

    Raises:
        RequestError: There is no such key, or it is revoked already.
    """
    if not await tx.execute(
        "UPDATE api_keys SET revoked_ms = ? WHERE name = ? AND revoked_ms IS NULL", now_ms, name
    ):
        raise RequestError(f"there is no key {name[:80]!r} that can be revoked", code="request.not-found")
    entry = {"change": "revoked", "kid": name, "use": "api"}
    await log.append(tx, now_ms, "key", entry if actor is None else {**entry, "actor": log.clip(actor)})


async def caller_with(tx: Tx, digest: bytes, now_ms: int) -> Caller | None:
    """Give the caller whose key has this digest; `None` if there is no such key, or it is revoked or expired."""
    row = await tx.one("SELECT * FROM api_keys WHERE digest = ?", digest)
    if row is None:
        return None
    key = _key(row)
    if key.state(now_ms) != "live":
        return None
    return Caller(key.name, key.roles, operator=key.operator, key=digest, until_ms=key.expires_ms)


def _key(row: Row) -> ApiKey:
    # A later version may know more roles than this one: here they open nothing.
    named = msgspec.json.decode(row["roles"], type=list[str])
    return ApiKey(
        name=row["name"],
        roles=frozenset(ROLES[name] for name in named if name in ROLES),
        operator=row["operator"],
        created_ms=row["created_ms"],
        created_by=row["created_by"],
        expires_ms=row["expires_ms"],
        revoked_ms=row["revoked_ms"],
    )
