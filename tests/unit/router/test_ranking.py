"""The order inside the eligible set: drawn by chance, by operator, by expected seconds and cost."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.choose.candidates import LANES, Lane, QueuedCandidates, SortedCandidates
from router.choose.ranking import WIDTH, CandidateFacts, Ranked, Ranking, rank, score
from router.choose.seeded_random import SeededRandom
from router.choose.trials import FOCUS, Stage, stage_of
from router.model.standing import Grade, Rating
from router.model.workload import Price, Workload

WORKLOAD = Workload("m", name="w", probation_per_mille=0, degraded_per_mille=0)
SEEDS = 4000


def asks(**given: Any) -> Workload:
    return msgspec.convert(
        {"model": "m", "name": "w", "probation_per_mille": 0, "degraded_per_mille": 0, **given}, Workload
    )


class Nodes:
    """A pool of which tests say who stands where."""

    def __init__(self, over: tuple[str, ...] = ()) -> None:
        self.kept = {lane: SortedCandidates() for lane in LANES}
        self.lanes: Any = self.kept
        self.stages = {Stage.NEW: QueuedCandidates(), Stage.BEGUN: SortedCandidates()}
        self.known: dict[str, CandidateFacts] = {}
        self.over = set(over)

    def add(
        self,
        operator: str,
        node: str,
        lane: Lane = Lane.ESTABLISHED,
        latency_s: float = 1.0,
        completion: float = 1.0,
        in_flight: int = 0,
    ) -> None:
        self.kept[lane].add((operator, node))
        stage = stage_of(Rating(completion=completion)) if lane is Lane.PROBATION else None
        if stage is not None:
            index = self.stages[stage]
            key = operator, node
            index.enqueue(key, 0.0) if isinstance(index, QueuedCandidates) else index.add(key)
        closed = {Lane.WARMING: "capacity.warming", Lane.BROKEN: "capacity.breaker"}.get(lane, "")
        self.known[node] = CandidateFacts(Rating(Grade.PROBATION, completion, latency_s), in_flight, closed)

    def crowd(self, operator: str, count: int, lane: Lane = Lane.ESTABLISHED, **facts: Any) -> None:
        for number in range(count):
            self.add(operator, f"{operator}-{number}", lane, **facts)

    @property
    def sizes(self) -> dict[Lane, int]:
        return {lane: len(places) for lane, places in self.kept.items()}

    def facts(self, node: str) -> CandidateFacts:
        return self.known[node]

    def has_full_share(self, operator: str) -> bool:
        return operator in self.over

    def rankings(self, workload: Workload = WORKLOAD, seeds: int = SEEDS) -> list[Ranking]:
        return [rank(self, workload, seed) for seed in range(seeds)]

    def firsts(self, workload: Workload = WORKLOAD, seeds: int = SEEDS) -> Counter[str]:
        return Counter(ranking.ranked[0].node for ranking in self.rankings(workload, seeds))

    def first_operators(self, workload: Workload = WORKLOAD, seeds: int = SEEDS) -> Counter[str]:
        return Counter(ranking.ranked[0].operator for ranking in self.rankings(workload, seeds))


def share(found: Counter[str], name: str) -> float:
    return found[name] / found.total()


def near(expected: float) -> Any:
    """Within four standard deviations of so many draws: seeds are fixed, so that this never flickers."""
    return pytest.approx(expected, abs=4 * (expected * (1 - expected) / SEEDS) ** 0.5)


# Chance.


def test_chance_is_the_same_in_every_version() -> None:
    """Written down once: a decision of today replays in years to come."""
    chance = SeededRandom(1)
    assert [chance.below(1000) for _ in range(10)] == [966, 307, 349, 937, 995, 71, 451, 549, 105, 810]


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**53))
def test_chance_is_below_its_bound(seed: int, bound: int) -> None:
    """And never below zero."""
    chance = SeededRandom(seed)
    assert all(0 <= chance.below(bound) < bound for _ in range(20))


@pytest.mark.parametrize("bound", [2, 3, 7, 1000])
def test_chance_is_even(bound: int) -> None:
    """By χ², over the numbers of one seed and over the first numbers of many."""
    chance = SeededRandom(7)
    for found in (
        [chance.below(bound) for _ in range(20_000)],
        [SeededRandom(s).below(bound) for s in range(20_000)],
    ):
        expected = 20_000 / bound
        counts = Counter(found)
        squares = sum((counts[value] - expected) ** 2 / expected for value in range(bound))
        # Five deviations of χ² with so many degrees of freedom.
        assert squares < bound - 1 + 5 * (2 * (bound - 1)) ** 0.5


# Power of two choices.


def test_equals_are_first_equally_often() -> None:
    """Of one operator or of ten."""
    nodes = Nodes()
    for number in range(10):
        nodes.add(f"o-{number}", f"n-{number}")
    found = nodes.firsts()
    assert [share(found, f"n-{number}") for number in range(10)] == [near(0.1)] * 10


def test_the_better_of_two_is_first() -> None:
    """Of two there are, always."""
    nodes = Nodes()
    nodes.add("a", "slow", latency_s=1.1)
    nodes.add("b", "quick", latency_s=1.0)
    assert set(nodes.firsts()) == {"quick"}


def test_the_worst_is_never_first() -> None:
    """Whoever it meets is better."""
    nodes = Nodes()
    for number in range(10):
        nodes.add(f"o-{number}", f"n-{number}", latency_s=1.0 + number)
    assert "n-9" not in nodes.firsts()


def test_the_best_is_first_as_often_as_two_draws_meet_it() -> None:
    """2/n, and not always: all routers would send all work to one node."""
    nodes = Nodes()
    for number in range(10):
        nodes.add(f"o-{number}", f"n-{number}", latency_s=1.0 + number)
    found = nodes.firsts()
    # In n pairs of two that differ the k-th best is the better in n − k of them.
    assert [share(found, f"n-{k}") for k in range(9)] == [near((9 - k) / 45) for k in range(9)]


@pytest.mark.parametrize("lane", [Lane.ESTABLISHED, Lane.DEGRADED])
def test_a_node_has_as_much_work_whatever_the_size_of_its_operator(lane: Lane) -> None:
    """Both draws are among nodes."""
    nodes = Nodes()
    nodes.crowd("many", 16, lane)
    nodes.crowd("few", 3, lane)
    nodes.crowd("one", 1, lane)
    found = nodes.first_operators()
    assert [share(found, o) for o in ("many", "few", "one")] == [near(0.8), near(0.15), near(0.05)]


@pytest.mark.parametrize("lane", [Lane.ESTABLISHED, Lane.DEGRADED])
def test_splitting_an_operator_into_names_gains_nothing(lane: Lane) -> None:
    """The same ten nodes under one name or under ten, beside ten others: the same draws, node by node."""
    ranked = []
    for names in (1, 10):
        nodes = Nodes()
        for number in range(10):
            nodes.add(f"a-{number % names}", f"n-{number}", lane, latency_s=1.0 + number % 3)
        nodes.crowd("z", 10, lane, latency_s=2.0)
        ranked.append([ranking.ranked[0].node for ranking in nodes.rankings(seeds=1000)])
    same = sum(one == other for one, other in zip(*ranked, strict=True))
    assert same == 1000


def test_what_one_operators_node_fails_at_is_tried_at_anothers() -> None:
    """Of the others that are tried at least one is of another operator, however many nodes the first has."""
    nodes = Nodes()
    nodes.crowd("many", 200)
    nodes.crowd("one", 1)
    for ranking in nodes.rankings(seeds=300):
        assert len({entry.operator for entry in ranking.ranked}) == 2
        assert ranking.ranked[1].operator != ranking.ranked[0].operator


def test_all_are_ranked_up_to_the_width() -> None:
    """Nobody twice, and as many as a request may try."""
    nodes = Nodes()
    nodes.crowd("a", 2)
    nodes.crowd("b", 3)
    for ranking in nodes.rankings(seeds=200):
        assert len({entry.node for entry in ranking.ranked}) == len(ranking.ranked) == WIDTH


def test_nobody_is_ranked_where_nobody_is() -> None:
    """An empty pool is an answer."""
    assert rank(Nodes(), WORKLOAD, 0) == Ranking(())


def test_work_under_way_counts_as_waiting() -> None:
    """Expected seconds are those of all that stand before."""
    assert (
        score(
            ("a", "n"), Lane.ESTABLISHED, CandidateFacts(Rating(completion=0.5, latency_s=2.0), 3), WORKLOAD
        ).score
        == 16.0
    )


def test_a_completion_of_nothing_is_no_division_by_zero() -> None:
    """Nor is it worse than one in twenty, so that evidence can come to be."""
    scored = score(("a", "n"), Lane.PROBATION, CandidateFacts(Rating()), WORKLOAD)
    assert (scored.score, scored.completion) == (600.0, 0.0)


# Lanes.


def test_a_lane_comes_before_the_next_however_well_its_nodes_score() -> None:
    """Tiers are no terms of a sum."""
    nodes = Nodes()
    nodes.add("a", "established", latency_s=29.0, in_flight=60)
    nodes.add("b", "probation", Lane.PROBATION, latency_s=0.001)
    nodes.add("c", "degraded", Lane.DEGRADED, latency_s=0.001)
    assert {tuple(e.node for e in r.ranked) for r in nodes.rankings(seeds=300)} == {
        ("established", "probation", "degraded")
    }


@pytest.mark.parametrize("lane", [Lane.PROBATION, Lane.DEGRADED])
@pytest.mark.parametrize("per_mille", [0, 20, 300, 1000])
def test_others_are_tried_first_in_so_many_decisions(lane: Lane, per_mille: int) -> None:
    """Per thousand: so that evidence can come to be, and that who is well again is seen."""
    nodes = Nodes()
    nodes.crowd("a", WIDTH)
    nodes.crowd("b", 30, lane)
    found = share(nodes.first_operators(asks(**{f"{lane}_per_mille": per_mille})), "b")
    assert found == near(per_mille / 1000)


@pytest.mark.parametrize("established", range(1, WIDTH))
def test_while_hardly_anybody_is_established_newcomers_are_tried_more_often(established: int) -> None:
    """One decision in four: one node is no pool."""
    nodes = Nodes()
    nodes.crowd("a", established)
    nodes.crowd("b", 30, Lane.PROBATION)
    assert share(nodes.first_operators(asks(probation_per_mille=20)), "b") == near(0.25)


def test_who_wants_no_trials_has_none() -> None:
    """Neither many nor few are established."""
    nodes = Nodes()
    nodes.crowd("a", 1)
    nodes.crowd("b", 30, Lane.PROBATION)
    assert set(nodes.first_operators(asks(probation_per_mille=0))) == {"a"}


def test_both_shares_are_kept_side_by_side() -> None:
    """Neither takes from the other."""
    nodes = Nodes()
    nodes.crowd("a", WIDTH)
    nodes.crowd("b", 5, Lane.PROBATION)
    nodes.crowd("c", 5, Lane.DEGRADED)
    found = nodes.first_operators(asks(probation_per_mille=200, degraded_per_mille=100))
    assert [share(found, o) for o in "abc"] == [near(0.7), near(0.2), near(0.1)]


@pytest.mark.parametrize("per_mille", [20, 1000])
def test_at_most_one_newcomer_stands_before_who_does_the_work(per_mille: int) -> None:
    """A crowd of them must not stand between the work and those who do it."""
    nodes = Nodes()
    nodes.crowd("a", 6)
    nodes.crowd("b", 50, Lane.PROBATION)
    for ranking in nodes.rankings(asks(probation_per_mille=per_mille), seeds=500):
        assert {entry.lane for entry in ranking.ranked[1:]} == {Lane.ESTABLISHED}


def test_who_was_drawn_and_not_tried_first_has_its_turn_still() -> None:
    """Two newcomers meet for the trial; the other is ranked where its lane is."""
    nodes = Nodes()
    nodes.add("a", "established")
    nodes.crowd("b", 2, Lane.PROBATION)
    for ranking in nodes.rankings(asks(probation_per_mille=1000), seeds=200):
        assert [entry.operator for entry in ranking.ranked] == ["b", "a", "b"]


def test_where_nobody_is_established_newcomers_do_the_work() -> None:
    """All of it, and that is no trial."""
    nodes = Nodes()
    nodes.crowd("b", 6, Lane.PROBATION)
    for ranking in nodes.rankings(seeds=100):
        assert (len(ranking.ranked), ranking.opened) == (WIDTH, ())


# Operators on probation.


def test_a_hundred_newcomers_of_one_operator_are_worth_one() -> None:
    """Of two operators each has half, whatever the number of names."""
    nodes = Nodes()
    nodes.crowd("many", 100, Lane.PROBATION)
    nodes.crowd("one", 1, Lane.PROBATION)
    assert share(nodes.first_operators(), "one") == near(0.5)


@pytest.mark.parametrize(("waiting", "expected"), [(FOCUS, 20), (FOCUS + 1, 40), (500, 40)])
def test_there_are_twice_as_many_trials_while_many_wait(waiting: int, expected: int) -> None:
    """However many they are."""
    nodes = Nodes()
    nodes.crowd("zero", WIDTH)
    nodes.crowd("new", waiting, Lane.PROBATION, completion=0.0)
    assert share(nodes.first_operators(asks(probation_per_mille=20)), "new") == near(expected / 1000)


# Trials.

TRIED = asks(probation_per_mille=1000)


def on_trial(new: int, begun: int = 0, completion: float = 0.5) -> Nodes:
    """New ones, and some of another operator that have begun, beside those that do the work."""
    nodes = Nodes()
    nodes.crowd("zero", WIDTH)
    nodes.crowd("new", new, Lane.PROBATION, completion=0.0)
    nodes.crowd("begun", begun, Lane.PROBATION, completion=completion)
    return nodes


@pytest.mark.parametrize("names", [1, 10])
def test_who_may_begin_is_drawn_among_nodes(names: int) -> None:
    """Whatever their operators call themselves."""
    nodes = Nodes()
    nodes.crowd("zero", WIDTH)
    for number in range(10):
        nodes.add(f"a-{number % names}", f"a-{number}", Lane.PROBATION, completion=0.0)
    nodes.crowd("b", 5, Lane.PROBATION, completion=0.0)
    assert share(nodes.first_operators(TRIED), "b") == near(1 / 3)


@pytest.mark.parametrize("begun", [1, 4, 8, FOCUS, 3 * FOCUS])
def test_those_who_have_begun_are_finished_before_others_begin(begun: int) -> None:
    """The more have begun, the fewer begin."""
    found = on_trial(50, begun).first_operators(TRIED)
    assert share(found, "begun") == near(min(begun / FOCUS, 1 - 1e-9))


def test_of_those_who_have_begun_the_one_that_is_nearer_to_proof_is_tried() -> None:
    """So that one is proven, and not all are half proven."""
    nodes = on_trial(0)
    nodes.add("far", "far", Lane.PROBATION, completion=0.3)
    nodes.add("near", "near", Lane.PROBATION, completion=0.8)
    assert share(nodes.first_operators(TRIED), "near") == 1.0


def test_who_came_first_begins_first() -> None:
    """A crowd that comes later does not stand before it; one in four is drawn among all."""
    nodes = Nodes()
    nodes.crowd("zero", WIDTH)
    new: Any = nodes.stages[Stage.NEW]
    for number in range(200):
        nodes.add(f"o-{number}", f"n-{number:03}", Lane.PROBATION, completion=0.0)
        key = f"o-{number}", f"n-{number:03}"
        new.remove(key)
        new.enqueue(key, float(number))
    found = nodes.firsts(TRIED)
    early = sum(found[f"n-{number:03}"] for number in range(FOCUS)) / found.total()
    assert early == near(0.75 + 0.25 * FOCUS / 200)


def test_an_operator_has_half_of_the_focus_while_others_wait() -> None:
    """A flood of names of one operator leaves the other half."""
    nodes = Nodes()
    nodes.crowd("zero", WIDTH)
    nodes.crowd("flood", FOCUS // 2, Lane.PROBATION, completion=0.5)
    for number in range(500):
        nodes.add("flood", f"f-{number}", Lane.PROBATION, completion=0.0)
    nodes.add("honest", "honest", Lane.PROBATION, completion=0.0)
    found = nodes.first_operators(TRIED)
    # All four draws among operators miss one of two once in sixteen times.
    assert share(found, "honest") == near(0.5 * (1 - 1 / 16))


def test_who_waits_alone_has_all_of_the_focus() -> None:
    """Half of it is no limit where nobody else wants the other half."""
    nodes = Nodes()
    nodes.crowd("zero", WIDTH)
    nodes.crowd("many", FOCUS // 2 + 2, Lane.PROBATION, completion=0.5)
    nodes.add("many", "new", Lane.PROBATION, completion=0.0)
    assert nodes.firsts(TRIED)["new"] > 0


def test_who_is_not_there_for_lack_of_evidence_is_tried_seldom() -> None:
    """Neither time nor more work would soon prove it; one trial in sixteen is of any node on probation."""
    nodes = on_trial(20)
    facts = CandidateFacts(Rating(Grade.PROBATION, 0.5, 1.0, 90.0))
    for number in range(80):
        nodes.kept[Lane.PROBATION].add(("late", f"late-{number}"))
        nodes.known[f"late-{number}"] = facts
    assert share(nodes.first_operators(TRIED), "late") < 1 / 16


def test_who_is_on_probation_for_another_reason_is_tried_where_nobody_else_is() -> None:
    """Trials are not left out."""
    nodes = on_trial(0)
    nodes.kept[Lane.PROBATION].add(("late", "late"))
    nodes.known["late"] = CandidateFacts(Rating(Grade.PROBATION, 0.5, 1.0, 90.0))
    assert set(nodes.first_operators(TRIED)) == {"late"}


@pytest.mark.parametrize(
    ("rating", "stage"),
    [
        (Rating(), Stage.NEW),
        (Rating(completion=0.19), Stage.NEW),
        (Rating(completion=0.27, evidence=1.0), Stage.BEGUN),
        (Rating(completion=0.89, evidence=79.0), Stage.BEGUN),
        (Rating(completion=0.89, evidence=80.0), None),
        (Rating(completion=0.5, evidence=20.0, why="standing.bad-hour"), None),
        (Rating(completion=0.5, evidence=20.0, why="standing.unreliable"), None),
    ],
)
def test_stages(rating: Rating, stage: Stage | None) -> None:
    """By what is known, and by what more of it would do."""
    assert stage_of(rating) is stage


def test_warming_nodes_are_drawn_by_operator_too() -> None:
    """A crowd of names that are full of their little is still worth one."""
    nodes = Nodes()
    nodes.crowd("many", 100, Lane.WARMING)
    nodes.crowd("one", 1, Lane.WARMING)
    assert share(nodes.first_operators(), "one") == near(0.5)


# Shares.


@pytest.mark.parametrize("count", [1, 2, 5, 1000])
@pytest.mark.parametrize("lane", [Lane.ESTABLISHED, Lane.PROBATION, Lane.DEGRADED])
def test_who_has_its_share_is_passed_over_while_anybody_else_is_left(count: int, lane: Lane) -> None:
    """Exactly: not by chance, and not by a better score, however many nodes it has."""
    nodes = Nodes(over=("over",))
    nodes.crowd("over", count, lane, latency_s=0.001)
    nodes.crowd("small", 1, lane, latency_s=20.0)
    assert set(nodes.firsts(asks(max_operator_share=50), seeds=1000)) == {"small-0"}


def test_all_who_have_their_share_are_passed_over() -> None:
    """Ninety-nine operators of a hundred, and the one that is left is found."""
    over = tuple(f"o-{number}" for number in range(100) if number != 37)
    nodes = Nodes(over)
    for number in range(100):
        nodes.crowd(f"o-{number}", 3)
    assert set(nodes.first_operators(asks(max_operator_share=1), seeds=500)) == {"o-37"}


def test_who_was_passed_over_is_named() -> None:
    """As data, beside the ranks."""
    nodes = Nodes(over=("over",))
    nodes.crowd("over", 100)
    nodes.crowd("small", WIDTH + 1)
    found = {(r.over, r.opened) for r in nodes.rankings(asks(max_operator_share=50), seeds=200)}
    assert found <= {(("over",), ()), ((), ())}
    assert (("over",), ()) in found


def test_a_share_gives_way_where_nobody_else_is_left_and_says_so() -> None:
    """Better than to refuse the work."""
    nodes = Nodes(over=("over",))
    nodes.crowd("over", 3)
    for ranking in nodes.rankings(asks(max_operator_share=50), seeds=100):
        assert (len(ranking.ranked), ranking.opened, ranking.over) == (
            3,
            ("capacity.operator-share",),
            ("over",),
        )


def test_a_share_of_all_is_no_share() -> None:
    """Nobody is asked about it."""
    nodes = Nodes(over=("over",))
    nodes.crowd("over", 3)
    assert {r.opened for r in nodes.rankings(seeds=50)} == {()}


def test_what_gives_way_says_which() -> None:
    """Each code once."""
    nodes = Nodes()
    nodes.crowd("a", 3, Lane.BROKEN)
    assert {r.opened for r in nodes.rankings(seeds=50)} == {("capacity.breaker",)}


# Money.


def priced(**given: Any) -> Workload:
    return asks(
        prices={"dear": {"output": 8_000_000}, "cheap": {"output": 4_000_000}},
        typical={"input": 1, "output": 250},
        **given,
    )


def scored(operator: str, workload: Workload, completion: float = 1.0) -> Ranked:
    return score(
        (operator, "n"),
        Lane.ESTABLISHED,
        CandidateFacts(Rating(completion=completion, latency_s=2.0)),
        workload,
    )


def test_a_ranked_node_has_the_price_that_was_seen() -> None:
    """By its hardware class too; without a table of prices there is none."""
    by_class = asks(prices_by_hardware={"h200": {"*": {"output": 5}}}, prices={"*": {"output": 1}})
    facts = CandidateFacts(Rating(), hardware_class="h200")
    found = [
        score(("a", "n"), Lane.ESTABLISHED, facts, workload).price
        for workload in (by_class, priced(), asks())
    ]
    assert found == [Price(output=5), Price(), None]


def test_without_a_worth_of_time_only_time_counts() -> None:
    """The cost is said, and does not rank."""
    dear, cheap = (scored(operator, priced()) for operator in ("dear", "cheap"))
    assert ((dear.score, dear.cost), (cheap.score, cheap.cost)) == ((2.0, 2000.0), (2.0, 1000.0))


@pytest.mark.parametrize(("worth", "expected"), [(1000, 4.0), (2000, 3.0), (100, 22.0)])
def test_money_is_as_many_seconds_as_it_is_worth(worth: int, expected: float) -> None:
    """So that both can be added: millionths of the unit for a second less."""
    assert scored("dear", priced(second_is_worth=worth)).score == expected


def test_the_cost_is_that_of_a_successful_answer() -> None:
    """Who fails half the time is paid for twice."""
    assert scored("dear", priced(second_is_worth=1000), 0.5).cost == 4000.0


def test_cheaper_is_first_where_all_else_is_equal() -> None:
    """And only where a second has its worth."""
    nodes = Nodes()
    nodes.crowd("dear", 1)
    nodes.crowd("cheap", 1)
    ranked = [share(nodes.first_operators(priced(second_is_worth=w)), "cheap") for w in (0, 1000)]
    assert ranked == [near(0.5), 1.0]


def test_a_low_price_does_not_buy_off_slowness() -> None:
    """Where a second is worth more than the difference."""
    nodes = Nodes()
    nodes.crowd("dear", 1, latency_s=1.0)
    nodes.crowd("cheap", 1, latency_s=3.0)
    assert set(nodes.first_operators(priced(second_is_worth=1000), seeds=300)) == {"dear"}


@pytest.mark.parametrize(
    ("operator", "floor", "expected"),
    [("dear", 5_000_000, False), ("cheap", 5_000_000, True), ("cheap", 4_000_000, False), ("none", 1, True)],
)
def test_a_price_below_the_energy_of_the_work_is_flagged(operator: str, floor: int, expected: bool) -> None:  # noqa: FBT001
    """To be audited: it is no bonus, and no gate."""
    workload = priced(energy_floor={"output": floor})
    flagged = scored(operator, workload)
    plain = scored(operator, priced())
    assert (flagged.below_energy, flagged.score) == (expected, plain.score)


def test_without_a_table_of_prices_nobody_is_below_the_energy() -> None:
    """Where nobody is paid there is nothing to audit."""
    assert not scored("a", asks(energy_floor={"output": 5})).below_energy


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.floats(0.05, 1), st.integers(1, 10**9))
def test_a_higher_price_never_ranks_better(one: int, other: int, completion: float, worth: int) -> None:
    """Whatever the completion and the worth of time."""
    workload = msgspec.structs.replace(
        WORKLOAD,
        prices={"a": Price(output=min(one, other)), "b": Price(output=max(one, other))},
        second_is_worth=worth,
    )
    assert scored("a", workload, completion).score <= scored("b", workload, completion).score
