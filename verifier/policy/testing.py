"""Run a bundle's own tests, as ``opa test`` does: every rule named ``test_*`` must be true."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree as ET

from verifier.policy.bundle import Bundle
from verifier.policy.process import run_task

TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Case:
    """One case of a table-driven test."""

    name: tuple[str, ...]
    """The values in the brackets of ``test_x[case]``."""
    passed: bool


@dataclass(frozen=True)
class Test:
    """The result of one test."""

    file: str
    line: int
    name: str
    """``data.PACKAGE.test_NAME``."""
    why: str | None
    """Why it failed: its value if that is not true, or the error with its place.  `None` if it passed."""
    seconds: float
    printed: tuple[str, ...]
    """The lines that the policy printed."""
    cases: tuple[Case, ...] = ()
    """The cases of a table-driven test."""
    detail: tuple[str, ...] = ()
    """Lines about a failure: the statement that does not hold, with its place, and the values in it."""


@dataclass(frozen=True)
class TestReport:
    """The results of a bundle's tests, and which lines of its rules they reached."""

    tests: tuple[Test, ...]
    covered: Mapping[str, tuple[int, ...]]
    """By file, the lines that some test reached."""
    missed: Mapping[str, tuple[int, ...]]
    """By file, the lines that no test reached."""
    skipped: tuple[Test, ...] = ()
    """The rules named ``todo_test_*``, which do not run."""

    @property
    def failed(self) -> tuple[Test, ...]:
        """The tests that are not true."""
        return tuple(test for test in self.tests if test.why is not None)

    @property
    def coverage(self) -> float:
        """The share of lines that were reached, per cent; 100 if there are no lines to reach."""
        return _share(sum(map(len, self.covered.values())), sum(map(len, self.missed.values())))


def _share(covered: int, missed: int) -> float:
    return 100 * covered / (covered + missed) if covered + missed else 100.0


async def run(bundle: Bundle, pattern: str = "") -> TestReport:
    """
    Run the tests of a bundle in a process of its own.

    Args:
        bundle: The bundle.
        pattern: A regular expression; only tests whose full names have it are run.

    Raises:
        PolicyError: the bundle cannot be compiled, or a test loops or crashes.
    """
    answer = await run_task("test", bundle, TIMEOUT_S, pattern=pattern)
    ran: list[Test] = []
    skipped: list[Test] = []
    for t in answer["tests"]:
        (skipped if t["skipped"] else ran).append(
            Test(
                file=t["file"],
                line=t["line"],
                name=t["name"],
                why=t["why"],
                seconds=t["seconds"],
                printed=tuple(t["printed"]),
                cases=tuple(Case(tuple(c["name"]), c["passed"]) for c in t["cases"]),
                detail=tuple(t["detail"]),
            )
        )
    return TestReport(
        tests=tuple(ran),
        covered={file: tuple(covered) for file, (covered, _) in answer["coverage"].items()},
        missed={file: tuple(missed) for file, (_, missed) in answer["coverage"].items() if missed},
        skipped=tuple(skipped),
    )


def to_wire(report: TestReport) -> list[dict[str, Any]]:
    """The results in the form of ``opa test --format=json``: an object for each test, also those that are skipped."""
    return [
        _to_wire(test, is_skipped=number >= len(report.tests))
        for number, test in enumerate((*report.tests, *report.skipped))
    ]


def _to_wire(test: Test, *, is_skipped: bool) -> dict[str, Any]:
    package, _, name = test.name.rpartition(".")
    wire: dict[str, Any] = {
        "location": {"file": test.file, "row": test.line, "col": 1},
        "package": package,
        "name": name,
        "duration": round(test.seconds * 1e9),
    }
    if is_skipped:
        wire["skip"] = True
    if test.why is not None:
        wire |= {"fail": True, "why": test.why, "detail": list(test.detail)}
    if test.cases:
        wire["sub_results"] = _nested(test.cases)
    if test.printed:
        wire["output"] = base64.b64encode("".join(f"{line}\n" for line in test.printed).encode()).decode()
    return wire


def _nested(cases: Sequence[Case]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for case in cases:
        at = found
        for depth, part in enumerate(case.name, 1):
            entry = at.setdefault(part, {"name": part})
            if not case.passed:
                entry["fail"] = True
            if depth < len(case.name):
                at = entry.setdefault("sub_results", {})
    return found


def coverage_to_wire(report: TestReport) -> dict[str, Any]:
    """The coverage in the form of ``opa test --coverage``: ranges of lines for each file, with counts and shares."""
    files = {
        file: _counted(report.covered.get(file, ()), report.missed.get(file, ()))
        | {
            "covered": ranges_of(report.covered.get(file, ())),
            "not_covered": ranges_of(report.missed.get(file, ())),
        }
        for file in sorted(report.covered.keys() | report.missed.keys())
    }
    lines = [line for covered in report.covered.values() for line in covered]
    return {"files": files} | _counted(lines, [line for missed in report.missed.values() for line in missed])


def _counted(covered: Sequence[int], missed: Sequence[int]) -> dict[str, Any]:
    return {
        "covered_lines": len(covered),
        "not_covered_lines": len(missed),
        "coverage": round(_share(len(covered), len(missed)), 2),
    }


def ranges_of(lines: Sequence[int]) -> list[dict[str, dict[str, int]]]:
    """Lines as ranges: ``{"start": {"row": 3}, "end": {"row": 5}}``."""
    found: list[dict[str, dict[str, int]]] = []
    for line in sorted(set(lines)):
        if found and found[-1]["end"]["row"] == line - 1:
            found[-1]["end"]["row"] = line
        else:
            found.append({"start": {"row": line}, "end": {"row": line}})
    return found


def junit(bundle: Bundle, report: TestReport) -> bytes:
    """The report as JUnit XML, which CI reads: one ``testsuite``, a ``testcase`` for each rule."""
    return _xml(_suite(bundle, report))


def junit_of_several(reports: Sequence[tuple[Bundle, TestReport]]) -> bytes:
    """The reports of several bundles as JUnit XML: ``testsuites`` with one ``testsuite`` for each."""
    suites = ET.Element("testsuites")
    suites.extend([_suite(bundle, report) for bundle, report in reports])
    return _xml(suites)


def _xml(element: ET.Element) -> bytes:
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(element) + b"\n"


def _suite(bundle: Bundle, report: TestReport) -> ET.Element:
    suite = ET.Element(
        "testsuite",
        name=bundle.id,
        tests=str(len(report.tests) + len(report.skipped)),
        failures=str(len(report.failed)),
        errors="0",
        skipped=str(len(report.skipped)),
        time=f"{sum(test.seconds for test in report.tests):.6f}",
    )
    properties = ET.SubElement(suite, "properties")
    ET.SubElement(properties, "property", name="coverage", value=f"{report.coverage:.1f}")
    for number, test in enumerate((*report.tests, *report.skipped)):
        package, _, name = test.name.rpartition(".")
        case = ET.SubElement(
            suite,
            "testcase",
            classname=package,
            name=name,
            file=test.file,
            line=str(test.line),
            time=f"{test.seconds:.6f}",
        )
        if test.why is not None:
            failure = ET.SubElement(case, "failure", message=_printable(test.why))
            failure.text = _printable("\n".join(test.detail)) or None
        if number >= len(report.tests):
            ET.SubElement(case, "skipped")
        if test.printed:
            ET.SubElement(case, "system-out").text = _printable("\n".join(test.printed))
    return suite


def _printable(text: str) -> str:
    """*text* without control characters, which XML cannot have."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
