"""`touchstone policy opinions`: what a second engine said about live evaluations."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from verifier.commands.common import errors, home_option, in_transaction, json_option
from verifier.commands.policies import policy, short
from verifier.commands.second_opinion import show_disagreement
from verifier.policy.opinions import Disagreement
from verifier.store import second_opinions


@policy.command()
@home_option
@json_option
@errors
def opinions(home: Path, as_json: bool) -> None:
    """Show what a second engine judged otherwise, with the input of each ([second_opinion] in verifier.toml)."""
    found = in_transaction(home, second_opinions.report)
    if as_json:
        click.echo(msgspec.json.encode({"opinions": found}).decode())
        return
    for one in found:
        for kept in one["differences"]:
            show_disagreement(one["engine"], Disagreement(kept["input"], kept["here"], kept["there"]))
        click.echo(
            f"{one['engine']} was asked about {one['asked']} evaluations of {short(one['policy'])}: "
            f"{one['differing']} differ. It gave no answer to {one['unanswered']}, and {one['skipped']} were skipped."
        )
    if not found:
        click.echo("No second engine has been asked. Set engine in [second_opinion] of verifier.toml.")
