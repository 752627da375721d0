"""Makes the parts of a router and connects them; nothing runs yet."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import aiohttp
import structlog
from prometheus_client import Counter

from router.config import RouterConfig, load_tokenisers
from router.gateway import pinned
from router.gateway.arms import Arms
from router.gateway.checks import Checks
from router.gateway.commitments import Commitments
from router.gateway.dispatch import Dispatcher
from router.gateway.exchanges import Exchanges
from router.gateway.fronts import Fronts
from router.gateway.handler import Gateway
from router.gateway.idempotency import IdempotencyCache
from router.gateway.jobs.service import Jobs, make_jobs
from router.gateway.keys import Keyring
from router.gateway.metering import Metering
from router.gateway.receipting import note_check
from router.gateway.terms import Terms
from router.model.clock import Clock
from router.model.tokens import Tokeniser
from router.receipts.payload import Node
from router.service.incident_reporter import VerifierIncidentReporter
from router.service.setup import RouterSetup, verifier_token
from router.service.state import State
from router.service.verifier_checks import make_checks
from router.state.change_steps import ChangeSteps
from router.state.changes import Changes
from router.state.claims import ClaimDesk
from router.state.feed import Feed
from router.state.fleet import Fleet
from router.state.holds import Holds
from router.state.name import NameLease
from router.state.persistence import Persistence, records_lost
from router.state.receipting import Receipting, make_receipting
from router.state.records import Records
from router.state.registration import Registrar
from router.state.stalls import StallWatch
from router.state.stored_keys import StoredKeys
from router.state.trial import Trial
from verifier.service.clock import Clock as ServiceClock
from verifier.service.oidc import Issuer
from verifier.store.database import Database

_LONG_STALL_S: Final = 1.0

_log = structlog.get_logger("router")
_stalled = Counter("touchstone_router_stalled_seconds_total", "How long the event loop stood still.")


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
    holds = Holds(db, fleet, clock, config.review, report=_make_reporter(setup, to_verifier))
    persistence = Persistence(
        db, config.name, config.store, clock, fleet=fleet, records=records, budgets=keyring, lease=name
    )
    exchanges = _make_exchanges(setup, clock, registrar, to_nodes, stalls)
    receipts = _make_receipting(setup, clock, db, name, registrar=registrar, to_verifier=to_verifier)
    metering = Metering(clock, holds, setup.tokenisers(), config.settlement.tolerance)
    dispatcher = Dispatcher(fleet, exchanges, clock, records=records, metering=metering, reviews=holds)
    changes = _make_changes(setup, clock, db, holds, fleet, metering)
    token = partial(verifier_token, setup)
    checks = make_checks(dispatcher, config, clock, to_verifier, token=token, name=name)
    gateway = _make_gateway(setup, clock, to_nodes, keyring, checks, dispatcher, changes, receipts)
    state = State(
        config=config,
        folder=setup.folder,
        clock=clock,
        fleet=fleet,
        feed=_make_feed(setup, clock, fleet, holds, to_verifier),
        holds=holds,
        changes=changes,
        change_steps=ChangeSteps(db, fleet, clock, changes, is_kept=config.store.is_kept),
        persistence=persistence,
        records=records,
        stored_keys=StoredKeys(db, clock, keyring),
        issuer=_issuer(config, clock),
        registrar=registrar,
        receipts=receipts,
        jobs=_make_jobs(config, db, gateway, receipts),
        db=db,
        claims=_make_desk(db, fleet, clock, registrar, receipts),
        to_verifier=to_verifier,
        stalls=stalls,
    )
    return state, gateway


def _make_gateway(
    setup: RouterSetup,
    clock: Clock,
    to_nodes: aiohttp.ClientSession,
    keyring: Keyring,
    checks: Checks,
    dispatcher: Dispatcher,
    changes: Changes,
    receipts: Receipting | None,
) -> Gateway:
    config, terms = setup.config, Terms(dispatcher.fleet, Commitments(clock))
    per_second, patience_s = config.changes.shadow_per_second, config.gateway.timeout_s
    arms = Arms(changes, dispatcher, terms, clock, per_second=per_second, patience_s=patience_s)
    gateway = Gateway(
        checks=checks,
        dispatcher=dispatcher,
        config=config.gateway,
        clock=clock,
        skew_s=config.verifier.skew_s,
        keyring=keyring,
        replays=IdempotencyCache(monotonic=clock.monotonic),
        terms=terms,
        arms=arms,
        receipts=None if receipts is None else receipts.book,
        fronts=None if receipts is None else _make_fronts(setup, clock, receipts, to_nodes),
    )
    checks.has_room = arms.has_room = gateway.has_room
    if receipts is not None:
        dispatcher.metering.on_check_end = partial(note_check, receipts.book, clock, dispatcher.metering)
    return gateway


def _make_changes(
    setup: RouterSetup, clock: Clock, db: Database, holds: Holds, fleet: Fleet, metering: Metering
) -> Changes:
    def use(tokenisers: Mapping[str, Tokeniser], trial: Trial | None) -> None:
        metering.tokenisers = tokenisers
        metering.candidate = {} if trial is None else trial.counted_by()

    return Changes(
        db,
        setup.config.name,
        fleet,
        clock,
        file=setup.table,
        load=lambda table: load_tokenisers(table, setup.folder),
        use=use,
        ask=holds.ask,
    )


def _make_jobs(
    config: RouterConfig, db: Database, gateway: Gateway, receipts: Receipting | None
) -> Jobs | None:
    """Files and batches; `None` if nothing outlives the router, or they are switched off."""
    if not (config.batches.enabled and config.store.is_kept):
        return None
    return make_jobs(db, gateway, config.batches, None if receipts is None else receipts.keeper, config.name)


def _make_desk(
    db: Database, fleet: Fleet, clock: Clock, registrar: Registrar, receipts: Receipting | None
) -> ClaimDesk:
    result = _no_result if receipts is None else receipts.sender.result
    return ClaimDesk(db, fleet, clock, lambda: registrar.name, result)


async def _no_result(_: Node) -> str | None:
    """Without receipts nothing is settled, and no claim is taken."""
    return None


def _make_exchanges(
    setup: RouterSetup,
    clock: Clock,
    registrar: Registrar,
    to_nodes: aiohttp.ClientSession,
    stalls: StallWatch,
) -> Exchanges:
    return Exchanges(
        to_nodes,
        setup.config.gateway,
        clock,
        lost_s=lambda: stalls.lost_s,
        judge_refusal=registrar.judge_refusal,
        digests=setup.config.receipts.enabled,
    )


def _make_fronts(
    setup: RouterSetup, clock: Clock, receipts: Receipting, to_nodes: aiohttp.ClientSession
) -> Fronts:
    """What asks nodes' fronts for their receipts."""
    return Fronts(to_nodes, receipts.keeper, clock, allow_private=setup.config.gateway.allow_private)


def _make_reporter(setup: RouterSetup, to_verifier: aiohttp.ClientSession) -> VerifierIncidentReporter | None:
    token = verifier_token(setup)
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
        token=partial(verifier_token, setup),
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
        token=partial(verifier_token, setup),
    )


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


def _note_stall(fleet: Fleet, seconds: float) -> None:
    """Nobody was heard while the loop stood still: nobody was silent."""
    _stalled.inc(seconds)
    if seconds >= _LONG_STALL_S:
        _log.warning(
            "the router stood still; what ran out meanwhile is held against no node",
            seconds=round(seconds, 1),
        )
        fleet.excuse_silence(seconds)
