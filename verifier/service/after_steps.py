"""What is done after the verifier's clock was set, so that all is well again as soon as the clock is."""

from __future__ import annotations

from typing import Final

import structlog

from verifier.service.state import Service
from verifier.store import appraisals, early
from verifier.store.database import Tx

_PAGE: Final = 200

_log = structlog.get_logger("verifier")


class AfterSteps:
    """
    Ends what a clock has left that was set since, and has nodes called whose results count no more.

    A result from the future is void for good only when it would have run out by the time that has passed: until then
    a router that has it may go by it.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sessions_at = service.duties.steps
        self._results_at = -1
        """At how many steps the results from the future were ended.  After a start they are looked for once."""

    async def round(self) -> None:
        """
        Do what is due.

        Raises:
            StoreError: The database cannot be used.
        """
        service, duties = self._service, self._service.duties
        service.now_ms()
        steps = duties.steps
        if steps != self._sessions_at:
            # The time is read in the transaction: the clock may be set again while that waits.
            ended = await service.db.write(lambda tx: early.end_sessions(tx, service.now_ms()))
            now_ms = service.now_ms()
            duties.call_soon({*ended, *await self._without_result(now_ms, now_ms - duties.last_step_ms)})
            self._sessions_at = steps
        if steps != self._results_at and duties.steady_s >= service.config.results.lifetime_s:
            await self._revoke_early()
            self._results_at = steps

    async def _without_result(self, now_ms: int, before_ms: int) -> list[str]:
        """The nodes whose newest result was live by the clock as it was, and is not by the clock as it is."""
        found, after = [], ""
        while True:
            async with self._service.db.scan() as tx:
                rows = await appraisals.newest(tx, min(now_ms, before_ms), after, _PAGE)
            for row in rows:
                issued_ms, expires_ms = row["issued_ms"], row["expires_ms"]
                was_live = issued_ms <= before_ms < expires_ms and row["revoked_ms"] is None
                if was_live and not issued_ms <= now_ms < expires_ms:
                    found.append(row["node_id"])
            if len(rows) < _PAGE:
                return found
            after = rows[-1]["node_id"]

    async def _revoke_early(self) -> None:
        """Revoke the results that were issued later than now.  Their time must not come."""
        service, after, count = self._service, "", 0
        now_ms = service.now_ms()
        early_ms = now_ms + service.config.sessions.skew_s * 1000
        while True:
            async with service.db.scan() as tx:
                rows = await appraisals.newest(tx, early_ms, after, _PAGE)
            # One that is live now can come after others of the same node from the future.
            page = [row["node_id"] for row in rows]

            async def revoke(tx: Tx, nodes: list[str] = page) -> int:
                ended = 0
                for node_id in nodes:
                    ended += await early.revoke_results(tx, node_id, early_ms, now_ms)
                return ended

            if page:
                count += await service.db.write(revoke)
            if len(rows) < _PAGE:
                break
            after = rows[-1]["node_id"]
        if count:
            _log.warning("results from the future were revoked: the clock has been set back", results=count)
