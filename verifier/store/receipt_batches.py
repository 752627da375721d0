"""
The keys by which routers sign receipts, and the batches of receipts whose roots they sent.

One root for each number of a key: a second one would be another history of the same receipts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from verifier.errors import RequestError
from verifier.incident_transitions import Open
from verifier.incidents import REPORTER_SUSPECT, Draft, Severity, State, reported_by
from verifier.router_receipts import NO_ROOT, Batch, ReceiptKey
from verifier.schemes.findings import Finding
from verifier.store import incident_facts, incident_transitions, log
from verifier.store.database import Tx

MAX_KEYS_A_DAY: Final = 96
"""Receipt keys of one credential: a router without a store makes one at each start."""
_DAY_MS: Final = 24 * 3600 * 1000
FORKED: Final = "receipts.forked"


@dataclass(frozen=True)
class NewKey:
    """What a router asks for, verified."""

    key: ReceiptKey
    router: str
    """Its own name."""
    caller: str
    """The name of its credential."""
    spki: bytes
    """SHA-256 of the public key that vouched for it."""


@dataclass(frozen=True)
class StoredKey:
    """What is known of a receipt key."""

    key: ReceiptKey
    router: str
    caller: str
    is_removed: bool
    """Whether a person has removed the router's key that vouched for it."""


async def register(tx: Tx, new: NewKey, now_ms: int) -> bool:
    """
    Register a receipt key.

    Returns:
        False if it is registered already.

    Raises:
        RequestError: The name or the key is of another credential, or there are too many new keys.
    """
    others = await tx.one(
        "SELECT 1 AS one FROM receipt_keys WHERE caller <> ? AND (router = ? OR kid = ?) LIMIT 1",
        new.caller,
        new.router,
        new.key.kid,
    )
    if others is not None:
        raise RequestError(
            "another credential has registered this name or this key", code="request.forbidden"
        )
    known = await find(tx, new.key.kid)
    if known is not None:
        if known.router != new.router:
            raise RequestError(f"the receipt key is registered for {known.router}", code="request.forbidden")
        return False
    await _check_count(tx, new.caller, now_ms)
    await tx.execute(
        "INSERT INTO receipt_keys (kid, router, caller, x, spki, since_ms) VALUES (?, ?, ?, ?, ?, ?)",
        new.key.kid,
        new.router,
        new.caller,
        new.key.x,
        new.spki,
        now_ms,
    )
    said = {"router": new.router, "kid": new.key.kid, "jwk_x": new.key.x, "spki_sha256": new.spki.hex()}
    await log.append(tx, now_ms, "router-key", {"change": "registered", **said})
    return True


async def _check_count(tx: Tx, caller: str, now_ms: int) -> None:
    row = await tx.one(
        "SELECT count(*) AS n FROM receipt_keys WHERE caller = ? AND since_ms > ?", caller, now_ms - _DAY_MS
    )
    if row is not None and row["n"] >= MAX_KEYS_A_DAY:
        raise RequestError(
            f"{MAX_KEYS_A_DAY} receipt keys were registered within a day",
            code="request.too-often",
            retry_after=3600,
        )


async def find(tx: Tx, kid: str) -> StoredKey | None:
    """Give a receipt key; `None` if it is not registered."""
    row = await tx.one(
        "SELECT k.router, k.caller, k.x, r.removed_ms FROM receipt_keys k"
        " LEFT JOIN routers r ON r.spki = k.spki WHERE k.kid = ?",
        kid,
    )
    if row is None:
        return None
    key = ReceiptKey.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": row["x"]})
    return StoredKey(key, row["router"], row["caller"], row["removed_ms"] is not None)


@dataclass(frozen=True)
class Taken:
    """What became of a batch."""

    entry: str
    """What its entry in the log is found by."""
    is_new: bool
    fork: str | None = None
    """Why it is another history than was sent before.  Then nothing of it was stored, and a review is open."""


async def take(tx: Tx, batch: Batch, caller: str, now_ms: int) -> Taken:
    """Store a batch whose signature was verified, and log it.  Of a fork only the review is stored."""
    entry, data = f"{batch.kid}/{batch.number}", batch.encode()
    digest = hashlib.sha256(data).digest()
    known = await tx.one(
        "SELECT digest FROM receipt_batches WHERE kid = ? AND number = ?", batch.kid, batch.number
    )
    if known is not None and bytes(known["digest"]) == digest:
        return Taken(entry, is_new=False)
    fork = "another batch was sent for this number" if known is not None else await _break(tx, batch)
    if fork is not None:
        await _review(tx, batch, caller, fork, now_ms)
        return Taken(entry, is_new=False, fork=fork)
    await tx.execute(
        "INSERT INTO receipt_batches (kid, number, root, digest, at_ms) VALUES (?, ?, ?, ?, ?)",
        batch.kid,
        batch.number,
        bytes.fromhex(batch.root),
        digest,
        now_ms,
    )
    members: dict[str, log.Value] = {
        "router": batch.router,
        "number": batch.number,
        "size": batch.size,
        "root": batch.root,
        "prev": batch.prev,
        "from": batch.from_ms,
        "to": batch.to_ms,
        "kid": batch.kid,
        "sig": batch.sig,
    }
    await log.append(tx, now_ms, "receipts", members)
    return Taken(entry, is_new=True)


async def _break(tx: Tx, batch: Batch) -> str | None:
    """Say why a batch does not follow on the one before it; `None` if it does, or if that one never came."""
    if batch.number == 1:
        return None if batch.prev == NO_ROOT else "the first batch names one before it"
    before = await tx.one(
        "SELECT root FROM receipt_batches WHERE kid = ? AND number = ?", batch.kid, batch.number - 1
    )
    if before is not None and bytes(before["root"]).hex() != batch.prev:
        return "the batch before it had another root"
    return None


async def _review(tx: Tx, batch: Batch, caller: str, why: str, now_ms: int) -> None:
    """Have a person look at the router, unless one does already."""
    cause = reported_by(FORKED, caller)
    if (await incident_facts.read_reporter(tx, cause, now_ms)).review is not None:
        return
    finding = Finding(FORKED, f"batch {batch.number} of the receipt key {batch.kid}: {why}")
    draft = Draft(REPORTER_SUSPECT, Severity.SERIOUS, finding, cause)
    await incident_transitions.apply(tx, [Open(draft, State.OPEN)], now_ms)
