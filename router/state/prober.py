"""
Probes: the router asks each node whether it is there, on the router's own schedule.

How many nodes are asked in a second is bounded.  So a large fleet is asked less often, and its
silence is judged by that.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from router.choose.gates import GateVerdict
from router.model.clock import Clock
from router.model.outcomes import Failure
from router.state.fleet import Fleet

PER_SECOND: Final = 100
_AT_ONCE: Final = 64
_SPREAD: Final = 0.9
"""Share of the interval over which the probes of a round are spread."""
_SHORTEST_PAUSE_S: Final = 0.1
_LATE_S: Final = 0.5
"""If this process stood still for longer during a probe, the probe shows no silence."""

ADDRESS_REFUSED: Final = GateVerdict(
    "address", "address.not-allowed", "its name leads to an address that is refused"
)

_log = structlog.get_logger("router")


def interval_for(nodes: int, wanted_s: float) -> float:
    """How often each of so many nodes is asked, in seconds."""
    return max(wanted_s, nodes / PER_SECOND)


def _place_in_round(node: str) -> bytes:
    """Where a node stands in each round: an arbitrary place, always the same."""
    return hashlib.blake2b(node.encode(), digest_size=8).digest()


class Prober:
    """
    Asks all nodes in turn.

    Args:
        ask: Asks the node at an endpoint (URL and pin); returns why it did not answer, `None` if it did.
        every_s: How often each node is asked, in seconds, if the fleet is small enough.
        lost_s: How long this process has stood still until now, in seconds.
    """

    def __init__(
        self,
        fleet: Fleet,
        ask: Callable[[tuple[str, str]], Awaitable[Failure | None]],
        clock: Clock,
        *,
        every_s: float,
        lost_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._fleet = fleet
        self._ask = ask
        self._clock = clock
        self._every_s = every_s
        self._lost_s = lost_s

    async def run(self) -> None:
        """Ask until cancelled."""
        slots = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            while True:
                began = self._clock.monotonic()
                nodes = [n for n in self._fleet.nodes() if self._fleet.view(n).endpoint is not None]
                every_s = interval_for(len(nodes), self._every_s)
                self._fleet.set_probe_interval(every_s)
                # The order is the same each time, so that each node is asked at even intervals.
                for node in sorted(nodes, key=_place_in_round):
                    await slots.acquire()
                    tasks.create_task(self._probe_in_slot(node, slots), name="probe")
                    await asyncio.sleep(every_s / len(nodes) * _SPREAD)
                await asyncio.sleep(max(every_s - (self._clock.monotonic() - began), _SHORTEST_PAUSE_S))

    async def _probe_in_slot(self, node: str, slots: asyncio.Semaphore) -> None:
        try:
            await self.probe(node)
        except Exception:  # noqa: BLE001
            # The outermost of a probe: one node must not end the probing of all.
            _log.exception("a probe failed", node=node)
        finally:
            slots.release()

    async def probe(self, node: str) -> bool:
        """Ask one node; returns whether it answered."""
        endpoint = self._fleet.view(node).endpoint
        if endpoint is None:
            return False
        fleet = self._fleet
        fleet.note_probe(node)
        lost_s = self._lost_s()
        failure = await self._ask(endpoint)
        if failure is None:
            fleet.note_probe_answer(node)
        if failure is Failure.ADDRESS_REFUSED:
            fleet.addresses.set_verdict(node, endpoint[0], ADDRESS_REFUSED)
        if failure is not None and (not failure.is_silence or self._lost_s() - lost_s > _LATE_S):
            # What is the router's own failure, or the network's on the way, shows nothing of the node.
            fleet.note_no_probe(node)
        return failure is None
