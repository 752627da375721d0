"""Time, machines, the verifier and its people."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from msgspec import structs

from bench.fleet_world.population import (
    DAY,
    KINDS,
    START,
    TIER,
    WORKLOAD,
    Again,
    Identity,
    Seat,
    flood,
    populate,
)
from bench.fleet_world.tally import Recovery, Tally
from router.choose.decision import RULE
from router.model.clock import Clock
from router.model.liveness import Heartbeat
from router.model.standing import FAILURE_WEIGHT, HALF_LIVES_S, Standing
from router.model.statistics import StatisticsAggregate
from router.model.workload import Table
from router.state.fleet import Fleet
from router.state.prober import interval_for

CALL_S: Final = (45.0, 180.0)
WALKS: Final = 0.25
"""The verifier's defaults: between calls, and the share of calls with a walk."""
_LIFETIME_S: Final = DAY
_RENEWED_S: Final = 0.8 * DAY
_RESULT_S: Final = 300.0
"""So old a result may really be: a machine that is away drops out then."""
_REVIEW_S: Final = (3600.0, DAY)
BAD_S, GOOD_S = 6 * 3600.0, 48 * 3600.0
_ANSWERS: Final = 16
"""Answers to probes that a detector is told of when a machine goes away."""
_LOOKS: Final = 1.0
"""The router looks at every node again each minute; here at so many for each request, to save time."""


@dataclass(frozen=True)
class Settings:
    """What is simulated."""

    nodes: int = 10_000
    days: float = 21.0
    requests: int = 1_000_000
    seed: int = 1
    routers: int = 5
    """All alike: one is simulated, and told every few requests what the others have seen meanwhile."""
    session: int = 4
    """Requests that a caller sends one after another by one decision, until one fails."""
    faults_per_day: float = 2e-4
    """How often an honest node comes to be held for a fault of its own: memory, a bad download."""
    bad_days: float = 0.02
    """Share of honest nodes that fail 40 % of requests for twelve hours, once."""
    outage_days: float = 10.0
    """Between outages of a machine."""
    outage_s: float = 3600.0
    wash: float = 0.05
    """Share of all requests that the colluding operator pays for."""
    rule: int = RULE
    """By which rule the router decides."""
    flood: tuple[int, int] = (0, 0)
    """False names that come besides, and of how many operators they are."""


class Requests(Protocol):
    """The requests of the run (`bench.fleet_world.traffic`)."""

    def ask(self) -> None:
        """Let the next caller ask, and the others after it."""

    def look(self, identity: Identity) -> None:
        """Note where an identity stands now."""


class World:
    """The simulation.  *make_requests* makes the requests that it meets."""

    def __init__(self, settings: Settings, make_requests: Callable[[World], Requests]) -> None:
        self.settings = settings
        self.tally = Tally()
        self.now = 0.0
        self.seats: list[Seat] = []
        self.identities: dict[str, Identity] = {}
        self._rng = random.Random(settings.seed * 10)
        clock = Clock(lambda: int((START + self.now) * 1000), lambda: self.now)
        self.unix = clock.unix
        self.incidents = itertools.count()
        self.fleet = Fleet(Table([WORKLOAD]), clock)
        self._probes_s = interval_for(settings.nodes, 5.0)
        self.fleet.set_probe_interval(self._probes_s)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.others: dict[str, Standing] = {}
        """What the other routers have seen, by node."""
        self.caught_at: dict[str, float] = {}
        """Those that were caught, and of whom the router has not heard yet."""
        self._waiting: dict[str, float] = {}
        self.end = settings.days * DAY
        self.requests = make_requests(self)
        self.kinds = KINDS if not settings.flood[0] else (*KINDS, flood(settings.nodes, *settings.flood))
        for seat in populate(settings.nodes, settings.days, self._rng, self.kinds):
            self.at(seat.born, partial(self._arrive, seat))

    # Time.

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do something then."""
        heapq.heappush(self._heap, (when, next(self._count), what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something later."""
        self.at(self.now + seconds, what)

    def run(self) -> None:
        """Until the end."""
        self.at(0.0, self.requests.ask)
        self.at(0.0, self._sweep)
        while self._heap:
            when, _, what = heapq.heappop(self._heap)
            if when >= self.end:
                break
            self.now = when
            # Its heartbeat comes every second.
            self.fleet.note_verifier_contact()
            what()
        self.now = self.end

    def _sweep(self) -> None:
        count = len(self.fleet)
        pause = max(60.0, self.end * count / (_LOOKS * self.settings.requests))
        self.fleet.sweep(max(1, count // 64))
        self.after(pause / 64, self._sweep)

    # Machines.

    def _arrive(self, seat: Seat) -> None:
        settings, rng, kind = self.settings, self._rng, seat.kind
        self.seats.append(seat)
        identity = self._enrol(
            seat, seat.operator, -rng.uniform(10, 300) * DAY if not kind.arrives else self.now
        )
        if not kind.arrives:
            self._bank(identity)
        self.after(rng.expovariate(1 / (settings.outage_days * DAY)), partial(self._away, seat))
        if kind.stretches:
            self.after(rng.uniform(0, 0.25 * DAY), partial(self._away, seat, 1200.0))
        if kind.has_phases:
            self.at(seat.turn, partial(self._phase, seat, bad=True))
        if kind.wrong and kind.shown:
            self.at(seat.turn, partial(self.cheat, identity))
        if kind.honest:
            self._fault(seat)
            if not kind.arrives and rng.random() < settings.bad_days:
                self.after(rng.uniform(0.05, 0.4) * self.end, partial(self._ill, seat))

    def _bank(self, identity: Identity) -> None:
        """What was seen of it before the run: it did as much as it will, and all but the flaky did well."""
        settings, seat = self.settings, identity.seat
        usual = settings.requests * settings.routers / settings.nodes / settings.days
        count = self._rng.uniform(0.5, 1.5) * usual * HALF_LIVES_S[1] / DAY / math.log(2)
        failed = FAILURE_WEIGHT * seat.fails * count
        standing = Standing(
            (0.0, count), (0.0, failed), count, 0.0, self.unix(), seat.kind.latency_s
        )  # fmt: skip
        self.fleet.restore_statistics(identity.name, TIER, StatisticsAggregate(standing))
        identity.proven = self.now

    def _enrol(self, seat: Seat, operator: str, enrolled: float) -> Identity:
        seat.names += 1
        identity = Identity(f"{seat.number:06d}-{seat.names}", operator, seat, enrolled)
        seat.identity = identity
        self.identities[identity.name] = identity
        self._renew(identity)
        verdict = self.fleet.verdict(identity.name, WORKLOAD)
        if verdict is not None and verdict.code == "incident.operator":
            self._waiting[identity.name] = self.now
        return identity

    def _renew(self, identity: Identity) -> None:
        if identity.retired or identity.seat.identity is not identity:
            return
        if identity.seat.up and not identity.incidents:
            self._certify(identity)
        self.after(_RENEWED_S * self._rng.uniform(0.9, 1.1), partial(self._renew, identity))

    def _certify(self, identity: Identity) -> None:
        identity.revoked, identity.until = False, self.now + _LIFETIME_S
        self.fleet.put_node(identity.view(self.now))

    def _away(self, seat: Seat, seconds: float = 0.0) -> None:
        """A machine goes away; how its probes were answered until now is told to its detector."""
        if not seat.up:
            if seconds:
                self.after(0.25 * DAY, partial(self._away, seat, seconds))
            return
        seat.up = False
        identity = seat.identity
        assert identity is not None
        heartbeat = self.fleet._entries[identity.name].heartbeat = Heartbeat(self._probes_s)
        answers = [
            (k + 0.9 * self._rng.random() - _ANSWERS) * self._probes_s + self.now
            for k in range(_ANSWERS)
            if not seat.kind.stretches or k % 2 or self._rng.random() < 0.5
        ]
        for answer in answers:
            heartbeat.note_probe_answer(answer)
        if not identity.incidents and not identity.revoked:
            identity.until = min(identity.until, self.now + _RESULT_S)
        self.fleet.put_node(identity.view(self.now))
        away = seconds or self._rng.expovariate(1 / self.settings.outage_s)
        self.tally.away_s[seat.kind.name] += int(away)
        self.after(away, partial(self._back, seat))
        next_s = (
            0.25 * DAY if seconds else self._rng.expovariate(1 / (self.settings.outage_days * DAY)) + away
        )
        self.after(next_s, partial(self._away, seat, seconds))

    def _back(self, seat: Seat) -> None:
        seat.up = True
        identity = seat.identity
        assert identity is not None
        # One that is up answers whenever it is asked: it need not be simulated until it is away again.
        self.fleet._entries[identity.name].heartbeat = Heartbeat(self._probes_s)
        if not identity.incidents and not identity.retired:
            self.after(self._rng.uniform(0, CALL_S[1]), partial(self._returned, identity))

    def _returned(self, identity: Identity) -> None:
        if identity.seat.up and not identity.incidents and not identity.retired:
            self._certify(identity)

    def _phase(self, seat: Seat, *, bad: bool) -> None:
        seat.bad = bad
        self.after(BAD_S if bad else GOOD_S, partial(self._phase, seat, bad=not bad))

    def _ill(self, seat: Seat) -> None:
        seat.ill = True
        self.after(0.5 * DAY, partial(self._well, seat))

    def _well(self, seat: Seat) -> None:
        seat.ill = False
        identity = seat.identity
        assert identity is not None
        identity.recovery = Recovery("bad day", self.now)
        self.tally.recoveries.append(identity.recovery)
        self.requests.look(identity)

    # The verifier and its people.

    def cheat(self, identity: Identity) -> None:
        """Called walks come at secret moments; the first that meets the wrong weights finds them."""
        seat = identity.seat
        identity.cheats = True
        calls = 1 + int(math.log(1 - self._rng.random()) / math.log(1 - WALKS * seat.kind.wrong))
        if calls < 50:
            seconds = sum(self._rng.uniform(*CALL_S) for _ in range(calls))
        else:
            mean, spread = sum(CALL_S) / 2, (CALL_S[1] - CALL_S[0]) / math.sqrt(12)
            seconds = max(self._rng.gauss(calls * mean, math.sqrt(calls) * spread), CALL_S[0])
        self.after(seconds, partial(self._caught, identity))

    def _fault(self, seat: Seat) -> None:
        self.after(self._rng.expovariate(self.settings.faults_per_day / DAY), partial(self._faulty, seat))

    def _faulty(self, seat: Seat) -> None:
        identity = seat.identity
        assert identity is not None
        if seat.up and not identity.incidents:
            self._caught(identity)
        self._fault(seat)

    def _caught(self, identity: Identity) -> None:
        if identity.incidents or identity.retired:
            return
        self.caught_at[identity.name] = self.now
        self.after(self._rng.uniform(0.05, 1.0), partial(self.told, identity))

    def told(self, identity: Identity, hold: str | None = None) -> None:
        """The router hears of it, or has seen for itself."""
        seat = identity.seat
        incident = hold or f"i-{next(self.incidents)}"
        identity.incidents.add(incident)
        identity.told = self.now
        self.caught_at.pop(identity.name, None)
        if seat.caught is None:
            seat.caught, seat.work_before = self.now, seat.work
        if hold is None:
            identity.revoked = True
            self.fleet.put_node(identity.view(self.now))
        else:
            self.fleet.begin_hold(identity.name, hold)
        self.fleet.set_operator_incident(identity.operator, incident, self.unix())
        self.after(self._rng.uniform(*_REVIEW_S), partial(self._reviewed, identity, incident))
        if seat.kind.again is Again.SAME:
            self.after(3600.0, partial(self.again, seat, identity.operator))
        elif seat.kind.again is Again.OTHER:
            seat.operators += 1
            self.after(
                0.5 * DAY, partial(self.again, seat, f"{seat.operator}/{seat.number}.{seat.operators}")
            )

    def again(self, seat: Seat, operator: str) -> None:
        """Enrol it by a new name."""
        old = seat.identity
        assert old is not None
        if not seat.up:
            self.after(600.0, partial(self.again, seat, operator))
            return
        if not old.retired:
            old.retired = True
            self.fleet.put_node(old.view(self.now))
        self._enrol(seat, operator, self.now)

    def _reviewed(self, identity: Identity, incident: str) -> None:
        assert identity.told is not None
        identity.incidents.discard(incident)
        self.fleet.set_operator_incident(identity.operator, incident, None)
        if incident.startswith("r-"):
            self.fleet.end_hold(identity.name, incident)
        if identity.seat.kind.honest:
            recovery = Recovery("quarantine", self.now, self.now - identity.told)
            identity.recovery = recovery
            self.tally.recoveries.append(recovery)
            identity.told = None
            self.fleet.release_node(identity.name)
            if (others := self.others.get(identity.name)) is not None:
                self.others[identity.name] = structs.replace(others, completed=(0.0, 0.0))
            if identity.seat.up:
                self._certify(identity)
        else:
            identity.retired = True
            self.fleet.put_node(identity.view(self.now))
        for name in [n for n in self._waiting if self.identities[n].operator == identity.operator]:
            verdict = self.fleet.verdict(name, WORKLOAD)
            if verdict is None or verdict.code != "incident.operator":
                kind = self.identities[name].seat.kind.name
                self.tally.waited[kind] += 1
                self.tally.waited_s[kind] += int(self.now - self._waiting.pop(name))
