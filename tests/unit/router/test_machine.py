"""The fleet against a slow recount, after any sequence of events."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router.choose import gates
from router.choose.candidates import LANES, Lane
from router.choose.decision import Decision, decide, replay
from router.choose.gates import FAIL_OPEN_CODES, GateContext
from router.choose.requirements import find_unmet
from router.model.clock import Clock
from router.model.liveness import SUSPECT, UNAVAILABLE
from router.model.load import BREAKER_FAILURES
from router.model.node import NodeView
from router.model.outcomes import Execution, Outcome
from router.model.requirements import CallerRequirements, read_requirements
from router.model.standing import PROVEN, Grade, Standing
from router.model.statistics import StatisticsAggregate
from router.model.workload import Table, Workload
from router.state.fleet import Fleet
from router.state.narrowed import NarrowedPool
from tests.unit.router.support import MODEL, NOW, PLATFORM, view

CHAT = Workload(MODEL, name="chat", tier="large", concurrency=3, max_operator_share=50)
BATCH = Workload(MODEL, name="batch", tier="large", concurrency=8, max_age_s=900, answer_p90_ms=500)
TINY = Workload(MODEL, name="tiny", min_tokens_per_second=20, token_p90_ms=100, max_operator_share=20)
STRICT = msgspec.structs.replace(CHAT, max_age_s=60, concurrency=1, max_operator_share=30)
TABLES = [(CHAT, BATCH, TINY), (STRICT, TINY), (msgspec.structs.replace(CHAT, tier="small"), BATCH)]

names = st.sampled_from(["a", "b", "c", "d", "e"])
operators = st.sampled_from(["", "acme", "beta"])
FAULTS: list[dict[str, Any]] = [
    {},
    {},
    {},
    {},
    {"revoked": True},
    {"retired": True},
    {"incidents": frozenset({"i"})},
    {"endpoint": {}},
    {"platform": {**PLATFORM, "configuration": 96}},
    {"without": ("platform",)},
]
REQUIRED: list[dict[str, Any]] = [
    {"max_age_s": 50},
    {"nodes": ["a", "b"]},
    {"operators": ["acme"]},
    {"not_operators": ["beta"], "max_age_s": 60},
    {"claims": {"model": ["executables"]}, "not_nodes": ["c"]},
]
"""What callers ask for themselves."""
STANDINGS = [
    Standing(),
    Standing((100.0, 100.0), at=NOW, latency_s=1.0),
    Standing((9.0, 9.0), at=NOW),
    Standing((0.0, 0.0), (30.0, 30.0), at=NOW),
    Standing((200.0, 200.0), exchanges=200.0, rejects=50.0, at=NOW),
]
FADING_S = 3600.0


class Events(RuleBasedStateMachine):
    """Whatever comes in, everybody stands where the facts put them."""

    def __init__(self) -> None:
        super().__init__()
        self.ms, self.ticks = NOW * 1000, 1000.0
        self.clock = Clock(lambda: self.ms, lambda: self.ticks)
        self.fleet = Fleet(Table(TABLES[0]), self.clock)
        self.workloads: tuple[Workload, ...] = TABLES[0]
        # What was said, kept in the plainest way there is.
        self.said: dict[str, NodeView] = {}
        self.own_holds: dict[str, set[str]] = {}
        self.held: dict[str, dict[str, float]] = {}
        self.under_way: list[tuple[str, Workload]] = []
        self.before: tuple[int, dict[Any, Any]] = (self.fleet.version, {})
        self.told: dict[int, dict[tuple[str, str], str]] = {}
        self.narrowed: list[tuple[Workload, CallerRequirements, NarrowedPool]] = []

    # What happens.

    @initialize()
    def begin(self) -> None:
        self.fleet.note_verifier_contact()

    def know(self, node: str) -> None:
        self.said.setdefault(node, NodeView(node))

    @rule(
        node=names,
        operator=operators,
        fault=st.sampled_from(FAULTS),
        age=st.sampled_from([0, 0, 50, 299, 400]),
        life=st.sampled_from([1, 100, 600]),
        enrolled=st.sampled_from([NOW - 5000, NOW - 10]),
    )
    def put(
        self, node: str, operator: str, fault: dict[str, Any], age: int, life: int, enrolled: int
    ) -> None:
        now = self.clock.now_ms() // 1000
        given = {"operator": operator} if operator else {}
        said = view(node, iat=now - age, exp=now + life, enrolled=enrolled, **given, **fault)
        # By the clock that nobody sets, it may be younger than it says.
        self.said[node] = msgspec.structs.replace(said, issued_at=self.ticks - age / 2)
        self.fleet.put_node(self.said[node])

    @rule(node=names)
    def drop(self, node: str) -> None:
        self.said[node] = NodeView(node)
        self.fleet.drop_node(node)

    @rule(node=names, hold=st.sampled_from(["h", "k"]))
    def hold(self, node: str, hold: str) -> None:
        self.know(node)
        self.own_holds.setdefault(node, set()).add(hold)
        self.fleet.begin_hold(node, hold)

    @rule(node=names, hold=st.sampled_from(["h", "k"]))
    def let_go(self, node: str, hold: str) -> None:
        self.know(node)
        self.own_holds.setdefault(node, set()).discard(hold)
        self.fleet.end_hold(node, hold)

    @rule(
        operator=operators,
        incident=st.sampled_from(["i", "j"]),
        opened=st.sampled_from([None, NOW - 9000.5, NOW - 100.5, NOW + 0.5]),
    )
    def operator_held(self, operator: str, incident: str, opened: float | None) -> None:
        held = self.held.setdefault(operator, {})
        if opened is None:
            held.pop(incident, None)
        else:
            held[incident] = opened
        self.fleet.set_operator_incident(operator, incident, opened)

    @rule(node=names, which=st.integers(0, 2), count=st.sampled_from([1, 1, 2, 9]))
    def started(self, node: str, which: int, count: int) -> None:
        workload = self.workloads[which % len(self.workloads)]
        self.know(node)
        for _ in range(count):
            self.under_way.append((node, workload))
            self.fleet.start_work(node, workload)

    @rule(
        which=st.integers(0, 50),
        count=st.sampled_from([1, 1, 1, 5]),
        outcome=st.sampled_from([Outcome.COMPLETED] * 6 + [Outcome.BUSY] * 2 + list(Outcome)),
        seconds=st.sampled_from([0.01, 0.4, 2.0]),
        clean=st.booleans(),
        credit=st.booleans(),
        stream=st.booleans(),
    )
    def ended(self, which, count, outcome, seconds, clean, credit, stream) -> None:
        for _ in range(min(count, len(self.under_way))):
            node, workload = self.under_way.pop(which % len(self.under_way))
            times = {"first_token_s": seconds, "token_s": seconds} if stream else {}
            self.fleet.end_work(
                node, workload, Execution(outcome, seconds, is_clean=clean, earns_credit=credit, **times)
            )

    @rule(node=names, which=st.integers(0, 2), outcome=st.sampled_from(list(Outcome)))
    def ended_without_a_beginning(self, node: str, which: int, outcome: Outcome) -> None:
        workload = self.workloads[which % len(self.workloads)]
        if (node, workload) not in self.under_way:
            # Of the same tier another may be under way, and a place freed twice is freed once too often.
            others = [w for n, w in self.under_way if n == node and w.standing_key == workload.standing_key]
            if not others:
                self.know(node)
                self.fleet.end_work(node, workload, Execution(outcome, 1.0))

    @rule(
        node=names,
        count=st.sampled_from([3, 30]),
        seconds=st.sampled_from([0.01, 2.0]),
        which=st.integers(0, 2),
    )
    def completed(self, node: str, count: int, seconds: float, which: int) -> None:
        workload = self.workloads[which % len(self.workloads)]
        self.know(node)
        for _ in range(count):
            self.fleet.start_work(node, workload)
            self.fleet.end_work(
                node, workload, Execution(Outcome.COMPLETED, seconds, first_token_s=seconds, token_s=seconds)
            )

    @rule(node=names, which=st.integers(0, 2), count=st.sampled_from([1, 3, 5]))
    def failed(self, node: str, which: int, count: int) -> None:
        workload = self.workloads[which % len(self.workloads)]
        self.know(node)
        for _ in range(count):
            self.fleet.start_work(node, workload)
            self.fleet.end_work(node, workload, Execution(Outcome.BUSY, 1.0))

    @rule(node=names, which=st.integers(0, 2))
    def blamed(self, node: str, which: int) -> None:
        self.know(node)
        self.fleet.blame_node(node, self.workloads[which % len(self.workloads)], Outcome.CRASHED)

    @rule(node=names)
    def answered(self, node: str) -> None:
        self.fleet.note_probe_answer(node)

    @rule(seconds=st.sampled_from([0.0, 0.001, 1.0, 4.9, 10.0, 17.2, 59.0, 301.0, FADING_S]))
    def time_passes(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)
        self.ticks += seconds

    @rule(seconds=st.sampled_from([-86400, -301, -5, 5, 301, 4000]))
    def wall_clock_jumps(self, seconds: int) -> None:
        self.ms += seconds * 1000

    @rule(count=st.sampled_from([0, 1, 3, 20]))
    def sweep(self, count: int) -> None:
        self.fleet.sweep(count)

    @rule(which=st.integers(0, len(TABLES) - 1))
    def use(self, which: int) -> None:
        self.workloads = TABLES[which]
        self.fleet.use_table(Table(self.workloads))
        # Stories begin anew with the table.
        self.told, self.before = {}, (self.fleet.version, {})
        self.narrowed = []

    @rule(which=st.integers(0, 2), asked=st.sampled_from(REQUIRED))
    def required(self, which: int, asked: dict[str, Any]) -> None:
        """A caller asks for nodes of its own taste: from now on the pool of those is kept."""
        workload = self.workloads[which % len(self.workloads)]
        required = read_requirements(asked, workload)
        preparing = self.fleet.narrowings.prepare(workload, required, "caller")
        try:
            preparing.send(None)
        except StopIteration as done:
            if all(pool is not done.value for _, _, pool in self.narrowed):
                self.narrowed.append((workload, required, done.value))

    @rule(
        node=names,
        tier=st.sampled_from(["large", "small", MODEL, "none"]),
        standing=st.sampled_from(STANDINGS),
    )
    def restore(self, node: str, tier: str, standing: Standing) -> None:
        self.know(node)
        self.fleet.restore_statistics(node, tier, StatisticsAggregate(standing))

    @rule(
        node=names,
        tier=st.sampled_from(["large", "small", MODEL, "none"]),
        router=st.sampled_from(["r", "s"]),
        standing=st.sampled_from(STANDINGS),
    )
    def hear(self, node: str, tier: str, router: str, standing: Standing) -> None:
        self.know(node)
        self.fleet.merge_peer_statistics(node, tier, router, StatisticsAggregate(standing))

    @rule(node=names)
    def released(self, node: str) -> None:
        self.fleet.release_node(node)

    @rule(seconds=st.sampled_from([1.0, 5.0, 30.0]))
    def probed_every(self, seconds: float) -> None:
        self.fleet.set_probe_interval(seconds)

    @rule()
    def heard(self) -> None:
        self.fleet.note_verifier_contact()

    @rule(lost=st.booleans())
    def written_down(self, lost: bool) -> None:  # noqa: FBT001
        taken = self.fleet.drain_changes()
        if lost:
            self.fleet.requeue_changes(taken)

    # What must hold.

    def expected(self, node: str, workload: Workload) -> tuple[Lane | None, str]:
        """By the facts, and by nothing that was kept of them."""
        said = self.said[node]
        known = msgspec.structs.replace(said, incidents=said.incidents | self.own_holds.get(node, set()))
        held = self.held.get(said.operator)
        kept = self.fleet.statistics(node, workload.standing_key)
        around = GateContext(
            self.clock.now_ms(),
            min(held.values()) if held else None,
            None if kept is None else kept.pace,
            self.ticks,
        )
        verdict = gates.check(known, workload, around)
        if verdict is not None:
            return None, verdict.code
        heart = self.fleet.heartbeat(node)
        phi = 0.0 if heart is None else heart.phi(self.ticks)
        load = sum(n == node and w.standing_key == workload.standing_key for n, w in self.under_way)
        rating = Grade.PROBATION if kept is None else kept.rating.grade
        if load >= workload.concurrency:
            return None, "capacity.full"
        failing = kept is not None and kept.load.failures_in_a_row >= BREAKER_FAILURES
        if failing and (load or self.ticks < kept.load.open_until):
            return Lane.BROKEN, "capacity.breaker"
        if phi >= UNAVAILABLE:
            return Lane.BROKEN, "capacity.silent"
        if rating is Grade.DEGRADED:
            return Lane.DEGRADED, ""
        if rating is Grade.ESTABLISHED and phi < SUSPECT:
            return Lane.ESTABLISHED, ""
        proven = 0.0 if kept is None else min(kept.proven, PROVEN)
        if load >= max(1, int(workload.concurrency * proven / PROVEN)):
            return Lane.WARMING, "capacity.warming"
        return Lane.PROBATION, ""

    def stands(self) -> dict[tuple[str, str], tuple[Lane | None, str]]:
        self.fleet.advance()
        found = {}
        for workload in self.workloads:
            excluded = self.fleet.excluded(workload)
            for node in self.fleet.nodes():
                code = excluded[node].code if node in excluded else ""
                found[workload.name, node] = (self.fleet.lane(node, workload), code)
        return found

    @invariant()
    def everybody_stands_where_the_facts_put_them(self) -> None:
        """Also right after the wall clock was set, ahead or back."""
        stands = self.stands()
        assert {node for _, node in stands} == self.said.keys()
        by_name = {workload.name: workload for workload in self.workloads}
        for (name, node), found in stands.items():
            assert found == self.expected(node, by_name[name])

    @invariant()
    def counts_are_those_of_a_recount(self) -> None:
        """Of lanes and of codes; and none is below nothing."""
        stands, census = self.stands(), self.fleet.census()
        for workload in self.workloads:
            here = [found for (name, _), found in stands.items() if name == workload.name]
            lanes = Counter(str(lane) for lane, _ in here if lane is not None)
            assert census[workload.name] == {str(lane): lanes[str(lane)] for lane in LANES}
            assert self.fleet.closed(workload.name) == Counter(code for _, code in here if code)

    @invariant()
    def who_meets_requirements_is_that_of_a_recount(self) -> None:
        """Never a node that the workload does not let in, and each of the others where it stands."""
        stands = self.stands()
        context = GateContext(self.clock.now_ms(), monotonic=self.ticks)
        for workload, required, pool in self.narrowed:
            expected: Counter[tuple[Lane | None, str]] = Counter()
            for (name, node), (lane, code) in stands.items():
                if name != workload.name:
                    continue
                if code and not code.startswith("capacity."):
                    expected[None, code] += 1
                    continue
                verdict = find_unmet(self.fleet.view(node), required, MODEL, context)
                if verdict is None:
                    expected[lane, code] += 1
                    if lane is not None:
                        at = (self.said[node].operator, node)
                        assert at in [pool.lanes[lane].at(n) for n in range(len(pool.lanes[lane]))]
                else:
                    expected[None, verdict.code] += 1
            lanes: Counter[Lane] = Counter()
            codes: Counter[str] = Counter()
            for (lane, code), count in expected.items():
                lanes[lane] += count if lane is not None else 0
                codes[code] += count if code else 0
            assert pool.sizes == {lane: lanes[lane] for lane in LANES}
            assert {code: n for code, n in pool.closed.items() if n} == +codes
            assert pool.met == sum(
                count
                for (lane, code), count in expected.items()
                if lane is not None or code.startswith("capacity.")
            )

    @invariant()
    def everybody_is_in_one_lane_or_excluded(self) -> None:
        """And in a lane that gives way exactly by a code that gives way."""
        for lane, code in self.stands().values():
            assert (lane is None) == (bool(code) and code not in FAIL_OPEN_CODES)

    @invariant()
    def work_under_way_is_that_of_a_recount(self) -> None:
        """By node, and by operator of each workload."""
        for node in self.fleet.nodes():
            assert self.fleet.in_flight(node) == sum(n == node for n, _ in self.under_way)
        for workload in self.workloads:
            pool = self.fleet.view_for(workload).pool
            count = Counter(self.said[n].operator for n, w in self.under_way if w.name == workload.name)
            for operator in ("", "acme", "beta"):
                share = 100 * count[operator] >= workload.max_operator_share * count.total()
                assert pool.has_full_share(operator) == (
                    workload.max_operator_share < 100 and count.total() >= 10 and share
                )

    @invariant()
    def the_version_grows_when_anybody_moves(self) -> None:
        """And the story of each version is what was told at the time."""
        stands = self.stands()
        version, before = self.before
        assert self.fleet.version > version if before not in ({}, stands) else self.fleet.version >= version
        self.before = (self.fleet.version, stands)
        self.told[self.fleet.version] = {place: code for place, (_, code) in stands.items()}
        for then, codes in self.told.items():
            for workload in self.workloads:
                for node, verdict in self.fleet.excluded(workload, then).items():
                    assert verdict.code == codes[workload.name, node]

    @invariant()
    def a_decision_is_made_and_comes_back(self) -> None:
        """Whatever happened."""
        for workload in self.workloads:
            decision = decide(self.fleet.view_for(workload), workload, self.ms & 0xFFFF)
            for entry in decision.ranked:
                assert self.fleet.lane(entry.node, workload) is entry.lane
            record = msgspec.json.decode(msgspec.json.encode(decision.to_wire()))
            assert replay(Decision.from_wire(record)) == decision


TestEvents = Events.TestCase
TestEvents.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
