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
from router.standing import ESTABLISHED_LOWER, UNKNOWN_LATENCY_S
from router.workload import Workload

TRIAL_SHARE: Final = 0.1
"""Of decisions, how many try a node of a lesser tier first, so that evidence can come to be."""
_MAX_DRAWN: Final = 16
"""More are never tried; the rest of a tier follows by score alone."""
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
    now = snapshot.monotonic
    standing = snapshot.standing(node.node, workload.model).decayed_to(now)
    completion, evidence = standing.completion(now), standing.evidence(now)
    if standing.is_degraded(now):
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
    drawn = {tier: _two_choices(by_tier[tier], rng) for tier in Tier}
    first: list[Ranked] = []
    if rng.random() < TRIAL_SHARE and drawn[Tier.ESTABLISHED]:
        # One only: a crowd of newcomers must not stand between the work and those who do it.
        lesser = drawn[Tier.PROBATION] + drawn[Tier.DEGRADED]
        first = [lesser[rng.randrange(len(lesser))]] if lesser else []
    return (*first, *(ranked for tier in Tier for ranked in drawn[tier] if ranked not in first))


def _two_choices(pool: list[Ranked], rng: random.Random) -> list[Ranked]:
    """Draw two, take the better, again and again; the rest by score."""
    left = list(pool)
    taken: list[Ranked] = []
    while left and len(taken) < _MAX_DRAWN:
        pair = rng.sample(range(len(left)), min(2, len(left)))
        best = min(pair, key=lambda index: (left[index].score, index))
        # The last fills the gap: popping from the middle of a fleet would move all behind it.
        left[best], left[-1] = left[-1], left[best]
        taken.append(left.pop())
    return taken + sorted(left, key=lambda ranked: (ranked.score, ranked.node))
