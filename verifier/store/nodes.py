"""Enrolment tokens, nodes, their keys, and the requests they have signed."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, replace

import msgspec

from attester.cose import PublicKey
from verifier.errors import RequestError
from verifier.schemes.context import Node
from verifier.store import events, incidents
from verifier.store.database import ConflictError, Row, Tx

_UEID_RAND = b"\x01"
"""Type byte of a UEID made of random bytes (RFC 9711 §4.2.1.1)."""


@dataclass(frozen=True)
class Grant:
    """What an enrolment token allows."""

    operator: str
    models: tuple[str, ...]
    hardware_class: str = "cpu"
    """As the policy's table names it: what a walk is timed against."""
    node_id: str | None = None
    """Only to give this node a new key, after it has lost the old one."""


async def issue_token(tx: Tx, grant: Grant, now_ms: int, lifetime_ms: int) -> str:
    """
    Make a one-time token.  Only its digest is kept.

    Raises:
        RequestError: it is for a node that is not there.
    """
    if grant.node_id is not None and await by_id(tx, grant.node_id) is None:
        raise RequestError(f"no node {grant.node_id[:40]!r}", code="request.not-found")
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
        RequestError: unknown, used or expired; which of them is not said.
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
    Enrol a node, or give one that lost its key the new one.

    Raises:
        RequestError: the key is enrolled already, the models are beyond the grant, or the
            token's node is not there.
    """
    if beyond := set(models) - set(grant.models):
        raise RequestError(f"the token is not for model {min(beyond)!r}", code="token.unusable")
    if grant.node_id is not None:
        known = await by_id(tx, grant.node_id)
        if known is None or known.state == "retired":
            raise RequestError("the token's node is not there", code="token.unusable")
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
    Make *key* the node's current one; results bound to the old one are revoked.

    Raises:
        RequestError: the key is enrolled already.
    """
    await tx.execute("UPDATE node_keys SET current = 0 WHERE node_id = ?", node_id)
    await _insert_key(tx, node_id, key, now_ms)
    await incidents.revoke(tx, node_id, now_ms)


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
    """Retire a node; raises `RequestError` where there is none that could be."""
    if not await incidents.retire_node(tx, node_id, now_ms):
        raise RequestError(f"no node {node_id!r} that could be retired", code="request.not-found")


_SELECT = """
    SELECT n.*, k.key FROM nodes n JOIN node_keys k ON k.node_id = n.id AND k.current = 1
"""


async def by_id(tx: Tx, node_id: str) -> Node | None:
    """The node with this id."""
    return _node(await tx.one(f"{_SELECT} WHERE n.id = ?", node_id))


async def by_kid(tx: Tx, kid: bytes) -> Node | None:
    """The node whose current key has this thumbprint."""
    return _node(await tx.one(f"{_SELECT} WHERE k.kid = ?", kid))


async def live_ids(tx: Tx) -> list[tuple[str, str, tuple[str, ...]]]:
    """The id, operator and models of every node that is not retired."""
    rows = await tx.all("SELECT id, operator, models FROM nodes WHERE state != 'retired' ORDER BY id")
    return [
        (row["id"], row["operator"], msgspec.json.decode(row["models"], type=tuple[str, ...])) for row in rows
    ]


async def page(tx: Tx, after: str, limit: int) -> list[Node]:
    """Nodes by id, after *after*."""
    rows = await tx.all(f"{_SELECT} WHERE n.id > ? ORDER BY n.id LIMIT ?", after, limit)
    return [node for row in rows if (node := _node(row))]


def _node(row: Row | None) -> Node | None:
    if row is None:
        return None
    models = msgspec.json.decode(row["models"], type=tuple[str, ...])
    key = PublicKey.decode(row["key"])
    return Node(
        id=row["id"],
        ueid=row["ueid"],
        key=key,
        operator=row["operator"],
        models=models,
        hardware_class=row["hardware_class"],
        state=row["state"],
        enrolled_ms=row["enrolled_ms"],
    )


async def see_request(tx: Tx, kid: bytes, random: bytes, expires_ms: int) -> None:
    """
    Accept a signed request once.

    Raises:
        RequestError: it was seen before.
    """
    try:
        await tx.execute(
            "INSERT INTO seen_requests (kid, random, expires_ms) VALUES (?, ?, ?)", kid, random, expires_ms
        )
    except ConflictError:
        raise RequestError("this signed request was seen before", code="request.replayed") from None


async def forget_requests(tx: Tx, now_ms: int) -> None:
    """Forget requests whose time would be refused anyway."""
    await tx.execute("DELETE FROM seen_requests WHERE expires_ms < ?", now_ms)
