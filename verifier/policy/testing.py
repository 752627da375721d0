"""Run a bundle's own tests, as ``opa test`` does: every rule named ``test_*`` must be true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

from verifier.policy.bundle import Bundle
from verifier.policy.process import run_task

TIMEOUT_S: Final = 30.0


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


@dataclass(frozen=True)
class TestReport:
    """The results of a bundle's tests, and which lines of its rules they reached."""

    tests: tuple[Test, ...]
    covered: Mapping[str, tuple[int, ...]]
    """By file, the lines that some test reached."""
    missed: Mapping[str, tuple[int, ...]]
    """By file, the lines that no test reached."""

    @property
    def failed(self) -> tuple[Test, ...]:
        """The tests that are not true."""
        return tuple(test for test in self.tests if test.why is not None)

    @property
    def coverage(self) -> float:
        """The share of lines that were reached, per cent; 100 if there are no lines to reach."""
        reached = sum(map(len, self.covered.values()))
        lines = reached + sum(map(len, self.missed.values()))
        return 100.0 if not lines else 100 * reached / lines


async def run(bundle: Bundle) -> TestReport:
    """
    Run all tests of a bundle in a process of its own.

    Raises:
        PolicyError: the bundle cannot be compiled, or a test loops or crashes.
    """
    answer = await run_task("test", bundle, TIMEOUT_S)
    return TestReport(
        tests=tuple(
            Test(
                file=t["file"],
                line=t["line"],
                name=t["name"],
                why=t["why"],
                seconds=t["seconds"],
                printed=tuple(t["printed"]),
            )
            for t in answer["tests"]
        ),
        covered={file: tuple(covered) for file, (covered, _) in answer["coverage"].items()},
        missed={file: tuple(missed) for file, (_, missed) in answer["coverage"].items() if missed},
    )


def junit(bundle: Bundle, report: TestReport) -> bytes:
    """The report as JUnit XML, which CI reads: one ``testsuite``, a ``testcase`` for each rule."""
    suite = ET.Element(
        "testsuite",
        name=bundle.id,
        tests=str(len(report.tests)),
        failures=str(len(report.failed)),
        errors="0",
        skipped="0",
        time=f"{sum(test.seconds for test in report.tests):.6f}",
    )
    properties = ET.SubElement(suite, "properties")
    ET.SubElement(properties, "property", name="coverage", value=f"{report.coverage:.1f}")
    for test in report.tests:
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
            ET.SubElement(case, "failure", message=_printable(test.why))
        if test.printed:
            ET.SubElement(case, "system-out").text = _printable("\n".join(test.printed))
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suite) + b"\n"


def _printable(text: str) -> str:
    """*text* without control characters, which XML cannot have."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
