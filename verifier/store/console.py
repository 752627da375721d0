"""What the commands on databases print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from verifier.store.checking import Fault
from verifier.store.whole import TableDigest


def show_faults(faults: Sequence[Fault]) -> None:
    """Print a row for each fault, and end the command with status 1 if there is one."""
    for fault in faults:
        click.echo(f"FAULT  {fault.check}: {_printable(fault.where)}")
    if faults:
        raise SystemExit(1)
    click.echo("All of it holds.")


def show_migration(digests: Mapping[str, TableDigest]) -> None:
    """Print the digests of what was copied."""
    for name, digest in sorted(digests.items()):
        click.echo(f"{name:20} {digest.rows:>10} rows  {digest.sha256[:16]}…  equal")


def confirm_replacing(name: str, *, yes: bool) -> None:
    """Have a person confirm that everything in a database is to be replaced.  Raises `click.Abort`."""
    if yes:
        return
    click.echo(f"Everything in {name} will be lost.")
    if click.prompt("Type replace to go on") != "replace":
        raise click.Abort


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
