"""
Where nodes are, as ``IP:PORT``: that is how pickers and proxies name endpoints.

A node's URL may have a name.  It is looked up as the router's own connections do it, and what it leads to must be an
address to which this router may connect.  What was found is kept for half a minute.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

import structlog
import yarl

from router.gateway.pinned import AddressError, check_url
from router.model.clock import Clock

_KEPT_S: Final = 30.0
_AGAIN_S: Final = 5.0
"""A name that was not found is looked up again after so long."""
_AT_ONCE: Final = 16
_MAX_KEPT: Final = 20_000

Lookup = Callable[[str, int], Awaitable[list[str]]]
"""The addresses that a name leads to; raises `OSError`, also for addresses to which this router may not connect."""

_log = structlog.get_logger("router")


class Places:
    """
    Finds where nodes are.

    Args:
        look_up: Finds what a name leads to.
        clock: For how long that is good.
        allow_private: Whether nodes may have private addresses.
    """

    def __init__(self, look_up: Lookup, clock: Clock, *, allow_private: bool) -> None:
        self._look_up = look_up
        self._clock = clock
        self._allow_private = allow_private
        self._kept: dict[str, tuple[float, str | None]] = {}
        """By URL, until when, and the endpoint; `None`: there is none that may be offered."""
        self._pending: dict[str, asyncio.Task[str | None]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def find(self, urls: Iterable[str], *, within_s: float) -> Mapping[str, str]:
        """
        The endpoints of nodes' URLs; one that is not found in time, or that may not be offered, is left out.

        Args:
            urls: Of nodes.
            within_s: For how long to wait for names.
        """
        found: dict[str, str] = {}
        waiting: dict[str, asyncio.Task[str | None]] = {}
        now = self._clock.monotonic()
        for url in urls:
            until, endpoint = self._kept.get(url, (0.0, None))
            if until <= now:
                waiting[url] = self._begin(url)
            elif endpoint is not None:
                found[url] = endpoint
        if waiting:
            # Whoever waits no longer leaves the lookup to those who come later.
            await asyncio.wait(waiting.values(), timeout=within_s)
            done = {
                url: task.result() for url, task in waiting.items() if task.done() and not task.cancelled()
            }
            found |= {url: endpoint for url, endpoint in done.items() if endpoint is not None}
        return found

    def close(self) -> None:
        """End what is being looked up."""
        for task in self._pending.values():
            task.cancel()

    def _begin(self, url: str) -> asyncio.Task[str | None]:
        task = self._pending.get(url)
        if task is None:
            task = self._pending[url] = asyncio.create_task(self._find(url), name="endpoint")
            task.add_done_callback(lambda _: self._pending.pop(url, None))
        return task

    async def _find(self, url: str) -> str | None:
        try:
            place = check_url(url, allow_private=self._allow_private)
            endpoint = await self._resolve(place)
        except (OSError, ValueError) as error:
            # An AddressError too.  Whose fault it is, the router's own attempts and probes tell.
            _log.info("a node is not offered", url=url, why=str(error) or type(error).__name__)
            endpoint = None
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
        kept_s = _AGAIN_S if endpoint is None else _KEPT_S
        self._kept[url] = self._clock.monotonic() + kept_s, endpoint
        return endpoint

    async def _resolve(self, place: yarl.URL) -> str:
        if place.path not in ("", "/"):
            # A proxy that is given an address cannot know the path before the operation's.
            raise AddressError("its URL has a path, and a gateway is told address and port alone")
        host, port = place.host or "", place.port or 443
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            async with self._slots:
                first = (await self._look_up(host, port))[0]
            address = ipaddress.ip_address(first)
        return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
