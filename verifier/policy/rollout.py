"""
Which policy judges which node: active, canary and shadow.  Pure.

    published ─▶ trial ─▶ shadow ─▶ canary ─▶ active      any step may be skipped; the change says which
        ◀──────────────── rollback ────────────┘           from any step, in one call

A canary judges a share of the nodes.  The digest of a node's id decides whether it is one of
them, so they are always the same nodes, and a larger share only adds nodes.  A shadow judges
nobody: it is evaluated beside the other policies, and differences are counted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from verifier.errors import RequestError

ACTIONS: Final = ("shadow", "canary", "promote", "rollback")


@dataclass(frozen=True)
class Rollout:
    """The state of the rollout, with policies by their digests."""

    active: str
    shadow: str | None = None
    canary: str | None = None
    permille: int = 0
    """The share of nodes that the canary judges, in thousandths."""
    generation: int = 0
    """The number of the newest change that results depend on."""

    def policy_for(self, node_id: str) -> str:
        """The policy that judges a node."""
        if self.canary is not None and bucket(node_id) < self.permille:
            return self.canary
        return self.active


def bucket(node_id: str) -> int:
    """A node's number, 0 to 999: a canary judges the nodes whose number is below its share in thousandths."""
    digest = hashlib.sha256(b"touchstone/canary/1" + node_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000


def shadow(rollout: Rollout, policy: str | None) -> Rollout:
    """Make *policy* the shadow, or end the shadow if it is `None`."""
    _refuse_active(rollout, policy)
    if policy is None and rollout.shadow is None:
        raise RequestError("there is no shadow to end", code="policy.state")
    return replace(rollout, shadow=policy)


def canary(rollout: Rollout, policy: str, permille: int) -> Rollout:
    """Make *policy* the canary, for a share of the nodes."""
    _refuse_active(rollout, policy)
    if not 1 <= permille <= 1000:
        raise RequestError("the share of a canary must be between 1 and 1000 thousandths")
    return replace(rollout, canary=policy, permille=permille, shadow=_unless(rollout.shadow, policy))


def promote(rollout: Rollout, policy: str) -> Rollout:
    """Make *policy* the active one, which ends the canary."""
    _refuse_active(rollout, policy)
    return replace(rollout, active=policy, canary=None, permille=0, shadow=_unless(rollout.shadow, policy))


def rollback(rollout: Rollout, previous: str | None) -> Rollout:
    """
    End the canary, or if there is none make *previous* active again.

    Args:
        previous: The policy that was active before the present one.

    Raises:
        RequestError: there is no canary and no previous policy.
    """
    if rollout.canary is not None:
        return replace(rollout, canary=None, permille=0)
    if previous is None:
        raise RequestError(
            "no other policy was active before this one, so there is nothing to go back to",
            code="policy.state",
        )
    return replace(rollout, active=previous, shadow=_unless(rollout.shadow, previous))


def _unless(policy: str | None, other: str) -> str | None:
    return None if policy == other else policy


def _refuse_active(rollout: Rollout, policy: str | None) -> None:
    if policy == rollout.active:
        raise RequestError("the policy is active already", code="policy.state")
