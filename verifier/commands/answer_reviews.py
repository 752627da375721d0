"""`touchstone verifier answers …`: whose answers differ from the minted ones, side by side, and what a person decides."""

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
)
from verifier.schemes.findings import to_printable
from verifier.service.access import REVIEW
from verifier.service.suspicions import describe, reviews, step_by_name

_SHORT: Final = 12


@click.group()
def answers() -> None:
    """Review nodes whose answers differ from the minted ones."""


@answers.command("list")
@home_option
@json_option
@errors
def list_answers(home: Path, as_json: bool) -> None:
    """List the nodes, and the operators, whose answers a person should look at."""
    found = in_transaction(home, reviews)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for each in found["nodes"]:
        verdicts = each["agrees"] + each["differs"]
        click.echo(f"{each['node']}  {each['level']}  {to_printable(each['model'])}")
        click.echo(
            f"    of {each['operator']}, {_engine(each)}: {each['differs']} of {verdicts} differ,"
            f" {each['censored']} say nothing, {each['prompts']} prompts differ, {each['fast']} came"
            f" too fast; score {each['score']:.1f}"
        )
        if each["drift_ms"] is not None:
            click.echo(
                f"    its answers have moved since {day(each['drift_ms'] // 1000)}, and those of others of its version"
                f" have not: touchstone verifier drift show {each['node']}"
            )
    for each in found["operators"]:
        click.echo(
            f"All nodes of {to_printable(each['operator'])} with {to_printable(each['model'])} together:"
            f" {each['differs']} of {each['differs'] + each['agrees']} differ, score {each['score']:.1f}"
        )
    if not found["nodes"] and not found["operators"]:
        click.echo("Nobody is suspected.")


@answers.command("show")
@click.argument("node")
@home_option
@json_option
@errors
def show_answers(node: str, home: Path, as_json: bool) -> None:
    """Show the answers of NODE that differ: asked, expected and found.

    Do not hand it on to the operator: it shows how checks look.
    """
    found = in_transaction(home, lambda tx: describe(tx, node))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for each in found["scores"]:
        click.echo(
            f"{to_printable(each['model'])}  {_engine(each)}  revision {each['reference'][:_SHORT]}:"
            f" {each['agrees']} agree, {each['differs']} differ, {each['censored']} say nothing,"
            f" score {each['score']:.1f}"
        )
    for each in found["differences"]:
        _show(each)
    if not found["differences"]:
        click.echo("No answer differs.")


def _engine(each: dict[str, Any]) -> str:
    return "an engine that is not known" if each["engine"] == "@" else to_printable(each["engine"])


def _show(each: dict[str, Any]) -> None:
    sides = each["sides"]
    margin = "" if sides["margin"] is None else f", margin {sides['margin']:.2f}"
    distance = "" if sides["distance"] is None else f", distance {sides['distance']:.2g}"
    click.echo()
    click.echo(
        f"{day(each['at_ms'] // 1000)}  {each['code']}  check {each['check_id']} by {to_printable(each['reporter'])}"
    )
    click.echo(f"    position {sides['position']}{margin}{distance}: {to_printable(sides['detail'])}")
    click.echo(f"    asked     {to_printable(sides['asked'])}")
    for name in ("expected", "found"):
        side = sides[name]
        said = "; ".join([side["text"] or "", *side["calls"]]).replace("\n", "\\n")
        click.echo(f"    {name:9} {to_printable(said)}")


@answers.command("step")
@click.argument("node")
@click.argument("name", type=click.Choice(["clear", "quarantine"]))
@click.option("--model", required=True, help="The model whose answers it is about.")
@click.option("--reason", required=True, help="The reason, which is kept.")
@person_options
@home_option
@errors
def step_answers(node: str, name: str, model: str, reason: str, who: Person, home: Path) -> None:
    """Decide about NODE: clear it, so that its score begins at 0, or quarantine it by an incident."""
    author = who.author(home, reason, REVIEW)
    incident = in_transaction(
        home, lambda tx: step_by_name(tx, name, node, model, author.actor, author.reason, now_ms())
    )
    if incident is None:
        click.echo(f"{node} is not suspected any more.")
    else:
        click.echo(f"{node} is in quarantine by the incident {incident}.")
