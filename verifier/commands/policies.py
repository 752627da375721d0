"""`touchstone policy …`: write, lint, test, compare and pack policies; `rollout` has the rest."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

import click
import msgspec

from attester.identity import load_key
from verifier.commands import questions, second_opinion
from verifier.commands.common import errors, home_option, in_transaction, json_option, write_file
from verifier.commands.second_opinion import opa_option, second_option
from verifier.config import default_policy
from verifier.errors import BundleError, PolicyError
from verifier.policy import admission, ar4si, second_engines, testing
from verifier.policy import bundle as bundles
from verifier.policy import diff as differences
from verifier.policy.archive import read_archive, write_archive
from verifier.policy.bundle import Bundle
from verifier.schemes.findings import to_printable
from verifier.store import policies as stored
from verifier.store.database import Tx

_SHORT_DIGITS: Final = 12
_folder = click.argument("folder", type=click.Path(path_type=Path))


@click.group()
def policy() -> None:
    """Write, try and roll out policies."""


@policy.command()
@_folder
@click.option("--name", default=None, help="The policy's name.  Default: the folder's name.")
@click.option("--author", default="The security team", show_default=True, help="The policy's author.")
@click.option(
    "--from",
    "base",
    default=None,
    help="Copy a published policy, or `active`.  Default: the default policy.",
)
@home_option
@errors
def new(folder: Path, name: str | None, author: str, base: str | None, home: Path) -> None:
    """Make a FOLDER with a new policy: a copy of another one with its tests."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists already and is not an empty folder")
    original = (
        bundles.load(default_policy()) if base is None else in_transaction(home, lambda tx: find(tx, base))
    )
    label = name or re.sub(r"[^a-z0-9-]+", "-", folder.resolve().name.lower()).strip("-")
    manifest = {
        "name": label,
        "version": "1",
        "author": author,
        "description": "Says what is acceptable to us.",
    }
    files = {
        **original.files,
        "ar4si/data.json": ar4si.to_json(),
        "bundle.json": msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n",
    }
    made = bundles.of_files(files)
    try:
        for file, data in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
    except OSError as error:
        raise BundleError(f"{folder} cannot be written: {error.strerror}") from None
    click.echo(
        f"Made {folder} with {len(made.modules)} modules and their tests, a copy of {short(original.id)}. Next:"
    )
    click.echo(f"  1. list what you approve in {folder}/data.json")
    click.echo(f"  2. say what it means in {folder}/*.rego")
    click.echo(f"  3. touchstone policy test {folder}")


@policy.command()
@_folder
@errors
def lint(folder: Path) -> None:
    """Check the policy in FOLDER, and show each fault with file, line and column."""
    bundle = bundles.load(folder)
    inspection = asyncio.run(admission.inspect(bundle))
    for finding in inspection.findings:
        click.echo(f"{finding.level}: {finding}")
    rules = sum(len(found) for found in inspection.rules.values())
    click.echo(
        f"{rules} rules, {len(inspection.errors)} errors, {len(inspection.findings) - len(inspection.errors)} warnings"
    )
    if inspection.errors:
        raise SystemExit(1)
    answers = questions.ask(bundle, inspection)
    if answers.failure is not None:
        click.echo(f"error: {admission.finding_of(bundle, answers.failure)}")
    questions.show(answers)
    if answers.failure is not None:
        raise SystemExit(1)


@policy.command("test")
@_folder
@click.option("--junit", type=click.Path(path_type=Path), help="The file to write a JUnit report for CI to.")
@click.option(
    "--min-coverage",
    default=0,
    type=click.IntRange(0, 100),
    help="The share of lines that the tests must reach, per cent.",
)
@click.option("--verbose", "-v", is_flag=True, help="Show also the tests that pass.")
@second_option
@opa_option
@errors
def run_tests(
    folder: Path, junit: Path | None, min_coverage: int, verbose: bool, second: str | None, opa: Path | None
) -> None:
    """Run the tests of the policy in FOLDER.  Every rule named test_* must be true.

    The policy is also asked about every kind of input that the contract allows, as production asks it.
    """
    bundle = bundles.load(folder)
    if second is not None:
        second_engines.check(second, opa)
    report = asyncio.run(testing.run(bundle))
    for test in report.tests:
        if test.why is not None:
            click.echo(f"FAIL  {test.file}:{test.line}  {test.name}: {to_printable(test.why)}")
        elif verbose:
            click.echo(f"ok    {test.file}:{test.line}  {test.name}")
        for line in test.printed:
            click.echo(f"      {to_printable(line)}")
    for file, lines in report.missed.items():
        click.echo(f"no test reaches {file}: {', '.join(map(str, lines))}")
    click.echo(
        f"{len(report.tests) - len(report.failed)} of {len(report.tests)} tests pass. "
        f"They reach {report.coverage:.1f} % of the lines."
    )
    if junit is not None:
        write_file(junit, testing.junit(bundle, report))
    if not report.tests:
        raise BundleError("there are no tests. A bundle needs a rule named test_* in a file *_test.rego")
    answers = questions.ask(bundle)
    questions.show(answers)
    differs = False
    if second is not None:
        differs = second_opinion.ask_tests(bundle, report, second, opa)
        differs |= second_opinion.show(second, second_opinion.ask(bundle, second, opa))
    if differs or answers.failure is not None or report.failed or report.coverage < min_coverage:
        raise SystemExit(1)


@policy.command()
@_folder
@click.option("--key", type=click.Path(path_type=Path), required=True, help="The author's private key, PEM.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The file to write the archive to."
)
@errors
def pack(folder: Path, key: Path, out: Path) -> None:
    """Sign the policy in FOLDER, and pack it so that it can be published over the API."""
    bundle = bundles.load(folder)
    write_file(out, write_archive(bundle, bundles.sign(bundle, load_key(key))))
    click.echo(f"Packed {bundle.id}: {out}")


@policy.command()
@click.argument("old")
@click.argument("new")
@home_option
@json_option
@errors
def diff(old: str, new: str, home: Path, as_json: bool) -> None:
    """Show how NEW differs in meaning from OLD.  Each is a folder, a published policy, or `active`."""

    async def work(tx: Tx) -> tuple[Bundle, Bundle]:
        return await find(tx, old), await find(tx, new)

    if Path(old).is_dir() and Path(new).is_dir():
        before, after = bundles.load(Path(old)), bundles.load(Path(new))
    else:
        before, after = in_transaction(home, work)

    async def inspected() -> list[differences.Difference]:
        return differences.compare(
            before, await admission.inspect(before), after, await admission.inspect(after)
        )

    found = asyncio.run(inspected())
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for d in found:
        values = f": {d.before or 'nothing'} → {d.after or 'nothing'}" if d.before or d.after else ""
        click.echo(f"{d.part} {d.name} {d.change}{to_printable(values, 500)}")
        for line in d.text.splitlines():
            click.echo(f"    {to_printable(line)}")
    if not found:
        click.echo("Both policies mean the same.")


async def find(tx: Tx, name: str) -> Bundle:
    """A policy by its name, or in a folder."""
    if Path(name).is_dir():  # noqa: ASYNC240  # in a command nobody else waits
        return bundles.load(Path(name))
    if name == "active":
        rollout = await stored.rollout(tx)
        if rollout is None:
            raise PolicyError("no policy is active yet. Start the verifier first")
        name = rollout.active
    row = await stored.find(tx, name)
    return read_archive(row["archive"])[0]


def short(policy_id: str) -> str:
    """A policy's id with only the first twelve digits of its digest."""
    name, mark, digest = policy_id.partition("#sha-256;")
    return f"{name}{mark}{digest[:_SHORT_DIGITS]}" if mark else policy_id[:64]
