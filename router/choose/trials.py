"""
What a decision does with its first place: how often it goes to a node that is tried, and to which.  Pure.

Nodes on probation are tried so that evidence about them arises.  Evidence that is spread over many nodes proves none,
so that few are tried at a time: those that have *begun* have some good work to their name.  Where `FOCUS` of them
have begun, they are finished before another begins.  Who may begin is drawn among nodes, whosever they are: a name
is nothing that a node could have more of.  But while others wait, no operator has more than half of the focus.
There are twice as many trials while more nodes wait than the focus holds, however many they are.
Who is on probation for another reason than little evidence is tried now and then: time heals a bad hour, and more
work does not soon prove a node that fails often.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from router.choose.candidates import LANES, Lane
from router.model.standing import LITTLE_EVIDENCE, Rating
from router.model.workload import Workload

FOCUS: Final = 64
"""So many nodes on probation have begun before all trials go to them."""
IN_TURN: Final = 4
"""Of so many nodes that begin, one is drawn among all that are new; the others among the `FOCUS` that came first."""
_OTHERS: Final = 16
"""One trial in so many is of any node on probation."""
SCALE: Final = 1000 * FOCUS * _OTHERS
"""Chances of the first place are in parts of this."""
_BEGUN: Final = 0.2
"""The completion from which a node has begun: one answer without a failure has 0.27."""
_MOST_EVIDENCE: Final = 80.0
"""Who is not proven by so many requests has failed at more than one, which weighs three: it leaves the focus to others."""
_BACKLOG: Final = 2
"""How many times as many trials there are while more nodes wait to begin than the focus holds."""
_YOUNG_POOL: Final = 3
_YOUNG_POOL_PER_MILLE: Final = 250
"""How many decisions in a thousand try a node on probation while fewer than three are established."""


class Stage(StrEnum):
    """How far a node has come that is on probation because little is known of it."""

    NEW = "new"
    BEGUN = "begun"


STAGES: Final = tuple(Stage)


class First(StrEnum):
    """How the first place is filled."""

    MAIN = "main"
    """From the first lane that has nodes, as all other places are."""
    FOCUS = "focus"
    """A trial of a node that has begun."""
    BEGINNING = "beginning"
    """A trial of a node that is new."""
    ANY = "any"
    """A trial of any node on probation."""
    RECOVERY = "recovery"
    """A trial of a degraded node."""


def stage_of(rating: Rating) -> Stage | None:
    """The stage of a node on probation; `None` if more work would not soon prove it."""
    if rating.why != LITTLE_EVIDENCE or rating.evidence >= _MOST_EVIDENCE:
        return None
    return Stage.BEGUN if rating.completion >= _BEGUN else Stage.NEW


def is_main(number: int, workload: Workload) -> bool:
    """Whether a number below `SCALE` fills the first place as all others, whatever the lanes: most do."""
    probation = max(_BACKLOG * workload.probation_per_mille, _YOUNG_POOL_PER_MILLE)
    return number >= (probation + workload.degraded_per_mille) * FOCUS * _OTHERS


def find_main(sizes: Mapping[Lane, int]) -> Lane | None:
    """The first lane that has nodes."""
    return next((lane for lane in LANES if sizes[lane]), None)


def find_chances(sizes: Mapping[Lane, int], new: int, begun: int, workload: Workload) -> dict[First, int]:
    """
    How often the first place is filled in which way, in parts of `SCALE`; in the order of the numbers drawn.

    Args:
        sizes: How many nodes are in each lane.
        new: How many of those on probation are new.
        begun: How many of them have begun.
        workload: Says how often others than the established are tried.
    """
    chances = dict.fromkeys(First, 0)
    probation, degraded = workload.probation_per_mille, workload.degraded_per_mille
    if probation and 0 < sizes[Lane.ESTABLISHED] < _YOUNG_POOL:
        probation = max(probation, _YOUNG_POOL_PER_MILLE)
    if new > FOCUS:
        # Both together may be more than all.
        probation = min(_BACKLOG * probation, max(probation, 1000 - degraded))
    main = find_main(sizes)
    if sizes[Lane.PROBATION] and main is not Lane.PROBATION:
        trials = probation * FOCUS * _OTHERS
        if new or begun:
            staged = trials - (probation * FOCUS if new + begun < sizes[Lane.PROBATION] else 0)
            in_focus = min(begun, FOCUS) if new else FOCUS
            chances[First.FOCUS] = staged // FOCUS * in_focus
            chances[First.BEGINNING] = staged // FOCUS * (FOCUS - in_focus)
        chances[First.ANY] = trials - chances[First.FOCUS] - chances[First.BEGINNING]
    if sizes[Lane.DEGRADED] and main is not Lane.DEGRADED:
        # Both together may be more than all while hardly any node is established.
        chances[First.RECOVERY] = min(degraded, 1000 - probation) * FOCUS * _OTHERS
    chances[First.MAIN] = SCALE - sum(chances.values())
    return chances
