"""
Probes: the router asks each node whether it is there, on a schedule of its own.

Any answer over the connection pinned to the node's key will do.  How many are asked in a
second is bounded, so a large fleet is asked less often, and its silence is judged by that.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

import aiohttp
import structlog

from attester.bounded import read_all
from router.gateway.pinned import AddressError, check_url, pin_for
from router.model.clock import Clock
from router.state.fleet import Fleet

PER_SECOND: Final = 100
_AT_ONCE: Final = 64
_TIMEOUT_S: Final = 5.0
_MAX_ANSWER: Final = 256 << 10

_log = structlog.get_logger("router")


def interval_for(nodes: int, wanted_s: float) -> float:
    """How often each of so many nodes is asked, in seconds."""
    return max(wanted_s, nodes / PER_SECOND)


def _place(node: str) -> bytes:
    """Where a node stands in the round: by chance, and always there."""
    return hashlib.blake2b(node.encode(), digest_size=8).digest()


class Prober:
    """Asks all nodes in turn."""

    def __init__(
        self,
        fleet: Fleet,
        http: aiohttp.ClientSession,
        clock: Clock,
        *,
        every_s: float,
        allow_private: bool,
    ) -> None:
        self._fleet = fleet
        self._http = http
        self._clock = clock
        self._every_s = every_s
        self._allow_private = allow_private
        self._timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)

    async def run(self) -> None:
        """Ask until cancelled."""
        places = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            while True:
                began = self._clock.monotonic()
                nodes = [n for n in self._fleet.nodes() if self._fleet.view(n).endpoint is not None]
                every_s = interval_for(len(nodes), self._every_s)
                self._fleet.probed_every(every_s)
                # In the same order each time, so that a node is asked at even intervals.
                for node in sorted(nodes, key=_place):
                    await places.acquire()
                    tasks.create_task(self._ask(node, places), name="probe")
                    await asyncio.sleep(every_s / len(nodes) * 0.9)
                await asyncio.sleep(max(every_s - (self._clock.monotonic() - began), 0.1))

    async def _ask(self, node: str, places: asyncio.Semaphore) -> None:
        try:
            await self.ask(node)
        except Exception:  # noqa: BLE001
            # The outermost of a probe: one node must not end the asking of all.
            _log.exception("a probe failed", node=node)
        finally:
            places.release()

    async def ask(self, node: str) -> bool:
        """Ask one node; gives whether it answered."""
        endpoint = self._fleet.view(node).endpoint
        if endpoint is None:
            return False
        url, pin = endpoint
        self._fleet.asked(node)
        try:
            place = check_url(url, allow_private=self._allow_private).with_path("/v1/models")
            async with self._http.get(
                place, ssl=pin_for(pin), allow_redirects=False, timeout=self._timeout
            ) as response:
                # Whatever it says, it is there; read to its end, the connection serves the next probe.
                await read_all(response.content, _MAX_ANSWER)
        except (aiohttp.ClientError, TimeoutError, AddressError, OSError, ValueError):
            return False
        self._fleet.answered(node)
        return True
