"""The application: it puts the resources together, and starts and stops the background tasks in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

import structlog
from aiohttp import web
from prometheus_client import Gauge

from verifier.config import Home, VerifierConfig
from verifier.errors import StoreError
from verifier.policy import admission
from verifier.policy import bundle as bundles
from verifier.policy.engine import Engines, Limits
from verifier.service import calls, discovery, events, incidents, nodes, problem, sessions
from verifier.service import policies as policy_resources
from verifier.service import references as reference_resources
from verifier.service.appraiser import Appraiser
from verifier.service.calls import CALL_SCHEDULER, CallScheduler
from verifier.service.events import FEED, EventFeed
from verifier.service.rejudge import REJUDGER, Rejudger
from verifier.service.sessions import APPRAISER
from verifier.service.shadow import SHADOW_APPRAISER, ShadowAppraiser
from verifier.service.state import SERVICE, Clock, Service
from verifier.store import appraisals, policies, pool, recordings, references
from verifier.store import events as stored_events
from verifier.store import incidents as stored_incidents
from verifier.store import nodes as stored_nodes
from verifier.store import sessions as stored_sessions
from verifier.store.database import Database, Tx
from verifier.store.policies import ChangeAuthor
from verifier.store.sqlite import SqliteDatabase

_SWEEP_PERIOD_S: Final = 1.0
_SLOW_EVERY_SWEEPS: Final = 60
_DAY_MS: Final = 24 * 3600 * 1000
_EVENT_LIFETIME_MS: Final = _DAY_MS

_log = structlog.get_logger("verifier")
_free_challenges = Gauge("touchstone_pool_free", "Challenges left.", ["model", "kind"])


@asynccontextmanager
async def open_service(
    home: Home, config: VerifierConfig, clock: Clock | None = None
) -> AsyncIterator[Service]:
    """
    Open everything a running verifier needs, and close it in reverse order.

    Raises:
        ConfigError, PolicyError, StoreError: a part of it cannot be used.
    """
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(SqliteDatabase(home.database))
        clock = clock or Clock()
        await activate_home_policy(db, home, config, clock.wall_ms())
        limits = Limits(config.policy.workers, config.policy.timeout_s, config.policy.memory_mib << 20)
        engine = await stack.enter_async_context(Engines(limits))
        yield Service(
            config=config,
            db=db,
            engine=engine,
            authors=home.authors(),
            anchors=home.anchors(),
            keys=tuple(home.result_keys()),
            pool_key=home.pool_key(),
            admin_token=home.token("admin"),
            router_token=home.token("router"),
            clock=clock,
        )


async def activate_home_policy(db: Database, home: Home, config: VerifierConfig, now_ms: int) -> None:
    """
    Publish and activate the policy in the home's folder, if no policy was ever activated.

    Raises:
        BundleError: it does not pass the checks that every policy must pass.
    """
    async with db.read() as tx:
        rollout = await policies.rollout(tx)
    if rollout is not None:
        return
    home.ensure_author()
    bundle = bundles.load(home.path / config.policy.folder)
    await admission.check(bundle)
    envelope = bundles.signature_in(home.path / config.policy.folder)
    if envelope is None:
        envelope = bundles.sign(bundle, home.author_key())
    signer = bundles.verify(bundle, envelope, home.authors())
    who = ChangeAuthor("touchstone", "the policy that the verifier started with")

    async def publish_and_activate(tx: Tx) -> None:
        await policies.publish(tx, bundle, envelope, signer, who, now_ms)
        await policies.activate_first(tx, bundle, who, now_ms)
        for document in bundle.documents:
            await references.add_with_policy(tx, document, now_ms)

    await db.write(publish_and_activate)


def make_app(service: Service) -> web.Application:
    """The verifier's application over an open service."""
    app = web.Application(middlewares=[problem.middleware])
    app[SERVICE] = service
    app[SHADOW_APPRAISER] = ShadowAppraiser(service)
    app[APPRAISER] = Appraiser(service, app[SHADOW_APPRAISER])
    app[REJUDGER] = Rejudger(service)
    app[CALL_SCHEDULER] = CallScheduler(service)
    app[FEED] = EventFeed(service)
    for resource in (
        sessions, calls, nodes, events, incidents, discovery, policy_resources, reference_resources,
    ):  # fmt: skip
        app.add_routes(resource.routes())
    app.cleanup_ctx.append(_tasks)
    app.on_shutdown.append(_end_streams)
    return app


async def _tasks(app: web.Application) -> AsyncIterator[None]:
    # Sessions that expired while the verifier was down are ended, and held against nobody.
    service = app[SERVICE]
    await service.db.write(lambda tx: stored_sessions.expire(tx, service.now_ms(), blame=False))
    tasks = [
        asyncio.create_task(_forever(app[FEED].run), name="events"),
        asyncio.create_task(_forever(app[CALL_SCHEDULER].run), name="calls"),
        asyncio.create_task(_forever(app[SHADOW_APPRAISER].run), name="shadow"),
        asyncio.create_task(_forever(app[REJUDGER].run), name="rejudge"),
        asyncio.create_task(_sweep(app[SERVICE]), name="sweep"),
    ]
    yield
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _forever(run: Callable[[], Awaitable[None]]) -> None:
    """Run a background task again after each failure: one failed round must not end all later ones."""
    while True:
        try:
            await run()
        except Exception:  # noqa: BLE001
            _log.exception("a background task failed, and is started again")
            await asyncio.sleep(1)


async def _end_streams(app: web.Application) -> None:
    await app[FEED].close()
    app[CALL_SCHEDULER].close()


async def _sweep(service: Service) -> None:
    """End what has expired, delete what is old, and warn if a pool runs low; until cancelled."""
    rounds = 0
    while True:
        try:
            await sweep(service, slow=rounds % _SLOW_EVERY_SWEEPS == 0)
        except StoreError as error:
            _log.error("the sweep failed", error=str(error))
        rounds += 1
        await asyncio.sleep(_SWEEP_PERIOD_S)


async def sweep(service: Service, *, slow: bool = True) -> None:
    """
    Sweep once.

    Args:
        slow: Whether to do also what need not be done every second: deletions, and the levels of the pools.
    """
    now_ms = service.now_ms()

    async def end_and_forget(tx: Tx) -> None:
        await stored_sessions.expire(tx, now_ms)
        await stored_nodes.forget_requests(tx, now_ms)
        await stored_incidents.end_overdue_suspicions(tx, now_ms)
        if slow:
            await stored_events.prune(tx, now_ms - _EVENT_LIFETIME_MS)
            await appraisals.prune(tx, now_ms - service.config.results.keep_days * _DAY_MS)
            await stored_sessions.prune(tx, now_ms - service.config.results.keep_days * _DAY_MS)
            limits = service.config.recording
            await recordings.prune(
                tx,
                now_ms - limits.keep_days * _DAY_MS,
                limits.max_mib << 20,
                now_ms - service.config.results.lifetime_s * 1000,
            )

    await service.db.write(end_and_forget)
    if not slow:
        return
    async with service.db.scan() as tx:
        rows = await pool.levels(tx)
    for row in rows:
        _free_challenges.labels(row["model"], row["kind"]).set(row["free"])
        if row["free"] < service.config.pool.low_water:
            _log.warning(
                "challenges run low; mint more with: touchstone challenges mint",
                model=row["model"],
                kind=row["kind"],
                free=row["free"],
            )
