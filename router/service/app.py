"""The router's application: its resources, and everything that runs behind them."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import structlog
from aiohttp import web
from prometheus_client import Counter

from attester.authorities import client_context, open_session
from attester.cose import PrivateKey
from attester.errors import ConfigError
from router.config import RouterConfig, load_table, load_tokenisers, read_token
from router.gateway import openai, pinned, probe
from router.gateway.commitments import Commitments
from router.gateway.dispatch import Dispatcher
from router.gateway.exchanges import Exchanges
from router.gateway.fronts import Fronts
from router.gateway.handler import Gateway
from router.gateway.idempotency import IdempotencyCache
from router.gateway.keys import Keyring
from router.gateway.metering import Metering
from router.gateway.openai import GATEWAY
from router.gateway.terms import Terms
from router.model.clock import Clock
from router.model.tokens import Tokeniser
from router.model.workload import Table
from router.service import access
from router.service.incident_reporter import VerifierIncidentReporter
from router.service.state import STATE, State
from router.service.sweep import sweep
from router.service.verifier_checks import make_checks
from router.state.addresses import AddressChecker
from router.state.archiver import archiving
from router.state.feed import Feed
from router.state.fleet import Fleet
from router.state.holds import Holds
from router.state.identity import Identity, find_identity, now
from router.state.name import NameLease
from router.state.persistence import Persistence, records_lost
from router.state.prober import Prober
from router.state.receipt_key import find_receipt_key
from router.state.receipting import Receipting, make_receipting
from router.state.records import Records
from router.state.registration import Registrar
from router.state.stalls import StallWatch
from router.state.stored_keys import StoredKeys
from verifier.service import problem
from verifier.service.access import mount
from verifier.service.clock import Clock as ServiceClock
from verifier.service.front import FRONT, Front
from verifier.service.oidc import Issuer
from verifier.service.tls import ServerTLS
from verifier.store.database import Database
from verifier.store.opening import open_database

_LONG_STALL_S: Final = 1.0
_ISSUER_EVERY_S: Final = 1.0
_SCHEMA: Final = "router.store"

_log = structlog.get_logger("router")
_stalled = Counter("touchstone_router_stalled_seconds_total", "How long the event loop stood still.")
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
    identity: Identity | None = None
    """By which nodes know the router; `None`: a new one, for this process alone."""
    receipt_key: PrivateKey | None = None
    """It signs receipts; `None`: a new one, for this process alone."""

    @property
    def authorities(self) -> Path | None:
        """The file of the authorities that may sign the verifier's certificate; `None`: the system's."""
        name = self.config.verifier.ca_file
        return None if name is None else self.folder / name

    def tokenisers(self) -> dict[str, Tokeniser]:
        """The tokenisers of the table, by workload.  Raises `ConfigError`."""
        return load_tokenisers(self.table, self.folder)


def load(path: Path, config: RouterConfig, *, makes_identity: bool = False) -> RouterSetup:
    """
    Read the table and the router's identity, and check every other file that the configuration names.

    Args:
        path: The configuration's file.
        config: What it holds.
        makes_identity: Whether an identity that is missing is made.

    Raises:
        ConfigError: a file cannot be read or made, or does not hold what it should.
    """
    folder = path.parent
    identity = find_identity(path, config.gateway.identity_file, makes_it=makes_identity)
    receipt_key = find_receipt_key(path, config, makes_it=makes_identity)
    setup = RouterSetup(
        config, load_table(folder / config.workloads), folder, identity=identity, receipt_key=receipt_key
    )
    setup.tokenisers()
    client_context(setup.authorities)
    if config.verifier.router_token_file is None:
        raise ConfigError(
            "verifier.router_token_file is missing: the verifier gives results only to routers with a key. "
            "There: touchstone verifier key create NAME --role router"
        )
    read_token(folder, config.verifier.router_token_file)
    read_token(folder, config.verifier.admin_token_file)
    if config.service.speaks_tls:
        ServerTLS(*config.service.files(folder))
    return setup


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
            app[STATE], app[GATEWAY] = state, gateway
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
        registrar = Registrar(to_verifier, config.verifier.url, identity, clock, partial(_token, setup))
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
        await state.persistence.load()
        if state.receipts is not None:
            await state.receipts.keeper.load()
        await state.holds.sync()
        token = partial(_token, setup)
        moving = archiving(config, setup.folder, clock, db, to_verifier=to_verifier, token=token)
        loops = {**_loops(state, name, to_nodes), **moving}
        tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        state.stalls.start()
        stack.callback(gateway.dispatcher.metering.close)
        try:
            yield state, gateway
        finally:
            state.stalls.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await gateway.checks.close()
            gateway.close()
            await state.holds.close()
            if config.store.is_kept:
                await state.persistence.flush()
                if state.receipts is not None:
                    await state.receipts.keeper.flush()


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


def assemble(
    setup: RouterSetup,
    clock: Clock,
    db: Database,
    name: NameLease,
    registrar: Registrar,
    *,
    to_verifier: aiohttp.ClientSession,
    to_nodes: aiohttp.ClientSession,
) -> tuple[State, Gateway]:
    """Make all parts and connect them; nothing runs yet."""
    config = setup.config
    fleet = _make_fleet(setup, clock)
    stalls = StallWatch(partial(_note_stall, fleet))
    keyring = _make_keyring(config, clock)
    records = Records(writes=config.store.is_kept, lost=records_lost.inc)
    report = _make_reporter(setup, to_verifier)
    holds = Holds(db, fleet, clock, config.review, report=report)
    persistence = Persistence(
        db, config.name, config.store, clock, fleet=fleet, records=records, budgets=keyring, lease=name
    )
    exchanges = Exchanges(
        to_nodes,
        config.gateway,
        clock,
        lost_s=lambda: stalls.lost_s,
        judge_refusal=registrar.judge_refusal,
        digests=config.receipts.enabled,
    )
    receipts = _make_receipting(setup, clock, db, name, registrar=registrar, to_verifier=to_verifier)
    metering = Metering(clock, holds, setup.tokenisers())
    dispatcher = Dispatcher(fleet, exchanges, clock, records=records, metering=metering, reviews=holds)
    state = State(
        config=config,
        folder=setup.folder,
        clock=clock,
        fleet=fleet,
        feed=_make_feed(setup, clock, fleet, holds, to_verifier),
        holds=holds,
        persistence=persistence,
        records=records,
        stored_keys=StoredKeys(db, clock, keyring),
        issuer=_issuer(config, clock),
        registrar=registrar,
        receipts=receipts,
        to_verifier=to_verifier,
        stalls=stalls,
    )
    checks = make_checks(dispatcher, config, clock, to_verifier, token=partial(_token, setup), name=name)
    gateway = Gateway(
        checks=checks,
        dispatcher=dispatcher,
        config=config.gateway,
        clock=clock,
        skew_s=config.verifier.skew_s,
        keyring=keyring,
        replays=IdempotencyCache(monotonic=clock.monotonic),
        terms=Terms(fleet, Commitments(clock)),
        receipts=None if receipts is None else receipts.book,
        fronts=None if receipts is None else _make_fronts(setup, clock, receipts, to_nodes),
    )
    checks.has_room = gateway.has_room
    return state, gateway


def _make_fronts(
    setup: RouterSetup, clock: Clock, receipts: Receipting, to_nodes: aiohttp.ClientSession
) -> Fronts:
    """What asks nodes' fronts for their receipts."""
    return Fronts(to_nodes, receipts.keeper, clock, allow_private=setup.config.gateway.allow_private)


def _make_reporter(setup: RouterSetup, to_verifier: aiohttp.ClientSession) -> VerifierIncidentReporter | None:
    token = _token(setup)
    return None if token is None else VerifierIncidentReporter(to_verifier, setup.config.verifier, token)


def _make_keyring(config: RouterConfig, clock: Clock) -> Keyring:
    return Keyring(config.keys, is_open=config.gateway.open, wall_ms=clock.now_ms, monotonic=clock.monotonic)


def _make_receipting(
    setup: RouterSetup,
    clock: Clock,
    db: Database,
    name: NameLease,
    *,
    registrar: Registrar,
    to_verifier: aiohttp.ClientSession,
) -> Receipting | None:
    return make_receipting(
        setup.config,
        setup.receipt_key,
        clock,
        db,
        name,
        registrar=registrar,
        to_verifier=to_verifier,
        token=partial(_token, setup),
    )


def _make_feed(
    setup: RouterSetup, clock: Clock, fleet: Fleet, holds: Holds, to_verifier: aiohttp.ClientSession
) -> Feed:
    return Feed(
        to_verifier,
        setup.config.verifier,
        clock,
        fleet,
        on_incident_state=holds.note_incident_state,
        reported_incidents=holds.reported_incidents,
        on_incident_lost=holds.note_incident_lost,
        token=partial(_token, setup),
    )


def _token(setup: RouterSetup) -> str | None:
    """The router's credential of the verifier, as its file has it now.  Raises `ConfigError`."""
    return read_token(setup.folder, setup.config.verifier.router_token_file)


def _issuer(config: RouterConfig, clock: Clock) -> Issuer | None:
    oidc = config.access.oidc
    return None if oidc is None else Issuer(oidc, ServiceClock(clock.now_ms, clock.monotonic))


def _make_fleet(setup: RouterSetup, clock: Clock) -> Fleet:
    gateway = setup.config.gateway
    return Fleet(
        setup.table,
        clock,
        probe_every_s=gateway.probe_every_s or 5.0,
        judge_url=partial(pinned.judge_url, allow_private=gateway.allow_private),
    )


def _loops(
    state: State, name: NameLease, to_nodes: aiohttp.ClientSession
) -> Mapping[str, Coroutine[Any, Any, None]]:
    """The loops that run until the router ends, by name."""
    config = state.config
    loops: dict[str, Coroutine[Any, Any, None]] = {
        "name": name.run(),
        "feed": state.feed.run(),
        "holds": state.holds.run(),
        "keys": state.stored_keys.run(),
        "registration": state.registrar.run(),
        "sweep": sweep(state),
    }
    if state.receipts is not None:
        loops |= state.receipts.loops()
    if not config.gateway.allow_private:
        loops["addresses"] = AddressChecker(state.fleet, partial(pinned.judge_name, to_nodes)).run()
    if state.issuer is not None:
        loops["issuer"] = _follow(state.issuer)
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


def _note_stall(fleet: Fleet, seconds: float) -> None:
    """Nobody was heard while the loop stood still: nobody was silent."""
    _stalled.inc(seconds)
    if seconds >= _LONG_STALL_S:
        _log.warning(
            "the router stood still; what ran out meanwhile is held against no node",
            seconds=round(seconds, 1),
        )
        fleet.excuse_silence(seconds)


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
