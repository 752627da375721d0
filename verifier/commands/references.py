"""`touchstone reference …`: list, show, activate and retire reference values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from verifier.commands.common import (
    Person,
    day,
    errors,
    home_option,
    in_transaction,
    json_option,
    now_ms,
    person_options,
    reason_option,
    table,
)
from verifier.config import Home
from verifier.references import conflicts as reference_conflicts
from verifier.references import measured
from verifier.schemes.findings import to_printable
from verifier.service.access import ADMINISTER
from verifier.service.references import by_model, to_wire
from verifier.store import references as stored
from verifier.store.database import Tx


@click.group()
def reference() -> None:
    """Measure and publish reference values."""


@reference.command("list")
@click.option("--model", default=None, help="List the values of this model only.")
@home_option
@json_option
@errors
def list_references(model: str | None, home: Path, as_json: bool) -> None:
    """List reference values and their states."""
    rows = in_transaction(home, lambda tx: stored.every(tx, model))
    found = [to_wire(row, now_ms()) for row in rows]
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    columns = ("model", "digest", "state", "source", "signer", "until")
    table("", columns, [
        (
            value["model"], value["digest"][:12], _state(value), value["source"], value["signer"] or "–",
            "–" if value["not_after"] is None else day(value["not_after"]),
        )
        for value in found
    ])  # fmt: skip


def _state(value: dict[str, Any]) -> str:
    if value["expires_in_s"] is not None and value["expires_in_s"] < 0:
        return f"{value['state']}, expired"
    if value["grace_left_s"]:
        return f"{value['state']}, only a warning for {value['grace_left_s'] // 60} min"
    return str(value["state"])


@reference.command("show")
@click.argument("digest")
@home_option
@errors
def show(digest: str, home: Path) -> None:
    """Show the value whose digest begins with DIGEST, as JSON."""
    row = in_transaction(home, lambda tx: stored.find(tx, digest))
    document = msgspec.to_builtins(measured.read_document(row["document"]))
    known = to_wire(row, now_ms())
    click.echo(msgspec.json.format(msgspec.json.encode({**known, "document": document}), indent=2).decode())


@reference.command("activate")
@click.argument("digest")
@click.option(
    "--grace",
    "grace_s",
    default=None,
    type=click.IntRange(0, 365 * 86400),
    help="Seconds for which the previous value is only a warning.",
)
@reason_option
@person_options
@home_option
@errors
def activate_reference(digest: str, grace_s: int | None, reason: str, who: Person, home: Path) -> None:
    """Put the value whose digest begins with DIGEST in force, and supersede the previous one."""
    grace = Home(home).config().references.grace_s if grace_s is None else grace_s

    author = who.author(home, reason, ADMINISTER)

    async def work(tx: Tx) -> str:
        row = await stored.find(tx, digest)
        await stored.activate(tx, row["digest"], author, now_ms(), grace_ms=grace * 1000)
        return str(row["model"])

    model = in_transaction(home, work)
    click.echo(f"The value is in force for {model}. The previous value is only a warning for {grace} s.")


@reference.command("retire")
@click.argument("digest")
@reason_option
@person_options
@home_option
@errors
def retire(digest: str, reason: str, who: Person, home: Path) -> None:
    """Withdraw the value whose digest begins with DIGEST, without a grace period."""
    author = who.author(home, reason, ADMINISTER)

    async def work(tx: Tx) -> str:
        row = await stored.find(tx, digest)
        await stored.retire(tx, row["digest"], author, now_ms())
        return str(row["digest"])

    click.echo(f"Retired {in_transaction(home, work)}.")


@reference.command("conflicts")
@home_option
@json_option
@errors
def conflicts(home: Path, as_json: bool) -> None:
    """Show the files on which values of one model disagree."""
    rows = in_transaction(home, lambda tx: stored.documents(tx, stored.LIVE))
    found = reference_conflicts.between(by_model(rows))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    states = {row["digest"]: f"{row['digest'][:12]} ({row['state']}, {row['source']})" for row in rows}
    for conflict in found:
        click.echo(f"{conflict.model}: {conflict.count} files disagree")
        click.echo(f"  {states[conflict.one]}")
        click.echo(f"  {states[conflict.other]}")
        for what in ("differs", "incomparable", "only_one", "only_other"):
            for name in getattr(conflict, what):
                click.echo(f"    {what.replace('_', ' in the '):<18} {to_printable(name)}")
    if not found:
        click.echo("No reference values disagree.")
