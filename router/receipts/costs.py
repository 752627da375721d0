"""
What work costs: for a decision, for a successful answer, and for a million tokens.  All follows from receipts.

What an exchange costs is what its nodes are paid: the price in the receipt for the tokens that the router metered,
as in statements (`router.settlement.exchanges`).  All sums are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from msgspec import UNSET
from prometheus_client import Counter

from router.model.outcomes import Outcome
from router.model.usage import Usage
from router.model.workload import Price
from router.receipts.payload import Receipt, price_paid

UNIT: Final = 10**12
"""Amounts are in parts of the unit of account."""
_MILLION: Final = 10**6
_decided = Counter(
    "touchstone_router_decided_requests_total", "Requests that were decided and have ended.", ["workload"]
)
_answered = Counter("touchstone_router_completed_requests_total", "Those that were completed.", ["workload"])
_tokens = Counter(
    "touchstone_router_paid_tokens_total", "Tokens that nodes are paid for.", ["workload", "side"]
)
_cost = Counter(
    "touchstone_router_cost_units_total", "What nodes are paid, in units of account.", ["workload"]
)


@dataclass
class Costs:
    """Sums over requests that were decided."""

    decisions: int = 0
    answers: int = 0
    """Successful ones."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    amount: int = 0
    """In parts of the unit of account (`UNIT`)."""

    def add(self, members: Mapping[str, Any]) -> None:
        """Add what a receipt says, by its members; one without a decision is of no request."""
        if members.get("decision", UNSET) is UNSET:
            return
        self.decisions += 1
        self.answers += members["outcome"] == Outcome.COMPLETED
        metered, price = members.get("metered", UNSET), members.get("price", UNSET)
        if metered is UNSET:
            return
        self._pay(Usage(metered.prompt, metered.completion), price_paid(price, is_own=metered.own))
        for part in members.get("continued") or ():
            self._pay(Usage(0, part.completion), price_paid(part.price, is_own=part.own))

    def _pay(self, usage: Usage, price: Price) -> None:
        self.prompt_tokens += usage.prompt
        self.completion_tokens += usage.completion
        self.amount += price.charge(usage)

    @property
    def per_decision(self) -> Fraction | None:
        """What a decision costs, in units; `None` without any."""
        return Fraction(self.amount, UNIT * self.decisions) if self.decisions else None

    @property
    def per_answer(self) -> Fraction | None:
        """What a successful answer costs, failures included."""
        return Fraction(self.amount, UNIT * self.answers) if self.answers else None

    @property
    def per_million_tokens(self) -> Fraction | None:
        """What a million tokens cost, of both kinds together."""
        tokens = self.prompt_tokens + self.completion_tokens
        return Fraction(self.amount * _MILLION, UNIT * tokens) if tokens else None


def costs_of(receipts: Iterable[Receipt]) -> Costs:
    """The costs of requests, by their receipts."""
    costs = Costs()
    for receipt in receipts:
        costs.add({name: getattr(receipt, name) for name in receipt.__struct_fields__})
    return costs


def count(members: Mapping[str, Any]) -> None:
    """Add what a receipt says to the metrics."""
    costs = Costs()
    costs.add(members)
    if not costs.decisions:
        return
    workload = members.get("workload", UNSET)
    name = workload if isinstance(workload, str) else ""
    _decided.labels(name).inc()
    _answered.labels(name).inc(costs.answers)
    _tokens.labels(name, "prompt").inc(costs.prompt_tokens)
    _tokens.labels(name, "completion").inc(costs.completion_tokens)
    _cost.labels(name).inc(costs.amount / UNIT)
