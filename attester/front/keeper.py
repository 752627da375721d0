"""
Keeps the list of routers in the home: fetched from the verifier each minute, and soon after the front asks for it.

The front and proxies of the operator's read the files.  So a process that faces the network needs no node key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog

from attester import router_list
from attester.client import VerifierClient
from attester.config import Home
from attester.errors import AttesterError, VerifierError
from attester.front.clients import ASKED, LIST, kept_routers, replace_file, write_anchors
from attester.router_list import KnownRouter

EVERY_S: Final = 60.0
AT_ONCE_S: Final = 5.0
"""The list is fetched at most this often if the front asks for it."""
_LOOK_S: Final = 1.0

_log = structlog.get_logger("attester")


class RouterKeeper:
    """
    Keeps the list of one home.

    Args:
        client: Of the verifier.
        home: The attester's home.
        max_age_s: For how long a list is believed.
        now: Seconds since 1970.
        tick: Seconds of a clock that nobody sets.
        sleep: Waits for a number of seconds; tests replace it.
    """

    def __init__(
        self,
        client: VerifierClient,
        home: Home,
        max_age_s: int,
        *,
        now: Callable[[], float] = time.time,
        tick: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._home = home
        self._max_age_s = max_age_s
        self._now = now
        self._tick = tick
        self._sleep = sleep
        self._asked = _touched(home.path / ASKED)
        self._fetched_at: float | None = None
        self._trouble = ""

    async def run(self) -> None:
        """Keep it until cancelled."""
        while True:
            try:
                await self.step()
            except Exception:  # noqa: BLE001
                # The outermost loop: one unexpected error must not end it.
                _log.exception("the list of routers cannot be kept")
            await self._sleep(_LOOK_S)

    async def step(self) -> None:
        """Fetch the list if it is time, and let proxies have what is in force."""
        asked = _touched(self._home.path / ASKED)
        since = None if self._fetched_at is None else self._tick() - self._fetched_at
        if since is not None and (since < AT_ONCE_S or (since < EVERY_S and asked == self._asked)):
            self._write_anchors()
            return
        self._asked = asked
        self._fetched_at = self._tick()
        await self.fetch()
        self._write_anchors()

    async def fetch(self) -> bool:
        """Ask the verifier, and keep what it answers; if it answers nothing, what was kept stays."""
        try:
            routers = await self._client.routers()
            before = self._kept()
            replace_file(self._home.path / LIST, router_list.write(routers, int(self._now())))
        except AttesterError as error:
            if self._trouble != str(error):
                _log.warning("the list of routers cannot be fetched", why=_why(error))
            self._trouble = str(error)
            return False
        if self._trouble or before != routers:
            _log.info("routers that may use this node", routers=[each.name for each in routers])
        self._trouble = ""
        return True

    def _kept(self) -> tuple[KnownRouter, ...]:
        try:
            return kept_routers(self._home, max_age_s=self._max_age_s, now=self._now())
        except AttesterError:
            return ()

    def _write_anchors(self) -> None:
        try:
            write_anchors(self._home, self._kept())
        except AttesterError as error:
            if self._trouble != str(error):
                _log.error("the trust anchors of proxies cannot be written", why=str(error))
            self._trouble = str(error)


def _why(error: AttesterError) -> str:
    if isinstance(error, VerifierError) and error.status == 404:
        return "the verifier has no list of routers; it is of an older version. No router can use this node"
    return str(error)


def _touched(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
