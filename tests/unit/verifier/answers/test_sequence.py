"""The sequential test: exact on small cases, and its false alarms bounded whatever order verdicts come in."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.answers import sequence
from verifier.answers.tables import Rates

TEXT = Rates(0.002, 0.9)
FINE = Rates(0.001, 0.5)


def test_increments_are_log_likelihood_ratios() -> None:
    """Of a cheat on 5 % of the answers to true weights."""
    steps = sequence.increments(TEXT)
    suspected = 0.002 + 0.05 * 0.898
    assert steps.differs == pytest.approx(math.log(suspected / 0.002))
    assert steps.agrees == pytest.approx(math.log((1 - suspected) / 0.998))


@pytest.mark.parametrize("rates", [TEXT, FINE, Rates(0.1, 0.95)])
def test_the_exponential_of_an_increment_has_the_mean_1(rates: Rates) -> None:
    """At the honest rate: from this the bound of false alarms follows."""
    steps = sequence.increments(rates)
    mean = rates.honest * math.exp(steps.differs) + (1 - rates.honest) * math.exp(steps.agrees)
    assert mean == pytest.approx(1.0)


def test_a_boundary_is_stated_as_false_alarms() -> None:
    """One in a million checks; a hundred."""
    assert sequence.boundary(1.0) == pytest.approx(math.log(1e6))
    assert sequence.boundary(100.0) == pytest.approx(math.log(1e4))


def test_a_score_stays_in_its_bounds() -> None:
    """Not below 0, and not above what is given."""
    assert sequence.advance(0.0, -0.1, 14.0) == 0.0
    assert sequence.advance(13.0, 3.0, 14.0) == 14.0
    assert sequence.advance(1.0, 0.5, 14.0) == 1.5


def test_checks_to_alarm_by_hand() -> None:
    """With a boundary that one differing answer reaches, the wait is geometric."""
    steps = sequence.increments(TEXT)
    once = sequence.checks_to_alarm(TEXT, steps.differs * 0.9, 0.25)
    assert once == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("rates", "limit", "rate"), [(TEXT, 5.0, 0.05), (FINE, 6.0, 0.1), (Rates(0.1, 0.9), 3.0, 0.3)]
)
def test_checks_to_alarm_agree_with_simulation(rates: Rates, limit: float, rate: float) -> None:
    """The lattice's two roundings are on both sides of what is simulated."""
    random = np.random.default_rng(1)
    steps = sequence.increments(rates)
    waits = []
    for _ in range(400):
        score, checks = 0.0, 0
        while score < limit:
            checks += 1
            score = max(score + (steps.differs if random.random() < rate else steps.agrees), 0.0)
        waits.append(checks)
    mean, error = float(np.mean(waits)), float(np.std(waits)) / 20
    low = sequence.checks_to_alarm(rates, limit, rate, alarms_rather=True)
    high = sequence.checks_to_alarm(rates, limit, rate, alarms_rather=False)
    assert low <= high
    assert low - 4 * error <= mean <= high + 4 * error


@pytest.mark.parametrize("rates", [TEXT, FINE, Rates(0.1, 0.95)])
@pytest.mark.parametrize("per_million", [1000.0, 100.0])
def test_false_alarms_are_no_more_than_stated(rates: Rates, per_million: float) -> None:
    """Exactly, at the highest honest rate."""
    wait = sequence.checks_to_alarm(rates, sequence.boundary(per_million), rates.honest)
    assert wait >= 1e6 / per_million


def test_detection_is_the_distribution_of_the_wait() -> None:
    """Its mean is that of `checks_to_alarm`."""
    found = sequence.detection(TEXT, 6.0, 0.3, 2000, alarms_rather=True)
    assert found[0] == 0.0
    assert np.all(np.diff(found) >= -1e-12)
    mean = float(np.sum(1 - found[:-1]))
    assert mean == pytest.approx(sequence.checks_to_alarm(TEXT, 6.0, 0.3), rel=1e-3)


def test_quantiles() -> None:
    """The first check with the probability; none if it is not reached."""
    found = np.array([0.0, 0.2, 0.5, 0.8])
    assert [sequence.quantile(found, share) for share in (0.1, 0.5, 0.9)] == [1, 2, None]


def test_less_than_the_least_rate_is_not_found() -> None:
    """The score does not rise."""
    least = sequence.least_rate(TEXT)
    steps = sequence.increments(TEXT)
    assert least * steps.differs + (1 - least) * steps.agrees == pytest.approx(0.0)
    assert TEXT.honest < least < 0.05


def crossing(kinds: Sequence[tuple[Rates, float]], limit: float) -> float:
    """The exact probability that a score reaches *limit* within these checks: each of a kind, at a rate."""
    held: dict[float, float] = {0.0: 1.0}
    found = 0.0
    for rates, rate in kinds:
        steps = sequence.increments(rates)
        after: dict[float, float] = defaultdict(float)
        for score, mass in held.items():
            for step, chance in ((steps.differs, rate), (steps.agrees, 1 - rate)):
                moved = max(score + step, 0.0)
                if moved >= limit:
                    found += mass * chance
                else:
                    after[round(moved, 9)] += mass * chance
        held = after
    return found


orders = st.lists(
    st.tuples(st.sampled_from([TEXT, FINE, Rates(0.1, 0.95)]), st.floats(0, 1)), min_size=1, max_size=14
)


@given(orders, st.floats(1.0, 6.0))
def test_no_order_of_honest_verdicts_crosses_more_often_than_stated(
    order: list[tuple[Rates, float]], limit: float
) -> None:
    """Any mix of kinds of checks, in any order, each at any rate up to the honest one: at most n · exp(−boundary)."""
    honest = [(rates, share * rates.honest) for rates, share in order]
    assert crossing(honest, limit) <= len(honest) * math.exp(-limit) + 1e-12


@given(orders)
def test_a_mix_of_cheating_verdicts_does_cross(order: list[tuple[Rates, float]]) -> None:
    """The bound above is no accident of a score that never moves."""
    cheats = [(rates, 1.0) for rates, _ in order]
    rise = sum(sequence.increments(rates).differs for rates, _ in order)
    assert crossing(cheats, rise * 0.999) == pytest.approx(1.0)
