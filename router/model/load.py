"""What one router has in flight at a node for a tier, and its circuit breaker there."""

from __future__ import annotations

from typing import Final

from router.model.outcomes import Blame, Outcome

BREAKER_FAILURES: Final = 3
"""Failures in a row that open the breaker."""
BREAKER_OPEN_S: Final = 10.0
BREAKER_LONGEST_S: Final = 300.0
_MAX_DOUBLINGS: Final = 8

BREAKING: Final = frozenset(outcome for outcome in Outcome if outcome.blame is Blame.NODE) | {
    Outcome.BUSY,
    Outcome.IMPOSTOR,
}
"""Outcomes after which work cannot usefully be sent to the node."""


class Load:
    """Requests in flight and failures in a row.  Times are monotonic seconds."""

    __slots__ = ("failures_in_a_row", "in_flight", "open_until", "refusals_in_a_row")

    def __init__(self, in_flight: int = 0, failures_in_a_row: int = 0, open_until: float = 0.0) -> None:
        self.in_flight = in_flight
        self.failures_in_a_row = failures_in_a_row
        """All outcomes in `BREAKING`."""
        self.open_until = open_until
        """The node gets no work until this time, and one request at a time after it, as a trial."""
        self.refusals_in_a_row = 0
        """Refused requests with nothing completed between them."""

    def end_request(self, outcome: Outcome, now: float) -> None:
        """Take one request out of flight, and count its outcome."""
        self.in_flight = max(self.in_flight - 1, 0)
        self.count_outcome(outcome, now)

    def count_outcome(self, outcome: Outcome, now: float) -> None:
        """Open the breaker after three failures in a row, for twice as long after each further one."""
        if outcome is Outcome.COMPLETED:
            self.failures_in_a_row = self.refusals_in_a_row = 0
            self.open_until = 0.0
        elif outcome is Outcome.REFUSED:
            self.refusals_in_a_row += 1
        elif outcome in BREAKING:
            self.failures_in_a_row += 1
            doublings = self.failures_in_a_row - BREAKER_FAILURES
            if doublings >= 0:
                pause_s = BREAKER_OPEN_S * 2.0 ** min(doublings, _MAX_DOUBLINGS)
                self.open_until = now + min(pause_s, BREAKER_LONGEST_S)

    def breaker_is_open(self, now: float) -> bool:
        """Whether the breaker keeps work away: during its pause, and then while a trial request is in flight."""
        if self.failures_in_a_row < BREAKER_FAILURES:
            return False
        return now < self.open_until or self.in_flight > 0
