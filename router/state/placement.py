"""
Where each node stands for each workload: which gate keeps it out, or which lane it is in.

Events place the few nodes that they are about.  Time places nodes too: timers say when each
is next due.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from router.choose import gates
from router.choose.candidates import Key, Lane
from router.choose.gates import GateContext, GateVerdict
from router.model.clock import Clock
from router.model.liveness import Heartbeat
from router.model.node import NodeView, prompting_of
from router.model.standing import PROVEN, Grade
from router.model.statistics import NodeStatistics
from router.model.workload import Table, Workload
from router.state.narrowed import NarrowedPool
from router.state.operator_holds import OperatorHolds
from router.state.pool import WorkloadPool
from router.state.timers import Timers

_WHISKER_S, _SOON_S = 1e-6, 1e-3


@dataclass(eq=False, kw_only=True, slots=True)
class NodeEntry:
    """One node: what the verifier said of it, and what this router measured."""

    key: Key
    view: NodeView
    """Its incidents are those of the verifier and this router's own holds together."""
    heartbeat: Heartbeat
    verifier_incidents: frozenset[str] = frozenset()
    own_holds: frozenset[str] = frozenset()
    url: str | None = None
    """Where the node serves, as it was judged the last time."""
    refused: GateVerdict | None = None
    """Why this router may not connect to it."""
    statistics: dict[str, NodeStatistics] = field(default_factory=dict)
    """By model tier."""
    in_flight: dict[str, int] = field(default_factory=dict)
    """Requests of this router for its callers, by workload."""
    suspected: frozenset[str] = frozenset()
    """Models for which its answers have differed so often that it comes after all others, by the verifier's word."""


class Placement:
    """All workloads' pools, and the timers that move nodes between their lanes."""

    def __init__(self, table: Table, clock: Clock, operator_holds: OperatorHolds) -> None:
        self._clock = clock
        self._operator_holds = operator_holds
        self.version = clock.now_ms()
        """Counts changes of who may do what.  It begins with the time, so that no two processes share one."""
        self.pools: dict[str, WorkloadPool] = {}
        self.candidate: dict[str, WorkloadPool] = {}
        """Of a table that decides beside the one in force, if there is one (`router.state.changes`)."""
        self._by_tier: dict[str, list[WorkloadPool]] = {}
        self.narrowed: dict[str, list[NarrowedPool]] = {}
        """By workload, its pools for callers with requirements of their own (`router.state.narrowings`)."""
        self._gate_timers = Timers(spread=1.0)
        """Results run out.  Both are on the monotonic clock, in seconds."""
        self._lane_timers = Timers(spread=1.0)
        """Silence grows, breakers close."""
        self.use_table(table)

    def use_table(self, table: Table) -> None:
        """Begin with empty pools for the workloads of *table*."""
        self.pools = {name: WorkloadPool(workload) for name, workload in table.workloads.items()}
        self.narrowed = {}
        self._arrange()

    def use_candidate(self, table: Table | None, entries: Mapping[str, NodeEntry]) -> None:
        """Begin with empty pools for a table beside the one in force; `None`: there is none any more."""
        workloads = {} if table is None else table.workloads
        self.candidate = {name: WorkloadPool(workload) for name, workload in workloads.items()}
        self._arrange()
        if self.candidate:
            for entry in entries.values():
                self.count_in_flight(entry.key[0], entry.in_flight, pools=self.candidate)

    def promote_candidate(self) -> None:
        """Put the candidate's pools, as they are, in the place of those in force."""
        self.pools, self.candidate = self.candidate, {}
        self.narrowed = {}
        self._arrange()

    def _arrange(self) -> None:
        self._by_tier = {}
        # Those in force first: they say which settings a tier's standings go by.
        for pool in self._all_pools():
            self._by_tier.setdefault(pool.workload.standing_key, []).append(pool)

    def _all_pools(self) -> Iterator[WorkloadPool]:
        yield from self.pools.values()
        yield from self.candidate.values()

    def pool_of(self, workload: Workload) -> WorkloadPool | None:
        """The pool of a workload of either table; that of its name in force if it is of neither."""
        pool = self.pools.get(workload.name)
        if pool is not None and pool.workload is workload:
            return pool
        other = self.candidate.get(workload.name)
        if other is None or other.workload is workload:
            return other or pool
        # Of a record, or of a table that was read again since.
        is_other = other.workload == workload and (pool is None or pool.workload != workload)
        return other if is_other else pool

    def workload_of_tier(self, tier: str) -> Workload | None:
        """A workload of a tier, to take the tier's settings from."""
        pools = self._by_tier.get(tier)
        return pools[0].workload if pools else None

    def shortfalls(self, workload: Workload) -> Counter[str]:
        """See `WorkloadPool.shortfalls`; empty for a workload that is in the table no more."""
        pool = self.pool_of(workload)
        return Counter() if pool is None else pool.shortfalls()

    def count_in_flight(
        self,
        operator: str,
        in_flight: Mapping[str, int],
        sign: int = 1,
        *,
        pools: Mapping[str, WorkloadPool] | None = None,
    ) -> None:
        """Add or take away requests in flight at an operator's nodes, by workload; in *pools* alone, if they are given."""
        for name, count in in_flight.items():
            if pools is None:
                self.count_request(operator, name, sign * count)
            elif name in pools:
                pools[name].count_in_flight(operator, sign * count)

    def count_request(self, operator: str, workload: str, change: int) -> None:
        """Add *change*, which may be negative, to the requests in flight at an operator's nodes for a workload."""
        # Both tables see the same nodes at work.
        for pools in (self.pools, self.candidate):
            pool = pools.get(workload)
            if pool is not None:
                pool.count_in_flight(operator, change)

    def free_place(self, entry: NodeEntry, workload: str) -> None:
        """Take one request of a workload out of flight."""
        left = entry.in_flight.pop(workload, 0) - 1
        if left >= 0:
            self.count_request(entry.key[0], workload, -1)
        if left > 0:
            entry.in_flight[workload] = left

    def remove(self, entry: NodeEntry) -> None:
        """Take a node out of all pools."""
        for pool in self._all_pools():
            pool.remove(entry.key)
        for narrowed in self._all_narrowed():
            narrowed.remove(entry.key)

    def advance(self, entries: Mapping[str, NodeEntry]) -> int:
        """Place the nodes that are due by now; returns the time, Unix milliseconds."""
        now_ms, now = self._clock.now_ms(), self._clock.monotonic()
        if self._clock.has_moved():
            # Every moment at which a result runs out has moved.
            for entry in entries.values():
                self.check_gates(entry)
        # Each decision asks, and mostly no node is due.
        if now >= self._gate_timers.earliest:
            for node in self._gate_timers.pop_due(now):
                self.check_gates(entries[node])
        if now >= self._lane_timers.earliest:
            for node in self._lane_timers.pop_due(now):
                self.place_everywhere(entries[node])
        for narrowed in self._all_narrowed():
            for node in narrowed.pop_due(now):
                self.judge(narrowed, entries[node])
        return now_ms

    def judge(self, narrowed: NarrowedPool, entry: NodeEntry) -> None:
        """Have a narrowed pool judge a node."""
        context = self.gate_context(entry, entry.view.operator, narrowed.base.workload)
        narrowed.judge(entry.key, entry.view, context)

    def _all_narrowed(self) -> Iterator[NarrowedPool]:
        for pools in self.narrowed.values():
            yield from pools

    def gate_context(self, entry: NodeEntry | None, operator: str, workload: Workload) -> GateContext:
        """What the gates look at beside the node itself."""
        statistics = None if entry is None else entry.statistics.get(workload.standing_key)
        return GateContext(
            now_ms=self._clock.now_ms(),
            held_since=self._operator_holds.since(operator),
            pace=None if statistics is None else statistics.pace,
            monotonic=self._clock.monotonic(),
            refused=None if entry is None else entry.refused,
        )

    def check_gates(self, entry: NodeEntry) -> None:
        """Ask the gates that fail closed, for every workload, and place the node."""
        view = entry.view
        due = math.inf
        for pool in self._all_pools():
            context = self.gate_context(entry, view.operator, pool.workload)
            verdict = gates.check(view, pool.workload, context)
            model = pool.workload.model
            pool.close(
                view.node,
                verdict,
                view.revision(model),
                hardware_class=view.vouched_class if pool.workload.prices_by_hardware else "",
                enrolled=math.inf if view.enrolled is None else view.enrolled,
                prompting=prompting_of(view.result, model),
            )
            for narrowed in self.narrowed.get(pool.workload.name, ()):
                if narrowed.base is pool:
                    narrowed.judge(entry.key, view, context)
            # Also if a gate is closed: time may change which gate is the first.
            due = min(due, gates.changes_in(view, pool.workload, context))
        # A whisker early: the sum of two times may be rounded up.  And never at once, or it would come up for ever.
        due = math.inf if due == math.inf else self._clock.monotonic() + max(due - _WHISKER_S, _SOON_S)
        self._gate_timers.set_due(view.node, due)
        self.place_everywhere(entry)

    def earned_lane(self, entry: NodeEntry, workload: Workload) -> Lane | None:
        """The lane of a node by what was measured of it alone, whatever it is suspected of."""
        pool = self.pools.get(workload.name)
        if pool is None or pool.closed_by.get(entry.key[1]) is not None:
            return None
        suspect_at, gone_at = entry.heartbeat.ends()
        statistics = entry.statistics.get(workload.standing_key)
        return _lane_of(statistics, workload, self._clock.monotonic(), suspect_at, gone_at)[0]

    def place_everywhere(self, entry: NodeEntry) -> None:
        """Place a node for every tier."""
        for tier in self._by_tier:
            self.place(entry, tier)

    def place(self, entry: NodeEntry, tier: str) -> None:
        """Put a node into the lane in which it belongs now, for each workload of a tier."""
        now = self._clock.monotonic()
        node, statistics = entry.key[1], entry.statistics.get(tier)
        jti = "" if entry.view.result is None else entry.view.result.jti
        suspect_at, gone_at = entry.heartbeat.ends()
        for pool in self._by_tier.get(tier, ()):
            verdict = pool.closed_by.get(node)
            if verdict is not None:
                lane, code, detail = None, verdict.code, verdict.detail
            else:
                is_suspected = pool.workload.model in entry.suspected
                lane, code = _lane_of(
                    statistics, pool.workload, now, suspect_at, gone_at, is_suspected=is_suspected
                )
                detail = ""
            has_moved = pool.place(
                entry.key,
                statistics,
                lane=lane,
                code=code,
                detail=detail,
                jti=jti,
                version=self.version + 1,
            )
            self.version += has_moved
            if pool.follow_stage(entry.key) or has_moved:
                for narrowed in self.narrowed.get(pool.workload.name, ()):
                    if narrowed.base is pool:
                        narrowed.follow(entry.key, lane, code)
        due = suspect_at if suspect_at > now else gone_at if gone_at > now else math.inf
        for each in entry.statistics.values():
            if each.load.open_until > now:
                due = min(due, each.load.open_until)
        self._lane_timers.set_due(node, due)


def _lane_of(
    statistics: NodeStatistics | None,
    workload: Workload,
    now: float,
    suspect_at: float,
    gone_at: float,
    *,
    is_suspected: bool = False,
) -> tuple[Lane | None, str]:
    """The lane of a node that may do the work, and the code of the capacity gate that is closed to it."""
    if statistics is None:
        if now >= gone_at:
            return Lane.BROKEN, "capacity.silent"
        return (Lane.DEGRADED if is_suspected else Lane.PROBATION), ""
    load = statistics.load
    # A lack of room comes first: it never fails open, and the other capacity gates may.
    if load.work >= workload.concurrency:
        return None, "capacity.full"
    if load.breaker_is_open(now):
        return Lane.BROKEN, "capacity.breaker"
    if now >= gone_at:
        return Lane.BROKEN, "capacity.silent"
    grade = statistics.rating.grade
    if grade is Grade.DEGRADED or is_suspected:
        return Lane.DEGRADED, ""
    if grade is Grade.ESTABLISHED and now < suspect_at:
        return Lane.ESTABLISHED, ""
    # Warm-up follows from evidence, not from time: a node that has done little gets little at a time.
    allowance = max(1, int(workload.concurrency * min(statistics.proven, PROVEN) / PROVEN))
    if load.work >= allowance:
        return Lane.WARMING, "capacity.warming"
    return Lane.PROBATION, ""
