"""Which revision of a model a node has: a gate, a count, and a part of each decision."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from attester.errors import ConfigError
from router.choose.decision import Decision, replay
from router.choose.decision import decide as make_decision
from router.choose.explaining import describe_revisions, explanation
from router.choose.gates import OTHER_REVISION, GateContext, check
from router.model.clock import Clock
from router.model.node import AsideResult, NodeView
from router.model.table import read_table
from router.model.workload import Table, Workload
from router.state.fleet import Fleet
from router.state.records import Record
from tests.unit.router.doubles import Moved
from tests.unit.router.support import MODEL, NOW, WEIGHTS, decide, ear, excluded, snapshot, view

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)


def asks(*digests: str) -> Workload:
    return msgspec.convert({"model": MODEL, "name": "tiny", "digests": digests}, Workload)


def code(node: NodeView, *digests: str) -> str | None:
    verdict = check(node, asks(*digests), GateContext(NOW * 1000))
    return None if verdict is None else verdict.code


# The gate.


def test_a_workload_that_asks_for_none_takes_each_revision() -> None:
    """Both are affirming while a model is rolled out."""
    assert [code(view(revision=each)) for each in (ONE, TWO, None)] == [None, None, None]


def test_a_workload_may_require_digests() -> None:
    """One, or several."""
    assert code(view(revision=ONE), ONE) is None
    assert code(view(revision=TWO), ONE, TWO) is None
    assert code(view(revision=TWO), ONE) == OTHER_REVISION


def test_a_result_that_names_no_revision_meets_no_requirement() -> None:
    """What is not concluded is not affirmed."""
    assert code(view(revision=None), ONE) == OTHER_REVISION


def test_another_models_revision_does_not_count() -> None:
    """The digest is looked for at the workload's own model."""
    other = msgspec.structs.replace(asks(ONE), model="example/other")
    verdict = check(view(revision=ONE), other, GateContext(NOW * 1000))
    assert verdict is not None
    assert verdict.code == "result.no-submod"


def test_what_is_not_affirming_is_that_first() -> None:
    """A node with wrong weights is not told that it has another revision."""
    assert code(view(revision=TWO, weights={**WEIGHTS, "file-system": 96}), ONE) == "result.not-affirming"


def test_the_verdict_names_both() -> None:
    """What the node has, and what is asked for."""
    verdict = check(view(revision=TWO), asks(ONE, THREE, "4" * 64), GateContext(NOW * 1000))
    assert verdict is not None
    assert verdict.detail == (
        f"{MODEL} is of revision 222222222222…, and 111111111111… or 333333333333… or 1 more is asked for"
    )


def test_a_newer_result_that_is_set_aside_counts_too() -> None:
    """What it does not allow is not allowed, however good the one before is."""
    aside = AsideResult(ear("n", revision=TWO, iat=NOW + 400), b"", 0.0)
    node = msgspec.structs.replace(view(revision=ONE), aside=aside)
    assert code(node, ONE) == OTHER_REVISION


# The table.


def table(digests: str) -> bytes:
    return (
        f"tiers: {{small: {{}}}}\nworkloads:\n  w: {{model: a/b, tier: small, digests: {digests}}}\n".encode()
    )


def test_a_table_has_the_digests_of_a_workload() -> None:
    """They are of one model, so they stand at the workload and not at its tier."""
    assert read_table(table(f"['{ONE}', '{TWO}']")).workloads["w"].digests == (ONE, TWO)
    assert read_table(table("[]")).workloads["w"].digests == ()


@pytest.mark.parametrize(
    "digests",
    [
        "8fad",
        "[8fad]",
        f"['{'A' * 64}']",
        f"['{'1' * 63}']",
        f"['{'1' * 65}']",
        f"['sha256:{'1' * 64}']",
        f"['{'1' * 64} ']",
        f"['{ONE}', '{ONE}']",
        "[null]",
        "[" + ", ".join(f"'{n:064x}'" for n in range(65)) + "]",
    ],
)
def test_digests_are_read_strictly(digests: str) -> None:
    """A digest that no node can have would keep all nodes out, in silence."""
    with pytest.raises(ConfigError):
        read_table(table(digests))


def test_a_tier_has_no_digests() -> None:
    """A tier may be for several models."""
    with pytest.raises(ConfigError, match="digests"):
        read_table(f"tiers: {{s: {{digests: ['{ONE}']}}}}\nworkloads: {{w: {{model: a, tier: s}}}}".encode())


# The counts.


def fleet(*digests: str, clock: Moved | None = None) -> tuple[Fleet, Moved]:
    clock = clock or Moved(NOW * 1000)
    made = Fleet(Table([asks(*digests)]), Clock(lambda: clock.ms, lambda: clock.ticks))
    made.note_verifier_contact()
    return made, clock


def test_live_nodes_are_counted_by_revision() -> None:
    """And those of them that may work."""
    made, _ = fleet()
    for name, revision, more in (
        ("a", ONE, {}),
        ("b", ONE, {}),
        ("c", TWO, {}),
        ("d", TWO, {"weights": {**WEIGHTS, "executables": 96}}),
        ("e", THREE, {"revoked": True}),
        ("f", None, {}),
    ):
        given: dict[str, Any] = {"revision": revision, **more}
        made.put_node(view(name, **given))
    assert made.revisions("tiny") == {ONE: (2, 2), TWO: (2, 1)}


def test_a_node_moves_from_one_revision_to_the_other() -> None:
    """Its old result counts no more."""
    made, _ = fleet()
    made.put_node(view("a", revision=ONE))
    made.put_node(view("a", revision=TWO))
    assert made.revisions("tiny") == {TWO: (1, 1)}


def test_a_result_that_runs_out_leaves_the_count() -> None:
    """Time alone changes it."""
    made, clock = fleet()
    made.put_node(view("a", revision=ONE))
    clock.forward(400)
    made.advance()
    assert made.revisions("tiny") == {}


def test_a_node_that_goes_over_to_another_operator_is_counted_once() -> None:
    """An incident made it known first."""
    made, _ = fleet()
    made.put_node(view("a", revision=ONE))
    made.put_node(view("a", revision=ONE, operator="acme"))
    assert made.revisions("tiny") == {ONE: (1, 1)}


def test_a_digest_that_no_live_node_has_is_shown_as_such() -> None:
    """By the router's command, with those of other revisions."""
    made, _ = fleet(THREE)
    made.put_node(view("a", revision=ONE))
    found = made.revisions("tiny")
    assert found == {THREE: (0, 0), ONE: (1, 0)}
    wire = {
        digest: {"nodes": has, "may_work": may, "allowed": digest == THREE}
        for digest, (has, may) in found.items()
    }
    lines = describe_revisions({"tiny": {"model": MODEL, "revisions": wire}})
    assert lines == [
        f"tiny: {MODEL}",
        f"  {ONE}  {'█' * 20}  1 of 1 nodes, 0 may work; the workload asks for other revisions",
        f"  {THREE}  asked for, and no live node has it",
    ]


def test_a_workload_without_nodes_says_so() -> None:
    """No table without rows."""
    lines = describe_revisions({"tiny": {"model": MODEL, "revisions": {}}})
    assert lines[-1] == "  no live node has a revision that its result names"


def test_who_asks_for_work_is_told_what_nodes_lack() -> None:
    """The error of an empty pool names the revisions."""
    made, _ = fleet(THREE)
    made.put_node(view("a", revision=ONE))
    (detail,) = made.shortfalls(asks(THREE))
    assert detail.startswith(f"{MODEL} is of revision 111111111111…")


# Decisions.


def test_a_decision_records_the_revision_of_each_node_that_was_drawn() -> None:
    """With the result by which it may work."""
    made = decide(snapshot(view("a", revision=ONE), view("b", revision=TWO)))
    assert {node: facts.revision for node, facts in made.facts.items()} == {"a": ONE, "b": TWO}


def test_a_decision_with_digests_is_made_again_from_its_record() -> None:
    """They are a part of the workload that it rests on."""
    given = snapshot(view("a", revision=ONE), view("b", revision=TWO))
    made = decide(given, asks(TWO))
    assert [ranked.node for ranked in made.ranked] == ["b"]
    assert made.closed == {OTHER_REVISION: 1}
    assert replay(Decision.from_wire(made.to_wire())).ranked == made.ranked
    assert excluded(given, asks(TWO))["a"].code == OTHER_REVISION


def test_a_record_of_an_earlier_version_is_read() -> None:
    """It names no revision."""
    wire = decide(snapshot(view("a", revision=ONE))).to_wire()
    del wire["workload"]["digests"]
    for facts in wire["facts"].values():
        del facts["revision"]
    assert replay(Decision.from_wire(wire)).ranked


def test_an_explanation_names_the_revision() -> None:
    """Of each node that was ranked."""
    record = Record(decide(snapshot(view("a", revision=ONE)))).to_wire()
    assert "       revision 111111111111… of the model" in explanation(record)


PROMPTING = {"template": "chat_template.jinja sha256:" + "a" * 64, "sampling": "engine neutral"}


def test_a_decision_records_what_each_node_renders_and_samples_by() -> None:
    """An audit next year can say which template and which defaults an answer came from."""
    made = decide(snapshot(view("a", revision=ONE, prompting=PROMPTING), view("b", revision=ONE)))
    again = replay(Decision.from_wire(made.to_wire()))
    assert again.ranked == made.ranked
    recorded = Decision.from_wire(made.to_wire()).facts
    assert {"template": recorded["a"].template, "sampling": recorded["a"].sampling} == PROMPTING
    assert not {"template", "sampling"} & made.to_wire()["facts"]["b"].keys()


def test_a_change_without_a_new_revision_is_in_the_next_record() -> None:
    """The digest of the reference value stays, and what is rendered with does not."""
    given, clock = fleet()
    found = []
    for said in ("sha256:aa", "sha256:bb"):
        given.put_node(view("a", revision=ONE, prompting={"template": f"engine {said}"}))
        clock.forward(1)
        given.advance()
        found.append(make_decision(given.view_for(asks()), asks(), 0).facts["a"])
    assert [each.revision for each in found] == [ONE, ONE]
    assert [each.template for each in found] == ["engine sha256:aa", "engine sha256:bb"]


def test_an_explanation_names_the_template() -> None:
    """Of each node that was ranked, as short as can be told apart."""
    record = Record(decide(snapshot(view("a", revision=ONE, prompting=PROMPTING)))).to_wire()
    assert (
        "       renders by chat_template.jinja sha256:aaaaaaaaaaaa…; samples by engine neutral"
        in explanation(record)
    )
