"""
The sequential test: from single verdicts to a suspicion, at a stated rate of false alarms.  Pure.

CUSUM (Page 1954) of log-likelihood ratios.  The score of a node falls by little with each answer that agrees, but never
below 0, and rises by much with one that differs.  An alarm is a score at the boundary.

**False alarms.**  If answers of true weights differ at a rate of at most `Rates.honest`, whatever came before, then the
exponential of each increment has a mean of at most 1.  So from 0 the score takes at least ``exp(boundary)`` checks to
reach the boundary, on average (Lorden 1971), for every order and mix of kinds of checks.  `boundary` follows from that.
For one kind of check `checks_to_alarm` and `detection` compute the exact numbers, as a Markov chain on a lattice.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from verifier.answers.tables import Rates

DESIGN_SHARE: Final = 0.05
"""
The test is the best one against a node that cheats on this share of its answers.

Shares far below it are not found: `least_rate`.  A larger value finds a full swap hardly sooner.
"""
_MILLION: Final = 1e6


class Increments(NamedTuple):
    """What one verdict adds to the score, in nat."""

    agrees: float
    """Below 0."""
    differs: float


def increments(rates: Rates) -> Increments:
    """Give the log-likelihood ratios of a cheat on `DESIGN_SHARE` of the answers to true weights."""
    suspected = rates.honest + DESIGN_SHARE * (rates.cheating - rates.honest)
    return Increments(
        math.log((1 - suspected) / (1 - rates.honest)),
        math.log(suspected / rates.honest),
    )


def boundary(alarms_per_million: float) -> float:
    """Give the score at which so many false alarms are raised, at most, by a million checks of true weights."""
    return math.log(_MILLION / alarms_per_million)


def advance(score: float, increment: float, highest: float) -> float:
    """Give the score after one more verdict.  It stays between 0 and *highest*, so that agreeing answers end an alarm."""
    return min(max(score + increment, 0.0), highest)


def least_rate(rates: Rates) -> float:
    """Give the share of differing answers at which the score neither rises nor falls: less is not found."""
    agrees, differs = increments(rates)
    return -agrees / (differs - agrees)


class _Lattice(NamedTuple):
    """The test on a lattice: an agreeing answer is one step down, a differing one *up* steps; an alarm is at *size*."""

    up: int
    size: int


def _lattice(rates: Rates, limit: float, *, alarms_rather: bool) -> _Lattice:
    """
    Give a lattice that raises no fewer alarms than the test (*alarms_rather*), or no more.

    Steps down are exact, steps up and the way to the boundary are rounded.
    """
    agrees, differs = increments(rates)
    up, size = -differs / agrees, -limit / agrees
    if alarms_rather:
        return _Lattice(math.ceil(up), max(math.floor(size), 1))
    return _Lattice(max(math.floor(up), 1), math.ceil(size))


def checks_to_alarm(rates: Rates, limit: float, rate: float, *, alarms_rather: bool = True) -> float:
    """
    Give the mean number of checks from the score 0 to an alarm.

    Args:
        rates: Of the kind of checks, by which the score is kept.
        limit: The boundary.
        rate: The share of answers that differ.
        alarms_rather: Whether rounding makes alarms sooner (a lower bound of the number) or later.
    """
    up, size = _lattice(rates, limit, alarms_rather=alarms_rather)
    chain = np.zeros((size, size))
    here = np.arange(size)
    chain[here, np.maximum(here - 1, 0)] += 1 - rate
    rising = here[here + up < size]
    chain[rising, rising + up] += rate
    waits = np.linalg.solve(np.eye(size) - chain, np.ones(size))
    return float(waits[0])


def detection(
    rates: Rates, limit: float, rate: float, checks: int, *, silent: float = 0.0, alarms_rather: bool = False
) -> npt.NDArray[np.float64]:
    """
    Give the probability of an alarm within 0, 1, … *checks* checks, from the score 0.

    Args:
        silent: The share of checks that say nothing (censored).  The others are as above.
    """
    up, size = _lattice(rates, limit, alarms_rather=alarms_rather)
    held = np.zeros(size)
    held[0] = 1.0
    found = np.zeros(checks + 1)
    for check in range(1, checks + 1):
        after = np.zeros(size)
        after[:-1] = held[1:] * (1 - rate)
        after[0] += held[0] * (1 - rate)
        if up < size:
            after[up:] += held[: size - up] * rate
        held = silent * held + (1 - silent) * after
        found[check] = 1.0 - held.sum()
    return found


def quantile(found: npt.NDArray[np.float64], share: float) -> int | None:
    """Give after how many checks the probability of an alarm has reached *share*; `None` if it has not."""
    reached = np.nonzero(found >= share)[0]
    return int(reached[0]) if reached.size else None
