"""The fleet: who stands where, by what happens to them and by time alone."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from router.choose.candidates import Lane
from router.choose.decision import Decision, decide
from router.model.clock import Clock
from router.model.load import BREAKER_LONGEST_S
from router.model.node import NodeView
from router.model.outcomes import Execution, Outcome
from router.model.quantiles import RecentDurations
from router.model.standing import PROVEN, Standing
from router.model.statistics import StatisticsAggregate
from router.model.workload import Table, Workload
from router.state.fleet import Fleet
from tests.unit.router.support import MODEL, NOW, nodes_of, view

WORKLOAD = Workload(MODEL, name="tiny", tier="small", concurrency=8)
GOOD = Standing((100.0, 100.0), at=NOW, latency_s=1.0)


class Told:
    """A fleet, and the clock that its tests move."""

    def __init__(self, *workloads: Workload) -> None:
        self.ms = NOW * 1000
        self.ticks = 1000.0
        self.workloads = workloads or (WORKLOAD,)
        self.fleet = Fleet(Table(self.workloads), Clock(lambda: self.ms, lambda: self.ticks))
        self.fleet.note_verifier_contact()

    def forward(self, seconds: float) -> None:
        """Time goes by, and the verifier is heard all along."""
        self.ms += round(seconds * 1000)
        self.ticks += seconds
        self.fleet.note_verifier_contact()

    def put(self, *names: str, standing: Standing | None = None, **given: Any) -> None:
        given.setdefault("iat", self.ms // 1000)
        for name in names:
            self.fleet.put_node(view(name, **given))
            if standing is not None:
                self.fleet.restore_statistics(
                    name, self.workloads[0].standing_key, StatisticsAggregate(standing)
                )

    def do(self, *outcomes: Outcome, node: str = "n", workload: Workload | None = None, **given: Any) -> None:
        for outcome in outcomes:
            self.fleet.start_work(node, workload or self.workloads[0])
            self.fleet.end_work(node, workload or self.workloads[0], Execution(outcome, 1.0, **given))

    def decide(self, seed: int = 0, workload: Workload | None = None) -> Decision:
        workload = workload or self.workloads[0]
        return decide(self.fleet.view_for(workload), workload, seed)

    def code(self, node: str = "n", workload: Workload | None = None) -> str | None:
        verdict = self.fleet.verdict(node, workload or self.workloads[0])
        return None if verdict is None else verdict.code

    def lane(self, node: str = "n", workload: Workload | None = None) -> Lane | None:
        self.fleet.advance()
        return self.fleet.lane(node, workload or self.workloads[0])


@pytest.fixture
def told() -> Told:
    return Told()


# Time alone.


@pytest.mark.parametrize(("waited", "expected"), [(99.999, None), (100.0, "result.expired")])
def test_a_result_runs_out_without_any_event(told: Told, waited: float, expected: str | None) -> None:
    """In the second it names."""
    told.put("n", exp=NOW + 100)
    told.forward(waited)
    assert told.code() == expected


@pytest.mark.parametrize(("waited", "expected"), [(300.999, None), (301.0, "result.old")])
def test_a_result_grows_too_old_without_any_event(told: Told, waited: float, expected: str | None) -> None:
    """Its last second counts still."""
    told.put("n", exp=NOW + 9000)
    told.forward(waited)
    assert told.code() == expected


def test_a_result_that_runs_out_empties_the_pool(told: Told) -> None:
    """A decision asks time too, not only a look at one node."""
    told.put("n", exp=NOW + 100)
    told.forward(100.0)
    assert (told.decide().ranked, told.decide().closed) == ((), {"result.expired": 1})


def test_each_workload_has_an_age_of_its_own() -> None:
    """What is too old for one may do for another."""
    strict = msgspec.structs.replace(WORKLOAD, name="strict", max_age_s=10)
    told = Told(WORKLOAD, strict)
    told.put("n")
    told.forward(11.0)
    assert (told.code(workload=strict), told.code()) == ("result.old", None)


def test_a_newer_result_is_not_ended_by_the_timer_of_the_one_before(told: Told) -> None:
    """Timers of what was replaced come to nothing."""
    told.put("n", exp=NOW + 100)
    told.forward(50.0)
    told.put("n", exp=NOW + 400)
    told.forward(60.0)
    assert told.code() is None


def test_the_story_of_a_held_node_goes_on_when_its_result_runs_out(told: Told) -> None:
    """It is told of the first gate that is closed, whichever closed first."""
    told.put("n", exp=NOW + 100, incidents=frozenset({"i"}))
    before = told.code()
    told.forward(100.0)
    assert (before, told.code()) == ("incident.quarantine", "result.expired")


# The breaker.


def test_a_breaker_opens_after_three_failures_in_a_row(told: Told) -> None:
    """And closes the node to work where there is anybody else."""
    told.put("n", standing=GOOD)
    told.do(*[Outcome.BUSY] * 2)
    before = told.lane()
    told.do(Outcome.BUSY)
    assert (before, told.lane(), told.code()) == (Lane.ESTABLISHED, Lane.BROKEN, "capacity.breaker")


def test_a_breaker_lets_one_probe_through_when_its_time_is_over(told: Told) -> None:
    """By time alone; and while the probe is under way, nobody follows."""
    told.put("n", standing=GOOD)
    told.do(*[Outcome.BUSY] * 3)
    told.forward(10.0)
    free = told.lane()
    told.fleet.start_work("n", WORKLOAD)
    assert (free, told.lane()) == (Lane.ESTABLISHED, Lane.BROKEN)


def test_a_probe_that_comes_through_closes_the_breaker(told: Told) -> None:
    """For good: as many as there is room for may follow."""
    told.put("n", standing=GOOD)
    told.do(*[Outcome.BUSY] * 3)
    told.forward(10.0)
    told.do(Outcome.COMPLETED)
    told.fleet.start_work("n", WORKLOAD)
    assert told.lane() is Lane.ESTABLISHED


@pytest.mark.parametrize(
    ("probes", "opened_s"), [(0, 10.0), (1, 20.0), (2, 40.0), (4, 160.0), (5, BREAKER_LONGEST_S), (9, 300.0)]
)
def test_each_failed_probe_keeps_it_away_for_twice_as_long(told: Told, probes: int, opened_s: float) -> None:
    """Up to five minutes, and then it is tried again."""
    told.put("n", standing=GOOD, exp=NOW + 86400)
    workload = msgspec.structs.replace(WORKLOAD, max_age_s=86400)
    told.fleet.use_table(Table([workload]))
    told.do(*[Outcome.BUSY] * 3)
    for _ in range(probes):
        told.forward(BREAKER_LONGEST_S)
        told.do(Outcome.BUSY)
    told.forward(opened_s - 0.001)
    before = told.lane()
    told.forward(0.002)
    assert (before, told.lane()) == (Lane.BROKEN, Lane.ESTABLISHED)


def test_a_probe_that_is_nobodys_fault_leaves_the_breaker_to_the_next(told: Told) -> None:
    """What a client gave up shows neither that the node works nor that it does not."""
    told.put("n", standing=GOOD)
    told.do(*[Outcome.BUSY] * 3)
    told.forward(10.0)
    told.do(Outcome.ABANDONED)
    free = told.lane()
    told.fleet.start_work("n", WORKLOAD)
    assert (free, told.lane()) == (Lane.ESTABLISHED, Lane.BROKEN)


# Liveness.


def rhythm(told: Told, answers: int = 40, every_s: float = 5.0) -> None:
    for _ in range(answers):
        told.forward(every_s)
        told.put("n", exp=NOW + 86400)
        told.fleet.note_probe_answer("n")


def test_a_node_that_is_late_is_only_tried_and_one_that_is_silent_seems_gone(told: Told) -> None:
    """By time alone: φ of 5, and of 8."""
    told.put("n", standing=GOOD)
    rhythm(told)
    lanes = []
    for silence in (16.9, 0.3, 0.5):
        told.forward(silence)
        lanes.append(told.lane())
    assert lanes == [Lane.ESTABLISHED, Lane.PROBATION, Lane.BROKEN]


def test_a_silent_node_is_named_so(told: Told) -> None:
    """As the gate of capacity has it."""
    told.put("n", standing=GOOD)
    rhythm(told)
    told.forward(60.0)
    assert told.code() == "capacity.silent"


def test_a_silent_newcomer_seems_gone_too(told: Told) -> None:
    """Of whom nothing else is known."""
    told.put("n")
    told.fleet.note_probe_answer("n")
    told.forward(60.0)
    assert told.lane() is Lane.BROKEN


def test_an_answer_brings_a_silent_node_back(told: Told) -> None:
    """At once, to where its standing puts it."""
    told.put("n", standing=GOOD)
    rhythm(told)
    told.forward(60.0)
    told.fleet.advance()
    told.fleet.note_probe_answer("n")
    assert told.lane() is Lane.ESTABLISHED


def test_work_that_is_done_is_a_sign_of_life(told: Told) -> None:
    """A node too busy to answer a probe in time is not gone."""
    told.put("n", standing=GOOD)
    rhythm(told)
    told.forward(15.0)
    told.do(Outcome.COMPLETED)
    told.forward(15.0)
    assert told.lane() is Lane.ESTABLISHED


# Warm-up.


@pytest.mark.parametrize(("completed", "allowance"), [(0, 1), (1, 1), (6, 1), (7, 2), (13, 4), (24, 7)])
def test_who_has_done_little_is_given_little_at_a_time(told: Told, completed: int, allowance: int) -> None:
    """Of a concurrency of eight: by evidence."""
    told.put("n")
    told.do(*[Outcome.COMPLETED] * completed)
    lanes = []
    for _ in range(allowance):
        lanes.append(told.lane())
        told.fleet.start_work("n", WORKLOAD)
    assert ({*lanes}, told.lane(), told.code()) == ({Lane.PROBATION}, Lane.WARMING, "capacity.warming")


def test_waiting_does_not_warm_anybody_up(told: Told) -> None:
    """Time is what a newcomer has plenty of."""
    told.put("n", exp=NOW + 86400)
    told.forward(290.0)
    told.fleet.start_work("n", WORKLOAD)
    assert told.lane() is Lane.WARMING


def test_an_idle_day_does_not_cool_anybody_down(told: Told) -> None:
    """The week's evidence counts, not the hour's."""
    told.put("n", standing=Standing((0.0, 24.0), at=NOW))
    told.fleet.start_work("n", WORKLOAD)
    assert told.lane() is Lane.PROBATION


def test_who_is_established_has_all_its_room(told: Told) -> None:
    """To the last place, and not one more."""
    told.put("n")
    told.do(*[Outcome.COMPLETED] * PROVEN)
    lanes = []
    for _ in range(8):
        lanes.append(told.lane())
        told.fleet.start_work("n", WORKLOAD)
    assert ({*lanes}, told.lane(), told.code()) == ({Lane.ESTABLISHED}, None, "capacity.full")


def test_work_of_its_own_operator_does_not_warm_a_node_up(told: Told) -> None:
    """Without credit there is no evidence."""
    told.put("n")
    told.do(*[Outcome.COMPLETED] * 100, earns_credit=False)
    told.fleet.start_work("n", WORKLOAD)
    assert told.lane() is Lane.WARMING


# Failing open.


@pytest.mark.parametrize(
    ("bad", "opened"),
    [("breaker", "capacity.breaker"), ("silent", "capacity.silent"), ("warming", "capacity.warming")],
)
def test_what_fails_open_says_so(told: Told, bad: str, opened: str) -> None:
    """Better to try than to refuse, where nobody else is left; but nobody is misled about it."""
    told.put("n")
    if bad == "breaker":
        told.do(*[Outcome.BUSY] * 3)
    elif bad == "silent":
        told.fleet.note_probe_answer("n")
        told.forward(60.0)
    else:
        told.fleet.start_work("n", WORKLOAD)
    decision = told.decide()
    assert (nodes_of(decision.ranked), decision.opened) == (["n"], (opened,))


def test_warm_up_gives_way_before_breakers_do(told: Told) -> None:
    """Who works and has little evidence is tried before who does not seem to work."""
    told.put("busy", "dead")
    told.fleet.start_work("busy", WORKLOAD)
    told.do(*[Outcome.BUSY] * 3, node="dead")
    decision = told.decide()
    assert (nodes_of(decision.ranked), decision.opened) == (["busy"], ("capacity.warming",))


def test_a_full_node_never_gives_way(told: Told) -> None:
    """Not as the last one there is."""
    told.put("n", standing=GOOD)
    for _ in range(8):
        told.fleet.start_work("n", WORKLOAD)
    decision = told.decide()
    assert (decision.ranked, decision.opened, decision.closed) == ((), (), {"capacity.full": 1})


def test_a_node_that_frees_a_place_is_open_again(told: Told) -> None:
    """At once."""
    told.put("n", standing=GOOD)
    for _ in range(8):
        told.fleet.start_work("n", WORKLOAD)
    told.fleet.end_work("n", WORKLOAD, Execution(Outcome.COMPLETED, 1.0))
    assert told.lane() is Lane.ESTABLISHED


# Quarantine and release.


def test_what_the_router_holds_itself_outlives_the_verifiers_word(told: Told) -> None:
    """A newer result of the verifier's does not end a hold of the router's own."""
    told.put("n")
    told.fleet.begin_hold("n", "h")
    told.put("n")
    held = told.code()
    told.fleet.end_hold("n", "h")
    assert (held, told.code()) == ("incident.quarantine", None)


def test_a_hold_may_come_before_the_node_is_known(told: Told) -> None:
    """As it does when the router is started again."""
    told.fleet.begin_hold("n", "h")
    told.put("n")
    assert told.code() == "incident.quarantine"


def test_letting_go_of_the_routers_hold_leaves_the_verifiers(told: Told) -> None:
    """Each is decided where it was opened."""
    told.put("n", incidents=frozenset({"i"}))
    told.fleet.begin_hold("n", "h")
    told.fleet.end_hold("n", "h")
    assert told.code() == "incident.quarantine"


def test_who_is_released_is_on_probation_again(told: Told) -> None:
    """Its good works are forgotten, and it is warmed up anew."""
    told.put("n")
    told.do(*[Outcome.COMPLETED] * 100)
    told.fleet.release_node("n")
    before = told.lane()
    told.fleet.start_work("n", WORKLOAD)
    assert (before, told.lane()) == (Lane.PROBATION, Lane.WARMING)


def test_who_is_released_keeps_its_failures(told: Told) -> None:
    """Quarantine must not be how one gets rid of a bad name."""
    told.put("n")
    told.do(*[Outcome.CRASHED] * 5, Outcome.COMPLETED)
    told.fleet.release_node("n")
    kept = told.fleet.statistics("n", "small")
    assert kept is not None
    assert (kept.own.failed, kept.own.completed, told.lane()) == ((15.0, 15.0), (0.0, 0.0), Lane.DEGRADED)


def test_what_other_routers_saw_of_who_is_released_is_forgotten_too(told: Told) -> None:
    """Else it would be established again by their word."""
    told.put("n")
    told.fleet.merge_peer_statistics("n", "small", "other", StatisticsAggregate(GOOD))
    before = told.lane()
    told.fleet.release_node("n")
    assert (before, told.lane()) == (Lane.ESTABLISHED, Lane.PROBATION)


def test_a_release_is_written_down(told: Told) -> None:
    """A restart must not bring the good works back."""
    told.put("n")
    told.do(Outcome.COMPLETED)
    told.fleet.drain_changes()
    told.fleet.release_node("n")
    assert [(node, tier, a.standing.completed) for node, tier, a in told.fleet.drain_changes()] == [
        ("n", "small", (0.0, 0.0))
    ]


def test_an_operator_under_review_brings_in_nobody_new(told: Told) -> None:
    """Who was there before may go on; who was enrolled since waits for the review."""
    for name, enrolled in (("before", NOW - 101), ("same", NOW - 100), ("after", NOW - 5)):
        told.put(name, operator="acme", enrolled=enrolled)
    told.fleet.set_operator_incident("acme", "i", NOW - 100 + 0.5)
    assert [told.code(name) for name in ("before", "same", "after")] == [
        None,
        "incident.operator",
        "incident.operator",
    ]


def test_a_newcomer_of_an_operator_under_review_is_closed_when_it_comes(told: Told) -> None:
    """The incident may be known before the node is."""
    told.fleet.set_operator_incident("acme", "i", float(NOW - 100))
    told.put("n", operator="acme", enrolled=NOW - 5)
    assert told.code() == "incident.operator"


def test_an_operator_under_review_does_not_close_anothers_nodes(told: Told) -> None:
    """Nobody is held for what others did."""
    told.put("n", operator="beta", enrolled=NOW - 5)
    told.fleet.set_operator_incident("acme", "i", float(NOW - 100))
    assert told.code() is None


def test_a_review_that_is_decided_opens_its_operators_nodes(told: Told) -> None:
    """Once the last of them is: the first of the open ones counts."""
    told.put("n", operator="acme", enrolled=NOW - 50)
    told.fleet.set_operator_incident("acme", "i", float(NOW - 100))
    told.fleet.set_operator_incident("acme", "j", float(NOW - 10))
    codes = [told.code()]
    told.fleet.set_operator_incident("acme", "i", None)
    codes.append(told.code())
    told.put("m", operator="acme", enrolled=NOW - 5)
    codes.append(told.code("m"))
    told.fleet.set_operator_incident("acme", "j", None)
    codes.append(told.code("m"))
    assert codes == ["incident.operator", None, "incident.operator", None]


def test_a_review_of_the_operator_holds_for_work_that_no_table_has_any_more(told: Told) -> None:
    """Work that was routed by the table before must not go where trust has gone either."""
    told.put("n", operator="acme", enrolled=NOW - 5)
    told.fleet.use_table(Table([msgspec.structs.replace(WORKLOAD, name="other")]))
    told.fleet.set_operator_incident("acme", "i", float(NOW - 100))
    assert told.code(workload=WORKLOAD) == "incident.operator"


def test_of_a_node_that_nobody_knows_there_is_no_result(told: Told) -> None:
    """It is no error to ask."""
    assert told.code("nobody") == "result.missing"


def test_a_node_that_is_dropped_may_not_and_keeps_what_was_seen(told: Told) -> None:
    """The verifier says nothing of it any more; if it does again, it stands where it stood."""
    told.put("n")
    told.do(*[Outcome.COMPLETED] * PROVEN)
    told.fleet.drop_node("n")
    dropped = told.code()
    told.put("n")
    assert (dropped, told.lane()) == ("result.missing", Lane.ESTABLISHED)


# Operators and their shares.

SHARED = msgspec.structs.replace(WORKLOAD, max_operator_share=50, concurrency=100)


def under_way(told: Told, **counts: int) -> None:
    for node, count in counts.items():
        for _ in range(count):
            told.fleet.start_work(node, SHARED)


def over(told: Told) -> dict[str, bool]:
    pool = told.fleet.view_for(SHARED).pool
    return {operator: pool.has_full_share(operator) for operator in ("acme", "beta")}


@pytest.mark.parametrize(
    ("acme", "beta", "expected"),
    [
        (9, 0, False),
        (10, 0, True),
        (5, 5, True),
        (4, 5, False),
        (4, 6, False),
        (49, 51, False),
        (50, 50, True),
    ],
)
def test_an_operator_has_its_share_at_its_per_cents(acme: int, beta: int, expected: bool) -> None:  # noqa: FBT001
    """Of ten or more under way: of fewer there are no shares to speak of."""
    told = Told(SHARED)
    told.put("a", operator="acme")
    told.put("b", operator="beta")
    under_way(told, a=acme, b=beta)
    assert over(told)["acme"] is expected


def test_work_under_way_goes_with_its_node_to_another_operator() -> None:
    """A node that the verifier does not speak of for a while leaves nothing behind for ever."""
    told = Told(SHARED)
    told.put("a", operator="acme")
    told.put("b", operator="beta")
    under_way(told, a=20, b=10)
    told.fleet.drop_node("a")
    for _ in range(20):
        told.fleet.end_work("a", SHARED, Execution(Outcome.COMPLETED, 1.0))
    told.put("a", operator="acme")
    assert over(told) == {"acme": False, "beta": True}


def test_work_under_way_counts_on_under_another_table() -> None:
    """Reading the table again forgets nobody's share."""
    told = Told(SHARED)
    told.put("a", operator="acme")
    told.put("b", operator="beta")
    under_way(told, a=10, b=10)
    told.fleet.use_table(Table([SHARED]))
    for _ in range(10):
        told.fleet.end_work("a", SHARED, Execution(Outcome.COMPLETED, 1.0))
    assert over(told) == {"acme": False, "beta": True}


def test_what_ends_that_never_began_is_no_share() -> None:
    """Counts are never below nothing."""
    told = Told(SHARED)
    told.put("a", operator="acme")
    told.put("b", operator="beta")
    told.fleet.end_work("a", SHARED, Execution(Outcome.COMPLETED, 1.0))
    under_way(told, a=5, b=5)
    assert (over(told), told.fleet.in_flight("a")) == ({"acme": True, "beta": True}, 5)


# Another table.


def test_another_table_keeps_standings(told: Told) -> None:
    """Requirements may change while the router runs, and who has proven itself has."""
    told.put("n")
    told.do(*[Outcome.COMPLETED] * PROVEN)
    changed = msgspec.structs.replace(WORKLOAD, concurrency=2)
    told.fleet.use_table(Table([changed]))
    assert told.lane(workload=changed) is Lane.ESTABLISHED


def test_another_table_is_judged_by_at_once(told: Told) -> None:
    """Everybody, by what it asks."""
    told.put("n", standing=GOOD)
    strict = msgspec.structs.replace(WORKLOAD, regions=("eu",))
    told.fleet.use_table(Table([strict]))
    assert (told.code(workload=strict), told.decide(workload=strict).ranked) == ("capability.region", ())


def test_another_table_sets_its_own_timers(told: Told) -> None:
    """A shorter age is kept to without any further event."""
    told.put("n")
    strict = msgspec.structs.replace(WORKLOAD, max_age_s=10)
    told.fleet.use_table(Table([strict]))
    told.forward(11.0)
    assert told.code(workload=strict) == "result.old"


def test_standing_is_kept_by_tier() -> None:
    """Workloads of one tier share it; good work on small models says nothing about large ones."""
    other = msgspec.structs.replace(WORKLOAD, name="other")
    large = msgspec.structs.replace(WORKLOAD, name="big", tier="large")
    told = Told(WORKLOAD, other, large)
    told.put("n")
    told.do(*[Outcome.COMPLETED] * PROVEN)
    assert [told.lane(workload=w) for w in (WORKLOAD, other, large)] == [
        Lane.ESTABLISHED,
        Lane.ESTABLISHED,
        Lane.PROBATION,
    ]


def test_a_breaker_is_of_a_tier() -> None:
    """An engine that fails at one model may do well at another."""
    large = msgspec.structs.replace(WORKLOAD, name="big", tier="large")
    told = Told(WORKLOAD, large)
    told.put("n")
    told.do(*[Outcome.BUSY] * 3)
    assert [told.lane(workload=w) for w in (WORKLOAD, large)] == [Lane.BROKEN, Lane.PROBATION]


# Latencies.


def timed(told: Told, count: int, **given: Any) -> None:
    for _ in range(count):
        told.do(Outcome.COMPLETED, **given)
    told.fleet.sweep(10)
    told.fleet.sweep(10)


OBJECTIVES = [
    ("first_token_p90_ms", 29, {"first_token_s": 0.9}),
    ("first_token_p99_ms", 299, {"first_token_s": 0.9}),
    ("token_p90_ms", 29, {"first_token_s": 0.1, "token_s": 0.9}),
    ("token_p99_ms", 299, {"first_token_s": 0.1, "token_s": 0.9}),
    ("answer_p90_ms", 29, {}),
    ("answer_p99_ms", 299, {}),
]


@pytest.mark.parametrize(("setting", "enough", "seen"), OBJECTIVES, ids=[o[0] for o in OBJECTIVES])
def test_who_surely_misses_an_objective_is_degraded(
    setting: str, enough: int, seen: dict[str, float]
) -> None:
    """Once enough was seen to be sure, and not before."""
    told = Told(msgspec.structs.replace(WORKLOAD, **{setting: 800}))
    told.put("n")
    timed(told, enough - 1, **seen)
    before = told.lane()
    timed(told, 1, **seen)
    kept = told.fleet.statistics("n", "small")
    assert kept is not None
    assert (before, told.lane(), kept.rating.why) == (
        Lane.ESTABLISHED,
        Lane.DEGRADED,
        "standing." + setting.removesuffix("_ms").replace("_", "-"),
    )


@pytest.mark.parametrize(("setting", "enough", "seen"), OBJECTIVES, ids=[o[0] for o in OBJECTIVES])
def test_who_meets_an_objective_is_not(setting: str, enough: int, seen: dict[str, float]) -> None:
    """At a bound above what was seen."""
    told = Told(msgspec.structs.replace(WORKLOAD, **{setting: 1100}))
    told.put("n")
    timed(told, enough + 1, **seen)
    assert told.lane() is Lane.ESTABLISHED


def test_an_hour_later_a_slow_time_is_forgotten() -> None:
    """Who is quick again is not degraded for what it was."""
    told = Told(msgspec.structs.replace(WORKLOAD, first_token_p90_ms=800, max_age_s=86400))
    told.put("n", exp=NOW + 86400)
    timed(told, 40, first_token_s=0.9)
    slow = told.lane()
    told.forward(3700.0)
    told.fleet.sweep(10)
    told.fleet.sweep(10)
    assert (slow, told.lane()) == (Lane.DEGRADED, Lane.ESTABLISHED)


def test_who_was_seen_to_be_slower_than_the_floor_may_not() -> None:
    """By the median of what routers saw, once there is enough of it."""
    told = Told(msgspec.structs.replace(WORKLOAD, min_tokens_per_second=20))
    told.put("n")
    timed(told, 28, first_token_s=0.1, token_s=0.1)
    before = told.code()
    timed(told, 1, first_token_s=0.1, token_s=0.1)
    assert (before, told.code()) == (None, "floors.pace")


def test_what_other_routers_saw_counts_for_the_objectives() -> None:
    """A router that saw little of a node goes by all."""
    told = Told(msgspec.structs.replace(WORKLOAD, answer_p90_ms=800))
    told.put("n", standing=GOOD)
    recent = RecentDurations()
    for _ in range(40):
        recent.add(0.9, NOW)
    told.fleet.merge_peer_statistics(
        "n", "small", "other", StatisticsAggregate(Standing(at=NOW), {"answer": recent.slices})
    )
    told.fleet.sweep(10)
    told.fleet.sweep(10)
    assert told.lane() is Lane.DEGRADED


def test_a_sweep_brings_everybody_up_to_now() -> None:
    """Standings fade: who was established long ago is on probation, once it was looked at."""
    told = Told(msgspec.structs.replace(WORKLOAD, max_age_s=86400))
    told.put("n", "m", exp=NOW + 80 * 86400, standing=Standing((0.0, 26.0), at=NOW))
    told.forward(86400.0 * 0.9)
    before = [told.lane(name) for name in "nm"]
    for _ in range(4):
        told.fleet.sweep(1)
    assert (before, [told.lane(name) for name in "nm"]) == ([Lane.ESTABLISHED] * 2, [Lane.PROBATION] * 2)


# What is written down.


def test_what_changed_is_taken_once(told: Told) -> None:
    """And again, where it could not be written."""
    told.put("n", "m")
    told.do(Outcome.COMPLETED, node="n")
    first = told.fleet.drain_changes()
    told.fleet.requeue_changes(first)
    told.do(Outcome.COMPLETED, node="m")
    taken = [[(node, tier) for node, tier, _ in told.fleet.drain_changes()] for _ in range(2)]
    assert (len(first), taken) == (1, [[("m", "small"), ("n", "small")], []])


def test_what_was_written_down_is_what_a_router_begins_with(told: Told) -> None:
    """A restart costs nobody its standing."""
    told.put("n")
    told.do(*[Outcome.COMPLETED] * 30, Outcome.CRASHED)
    again = Told()
    again.put("n")
    for node, tier, account in told.fleet.drain_changes():
        again.fleet.restore_statistics(node, tier, account)
    before, after = told.fleet.statistics("n", "small"), again.fleet.statistics("n", "small")
    assert before is not None
    assert after is not None
    assert (after.rating, after.proven) == (before.rating, before.proven)


def test_blame_that_comes_late_counts(told: Told) -> None:
    """What ended before turns out to be the node's fault; its place was freed then already."""
    told.put("n")
    told.fleet.start_work("n", WORKLOAD)
    told.do(Outcome.EMPTY)
    told.fleet.blame_node("n", WORKLOAD, Outcome.CRASHED)
    kept = told.fleet.statistics("n", "small")
    assert kept is not None
    assert (kept.own.failed, kept.load.failures_in_a_row, told.fleet.in_flight("n")) == ((3.0, 3.0), 1, 1)


# The story.


def test_the_story_is_of_then(told: Told) -> None:
    """Who was excluded from a decision may be asked after the fleet has moved on."""
    told.put("n", "m", exp=NOW + 100)
    told.fleet.begin_hold("n", "h")
    then = told.decide().snapshot
    told.fleet.end_hold("n", "h")
    told.fleet.begin_hold("m", "h")
    assert [
        {name: verdict.code for name, verdict in told.fleet.excluded(WORKLOAD, version).items()}
        for version in (then, told.decide().snapshot)
    ] == [{"n": "incident.quarantine"}, {"m": "incident.quarantine"}]


def test_a_story_that_is_not_kept_so_far_back_is_left_out(told: Told) -> None:
    """Rather nothing than what is not true."""
    told.put("n", "m")
    told.fleet.begin_hold("n", "h")
    told.fleet.begin_hold("m", "h")
    then = told.decide().snapshot
    for _ in range(50):
        told.fleet.end_hold("n", "h")
        told.fleet.begin_hold("n", "h")
    assert list(told.fleet.excluded(WORKLOAD, then)) == ["m"]


def test_nobody_had_a_story_before_the_fleet_began(told: Told) -> None:
    """A version of another process is none of this one's."""
    told.put("n")
    told.fleet.begin_hold("n", "h")
    assert told.fleet.excluded(WORKLOAD, told.fleet.version - 10**6) == {}


def test_the_version_grows_with_every_move_and_with_nothing_else(told: Told) -> None:
    """So that two decisions under one version saw the same of who may do what."""
    told.put("n")
    versions = [told.fleet.version]
    for step in (
        lambda: told.put("n"),
        lambda: told.fleet.begin_hold("n", "h"),
        lambda: told.fleet.begin_hold("n", "h"),
        lambda: told.fleet.end_hold("n", "h"),
        lambda: told.forward(301.0),
    ):
        step()
        versions.append(told.decide().snapshot)
    grew = [later > before for before, later in itertools.pairwise(versions)]
    assert grew == [False, True, False, True, True]


def test_a_node_is_known_by_whatever_was_said_of_it(told: Told) -> None:
    """Also by work that ended after it was gone."""
    told.put("n")
    told.do(Outcome.COMPLETED, node="m")
    assert (sorted(told.fleet.nodes()), len(told.fleet), "m" in told.fleet, told.fleet.view("m")) == (
        ["m", "n"],
        2,
        True,
        NodeView("m"),
    )
