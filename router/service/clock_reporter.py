"""Says in the log and in the metrics that a clock is wrong, each time once."""

from __future__ import annotations

import structlog
from prometheus_client import Gauge

from router.model.clock import Clock
from verifier.service.clock import describe_step

_log = structlog.get_logger("router")
_ahead = Gauge(
    "touchstone_router_clock_ahead_seconds", "By how much the router's clock is ahead of the verifier's."
)


class ClockReporter:
    """
    Compares the clocks each time that it is asked.

    Args:
        skew_s: By how much they may differ.
    """

    def __init__(self, clock: Clock, skew_s: int) -> None:
        self._clock = clock
        self._skew_s = skew_s
        self._steps = clock.steps
        self._differ = False

    def report(self) -> None:
        """Say what has changed since the last time."""
        clock = self._clock
        if clock.steps != self._steps:
            self._steps = clock.steps
            _log.warning(f"the router's clock was {describe_step(clock.stepped_ms)}")
        difference = clock.describe_difference(self._skew_s)
        if difference and not self._differ:
            _log.warning(difference)
        elif self._differ and not difference:
            _log.info("the router's clock and the verifier's agree again")
        self._differ = bool(difference)
        ahead_s = clock.ahead_s()
        _ahead.set(ahead_s or 0.0)
