"""What holds of every decision, whatever the pool."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from router.decision import Decision, decide
from router.outcomes import Outcome
from router.ranking import TRIAL_SHARE, Tier, rate
from router.snapshot import NodeView, Snapshot
from router.standing import BREAKER_FAILURES, Standing
from tests.unit.router.support import NOW, PIN, PLATFORM, TICKS, WEIGHTS, WORKLOAD, snapshot, view

hundred = settings(max_examples=100, deadline=None)

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
seeds = st.integers(0, 2**64 - 1)
names = st.text("abcdefgh", min_size=1, max_size=4)


@st.composite
def standings(draw: st.DrawFn) -> Standing:
    """Anything that a router may have seen."""
    good, bad = draw(st.integers(0, 200)), draw(st.sampled_from([0, 0, 0, 1, 3, 30]))
    in_a_row = draw(st.sampled_from([0, 0, 0, 2, BREAKER_FAILURES, 7]))
    return Standing(
        completed=(good * draw(st.floats(0, 1)), float(good)),
        failed=(3.0 * bad * draw(st.floats(0, 1)), 3.0 * bad),
        at=TICKS - draw(st.floats(0, 900)),
        latency_s=draw(st.one_of(st.none(), st.floats(0.001, 60))),
        in_flight=draw(st.sampled_from([0, 0, 1, 5, WORKLOAD.concurrency])),
        failures_in_a_row=in_a_row,
        open_until=TICKS + draw(st.floats(-20, 20)),
    )


@st.composite
def nodes(draw: st.DrawFn, name: str) -> NodeView:
    """One that may be trusted, or one with a fault, or one of which nothing is known."""
    fault = draw(st.one_of(st.just({}), st.just({}), st.sampled_from(FAULTS), st.none()))
    return NodeView(name) if fault is None else view(name, **fault)


@st.composite
def pools(draw: st.DrawFn) -> Snapshot:
    """A snapshot of up to 25 nodes."""
    found = draw(st.lists(names, unique=True, max_size=25))
    return snapshot(
        *[draw(nodes(name)) for name in found],
        standings={name: draw(standings()) for name in found if draw(st.booleans())},
        feed_silent_s=draw(st.sampled_from([0.0, 0.0, 0.0, 59.0, 61.0])),
    )


def with_node(pool: Snapshot, node: NodeView, standing: Standing) -> Snapshot:
    return replace(
        pool,
        nodes={node.node: node, **pool.nodes},
        standings={**pool.standings, (node.node, WORKLOAD.model): standing},
    )


def outcome(decision: Decision) -> tuple[Any, ...]:
    """What a decision comes to for those who may, without the version of the snapshot."""
    return decision.ranked, decision.opened, decision.gap


@hundred
@given(pools(), seeds, st.sampled_from(FAULTS), standings(), st.sampled_from(["A", "cc-", "z"]))
def test_adding_an_ineligible_node_changes_nothing(pool, seed, fault, standing, name) -> None:
    """Neither the order nor a single score of the others, whatever its history and wherever its name sorts."""
    crowded = with_node(pool, view(name, **fault), standing)
    assert outcome(decide(crowded, WORKLOAD, seed)) == outcome(decide(pool, WORKLOAD, seed))


@hundred
@given(pools(), seeds, st.sampled_from(["A", "cc-", "z"]))
def test_adding_a_full_node_changes_nothing(pool, seed, name) -> None:
    """Nor does one that may be trusted and has no room."""
    crowded = with_node(pool, view(name), Standing(in_flight=WORKLOAD.concurrency))
    assert outcome(decide(crowded, WORKLOAD, seed)) == outcome(decide(pool, WORKLOAD, seed))


@hundred
@given(pools(), seeds, st.integers(2, 30))
def test_a_crowd_of_ineligible_nodes_changes_nothing(pool, seed, count) -> None:
    """However many."""
    crowded = pool
    for index in range(count):
        crowded = with_node(crowded, view(f"b-{index}", **FAULTS[index % len(FAULTS)]), Standing())
    assert outcome(decide(crowded, WORKLOAD, seed)) == outcome(decide(pool, WORKLOAD, seed))


TIERS = list(Tier)


@hundred
@given(
    st.lists(st.tuples(st.floats(0, 3600), st.floats(0.001, 30)), min_size=1, max_size=60),
    st.floats(0, 30 * 86400),
    st.integers(0, 10),
)
def test_no_evidence_never_helps(answers, idle, in_flight) -> None:
    """A node that has only ever completed stands no lower than its twin of which nothing was seen."""
    now, standing = TICKS, Standing(at=TICKS)
    for waited, seconds in answers:
        now += waited
        standing = standing.started().ended(Outcome.COMPLETED, seconds, now)
    pool = snapshot(
        view("seen"),
        view("twin"),
        standings={"seen": replace(standing, in_flight=in_flight), "twin": Standing(in_flight=in_flight)},
        monotonic=now + idle,
    )
    seen, twin = (rate(pool.nodes[name], WORKLOAD, pool) for name in ("seen", "twin"))
    assert (TIERS.index(seen.tier), seen.score) <= (TIERS.index(twin.tier), twin.score)
    assert seen.score <= twin.score


@hundred
@given(seeds, st.integers(1, 40))
def test_newcomers_never_crowd_out_those_who_do_the_work(seed, newcomers) -> None:
    """At most one of them stands before an established node, however many they are."""
    proven = Standing(completed=(100.0, 100.0), at=TICKS, latency_s=1.0)
    crowd = [view(f"new-{index}") for index in range(newcomers)]
    pool = snapshot(view("proven"), *crowd, standings={"proven": proven})
    ranked = [entry.node for entry in decide(pool, WORKLOAD, seed).ranked]
    assert ranked.index("proven") <= 1


def test_newcomers_get_their_small_share() -> None:
    """So that evidence can come to be, and no more than that."""
    proven = Standing(completed=(100.0, 100.0), at=TICKS, latency_s=1.0)
    pool = snapshot(view("proven"), view("new"), standings={"proven": proven})
    tried = sum(decide(pool, WORKLOAD, seed).ranked[0].node == "new" for seed in range(2000))
    assert 0.5 * TRIAL_SHARE < tried / 2000 < 1.5 * TRIAL_SHARE


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
        "latency_s": plain,
        "completed": plain,
        "price": plain,
    },
)


@hundred
@given(
    pools(),
    seeds,
    declared,
    st.dictionaries(st.text(max_size=8).filter(lambda key: key != "endpoint"), plain, max_size=4),
)
def test_nothing_a_node_says_of_itself_raises_its_rank(pool, seed, capabilities, claims) -> None:
    """Where the workload asks for nothing of it, every decision is the same to the last digit."""
    said = {
        name: view(name, capabilities=capabilities, claims={**claims, "capabilities": capabilities})
        if node.result is not None and node == view(name)
        else node
        for name, node in pool.nodes.items()
    }
    assert outcome(decide(replace(pool, nodes=said), WORKLOAD, seed)) == outcome(decide(pool, WORKLOAD, seed))


@hundred
@given(
    pools(),
    seeds,
    st.text("abc.-", min_size=1, max_size=20),
    st.text("0123456789abcdef", min_size=64, max_size=64),
)
def test_where_a_node_serves_does_not_move_its_rank(pool, seed, host, pin) -> None:
    """Neither its address nor its key has a say."""
    endpoint = {"url": f"https://{host}", "spki_sha256": pin}
    moved = {
        name: view(name, endpoint=endpoint) if node == view(name) else node
        for name, node in pool.nodes.items()
    }
    assert outcome(decide(replace(pool, nodes=moved), WORKLOAD, seed)) == outcome(
        decide(pool, WORKLOAD, seed)
    )


INTEGRITY: list[dict[str, Any]] = [
    {"weights": {**WEIGHTS, "executables": 96}},
    {"incidents": frozenset({"i"})},
]


@hundred
@given(pools(), seeds, st.sampled_from(INTEGRITY), standings())
def test_an_integrity_failure_beats_any_history(pool, seed, failure, standing) -> None:
    """The best of histories does not let such a node in, not even as the last one there is."""
    best = replace(standing, completed=(1e6, 1e6), failed=(0.0, 0.0), latency_s=0.001, failures_in_a_row=0)
    decision = decide(with_node(pool, view("A", **failure), best), WORKLOAD, seed)
    assert "A" in decision.excluded
    assert "A" not in [ranked.node for ranked in decision.ranked]


@hundred
@given(seeds, st.sampled_from(INTEGRITY), standings())
def test_an_integrity_failure_is_never_the_last_resort(seed, failure, standing) -> None:
    """Alone in the pool, it is an empty pool."""
    pool = snapshot(view(**failure), standings={"n": standing})
    assert decide(pool, WORKLOAD, seed).ranked == ()


@hundred
@given(pools(), seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_nodes_is_irrelevant(pool, seed, random) -> None:
    """Given the seed, the same nodes in another order are the same decision."""
    shuffled = list(pool.nodes.items())
    random.shuffle(shuffled)
    other = replace(pool, nodes=dict(shuffled))
    assert decide(other, WORKLOAD, seed).to_wire() == decide(pool, WORKLOAD, seed).to_wire()


@hundred
@given(pools(), seeds)
def test_a_decision_replays(pool, seed) -> None:
    """The same snapshot, workload and seed: the same decision, in an audit next year too."""
    again = replace(pool, nodes=dict(pool.nodes), standings=dict(pool.standings))
    assert decide(again, WORKLOAD, seed) == decide(pool, WORKLOAD, seed)


@hundred
@given(pools(), seeds)
def test_a_decision_changes_nothing_it_looks_at(pool, seed) -> None:
    """A snapshot is a value."""
    before = replace(pool, nodes=dict(pool.nodes), standings=dict(pool.standings))
    decide(pool, WORKLOAD, seed)
    assert pool == before


@hundred
@given(pools(), seeds)
def test_every_node_is_ranked_or_excluded(pool, seed) -> None:
    """Never both, never neither, never twice."""
    decision = decide(pool, WORKLOAD, seed)
    assert sorted([*(ranked.node for ranked in decision.ranked), *decision.excluded]) == sorted(pool.nodes)


@hundred
@given(pools(), seeds)
def test_the_counts_are_of_all_the_excluded(pool, seed) -> None:
    """Each of them is counted once."""
    decision = decide(pool, WORKLOAD, seed)
    assert sum(decision.counts().values()) == len(decision.excluded)


@hundred
@given(
    seeds,
    st.sampled_from(["instance-identity", "configuration", "file-system", "executables"]),
    st.sampled_from([0, 1, -1, None]),
    standings(),
)
def test_none_never_satisfies(seed, claim, value, standing) -> None:
    """No conclusion about a required claim, or no word of it, keeps a node out whatever else is good."""
    own = PLATFORM if claim in PLATFORM else WEIGHTS
    vector = {name: v for name, v in own.items() if name != claim} | ({} if value is None else {claim: value})
    node = view(**{"platform" if claim in PLATFORM else "weights": vector})
    decision = decide(snapshot(node, standings={"n": standing}), WORKLOAD, seed)
    assert {name: verdict.code for name, verdict in decision.excluded.items()} == {
        "n": "result.not-affirming"
    }


@hundred
@given(pools(), seeds)
def test_a_silent_verifier_empties_every_pool(pool, seed) -> None:
    """Nobody is let in on old news."""
    assert decide(replace(pool, feed_silent_s=60.5), WORKLOAD, seed).ranked == ()


def test_the_pin_of_the_support_is_a_pin() -> None:
    """What the other tests rest on: an honest node is ranked, so that exclusion shows something."""
    ranked = decide(snapshot(view()), WORKLOAD, 0).ranked
    assert ([entry.node for entry in ranked], len(PIN)) == (["n"], 64)
