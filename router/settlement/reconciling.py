"""
What nodes claim for a period, held against what routers have metered.  Pure.

The rule for one answer (`router.model.usage.Tolerance`) is the rule here, over all answers of a node for a model.
What is ours is never held against a node:

- An exchange of the last minutes of a period may be in the claim of the next day, or the other way round, if a clock
  is wrong.  What is missing in the claims of the day before and of the day after may be claimed within the period.
- Where a router has lost receipts, a node may claim as many exchanges more as can have been lost.
- What a router could not count itself, the node may claim as it has told it in the answer.
- A mismatch that does not stand without the two clients towards which most was told is not confirmed.
- If as many operators mismatch as match, our own count is what is wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeAlias

from msgspec import Struct, structs

from attester.usage_claims import UNKNOWN, UsageClaim
from router.model.usage import (
    ANSWERS,
    CLIENTS,
    LEFT,
    USUAL,
    Part,
    Tolerance,
    Usage,
    is_router_suspect,
    of,
    plus,
)
from router.settlement.exchanges import Exchange
from router.settlement.periods import Period, day_of

CRASH_EXCHANGES: Final = 200
"""Exchanges of one node whose receipts a router can lose when it is killed: of the 2 s until they are written."""
_NOTHING: Final = Usage(0, 0)
Key: TypeAlias = tuple[str, str]
"""A node and a model; the model `UNKNOWN` is all of the node's models together."""


class Verdict(StrEnum):
    """What came out for a node and a model."""

    WITHIN = "within"
    UNCLAIMED = "unclaimed"
    """The node has claimed nothing.  It is paid all the same."""
    TOO_FEW = "too-few"
    """There are too few exchanges to judge."""
    UNJUDGED = "unjudged"
    """Routers have lost receipts, and none is left to judge by."""
    UNCONFIRMED = "unconfirmed"
    """Too much, but one or two clients may have caused it."""
    MINOR = "minor"
    SERIOUS = "serious"
    ROUTER_SUSPECT = "router-suspect"
    """Too much, but so do as many operators as do not."""


class Gap(Struct, frozen=True):
    """A time of which a router may have lost receipts."""

    router: str
    from_ms: int
    to_ms: int
    lost: int
    """How many at most, of one node."""
    why: str


class Judgement(Struct, frozen=True, kw_only=True):
    """A node's claims for a model over a period."""

    node: str
    operator: str
    model: str
    verdict: Verdict
    part: Part | None = None
    """Which tokens were claimed too high."""
    claimed: Usage = _NOTHING
    claimed_exchanges: int = 0
    metered: Usage = _NOTHING
    """By routers, with what chat templates may add."""
    metered_exchanges: int = 0
    allowed: Usage = _NOTHING
    """What could be claimed within the tolerance of a large mismatch's base: metered, moved and lost."""
    allowed_exchanges: int = 0


@dataclass
class _Sum:
    exchanges: int = 0
    usage: Usage = _NOTHING

    def add(self, usage: Usage, exchanges: int = 1) -> None:
        self.exchanges += exchanges
        self.usage = plus(self.usage, usage)


@dataclass
class _Client:
    """What was counted and told of the answers to one client."""

    counted: _Sum = field(default_factory=_Sum)
    told: Usage = _NOTHING

    def add(self, other: _Client) -> None:
        self.counted.add(other.counted.usage, other.counted.exchanges)
        self.told = plus(self.told, other.told)


@dataclass
class _Metered:
    """What was metered of a node and a model within the period."""

    operator: str = ""
    total: _Sum = field(default_factory=_Sum)
    by_client: defaultdict[str, _Client] = field(default_factory=lambda: defaultdict(_Client))


class Metering:
    """
    What routers have metered in a period, summed while receipts are read.

    Args:
        period: The period.  Receipts of the day before and of the day after are needed too.
    """

    def __init__(self, period: Period) -> None:
        self.period = period
        self._edges = (period.day_before, period.day_after)
        self.within: defaultdict[Key, _Metered] = defaultdict(_Metered)
        self.around: defaultdict[tuple[Key, str], _Sum] = defaultdict(_Sum)

    def add(self, exchange: Exchange) -> None:
        """Add what one receipt says."""
        is_within = self.period.from_ms <= exchange.at_ms < self.period.to_ms
        day = "" if is_within else day_of(exchange.at_ms)
        if not is_within and day not in self._edges:
            return
        for passing in exchange.passed:
            # Only that it may be claimed.
            self._add((passing.node, exchange.model), day, passing.claimed)
        if not exchange.node:
            return
        key = (exchange.node, exchange.model)
        counted, claimed = exchange.counted, exchange.claimed
        if exchange.is_exact:
            counted = Usage(counted.prompt + exchange.template, counted.completion)
        elif claimed is not None:
            counted = _most(counted, claimed)
        self._add(key, day, counted)
        if day:
            return
        found = self.within[key]
        found.operator = exchange.operator
        client = found.by_client[exchange.client]
        client.counted.add(counted)
        client.told = plus(client.told, claimed or _NOTHING)

    def _add(self, key: Key, day: str, usage: Usage) -> None:
        (self.around[key, day] if day else self.within[key].total).add(usage)

    def fold(self, nodes: Iterable[str]) -> None:
        """Sum up all models of these nodes: their claims do not tell all of them."""
        chosen = set(nodes)
        for key in [each for each in self.within if each[0] in chosen and each[1] != UNKNOWN]:
            old, new = self.within.pop(key), self.within[key[0], UNKNOWN]
            new.operator = old.operator or new.operator
            new.total.add(old.total.usage, old.total.exchanges)
            for client, each in old.by_client.items():
                new.by_client[client].add(each)
        for key, day in [each for each in self.around if each[0][0] in chosen and each[0][1] != UNKNOWN]:
            old_sum = self.around.pop((key, day))
            self.around[(key[0], UNKNOWN), day].add(old_sum.usage, old_sum.exchanges)


@dataclass
class _Claims:
    operator: str = ""
    total: _Sum = field(default_factory=_Sum)
    by_edge: defaultdict[str, _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    is_made: bool = False
    """Whether there is one for a day of the period."""


def reconcile(
    metering: Metering,
    claims: Sequence[tuple[str, UsageClaim]],
    gaps: Sequence[Gap] = (),
    tolerance: Tolerance = USUAL,
    least: int = ANSWERS,
) -> list[Judgement]:
    """
    Judge all nodes.

    Args:
        metering: Of the period.
        claims: Each with the operator of its node: of the days of the period, and of the day before and after.
        gaps: When routers may have lost receipts.
        tolerance: How far claims may be off.
        least: With fewer exchanges nothing is judged.

    Returns:
        A judgement for each node and model, in their order.
    """
    period = metering.period
    by_key = _sum_claims(period, claims)
    folded = {node for node, model in by_key if model == UNKNOWN}
    metering.fold(folded)
    by_key = _fold_claims(by_key, folded)
    lost = sum(gap.lost for gap in gaps if gap.from_ms < period.to_ms and gap.to_ms >= period.from_ms)
    found = [
        _judge(key, by_key.get(key), metering, lost, tolerance, least)
        for key in sorted({*metering.within, *by_key})
        if key in metering.within or by_key[key].is_made
    ]
    return _doubt_router(found)


def _sum_claims(period: Period, claims: Sequence[tuple[str, UsageClaim]]) -> dict[Key, _Claims]:
    days, edges = set(period.days), {period.day_before, period.day_after}
    found: defaultdict[Key, _Claims] = defaultdict(_Claims)
    for operator, claim in claims:
        for used in claim.used:
            entry = found[claim.node, used.model]
            entry.operator = operator
            usage = Usage(used.prompt, used.completion)
            if claim.day in days:
                entry.is_made = True
                entry.total.add(usage, used.exchanges)
            elif claim.day in edges:
                entry.by_edge[claim.day].add(usage, used.exchanges)
    return found


def _fold_claims(claims: Mapping[Key, _Claims], nodes: set[str]) -> dict[Key, _Claims]:
    folded: defaultdict[Key, _Claims] = defaultdict(_Claims)
    for (node, model), entry in claims.items():
        into = folded[node, UNKNOWN if node in nodes else model]
        into.operator, into.is_made = entry.operator, into.is_made or entry.is_made
        into.total.add(entry.total.usage, entry.total.exchanges)
        for day, each in entry.by_edge.items():
            into.by_edge[day].add(each.usage, each.exchanges)
    return folded


def _judge(
    key: Key, claims: _Claims | None, metering: Metering, lost: int, tolerance: Tolerance, least: int
) -> Judgement:
    metered = metering.within.get(key) or _Metered()
    claims = claims or _Claims()
    allowed = _allow(key, claims, metered, metering, lost)

    def conclude(verdict: Verdict, part: Part | None = None) -> Judgement:
        return Judgement(
            node=key[0],
            operator=metered.operator or claims.operator,
            model=key[1],
            verdict=verdict,
            part=part,
            claimed=claims.total.usage,
            claimed_exchanges=claims.total.exchanges,
            metered=metered.total.usage,
            metered_exchanges=metered.total.exchanges,
            allowed=allowed.usage,
            allowed_exchanges=allowed.exchanges,
        )

    if not claims.is_made:
        return conclude(Verdict.UNCLAIMED)
    if max(claims.total.exchanges, metered.total.exchanges) < least:
        return conclude(Verdict.TOO_FEW)
    beyond = tolerance.excess(claims.total.usage, allowed.usage, allowed.exchanges)
    if beyond is None:
        return conclude(Verdict.WITHIN)
    if lost and not allowed.exchanges and claims.total.exchanges <= lost:
        return conclude(Verdict.UNJUDGED, beyond[0])
    large = tolerance.large_excess(claims.total.usage, allowed.usage, allowed.exchanges)
    part = beyond[0] if large is None else large[0]
    usage, sure = _without_clients(part, claims.total.usage, allowed, metered.by_client.values(), tolerance)
    judge = tolerance.excess if large is None else tolerance.large_excess
    found = judge(usage, sure.usage, sure.exchanges)
    if found is None:
        return conclude(Verdict.UNCONFIRMED, part)
    return conclude(Verdict.MINOR if large is None else Verdict.SERIOUS, found[0])


def _allow(key: Key, claims: _Claims, metered: _Metered, metering: Metering, lost: int) -> _Sum:
    """What a node may claim: what was metered, what its clock has moved over the edges, and what routers have lost."""
    allowed = _Sum(metered.total.exchanges, metered.total.usage)
    for day in (metering.period.day_before, metering.period.day_after):
        there = metering.around.get((key, day))
        if there is None:
            continue
        told = claims.by_edge.get(day, _Sum())
        allowed.add(_minus(there.usage, told.usage), max(there.exchanges - told.exchanges, 0))
    more = min(claims.total.exchanges - allowed.exchanges, lost)
    if more > 0 and allowed.exchanges:
        # Those that were lost are as large as those that were not, rounded up.
        usage, many = allowed.usage, allowed.exchanges
        allowed.add(Usage(-(-usage.prompt * more // many), -(-usage.completion * more // many)), more)
    return allowed


def _without_clients(
    part: Part, claimed: Usage, allowed: _Sum, clients: Iterable[_Client], tolerance: Tolerance
) -> tuple[Usage, _Sum]:
    """
    What is left of a claim, and what of it is allowed, without the clients that most is claimed too much of.

    As many are left out as may act together.  If hardly anything is left, what they were told may be claimed.
    """
    share = 100 + tolerance.large_percent

    def excess(client: _Client) -> int:
        expected = tolerance.with_slack(client.counted.usage, client.counted.exchanges)
        return 100 * of(client.told, part) - share * of(expected, part)

    most = sorted(clients, key=excess, reverse=True)[: CLIENTS - 1]
    left = allowed.exchanges - sum(each.counted.exchanges for each in most)
    if left < LEFT:
        return claimed, _Sum(allowed.exchanges, plus(allowed.usage, *(_over(each) for each in most)))
    told = plus(*(each.told for each in most))
    counted = plus(*(each.counted.usage for each in most))
    return _minus(claimed, told), _Sum(left, _minus(allowed.usage, counted))


def _over(client: _Client) -> Usage:
    return _minus(client.told, client.counted.usage)


def _minus(usage: Usage, other: Usage) -> Usage:
    return Usage(max(usage.prompt - other.prompt, 0), max(usage.completion - other.completion, 0))


def _doubt_router(found: list[Judgement]) -> list[Judgement]:
    """If as many operators mismatch as match, nobody is held: our own count is wrong."""
    mismatched = {each.operator for each in found if each.verdict in (Verdict.SERIOUS, Verdict.MINOR)}
    matched = {each.operator for each in found if each.verdict is Verdict.WITHIN} - mismatched
    if not is_router_suspect(mismatched, matched):
        return found
    return [
        structs.replace(each, verdict=Verdict.ROUTER_SUSPECT)
        if each.verdict in (Verdict.SERIOUS, Verdict.MINOR)
        else each
        for each in found
    ]


def _most(usage: Usage, other: Usage) -> Usage:
    return Usage(max(usage.prompt, other.prompt), max(usage.completion, other.completion))
