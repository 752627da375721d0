"""
The order by the first rule, so that decisions that were made by it can be made again.

Of the two nodes that are compared, one is drawn among nodes and one among operators.  On probation both are drawn among
operators.  Since rule 2 it is as `router.choose.ranking` has it; docs/adr/0063 says why.
"""

from __future__ import annotations

from typing import Final

from router.choose.candidates import FAIL_OPEN_LANES, LANES, CandidateIndex, Key, Lane
from router.choose.ranking import WIDTH, Pool, Ranked, Ranking, score
from router.choose.seeded_random import SeededRandom
from router.model.workload import Workload

_YOUNG_POOL_PER_MILLE: Final = 250
_RANDOM_DRAWS: Final = 6
_WHOLE_SHARE: Final = 100
_UNPROVEN: Final = (Lane.PROBATION, Lane.WARMING)


def rank(
    pool: Pool, workload: Workload, seed: int, *, has_tools: bool = False, affinity: str | None = None
) -> Ranking:
    """
    See `router.choose.ranking.rank`.

    Raises:
        ValueError: there is an *affinity*, which no decision had by this rule.
    """
    if affinity is not None:
        raise ValueError("no decision had an affinity by the first rule")
    draw = _Draw(pool, workload, SeededRandom(seed), pool.usual_calls if has_tools else None)
    sizes = pool.sizes
    filled = [lane for lane in LANES if sizes[lane]]
    ranked: list[Ranked] = []
    number = draw.random.below(1000)
    probation = workload.probation_per_mille
    if probation and 0 < sizes[Lane.ESTABLISHED] < WIDTH:
        probation = max(probation, _YOUNG_POOL_PER_MILLE)
    if filled and number < probation + workload.degraded_per_mille:
        # Only one: a crowd of new nodes must not stand between the work and the nodes that do it.
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
    """Draws nodes from lanes, no node twice."""

    __slots__ = ("_drawn", "_left", "_limited", "_pool", "_usual_calls", "_workload", "over", "random")

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
        self.over: set[str] = set()
        """Operators that were drawn and have their share already."""

    def take(self, lane: Lane, count: int) -> list[Ranked]:
        """Take up to *count* nodes: of two that are drawn the better is taken; the other meets the next one."""
        taken: list[Ranked] = []
        # Nodes of which little is known are drawn by operator alone, so that many names are worth one.
        among_nodes = lane not in _UNPROVEN
        waiting = self._next(lane, among_nodes=among_nodes)
        while waiting is not None and len(taken) < count:
            if taken and len(taken) == count - 1:
                # The last place needs no comparison.
                return [*taken, waiting]
            # For the same reason the two are of different operators, if there are several.
            drawn = self._next(lane, apart=None if among_nodes else waiting.operator)
            if drawn is not None and self._is_better(drawn, waiting):
                drawn, waiting = waiting, drawn
            taken.append(waiting)
            waiting = drawn
        if waiting is not None:
            # The node that was not taken may be drawn again: its lane may come up again.
            self._drawn.discard((waiting.operator, waiting.node))
            self._left[lane] += 1
        return taken

    def _is_better(self, one: Ranked, other: Ranked) -> bool:
        has_share = one.operator in self.over
        if has_share != (other.operator in self.over):
            # Nodes of operators that have their share come after all others.
            return not has_share
        if one.lane in _UNPROVEN and (nearer := round(one.completion - other.completion, 2)):
            # The node that is nearer to proof comes first: evidence that is spread over many nodes proves none.
            return nearer > 0
        return one.score < other.score or (one.score == other.score and bool(self.random.below(2)))

    def _next(self, lane: Lane, *, among_nodes: bool = False, apart: str | None = None) -> Ranked | None:
        """A node that was not drawn yet; of another operator than *apart*, if there is one."""
        if not self._left[lane]:
            return None
        index = self._pool.lanes[lane]
        key = None
        if apart is not None and index.operators > 1:
            key = self._find(index, among_nodes=among_nodes, shares=True, barred=apart)
        if key is None:
            key = self._find(index, among_nodes=among_nodes, shares=True, barred=None)
        if key is None and self.over:
            # No other node is left: the limit of shares fails open, and the decision says so.
            key = self._find(index, among_nodes=among_nodes, shares=False, barred=None)
        if key is None:
            return None
        self._drawn.add(key)
        self._left[lane] -= 1
        return score(key, lane, self._pool.facts(key[1]), self._workload, self._usual_calls)

    def _find(
        self, index: CandidateIndex, *, among_nodes: bool, shares: bool, barred: str | None
    ) -> Key | None:
        below, operators, drawn = self.random.below, index.operators, self._drawn
        for tried in range(_RANDOM_DRAWS):
            if among_nodes and not tried:
                key = index.at(below(len(index)))
            else:
                number = below(operators)
                key = index.node_of(number, below(index.nodes_of(number)))
            if key in drawn or key[0] == barred:
                continue
            if not self._limited or self._is_allowed(key[0], shares=shares):
                return key
        # Few nodes are passed over here: those already drawn, and those of the few operators that have their share.
        first = below(operators)
        for step in range(operators):
            number = (first + step) % operators
            size = index.nodes_of(number)
            place = below(size)
            for further in range(min(size, len(drawn) + 1)):
                key = index.node_of(number, (place + further) % size)
                if key[0] == barred or not self._is_allowed(key[0], shares=shares):
                    break
                if key not in drawn:
                    return key
        return None

    def _is_allowed(self, operator: str, *, shares: bool) -> bool:
        if shares and self._limited and self._pool.has_full_share(operator):
            self.over.add(operator)
            return False
        return True
