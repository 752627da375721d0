"""What a receipt says of who is paid: one node, several parts of one answer, or nobody."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from router.model.usage import Usage
from router.receipts import payload
from router.receipts.payload import (
    Claimed,
    Continued,
    Metered,
    Node,
    Passed,
    Price,
    Receipt,
    Request,
    Response,
)
from router.settlement import exchanges
from router.settlement.accounts import Accounts
from router.settlement.periods import read_period

DAY = read_period("2026-11-30")


def receipt(**how: Any) -> bytes:
    members = {
        "v": 1, "iss": "r", "jti": "0" * 32, "iat": DAY.from_ms, "outcome": "completed", "model": "m", "workload": "w",
        "request": Request(method="POST", path="/v1/chat/completions", salted=False),
        "response": Response(bytes=1, complete=True, sha256="0" * 64, status=200, streamed=False),
        "node": Node(id="last"), "price": Price(input=2, output=3),
        "metered": Metered(completion=10, exact=True, operator="o", prompt=100),
    }  # fmt: skip
    return payload.encode(Receipt(**{k: v for k, v in {**members, **how}.items() if v is not None}))


def part(node: str, completion: int, **how: Any) -> Continued:
    given = {"operator": "p", "price": Price(input=5, output=7), **how}
    return Continued(completion=completion, node=Node(id=node), outcome="crashed", **given)


def test_an_answer_is_paid_at_the_price_of_its_decision() -> None:
    (found,) = exchanges.read(receipt())
    assert (found.node, found.operator, found.amount) == ("last", "o", 2 * 100 + 3 * 10)


def test_parts_of_an_answer_are_paid_to_the_nodes_that_gave_them() -> None:
    """The prompt once, to the last; each part's tokens at the price of its node."""
    found = exchanges.read(
        receipt(continued=(part("first", 4), part("second", 6, price=Price(input=1, output=1))))
    )
    assert [(each.node, each.operator, each.amount) for each in found] == [
        ("last", "o", 230),
        ("first", "p", 28),
        ("second", "p", 6),
    ]


@given(st.lists(st.integers(0, 1000), max_size=5), st.integers(0, 1000))
def test_the_parts_add_up_to_what_was_charged(parts: list[int], own: int) -> None:
    metered = Metered(completion=own, exact=True, operator="o", prompt=100)
    continued = tuple(part(f"n{n}", tokens) for n, tokens in enumerate(parts)) or None
    found = exchanges.read(receipt(metered=metered, continued=continued))
    assert sum(each.counted.completion for each in found) == own + sum(parts)
    assert sum(each.counted.prompt for each in found) == 100


def test_two_parts_of_one_operator_are_two_lines() -> None:
    accounts = Accounts(DAY)
    for each in exchanges.read(receipt(continued=(part("first", 4, operator="o"),))):
        accounts.add(each)
    lines = accounts.lines("o", 2)
    assert [(line.node, line.exchanges, line.amount) for line in lines] == [
        ("first", 1, "28"),
        ("last", 1, "230"),
    ]
    assert accounts.receipts("o") == [("0" * 32, 1), ("0" * 32, 2)]


def test_who_left_before_text_came_pays_the_node_that_was_asked() -> None:
    (found,) = exchanges.read(receipt(node=None, tried=Node(id="tried"), outcome="abandoned"))
    assert (found.node, found.amount) == ("tried", 230)


def test_what_was_not_charged_is_not_paid() -> None:
    assert exchanges.read(receipt(metered=None)) == ()


def test_what_was_passed_is_not_paid_and_may_be_claimed() -> None:
    passed = (Passed(claimed=Claimed(completion=3, prompt=5), node="other"),)
    (found,) = exchanges.read(receipt(metered=None, passed=passed))
    assert (found.node, found.amount) == ("", 0)
    assert [(each.node, each.claimed) for each in found.passed] == [("other", Usage(5, 3))]


def test_without_a_price_work_is_free() -> None:
    (found,) = exchanges.read(receipt(price=None))
    assert found.amount == 0


def test_who_asks_its_own_nodes_earns_nothing() -> None:
    """Attack 9: work that an operator orders from itself is listed, at no price."""
    metered = Metered(completion=10, exact=False, operator="o", own=True, prompt=100)
    found = exchanges.read(receipt(metered=metered, continued=(part("first", 4, own=True), part("other", 6))))
    assert [each.amount for each in found] == [0, 0, 42]
