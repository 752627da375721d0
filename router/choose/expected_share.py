"""
How much of a workload's work a node can expect, by a formula that anyone can compute again.  Pure.

    share = Σ over the ways in which the first place is filled: chance of the way × chance of the node in it

    of two drawn among n nodes:        (2 · worse + alike) ÷ (n · (n − 1)); 1 if n is 1
    of two of different operators      2 ÷ (m · k) × the mean over the m − 1 others of (worse + alike ÷ 2) ÷ nodes
    (nothing is proven):               for one of the k nodes of an operator
    to begin, among n new ones:        3/4 ÷ w if fewer than w came before, w = min(n, 16), and 1/4 ÷ n

It is the share of *first* places: what fails there is tried elsewhere.  It says nothing of what is under way, of
limits by operator, and of the half of the focus that an operator may have.  docs/incentives.md explains it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from msgspec import Struct, structs

from router.choose.candidates import Lane
from router.choose.ranking import UNPROVEN, Ranked, compare
from router.choose.trials import FOCUS, IN_TURN, SCALE, First, Stage, find_chances, find_main
from router.model.workload import Workload


class Member(Struct, frozen=True):
    """A node where it stands."""

    ranked: Ranked
    """With its score while nothing is under way."""
    stage: Stage | None = None
    is_average: bool = False
    """Whether it is taken to be like all others, because its latency was never measured."""

    @property
    def lane(self) -> Lane:
        """Its lane."""
        return self.ranked.lane


class Crowd(Struct, frozen=True):
    """The others that may do the work."""

    sizes: Mapping[Lane, int]
    """How many others are in each lane."""
    stages: Mapping[Stage, int]
    """How many others are on probation because little is known of them."""
    members: Mapping[Lane, Sequence[Member]]
    """Of each lane, all others, or some of them that stand for all."""
    begun: Sequence[Member] = ()
    """Likewise of those that have begun."""
    came_before: int = 0
    """How many of the new ones came before the node."""


class Way(Struct, frozen=True):
    """One way in which the first place is filled, and the node's part in it: the inputs of the formula."""

    how: First
    chance: float
    """How often the first place is filled so."""
    among: int
    """Nodes of which it is drawn, this one among them."""
    compared: int
    """Others that it was compared with: all, or some that stand for all."""
    worse: int
    alike: int
    better: int
    part: float
    """How often it is this node then."""


class Expected(Struct, frozen=True):
    """The expected share, and what it rests on."""

    share: float
    ways: tuple[Way, ...]


def expect_share(node: Member, crowd: Crowd, workload: Workload) -> Expected:
    """The share of first places that a node can expect."""
    sizes = {lane: count + (lane is node.lane) for lane, count in crowd.sizes.items()}
    new, begun = (crowd.stages[stage] + (stage is node.stage) for stage in (Stage.NEW, Stage.BEGUN))
    chances = find_chances(sizes, new, begun, workload)
    others, count = crowd.members[node.lane], crowd.sizes[node.lane]
    ways = []
    if node.lane is find_main(sizes):
        ways.append(_pair(node, others, count, First.MAIN, by_operator=node.lane in UNPROVEN))
    if node.lane is Lane.PROBATION:
        ways.append(_pair(node, others, count, First.ANY))
        if node.stage is Stage.BEGUN:
            ways.append(_pair(node, crowd.begun, crowd.stages[Stage.BEGUN], First.FOCUS))
        elif node.stage is Stage.NEW:
            ways.append(_begin(new, crowd.came_before))
    elif node.lane is Lane.DEGRADED:
        ways.append(_pair(node, others, count, First.RECOVERY))
    found = [structs.replace(way, chance=chances[way.how] / SCALE) for way in ways if chances[way.how]]
    return Expected(sum(way.chance * way.part for way in found), tuple(found))


def _pair(
    node: Member, others: Sequence[Member], count: int, how: First, *, by_operator: bool = False
) -> Way:
    """Of two that are drawn, the better; *others* are all *count* others, or stand for them."""
    among = 1 + count
    wins = [0 if node.is_average else compare(node.ranked, other.ranked) for other in others]
    if not others:
        part = 1.0 if among == 1 else 0.0
    elif by_operator and any(m.ranked.operator != node.ranked.operator for m in others):
        part = _part_by_operator(node, others, wins)
    else:
        part = 2 / among * sum((1 + win) / 2 for win in wins) / len(wins)
    return Way(
        how=how,
        chance=0.0,
        among=among,
        compared=len(wins),
        worse=wins.count(1),
        alike=wins.count(0),
        better=wins.count(-1),
        part=part,
    )


def _part_by_operator(node: Member, others: Sequence[Member], wins: Sequence[int]) -> float:
    by_operator: dict[str, list[float]] = defaultdict(list)
    for other, win in zip(others, wins, strict=True):
        by_operator[other.ranked.operator].append((1 + win) / 2)
    own = 1 + len(by_operator.pop(node.ranked.operator, []))
    mean = sum(sum(of) / len(of) for of in by_operator.values()) / len(by_operator)
    return 2 / ((1 + len(by_operator)) * own) * mean


def _begin(new: int, came_before: int) -> Way:
    waiting = min(FOCUS, new)
    in_turn = (1 - 1 / IN_TURN) / waiting if came_before < waiting else 0.0
    return Way(
        how=First.BEGINNING,
        chance=0.0,
        among=new,
        compared=new - 1,
        worse=new - 1 - came_before,
        alike=0,
        better=came_before,
        part=in_turn + 1 / IN_TURN / new,
    )
