"""Published policies, and the changes of the rollout."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import msgspec
from msgspec import Struct

from verifier.errors import RequestError
from verifier.policy import rollout as steps
from verifier.policy.archive import write_archive
from verifier.policy.bundle import Bundle
from verifier.policy.rollout import Rollout
from verifier.store import change_entries, events
from verifier.store.database import Row, Tx

_MIN_PREFIX: Final = 6
_LAST_NUMBER: Final = re.compile(r"(.*?)([0-9]{1,18})([^0-9]*)")


@dataclass(frozen=True)
class ChangeAuthor:
    """The person who makes a change, and the reason.  Both are stored with the change."""

    actor: str
    reason: str

    def __post_init__(self) -> None:
        """Raise `RequestError` if the actor or the reason is blank."""
        if not self.actor.strip() or not self.reason.strip():
            raise RequestError("a change needs the name of the person who makes it, and a reason")


class _TrialDetail(Struct, frozen=True):
    """What is kept of a trial, as far as it decides whether its policy may judge nodes."""

    appraisals: int = 0
    failures: int = 0
    failed_sample: dict[str, Any] | None = None


async def publish(
    tx: Tx, bundle: Bundle, envelope: bytes, signer: str, author: ChangeAuthor, now_ms: int
) -> bool:
    """
    Store a bundle for ever.

    The caller must have verified its signature, and it must have passed every check of `verifier.policy.admission`.

    Returns:
        False if it is known already.

    Raises:
        RequestError: Another policy has its name and version.
    """
    await _require_unused(tx, bundle)
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
        await note(tx, "publish", bundle.digest, author, now_ms, {"id": bundle.id, "signer": signer})
    return changed > 0


async def _require_unused(tx: Tx, bundle: Bundle) -> None:
    """
    Raise `RequestError` if another policy has this name and version.

    Databases of earlier versions may have two of one name and version, so that no index can hold it.  The number
    of the change that follows lets only one of two publications at once through.
    """
    name, version = bundle.manifest.name, bundle.manifest.version
    known = await versions(tx, name)
    taken = set(known.values())
    if bundle.digest not in known and version in taken:
        raise RequestError(
            f"{name}@{version} is another policy already. A version is never changed: write"
            f' "version": "{next_version(version, taken)}" into bundle.json',
            code="policy.version",
        )


async def versions(tx: Tx, name: str) -> dict[str, str]:
    """Give the versions of the policies of a name, by their digests."""
    rows = await tx.all("SELECT digest, version FROM policies WHERE name = ?", name)
    return {row["digest"]: row["version"] for row in rows}


def next_version(version: str, taken: Collection[str]) -> str:
    """Give the first version after *version* that is not taken: its last number counted on, or one added to it."""
    found = _LAST_NUMBER.fullmatch(version)
    head, number, tail = (f"{version}.", "0", "") if found is None else found.groups()
    for following in count(int(number) + 1):
        if (named := f"{head}{following}{tail}") not in taken:
            return named
    raise AssertionError


async def publisher(tx: Tx, digest: str) -> str | None:
    """Give the name of who published a policy; `None` for one of a database of the first versions."""
    row = await tx.one("SELECT actor FROM changes WHERE action = 'publish' AND subject = ? LIMIT 1", digest)
    return None if row is None else str(row["actor"])


async def find(tx: Tx, name: str) -> Row:
    """
    Give a policy by its digest, by the first digits of the digest, by its id, or by NAME@VERSION.

    Raises:
        RequestError: There is no such policy, or more than one.
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
        what = "more than one policy is named" if rows else "there is no policy"
        raise RequestError(
            f"{what} {name[:100]!r}: write NAME@VERSION, or the first digits of its digest",
            code="request.not-found",
        )
    return rows[0]


async def every(tx: Tx) -> list[Row]:
    """Give all policies, the newest first, without their archives."""
    return await tx.all(
        "SELECT digest, id, name, version, author, description, signer, added_ms FROM policies"
        " ORDER BY added_ms DESC, digest"
    )


async def rollout(tx: Tx) -> Rollout | None:
    """Give the rollout as it stands; `None` if no policy was ever activated."""
    row = await tx.one(
        "SELECT active, shadow, canary, permille, generation FROM changes ORDER BY seq DESC LIMIT 1"
    )
    return None if row is None or row["active"] is None else Rollout(**row)


async def note(
    tx: Tx,
    action: str,
    subject: str,
    author: ChangeAuthor,
    now_ms: int,
    detail: Mapping[str, Any] | None = None,
    *,
    to: Rollout | None = None,
    decides: bool = False,
) -> int:
    """
    Store a change.

    Args:
        to: The rollout after the change, if it changes the rollout.
        decides: Whether results depend on the change.  If they do, live results are appraised again.

    Returns:
        The number of the change.
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
        author.actor,
        author.reason,
        action,
        subject,
        msgspec.json.encode(detail or {}).decode(),
        state["generation"],
        state["active"],
        state["shadow"],
        state["canary"],
        state["permille"],
    )
    await change_entries.write(tx, now_ms, action, subject, author.actor, detail or {})
    await events.append(tx, now_ms, "change", {"seq": seq, "action": action, "subject": subject})
    return seq


async def activate_first(tx: Tx, bundle: Bundle, author: ChangeAuthor, now_ms: int) -> Rollout:
    """Make a policy active if none is active yet."""
    current = await rollout(tx)
    if current is None:
        await note(tx, "promote", bundle.digest, author, now_ms, to=Rollout(bundle.digest), decides=True)
        current = await rollout(tx)
    assert current is not None
    return current


async def move(
    tx: Tx,
    action: str,
    policy: str | None,
    author: ChangeAuthor,
    now_ms: int,
    *,
    permille: int = 0,
    despite: Sequence[str] = (),
) -> Rollout:
    """
    Take a step of the rollout: shadow, canary, promote or rollback.

    Args:
        action: One of `verifier.policy.rollout.ACTIONS`.
        policy: A policy's digest; `None` ends a shadow, or rolls back to the policy that was active earlier.
        permille: For a canary, its share of the nodes in thousandths.
        despite: What speaks against the step, and was not heeded.

    Raises:
        RequestError: The rollout does not allow this step now.
    """
    current = await rollout(tx)
    if current is None:
        raise RequestError("no policy is active yet. Start the verifier first", code="policy.state")
    detail: dict[str, Any] = {}
    match action, policy:
        case "shadow", _:
            after = steps.shadow(current, policy)
            if policy is not None:
                await _reset_shadow_counts(tx, policy)
        case "canary", str():
            after = steps.canary(current, policy, permille)
            detail["permille"] = permille
        case "promote", str():
            after = steps.promote(current, policy)
        case "rollback", str():
            after = steps.promote(current, policy)
        case "rollback", None:
            after = steps.rollback(current, await _earlier_active(tx, current.active))
        case _:
            raise RequestError(f"no step {action!r} without a policy")
    if action in ("canary", "promote"):
        detail["skipped"] = await _skipped(tx, action, policy or "")
        if despite:
            detail["despite"] = list(despite)
    decides = (after.active, after.canary, after.permille) != (
        current.active,
        current.canary,
        current.permille,
    )
    subject = policy or (after.active if action == "rollback" else "")
    await note(tx, action, subject, author, now_ms, detail, to=after, decides=decides)
    now = await rollout(tx)
    assert now is not None
    return now


async def failures(tx: Tx, policy: str) -> list[str]:
    """Give how *policy* failed in its newest trial and as the shadow, as sentences; nothing if it did not."""
    found = []
    trial = await tx.one(
        "SELECT detail FROM changes WHERE subject = ? AND action = 'trial' ORDER BY seq DESC LIMIT 1", policy
    )
    if trial is not None:
        told = msgspec.json.decode(trial["detail"], type=_TrialDetail)
        if told.failures:
            found.append(f"on {told.failures} of {told.appraisals} appraisals in its newest trial")
        if told.failed_sample is not None:
            found.append("on an input that the contract allows, as its newest trial shows")
    shadow = await tx.one("SELECT appraised, failed FROM shadow_counts WHERE policy = ?", policy)
    if shadow is not None and shadow["failed"]:
        found.append(f"on {shadow['failed']} of {shadow['appraised']} appraisals as the shadow")
    return found


async def was_active(tx: Tx, digest: str) -> bool:
    """Whether a policy was ever the active one."""
    return await tx.one("SELECT 1 AS one FROM changes WHERE active = ? LIMIT 1", digest) is not None


async def _earlier_active(tx: Tx, active: str) -> str | None:
    """
    Give the policy that was active when *active* was last promoted.

    It is found by following the promotions and rollbacks in order, so that two rollbacks go back two policies.
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
    """Give the recommended steps that *policy* has not gone through."""
    rows = await tx.all("SELECT DISTINCT action FROM changes WHERE subject = ?", policy)
    taken = {row["action"] for row in rows}
    recommended = ("trial", "shadow") if action == "canary" else ("trial", "shadow", "canary")
    return [name for name in recommended if name not in taken]


async def _reset_shadow_counts(tx: Tx, policy: str) -> None:
    await tx.execute("DELETE FROM shadow_differences WHERE policy = ?", policy)
    await tx.execute(
        "INSERT INTO shadow_counts (policy, appraised, differing, failed, skipped) VALUES (?, 0, 0, 0, 0)"
        " ON CONFLICT (policy) DO UPDATE SET appraised = 0, differing = 0, failed = 0, skipped = 0",
        policy,
    )


async def history(tx: Tx, before: int, limit: int) -> list[Row]:
    """Give the changes with numbers below *before*, the newest first."""
    return await tx.all("SELECT * FROM changes WHERE seq < ? ORDER BY seq DESC LIMIT ?", before, limit)
