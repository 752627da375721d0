"""
The fleet as one router knows it: kept by events, so that a decision need not look at it whole.

What comes in: results and incidents (`router.state.feed`), answers to probes, work begun and ended,
what other routers have seen.  Each event moves the few nodes it is about from lane to lane;
time moves them too, by a heap of when each is next due.  What goes out is a `FleetView` for
each workload, in constant time.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from router.choose import gates
from router.choose.candidates import Key, Lane
from router.choose.decision import FleetView
from router.choose.gates import GateContext, GateVerdict
from router.model.clock import Clock
from router.model.liveness import SUSPECT, UNAVAILABLE, Heartbeat
from router.model.node import NodeView
from router.model.outcomes import Outcome
from router.model.standing import PROVEN, Grade
from router.model.statistics import NodeStatistics, StatisticsAggregate
from router.model.workload import Table, Workload
from router.state.pool import WorkloadPool

_FAR: Final = 1e9
"""Seconds: silence from the beginning."""


@dataclass(eq=False)
class Entry:
    """One node: what was said of it, and what was seen."""

    key: Key
    view: NodeView
    heartbeat: Heartbeat
    said: frozenset[str] = frozenset()
    """Open incidents by the verifier's word; the view has the router's own beside them."""
    own_holds: set[str] = field(default_factory=set)
    tiers: dict[str, NodeStatistics] = field(default_factory=dict)
    under_way: dict[str, int] = field(default_factory=dict)
    """Requests that this router has under way there, by workload."""
    due_ms: float = math.inf
    """When a timer is set for it, on the wall clock."""
    due: float = math.inf
    """Likewise on the monotonic one."""


class Fleet:
    """All nodes, in the lanes of all workloads."""

    def __init__(self, table: Table, clock: Clock, *, probe_every_s: float = 5.0) -> None:
        self._clock = clock
        self._probe_every_s = probe_every_s
        self._entries: dict[str, Entry] = {}
        self._operators: dict[str, set[str]] = {}
        self._holds: dict[str, dict[str, float]] = {}
        """By operator, the open incidents of its nodes with the time they were opened."""
        self._held_since: dict[str, float] = {}
        """The first of those times."""
        self._wall: list[tuple[float, str]] = []
        self._ticks: list[tuple[float, str]] = []
        self._heard: float | None = None
        self._sweep: Iterator[str] = iter(())
        self._changed: set[tuple[str, str]] = set()
        self.version = clock.now_ms()
        """Of who may do what.  It begins with the time, so that no two processes share one."""
        self.table = table
        self._pools: dict[str, WorkloadPool] = {}
        self._by_tier: dict[str, list[WorkloadPool]] = {}
        self.use(table)

    # What the router reads.

    def __contains__(self, node: str) -> bool:
        return node in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def nodes(self) -> Iterable[str]:
        """All that are known."""
        return self._entries.keys()

    def view(self, node: str) -> NodeView:
        """What was said of a node; nothing, for one that is not known."""
        entry = self._entries.get(node)
        return NodeView(node) if entry is None else entry.view

    def heartbeat(self, node: str) -> Heartbeat | None:
        """What is known of a node's answers to probes."""
        entry = self._entries.get(node)
        return None if entry is None else entry.heartbeat

    def kept(self, node: str, tier: str) -> NodeStatistics | None:
        """What was seen of a node for a tier."""
        entry = self._entries.get(node)
        return None if entry is None else entry.tiers.get(tier)

    def tiers(self, node: str) -> Mapping[str, NodeStatistics]:
        """What was seen of a node, by tier."""
        entry = self._entries.get(node)
        return {} if entry is None else entry.tiers

    def under_way(self, node: str) -> int:
        """Requests that this router has under way at a node."""
        return sum(kept.load.in_flight for kept in self.tiers(node).values())

    @property
    def silent_s(self) -> float:
        """How long nothing was heard from the verifier."""
        return _FAR if self._heard is None else self._clock.monotonic() - self._heard

    def snapshot(self, workload: Workload) -> FleetView:
        """What a decision about *workload* rests on now."""
        self.advance()
        pool = self._pools[workload.name]
        return FleetView(self.version, self._clock.now_ms(), pool, pool.closed, self.silent_s)

    def excluded(self, workload: Workload, version: int | None = None) -> dict[str, GateVerdict]:
        """
        Every node that may not do the work, with the first gate that is closed to it.

        With *version*, as of then; nodes whose story is not kept back to it are left out.
        """
        pool = self._pools.get(workload.name)
        return {} if pool is None else pool.excluded(version)

    def verdict(self, node: str, workload: Workload) -> GateVerdict | None:
        """What keeps a node from the work now: work must not go where trust has gone."""
        self.advance()
        if self.silent_s > gates.FEED_SILENT_S:
            return GateVerdict(
                "incident", gates.FEED_SILENT, f"nothing heard for {min(self.silent_s, _FAR):.0f} s"
            )
        pool = self._pools.get(workload.name)
        if pool is None or node not in self._entries:
            return gates.check(self.view(node), workload, self._around(node, workload))
        return pool.verdict(node)

    def lane(self, node: str, workload: Workload) -> Lane | None:
        """The lane in which a node stands."""
        pool = self._pools.get(workload.name)
        return None if pool is None else pool.lane(node)

    def census(self) -> dict[str, dict[str, int]]:
        """How many nodes stand in each lane, by workload."""
        return {
            name: {str(lane): count for lane, count in pool.sizes.items()}
            for name, pool in self._pools.items()
        }

    def closed(self, workload: str) -> dict[str, int]:
        """How many nodes each code keeps out of a workload."""
        return dict(self._pools[workload].closed)

    # What happens.

    def heard(self) -> None:
        """The verifier was heard and understood."""
        self._heard = self._clock.monotonic()

    def use(self, table: Table) -> None:
        """Another table of workloads from now on: every node is judged anew."""
        self.table = table
        self._pools = {name: WorkloadPool(self, workload) for name, workload in table.workloads.items()}
        self._by_tier = {}
        for pool in self._pools.values():
            self._by_tier.setdefault(pool.workload.standing_key, []).append(pool)
        for entry in self._entries.values():
            self._count(entry.key[0], entry.under_way)
            self._settle(entry)

    def put(self, view: NodeView) -> None:
        """What was said of a node, anew.  Its incidents are those of the verifier."""
        entry = self._entries.get(view.node)
        key = (view.operator, view.node)
        if entry is None:
            entry = Entry(key, view, Heartbeat(self._probe_every_s))
            self._entries[view.node] = entry
            self._operators.setdefault(key[0], set()).add(view.node)
        elif entry.key != key:
            # A result can name the operator of a node that was first heard of by an incident.
            self._leave(entry)
            self._count(entry.key[0], entry.under_way, -1)
            self._count(key[0], entry.under_way)
            self._operators[entry.key[0]].discard(view.node)
            self._operators.setdefault(key[0], set()).add(view.node)
            entry.key = key
        if view.retired:
            # Nothing that happens to its operator's other nodes changes anything for it.
            self._operators[key[0]].discard(view.node)
        entry.said = view.incidents
        entry.view = replace(view, incidents=view.incidents | entry.own_holds)
        self._settle(entry)

    def drop(self, node: str) -> None:
        """A node of which the verifier says nothing any more; what was seen of it is kept."""
        self.put(NodeView(node))

    def hold(self, node: str, hold: str) -> None:
        """The router itself keeps work from a node."""
        self._own_hold(node, hold, add=True)

    def let_go(self, node: str, hold: str) -> None:
        """A hold of the router's own is over."""
        self._own_hold(node, hold, add=False)

    def _own_hold(self, node: str, hold: str, *, add: bool) -> None:
        if node not in self._entries:
            self.put(NodeView(node))
        entry = self._entries[node]
        (entry.own_holds.add if add else entry.own_holds.discard)(hold)
        entry.view = replace(entry.view, incidents=entry.said | entry.own_holds)
        self._settle(entry)

    def operator_held(self, operator: str, incident: str, opened: float | None) -> None:
        """An incident of one of an operator's nodes is open since then; `None`: it is over."""
        held = self._holds.setdefault(operator, {})
        if opened is None:
            held.pop(incident, None)
        else:
            held[incident] = opened
        since = min(held.values(), default=None)
        if not held:
            del self._holds[operator]
        if since == self._held_since.get(operator):
            return
        if since is None:
            del self._held_since[operator]
        else:
            self._held_since[operator] = since
        for node in list(self._operators.get(operator, ())):
            self._settle(self._entries[node])

    def released(self, node: str) -> None:
        """A person has let a node out of quarantine: to probation, its good works forgotten."""
        entry = self._entries.get(node)
        if entry is not None:
            for tier, kept in entry.tiers.items():
                kept.start_over(self._clock.unix())
                self._changed.add((node, tier))
                self._place(entry, tier)

    def probed_every(self, seconds: float) -> None:
        """How often nodes are asked from now on."""
        self._probe_every_s = seconds
        for entry in self._entries.values():
            entry.heartbeat.expect(seconds)

    def asked(self, node: str) -> None:
        """A node is asked whether it is there."""
        entry = self._entries.get(node)
        if entry is not None and entry.heartbeat.heard is None:
            entry.heartbeat.asked(self._clock.monotonic())
            self._place_everywhere(entry)

    def answered(self, node: str) -> None:
        """A node answered a probe."""
        entry = self._entries.get(node)
        if entry is not None:
            entry.heartbeat.answered(self._clock.monotonic())
            self._place_everywhere(entry)

    def started(self, node: str, workload: Workload) -> None:
        """Work for a node begins."""
        entry = self._entry(node)
        self._kept(entry, workload).load.in_flight += 1
        entry.under_way[workload.name] = entry.under_way.get(workload.name, 0) + 1
        self._count(entry.key[0], {workload.name: 1})
        self._place(entry, workload.standing_key)

    def ended(
        self,
        node: str,
        workload: Workload,
        outcome: Outcome,
        seconds: float,
        *,
        clean: bool = True,
        credit: bool = True,
        first_s: float | None = None,
        token_s: float | None = None,
    ) -> None:
        """
        Work at a node is over.

        Args:
            node: The node.
            workload: What it was for.
            outcome: How it ended.
            seconds: How long it took.
            clean: Whether it kept to the protocol and told the truth of what it used.
            credit: Whether a good end counts for it.
            first_s: Seconds to the first token, of a stream.
            token_s: Seconds for each token after it.
        """
        entry = self._entry(node)
        kept = self._kept(entry, workload)
        now = self._clock.monotonic()
        left = entry.under_way.pop(workload.name, 0) - 1
        if left >= 0:
            self._count(entry.key[0], {workload.name: -1})
        if left > 0:
            entry.under_way[workload.name] = left
        # Nor does what earns nothing shut a breaker: it is no sign that the node works for others.
        unearned = outcome is Outcome.COMPLETED and not credit
        kept.load.ended(Outcome.UNSUPPORTED if unearned else outcome, now)
        kept.ended(outcome, seconds, self._clock.unix(), clean=clean, credit=credit)
        if outcome is Outcome.COMPLETED:
            entry.heartbeat.served(now)
            if credit:
                kept.took(seconds, first_s, token_s, self._clock.unix())
        self._changed.add((node, workload.standing_key))
        self._place(entry, workload.standing_key)

    def blamed(self, node: str, workload: Workload, outcome: Outcome) -> None:
        """What ended before turns out to be the node's fault."""
        entry = self._entry(node)
        kept = self._kept(entry, workload)
        kept.load.saw(outcome, self._clock.monotonic())
        kept.ended(outcome, 0.0, self._clock.unix())
        self._changed.add((node, workload.standing_key))
        self._place(entry, workload.standing_key)

    def restore(self, node: str, tier: str, account: StatisticsAggregate) -> None:
        """What this router had seen before it was started again."""
        entry = self._entry(node)
        entry.tiers.setdefault(tier, NodeStatistics()).restore(account, self._clock.unix())
        self._place(entry, tier)

    def hear(self, node: str, tier: str, router: str, account: StatisticsAggregate) -> None:
        """What another router has seen."""
        entry = self._entry(node)
        entry.tiers.setdefault(tier, NodeStatistics()).hear(router, account, self._clock.unix())
        self._place(entry, tier)

    def take_changed(self) -> list[tuple[str, str, StatisticsAggregate]]:
        """What changed since the last time, by node and tier, to be written down."""
        changed, self._changed = self._changed, set()
        now = self._clock.unix()
        return [(node, tier, self._entries[node].tiers[tier].account(now)) for node, tier in sorted(changed)]

    def put_back(self, accounts: Iterable[tuple[str, str, StatisticsAggregate]]) -> None:
        """It could not be written down; it is taken again the next time."""
        self._changed |= {(node, tier) for node, tier, _ in accounts}

    def sweep(self, count: int) -> None:
        """Look again at some nodes: standings fade, and quantiles are too dear for every request."""
        now = self._clock.unix()
        for _ in range(min(count, len(self._entries))):
            node = next(self._sweep, None)
            if node is None:
                self._sweep = iter(list(self._entries))
                continue
            entry = self._entries[node]
            for tier, kept in entry.tiers.items():
                pace = kept.pace
                pools = self._by_tier.get(tier, [])
                kept.judge(pools[0].workload if pools else None, now)
                if pace != kept.pace:
                    self._settle(entry)
                self._place(entry, tier)

    def advance(self) -> None:
        """Bring what time alone changes up to now."""
        now_ms, now = self._clock.now_ms(), self._clock.monotonic()
        while self._wall and self._wall[0][0] <= now_ms:
            due, node = heapq.heappop(self._wall)
            entry = self._entries[node]
            if due == entry.due_ms:
                entry.due_ms = math.inf
                self._settle(entry)
        while self._ticks and self._ticks[0][0] <= now:
            due, node = heapq.heappop(self._ticks)
            entry = self._entries[node]
            if due == entry.due:
                entry.due = math.inf
                self._place_everywhere(entry)

    # Where a node stands.

    def _entry(self, node: str) -> Entry:
        if node not in self._entries:
            self.put(NodeView(node))
        return self._entries[node]

    @staticmethod
    def _kept(entry: Entry, workload: Workload) -> NodeStatistics:
        kept = entry.tiers.get(workload.standing_key)
        if kept is None:
            kept = entry.tiers[workload.standing_key] = NodeStatistics()
        return kept

    def _leave(self, entry: Entry) -> None:
        for pool in self._pools.values():
            pool.leave(entry.key)

    def _count(self, operator: str, under_way: Mapping[str, int], sign: int = 1) -> None:
        """Work of an operator's node has begun, or goes with it to another operator."""
        for name, count in under_way.items():
            if name in self._pools:
                self._pools[name].begun(operator, sign * count)

    def _settle(self, entry: Entry) -> None:
        """Ask the gates that fail closed, for every workload."""
        view = entry.view
        due = math.inf
        for pool in self._pools.values():
            around = self._around(view.node, pool.workload)
            verdict = gates.check(view, pool.workload, around)
            pool.closed_by[view.node] = verdict
            # Also where it is closed: the story is told of the first gate that is.
            due = min(due, gates.changes_at(view, pool.workload, around.now_ms))
        if due < entry.due_ms:
            entry.due_ms = due
            heapq.heappush(self._wall, (due, view.node))
        self._place_everywhere(entry)

    def _around(self, node: str, workload: Workload) -> GateContext:
        kept = self.kept(node, workload.standing_key)
        return GateContext(
            self._clock.now_ms(),
            self._held_since.get(self.view(node).operator),
            None if kept is None else kept.pace,
        )

    def _place_everywhere(self, entry: Entry) -> None:
        for tier in self._by_tier:
            self._place(entry, tier)

    def _place(self, entry: Entry, tier: str) -> None:
        """Put a node into the lane in which it belongs now, for each workload of a tier."""
        node = entry.view.node
        now = self._clock.monotonic()
        kept = entry.tiers.get(tier)
        for pool in self._by_tier.get(tier, ()):
            verdict = pool.closed_by.get(node)
            if verdict is not None:
                changed = pool.place(entry.key, kept, None, verdict.code, verdict.detail)
            else:
                changed = pool.place(entry.key, kept, *_lane_of(entry, kept, pool.workload, now))
            if changed:
                self.version += 1
        self._set_timer(entry, now)

    def _set_timer(self, entry: Entry, now: float) -> None:
        due = math.inf
        for phi in (SUSPECT, UNAVAILABLE):
            reached = entry.heartbeat.reaches(phi)
            if reached > now:
                due = min(due, reached)
                break
        for kept in entry.tiers.values():
            if kept.load.open_until > now:
                due = min(due, kept.load.open_until)
        if due < entry.due:
            entry.due = due
            heapq.heappush(self._ticks, (due, entry.view.node))


def _lane_of(
    entry: Entry, kept: NodeStatistics | None, workload: Workload, now: float
) -> tuple[Lane | None, str]:
    """The lane of a node that may do the work, and the code of capacity that closes it."""
    heartbeat = entry.heartbeat
    if kept is None:
        if now >= heartbeat.reaches(UNAVAILABLE):
            return Lane.BROKEN, "capacity.silent"
        return Lane.PROBATION, ""
    load = kept.load
    # Room first: it never gives way, and the others may.
    if load.in_flight >= workload.concurrency:
        return None, "capacity.full"
    if load.is_open(now):
        return Lane.BROKEN, "capacity.breaker"
    if now >= heartbeat.reaches(UNAVAILABLE):
        return Lane.BROKEN, "capacity.silent"
    tier = kept.rating.tier
    if tier is Grade.DEGRADED:
        return Lane.DEGRADED, ""
    if tier is Grade.ESTABLISHED and now < heartbeat.reaches(SUSPECT):
        return Lane.ESTABLISHED, ""
    # Warm-up goes by evidence, not by time: who has done little is given little at a time.
    allowance = max(1, int(workload.concurrency * min(kept.proven, PROVEN) / PROVEN))
    if load.in_flight >= allowance:
        return Lane.WARMING, "capacity.warming"
    return Lane.PROBATION, ""
