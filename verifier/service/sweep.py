"""The sweep: it ends what has expired, and deletes what is old."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from attester.errors import ConfigError
from verifier.archive.moving import Archive
from verifier.errors import AuditError, StoreError
from verifier.service import drift
from verifier.service.after_steps import AfterSteps
from verifier.service.archiving import move_old, open_archive
from verifier.service.state import Service
from verifier.service.widespread import LEAST_NODES, is_widespread
from verifier.store import (
    answer_checks,
    answer_days,
    answer_drift,
    appraisals,
    calls,
    events,
    incidents,
    node_prompting,
    nodes,
    peer_scores,
    recordings,
    reviews,
    revocations,
    routers,
    sessions,
    walks,
)
from verifier.store.database import Tx
from verifier.store.sessions import EndedCall

_PERIOD_S: Final = 1.0
_SLOW_EVERY_ROUNDS: Final = 60
_ARCHIVE_EVERY_ROUNDS: Final = 10
"""A file waits for the log to sign its entry, and its rows wait for the file."""
_DAY_MS: Final = 24 * 3600 * 1000
_EVENT_LIFETIME_MS: Final = _DAY_MS
_CLOCKS_MS: Final = 60_000
_TRUSTED_AFTER_S: Final = 3600.0
"""So long after the clock was set ahead by more than `_CLOCKS_MS` nothing is deleted for its age."""
_STEP_ROWS: Final = 200
"""Rows that are deleted in one transaction: others wait for it some milliseconds at most."""

_log = structlog.get_logger("verifier")


async def run(service: Service) -> None:
    """Sweep until cancelled, while this replica has the lease."""
    rounds, after_steps, archive = 0, AfterSteps(service), open_archive(service)
    while True:
        if service.duties.held:
            try:
                await after_steps.round()
                await end_expired(service)
                if rounds % _SLOW_EVERY_ROUNDS == 0:
                    await delete_old(service)
                    await drift.measure(service)
                if archive is not None and rounds % _ARCHIVE_EVERY_ROUNDS == 0:
                    await _move_old(service, archive)
                rounds += 1
            except StoreError as error:
                _log.error("the sweep failed", error=str(error))
        await asyncio.sleep(_PERIOD_S)


async def _move_old(service: Service, archive: Archive) -> None:
    """Move what is old into the archive.  If that fails, it stays where it is."""
    if _doubts_clock(service):
        return
    try:
        await move_old(archive)
    except (AuditError, ConfigError) as error:
        _log.error("old results could not be archived, and stay in the database", error=str(error))


async def end_expired(service: Service) -> None:
    """
    End what has expired.

    Raises:
        StoreError: The database cannot be used.  What begins before it can be used again is held against no node.
    """
    now_ms, began = service.now_ms(), service.clock.monotonic()

    async def end(tx: Tx) -> list[EndedCall]:
        await _suspend_silent(service, tx, now_ms)
        ended = await sessions.expire(tx, now_ms, healthy_since_ms=service.duties.healthy_since_ms)
        await incidents.end_overdue_suspicions(tx, now_ms)
        return ended

    try:
        # A transaction of its own comes first: it waits for a lock as nodes would have to, and shows whether
        # they had to.
        await service.db.write(_nothing)
        service.duties.note_success(began)
        service.duties.note_ended(await service.db.write(end))
    except StoreError:
        service.duties.note_failure()
        raise


async def _suspend_silent(service: Service, tx: Tx, now_ms: int) -> None:
    """Revoke the results of nodes that have not answered a call with a walk for long, unless most are silent."""
    until_ms = now_ms - int(service.config.calls.answer_s * 1000)
    silent = await calls.overdue(tx, until_ms, service.duties.healthy_since_ms)
    if len(silent) >= LEAST_NODES:
        lifetime_ms = service.config.sessions.lifetime_s * 1000
        answered = await calls.count_answered(tx, now_ms, until_ms + lifetime_ms)
        if is_widespread(Counter(silent.values()), answered):
            service.duties.note_widespread()
            return
    for node_id in silent:
        await revocations.revoke_results(tx, node_id, now_ms, "unanswered")


async def _nothing(_tx: Tx) -> None:
    pass


async def delete_old(service: Service) -> None:
    """Delete what is old, in small steps between which other transactions have their turn."""
    now_ms, limits = service.now_ms(), service.config.recording
    if _doubts_clock(service):
        return
    results_before = now_ms - service.config.results.keep_days * _DAY_MS
    recordings_before = now_ms - limits.keep_days * _DAY_MS
    drift_before = now_ms - service.config.answers.keep_days * _DAY_MS
    live_ms = now_ms - service.config.results.lifetime_s * 1000
    steps: tuple[Callable[[Tx], Awaitable[int]], ...] = (
        lambda tx: nodes.forget_requests(tx, now_ms, _STEP_ROWS),
        lambda tx: events.prune(tx, now_ms - _EVENT_LIFETIME_MS, _STEP_ROWS),
        lambda tx: recordings.prune(tx, recordings_before, limits.max_mib << 20, live_ms, _STEP_ROWS),
        # With an archive, results are deleted by it alone.
        *(
            [lambda tx: appraisals.prune(tx, results_before, _STEP_ROWS)]
            if service.archive_folder is None
            else []
        ),
        lambda tx: walks.prune(tx, results_before, _STEP_ROWS),
        lambda tx: sessions.prune(tx, results_before, _STEP_ROWS),
        lambda tx: answer_checks.prune(tx, results_before, _STEP_ROWS),
        lambda tx: peer_scores.prune(tx, results_before, _STEP_ROWS),
        lambda tx: answer_days.prune(tx, drift_before // _DAY_MS, _STEP_ROWS),
        lambda tx: answer_drift.prune(tx, drift_before, _STEP_ROWS),
        lambda tx: node_prompting.prune(tx, drift_before, _STEP_ROWS),
        lambda tx: routers.prune(tx, now_ms - _DAY_MS, _STEP_ROWS),
        lambda tx: reviews.prune(tx, now_ms, _STEP_ROWS),
    )
    for step in steps:
        # Of its own name: only the sweep deletes, and what is so old is changed by nobody else.
        while await service.db.write(step, of="sweep") >= _STEP_ROWS:
            pass


def _doubts_clock(service: Service) -> bool:
    """Whether the clock may have been set wrongly: what is deleted is gone."""
    return service.duties.last_step_ms > _CLOCKS_MS and service.duties.steady_s < _TRUSTED_AFTER_S


async def sweep(service: Service) -> None:
    """Do all of it once, and look at the pool."""
    await end_expired(service)
    await delete_old(service)
    await service.pools.refresh()
    service.pools.warn()
