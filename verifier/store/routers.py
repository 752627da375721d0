"""
The routers that nodes may serve: a certificate each, as long as the credential lives that registered it.

A registration ends with its key, at once and in every replica, because the list asks for the key each time.  One by
a token of the home ends at each replica whose home has that token no more, and one by a token of an issuer with
the token.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from verifier.errors import RequestError
from verifier.store import log, policies
from verifier.store.database import Row, Tx
from verifier.store.policies import ChangeAuthor

MAX_ROUTERS: Final = 256
"""All that are listed: nodes keep them as trust anchors."""
MAX_OF_NAME: Final = 8
"""Keys of one credential: routers that share it, and new keys after lost ones."""
_HOUR_MS: Final = 3600 * 1000
LIFETIME_MS: Final = 24 * _HOUR_MS
"""How long a registration lasts without a renewal."""
OVERDUE_MS: Final = 2 * _HOUR_MS
"""A router that did not renew for so long makes room for a new one.  Routers renew every hour."""


@dataclass(frozen=True)
class Registration:
    """A row of the table."""

    spki: bytes
    name: str
    credential: bytes | None
    certificate: bytes
    since_ms: int
    renewed_ms: int
    until_ms: int
    removed_ms: int | None
    is_credential_good: bool
    """Whether the key is neither revoked nor expired, or the home has the token."""

    def state(self, now_ms: int) -> str:
        """Say whether it is ``listed``, ``overdue`` (listed, and not renewed of late), ``ended`` or ``removed``."""
        if self.removed_ms is not None:
            return "removed"
        if not self.is_credential_good or self.until_ms <= now_ms:
            return "ended"
        return "overdue" if self.renewed_ms <= now_ms - OVERDUE_MS else "listed"

    def is_listed(self, now_ms: int) -> bool:
        """Whether nodes are told of it."""
        return self.state(now_ms) in ("listed", "overdue")


@dataclass(frozen=True, kw_only=True)
class NewRegistration:
    """What a router asks for, verified."""

    spki: bytes
    certificate: bytes
    name: str
    credential: bytes | None
    until_ms: int
    """The end of the credential or the certificate; the registration may end earlier."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """What became of it."""

    since_ms: int
    until_ms: int
    is_new: bool
    dropped: tuple[bytes, ...] = ()
    """Other keys that made room for it."""


async def every(tx: Tx, now_ms: int, home: Collection[bytes]) -> list[Registration]:
    """
    Give all registrations by name, the ended and the removed too.

    Args:
        home: The digests of the home's tokens.
    """
    rows = await tx.all(
        "SELECT r.*, k.digest AS key_digest, k.revoked_ms, k.expires_ms FROM routers r"
        " LEFT JOIN api_keys k ON k.digest = r.credential ORDER BY r.name, r.spki"
    )
    return [_registration(row, now_ms, home) for row in rows]


async def listed(tx: Tx, now_ms: int, home: Collection[bytes]) -> list[Registration]:
    """Give those that nodes are told of."""
    return [each for each in await every(tx, now_ms, home) if each.is_listed(now_ms)]


async def register(tx: Tx, new: NewRegistration, now_ms: int, home: Collection[bytes]) -> Registered:
    """
    Register a router's key, or renew its registration.

    Raises:
        RequestError: A person has removed this key, or there are too many routers.
    """
    found = await every(tx, now_ms, home)
    known = next((each for each in found if each.spki == new.spki), None)
    if known is not None and known.removed_ms is not None:
        raise RequestError(
            "a person has removed this key. Make another one, or ask the verifier's operator",
            code="registration.removed",
        )
    is_new = known is None or not known.is_listed(now_ms) or known.certificate != new.certificate
    others = [each for each in found if each.is_listed(now_ms) and each.spki != new.spki]
    dropped = _make_room(others, new.name, now_ms)
    for each in dropped:
        await tx.execute("DELETE FROM routers WHERE spki = ?", each.spki)
        await _write_down(tx, "made-room", each.name, each.spki, now_ms)
    # A clock that was set back does not let it begin in the future.
    since_ms = now_ms if known is None or is_new else min(known.since_ms, now_ms)
    until_ms = min(new.until_ms, now_ms + LIFETIME_MS)
    await tx.execute(
        "INSERT INTO routers (spki, name, credential, certificate, since_ms, renewed_ms, until_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (spki) DO UPDATE SET name = excluded.name,"
        " credential = excluded.credential, certificate = excluded.certificate, since_ms = excluded.since_ms,"
        " renewed_ms = excluded.renewed_ms, until_ms = excluded.until_ms",
        new.spki,
        new.name,
        new.credential,
        new.certificate,
        since_ms,
        now_ms,
        until_ms,
    )
    if is_new:
        await _write_down(tx, "registered", new.name, new.spki, now_ms)
    return Registered(
        since_ms=since_ms, until_ms=until_ms, is_new=is_new, dropped=tuple(each.spki for each in dropped)
    )


async def _write_down(tx: Tx, change: str, name: str, spki: bytes, now_ms: int) -> None:
    """Log what became of a router's key."""
    entry = {"change": change, "router": log.clip(name), "spki_sha256": spki.hex()}
    await log.append(tx, now_ms, "router", entry)


def _make_room(others: list[Registration], name: str, now_ms: int) -> list[Registration]:
    """
    Say which registrations make room for one of *name*.

    Of its own name those that were renewed longest ago; of others only one that is overdue, because a newcomer must
    not take a working router's place.

    Raises:
        RequestError: There is no room.
    """
    by_age = sorted(others, key=lambda each: (each.renewed_ms, each.spki))
    own = [each for each in by_age if each.name == name]
    dropped = own[: max(0, len(own) - MAX_OF_NAME + 1)]
    if len(others) - len(dropped) < MAX_ROUTERS:
        return dropped
    overdue = next((each for each in by_age if each.state(now_ms) == "overdue"), None)
    if overdue is None:
        raise RequestError(
            f"there are {MAX_ROUTERS} routers already, and all of them are there", code="registration.full"
        )
    return [overdue]


async def remove(tx: Tx, prefix: str, author: ChangeAuthor, now_ms: int) -> Row:
    """
    Remove a router's key for ever; its credential can register another one.

    Args:
        prefix: The beginning of the SHA-256 of its public key, hex.

    Raises:
        RequestError: There is no such key, there are several, or it is removed already.
    """
    rows = await tx.all("SELECT spki, name, removed_ms FROM routers ORDER BY spki")
    found = [row for row in rows if row["spki"].hex().startswith(prefix)]
    if len(found) != 1 or found[0]["removed_ms"] is not None:
        what = "several keys" if len(found) > 1 else "no key that can be removed"
        raise RequestError(f"there is {what} with {prefix[:64]!r}", code="request.not-found")
    (row,) = found
    await tx.execute("UPDATE routers SET removed_ms = ? WHERE spki = ?", now_ms, row["spki"])
    await policies.note(tx, "remove-router", row["spki"].hex(), author, now_ms, {"name": row["name"]})
    return row


async def prune(tx: Tx, before_ms: int, limit: int) -> int:
    """Delete registrations that ended before a moment, and that nobody removed; gives how many there were."""
    return await tx.execute(
        "DELETE FROM routers WHERE spki IN"
        " (SELECT spki FROM routers WHERE removed_ms IS NULL AND until_ms < ? LIMIT ?)",
        before_ms,
        limit,
    )


def _registration(row: Row, now_ms: int, home: Collection[bytes]) -> Registration:
    if row["credential"] is None:
        is_good = True
    elif row["key_digest"] is None:
        is_good = row["credential"] in home
    else:
        is_good = row["revoked_ms"] is None and (row["expires_ms"] is None or row["expires_ms"] > now_ms)
    names = ("spki", "name", "credential", "certificate", "since_ms", "renewed_ms", "until_ms", "removed_ms")
    return Registration(**{name: row[name] for name in names}, is_credential_good=is_good)
