"""`touchstone verifier signing-key …`: rotate the keys that sign results, and withdraw one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
import msgspec

from verifier.commands.common import errors, home_option, in_transaction, json_option, now_ms, os_user, table
from verifier.config import Home
from verifier.store import signing_keys as stored
from verifier.store.database import Tx
from verifier.store.signing_keys import StoredKey

_LEAD_S: Final = 180
"""So long a new key is listed before it signs: a JWKS may be cached for a minute, and replicas need the file."""
_COLUMNS: Final = ("kid", "state", "signs_in_s", "leaves_in_s", "file")


@click.group("signing-key")
def signing_key() -> None:
    """Rotate the keys that sign results, or withdraw one."""


@signing_key.command("rotate")
@home_option
@click.option(
    "--overlap",
    default=1,
    show_default=True,
    type=click.IntRange(1, 24 * 90),
    help="For how many hours the keys so far stay in the JWKS after the new one begins to sign.",
)
@click.option("--at-once", is_flag=True, help="Let the new key sign at once, if a key was stolen.")
@errors
def rotate(home: Path, overlap: int, at_once: bool) -> None:
    """
    Make a new key to sign results with.

    It is listed in the JWKS at once and signs after three minutes.  Those so far stay listed until all that they have
    signed has expired.  A running verifier takes the change within seconds.
    """
    place = Home(home)
    lifetime_ms = place.config().results.lifetime_s * 1000
    known = [key.verifying for key in place.result_keys()]
    path, key = place.create_result_key()
    now = now_ms()
    signs_ms = now + (0 if at_once else _LEAD_S * 1000)
    leaves_ms = signs_ms + max(overlap * 3600_000, 2 * lifetime_ms)

    async def work(tx: Tx) -> None:
        await stored.note(tx, known, now_ms())
        await stored.rotate(tx, key.verifying, now, signs_ms=signs_ms, leaves_ms=leaves_ms, actor=os_user())

    try:
        in_transaction(home, work)
    except BaseException:
        path.unlink()
        raise
    click.echo(f"Made {path}: {key.kid}.")
    click.echo("It signs now." if at_once else f"It is listed now, and signs in {_LEAD_S} s.")
    if place.config().store.url:
        click.echo("Copy the file into the home of each other replica before that.")


@signing_key.command("list")
@home_option
@json_option
@errors
def list_keys(home: Path, as_json: bool) -> None:
    """List the keys that sign results or did, the newest first."""
    place = Home(home)
    now = now_ms()
    known = [key.verifying for key in place.result_keys()]
    here = {key.kid for key in known}
    withdrawn = place.withdrawn_keys()

    async def work(tx: Tx) -> list[StoredKey]:
        await stored.note(tx, known, now_ms())
        return await stored.all_keys(tx)

    rows = [
        _row(each, now, here, withdrawn) for each in reversed(_with_signer(in_transaction(home, work), now))
    ]
    if as_json:
        click.echo(msgspec.json.encode([dict(zip(_COLUMNS, row, strict=True)) for row in rows]).decode())
    else:
        table("", _COLUMNS, rows)


def _with_signer(keys: list[StoredKey], now: int) -> list[tuple[StoredKey, bool]]:
    """Each key, and whether it signs."""
    begun = [each for each in keys if each.signs_ms <= now and each.is_listed(now)]
    return [(each, bool(begun) and each is begun[-1]) for each in keys]


def _row(
    found: tuple[StoredKey, bool], now: int, here: set[str], withdrawn: frozenset[str]
) -> tuple[Any, ...]:
    key, signs = found
    state = (
        "withdrawn"
        if key.withdrawn_ms is not None or key.kid in withdrawn
        else "left"
        if not key.is_listed(now)
        else "signs"
        if signs
        else "to come"
        if key.signs_ms > now
        else "listed"
    )
    signs_in_s = (key.signs_ms - now) // 1000 if key.signs_ms > now else None
    leaves_in_s = None if key.leaves_ms is None else (key.leaves_ms - now) // 1000
    return key.kid, state, signs_in_s, leaves_in_s, key.kid in here


@signing_key.command("withdraw")
@click.argument("kid")
@home_option
@errors
def withdraw(kid: str, home: Path) -> None:
    """
    Withdraw the key KID, which may have been stolen: every live result that it signed is revoked.

    It leaves the JWKS at once and is never trusted again, also after a restore.
    """
    place = Home(home)
    known = [key.verifying for key in place.result_keys()]

    async def work(tx: Tx) -> int:
        await stored.note(tx, known, now_ms())
        return await stored.withdraw(tx, kid, now_ms(), os_user())

    count = in_transaction(home, work)
    place.note_withdrawn(kid)
    click.echo(f"Withdrew {kid}, and revoked {count} results. Nodes get new ones with their next calls.")
