"""
The order of the nodes that may do the work: pure, seeded, replayable.

Lanes come first (established, on probation, degraded); they are never terms of a sum.  Inside a
lane, power of two choices (Mitzenmacher, "The Power of Two Choices in Randomized Load
Balancing", 2001) on the expected seconds of a *successful* answer, and on its expected cost if
money counts.  Both are drawn among nodes: what an operator gets goes by its nodes, however many
names it has for itself (docs/adr/0063).  No score depends on the other candidates, so that
no node can move another node's score, and nothing depends on how many nodes there are.  One
number is shared, for work with tools alone: the share of good calls that is usual among
operators.  It moves those that were measured alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from msgspec import UNSET, Struct, UnsetType

from router.choose.affinity import Affinity, stick
from router.choose.candidates import FAIL_OPEN_LANES, LANES, CandidateIndex, Key, Lane
from router.choose.seeded_random import SeededRandom
from router.choose.trials import FOCUS, IN_TURN, SCALE, STAGES, First, Stage, find_chances, is_main
from router.model.standing import Rating
from router.model.tool_calls import compare_calls
from router.model.workload import Price, Workload

WIDTH: Final = 3
"""How many nodes are ranked, and at most tried."""
_LEAST_COMPLETION: Final = 0.05
_RANDOM_DRAWS: Final = 6
"""Random draws of a node that was not drawn yet, among nodes, then among operators; after them, these are asked in turn."""
_NODE_DRAWS: Final = 2
"""Of the draws of a node that may begin, how many are among nodes."""
_WHOLE_SHARE: Final = 100
UNPROVEN: Final = (Lane.PROBATION, Lane.WARMING)


class CandidateFacts(Struct, frozen=True, gc=False):
    """What a decision knows of a node."""

    rating: Rating
    in_flight: int = 0
    closed: str = ""
    """The code of capacity that keeps it out while any other node is left."""
    jti: str = ""
    """The result by which it may do the work."""
    revision: str = ""
    """The digest of the model's reference value by that result."""
    hardware_class: str = ""
    """By the verifier's word; empty where no price goes by it."""
    template: str | UnsetType = UNSET
    """The file or engine that its chat template comes from, with a digest, by that result; left out if it does not say."""
    sampling: str | UnsetType = UNSET
    """The same of its sampling defaults."""


class Pool(Protocol):
    """The candidates that a decision draws from."""

    @property
    def lanes(self) -> Mapping[Lane, CandidateIndex]:
        """The nodes that may do the work.  Empty lanes may be missing."""

    @property
    def sizes(self) -> dict[Lane, int]:
        """How many nodes are in each lane."""

    def facts(self, node: str) -> CandidateFacts:
        """What is known of a node that is in a lane."""

    def has_full_share(self, operator: str) -> bool:
        """Whether an operator has its share of the work in flight already."""

    @property
    def stages(self) -> Mapping[Stage, CandidateIndex]:
        """The nodes in the lane of probation of which little is known, by how far they have come."""

    @property
    def usual_calls(self) -> float | None:
        """The usual share of good calls of tools; `None` if too few were seen."""


class Ranked(Struct, frozen=True, gc=False, kw_only=True):
    """A ranked node, with every term of its score."""

    node: str
    operator: str
    lane: Lane
    score: float
    """Expected seconds of a successful answer, plus its cost expressed in seconds.  Less is better."""
    completion: float
    latency_s: float
    in_flight: int
    evidence: float
    calls: float = 1.0
    """For work with tools, its share of good calls as a multiple of the usual one; 1 if it may be the usual one."""
    why: str
    """The reason for its grade, as a code."""
    cost: float = 0.0
    """Expected millionths of the unit for a successful answer of usual length."""
    price: Price | None = None
    """What its work costs by the table that decided; `None` if that has no prices.  Records from before lack it."""
    below_energy: bool = False
    """Whether it is cheaper than the energy of its work, which asks for an audit."""
    closed: str = ""
    """The code of capacity that failed open for it."""


class Ranking(Struct, frozen=True, gc=False):
    """The nodes to try, in order, and what was passed over."""

    ranked: tuple[Ranked, ...]
    opened: tuple[str, ...] = ()
    """Gates that failed open because no other node was left."""
    over: tuple[str, ...] = ()
    """Operators that were drawn and passed over, because they have their share."""
    affinity: Affinity | None = None
    """What the request's key of affinity was worth; `None` if it has none."""


def score(
    key: Key, lane: Lane, facts: CandidateFacts, workload: Workload, usual_calls: float | None = None
) -> Ranked:
    """A node's score, from what routers measured; *usual_calls* for work with tools alone."""
    operator, node = key
    rating = facts.rating
    calls = compare_calls(rating.calls, rating.bad_calls, usual_calls)
    # An answer whose calls no tool can take is no success.
    completion = max(_LEAST_COMPLETION, rating.completion) * calls
    seconds = rating.latency_s * (facts.in_flight + 1) / completion
    cost, is_cheap, price = 0.0, False, None
    if workload.prices or workload.prices_by_hardware:
        price = workload.price_of(operator, facts.hardware_class)
        cost = workload.cost_of(price) / completion
        if workload.second_is_worth:
            seconds += cost / workload.second_is_worth
        floor = workload.energy_floor
        is_cheap = floor is not None and workload.cost_of(price) < workload.cost_of(floor)
    return Ranked(
        node=node,
        operator=operator,
        lane=lane,
        score=seconds,
        completion=rating.completion,
        latency_s=rating.latency_s,
        in_flight=facts.in_flight,
        evidence=rating.evidence,
        calls=calls,
        why=rating.why,
        cost=cost,
        price=price,
        below_energy=is_cheap,
        closed=facts.closed,
    )


def rank(
    pool: Pool, workload: Workload, seed: int, *, has_tools: bool = False, affinity: str | None = None
) -> Ranking:
    """
    The first few nodes, in the order in which they must be tried.

    Args:
        pool: The nodes.
        workload: What the work requires.
        seed: For all that is drawn.
        has_tools: Whether the work may call tools.
        affinity: The key by which requests that begin alike find the same node; `None`: none does.
    """
    draw = _Draw(pool, workload, SeededRandom(seed), pool.usual_calls if has_tools else None)
    sizes = pool.sizes
    # Only one is tried: a crowd of new nodes must not stand between the work and the nodes that do it.
    number = draw.random.below(SCALE)
    ranked: list[Ranked] = []
    if not is_main(number, workload):
        new, begun = (len(pool.stages[stage]) for stage in STAGES)
        ranked = draw.try_one(number, find_chances(sizes, new, begun, workload))
    for lane in LANES:
        if len(ranked) >= WIDTH or (ranked and lane in FAIL_OPEN_LANES):
            break
        if sizes[lane]:
            ranked += draw.take(lane, WIDTH - len(ranked))
    found: Affinity | None = None
    if affinity is not None:
        ranked, found = _stick(draw, ranked, workload, affinity)
    opened = [r.closed for r in ranked if r.lane in FAIL_OPEN_LANES]
    if draw.over and any(r.operator in draw.over for r in ranked):
        opened.append("capacity.operator-share")
    return Ranking(tuple(ranked), tuple(dict.fromkeys(opened)), tuple(sorted(draw.over)), found)


def _stick(draw: _Draw, ranked: list[Ranked], workload: Workload, key: str) -> tuple[list[Ranked], Affinity]:
    """Put the established node that is near a key first, if it may be."""
    if not draw.has_established:
        return ranked, Affinity(key, "none")
    if not ranked or ranked[0].lane is not Lane.ESTABLISHED:
        # What is tried first is to be tried first.
        return ranked, Affinity(key, "trial")
    near = draw.near(key)
    ranked, how = stick(near, ranked, draw.score_near, workload.affinity_per_cent)
    return ranked, Affinity(key, how, "" if how == "busy" else ranked[0].node)


def compare(one: Ranked, other: Ranked) -> int:
    """
    Which of two nodes of one lane is the better one by its standing: positive if it is the first, 0 if chance decides.

    Where little is known of both, the one that is nearer to proof is better: evidence that is spread over many nodes
    proves none.
    """
    if one.lane in UNPROVEN and (nearer := round(one.completion - other.completion, 2)):
        return 1 if nearer > 0 else -1
    return (one.score < other.score) - (one.score > other.score)


class _Draw:
    """Draws nodes from lanes, no node twice."""

    __slots__ = (
        "_drawn", "_first", "_left", "_limited", "_pool", "_usual_calls", "_workload", "over", "random"
    )  # fmt: skip

    def __init__(
        self, pool: Pool, workload: Workload, random: SeededRandom, usual_calls: float | None
    ) -> None:
        self._pool = pool
        self._usual_calls = usual_calls
        self._workload = workload
        self.random = random
        self._limited = workload.max_operator_share < _WHOLE_SHARE
        self._drawn: set[Key] = set()
        self._left = dict(pool.sizes)
        """By lane, how many nodes were not drawn yet."""
        self._first: str | None = None
        """The operator of the node that is tried first, once there is one."""
        self.over: set[str] = set()
        """Operators that were drawn and have their share already."""

    def try_one(self, number: int, chances: Mapping[First, int]) -> list[Ranked]:
        """The node that is tried before all others, if one is: *number* is below `SCALE`, as are *chances*."""
        if number < (bound := chances[First.FOCUS]):
            return self.take(Lane.PROBATION, 1, self._pool.stages[Stage.BEGUN])
        if number < (bound := bound + chances[First.BEGINNING]):
            return self._begin()
        if number < (bound := bound + chances[First.ANY]):
            return self.take(Lane.PROBATION, 1, self._pool.lanes[Lane.PROBATION])
        if number < bound + chances[First.RECOVERY]:
            return self.take(Lane.DEGRADED, 1)
        return []

    def _begin(self) -> list[Ranked]:
        """A new node; while others wait, of an operator that has not half of the focus already."""
        new, begun = self._pool.stages[Stage.NEW], self._pool.stages[Stage.BEGUN]
        found = None
        # Who neither works nor fails must not stand in the way of all others for ever.
        waiting = min(FOCUS, len(new)) if self.random.below(IN_TURN) else len(new)
        for tried in range(_RANDOM_DRAWS):
            # An operator with very many is passed over by drawing among operators.
            key = new.at(self.random.below(waiting)) if tried < _NODE_DRAWS else self._draw_operator(new)
            if self._limited and not self._is_allowed(key[0], shares=True):
                continue
            found = found or key
            if 2 * begun.count_of(key[0]) < FOCUS:
                found = key
                break
        if found is None:
            return self.take(Lane.PROBATION, 1)
        self._first = found[0]
        return [self._note(found, Lane.PROBATION)]

    def take(self, lane: Lane, count: int, index: CandidateIndex | None = None) -> list[Ranked]:
        """
        Take up to *count* nodes: of two that are drawn the better is taken; the other meets the next one.

        Args:
            lane: From which.
            count: How many.
            index: Some of the lane's nodes: more than one is never taken of them.
        """
        taken: list[Ranked] = []
        # Where nothing is proven and all work goes there, many names are worth one.
        by_operator = lane in UNPROVEN and index is None
        index = index or self._pool.lanes[lane]
        waiting = self._next(lane, index, by_operator=by_operator, apart=self._first)
        while waiting is not None and len(taken) < count:
            if taken and len(taken) == count - 1:
                # The last place needs no comparison.
                return [*taken, waiting]
            apart = waiting.operator if by_operator else self._first
            drawn = self._next(lane, index, by_operator=by_operator, apart=apart)
            if drawn is not None and self._is_better(drawn, waiting):
                drawn, waiting = waiting, drawn
            taken.append(waiting)
            if self._first is None:
                self._first = waiting.operator
            waiting = drawn
        if waiting is not None:
            # The node that was not taken may be drawn again: its lane may come up again.
            self._drawn.discard((waiting.operator, waiting.node))
            self._left[lane] += 1
        return taken

    @property
    def has_established(self) -> bool:
        """Whether any node is established."""
        return self._pool.sizes[Lane.ESTABLISHED] > 0

    def near(self, key: str) -> tuple[Key, ...]:
        """The established nodes near a key."""
        return self._pool.lanes[Lane.ESTABLISHED].near(key)

    def score_near(self, key: Key) -> Ranked | None:
        """The score of an established node; `None` if its operator has its share already."""
        if self._limited and self._pool.has_full_share(key[0]):
            return None
        return score(key, Lane.ESTABLISHED, self._pool.facts(key[1]), self._workload, self._usual_calls)

    def _is_better(self, one: Ranked, other: Ranked) -> bool:
        has_share = one.operator in self.over
        if has_share != (other.operator in self.over):
            # Nodes of operators that have their share come after all others.
            return not has_share
        if (one.operator == self._first) != (other.operator == self._first):
            # What one operator's node has failed at is tried at another operator's.
            return one.operator != self._first
        better = compare(one, other)
        return better > 0 or (better == 0 and bool(self.random.below(2)))

    def _next(
        self, lane: Lane, index: CandidateIndex, *, by_operator: bool, apart: str | None
    ) -> Ranked | None:
        """A node that was not drawn yet; of another operator than *apart*, if there is one."""
        if not self._left[lane]:
            return None
        key = None
        if apart is not None and index.operators > 1:
            key = self._find(index, by_operator=by_operator, shares=True, barred=apart)
        if key is None:
            key = self._find(index, by_operator=by_operator, shares=True, barred=None)
        if key is None and self.over:
            # No other node is left: the limit of shares fails open, and the decision says so.
            key = self._find(index, by_operator=by_operator, shares=False, barred=None)
        return None if key is None else self._note(key, lane)

    def _note(self, key: Key, lane: Lane) -> Ranked:
        self._drawn.add(key)
        self._left[lane] -= 1
        return score(key, lane, self._pool.facts(key[1]), self._workload, self._usual_calls)

    def _find(
        self, index: CandidateIndex, *, by_operator: bool, shares: bool, barred: str | None
    ) -> Key | None:
        if not by_operator:
            for _ in range(_RANDOM_DRAWS):
                if self._may_take(key := self._draw_node(index), shares=shares, barred=barred):
                    return key
        if by_operator or self._limited or barred is not None:
            for _ in range(_RANDOM_DRAWS):
                if self._may_take(key := self._draw_operator(index), shares=shares, barred=barred):
                    return key
        return self._look_for(index, shares=shares, barred=barred)

    def _draw_node(self, index: CandidateIndex) -> Key:
        return index.at(self.random.below(len(index)))

    def _draw_operator(self, index: CandidateIndex) -> Key:
        number = self.random.below(index.operators)
        return index.node_of(number, self.random.below(index.nodes_of(number)))

    def _may_take(self, key: Key, *, shares: bool, barred: str | None) -> bool:
        if key in self._drawn or key[0] == barred:
            return False
        return not self._limited or self._is_allowed(key[0], shares=shares)

    def _look_for(self, index: CandidateIndex, *, shares: bool, barred: str | None) -> Key | None:
        """Ask the operators in turn: few are passed over here, those whose nodes are drawn or that have their share."""
        operators = index.operators
        first = self.random.below(operators)
        for step in range(operators):
            number = (first + step) % operators
            size = index.nodes_of(number)
            place = self.random.below(size)
            for further in range(min(size, len(self._drawn) + 1)):
                key = index.node_of(number, (place + further) % size)
                if key[0] == barred or not self._is_allowed(key[0], shares=shares):
                    break
                if key not in self._drawn:
                    return key
        return None

    def _is_allowed(self, operator: str, *, shares: bool) -> bool:
        if shares and self._limited and self._pool.has_full_share(operator):
            self.over.add(operator)
            return False
        return True
