"""
Fetches usage claims from the fronts of nodes, over the connection that work is sent on: pinned to the node's key.

So an operator has nothing to set up, and a node needs no way to the router.  Nodes without such a front claim nothing,
and are paid all the same.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

import aiohttp
import structlog
import yarl

from attester.bounded import read_all
from attester.front.claims import CLAIMS_PATH
from attester.usage_claims import MAX_CLAIM, MEDIA_TYPE
from router.gateway.pinned import check_url, pin_for
from router.model.errors import SettlementError
from router.state.claims import ClaimDesk
from router.state.fleet import Fleet
from verifier.errors import StoreError

_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)
_AT_ONCE: Final = 8
_MAX_LIST: Final = 4096
"""Bytes of the list of days."""
_MOST_DAYS: Final = 8
"""Claims that are fetched from one node in a round; what is left comes in the next."""
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_FAILURES: Final = (aiohttp.ClientError, OSError, ValueError, RuntimeError)

_log = structlog.get_logger("router")


class ClaimFetcher:
    """
    Asks nodes for claims.

    Args:
        http: A client for nodes, with the router's certificate.
        desk: Takes them.
        fleet: The nodes.
        allow_private: Whether nodes may have private addresses.
    """

    def __init__(
        self, http: aiohttp.ClientSession, desk: ClaimDesk, fleet: Fleet, *, allow_private: bool
    ) -> None:
        self._http = http
        self._desk = desk
        self._fleet = fleet
        self._allow_private = allow_private

    async def run(self, every_s: float) -> None:
        """Ask all nodes again and again until cancelled."""
        while True:
            try:
                await self.fetch_all()
            except Exception:  # noqa: BLE001
                # The outermost of the loop: if it ended, no claim would be fetched any more, unnoticed.
                _log.exception("fetching claims failed")
            await asyncio.sleep(every_s)

    async def fetch_all(self) -> int:
        """Ask all nodes; returns how many claims are new."""
        if self._desk.router is None:
            return 0
        room = asyncio.Semaphore(_AT_ONCE)

        async def fetch(node: str) -> int:
            async with room:
                return await self.fetch(node)

        return sum(await asyncio.gather(*(fetch(node) for node in list(self._fleet.nodes()))))

    async def fetch(self, node: str) -> int:
        """Ask one node; returns how many claims are new."""
        endpoint = self._fleet.view(node).endpoint
        if endpoint is None:
            return 0
        new = 0
        try:
            listed = await self._get(endpoint, "", "text/plain", _MAX_LIST)
            days = [] if listed is None else listed.decode("ascii", "replace").split("\n")
            wanted = await self._desk.missing(node, [day for day in days if _DAY.fullmatch(day)])
            for day in wanted[:_MOST_DAYS]:
                data = await self._get(endpoint, day, MEDIA_TYPE, MAX_CLAIM)
                if data is not None:
                    new += await self._desk.take(data)
        except _FAILURES as error:
            _log.debug("a node cannot be asked for its claims", node=node, why=type(error).__name__)
        except (SettlementError, StoreError) as error:
            _log.warning("a claim could not be taken", node=node, why=str(error)[:300])
        return new

    async def _get(self, endpoint: tuple[str, str], name: str, media_type: str, most: int) -> bytes | None:
        url, pin = endpoint
        place: yarl.URL = check_url(url, allow_private=self._allow_private).with_path(CLAIMS_PATH + name)
        async with self._http.get(
            place, ssl=pin_for(pin), allow_redirects=False, timeout=_TIMEOUT
        ) as response:
            data = await read_all(response.content, most)
            return data if response.status == 200 and response.content_type == media_type else None
