"""How commands add reference values: what became of each is said plainly, and what to do next."""

from __future__ import annotations

from datetime import UTC, datetime
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
    os_user,
    person_options,
    reason_option,
)
from verifier.commands.references import reference
from verifier.config import Home
from verifier.references.conflicts import Conflict
from verifier.references.measured import Document
from verifier.schemes.findings import to_printable
from verifier.service import reference_imports
from verifier.service.access import ADMINISTER
from verifier.service.reference_imports import Added, DryRunError
from verifier.store import reference_sources
from verifier.store import references as stored
from verifier.store.database import Tx
from verifier.store.policies import ChangeAuthor
from verifier.store.reference_sources import Provenance

change_reason_option = click.option(
    "--reason", default=None, help="The reason, which is kept for ever; needed unless it is a dry run."
)


def author_of(who: Person, home: Path, reason: str | None, *, dry_run: bool) -> ChangeAuthor:
    """The author of a change.  Raises `click.UsageError` if there is no reason and it is no dry run."""
    if reason is None and not dry_run:
        raise click.UsageError("Missing option '--reason'.")
    return who.author(home, "a dry run" if reason is None else reason, ADMINISTER)


def publish(
    document: Document,
    provenance: Provenance,
    home: Path | None,
    *,
    as_json: bool = False,
    activate: bool = False,
    dry_run: bool = False,
    author: ChangeAuthor | None = None,
) -> None:
    """
    Show a value, and add it to the reference values of *home* if that is not `None`.

    Args:
        author: Who adds it.  `None`: the user of the operating system.
    """
    if dry_run and home is None:
        raise click.UsageError("--dry-run needs --home: it says what would become of the value there")
    if home is None:
        _show(document, None, None, as_json=as_json, dry_run=False)
        return
    author = author or ChangeAuthor(os_user(), f"touchstone reference, {provenance.source}")
    publish_all(
        [(document, provenance)], home, as_json=as_json, activate=activate, dry_run=dry_run, author=author
    )


def publish_all(
    values: list[tuple[Document, Provenance]],
    home: Path,
    *,
    as_json: bool = False,
    activate: bool,
    dry_run: bool,
    author: ChangeAuthor,
) -> None:
    """Add values to the reference values of *home*, all of them or none, and say what became of each."""
    grace_ms = Home(home).config().references.grace_s * 1000

    async def work(tx: Tx) -> list[Added]:
        return await reference_imports.add(
            tx, values, author, now_ms(), replace=activate, grace_ms=grace_ms, dry_run=dry_run
        )

    try:
        added = in_transaction(home, work)
    except DryRunError as stopped:
        added = stopped.added
    for (document, provenance), became in zip(values, added, strict=True):
        _show(document, became, home, as_json=as_json, dry_run=dry_run)
        if not as_json:
            _explain(became, provenance, home)
    if dry_run and not as_json:
        click.echo("A dry run: nothing was changed.")


def _show(
    document: Document, became: Added | None, home: Path | None, *, as_json: bool, dry_run: bool
) -> None:
    if as_json:
        click.echo(msgspec.json.encode(document).decode())
        return
    size = sum(file.size or 0 for file in document.files)
    tensors = f"{len(document.tensors)} tensors" if document.tensors else "no tensors and therefore no walks"
    click.echo(f"{document.model}: {len(document.files)} files, {size:,} bytes, {tensors}")
    if document.publisher is not None:
        click.echo(f"signed ({document.publisher.method}): {to_printable(document.publisher.signer)}")
    if document.loaded_by is not None:
        by = document.loaded_by
        click.echo(f"walks over what {by.engine} {by.version} has loaded, as it is ({by.device})")
    state = "" if became is None else f", {'would be ' if dry_run else ''}{became.state} in {home}"
    click.echo(f"reference value {document.digest}{state}")


def _explain(added: Added, provenance: Provenance, home: Path) -> None:
    if added.state == "active":
        _explain_source(added, home)
        return
    if added.retired is not None:
        click.echo(
            f"It has the same files as {added.retired[:12]}, which was retired. Who did that, and why:"
        )
        click.echo(f"  touchstone reference history {added.model} --home {home}")
    if added.in_force is None:
        why = "the CoRIM has named the model, and not you" if provenance.source in reference_sources.UNNAMED else (
            "the model had values before, and somebody decides whether this one is to be in force"
        )  # fmt: skip
        click.echo(f"No value is in force for this model, and this one waits: {why}.")
        click.echo("To put it in force:")
    else:
        click.echo("Another value stays in force for this model, unchanged:")
        click.echo(f"  {added.in_force[:12]}, " + _differences(added.differs))
        for line in _files(added.differs):
            click.echo(f"    {line}")
        click.echo("To have both valid while nodes go from one to the other:")
        click.echo(
            f"  touchstone reference rollout start {added.model} --to {added.digest[:12]} --reason … --home {home}"
        )
        click.echo("To compare all values, and to put this one in force at once:")
        click.echo(f"  touchstone reference conflicts --home {home}")
    click.echo(f"  touchstone reference activate {added.digest[:12]} --reason … --home {home}")


def _differences(conflict: Conflict | None) -> str:
    if conflict is None:
        return "which has the same files"
    return f"from which this one differs in {conflict.count} file{'s' if conflict.count > 1 else ''}"


def _files(conflict: Conflict | None) -> list[str]:
    if conflict is None:
        return []
    kinds = (
        ("differs", conflict.differs),
        ("no common digest", conflict.incomparable),
        ("only in force", conflict.only_one),
        ("only in this one", conflict.only_other),
    )
    return [f"{what:<18} {to_printable(name)}" for what, names in kinds for name in names]


def _explain_source(added: Added, home: Path) -> None:
    if added.source is None or added.counts is None:
        return
    click.echo(f"The value is in force already, {shown_source(added.counts)}, and that stays as it is.")
    click.echo("What you have added is kept beside it, and does not count. To let it count in its place:")
    click.echo(
        f"  touchstone reference activate {added.digest[:12]} --source {added.source} --reason … --home {home}"
    )


def shown_source(source: dict[str, Any]) -> str:
    """A source in words."""
    signer = f" signed by {to_printable(source['signer'])}" if source["signer"] else ""
    until = "" if source["not_after"] is None else f" until {day(source['not_after'])}"
    return f"as {source['source']}{signer}{until}"


@reference.command("restore")
@click.argument("digest")
@reason_option
@person_options
@home_option
@errors
def restore(digest: str, reason: str, who: Person, home: Path) -> None:
    """Take back that the value whose digest begins with DIGEST was retired: it is a candidate again."""
    author = who.author(home, reason, ADMINISTER)

    async def work(tx: Tx) -> str:
        row = await stored.find(tx, digest)
        await stored.restore(tx, row["digest"], author, now_ms())
        return str(row["digest"])

    restored = in_transaction(home, work)
    click.echo(f"{restored} is a candidate again. It is not in force. To put it in force:")
    click.echo(f"  touchstone reference activate {restored[:12]} --reason … --home {home}")


@reference.command("history")
@click.argument("model", required=False)
@home_option
@json_option
@errors
def history(model: str | None, home: Path, as_json: bool) -> None:
    """Show who did what to the reference values of all models, or of MODEL: when and why, the newest first."""
    found = in_transaction(home, lambda tx: reference_sources.history(tx, model))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for change in found:
        when = f"{datetime.fromtimestamp(change['at'], UTC):%Y-%m-%d %H:%M:%S}"
        of = f"{change['model'] or '–'}  " if model is None else ""
        why = to_printable(change["reason"])
        click.echo(f"{when}  {change['action']:<8}  {change['digest'][:12]}  {of}by {change['actor']}: {why}")
    if not found:
        click.echo("Nothing was done to reference values yet.")
