"""`touchstone policy block`: block in an emergency, whatever the policies say."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from verifier.commands.common import (
    Person,
    errors,
    home_option,
    json_option,
    now_ms,
    person_options,
    reason_unless,
    with_database,
)
from verifier.errors import PolicyError
from verifier.schemes import blocking
from verifier.schemes.findings import to_printable
from verifier.service.access import APPROVE
from verifier.store import blocks
from verifier.store.blocks import Hits
from verifier.store.database import Database
from verifier.store.policies import ChangeAuthor


@click.command()
@click.option(
    "--digest", default=None, help="SHA-256 or BLAKE3 of a file, or the digest of a reference value."
)
@click.option(
    "--engine-version",
    default=None,
    help="ENGINE@VERSION, a pattern such as vllm@0.11.* or a range such as 'vllm@>=0.10,<0.11.2'.",
)
@click.option("--device", default=None, help="A device's UUID, as its driver gives it, or a pattern.")
@click.option("--lift", is_flag=True, help="Lift the block.")
@click.option("--list", "listing", is_flag=True, help="Show what is blocked, by whom, why and what it hits.")
@click.option("--all", "everything", is_flag=True, help="With --list: show also what was lifted.")
@click.option("--dry-run", is_flag=True, help="Only count the nodes that it would hit.")
@click.option("--anyway", is_flag=True, help="Block also what hits no node now.")
@reason_unless("--list", "--dry-run")
@person_options
@home_option
@json_option
@errors
def block(
    digest: str | None, engine_version: str | None, device: str | None, lift: bool, listing: bool,
    everything: bool, dry_run: bool, anyway: bool, reason: str | None, who: Person, home: Path, as_json: bool,
) -> None:  # fmt: skip
    """
    Block weights, versions of an engine or a device at once, whatever the policies say.

    Give --reason TEXT with one of --digest, --engine-version and --device.
    """
    if listing:
        _show(home, everything=everything, as_json=as_json)
        return
    named = {"digest": digest, "engine-version": engine_version, "device": device}
    chosen = [(kind, value) for kind, value in named.items() if value is not None]
    if len(chosen) != 1 or (reason is None and not dry_run):
        raise click.UsageError(
            "give one of --digest, --engine-version and --device together with --reason, or give --list"
        )
    ((kind, typed),) = chosen
    value = blocking.normalise(kind, typed)
    if lift:
        _lift(home, kind, value, who.author(home, reason or "", APPROVE))
        return
    author = None if dry_run else who.author(home, reason or "", APPROVE)
    hits = with_database(home, lambda db: _block(db, kind, value, author, anyway=anyway))
    name = f"{kind} {to_printable(value)}"
    if as_json:
        click.echo(
            msgspec.json.encode({"kind": kind, "value": value, "hits": blocks.hits_to_wire(hits)}).decode()
        )
    elif dry_run:
        click.echo(f"A block of {name} would hit {_describe(hits)}. Nothing was blocked.")
    else:
        click.echo(f"Blocked {name}. It hits {_describe(hits)}.")
        click.echo("The verifier judges them anew within a second: touchstone policy block --list")


async def _block(db: Database, kind: str, value: str, author: ChangeAuthor | None, *, anyway: bool) -> Hits:
    fleet = await blocks.look(db, [(kind, value)], now_ms())
    if author is not None:
        if not anyway:
            blocks.check_hits(kind, value, fleet)
        await db.write(lambda tx: blocks.block(tx, kind, value, author, now_ms()))
    return fleet.hits[kind, value]


def _lift(home: Path, kind: str, value: str, author: ChangeAuthor) -> None:
    async def work(db: Database) -> Hits:
        async with db.read() as tx:
            block_id = await blocks.find(tx, kind, value)
        if block_id is None:
            raise PolicyError(f"{kind} {value} is not blocked. Show what is: touchstone policy block --list")
        fleet = await blocks.look(db, [(kind, value)], now_ms())
        await db.write(lambda tx: blocks.lift(tx, block_id, author, now_ms()))
        return fleet.hits[kind, value]

    hits = with_database(home, work)
    click.echo(f"Lifted the block of {kind} {to_printable(value)}, which hit {_describe(hits)}.")


def _show(home: Path, *, everything: bool, as_json: bool) -> None:
    async def work(db: Database) -> list[dict[str, Any]]:
        async with db.read() as tx:
            rows = await (blocks.every(tx) if everything else blocks.live(tx))
        fleet = await blocks.look(db, [(row["kind"], row["value"]) for row in rows], now_ms())
        return [blocks.to_wire(row, fleet.hits[row["kind"], row["value"]]) for row in rows]

    found = with_database(home, work)
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for each in found:
        hits = each["hits"]
        click.echo(f"{each['kind']} {to_printable(each['value'])}")
        click.echo(
            f"    {hits['nodes']} nodes; {hits['live_results']} live results, {hits['affirming']} of them affirming"
        )
        click.echo(_who(each["since"], "blocked", each["actor"], each["reason"]))
        if each["lifted"] is not None:
            click.echo(_who(each["lifted"], "lifted", each["lifted_by"], each["lifted_reason"]))
    if not found:
        click.echo("Nothing is blocked." if not everything else "Nothing was ever blocked.")


def _who(at: int, what: str, actor: str | None, reason: str | None) -> str:
    day = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return f"    {what} {day} by {to_printable(actor or 'unknown')}: {to_printable(reason or 'unknown')}"


def _describe(hits: Hits) -> str:
    """How many nodes and results a block hits, in words."""
    return f"{_count(hits.nodes, 'node')} with {_count(hits.live, 'live result')}, {hits.affirming} of them affirming"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
