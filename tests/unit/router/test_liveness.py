"""Whether a node is still there: φ, and what it cannot be stretched to."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model.liveness import LEAST_DEVIATION_S, PAUSE_S, SUSPECT, UNAVAILABLE, WINDOW, Heartbeat

EVERY = 5.0


def beating(intervals: list[float], every: float = EVERY, start: float = 1000.0) -> tuple[Heartbeat, float]:
    """A node that answered at these intervals, and when it did last."""
    heartbeat, now = Heartbeat(every), start
    heartbeat.answered(now)
    for interval in intervals:
        now += interval
        heartbeat.answered(now)
    return heartbeat, now


def normal_tail(y: float) -> float:
    """The chance that a normal variate is more than *y* deviations above its mean."""
    return math.erfc(y / math.sqrt(2)) / 2


def phi_at(y: float) -> float:
    """φ when the silence is *y* deviations longer than usual, the pause included."""
    heartbeat, last = beating([EVERY] * 10)
    return heartbeat.phi(last + EVERY + PAUSE_S + y * LEAST_DEVIATION_S)


@pytest.mark.parametrize("y", [step / 10 for step in range(-80, 81)])
def test_phi_is_the_chance_that_it_is_still_there(y: float) -> None:
    """Of the normal distribution, within the 1.5 × 10⁻⁴ of its logistic approximation."""
    assert 10 ** -phi_at(y) == pytest.approx(normal_tail(y), abs=1.5e-4)


@pytest.mark.parametrize(("y", "phi"), [(0.0, math.log10(2)), (5.23, 8.0), (4.12, 5.0)])
def test_phi_has_its_known_values(y: float, phi: float) -> None:
    """reference/routers.md §B.1: φ of 8 is 5.23 deviations."""
    assert phi_at(y) == pytest.approx(phi, abs=0.02)


@given(st.floats(-200, 200), st.floats(0, 50))
def test_phi_never_falls_while_nothing_is_heard(y: float, longer: float) -> None:
    """Nor does it overflow, after however long."""
    assert 0 <= phi_at(y) <= phi_at(y + longer)


def test_phi_of_a_silence_without_end_is_infinite() -> None:
    """And no error."""
    assert phi_at(1e9) == math.inf


@given(
    st.lists(st.floats(0.001, 30), max_size=30),
    st.sampled_from([SUSPECT, UNAVAILABLE]),
    st.sampled_from([0.5, 5.0, 60.0]),
)
def test_when_phi_is_reached_is_when_it_is_reached(intervals: list[float], phi: float, every: float) -> None:
    """Timers are set by the one and lanes are judged by the other."""
    heartbeat, _ = beating(intervals, every)
    at = heartbeat.reaches(phi)
    assert heartbeat.phi(at - 0.001) < phi <= heartbeat.phi(at + 1e-6)


def test_it_is_suspect_before_it_is_gone() -> None:
    """First it is only tried, then it is taken to be away."""
    heartbeat, last = beating([EVERY] * 10)
    assert last < heartbeat.reaches(SUSPECT) < heartbeat.reaches(UNAVAILABLE)


def test_one_lost_answer_is_no_outage() -> None:
    """A pause is borne on top of what is usual."""
    heartbeat, last = beating([EVERY] * 10)
    assert heartbeat.phi(last + 2 * EVERY) < 0.01


@pytest.mark.parametrize("do", ["nothing", "served"])
def test_who_never_answered_is_not_late(do: str) -> None:
    """There is no rhythm to be late by; work is none either."""
    heartbeat = Heartbeat(EVERY)
    if do == "served":
        heartbeat.served(1000.0)
    assert (heartbeat.phi(1e9), heartbeat.reaches(UNAVAILABLE)) == (0.0, math.inf)


def test_work_is_a_sign_of_life() -> None:
    """And no sample of how the node answers."""
    heartbeat, last = beating([EVERY] * 10)
    heartbeat.served(last + 14.0)
    assert (heartbeat.phi(last + 14.0 + EVERY), len(heartbeat.intervals)) == (
        pytest.approx(0.0, abs=0.01),
        10,
    )


def test_work_before_a_late_answer_does_not_shorten_the_rhythm() -> None:
    """Intervals are from answer to answer."""
    heartbeat, last = beating([EVERY] * 10)
    heartbeat.served(last + 4.9)
    heartbeat.answered(last + 5.0)
    assert heartbeat.intervals[-1] == pytest.approx(5.0)


def test_the_interval_that_ended_an_outage_is_no_sample() -> None:
    """It says nothing of how the node usually answers."""
    quiet, _ = beating([EVERY] * 10)
    back, last = beating([EVERY] * 10 + [600.0])
    assert (list(back.intervals), back.reaches(UNAVAILABLE) - last) == (
        list(quiet.intervals),
        pytest.approx(quiet.reaches(UNAVAILABLE) - quiet.heard),
    )


def test_only_the_newest_answers_count() -> None:
    """A window, so that an old rhythm is unlearned and memory is bounded."""
    heartbeat, _ = beating([9.0] * 50 + [EVERY] * WINDOW)
    assert list(heartbeat.intervals) == [EVERY] * WINDOW


def detection(heartbeat: Heartbeat) -> float:
    """How long a silence has to be before the node is taken to be gone."""
    assert heartbeat.heard is not None
    return heartbeat.reaches(UNAVAILABLE) - heartbeat.heard


def test_an_honest_node_is_found_out_within_eighteen_seconds() -> None:
    """5 s, a pause of 10 s, and 5.23 deviations of the least there is."""
    assert detection(beating([EVERY] * 50)[0]) == pytest.approx(17.6, abs=0.1)


def bound(every: float) -> float:
    """
    The latest detection that a node can bring about: the attack "heartbeat stretch".

    The mean is at most 2·I, the deviation half of that: 2·I + 10 s + 5.24·I, but at least half
    a second a deviation.  For an interval of 5 s that is 46.2 s.
    """
    return 2 * every + PAUSE_S + 5.24 * max(every, LEAST_DEVIATION_S)


def test_the_bound_of_stretching_is_46_seconds() -> None:
    """For the usual interval; stated here, for what is decided by it."""
    assert bound(EVERY) == pytest.approx(46.2, abs=0.01)


@pytest.mark.parametrize("every", [0.5, 5.0, 60.0])
@pytest.mark.parametrize("factor", [1.01, 1.05, 1.2, 2.0])
def test_who_answers_ever_later_does_not_stretch_beyond_the_bound(every: float, factor: float) -> None:
    """Neither step by step nor in leaps: the mean, the deviation and the samples are all capped."""
    heartbeat, now, interval = Heartbeat(every), 1000.0, every
    heartbeat.answered(now)
    latest = 0.0
    for _ in range(3 * WINDOW):
        now += interval
        heartbeat.answered(now)
        latest = max(latest, detection(heartbeat))
        interval = interval * factor if interval < 1e4 else every
    assert detection(beating([every] * 20, every)[0]) < latest <= bound(every)


@given(st.lists(st.floats(0.01, 40), max_size=60))
def test_no_rhythm_stretches_beyond_the_bound(intervals: list[float]) -> None:
    """However cleverly it is chosen."""
    assert detection(beating(intervals)[0]) <= bound(EVERY)


@given(st.lists(st.floats(0.01, 40), max_size=60))
def test_no_rhythm_makes_a_node_gone_before_its_next_question(intervals: list[float]) -> None:
    """Whoever answers early is not suspect for that: the mean is never below the interval."""
    assert detection(beating(intervals)[0]) >= EVERY + PAUSE_S


def test_who_is_asked_less_often_is_not_late_for_that() -> None:
    """Neither before the first question at the new interval nor with a window full of the old one."""
    heartbeat, now = beating([EVERY] * WINDOW)
    heartbeat.expect(60.0)
    latest = [heartbeat.phi(now + 60.0)]
    for _ in range(5):
        now += 60.0
        heartbeat.answered(now)
        latest.append(heartbeat.phi(now + 60.0))
    assert max(latest) < 0.1


def test_who_is_asked_more_often_is_found_out_sooner() -> None:
    """Once its answers show the rhythm."""
    heartbeat, now = beating([60.0] * 20, 60.0)
    heartbeat.expect(EVERY)
    for _ in range(WINDOW):
        now += EVERY
        heartbeat.answered(now)
    assert detection(heartbeat) < 18
