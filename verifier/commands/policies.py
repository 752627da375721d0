"""`touchstone policy …`: write, compare and pack policies; `policy_checks` and `rollout` have the rest."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

import click
import msgspec

from attester.identity import load_key
from verifier.commands import policy_checks
from verifier.commands.common import errors, home_option, in_transaction, json_option, write_file
from verifier.config import default_policy
from verifier.errors import BundleError, PolicyError
from verifier.policy import admission, ar4si
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


for _command in (policy_checks.lint, policy_checks.run_tests, policy_checks.fmt):
    policy.add_command(_command)


@policy.command()
@_folder
@click.option("--name", default=None, help="The policy's name.  Default: the folder's name.")
@click.option("--author", default="The security team", show_default=True, help="The policy's author.")
@click.option(
    "--from",
    "base",
    default=None,
    help="Copy a folder, a published policy, or `active`.  Default: the default policy.",
)
@home_option
@errors
def new(folder: Path, name: str | None, author: str, base: str | None, home: Path) -> None:
    """Make a FOLDER with a new policy: a copy of another one with its tests."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists already and is not an empty folder")
    original = _original(base, home)
    label = name or re.sub(r"[^a-z0-9-]+", "-", folder.resolve().name.lower()).strip("-")
    manifest = {
        "name": label,
        "version": "1",
        "author": author,
        "description": "Says what is acceptable to us.",
    }
    files = {
        **{name: data for name, data in original.files.items() if not name.startswith("ar4si/data.")},
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
    listed = next((name for name in ("data.json", "data.yaml", "data.yml") if name in files), "data.json")
    click.echo(f"  1. list what you approve in {folder}/{listed}")
    click.echo(f"  2. say what it means in {folder}/*.rego")
    click.echo(f"  3. touchstone policy test {folder}")


def _original(base: str | None, home: Path) -> Bundle:
    if base is None or Path(base).is_dir():
        return bundles.load(default_policy() if base is None else Path(base))
    return in_transaction(home, lambda tx: find(tx, base))


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
