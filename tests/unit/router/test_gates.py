"""The gates: each code, its boundary, and garbage, which closes them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from router.choose import gates
from router.choose.gates import CLOSED_GATES, CODES, GateContext
from router.model.clock import Clock
from router.model.load import BREAKER_OPEN_S, Load
from router.model.node import NodeView
from router.model.outcomes import Outcome
from router.model.standing import Standing
from router.model.workload import Table, Workload
from router.state.fleet import Fleet
from tests.unit.router.support import (
    MODEL,
    NOW,
    PIN,
    PLATFORM,
    TICKS,
    WEIGHTS,
    WORKLOAD,
    decide,
    excluded,
    nodes_of,
    snapshot,
    view,
)

NOW_MS = NOW * 1000


def code(node: NodeView, workload: Workload = WORKLOAD, now_ms: int = NOW_MS, **given: Any) -> str | None:
    verdict = gates.check(node, workload, GateContext(now_ms, **given))
    return None if verdict is None else verdict.code


def asks(**given: Any) -> Workload:
    return msgspec.convert({"model": MODEL, "name": "tiny", **given}, Workload)


def test_an_honest_node_may() -> None:
    """Every gate is open to it."""
    assert code(view()) is None


# Identity.


def test_a_retired_node_may_not() -> None:
    """Its result may still live."""
    assert code(view(retired=True)) == "identity.retired"


@pytest.mark.parametrize(
    "endpoint",
    [
        {},
        [],
        "https://192.0.2.1",
        0,
        {"url": "https://192.0.2.1"},
        {"spki_sha256": PIN},
        {"url": None, "spki_sha256": PIN},
        {"url": "https://192.0.2.1", "spki_sha256": 7},
        {"url": ["https://192.0.2.1"], "spki_sha256": PIN},
        {"URL": "https://192.0.2.1", "spki_sha256": PIN},
    ],
)
def test_a_result_without_an_endpoint_and_pin_may_not(endpoint: Any) -> None:
    """Nothing of it is guessed."""
    assert code(view(endpoint=endpoint)) == "identity.endpoint"


def test_a_model_submodule_names_no_endpoint() -> None:
    """Only the platform's word on where a node serves counts."""
    assert code(view(without=("platform",))) == "identity.endpoint"


# Result.


def test_a_node_without_a_result_may_not() -> None:
    """Known is not trusted."""
    assert code(NodeView("n")) == "result.missing"


def test_a_revoked_result_may_not() -> None:
    """However young it is."""
    assert code(view(revoked=True)) == "result.revoked"


@pytest.mark.parametrize(("exp", "expected"), [(NOW, "result.expired"), (NOW + 1, None)])
def test_a_result_has_expired_in_the_second_it_names(exp: int, expected: str | None) -> None:
    """RFC 7519 §4.1.4: on or after it."""
    assert code(view(exp=exp)) == expected


@pytest.mark.parametrize(("age", "expected"), [(300, None), (301, "result.old")])
def test_a_result_may_be_as_old_as_the_workload_says(age: int, expected: str | None) -> None:
    """Its last second counts still."""
    assert code(view(iat=NOW - age, exp=NOW + 600), asks(max_age_s=300)) == expected


def test_age_is_judged_at_the_time_of_the_snapshot() -> None:
    """The same node closes as time goes by."""
    node = view(exp=NOW + 9000)
    assert [code(node, now_ms=(NOW + s) * 1000) for s in (300, 301)] == [None, "result.old"]


@pytest.mark.parametrize("lacking", ["platform", f"model/{MODEL}"])
def test_a_result_that_says_nothing_of_a_submodule_may_not(lacking: str) -> None:
    """What is not concluded is not affirmed."""
    verdict = gates.result(view(without=(lacking,)), WORKLOAD, GateContext(NOW_MS))
    assert verdict is not None
    assert verdict.code == "result.no-submod"


def test_another_models_result_does_not_count() -> None:
    """A node trusted for one model is not trusted for the next."""
    assert code(view(), asks(model="example/other")) == "result.no-submod"


def test_a_model_called_platform_does_not_stand_for_the_platform() -> None:
    """Names of submodules carry their kind."""
    assert code(view(), asks(model="platform")) == "result.no-submod"


NOT_AFFIRMING = [-128, -97, -96, -33, -1, 0, 1, 32, 33, 95, 96, 97, 99, 127]


@pytest.mark.parametrize("value", NOT_AFFIRMING)
@pytest.mark.parametrize("claim", ["file-system", "executables"])
def test_a_required_claim_of_the_model_has_to_affirm(claim: str, value: int) -> None:
    """Warnings, contraindications and no conclusion alike."""
    assert code(view(weights={**WEIGHTS, claim: value})) == "result.not-affirming"


@pytest.mark.parametrize("value", NOT_AFFIRMING)
@pytest.mark.parametrize("claim", ["instance-identity", "configuration"])
def test_a_required_claim_of_the_platform_has_to_affirm(claim: str, value: int) -> None:
    """As for the model."""
    assert code(view(platform={**PLATFORM, claim: value})) == "result.not-affirming"


@pytest.mark.parametrize("value", [-32, -2, 2, 31])
def test_every_affirming_value_affirms(value: int) -> None:
    """AR4SI §2.3.2: −32 … −2 and 2 … 31."""
    assert code(view(weights={**WEIGHTS, "executables": value})) is None


@pytest.mark.parametrize("claim", ["file-system", "executables"])
def test_an_absent_claim_does_not_affirm(claim: str) -> None:
    """AR4SI §2.3.3: absent is none."""
    weights = {name: value for name, value in WEIGHTS.items() if name != claim}
    assert code(view(weights=weights)) == "result.not-affirming"


def test_a_claim_of_the_other_submodule_does_not_stand_in() -> None:
    """Files that the platform affirms are not the model's."""
    node = view(platform={**PLATFORM, "file-system": 2}, weights={"executables": -2})
    assert code(node) == "result.not-affirming"


def test_a_claim_that_is_not_required_does_not_close() -> None:
    """What a workload does not ask for is for others."""
    assert code(view(platform={**PLATFORM, "hardware": 96})) is None


LADDER = ["declared", "challenged", "hardware-rooted", "confidential"]


@pytest.mark.parametrize("needed", LADDER)
@pytest.mark.parametrize("given", LADDER)
def test_assurance_is_an_order(given: str, needed: str) -> None:
    """More than is asked for suffices, less does not."""
    expected = None if LADDER.index(given) >= LADDER.index(needed) else "result.assurance"
    assert code(view(model_assurance=given), asks(model_assurance=needed)) == expected


@pytest.mark.parametrize("needed", LADDER)
@pytest.mark.parametrize("given", LADDER)
def test_the_platform_has_an_assurance_of_its_own(given: str, needed: str) -> None:
    """The model's does not stand in for it."""
    expected = None if LADDER.index(given) >= LADDER.index(needed) else "result.assurance"
    node = view(platform_assurance=given, model_assurance="confidential")
    assert code(node, asks(platform_assurance=needed)) == expected


@pytest.mark.parametrize("given", ["", "Challenged", "quantum", "confidential "])
def test_an_unknown_assurance_is_none(given: str) -> None:
    """Not the highest."""
    assert code(view(model_assurance=given), asks(model_assurance="declared")) == "result.assurance"


# Incident.


def test_an_open_incident_closes() -> None:
    """Whatever the newest result says: only a person leaves quarantine."""
    assert code(view(incidents=frozenset({"i"}))) == "incident.quarantine"


@pytest.mark.parametrize(
    ("silent", "expected"),
    [
        (0.0, None),
        (60.0, None),
        (60.001, "incident.feed-silent"),
    ],
)
def test_a_silent_verifier_closes_for_all(silent: float, expected: str | None) -> None:
    """A revocation may have been missed."""
    decision = decide(snapshot(view(), silent_s=silent))
    assert (decision.closed, len(decision.ranked)) == (({}, 1) if expected is None else ({expected: 1}, 0))


def test_a_verifier_that_was_never_heard_closes_for_all() -> None:
    """A router that has just begun knows of no revocation."""
    fleet = Fleet(Table([WORKLOAD]), Clock(lambda: NOW_MS, lambda: TICKS))
    fleet.put_node(view())
    verdict = fleet.verdict("n", WORKLOAD)
    assert verdict is not None
    assert verdict.code == "incident.feed-silent"


@pytest.mark.parametrize(
    ("enrolled", "expected"),
    [(NOW - 501, None), (NOW - 500, "incident.operator"), (NOW - 1, "incident.operator")],
)
def test_an_operator_that_is_held_brings_in_nobody_new(enrolled: int, expected: str | None) -> None:
    """From the second of the incident on: a new name must not be worth more than a bad one."""
    node = view(operator="acme", enrolled=enrolled)
    assert code(node, held_since=NOW - 500 + 0.9) == expected


def test_a_node_of_which_nobody_says_when_it_was_enrolled_is_not_held_for_others() -> None:
    """The verifier's word on its own nodes is missing, so there is no operator either."""
    assert code(view(), held_since=0.0) is None


# Capability.


@pytest.mark.parametrize("name", ["hardware_class", "quantisation", "region"])
@pytest.mark.parametrize("have", [None, "", "c", "A", 1, ["a"], {"a": 1}, True])
def test_what_is_not_among_the_allowed_is_closed(name: str, have: Any) -> None:
    """Unknown regions, other classes, and whatever is no name."""
    field = {"hardware_class": "hardware_classes", "quantisation": "quantisations", "region": "regions"}[name]
    expected = f"capability.{name.replace('_', '-')}"
    assert code(view(capabilities={name: have}), asks(**{field: ["a", "b"]})) == expected


@pytest.mark.parametrize("name", ["hardware_class", "quantisation", "region"])
def test_what_is_among_the_allowed_is_open(name: str) -> None:
    """Any of them will do."""
    field = {"hardware_class": "hardware_classes", "quantisation": "quantisations", "region": "regions"}[name]
    assert code(view(capabilities={name: "b"}), asks(**{field: ["a", "b"]})) is None


FLOORS = [("memory_bytes", "min_memory_bytes", "memory"), ("context_length", "min_context", "context")]


@pytest.mark.parametrize(("name", "floor", "short"), FLOORS)
@pytest.mark.parametrize("have", [None, "100", "999", 99, -1, -100, 99.9, 1e9, [100], {"n": 100}, ""])
def test_below_a_floor_is_closed(name: str, floor: str, short: str, have: Any) -> None:
    """And so is what is no whole number, however large it looks."""
    assert code(view(capabilities={name: have}), asks(**{floor: 100})) == f"capability.{short}"


@pytest.mark.parametrize(("name", "floor", "short"), FLOORS)
def test_an_undeclared_value_is_below_every_floor(name: str, floor: str, short: str) -> None:
    """Nothing said is nothing there."""
    assert code(view(), asks(**{floor: 1})) == f"capability.{short}"


@pytest.mark.parametrize(("name", "floor", "short"), FLOORS)
def test_a_floor_is_met_at_its_value(name: str, floor: str, short: str) -> None:
    """At least."""
    assert code(view(capabilities={name: 100}), asks(**{floor: 100})) is None


@pytest.mark.parametrize(("name", "floor", "short"), FLOORS)
def test_true_is_no_number(name: str, floor: str, short: str) -> None:
    """Not one byte, not one token."""
    assert code(view(capabilities={name: True}), asks(**{floor: 1})) == f"capability.{short}"


@pytest.mark.parametrize("have", [[], ["embeddings"], ["chats"], ["Chat"], {}])
def test_a_missing_feature_closes(have: Any) -> None:
    """All that are asked for, by name."""
    workload = asks(features=["chat", "embeddings"])
    assert code(view(capabilities={"features": have}), workload) == "capability.feature"


def test_all_features_open() -> None:
    """More than asked for does not hurt."""
    node = view(capabilities={"features": ["tools", "embeddings", "chat"]})
    assert code(node, asks(features=["chat", "embeddings"])) is None


def test_features_that_are_one_text_are_none() -> None:
    """A text is no list of names."""
    node = view(capabilities={"features": "chat"})
    assert code(node, asks(features=["chat"])) == "capability.feature"


@pytest.mark.parametrize("have", ["xyz", {"x": False}])
def test_neither_letters_nor_keys_are_features(have: Any) -> None:
    """Only the entries of a list are."""
    assert code(view(capabilities={"features": have}), asks(features=["x"])) == "capability.feature"


GARBAGE = [None, 7, True, 1.5, [["chat"]], [{}], [{"chat": 1}]]


@pytest.mark.parametrize("have", GARBAGE)
def test_garbage_for_features_excludes_the_node_alone(have: Any) -> None:
    """One node's nonsense must not end the decision for all the others."""
    honest = view("a", capabilities={"features": ["chat"]})
    given = snapshot(honest, view("b", capabilities={"features": have}))
    workload = asks(features=["chat"])
    verdicts = excluded(given, workload)
    assert (nodes_of(decide(given, workload).ranked), {n: v.code for n, v in verdicts.items()}) == (
        ["a"],
        {"b": "capability.feature"},
    )


def test_mixed_features_exclude_the_node_alone() -> None:
    """Also the sentence that says why is built from what the node sent."""
    assert code(view(capabilities={"features": ["a", 1]}), asks(features=["chat"])) == "capability.feature"


@pytest.mark.parametrize("have", [None, 7, "x", ["memory_bytes"], True])
def test_garbage_for_capabilities_is_nothing_declared(have: Any) -> None:
    """It meets no floor, and nothing is raised."""
    node = view(claims={"capabilities": have})
    assert code(node, asks(min_memory_bytes=1)) == "capability.memory"


# Floors.


@pytest.mark.parametrize("rate", [None, 99, 0, -1, "100", "999999", "", 1e9])
def test_a_rate_below_the_floor_is_closed(rate: Any) -> None:
    """Missing, too small, or no whole number."""
    measured = {} if rate is None else {"walk_bytes_per_second": rate}
    assert code(view(measured=measured), asks(min_walk_bytes_per_second=100)) == "floors.walk-rate"


def test_a_rate_at_the_floor_is_open() -> None:
    """At least."""
    node = view(measured={"walk_bytes_per_second": 100})
    assert code(node, asks(min_walk_bytes_per_second=100)) is None


def test_a_rate_that_the_node_declares_is_none() -> None:
    """Only what the verifier measured counts."""
    node = view(capabilities={"walk_bytes_per_second": 10**9}, claims={"walk_bytes_per_second": 10**9})
    assert code(node, asks(min_walk_bytes_per_second=100)) == "floors.walk-rate"


@pytest.mark.parametrize(("pace", "expected"), [(None, None), (49.9, "floors.pace"), (50.0, None)])
def test_a_pace_that_was_seen_meets_the_floor(pace: float | None, expected: str | None) -> None:
    """Who was not seen enough is not judged, for the floor would keep it from ever being seen."""
    assert code(view(), asks(min_tokens_per_second=50), pace=pace) == expected


def test_a_pace_without_a_floor_closes_nothing() -> None:
    """However slow."""
    assert code(view(), pace=0.001) is None


@pytest.mark.parametrize("what", ["input", "output"])
@pytest.mark.parametrize(("price", "expected"), [(100, None), (101, "floors.price")])
def test_a_price_ceiling_is_hard(what: str, price: int, expected: str | None) -> None:
    """For what goes in and for what comes out, each on its own."""
    workload = asks(
        prices={"acme": {"input": 1, "output": 1, what: price}}, price_ceiling={"input": 100, "output": 100}
    )
    assert code(view(operator="acme"), workload) == expected


def test_a_price_is_the_tables_and_not_the_nodes() -> None:
    """What a node says that it costs is nothing to anybody."""
    workload = asks(prices={"acme": {"output": 500}}, price_ceiling={"output": 100})
    node = view(operator="acme", capabilities={"price": 0}, claims={"prices": {"acme": {"output": 0}}})
    assert code(node, workload) == "floors.price"


def test_the_price_of_a_class_goes_by_the_verifiers_word() -> None:
    """A node that says that it is something else has the price of what it is."""
    workload = asks(prices_by_hardware={"cpu": {"*": {"output": 500}}}, price_ceiling={"output": 100})
    assert code(view(operator="acme", capabilities={"hardware_class": "h200"}), workload) == "floors.price"
    other = asks(prices_by_hardware={"h200": {"*": {"output": 500}}}, price_ceiling={"output": 100})
    assert code(view(capabilities={"hardware_class": "h200"}), other) is None


def test_a_node_without_an_operator_has_the_price_of_all_others() -> None:
    """It does not come cheaper than those of whom one knows whose they are."""
    workload = asks(prices={"acme": {"output": 1}, "*": {"output": 500}}, price_ceiling={"output": 100})
    assert (code(view(), workload), code(view(operator="acme"), workload)) == ("floors.price", None)


# Capacity.


def capacity(load: Load, workload: Workload = WORKLOAD, waited: float = 0.0, **given: Any) -> str | None:
    moment = snapshot(view(), loads={"n": load}, monotonic=TICKS + waited, **given)
    verdict = excluded(moment, workload).get("n")
    return None if verdict is None else verdict.code


SEEN = {"n": Standing(completed=(100.0, 100.0), at=NOW)}


@pytest.mark.parametrize(("in_flight", "expected"), [(1, None), (2, "capacity.full"), (3, "capacity.full")])
def test_a_node_is_full_at_its_concurrency(in_flight: int, expected: str | None) -> None:
    """One more would be one too many."""
    assert capacity(Load(in_flight), asks(concurrency=2), standings=SEEN) == expected


@pytest.mark.parametrize(
    ("waited", "expected"), [(BREAKER_OPEN_S - 0.001, "capacity.breaker"), (BREAKER_OPEN_S, None)]
)
def test_the_breaker_is_open_for_its_time(waited: float, expected: str | None) -> None:
    """Then one probe may go."""
    load = Load(3)
    for _ in range(3):
        load.end_request(Outcome.CRASHED, TICKS)
    assert capacity(load, waited=waited, standings=SEEN) == expected


BROKEN = Load(0, 3, TICKS + 10)


def test_a_breaker_gives_way_when_nobody_else_is_left() -> None:
    """And the decision says so."""
    decision = decide(snapshot(view(), loads={"n": BROKEN}))
    assert (decision.opened, nodes_of(decision.ranked)) == (("capacity.breaker",), ["n"])


def test_a_breaker_does_not_give_way_while_somebody_is_left() -> None:
    """One who may be tried is enough."""
    decision = decide(snapshot(view("a"), view("b"), loads={"b": BROKEN}))
    assert (decision.opened, nodes_of(decision.ranked), decision.closed) == (
        (),
        ["a"],
        {"capacity.breaker": 1},
    )


def test_no_other_gate_gives_way() -> None:
    """A pool of which nobody may be trusted is empty, and stays empty."""
    given = snapshot(
        view("a", revoked=True),
        view("b", incidents=frozenset({"i"})),
        view("c"),
        loads=dict.fromkeys("ab", BROKEN) | {"c": Load(64)},
    )
    decision = decide(given)
    assert (decision.ranked, decision.closed) == (
        (),
        {"result.revoked": 1, "incident.quarantine": 1, "capacity.full": 1},
    )


def test_failing_open_does_not_overfill_a_node() -> None:
    """The breaker alone may give way, not the room."""
    full = Load(WORKLOAD.concurrency, 3, TICKS + 10)
    assert decide(snapshot(view(), loads={"n": full})).ranked == ()


# Order.

PEELED = [
    ("identity.retired", {"retired": True}),
    ("identity.endpoint", {"endpoint": {}}),
    ("result.revoked", {"revoked": True}),
    ("result.expired", {"exp": NOW}),
    ("result.old", {"iat": NOW - 301, "exp": NOW + 600}),
    ("result.not-affirming", {"platform": {**PLATFORM, "configuration": 96}}),
    ("result.assurance", {"model_assurance": "declared"}),
    ("incident.quarantine", {"incidents": frozenset({"i"})}),
    ("capability.hardware-class", {"capabilities": {"hardware_class": "tpu"}}),
    ("floors.walk-rate", {"measured": {}}),
    ("floors.price", {}),
]


@pytest.mark.parametrize("first", range(len(PEELED)), ids=[name for name, _ in PEELED])
def test_the_first_gate_that_closes_is_the_one_that_is_named(first: int) -> None:
    """Trust before incidents, incidents before capability, capability before rates."""
    faults: dict[str, Any] = {
        "capabilities": {"hardware_class": "gpu"},
        "measured": {"walk_bytes_per_second": 100},
    }
    for _, fault in reversed(PEELED[first:]):
        faults.update(fault)
    workload = asks(
        hardware_classes=["gpu"],
        min_walk_bytes_per_second=100,
        prices={"*": {"input": 2}},
        price_ceiling={"input": 1},
    )
    assert code(view(**faults), workload) == PEELED[first][0]


def test_silence_is_named_before_what_gives_way() -> None:
    """Nobody is let in on old news, and who stands broken is counted once."""
    given = snapshot(view("a"), view("b"), loads={"b": BROKEN}, silent_s=61.0)
    assert decide(given).closed == {"incident.feed-silent": 2}


def test_an_excluded_node_has_one_verdict() -> None:
    """Counts are of nodes, not of faults."""
    given = snapshot(view("a", revoked=True, retired=True, incidents=frozenset({"i"})))
    assert decide(given).closed == {"identity.retired": 1}


def test_no_price_and_no_ceiling_is_free() -> None:
    """Nothing is asked of whoever is in no table."""
    assert code(view(operator="acme"), asks(price_ceiling={"input": 0, "output": 0})) is None


def test_each_code_has_its_sentence() -> None:
    """A code is named after its gate, and people can read what it means."""
    gate_names = [gate.__name__ for gate in CLOSED_GATES] + ["requirements", "capacity"]
    assert ({code.partition(".")[0] for code in CODES}, all(CODES.values())) == (set(gate_names), True)


def test_codes_come_in_the_order_of_the_gates() -> None:
    """Those that are not known come last."""
    mixed = ["x.new", "floors.price", "capacity.full", "identity.retired", "incident.quarantine"]
    assert gates.sort_codes(iter(mixed)) == [
        "identity.retired",
        "incident.quarantine",
        "floors.price",
        "capacity.full",
        "x.new",
    ]


# The verifier has no challenges.


def exhausted(value: int, *codes: str) -> str | None:
    """The verdict on a node whose result says so."""
    return code(view(weights={**WEIGHTS, "file-system": value}, reasons=codes))


@pytest.mark.parametrize("value", [0, 1, -33])
def test_that_the_verifier_has_no_challenges_is_not_the_nodes_fault(value: int) -> None:
    """It has a code of its own, also under a policy that calls it a warning."""
    assert exhausted(value, "challenges.exhausted") == "result.verifier-exhausted"
    assert exhausted(value, "challenges.exhausted", "weights.walk.stale") == "result.verifier-exhausted"


@pytest.mark.parametrize(
    ("value", "codes"),
    [
        (96, ("challenges.exhausted",)),
        (0, ()),
        (-33, ("weights.walk.stale",)),
        (-33, ("challenges.exhausted", "weights.walk.late")),
        (32, ("challenges.exhausted", "weights.manifest.extra")),
        (1, ("challenges.exhausted", "weights.reference.unknown")),
    ],
)
def test_what_is_said_of_the_node_is_not_put_down_to_the_verifier(value: int, codes: tuple[str, ...]) -> None:
    """Only if nothing else is said."""
    assert exhausted(value, *codes) == "result.not-affirming"


def test_an_affirming_node_without_new_challenges_may() -> None:
    """What it has shown counts on."""
    assert exhausted(2, "challenges.exhausted") is None
