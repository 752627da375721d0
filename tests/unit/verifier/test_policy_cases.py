"""Table-driven tests, what is to be done, and why a test fails: the statement, and the values in it."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.unit.verifier.test_policy_testing import DEFAULT, one, policy
from verifier.errors import BundleError
from verifier.policy import admission, testing
from verifier.policy.testing import Case, ranges_of

TABLE = """table := {
	"called": {"walk": "called", "value": 2},
	"wrong": {"walk": "wrong", "value": 97},
}

test_value[name] if {
	some name, row in table # each row
	got := touchstone.value({"walk": row.walk})
	print("got", got)
	got == row.value
}
"""


async def test_table_has_a_case_for_each_row() -> None:
    """The row "A block of OPA habits refused": `test_x[case]`.  Each case by its name, and why it fails."""
    found = await one(TABLE)
    assert found.name == "data.touchstone_test.test_value"
    assert found.cases == (Case(("called",), passed=True), Case(("wrong",), passed=False))
    assert found.why == "1 of 2 cases do not hold: wrong"
    assert found.detail == (
        "case wrong", "a_test.rego:14: got == row.value", "    got = 96", "    row.value = 97",
    )  # fmt: skip
    assert found.printed == ("a_test.rego:13: got 2", "a_test.rego:13: got 96")


async def test_table_whose_cases_all_hold_passes() -> None:
    """With its cases."""
    found = await one(TABLE.replace("97", "96"))
    assert (found.why, found.detail) == (None, ())
    assert [case.passed for case in found.cases] == [True, True]


CASES = {
    "a case that stops at its first line": (
        'test_x[n] if {\n\tsome n, v in {"a": 1, "b": 2}\n\tv.w == 1\n}\n',
        {"a": False, "b": False},
    ),
    "a name in each row": (
        'test_x[row.name] if {\n\tsome row in [{"name": "a", "v": 1}, {"name": "b", "v": 2}]\n\trow.v == 1\n}\n',
        {"a": True, "b": False},
    ),
    "two tables": (
        "test_x[a][b] if {\n\tsome a in [1, 2]\n\tsome b in [3, 4]\n\ta * b != 6\n}\n",
        {"1/3": True, "1/4": True, "2/3": False, "2/4": True},
    ),
    "cases written out": ('test_x["a"] if 1 == 1\n\ntest_x["b"] if 1 == 2\n', {"a": True, "b": False}),
    "cases with a dot": ("test_x.a if 1 == 1\n\ntest_x.b if 1 == 2\n", {"a": True, "b": False}),
    "values that are not true": (
        "test_x[n] := v if {\n\tsome n, v in {`a`: true, `b`: false, `c`: 7}\n}\n",
        {"a": True, "b": False, "c": False},
    ),
    "a name that is computed": (
        'test_x[name] if {\n\tsome v in [1, 2]\n\tname := sprintf("v%d", [v])\n\tv == 1\n}\n',
        {"v1": True, "v2": False},
    ),
    "a name that is declared first": (
        'rows := {"a": 1, "b": 2}\n\ntest_x[n] if {\n\tsome n\n\trow := rows[n]\n\trow == 1\n}\n',
        {"a": True, "b": False},
    ),
    "a list for a name": ("test_x[[a, b]] if {\n\tsome a, b in [7]\n\tb == 8\n}\n", {"[0,7]": False}),
    "one line": ("test_x[n] if some n, 1 in {`a`: 1}\n", {"a": True}),
    "an input for each row": (
        'test_x[n] if {\n\tsome n, v in {"a": 1, "b": 2}\n\tinput.v == 1 with input as {"v": v}\n}\n',
        {"a": True, "b": False},
    ),
}


@pytest.mark.parametrize(("tests", "expected"), CASES.values(), ids=CASES)
async def test_cases(tests: str, expected: dict[str, bool]) -> None:
    """Those that hold, and those that do not."""
    found = await one(tests)
    assert {"/".join(case.name): case.passed for case in found.cases} == expected
    assert (found.why is None) == all(expected.values())


async def test_set_is_no_table() -> None:
    """A value that is a set is not true; the sentence says how a table is written."""
    found = await one("test_x contains n if some n in [1]\n")
    assert found.why is not None
    assert found.why.endswith("not true. For a table of cases write test_x[case] if …")


async def test_table_without_a_row_fails() -> None:
    """It would hold whatever the policy does."""
    assert (await one("test_x[n] if some n in []\n")).why == "has no case"


async def test_table_whose_rows_cannot_be_listed_fails() -> None:
    """Its failing cases would not be seen: never a pass, and the sentence says why."""
    found = await one("test_x[n] if {\n\ty := to_number(n)\n\tsome n in [`1`]\n\ty == 1\n}\n")
    assert found.why is not None


async def test_failing_case_refuses_a_bundle() -> None:
    """With its name."""
    with pytest.raises(BundleError, match=r"cases do not hold: b$"):
        await admission.check(
            dataclasses.replace(policy(CASES["cases with a dot"][0]), modules=DEFAULT.modules)
        )


WHY = {
    "two values": ("test_x if {\n\ty := 1\n\ty == 1 + 1\n}\n", ["a_test.rego:7: y == 1 + 1", "    y = 1"]),
    "both sides": (
        "a := {`k`: 1}\n\ntest_x if a == data.touchstone_test.b\n\nb := {`k`: 2}\n",
        ["a_test.rego:7: a == data.touchstone_test.b", '    a = {"k": 1}', '    data.touchstone_test.b = {"k": 2}'],
    ),
    "nothing there": (
        "test_x if touchstone.nothing.x == 1\n",
        ["a_test.rego:5: touchstone.nothing.x == 1", "    touchstone.nothing.x = undefined"],
    ),
    "a negation": ("y := 3\n\ntest_x if not y\n", ["a_test.rego:7: not y", "    y = 3"]),
    "a membership": ("y := 3\n\ntest_x if y in {1, 2}\n", ["a_test.rego:7: y in {1, 2}", "    y = 3"]),
    "a truth value": ("y := false\n\ntest_x if y\n", ["a_test.rego:7: y", "    y = false"]),
    "an input": (
        "test_x if input.y > 2 with input as {`y`: 1}\n",
        ["a_test.rego:5: input.y > 2 with input as {`y`: 1}", "    input.y = 1"],
    ),
    "several lines": (
        "test_x if {\n\tsum([\n\t\t1,\n\t\tinput.y,\n\t]) == 3 with input.y as 1\n}\n",
        ["a_test.rego:6: sum([ 1, input.y, ]) == 3 with input.y as 1", "    sum([ 1, input.y, ]) = 2"],
    ),
    "no value": ("test_x if {\n\tsome y in []\n\ty\n}\n", ["a_test.rego:6: some y in []"]),
    "two rules of one name": (
        "test_x if 1 == input.a\n\ntest_x if 2 == input.a\n",
        ["a_test.rego:5: 1 == input.a", "    input.a = undefined", "a_test.rego:7: 2 == input.a", "    input.a = undefined"],
    ),
    "a value of its own": ("test_x := 7\n", []),
    "an error": ("test_x if to_number(`x`) == 1\n", []),
}  # fmt: skip


@pytest.mark.parametrize(("tests", "lines"), WHY.values(), ids=WHY)
async def test_failure_is_shown_with_its_values(tests: str, lines: list[str]) -> None:
    """The first statement that does not hold, and what is on its sides."""
    found = await one(tests)
    assert found.why is not None
    assert list(found.detail) == lines


async def test_long_values_are_cut() -> None:
    """A line is a line."""
    found = await one("y := numbers.range(1, 10000)\n\ntest_x if y == 1\n")
    assert all(len(line) < 400 for line in found.detail)


async def test_what_is_to_be_done_does_not_run() -> None:
    """It is named, and neither passes nor fails."""
    report = await testing.run(policy("todo_test_x if false\n\ntest_y if true\n"))
    assert [test.name for test in report.skipped] == ["data.touchstone_test.todo_test_x"]
    assert [test.name for test in report.tests] == ["data.touchstone_test.test_y"]
    assert report.failed == ()


async def test_only_tests_that_are_asked_for_run() -> None:
    """By a part of the full name."""
    tests = "test_a if true\n\ntest_b if true\n\ntodo_test_ab if true\n"
    report = await testing.run(policy(tests), r"touchstone_test\.(todo_)?test_a")
    assert [test.name.rpartition(".")[2] for test in (*report.tests, *report.skipped)] == [
        "test_a",
        "todo_test_ab",
    ]


async def test_tests_in_the_package_of_the_rules_run() -> None:
    """As OPA's users write them."""
    tests = "package touchstone\n\ntest_x if value({`walk`: `called`}) == 2\n"
    report = await testing.run(
        dataclasses.replace(policy("test_y if true\n"), tests=(("t_test.rego", tests),))
    )
    assert [(test.name, test.why) for test in report.tests] == [("data.touchstone.test_x", None)]


# The form for other programs.


async def test_results_have_the_form_of_opa() -> None:
    """A list of objects with OPA's keys, what printed in base64, cases as sub-results."""
    report = await testing.run(policy(TABLE + "\ntest_y if true\n\ntodo_test_z if true\n"))
    failing, passing, waiting = testing.to_wire(report)
    assert failing["location"] == {"file": "a_test.rego", "row": 10, "col": 1}
    assert (failing["package"], failing["name"]) == ("data.touchstone_test", "test_value")
    assert failing["fail"] is True
    assert failing["sub_results"] == {"called": {"name": "called"}, "wrong": {"name": "wrong", "fail": True}}
    assert base64.b64decode(failing["output"]).startswith(b"a_test.rego:13: got 2\n")
    assert failing["duration"] > 0
    assert passing.keys() == {"location", "package", "name", "duration"}
    assert waiting["skip"] is True
    json.dumps([failing, passing, waiting])


def test_nested_cases_are_nested() -> None:
    """Whoever holds a case that fails fails too."""
    cases = (Case(("a", "a"), passed=True), Case(("a", "b"), passed=False), Case(("c", "d"), passed=True))
    test = testing.Test("a_test.rego", 5, "data.t.test_x", "1 of 3", 0.1, (), cases)
    (wire,) = testing.to_wire(testing.TestReport((test,), {}, {}))
    assert wire["sub_results"] == {
        "a": {
            "name": "a",
            "fail": True,
            "sub_results": {"a": {"name": "a"}, "b": {"name": "b", "fail": True}},
        },
        "c": {"name": "c", "sub_results": {"d": {"name": "d"}}},
    }


def test_coverage_has_the_form_of_opa() -> None:
    """By file: ranges of lines that were reached and that were not, counts, and the share."""
    report = testing.TestReport(
        (), {"a.rego": (3, 4, 5, 9), "b.rego": (1,)}, {"a.rego": (7, 8), "c.rego": (2, 3)}
    )
    assert testing.coverage_to_wire(report) == {
        "files": {
            "a.rego": {
                "covered": [{"start": {"row": 3}, "end": {"row": 5}}, {"start": {"row": 9}, "end": {"row": 9}}],
                "not_covered": [{"start": {"row": 7}, "end": {"row": 8}}],
                "covered_lines": 4, "not_covered_lines": 2, "coverage": 66.67,
            },
            "b.rego": {
                "covered": [{"start": {"row": 1}, "end": {"row": 1}}], "not_covered": [],
                "covered_lines": 1, "not_covered_lines": 0, "coverage": 100.0,
            },
            "c.rego": {
                "covered": [], "not_covered": [{"start": {"row": 2}, "end": {"row": 3}}],
                "covered_lines": 0, "not_covered_lines": 2, "coverage": 0.0,
            },
        },
        "covered_lines": 5, "not_covered_lines": 4, "coverage": 55.56,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "ranges"),
    [((), []), ((4,), [(4, 4)]), ((2, 1, 3), [(1, 3)]), ((1, 3), [(1, 1), (3, 3)]), ((5, 5, 6), [(5, 6)])],
)
def test_lines_are_ranges(lines: tuple[int, ...], ranges: list[Any]) -> None:
    assert [(each["start"]["row"], each["end"]["row"]) for each in ranges_of(lines)] == ranges


async def test_report_for_ci_has_what_failed_and_what_waits() -> None:
    """The statement with its values is the text of the failure."""
    bundle = policy("test_x if 1 == input.a\n\ntodo_test_z if true\n")
    suite = ET.fromstring(testing.junit(bundle, await testing.run(bundle)))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "1")
    assert suite.findtext("testcase/failure") == "a_test.rego:5: 1 == input.a\n    input.a = undefined"
    assert [case.get("name") for case in suite.findall("testcase") if case.find("skipped") is not None] == [
        "todo_test_z"
    ]
