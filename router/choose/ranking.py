"""
The order inside the eligible set: pure, seeded, replayable.

Lanes first (established, on probation, degraded), never terms of a sum.  Inside a lane, power
of two choices (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001)
on the expected seconds, and where money counts the expected cost, of a *successful* answer.
Of the two, one is drawn among nodes and one among operators: many nodes bring an operator
more work, and never all of it.  Nothing is relative to the other candidates, so that nobody
can move another's score, and nothing depends on how many nodes there are.
"""

from __future__ import annotations

from typing import Final, Protocol

from msgspec import Struct

from router.choose.candidates import FAIL_OPEN_LANES, LANES, CandidateIndex, Key, Lane
from router.choose.seeded_random import SeededRandom
from router.model.standing import Rating
from router.model.workload import Workload

WIDTH: Final = 3
"""So many are ranked; nobody tries more."""
_LEAST_COMPLETION: Final = 0.05
_YOUNG_PER_MILLE: Final = 250
"""While hardly anybody is established, a node on probation is tried so often: one node is no pool."""
_TRIES: Final = 6
"""Draws for one who was not drawn yet, before operators are asked in turn."""
_ALL: Final = 100
_UNPROVEN: Final = (Lane.PROBATION, Lane.WARMING)


class CandidateFacts(Struct, frozen=True, gc=False):
    """What a decision knows of a node."""

    rating: Rating
    in_flight: int = 0
    closed: str = ""
    """The code of capacity that keeps it out where there is anybody else."""


class Pool(Protocol):
    """What a decision rests on."""

    @property
    def lanes(self) -> dict[Lane, CandidateIndex]:
        """Who may do the work."""

    @property
    def sizes(self) -> dict[Lane, int]:
        """How many stand in each lane."""

    def facts(self, node: str) -> CandidateFacts:
        """What is known of a node that stands in a lane."""

    def is_over(self, operator: str) -> bool:
        """Whether an operator has its share of the work under way already."""


class Ranked(Struct, frozen=True, gc=False):
    """A node in its place, with every term of its score."""

    node: str
    operator: str
    lane: Lane
    score: float
    """Expected seconds of a successful answer, and what its cost is worth in seconds; less is better."""
    completion: float
    latency_s: float
    in_flight: int
    evidence: float
    why: str
    """What put it in its tier."""
    cost: float = 0.0
    """Expected millionths of the unit for a successful answer of usual length."""
    below_energy: bool = False
    """Cheaper than the energy of its work: to be audited."""
    closed: str = ""
    """The gate of capacity that it passes for want of anyone else."""


class Ranking(Struct, frozen=True, gc=False):
    """Who is to be tried, in order, and what was passed over for it."""

    ranked: tuple[Ranked, ...]
    opened: tuple[str, ...] = ()
    """Gates that failed open for want of anyone else."""
    over: tuple[str, ...] = ()
    """Operators that were drawn and passed over, for they have their share."""


def score(key: Key, lane: Lane, facts: CandidateFacts, workload: Workload) -> Ranked:
    """A node's score, by what routers have seen."""
    operator, node = key
    rating = facts.rating
    completion = max(_LEAST_COMPLETION, rating.completion)
    seconds = rating.latency_s * (facts.in_flight + 1) / completion
    cost, cheap = 0.0, False
    if workload.prices:
        price = workload.price_of(operator)
        cost = workload.cost_of(price) / completion
        if workload.second_is_worth:
            seconds += cost / workload.second_is_worth
        floor = workload.energy_floor
        cheap = floor is not None and workload.cost_of(price) < workload.cost_of(floor)
    return Ranked(
        node,
        operator,
        lane,
        seconds,
        rating.completion,
        rating.latency_s,
        facts.in_flight,
        rating.evidence,
        rating.why,
        cost,
        cheap,
        facts.closed,
    )


def rank(pool: Pool, workload: Workload, seed: int) -> Ranking:
    """The nodes in the order in which they are to be tried, the first few of them."""
    draw = _Draw(pool, workload, SeededRandom(seed))
    sizes = pool.sizes
    filled = [lane for lane in LANES if sizes[lane]]
    ranked: list[Ranked] = []
    number = draw.chance.below(1000)
    probation = workload.probation_per_mille
    if probation and 0 < sizes[Lane.ESTABLISHED] < WIDTH:
        probation = max(probation, _YOUNG_PER_MILLE)
    if filled and number < probation + workload.degraded_per_mille:
        # One only: a crowd of newcomers must not stand between the work and those who do it.
        tried = Lane.PROBATION if number < probation else Lane.DEGRADED
        if tried in filled and filled[0] is not tried:
            ranked += draw.take(tried, 1)
    for lane in filled:
        if len(ranked) >= WIDTH or (ranked and lane in FAIL_OPEN_LANES):
            break
        ranked += draw.take(lane, WIDTH - len(ranked))
    opened = [r.closed for r in ranked if r.lane in FAIL_OPEN_LANES]
    if draw.over and any(r.operator in draw.over for r in ranked):
        opened.append("capacity.operator-share")
    return Ranking(tuple(ranked), tuple(dict.fromkeys(opened)), tuple(sorted(draw.over)))


class _Draw:
    """Draws from lanes, nobody twice."""

    def __init__(self, pool: Pool, workload: Workload, chance: SeededRandom) -> None:
        self._pool = pool
        self._workload = workload
        self.chance = chance
        self._limited = workload.max_operator_share < _ALL
        self._drawn: set[Key] = set()
        self._left = dict(pool.sizes)
        """How many of each lane were not drawn yet."""
        self.over: set[str] = set()
        """Operators that were drawn and have their share already."""

    def take(self, lane: Lane, count: int) -> list[Ranked]:
        """Up to *count*: two are drawn and the better taken, the other meets the next one drawn."""
        taken: list[Ranked] = []
        # Those of whom little is known are drawn by operator alone, so that many names are worth one.
        among_nodes = lane not in _UNPROVEN
        waiting = self._next(lane, among_nodes=among_nodes)
        while waiting is not None and len(taken) < count:
            if taken and len(taken) == count - 1:
                # The last place needs no other to be held against.
                return [*taken, waiting]
            # For the same reason two of them are of two operators, where there are.
            drawn = self._next(lane, apart=None if among_nodes else waiting.operator)
            if drawn is not None and self._is_better(drawn, waiting):
                drawn, waiting = waiting, drawn
            taken.append(waiting)
            waiting = drawn
        if waiting is not None:
            # Who waits in vain may be drawn again: its lane may have its turn still.
            self._drawn.discard((waiting.operator, waiting.node))
            self._left[lane] += 1
        return taken

    def _is_better(self, one: Ranked, other: Ranked) -> bool:
        is_over = one.operator in self.over
        if is_over != (other.operator in self.over):
            # Who has its share comes after all who have not.
            return not is_over
        if one.lane in _UNPROVEN and (nearer := round(one.completion - other.completion, 2)):
            # Who is nearer to proof comes first: evidence spread thin over many proves nobody.
            return nearer > 0
        return one.score < other.score or (one.score == other.score and bool(self.chance.below(2)))

    def _next(self, lane: Lane, *, among_nodes: bool = False, apart: str | None = None) -> Ranked | None:
        """One who was not drawn yet, of another operator than *apart*, where there is any."""
        if not self._left[lane]:
            return None
        places = self._pool.lanes[lane]
        key = None
        if apart is not None and places.operators > 1:
            key = self._find(places, among_nodes=among_nodes, shares=True, barred=apart)
        if key is None:
            key = self._find(places, among_nodes=among_nodes, shares=True, barred=None)
        if key is None and self.over:
            # Nobody else is left: the share gives way, and the decision says so.
            key = self._find(places, among_nodes=among_nodes, shares=False, barred=None)
        if key is None:
            return None
        self._drawn.add(key)
        self._left[lane] -= 1
        return score(key, lane, self._pool.facts(key[1]), self._workload)

    def _find(
        self, places: CandidateIndex, *, among_nodes: bool, shares: bool, barred: str | None
    ) -> Key | None:
        chance, operators = self.chance, places.operators
        for tried in range(_TRIES):
            if among_nodes and not tried:
                key = places.at(chance.below(len(places)))
            else:
                number = chance.below(operators)
                key = places.node_of(number, chance.below(places.nodes_of(number)))
            if key in self._drawn or key[0] == barred:
                continue
            if not self._limited or self._may(key[0], shares=shares):
                return key
        # Few are in the way: those drawn, and operators that have their share, of which there are few too.
        first = chance.below(operators)
        for step in range(operators):
            number = (first + step) % operators
            size = places.nodes_of(number)
            place = chance.below(size)
            for further in range(min(size, len(self._drawn) + 1)):
                key = places.node_of(number, (place + further) % size)
                if key[0] == barred or not self._may(key[0], shares=shares):
                    break
                if key not in self._drawn:
                    return key
        return None

    def _may(self, operator: str, *, shares: bool) -> bool:
        if shares and self._limited and self._pool.is_over(operator):
            self.over.add(operator)
            return False
        return True
