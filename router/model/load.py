"""What one router has in flight at a node for a tier, and its circuit breaker there."""

from __future__ import annotations

from typing import Final

from router.model.outcomes import Blame, Outcome

BREAKER_FAILURES: Final = 3
"""Episodes of failure in a row that open the breaker."""
BREAKER_OPEN_S: Final = 10.0
BREAKER_LONGEST_S: Final = 300.0
_MAX_DOUBLINGS: Final = 8

BREAKING: Final = frozenset(outcome for outcome in Outcome if outcome.blame is Blame.NODE) | {
    Outcome.BUSY,
    Outcome.IMPOSTOR,
    Outcome.UNREACHABLE,
    Outcome.NOT_ADMITTED,
}
"""Outcomes after which work cannot usefully be sent to the node."""


class Load:
    """
    Requests in flight and failures in a row.  Times are monotonic seconds.

    Failures are counted by episodes.  Requests that were in flight together when the node's process
    died, or its connection was cut, show once that the node is not available, not once each.  So a
    failure counts only if its request began after the last failure that counted (docs/adr/0030).
    """

    __slots__ = (
        "_begun",
        "_counted_to",
        "_doublings",
        "checks",
        "failures_in_a_row",
        "in_flight",
        "open_until",
        "refusals_in_a_row",
    )

    def __init__(self, in_flight: int = 0, failures_in_a_row: int = 0, open_until: float = 0.0) -> None:
        self.in_flight = in_flight
        self.checks = 0
        """Those of them that are checks: they take no place that work needs."""
        self.failures_in_a_row = failures_in_a_row
        """Episodes of outcomes in `BREAKING`."""
        self.open_until = open_until
        """The node gets no work until this time, and one request at a time after it, as a trial."""
        self.refusals_in_a_row = 0
        """Refused requests with nothing completed between them."""
        self._begun = 0
        self._counted_to = 0
        """How many requests had begun when the last failure was counted."""
        self._doublings = max(0, failures_in_a_row - BREAKER_FAILURES)

    @property
    def work(self) -> int:
        """Requests in flight for users."""
        return self.in_flight - self.checks

    def begin_request(self, *, is_check: bool = False) -> int:
        """Note that a request begins; returns its number, by which `count_outcome` knows when it began."""
        self.in_flight += 1
        self.checks += is_check
        self._begun += 1
        return self._begun

    def end_request(
        self, outcome: Outcome, now: float, number: int | None = None, *, is_check: bool = False
    ) -> bool:
        """Take one request out of flight, and count its outcome; see `count_outcome`."""
        self.in_flight = max(self.in_flight - 1, 0)
        self.checks = max(self.checks - is_check, 0)
        return self.count_outcome(outcome, now, number)

    def count_outcome(self, outcome: Outcome, now: float, number: int | None = None) -> bool:
        """
        Open the breaker after three episodes of failure in a row, for twice as long after each further one.

        What is the network's doing never lengthens the pause, nor does what ends within minutes.  *number* is the
        request's, from `begin_request`; without it the request began after all others.

        Returns:
            Whether it is an outcome of its own, and not a further one of an episode that was counted.
        """
        if outcome is Outcome.COMPLETED:
            self.failures_in_a_row = self.refusals_in_a_row = self._doublings = 0
            self.open_until = 0.0
        elif outcome is Outcome.REFUSED:
            self.refusals_in_a_row += 1
        elif outcome in BREAKING:
            if number is not None and number <= self._counted_to:
                return False
            self._counted_to = self._begun
            self._count_episode(outcome, now)
        return True

    def _count_episode(self, outcome: Outcome, now: float) -> None:
        was_open = self.failures_in_a_row >= BREAKER_FAILURES
        self.failures_in_a_row += 1
        is_short = outcome.blame is Blame.NETWORK or outcome is Outcome.NOT_ADMITTED
        if was_open and not is_short:
            self._doublings = min(self._doublings + 1, _MAX_DOUBLINGS)
        if self.failures_in_a_row >= BREAKER_FAILURES:
            pause_s = BREAKER_OPEN_S * (1.0 if is_short else 2.0**self._doublings)
            self.open_until = max(self.open_until, now + min(pause_s, BREAKER_LONGEST_S))

    def breaker_is_open(self, now: float) -> bool:
        """Whether the breaker keeps work away: during its pause, and then while a trial request is in flight."""
        if self.failures_in_a_row < BREAKER_FAILURES:
            return False
        return now < self.open_until or self.in_flight > 0
