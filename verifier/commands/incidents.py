"""`touchstone verifier incidents …`: review incidents one by one, or all that rest on one cause."""

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
    write_file,
)
from verifier.config import Home
from verifier.errors import StoreError
from verifier.schemes.findings import to_printable
from verifier.service.access import REVIEW
from verifier.service.incidents import describe, to_wire
from verifier.store import incident_causes, recordings
from verifier.store import incidents as stored_incidents
from verifier.store.database import Tx
from verifier.triage import Fault

fault_option = click.option(
    "--fault",
    type=click.Choice(list(Fault), case_sensitive=False),
    help="Whether the node was at fault: later reviews of the same code go by it.",
)


@click.group()
def incidents() -> None:
    """Review incidents, and release or retire nodes."""


@incidents.command("list")
@home_option
@json_option
@click.option("--all", "everything", is_flag=True, help="List also the incidents that hold nobody.")
@errors
def list_incidents(home: Path, as_json: bool, everything: bool) -> None:
    """List open incidents."""

    async def work(tx: Tx) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after = ""
        while rows := await stored_incidents.page(tx, open_only=not everything, after=after, limit=500):
            found += [to_wire(row, now_ms()) for row in rows]
            after = rows[-1]["id"]
        return found

    rows = in_transaction(home, work)
    if as_json:
        click.echo(msgspec.json.encode(rows).decode())
        return
    for row in rows:
        who = f"node {row['node']} of {row['operator']}" if row["node"] else "no node is held"
        left = row["review_due_in_s"] // 3600
        click.echo(f"{row['id']}  {row['state']}  {row['severity']}  {row['kind']}")
        click.echo(f"    {who}; {row['count']} times; review due in {left} h")
        click.echo(f"    {row['code']}: {to_printable(row['detail'])}")
        if row["awaiting_second"]:
            click.echo(
                f"    {to_printable(row['proposed_by'])} proposes its release; a second person must agree"
            )
    if not rows:
        click.echo("No incidents." if everything else "No open incidents.")


@incidents.command("show")
@click.argument("incident")
@home_option
@errors
def show_incident(incident: str, home: Path) -> None:
    """Show an incident with its history, as JSON."""
    found = in_transaction(home, lambda tx: describe(tx, incident, now_ms()))
    click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())


@incidents.command("step")
@click.argument("incident")
@click.argument("name", type=click.Choice(["quarantine", "review", "release", "retire"]))
@click.option("--reason", required=True, help="The reason, which is kept with the incident.")
@fault_option
@person_options
@home_option
@errors
def step_incident(
    incident: str, name: str, reason: str, fault: Fault | None, who: Person, home: Path
) -> None:
    """Take a step on INCIDENT: quarantine, review, release its node to probation, or retire the node.

    If two_person is set, a release needs two people, each with a key.
    """
    two = Home(home).config().incidents.two_person
    author = who.author(home, reason, REVIEW, needs_key=two and name == "release")
    row = in_transaction(
        home,
        lambda tx: stored_incidents.take_step(
            tx, incident, name, author.actor, author.reason, now_ms(), two_person=two, fault=fault
        ),
    )
    if name == "release" and row["proposed_by"] is not None:
        proposer = to_printable(row["proposed_by"])
        click.echo(
            f"{incident} is still {row['state']}. {proposer} proposes its release, and a second person must agree."
        )
    else:
        click.echo(f"{incident} is {row['state']}.")


@incidents.command("evidence")
@click.argument("incident")
@click.argument("file", type=click.Path(path_type=Path))
@home_option
@errors
def save_evidence(incident: str, file: Path, home: Path) -> None:
    """Write the evidence that INCIDENT rests on to FILE, as the node has signed it (COSE_Sign1)."""

    async def work(tx: Tx) -> bytes | None:
        row = await stored_incidents.get(tx, incident)
        return await recordings.evidence_of_session(tx, row["session_id"])

    evidence = in_transaction(home, work)
    if evidence is None:
        raise StoreError(f"the evidence of {incident} is not stored: it rests on none, or it was pruned")
    write_file(file, evidence)
    click.echo(f"Wrote {len(evidence)} bytes to {file}.")


@incidents.command("causes")
@home_option
@json_option
@errors
def list_causes(home: Path, as_json: bool) -> None:
    """List what open incidents rest on, such as a reference value or a batch of challenges."""

    async def work(tx: Tx) -> tuple[list[dict[str, Any]], int]:
        found = await incident_causes.every(tx)
        return [incident_causes.to_wire(each, now_ms()) for each in found], await incident_causes.without(tx)

    things, alone = in_transaction(home, work)
    if as_json:
        click.echo(msgspec.json.encode({"causes": things, "without_cause": alone}).decode())
        return
    for each in things:
        _echo_thing(each)
    if alone:
        click.echo(f"{alone} open incidents rest on no cause of ours: touchstone verifier incidents list")
    if not things and not alone:
        click.echo("No open incidents.")


def _echo_thing(each: dict[str, Any]) -> None:
    click.echo(f"{each['thing']}{'  ' if each['about'] else ''}{to_printable(each['about'])}")
    click.echo(
        f"    {each['incidents']} incidents of {each['nodes']} nodes of {each['operators']} operators;"
        f" {each['passed_operators']} operators have passed; review due in {each['review_due_in_s'] // 3600} h"
    )
    click.echo(f"    {', '.join(cause.partition('@')[0] for cause in each['causes'])}")


@incidents.command("cause")
@click.argument("cause")
@home_option
@json_option
@errors
def show_cause(cause: str, home: Path, as_json: bool) -> None:
    """Show the open incidents that rest on CAUSE side by side: what was expected, and what evidence had.

    CAUSE is as `incidents causes` shows it; the first digits of a reference value's digest are enough.
    """

    async def work(tx: Tx) -> dict[str, Any]:
        found = await incident_causes.find(tx, cause)
        sides = await incident_causes.side_by_side(tx, found)
        return {**incident_causes.to_wire(found, now_ms()), "side_by_side": sides}

    found = in_transaction(home, work)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    _echo_thing(found)
    for side in found["side_by_side"]:
        who = f"node {side['node']} of {to_printable(side['operator'] or 'unknown')}"
        click.echo(
            f"{side['id']}  {side['state']}  {who}, {side['count']} times, last on {day(side['last'])}"
        )
        click.echo(f"    {side['code']}: {side['found']}")
        if side["expected"] is not None or side["actual"] is not None:
            click.echo(f"    expected  {to_printable(side['expected'] or 'nothing')}")
            click.echo(f"    found     {to_printable(side['actual'] or 'nothing')}")
        if side["evidence"]:
            click.echo(f"    evidence  touchstone verifier incidents evidence {side['id']} FILE")
    if len(found["side_by_side"]) < found["incidents"]:
        click.echo(f"The first {len(found['side_by_side'])} of {found['incidents']} incidents.")


@incidents.command("release-cause")
@click.argument("cause")
@click.option("--reason", required=True, help="The reason, which is kept with each incident.")
@fault_option
@person_options
@home_option
@errors
def release_cause(cause: str, reason: str, fault: Fault | None, who: Person, home: Path) -> None:
    """Release all incidents that rest on CAUSE, such as a bad reference value or batch of challenges.

    CAUSE is as `incidents causes` shows it.  Look at them side by side first: `incidents cause CAUSE`.
    """
    two = Home(home).config().incidents.two_person
    author = who.author(home, reason, REVIEW, needs_key=two)
    found, count, waiting = in_transaction(
        home,
        lambda tx: incident_causes.release(
            tx, cause, author.actor, author.reason, now_ms(), two_person=two, fault=fault
        ),
    )
    click.echo(f"Released {count} incidents that rested on {found.thing}.")
    if waiting:
        click.echo(f"Proposed the release of {waiting} incidents. A second person must agree.")
