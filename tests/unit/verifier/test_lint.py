"""What is found in policies, where, and what is left alone; sources are parsed and never evaluated."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import regorus
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.config import default_policy
from verifier.policy import lint
from verifier.policy.lint import Level, LintFinding

HOME = "package touchstone\n"
ENTRY = 'outcome[name] := {"trust_vector": {}, "reasons": []} if some name, _ in input.checked\n'
TEST = "package touchstone_test\n\ntest_nothing if true\n"


def found(*sources: str, test: str = TEST) -> tuple[LintFinding, ...]:
    """Findings in files a.rego, b.rego, … as they stand, and one test."""
    engine = regorus.Engine()
    for letter, source in zip("abcdefgh", sources, strict=False):
        engine.add_policy(f"{letter}.rego", source)
    engine.add_policy("z_test.rego", test)
    return lint.check(json.loads(engine.get_ast_as_json()), tests=frozenset({"z_test.rego"}))


def in_policy(body: str, *others: str) -> list[tuple[str, int, int]]:
    """Rule, line and column of findings in a policy with an entry; *body* starts in line 2."""
    findings = found(f"{HOME}{body}\n{ENTRY}", *others)
    return [(f.rule, f.line, f.column) for f in findings]


def in_test(body: str) -> list[tuple[str, int, int]]:
    """The same for a test module; *body* starts in line 4."""
    return [(f.rule, f.line, f.column) for f in found(HOME + ENTRY, test=TEST + body)]


def cycles(*sources: str) -> list[str]:
    """The cycles that are shown."""
    return [f.sentence.partition(" is recursion")[0] for f in found(*sources) if f.rule == "recursion"]


RECURSIVE = {
    "itself": ("f(x) := f(x)", "f → f"),
    "mutual": ("a := b\nb := a", "a → b → a"),
    "of three": ("a := b\nb := c\nc := a", "a → b → c → a"),
    "mutual functions": ("f(x) := g(x)\ng(x) := f(x)", "f → g → f"),
    "data with dots": ("f(x) := data.touchstone.f(x)", "f → f"),
    "data with brackets": ('f(x) := data["touchstone"]["f"](x)', "f → f"),
    "data with a raw string": ("a := data[`touchstone`].a", "a → a"),
    "data in one string": ('a := data["touchstone.a"]', "a → a"),
    "an escape in a name": ('a := data["touchston\\u0065"].a', "a → a"),
    "a computed name": ("a if { some x in input.names; data.touchstone[x] }", "a → a"),
    "a computed package": ("a if { some x in input.names; data[x].a }", "a → a"),
    "all of data": ("a := count(data)", "a → a"),
    "all of the package": ("a := data.touchstone", "a → a"),
    "walk": ("a if { walk(data, [path, value]) }", "a → a"),
    "another index of itself": ('p[x] := 1 if { x := "a"; p["b"] }', "p → p"),
    "below itself": ("p := p.q", "p → p"),
    "a set of itself": ("p contains x if some x in p", "p → p"),
    "an array comprehension": ("a := [x | x := a]", "a → a"),
    "a set comprehension": ("a := {x | some x in a}", "a → a"),
    "an object comprehension": ("a := {k: 1 | some k, _ in a}", "a → a"),
    "the head of a comprehension": ("a := [a | true]", "a → a"),
    "the domain of every": ("a if every x in a { x }", "a → a"),
    "the body of every": ("a if every x in input.l { b[x] }\nb[x] if { some x in input.l; a }", "a → b → a"),
    "else": ("a := 1 if input.x else := a", "a → a"),
    "the body of else": ("a := 1 if input.x else := 2 if a", "a → a"),
    "not": ("a if not b\nb if not a", "a → b → a"),
    "a default function": ("default f(_) := [1 | g]\ng := f(1)", "f → g → f"),
    "a default": ("default a := [x | x := b]\nb := a", "a → b → a"),
    "an argument": ("f(x) := count(f(x))", "f → f"),
    "an index": ("a := input.list[a]", "a → a"),
    "a head's index": ("p[p] := 1 if true\nq := p", "p → p"),
    "a key": ("a := {a: 1}", "a → a"),
    "arithmetic": ("a := 1 + (2 * a)", "a → a"),
    "membership": ("a if 1 in a", "a → a"),
    "the second body": ("a if { input.x } { a }", "a → a"),
    "with": ("a := x if { x := input.y with input as data.touchstone.a }", "a → a"),
    "a mock": ("f(x) := 1\ng(x) := y if { y := f(x) with f as g }", "g → g"),
    "a name that was local in another query": ("a if { count([y | a := 1; y := a]) > 0; a }", "a → a"),
    "a name before it is declared": ("a if { x := a; x > 0; y := 2 }", "a → a"),
    "the value that is declared": ("a if { x := a }", "a → a"),
    "the collection that is searched": ("a if { some a in a }", "a → a"),
    "a call of a name that is local": ("f(x) := y if { some f; y := f(x) }", "f → f"),
    "an argument called data": ("f(data) := data.touchstone.f", "f → f"),
}


@pytest.mark.parametrize(("source", "shown"), RECURSIVE.values(), ids=RECURSIVE)
def test_recursion(source: str, shown: str) -> None:
    assert cycles(HOME + source) == [shown]


def test_recursion_through_an_import_and_its_alias() -> None:
    """The rules of another package are shown in full."""
    sources = (
        "package touchstone\nimport data.touchstone.b\na := b.x\n",
        "package touchstone.b\nimport data.touchstone as t\nx := t.a\n",
    )
    assert cycles(*sources) == ["a → data.touchstone.b.x → a"]


@pytest.mark.parametrize("alias", ["g", "touchstone"])
def test_recursion_through_an_imported_function(alias: str) -> None:
    source = f"package touchstone\nimport data.touchstone.f as {alias}\nf(x) := {alias}(x)\n"
    assert cycles(source) == ["f → f"]


def test_recursion_where_packages_and_rules_lie_in_one_another() -> None:
    """A rule b.c of a package is within reach of whoever reads b."""
    assert cycles(
        "package touchstone\nb.c := data.touchstone.d.e\n", "package touchstone.d\ne := data.touchstone.b\n"
    )
    assert cycles(
        "package touchstone\nx := data.touchstone.d\n", "package touchstone.d.e\ny := data.touchstone.x\n"
    )


def test_recursion_in_tests() -> None:
    """Tests are evaluated too."""
    assert in_test("f(x) := f(x)\n") == [("recursion", 4, 9)]


def test_each_cycle_is_told_once_and_a_long_one_briefly() -> None:
    assert cycles(HOME + "a := b\nb := a\nc := c + a\nd := e\ne := d\n") == [
        "a → b → a",
        "c → c",
        "d → e → d",
    ]
    many = "".join(f"r{i} := r{(i + 1) % 40}\n" for i in range(40))
    assert cycles(HOME + many) == ["r0 → r1 → r2 → r3 → r4 → r5 → … → r0"]


STRAIGHT = {
    "an argument": "f(g) := g\ng := f(1)",
    "an argument in an array": "f([g, {1: h}]) := g + h\ng := f([1, {1: 2}])\nh := f([1, {1: 2}])",
    "some": "a if { some b; input.x[b] }\nb := a",
    "some in": "a if { some b, c in input.x; b == c }\nb := a\nc := a",
    "some with a pattern": 'a if { some {"k": b} in input.x; b }\nb := a',
    "declared": "a if { b := 1; b > 0 }\nb := a",
    "declared in an array": "a if { [b, c] := input.x; b > c }\nb := a\nc := a",
    "declared, then in a comprehension": "a if { b := 1; count([b | b > 0]) > 0 }\nb := a",
    "declared in a comprehension": "a := [b | some b in input.x]\nb := a",
    "every": "a if every b, c in input.x { b > c }\nb := a\nc := a",
    "declared in the body, used in the head": "a := b if { b := 1 }\nb := a",
    "used in the head's index": "p[b] := c if { some b, c in input.x }\nb := p\nc := p",
    "used in the else's own head": "a := 1 if input.x else := b if { b := 1 }\nb := a",
    "a key of a set": "p contains b if some b in input.x\nb := p",
    "a field of input": "a := input.a.b\nb := a",
    "a field of a local": 'a if { x := input.y; x.a; x["a"] }',
    "a string": 'a := "a"',
    "a key": 'a := {"a": 1}.a',
    "an object in data": "a := data.approved_engines[input.engine]",
    "siblings": "p.a := 1\np.b := p.a",
    "siblings by brackets": 'p["a"] := 1\np["b"] := data.touchstone.p.a',
    "calls one after the other": "f(x) := x\ng(x) := f(f(f(x)))\nh := f(g(1))",
    "a diamond": "a := b + c\nb := d\nc := d\nd := 1",
    "functions and their defaults": "default f(_) := 96\nf(x) := 2 if g(x)\ng(x) if x > 1",
}


@pytest.mark.parametrize("source", STRAIGHT.values(), ids=STRAIGHT)
def test_no_recursion(source: str) -> None:
    assert cycles(HOME + source) == []


def test_no_recursion_between_packages_with_like_names() -> None:
    assert cycles("package touchstone\na := data.touchstone.x.a\n", "package touchstone.x\na := 1\n") == []
    assert (
        cycles("package touchstone\nx := 1\n", "package touchstone.y\nimport data.touchstone.x\ny := x\n")
        == []
    )


def test_no_recursion_in_a_mock_that_calls_what_it_replaces() -> None:
    """Within it the replacement is not in force."""
    body = "mock(x) := count(x) + 1\ntest_mock if { count([1]) == 2 with count as mock }\n"
    assert in_test(body) == []
    assert in_test("f(x) := x\nmock(x) := f(x) + 1\ntest_mock if { f(1) == 2 with f as mock }\n") == []
    assert in_test("a := 1\nb := a + 1\ntest_b if { a == 2 with data.touchstone_test.a as b }\n") == []


BUILTINS = {
    "http.send({})": "network",
    "net.cidr_contains(input.a, input.b)": "network",
    "net.lookup_ip_addr(input.name)": "network",
    "rand.intn(input.seed, 5)": "nondeterministic",
    "uuid.rfc4122(input.seed)": "nondeterministic",
    "opa.runtime()": "environment",
    "time.now_ns()": "clock",
    "yaml.unmarshal(input.text)": "builtin",
    "io.jwt.decode(input.token)": "builtin",
    "crypto.sha256(input.text)": "builtin",
    "rego.metadata.rule()": "builtin",
    "rego.parse_module(input.name, input.text)": "builtin",
    "trace(input.text)": "builtin",
    'http["send"]({})': "network",
    "count(http.send({}))": "network",
    "[x | x := rand.intn(input.seed, 3)]": "nondeterministic",
}


@pytest.mark.parametrize(("call", "rule"), BUILTINS.items(), ids=BUILTINS)
def test_calls_that_reach_outside(call: str, rule: str) -> None:
    findings = found(f"{HOME}{ENTRY}x := {call}\n")
    assert [(f.level, f.rule, f.line) for f in findings] == [(Level.ERROR, rule, 3)]


def test_where_a_call_stands() -> None:
    """At its name, not at its bracket, wherever it is; columns count characters."""
    assert in_policy("x := 1 + time.now_ns()") == [("clock", 2, 10)]
    assert in_policy('x := ["é", opa.runtime()]') == [("environment", 2, 12)]
    assert in_policy("x if {\n\tinput.a\n\tnot http.send({})\n}") == [("network", 4, 6)]


@pytest.mark.parametrize(
    "call",
    [
        "time.clock(input.date_ns)",
        "time.weekday(0)",
        "data.touchstone.http(1)",
        "count([1])",
        "f.send(1)",
    ],
)
def test_calls_that_stay_inside(call: str) -> None:
    assert in_policy(f"x := {call}\nhttp(_) := 3\nf.send(_) := 4") == [
        ("bare-number", 3, 12),
        ("bare-number", 4, 14),
    ]


def test_print_is_a_warning() -> None:
    (finding,) = found(HOME + ENTRY + "x if print(input)\n")
    assert (finding.level, finding.rule, finding.line, finding.column) == (Level.WARNING, "print", 3, 6)
    assert in_test("y if print(input)\n") == []


def test_mocks_of_what_reaches_outside() -> None:
    """Whether it is replaced or put in place."""
    assert in_test("f(_) := 1\ntest_a if { f(1) with http.send as f }\n") == [("network", 5, 23)]
    assert in_test("f(_) := 1\ntest_a if { f(1) with f as time.now_ns }\n") == [("clock", 5, 28)]


def test_with_is_for_tests() -> None:
    assert in_policy("x if { input.a with input as {} }") == [("with", 2, 16)]
    assert in_test("test_a if { input.a with input as {} }\n") == []


UNBOUNDED = {
    "numbers.range(1, 100001)": True,
    "numbers.range(1, 100000)": False,
    "numbers.range(1000000, 1)": True,
    "numbers.range(-60000, 60000)": True,
    "numbers.range(input.a, 100001)": False,
    "numbers.range_step(0, 1000000, 5)": True,
    "numbers.range_step(0, 1000000, 100)": False,
    "bits.lsh(1, 1000000)": True,
    "bits.lsh(1, 64)": False,
    'sprintf("%1000000000d", [input.a])': True,
    'sprintf("%-5d, 100%% of 1000000", [input.a])': False,
}


@pytest.mark.parametrize(("call", "is_refused"), UNBOUNDED.items(), ids=UNBOUNDED)
def test_sizes_that_a_constant_asks_for(call: str, *, is_refused: bool) -> None:
    found = [finding for finding in in_policy(f"x := {call}") if finding[0] != "format"]
    assert found == ([("unbounded", 2, 6)] if is_refused else [])


IMPORTS = {
    "rego.v1": True,
    "future.keywords.in": True,
    "future.keywords": True,
    "data.ar4si": True,
    "data.ar4si as names": True,
    "input.node": True,
    "rego.v2": False,
    "input.node as data": False,
    "data.ar4si as input": False,
    "input.data": False,
}


@pytest.mark.parametrize(("name", "is_allowed"), IMPORTS.items(), ids=IMPORTS)
def test_imports(name: str, *, is_allowed: bool) -> None:
    module = {
        "source": {"file": "a.rego", "contents": (source := f"{HOME}import rego.v2\n{ENTRY}")},
        "ast": json.loads(_ast(HOME + ENTRY))[0]["ast"],
    }
    if name == "rego.v2":
        # The engine itself refuses most others.
        place = {"line": 2, "col": 1, "start": 19, "end": 33}
        var = {"Var": {"span": {"line": 2, "col": 8, "start": 26, "end": 30}, "value": "rego"}}
        module["ast"]["imports"] = [
            {"span": place, "refr": {"RefDot": {"span": place, "refr": var, "field": [place, "v2"]}}}
        ]
        assert source[26:30] == "rego"
        findings = lint.check([module], tests=frozenset())
        assert [(f.rule, f.line, f.column) for f in findings if f.rule == "import"] == [("import", 2, 1)]
        return
    findings = [(f.rule, f.line, f.column) for f in found(f"{HOME}import {name}\n{ENTRY}")]
    assert findings == ([] if is_allowed else [("import", 2, 1)])


def _ast(source: str) -> str:
    engine = regorus.Engine()
    engine.add_policy("a.rego", source)
    return str(engine.get_ast_as_json())


@pytest.mark.parametrize(
    "name",
    ["touchstone", "touchstone.gpu", "ar4si", 'touchstone["x-y"]', "lib.strings", "other", "x.touchstone"],
)
def test_packages_of_policies(name: str) -> None:
    assert in_policy("x := input.y", f"package {name}\ny := input.z\n") == []


@pytest.mark.parametrize(
    "name", ["system", "system.authz", "data", "data.x", "input", 'touchstone["\\u0061"]']
)
def test_packages_that_are_not_of_policies(name: str) -> None:
    assert in_policy("x := input.y", f"# A note.\npackage {name}\ny := input.z\n") == [("package", 2, 1)]


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("touchstone_test", []),
        ("touchstone.gpu_test", []),
        ("touchstone", []),
        ("lib.strings_test", []),
        ("system.log", ["package"]),
    ],
)
def test_packages_of_tests(name: str, rules: list[str]) -> None:
    assert [f.rule for f in found(HOME + ENTRY, test=f"package {name}\ntest_x if true\n")] == rules


ENTRIES = {
    "missing": ("x := input.y", [("entry", 1, 1)]),
    "a rule": ('outcome := {"model": input.x}', []),
    "a partial rule": ('outcome["model"] := input.x', []),
    "a function": ("outcome(x) := x", [("entry", 2, 1)]),
    "a default beside it": ("default outcome := {}\noutcome := input.x", [("entry", 2, 1)]),
    "a default alone": ("default outcome := {}", [("entry", 1, 1), ("entry", 2, 1)]),
}


@pytest.mark.parametrize(("source", "expected"), ENTRIES.values(), ids=ENTRIES)
def test_entry(source: str, expected: list[tuple[str, int, int]]) -> None:
    assert [(f.rule, f.line, f.column) for f in found(HOME + source)] == expected


def test_entry_must_be_in_its_package_and_not_in_a_test() -> None:
    findings = found(
        "package touchstone.x\noutcome := input.y\n",
        test="package touchstone\noutcome if true\ntest_a if true\n",
    )
    assert [(f.rule, f.file) for f in findings] == [("entry", "a.rego")]
    assert findings[0].sentence.endswith("rename package touchstone.x to touchstone")


@pytest.mark.parametrize("name", ["allow", "deny", "violation", "warn"])
def test_entry_of_opa_is_named(name: str) -> None:
    """Its users begin with these rules, and nothing asks for them here."""
    (finding,) = found(f"package main\n{name} := input.y\n")
    assert finding.sentence.endswith(f". Nothing asks for main.{name}")


def test_no_modules_at_all() -> None:
    assert [(str(f).split(" ")[0], f.rule) for f in lint.check([], tests=frozenset())] == [
        ("bundle.json:1:1:", "entry"),
        ("bundle.json:1:1:", "tests-missing"),
    ]


def test_tests_that_are_missing_or_never_run() -> None:
    findings = found(
        HOME + ENTRY + "test_here if true\n", test="\npackage touchstone_test\n\nhelper(x) := x\n"
    )
    assert [(f.level, f.rule, f.file, f.line) for f in findings] == [
        (Level.ERROR, "test-outside", "a.rego", 3),
        (Level.ERROR, "tests-missing", "z_test.rego", 2),
    ]
    assert [f.rule for f in found(HOME + ENTRY, test="package a_test\ntest_f(x) := x\n")] == ["tests-missing"]


def test_a_test_to_do_is_a_warning() -> None:
    (finding,) = found(HOME + ENTRY, test=TEST + "todo_test_more if true\n")
    assert (finding.level, finding.rule, finding.line, finding.column) == (Level.WARNING, "test-todo", 4, 1)


NUMBERS = {
    "1.5": True, "1.0": True, "1e3": True, "1E3": True, "-0.5": True,
    "9007199254740993": True, "-9007199254740993": True, "100000000000000000000000": True,
    "9007199254740992": False, "0": False, "-5": False,
}  # fmt: skip


@pytest.mark.parametrize(("number", "is_refused"), NUMBERS.items(), ids=NUMBERS)
def test_numbers(number: str, *, is_refused: bool) -> None:
    """Also where the tree has 1 for 1.0."""
    found_ = [(rule, line) for rule, line, _ in in_policy(f"x := [input.a, {number}]")]
    assert found_ == ([("number", 2)] if is_refused else [])
    assert in_test(f"x := [{number}]\n") == []


BARE = {
    "f(x) := 96 if x": [(2, 9)],
    "f(x) := -33 if x": [(2, 9)],
    "default f(_) := 96": [(2, 17)],
    "x := 1": [(2, 6)],
    "f(x) := input.y if x else := 2": [(2, 30)],
    "f(x) := data.ar4si.configuration.approved if x": [],
    "f(x) := x + 1": [],
    "f(x) := [1, 2] if x": [],
    'x := {"configuration": 96, "other": 5, "file-system": -33}': [(2, 24), (2, 55)],
    'x := {"configuration": input.y}': [],
    'x := {"file_system": 2}': [],
    'x if input.v == {"executables": 2}': [(2, 33)],
}


@pytest.mark.parametrize(("source", "places"), BARE.items(), ids=BARE)
def test_bare_numbers(source: str, places: list[tuple[int, int]]) -> None:
    findings = found(f"{HOME}{source}\n{ENTRY}")
    assert [(f.level, f.rule, f.line, f.column) for f in findings] == [
        (Level.WARNING, "bare-number", line, column) for line, column in places
    ]


def test_bare_numbers_are_named_where_they_have_a_name() -> None:
    vector = '{"configuration": 96, "executables": 77, "file-system": 96}'
    source = f"{HOME}x := {vector}\n{ENTRY}"
    assert [f.sentence for f in found(source)] == [
        "96 is a bare number. Write data.ar4si.configuration.forbidden",
        "77 is not a value of executables. Use one of data.ar4si.executables",
        "96 is a bare number. Write data.ar4si.file_system." + _name_of("file_system", 96),
    ]


def _name_of(claim: str, value: int) -> str:
    return next(name for name, known in lint.ar4si.names()[claim].items() if known == value)


def test_bare_numbers_may_stand_in_tests_and_where_values_are_named() -> None:
    assert in_policy("x := input.y", "package ar4si\nexecutables.approved := 2\n") == []
    assert in_test('x := 5\nv := {"executables": 2}\n') == []


def test_findings_are_sorted_and_read_well() -> None:
    findings = found("package touchstone\nx := time.now_ns()\n" + ENTRY, "package system\nf(y) := f(y)\n")
    round_ = "is recursion, and the engine would crash. Repeat over a collection instead"
    assert [str(f) for f in findings] == [
        "a.rego:2:6: time.now_ns reads the clock. Use input.date, the date of the appraisal (clock)",
        "b.rego:1:1: system: engines keep the package system for themselves. Use lib.…, for example (package)",
        f"b.rego:2:9: f → f {round_} (some … in, every, a comprehension) (recursion)",
    ]


def test_default_policy_has_no_error() -> None:
    engine = regorus.Engine()
    files = sorted(Path(default_policy()).rglob("*.rego"))
    for file in files:
        engine.add_policy(file.name, file.read_text())
    tests = frozenset(f.name for f in files if f.name.endswith("_test.rego"))
    findings = lint.check(json.loads(engine.get_ast_as_json()), tests=tests)
    assert [str(f) for f in findings if f.level is Level.ERROR] == []


def _var(name: str) -> dict[str, object]:
    return {"Var": {"span": {"line": 1, "col": 1, "start": 0, "end": 1}, "value": name}}


def _module_of(value: object) -> dict[str, object]:
    span = {"line": 1, "col": 1, "start": 0, "end": 1}
    head = {
        "Compr": {
            "span": span,
            "refr": _var("outcome"),
            "assign": {"span": span, "op": "ColEq", "value": value},
        }
    }
    rule = {"Spec": {"span": span, "head": head, "bodies": []}}
    package = {"span": span, "refr": _var("touchstone")}
    return {
        "source": {"file": "a.rego", "contents": "p"},
        "version": 1,
        "ast": {"package": package, "imports": [], "rules": [rule]},
    }


def test_deep_trees() -> None:
    """Deeper than Python calls itself; the engine bounds some of them, and not all."""
    span = {"line": 1, "col": 1, "start": 0, "end": 1}
    sums, calls, dots, compr = _var("a"), _var("a"), _var("data"), _var("outcome")
    for _ in range(20_000):
        sums = {"ArithExpr": {"span": span, "op": "Add", "lhs": sums, "rhs": _var("a")}}
        calls = {"Call": {"span": span, "fcn": _var("f"), "params": [calls]}}
        dots = {"RefDot": {"span": span, "refr": dots, "field": [span, "a"]}}
        compr = {"ArrayCompr": {"span": span, "term": compr, "query": {"span": span, "stmts": [], "qidx": 0}}}
    for value, rules in ((sums, []), (calls, []), (dots, []), (compr, ["recursion"])):
        findings = lint.check([_module_of(value)], tests=frozenset())
        assert [f.rule for f in findings if f.rule != "tests-missing"] == rules


def test_time_is_linear_in_what_is_given() -> None:
    """Thousands of rules that all refer to everything."""
    source = HOME + "".join(f"r{i} := data\n" for i in range(4000))
    engine = regorus.Engine()
    engine.add_policy("a.rego", source)
    modules = json.loads(engine.get_ast_as_json())
    started = time.process_time()
    findings = lint.check(modules, tests=frozenset())
    assert time.process_time() - started < 5
    assert [f.line for f in findings if f.rule == "recursion"] == [2]


NAMES = st.sampled_from(
    ["a", "b", "f", "x", "input", "data", "data.touchstone", "data.touchstone.f", "http.send"]
)
LEAVES = st.one_of(
    NAMES, st.sampled_from(["1", "-2", "0.5", "true", "null", '"s"', "`r`", "set()", "[]", "{}"])
)


def _deeper(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("({} + {})".format, inner, inner),
        st.builds("{}({})".format, NAMES, inner),
        st.builds("{}[{}]".format, NAMES, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{{}: {}}}".format, inner, inner),
        st.builds("[{} | {} := {}]".format, inner, st.sampled_from("abx"), inner),
        st.builds("{{{}: {} | some {} in {}}}".format, inner, inner, st.sampled_from("abx"), inner),
    )


TERMS = st.recursive(LEAVES, _deeper, max_leaves=8)
LITERALS = st.one_of(
    TERMS,
    st.builds("not {}".format, TERMS),
    st.builds("{} := {}".format, st.sampled_from(["a", "b", "[x, _]", '{"k": x}']), TERMS),
    st.builds("{} = {}".format, TERMS, TERMS),
    st.builds("some x, b in {}".format, TERMS),
    st.builds("every a in {} {{ {} }}".format, TERMS, TERMS),
    st.builds("{} in {}".format, TERMS, TERMS),
    st.builds("{} with {} as {}".format, TERMS, st.sampled_from(["input", "data.touchstone.a", "f"]), TERMS),
)
HEADS = st.sampled_from(["a", "b contains x", "x[b]", "f(x)", "f([a, {1: b}])", "a.b", "outcome", "test_a"])
RULES = st.one_of(
    st.builds(
        "{} if {{ {}; {} }}".format, HEADS.filter(lambda head: not head.startswith("f")), LITERALS, LITERALS
    ),
    st.builds("f(x) := {} if {{ {} }} else := {}".format, TERMS, LITERALS, TERMS),
    st.builds("a := {}".format, TERMS),
    st.builds("default f(_) := {}".format, LEAVES),
)


@settings(max_examples=300, deadline=None)
@given(
    rules=st.lists(RULES, max_size=5),
    package=st.sampled_from(["touchstone", "touchstone.b", "other"]),
    is_test=st.booleans(),
)
def test_never_raises(rules: list[str], package: str, *, is_test: bool) -> None:
    """On whatever the engine can parse, and findings point into the source."""
    engine = regorus.Engine()
    source = f"package {package}\n" + "\n".join(rules) + "\n"
    try:
        engine.add_policy("a.rego", source)
    except RuntimeError:
        return
    tests = frozenset({"a.rego"} if is_test else ())
    lines = source.split("\n")
    for finding in lint.check(json.loads(engine.get_ast_as_json()), tests=tests):
        assert 1 <= finding.column <= len(lines[finding.line - 1])
