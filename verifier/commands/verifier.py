"""`touchstone verifier …`: run it, enrol nodes, review incidents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from attester.cli import configure_logging
from attester.errors import ConfigError
from verifier.commands.common import errors, home_option, in_transaction, json_option, now_ms, table
from verifier.config import Home, ServiceConfig, VerifierConfig
from verifier.policy import bundle as bundles
from verifier.policy.archive import read_archive
from verifier.schemes.base import Thresholds, shown
from verifier.service.incidents import describe, to_wire
from verifier.store import incidents as stored_incidents
from verifier.store import nodes as stored_nodes
from verifier.store import policies
from verifier.store.database import Tx
from verifier.store.nodes import Grant


@click.group()
def verifier() -> None:
    """Appraise evidence and sign results."""


@verifier.command()
@home_option
@click.option("--listen", default=ServiceConfig().listen, show_default=True, help="HOST:PORT to listen on.")
@click.option("--url", default=None, help="The base URL everyone uses; http://LISTEN if not given.")
@errors
def init(home: Path, listen: str, url: str | None) -> None:
    """Make a home: keys, tokens, configuration and a copy of the default policy."""
    service = {"listen": listen, "url": url or f"http://{listen}"}
    config = msgspec.convert({"service": service}, VerifierConfig)
    Home(home).create(config)
    click.echo(f"Made {home}. Next:")
    click.echo(f"  1. approve your engines in {home}/policy/data.json")
    click.echo(f"  2. touchstone reference measure DIR --model NAME --home {home}")
    click.echo(
        f"  3. touchstone challenges mint --model NAME --dir DIR --reads 1000 --walks 250 --home {home}"
    )
    click.echo(f"  4. touchstone verifier serve --home {home}")


@verifier.command()
@home_option
@click.option("--log-json", is_flag=True, help="Log JSON lines.")
@errors
def serve(home: Path, log_json: bool) -> None:
    """Run the verifier."""
    from verifier.service.serve import run

    configure_logging(as_json=log_json)
    run(Home(home))


@verifier.command()
@home_option
@click.option("--operator", required=True, help="Whose node it will be.")
@click.option(
    "--model", "models", multiple=True, required=True, help="A model it may enrol with; repeatable."
)
@click.option(
    "--hardware-class",
    default="cpu",
    show_default=True,
    help="What the node is, as the policy names it: its walks are timed against it.",
)
@click.option("--for-node", default=None, help="Only to give this node a new key, after it lost its old one.")
@click.option(
    "--hours", default=24, show_default=True, type=click.IntRange(1, 24 * 90), help="How long it is good for."
)
@errors
def token(
    home: Path, operator: str, models: tuple[str, ...], hardware_class: str, for_node: str | None, hours: int
) -> None:
    """Print a one-time enrolment token."""
    folder = home / Home(home).config().policy.folder
    thresholds = in_transaction(home, lambda tx: _thresholds(tx, folder))
    if hardware_class not in thresholds.classes:
        raise ConfigError(
            f"the policy knows no class {hardware_class!r}; it has {', '.join(sorted(thresholds.classes))}"
        )
    grant = Grant(operator, models, hardware_class, for_node)
    click.echo(
        in_transaction(home, lambda tx: stored_nodes.issue_token(tx, grant, now_ms(), hours * 3600_000))
    )


async def _thresholds(tx: Tx, folder: Path) -> Thresholds:
    """Those of the active policy, or before the first start those of the one it will start with."""
    rollout = await policies.rollout(tx)
    if rollout is None:
        return bundles.load(folder).thresholds
    row = await policies.find(tx, rollout.active)
    return read_archive(row["archive"])[0].thresholds


@verifier.group()
def nodes() -> None:
    """Look at nodes, retire them."""


@nodes.command("list")
@home_option
@json_option
@errors
def list_nodes(home: Path, as_json: bool) -> None:
    """List all nodes."""

    async def work(tx: Tx) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        after = ""
        while page := await stored_nodes.page(tx, after, 500):
            for node in page:
                held = await stored_incidents.holding(tx, node.id)
                found.append(
                    (node.id, node.operator, ", ".join(node.models), "quarantined" if held else node.state)
                )
            after = page[-1].id
        return found

    rows = in_transaction(home, work)
    columns = ("node", "operator", "models", "state")
    if as_json:
        click.echo(msgspec.json.encode([dict(zip(columns, row, strict=True)) for row in rows]).decode())
    else:
        table("", columns, rows)


@nodes.command("retire")
@click.argument("node")
@home_option
@errors
def retire_node(node: str, home: Path) -> None:
    """Retire NODE: its results are revoked, and nothing it says counts any more."""
    in_transaction(home, lambda tx: stored_nodes.retire(tx, node, now_ms()))
    click.echo(f"Retired {node}.")


@verifier.group()
def incidents() -> None:
    """Review incidents, release nodes or retire them."""


@incidents.command("list")
@home_option
@json_option
@click.option("--all", "everything", is_flag=True, help="Also those that hold nobody.")
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
        click.echo(f"    {row['code']}: {shown(row['detail'])}")
        if row["awaiting_second"]:
            click.echo(f"    {shown(row['proposed_by'])} proposes its release; a second person is needed")
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
@click.option("--reason", required=True, help="Why; kept with the incident.")
@click.option("--actor", required=True, help="Who decides; kept with the incident.")
@home_option
@errors
def step_incident(incident: str, name: str, reason: str, actor: str, home: Path) -> None:
    """Take INCIDENT under review, release its node to probation (with two_person by two), or retire the node."""
    two = Home(home).config().incidents.two_person
    row = in_transaction(
        home,
        lambda tx: stored_incidents.take_step(tx, incident, name, actor, reason, now_ms(), two_person=two),
    )
    if name == "release" and row["proposed_by"] is not None:
        proposer = shown(row["proposed_by"])
        click.echo(
            f"{incident} is still {row['state']}: {proposer} proposes its release, and a second person is needed."
        )
    else:
        click.echo(f"{incident} is {row['state']}.")


@incidents.command("release-cause")
@click.argument("cause")
@click.option("--reason", required=True, help="Why; kept with each incident.")
@click.option("--actor", required=True, help="Who decides; kept with each incident.")
@home_option
@errors
def release_cause(cause: str, reason: str, actor: str, home: Path) -> None:
    """Release in bulk everything that rests on CAUSE (a bad reference, a bad batch)."""
    two = Home(home).config().incidents.two_person
    count, waiting = in_transaction(
        home,
        lambda tx: stored_incidents.release_cause(tx, cause, actor, reason, now_ms(), two_person=two),
    )
    click.echo(f"Released {count}.")
    if waiting:
        click.echo(f"Proposed for {waiting}: a second person is needed.")
