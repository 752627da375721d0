"""
Watches how answers to minted prompts move over time, and says whose fault a shift is.  Pure.

Three things are watched of each check, each a yes or a no:

    differs   the answer differs beyond the tolerance (of those that agree or differ)
    parts     a greedy answer leaves the minted text somewhere, whether that counts or not
    far       the distance of its vectors or distributions is near the limit (`NEAR`)

Each has a score like `verifier.answers.sequence`: CUSUM (Page 1954) of log-likelihood ratios of a shifted rate to the usual
one.  The usual rate is an upper limit, measured or accepted by a person, and never learnt from the node itself: who moves
slowly, and who begins under a new version, is held against the same.

**One node.**  From the score 0 an alarm takes at least ``exp(NODE_LIMIT)`` checks, on average, if its rate is at most the
usual one (Lorden 1971).

**All nodes of an engine version.**  Each operator has one score there, of all its nodes together, so that an operator
counts once however many nodes and names of nodes it has.  The version has shifted if most of its operators, three at
least, are at `version_limit`, and most of its nodes are theirs.  At any moment the score of an honest operator is at b or
above with a probability of at most ``exp(-b)`` (Ville's inequality: of independent checks, the score is the maximum of
the walk, read backwards).  So the chance that j of m operators are there at once is at most the tail of a binomial
distribution.
`version_limit` is where that is one in three million, for each of the three.  `bench.drift` has both by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias

from verifier.answers import tables
from verifier.answers.checks import Given, Minted, Verdict
from verifier.answers.days import Counts, interval
from verifier.answers.judge import DISTRIBUTION
from verifier.answers.sequence import advance, increments
from verifier.answers.tables import Table
from verifier.incidents import BLAST_OPERATORS

Channel: TypeAlias = Literal["differs", "parts", "far"]
CHANNELS: Final[tuple[Channel, ...]] = ("differs", "parts", "far")
OF_NODES: Final[tuple[Channel, ...]] = ("parts", "far")
"""What is watched of a single node here: `differs` of a node is `verifier.store.answer_scores`."""
NEAR: Final = 0.7
"""A distance above this part of its limit is near it.  Honest ones were in 1 of 20 answers, at most (bench.drift)."""
USUAL_FAR: Final = 0.1
"""At most this share of honest distances is near the limit, whatever the engine."""
MOST_USUAL: Final = 0.9
"""No usual rate is higher: a shift must be seen."""
LEAST_USUAL: Final = 0.05
"""What a person accepts is no less: how many requests a node answers at a time moves it."""
DESIGN: Final = 0.3
"""The scores are best against a shift of the rate by this part of what it can rise."""
NODE_LIMIT: Final = math.log(2e6)
"""One false alarm in a million checks of a node, over both channels."""
VERSION_ALARMS: Final = 1e-6
"""The probability, at one check, that honest operators of a version are taken for a shift, over the three channels."""
LEAST_LIMIT: Final = math.log(100)
"""However many operators there are, the score of each must show something."""
HIGHEST: Final = 20.0
"""No score is higher, so that answers as usual bring it down within bounded time."""
LEAST_CHECKS: Final = 20
"""An operator with fewer says nothing of what is usual.  For a shift its score alone counts, from the first check on."""
_MANY: Final = 64
_Z99: Final = 2.576
RECENT_MS: Final = 7 * 24 * 3600 * 1000
"""An operator or node whose last check of a version is older says nothing about it any more."""


class Usual(NamedTuple):
    """The rates up to which an engine's answers are as usual."""

    parts: float
    far: float


class Accepted(NamedTuple):
    """The same, as a person has accepted them; `None`: the table counts."""

    parts: float | None
    far: float | None


class Seen(NamedTuple):
    """What one check shows; `None`: it says nothing there."""

    differs: bool | None
    parts: bool | None
    far: bool | None

    def of(self, channel: Channel) -> bool | None:
        """What it shows of a channel."""
        found: bool | None = getattr(self, channel)
        return found


class Scores(NamedTuple):
    """Of a node, or of an operator's nodes of one engine version together."""

    differs: float = 0.0
    parts: float = 0.0
    far: float = 0.0

    def of(self, channel: Channel) -> float:
        """The score of a channel."""
        found: float = getattr(self, channel)
        return found


def look(minted: Minted, given: Given, verdict: Verdict, table: Table) -> Seen:
    """Give what a check with its verdict shows."""
    counts = verdict.kind in ("agrees", "differs")
    has_rates = tables.rates_for(minted, given, table) is not None
    is_greedy = minted.text is not None and not minted.seeded and verdict.code != DISTRIBUTION
    parts = verdict.kind in ("differs", "censored") if is_greedy and verdict.kind != "unusable" else None
    limit = table.vector_limit if minted.text is None else table.distribution_limit
    known = limit is not None and verdict.distance is not None
    return Seen(
        differs=verdict.kind == "differs" if counts and has_rates else None,
        parts=parts,
        far=verdict.distance > NEAR * limit if known and limit and verdict.distance is not None else None,
    )


def usual_of(table: Table, accepted: Accepted | None = None) -> Usual:
    """Give what is usual: what a person has accepted, or else what the table says."""
    parts, far = (None, None) if accepted is None else accepted
    return Usual(
        parts=min(table.parted, MOST_USUAL) if parts is None else parts,
        far=USUAL_FAR if far is None else far,
    )


def advance_scores(
    scores: Scores, seen: Seen, usual: Usual, differing: tables.Rates | None, highest: float = HIGHEST
) -> Scores:
    """
    Give the scores after one more check.

    Args:
        differing: The rates of answers that differ, of this kind of check (`verifier.answers.tables`).
    """
    return Scores(
        differs=scores.differs
        if seen.differs is None or differing is None
        else advance(scores.differs, increments(differing)[int(seen.differs)], highest),
        parts=_moved(scores.parts, seen.parts, usual.parts, highest),
        far=_moved(scores.far, seen.far, usual.far, highest),
    )


def _moved(score: float, seen: bool | None, usual: float, highest: float) -> float:  # noqa: FBT001
    return score if seen is None else advance(score, steps(usual)[int(seen)], highest)


@lru_cache(maxsize=1024)
def steps(usual: float) -> tuple[float, float]:
    """Give what a check as usual adds to a score, below 0, and what another adds: nat."""
    shifted = usual + DESIGN * (1 - usual)
    return math.log((1 - shifted) / (1 - usual)), math.log(shifted / usual)


def shifted_channels(scores: Scores) -> tuple[Channel, ...]:
    """Give in which channels a node has shifted."""
    return tuple(channel for channel in OF_NODES if scores.of(channel) >= NODE_LIMIT)


@dataclass(frozen=True, kw_only=True)
class OperatorScores:
    """One operator's nodes of one engine version."""

    operator: str
    scores: Scores
    checks: int
    """Since when its scores began."""
    nodes: int
    """How many of its nodes serve by the version."""


class Shift(NamedTuple):
    """A shift of all nodes of a version."""

    channel: Channel
    shifted: int
    """Operators."""
    operators: int
    """Of so many."""
    nodes: int
    """Nodes of the shifted operators."""
    all_nodes: int


def find_shift(found: Sequence[OperatorScores]) -> Shift | None:
    """
    Say whether all nodes of an engine version have shifted together.

    One operator makes no such shift, nor do two: then each node is judged by itself.  An operator counts from its first
    check on: so a version that fails all at once is suspect before a node of it is.
    """
    limit = version_limit(len(found))
    if limit is None:
        return None
    nodes = sum(each.nodes for each in found)
    for channel in CHANNELS:
        shifted = [each for each in found if each.scores.of(channel) >= limit]
        theirs = sum(each.nodes for each in shifted)
        if len(shifted) >= most_of(len(found)) and 2 * theirs > nodes:
            return Shift(channel, len(shifted), len(found), theirs, nodes)
    return None


def most_of(operators: int) -> int:
    """Give how many operators are most of them, and enough to say something of a version."""
    return max(BLAST_OPERATORS, operators // 2 + 1)


@lru_cache(maxsize=1024)
def version_limit(operators: int) -> float | None:
    """
    Give the score at which an operator counts as shifted, by how many operators there are; `None`: there are too few.

    It is where the bound on a chance of a false shift, in one of the three channels, is a third of `VERSION_ALARMS`.
    """
    if operators < BLAST_OPERATORS:
        return None
    if operators > _MANY:
        # The bound is far below.
        return LEAST_LIMIT
    low, high, wanted = 0.0, 20.0, VERSION_ALARMS / len(CHANNELS)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(operators, math.exp(-middle)) > wanted else (low, middle)
    return max(high, LEAST_LIMIT)


def tail(operators: int, chance: float) -> float:
    """Give the probability that most of the operators are there, each by *chance* and by itself."""
    least = most_of(operators)
    return math.fsum(
        math.comb(operators, count) * chance**count * (1 - chance) ** (operators - count)
        for count in range(least, operators + 1)
    )


def least_seen(usual: float) -> float:
    """Give the rate at which a score neither rises nor falls: a shift to less is not found."""
    down, up = steps(usual)
    return -down / (up - down)


def accept(counts: Mapping[str, Counts]) -> Accepted | None:
    """
    Give what is usual from now on, as a person has accepted what nodes of an engine do; `None`: too few operators.

    Args:
        counts: By operator.

    The median operator decides, by the upper limit of its share (Wilson 1927, 99 %), so that one moves nothing.
    """
    parts = _median([(each.parts, each.parts_of) for each in counts.values()], LEAST_USUAL)
    far = _median([(each.far, each.far_of) for each in counts.values()], USUAL_FAR)
    return None if parts is None and far is None else Accepted(parts, far)


def _median(shares: Sequence[tuple[int, int]], least: float) -> float | None:
    limits = sorted(interval(hits, of, _Z99)[1] for hits, of in shares if of >= LEAST_CHECKS)
    return min(max(limits[len(limits) // 2], least), MOST_USUAL) if len(limits) >= BLAST_OPERATORS else None
