"""
The shadow policy: it judges what the policy in force has judged, and its verdicts have no effect.

It is asked after the result was given, from the recording, one appraisal at a time.  It may be slow
or broken: nothing waits for it.  What would differ is counted.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import structlog
from aiohttp import web

from verifier import changes
from verifier.errors import PolicyError, StoreError
from verifier.policy.rollout import Rollout
from verifier.reappraisal import Reappraiser, recorded_verdicts
from verifier.service.inputs import StoredLookup
from verifier.service.state import Service
from verifier.store import recordings, shadows

_MAX_WAITING: Final = 1000

_log = structlog.get_logger("verifier")


class ShadowAppraiser:
    """Asks the shadow policy about what was appraised."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._waiting: asyncio.Queue[tuple[str, str]] = asyncio.Queue(_MAX_WAITING)
        self._skipped: dict[str, int] = {}
        self._reappraiser: Reappraiser | None = None

    def enqueue(self, appraisal_id: str, rollout: Rollout) -> None:
        """Ask the rollout's shadow policy, if there is one.  If too many wait, it is skipped and counted."""
        if rollout.shadow is None:
            return
        try:
            self._waiting.put_nowait((appraisal_id, rollout.shadow))
        except asyncio.QueueFull:
            self._skipped[rollout.shadow] = self._skipped.get(rollout.shadow, 0) + 1

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            appraisal_id, policy = await self._waiting.get()
            try:
                await self._ask(appraisal_id, policy)
            except (PolicyError, StoreError) as error:
                _log.warning("the shadow policy could not be asked", policy=policy, error=str(error))

    async def _ask(self, appraisal_id: str, policy: str) -> None:
        service = self._service
        async with service.db.read() as tx:
            head = await recordings.read_head(tx, appraisal_id)
        if head is None:
            return
        reappraiser = await self._reappraiser_for(policy)
        failures = reappraiser.failures
        (after,) = await reappraiser.verdicts([head])
        differences = changes.compare(recorded_verdicts(head), after)
        skipped = self._skipped.pop(policy, 0)
        failed = reappraiser.failures > failures
        if failed and not failures:
            _log.warning("the shadow policy failed", policy=policy, error=reappraiser.first_failure)
        await service.db.write(
            lambda tx: shadows.count(tx, policy, head, differences, failed=failed, skipped=skipped),
            of=f"shadow {policy}",
        )

    async def _reappraiser_for(self, policy: str) -> Reappraiser:
        if self._reappraiser is None or self._reappraiser.bundle.digest != policy:
            service = self._service
            async with service.db.read() as tx:
                bundle = await service.inputs.load_bundle(tx, policy)
            self._reappraiser = Reappraiser(
                bundle, partial(service.engine.ask, bundle), StoredLookup(service.db, service.inputs)
            )
        return self._reappraiser


SHADOW_APPRAISER: web.AppKey[ShadowAppraiser] = web.AppKey("shadow_appraiser", ShadowAppraiser)
