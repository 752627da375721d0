"""What work costs, by receipts: exact sums, and nothing where nothing is known."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

from msgspec import UNSET

from router.receipts.costs import UNIT, Costs
from router.receipts.payload import Metered, Price


def members(outcome: str = "completed", **given: Any) -> dict[str, Any]:
    return {"decision": "0" * 32, "outcome": outcome, **given}


def metered(prompt: int, completion: int) -> Metered:
    return Metered(completion=completion, exact=True, prompt=prompt)


PRICE = Price(input=333_333, output=1)


def test_costs_are_exact() -> None:
    """A third of a millionth is not lost, and failures make answers dearer."""
    costs = Costs()
    costs.add(members(price=PRICE, metered=metered(7, 3)))
    costs.add(members(price=PRICE, metered=metered(1, 0)))
    costs.add(members("crashed"))
    assert costs == Costs(3, 2, 8, 3, 333_333 * 8 + 3)
    assert costs.per_decision == Fraction(costs.amount, UNIT * 3)
    assert costs.per_answer == Fraction(costs.amount, UNIT * 2)
    assert costs.per_million_tokens == Fraction(costs.amount * 10**6, UNIT * 11)


def test_what_other_nodes_gave_before_is_paid_too() -> None:
    """The parts of an answer that another node went on with."""
    costs = Costs()
    part: Any = SimpleNamespace(completion=5, price=Price(input=9, output=7), own=False)
    own: Any = SimpleNamespace(completion=4, price=Price(input=9, output=7), own=True)
    costs.add(members(price=Price(input=0, output=2), metered=metered(1, 3), continued=(part, own)))
    assert (costs.completion_tokens, costs.amount) == (12, 3 * 2 + 5 * 7)


def test_what_has_no_decision_costs_no_decision() -> None:
    """A refusal by the router itself, or a check."""
    costs = Costs()
    costs.add({"outcome": "refused-here", "decision": UNSET, "price": PRICE, "metered": metered(9, 9)})
    assert costs == Costs()
    assert (costs.per_decision, costs.per_answer, costs.per_million_tokens) == (None, None, None)


def test_without_a_price_tokens_are_counted_and_cost_nothing() -> None:
    """The work is free."""
    costs = Costs()
    costs.add(members(metered=metered(2, 2)))
    assert (costs.amount, costs.per_million_tokens) == (0, 0)
