"""What is logged of the changes that people make: to policies, reference values, blocks, routers, and the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from verifier.store import log
from verifier.store.database import Tx

_POLICIES: Final[Mapping[str, str]] = {
    "publish": "published",
    "trial": "tried",
    "shadow": "shadow",
    "canary": "canary",
    "promote": "promoted",
    "rollback": "rolled-back",
}
"""By action of a change, what it is called in the log."""
_REFERENCE: Final = "reference-"
_ROLLOUT: Final = "rollout-"
_BLOCKS: Final[Mapping[str, str]] = {"block": "blocked", "unblock": "lifted"}


async def write(
    tx: Tx, now_ms: int, action: str, subject: str, actor: str, detail: Mapping[str, Any]
) -> None:
    """
    Log a change (`verifier.store.policies.note`), in its transaction.

    Args:
        subject: A digest, or an id.
        detail: What is stored with the change; texts of people stay out of the log.
    """
    who = log.clip(actor)
    if action in _POLICIES:
        await log.append(tx, now_ms, "policy", await _of_policy(tx, action, subject, who, detail))
    elif action.startswith((_REFERENCE, _ROLLOUT)):
        await log.append(tx, now_ms, "reference", await _of_reference(tx, action, subject, who, detail))
    elif action in _BLOCKS:
        found = {"what": detail["kind"], "value": detail["value"]}
        await log.append(
            tx, now_ms, "block", {"change": _BLOCKS[action], "id": subject, "actor": who, **found}
        )
    elif action == "remove-router":
        found = {"change": "removed", "router": log.clip(detail["name"]), "spki_sha256": subject}
        await log.append(tx, now_ms, "router", {**found, "actor": who})
    else:
        # A restore; whatever is added later is logged all the same.
        numbers = {name: value for name, value in detail.items() if isinstance(value, int)}
        await log.append(
            tx, now_ms, "database", {**numbers, "change": action, "subject": subject, "actor": who}
        )


async def _of_policy(
    tx: Tx, action: str, digest: str, actor: str, detail: Mapping[str, Any]
) -> dict[str, log.Value]:
    entry: dict[str, log.Value] = {"change": _POLICIES[action], "digest": digest, "actor": actor}
    known = await tx.one("SELECT id FROM policies WHERE digest = ?", digest)
    if known is not None:
        entry["id"] = known["id"]
    for name in ("permille", "signer"):
        if isinstance(value := detail.get(name), int | str):
            entry[name] = value
    return entry


async def _of_reference(
    tx: Tx, action: str, digest: str, actor: str, detail: Mapping[str, Any]
) -> dict[str, log.Value]:
    change = action.removeprefix(_REFERENCE)
    entry: dict[str, log.Value] = {"change": change, "digest": digest, "actor": actor}
    known = await tx.one("SELECT model, source, signer FROM reference_values WHERE digest = ?", digest)
    # What the change names counts; of a value that waits, the row may have another source.
    found = {**({} if known is None else known), **detail}
    for name in ("model", "source", "signer", "from"):
        if isinstance(value := found.get(name), str):
            entry[name] = log.clip(value)
    return entry


async def follow_policy(tx: Tx, now_ms: int, change: str, model: str, digest: str) -> None:
    """Log that a reference value came or went with a policy, whose own entry says by whom."""
    entry = {"change": change, "model": model, "digest": digest, "source": "bundle"}
    await log.append(tx, now_ms, "reference", entry)
