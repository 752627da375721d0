"""Policies as published, the changes that were made with them, and emergency blocks."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from verifier.errors import RequestError
from verifier.policy import rollout as steps
from verifier.policy.archive import write_archive
from verifier.policy.bundle import Bundle
from verifier.policy.rollout import Rollout
from verifier.schemes.base import Blocks
from verifier.store import events
from verifier.store.database import Row, Tx

_MIN_PREFIX: Final = 6


@dataclass(frozen=True)
class Who:
    """Who changes something, and why: kept with every change."""

    actor: str
    reason: str

    def __post_init__(self) -> None:
        """A change needs a name and a reason."""
        if not self.actor.strip() or not self.reason.strip():
            raise RequestError("a change needs who makes it and why")


async def publish(tx: Tx, bundle: Bundle, envelope: bytes, signer: str, who: Who, now_ms: int) -> bool:
    """
    Keep a bundle for ever.  Returns false where it is known already.

    The caller has verified its signature, and seen its lint and its tests pass.
    """
    changed = await tx.execute(
        "INSERT INTO policies (digest, id, name, version, author, description, archive, signer, added_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING",
        bundle.digest,
        bundle.id,
        bundle.manifest.name,
        bundle.manifest.version,
        bundle.manifest.author,
        bundle.manifest.description,
        write_archive(bundle, envelope),
        signer,
        now_ms,
    )
    if changed:
        await note(tx, "publish", bundle.digest, who, now_ms, {"id": bundle.id, "signer": signer})
    return changed > 0


async def find(tx: Tx, name: str) -> Row:
    """
    A policy by its digest, the beginning of it, its id, or NAME@VERSION where that is one only.

    Raises:
        RequestError: none, or several.
    """
    digest = name.rpartition(";")[2].lower()
    rows: list[Row] = []
    if len(digest) >= _MIN_PREFIX and set(digest) <= set("0123456789abcdef"):
        rows = await tx.all(
            "SELECT * FROM policies WHERE digest >= ? AND digest < ? LIMIT 2", digest, digest + "g"
        )
    if not rows:
        label, _, version = name.partition("@")
        rows = await tx.all("SELECT * FROM policies WHERE name = ? AND version = ? LIMIT 2", label, version)
    if len(rows) != 1:
        what = "no policy" if not rows else "more than one policy is"
        raise RequestError(f"{what} {name[:100]!r}", code="request.not-found")
    return rows[0]


async def every(tx: Tx) -> list[Row]:
    """All policies, the newest first, without their archives."""
    return await tx.all(
        "SELECT digest, id, name, version, author, description, signer, added_ms FROM policies"
        " ORDER BY added_ms DESC, digest"
    )


async def rollout(tx: Tx) -> Rollout | None:
    """The rollout as it stands; `None` before anything was activated."""
    row = await tx.one("SELECT * FROM changes ORDER BY seq DESC LIMIT 1")
    if row is None or row["active"] is None:
        return None
    return Rollout(row["active"], row["shadow"], row["canary"], row["permille"], row["generation"])


async def note(
    tx: Tx,
    action: str,
    subject: str,
    who: Who,
    now_ms: int,
    detail: Mapping[str, Any] | None = None,
    *,
    to: Rollout | None = None,
    decides: bool = False,
) -> int:
    """
    Write down a change; returns its number.

    Args:
        to: The rollout after it, where it changes that.
        decides: Whether results depend on it: live ones are then judged anew.
    """
    last = await tx.one("SELECT * FROM changes ORDER BY seq DESC LIMIT 1")
    seq = 1 if last is None else last["seq"] + 1
    known = {"generation": 0, "active": None, "shadow": None, "canary": None, "permille": 0}
    state = {name: known[name] if last is None else last[name] for name in known}
    if to is not None:
        state |= {"active": to.active, "shadow": to.shadow, "canary": to.canary, "permille": to.permille}
    if decides:
        state["generation"] = seq
    await tx.execute(
        "INSERT INTO changes (seq, at_ms, actor, reason, action, subject, detail, generation, active, shadow,"
        " canary, permille) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        seq,
        now_ms,
        who.actor,
        who.reason,
        action,
        subject,
        msgspec.json.encode(detail or {}).decode(),
        state["generation"],
        state["active"],
        state["shadow"],
        state["canary"],
        state["permille"],
    )
    await events.append(tx, now_ms, "change", {"seq": seq, "action": action, "subject": subject})
    return seq


async def activate_first(tx: Tx, bundle: Bundle, who: Who, now_ms: int) -> Rollout:
    """Make the first policy active, where there is none yet."""
    current = await rollout(tx)
    if current is None:
        await note(tx, "promote", bundle.digest, who, now_ms, to=Rollout(bundle.digest), decides=True)
        current = await rollout(tx)
    assert current is not None
    return current


async def move(
    tx: Tx, action: str, policy: str | None, who: Who, now_ms: int, *, permille: int = 0
) -> Rollout:
    """
    A step of the rollout: shadow, canary, promote or rollback.

    Args:
        action: One of `verifier.policy.rollout.ACTIONS`.
        policy: A policy's digest; `None` ends a shadow, or rolls back to what was before.
        permille: For a canary, its share.

    Raises:
        RequestError: not a step from where the rollout stands.
    """
    current = await rollout(tx)
    if current is None:
        raise RequestError("no policy is active yet: start the verifier first", code="policy.state")
    detail: dict[str, Any] = {}
    match action, policy:
        case "shadow", _:
            after = steps.shadow(current, policy)
            if policy is not None:
                await _count_anew(tx, policy)
        case "canary", str():
            after = steps.canary(current, policy, permille)
            detail["permille"] = permille
        case "promote", str():
            after = steps.promote(current, policy)
        case "rollback", str():
            after = steps.promote(current, policy)
        case "rollback", None:
            after = steps.rollback(current, await _before(tx, current.active))
        case _:
            raise RequestError(f"no step {action!r} without a policy")
    if action in ("canary", "promote"):
        detail["skipped"] = await _skipped(tx, action, policy or "")
    decides = (after.active, after.canary, after.permille) != (
        current.active,
        current.canary,
        current.permille,
    )
    subject = policy or (after.active if action == "rollback" else "")
    await note(tx, action, subject, who, now_ms, detail, to=after, decides=decides)
    now = await rollout(tx)
    assert now is not None
    return now


async def was_active(tx: Tx, digest: str) -> bool:
    """Whether a policy ever judged all nodes."""
    return await tx.one("SELECT 1 AS one FROM changes WHERE active = ? LIMIT 1", digest) is not None


async def _before(tx: Tx, active: str) -> str | None:
    """
    What was active before *active* was promoted the last time.

    Found by walking back over the promotions, so that rolling back twice goes back twice.
    """
    stack: list[str] = []
    for row in await tx.all("SELECT action, active FROM changes WHERE active IS NOT NULL ORDER BY seq"):
        if stack and row["active"] == stack[-1]:
            continue
        if row["action"] == "rollback" and row["active"] in stack:
            while stack[-1] != row["active"]:
                stack.pop()
        else:
            stack.append(row["active"])
    return stack[-2] if len(stack) > 1 and stack[-1] == active else None


async def _skipped(tx: Tx, action: str, policy: str) -> list[str]:
    """The careful steps that were left out on the way."""
    rows = await tx.all("SELECT DISTINCT action FROM changes WHERE subject = ?", policy)
    taken = {row["action"] for row in rows}
    careful = ("trial", "shadow") if action == "canary" else ("trial", "shadow", "canary")
    return [name for name in careful if name not in taken]


async def _count_anew(tx: Tx, policy: str) -> None:
    await tx.execute("DELETE FROM shadow_differences WHERE policy = ?", policy)
    await tx.execute(
        "INSERT INTO shadow_counts (policy, appraised, differing, failed, skipped) VALUES (?, 0, 0, 0, 0)"
        " ON CONFLICT (policy) DO UPDATE SET appraised = 0, differing = 0, failed = 0, skipped = 0",
        policy,
    )


async def history(tx: Tx, before: int, limit: int) -> list[Row]:
    """Changes, the newest first, below number *before*."""
    return await tx.all("SELECT * FROM changes WHERE seq < ? ORDER BY seq DESC LIMIT ?", before, limit)


async def blocks(tx: Tx) -> Blocks:
    """What is blocked now."""
    found: dict[str, set[str]] = {"digest": set(), "engine-version": set(), "device": set()}
    for row in await tx.all("SELECT kind, value FROM blocks WHERE lifted_ms IS NULL"):
        found[row["kind"]].add(row["value"])
    return Blocks(*(frozenset(found[kind]) for kind in ("digest", "engine-version", "device")))


async def live_blocks(tx: Tx) -> list[Row]:
    """What is blocked now, with ids."""
    return await tx.all("SELECT id, kind, value, added_ms FROM blocks WHERE lifted_ms IS NULL ORDER BY id")


async def block(tx: Tx, kind: str, value: str, who: Who, now_ms: int) -> str:
    """
    Block a digest, an engine's version or a device; returns the block's id, also where it was blocked before.

    Raises:
        RequestError: not of the kind's form.
    """
    value = check_block(kind, value)
    known = await tx.one(
        "SELECT id FROM blocks WHERE kind = ? AND value = ? AND lifted_ms IS NULL", kind, value
    )
    if known is not None:
        return str(known["id"])
    block_id = f"{now_ms:012x}{secrets.token_hex(4)}"
    await tx.execute(
        "INSERT INTO blocks (id, kind, value, added_ms) VALUES (?, ?, ?, ?)", block_id, kind, value, now_ms
    )
    await note(tx, "block", block_id, who, now_ms, {"kind": kind, "value": value}, decides=True)
    return block_id


async def unblock(tx: Tx, block_id: str, who: Who, now_ms: int) -> None:
    """Lift a block.  Raises `RequestError` where there is none."""
    row = await tx.one(
        "UPDATE blocks SET lifted_ms = ? WHERE id = ? AND lifted_ms IS NULL RETURNING kind, value",
        now_ms,
        block_id,
    )
    if row is None:
        raise RequestError(f"no block {block_id[:40]!r} that could be lifted", code="request.not-found")
    await note(tx, "unblock", block_id, who, now_ms, dict(row), decides=True)


def check_block(kind: str, value: str) -> str:
    """
    What a block names, in its one form.

    Raises:
        RequestError: not of the kind's form.
    """
    value = value.strip()
    if kind == "digest":
        value = value.lower().removeprefix("sha256:").removeprefix("blake3:")
        if len(value) != 64 or set(value) - set("0123456789abcdef"):
            raise RequestError("a digest to block has 64 hexadecimal digits")
    elif kind == "engine-version":
        engine, at, version = value.partition("@")
        if not (engine and at and version):
            raise RequestError("an engine's version to block is written ENGINE@VERSION")
    elif kind != "device":
        raise RequestError(f"a block is of a digest, an engine-version or a device, not of {kind[:40]!r}")
    if not value or len(value) > 256 or not value.isprintable():
        raise RequestError("what is to be blocked has 1 to 256 printable characters")
    return value
