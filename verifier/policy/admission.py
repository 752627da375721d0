"""
What a bundle must pass before it may judge anybody.

It parses, lint finds no error, its tests pass, and it has a valid outcome for every sample of what
the verifier may ask it (`verifier.policy.questions`).

This check helps authors and is not the defence.  A fault that it misses costs one appraisal
(`verifier.policy.engine`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from verifier.errors import BundleError, PolicyError
from verifier.policy import questions, testing, words
from verifier.policy.bundle import Bundle
from verifier.policy.engine import Limits
from verifier.policy.lint import Level, LintFinding
from verifier.policy.process import run_task
from verifier.policy.questions import Answers, Failure
from verifier.policy.testing import TestReport
from verifier.policy.words import Words

_INSPECT_TIMEOUT_S: Final = 10.0
_MAX_SHOWN: Final = 20
_QUOTED: Final = re.compile(r"'([^']+)'\Z")
_PLACE: Final = re.compile(r"(\S+\.rego):(\d+):(\d+): ")


@dataclass(frozen=True)
class Inspection:
    """The lint findings of a bundle, and its rules."""

    findings: tuple[LintFinding, ...]
    rules: dict[str, list[tuple[str, str, str]]]
    """By file, the name, the digest of the meaning and the text of each rule."""
    words: Words = field(default_factory=Words)
    """What stands in the rules and the data."""

    @property
    def errors(self) -> tuple[LintFinding, ...]:
        """The findings for which the bundle is refused."""
        return tuple(finding for finding in self.findings if finding.level is Level.ERROR)


@dataclass(frozen=True)
class Admission:
    """What was found in a bundle that passed."""

    inspection: Inspection
    report: TestReport
    answers: Answers


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
    strings, numbers = answer["words"]
    return Inspection(findings, rules, words.of_policy(strings, numbers, bundle.data))


async def question(bundle: Bundle, inspection: Inspection, limits: Limits | None = None) -> Answers:
    """
    Ask a bundle about every sample.

    Args:
        limits: The limits of production.

    Raises:
        BundleError: it has no valid outcome for one of them; the message has the smallest such input.
    """
    try:
        answers = await questions.ask(bundle, inspection.words, limits)
    except PolicyError as error:
        raise BundleError(str(error)) from None
    if answers.failure is not None:
        raise BundleError(str(answers.failure))
    return answers


def finding_of(bundle: Bundle, failure: Failure) -> LintFinding:
    """A failure as a finding of lint: where the engine says, where the word is that is wrong, or at the first module."""
    place, sentence = _PLACE.match(failure.why), failure.why
    if place is not None:
        file, line, column = place[1], int(place[2]), int(place[3])
        sentence = failure.why[place.end() :]
    else:
        file, line, column = _find_word(bundle, failure.why)
    return LintFinding(
        level=Level.ERROR, rule="samples", file=file, line=line, column=column, sentence=sentence
    )


def _find_word(bundle: Bundle, why: str) -> tuple[str, int, int]:
    quoted = _QUOTED.search(why)
    for file, source in bundle.modules:
        start = -1 if quoted is None else source.find(f'"{quoted[1]}"')
        if start >= 0:
            return file, source.count("\n", 0, start) + 1, start - source.rfind("\n", 0, start)
    return bundle.modules[0][0], 1, 1


async def check(bundle: Bundle, limits: Limits | None = None) -> Admission:
    """
    Inspect a bundle, run its tests, and ask it about every sample.

    Args:
        limits: The limits of production.

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
    return Admission(inspection, report, await question(bundle, inspection, limits))
