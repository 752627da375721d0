"""`touchstone reference …`: list, show, activate and retire reference values; `reference_changes` has the rest."""

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
from verifier.store import reference_sources
from verifier.store import references as stored
from verifier.store.database import Row, Tx


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

    async def work(tx: Tx) -> list[dict[str, Any]]:
        changes, sources = await reference_sources.last_changes(tx), await reference_sources.waiting(tx)
        return [
            {
                **to_wire(row, now_ms()),
                "change": changes.get(row["digest"]),
                "sources": sources.get(row["digest"], 1),
            }
            for row in await stored.every(tx, model)
        ]

    found = in_transaction(home, work)
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
    for value in found:
        change = value["change"]
        if change is not None:
            said = f"{change['action']} {day(change['at'])} by {change['actor']}: {to_printable(change['reason'])}"
            click.echo(f"{value['digest'][:12]}  {said}")
        if value["sources"] > 1:
            click.echo(f"{value['digest'][:12]}  has {value['sources']} sources: touchstone reference show")


def _state(value: dict[str, Any]) -> str:
    if value["expires_in_s"] is not None and value["expires_in_s"] < 0:
        return f"{value['state']}, expired"
    if value["rolling_out"]:
        return f"{value['state']}, rolled out"
    if value["grace_left_s"]:
        return f"{value['state']}, only a warning for {value['grace_left_s'] // 60} min"
    return str(value["state"])


@reference.command("show")
@click.argument("digest")
@home_option
@errors
def show(digest: str, home: Path) -> None:
    """Show the value whose digest begins with DIGEST, with its sources and what was done to it, as JSON."""

    async def work(tx: Tx) -> tuple[Row, list[Row], list[dict[str, Any]]]:
        row = await stored.find(tx, digest)
        changes = await reference_sources.history(tx, row["model"])
        own = [change for change in changes if change["digest"] == row["digest"]]
        return row, await reference_sources.every(tx, row), own

    row, sources, changes = in_transaction(home, work)
    given = [
        {
            **{name: each[name] for name in each if name not in ("digest", "at_ms")},
            "at": each["at_ms"] // 1000,
        }
        for each in sources
    ]
    document = msgspec.to_builtins(measured.read_document(row["document"]))
    known = to_wire(row, now_ms())
    click.echo(
        msgspec.json.format(
            msgspec.json.encode({**known, "sources": given, "changes": changes, "document": document}),
            indent=2,
        ).decode()
    )


@reference.command("activate")
@click.argument("digest")
@click.option(
    "--grace",
    "grace_s",
    default=None,
    type=click.IntRange(0, 365 * 86400),
    help="Seconds for which the previous value is only a warning.",
)
@click.option(
    "--source",
    default=None,
    type=click.IntRange(1),
    help="The number of the source that is to count, if the value has several (`show`).  Default: the newest.",
)
@reason_option
@person_options
@home_option
@errors
def activate_reference(
    digest: str, grace_s: int | None, source: int | None, reason: str, who: Person, home: Path
) -> None:
    """
    Put the value whose digest begins with DIGEST in force, and supersede the previous one.

    To undo it, activate the previous one.  Of a value that is in force already, another source comes to count.
    """
    grace = Home(home).config().references.grace_s if grace_s is None else grace_s

    author = who.author(home, reason, ADMINISTER)

    async def work(tx: Tx) -> tuple[Row | None, Row]:
        digest_of = (await stored.find(tx, digest))["digest"]
        before = await stored.find(tx, digest_of)
        previous = await stored.active(tx, before["model"])
        await stored.activate(tx, digest_of, author, now_ms(), grace_ms=grace * 1000, source=source)
        return previous, await stored.find(tx, digest_of)

    previous, row = in_transaction(home, work)
    until = "" if row["not_after"] is None else f", until {day(row['not_after'])}"
    by = f" signed by {to_printable(row['signer'])}" if row["signer"] else ""
    click.echo(f"The value is in force for {row['model']}, as {row['source']}{by}{until}.")
    if previous is not None and previous["digest"] != row["digest"]:
        click.echo(f"The previous value is only a warning for {grace} s. To undo this:")
        click.echo(f"  touchstone reference activate {previous['digest'][:12]} --reason … --home {home}")


@reference.command("retire")
@click.argument("digest")
@reason_option
@person_options
@home_option
@errors
def retire(digest: str, reason: str, who: Person, home: Path) -> None:
    """Withdraw the value whose digest begins with DIGEST, without a grace period.  `restore` undoes it."""
    author = who.author(home, reason, ADMINISTER)

    async def work(tx: Tx) -> Row:
        row = await stored.find(tx, digest)
        await stored.retire(tx, row["digest"], author, now_ms())
        return row

    row = in_transaction(home, work)
    retired = row["digest"]
    if row["state"] == "active":
        click.echo(f"No value is in force for {row['model']} now, so none of its nodes can be affirming.")
    click.echo(f"Retired {retired}. To undo this:")
    click.echo(f"  touchstone reference restore {retired[:12]} --reason … --home {home}")


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
