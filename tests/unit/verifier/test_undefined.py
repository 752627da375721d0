"""The negation of undefined: found wherever OPA and the engine would differ, and only there; the safe forms pass."""

from __future__ import annotations

import importlib.util
import json

import pytest
import regorus

from verifier.policy import lint
from verifier.policy.lint import Level

RULES = """package touchstone

has_prefix(text) if startswith(text, "a")

value(n) := n if n == 1

always(n) := 1 if {
	n == 2
} else := 3

names contains name if some name in input.list

sometimes := input.absent

by_default := 1 if input.absent

default by_default := 4
"""
REFUSED = [
    'not startswith(input.absent, "a")',
    "not has_prefix(input.absent)",
    "not has_prefix(input.absent.b.c)",
    "not data.touchstone.has_prefix(input.absent)",
    "not input.absent in {1}",
    'not "a" in input.absent',
    'not "k", "a" in input.absent',
    "not input.absent != 1",
    "not input.absent < 1",
    "not 1 >= input.absent",
    "not input.absent + 1 == 3",
    "not count(input.absent) == 1",
    "not count(input.absent)",
    'not startswith(lower(input.absent), "a")',
    "not has_prefix([input.absent])",
    "not [input.absent] == [1]",
    'not {"k": input.absent} == input.list',
    "not {input.absent}",
    "not input.list[input.absent]",
    "not input.list[input.absent] == 1",
    "not data.limits[input.absent]",
    "not value(2) == 2",
    "not has_prefix(value(2))",
    "not is_string(input.absent)",
    "not has_prefix(sometimes)",
    "not 1 in sometimes",
    "not object.get(input, input.absent, 1) == 1",
    "not input.list[i] == 9",
    "not has_prefix(input.list[_])",
    'x := [1 | not startswith(input.absent, "a")]\n\tx == [1]',
    'every e in [1] {\n\t\te == 1\n\t\tnot startswith(input.absent, "a")\n\t}',
    "b := input.absent in [1]\n\tb == false",
    "b := [1 in input.absent]\n\tb == [false]",
    "(1 in input.absent) == false",
]  # fmt: skip
ACCEPTED = [
    "not input.absent",
    "not input.absent.b.c",
    "not input.absent == 1",
    "not input.absent = 1",
    "not input.absent == input.list",
    "not sometimes",
    "not sometimes == 1",
    'not has_prefix("b")',
    "not value(2)",
    "not always(3) == 1",
    "not by_default == 1",
    'not startswith(concat("", ["b"]), "a")',
    'not "z" in names',
    "not names.z",
    "not count(names) == 9",
    "not count([e | e := input.absent]) == 1",
    'text := input.text\n\tnot startswith(text, "a")',
    'not startswith(input.text, "a")\n\tinput.text != ""',
    'input.text\n\tnot startswith(input.text, "a")',
    "some e in input.list\n\tnot has_prefix(e)",
    "some i\n\te := input.list[i]\n\tnot e == 9",
    "not input.list[0] == 9",
    'key := "k"\n\tnot data.limits[key]',
    "not 3 in [1, 2]",
    "1 in input.list",
    "not data.touchstone.sometimes",
]  # fmt: skip
INPUTS = ({"list": ["b", "c"], "text": "b"}, {"list": [], "text": ""}, {})


def module(body: str) -> str:
    """The rules, and one with this body."""
    return f"{RULES}\nx if {{\n\t{body}\n}}\n"


def refused(source: str) -> set[str]:
    """The rules by which our checks refuse a module."""
    engine = regorus.Engine()
    engine.add_policy("a.rego", source)
    findings = lint.check(json.loads(engine.get_ast_as_json()), tests=frozenset())
    return {f.rule for f in findings if f.level == Level.ERROR} - {"entry", "tests-missing"}


@pytest.mark.parametrize("body", REFUSED)
def test_what_may_be_undefined_below_not_is_refused(body: str) -> None:
    """`not startswith(x.absent, "…")` is true in regorus and undefined in OPA: an error of lint, and each of its kind."""
    assert refused(module(body)) <= {"undefined-negated", "undefined-membership"}
    assert refused(module(body))


@pytest.mark.parametrize("body", ACCEPTED)
def test_what_means_the_same_in_both_is_accepted(body: str) -> None:
    """The safe forms, and whatever cannot be undefined."""
    assert refused(module(body)) == set()


@pytest.mark.parametrize("body", ACCEPTED)
def test_what_is_accepted_means_the_same_in_opa(body: str) -> None:
    """OPA itself says so, for inputs with the fields and without."""
    if importlib.util.find_spec("opa_bindings") is None:
        pytest.skip("OPA's library is not installed; see fixtures/record_rego.py")
    from opa_bindings import OpaEngine

    with OpaEngine() as opa:
        opa.add_policy("a.rego", module(body))
        opa.add_data({"limits": {"k": 1}})
        ours = regorus.Engine()
        ours.add_policy("a.rego", module(body))
        ours.add_data_json('{"limits": {"k": 1}}')
        for given in INPUTS:
            ours.set_input_json(json.dumps(given))
            found = opa.eval_query("v = data.touchstone.x", given)
            assert ours.eval_rule_as_json("data.touchstone.x") == ("true" if found else '"<undefined>"')


def test_the_message_has_the_place_and_the_safe_form() -> None:
    """An author sees what to write instead."""
    engine = regorus.Engine()
    engine.add_policy("a.rego", module('not startswith(input.absent, "a")'))
    (finding,) = (
        f
        for f in lint.check(json.loads(engine.get_ast_as_json()), tests=frozenset())
        if f.rule == "undefined-negated"
    )
    assert (finding.line, finding.column) == (module("").count("\n") - 1, 6)
    assert "value := input.absent" in finding.sentence
    assert 'startswith(input.absent, "a") a rule of its own' in finding.sentence


def test_tests_may_negate_what_they_like() -> None:
    """A test judges nobody."""
    engine = regorus.Engine()
    engine.add_policy("a_test.rego", 'package touchstone_test\ntest_a if not startswith(input.absent, "a")\n')
    findings = lint.check(json.loads(engine.get_ast_as_json()), tests=frozenset({"a_test.rego"}))
    assert {f.rule for f in findings} == {"entry"}


def test_a_deep_rule_is_refused_and_not_followed() -> None:
    """What is nested deeper than the check follows has an error of its own."""
    engine = regorus.Engine()
    engine.add_policy("a.rego", module("not " + " + ".join(["1"] * 110) + " == 2"))
    findings = lint.check(json.loads(engine.get_ast_as_json()), tests=frozenset())
    assert "levels deep" in next(f.sentence for f in findings if f.rule == "undefined-negated")
