"""Nodes of every kind, and what the verifier says of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from bench.fleet_world.tally import Recovery
from router.model.node import NodeView
from router.model.workload import Workload
from verifier.results import Appraisal, AttestationResult, NodeRecord, VerifierClaims, VerifierId
from verifier.trust import Tier

MODEL: Final = "example/large"
WORKLOAD: Final = Workload(MODEL, name="chat", max_age_s=86400)
"""A day's age, where 300 s are the default: results are renewed seldom here, to save time."""
TIER: Final = WORKLOAD.standing_key
DAY: Final = 86400.0
START: Final = 1_795_000_000
"""Unix seconds when the simulation begins."""
_SIZES: Final = (1, 1, 1, 2, 2, 3, 5, 10, 25, 60)
"""How many nodes operators have."""


class Again(StrEnum):
    """What an operator does whose node has a bad name."""

    NEVER = "never"
    SAME = "same"
    """Enrols it anew, as the same operator."""
    OTHER = "other"
    """Enrols it anew, by another operator's name."""


@dataclass(frozen=True)
class Kind:
    """Nodes that behave alike."""

    name: str
    share: float
    """Of all nodes."""
    honest: bool = False
    latency_s: float = 4.0
    fails: tuple[float, float] = (0.001, 0.008)
    """Share of requests that fail, from and to."""
    wrong: float = 0.0
    """Share of its time, and so of its answers, that it has other weights loaded."""
    shown: bool = True
    """Whether a called walk goes through them then; not where both are loaded and the walk gets the right ones."""
    claims: tuple[float, float] = (1.0, 1.0)
    """What it claims of prompt and output, as a multiple."""
    bad_fails: float = 0.0
    bad_slow: float = 1.0
    """How it is in its bad hours: two good days, then six bad hours."""
    again: Again = Again.NEVER
    turns: bool = False
    """Whether it is good until a day in the first half."""
    arrives: bool = False
    """Whether it comes during the run, with nothing to its name."""
    batch: int = 0
    """Nodes of each operator, all at once; 0: as usual."""
    names: int = 1
    """Under how many names each operator is known."""
    evenly: bool = False
    """Whether batches come at even distances of time, and not by chance: kinds that are compared come together."""
    stretches: bool = False
    """Answers every other probe or so, and is away for 20 minutes of every 6 hours."""

    @property
    def has_phases(self) -> bool:
        """Whether it has bad hours."""
        return self.bad_fails > 0 or self.bad_slow > 1


KINDS: Final = (
    Kind("honest, fast", 0.18, honest=True, latency_s=2.0),
    Kind("honest, usual", 0.24, honest=True),
    Kind("ten under one name", 0.05, honest=True, batch=10),
    Kind("ten under ten names", 0.05, honest=True, batch=10, names=10),
    Kind("honest, slow", 0.14, honest=True, latency_s=8.0),
    Kind("honest newcomer", 0.04, honest=True, arrives=True),
    Kind("honest batch of 50", 0.04, honest=True, arrives=True, batch=50),
    Kind("new, ten under one name", 0.01, honest=True, arrives=True, batch=10, evenly=True),
    Kind("new, ten under ten names", 0.01, honest=True, arrives=True, batch=10, names=10, evenly=True),
    Kind("flaky, 5-20 %", 0.05, fails=(0.05, 0.2)),
    Kind("flaky, renames itself", 0.02, fails=(0.05, 0.2), again=Again.SAME),
    Kind("wrong weights, 2 %", 0.03, wrong=0.02, turns=True),
    Kind("two-faced, 2 %", 0.01, wrong=0.02, shown=False, turns=True),
    Kind("claims all x3", 0.01, claims=(3.0, 3.0), turns=True),
    Kind("claims output x3", 0.01, claims=(1.0, 3.0), turns=True),
    Kind("claims output x1.2", 0.01, claims=(1.0, 1.2), turns=True),
    Kind("on-off, crashing", 0.015, bad_fails=0.6, turns=True),
    Kind("on-off, slow", 0.015, bad_slow=8.0, turns=True),
    Kind("whitewash, same name", 0.01, wrong=0.2, again=Again.SAME, turns=True),
    Kind("whitewash, new name", 0.01, wrong=0.2, again=Again.OTHER, turns=True),
    Kind("colluding, 1 operator", 0.02, arrives=True, batch=1 << 30),
    Kind("heartbeat stretcher", 0.02, stretches=True),
    Kind("self-copies, x10", 0.01, batch=10),
)


@dataclass(eq=False)
class Seat:
    """One machine; it may go by several names, one after another."""

    number: int
    kind: Kind
    operator: str
    fails: float
    born: float
    turn: float
    """When it begins to be what it is; before, it is an honest one."""
    up: bool = True
    bad: bool = False
    """In its bad hours."""
    ill: bool = False
    """An honest one's bad day."""
    identity: Identity | None = None
    names: int = 0
    operators: int = 1
    work: int = 0
    """Requests that reached it since it turned."""
    noticed: float | None = None
    """When it was first put behind others, since it turned."""
    caught: float | None = None
    """When its first name was first held."""
    work_before: int = 0
    """What it got from its turning to that moment."""

    def is_turned(self, now: float) -> bool:
        """Whether it shows its colours."""
        return now >= self.turn

    def failing(self, now: float) -> float:
        """The chance that a request fails now."""
        bad = self.kind.bad_fails if self.bad and self.is_turned(now) else 0.0
        return 1.0 if not self.up else max(self.fails, bad, 0.4 if self.ill else 0.0)

    def seconds(self, rng: random.Random) -> float:
        """How long an answer takes."""
        slow = self.kind.bad_slow if self.bad else 1.0
        return self.kind.latency_s * slow * rng.lognormvariate(0.0, 0.25)

    def wrong(self, now: float) -> float:
        """The chance that an answer is of other weights."""
        return self.kind.wrong if self.is_turned(now) else 0.0


@dataclass(eq=False)
class Identity:
    """A node as the verifier and the router know it."""

    name: str
    operator: str
    seat: Seat
    enrolled: float
    until: float = 0.0
    """When its result runs out."""
    revoked: bool = False
    retired: bool = False
    incidents: set[str] = field(default_factory=set)
    cheats: bool = False
    told: float | None = None
    """When the router was told that it was caught."""
    proven: float | None = None
    """When it was first established."""
    recovery: Recovery | None = None
    degraded: float | None = None

    def view(self, now: float) -> NodeView:
        """What the verifier says of it."""
        record = NodeRecord(self.operator, int(START + self.enrolled), "active", "cpu")
        return NodeView(
            self.name, result=_result(self.name, record, now, self.until), revoked=self.revoked,
            retired=self.retired, incidents=frozenset(self.incidents),
        )  # fmt: skip


_ENDPOINT: Final = {"endpoint": {"url": "https://192.0.2.1", "spki_sha256": "ab" * 32}, "capabilities": {}}
_WEIGHTS: Final = Appraisal(
    Tier.AFFIRMING,
    {"file-system": 2, "executables": 2},
    ("default",),
    VerifierClaims("challenged", "true"),
)


def _result(name: str, record: NodeRecord, now: float, until: float) -> AttestationResult:
    issued = int(START + now)
    platform = Appraisal(
        Tier.AFFIRMING,
        {"instance-identity": 2, "configuration": 2},
        ("default",),
        VerifierClaims("declared", "true", node=record),
        ear_attester_claims=_ENDPOINT,
    )
    return AttestationResult(
        iss="https://verifier.example",
        iat=issued,
        exp=int(START + until),
        jti=f"{name}-{issued}",
        ueid=name,
        cnf={},
        ear_verifier_id=VerifierId("d", "b"),
        ear_status=Tier.AFFIRMING,
        submods={"platform": platform, f"model/{MODEL}": _WEIGHTS},
        status={"uri": "https://verifier.example/status"},
    )


def flood(count: int, nodes: int, names: int) -> Kind:
    """False names that come within days: *nodes* of them among *count*, of *names* operators; they serve well."""
    return Kind("flood", nodes / count, arrives=True, batch=max(1, nodes // names), evenly=True)


def populate(count: int, days: float, rng: random.Random, kinds: Sequence[Kind]) -> Iterator[Seat]:
    """Seats of all kinds, with their operators, and when they come and turn."""
    number = 0
    for kind in kinds:
        left = whole = max(1, round(count * kind.share))
        operator = 0
        while left:
            size = min(left, kind.batch or rng.choice(_SIZES if kind.honest else _SIZES[:6]))
            at = 1 - left / whole if kind.evenly else rng.random()
            born = (0.05 + 0.45 * at) * days * DAY if kind.arrives else 0.0
            for place in range(size):
                turn = rng.uniform(0.1, 0.5) * days * DAY if kind.turns else born
                name = f"{kind.name}/{operator}" + (f".{place % kind.names}" if kind.names > 1 else "")
                yield Seat(number, kind, name, rng.uniform(*kind.fails), born, turn)
                number += 1
            left -= size
            operator += 1
