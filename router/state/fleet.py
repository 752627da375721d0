"""
The fleet as one router knows it.  Events keep it up to date, so that a decision need not look at all of it.

What comes in: results and incidents (`router.state.feed`), answers to probes, work that begins
and ends, what other routers measured.  Each event moves the few nodes that it is about from
lane to lane (`router.state.placement`).  What goes out is a `FleetView` for each workload, in
constant time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from msgspec import structs

from router.choose import gates
from router.choose.candidates import Lane
from router.choose.decision import FleetView
from router.choose.gates import GateVerdict
from router.model.change import Arm
from router.model.clock import Clock
from router.model.liveness import Heartbeat
from router.model.node import NodeView
from router.model.outcomes import Execution, Outcome
from router.model.statistics import NodeStatistics, StatisticsAggregate
from router.model.workload import Table, Workload
from router.state.address_gate import AddressGate, JudgeURL
from router.state.narrowed import NarrowedPool
from router.state.narrowings import Narrowings
from router.state.operator_holds import OperatorHolds
from router.state.placement import NodeEntry, Placement
from router.state.pool import WorkloadPool
from router.state.two_tables import TwoTables

_NEVER_HEARD_S: Final = 1e9
"""How long the verifier has been silent, in seconds, if it was never heard."""


class Fleet(TwoTables):
    """
    All nodes, in the lanes of all workloads.

    Args:
        judge_url: Whether this router may connect to a node's URL, by the URL alone.
    """

    def __init__(
        self,
        table: Table,
        clock: Clock,
        *,
        probe_every_s: float = 5.0,
        judge_url: JudgeURL = lambda _: None,
    ) -> None:
        self._entries: dict[str, NodeEntry] = {}
        self._nodes_of: dict[str, set[str]] = {}
        """By operator.  Retired nodes are left out: nothing that happens to an operator concerns them."""
        self._operator_holds = OperatorHolds()
        placement = Placement(table, clock, self._operator_holds)
        super().__init__(table, self._entries, placement, clock, probe_every_s)
        self.addresses = AddressGate(self._entries, placement.check_gates, judge_url)
        self.narrowings = Narrowings(self._entries, placement, self._nodes_of, clock)
        self._verifier_heard_at: float | None = None
        self._swept: list[NodeEntry] = []
        """All nodes, in the order in which they are swept.  A node that is known once stays."""
        self._next_swept = 0
        self._changed: set[tuple[str, str]] = set()
        """Nodes and tiers whose statistics are not stored yet."""

    # What the router reads.

    def __contains__(self, node: str) -> bool:
        return node in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def version(self) -> int:
        """Counts changes of who may do what."""
        return self._placement.version

    def nodes(self) -> Iterable[str]:
        """All nodes that are known."""
        return self._entries.keys()

    def view(self, node: str) -> NodeView:
        """What the verifier said of a node; an empty view if the node is not known."""
        entry = self._entries.get(node)
        return NodeView(node) if entry is None else entry.view

    def heartbeat(self, node: str) -> Heartbeat | None:
        """What is known of a node's answers to probes."""
        entry = self._entries.get(node)
        return None if entry is None else entry.heartbeat

    def statistics(self, node: str, tier: str) -> NodeStatistics | None:
        """What was measured of a node for a tier."""
        return self.statistics_by_tier(node).get(tier)

    def statistics_by_tier(self, node: str) -> Mapping[str, NodeStatistics]:
        """What was measured of a node, by tier."""
        entry = self._entries.get(node)
        return {} if entry is None else entry.statistics

    @property
    def silent_s(self) -> float:
        """Seconds since the verifier was last heard."""
        if self._verifier_heard_at is None:
            return _NEVER_HEARD_S
        return self._clock.monotonic() - self._verifier_heard_at

    def pool_for(self, workload: Workload) -> WorkloadPool:
        """The nodes for a workload of the table, as they stand."""
        pool = self._placement.pool_of(workload)
        if pool is None:
            raise KeyError(workload.name)
        return pool

    def view_for(self, workload: Workload, narrowed: NarrowedPool | None = None) -> FleetView:
        """What a decision about *workload* rests on now; *narrowed*: for a caller with requirements of its own."""
        now_ms = self.advance()
        own = self.pool_for(workload)
        pool = own if narrowed is None else narrowed
        is_candidate = own is self._placement.candidate.get(workload.name)
        table = self.candidate if is_candidate and self.candidate is not None else self.table
        return FleetView(
            version=self._placement.version,
            now_ms=now_ms,
            pool=pool,
            closed=pool.closed,
            silent_s=self.silent_s,
            required=None if narrowed is None else narrowed.required,
            met=None if narrowed is None else narrowed.met,
            table=table.digest,
            arm="" if self.candidate is None else Arm.CANDIDATE if is_candidate else Arm.ACTIVE,
        )

    def in_flight_for(self, model: str) -> int:
        """Requests of this router in flight for a model, whatever their workload."""
        return sum(pool.in_flight for pool in self._placement.pools.values() if pool.workload.model == model)

    def verdict(self, node: str, workload: Workload) -> GateVerdict | None:
        """The gate that keeps a node from the work now.  Asked again before each attempt."""
        self.advance()
        if self.silent_s > gates.FEED_SILENT_S:
            detail = f"nothing heard for {min(self.silent_s, _NEVER_HEARD_S):.0f} s"
            return GateVerdict("incident", gates.FEED_SILENT, detail)
        pool, entry = self._placement.pool_of(workload), self._entries.get(node)
        if pool is None or entry is None:
            view = self.view(node)
            return gates.check(view, workload, self._placement.gate_context(entry, view.operator, workload))
        return pool.verdict(node)

    def lane(self, node: str, workload: Workload) -> Lane | None:
        """The lane in which a node stands."""
        pool = self._placement.pool_of(workload)
        return None if pool is None else pool.lane(node)

    # What the verifier says.

    def note_verifier_contact(self) -> None:
        """Note that the verifier was heard and understood."""
        self._verifier_heard_at = self._clock.monotonic()

    def put_node(self, view: NodeView) -> None:
        """Take in what the verifier says of a node now.  The view's incidents are the verifier's."""
        entry = self._entries.get(view.node)
        key = (view.operator, view.node)
        if entry is None:
            heartbeat, suspected = Heartbeat(self._probe_every_s), self.suspected(view.node)
            entry = NodeEntry(key=key, view=view, heartbeat=heartbeat, suspected=suspected)
            self._entries[view.node] = entry
            self._swept.append(entry)
            self._nodes_of.setdefault(key[0], set()).add(view.node)
        elif entry.key != key:
            # A result can name the operator of a node that an incident made known first.
            self._placement.remove(entry)
            self._placement.count_in_flight(entry.key[0], entry.in_flight, -1)
            self._placement.count_in_flight(key[0], entry.in_flight)
            self._nodes_of[entry.key[0]].discard(view.node)
            self._nodes_of.setdefault(key[0], set()).add(view.node)
            entry.key = key
        if view.retired:
            self._nodes_of[key[0]].discard(view.node)
        self.addresses.note(entry, view)
        entry.verifier_incidents = view.incidents
        # Nearly all nodes are held by nobody, and then there is one view for the feed and the fleet.
        entry.view = _with_incidents(view, view.incidents | entry.own_holds) if entry.own_holds else view
        self._placement.check_gates(entry)

    def drop_node(self, node: str) -> None:
        """Take in that the verifier no longer says anything of a node.  Its statistics stay."""
        self.put_node(NodeView(node))

    def set_operator_incident(self, operator: str, incident: str, opened: float | None) -> None:
        """Note that an incident of one of an operator's nodes is open since *opened*; `None`: it is over."""
        if self._operator_holds.set_incident(operator, incident, opened):
            for node in list(self._nodes_of.get(operator, ())):
                self._placement.check_gates(self._entries[node])

    def release_node(self, node: str) -> None:
        """Return a node that a person released from quarantine to probation."""
        entry = self._entries.get(node)
        if entry is not None:
            for tier, statistics in entry.statistics.items():
                statistics.forget_completions(self._clock.unix())
                self._changed.add((node, tier))
                self._placement.place(entry, tier)

    # What this router does and measures.

    def begin_hold(self, node: str, hold: str) -> None:
        """Keep work from a node, for a reason of this router's own."""
        entry = self._entry(node)
        entry.own_holds |= {hold}
        self._apply_holds(entry)

    def end_hold(self, node: str, hold: str) -> None:
        """End a hold of this router's own."""
        entry = self._entry(node)
        entry.own_holds -= {hold}
        self._apply_holds(entry)

    def _apply_holds(self, entry: NodeEntry) -> None:
        entry.view = _with_incidents(entry.view, entry.verifier_incidents | entry.own_holds)
        self._placement.check_gates(entry)

    def start_work(self, node: str, workload: Workload, *, is_check: bool = False) -> int:
        """Note that a request for a node begins; returns its number, by which its end is told."""
        entry = self._entry(node)
        number = _statistics_of(entry, workload.standing_key).load.begin_request(is_check=is_check)
        if not is_check:
            # A check takes nothing of what the operator's nodes may have in flight.
            entry.in_flight[workload.name] = entry.in_flight.get(workload.name, 0) + 1
            self._placement.count_request(entry.key[0], workload.name, 1)
        self._placement.place(entry, workload.standing_key)
        return number

    def end_work(
        self,
        node: str,
        workload: Workload,
        execution: Execution,
        number: int | None = None,
        *,
        is_check: bool = False,
    ) -> None:
        """Note that a request at a node has ended, and how; *number* is the one that `start_work` gave."""
        entry = self._entry(node)
        now = self._clock.monotonic()
        if not is_check:
            self._placement.free_place(entry, workload.name)
        statistics = _statistics_of(entry, workload.standing_key)
        completed = execution.outcome is Outcome.COMPLETED
        # A good end without credit must not close a breaker: it does not show that the node works for others.
        counted = Outcome.UNSUPPORTED if completed and not execution.earns_credit else execution.outcome
        if not statistics.load.end_request(counted, now, number, is_check=is_check):
            execution = replace(execution, is_further=True)
        statistics.add(execution, self._clock.unix())
        if completed:
            entry.heartbeat.note_work(now)
        self._changed.add((node, workload.standing_key))
        self._placement.place(entry, workload.standing_key)

    def blame_node(self, node: str, workload: Workload, outcome: Outcome, number: int | None = None) -> None:
        """Count an execution that ended earlier, and that turns out to be the node's fault."""
        entry = self._entry(node)
        statistics = _statistics_of(entry, workload.standing_key)
        is_own = statistics.load.count_outcome(outcome, self._clock.monotonic(), number)
        statistics.add(Execution(outcome, 0.0, is_blamed=True, is_further=not is_own), self._clock.unix())
        self._changed.add((node, workload.standing_key))
        self._placement.place(entry, workload.standing_key)

    # What is stored, and what other routers measured.

    def restore_statistics(self, node: str, tier: str, aggregate: StatisticsAggregate) -> None:
        """Take up what this router measured before it was restarted."""
        entry = self._entry(node)
        _statistics_of(entry, tier).restore(aggregate, self._clock.unix())
        self._placement.place(entry, tier)

    def merge_peer_statistics(
        self, node: str, tier: str, router: str, aggregate: StatisticsAggregate
    ) -> None:
        """Take in what another router measured."""
        entry = self._entry(node)
        _statistics_of(entry, tier).merge_peer(router, aggregate, self._clock.unix())
        self._placement.place(entry, tier)

    def drain_changes(self) -> list[tuple[str, str, StatisticsAggregate]]:
        """The statistics that changed since the last call, by node and tier, to be stored."""
        changed, self._changed = self._changed, set()
        now = self._clock.unix()
        return [
            (node, tier, self._entries[node].statistics[tier].aggregate(now))
            for node, tier in sorted(changed)
        ]

    def requeue_changes(self, changes: Iterable[tuple[str, str, StatisticsAggregate]]) -> None:
        """Give back changes that could not be stored: the next `drain_changes` has them again."""
        self._changed |= {(node, tier) for node, tier, _ in changes}

    # What time changes.

    def advance(self) -> int:
        """Bring what time alone changes up to now, which it returns: Unix milliseconds."""
        return self._placement.advance(self._entries)

    def sweep(self, count: int) -> None:
        """Check the objectives of the next *count* nodes: standings fade, and quantiles cost too much per request."""
        now = self._clock.unix()
        for _ in range(min(count, len(self._swept))):
            entry = self._swept[self._next_swept]
            self._next_swept = (self._next_swept + 1) % len(self._swept)
            for tier, statistics in entry.statistics.items():
                pace = statistics.pace
                statistics.check_objectives(self._placement.workload_of_tier(tier), now)
                if pace != statistics.pace:
                    self._placement.check_gates(entry)
                self._placement.place(entry, tier)

    def _entry(self, node: str) -> NodeEntry:
        if node not in self._entries:
            self.put_node(NodeView(node))
        return self._entries[node]


def _with_incidents(view: NodeView, incidents: frozenset[str]) -> NodeView:
    return structs.replace(view, incidents=incidents)


def _statistics_of(entry: NodeEntry, tier: str) -> NodeStatistics:
    statistics = entry.statistics.get(tier)
    if statistics is None:
        statistics = entry.statistics[tier] = NodeStatistics()
    return statistics
