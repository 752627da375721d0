"""Signs what the front has counted, once a day is over, and drops what is old: beside the attester's loop."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from attester import cose, usage_claims, usage_counts
from attester.errors import AttesterError
from attester.front.clients import SELF, replace_file

_EVERY_S: Final = 60.0
_MARGIN_S: Final = 120
"""So long after midnight a day is signed: the front has written its last answers by then."""

_log = structlog.get_logger("attester")


class ClaimKeeper:
    """
    Keeps the claims of a home.

    Args:
        folder: ``usage`` of the home.
        node: The node's id.
        key: The node key, as of now.
        now: Seconds since 1970.
    """

    def __init__(
        self, folder: Path, node: str, key: Callable[[], cose.Signer], now: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._node = node
        self._key = key
        self._now = now

    async def run(self) -> None:
        """Sign until cancelled."""
        while True:
            try:
                self.keep()
            except (AttesterError, OSError) as error:
                _log.error("what was served could not be claimed; it is tried again", why=str(error)[:300])
            except Exception:  # noqa: BLE001
                # The outermost of the loop: if it ended, nothing would be claimed any more, unnoticed.
                _log.exception("claims failed")
            await asyncio.sleep(_EVERY_S)

    def keep(self) -> list[Path]:
        """
        Sign the days that are over, and drop what is old.

        Returns:
            The claims that were made now.

        Raises:
            AttesterError, OSError: a file cannot be read or written.
        """
        today = _day(self._now() - _MARGIN_S)
        oldest = (dt.date.fromisoformat(today) - dt.timedelta(usage_counts.KEPT_DAYS)).isoformat()
        made = []
        for day in usage_counts.days_counted(self._folder):
            if oldest <= day < today:
                made += self._sign(day)
        for path in self._folder.glob("????-??-??.*"):
            if path.name[:10] < oldest:
                path.unlink(missing_ok=True)
        return made

    def _sign(self, day: str) -> list[Path]:
        made = []
        for claim in claims_of(self._folder, self._node, day):
            path = usage_counts.claim_of(self._folder, day, claim.router)
            if not path.exists():
                # Once: a day that is claimed is not claimed in other words.
                replace_file(path, usage_claims.sign(claim, self._key()))
                _log.info("a day was claimed", day=day, router=claim.router)
                made.append(path)
        return made


def claims_of(folder: Path, node: str, day: str) -> list[usage_claims.UsageClaim]:
    """
    What will be claimed, or is, for a day: one claim for each router.

    Raises:
        OSError: the file cannot be read.
        UsageClaimError: it holds what no claim may hold.
    """
    by_router: defaultdict[str, dict[str, tuple[int, int, int]]] = defaultdict(dict)
    for (router, model), counts in usage_counts.read_counts(usage_counts.log_of(folder, day)).items():
        if router and router != SELF:
            by_router[router][model] = counts
    return [usage_claims.make(node, router, day, used) for router, used in sorted(by_router.items())]


def _day(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).date().isoformat()
