"""A simulated quarter: nodes, their claims and the receipts of routers, with what is to come out of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from attester.usage_claims import UsageClaim, make
from router.model.usage import Usage
from router.model.workload import Price
from router.settlement.exchanges import Exchange
from router.settlement.periods import DAY_MS, Period, day_of, read_period
from verifier.log.tree import leaf_hash

QUARTER = read_period("2026-Q4")
MODEL = "m"
PRICE = Price(150_000, 600_000)
HONEST = ("honest", "rounding", "skewed", "lost", "silent", "within")
KINDS = (*HONEST, "minor", "serious", "double", "told")


@dataclass
class SimulatedNode:
    """One node of a kind, and what it is owed."""

    id: str
    operator: str
    kind: str
    exchanges: int = 0
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    claims: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def expected(self) -> int:
        """What it is owed, exactly."""
        return PRICE.charge(self.usage)


def simulate(
    nodes: int, seed: int = 17, *, period: Period = QUARTER, kinds: tuple[str, ...] = KINDS
) -> tuple[list[SimulatedNode], Iterator[Exchange]]:
    """
    A fleet over a period.

    Args:
        nodes: How many.
        seed: Of all that is drawn.

    Returns:
        The nodes, and the exchanges of the period and of the days around it; the nodes know what they are owed and what
        they claim only once all exchanges were read.
    """
    draw = random.Random(seed)
    fleet = []
    honest = [kind for kind in kinds if kind in HONEST]
    cheats = [kind for kind in kinds if kind not in HONEST]
    for number in range(nodes):
        # Nine of ten are honest, in one way or another.
        is_cheat = bool(cheats) and number % 10 == 0
        kind = cheats[number // 10 % len(cheats)] if is_cheat else honest[number % len(honest)]
        operator = f"cheat-{number:04}" if is_cheat else f"operator-{number // 2:04}"
        fleet.append(SimulatedNode(f"node-{number:04}", operator, kind))
    return fleet, _exchanges(fleet, draw, period)


def _exchanges(fleet: list[SimulatedNode], draw: random.Random, period: Period) -> Iterator[Exchange]:
    days = (period.to_ms - period.from_ms) // DAY_MS
    for day in range(-1, days + 1):
        for place, node in enumerate(fleet):
            # Each stands for the answers of a day, at some time of it; at the edges, within minutes of midnight.
            at = period.from_ms + day * DAY_MS + draw.randrange(DAY_MS)
            counted = Usage(draw.randrange(1000, 40_000), draw.randrange(200, 9000))
            told = _told(node.kind, counted, draw)
            is_within = period.from_ms <= at < period.to_ms
            name = f"{at:012x}{place:020x}"
            exchange = Exchange(
                id=name, at_ms=at, client=f"key-{draw.randrange(12)}", node=node.id, operator=node.operator,
                model=MODEL, workload="w", tier="t", price=PRICE, counted=counted, is_exact=True, claimed=told,
                leaf=leaf_hash(name.encode()),
            )  # fmt: skip
            _claim(node, at, told, draw)
            if node.kind == "lost" and day % 20 == 7:
                # The router lost this receipt: the node has worked for it, and claims it.
                continue
            if is_within:
                node.exchanges += 1
                node.usage = Usage(
                    node.usage.prompt + counted.prompt, node.usage.completion + counted.completion
                )
            yield exchange


def _told(kind: str, counted: Usage, draw: random.Random) -> Usage:
    """What the engine tells in its answer."""
    if kind == "rounding":
        # In every direction: special tokens, a template, text that is stripped.
        return Usage(
            max(counted.prompt + draw.randrange(-40, 65), 0),
            max(counted.completion + draw.randrange(-8, 9), 0),
        )
    if kind == "told":
        return Usage(counted.prompt, counted.completion * 2)
    return counted


def _claim(node: SimulatedNode, at: int, told: Usage, draw: random.Random) -> None:
    share = {"within": 120, "minor": 140, "serious": 250}.get(node.kind, 100)
    times = 2 if node.kind == "double" else 1
    # A clock that is two hours ahead or behind moves what is near midnight into another day.
    skew = (7_200_000 if int(node.id[-2:]) % 2 else -7_200_000) if node.kind == "skewed" else 0
    if node.kind == "silent":
        return
    day = day_of(at + skew)
    before = node.claims.get(day, (0, 0, 0))
    node.claims[day] = (
        before[0] + times,
        before[1] + times * (told.prompt * share // 100),
        before[2] + times * (told.completion * share // 100),
    )


def claims_of(fleet: list[SimulatedNode]) -> list[tuple[str, UsageClaim]]:
    """All claims, each with the operator of its node."""
    return [
        (node.operator, make(node.id, "router-1", day, {MODEL: counts}))
        for node in fleet
        for day, counts in sorted(node.claims.items())
    ]
