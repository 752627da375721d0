"""What the engine reads otherwise than OPA: names, patterns, imports, regular expressions, globs and formats."""

from __future__ import annotations

import json

import pytest
import regorus
from hypothesis import given
from hypothesis import strategies as st

from verifier.policy import dialect, lint
from verifier.policy.lint import Level

FOUND = {
    "i := 1\nx := [j | some i; j := input.l[i]]": "shadowed",
    "i(_) := 1\nx := [i | some i; input.l[i]]": "shadowed",
    "import input.s as i\nx := [i | some i; input.l[i]]": "shadowed",
    'f({"a": v}) := v': "pattern",
    'f([{"a": v}]) := v': "pattern",
    'x := v if {"a": v} := input.o': "pattern",
    'x := v if {"a": v} = input.o': "pattern",
    'x contains v if some {"a": v} in input.l': "pattern",
    "f(input.n) := 1": "pattern",
    "import data.touchstone\nx := touchstone.y": "import-own",
    "import data.touchstone as own\nx := own.y": "import-own",
    r"x if regex.match(`^\d+$`, input.s)": "regex",
    r'x if regex.match("\\w", input.s)': "regex",
    r"x if regex.find_n(`\s`, input.s, 1)": "regex",
    "p := `\\b`\nx if regex.match(p, input.s)": "regex",
    'x if { p := "[a&&b]"; regex.match(p, input.s) }': "regex",
    'x if regex.match("(?x)a", input.s)': "regex",
    'x if regex.match("a{1001}", input.s)': "regex",
    'x if regex.match("a**", input.s)': "regex",
    'x := regex.replace(input.s, `\\d`, "x")': "regex",
    'x if glob.match("a**", ["."], input.s)': "glob",
    'x if glob.match("a**c", [], input.s)': "glob",
    'x := sprintf("%5s", [input.s])': "format",
    'x := sprintf("%-5d", [input.n])': "format",
    'x := sprintf("%o", [input.n])': "format",
    'x := sprintf("%[1]s", [input.s])': "format",
    'x := strings.count(input.s, "a")': "builtin-unlike",
    'x := strings.replace_n({"a": "b"}, input.s)': "builtin-unlike",
    'x := regex.split("b*", input.s)': "builtin-unlike",
}  # fmt: skip
FINE = [
    "x := [i | some i, _ in input.l]",
    "x := [j | some j; input.l[j]]\ni := 1",
    "f([a, b]) := a + b",
    'f("gpu", n) := n',
    'x if {"a": 1} == input.o',
    "import data.touchstone.y as z\ny := 1\nx := z",
    "x if regex.match(`^[0-9]+(\\.[0-9]+)*$`, input.s)",
    "x if regex.match(`^--flag$`, input.s)",
    "x if regex.match(`^[*+?]$`, input.s)",
    "x if regex.match(`(?i)^a+?$`, input.s)",
    'x if glob.match("*.a", ["."], input.s)',
    'x if glob.match("**.a", ["."], input.s)',
    'x := sprintf("%s is %v, %d %% %.2f", [input.s, input.o, input.n, input.f])',
    'x := regex.replace(input.s, "[0-9]", `\\d`)',
]


def errors(source: str) -> set[str]:
    """The rules by which our checks refuse a module."""
    engine = regorus.Engine()
    engine.add_policy("a.rego", f"package touchstone\n{source}\n")
    findings = lint.check(json.loads(engine.get_ast_as_json()), tests=frozenset())
    return {f.rule for f in findings if f.level == Level.ERROR} - {"entry", "tests-missing"}


@pytest.mark.parametrize("source", FOUND)
def test_what_differs_is_refused(source: str) -> None:
    """Each could affirm here what OPA contraindicates."""
    assert errors(source) == {FOUND[source]}


@pytest.mark.parametrize("source", FINE)
def test_what_is_the_same_is_accepted(source: str) -> None:
    """The safe forms, and what only looks alike."""
    assert errors(source) == set()


@given(st.text())
def test_any_text_may_be_an_expression(text: str) -> None:
    """Whatever a policy writes as an expression, a glob or a format is read without an error."""
    list(dialect.regex_differences(text))
    list(dialect.format_differences(text))
    dialect.glob_differs(text, ".")
