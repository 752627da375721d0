"""`touchstone policy …`: write a policy, lint and test it, compare it, pack it; `rollout` has the rest."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

import click
import msgspec

from attester.identity import load_key
from verifier.commands.common import errors, home_option, in_transaction, json_option
from verifier.config import default_policy
from verifier.errors import BundleError, PolicyError
from verifier.policy import admission, ar4si, testing
from verifier.policy import bundle as bundles
from verifier.policy import diff as differences
from verifier.policy.archive import read_archive, write_archive
from verifier.policy.bundle import Bundle
from verifier.schemes.base import shown
from verifier.store import policies as stored
from verifier.store.database import Tx

_SHORT: Final = 12
_folder = click.argument("folder", type=click.Path(path_type=Path))


@click.group()
def policy() -> None:
    """Write, try and roll out policies."""


@policy.command()
@_folder
@click.option("--name", default=None, help="The policy's name; the folder's if not given.")
@click.option("--author", default="The security team", show_default=True, help="Who writes it.")
@click.option(
    "--from",
    "base",
    default=None,
    help="Begin with a published policy, or `active`, and not the default one.",
)
@home_option
@errors
def new(folder: Path, name: str | None, author: str, base: str | None, home: Path) -> None:
    """Make a FOLDER with a policy of your own: a copy of another, with its tests."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists already, and is not an empty folder")
    begun = (
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
        **begun.files,
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
        f"Made {folder}: {len(made.modules)} modules, {len(made.tests)} with tests, like {short(begun.id)}."
    )
    click.echo(f"  what is approved:  {folder}/data.json")
    click.echo(f"  what it means:     {folder}/*.rego")
    click.echo(f"  touchstone policy test {folder}")


@policy.command()
@_folder
@errors
def lint(folder: Path) -> None:
    """Read the policy in FOLDER, and say what is wrong with it, with file, line and column."""
    inspection = asyncio.run(admission.inspect(bundles.load(folder)))
    for finding in inspection.findings:
        click.echo(f"{finding.level}: {finding}")
    rules = sum(len(found) for found in inspection.rules.values())
    click.echo(
        f"{rules} rules, {len(inspection.errors)} errors, {len(inspection.findings) - len(inspection.errors)} warnings"
    )
    if inspection.errors:
        raise SystemExit(1)


@policy.command("test")
@_folder
@click.option("--junit", type=click.Path(path_type=Path), help="Write a report for CI here.")
@click.option(
    "--min-coverage", default=0, type=click.IntRange(0, 100), help="Fail below so many per cent of lines."
)
@click.option("--verbose", "-v", is_flag=True, help="Also those that hold.")
@errors
def run_tests(folder: Path, junit: Path | None, min_coverage: int, verbose: bool) -> None:
    """Run the tests of the policy in FOLDER: every rule named test_* must be true."""
    bundle = bundles.load(folder)
    report = asyncio.run(testing.run(bundle))
    for test in report.tests:
        if test.why is not None:
            click.echo(f"FAIL  {test.file}:{test.line}  {test.name}: {shown(test.why)}")
        elif verbose:
            click.echo(f"ok    {test.file}:{test.line}  {test.name}")
        for line in test.printed:
            click.echo(f"      {shown(line)}")
    for file, lines in report.missed.items():
        click.echo(f"not reached: {file}: {', '.join(map(str, lines))}")
    click.echo(
        f"{len(report.tests) - len(report.failed)} of {len(report.tests)} hold; {report.coverage:.1f} % of lines reached"
    )
    if junit is not None:
        try:
            junit.write_bytes(testing.junit(bundle, report))
        except OSError as error:
            raise BundleError(f"{junit} cannot be written: {error.strerror}") from None
    if not report.tests:
        raise BundleError("there are no tests: no rule named test_* in a *_test.rego")
    if report.failed or report.coverage < min_coverage:
        raise SystemExit(1)


@policy.command()
@_folder
@click.option("--key", type=click.Path(path_type=Path), required=True, help="The author's private key, PEM.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the archive is written.")
@errors
def pack(folder: Path, key: Path, out: Path) -> None:
    """Sign the policy in FOLDER and pack it, to be published over the API."""
    bundle = bundles.load(folder)
    try:
        out.write_bytes(write_archive(bundle, bundles.sign(bundle, load_key(key))))
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error.strerror}") from None
    click.echo(f"Packed {bundle.id}: {out}")


@policy.command()
@click.argument("old")
@click.argument("new")
@home_option
@json_option
@errors
def diff(old: str, new: str, home: Path, as_json: bool) -> None:
    """Say what NEW means differently than OLD: each a folder, a published policy, or `active`."""

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
        click.echo(f"{d.part} {d.name} {d.change}{shown(values, 500)}")
        for line in d.text.splitlines():
            click.echo(f"    {shown(line)}")
    if not found:
        click.echo("They mean the same.")


async def find(tx: Tx, name: str) -> Bundle:
    """A policy by name, or in a folder."""
    if Path(name).is_dir():  # noqa: ASYNC240  # a command: nobody else waits
        return bundles.load(Path(name))
    if name == "active":
        rollout = await stored.rollout(tx)
        if rollout is None:
            raise PolicyError("no policy is active yet: start the verifier first")
        name = rollout.active
    row = await stored.find(tx, name)
    return read_archive(row["archive"])[0]


def short(policy_id: str) -> str:
    """An id that people can tell apart: the digest's first twelve digits."""
    name, mark, digest = policy_id.partition("#sha-256;")
    return f"{name}{mark}{digest[:_SHORT]}" if mark else policy_id[:64]
