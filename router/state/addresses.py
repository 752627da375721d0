"""
Names of nodes are looked up before work is sent to them, where the router may not connect to every address.

A node whose name leads to an address that the router's own configuration refuses is excluded by the gate
`address`, and says nothing of the node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from router.choose.gates import GateVerdict
from router.state.fleet import Fleet

_LOOK_EVERY_S: Final = 0.05
_AT_ONCE: Final = 16
_LONGEST_S: Final = 5.0
"""A name that is not found out for so long waits no longer: an attempt will tell."""
_AGAIN_S: Final = 60.0
"""How often the name of a node that is refused is looked up again."""

_log = structlog.get_logger("router")


class AddressChecker:
    """
    Looks up the names of new endpoints, and again those that were refused.

    Args:
        judge: Why the router may not connect to a URL, by what its name leads to now; raises `OSError`
            if that cannot be found out.
    """

    def __init__(self, fleet: Fleet, judge: Callable[[str], Awaitable[GateVerdict | None]]) -> None:
        self._fleet = fleet
        self._judge = judge
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Look names up until cancelled."""
        loop = asyncio.get_running_loop()
        again_at = loop.time() + _AGAIN_S
        async with asyncio.TaskGroup() as tasks:
            while True:
                nodes = self._fleet.addresses.take_unchecked()
                if loop.time() >= again_at:
                    again_at = loop.time() + _AGAIN_S
                    nodes += self._fleet.addresses.refused_names()
                for node in nodes:
                    tasks.create_task(self._check(node), name="address")
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _check(self, node: str) -> None:
        endpoint = self._fleet.view(node).endpoint
        if endpoint is None:
            return
        verdict = None
        try:
            async with asyncio.timeout(_LONGEST_S), self._slots:
                verdict = await self._judge(endpoint[0])
        except OSError as error:
            # The time-out too.  An attempt or a probe will tell, and say whose fault it is.
            _log.info("a node's name was not looked up", node=node, why=str(error) or "it took too long")
        self._fleet.addresses.set_verdict(node, endpoint[0], verdict)
