"""A simulated quarter of 1,000 nodes: exact statements, no honest node with an incident, and every inflation with one."""

from __future__ import annotations

from functools import cache

import pytest

from router.settlement import statements
from router.settlement.accounts import Accounts
from router.settlement.amounts import exact, rounded
from router.settlement.reconciling import Judgement, Metering, Verdict, reconcile
from router.settlement.statements import Statement
from tests.unit.router.settlement.quarter import QUARTER, SimulatedNode, claims_of, simulate

NODES = 1000
INCIDENTS = (Verdict.MINOR, Verdict.SERIOUS, Verdict.UNCONFIRMED, Verdict.ROUTER_SUSPECT)


@cache
def settled() -> tuple[list[SimulatedNode], Accounts, dict[str, Judgement]]:
    fleet, exchanges = simulate(NODES)
    accounts, metering = Accounts(QUARTER), Metering(QUARTER)
    for each in exchanges:
        accounts.add(each)
        metering.add(each)
    return fleet, accounts, {each.node: each for each in reconcile(metering, claims_of(fleet))}


@cache
def statement_of(operator: str) -> Statement:
    _, accounts, judged = settled()
    return statements.make(
        accounts, operator, list(judged.values()), made_ms=1, router="r", unit="EUR", decimals=2
    )


def test_every_node_is_paid_exactly_what_was_metered() -> None:
    fleet, _, _ = settled()
    for node in fleet:
        lines = [line for line in statement_of(node.operator).lines if line.node == node.id]
        assert [int(line.amount) for line in lines] == [node.expected]
        assert lines[0].exchanges == node.exchanges
        assert lines[0].amount_exact == exact(node.expected)


def test_the_statements_add_up_to_all_that_was_metered() -> None:
    fleet, accounts, _ = settled()
    totals = [int(statement_of(operator).total) for operator in accounts.operators]
    assert sum(totals) == sum(node.expected for node in fleet)
    for operator in accounts.operators:
        made = statement_of(operator)
        assert made.total_rounded == rounded(sum(int(line.amount) for line in made.lines), 2)


def test_no_honest_node_has_an_incident() -> None:
    fleet, _, judged = settled()
    honest = [node for node in fleet if node.operator.startswith("operator")]
    assert len(honest) == 900
    assert {node.kind for node in honest} == {"honest", "rounding", "skewed", "lost", "silent", "within"}
    assert [judged[node.id] for node in honest if judged[node.id].verdict in INCIDENTS] == []


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("minor", Verdict.MINOR),
        ("serious", Verdict.SERIOUS),
        ("double", Verdict.SERIOUS),
        ("told", Verdict.SERIOUS),
    ],
)
def test_every_inflation_above_the_threshold_has_an_incident(kind: str, verdict: Verdict) -> None:
    fleet, _, judged = settled()
    found = {judged[node.id].verdict for node in fleet if node.kind == kind}
    assert found == {verdict}
