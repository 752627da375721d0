"""`touchstone verifier drift …`: how answers move over time, and what a person takes for usual."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

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
    table,
)
from verifier.schemes.findings import to_printable
from verifier.service.access import REVIEW
from verifier.service.drift import DEFAULT_DAYS
from verifier.store import drift_views

_SHORT: Final = 12
_COLUMNS: Final = ("checks", "differ", "part", "near the limit", "distance")
_days_option = click.option(
    "--days", "span", default=DEFAULT_DAYS, show_default=True, type=click.IntRange(1, drift_views.MAX_DAYS)
)


@click.group()
def drift() -> None:
    """See how answers to minted prompts move over time."""


@drift.command("list")
@click.option("--model", default=None, help="Only this model.")
@_days_option
@home_option
@json_option
@errors
def list_drift(model: str | None, span: int, home: Path, as_json: bool) -> None:
    """Show each model by engine version and day, and what is suspect."""
    found = in_transaction(home, lambda tx: drift_views.overview(tx, now_ms(), span, model))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for each in found["models"]:
        for version in each["versions"]:
            _show_version(each["model"], version)
    for each in found["reviews"]:
        click.echo(
            f"{each['node']} of {to_printable(each['operator'])} waits for a person since"
            f" {day(each['review_ms'] // 1000)}: {to_printable(each['model'])} by {to_printable(each['engine'])};"
            f" scores: parts {each['parts']:.1f}, near the limit {each['far']:.1f}"
        )
    if not found["models"]:
        click.echo(f"No answer was checked since {found['since']}.")


def _show_version(model: str, version: dict[str, Any]) -> None:
    engine, revision = to_printable(version["engine"]), version["reference"][:_SHORT]
    title = f"{to_printable(model)}  {engine}  revision {revision}: {version['nodes']} nodes"
    _show_days(title, version)
    for each in version["operators"]:
        said = ", ".join(f"{name} {score:.1f}" for name, score in each["scores"].items())
        click.echo(
            f"  {to_printable(each['operator'])}: {each['checks']} checks, {each['nodes']} nodes; scores: {said}"
        )
    if version["suspect"] is not None:
        click.echo(
            f"  SUSPECT: all its nodes have moved, so nobody is held. See the incident {version['suspect']},"
            " and mint answers with this engine version."
        )
    elif not version["operators"]:
        click.echo("  No node serves by it now.")
    elif version["limit"] is None:
        click.echo("  Fewer than three operators: each node is judged by itself.")


def _show_days(title: str, version: dict[str, Any]) -> None:
    rows: list[tuple[Any, ...]] = [(each["day"], *_cells(each)) for each in version["by_day"]]
    # Not as the table's title, which would be read as markup: a node names its engine itself.
    click.echo(title)
    table("", ("day", *_COLUMNS), [*rows, ("all", *_cells(version))])


def _cells(counts: dict[str, Any]) -> tuple[str, ...]:
    median = counts["distance"]["median"]
    shares = (_share(counts[name]) for name in ("differs", "parts", "far"))
    return (str(counts["checks"]), *shares, "" if median is None else f"below {median:.2g}")


def _share(share: dict[str, Any]) -> str:
    if not share["of"]:
        return ""
    return f"{share['count']}/{share['of']} ({share['low']:.1%} to {share['high']:.1%})"


@drift.command("show")
@click.argument("node")
@_days_option
@home_option
@json_option
@errors
def show_drift(node: str, span: int, home: Path, as_json: bool) -> None:
    """Show NODE by model, engine version and day, with the templates and sampling defaults that it had."""
    found = in_transaction(home, lambda tx: drift_views.of_node(tx, node, now_ms(), span))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for version in found["versions"]:
        revision = version["reference"][:_SHORT]
        _show_days(
            f"{to_printable(version['model'])}  {to_printable(version['engine'])}  revision {revision}",
            version,
        )
    for each in found["scores"]:
        waits = "" if each["review_ms"] is None else "; a person is to look at it"
        click.echo(
            f"{to_printable(each['model'])}: scores: parts {each['parts']:.1f}, near the limit {each['far']:.1f},"
            f" of {found['limit']:.1f}{waits}"
        )
    for each in found["prompting"]:
        _show_prompting(each)
    if not found["versions"]:
        click.echo(f"No answer of it was checked since {found['since']}.")


def _show_prompting(each: dict[str, Any]) -> None:
    changed = "  CHANGED without a new revision" if each["changed"] else ""
    click.echo(
        f"{each['node']}  {to_printable(each['model'])}  revision {each['reference'][:_SHORT]}{changed}"
    )
    for had in each["had"]:
        click.echo(
            f"  since {day(had['first_ms'] // 1000)}  renders by {had['template'] or 'what is not known'}"
        )
        click.echo(f"                    samples by {had['sampling'] or 'what is not known'}")


@drift.command("templates")
@click.argument("model")
@home_option
@json_option
@errors
def show_templates(model: str, home: Path, as_json: bool) -> None:
    """Show which chat templates and sampling defaults nodes of MODEL have, and who has changed one."""
    found = in_transaction(home, lambda tx: drift_views.templates(tx, model))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for each in found["in_use"]:
        click.echo(f"{len(each['nodes'])} nodes  revision {each['reference'][:_SHORT]}")
        click.echo(f"  renders by {each['template'] or 'what is not known'}")
        click.echo(f"  samples by {each['sampling'] or 'what is not known'}")
    for each in found["changed"]:
        _show_prompting(each)
    if not found["in_use"]:
        click.echo("No checked node has named any.")


@drift.command("accept")
@click.argument("model")
@click.option("--reference", required=True, help="The digest of the reference value.")
@click.option("--engine", "family", required=True, help="The engine's name, without its version.")
@click.option("--reason", required=True, help="The reason, which is kept.")
@person_options
@home_option
@errors
def accept_drift(model: str, reference: str, family: str, reason: str, who: Person, home: Path) -> None:
    """Take what the nodes of an engine do with MODEL as usual, and let their scores begin at 0.

    The last four weeks count, and the median of at least three operators.  What counts as a difference stays.
    """
    author = who.author(home, reason, REVIEW)
    found = in_transaction(
        home,
        lambda tx: drift_views.accept(
            tx, model, reference, family.lower(), (author.actor, author.reason), now_ms()
        ),
    )
    for name, what in (
        ("parts", "of the answers may part"),
        ("far", "of the distances may be near the limit"),
    ):
        rate = found[name]
        said = f"the table says what share {what}" if rate is None else f"up to {rate:.1%} {what}"
        click.echo(f"With {family}, {said}.")
