"""The sweep: what time alone changes of nodes, a few at a time, and the figures that follow."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from prometheus_client import Gauge

from router.service.clock_reporter import ClockReporter
from router.service.state import State

_SWEEP_EVERY_S: Final = 1.0
_SWEPT_IN_S: Final = 60
"""Every node is swept within this time."""
_SWEPT_AT_ONCE: Final = 50
"""Nodes that are swept before other work has its turn."""

_log = structlog.get_logger("router")
_silent = Gauge("touchstone_router_feed_silent_seconds", "How long nothing was heard from the verifier.")
_nodes = Gauge("touchstone_router_nodes", "Nodes in each lane of each workload.", ["workload", "lane"])


async def sweep(state: State) -> None:
    """Sweep until cancelled."""
    fleet, clocks = state.fleet, ClockReporter(state.clock, state.config.verifier.skew_s)
    while True:
        # Spread over the second: a large fleet in one go would keep every request waiting.
        parts = len(fleet) // (_SWEPT_IN_S * _SWEPT_AT_ONCE) + 1
        for _ in range(parts):
            await asyncio.sleep(_SWEEP_EVERY_S / parts)
            try:
                fleet.advance()
                fleet.sweep(_SWEPT_AT_ONCE)
            except Exception:  # noqa: BLE001
                # The outermost of the sweep: one node must not end it for all.
                _log.exception("the sweep failed")
        clocks.report()
        _silent.set(fleet.silent_s)
        for name, lanes in fleet.census().items():
            for lane, count in lanes.items():
                _nodes.labels(name, lane).set(count)
