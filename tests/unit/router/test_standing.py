"""Standing: what the router has seen of a node, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.outcomes import Blame, Outcome
from router.ranking import Tier, rate
from router.standing import BREAKER_OPEN_S, Standing, wilson
from tests.unit.router.support import TICKS, WORKLOAD, snapshot, view

NODES_FAULT = [o for o in Outcome if o.blame is Blame.NODE]
HARMLESS = [Outcome.REFUSED, Outcome.ABANDONED, Outcome.TIMED_OUT, Outcome.UNSERVED]
WEEK = 7 * 86400.0


def after(outcomes: list[Outcome], *, now: float = TICKS, standing: Standing | None = None) -> Standing:
    standing = standing or Standing(at=now)
    for outcome in outcomes:
        standing = standing.started().ended(outcome, 1.0, now)
    return standing


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
    assert standing.started().ended(outcome, 99.0, TICKS + 100) == standing


@pytest.mark.parametrize("outcome", [Outcome.BUSY, Outcome.IMPOSTOR])
def test_busy_and_impostors_do_not_move_completion(outcome: Outcome) -> None:
    """A node that says that it is full, or whose address was taken, has failed at nothing."""
    standing = after([Outcome.COMPLETED] * 30)
    moved = after([outcome] * 50, standing=standing)
    assert (moved.completion(TICKS), moved.evidence(TICKS)) == (
        standing.completion(TICKS),
        standing.evidence(TICKS),
    )


@pytest.mark.parametrize("outcome", [*NODES_FAULT, Outcome.BUSY, Outcome.IMPOSTOR])
def test_the_breaker_opens_after_three(outcome: Outcome) -> None:
    """Two may happen; at the third no work is sent."""
    assert [after([outcome] * n).breaker_is_closed(TICKS) for n in (2, 3)] == [True, False]


@pytest.mark.parametrize("outcome", HARMLESS)
def test_nobody_elses_fault_opens_the_breaker(outcome: Outcome) -> None:
    """A client cannot eject a node."""
    assert after([outcome] * 100).breaker_is_closed(TICKS)


@pytest.mark.parametrize("outcome", HARMLESS)
def test_nobody_elses_fault_closes_the_breaker(outcome: Outcome) -> None:
    """A request that the node refused does not show that it works again."""
    broken = after([Outcome.CRASHED] * 3)
    assert not after([outcome], standing=broken).breaker_is_closed(TICKS)


def test_a_success_between_failures_starts_the_count_anew() -> None:
    """Three in a row, not three in all."""
    crashed, done = Outcome.CRASHED, Outcome.COMPLETED
    assert after([crashed, crashed, done, crashed, crashed]).breaker_is_closed(TICKS)


@pytest.mark.parametrize(("waited", "closed"), [(BREAKER_OPEN_S - 0.001, False), (BREAKER_OPEN_S, True)])
def test_a_probe_goes_when_the_wait_is_over(waited: float, closed: bool) -> None:  # noqa: FBT001
    """Not before."""
    assert after([Outcome.CRASHED] * 3).breaker_is_closed(TICKS + waited) is closed


def test_one_probe_at_a_time() -> None:
    """While it is under way, nothing follows."""
    probing = after([Outcome.CRASHED] * 3).started()
    assert not probing.breaker_is_closed(TICKS + BREAKER_OPEN_S)


def test_a_success_closes_the_breaker() -> None:
    """The probe came through."""
    later = TICKS + BREAKER_OPEN_S
    probed = after([Outcome.COMPLETED], standing=after([Outcome.CRASHED] * 3), now=later)
    assert probed.started().breaker_is_closed(later)


def test_a_failed_probe_opens_it_again() -> None:
    """For as long as before, from then on."""
    later = TICKS + BREAKER_OPEN_S
    probed = after([Outcome.CRASHED], standing=after([Outcome.CRASHED] * 3), now=later)
    waits = (later + BREAKER_OPEN_S - 0.001, later + BREAKER_OPEN_S)
    assert [probed.breaker_is_closed(at) for at in waits] == [False, True]


def test_a_failure_weighs_three_times() -> None:
    """So that a node that cheats now and then cannot earn it back as fast."""
    assert after([Outcome.CRASHED]).failed == (3.0, 3.0)


def tier(standing: Standing, now: float = TICKS) -> Tier:
    return rate(view(), WORKLOAD, snapshot(view(), standings={"n": standing}, monotonic=now)).tier


def test_nobody_starts_established() -> None:
    """A node of which nothing was seen is on probation."""
    assert tier(Standing()) is Tier.PROBATION


@pytest.mark.parametrize(("requests", "expected"), [(24, Tier.PROBATION), (25, Tier.ESTABLISHED)])
def test_established_after_25_without_a_failure(requests: int, expected: Tier) -> None:
    """Probation ends with evidence, not with time."""
    assert tier(after([Outcome.COMPLETED] * requests)) is expected


@pytest.mark.parametrize("idle", [3600.0, 86400.0, WEEK, 30 * WEEK, 500 * WEEK])
def test_an_idle_node_is_not_degraded(idle: float) -> None:
    """Nothing asked of it is nothing failed, however long."""
    standing = after([Outcome.COMPLETED] * 40)
    assert not standing.is_degraded(TICKS + idle)


def test_an_idle_day_does_not_cost_the_standing() -> None:
    """The hour without requests judges nobody; the week still counts."""
    assert tier(after([Outcome.COMPLETED] * 60), TICKS + 86400) is Tier.ESTABLISHED


def test_a_failing_node_is_degraded() -> None:
    """Even the upper end of what is believable is too low."""
    assert tier(after([Outcome.CRASHED] * 5)) is Tier.DEGRADED


def test_one_failure_of_a_newcomer_degrades_nobody() -> None:
    """It is not enough to judge by."""
    assert tier(after([Outcome.CRASHED])) is Tier.PROBATION


def test_a_good_week_does_not_hide_a_bad_hour() -> None:
    """The lower of the two half-lives counts."""
    good = after([Outcome.COMPLETED] * 1000, now=TICKS)
    later = TICKS + 6 * 86400
    assert tier(after([Outcome.CRASHED] * 10, standing=good, now=later), later) is Tier.DEGRADED


def test_a_good_hour_does_not_hide_a_bad_week() -> None:
    """Behaving for an hour is how one milks a reputation."""
    bad = after([Outcome.CRASHED] * 100, now=TICKS)
    later = TICKS + 86400
    assert tier(after([Outcome.COMPLETED] * 60, standing=bad, now=later), later) is not Tier.ESTABLISHED


def test_latency_rises_at_once() -> None:
    """A slow answer is believed."""
    standing = Standing(at=TICKS).started().ended(Outcome.COMPLETED, 0.1, TICKS)
    assert standing.started().ended(Outcome.COMPLETED, 5.0, TICKS + 1).latency_s == 5.0


def test_latency_falls_slowly() -> None:
    """A quick one after it is believed a minute later, not at once."""
    slow = Standing(at=TICKS).started().ended(Outcome.COMPLETED, 5.0, TICKS)
    soon = slow.started().ended(Outcome.COMPLETED, 0.1, TICKS + 1).latency_s
    late = slow.started().ended(Outcome.COMPLETED, 0.1, TICKS + 600).latency_s
    assert soon is not None
    assert late is not None
    assert (soon > 4.9, 0.1 < late < 0.2) == (True, True)


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.COMPLETED])
def test_only_completed_work_has_a_latency(outcome: Outcome) -> None:
    """A node must not look quick by failing quickly."""
    assert Standing(at=TICKS, latency_s=2.0).started().ended(outcome, 0.001, TICKS + 1).latency_s == 2.0


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_end_frees_a_place(outcome: Outcome) -> None:
    """Whatever the outcome, what was under way is no longer."""
    assert Standing(at=TICKS).started().started().ended(outcome, 1.0, TICKS).in_flight == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), st.sampled_from(list(Outcome))), max_size=30))
def test_in_flight_is_never_negative(steps: list[Outcome | None]) -> None:
    """Not by any sequence of starts and ends."""
    standing = Standing(at=TICKS)
    lowest = 0
    for step in steps:
        standing = standing.started() if step is None else standing.ended(step, 1.0, TICKS)
        lowest = min(lowest, standing.in_flight)
    assert lowest == 0
