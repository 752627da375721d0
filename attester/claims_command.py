"""The command `touchstone attester claims`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from attester import usage_counts
from attester.claim_keeper import claims_of
from attester.cli import attester_home, plain_errors
from attester.config import Home
from attester.errors import AttesterError, ConfigError


@click.command()
@attester_home
@click.option("--day", default=None, metavar="YYYY-MM-DD", help="Only this day of UTC.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
@plain_errors(AttesterError)
def claims(home_path: Path, day: str | None, as_json: bool) -> None:  # noqa: FBT001  # click's signature
    """Show what the front has counted for routers, day by day, and what of it is signed as a claim.

    Routers fetch the claims themselves, over the connection that they send work on: there is nothing to do.
    """
    home = Home(home_path)
    folder, node = home.path / usage_counts.FOLDER, home.enrolment().node
    days = [each for each in usage_counts.days_counted(folder) if day in (None, each)]
    try:
        found = [claim for each in days for claim in claims_of(folder, node, each)]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}") from None
    rows = [(each, usage_counts.claim_of(folder, each.day, each.router).exists()) for each in found]
    if as_json:
        listed = [{**msgspec.to_builtins(each), "signed": signed} for each, signed in rows]
        click.echo(msgspec.json.encode(listed).decode())
        return
    for each, signed in rows:
        click.echo(f"{each.day}  {each.router}  {'claimed' if signed else 'counted, the day is not over'}")
        for used in each.used:
            click.echo(
                f"    {used.model or '(model not seen)'}: {used.exchanges} exchanges,"
                f" {used.prompt} prompt and {used.completion} completion tokens"
            )
    if not rows:
        click.echo("Nothing was counted. Only `touchstone attester front` counts what it passes on.")
