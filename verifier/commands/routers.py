"""`touchstone verifier router …`: the routers that nodes may serve."""

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
    reason_option,
    table,
)
from verifier.config import Home
from verifier.errors import RequestError
from verifier.service.access import ADMINISTER
from verifier.store import api_keys, routers
from verifier.store.routers import Registration

_SHORT: Final = 16
_LEAST: Final = 8


@click.group()
def router() -> None:
    """List and remove the routers that nodes may serve."""


@router.command("list")
@home_option
@json_option
@errors
def list_routers(home: Path, as_json: bool) -> None:
    """List the registered routers, also those that were removed or whose key has ended."""
    now, tokens = now_ms(), _tokens(home)
    found = in_transaction(home, lambda tx: routers.every(tx, now, tokens))
    if as_json:
        click.echo(msgspec.json.encode([_to_wire(each, now) for each in found]).decode())
        return
    rows = [
        (
            each.name,
            each.spki.hex()[:_SHORT],
            each.state(now),
            day(each.since_ms // 1000),
            f"{max(0, now - each.renewed_ms) // 60_000} min ago",
        )
        for each in found
    ]
    table("", ("name", "SHA-256 of its key", "state", "since", "renewed"), rows)


@router.command()
@click.argument("key")
@reason_option
@person_options
@home_option
@errors
def remove(key: str, reason: str, who: Person, home: Path) -> None:
    """
    Remove the router with KEY, the beginning of the SHA-256 of its key: no node serves it any more.

    It cannot be registered again.  If its API key may be known to others, revoke that too.
    """
    if len(key) < _LEAST or not set(key) <= set("0123456789abcdef"):
        raise RequestError(f"KEY is the beginning of a SHA-256, at least {_LEAST} digits, hex")
    author = who.author(home, reason, ADMINISTER)
    row = in_transaction(home, lambda tx: routers.remove(tx, key, author, now_ms()))
    click.echo(f"Removed a key of {row['name']}. Nodes end its connections within a minute.")


def _tokens(home: Path) -> frozenset[bytes]:
    """The digests of the home's tokens."""
    place = Home(home)
    found = (place.token("admin"), place.token("router"))
    return frozenset(api_keys.digest_of(token) for token in found if token)


def _to_wire(found: Registration, now: int) -> dict[str, Any]:
    return {
        "name": found.name,
        "spki_sha256": found.spki.hex(),
        "state": found.state(now),
        "since": found.since_ms // 1000,
        "renewed": found.renewed_ms // 1000,
        "expires": found.until_ms // 1000,
        "removed": None if found.removed_ms is None else found.removed_ms // 1000,
    }
