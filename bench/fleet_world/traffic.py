"""Requests: decided, sent and booked by the router's core, and what is seen of nodes by them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Final

from bench.fleet_world.baselines import ATTEMPTS, Picker, RoundRobin, Sent, Uniform, ask, attempt
from bench.fleet_world.population import DAY, TIER, WORKLOAD, Again, Identity, Seat
from bench.fleet_world.tally import BIN_S, Clients
from bench.fleet_world.world import World
from router.choose.candidates import Lane
from router.choose.decision import Decision, decide
from router.model.outcomes import Execution, Outcome
from router.model.standing import FAILURE_WEIGHT, Standing
from router.model.statistics import StatisticsAggregate
from router.model.usage import Usage, UsageMeter, is_true

_PROMPT, _OUTPUT, _TEMPLATE = 1000, 250, 20
_COUNTED: Final = Usage(_PROMPT, _OUTPUT)
_CLIENTS: Final = 7
"""Who asks in turn, besides those who belong to an operator."""


@dataclass(eq=False)
class Session:
    """A caller's requests."""

    left: int
    operator: str | None = None
    """The operator whose key it is, if it is a node operator's."""
    wash: bool = False
    decision: Decision | None = None
    lane: Lane = Lane.ESTABLISHED
    place: int = 0
    tried: int = 0
    waited: float = 0.0


class Traffic:
    """All requests of the run."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._tally = world.tally
        self._fleet = world.fleet
        self._settings = world.settings
        self._rng, self._truth, self._theirs = (random.Random(seed * 10 + k) for k in (1, 2, 3))
        self._meter = UsageMeter()
        self._every = world.end * world.settings.session / world.settings.requests
        self._pickers: list[tuple[Picker, Clients]] = [
            (Uniform(world.seats, self._theirs), self._tally.uniform),
            (RoundRobin(world.seats), self._tally.robin),
        ]

    @property
    def _now(self) -> float:
        return self._world.now

    def ask(self) -> None:
        """The next caller, and so on."""
        self._world.after(self._rng.expovariate(1 / self._every), self.ask)
        for picker, clients in self._pickers:
            ask(picker, clients, self._now, self._theirs)
        session = Session(self._settings.session)
        if self._rng.random() < self._settings.wash:
            session.wash = True
            session.operator = "colluding, 1 operator/0" if self._rng.random() < 0.5 else None
        self._begin(session)

    def _begin(self, session: Session) -> None:
        view, seed = self._fleet.view_for(WORKLOAD), self._rng.getrandbits(64)
        decision = decide(view, WORKLOAD, seed, rule=self._settings.rule)
        session.decision, session.place, session.tried, session.waited = decision, 0, 0, 0.0
        self._tally.empty += not decision.ranked
        self._try(session)

    def _try(self, session: Session) -> None:
        """The next of the ranked to which nothing has happened."""
        decision = session.decision
        assert decision is not None
        while session.place < len(decision.ranked) and session.tried < ATTEMPTS:
            ranked = decision.ranked[session.place]
            name, session.lane = ranked.node, ranked.lane
            session.place += 1
            if self._is_closed(name, decision):
                continue
            session.tried += 1
            identity = self._world.identities[name]
            sent = self._send(identity, session)
            self._world.after(sent.seconds, partial(self._over, session, identity, sent))
            return
        self._lost(session)

    def _is_closed(self, name: str, decision: Decision) -> bool:
        verdict = self._fleet.verdict(name, WORKLOAD)
        return verdict is not None and verdict.code not in decision.opened

    def _lost(self, session: Session) -> None:
        self._tally.ours.requests += 1
        session.left -= 1
        if session.left:
            self._begin(session)

    def _over(self, session: Session, identity: Identity, sent: Sent) -> None:
        """The first answer is over; the rest of the session follows at once, by the same decision."""
        assert session.decision is not None
        attempts = 1
        self._book(identity, sent, session)
        while sent.completed:
            session.waited, session.tried = 0.0, 1
            session.left -= 1
            if not session.left:
                break
            if self._is_closed(identity.name, session.decision):
                break
            sent = self._send(identity, session)
            self._book(identity, sent, session)
            attempts += 1
        self._hear(identity, attempts)
        self.look(identity)
        if sent.completed:
            if session.left:
                self._begin(session)
        elif sent.begun:
            self._lost(session)
        else:
            self._try(session)

    def _send(self, identity: Identity, session: Session) -> Sent:
        seat, tally, name = identity.seat, self._tally, identity.seat.kind.name
        if identity.told is not None:
            tally.after_told += 1
        elif identity.name in self._world.caught_at:
            tally.after_caught += 1
        tally.sent[name] += 1
        tally.by_lane[name, session.lane] += 1
        if seat.is_turned(self._now):
            if seat.names > 1 and seat.kind.wrong and not identity.cheats:
                # Under a new name it waits for its first work: there is nothing to gain before.
                self._world.cheat(identity)
            seat.work += 1
            tally.in_bad_hours[name] += seat.bad
        if not seat.up:
            tally.to_silent[name] += 1
        if session.wash:
            tally.wash["own" if seat.kind.batch > 50 else "others'"] += 1
        tally.bins[name, int((self._now - seat.turn) // BIN_S)] += 1
        self._fleet.start_work(identity.name, WORKLOAD)
        return attempt(seat, self._now, self._truth)

    def _book(self, identity: Identity, sent: Sent, session: Session) -> None:
        session.waited += sent.seconds
        if not sent.completed:
            self._fleet.end_work(identity.name, WORKLOAD, Execution(Outcome.CRASHED, sent.seconds))
            return
        seat, clients = identity.seat, self._tally.ours
        claimed = self._claim(seat)
        clean = is_true(claimed, _COUNTED)
        client = session.operator or f"client-{clients.requests % _CLIENTS}"
        mismatch = self._meter.add(identity.name, identity.operator, client, claimed, _COUNTED, self._now)
        credit = session.operator is None or session.operator != identity.operator
        execution = Execution(Outcome.COMPLETED, sent.seconds, is_clean=clean, earns_credit=credit)
        self._fleet.end_work(identity.name, WORKLOAD, execution)
        clients.requests += 1
        clients.completed += 1
        clients.wrong += sent.wrong
        clients.seconds += session.waited
        if mismatch is not None:
            self._tally.holds_ours += mismatch.router_is_wrong
            if mismatch.is_confirmed and not mismatch.router_is_wrong and not identity.incidents:
                self._tally.holds += 1
                self._world.told(identity, f"r-{next(self._world.incidents)}")

    def _claim(self, seat: Seat) -> Usage:
        prompt, output = seat.kind.claims if seat.is_turned(self._now) else (1.0, 1.0)
        return Usage(int((_PROMPT + _TEMPLATE) * prompt), int(_OUTPUT * output))

    def _hear(self, identity: Identity, attempts: int) -> None:
        """What the other routers have seen of it meanwhile: as many attempts each."""
        count = attempts * (self._settings.routers - 1)
        if not count:
            return
        seat = identity.seat
        failing = seat.failing(self._now)
        failed = sum(self._truth.random() < failing for _ in range(count))
        unclean = 0 if is_true(self._claim(seat), _COUNTED) else count - failed
        before = self._world.others.get(identity.name, Standing()).decayed_to(self._world.unix())
        good, bad = count - failed, FAILURE_WEIGHT * failed
        standing = self._world.others[identity.name] = Standing(
            (before.completed[0] + good, before.completed[1] + good),
            (before.failed[0] + bad, before.failed[1] + bad),
            before.exchanges + count,
            before.rejects + unclean,
            self._world.unix(),
        )
        self._fleet.merge_peer_statistics(identity.name, TIER, "others", StatisticsAggregate(standing))

    def look(self, identity: Identity) -> None:
        """See what has become of it."""
        seat = identity.seat
        lane = self._fleet.lane(identity.name, WORKLOAD)
        if lane is Lane.ESTABLISHED:
            if identity.proven is None:
                identity.proven = self._now
            if identity.recovery is not None and identity.recovery.back is None and not seat.ill:
                identity.recovery.back = self._now
            return
        if seat.noticed is None and lane is not None and seat.is_turned(self._now):
            seat.noticed = self._now
        renames = seat.kind.again is Again.SAME and not seat.kind.wrong
        if renames and lane is Lane.DEGRADED and identity.degraded is None:
            identity.degraded = self._now
            self._world.after(DAY, partial(self._world.again, seat, identity.operator))
