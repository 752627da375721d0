"""What a place is worth: every number that an operator sees is made again from the records, and from what it is shown."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest

from router.choose.candidates import Lane
from router.choose.decision import decide
from router.model.node import NodeView
from router.model.standing import Standing
from router.model.workload import Workload
from router.service.worth import describe
from router.state.fleet import Fleet
from tests.unit.router.support import MODEL, NOW, TICKS, Given, view

WORKLOAD = msgspec.convert(
    {
        "model": MODEL,
        "name": "tiny",
        "probation_per_mille": 40,
        "degraded_per_mille": 20,
        "concurrency": 4,
        "second_is_worth": 1000,
        "prices": {"*": {"input": 200_000, "output": 600_000}, "acme": {"output": 900_000}},
    },
    Workload,
)
FREE = msgspec.structs.replace(WORKLOAD, prices={}, second_is_worth=0)


def seen(good: float, bad: float = 0.0, latency_s: float | None = 1.0) -> Standing:
    return Standing(
        completed=(0.0, good), failed=(0.0, bad), exchanges=good + bad, at=NOW, latency_s=latency_s
    )


PROVEN = {
    f"{operator}-{number}": (operator, seen(100.0 + number, latency_s=1.0 + number / 4))
    for operator, count in (("acme", 5), ("beta", 3), ("gamma", 1))
    for number in range(count)
}
OTHERS = {
    "begun-1": ("acme", seen(10.0)),
    "begun-2": ("delta", seen(20.0)),
    "new-1": ("delta", None),
    "new-2": ("beta", None),
    "doubtful": ("beta", seen(80.0, 9.0)),
    "bad-1": ("gamma", seen(30.0, 30.0)),
    "bad-2": ("acme", seen(60.0, 60.0, 3.0)),
}
NODES: dict[str, tuple[str, Standing | None]] = {**PROVEN, **OTHERS}


def made(workload: Workload = WORKLOAD, **more: tuple[str, Standing | None]) -> Fleet:
    nodes = {**NODES, **more}
    views = {name: view(name, operator=operator) for name, (operator, _) in nodes.items()}
    standings = {name: standing for name, (_, standing) in nodes.items() if standing is not None}
    return Given(views, standings).fleet(workload)


def worth(fleet: Fleet, node: str, workload: Workload = WORKLOAD) -> dict[str, Any]:
    fleet.advance()
    found: dict[str, Any] = json.loads(msgspec.json.encode(describe(fleet, node, workload)))
    return found


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("workload", [WORKLOAD, FREE], ids=["priced", "free"])
def test_every_number_follows_from_the_inputs_that_are_shown(node: str, workload: Workload) -> None:
    """By the formula as docs/incentives.md has it, also for what each improvement would bring."""
    found = worth(made(workload), node, workload)
    given = found["inputs"]
    cost = sum(given["price"][side] * given["typical"][side] for side in ("input", "output")) / 1e6
    for shown in (found["now"], *found["improvements"]):
        for way in shown["ways"]:
            assert way["worse"] + way["alike"] + way["better"] == way["compared"] == way["among"] - 1
            if way["how"] != "beginning":
                pairs = way["among"] * (way["among"] - 1)
                assert way["part"] == pytest.approx(
                    (2 * way["worse"] + way["alike"]) / pairs if pairs else 1.0
                )
        assert shown["share"] == pytest.approx(sum(way["chance"] * way["part"] for way in shown["ways"]))
        requests = min(shown["share"] * given["tier_requests_a_day"], shown["most_a_day"])
        assert shown["requests_a_day"] == pytest.approx(requests)
        if shown.get("what") != "price":
            assert shown["income_a_day"] == pytest.approx(requests * cost)
        if "more" in shown:
            more = {name: shown[name] - found["now"][name] for name in shown["more"]}
            assert shown["more"] == pytest.approx(more)


def test_the_counts_follow_from_the_standings_of_all() -> None:
    """Who can see all standings counts the same: by the scores that they show."""
    fleet = made()
    standings = {node: worth(fleet, node) for node in NODES}
    for node, found in standings.items():
        for way in found["now"]["ways"]:
            if way["how"] in ("main", "recovery"):
                same = [s for s in standings.values() if s["now"]["lane"] == found["now"]["lane"]]
                scores = [s["inputs"]["score_s"] for s in same]
                own = found["inputs"]["score_s"]
                assert (way["better"], way["alike"] + 1, way["worse"]) == (
                    sum(s < own for s in scores),
                    sum(s == own for s in scores),
                    sum(s > own for s in scores),
                ), node


def test_the_requests_of_the_tier_follow_from_the_records() -> None:
    """Counts that are halved every week stay as they are if so many come in a day."""
    total = sum(sum((s.completed[1], s.failed[1])) for _, s in NODES.values() if s is not None)
    found = worth(made(), "acme-0")
    assert found["inputs"]["tier_requests_a_day"] == pytest.approx(total * math.log(2) / 7)


def test_the_shares_of_all_nodes_are_one() -> None:
    """Nothing is promised twice."""
    fleet = made()
    assert sum(worth(fleet, node)["now"]["share"] for node in NODES) == pytest.approx(1.0)


def test_the_share_is_what_decisions_draw() -> None:
    """Real decisions over the same fleet: within five deviations of so many draws, by fixed seeds."""
    fleet, count = made(), 4000
    pool = fleet.view_for(WORKLOAD)
    firsts = [decide(pool, WORKLOAD, seed).ranked[0].node for seed in range(count)]
    for node in NODES:
        share = worth(fleet, node)["now"]["share"]
        spread = 5 * (max(share, 1 / count) / count) ** 0.5
        assert firsts.count(node) / count == pytest.approx(share, abs=spread), node


def improvement(found: dict[str, Any], what: str) -> dict[str, Any]:
    (one,) = [each for each in found["improvements"] if each["what"] == what]
    return dict(one)


@pytest.mark.parametrize("node", ["begun-1", "doubtful", "bad-1"])
def test_to_be_established_is_what_it_says(node: str) -> None:
    """The share is that of a node which stands there in truth, with the completion from which it would."""
    found = worth(made(), node)
    promised = improvement(found, "established")
    assert promised["share"] > found["now"]["share"]
    assert promised["lane"] == Lane.ESTABLISHED
    operator, standing = NODES[node]
    assert standing is not None
    # 24.3513 requests without a failure have 0.9 exactly.
    really = worth(made(**{node: (operator, seen(24.3513, latency_s=standing.latency_s))}), node)
    assert really["now"]["lane"] == Lane.ESTABLISHED
    assert promised["share"] == pytest.approx(really["now"]["share"])


def test_whose_latency_was_never_measured_would_be_an_average_node() -> None:
    """Its work will be measured before it is established: it is not the slowest that there is."""
    promised = improvement(worth(made(), "new-1"), "established")
    assert promised["share"] == pytest.approx(0.94 / (len(PROVEN) + 1))


def test_a_lower_latency_is_what_it_says() -> None:
    """A fifth less, and the share of a node that has it."""
    promised = improvement(worth(made(), "beta-1"), "latency")
    really = worth(made(**{"beta-1": ("beta", seen(101.0, latency_s=promised["would_be"]))}), "beta-1")
    assert (promised["was"], promised["would_be"]) == (1.25, 1.0)
    assert promised["share"] == really["now"]["share"]
    assert promised["more"]["share"] > 0


def test_a_lower_price_is_shown_where_money_counts() -> None:
    """More work at a lower price: the income is of both."""
    fleet, dear = made(), "acme-0"
    found = worth(fleet, dear)
    promised = improvement(found, "price")
    cheaper = msgspec.structs.replace(WORKLOAD, prices={**WORKLOAD.prices, "acme": {"output": 810_000}})
    cheaper = msgspec.convert(msgspec.to_builtins(cheaper), Workload)
    assert promised["would_be"] == pytest.approx(cheaper.cost_of(cheaper.price_of("acme")))
    assert promised["share"] >= found["now"]["share"]
    assert promised["income_a_day"] == pytest.approx(promised["requests_a_day"] * promised["would_be"])


def test_where_money_does_not_count_a_lower_price_is_no_improvement() -> None:
    """It would move nothing but the income."""
    plain = msgspec.structs.replace(WORKLOAD, second_is_worth=0)
    assert "price" not in {each["what"] for each in worth(made(plain), "acme-0", plain)["improvements"]}


def test_more_at_a_time_is_worth_something_where_it_is_what_limits() -> None:
    """A node that could do less in a day than its share is."""
    slow = msgspec.structs.replace(FREE, concurrency=1)
    busy = {f"busy-{n}": ("z", seen(1e7, latency_s=30.0)) for n in range(2)}
    found = worth(made(slow, **busy), "busy-0", slow)
    assert found["now"]["requests_a_day"] == found["now"]["most_a_day"] == 86400 / 30
    promised = improvement(found, "concurrency")
    assert (promised["was"], promised["would_be"]) == (1.0, 2.0)
    assert promised["requests_a_day"] > found["now"]["requests_a_day"]


def test_a_node_that_a_gate_keeps_out_has_nothing_and_is_told_what_it_would_have() -> None:
    """Nothing else is worth anything before that."""
    fleet = made()
    fleet.put_node(NodeView("acme-0", result=fleet.view("acme-0").result, revoked=True))
    found = worth(fleet, "acme-0")
    assert (found["now"]["share"], found["now"]["ways"]) == (0.0, [])
    (opened,) = found["improvements"]
    assert opened["what"] == "open"
    assert opened["share"] == worth(made(), "acme-0")["now"]["share"]


@pytest.mark.parametrize("suspected", ["acme-1", "beta-0", "begun-1", "new-2", "bad-1"])
def test_no_suspicion_shows_in_any_number(suspected: str) -> None:
    """Neither in those of the node, nor in those of any other."""
    fleet = made()
    before = {node: worth(fleet, node) for node in NODES}
    fleet.set_suspected(suspected, MODEL, is_suspected=True)
    fleet.advance()
    assert fleet.lane(suspected, WORKLOAD) is Lane.DEGRADED
    assert {node: worth(fleet, node) for node in NODES} == before


def test_nobody_else_is_named() -> None:
    """Of others there are counts alone."""
    shown = json.dumps(worth(made(), "gamma-0"))
    assert not [name for name in (*NODES, "acme", "beta", "delta") if name in shown]


def test_a_large_lane_is_looked_at_in_part() -> None:
    """So many nodes that stand evenly spread in it; the share is of all."""
    many = {f"m-{n:04}": (f"o-{n % 7}", seen(100.0)) for n in range(2500)}
    found = worth(made(FREE, **many), "m-0007", FREE)
    (way,) = found["now"]["ways"]
    assert way["among"] == 2500 + len(PROVEN)
    assert 800 <= way["compared"] <= 1000
    assert found["now"]["share"] == pytest.approx(0.94 / way["among"], rel=0.05)


def test_the_clock_of_the_fleet_is_that_of_the_standings() -> None:
    """What the other tests rest on."""
    assert (NOW, TICKS) != (0, 0)
    assert made().lane("acme-0", WORKLOAD) is Lane.ESTABLISHED
