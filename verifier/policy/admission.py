"""
What a bundle must pass before it may judge anybody: it parses, lint finds no error, and its tests pass.

This check helps authors and is not the defence.  A fault that it misses costs one appraisal
(`verifier.policy.engine`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from verifier.errors import BundleError, PolicyError
from verifier.policy import testing
from verifier.policy.bundle import Bundle
from verifier.policy.lint import Level, LintFinding
from verifier.policy.process import run_task
from verifier.policy.testing import TestReport

_INSPECT_TIMEOUT_S: Final = 10.0
_MAX_SHOWN: Final = 20


@dataclass(frozen=True)
class Inspection:
    """The lint findings of a bundle, and its rules."""

    findings: tuple[LintFinding, ...]
    rules: dict[str, list[tuple[str, str, str]]]
    """By file, the name, the digest of the meaning and the text of each rule."""

    @property
    def errors(self) -> tuple[LintFinding, ...]:
        """The findings for which the bundle is refused."""
        return tuple(finding for finding in self.findings if finding.level is Level.ERROR)


@dataclass(frozen=True)
class Admission:
    """What was found in a bundle that passed."""

    inspection: Inspection
    report: TestReport


async def inspect(bundle: Bundle) -> Inspection:
    """
    Parse a bundle and lint it, in a process of its own, because its text may be hostile to the parser.

    Raises:
        BundleError: a module does not parse; the message says where.
    """
    try:
        answer: Any = await run_task("inspect", bundle, _INSPECT_TIMEOUT_S)
    except PolicyError as error:
        raise BundleError(str(error)) from None
    findings = tuple(LintFinding(Level(level), *rest) for level, *rest in answer["findings"])
    rules = {
        file: [(name, meaning, text) for name, meaning, text in found]
        for file, found in answer["rules"].items()
    }
    return Inspection(findings, rules)


async def check(bundle: Bundle) -> Admission:
    """
    Inspect a bundle and run its tests.

    Raises:
        BundleError: the bundle is refused; the message has one line for each reason, with file and place.
    """
    inspection = await inspect(bundle)
    if inspection.errors:
        raise BundleError("\n".join(str(finding) for finding in inspection.errors[:_MAX_SHOWN]))
    try:
        report = await testing.run(bundle)
    except PolicyError as error:
        raise BundleError(str(error)) from None
    if not report.tests:
        raise BundleError("there are no tests. A bundle needs a rule named test_* in a file *_test.rego")
    if report.failed:
        raise BundleError(
            "\n".join(f"{t.file}:{t.line}: {t.name}: {t.why}" for t in report.failed[:_MAX_SHOWN])
        )
    return Admission(inspection, report)
