"""The router's application: its resources, and everything that runs behind them."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, generate_latest

from attester.errors import ConfigError
from router.config import RouterConfig, load_table, load_tokenisers, read_token
from router.gateway import openai, pinned, probe
from router.gateway.dispatch import Dispatcher
from router.gateway.exchange import Exchanges
from router.gateway.handler import Gateway
from router.gateway.idempotency import IdempotencyCache
from router.gateway.keys import Keyring
from router.gateway.metering import Metering
from router.gateway.openai import GATEWAY
from router.model.clock import Clock
from router.model.tokens import Tokeniser
from router.model.workload import Table
from router.service import decisions, incidents, standing, status
from router.service.incident_reporter import VerifierIncidentReporter
from router.service.state import STATE, State
from router.state.feed import Feed
from router.state.fleet import Fleet
from router.state.holds import Holds
from router.state.name import NameLease
from router.state.persistence import Persistence, records_lost
from router.state.prober import Prober
from router.state.records import Records
from verifier.errors import RequestError
from verifier.service import problem
from verifier.store.database import Database
from verifier.store.opening import open_database

_SWEEP_EVERY_S: Final = 1.0
_SWEPT_IN_S: Final = 60
"""Every node is swept within this time."""
_SWEPT_AT_ONCE: Final = 50
"""Nodes that are swept before other work has its turn."""
_SCHEMA: Final = "router.store"
_GC_THRESHOLDS: Final = (20_000, 50, 100)
"""Requests make no reference cycles, so the garbage collector need not run every few of them."""

_log = structlog.get_logger("router")
_silent = Gauge("touchstone_router_feed_silent_seconds", "How long nothing was heard from the verifier.")
_nodes = Gauge("touchstone_router_nodes", "Nodes in each lane of each workload.", ["workload", "lane"])
_reloads = Counter(
    "touchstone_router_table_reloads_total", "Tables of workloads that were read again.", ["how"]
)


@dataclass(frozen=True)
class RouterSetup:
    """What a router is made from."""

    config: RouterConfig
    table: Table
    folder: Path = Path()
    """The folder of the files that the configuration names."""

    def tokenisers(self) -> dict[str, Tokeniser]:
        """The tokenisers of the table, by workload.  Raises `ConfigError`."""
        return load_tokenisers(self.table, self.folder)


def load(path: Path, config: RouterConfig) -> RouterSetup:
    """
    Read the table, and check every other file that the configuration names.

    Raises:
        ConfigError: a file cannot be read, or does not hold what it should.
    """
    folder = path.parent
    setup = RouterSetup(config, load_table(folder / config.workloads), folder)
    setup.tokenisers()
    read_token(folder, config.verifier.router_token_file)
    read_token(folder, config.verifier.admin_token_file)
    return setup


def make_app(setup: RouterSetup, clock: Clock | None = None) -> web.Application:
    """The router's application."""
    clock = clock or Clock(lambda: time.time_ns() // 1_000_000, time.monotonic)
    app = web.Application()
    # OpenAI's resources have errors of their own form; all others answer with problem documents.
    app.add_routes(openai.routes())
    api = [*decisions.routes(), *incidents.routes(), *standing.routes(), *status.routes()]
    api += [web.get("/metrics", _metrics), web.route("*", "/{rest:.*}", _nothing)]
    for route in api:
        app.router.add_route(route.method, route.path, _guarded(route.handler))

    async def run(app: web.Application) -> AsyncIterator[None]:
        async with running(setup, clock) as (state, gateway):
            app[STATE], app[GATEWAY] = state, gateway
            yield

    app.cleanup_ctx.append(run)
    return app


@asynccontextmanager
async def running(setup: RouterSetup, clock: Clock) -> AsyncIterator[tuple[State, Gateway]]:
    """Everything that runs, until the block ends."""
    config = setup.config
    async with AsyncExitStack() as stack:
        to_verifier = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False))
        to_nodes = await stack.enter_async_context(
            pinned.open_session(allow_private=config.gateway.allow_private)
        )
        db = await stack.enter_async_context(_open_store(setup))
        name = NameLease(db, config.name, clock)
        await name.take()
        stack.push_async_callback(name.give_back)
        state, gateway = assemble(setup, clock, db, name, to_verifier=to_verifier, to_nodes=to_nodes)
        # Before the first request: what was held is held.
        await state.persistence.load()
        await state.holds.sync()
        loops = _loops(state, name, to_nodes)
        tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        stack.callback(gateway.dispatcher.metering.close)
        try:
            yield state, gateway
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await state.holds.close()
            if config.store.is_kept:
                await state.persistence.flush()


@asynccontextmanager
async def _open_store(setup: RouterSetup) -> AsyncIterator[Database]:
    store = setup.config.store
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        # Holds need a store; without a configured one they last as long as the process.
        file = Path(folder) / "router.db" if store.path is None else setup.folder / store.path
        async with open_database(store.url, file, schema=_SCHEMA) as db:
            yield db


def assemble(
    setup: RouterSetup,
    clock: Clock,
    db: Database,
    name: NameLease,
    *,
    to_verifier: aiohttp.ClientSession,
    to_nodes: aiohttp.ClientSession,
) -> tuple[State, Gateway]:
    """Make all parts and connect them; nothing runs yet."""
    config = setup.config
    fleet = Fleet(setup.table, clock, probe_every_s=config.gateway.probe_every_s or 5.0)
    keyring = Keyring(config.keys, wall_ms=clock.now_ms, monotonic=clock.monotonic)
    records = Records(writes=config.store.is_kept, lost=records_lost.inc)
    token = read_token(setup.folder, config.verifier.router_token_file)
    report = None if token is None else VerifierIncidentReporter(to_verifier, config.verifier, token)
    holds = Holds(db, fleet, clock, config.review, report=report)
    feed = Feed(
        to_verifier,
        config.verifier,
        clock,
        fleet,
        on_incident_state=holds.note_incident_state,
        reported_incidents=holds.reported_incidents,
        on_incident_lost=holds.note_incident_lost,
    )
    persistence = Persistence(
        db, config.name, config.store, clock, fleet=fleet, records=records, budgets=keyring, lease=name
    )
    exchanges = Exchanges(to_nodes, config.gateway, clock)
    metering = Metering(clock, holds, setup.tokenisers())
    dispatcher = Dispatcher(fleet, exchanges, clock, records=records, metering=metering, reviews=holds)
    state = State(
        config=config,
        folder=setup.folder,
        clock=clock,
        fleet=fleet,
        feed=feed,
        holds=holds,
        persistence=persistence,
        records=records,
        to_verifier=to_verifier,
    )
    gateway = Gateway(
        dispatcher=dispatcher,
        config=config.gateway,
        clock=clock,
        keyring=keyring,
        replays=IdempotencyCache(monotonic=clock.monotonic),
    )
    return state, gateway


def _loops(
    state: State, name: NameLease, to_nodes: aiohttp.ClientSession
) -> Mapping[str, Coroutine[Any, Any, None]]:
    """The loops that run until the router ends, by name."""
    config = state.config
    loops: dict[str, Coroutine[Any, Any, None]] = {
        "name": name.run(),
        "feed": state.feed.run(),
        "holds": state.holds.run(),
        "sweep": _sweep(state.fleet),
    }
    if config.store.is_kept:
        loops["persistence"] = state.persistence.run()
    if config.gateway.probe_every_s:
        ask = partial(probe.ask, to_nodes, allow_private=config.gateway.allow_private)
        prober = Prober(state.fleet, ask, state.clock, every_s=config.gateway.probe_every_s)
        loops["prober"] = prober.run()
    return loops


async def tune_garbage_collector(app: web.Application) -> None:
    """Exempt from garbage collection what exists now and what snapshots bring, for a process that only routes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    # What is known of nodes makes no cycles, and to go through all of it takes half a second for 10⁵ nodes.
    app[STATE].feed.on_page = gc.freeze


def reload_table(app: web.Application) -> None:
    """Read the table again.  If it is refused, the previous table stays in force."""
    state, gateway = app[STATE], app[GATEWAY]
    try:
        table = load_table(state.folder / state.config.workloads)
        gateway.dispatcher.metering.tokenisers = load_tokenisers(table, state.folder)
    except ConfigError as error:
        _reloads.labels("refused").inc()
        _log.error("the table is refused; the previous table stays in force", why=str(error))
        return
    state.fleet.use_table(table)
    _reloads.labels("taken").inc()
    _log.info("another table of workloads is in force", workloads=len(table.workloads))


async def _sweep(fleet: Fleet) -> None:
    while True:
        # Spread over the second: a large fleet in one go would keep every request waiting.
        parts = len(fleet) // (_SWEPT_IN_S * _SWEPT_AT_ONCE) + 1
        for _ in range(parts):
            await asyncio.sleep(_SWEEP_EVERY_S / parts)
            try:
                fleet.advance()
                fleet.sweep(_SWEPT_AT_ONCE)
            except Exception:  # noqa: BLE001
                # The outermost of the sweep: one node must not end it for all.
                _log.exception("the sweep failed")
        _silent.set(fleet.silent_s)
        for name, lanes in fleet.census().items():
            for lane, count in lanes.items():
                _nodes.labels(name, lane).set(count)


def _guarded(handler: Any) -> Any:
    async def guarded(request: web.Request) -> web.StreamResponse:
        return await problem.middleware(request, handler)

    return guarded


async def _nothing(_: web.Request) -> web.Response:
    raise RequestError("no such resource", code="request.not-found")


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
