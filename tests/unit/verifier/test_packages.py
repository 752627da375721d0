"""Packages of a bundle together: what may stand where, and what would judge otherwise than its tests."""

from __future__ import annotations

import json
from typing import Any

import pytest
import regorus

from verifier.config import default_policy
from verifier.policy import admission, bundle, packages
from verifier.policy.lint import Level, LintFinding

ENTRY = "package touchstone\n\noutcome := {}\n"


def found(*files: tuple[str, str], data: Any = None) -> list[LintFinding]:
    """The findings in files by name; those with `_test` are tests."""
    engine = regorus.Engine()
    for name, source in files:
        engine.add_policy(name, source)
    tests = frozenset(name for name, _ in files if name.endswith("_test.rego"))
    return list(packages.check(json.loads(engine.get_ast_as_json()), data or {}, tests=tests))


def shown(*files: tuple[str, str], data: Any = None) -> list[tuple[str, str, int, int]]:
    return [(f.rule, f.file, f.line, f.column) for f in found(*files, data=data)]


FINE = {
    "a library": [("a.rego", ENTRY + "x := data.lib.s.up(1)\n"), ("b.rego", "package lib.s\n\nup(x) := low(x)\n\nlow(x) := x\n")],
    "a library that is imported": [
        ("a.rego", "package touchstone\n\nimport data.lib.s as t\n\noutcome := t.up(1)\n"),
        ("b.rego", "package lib.s\n\nup(x) := x\n"),
    ],
    "a library of a library": [
        ("a.rego", ENTRY + "x := data.lib.a\n"),
        ("b.rego", "package lib\n\na := data.lib.s.b\n"),
        ("c.rego", "package lib.s\n\nb := 1\n"),
    ],
    "a library whose name is computed": [
        ("a.rego", ENTRY + "x := data.lib[input.n]\n"),
        ("b.rego", "package lib.s\n\nup(x) := x\n"),
    ],
    "packages below touchstone": [
        ("a.rego", ENTRY + "x := data.touchstone.gpu.y\n"),
        ("b.rego", "package touchstone.gpu\n\ny := 1\n"),
    ],
    "a package in two files": [
        ("a.rego", ENTRY + "x := data.lib.y\n"),
        ("b.rego", "package lib\n\ny := 1\n"),
        ("c.rego", "package lib\n\nz := 1\n"),
    ],
    "a test in the package of its rules": [("a.rego", ENTRY), ("a_test.rego", "package touchstone\n\ntest_a if outcome == {}\n")],
    "a test with helpers of its own": [
        ("a.rego", ENTRY),
        ("a_test.rego", "package touchstone\n\nhelper := {}\n\ntest_a if outcome == helper\n"),
    ],
    "trust values": [("a.rego", ENTRY), ("b.rego", "package ar4si\n\nx := 1\n")],
}  # fmt: skip


@pytest.mark.parametrize("files", FINE.values(), ids=FINE)
def test_packages_that_are_right(files: list[tuple[str, str]]) -> None:
    """The row "A block of OPA habits refused": `package lib.x`, and tests where OPA's users write them."""
    assert shown(*files) == []


WRONG = {
    "a test that adds to a rule": (
        [
            ("a.rego", ENTRY + "x := 1 if input.y\n"),
            ("a_test.rego", "package touchstone\n\nx := 1\n\ntest_a if x\n"),
        ],
        [("test-adds", "a_test.rego", 3, 1)],
    ),
    "a test that adds to a set": (
        [("a.rego", ENTRY + "x contains 1\n"), ("a_test.rego", "package touchstone\n\nx contains 2\n")],
        [("test-adds", "a_test.rego", 3, 1)],
    ),
    "a test that adds below a rule": (
        [("a.rego", ENTRY + "x := {}\n"), ("a_test.rego", "package touchstone.x\n\ny := 2\n")],
        [("test-adds", "a_test.rego", 3, 1)],
    ),
    "a rule that needs a helper of a test": (
        [("a.rego", ENTRY + "x := helper\n"), ("a_test.rego", "package touchstone\n\nhelper := 1\n")],
        [("test-only", "a.rego", 4, 6)],
    ),
    "a rule that needs a function of a test": (
        [
            ("a.rego", ENTRY + "x if {\n\tinput.y\n\tdata.lib.f(1)\n}\n"),
            ("l_test.rego", "package lib\n\nf(x) := x\n"),
        ],
        [("test-only", "a.rego", 6, 2)],
    ),
    "a package that is misspelt": (
        [("a.rego", ENTRY), ("b.rego", "package touchstones\n\noutcome := {}\n")],
        [("package", "b.rego", 1, 1)],
    ),
    "a package that only tests need": (
        [
            ("a.rego", ENTRY),
            ("b.rego", "package lib\n\nx := 1\n"),
            ("b_test.rego", "package lib_test\n\ntest_x if data.lib.x\n"),
        ],
        [("package-unused", "b.rego", 1, 1)],
    ),
    "a rule and data": ([("a.rego", ENTRY)], [("data-conflict", "a.rego", 3, 1)]),
}


@pytest.mark.parametrize(("files", "expected"), WRONG.values(), ids=WRONG)
def test_packages_that_are_wrong(files: list[tuple[str, str]], expected: list[Any]) -> None:
    """Each with its place; the tests would pass."""
    data = {"touchstone": {"outcome": {}}} if expected[0][0] == "data-conflict" else None
    assert shown(*files, data=data) == expected


def test_only_the_package_that_has_no_effect_is_a_warning() -> None:
    """The others refuse the bundle."""
    levels = {f.rule: f.level for files, _ in WRONG.values() for f in found(*files)}
    assert [rule for rule, level in levels.items() if level is Level.WARNING] == ["package-unused"]


async def test_bundle_is_refused_for_its_packages() -> None:
    """They are looked at where all lint is: before a bundle is published."""
    default = bundle.load(default_policy())
    more = {"z_test.rego": b"package touchstone\n\nacceptable(_) := true\n\ntest_x if acceptable(1)\n"}
    (finding,) = (await admission.inspect(bundle.of_files({**default.files, **more}))).errors
    assert str(finding).startswith("z_test.rego:3:1: touchstone.acceptable is a rule of the policy")


async def test_data_beside_rules_is_refused_before_it_is_published() -> None:
    """The data of the bundle is what it is."""
    default = bundle.load(default_policy())
    more = {"touchstone/data.yaml": b"acceptable: true\n"}
    errors = (await admission.inspect(bundle.of_files({**default.files, **more}))).errors
    assert {(finding.rule, finding.file) for finding in errors} == {("data-conflict", "platform.rego")}
