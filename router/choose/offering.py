"""What a decision offers to somebody else who picks the node: all that may do the work, not three alone.  Pure."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from router.choose.candidates import LANES, Key, Lane
from router.choose.decision import Decision
from router.choose.ranking import Pool, score
from router.choose.seeded_random import SeededRandom

_OFFERED: Final = 0x0FFE_12ED
"""So that the draws of an offer are others than those of the ranking by the same seed."""


class OfferedNode(Struct, frozen=True, gc=False):
    """A node that may do the work."""

    node: str
    operator: str
    lane: Lane
    score: float
    """From 0 to 1, more is better: 1 / (1 + what it scores in a ranking, which is seconds)."""


def offer(pool: Pool, decision: Decision, most: int) -> list[OfferedNode]:
    """
    The nodes that a decision offers: those that it ranked, and all others of the first lane that has any.

    Nodes of later lanes are offered only if the decision ranked them.  Of a lane that is larger than *most*, nodes are
    drawn by the decision's seed.  An empty decision offers nothing.

    Args:
        pool: What the decision was drawn from, unchanged since.
        decision: It says who is offered at all.
        most: How many nodes to offer at most.
    """
    if not decision.ranked:
        return []
    keys = {(ranked.operator, ranked.node): ranked.lane for ranked in decision.ranked}
    first = next((lane for lane in LANES if pool.sizes[lane]), None)
    if first is not None:
        for key in _drawn(pool, first, decision.seed, most):
            keys.setdefault(key, first)
    usual = decision.usual_calls
    return [
        OfferedNode(
            node=node,
            operator=operator,
            lane=lane,
            score=1 / (1 + score((operator, node), lane, pool.facts(node), decision.workload, usual).score),
        )
        for (operator, node), lane in list(keys.items())[:most]
    ]


def _drawn(pool: Pool, lane: Lane, seed: int, most: int) -> list[Key]:
    """Up to *most* nodes of a lane; of more, a draw without replacement (Floyd, CACM 30 (1987) 754)."""
    index = pool.lanes[lane]
    size = len(index)
    if size <= most:
        return [index.at(position) for position in range(size)]
    random, places = SeededRandom(seed ^ _OFFERED), set[int]()
    for last in range(size - most, size):
        place = random.below(last + 1)
        places.add(last if place in places else place)
    return [index.at(position) for position in sorted(places)]
