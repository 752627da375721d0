"""Amounts, periods and statements: exact, in one form, and checked again from receipts."""

from __future__ import annotations

import csv
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from router.model.errors import SettlementError
from router.model.usage import Usage
from router.model.workload import Price
from router.settlement import pages, statements
from router.settlement.accounts import Accounts
from router.settlement.amounts import exact, read_amount, rounded, share
from router.settlement.dispatched import Reports, asks_for_review
from router.settlement.exchanges import Exchange
from router.settlement.periods import DAY_MS, last_whole, read_period
from router.settlement.statements import Adjustment, Statement
from tests.unit.router.test_receipts import KEY
from verifier.log.tree import leaf_hash
from verifier.router_receipts import ReceiptKey, generate_key

MONTH = read_period("2026-11")
KEYS = {ReceiptKey(KEY.public).kid: ReceiptKey(KEY.public)}


def exchange(number: int, **how: Any) -> Exchange:
    given = {
        "id": f"{number:032x}", "at_ms": MONTH.from_ms + number, "client": "c", "node": "n", "operator": "o",
        "model": "m", "workload": "w", "tier": "t", "price": Price(1, 3), "counted": Usage(10, 5),
        "leaf": leaf_hash(b"%d" % number),
    }  # fmt: skip
    return Exchange(**{**given, **how})


def statement(exchanges: list[Exchange], **how: Any) -> Statement:
    accounts = Accounts(MONTH)
    for each in exchanges:
        accounts.add(each)
    given = {"made_ms": 1, "router": "r", "unit": "EUR", "decimals": 2, **how}
    return statements.make(accounts, "o", [], **given)


@given(st.integers(-(10**29), 10**29), st.integers(0, 12))
def test_amounts_are_rounded_half_to_even(amount: int, decimals: int) -> None:
    with localcontext(prec=60):
        value = Decimal(amount).scaleb(-12)
        expected = value.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_EVEN)
    assert Decimal(rounded(amount, decimals)) == expected
    assert Decimal(exact(amount)) == value
    assert read_amount(exact(amount)) == amount


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (5_000_000_000, "0.00"), (15_000_000_000, "0.02"), (25_000_000_000, "0.02"), (25_000_000_001, "0.03"),
        (-5_000_000_000, "0.00"), (-15_000_000_000, "-0.02"), (995_000_000_000, "1.00"),
    ],
)  # fmt: skip
def test_halves_go_to_the_even_neighbour(amount: int, shown: str) -> None:
    assert rounded(amount, 2) == shown


@pytest.mark.parametrize("text", ["", "1,5", "1.", ".5", "1e3", "--1", "+1", "1.0000000000001", "٣"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(SettlementError):
        read_amount(text)


@pytest.mark.parametrize(
    ("name", "days", "first", "last"),
    [
        ("2026-11-30", 1, "2026-11-30", "2026-11-30"),
        ("2026-W53", 7, "2026-12-28", "2027-01-03"),
        ("2028-02", 29, "2028-02-01", "2028-02-29"),
        ("2026-12", 31, "2026-12-01", "2026-12-31"),
        ("2026-Q4", 92, "2026-10-01", "2026-12-31"),
    ],
)
def test_periods_are_whole_days_of_utc(name: str, days: int, first: str, last: str) -> None:
    found = read_period(name)
    assert (len(found.days), found.days[0], found.days[-1]) == (days, first, last)
    assert found.to_ms - found.from_ms == days * DAY_MS


@pytest.mark.parametrize(
    "name",
    [
        "",
        "2026",
        "2026-13",
        "2026-00",
        "2026-02-30",
        "2025-W53",
        "2026-Q5",
        "2026-11-30T",
        "1969-12",
        "٢٠٢٦-11",
        "9999-12",
    ],
)
def test_what_is_no_period_is_refused(name: str) -> None:
    with pytest.raises(SettlementError):
        read_period(name)


@given(st.integers(400 * DAY_MS, 40_000 * DAY_MS), st.sampled_from(["day", "week", "month", "quarter"]))
def test_the_last_whole_period_is_over_and_the_next_is_not(now_ms: int, kind: Any) -> None:
    found = last_whole(kind, now_ms)
    assert found.to_ms <= now_ms
    assert last_whole(kind, found.to_ms - 1).to_ms == found.from_ms
    assert last_whole(kind, found.to_ms) == found


def test_a_line_for_each_price_and_each_receipt_once() -> None:
    made = statement([exchange(1), exchange(2), exchange(2), exchange(3, price=Price(2, 3))])
    assert [(line.exchanges, line.amount) for line in made.lines] == [(2, "50"), (1, "35")]
    assert made.total == "85"


def test_an_order_of_receipts_makes_no_difference() -> None:
    exchanges = [exchange(n, node=f"n{n % 3}") for n in range(20)]
    assert statements.encode(statement(exchanges)) == statements.encode(statement(exchanges[::-1]))


def test_amounts_beyond_what_json_has_exactly_stay_exact() -> None:
    most = (1 << 53) - 1
    made = statement(
        [exchange(n, price=Price(most, most), counted=Usage(1 << 40, 1 << 40)) for n in range(3)]
    )
    assert int(made.total) == 6 * most * (1 << 40)
    assert statements.decode(statements.encode(made)) == made


def test_a_statement_is_signed_and_comes_back() -> None:
    made = statement([exchange(1)])
    data = statements.encode(made)
    token = statements.sign(data, KEY)
    assert statements.open_signed(token, KEYS) == (data, made)
    for wrong in (
        statements.sign(data, generate_key()),
        token[:-4] + "AAAA",
        token.replace(".", "", 1),
        "",
        "a.b.c",
    ):
        with pytest.raises(SettlementError):
            statements.open_signed(wrong, KEYS)


NUMBERS = ("exchanges", "completed", "prompt", "completion", "price_input", "price_output")


@pytest.mark.parametrize(
    "name", [*NUMBERS, "amount", "amount_exact", "amount_rounded", "receipts_root", "node"]
)
def test_each_number_of_a_line_is_checked_from_receipts(name: str) -> None:
    exchanges = [exchange(n) for n in range(5)]
    made = statement(exchanges)
    statements.check(made, exchanges)
    old = getattr(made.lines[0], name)
    wrong = old + 1 if isinstance(old, int) else {"amount": "1", "node": "x"}.get(name, "0" * 64)
    line = structs.replace(made.lines[0], **{name: wrong})
    with pytest.raises(SettlementError, match=name):
        statements.check(structs.replace(made, lines=(line,)), exchanges)


@pytest.mark.parametrize("name", ["amount", "deductions", "total", "total_exact", "total_rounded"])
def test_each_sum_is_checked_from_lines(name: str) -> None:
    exchanges = [exchange(n) for n in range(5)]
    with pytest.raises(SettlementError, match=name):
        statements.check(structs.replace(statement(exchanges), **{name: "7"}), exchanges)


def test_an_adjustment_is_of_a_line_that_is_there() -> None:
    wrong = Adjustment(line=2, amount="-1", actor="a", reason="r")
    with pytest.raises(SettlementError):
        statement([exchange(1)], adjustments=[wrong])


def test_whatever_a_node_is_called_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    made = statement([exchange(1, node=evil, model="=cmd|' /C calc'!A0")])
    assert evil not in pages.to_html("id", made)
    assert "&lt;script&gt;" in pages.to_html("id", made)
    assert ",'=cmd" in pages.to_csv("id", made)


def test_what_work_came_to_is_computed_from_the_line() -> None:
    """For an exchange, a completed answer, and a million tokens: half to even at 12 decimals."""
    made = statement([exchange(n, is_completed=n % 2 == 0, price=Price(7, 9)) for n in range(3)])
    (row,) = csv.DictReader(pages.to_csv("id", made).splitlines())
    amount = 3 * (7 * 10 + 9 * 5)
    assert row["amount"] == str(amount)
    assert row["per_exchange"] == exact(amount // 3)
    assert row["per_completed"] == exact(round(Fraction(amount, 2)))
    assert row["per_million_tokens"] == exact(round(Fraction(amount * 1_000_000, 45)))
    assert (share(5, 2), share(7, 2), share(-5, 2), share(1, 0)) == (exact(2), exact(4), exact(-2), "")
    assert all(cell in pages.to_html("id", made) for cell in (row["per_exchange"], row["per_completed"]))


def test_the_forms_say_the_same() -> None:
    made = statement([exchange(n, node=f"n{n % 3}") for n in range(9)])
    document = msgspec.json.decode(msgspec.json.encode(pages.to_json("id", made, "t", [])))
    assert [each["amount"] for each in document["statement"]["lines"]] == [line.amount for line in made.lines]
    assert all(line.amount_exact in pages.to_text("id", made) for line in made.lines)


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([("a", 0, 1000)], False),
        ([("a", 0, 1000), ("b", 0, 1000)], False),
        ([("a", 0, 10), ("b", 0, 10), ("c", 0, 10)], True),
        ([("a", 0, 10), ("b", 0, 10), ("c", 30, 10)], False),
        ([("a", 0, 2), ("b", 0, 2), ("c", 0, 2)], False),
    ],
)
def test_two_parties_together_bring_nobody_to_look(
    reports: list[tuple[str, int, int]],
    expected: bool,  # noqa: FBT001
) -> None:
    assert asks_for_review([Reports(*each) for each in reports]) is expected
