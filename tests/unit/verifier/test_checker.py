"""What the checker finds in policies, where, and what it leaves alone; sources are parsed and never evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import regorus

from verifier.config import default_policy
from verifier.policy import ar4si, checker, contract
from verifier.policy.lint import Level, LintFinding
from verifier.reasons import REASONS

TERMS = checker.Terms(input=contract.input_schema(), reasons=sorted(REASONS))
DATA: dict[str, Any] = {
    "ar4si": ar4si.names(),
    "approved_engines": {"vllm": {"versions": ["0.11.0"], "weak": []}, "llama.cpp": {"versions": ["b1"]}},
    "forbidden_packages": {},
    "thresholds": {"walk_max_age_s": 3600, "limits": {"host_link": None}},
    "names": ["a", "b"],
}
ENTRY = (
    'outcome[name] := {"trust_vector": {"configuration": data.ar4si.configuration.approved}, "reasons": []} if {\n'
    "\tsome name, _ in input.checked\n}\n"
)
TEST = "package touchstone_test\n\ntest_nothing if true\n"
OTHER = ". Use another value or function (type)"
DEFINE = ". Define it, or bind it with := or some … in (undefined)"
OF_OTHERS = (
    "It has benchmark, capabilities, class_doubted, class_matches, endpoint, exposure, kind, malformed, "
    "memory_fits, named, node_state or runtime (field)"
)
MODEL = "some name, facts in input.checked"


def found(*sources: str, test: str = TEST, data: Any = None) -> tuple[LintFinding, ...]:
    """Findings in files a.rego, b.rego, … as they stand, and one test."""
    engine = regorus.Engine()
    for letter, source in zip("abcdefgh", sources, strict=False):
        engine.add_policy(f"{letter}.rego", source)
    engine.add_policy("z_test.rego", test)
    modules = json.loads(engine.get_ast_as_json())
    return checker.check(modules, tests=frozenset({"z_test.rego"}), data=data or DATA, terms=TERMS)


def in_policy(body: str, entry: str = ENTRY) -> list[str]:
    """The findings in a policy with an entry, as they are shown, without the file; *body* starts in line 2."""
    return [str(f).removeprefix("a.rego:") for f in found(f"package touchstone\n{body}\n{entry}")]


def in_test(body: str) -> list[str]:
    """The same for a test; *body* starts in line 4."""
    source = f"package touchstone\napproved(name) if name in data.names\n{ENTRY}"
    return [str(f).removeprefix("z_test.rego:") for f in found(source, test=TEST + body)]


def only(findings: list[str]) -> str:
    """The only finding."""
    assert len(findings) == 1, findings
    return findings[0]


NAMES = {
    "an undefined function": (
        "x := aproved(1)\napproved(n) := n",
        "2:6: there is no function aproved. Did you mean approved? (undefined)",
    ),
    "a misspelt built-in": (
        'x if startwith("a", "b")',
        "2:6: there is no function startwith. Did you mean startswith? (undefined)",
    ),
    "a built-in of another name": (
        'x := object.gett({}, "a", 1)',
        "2:6: there is no function object.gett. Did you mean object.get? (undefined)",
    ),
    "case": (
        'x := startsWith("a", "b")',
        "2:6: there is no function startsWith. Did you mean startswith? (undefined)",
    ),
    "nothing like it": (
        "x := zzz(1)",
        "2:6: there is no function zzz. Define it, or use a built-in function (undefined)",
    ),
    "a function by data": (
        "x := data.touchstone.aproved(1)\napproved(n) := n",
        "2:6: there is no function data.touchstone.aproved. Did you mean data.touchstone.approved? (undefined)",
    ),
    "a function that this engine lacks": (
        'x := uri.parse("a")',
        "2:6: uri.parse is a function of OPA that this engine does not have. Put the result into the bundle's data (undefined)",
    ),
    "a rule that is called": (
        "y := 1\nx := y(1)",
        "3:6: y is not a function. Write it without brackets (arity)",
    ),
    "a part of a rule that is called": (
        "y := 1\nx := y.z(1)",
        "3:6: y.z is not a function. Write it without brackets (undefined)",
    ),
    "a function that is not called": ("f(a) := a\nx := f", "3:6: f is a function. Write f(…) (type)"),
    "a built-in that is not called": ("x := count", "2:6: count is a function. Write count(…) (undefined)"),
    "an undefined variable": (
        "limit := 5\nx if limt > 3",
        "3:6: there is no rule, variable or import limt. Did you mean limit? (undefined)",
    ),
    "an undefined local": (
        f"x if {{ {MODEL}; fact.kind == name }}",
        "2:43: there is no rule, variable or import fact. Did you mean facts? (undefined)",
    ),
    "only compared": (
        "x if { some v; v > 1 }",
        "2:16: v never gets a value. Give it one with := or some … in (unsafe)",
    ),
    "a local of another body": (
        "f(a) := b if { b := a } else := b",
        "2:33: there is no rule, variable or import b" + DEFINE,
    ),
    "only in not": ("x if not input.references[m]", "2:27: there is no rule, variable or import m" + DEFINE),
    "a wildcard in not": (
        "x if not input.references[_]",
        "2:27: _ has no value here. Give what is meant a name, and let some … in bind it (unsafe)",
    ),
    "an unused import": (
        "import data.names\nx := 1",
        "2:1: the import data.names is not used. Remove it (unused)",
    ),
    "an unused import of input": (
        "import input.node as n\nx := 1",
        "2:1: the import input.node is not used. Remove it (unused)",
    ),
    "an import of nothing": (
        "import data.nmes\nx := 1 if { nmes }",
        "2:1: there is nothing at data.nmes. Did you mean names? (undefined)",
    ),
    "an unused variable": (
        "x if { y := 1 }",
        "2:8: y is not used. Remove it, or write what it is for (unused)",
    ),
    "an unused variable of a pattern": (
        "x := y if { [y, z] := [1, 2] }",
        "2:17: z is not used. Remove it, or write what it is for (unused)",
    ),
    "an unused argument": ("f(a, b) := a", "2:6: the argument b is not used. Write _ in its place (unused)"),
    "a declared name": (
        "x if { some y; input.date }",
        "2:13: y is declared and not used. Remove it, or write _ (unused)",
    ),
    "a key of every": (
        "x if every k, v in data.names { v }",
        "2:12: k is declared and not used. Remove it, or write _ (unused)",
    ),
    "twice": (
        "x if { y := 1; y := 2; y > 1 }",
        "2:16: y has a value already. Take another name, or compare with == (shadow)",
    ),
    "an argument again": (
        "f(a) := b if { a := 1; b := a }",
        "2:16: a has a value already. Take another name, or compare with == (shadow)",
    ),
    "after its use": (
        "y := 1\nx if { y == 1; y := 2 }",
        "3:16: y is used above its declaration. Declare it first, or take another name (shadow)",
    ),
    "an argument called input": (
        "f(input) := input",
        "2:3: input is also the name of the root input. Take another name (shadow)",
    ),
    "no variable": (
        'x if { input.date := "d" }',
        "2:8: := gives a value to variables, and this is none. Compare with == instead (assign)",
    ),
    "any": (
        "x if any([true])",
        "2:6: any is deprecated, and OPA refuses it. Write true in …, or some x in … (deprecated)",
    ),
    "re_match": (
        'x if re_match("a", "b")',
        "2:6: re_match is deprecated, and OPA refuses it. Write regex.match (deprecated)",
    ),
}


@pytest.mark.parametrize(("source", "shown"), NAMES.values(), ids=NAMES)
def test_names(source: str, shown: str) -> None:
    """An undefined function, a misspelt one, unused imports: each says what to write."""
    assert shown in in_policy(source)


CALLS = {
    "too few": (
        'x if startswith("a")',
        "2:6: startswith takes 2 arguments (a string; a string), but 1 is given (arity)",
    ),
    "too many": (
        "x := count([1], 2, 3)",
        "2:6: count takes 1 argument (a string, an array, an object or a set), but 3 are given (arity)",
    ),
    "none": (
        "x := count()",
        "2:6: count takes 1 argument (a string, an array, an object or a set), but 0 are given (arity)",
    ),
    "of our own": ("f(a) := a\nx := f(1, 2)", "3:6: f takes 1 argument, but 2 are given (arity)"),
    "too few for our own": (
        "f(a, b) := a + b\nx := f(1)",
        "3:6: f takes 2 arguments, but 1 is given (arity)",
    ),
    "by data": (
        "f(a) := a\nx := data.touchstone.f()",
        "3:6: data.touchstone.f takes 1 argument, but 0 are given (arity)",
    ),
    "a number for a string": (
        'x if startswith(1, "a")',
        "2:17: the first argument of startswith must be a string, but 1 is a number" + OTHER,
    ),
    "the second one": (
        'x if startswith("a", 1)',
        "2:22: the second argument of startswith must be a string, but 1 is a number" + OTHER,
    ),
    "a field of the input": (
        "x := sum(input.date)",
        "2:10: the first argument of sum must be an array of numbers or a set of numbers, but input.date is a string"
        + OTHER,
    ),
    "a field of facts": (
        f"x if {{ {MODEL}; startswith(facts.memory_fits, name) }}",
        "2:54: the first argument of startswith must be a string, but facts.memory_fits is a boolean" + OTHER,
    ),
    "data": (
        "x if startswith(data.thresholds.walk_max_age_s, input.date)",
        "2:17: the first argument of startswith must be a string, but data.thresholds.walk_max_age_s is a number"
        + OTHER,
    ),
    "items": (
        'x := concat(",", [1])',
        "2:18: the second argument of concat must be an array of strings or a set of strings, but [1] is an array of numbers"
        + OTHER,
    ),
    "the result of a function": (
        "f(a) := count(a)\nx := lower(f([1]))",
        "3:12: the first argument of lower must be a string, but f([1]) is a number" + OTHER,
    ),
    "a rule": (
        "y := 1\nx := lower(y)",
        "3:12: the first argument of lower must be a string, but y is a number" + OTHER,
    ),
    "an argument of our own": (
        'f(a) := lower(a)\nx := f("a")\ny := f(1)',
        "4:8: the first argument of f must be a string, but 1 is a number" + OTHER,
    ),
    "a sum": ("x := input.date + 1", "2:6: + needs a number, but input.date is a string" + OTHER),
    "a union": ("x := {1} | 2", "2:12: | needs a set, but 2 is a number" + OTHER),
    "a difference": (
        "x := {1} - 2",
        "2:6: - needs two numbers or two sets, but this is one of each. Use another value (type)",
    ),
    "minus": (
        "x := -count(input.checked)\ny := -lower(input.date)",
        "3:7: - needs a number, but lower(input.date) is a string" + OTHER,
    ),
    "elements of a string": (
        "x contains c if some c in input.date",
        "2:27: input.date is a string, which has no elements. Use an array, a set or an object (type)",
    ),
    "a part of a string": (
        "x := input.date.year",
        "2:17: input.date is a string, which has no parts. Use it as a whole (type)",
    ),
    "an item of an array": ("x := data.names.first", "2:6: there is no data.names.first. (undefined)"),
}


@pytest.mark.parametrize(("source", "shown"), CALLS.values(), ids=CALLS)
def test_calls_and_types(source: str, shown: str) -> None:
    """A wrong arity, wrong types."""
    assert only(in_policy(source)) == shown


FIELDS = {
    "of input": ("x if input.chekced", "2:12: input has no field chekced. Did you mean checked? (field)"),
    "in brackets": (
        'x if input["chekced"]',
        "2:13: input has no field chekced. Did you mean checked? (field)",
    ),
    "of an import": (
        "import input.node\nx := node.sate",
        "3:11: node has no field sate. Did you mean state? (field)",
    ),
    "of an import of nothing": (
        "import input.nod\nx := nod.state",
        "3:6: input has no field nod. Did you mean node? (field)",
    ),
    "of facts": (
        f"x contains name if {{ {MODEL}; facts.manifset }}",
        "2:63: facts has no field manifset. Did you mean manifest? (field)",
    ),
    "of a member by key": (
        'x := input.checked["platform"].runtme',
        '2:32: input.checked["platform"] has no field runtme. Did you mean runtime? (field)',
    ),
    "of any member": (
        "x if input.checked[_].wlak",
        "2:23: input.checked[_] has no field wlak. Did you mean walk? (field)",
    ),
    "of a part": (
        f"x contains name if {{ {MODEL}; facts.runtime.verison }}",
        "2:71: facts.runtime has no field verison. Did you mean version? (field)",
    ),
    "of an argument": (
        f"f(facts) := facts.wlak\nx contains name if {{ {MODEL}; f(facts) }}",
        "2:19: facts has no field wlak. Did you mean walk? (field)",
    ),
    "of an argument in two calls": (
        'f(r) := r.enigne\nx := f(input.checked["a"].runtime)\ny := f(input.checked["b"].runtime)',
        "2:11: r has no field enigne. Did you mean engine? (field)",
    ),
    "of an argument's argument": (
        'g(r) := r.enigne\nf(facts) := g(facts.runtime)\nx := f(input.checked["a"])',
        "2:11: r has no field enigne. Did you mean engine? (field)",
    ),
    "in a comprehension": (
        "x := {f.wlak | some f in input.checked}",
        "2:9: f has no field wlak. Did you mean walk? (field)",
    ),
    "in every": (
        "x if every f in input.checked { f.wlak }",
        "2:35: f has no field wlak. Did you mean walk? (field)",
    ),
    "in not": ("x if not input.node.sate", "2:21: input.node has no field sate. Did you mean state? (field)"),
    "of a copy": (
        "x if { n := input.node; n.sate }",
        "2:27: n has no field sate. Did you mean state? (field)",
    ),
    "of a rule's value": (
        "platform := input.checked.platform\nx := platform.node_stat",
        "3:15: platform has no field node_stat. Did you mean node_state? (field)",
    ),
    "of a kind": (
        f'x contains name if {{ {MODEL}; facts.kind == "model"; facts.node_state }}',
        "2:86: facts has no field node_state. It has kind, manifest, read, read_exhausted, walk or walk_exhausted (field)",
    ),
    "of a kind that stands below": (
        f'x contains name if {{ {MODEL}; facts.node_state; facts.kind == "model" }}',
        '2:75: facts.kind is never "model". It is "platform" (never)',
    ),
    "of a kind by a copy": (
        f'x contains name if {{ {MODEL}; k := facts.kind; k == "gpu"; facts.walk }}',
        "2:92: facts has no field walk. It has benchmark, kind, malformed, memory_fits or named (field)",
    ),
    "of what is not a kind": (
        f'x contains name if {{ {MODEL}; facts.kind != "model"; facts.walk }}',
        "2:86: facts has no field walk. " + OF_OTHERS,
    ),
    "of what is not a kind by not": (
        f'x contains name if {{ {MODEL}; not facts.kind == "model"; facts.walk }}',
        "2:90: facts has no field walk. " + OF_OTHERS,
    ),
    "with a default": (
        'x := object.get(input.node, "opertor", "")',
        "2:30: input.node has no field opertor. Did you mean operator? (field)",
    ),
    "of references": (
        "x contains r.sorce if some r in input.references",
        "2:14: r has no field sorce. Did you mean source? (field)",
    ),
    "of an object of the policy": ('y := {"a": 1}\nx := y.b', "3:8: y has no field b. It has a (field)"),
}


@pytest.mark.parametrize(("source", "shown"), FIELDS.values(), ids=FIELDS)
def test_fields(source: str, shown: str) -> None:
    """Misspelt input fields."""
    assert shown in in_policy(source)
    assert len(in_policy(source)) <= 2


VALUES = {
    "a comparison": (
        f'x contains name if {{ {MODEL}; facts.walk == "caled" }}',
        '2:57: facts.walk is never "caled". Did you mean "called"? (never)',
    ),
    "the other way round": (
        f'x contains name if {{ {MODEL}; "caled" == facts.walk }}',
        '2:58: facts.walk is never "caled". Did you mean "called"? (never)',
    ),
    "a difference": (
        f'x contains name if {{ {MODEL}; facts.walk != "caled" }}',
        '2:57: facts.walk is never "caled". Did you mean "called"? (never)',
    ),
    "unified": (
        f'x contains name if {{ {MODEL}; facts.walk = "caled" }}',
        '2:57: facts.walk is never "caled". Did you mean "called"? (never)',
    ),
    "in not": (
        f'x contains name if {{ {MODEL}; not facts.walk == "caled" }}',
        '2:61: facts.walk is never "caled". Did you mean "called"? (never)',
    ),
    "in a set": (
        f'x contains name if {{ {MODEL}; facts.read in {{"right", "unaksed"}} }}',
        '2:82: facts.read is never "unaksed". Did you mean "unasked"? (never)',
    ),
    "in an array": (
        f'x contains name if {{ {MODEL}; facts.read in ["right", "unaksed"] }}',
        '2:82: facts.read is never "unaksed". Did you mean "unasked"? (never)',
    ),
    "not in a set": (
        f'x contains name if {{ {MODEL}; not facts.read in {{"right", "unaksed"}} }}',
        '2:86: facts.read is never "unaksed". Did you mean "unasked"? (never)',
    ),
    "in a rule's set": (
        f'good := {{"equal", "agde"}}\nx contains name if {{ {MODEL}; facts.manifest in good }}',
        '3:57: facts.manifest is never "agde". Did you mean "aged"? (never)',
    ),
    "in a partial set": (
        f'good contains "equal"\ngood contains "agde"\nx contains name if {{ {MODEL}; facts.manifest in good }}',
        '4:57: facts.manifest is never "agde". Did you mean "aged"? (never)',
    ),
    "in a local set": (
        f'x contains name if {{ {MODEL}; good := {{"agde"}}; facts.manifest in good }}',
        '2:75: facts.manifest is never "agde". Did you mean "aged"? (never)',
    ),
    "one of several": (
        f'x contains name if {{ {MODEL}; some w in ["called", "laet"]; facts.walk == w }}',
        '2:87: facts.walk is never "laet". Did you mean "late"? (never)',
    ),
    "a key of a table": (
        'table := {"called": 1, "laet": 2}\nx contains v if { some f in input.checked; v := table[f.walk] }',
        '3:55: table has the key "laet". f.walk is never "laet". Did you mean "late"? (never)',
    ),
    "an argument": (
        f'f(w) if w == "caled"\nx contains name if {{ {MODEL}; f(facts.walk) }}',
        '2:9: w is never "caled". Did you mean "called"? (never)',
    ),
    "a kind": (
        f'x contains name if {{ {MODEL}; facts.kind == "modle" }}',
        '2:57: facts.kind is never "modle". Did you mean "model"? (never)',
    ),
    "a kind in every": (
        'x if every f in input.checked { f.kind in {"gpuu", "model"} }',
        '2:45: f.kind is never "gpuu". Did you mean "gpu"? (never)',
    ),
    "a state": (
        'x if input.node.state == "quarantined"',
        '2:6: input.node.state is never "quarantined". It is "active", "probation" or "retired" (never)',
    ),
    "a type": (
        "x if input.node.state == 5",
        '2:6: input.node.state is never 5. It is "active", "probation" or "retired" (never)',
    ),
    "a truth as a string": (
        f'x contains name if {{ {MODEL}; facts.memory_fits == "true" }}',
        '2:57: facts.memory_fits is never "true". It is a boolean (never)',
    ),
    "a field that is null otherwise": (
        f'x contains name if {{ {MODEL}; facts.exposure == "opne" }}',
        '2:57: facts.exposure is never "opne". Did you mean "open"? (never)',
    ),
    "two kinds at once": (
        f'x contains name if {{ {MODEL}; facts.kind == "model"; facts.kind == "gpu" }}',
        '2:80: facts.kind is never "gpu". It is "model" (never)',
    ),
    "two types": (
        'y := 1\nx if y == "1"',
        '3:6: y is a number, and "1" is a string, so they are never equal. Compare what can be equal (never)',
    ),
    "a pattern": (
        "x := a if { [a, _] := [1, 2, 3] }",
        "2:13: [a, _] never fits a value that is an array of numbers. Write one like it (never)",
    ),
}


@pytest.mark.parametrize(("source", "shown"), VALUES.values(), ids=VALUES)
def test_values(source: str, shown: str) -> None:
    """Impossible values, although the schema exists."""
    assert only(in_policy(source)) == shown


ABSENT = {
    "a document": (
        "x := data.approved_engine.vllm",
        "2:6: the bundle has no data.approved_engine. Did you mean approved_engines? (undefined)",
    ),
    "a key": (
        "x := data.thresholds.walk_max_age",
        "2:6: there is no data.thresholds.walk_max_age. Did you mean walk_max_age_s? (undefined)",
    ),
    "a key in brackets": (
        'x := data["thresholds"]["walk_age"]',
        "2:6: there is no data.thresholds.walk_age. Did you mean walk_max_age_s? (undefined)",
    ),
    "a claim": (
        "x := data.ar4si.hardwre.declared",
        "2:6: there is no data.ar4si.hardwre. Did you mean hardware? (undefined)",
    ),
    "a value of a claim": (
        "x := data.ar4si.hardware.decalred",
        "2:6: there is no data.ar4si.hardware.decalred. Did you mean declared? (undefined)",
    ),
    "a claim with a dash": (
        'x := data.ar4si["file-system"].published',
        "2:6: there is no data.ar4si.file-system. Did you mean file_system? (undefined)",
    ),
    "a rule": (
        "acceptable := 1\nx := data.touchstone.aceptable",
        "3:6: there is no data.touchstone.aceptable. Did you mean acceptable? (undefined)",
    ),
    "a field of all rows": (
        "x := data.approved_engines[input.date].version",
        "2:40: data.approved_engines[input.date] has no field version. Did you mean versions? (field)",
    ),
    "by an import": (
        "import data.thresholds as t\nx := t.walk_age",
        "3:6: there is no data.thresholds.walk_age. Did you mean walk_max_age_s? (undefined)",
    ),
    "what tests define": (
        "x := data.touchstone_test.test_nothing",
        "2:6: the bundle has no data.touchstone_test. Did you mean touchstone? (undefined)",
    ),
}


@pytest.mark.parametrize(("source", "shown"), ABSENT.values(), ids=ABSENT)
def test_data_that_is_not_there(source: str, shown: str) -> None:
    """Nothing of a bundle's data comes later, so such a reference is undefined for ever."""
    assert only(in_policy(source)) == shown


CONFLICTS = {
    "two defaults": ("default x := 1\ndefault x := 2", "3:1: x has two defaults. Remove one (conflict)"),
    "arities": (
        "f(a) := a\nf(a, b) := a + b",
        "3:1: f takes 1 argument in line 2, and 2 arguments here (conflict)",
    ),
    "a function and a rule": (
        "f(a) := a\nf := 1",
        "3:1: f is a function and a rule. Give one of them another name (conflict)",
    ),
    "a set and a value": ("x contains 1\nx := 2", "3:1: x is a set in line 2, and a value here (conflict)"),
    "an object and a value": (
        "x[k] := 1 if some k in data.names\nx := 2",
        "3:1: x is an object in line 2, and a value here (conflict)",
    ),
    "below a value": (
        "x.y := 1\nx := 2",
        "2:1: x.y lies in x, which is a value. Give one of them another name (conflict)",
    ),
    "a default of a set": (
        "default x := 1\nx contains 2",
        "3:1: x is a set, and a set has no default. Remove the default (conflict)",
    ),
    "a default that is no constant": (
        "default x := input.date",
        "2:1: the default of x must be a constant. Use else, or another rule (conflict)",
    ),
}


@pytest.mark.parametrize(("source", "shown"), CONFLICTS.values(), ids=CONFLICTS)
def test_rules_that_conflict(source: str, shown: str) -> None:
    assert shown.partition(": ")[2] in {f.partition(": ")[2] for f in in_policy(source)}


def test_a_rule_and_a_package_of_one_name() -> None:
    findings = found(
        f"package touchstone\ngpu := 1\n{ENTRY}",
        "package touchstone.gpu\n\nfits(facts) if facts.memory_fits\n",
    )
    assert [(f.rule, f.file, f.line) for f in findings] == [
        ("conflict", "a.rego", 2),
        ("conflict", "b.rego", 3),
    ]


OUTCOMES = {
    "a claim": (
        '{"trust_vector": {"configuraton": 2}, "reasons": []}',
        "2:38: AR4SI has no claim configuraton. Did you mean configuration? (claim)",
    ),
    "a claim with underscores": (
        '{"trust_vector": {"file_system": 2}, "reasons": []}',
        "2:38: AR4SI has no claim file_system. Did you mean file-system? (claim)",
    ),
    "a value out of range": (
        '{"trust_vector": {"hardware": 258}, "reasons": []}',
        "2:50: 258 is not a value of hardware. Values are integers from -128 to 127; use a name of data.ar4si (claim)",
    ),
    "a value that is a string": (
        '{"trust_vector": {"hardware": "2"}, "reasons": []}',
        '2:1: the value of hardware is "2", not an integer. Use a name of data.ar4si (claim)',
    ),
    "a code": (
        '{"trust_vector": {"hardware": 2}, "reasons": ["runtime.engine.waek"]}',
        "2:66: there is no reason code runtime.engine.waek. Did you mean runtime.engine.weak? (reason)",
    ),
    "a code of nothing like it": (
        '{"trust_vector": {"hardware": 2}, "reasons": ["zzz"]}',
        "2:66: there is no reason code zzz. docs/reason-codes.md lists them (reason)",
    ),
    "a code in a set": (
        '{"trust_vector": {"hardware": 2}, "reasons": {"runtime.missng"}}',
        "2:66: there is no reason code runtime.missng. Did you mean runtime.missing? (reason)",
    ),
    "a field": (
        '{"trust_vector": {"hardware": 2}, "reason": []}',
        "2:53: an entry of outcome has no field reason. Did you mean reasons? (outcome)",
    ),
    "no reasons": (
        '{"trust_vector": {"hardware": 2}}',
        "2:1: an entry of outcome has no reasons, and it must have one. Add it (outcome)",
    ),
    "no vector": (
        '{"reasons": []}',
        "2:1: an entry of outcome has no trust_vector, and it must have one. Add it (outcome)",
    ),
    "reasons that are no array": (
        '{"trust_vector": {"hardware": 2}, "reasons": "runtime.missing"}',
        '2:1: reasons is "runtime.missing", not an array of codes (reason)',
    ),
    "a code that is a number": (
        '{"trust_vector": {"hardware": 2}, "reasons": [5]}',
        "2:1: reasons has 5, not a code. Codes are strings (reason)",
    ),
    "no object": (
        '"affirming"',
        '2:1: an entry of outcome is "affirming", not an object with trust_vector and reasons (outcome)',
    ),
}


@pytest.mark.parametrize(("value", "shown"), OUTCOMES.values(), ids=OUTCOMES)
def test_outcomes(value: str, shown: str) -> None:
    """Unknown reason codes, claims and values: they would be found when a bad node meets them."""
    source = f"package touchstone\noutcome[name] := {value} if some name, _ in input.checked\n"
    findings = [str(f).removeprefix("a.rego:") for f in found(source)]
    assert shown.partition(": ")[2] in {f.partition(": ")[2] for f in findings}


def test_reason_codes_through_functions_and_comprehensions() -> None:
    """Each is told where it is written."""
    source = """package touchstone
outcome[name] := {"trust_vector": vector(facts), "reasons": sort(complaints(facts))} if {
	some name, facts in input.checked
}
vector(facts) := {"configration": 2} if facts.kind == "platform"
vector(facts) := {"hardware": 2} if facts.kind != "platform"
complaints(facts) := {code |
	some code in ["runtime.missing", "runtime.exposd"]
	complaint(facts, code)
}
complaint(facts, "runtime.missing") if facts.runtime == null
complaint(facts, "runtime.exposd") if facts.exposure == "open"
"""
    assert [(f.rule, f.line, f.column) for f in found(source)] == [
        ("claim", 5, 20),
        ("reason", 8, 36),
        ("reason", 12, 19),
    ]


def test_an_outcome_of_one_submodule() -> None:
    """Given by its name."""
    source = 'package touchstone\noutcome["gpu/0"] := {"trust_vector": {"hardwre": 2}, "reasons": []} if input.date\n'
    assert [str(f) for f in found(source)] == [
        "a.rego:2:41: AR4SI has no claim hardwre. Did you mean hardware? (claim)"
    ]


def test_an_outcome_that_is_a_whole_object() -> None:
    """Built in one step, or by a partial set of codes."""
    source = """package touchstone
outcome := {name: {"trust_vector": {"hardware": 2}, "reasons": codes} | some name, _ in input.checked}
codes contains "runtime.mising" if input.date
"""
    assert [str(f) for f in found(source)] == [
        "a.rego:3:17: there is no reason code runtime.mising. Did you mean runtime.missing? (reason)"
    ]


CLEAN = {
    "a kind in a set": f'x contains name if {{ {MODEL}; facts.kind in {{"model", "gpu"}}; facts.kind != "unknown" }}',
    "a kind that is excluded twice": f'x contains name if {{ {MODEL}; facts.kind == "model"; not facts.kind == "gpu" }}',
    "one field in two conditions": f'x contains name if {{ {MODEL}; facts.walk != "none"; not facts.walk == "called" }}',
    "a field of one kind after another's": f'x contains name if {{ {MODEL}; object.get(facts, "walk", "none") == "none" }}',
    "a field that is null": f"x contains name if {{ {MODEL}; facts.runtime != null; facts.runtime.engine }}",
    "null": f"x contains name if {{ {MODEL}; facts.runtime == null }}",
    "an argument of the engine": f'x contains name if {{ {MODEL}; facts.runtime.arguments["a"] in {{"b", 1, true}} }}',
    "every package": "x contains p if { some f in input.checked; some p, v in f.runtime.packages; v in data.names }",
    "a table that is empty": f"x contains name if {{ {MODEL}; facts.runtime.version in data.forbidden_packages[facts.kind] }}",
    "a field that some rows have": "x := data.approved_engines[input.date].weak",
    "null in data": "x if data.thresholds.limits.host_link > 5",
    "a switch": 'mode := "strict"\nx if mode == "lenient"',
    "a switch of truth": "strict := true\nx if not strict\ny if strict == false",
    "a function of several kinds": (
        'f(facts) := facts.walk if facts.kind == "model"\nf(facts) := facts.benchmark if facts.kind == "gpu"\n'
        f"x contains f(facts) if {{ {MODEL}; name }}"
    ),
    "a function of several types": "f(a) := lower(a)\nf(a) := a + 1\nx := f(input.date)",
    "a function that nobody calls": "f(a) := a.b.c",
    "two facts of one list": "x contains m if { some m, a in input.checked; some b in input.checked; a.walk == b.walk }",
    "fields that share a value": f"x contains name if {{ {MODEL}; facts.read == facts.manifest }}",
    "what json gives": 'x := json.unmarshal("{}").a.b',
    "walk": 'x contains p if { walk(input, [p, v]); v == "called" }',
    "computed fields": 'x contains v if { some k in ["walk", "read"]; v := input.checked[_][k] }',
    "all of the package": "y := 1\nx contains k if some k, _ in data.ar4si",
    "another package": "x := data.ar4si.hardware.declared",
    "print": 'x if { print("a", input.date); input.date }',
}


@pytest.mark.parametrize("source", CLEAN.values(), ids=CLEAN)
def test_nothing_is_found(source: str) -> None:
    """What is unknown, or may well be meant, passes."""
    assert in_policy(source) == []


def test_functions_of_other_packages() -> None:
    """By their path, by an import of the package, and by an import of the function."""
    library = "package touchstone.lib\n\nfits(facts) if facts.memory_fits\n"
    for use in (
        "x if data.touchstone.lib.fits(input.checked.g)",
        "import data.touchstone.lib\nx if lib.fits(input.checked.g)",
        "import data.touchstone.lib.fits as ok\nx if ok(input.checked.g)",
    ):
        assert found(f"package touchstone\n{use}\n{ENTRY}", library) == ()
    (finding,) = found(
        f"package touchstone\nimport data.touchstone.lib\nx if lib.fit(input.checked.g)\n{ENTRY}", library
    )
    assert finding.sentence == "there is no function lib.fit. Did you mean lib.fits?"
    (finding,) = found(f"package touchstone\nx if fits(input.checked.g)\n{ENTRY}", library)
    assert finding.sentence == "there is no function fits. There is data.touchstone.lib.fits"


TESTS = {
    "any input": ('test_x if { input.anything.at.all with input as {"a": 1} }', None),
    "mocked data": ('test_x if { data.other.x == 1 with data.other as {"x": 1} }', None),
    "data below what is mocked": (
        'test_x if { data.touchstone.approved("c") with data.names as ["c"] }',
        None,
    ),
    "a function in the place of another": (
        'f(_) := true\ntest_x if { data.touchstone.approved("c") with data.touchstone.approved as f }',
        None,
    ),
    "a built-in in the place of another": ("f(_) := 5\ntest_x if { count([1]) == 5 with count as f }", None),
    "a rule of the policy": (
        'test_x if { data.touchstone.outcme["x"] with input as {} }',
        "4:13: there is no data.touchstone.outcme. Did you mean outcome? (undefined)",
    ),
    "a function of the policy": (
        'test_x if { data.touchstone.aproved("x") }',
        "4:13: there is no function data.touchstone.aproved. Did you mean data.touchstone.approved? (undefined)",
    ),
    "an arity": (
        'test_x if { data.touchstone.approved("x", "y", "z") }',
        "4:13: data.touchstone.approved takes 1 argument, but 3 are given (arity)",
    ),
    "a field of the outcome": (
        'test_x if { data.touchstone.outcome["x"].reason == [] with input as {} }',
        '4:42: data.touchstone.outcome["x"] has no field reason. Did you mean reasons? (field)',
    ),
    "nothing that can be replaced": (
        "test_x if { input.a with inptu as {} }",
        "4:26: inptu cannot be replaced. Replace input, data or a function (undefined)",
    ),
    "a type": (
        'test_x if lower(1) == "a"',
        "4:17: the first argument of lower must be a string, but 1 is a number" + OTHER,
    ),
}


@pytest.mark.parametrize(("source", "shown"), TESTS.values(), ids=TESTS)
def test_tests(source: str, shown: str | None) -> None:
    """Tests give any input, and replace data; names, arities and types are checked in them too."""
    assert in_test(source + "\n") == ([] if shown is None else [shown])


def test_what_only_strict_mode_refuses_is_a_warning_in_tests() -> None:
    (finding,) = found(
        f"package touchstone\n{ENTRY}", test="package a_test\n\nimport data.names\n\ntest_x if true\n"
    )
    assert (finding.level, finding.rule) == (Level.WARNING, "unused")
    (finding,) = found(f"package touchstone\nimport data.names\n{ENTRY}")
    assert (finding.level, finding.rule) == (Level.ERROR, "unused")


def test_a_rule_that_is_nested_too_deeply() -> None:
    """It is refused, and the other rules are checked."""
    deep = "1" + " + 1" * 200
    findings = in_policy(f"x := {deep}\ny := zzz(1)")
    assert [f.rpartition("(")[2] for f in findings] == ["depth)", "undefined)"]
    assert in_policy("x := 1" + " + 1" * 50) == []


def test_the_default_policy_is_clean() -> None:
    """With its tests, and with its own data."""
    engine = regorus.Engine()
    folder = Path(default_policy())
    files = sorted(folder.rglob("*.rego"))
    for file in files:
        engine.add_policy(file.name, file.read_text())
    data = json.loads((folder / "data.json").read_text()) | {"ar4si": ar4si.names()}
    tests = frozenset(f.name for f in files if f.name.endswith("_test.rego"))
    modules = json.loads(engine.get_ast_as_json())
    assert [str(f) for f in checker.check(modules, tests=tests, data=data, terms=TERMS)] == []


def test_findings_have_an_order() -> None:
    source = "package touchstone\nx := zzz(1)\ny := qqq(2) + input.nothing\n"
    first = found(source + ENTRY)
    assert list(first) == sorted(first, key=lambda f: (f.file, f.line, f.column, f.rule))
    assert first == found(source + ENTRY)
