"""What is refused or cut before anybody knows whose it is: counted by reason, and logged once in a while."""

from __future__ import annotations

import asyncio
from collections import Counter as Counts
from typing import Final

import structlog
from prometheus_client import Counter

LOG_EVERY_S: Final = 10.0

_log = structlog.get_logger("service")
_cut = Counter(
    "touchstone_cut_total", "Connections and requests that were refused or cut, by reason.", ["reason"]
)


class Refusals:
    """
    Counts them.  A flood makes one line of log in `LOG_EVERY_S` seconds, with numbers and with nothing of a request.

    The reasons are words of ours: ``head``, ``head-too-large``, ``head-malformed``, ``body``, ``write``, ``tls``,
    ``strangers``, ``address``, ``connections``, ``files``, ``busy``, ``bytes``, ``failed``.
    """

    def __init__(self) -> None:
        self._counts: Counts[str] = Counts()
        self._timer: asyncio.TimerHandle | None = None

    def note(self, reason: str) -> None:
        """Count one."""
        _cut.labels(reason).inc()
        self._counts[reason] += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOG_EVERY_S, self.flush)

    def flush(self) -> None:
        """Log what was counted since the last line, if anything was."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        counts, self._counts = self._counts, Counts()
        if counts:
            _log.warning(
                "refused or cut", **{reason.replace("-", "_"): counts[reason] for reason in sorted(counts)}
            )
