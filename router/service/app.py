"""The application: feed, fleet, gateway and resources put together."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, generate_latest

from attester.errors import ConfigError
from router.config import RouterConfig, read_token
from router.gateway import openai, pinned
from router.gateway.dispatch import Dispatcher
from router.gateway.exchange import Exchanges
from router.gateway.idempotency import IdempotencyCache
from router.gateway.keys import Keyring
from router.gateway.openai import GATEWAY, Gateway
from router.model.clock import Clock
from router.model.tokens import Tokeniser
from router.model.workload import Table, load_table
from router.service import decisions, incidents, standing, status
from router.service.state import STATE, State
from router.state.feed import Feed
from router.state.fleet import Fleet
from router.state.holds import Holds, VerifierIncidentReporter
from router.state.persistence import Persistence, records_lost
from router.state.prober import Prober
from router.state.records import Records
from verifier.errors import RequestError
from verifier.service import problem
from verifier.store.sqlite import SqliteDatabase

_SWEEP_EVERY_S: Final = 1.0
_SWEPT_IN_S: Final = 60
"""Every node is looked at again within this time."""
_SCHEMA: Final = "router.store"
_COLLECT: Final = (20_000, 50, 100)
"""Requests make no cycles, so the collector need not run every few of them."""

_log = structlog.get_logger("router")
_silent = Gauge("touchstone_router_feed_silent_seconds", "How long nothing was heard from the verifier.")
_nodes = Gauge("touchstone_router_nodes", "Nodes in each lane of each workload.", ["workload", "lane"])
_reloads = Counter(
    "touchstone_router_table_reloads_total", "Tables of workloads that were read again.", ["how"]
)


@dataclass(frozen=True)
class RouterSetup:
    """What a router is made of."""

    config: RouterConfig
    table: Table
    folder: Path = Path()
    """Where the files that the configuration names are."""


def load(path: Path, config: RouterConfig) -> RouterSetup:
    """
    The table and what else the configuration names.

    Raises:
        ConfigError: a file cannot be read, or holds something else.
    """
    folder = path.parent
    given = RouterSetup(config, load_table(folder / config.workloads), folder)
    tokenisers(given.table, folder)
    read_token(folder, config.verifier.router_token_file)
    read_token(folder, config.verifier.admin_token_file)
    return given


def tokenisers(table: Table, folder: Path) -> dict[str, Tokeniser]:
    """
    The tokenisers that a table names, by workload.

    Raises:
        ConfigError: one cannot be read.
    """
    return {
        name: Tokeniser.load(folder / workload.tokeniser)
        for name, workload in table.workloads.items()
        if workload.tokeniser is not None
    }


def make_app(given: RouterSetup, clock: Clock | None = None) -> web.Application:
    """The router's application."""
    clock = clock or Clock(lambda: time.time_ns() // 1_000_000, time.monotonic)
    app = web.Application()
    # The work has errors of its own form; everything else has problem documents.
    app.add_routes(openai.routes())
    api = [*decisions.routes(), *incidents.routes(), *standing.routes(), *status.routes()]
    api += [web.get("/metrics", _metrics), web.route("*", "/{rest:.*}", _nothing)]
    for route in api:
        app.router.add_route(route.method, route.path, _guarded(route.handler))

    async def run(app: web.Application) -> AsyncIterator[None]:
        async with opened(given, clock) as (state, gateway):
            app[STATE], app[GATEWAY] = state, gateway
            yield

    app.cleanup_ctx.append(run)
    return app


@asynccontextmanager
async def opened(given: RouterSetup, clock: Clock) -> AsyncIterator[tuple[State, Gateway]]:
    """Everything that runs, until the block ends."""
    config = given.config
    async with AsyncExitStack() as stack:
        to_verifier = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False))
        to_nodes = await stack.enter_async_context(
            pinned.open_session(allow_private=config.gateway.allow_private)
        )
        if config.store.path is None:
            # Holds need a place; without a configured one they last as long as the process.
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="touchstone-"))) / "router.db"
        else:
            path = given.folder / config.store.path
        db = SqliteDatabase(path, schema=_SCHEMA)
        await stack.enter_async_context(db)
        fleet = Fleet(given.table, clock, probe_every_s=config.gateway.probe_every_s or 5.0)
        keyring = Keyring(config.keys, wall_ms=clock.now_ms, monotonic=clock.monotonic)
        records = Records(writes=config.store.path is not None, lost=records_lost.inc)
        feed = Feed(to_verifier, config.verifier, clock, fleet)
        token = read_token(given.folder, config.verifier.router_token_file)
        tell = None if token is None else VerifierIncidentReporter(to_verifier, config.verifier, token)
        held = Holds(db, fleet, clock, config.review, tell)
        feed.decided, feed.awaited = held.decided, held.awaited
        dispatcher = Dispatcher(fleet, Exchanges(to_nodes, config.gateway), config.gateway, clock, records)
        dispatcher.on_mismatch, dispatcher.on_cheap = held.on_mismatch, held.on_cheap
        dispatcher.tokenisers = tokenisers(given.table, given.folder)
        keeper = Persistence(db, config.name, config.store, clock, fleet, records, keyring)
        state = State(given.config, given.folder, clock, fleet, feed, held, keeper, records, to_verifier)
        gateway = Gateway(
            dispatcher, config.gateway, clock, keyring, IdempotencyCache(monotonic=clock.monotonic)
        )
        # Before the first byte: what was held is held.
        await keeper.load()
        await held.sync()
        loops: dict[str, Coroutine[Any, Any, None]] = {
            "feed": feed.run(),
            "holds": held.run(),
            "sweep": _sweep(fleet),
        }
        if config.store.path is not None:
            loops["keeper"] = keeper.run()
        if config.gateway.probe_every_s:
            prober = Prober(
                fleet,
                to_nodes,
                clock,
                every_s=config.gateway.probe_every_s,
                allow_private=config.gateway.allow_private,
            )
            loops["prober"] = prober.run()
        tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        try:
            yield state, gateway
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await held.close()
            if config.store.path is not None:
                await keeper.flush()


async def tune_garbage_collector(_: web.Application) -> None:
    """For a process that does nothing else: what is here now stays, and need not be looked at again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)


def reload_table(app: web.Application) -> None:
    """Read the table again; one that is refused leaves the one before in force."""
    state, gateway = app[STATE], app[GATEWAY]
    path = state.folder / state.config.workloads
    try:
        table = load_table(path)
        gateway.dispatcher.tokenisers = tokenisers(table, state.folder)
    except ConfigError as error:
        _reloads.labels("refused").inc()
        _log.error("the table was refused, and the one before stays in force", why=str(error))
        return
    state.fleet.use(table)
    _reloads.labels("taken").inc()
    _log.info("another table of workloads is in force", workloads=len(table.workloads))


async def _sweep(fleet: Fleet) -> None:
    while True:
        await asyncio.sleep(_SWEEP_EVERY_S)
        try:
            fleet.advance()
            fleet.sweep(len(fleet) // _SWEPT_IN_S + 10)
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
