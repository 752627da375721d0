"""`touchstone verifier reviews`: what waits for a person, in the order in which to look."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from verifier.commands.common import errors, home_option, in_transaction, json_option, now_ms
from verifier.config import Home
from verifier.schemes.findings import to_printable
from verifier.service.reviews import queue


@click.command("reviews")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True)
@home_option
@json_option
@errors
def reviews(limit: int, home: Path, as_json: bool) -> None:
    """List what waits for a person, with what costs most to leave as it is first."""
    config = Home(home).config().incidents
    found = in_transaction(home, lambda tx: queue(tx, config, now_ms(), limit))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    for each in found["reviews"]:
        left = each["review_due_in_s"] // 3600
        click.echo(f"{each['id']}  {each['kind']}  cost {each['cost']:g}")
        state = "get no work meanwhile" if each["held"] else "go on meanwhile"
        click.echo(
            f"    {each['code']}: {each['nodes']} nodes, which {state}; at fault with probability"
            f" {each['confidence']:.2f}; {_due(left)}"
        )
        if each["incidents"] > 1:
            cause = to_printable(each["cause"])
            click.echo(f"    {each['incidents']} incidents: touchstone verifier incidents cause {cause}")
    left_out = found["waiting"] - len(found["reviews"])
    if left_out > 0:
        click.echo(f"And {left_out} more: --limit")
    if not found["reviews"]:
        click.echo("Nothing waits for a person.")


def _due(left_h: int) -> str:
    return f"due in {left_h} h" if left_h >= 0 else f"late by {-left_h} h"
