"""The nodes for one workload: lanes, and why the others stand in none."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from router.choose.candidates import LANES, CandidateIndex, Key, Lane, SortedCandidates
from router.choose.gates import CODES, GateVerdict
from router.choose.ranking import CandidateFacts
from router.model.standing import Rating
from router.model.statistics import NodeStatistics
from router.model.workload import Workload

if TYPE_CHECKING:
    from router.state.fleet import Fleet

_STORY: Final = 32
"""Changes that are remembered of a node, so that a decision can be explained after them."""
_FEW: Final = 10
"""With less under way there are no shares to speak of."""
_UNSEEN: Final = Rating()


class _Where:
    """Where a node stands."""

    __slots__ = ("code", "detail", "kept", "lane", "story")

    def __init__(self) -> None:
        self.kept: NodeStatistics | None = None
        self.lane: Lane | None = None
        self.code = ""
        self.detail = ""
        self.story: deque[tuple[int, str, str]] = deque(maxlen=_STORY)
        """From which version on which code kept it out; none, where none did."""


class WorkloadPool:
    """As `router.choose.ranking.Pool`, kept by events."""

    def __init__(self, fleet: Fleet, workload: Workload) -> None:
        self._fleet = fleet
        self.workload = workload
        self._lanes = {lane: SortedCandidates() for lane in LANES}
        self.lanes: dict[Lane, CandidateIndex] = dict(self._lanes)
        self.sizes = dict.fromkeys(LANES, 0)
        self.closed: dict[str, int] = {}
        """How many nodes each code keeps out."""
        self.closed_by: dict[str, GateVerdict | None] = {}
        """By node, the gate that fails closed and is closed to it."""
        self._where: dict[str, _Where] = {}
        self._under_way: dict[str, int] = {}
        self._total = 0

    def facts(self, node: str) -> CandidateFacts:
        """As `Pool`."""
        where = self._where[node]
        kept = where.kept
        if kept is None:
            return CandidateFacts(_UNSEEN, 0, where.code)
        return CandidateFacts(kept.rating, kept.load.in_flight, where.code)

    def is_over(self, operator: str) -> bool:
        """As `Pool`."""
        share = self.workload.max_operator_share
        if share >= 100 or self._total < _FEW:
            return False
        return self._under_way.get(operator, 0) * 100 >= share * self._total

    def begun(self, operator: str, change: int) -> None:
        """So much more work of an operator's nodes is under way, or less."""
        count = max(self._under_way.get(operator, 0) + change, 0)
        self._total = max(self._total + change, 0)
        if count:
            self._under_way[operator] = count
        else:
            self._under_way.pop(operator, None)

    def lane(self, node: str) -> Lane | None:
        """The lane in which a node stands."""
        where = self._where.get(node)
        return None if where is None else where.lane

    def verdict(self, node: str) -> GateVerdict | None:
        """What keeps a node out."""
        where = self._where.get(node)
        return None if where is None or not where.code else _verdict(where.code, where.detail)

    def place(
        self, key: Key, kept: NodeStatistics | None, lane: Lane | None, code: str, detail: str = ""
    ) -> bool:
        """Put a node into a lane, or into none; gives whether that is a change."""
        node = key[1]
        where = self._where.get(node)
        if where is None:
            where = self._where[node] = _Where()
        where.kept = kept
        if where.story and where.lane is lane and where.code == code:
            if detail:
                where.detail = detail
            return False
        if where.lane is not lane:
            if where.lane is not None:
                self._lanes[where.lane].remove(key)
                self.sizes[where.lane] -= 1
            if lane is not None:
                self._lanes[lane].add(key)
                self.sizes[lane] += 1
            where.lane = lane
        if where.code != code:
            self._count(where.code, -1)
            self._count(code, 1)
        where.code, where.detail = code, detail
        where.story.append((self._fleet.version + 1, code, detail))
        return True

    def leave(self, key: Key) -> None:
        """A node is taken out, to be put in under another operator."""
        where = self._where.pop(key[1], None)
        if where is None:
            return
        if where.lane is not None:
            self._lanes[where.lane].remove(key)
            self.sizes[where.lane] -= 1
        self._count(where.code, -1)

    def _count(self, code: str, change: int) -> None:
        if code:
            count = self.closed.get(code, 0) + change
            if count:
                self.closed[code] = count
            else:
                del self.closed[code]

    def excluded(self, version: int | None = None) -> dict[str, GateVerdict]:
        """Every node that is kept out, now or as of *version*, as far as that is remembered."""
        found: dict[str, GateVerdict] = {}
        for node, where in self._where.items():
            code, detail = where.code, where.detail
            if version is not None:
                then = [(c, d) for since, c, d in where.story if since <= version]
                if not then:
                    continue
                code, detail = then[-1]
            if code:
                found[node] = _verdict(code, detail)
        return found


def _verdict(code: str, detail: str) -> GateVerdict:
    return GateVerdict(code.partition(".")[0], code, detail or CODES[code])
