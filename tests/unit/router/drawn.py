"""Fleets drawn by Hypothesis: operators, prices, shares, silent hearts, breakers and warm-up."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from hypothesis import strategies as st

from router.choose import decision
from router.choose.decision import Decision
from router.model.clock import Clock
from router.model.load import BREAKER_FAILURES
from router.model.node import NodeView
from router.model.outcomes import Execution, Outcome
from router.model.standing import Standing
from router.model.statistics import StatisticsAggregate
from router.model.workload import Table, Workload
from router.state.fleet import Fleet
from tests.unit.router.support import MODEL, NOW, PLATFORM, TICKS, WEIGHTS, view

# What closes a gate that never opens: as arguments of `view`.
FAULTS: list[dict[str, Any]] = [
    {"revoked": True},
    {"retired": True},
    {"incidents": frozenset({"i"})},
    {"exp": NOW},
    {"iat": NOW - 301, "exp": NOW + 600},
    {"endpoint": {}},
    {"platform": {**PLATFORM, "configuration": 96}},
    {"weights": {**WEIGHTS, "executables": 96}},
    {"weights": {**WEIGHTS, "executables": 0}},
    {"weights": {"executables": -2}},
    {"model_assurance": "declared"},
    {"without": ("platform",)},
    {"without": ("model/example/tiny",)},
]
SILENCES = {"none": None, "well": 3.0, "suspect": 17.3, "silent": 59.0}
"""How long ago the only answer came: φ is 0, above 5, above 8."""
BREAKERS = {"none": None, "two": None, "probing": 20.0, "open": 5.0}
"""How long ago the last of three failures was."""
BEFORE_S = 120.0

seeds = st.integers(0, 2**64 - 1)
names = st.text("abcdefgh", min_size=1, max_size=4)
operators = st.sampled_from(["", "acme", "beta", "core"])


@dataclass(frozen=True)
class Drawn:
    """What has come to a router's ears of one node."""

    view: NodeView
    standing: Standing | None = None
    heard: Standing | None = None
    """What another router has seen."""
    in_flight: int = 0
    heart: str = "none"
    breaker: str = "none"
    own_hold: bool = False


@dataclass(frozen=True)
class DrawnFleet:
    """Nodes, and what else a decision rests on."""

    workload: Workload
    nodes: dict[str, Drawn]
    holds: dict[str, float] = field(default_factory=dict)
    silent_s: float = 0.0

    def fleet(self, shuffle: random.Random | None = None) -> Fleet:
        """Told of it all, in the order of time and in any order where that is the same."""
        at = [NOW * 1000 - int(BEFORE_S * 1000), TICKS - BEFORE_S]
        fleet = Fleet(Table([self.workload]), Clock(lambda: int(at[0]), lambda: at[1]))
        events: list[tuple[float, str, Any]] = [(self.silent_s, "", fleet.note_verifier_contact)]
        for operator, since in self.holds.items():
            events.append((BEFORE_S, "", lambda o=operator, s=since: fleet.set_operator_incident(o, "i", s)))
        for name, node in self.nodes.items():
            events += self._events_of(fleet, name, node)
        if shuffle is not None:
            shuffle.shuffle(events)
        # What happens to one node at one moment may come in any order as well.
        for ago, _, event in sorted(events, key=lambda e: -e[0]):
            at[:] = [NOW * 1000 - int(ago * 1000), TICKS - ago]
            event()
        at[:] = [NOW * 1000, TICKS]
        return fleet

    def _events_of(self, fleet: Fleet, name: str, node: Drawn) -> Iterable[tuple[float, str, Any]]:
        tier = self.workload.standing_key
        yield BEFORE_S, name, lambda: fleet.put_node(node.view)
        for standing, tell in ((node.standing, "restore"), (node.heard, "hear")):
            if standing is not None:
                account = StatisticsAggregate(standing)
                if tell == "restore":
                    yield BEFORE_S, name, lambda a=account: fleet.restore_statistics(name, tier, a)
                else:
                    yield (
                        BEFORE_S,
                        name,
                        lambda a=account: fleet.merge_peer_statistics(name, tier, "other", a),
                    )
        if node.own_hold:
            yield BEFORE_S, name, lambda: fleet.begin_hold(name, "h")
        silence = SILENCES[node.heart]
        if silence is not None:
            yield silence, name, lambda: fleet.note_probe_answer(name)
        failures = {"none": 0, "two": BREAKER_FAILURES - 1}.get(node.breaker, BREAKER_FAILURES)
        for _ in range(failures):
            yield BREAKERS[node.breaker] or 30.0, name, lambda: self._fail(fleet, name)
        for _ in range(node.in_flight):
            yield 0.0, name, lambda: fleet.start_work(name, self.workload)

    def _fail(self, fleet: Fleet, name: str) -> None:
        fleet.start_work(name, self.workload)
        # Not the node's fault, so that its standing is the one that was drawn.
        fleet.end_work(name, self.workload, Execution(Outcome.BUSY, 0.1))

    def decide(self, seed: int, shuffle: random.Random | None = None) -> Decision:
        return decision.decide(self.fleet(shuffle).view_for(self.workload), self.workload, seed)

    def beside(self, node: Drawn) -> DrawnFleet:
        """With one more node."""
        return replace(self, nodes={node.view.node: node, **self.nodes})

    def asking(self, **changes: Any) -> DrawnFleet:
        """With a workload that is otherwise."""
        return replace(self, workload=msgspec.structs.replace(self.workload, **changes))


def _standing(chance: random.Random) -> Standing:
    good, bad = chance.randint(0, 200), chance.choice([0, 0, 0, 0, 1, 3, 30])
    return Standing(
        completed=(good * chance.random(), float(good)),
        failed=(3.0 * bad * chance.random(), 3.0 * bad),
        exchanges=float(good + bad),
        rejects=float(chance.choice([0, 0, 0, bad])),
        at=NOW - BEFORE_S - chance.random() * 900,
        latency_s=chance.choice([None, 0.001, 0.5, 1.0, 60.0, chance.random()]),
    )


_chance = random.Random(20040)
standings = st.sampled_from([Standing(at=NOW - BEFORE_S), *(_standing(_chance) for _ in range(200))])
"""What a router may have seen."""
seen_or_not = st.one_of(st.none(), standings)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """With or without prices, shares and room."""
    given: dict[str, Any] = {
        "concurrency": draw(st.sampled_from([1, 2, 8, 64])),
        "max_operator_share": draw(st.sampled_from([100, 100, 50, 20, 1])),
        "probation_per_mille": draw(st.sampled_from([0, 20, 500, 1000])),
    }
    given["degraded_per_mille"] = draw(st.integers(0, 1000 - given["probation_per_mille"]))
    if draw(st.booleans()):
        prices = st.fixed_dictionaries({"input": st.integers(0, 10**7), "output": st.integers(0, 10**7)})
        given["prices"] = draw(st.dictionaries(st.sampled_from(["acme", "beta", "*"]), prices, max_size=3))
        if draw(st.booleans()):
            given["prices_by_hardware"] = {"cpu": {"*": draw(prices)}}
        given["second_is_worth"] = draw(st.sampled_from([0, 1, 1000]))
        given["energy_floor"] = draw(st.none() | prices)
        given["price_ceiling"] = draw(st.none() | st.none() | prices)
    return msgspec.convert({"model": MODEL, "name": "tiny", **given}, Workload)


@st.composite
def drawn(draw: st.DrawFn, name: str, workload: Workload, **about: Any) -> Drawn:
    """One node: honest or with a fault, seen or not, and whatever state its heart and breaker are in."""
    fault = draw(st.sampled_from([{}, {}, {}, {}, *FAULTS, None]))
    if fault is None:
        seen = NodeView(name)
    else:
        operator = draw(operators)
        seen = view(name, **({"operator": operator} if operator else {}), **fault)
    given: dict[str, Any] = {
        "view": seen,
        "standing": draw(seen_or_not),
        "heard": draw(seen_or_not),
        "in_flight": draw(st.sampled_from([0, 0, 0, 1, 5, workload.concurrency])),
        "heart": draw(st.sampled_from(["none", *SILENCES])),
        "breaker": draw(st.sampled_from(["none", "none", *BREAKERS])),
        "own_hold": draw(st.sampled_from([False] * 9 + [True])),
    }
    return Drawn(**{**given, **about})


@st.composite
def fleets(draw: st.DrawFn, *, most: int = 10, least: int = 0) -> DrawnFleet:
    """Up to so many nodes of several operators."""
    workload = draw(workloads())
    found = draw(st.lists(names, unique=True, min_size=least, max_size=most))
    return DrawnFleet(
        workload,
        {name: draw(drawn(name, workload)) for name in found},
        draw(st.dictionaries(operators, st.sampled_from([float(NOW - 1e6), float(NOW)]), max_size=1)),
        draw(st.sampled_from([0.0] * 8 + [59.0, 60.0])),
    )
