"""`touchstone policy lint`, `test` and `fmt`: what a repository of policies runs on each change, without a verifier."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from verifier.commands import questions, second_opinion
from verifier.commands.common import errors, json_option, write_file
from verifier.commands.second_opinion import NO_TESTS, TestsAgain, opa_option, second_option
from verifier.errors import BundleError, PolicyError
from verifier.policy import admission, second_engines, testing
from verifier.policy import bundle as bundles
from verifier.policy.admission import Inspection
from verifier.policy.bundle import Bundle
from verifier.policy.lint import Level, LintFinding
from verifier.policy.opinions import Comparison
from verifier.policy.questions import Answers
from verifier.policy.repository import bundles_in, laid_out, sources_in
from verifier.policy.testing import Test, TestReport
from verifier.schemes.findings import to_printable

T = TypeVar("T")
_BATCH_BYTES: Final = 2 << 20
_paths = click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))


def _each(
    paths: Sequence[Path], work: Callable[[Bundle], T], *, quiet: bool
) -> Iterator[tuple[Path, Bundle | None, T | str]]:
    """What *work* gives for each bundle, or the error of one that cannot be used: the others are looked at too."""
    found = bundles_in(paths)
    for folder in found:
        bundle: Bundle | None = None
        try:
            bundle = bundles.load(folder)
            if len(found) > 1 and not quiet:
                click.echo(f"== {folder}  {bundle.manifest.name}@{bundle.manifest.version}")
            result: T | str = work(bundle)
        except (BundleError, PolicyError) as error:
            if len(found) == 1 and not quiet:
                raise
            if bundle is None and not quiet:
                click.echo(f"== {folder}")
            result = str(error)
            if not quiet:
                click.echo(f"error: {to_printable(result, 4000)}")
        yield folder, bundle, result


def _summarise(results: Sequence[tuple[Path, bool]]) -> None:
    """Say at the end which of several bundles did not pass, and exit with 1 if one did not."""
    failed = [str(folder) for folder, passed in results if not passed]
    if len(results) > 1:
        click.echo(
            f"== {len(results)} bundles: "
            + (f"not good are {', '.join(failed)}" if failed else "all are good")
        )
    if failed:
        raise SystemExit(1)


@click.command()
@_paths
@json_option
@errors
def lint(paths: tuple[Path, ...], as_json: bool) -> None:
    """
    Check the policies in PATHS, and show each fault with file, line and column.

    A path is the folder of a bundle, or one with several bundles below.  Exits with 1 if there is an error.
    """
    results: list[tuple[Path, bool]] = []
    wire: list[dict[str, Any]] = []
    for folder, bundle, found in _each(paths, _inspect, quiet=as_json):
        entry: dict[str, Any] = {"folder": str(folder), "policy": bundle.id if bundle else None}
        passed = False
        if isinstance(found, str) or bundle is None:
            entry |= {"error": found}
        else:
            inspection, answers = found
            failure = None if answers is None else answers.failure
            failed = () if failure is None else (admission.finding_of(bundle, failure),)
            entry |= {"rules": _rule_count(inspection), "findings": (*inspection.findings, *failed)}
            entry |= {"asked": 0 if answers is None else answers.asked}
            passed = not inspection.errors and failure is None
            if not as_json:
                _show_findings(inspection, (*inspection.findings, *failed))
                if answers is not None:
                    questions.show(answers)
        wire.append(entry)
        results.append((folder, passed))
    if as_json:
        click.echo(msgspec.json.encode({"bundles": wire}).decode())
        raise SystemExit(0 if all(passed for _, passed in results) else 1)
    _summarise(results)


def _inspect(bundle: Bundle) -> tuple[Inspection, Answers | None]:
    """What lint finds, and what the policy answers to every sample if it may be asked."""
    inspection = asyncio.run(admission.inspect(bundle))
    return inspection, None if inspection.errors else questions.ask(bundle, inspection)


def _rule_count(inspection: Inspection) -> int:
    return sum(len(found) for found in inspection.rules.values())


def _show_findings(inspection: Inspection, findings: Sequence[LintFinding]) -> None:
    for finding in findings:
        click.echo(f"{finding.level}: {finding}")
    errors = sum(finding.level is Level.ERROR for finding in findings)
    click.echo(f"{_rule_count(inspection)} rules, {errors} errors, {len(findings) - errors} warnings")


def _pattern(context: click.Context, option: click.Parameter, value: str) -> str:
    del context, option
    try:
        re.compile(value)
    except re.error as error:
        raise click.BadParameter(f"this is not a regular expression: {error}") from None
    return value


@click.command("test")
@_paths
@click.option("--junit", type=click.Path(path_type=Path), help="The file to write a JUnit report for CI to.")
@click.option(
    "--min-coverage",
    "--threshold",
    "min_coverage",
    default=0,
    type=click.FloatRange(0, 100),
    help="The share of lines that the tests must reach, per cent.",
)
@click.option("--verbose", "-v", is_flag=True, help="Show also the tests that pass, and what each printed.")
@click.option(
    "--run", "-r", "pattern", default="", callback=_pattern, help="Run the tests whose name has this REGEX."
)
@click.option(
    "--coverage", "-c", "with_coverage", is_flag=True, help="Show which lines the tests reach, by file."
)
@second_option
@opa_option
@json_option
@errors
def run_tests(
    paths: tuple[Path, ...], junit: Path | None, min_coverage: float, verbose: bool, pattern: str,
    with_coverage: bool, second: str | None, opa: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """
    Run the tests of the policies in PATHS.  Every rule named test_* must be true.

    A path is the folder of a bundle, or one with several bundles below.  Without --run, each policy is also asked
    about every kind of input that the contract allows, as production asks it.  Exits with 1 if a test fails.
    """
    if second is not None:
        second_engines.check(second, opa)

    def work(bundle: Bundle) -> _Tested:
        report = asyncio.run(testing.run(bundle, pattern))
        if not report.tests or pattern:
            return _Tested(report)
        answers = questions.ask(bundle)
        if second is None:
            return _Tested(report, answers)
        again = second_opinion.ask_tests(bundle, report, second, opa)
        return _Tested(report, answers, second_opinion.ask(bundle, second, opa), again)

    results: list[tuple[Path, bool]] = []
    reports: list[tuple[Bundle, TestReport]] = []
    wire: list[dict[str, Any]] = []
    for folder, bundle, found in _each(paths, work, quiet=as_json):
        entry: dict[str, Any] = {"folder": str(folder), "policy": bundle.id if bundle else None}
        passed = False
        if isinstance(found, str) or bundle is None:
            entry |= {"error": found}
        else:
            reports.append((bundle, found.report))
            entry |= found.to_wire()
            passed = found.passes(min_coverage)
            if not as_json:
                _show_report(found.report, verbose=verbose, with_coverage=with_coverage, pattern=pattern)
                found.show(second, min_coverage)
        wire.append(entry)
        results.append((folder, passed))
    if junit is not None:
        one = len(results) == 1 and len(reports) == 1
        write_file(junit, testing.junit(*reports[0]) if one else testing.junit_of_several(reports))
    if as_json:
        click.echo(msgspec.json.encode({"bundles": wire}).decode())
        raise SystemExit(0 if all(passed for _, passed in results) else 1)
    _summarise(results)


@dataclass(frozen=True)
class _Tested:
    """What came of testing a policy."""

    report: TestReport
    answers: Answers | None = None
    """To every sample; `None` if it was not asked, because only some tests were."""
    compared: Comparison | None = None
    """With a second engine, if one was asked."""
    again: TestsAgain = NO_TESTS
    """The tests in that engine."""

    def passes(self, min_coverage: float) -> bool:
        """Whether everything is as it should be."""
        report = self.report
        fails = report.failed or (self.answers is not None and self.answers.failure is not None)
        differs = self.again.differing or (self.compared is not None and self.compared.differing > 0)
        return bool(report.tests) and not fails and not differs and report.coverage >= min_coverage

    def show(self, second: str | None, min_coverage: float) -> None:
        """Show what is not about single tests."""
        if self.report.tests and self.report.coverage < min_coverage:
            click.echo(f"At least {min_coverage:g} % are asked for.")
        if self.answers is not None:
            questions.show(self.answers)
        if self.compared is not None and second is not None:
            second_opinion.show_tests(second, self.again)
            second_opinion.show(second, self.compared)

    def to_wire(self) -> dict[str, Any]:
        """In the form that `--json` prints."""
        wire: dict[str, Any] = {
            "tests": testing.to_wire(self.report),
            "coverage": testing.coverage_to_wire(self.report),
        }
        if self.answers is not None:
            failure = self.answers.failure
            wire |= {"asked": self.answers.asked, "failure": None if failure is None else str(failure)}
        if self.compared is not None:
            wire |= {"compared": self.compared.asked, "differing": self.compared.differing}
            wire |= {"tests_compared": self.again.ran, "tests_differing": self.again.differing}
        return wire


def _no_tests(pattern: str) -> str:
    if pattern:
        return f"no test has {pattern!r} in its name"
    return "there are no tests. A bundle needs a rule named test_* in a file *_test.rego"


def _show_report(report: TestReport, *, verbose: bool, with_coverage: bool, pattern: str) -> None:
    for test in report.tests:
        _show_test(test, verbose=verbose)
    for test in report.skipped:
        click.echo(f"todo  {test.file}:{test.line}  {test.name}")
    if with_coverage:
        _show_coverage(report)
    elif not pattern:
        for file, lines in report.missed.items():
            click.echo(f"no test reaches {file}: {', '.join(map(str, lines))}")
    if not report.tests:
        click.echo(_no_tests(pattern))
        return
    todo = f" {len(report.skipped)} more are to be done." if report.skipped else ""
    click.echo(
        f"{len(report.tests) - len(report.failed)} of {len(report.tests)} tests pass.{todo} "
        f"They reach {report.coverage:.1f} % of the lines."
    )


def _show_test(test: Test, *, verbose: bool) -> None:
    if test.why is not None:
        click.echo(f"FAIL  {test.file}:{test.line}  {test.name}: {to_printable(test.why)}")
    elif verbose:
        click.echo(f"ok    {test.file}:{test.line}  {test.name}")
    for case in test.cases:
        if verbose or not case.passed:
            click.echo(f"      {'ok  ' if case.passed else 'FAIL'}  {to_printable('/'.join(case.name))}")
    for line in test.detail:
        click.echo(f"      {to_printable(line, 1000)}")
    for line in test.printed if verbose or test.why is not None else ():
        click.echo(f"      {to_printable(line)}")


def _show_coverage(report: TestReport) -> None:
    for file, found in testing.coverage_to_wire(report)["files"].items():
        total = found["covered_lines"] + found["not_covered_lines"]
        lines = f"{found['coverage']:5.1f} % of {total} lines"
        ranges = ", ".join(_shown(each) for each in found["not_covered"])
        click.echo(f"{file:24}  {lines}" + (f", not {ranges}" if ranges else ""))


def _shown(lines: dict[str, dict[str, int]]) -> str:
    first, last = lines["start"]["row"], lines["end"]["row"]
    return str(first) if first == last else f"{first}-{last}"


@click.command()
@_paths
@click.option(
    "--check",
    is_flag=True,
    help="Write nothing; name the files that are laid out otherwise, and exit with 1.",
)
@click.option("--diff", "-d", "as_diff", is_flag=True, help="Write nothing; show what would change.")
@click.option("--write", "-w", is_flag=True, help="Write the files.  Default: print what would be written.")
@errors
def fmt(paths: tuple[Path, ...], check: bool, as_diff: bool, write: bool) -> None:
    """
    Lay out Rego files as `opa fmt` does: PATHS, and the files *.rego in folders below.

    No token and no comment is changed.  Exits with 1 if a file cannot be read, or with --check if one differs.
    """
    if write and (check or as_diff):
        raise click.UsageError("--write cannot be together with --check or --diff, which write nothing")
    sources = sources_in(paths)
    if not sources:
        raise BundleError("there is no file *.rego")
    is_bad = False
    for batch in _batches(sources):
        formatted, refused = asyncio.run(laid_out(batch))
        for file, before in batch.items():
            if file in refused:
                click.echo(f"error: {to_printable(refused[file], 2000)}", err=True)
                is_bad = True
                continue
            after = formatted[file]
            is_bad |= check and before != after
            _act(file, before, after, check=check, as_diff=as_diff, write=write)
    if is_bad:
        raise SystemExit(1)


def _act(file: str, before: str, after: str, *, check: bool, as_diff: bool, write: bool) -> None:
    if write:
        if before != after:
            _rewrite(Path(file), after)
            click.echo(f"wrote {file}")
        return
    if check and before != after:
        click.echo(file)
    if as_diff:
        lines = difflib.unified_diff(
            before.splitlines(), after.splitlines(), file, f"{file} (laid out)", lineterm=""
        )
        for line in lines:
            click.echo(line)
    if not check and not as_diff:
        click.echo(after, nl=False)


def _rewrite(file: Path, text: str) -> None:
    try:
        file.write_bytes(text.encode())
    except OSError as error:
        raise BundleError(f"{file} cannot be written: {error.strerror}") from None


def _batches(sources: dict[str, str]) -> Iterator[dict[str, str]]:
    """Parts of the sources that one process can be given."""
    batch: dict[str, str] = {}
    size = 0
    for file, text in sources.items():
        if batch and size + len(text) > _BATCH_BYTES:
            yield batch
            batch, size = {}, 0
        batch[file] = text
        size += len(text)
    yield batch
