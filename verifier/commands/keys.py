"""`touchstone verifier key …`: keys for everybody who calls the verifier and is no node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from attester.errors import ConfigError, KeyFileError
from attester.identity import write_private
from verifier.commands.common import (
    day,
    errors,
    home_option,
    in_transaction,
    json_option,
    now_ms,
    os_user,
    table,
)
from verifier.roles import GRANTED, Role
from verifier.store import api_keys
from verifier.store.api_keys import ApiKey, NewKey

_DAY_MS = 86_400_000


@click.group()
def key() -> None:
    """Make, list and revoke keys for people, routers and relying parties."""


@key.command()
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice([role.value for role in GRANTED]),
    help="What the key opens (docs/access.md); repeatable.",
)
@click.option("--operator", default=None, help="The operator whose nodes a key of the role operator sees.")
@click.option(
    "--days",
    default=None,
    type=click.IntRange(1, 3650),
    help="The days for which it is valid.  Default: for ever.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Write the key to a new file that only you can read, instead of printing it.",
)
@home_option
@errors
def create(
    name: str, roles: tuple[str, ...], operator: str | None, days: int | None, out: Path | None, home: Path
) -> None:
    """Make the key NAME and print it, once.  NAME is the actor of every step that its holder takes."""
    now = now_ms()
    expires = None if days is None else now + days * _DAY_MS
    new = NewKey(name, [Role(role) for role in roles], operator, expires)
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already")
    secret = in_transaction(home, lambda tx: api_keys.create(tx, new, os_user(), now))
    if out is None:
        click.echo(secret)
        return
    try:
        write_private(out, secret.encode())
    except KeyFileError as error:
        # Nobody has the key, and its name must be free for another try.
        in_transaction(home, lambda tx: api_keys.revoke(tx, name, now_ms(), os_user()))
        raise ConfigError(str(error)) from None
    click.echo(f"Made the key {name}, in {out}.")


@key.command("list")
@home_option
@json_option
@errors
def list_keys(home: Path, as_json: bool) -> None:
    """List all keys, the revoked and expired ones too."""
    now = now_ms()
    found = in_transaction(home, api_keys.every)
    if as_json:
        click.echo(msgspec.json.encode([_to_wire(each, now) for each in found]).decode())
        return
    rows = [
        (
            each.name,
            ", ".join(sorted(each.roles)),
            each.operator or "",
            each.state(now),
            day(each.created_ms // 1000),
            "" if each.expires_ms is None else day(each.expires_ms // 1000),
        )
        for each in found
    ]
    table("", ("name", "roles", "operator", "state", "created", "expires"), rows)


def _to_wire(found: ApiKey, now: int) -> dict[str, Any]:
    return {
        "name": found.name,
        "roles": sorted(found.roles),
        "operator": found.operator,
        "state": found.state(now),
        "created": found.created_ms // 1000,
        "created_by": found.created_by,
        "expires": None if found.expires_ms is None else found.expires_ms // 1000,
        "revoked": None if found.revoked_ms is None else found.revoked_ms // 1000,
    }


@key.command()
@click.argument("name")
@home_option
@errors
def revoke(name: str, home: Path) -> None:
    """Revoke the key NAME.  It opens nothing more, in no process of the verifier."""
    in_transaction(home, lambda tx: api_keys.revoke(tx, name, now_ms(), os_user()))
    click.echo(f"Revoked {name}.")
