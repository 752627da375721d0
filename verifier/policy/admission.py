"""
What a bundle must pass before it may judge anybody: it parses, its lint is clean, its tests hold.

A courtesy, not the defence: what gets past it anyway costs an appraisal (`verifier.policy.engine`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from verifier.errors import BundleError, PolicyError
from verifier.policy import testing
from verifier.policy.bundle import Bundle
from verifier.policy.engine import run_task
from verifier.policy.lint import Level, LintFinding
from verifier.policy.testing import TestReport

_INSPECT_S: Final = 10.0
_SHOWN: Final = 20


@dataclass(frozen=True)
class Inspection:
    """What a bundle's rules look like: lint findings, and by file name, meaning and text of each rule."""

    findings: tuple[LintFinding, ...]
    rules: dict[str, list[tuple[str, str, str]]]

    @property
    def errors(self) -> tuple[LintFinding, ...]:
        """Those for which it is refused."""
        return tuple(finding for finding in self.findings if finding.level is Level.ERROR)


@dataclass(frozen=True)
class Admission:
    """A bundle that passed."""

    inspection: Inspection
    report: TestReport


async def inspect(bundle: Bundle) -> Inspection:
    """
    Parse and lint, in a process of its own: the parser meets hostile text too.

    Raises:
        BundleError: a module does not parse; says where.
    """
    try:
        answer: Any = await run_task("inspect", bundle, _INSPECT_S)
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
    Inspect and test.

    Raises:
        BundleError: it is refused; one line for each reason, with file and place.
    """
    inspection = await inspect(bundle)
    if inspection.errors:
        raise BundleError("\n".join(str(finding) for finding in inspection.errors[:_SHOWN]))
    try:
        report = await testing.run(bundle)
    except PolicyError as error:
        raise BundleError(str(error)) from None
    if not report.tests:
        raise BundleError("there are no tests: no rule named test_* in a *_test.rego")
    if report.failed:
        raise BundleError("\n".join(f"{t.file}:{t.line}: {t.name}: {t.why}" for t in report.failed[:_SHOWN]))
    return Admission(inspection, report)
