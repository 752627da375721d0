"""
The order inside the eligible set: pure, seeded, replayable.

Tiers first (established, on probation, degraded), never terms of a sum.  Inside a tier,
power of two choices on the expected seconds of a *successful* answer
(Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from router.snapshot import NodeView, Snapshot
from router.standing import DEGRADED_LOWER, DEGRADED_MIN, ESTABLISHED_LOWER, UNKNOWN_LATENCY_S
from router.workload import Workload

PROBATION_SHARE: Final = 0.1
"""Of decisions, how many try a node on probation first, so that evidence can come to be."""
_UNKNOWN_COMPLETION: Final = 0.05


class Tier(StrEnum):
    """Where a node stands for a model."""

    ESTABLISHED = "established"
    PROBATION = "probation"
    DEGRADED = "degraded"


@dataclass(frozen=True)
class Ranked:
    """A node in its place, with every term of its score."""

    node: str
    tier: Tier
    score: float
    """Expected seconds of a successful answer; less is better."""
    completion: float
    latency_s: float
    in_flight: int
    evidence: float


def rate(node: NodeView, workload: Workload, snapshot: Snapshot) -> Ranked:
    """A node's tier and score, by what the router has seen."""
    standing, now = snapshot.standing(node.node, workload.model), snapshot.monotonic
    completion, evidence = standing.completion(now), standing.evidence(now)
    if evidence >= DEGRADED_MIN and completion < DEGRADED_LOWER:
        tier = Tier.DEGRADED
    elif completion >= ESTABLISHED_LOWER:
        tier = Tier.ESTABLISHED
    else:
        tier = Tier.PROBATION
    latency = UNKNOWN_LATENCY_S if standing.latency_s is None else standing.latency_s
    score = latency * (standing.in_flight + 1) / max(completion, _UNKNOWN_COMPLETION)
    return Ranked(node.node, tier, score, completion, latency, standing.in_flight, evidence)


def rank(nodes: Sequence[NodeView], workload: Workload, snapshot: Snapshot, seed: int) -> tuple[Ranked, ...]:
    """
    The eligible nodes in the order in which they are to be tried.

    The order of *nodes* does not matter: they are put into one before the seed has a say.
    """
    rng = random.Random(seed)
    by_tier: dict[Tier, list[Ranked]] = {tier: [] for tier in Tier}
    for node in sorted(nodes, key=lambda view: view.node):
        rated = rate(node, workload, snapshot)
        by_tier[rated.tier].append(rated)
    order = list(Tier)
    probe = rng.random() < PROBATION_SHARE
    if probe and by_tier[Tier.ESTABLISHED] and by_tier[Tier.PROBATION]:
        order = [Tier.PROBATION, Tier.ESTABLISHED, Tier.DEGRADED]
    return tuple(ranked for tier in order for ranked in _two_choices(by_tier[tier], rng))


def _two_choices(pool: list[Ranked], rng: random.Random) -> list[Ranked]:
    """Draw two, take the better, until none is left."""
    left, taken = list(pool), []
    while left:
        pair = rng.sample(range(len(left)), min(2, len(left)))
        best = min(pair, key=lambda index: (left[index].score, index))
        taken.append(left.pop(best))
    return taken
