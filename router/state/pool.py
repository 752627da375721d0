"""The nodes for one workload: in which lane each is, and why the others are in none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import Final

from msgspec import UNSET

from router.choose.affinity import Ring
from router.choose.candidates import LANES, Key, Lane, QueuedCandidates, SortedCandidates
from router.choose.gates import CODES, NOT_LIVE, SHORTFALLS, GateVerdict
from router.choose.ranking import CandidateFacts
from router.choose.trials import Stage, stage_of
from router.model.standing import Rating
from router.model.statistics import NodeStatistics
from router.model.tool_calls import CallShares
from router.model.workload import Workload
from router.state.random_bytes import random_bytes

_HISTORY: Final = 32
"""Changes that are remembered of a node, so that a past decision can be explained."""
_MOST_ASKED: Final = 1000
_MIN_IN_FLIGHT_FOR_SHARES: Final = 10
"""With fewer requests in flight, an operator's share of them means nothing."""
_UNSEEN: Final = Rating()
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


_RING_SECRET: Final = random_bytes(16)
"""Of this process: nobody can foretell where on a circle a node is."""


def make_lanes(workload: Workload) -> dict[Lane, SortedCandidates]:
    """Empty lanes; that of the established has a circle if the workload's requests may have an affinity."""
    lanes = {lane: SortedCandidates() for lane in LANES}
    if workload.affinity_per_cent:
        lanes[Lane.ESTABLISHED] = SortedCandidates(Ring(_RING_SECRET))
    return lanes


class _Placing:
    """Where one node stands, and since which version of the fleet which code has kept it out."""

    __slots__ = (
        "bad_calls",
        "calls",
        "code",
        "counted",
        "detail",
        "enrolled",
        "hardware_class",
        "history",
        "jti",
        "lane",
        "prompting",
        "revision",
        "stage",
        "statistics",
    )  # fmt: skip

    def __init__(self) -> None:
        self.statistics: NodeStatistics | None = None
        self.calls = self.bad_calls = 0.0
        """What is in the operator's share of it."""
        self.lane: Lane | None = None
        self.stage: Stage | None = None
        self.enrolled = math.inf
        self.code = ""
        self.detail = ""
        self.jti = ""
        self.revision = self.hardware_class = ""
        self.prompting = _NOTHING
        self.counted: tuple[str, bool] | None = None
        """As what it is in the count of revisions."""
        self.history: tuple[tuple[int, str, str, str], ...] = ()
        """Version, code, detail and result; an empty code from versions in which nothing kept it out.  Most have one entry."""


class WorkloadPool:
    """A `router.choose.ranking.Pool` that events keep up to date."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.lanes = make_lanes(workload)
        self.sizes = dict.fromkeys(LANES, 0)
        self.new, self.begun = QueuedCandidates(), SortedCandidates()
        self.stages: dict[Stage, SortedCandidates] = {Stage.NEW: self.new, Stage.BEGUN: self.begun}
        """See `Pool`."""
        self.closed: dict[str, int] = {}
        """How many nodes each code keeps out."""
        self.closed_by: dict[str, GateVerdict | None] = {}
        """By node, the first gate that fails closed and is closed to it."""
        self.open = 0
        """How many nodes no such gate keeps out, with room or without."""
        self.revisions: dict[str, list[int]] = {}
        """By revision, how many nodes have a live result of it, and how many of them may do the work."""
        self._placings: dict[str, _Placing] = {}
        self._calls = CallShares()
        self._in_flight: dict[str, int] = {}
        self._total_in_flight = 0

    def facts(self, node: str) -> CandidateFacts:
        """See `Pool`."""
        placing = self._placings[node]
        statistics = placing.statistics
        return CandidateFacts(
            rating=_UNSEEN if statistics is None else statistics.rating,
            in_flight=0 if statistics is None else statistics.load.in_flight,
            closed=placing.code,
            jti=placing.jti,
            revision=placing.revision,
            hardware_class=placing.hardware_class,
            template=placing.prompting.get("template", UNSET),
            sampling=placing.prompting.get("sampling", UNSET),
        )

    def has_full_share(self, operator: str) -> bool:
        """See `Pool`."""
        share = self.workload.max_operator_share
        if share >= 100 or self._total_in_flight < _MIN_IN_FLIGHT_FOR_SHARES:
            return False
        return self._in_flight.get(operator, 0) * 100 >= share * self._total_in_flight

    @property
    def usual_calls(self) -> float | None:
        """See `Pool`."""
        return self._calls.usual

    @property
    def in_flight(self) -> int:
        """Requests in flight for the workload, at all nodes."""
        return self._total_in_flight

    def count_in_flight(self, operator: str, change: int) -> None:
        """Add *change*, which may be negative, to the requests in flight at an operator's nodes."""
        count = max(self._in_flight.get(operator, 0) + change, 0)
        self._total_in_flight = max(self._total_in_flight + change, 0)
        if count:
            self._in_flight[operator] = count
        else:
            self._in_flight.pop(operator, None)

    def lane(self, node: str) -> Lane | None:
        """The lane in which a node stands."""
        placing = self._placings.get(node)
        return None if placing is None else placing.lane

    def stand(self, node: str) -> tuple[Lane | None, str]:
        """The lane in which a node stands, and the code that keeps it out."""
        placing = self._placings.get(node)
        return (None, "") if placing is None else (placing.lane, placing.code)

    def verdict(self, node: str) -> GateVerdict | None:
        """What keeps a node out."""
        placing = self._placings.get(node)
        if placing is None or not placing.code:
            return None
        return _verdict(placing.code, placing.detail, placing.jti)

    def close(
        self,
        node: str,
        verdict: GateVerdict | None,
        revision: str,
        *,
        hardware_class: str = "",
        enrolled: float = math.inf,
        prompting: Mapping[str, str] = _NOTHING,
    ) -> None:
        """
        Note which gate that fails closed is closed to a node, if one is.

        Args:
            revision: Of the model, by the node's result.
            hardware_class: By the verifier's word, if prices go by it.
            enrolled: When it was enrolled, Unix seconds by the verifier's word; who is not said to be waits behind all.
            prompting: Where its template and sampling defaults come from, by its result.
        """
        self.open += (verdict is None) - (node in self.closed_by and self.closed_by[node] is None)
        self.closed_by[node] = verdict
        placing = self._placings.get(node)
        if placing is None:
            placing = self._placings[node] = _Placing()
        placing.revision, placing.hardware_class, placing.enrolled = revision, hardware_class, enrolled
        placing.prompting = prompting
        is_live = bool(revision) and (verdict is None or verdict.code not in NOT_LIVE)
        self._count_revision(placing, (revision, verdict is None) if is_live else None)

    def place(
        self,
        key: Key,
        statistics: NodeStatistics | None,
        *,
        lane: Lane | None,
        code: str,
        detail: str = "",
        jti: str = "",
        version: int,
    ) -> bool:
        """
        Put a node into a lane, or into none.

        Args:
            key: The operator and the node.
            statistics: What was measured of the node for the workload's tier.
            lane: `None` if the node may not do the work.
            code: What keeps it out; empty if nothing does.
            detail: The particulars.
            jti: The node's result.
            version: Of the fleet, once this change is made.

        Returns:
            Whether anything changed.
        """
        node = key[1]
        placing = self._placings.get(node)
        if placing is None:
            placing = self._placings[node] = _Placing()
        placing.statistics, placing.jti = statistics, jti
        if statistics is not None and (statistics.rating.calls or placing.calls):
            self._count_calls(placing, key[0], statistics.rating.calls, statistics.rating.bad_calls)
        if placing.history and placing.lane is lane and placing.code == code:
            if detail:
                placing.detail = detail
            return False
        if placing.lane is not lane:
            if placing.lane is not None:
                self.lanes[placing.lane].remove(key)
                self.sizes[placing.lane] -= 1
            if lane is not None:
                self.lanes[lane].add(key)
                self.sizes[lane] += 1
            placing.lane = lane
        if placing.code != code:
            self._count_code(placing.code, -1)
            self._count_code(code, 1)
        placing.code, placing.detail = code, detail
        placing.history = (*placing.history[1 - _HISTORY :], (version, code, detail, jti))
        return True

    def follow_stage(self, key: Key) -> bool:
        """Take in how far a node has come that was placed; returns whether that has changed."""
        placing = self._placings[key[1]]
        stage = None
        if placing.lane is Lane.PROBATION:
            stage = stage_of(_UNSEEN if placing.statistics is None else placing.statistics.rating)
        if stage is placing.stage:
            return False
        if placing.stage is not None:
            self.stages[placing.stage].remove(key)
        if stage is Stage.NEW:
            self.new.enqueue(key, placing.enrolled)
        elif stage is Stage.BEGUN:
            self.begun.add(key)
        placing.stage = stage
        return True

    def stage(self, node: str) -> Stage | None:
        """How far a node has come, if it is on probation because little is known of it."""
        placing = self._placings.get(node)
        return None if placing is None else placing.stage

    def enrolled(self, node: str) -> float:
        """When a node was enrolled, Unix seconds by the verifier's word; infinity if it does not say."""
        placing = self._placings.get(node)
        return math.inf if placing is None else placing.enrolled

    def remove(self, key: Key) -> None:
        """Take a node out, so that it can be placed under another operator."""
        placing = self._placings.pop(key[1], None)
        if placing is None:
            return
        if placing.stage is not None:
            self.stages[placing.stage].remove(key)
        if placing.lane is not None:
            self.lanes[placing.lane].remove(key)
            self.sizes[placing.lane] -= 1
        self._count_code(placing.code, -1)
        self._count_calls(placing, key[0], 0.0, 0.0)
        self._count_revision(placing, None)

    def _count_revision(self, placing: _Placing, counted: tuple[str, bool] | None) -> None:
        before = placing.counted
        if before == counted:
            return
        placing.counted = counted
        for each, change in ((before, -1), (counted, 1)):
            if each is not None:
                revision, may = each
                counts = self.revisions.setdefault(revision, [0, 0])
                counts[0] += change
                counts[1] += change * may
                if not counts[0]:
                    del self.revisions[revision]

    def _count_calls(self, placing: _Placing, operator: str, calls: float, bad_calls: float) -> None:
        if (calls, bad_calls) != (placing.calls, placing.bad_calls):
            self._calls.add(operator, calls - placing.calls, bad_calls - placing.bad_calls)
            placing.calls, placing.bad_calls = calls, bad_calls

    def _count_code(self, code: str, change: int) -> None:
        if code:
            count = self.closed.get(code, 0) + change
            if count:
                self.closed[code] = count
            else:
                del self.closed[code]

    def shortfalls(self) -> Counter[str]:
        """
        What the nodes' results lack that the workload requires, and how many nodes lack it.

        At most a thousand nodes are looked at.
        """
        return Counter(
            placing.detail
            for placing in islice(self._placings.values(), _MOST_ASKED)
            if placing.code in SHORTFALLS
        )

    def count_revisions(self) -> dict[str, tuple[int, int]]:
        """
        By revision of the model, how many nodes have a live result of it, and how many of them may work.

        Those that the workload asks for are listed also if no node has them.
        """
        found = dict.fromkeys(self.workload.digests, (0, 0))
        return found | {revision: (has, may) for revision, (has, may) in self.revisions.items()}

    def excluded(self, version: int | None = None) -> dict[str, GateVerdict]:
        """Every node that is kept out, now or as of *version*, as far as that is remembered."""
        found: dict[str, GateVerdict] = {}
        for node, placing in self._placings.items():
            code, detail, jti = placing.code, placing.detail, placing.jti
            if version is not None:
                past = [rest for since, *rest in placing.history if since <= version]
                if not past:
                    continue
                code, detail, jti = past[-1]
            if code:
                found[node] = _verdict(code, detail, jti)
        return found


def _verdict(code: str, detail: str, jti: str) -> GateVerdict:
    return GateVerdict(code.partition(".")[0], code, detail or CODES[code], jti)
