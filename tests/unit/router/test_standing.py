"""Standing: what the router has seen of a node, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.model.load import BREAKER_LONGEST_S, BREAKER_OPEN_S, Load
from router.model.outcomes import Blame, Execution, Outcome
from router.model.standing import PROVEN, UNKNOWN_LATENCY_S, Grade, Standing, merge, rate, wilson
from tests.unit.router.support import TICKS

NODES_FAULT = [o for o in Outcome if o.blame is Blame.NODE]
HARMLESS = [Outcome.REFUSED, Outcome.ABANDONED, Outcome.TIMED_OUT, Outcome.UNSUPPORTED, Outcome.EMPTY]
WEEK = 7 * 86400.0


def after(outcomes: list[Outcome], *, now: float = TICKS, standing: Standing | None = None) -> Standing:
    standing = standing or Standing(at=now)
    for outcome in outcomes:
        standing = standing.add(Execution(outcome, 1.0), now)
    return standing


def load_after(outcomes: list[Outcome], *, now: float = TICKS, load: Load | None = None) -> Load:
    load = load or Load()
    for outcome in outcomes:
        load.in_flight += 1
        load.end_request(outcome, now)
    return load


@pytest.mark.parametrize(
    ("good", "total", "lower"),
    [
        (1, 1, 0.270),
        (5, 5, 0.649),
        (20, 20, 0.881),
        (50, 50, 0.949),
        (100, 100, 0.974),
        (97, 100, 0.927),
        (970, 1000, 0.960),
    ],
)
def test_wilson_by_its_known_values(good: int, total: int, lower: float) -> None:
    """The lower ends of reference/routers.md §B.4, one-sided at 95 %."""
    assert wilson(good, total)[0] == pytest.approx(lower, abs=0.0006)


def test_wilson_without_evidence_says_nothing() -> None:
    """Nothing is known between never and always."""
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("good", "total"), [(0, 7), (3, 7), (50, 100)])
def test_wilson_is_symmetric(good: int, total: int) -> None:
    """The upper end for successes is the lower end for failures, turned over."""
    assert wilson(good, total)[1] == pytest.approx(1 - wilson(total - good, total)[0])


COUNTS = st.one_of(st.just(0.0), st.floats(1e-9, 1e6))


@settings(max_examples=100, deadline=None)
@given(COUNTS, COUNTS)
def test_wilson_stays_within_bounds(good: float, bad: float) -> None:
    """Counts that were halved many times are no whole numbers, and the ends remain shares in order."""
    low, high = wilson(good, good + bad)
    assert 0.0 <= low <= high <= 1.0


def test_wilson_of_next_to_nothing_is_nothing() -> None:
    """A count that has been halved away is no evidence, and no division by zero."""
    assert wilson(1e-170, 1e-170)[0] == pytest.approx(0.0, abs=1e-6)


def test_counts_are_halved_after_their_half_lives() -> None:
    """An hour for the one, a week for the other."""
    standing = Standing(completed=(8.0, 8.0), failed=(4.0, 4.0), at=TICKS)
    hour, week = standing.decayed_to(TICKS + 3600), standing.decayed_to(TICKS + WEEK)
    assert (hour.completed[0], hour.failed[0], week.completed[1], week.failed[1]) == pytest.approx(
        (4, 2, 4, 2)
    )


def test_decay_in_two_steps_is_decay_in_one() -> None:
    """How often a standing is looked at does not matter."""
    standing = Standing(completed=(8.0, 8.0), failed=(4.0, 4.0), at=TICKS)
    steps = standing.decayed_to(TICKS + 1000).decayed_to(TICKS + 5000)
    assert steps.completed == pytest.approx(standing.decayed_to(TICKS + 5000).completed)


def test_a_clock_that_goes_back_gives_nothing_back() -> None:
    """Counts never grow by decay."""
    standing = Standing(completed=(8.0, 8.0), at=TICKS)
    assert standing.decayed_to(TICKS - 3600) == standing


@pytest.mark.parametrize("outcome", HARMLESS)
def test_what_is_not_the_nodes_fault_moves_nothing(outcome: Outcome) -> None:
    """Clients, networks and the router's own time leave a standing as it was."""
    standing = after([Outcome.COMPLETED] * 5 + [Outcome.CRASHED])
    assert standing.add(Execution(outcome, 99.0), TICKS + 100) == standing


@pytest.mark.parametrize("outcome", [Outcome.BUSY, Outcome.IMPOSTOR])
def test_busy_and_impostors_do_not_move_completion(outcome: Outcome) -> None:
    """A node that says that it is full, or whose address was taken, has failed at nothing."""
    standing = after([Outcome.COMPLETED] * 30)
    moved = after([outcome] * 50, standing=standing)
    assert (rate(moved, TICKS).completion, rate(moved, TICKS).evidence) == (
        rate(standing, TICKS).completion,
        rate(standing, TICKS).evidence,
    )


@pytest.mark.parametrize("outcome", [*NODES_FAULT, Outcome.BUSY, Outcome.IMPOSTOR])
def test_the_breaker_opens_after_three(outcome: Outcome) -> None:
    """Two may happen; at the third no work is sent."""
    assert [load_after([outcome] * n).breaker_is_open(TICKS) for n in (2, 3)] == [False, True]


@pytest.mark.parametrize("outcome", HARMLESS)
def test_nobody_elses_fault_opens_the_breaker(outcome: Outcome) -> None:
    """A client cannot eject a node."""
    assert not load_after([outcome] * 100).breaker_is_open(TICKS)


@pytest.mark.parametrize("outcome", HARMLESS)
def test_nobody_elses_fault_closes_the_breaker(outcome: Outcome) -> None:
    """A request that the node refused does not show that it works again."""
    assert load_after([outcome], load=load_after([Outcome.CRASHED] * 3)).breaker_is_open(TICKS)


def test_a_success_between_failures_starts_the_count_anew() -> None:
    """Three in a row, not three in all."""
    crashed, done = Outcome.CRASHED, Outcome.COMPLETED
    assert not load_after([crashed, crashed, done, crashed, crashed]).breaker_is_open(TICKS)


@pytest.mark.parametrize(("waited", "is_open"), [(BREAKER_OPEN_S - 0.001, True), (BREAKER_OPEN_S, False)])
def test_a_probe_goes_when_the_wait_is_over(waited: float, is_open: bool) -> None:  # noqa: FBT001
    """Not before."""
    assert load_after([Outcome.CRASHED] * 3).breaker_is_open(TICKS + waited) is is_open


def test_one_probe_at_a_time() -> None:
    """While it is under way, nothing follows."""
    probing = load_after([Outcome.CRASHED] * 3)
    probing.in_flight += 1
    assert probing.breaker_is_open(TICKS + BREAKER_OPEN_S)


def test_a_success_closes_the_breaker() -> None:
    """The probe came through, and as many as there is room for may follow."""
    later = TICKS + BREAKER_OPEN_S
    probed = load_after([Outcome.COMPLETED], load=load_after([Outcome.CRASHED] * 3), now=later)
    probed.in_flight += 1
    assert not probed.breaker_is_open(later)


@pytest.mark.parametrize(
    ("further", "expected"), [(0, 10.0), (1, 20.0), (2, 40.0), (4, 160.0), (5, 300.0), (500, 300.0)]
)
def test_each_failed_probe_keeps_it_open_for_twice_as_long(further: int, expected: float) -> None:
    """Up to five minutes, so that a node that is well again is seen to be."""
    broken = load_after([Outcome.CRASHED] * (3 + further))
    assert (broken.breaker_is_open(TICKS + expected - 0.001), broken.breaker_is_open(TICKS + expected)) == (
        True,
        False,
    )


def test_no_breaker_is_open_for_longer_than_the_longest() -> None:
    """Not by any number of failures: two to the power of them would be for ever."""
    assert load_after([Outcome.CRASHED] * 5000).open_until == TICKS + BREAKER_LONGEST_S


def test_a_failure_weighs_three_times() -> None:
    """So that a node that cheats now and then cannot earn it back as fast."""
    assert after([Outcome.CRASHED]).failed == (3.0, 3.0)


def tier(standing: Standing, now: float = TICKS) -> Grade:
    return rate(standing, now).grade


def test_nobody_starts_established() -> None:
    """A node of which nothing was seen is on probation."""
    assert tier(Standing()) is Grade.PROBATION


@pytest.mark.parametrize(("requests", "expected"), [(24, Grade.PROBATION), (25, Grade.ESTABLISHED)])
def test_established_after_25_without_a_failure(requests: int, expected: Grade) -> None:
    """Probation ends with evidence, not with time."""
    assert tier(after([Outcome.COMPLETED] * requests)) is expected


@pytest.mark.parametrize("idle", [3600.0, 86400.0, WEEK, 30 * WEEK, 500 * WEEK])
def test_an_idle_node_is_not_degraded(idle: float) -> None:
    """Nothing asked of it is nothing failed, however long."""
    assert tier(after([Outcome.COMPLETED] * 40), TICKS + idle) is not Grade.DEGRADED


@pytest.mark.parametrize("idle", [600.0 * n for n in range(1, 24)])
def test_a_quiet_hour_does_not_cost_the_standing(idle: float) -> None:
    """At no time on the way from a busy hour to an idle one."""
    assert tier(after([Outcome.COMPLETED] * 60), TICKS + idle) is Grade.ESTABLISHED


def test_seldom_work_done_well_establishes() -> None:
    """Ten requests an hour are too few for the hour to say more than that nothing failed."""
    now, standing = TICKS, Standing(at=TICKS)
    for _ in range(200):
        now += 360
        standing = standing.add(Execution(Outcome.COMPLETED, 1.0), now)
    assert tier(standing, now) is Grade.ESTABLISHED


def test_a_failure_in_a_quiet_hour_costs_the_standing() -> None:
    """Then the hour speaks, however good the week was."""
    good = after([Outcome.COMPLETED] * 1000)
    later = TICKS + 86400
    seen = [Outcome.CRASHED, *[Outcome.COMPLETED] * 12]
    assert tier(after(seen, standing=good, now=later), later) is Grade.PROBATION


def test_an_idle_day_does_not_cost_the_standing() -> None:
    """The hour without requests judges nobody; the week still counts."""
    assert tier(after([Outcome.COMPLETED] * 60), TICKS + 86400) is Grade.ESTABLISHED


def test_a_failing_node_is_degraded() -> None:
    """Even the upper end of what is believable is too low."""
    assert tier(after([Outcome.CRASHED] * 5)) is Grade.DEGRADED


def test_one_failure_of_a_newcomer_degrades_nobody() -> None:
    """It is not enough to judge by."""
    assert tier(after([Outcome.CRASHED])) is Grade.PROBATION


def test_a_good_week_does_not_hide_a_bad_hour() -> None:
    """The lower of the two half-lives counts."""
    good = after([Outcome.COMPLETED] * 1000, now=TICKS)
    later = TICKS + 6 * 86400
    assert tier(after([Outcome.CRASHED] * 10, standing=good, now=later), later) is Grade.DEGRADED


def test_a_good_hour_does_not_hide_a_bad_week() -> None:
    """Behaving for an hour is how one milks a reputation."""
    bad = after([Outcome.CRASHED] * 100, now=TICKS)
    later = TICKS + 86400
    assert tier(after([Outcome.COMPLETED] * 60, standing=bad, now=later), later) is not Grade.ESTABLISHED


def test_latency_rises_at_once() -> None:
    """A slow answer is believed."""
    standing = Standing(at=TICKS).add(Execution(Outcome.COMPLETED, 0.1), TICKS)
    assert standing.add(Execution(Outcome.COMPLETED, 5.0), TICKS + 1).latency_s == 5.0


def test_latency_falls_slowly() -> None:
    """A quick one after it is believed a minute later, not at once."""
    slow = Standing(at=TICKS).add(Execution(Outcome.COMPLETED, 5.0), TICKS)
    soon = slow.add(Execution(Outcome.COMPLETED, 0.1), TICKS + 1).latency_s
    late = slow.add(Execution(Outcome.COMPLETED, 0.1), TICKS + 600).latency_s
    assert soon is not None
    assert late is not None
    assert (soon > 4.9, 0.1 < late < 0.2) == (True, True)


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.COMPLETED])
def test_only_completed_work_has_a_latency(outcome: Outcome) -> None:
    """A node must not look quick by failing quickly."""
    assert Standing(at=TICKS, latency_s=2.0).add(Execution(outcome, 0.001), TICKS + 1).latency_s == 2.0


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_end_frees_a_place(outcome: Outcome) -> None:
    """Whatever the outcome, what was under way is no longer."""
    load = Load(2)
    load.end_request(outcome, TICKS)
    assert load.in_flight == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), st.sampled_from(list(Outcome))), max_size=30))
def test_in_flight_is_never_negative(steps: list[Outcome | None]) -> None:
    """Not by any sequence of starts and ends."""
    load, lowest = Load(), 0
    for step in steps:
        if step is None:
            load.in_flight += 1
        else:
            load.end_request(step, TICKS)
        lowest = min(lowest, load.in_flight)
    assert lowest == 0


# The clean share.


def exchanges(unclean: int, total: int) -> Standing:
    standing = Standing(at=TICKS)
    for number in range(total):
        standing = standing.add(Execution(Outcome.COMPLETED, 1.0, is_clean=number >= unclean), TICKS)
    return standing


@pytest.mark.parametrize(
    ("unclean", "total", "expected"),
    [
        (1, 100, Grade.ESTABLISHED),
        (2, 100, Grade.ESTABLISHED),
        (5, 100, Grade.DEGRADED),
        (30, 1000, Grade.DEGRADED),
        (20, 1000, Grade.ESTABLISHED),
    ],
)
def test_who_surely_breaks_the_protocol_more_often_than_one_in_fifty_is_degraded(
    unclean: int, total: int, expected: Grade
) -> None:
    """However well it completes; a slip or two is no habit."""
    assert tier(exchanges(unclean, total)) is expected


def test_a_corrupted_answer_is_unclean_too() -> None:
    """What broke the protocol so far that it failed counts beside what merely bent it."""
    standing = after([Outcome.CORRUPTED, Outcome.CRASHED])
    assert (standing.exchanges, standing.rejects) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("hour", "week", "why"),
    [
        ((9.0, 3.0), (240.0, 3.0), "standing.bad-hour"),
        ((7.0, 3.0), (20.0, 3.0), "standing.little-evidence"),
        ((0.0, 0.0), (12.0, 6.0), "standing.unreliable"),
        ((0.0, 0.0), (5.0, 3.0), "standing.little-evidence"),
    ],
)
def test_why_a_node_is_on_probation(hour: tuple[float, float], week: tuple[float, float], why: str) -> None:
    """A bad hour heals with time; who fails often is not proven by a little more work."""
    standing = Standing((hour[0], week[0]), (hour[1], week[1]), exchanges=sum(week), at=TICKS)
    rating = rate(standing, TICKS)
    assert (rating.grade, rating.why) == (Grade.PROBATION, why)


def test_what_put_a_node_into_its_tier_is_said() -> None:
    """As a code, the worst first."""
    reasons = [
        rate(standing, TICKS, missed).why
        for standing, missed in [
            (Standing(), None),
            (after([Outcome.COMPLETED] * PROVEN), None),
            (after([Outcome.COMPLETED] * PROVEN), "standing.first-token-p90"),
            (exchanges(10, 100), "standing.first-token-p90"),
            (after([Outcome.CORRUPTED] * 20), "standing.first-token-p90"),
        ]
    ]
    assert reasons == [
        "standing.little-evidence",
        "standing.proven",
        "standing.first-token-p90",
        "standing.unclean",
        "standing.failing",
    ]


# The node's own operator.


def test_work_of_its_own_operator_earns_a_node_nothing() -> None:
    """Sending oneself work is how one buys a standing: counts and latency stay as they are."""
    standing = after([Outcome.COMPLETED] * 5)
    assert standing.add(Execution(Outcome.COMPLETED, 0.001, earns_credit=False), TICKS + 9) == standing


@pytest.mark.parametrize("outcome", NODES_FAULT)
def test_failures_before_its_own_operator_count(outcome: Outcome) -> None:
    """Whoever sent the work, the node failed at it."""
    assert Standing(at=TICKS).add(Execution(outcome, 1.0, earns_credit=False), TICKS).failed == (3.0, 3.0)


def test_an_unclean_answer_to_its_own_operator_counts() -> None:
    """As an exchange that was none, and as no good work."""
    standing = Standing(at=TICKS).add(
        Execution(Outcome.COMPLETED, 1.0, is_clean=False, earns_credit=False), TICKS
    )
    assert (standing.completed, standing.exchanges, standing.rejects) == ((0.0, 0.0), 1.0, 1.0)


# Latency in the rating.


@pytest.mark.parametrize(
    ("latency", "expected"), [(None, UNKNOWN_LATENCY_S), (99.0, UNKNOWN_LATENCY_S), (2.0, 2.0)]
)
def test_nobody_is_rated_slower_than_who_was_never_measured(latency: float | None, expected: float) -> None:
    """Else a new name would be worth more than a slow one."""
    assert rate(Standing(latency_s=latency), TICKS).latency_s == expected


@settings(max_examples=300, deadline=None)
@given(st.floats(0.0001, 1e4), st.floats(0.0001, 1e4), st.floats(0, 1e6))
def test_latency_stays_between_what_it_was_and_what_was_seen(before, seconds, passed) -> None:
    """To the last digit: nobody is slower for having been quick."""
    found = (
        Standing(at=TICKS, latency_s=before)
        .add(Execution(Outcome.COMPLETED, seconds), TICKS + passed)
        .latency_s
    )
    assert seconds <= found <= max(before, seconds)


def test_a_mean_is_not_rounded_above_what_it_was() -> None:
    """As this one would be, by its last digit."""
    before, seconds = 31.150884268958446, 5.404626659096563
    assert (
        Standing(at=TICKS, latency_s=before).add(Execution(Outcome.COMPLETED, seconds), TICKS).latency_s
        == before
    )


# Several routers.

STANDINGS = st.builds(
    Standing,
    completed=st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)),
    failed=st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)),
    exchanges=st.floats(0, 1e4),
    rejects=st.floats(0, 100),
    at=st.floats(TICKS - 1e6, TICKS),
    latency_s=st.one_of(st.none(), st.floats(0.001, 60)),
)


def amounts(standing: Standing) -> list[float]:
    return [*standing.completed, *standing.failed, standing.exchanges, standing.rejects]


def test_what_routers_saw_together_is_what_one_would_have_seen() -> None:
    """Counts are added as of one moment."""
    half, whole = after([Outcome.COMPLETED, Outcome.CRASHED]), after([Outcome.COMPLETED, Outcome.CRASHED] * 2)
    later = TICKS + 5000
    assert amounts(merge(half, [half], later)) == pytest.approx(amounts(whole.decayed_to(later)))


@settings(max_examples=100, deadline=None)
@given(STANDINGS, st.lists(STANDINGS, max_size=4), st.randoms(use_true_random=False))
def test_in_which_order_routers_are_heard_does_not_matter(own, others, random) -> None:
    """The sum is the same, and so is the latency."""
    shuffled = list(others)
    random.shuffle(shuffled)
    first, second = merge(own, others, TICKS), merge(own, shuffled, TICKS)
    assert amounts(first) == pytest.approx(amounts(second))
    assert first.latency_s == second.latency_s


@settings(max_examples=100, deadline=None)
@given(STANDINGS, st.lists(STANDINGS, max_size=4))
def test_a_router_goes_by_its_own_latency(own, others) -> None:
    """It holds the way from here to the node; where there is none, the slowest of the others' is taken."""
    found = merge(own, others, TICKS).latency_s
    slowest = max((o.latency_s for o in others if o.latency_s is not None), default=None)
    assert found == (slowest if own.latency_s is None else own.latency_s)


# Episodes.


def cut(load: Load, count: int, outcome: Outcome = Outcome.CRASHED) -> None:
    """So many requests in flight together, and all cut at one moment."""
    numbers = [load.begin_request() for _ in range(count)]
    for number in numbers:
        load.end_request(outcome, TICKS, number)


@pytest.mark.parametrize("count", [1, 3, 6, 12, 64])
def test_requests_that_are_cut_at_one_moment_are_one_failure(count: int) -> None:
    """A process that died once has died once, however many requests it had."""
    load = Load()
    cut(load, count)
    assert (load.failures_in_a_row, load.breaker_is_open(TICKS)) == (1, False)


@pytest.mark.parametrize(("times", "open_s"), [(3, 10.0), (4, 20.0), (5, 40.0)])
def test_each_further_cut_counts_once(times: int, open_s: float) -> None:
    """A node that dies again and again is shut, as one that fails each request."""
    load = Load()
    for _ in range(times):
        cut(load, 12)
    assert load.open_until == TICKS + open_s


def test_attempts_from_before_the_breaker_opened_do_not_lengthen_it() -> None:
    """They were on their way before anybody knew."""
    load = Load()
    early = [load.begin_request() for _ in range(9)]
    for _ in range(3):
        load.end_request(Outcome.CRASHED, TICKS, load.begin_request())
    for number in early:
        load.end_request(Outcome.STALLED, TICKS + 5, number)
    assert load.open_until == TICKS + BREAKER_OPEN_S


def test_failures_that_overlap_for_ever_still_open_the_breaker() -> None:
    """A node that always has a request in flight cannot make all its failures one."""
    load, numbers = Load(), []
    for _ in range(12):
        numbers.append(load.begin_request())
        if len(numbers) > 2:
            load.end_request(Outcome.CRASHED, TICKS, numbers.pop(0))
    assert load.breaker_is_open(TICKS)


def test_a_late_verdict_about_the_same_moment_does_not_count_again() -> None:
    """Whose fault it was may turn out after the node has completed other work."""
    load = Load()
    numbers = [load.begin_request() for _ in range(12)]
    for number in numbers:
        load.end_request(Outcome.UNSUPPORTED, TICKS, number)
    load.end_request(Outcome.COMPLETED, TICKS + 1, load.begin_request())
    counted = [load.count_outcome(Outcome.CRASHED, TICKS + 2, number) for number in numbers]
    assert (counted, load.failures_in_a_row) == ([True, *[False] * 11], 1)


def test_a_further_failure_of_one_moment_weighs_one() -> None:
    """Each is work that was lost, and only one shows that the node fails."""
    first, further = Execution(Outcome.CRASHED, 1.0), Execution(Outcome.CRASHED, 1.0, is_further=True)
    standing = Standing(at=TICKS).add(first, TICKS).add(further, TICKS).add(further, TICKS)
    assert (standing.failed, standing.exchanges) == ((5.0, 5.0), 3.0)
