"""A policy's own tests as they are run: what passes, what fails and why, what was reached, and for CI."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.config import default_policy
from verifier.errors import BundleError, PolicyError
from verifier.policy import admission, testing
from verifier.policy import bundle as bundles
from verifier.policy.bundle import Bundle
from verifier.policy.testing import junit

DEFAULT = bundles.load(default_policy())
RULES = """package touchstone

outcome[name] := {"trust_vector": {"executables": value(facts)}, "reasons": []} if {
	some name, facts in input.checked
}

value(facts) := 2 if facts.walk == "called"

value(facts) := 96 if {
	facts.walk == "wrong"
}
"""
HEAD = "package touchstone_test\n\nimport data.touchstone\n\n"


def policy(tests: str, rules: str = RULES) -> Bundle:
    return dataclasses.replace(
        DEFAULT, modules=(("a.rego", rules),), tests=(("a_test.rego", HEAD + tests),) if tests else ()
    )


async def one(tests: str) -> testing.Test:
    """The only test; it begins in line 5."""
    (found,) = (await testing.run(policy(tests))).tests
    return found


async def test_default_policy_passes() -> None:
    """All of its tests, and each line of it."""
    report = await testing.run(DEFAULT)
    assert len(report.tests) > 20
    assert report.failed == ()
    assert report.missed == {}
    assert report.coverage == 100


async def test_what_holds_passes() -> None:
    """With its file, line and full name."""
    found = await one("test_called if touchstone.value({`walk`: `called`}) == 2\n")
    assert (found.file, found.line) == ("a_test.rego", 5)
    assert found.name == "data.touchstone_test.test_called"
    assert found.why is None
    assert found.seconds >= 0


FAILING = {
    "false": ("test_x := false\n", "is false, not true"),
    "not true at all": ("test_x := 7\n", "is 7, not true"),
    "text": ('test_x := "true"\n', 'is "true", not true'),
    "undefined": ("test_x if touchstone.value({`walk`: `called`}) == 3\n", "undefined"),
    "a rule that is not there": ("test_x if data.touchstone.nothing\n", "undefined"),
    "a set": ("test_x contains true\n", "not true"),
    "a function": ("test_x(_) := true\n", "undefined"),
    "an error": ('test_x if to_number("x") == 1\n', "a_test.rego:5:22: could not parse string as number"),
    "two values": ("test_x := true\n\ntest_x := false\n", "a_test.rego:7:1: rule conflicts with rule"),
}


@pytest.mark.parametrize(("tests", "why"), FAILING.values(), ids=FAILING)
async def test_what_does_not_hold_fails(tests: str, why: str) -> None:
    """And says what it gave instead, or where it failed."""
    found = await one(tests)
    assert found.why is not None
    assert why in found.why


async def test_long_value_is_cut() -> None:
    """A test that gives a book instead of true fails with a sentence."""
    found = await one("test_x := numbers.range(1, 100000)\n")
    assert found.why is not None
    assert len(found.why) < 300


async def test_failure_of_one_leaves_the_others() -> None:
    """Each is asked by itself."""
    tests = "test_a if false\n\ntest_b if true\n\ntest_c if to_number(`x`)\n\ntest_d if true\n"
    report = await testing.run(policy(tests))
    assert [t.name.rpartition("_")[2] for t in report.failed] == ["a", "c"]
    assert [t.line for t in report.tests] == [5, 7, 9, 11]


async def test_printed_lines_are_kept_for_their_test() -> None:
    """With their place, and with what was printed and no more."""
    tests = (
        'test_a if {\n\tprint("one", 1)\n\tprint("two")\n}\n\ntest_b if true\n\ntest_c if print("three")\n'
    )
    report = await testing.run(policy(tests))
    assert [t.printed for t in report.tests] == [
        ("a_test.rego:6: one 1", "a_test.rego:7: two"),
        (),
        ("a_test.rego:12: three",),
    ]


async def test_default_alone_is_no_test() -> None:
    """It would hold whatever the policy does."""
    report = await testing.run(policy("default test_x := true\n\ntest_y if true\n"))
    assert [t.name for t in report.tests] == ["data.touchstone_test.test_y"]


async def test_default_beside_a_rule_does_not_make_it_pass() -> None:
    """The rule's own value counts."""
    assert (await one("default test_x := false\n\ntest_x if touchstone.value({}) == 2\n")).why is not None


async def test_rule_of_several_parts_is_one_test() -> None:
    """Counted once, at its first line."""
    found = await one("test_x if 1 == 2\n\ntest_x if 1 == 1\n")
    assert (found.line, found.why) == (5, None)


@pytest.mark.parametrize("name", ["testing_x", "tests_x", "x_test_y", "Test_x"])
async def test_only_the_prefix_makes_a_test(name: str) -> None:
    """A helper is none, whatever it is called otherwise."""
    assert (await testing.run(policy(f"{name} if false\n"))).tests == ()


async def test_rules_of_the_policy_are_no_tests() -> None:
    """Only what stands in a test file is run."""
    report = await testing.run(policy("test_y if true\n", f"{RULES}\ntest_x if false\n"))
    assert [t.name for t in report.tests] == ["data.touchstone_test.test_y"]


async def test_no_tests_are_none() -> None:
    """An empty report, and nothing was reached."""
    report = await testing.run(policy(""))
    assert report.tests == report.failed == ()


async def test_same_name_in_two_packages_is_two_tests() -> None:
    """The package is part of the name."""
    second = "package touchstone.more_test\n\ntest_x if false\n"
    both = policy("test_x if true\n")
    report = await testing.run(dataclasses.replace(both, tests=(*both.tests, ("b_test.rego", second))))
    assert [(t.file, t.name, t.why is None) for t in report.tests] == [
        ("a_test.rego", "data.touchstone_test.test_x", True),
        ("b_test.rego", "data.touchstone.more_test.test_x", False),
    ]


async def test_input_of_one_test_is_not_that_of_the_next() -> None:
    """What is set with `with` ends with its test."""
    tests = (
        "test_a if count(touchstone.outcome) == 1 with input as {`checked`: {`m`: {`walk`: `called`}}}\n\n"
        "test_b if count(touchstone.outcome) == 0\n"
    )
    assert (await testing.run(policy(tests))).failed == ()


async def test_lines_that_no_test_reaches_are_told() -> None:
    """By file; tests themselves do not count."""
    report = await testing.run(policy("test_called if touchstone.value({`walk`: `called`}) == 2\n"))
    assert set(report.covered) == {"a.rego"}
    assert 7 in report.covered["a.rego"]
    assert report.missed.keys() == {"a.rego"}
    assert {3, 4} <= set(report.missed["a.rego"])
    assert not set(report.missed["a.rego"]) & set(report.covered["a.rego"])
    assert 0 < report.coverage < 100


async def test_lines_that_tests_reach_together_are_covered() -> None:
    """What one test leaves out another may reach."""
    tests = (
        "test_called if touchstone.outcome.m with input as {`checked`: {`m`: {`walk`: `called`}}}\n\n"
        "test_wrong if touchstone.outcome.m with input as {`checked`: {`m`: {`walk`: `wrong`}}}\n"
    )
    report = await testing.run(policy(tests))
    assert report.failed == ()
    assert report.missed == {}
    assert report.coverage == 100


COVERAGE = {
    "all": ({"a": (1, 2)}, {}, 100),
    "three of four": ({"a": (1, 2), "b": (1,)}, {"b": (2,)}, 75),
    "nothing": ({"a": ()}, {"a": (1, 2)}, 0),
    "no lines": ({}, {}, 100),
    "no lines in a file": ({"a": ()}, {}, 100),
}


@pytest.mark.parametrize(("covered", "missed", "share"), COVERAGE.values(), ids=COVERAGE)
def test_coverage_is_the_share_of_lines(
    covered: dict[str, tuple[int, ...]], missed: dict[str, tuple[int, ...]], share: float
) -> None:
    """Per cent, over all files."""
    assert testing.TestReport((), covered, missed).coverage == share


# Tests that do not end well.

ENDLESS = (
    "test_x if count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000)]) > 0\n"
)


async def test_endless_test_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed."""
    monkeypatch.setattr(testing, "TIMEOUT_S", 0.7)
    with pytest.raises(PolicyError, match=r"^the policy gave no outcome within 0\.7 s$"):
        await testing.run(policy(ENDLESS))


async def test_endless_test_refuses_a_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an error of the bundle."""
    monkeypatch.setattr(testing, "TIMEOUT_S", 0.7)
    rules = DEFAULT.modules
    with pytest.raises(BundleError, match="gave no outcome within"):
        await admission.check(dataclasses.replace(policy(ENDLESS), modules=rules))


DAMAGE = {
    "crash": "f(x) := f(x + 1)\n\ntest_x if f(1)\n",
    "memory": "test_x if count(numbers.range(1, 1000000000)) > 0\n",
    "a flood of text": 'test_x if { some i in numbers.range(1, 300000); print("….…….………", i); false }\n',
}


@pytest.mark.parametrize("tests", DAMAGE.values(), ids=DAMAGE)
async def test_test_that_misbehaves_is_an_error(tests: str) -> None:
    """Of the policy, and only of this one."""
    with pytest.raises(PolicyError):
        await testing.run(policy(tests))
    assert (await one("test_x if true\n")).why is None


async def test_tests_that_do_not_parse_are_an_error_with_their_place() -> None:
    """Where the text ends and something is missing."""
    with pytest.raises(PolicyError, match=r"^a_test\.rego:6:\d+: "):
        await testing.run(policy("test_x if {\n"))


async def test_failing_test_refuses_a_bundle() -> None:
    """With file, line and reason of each."""
    tests = "test_a if true\n\ntest_b := 7\n\ntest_c if to_number(`x`) == 1\n"
    broken = dataclasses.replace(policy(tests), modules=DEFAULT.modules)
    with pytest.raises(BundleError) as error:
        await admission.check(broken)
    first, second = str(error.value).splitlines()
    assert first == "a_test.rego:7: data.touchstone_test.test_b: is 7, not true"
    assert second.startswith("a_test.rego:9: data.touchstone_test.test_c: a_test.rego:9:")


async def test_bundle_without_tests_is_refused() -> None:
    """Nobody has said what it should do."""
    with pytest.raises(BundleError, match="there is no test"):
        await admission.check(dataclasses.replace(DEFAULT, tests=()))


# For CI.


def report_of(*printed: str, why: str | None = None) -> testing.TestReport:
    good = testing.Test("a_test.rego", 5, "data.touchstone_test.test_a", None, 0.25, ())
    other = testing.Test("a_test.rego", 7, "data.touchstone_test.test_b", why, 0.5, printed)
    return testing.TestReport((good, other), {"a.rego": (1, 2)}, {"a.rego": (3,)})


def test_report_for_ci_is_xml_with_right_counts() -> None:
    """One suite with all tests, their places and times, and the coverage."""
    suite = ET.fromstring(junit(DEFAULT, report_of(why="is <false> & not true")))
    assert suite.tag == "testsuite"
    assert {k: suite.get(k) for k in ("name", "tests", "failures", "errors", "skipped", "time")} == {
        "name": DEFAULT.id,
        "tests": "2",
        "failures": "1",
        "errors": "0",
        "skipped": "0",
        "time": "0.750000",
    }
    first, second = suite.findall("testcase")
    assert first.attrib == {
        "classname": "data.touchstone_test",
        "name": "test_a",
        "file": "a_test.rego",
        "line": "5",
        "time": "0.250000",
    }
    assert first.find("failure") is None
    failure = second.find("failure")
    assert failure is not None
    assert failure.get("message") == "is <false> & not true"
    coverage = suite.find("properties/property")
    assert coverage is not None
    assert coverage.attrib == {"name": "coverage", "value": "66.7"}


def test_report_for_ci_says_its_encoding() -> None:
    """And keeps to it, whatever is printed."""
    data = junit(DEFAULT, report_of("naïve – 模"))
    assert data.startswith(b'<?xml version="1.0" encoding="UTF-8"?>\n')
    assert ET.fromstring(data).findtext("testcase/system-out") == "naïve – 模"


@given(st.lists(st.text(st.characters(), max_size=30), min_size=1, max_size=3), st.text(st.characters()))
def test_report_for_ci_is_xml_whatever_is_printed(printed: list[str], why: str) -> None:
    """XML has no control characters, and a policy may print them."""
    suite = ET.fromstring(junit(DEFAULT, report_of(*printed, why=why)))
    assert suite.get("failures") == "1"
    assert len(suite.findall("testcase")) == 2


@pytest.mark.parametrize("text", ["\0", "\x1b[31m", "\x7f", "\ud800", "\ufffe", "\r"], ids=ascii)
def test_character_that_xml_does_not_have_is_replaced(text: str) -> None:
    """And what stands beside it stays."""
    suite = ET.fromstring(junit(DEFAULT, report_of(f"a{text}b", why=f"c{text}d")))
    shown = suite.findtext("testcase/system-out")
    assert shown is not None
    assert (shown[:2], shown[-1]) == ("a\N{REPLACEMENT CHARACTER}", "b")


async def test_report_for_ci_of_a_run_with_control_characters() -> None:
    """From the policy to the XML."""
    tests = 'test_a if {\n\tprint("\\u0001\\u001b[31mred\\u0000", "é")\n\tfalse\n}\n\ntest_b if true\n'
    bundle = policy(tests)
    suite = ET.fromstring(junit(bundle, await testing.run(bundle)))
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    printed = suite.findtext("testcase/system-out")
    assert printed is not None
    assert "[31mred" in printed
    assert "é" in printed


def test_default_policys_tests_are_in_its_folder() -> None:
    """What is shipped can be run where it lies."""
    assert [name for name, _ in DEFAULT.tests] == [p.name for p in Path(default_policy()).glob("*_test.rego")]
