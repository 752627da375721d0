"""
Sequential tests: they may be looked at after each request, and stopped at any time, with the same error rate.  Pure.

Each is a test by betting.  Somebody bets against "it is not worse" with one unit, and cannot expect to win while that
is true.  The chance that the bettor ever has 1/α is at most α (Ville's inequality), however often somebody looks.

    Shafer, "Testing by betting", JRSS A 184 (2021); Waudby-Smith and Ramdas, "Estimating means of bounded random
    variables by betting", JRSS B 86 (2024): `Wager`, a mixture of constant bets; over when they begin as well
    (Shin, Ramdas and Rinaldo, "E-detectors", NEJSDS 2 (2024))
    Wald, "Sequential tests of statistical hypotheses" (1945) and Kulldorff et al., "A maximized sequential probability
    ratio test for drug and vaccine safety surveillance", Sequential Analysis 30 (2011): the arm in which an event
    happens, given that it happens, is a coin with a known bias (`Split`)
"""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

BETS: Final = (0.01, 0.03, 0.08, 0.2, 0.4, 0.65, 0.95)
"""Shares of what there is that are bet each time.  Their average costs at most log 7 against the best of them."""
LEAST_SEEN: Final = 50
"""Requests before the share of an arm is known well enough."""
_HALF_LIFE: Final = 500
"""Requests after which one counts half for the arms' shares of the traffic."""
_KEEP: Final = 0.5 ** (1 / _HALF_LIFE)


class Wager(Struct):
    """
    Evidence that a mean is above a bound.

    For values that are not negative.  While the mean of each value, given all before it, is at most its bound, the
    wealth is a non-negative supermartingale that begins with 1.
    """

    logs: list[float] = []
    """The logarithm of each bettor's wealth that is at stake."""
    seen: int = 0

    def add(self, value: float, bound: float) -> None:
        """Take in a value; *bound* was known before it, and is above 0."""
        self.seen += 1
        # Of the one unit, 1/(n(n+1)) is put down at the n-th value: what becomes worse late is seen, too.
        new = -math.log(self.seen * (self.seen + 1))
        ratio = value / bound - 1.0
        logs = [_log_sum(log, new) for log in self.logs] or [new] * len(BETS)
        self.logs = [log + math.log1p(bet * ratio) for log, bet in zip(logs, BETS, strict=True)]

    @property
    def log_wealth(self) -> float:
        """The logarithm of the average wealth, with what was not put down yet."""
        kept = 1 / (self.seen + 1)
        if not self.logs:
            return 0.0
        most = max(self.logs)
        return _log_sum(
            most + math.log(sum(math.exp(log - most) for log in self.logs) / len(self.logs)), math.log(kept)
        )


def _log_sum(one: float, other: float) -> float:
    low, high = sorted((one, other))
    return high + math.log1p(math.exp(low - high))


class Split(Struct):
    """Which share of the traffic the candidate has had lately."""

    active: float = 0.0
    candidate: float = 0.0

    def add(self, *, is_candidate: bool) -> None:
        """Count a request."""
        self.active = self.active * _KEEP + (not is_candidate)
        self.candidate = self.candidate * _KEEP + is_candidate

    def bias(self, share: float, ratio: float) -> float | None:
        """
        The chance that an event falls on the candidate, if it has at most *ratio* times the active table's rate.

        Args:
            share: Of the traffic, that the candidate is to have.
            ratio: Of the two rates.

        Returns:
            `None` if too little of either arm was seen.
        """
        seen = self.active + self.candidate
        if seen < LEAST_SEEN * (1 - 1e-9) * _seen_of(LEAST_SEEN) or self.active < 1:
            return None
        part = max(share, (self.candidate + 1) / (seen + 1))
        return None if part >= 1 else ratio * part / (ratio * part + 1 - part)


def _seen_of(requests: int) -> float:
    """What is left of the weight of so many requests, as a share of their number."""
    return (1 - _KEEP**requests) / ((1 - _KEEP) * requests)


def log_limit(alpha: float, tests: int) -> float:
    """The wealth, as a logarithm, at which one of so many tests stops, so that all of them err with at most *alpha*."""
    return math.log(tests / alpha)
