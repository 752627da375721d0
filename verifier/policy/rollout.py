"""
Which policy judges which node: active, canary and shadow.  Pure.

    published ─▶ trial ─▶ shadow ─▶ canary ─▶ active      any step may be left out, and is said to be
        ◀──────────────── rollback ────────────┘           at any point, in one call

A canary judges a share of the nodes, the same ones each time: by the digest of a node's id,
so that a larger share only adds nodes.  A shadow judges nobody: it is asked beside, and
what would differ is counted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from verifier.errors import RequestError

ACTIONS: Final = ("shadow", "canary", "promote", "rollback")


@dataclass(frozen=True)
class Rollout:
    """The rollout as it stands, by digests of policies."""

    active: str
    shadow: str | None = None
    canary: str | None = None
    permille: int = 0
    """Share of the nodes under the canary, thousandths."""
    generation: int = 0
    """The newest change that results depend on."""

    def policy_for(self, node_id: str) -> str:
        """The policy that judges a node."""
        if self.canary is not None and bucket(node_id) < self.permille:
            return self.canary
        return self.active


def bucket(node_id: str) -> int:
    """A node's place among the canaries, 0 to 999: the lower, the earlier."""
    digest = hashlib.sha256(b"touchstone/canary/1" + node_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000


def shadow(rollout: Rollout, policy: str | None) -> Rollout:
    """Ask *policy* beside the others, or nobody."""
    _refuse_active(rollout, policy)
    if policy is None and rollout.shadow is None:
        raise RequestError("no policy is asked beside the others", code="policy.state")
    return replace(rollout, shadow=policy)


def canary(rollout: Rollout, policy: str, permille: int) -> Rollout:
    """Let *policy* judge a share of the nodes."""
    _refuse_active(rollout, policy)
    if not 1 <= permille <= 1000:
        raise RequestError("the share of a canary is between 1 and 1000 thousandths")
    return replace(rollout, canary=policy, permille=permille, shadow=_unless(rollout.shadow, policy))


def promote(rollout: Rollout, policy: str) -> Rollout:
    """Let *policy* judge all nodes; a canary ends with it."""
    _refuse_active(rollout, policy)
    return replace(rollout, active=policy, canary=None, permille=0, shadow=_unless(rollout.shadow, policy))


def rollback(rollout: Rollout, before: str | None) -> Rollout:
    """
    End the canary; where there is none, go back to the policy that was active *before*.

    Raises:
        RequestError: there is no canary, and nothing was active before.
    """
    if rollout.canary is not None:
        return replace(rollout, canary=None, permille=0)
    if before is None:
        raise RequestError("no other policy was active before this one", code="policy.state")
    return replace(rollout, active=before, shadow=_unless(rollout.shadow, before))


def _unless(policy: str | None, other: str) -> str | None:
    return None if policy == other else policy


def _refuse_active(rollout: Rollout, policy: str | None) -> None:
    if policy == rollout.active:
        raise RequestError("the policy is active already", code="policy.state")
