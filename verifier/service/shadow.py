"""
The shadow: a policy that is asked beside the one in force, and judges nobody.

IssuedChallenges after the result was given, from its recording, one at a time: it can be slow or
broken and nothing waits for it.  What would differ is counted.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import structlog

from verifier import reappraisal
from verifier.changes import compare
from verifier.errors import PolicyError, StoreError
from verifier.policy.rollout import Rollout
from verifier.service.inputs import StoredLookup
from verifier.service.state import Service
from verifier.store import recordings, shadows

_WAITING: Final = 1000

_log = structlog.get_logger("verifier")


class Shadow:
    """Asks the shadow policy about what was appraised."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._waiting: asyncio.Queue[tuple[str, str]] = asyncio.Queue(_WAITING)
        self._skipped: dict[str, int] = {}
        self._replay: tuple[str, reappraisal.Reappraiser] | None = None

    def take(self, appraisal_id: str, rollout: Rollout) -> None:
        """Take in an appraisal, where there is a shadow; one too many is skipped, and counted."""
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
                _log.warning("the shadow could not be asked", policy=policy, error=str(error))

    async def _ask(self, appraisal_id: str, policy: str) -> None:
        service = self._service
        async with service.db.read() as tx:
            taken = await recordings.taken(tx, appraisal_id)
        if taken is None:
            return
        replay = await self._replay_under(policy)
        failures = replay.failures
        (after,) = await replay.verdicts([taken])
        changes = compare(reappraisal.recorded_verdicts(taken), after)
        skipped = self._skipped.pop(policy, 0)
        async with service.db.write() as tx:
            await shadows.count(
                tx, policy, taken, changes, failed=replay.failures > failures, skipped=skipped
            )

    async def _replay_under(self, policy: str) -> reappraisal.Reappraiser:
        if self._replay is None or self._replay[0] != policy:
            service = self._service
            async with service.db.read() as tx:
                bundle = await service.inforce.bundle(tx, policy)

            replay = reappraisal.Reappraiser(
                bundle, partial(service.engine.ask, bundle), StoredLookup(service.db, service.inforce)
            )
            self._replay = (policy, replay)
        return self._replay[1]
