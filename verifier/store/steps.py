"""The steps of a rollout, with the reference values that come and go with its policies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from verifier.errors import RequestError
from verifier.incident_rules import is_another_person
from verifier.policy.bundle import Bundle
from verifier.policy.rollout import Rollout
from verifier.references.measured import Document
from verifier.store import model_rollouts, policies, references
from verifier.store.database import Tx
from verifier.store.policies import ChangeAuthor


async def take_step(
    tx: Tx,
    action: str,
    name: str | None,
    author: ChangeAuthor,
    now_ms: int,
    *,
    load: Callable[[Tx, str], Awaitable[Bundle]],
    grace_ms: int,
    permille: int = 0,
    two_person: bool = False,
    anyway: bool = False,
) -> Rollout:
    """
    Take a step: shadow, canary, promote or rollback.

    Args:
        action: One of `verifier.policy.rollout.ACTIONS`.
        name: The policy; `None` ends a shadow, or rolls back to the policy that was active earlier.
        load: Loads a policy by its digest.
        grace_ms: How long reference values that go with a policy are only a warning.
        permille: For a canary, its share of the nodes in thousandths.
        two_person: Whether a policy judges nodes only by the word of another person than the one who published it.
        anyway: Whether a policy may judge nodes though it failed in its newest trial, or as the shadow.

    Raises:
        RequestError: There is no such policy, the rollout does not allow this step now, the policy has failed,
            or it brings a reference value of a model that is rolled out.
        ReferenceValueError: The policy brings a reference value that was retired.
        PolicyError: A policy cannot be loaded.
    """
    digest = None if name is None else str((await policies.find(tx, name))["digest"])
    if action == "rollback" and digest is not None and not await policies.was_active(tx, digest):
        raise RequestError(f"{name} was never active. Promote it", code="policy.state")
    if two_person and digest is not None and action in ("canary", "promote"):
        await _require_another(tx, digest, author)
    despite = (
        [] if digest is None or action not in ("canary", "promote") else await policies.failures(tx, digest)
    )
    if despite and not anyway:
        raise RequestError(
            f"{name} has failed: {'; '.join(despite)}. The nodes concerned would get no result that a router accepts. "
            "Mend the policy, or say that it is to judge them anyway",
            code="policy.state",
        )
    before = await policies.rollout(tx)
    after = await policies.move(tx, action, digest, author, now_ms, permille=permille, despite=despite)
    earlier = set() if before is None else {before.active, before.canary}
    later = {after.active, after.canary}

    async def brought_by(which: set[str | None]) -> list[Document]:
        return [d for policy in which if policy is not None for d in (await load(tx, policy)).documents]

    leaving, coming = await brought_by(earlier - later), await brought_by(later - earlier)
    if action != "rollback":
        # A rollback must not wait: under it, both revisions of a roll-out are a warning.
        for document in coming:
            await model_rollouts.check_none(tx, document.model)
    await _change_reference_values(tx, leaving, coming, now_ms, grace_ms)
    return after


async def _require_another(tx: Tx, digest: str, author: ChangeAuthor) -> None:
    publisher = await policies.publisher(tx, digest)
    if publisher is not None and not is_another_person(author.actor, publisher):
        raise RequestError(
            f"{publisher} has published this policy, so another credential must put it in force",
            code="request.forbidden",
        )


async def _change_reference_values(
    tx: Tx, leaving: list[Document], coming: list[Document], now_ms: int, grace_ms: int
) -> None:
    """
    Put the reference values in force that come with a policy, and supersede those that go with one.

    The age of a value that comes counts from now: challenges can be minted from it, and a mistake in it
    quarantines nobody (`verifier.incidents`).  A value that goes or is replaced is a warning for a while,
    because nodes that followed it are not at fault.
    """
    for document in coming:
        await references.add_with_policy(tx, document, now_ms, grace_ms)
    brought = {document.model: document.digest for document in coming}
    for document in leaving:
        if brought.get(document.model) == document.digest:
            continue
        restores = document.model not in brought
        await references.supersede_with_policy(tx, document, now_ms, grace_ms, restores=restores)
