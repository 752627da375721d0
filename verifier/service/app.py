"""The application: it puts the resources together, and starts and stops the background tasks in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

import structlog
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from verifier.archive import parquet
from verifier.config import Home, VerifierConfig, only_process
from verifier.policy import admission
from verifier.policy import bundle as bundles
from verifier.policy.engine import Engines, Limits
from verifier.service import (
    access,
    answer_checks,
    archives,
    blocks,
    calls,
    credentials,
    discovery,
    drift,
    events,
    incident_causes,
    incidents,
    log,
    model_rollouts,
    nodes,
    peers,
    problem,
    receipts,
    reviews,
    revisions,
    routers,
    second_opinions,
    sessions,
    suspicions,
    sweep,
)
from verifier.service import policies as policy_resources
from verifier.service import references as reference_resources
from verifier.service.access import Route
from verifier.service.appraiser import Appraiser
from verifier.service.calls import CALL_SCHEDULER, CallScheduler
from verifier.service.clock import Clock
from verifier.service.events import FEED, EventFeed
from verifier.service.front import FRONT, Front, spend_stranger, take_place
from verifier.service.home_folder import look
from verifier.service.key_ring import KeyRing
from verifier.service.log_witnesses import Witnesses
from verifier.service.rejudge import REJUDGER, Rejudger
from verifier.service.second_opinions import SECOND_OPINIONS, SecondOpinions
from verifier.service.sessions import APPRAISER
from verifier.service.shadow import SHADOW_APPRAISER, ShadowAppraiser
from verifier.service.state import SERVICE, Service
from verifier.service.watched_anchors import WatchedAnchors
from verifier.store import log_tree, policies, references
from verifier.store.database import Database, Tx, UnavailableError
from verifier.store.marks import HighWater
from verifier.store.opening import open_database
from verifier.store.policies import ChangeAuthor
from verifier.store.restoring import read_fence

_log = structlog.get_logger("verifier")


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
        archive_folder = None
        if config.archive.folder:
            parquet.check_installed()
            archive_folder = home.path / config.archive.folder
        if not config.store.url:
            stack.enter_context(only_process(home))
        db = await stack.enter_async_context(open_database(config.store.url, home.database))
        clock = clock or Clock()
        await activate_home_policy(db, home, config, clock.wall_ms())
        limits = Limits(config.policy.workers, config.policy.timeout_s, config.policy.memory_mib << 20)
        engine = await stack.enter_async_context(Engines(limits))
        async with db.read() as tx:
            fence = await read_fence(tx)
        key_ring = KeyRing(home, db)
        shared_ms = clock.wall_ms() + await db.ahead_ms(clock.wall_ms)
        await key_ring.open(shared_ms)
        anchors = WatchedAnchors(home)
        anchors()
        yield Service(
            config=config,
            db=db,
            engine=engine,
            authors=home.authors(),
            anchors=anchors,
            key_ring=key_ring,
            pool_key=home.pool_key(),
            admin_token=home.token("admin"),
            router_token=home.token("router"),
            clock=clock,
            marks=HighWater(home.high_water, shared_ms),
            log_key=await _log_key(db, home),
            log_guard=home.log_guard,
            fence=fence,
            archive_folder=archive_folder,
        )


async def _log_key(db: Database, home: Home) -> Ed25519PrivateKey | None:
    """Give the key that signs the log.  It is made if there is no log yet: that of another home is to be copied."""
    key = home.log_key()
    if key is None:
        async with db.read() as tx:
            has_log = await log_tree.newest(tx) is not None
        key = None if has_log else home.create_log_key()
    return key


async def activate_home_policy(db: Database, home: Home, config: VerifierConfig, now_ms: int) -> None:
    """
    Publish and activate the policy in the home's folder, if no policy was ever activated.

    Otherwise a folder that differs from everything that was published is told in the log.

    Raises:
        BundleError: it does not pass the checks that every policy must pass.
    """
    async with db.read() as tx:
        rollout = await policies.rollout(tx)
        folder = await look(tx, home.path, home.path / config.policy.folder)
    if rollout is not None:
        if folder.is_ignored:
            _log.warning("the policy in the home's folder is not in force", **folder.to_wire())
        return
    home.ensure_author()
    bundle = bundles.load(home.path / config.policy.folder)
    await admission.check(bundle, Limits(1, config.policy.timeout_s, config.policy.memory_mib << 20))
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


def routes() -> list[Route]:
    """Every route of the verifier."""
    resources = (
        sessions, calls, nodes, revisions, events, incidents, routers, discovery, second_opinions, policy_resources,
        reference_resources, model_rollouts, blocks, incident_causes, reviews, peers, answer_checks, suspicions, drift,
        archives, log, receipts,
    )  # fmt: skip
    return [route for resource in resources for route in resource.routes()]


def make_app(service: Service) -> web.Application:
    """The verifier's application over an open service."""
    app = web.Application(middlewares=[problem.middleware, _note_outages, _limit_strangers])
    app[SERVICE] = service
    app[FRONT] = Front(
        service.config.service,
        per_address_per_minute=service.config.sessions.per_address_per_minute,
        strangers_per_minute=service.config.sessions.strangers_per_minute,
        monotonic=service.clock.monotonic,
    )
    app[SHADOW_APPRAISER] = ShadowAppraiser(service)
    app[SECOND_OPINIONS] = SecondOpinions(service)
    app[APPRAISER] = Appraiser(service, app[SHADOW_APPRAISER], app[SECOND_OPINIONS])
    app[REJUDGER] = Rejudger(service)
    app[CALL_SCHEDULER] = CallScheduler(service)
    app[FEED] = EventFeed(service)
    access.mount(app, routes(), credentials.identify)
    app.cleanup_ctx.append(_tasks)
    app.on_shutdown.append(_end_streams)
    return app


@web.middleware
async def _note_outages(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Note that a request could not be served for want of the database: what it was to do is held against no node."""
    try:
        return await handler(request)
    except UnavailableError:
        request.app[SERVICE].duties.note_failure()
        raise


@web.middleware
async def _limit_strangers(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """
    Count who claims nothing, and work on few such requests at once.

    Whether a request that signs, has a token or names a session is a stranger's all the same is found out later.
    """
    route = request.app[access.TABLE].get(request.match_info.route)
    if route is not None and isinstance(route.allowed, access.Anyone) and route.allowed.costs_nothing:
        return await handler(request)
    is_claim = "Authorization" in request.headers or request.path.startswith(f"{sessions.PREFIX}/session/")
    if not is_claim:
        spend_stranger(request)
        await take_place(request)
    return await handler(request)


async def _tasks(app: web.Application) -> AsyncIterator[None]:
    service = app[SERVICE]
    await service.duties.begin()
    witnesses = Witnesses(service.db, service.duties, service.config.log.witnesses)
    tasks = [
        asyncio.create_task(_forever(service.duties.run), name="duties"),
        asyncio.create_task(_forever(partial(service.key_ring.run, service.now_ms)), name="keys"),
        asyncio.create_task(_forever(app[FEED].run), name="events"),
        asyncio.create_task(_forever(app[CALL_SCHEDULER].run), name="calls"),
        asyncio.create_task(_forever(app[SHADOW_APPRAISER].run), name="shadow"),
        asyncio.create_task(_forever(app[SECOND_OPINIONS].run), name="second opinions"),
        asyncio.create_task(_forever(app[REJUDGER].run), name="rejudge"),
        asyncio.create_task(_forever(partial(sweep.run, service)), name="sweep"),
        asyncio.create_task(_forever(service.sequencer.run), name="log"),
        asyncio.create_task(_forever(witnesses.run), name="witnesses"),
        asyncio.create_task(_forever(partial(service.pools.run, lambda: service.duties.held)), name="pools"),
    ]
    if service.oidc is not None:
        tasks.append(asyncio.create_task(_forever(service.oidc.refresh_if_due), name="oidc"))
    yield
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await service.duties.give_back()


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
