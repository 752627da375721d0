"""The router's application: its resources, and everything that runs behind them."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import structlog
from aiohttp import web
from prometheus_client import Counter

from attester.authorities import open_session
from attester.errors import ConfigError
from attester.version import install_hint
from router.config import load_table
from router.gateway import openai, pinned, probe
from router.gateway.claims import ClaimFetcher
from router.gateway.handler import Gateway
from router.gateway.jobs.service import JOBS
from router.gateway.openai import GATEWAY
from router.model.clock import Clock
from router.service import access
from router.service.assembling import assemble
from router.service.setup import RouterSetup, verifier_token
from router.service.state import STATE, State
from router.service.sweep import sweep
from router.state.addresses import AddressChecker
from router.state.archiver import archiving
from router.state.identity import Identity, now
from router.state.name import NameLease
from router.state.prober import Prober
from router.state.registration import Registrar
from verifier.service import problem
from verifier.service.access import mount
from verifier.service.front import FRONT, Front
from verifier.service.oidc import Issuer
from verifier.store.database import Database
from verifier.store.opening import open_database

_ISSUER_EVERY_S: Final = 1.0
_SCHEMA: Final = "router.store"

_log = structlog.get_logger("router")
_reloads = Counter(
    "touchstone_router_table_reloads_total", "Tables of workloads that were read again.", ["how"]
)


def make_app(setup: RouterSetup, clock: Clock | None = None) -> web.Application:
    """The router's application."""
    clock = clock or Clock(lambda: time.time_ns() // 1_000_000, time.monotonic)
    app = web.Application(middlewares=[_answer_errors])
    service = setup.config.service
    app[FRONT] = Front(
        service,
        per_address_per_minute=service.per_address_per_minute,
        strangers_per_minute=service.strangers_per_minute,
        monotonic=clock.monotonic,
    )
    mount(app, access.routes(), access.identify)

    async def run(app: web.Application) -> AsyncIterator[None]:
        async with running(setup, clock) as (state, gateway):
            app[STATE], app[GATEWAY], app[JOBS] = state, gateway, state.jobs
            yield

    async def stop(app: web.Application) -> None:
        app[GATEWAY].dispatcher.stop()

    app.cleanup_ctx.append(run)
    app.on_shutdown.append(stop)
    app.on_response_prepare.append(openai.commit)
    return app


@asynccontextmanager
async def running(setup: RouterSetup, clock: Clock) -> AsyncIterator[tuple[State, Gateway]]:
    """Everything that runs, until the block ends."""
    config = setup.config
    async with AsyncExitStack() as stack:
        to_verifier = await stack.enter_async_context(open_session(setup.authorities))
        identity = setup.identity or Identity.make(now())
        to_nodes = await stack.enter_async_context(
            pinned.open_session(allow_private=config.gateway.allow_private, context=identity.client_context())
        )
        registrar = Registrar(
            to_verifier, config.verifier.url, identity, clock, partial(verifier_token, setup)
        )
        db = await stack.enter_async_context(_open_store(setup))
        name = NameLease(db, config.name, clock)
        await name.take()
        stack.push_async_callback(name.give_back)
        state, gateway = assemble(
            setup, clock, db, name, registrar, to_verifier=to_verifier, to_nodes=to_nodes
        )
        # Before the first request: what was revoked is revoked, what was spent is spent, what was held is held.
        await state.stored_keys.sync()
        _check_access(gateway, state.issuer)
        await state.changes.load()
        await state.persistence.load()
        if state.receipts is not None:
            await state.receipts.keeper.load()
        await state.holds.sync()
        if state.jobs is not None:
            # What a router of this name held before it was killed.
            await state.jobs.runner.ranges.close()
        token = partial(verifier_token, setup)
        moving = archiving(config, setup.folder, clock, db, to_verifier=to_verifier, token=token)
        loops = {**_loops(state, name, to_nodes), **moving}
        tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        state.stalls.start()
        stack.callback(gateway.dispatcher.metering.close)
        try:
            async with _other_gateways(state, gateway, to_nodes):
                yield state, gateway
        finally:
            state.stalls.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await gateway.checks.close()
            gateway.close()
            await state.holds.close()
            await state.changes.close()
            if config.store.is_kept:
                await state.persistence.flush()
                if state.receipts is not None:
                    await state.receipts.keeper.flush()
                if state.jobs is not None:
                    await state.jobs.close()


@asynccontextmanager
async def _other_gateways(
    state: State, gateway: Gateway, to_nodes: aiohttp.ClientSession
) -> AsyncIterator[None]:
    """Serve other gateways too, if the configuration says so.  Raises `ConfigError`."""
    if state.config.ext_proc is None:
        yield
        return
    try:
        from router.service.ext_proc.server import serving
    except ModuleNotFoundError as error:
        raise ConfigError(f"[ext_proc] needs {error.name}: {install_hint('envoy')}") from None
    async with serving(state, gateway, state.config.ext_proc, partial(pinned.look_up, to_nodes)):
        yield


def _check_access(gateway: Gateway, issuer: Issuer | None) -> None:
    """
    Make sure that somebody can send work, and that anybody can only if that was asked for.

    Raises:
        ConfigError: there is no key, and the gateway is not open.
    """
    if gateway.keyring.is_open:
        _log.warning("the gateway is open: anyone who reaches it may send work without a key")
    elif not len(gateway.keyring) and issuer is None:
        raise ConfigError(
            "nobody could send work: there is no API key. Make one: touchstone router key create NAME."
            " Or let anyone send work: open = true in [gateway]"
        )


@asynccontextmanager
async def _open_store(setup: RouterSetup) -> AsyncIterator[Database]:
    store = setup.config.store
    with tempfile.TemporaryDirectory(prefix="touchstone-") as folder:
        # Holds need a store; without a configured one they last as long as the process.
        file = Path(folder) / "router.db" if store.path is None else setup.folder / store.path
        async with open_database(store.url, file, schema=_SCHEMA) as db:
            yield db


def _loops(
    state: State, name: NameLease, to_nodes: aiohttp.ClientSession
) -> Mapping[str, Coroutine[Any, Any, None]]:
    """The loops that run until the router ends, by name."""
    config = state.config
    loops: dict[str, Coroutine[Any, Any, None]] = {
        "name": name.run(),
        "feed": state.feed.run(),
        "holds": state.holds.run(),
        "changes": state.changes.run(),
        "keys": state.stored_keys.run(),
        "registration": state.registrar.run(),
        "sweep": sweep(state),
    }
    if state.receipts is not None:
        loops |= state.receipts.loops()
    if state.jobs is not None:
        loops |= state.jobs.loops()
    if not config.gateway.allow_private:
        loops["addresses"] = AddressChecker(state.fleet, partial(pinned.judge_name, to_nodes)).run()
    if state.issuer is not None:
        loops["issuer"] = _follow(state.issuer)
    if config.settlement.claims_every_s and config.store.is_kept:
        private = config.gateway.allow_private
        fetcher = ClaimFetcher(to_nodes, state.claims, state.fleet, allow_private=private)
        loops["claims"] = fetcher.run(config.settlement.claims_every_s)
    if config.store.is_kept:
        loops["persistence"] = state.persistence.run()
    if config.gateway.probe_every_s:
        ask = partial(
            probe.ask,
            to_nodes,
            allow_private=config.gateway.allow_private,
            judge_refusal=state.registrar.judge_refusal,
        )
        prober = Prober(
            state.fleet,
            ask,
            state.clock,
            every_s=config.gateway.probe_every_s,
            lost_s=lambda: state.stalls.lost_s,
        )
        loops["prober"] = prober.run()
    return loops


def reload_table(app: web.Application) -> None:
    """Read the table again.  If it is refused, the previous table stays in force."""
    state = app[STATE]
    try:
        table = load_table(state.folder / state.config.workloads)
        state.changes.use_file(table)
    except ConfigError as error:
        _reloads.labels("refused").inc()
        _log.error("the table is refused; the previous table stays in force", why=str(error))
        return
    _reloads.labels("taken").inc()
    if (change := state.changes.in_force) is not None:
        _log.warning("the file is read; a promoted table stands on it, and is in force", change=change.id)
        return
    _log.info("another table of workloads is in force", workloads=len(table.workloads))


async def _follow(issuer: Issuer) -> None:
    while True:
        try:
            await issuer.refresh_if_due()
        except Exception:  # noqa: BLE001
            # The outermost of the loop: if it ended, the issuer's new keys would never be known.
            _log.exception("the issuer's keys failed")
        await asyncio.sleep(_ISSUER_EVERY_S)


@web.middleware
async def _answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """OpenAI's resources have errors of their own form; all others answer with problem documents."""
    if request.path.startswith("/v1/"):
        return await openai.answer_errors(request, handler)
    answer = await problem.middleware(request, handler)
    if answer.status == 401:
        # Nodes have nothing to sign for a router.
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer
