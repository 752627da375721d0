"""Enrolment tokens, nodes with their keys and states, and the requests that nodes have signed."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec
from msgspec.structs import replace

from attester.cose import PublicKey
from verifier.errors import RequestError
from verifier.schemes.context import Node
from verifier.store import events, log, revocations
from verifier.store.database import ConflictError, Row, Tx

_UEID_RAND = b"\x01"
"""The type byte of a UEID that is made of random bytes (RFC 9711 §4.2.1.1)."""

_KEPT_KEYS: Final = 8192
"""About 3 kB each.  A node's key is read several times for one attestation, within seconds."""

read_key = lru_cache(maxsize=_KEPT_KEYS)(PublicKey.decode)
"""
A key by its bytes in the database, decoded and checked once.

Only keys of enrolled nodes come here, so no stranger can displace one.
"""


@dataclass(frozen=True)
class Grant:
    """What an enrolment token allows."""

    operator: str
    models: tuple[str, ...]
    hardware_class: str = "cpu"
    """As the hardware table of the policy names it; the time limit of a walk depends on it."""
    node_id: str | None = None
    """If given, the token is only for a new key of this node, which has lost its old one."""


async def issue_token(tx: Tx, grant: Grant, now_ms: int, lifetime_ms: int) -> str:
    """
    Make a one-time token.  Only its digest is stored.

    Raises:
        RequestError: The grant names a node that does not exist.
    """
    if grant.node_id is not None and await by_id(tx, grant.node_id) is None:
        raise RequestError(f"there is no node {grant.node_id[:40]!r}", code="request.not-found")
    token = secrets.token_urlsafe(24)
    await tx.execute(
        "INSERT INTO tokens (digest, operator, models, hardware_class, node_id, created_ms, expires_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        _digest(token),
        grant.operator,
        msgspec.json.encode(grant.models).decode(),
        grant.hardware_class,
        grant.node_id,
        now_ms,
        now_ms + lifetime_ms,
    )
    return token


async def use_token(tx: Tx, token: str, now_ms: int) -> Grant:
    """
    Use up a token.

    Raises:
        RequestError: The token is unknown, used or expired.  The error does not say which.
    """
    row = await tx.one(
        "UPDATE tokens SET used_ms = ? WHERE digest = ? AND used_ms IS NULL AND expires_ms > ? RETURNING *",
        now_ms,
        _digest(token),
        now_ms,
    )
    if row is None:
        raise RequestError("the token is unknown, used or expired", code="token.unusable")
    models = msgspec.json.decode(row["models"], type=tuple[str, ...])
    return Grant(row["operator"], models, row["hardware_class"], row["node_id"])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


async def enrol(tx: Tx, grant: Grant, models: tuple[str, ...], key: PublicKey, now_ms: int) -> Node:
    """
    Enrol a node, or give a node that has lost its key a new one.

    Raises:
        RequestError: The key is enrolled already, the grant does not cover the models, or the node of the
            grant does not exist or is retired.
    """
    if beyond := set(models) - set(grant.models):
        raise RequestError(f"the token is not for model {min(beyond)!r}", code="token.unusable")
    if grant.node_id is not None:
        known = await by_id(tx, grant.node_id)
        if known is None or known.state == "retired":
            raise RequestError("the node of the token does not exist, or is retired", code="token.unusable")
        await replace_key(tx, grant.node_id, key, now_ms)
        return replace(known, key=key)
    node_id, ueid = secrets.token_hex(8), _UEID_RAND + secrets.token_bytes(16)
    await tx.execute(
        "INSERT INTO nodes (id, ueid, operator, models, hardware_class, state, enrolled_ms)"
        " VALUES (?, ?, ?, ?, ?, 'active', ?)",
        node_id,
        ueid,
        grant.operator,
        msgspec.json.encode(models).decode(),
        grant.hardware_class,
        now_ms,
    )
    await _insert_key(tx, node_id, key, now_ms)
    await _write_down(tx, "enrolled", node_id, grant.operator, now_ms, key)
    await events.append(tx, now_ms, "node", {"node": node_id, "state": "active"})
    return Node(
        id=node_id,
        ueid=ueid,
        key=key,
        operator=grant.operator,
        models=models,
        hardware_class=grant.hardware_class,
        state="active",
        enrolled_ms=now_ms,
    )


async def replace_key(tx: Tx, node_id: str, key: PublicKey, now_ms: int) -> None:
    """
    Make *key* the current key of a node, and revoke the results that are bound to the old key.

    Raises:
        RequestError: The key is enrolled already.
    """
    await tx.execute("UPDATE node_keys SET current = 0 WHERE node_id = ?", node_id)
    await _insert_key(tx, node_id, key, now_ms)
    known = await tx.one("SELECT operator FROM nodes WHERE id = ?", node_id)
    assert known is not None
    await _write_down(tx, "key-rolled", node_id, known["operator"], now_ms, key)
    await revocations.revoke_results(tx, node_id, now_ms, "key-rolled")


async def _insert_key(tx: Tx, node_id: str, key: PublicKey, now_ms: int) -> None:
    try:
        await tx.execute(
            "INSERT INTO node_keys (kid, node_id, key, current, since_ms) VALUES (?, ?, ?, 1, ?)",
            key.kid,
            node_id,
            key.encode(),
            now_ms,
        )
    except ConflictError:
        raise RequestError("the key is enrolled already", code="node.exists") from None


async def retire(tx: Tx, node_id: str, now_ms: int) -> None:
    """
    Retire a node.

    Raises:
        RequestError: There is no such node, or it is retired already.
    """
    if not await retire_if_live(tx, node_id, now_ms):
        raise RequestError(f"there is no node {node_id!r} that can be retired", code="request.not-found")


async def retire_if_live(tx: Tx, node_id: str, now_ms: int) -> bool:
    """
    Retire a node: its evidence counts no more, its results are revoked, its endpoint and its devices are free.

    Returns:
        Whether it was not retired already.
    """
    changed = await _set_state(tx, node_id, "retired", ("active", "probation"), now_ms)
    await tx.execute("DELETE FROM endpoints WHERE node_id = ?", node_id)
    await tx.execute("DELETE FROM devices WHERE node_id = ?", node_id)
    await revocations.revoke_results(tx, node_id, now_ms, "retired")
    return changed


async def put_on_probation(tx: Tx, node_id: str, now_ms: int) -> None:
    """Put an active node on probation."""
    await _set_state(tx, node_id, "probation", ("active",), now_ms)


async def _set_state(tx: Tx, node_id: str, state: str, earlier: tuple[str, ...], now_ms: int) -> bool:
    marks = ", ".join("?" for _ in earlier)
    changed = await tx.one(
        f"UPDATE nodes SET state = ? WHERE id = ? AND state IN ({marks}) RETURNING operator",
        state,
        node_id,
        *earlier,
    )
    if changed is None:
        return False
    await _write_down(tx, state, node_id, changed["operator"], now_ms)
    await events.append(tx, now_ms, "node", {"node": node_id, "state": state})
    return True


async def _write_down(
    tx: Tx, change: str, node_id: str, operator: str, now_ms: int, key: PublicKey | None = None
) -> None:
    """Log what became of a node; *key* is its key from now on, if that is what changed."""
    entry: dict[str, log.Value] = {"change": change, "node": node_id, "operator": log.clip(operator)}
    if key is not None:
        entry["kid"] = key.kid.hex()
    await log.append(tx, now_ms, "node", entry)


_SELECT = """
    SELECT n.*, k.key FROM nodes n JOIN node_keys k ON k.node_id = n.id AND k.current = 1
"""


async def by_id(tx: Tx, node_id: str) -> Node | None:
    """Give the node with this id; `None` if there is none."""
    return _node(await tx.one(f"{_SELECT} WHERE n.id = ?", node_id))


async def by_kid(tx: Tx, kid: bytes) -> Node | None:
    """Give the node whose current key has this thumbprint; `None` if there is none."""
    return _node(await tx.one(f"{_SELECT} WHERE k.kid = ?", kid))


@dataclass(frozen=True)
class LiveNode:
    """What is to be known of a node to plan its calls."""

    id: str
    operator: str
    models: tuple[str, ...]
    expires_ms: int
    """When its last result expires; 0 if it has none."""


async def live(tx: Tx) -> list[LiveNode]:
    """Give every node that is not retired."""
    rows = await tx.all(
        "SELECT n.id, n.operator, n.models, coalesce((SELECT max(a.expires_ms) FROM appraisals a"
        "  WHERE a.node_id = n.id AND a.revoked_ms IS NULL), 0) AS expires_ms"
        " FROM nodes n WHERE n.state != 'retired' ORDER BY n.id"
    )
    return [
        LiveNode(
            row["id"],
            row["operator"],
            msgspec.json.decode(row["models"], type=tuple[str, ...]),
            row["expires_ms"],
        )
        for row in rows
    ]


async def alike(tx: Tx) -> list[Row]:
    """Count the nodes that are not retired, by what decides how they are called."""
    return await tx.all(
        "SELECT operator, models, hardware_class, count(*) AS n FROM nodes WHERE state <> 'retired'"
        " GROUP BY operator, models, hardware_class"
    )


async def page(tx: Tx, after: str, limit: int, operator: str | None = None) -> list[Node]:
    """Give nodes by id, from the first after *after*: all of them, or those of one operator."""
    of_operator, values = ("", [after]) if operator is None else (" AND n.operator = ?", [after, operator])
    rows = await tx.all(f"{_SELECT} WHERE n.id > ?{of_operator} ORDER BY n.id LIMIT ?", *values, limit)
    return [node for row in rows if (node := _node(row))]


def _node(row: Row | None) -> Node | None:
    if row is None:
        return None
    return Node(
        id=row["id"],
        ueid=row["ueid"],
        key=read_key(row["key"]),
        operator=row["operator"],
        models=msgspec.json.decode(row["models"], type=tuple[str, ...]),
        hardware_class=row["hardware_class"],
        state=row["state"],
        enrolled_ms=row["enrolled_ms"],
    )


async def use_request(tx: Tx, kid: bytes, random: bytes, expires_ms: int) -> None:
    """
    Use up a signed request: it is accepted once.

    Raises:
        RequestError: It was used earlier.
    """
    try:
        await tx.execute(
            "INSERT INTO seen_requests (kid, random, expires_ms) VALUES (?, ?, ?)", kid, random, expires_ms
        )
    except ConflictError:
        raise RequestError("this signed request was used already", code="request.replayed") from None


async def forget_requests(tx: Tx, now_ms: int, limit: int) -> int:
    """Delete up to *limit* requests that would be refused by now because of their time."""
    last = await tx.one(
        "SELECT expires_ms FROM seen_requests WHERE expires_ms < ? ORDER BY expires_ms LIMIT 1 OFFSET ?",
        now_ms,
        limit,
    )
    return await tx.execute(
        "DELETE FROM seen_requests WHERE expires_ms < ?", now_ms if last is None else last["expires_ms"]
    )
