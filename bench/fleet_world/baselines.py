"""What routers without attestation and without standing do with the same nodes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from bench.fleet_world.population import Seat
from bench.fleet_world.tally import Clients

ATTEMPTS: Final = 3
BEGUN: Final = 0.3
"""Share of failures after the first text has gone to the client: those cannot be tried elsewhere."""


@dataclass(frozen=True)
class Sent:
    """How one attempt ends."""

    completed: bool
    seconds: float
    wrong: bool = False
    begun: bool = False
    """Whether the client had got some of it."""


def attempt(seat: Seat, now: float, rng: random.Random) -> Sent:
    """Send one request to a machine."""
    if rng.random() < seat.failing(now):
        if not seat.up:
            return Sent(completed=False, seconds=0.1)
        return Sent(completed=False, seconds=seat.seconds(rng) / 2, begun=rng.random() < BEGUN)
    return Sent(completed=True, seconds=seat.seconds(rng), wrong=rng.random() < seat.wrong(now))


class Picker(Protocol):
    """Chooses a machine."""

    def pick(self, now: float, /) -> Seat:
        """The next one."""

    def failed(self, seat: Seat, now: float, /) -> None:
        """It failed."""


@dataclass
class Uniform:
    """Any of them."""

    seats: Sequence[Seat]
    rng: random.Random

    def pick(self, _now: float) -> Seat:
        """As `Picker`."""
        return self.seats[int(self.rng.random() * len(self.seats))]

    def failed(self, _seat: Seat, _now: float) -> None:
        """As `Picker`."""


@dataclass
class RoundRobin:
    """One after another; who failed is left out for 5 s, as LiteLLM does."""

    seats: Sequence[Seat]
    place: int = 0
    cooling: dict[int, float] = field(default_factory=dict)

    def pick(self, now: float) -> Seat:
        """As `Picker`."""
        for _ in range(len(self.seats)):
            self.place = (self.place + 1) % len(self.seats)
            seat = self.seats[self.place]
            if self.cooling.get(seat.number, 0.0) <= now:
                break
        return seat

    def failed(self, seat: Seat, now: float) -> None:
        """As `Picker`."""
        self.cooling[seat.number] = now + 5.0


def ask(picker: Picker, clients: Clients, now: float, rng: random.Random) -> None:
    """One request, with as many attempts as our router makes."""
    clients.requests += 1
    waited = 0.0
    for _ in range(ATTEMPTS):
        seat = picker.pick(now)
        sent = attempt(seat, now, rng)
        waited += sent.seconds
        if sent.completed:
            clients.completed += 1
            clients.wrong += sent.wrong
            clients.seconds += waited
            return
        picker.failed(seat, now)
        if sent.begun:
            return
