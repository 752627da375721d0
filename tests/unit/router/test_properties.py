"""What holds of every decision, whatever the fleet."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.choose import ranking
from router.choose.candidates import FAIL_OPEN_LANES, LANES, Lane
from router.choose.decision import Decision, decide, replay
from router.choose.gates import FAIL_OPEN_CODES
from router.choose.ranking import WIDTH
from router.model.errors import ReplayError
from router.model.outcomes import Execution, Outcome
from router.model.standing import Standing
from tests.unit.router.drawn import (
    BEFORE_S,
    FAULTS,
    SILENCES,
    Drawn,
    DrawnFleet,
    drawn,
    fleets,
    seeds,
    standings,
    workloads,
)
from tests.unit.router.support import NOW, PIN, PLATFORM, WEIGHTS, WORKLOAD, nodes_of, view

often = settings(max_examples=60, deadline=None)


def outcome(decision: Decision) -> tuple[Any, ...]:
    """What a decision comes to for those who may, without the version of the snapshot."""
    return decision.ranked, decision.opened, decision.over, decision.gap


def wire(decision: Decision) -> dict[str, Any]:
    """As it comes back from where records are kept."""
    read: dict[str, Any] = json.loads(json.dumps(decision.to_wire()))
    return read


# Who is added.


@often
@given(st.data(), fleets(), seeds, st.sampled_from(FAULTS), st.sampled_from(["A", "cc-", "z"]))
def test_adding_an_ineligible_node_changes_nothing(data, fleet, seed, fault, name) -> None:
    """Neither the order nor a single score of the others, whatever its history and wherever its name sorts."""
    operator = data.draw(st.sampled_from(["acme", "a", "zz"]))
    node = data.draw(drawn(name, fleet.workload, view=view(name, operator=operator, **fault), in_flight=0))
    assert outcome(fleet.beside(node).decide(seed)) == outcome(fleet.decide(seed))


@often
@given(fleets(), seeds, st.sampled_from(["A", "cc-", "z"]))
def test_adding_a_full_node_changes_nothing(fleet, seed, name) -> None:
    """Nor does one that may be trusted and has no room, but for the share of the work that it has."""
    fleet = fleet.asking(max_operator_share=100)
    node = Drawn(view(name), in_flight=fleet.workload.concurrency)
    assert outcome(fleet.beside(node).decide(seed)) == outcome(fleet.decide(seed))


@often
@given(fleets(), seeds, st.integers(2, 30))
def test_a_crowd_of_ineligible_nodes_changes_nothing(fleet, seed, count) -> None:
    """However many."""
    crowded = fleet
    for index in range(count):
        crowded = crowded.beside(Drawn(view(f"b-{index}", **FAULTS[index % len(FAULTS)])))
    assert outcome(crowded.decide(seed)) == outcome(fleet.decide(seed))


@often
@given(fleets(), seeds, st.sampled_from(["silent", "open"]), st.sampled_from(["A", "cc-", "z"]))
def test_adding_a_node_that_seems_dead_changes_nothing(fleet, seed, why, name) -> None:
    """Where anybody else may do the work, one that does not answer is not even drawn."""
    before = fleet.decide(seed)
    dead = Drawn(view(name), heart="silent") if why == "silent" else Drawn(view(name), breaker="open")
    after = fleet.beside(dead).decide(seed)
    alive = sum(count for lane, count in before.lanes.items() if lane != Lane.BROKEN)
    assert not alive or outcome(after) == outcome(before)


# Evidence.


def place(fleet: DrawnFleet, name: str) -> tuple[int, float]:
    """The lane in which a node stands, and its score there; less is better."""
    made = fleet.fleet()
    pool = made.view_for(fleet.workload).pool
    made.sweep(10 * len(made))
    lane = made.lane(name, fleet.workload)
    if lane is None:
        return len(LANES), 0.0
    key = (made.view(name).operator, name)
    return LANES.index(lane), ranking.score(key, lane, pool.facts(name), fleet.workload).score


@settings(max_examples=150, deadline=None)
@given(
    workloads(),
    st.lists(st.tuples(st.floats(0, 3600), st.floats(0.001, 300)), min_size=1, max_size=60),
    st.floats(0, 30 * 86400),
    st.integers(0, 10),
    st.sampled_from(["none", *SILENCES]),
    st.booleans(),
)
# Of two answers of 30 s, a mean that was rounded up was 30.000000000000004 s, and they are almost forgotten.
@example(WORKLOAD, [(0.0, 30.0), (51.5, 30.0)], 30 * 86400.0, 2, "none", False)
def test_no_evidence_never_helps(workload, answers, idle, in_flight, heart, elsewhere) -> None:
    """A node that has only ever completed stands no lower than its twin of which nothing was seen."""
    now = NOW - BEFORE_S - idle - sum(waited for waited, _ in answers)
    standing = Standing(at=now)
    for waited, seconds in answers:
        now += waited
        standing = standing.add(Execution(Outcome.COMPLETED, seconds), now)
    told = {"heard": standing} if elsewhere else {"standing": standing}
    fleet = DrawnFleet(
        msgspec.structs.replace(workload, price_ceiling=None),
        {
            "seen": Drawn(view("seen"), in_flight=in_flight, heart=heart, **told),
            "twin": Drawn(view("twin"), in_flight=in_flight, heart=heart),
        },
    )
    seen, twin = place(fleet, "seen"), place(fleet, "twin")
    assert seen <= twin
    assert seen[1] <= twin[1]


@often
@given(seeds, st.integers(1, 40), st.integers(0, 1000))
def test_newcomers_never_crowd_out_those_who_do_the_work(seed, newcomers, per_mille) -> None:
    """At most one of them stands before an established node, however many they are and how often they are tried."""
    nodes = {"proven": Drawn(view("proven"), Standing((100.0, 100.0), at=NOW, latency_s=1.0))}
    nodes |= {f"new-{index}": Drawn(view(f"new-{index}")) for index in range(newcomers)}
    workload = msgspec.structs.replace(WORKLOAD, probation_per_mille=per_mille, degraded_per_mille=0)
    ranked = nodes_of(DrawnFleet(workload, nodes).decide(seed).ranked)
    assert ranked.index("proven") <= 1


# What nodes say.

plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
declared = st.fixed_dictionaries(
    {},
    optional={
        "hardware_class": plain,
        "memory_bytes": plain,
        "context_length": plain,
        "quantisation": plain,
        "region": plain,
        "features": st.lists(st.text(max_size=8), max_size=5),
        "score": plain,
        "tier": plain,
        "operator": plain,
        "enrolled": plain,
        "latency_s": plain,
        "completed": plain,
        "price": plain,
        "prices": plain,
        "tokens_per_second": plain,
    },
)


def saying(fleet: DrawnFleet, **said: Any) -> DrawnFleet:
    """With every honest node of it saying so."""
    told = {}
    for name, node in fleet.nodes.items():
        operator = node.view.operator or None
        honest = node.view == view(name, operator=operator)
        told[name] = replace(node, view=view(name, operator=operator, **said)) if honest else node
    return replace(fleet, nodes=told)


@often
@given(
    fleets(least=1),
    seeds,
    declared,
    st.dictionaries(st.text(max_size=8).filter(lambda key: key != "endpoint"), plain, max_size=4),
)
def test_nothing_a_node_says_of_itself_raises_its_rank(fleet, seed, capabilities, claims) -> None:
    """Where the workload asks for nothing of it, every decision is the same to the last digit."""
    claims = {**claims, "capabilities": capabilities}
    spoken = saying(fleet, capabilities=capabilities, claims=claims)
    assert outcome(spoken.decide(seed)) == outcome(fleet.decide(seed))


@often
@given(
    fleets(least=1),
    seeds,
    st.text("abc.-", min_size=1, max_size=20),
    st.text("0123456789abcdef", min_size=64, max_size=64),
)
def test_where_a_node_serves_does_not_move_its_rank(fleet, seed, host, pin) -> None:
    """Neither its address nor its key has a say."""
    moved = saying(fleet, endpoint={"url": f"https://{host}", "spki_sha256": pin})
    assert outcome(moved.decide(seed)) == outcome(fleet.decide(seed))


# Integrity.

INTEGRITY: list[dict[str, Any]] = [
    {"weights": {**WEIGHTS, "executables": 96}},
    {"incidents": frozenset({"i"})},
    {"revoked": True},
]
BEST = Standing((1e6, 1e6), exchanges=1e6, at=NOW - BEFORE_S, latency_s=0.001)


@often
@given(fleets(), seeds, st.sampled_from(INTEGRITY))
def test_an_integrity_failure_beats_any_history(fleet, seed, failure) -> None:
    """The best of histories does not let such a node in, not even as the last one there is."""
    best = Drawn(view("A", **failure), BEST, BEST, heart="well")
    crowded = fleet.beside(best)
    assert crowded.fleet().excluded(fleet.workload)["A"].code not in FAIL_OPEN_CODES
    assert "A" not in nodes_of(crowded.decide(seed).ranked)


@often
@given(seeds, st.data(), st.sampled_from(INTEGRITY), workloads())
def test_an_integrity_failure_is_never_the_last_resort(seed, data, failure, workload) -> None:
    """Alone in the pool, it is an empty pool."""
    node = data.draw(drawn("n", workload, view=view("n", **failure)))
    assert DrawnFleet(workload, {"n": node}).decide(seed).ranked == ()


@often
@given(
    seeds,
    st.sampled_from(["instance-identity", "configuration", "file-system", "executables"]),
    st.sampled_from([0, 1, -1, None]),
    standings,
)
def test_none_never_satisfies(seed, claim, value, standing) -> None:
    """No conclusion about a required claim, or no word of it, keeps a node out whatever else is good."""
    own = PLATFORM if claim in PLATFORM else WEIGHTS
    vector = {name: v for name, v in own.items() if name != claim} | ({} if value is None else {claim: value})
    node = view(**{"platform" if claim in PLATFORM else "weights": vector})
    decision = DrawnFleet(WORKLOAD, {"n": Drawn(node, standing)}).decide(seed)
    assert (decision.ranked, decision.closed) == ((), {"result.not-affirming": 1})


@often
@given(fleets(), seeds)
def test_a_silent_verifier_empties_every_pool(fleet, seed) -> None:
    """Nobody is let in on old news."""
    assert replace(fleet, silent_s=60.5).decide(seed).ranked == ()


# Order and replay.


@often
@given(fleets(), seeds, st.randoms(use_true_random=False))
def test_the_order_in_which_news_arrives_is_irrelevant(fleet, seed, random) -> None:
    """Given the seed, the same news of one moment in another order is the same decision."""
    shuffled, plainly = fleet.decide(seed, random).to_wire(), fleet.decide(seed).to_wire()
    # It counts the moves on the way there.
    del shuffled["snapshot"], plainly["snapshot"]
    assert shuffled == plainly


@often
@given(fleets(), seeds)
def test_a_decision_changes_nothing_it_looks_at(fleet, seed) -> None:
    """The same fleet, workload and seed: the same decision, and the fleet stands as it stood."""
    made = fleet.fleet()
    first = decide(made.view_for(fleet.workload), fleet.workload, seed)
    before = (made.census(), made.closed("tiny"), made.version)
    assert decide(made.view_for(fleet.workload), fleet.workload, seed) == first
    assert (made.census(), made.closed("tiny"), made.version) == before


@often
@given(fleets(), seeds)
def test_a_decision_comes_back_from_its_record(fleet, seed) -> None:
    """Through JSON, in which keys are text."""
    decision = fleet.decide(seed)
    assert Decision.from_wire(wire(decision)) == decision


@often
@given(fleets(), seeds)
def test_a_decision_replays_from_its_record_alone(fleet, seed) -> None:
    """The same decision, in an audit next year too."""
    decision = Decision.from_wire(wire(fleet.decide(seed)))
    assert replay(decision) == decision


@often
@given(fleets(), seeds)
def test_a_record_of_the_first_rule_replays_without_its_prices(fleet, seed) -> None:
    """As records had it before decisions said the prices that they went by."""
    workload = msgspec.structs.replace(fleet.workload, prices_by_hardware={})
    record = wire(decide(fleet.fleet().view_for(fleet.workload), workload, seed, rule=1))
    del record["rule"], record["stages"], record["workload"]["prices_by_hardware"]
    for ranked in record["ranked"]:
        del ranked["price"]
    for facts in record["facts"].values():
        del facts["hardware_class"]
    assert replay(Decision.from_wire(record)).rule == 1


@pytest.mark.parametrize("rule", [0, -1, 3, 1 << 60])
def test_a_record_of_an_unknown_rule_is_refused(rule: int) -> None:
    """It is not said to be wrong: this version cannot tell."""
    record = decide(DrawnFleet(WORKLOAD, {}).fleet().view_for(WORKLOAD), WORKLOAD, 1).to_wire()
    with pytest.raises(ReplayError, match="was made by rule"):
        replay(Decision.from_wire(record | {"rule": rule}))


def test_a_record_holds_little_of_the_fleet() -> None:
    """However many nodes there are, it is about those that were drawn."""
    nodes = {f"n-{i}": Drawn(view(f"n-{i}", operator=f"o-{i % 20}"), BEST) for i in range(500)}
    made = DrawnFleet(WORKLOAD, nodes).fleet()
    records = [decide(made.view_for(WORKLOAD), WORKLOAD, seed) for seed in range(200)]
    assert max(len(record.facts) for record in records) <= WIDTH + 2


@often
@given(fleets(least=1), seeds, st.data())
def test_a_record_with_other_ranks_does_not_replay(fleet, seed, data) -> None:
    """Whoever moves, drops or retouches a ranked node is found out."""
    record = wire(fleet.decide(seed))
    ranked = record["ranked"]
    if not ranked:
        return
    where = data.draw(st.integers(0, len(ranked) - 1))
    forged = dict(ranked[where])
    what = data.draw(st.sampled_from(sorted(forged)))
    if what in ("node", "operator", "why", "closed"):
        forged[what] += "x"
    elif what == "lane":
        forged[what] = next(lane for lane in LANES if lane != forged[what])
    elif what == "below_energy":
        forged[what] = not forged[what]
    elif what == "price":
        forged[what] = {"input": 7, "output": 20_000_000}
    else:
        forged[what] += 1
    how = data.draw(st.sampled_from(["retouched", "dropped", "twice", "last"]))
    changed = {
        "retouched": [*ranked[:where], forged, *ranked[where + 1 :]],
        "dropped": [*ranked[:where], *ranked[where + 1 :]],
        "twice": [*ranked, ranked[where]],
        "last": [*ranked[:where], *ranked[where + 1 :], ranked[where]],
    }[how]
    if changed == ranked:
        return
    record["ranked"] = changed
    with pytest.raises(ReplayError):
        replay(Decision.from_wire(refreshed(record)))


def refreshed(record: dict[str, Any]) -> dict[str, Any]:
    """With what follows from its ranks put right, as whoever forges it would."""
    ranked = record["ranked"]
    record["chosen"] = ranked[0]["node"] if ranked else None
    record["runner_up_gap_s"] = ranked[1]["score"] - ranked[0]["score"] if len(ranked) > 1 else None
    return record


@often
@given(
    fleets(least=1),
    seeds,
    st.sampled_from(["chosen", "runner_up_gap_s"]),
    st.sampled_from([None, "x", 0.125]),
)
def test_what_a_record_says_beside_its_ranks_has_to_follow_from_them(fleet, seed, name, value) -> None:
    """Whom it says to have chosen is what people read."""
    record = wire(fleet.decide(seed))
    if record[name] == value:
        return
    with pytest.raises(ReplayError):
        Decision.from_wire({**record, name: value})


@often
@given(fleets(least=1), seeds, st.data())
def test_a_record_with_other_facts_of_a_ranked_node_does_not_replay(fleet, seed, data) -> None:
    """Its load, its latency, its tier's reason: each shows in the rank."""
    record = wire(fleet.decide(seed))
    if not record["ranked"]:
        return
    facts = record["facts"][data.draw(st.sampled_from(record["ranked"]))["node"]]
    match data.draw(st.sampled_from(["in_flight", "closed", "latency_s", "completion", "evidence", "why"])):
        case "in_flight":
            facts["in_flight"] += 1
        case "closed":
            facts["closed"] += "x"
        case "why":
            facts["rating"]["why"] += "x"
        case name:
            facts["rating"][name] += 0.25
    with pytest.raises(ReplayError):
        replay(Decision.from_wire(record))


@often
@given(fleets(least=1), seeds, seeds)
def test_a_record_with_another_seed_replays_only_to_what_it_says(fleet, seed, other) -> None:
    """Another seed looks elsewhere, or comes to the same."""
    decision = fleet.decide(seed)
    try:
        again = replay(msgspec.structs.replace(decision, seed=other))
    except ReplayError:
        return
    assert outcome(again) == outcome(decision)


def test_another_seed_is_found_out_where_there_is_a_choice() -> None:
    """As a check on the test before this one: it does happen, nearly always."""
    nodes = {
        f"n-{i}": Drawn(view(f"n-{i}"), Standing((50.0, 50.0), at=NOW, latency_s=1.0)) for i in range(50)
    }
    decision = DrawnFleet(WORKLOAD, nodes).decide(0)
    found = 0
    for seed in range(1, 101):
        try:
            replay(msgspec.structs.replace(decision, seed=seed))
        except ReplayError:
            found += 1
    assert found >= 95


@often
@given(fleets(least=1), seeds, st.sampled_from([lane.value for lane in LANES]))
def test_a_record_with_other_lanes_does_not_replay(fleet, seed, lane) -> None:
    """How many stood where is what the ranks were drawn from."""
    record = wire(fleet.decide(seed))
    record["lanes"][lane] += 1
    with pytest.raises(ReplayError):
        replay(Decision.from_wire(record))


anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([2**53, 2**64, -(2**64), 2**2000, -1]),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["acme", "9" * 400, "established", "0/0", "-1"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def survives(record: Any) -> bool:
    """Whether it replays; whatever else than an answer or the refusal comes of it is a failure."""
    try:
        replay(Decision.from_wire(record))
    except ReplayError:
        return False
    return True


@often
@given(anything)
def test_what_is_no_record_is_refused(record) -> None:
    """In one way, whatever it is."""
    assert not survives(record)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """To every value inside of another."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, each in inner for deeper in paths(each, (*path, key)))]


@settings(max_examples=150, deadline=None)
@given(fleets(least=2, most=6), seeds, st.data(), st.lists(anything, min_size=1, max_size=3))
def test_a_record_that_was_tampered_with_replays_or_is_refused(fleet, seed, data, values) -> None:
    """Nothing else comes of it: not by numbers beyond all bounds, nor by what is missing or too much."""
    record = wire(fleet.decide(seed))
    for value in values:
        path = data.draw(st.sampled_from(paths(record)[1:]))
        at = record
        for key in path[:-1]:
            at = at[key]
        if data.draw(st.booleans()):
            at[path[-1]] = value
        else:
            del at[path[-1]]
    survives(refreshed_if_possible(record))


def refreshed_if_possible(record: Any) -> Any:
    try:
        return refreshed(record)
    except (KeyError, TypeError, AttributeError, OverflowError):
        return record


NUMBERS = {
    "below 64 bits": -(2**70),
    "negative": -1,
    "beyond signed": 2**63,
    "beyond unsigned": 2**64,
    "beyond floats": 2**2000,
    "a fraction": 1.5,
    "no number": float("nan"),
    "infinite": float("inf"),
}


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS.keys())
def test_a_number_beyond_its_bounds_is_refused_wherever_it_stands(number: float) -> None:
    """Each of a record's numbers, in turn: by its kind, by what follows from it, or it changes nothing."""
    nodes = {
        "a": Drawn(view("a", operator="acme"), Standing((50.0, 50.0), at=NOW, latency_s=1.0)),
        "b": Drawn(view("b", operator="beta"), heart="well", in_flight=12),
    }
    workload = msgspec.structs.replace(WORKLOAD, max_operator_share=50)
    record = wire(DrawnFleet(workload, nodes).decide(1))
    tried = 0
    for path in paths(record)[1:]:
        copy = json.loads(json.dumps(record))
        at = copy
        for key in path[:-1]:
            at = at[key]
        if type(at[path[-1]]) in (int, float):
            at[path[-1]] = number
            survives(copy)
            tried += 1
    assert tried > 40


# Everybody is somewhere.


@often
@given(fleets(), seeds)
def test_every_node_is_in_one_lane_or_excluded(fleet, seed) -> None:
    """Never both, never neither; who stands where capacity gives way is told of in both."""
    made = fleet.fleet()
    census = made.view_for(fleet.workload).pool.lanes
    where = {name: made.lane(name, fleet.workload) for name in fleet.nodes}
    excluded = made.excluded(fleet.workload)
    assert Counter(where.values()) - Counter({None: len(where)}) == +Counter(
        {lane: len(places) for lane, places in census.items()}
    )
    for name, lane in where.items():
        code = excluded[name].code if name in excluded else ""
        assert (lane is None) == (bool(code) and code not in FAIL_OPEN_CODES)
        assert (lane in FAIL_OPEN_LANES) == (code in FAIL_OPEN_CODES)


@often
@given(fleets(), seeds)
def test_the_counts_are_of_all_the_excluded(fleet, seed) -> None:
    """Each of them is counted once."""
    made = fleet.fleet()
    made.advance()
    codes = Counter(verdict.code for verdict in made.excluded(fleet.workload).values())
    assert fleet.decide(seed).closed == codes


@often
@given(fleets(), seeds)
def test_every_node_is_counted_where_the_verifier_is_silent(fleet, seed) -> None:
    """Once, whether it has room or not."""
    decision = replace(fleet, silent_s=60.5).decide(seed)
    assert sum(decision.closed.values()) == len(fleet.nodes)


@often
@given(fleets(), seeds)
def test_as_many_are_ranked_as_may_be(fleet, seed) -> None:
    """Four, or all there are, and nobody twice; from where capacity gives way only where nobody else is."""
    decision = fleet.decide(seed)
    may = sum(count for lane, count in decision.lanes.items() if lane not in FAIL_OPEN_LANES)
    # The first of those that give way has to do, so that a breaker is not opened where warm-up would do.
    expected = may or decision.lanes["warming"] or decision.lanes["broken"]
    assert len(set(nodes_of(decision.ranked))) == len(decision.ranked) == min(expected, WIDTH)


@often
@given(fleets(least=2), seeds)
def test_lanes_are_turned_to_in_their_order(fleet, seed) -> None:
    """But for one node that is tried before them."""
    lanes = [LANES.index(entry.lane) for entry in fleet.decide(seed).ranked]
    assert lanes == sorted(lanes) or lanes[1:] == sorted(lanes[1:])


@often
@given(fleets(least=2), seeds)
def test_who_has_its_share_comes_after_all_of_its_lane_who_have_not(fleet, seed) -> None:
    """The share gives way only where nobody else is left, and the decision says so."""
    made = fleet.fleet()
    pool = made.view_for(fleet.workload).pool
    ranked = fleet.decide(seed).ranked
    for index, entry in enumerate(ranked):
        if not pool.has_full_share(entry.operator):
            continue
        places = pool.lanes[entry.lane]
        others = {places.at(i)[1] for i in range(len(places)) if not pool.has_full_share(places.at(i)[0])}
        assert others <= {before.node for before in ranked[:index]}


@often
@given(fleets(least=2), seeds)
def test_a_share_that_gave_way_is_said(fleet, seed) -> None:
    """Neither more often nor less often than it does."""
    pool = fleet.fleet().view_for(fleet.workload).pool
    decision = fleet.decide(seed)
    gave_way = any(pool.has_full_share(entry.operator) for entry in decision.ranked)
    assert ("capacity.operator-share" in decision.opened) == gave_way


def test_an_honest_node_is_ranked() -> None:
    """What the other tests rest on: so that exclusion shows something."""
    ranked = DrawnFleet(WORKLOAD, {"n": Drawn(view())}).decide(0).ranked
    assert (nodes_of(ranked), len(PIN)) == (["n"], 64)
