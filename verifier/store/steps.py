"""A step of a policy's life, with what the policies bring along: reference values come and go with them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from verifier.errors import RequestError
from verifier.policy.bundle import Bundle
from verifier.policy.rollout import Rollout
from verifier.references.measured import Document
from verifier.store import policies, references
from verifier.store.database import Tx
from verifier.store.policies import Who


async def take(
    tx: Tx,
    action: str,
    name: str | None,
    who: Who,
    now_ms: int,
    *,
    load: Callable[[Tx, str], Awaitable[Bundle]],
    grace_ms: int,
    permille: int = 0,
) -> Rollout:
    """
    Shadow, canary, promote or rollback.

    Args:
        action: One of `verifier.policy.rollout.ACTIONS`.
        name: Which policy; `None` ends a shadow, or rolls back to what was before.
        load: A policy by its digest.
        grace_ms: How long reference values that leave with a policy are only a warning.
        permille: For a canary, its share.

    Raises:
        RequestError: no such policy, or not a step from where the rollout stands.
        ReferenceValueError: the policy brings a reference value that was retired.
        PolicyError: a policy cannot be loaded.
    """
    digest = None if name is None else str((await policies.find(tx, name))["digest"])
    if action == "rollback" and digest is not None and not await policies.was_active(tx, digest):
        raise RequestError(f"{name} was never active: promote it", code="policy.state")
    before = await policies.rollout(tx)
    after = await policies.move(tx, action, digest, who, now_ms, permille=permille)
    judged = set() if before is None else {before.active, before.canary}
    judges = {after.active, after.canary}

    async def brought_by(which: set[str | None]) -> list[Document]:
        return [d for policy in which if policy is not None for d in (await load(tx, policy)).documents]

    leaving, coming = await brought_by(judged - judges), await brought_by(judges - judged)
    await change_over(tx, leaving, coming, now_ms, grace_ms)
    return after


async def change_over(
    tx: Tx, leaving: list[Document], coming: list[Document], now_ms: int, grace_ms: int
) -> None:
    """
    Reference values come into force with a policy, and others go with one.

    What came into force is as if just added: challenges can be minted from it, and nobody is
    quarantined by a mistake in it (`verifier.incidents`).  What it replaces, or what goes, is a
    warning for a while: nodes that followed us are not at fault.
    """
    for document in coming:
        await references.announce(tx, document, now_ms, grace_ms)
    brought = {document.model: document.digest for document in coming}
    for document in leaving:
        if brought.get(document.model) == document.digest:
            continue
        await references.dismiss(tx, document, now_ms, grace_ms, again=document.model not in brought)
