"""`touchstone router key …`: make, list and revoke API keys, while routers run."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from attester.errors import ConfigError, KeyFileError
from attester.identity import write_private
from attester.settings import read_toml
from router.commands import maintenance
from router.config import ANYONE, ROLES, ApiKey, RouterConfig
from router.store import keys
from router.store.keys import StoredKey
from verifier.roles import Role
from verifier.store.api_keys import new_secret
from verifier.store.database import Tx
from verifier.store.opening import open_database

_DAY_MS: Final = 86_400_000

T = TypeVar("T")

_limit = click.IntRange(0, 10**12)


@click.group()
def key() -> None:
    """Make, list and revoke API keys.  Running routers know within two seconds."""


@key.command()
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice([role.value for role in ROLES]),
    default=[Role.RELYING_PARTY.value],
    show_default=True,
    help="What its holder may do; repeatable.",
)
@click.option("--operator", default=None, help="The operator of nodes that its holder belongs to.")
@click.option(
    "--workload", "workloads", multiple=True, help="A workload it may use; repeatable.  Default: any."
)
@click.option("--requests-per-minute", default=0, type=_limit, help="0: no limit; likewise below.")
@click.option("--concurrency", default=0, type=_limit, help="Requests in flight at a time.")
@click.option("--tokens-per-minute", default=0, type=_limit)
@click.option("--tokens-per-day", default=0, type=_limit)
@click.option("--may-dispatch", is_flag=True, help="Decisions come with the endpoints of nodes.")
@click.option(
    "--receipt-key",
    default=None,
    help="The public key, base64url, of its holder's own receipts of such work.",
)
@click.option(
    "--days", default=None, type=click.IntRange(1, 36_500), help="For how long.  Default: until revoked."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Write the key to a new file that only you can read, instead of printing it.",
)
@maintenance.config_option
@maintenance.errors
def create(name: str, path: Path, days: int | None, out: Path | None, **given: Any) -> None:
    """Make the key NAME, and print it: it is shown once, and only its digest is kept."""
    config = read_toml(path, RouterConfig, "touchstone router init")
    secret = make_key(path, config, {"name": name, **given}, days, out=out)
    if out is not None:
        click.echo(f"Made the key {name}, in {out}.")
        return
    click.echo(secret)
    click.echo(
        f"This is the key {name}. It is not shown again. It is sent as: Authorization: Bearer KEY", err=True
    )


@key.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@maintenance.config_option
@maintenance.errors
def list_keys(path: Path, *, as_json: bool) -> None:
    """List all keys, also those that are revoked or were written into the configuration."""
    config = read_toml(path, RouterConfig, "touchstone router init")
    stored = _on_store(config, path.parent, keys.list_all) if config.store.is_kept else []
    rows = _rows(config, stored, _now_ms())
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
        return
    for row in rows:
        operator = f", of {row['operator']}" if row["operator"] else ""
        dispatch = ", may dispatch" if row["may_dispatch"] else ""
        click.echo(
            f"{row['name']}  {row['state']}  {', '.join(row['roles'])}{operator}{dispatch}  (in {row['in']})"
        )
    if not rows:
        click.echo("There is no key. Make one: touchstone router key create NAME")


@key.command()
@click.argument("name")
@maintenance.config_option
@maintenance.errors
def revoke(name: str, path: Path) -> None:
    """Revoke the key NAME for good.  Requests that are under way end as usual."""
    config = read_toml(path, RouterConfig, "touchstone router init")
    configured = next((each for each in config.keys if each.name == name), None)
    _on_store(config, path.parent, lambda tx: keys.revoke(tx, name, _now_ms(), configured))
    click.echo(f"{name} is revoked. Running routers refuse it within two seconds.")


def make_key(
    path: Path,
    config: RouterConfig,
    given: dict[str, Any],
    days: int | None = None,
    *,
    out: Path | None = None,
) -> str:
    """
    Make a key in the store of a router, write it to the new file *out*, if there is to be one, and give it.

    Raises:
        ConfigError: the key cannot be as it is given, the router has no store, or the file cannot be made.
        KeyStepError: its name was given before, or there are too many keys.
    """
    secret = new_secret()
    try:
        new = msgspec.convert({**given, "sha256": hashlib.sha256(secret.encode()).hexdigest()}, ApiKey)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the key cannot be made: {error}") from None
    if new.name in {ANYONE, *(each.name for each in config.keys)}:
        raise ConfigError(f"{new.name} is a name in {path} or has a meaning of its own. Choose another")
    now_ms = _now_ms()
    expires_ms = None if days is None else now_ms + days * _DAY_MS
    try:
        if out is not None:
            # First: a key in the store that nobody has would have taken the name.
            write_private(out, secret.encode())
    except KeyFileError as error:
        raise ConfigError(str(error)) from None
    try:
        _on_store(config, path.parent, lambda tx: keys.add(tx, new, now_ms, expires_ms=expires_ms))
    except BaseException:
        if out is not None:
            out.unlink()
        raise
    return secret


def _on_store(config: RouterConfig, folder: Path, work: Callable[[Tx], Awaitable[T]]) -> T:
    place = maintenance.place_of(config, folder)
    if place is None:
        raise ConfigError("this router has no store for keys. Set path or url in [store], or write [[keys]]")

    async def run() -> T:
        async with open_database(place.url, place.file, schema=place.package) as db:
            return await db.write(work)

    return asyncio.run(run())


def _rows(config: RouterConfig, stored: list[StoredKey], now_ms: int) -> list[dict[str, Any]]:
    ended = {each.key.sha256 for each in stored if each.state(now_ms) != "live"}
    rows = []
    for configured in config.keys:
        state = "revoked" if configured.sha256 in ended else "live"
        rows.append({**msgspec.to_builtins(configured), "state": state, "in": "the configuration"})
    named = {configured.name for configured in config.keys}
    for each in stored:
        if each.key.name not in named:
            about = {"state": each.state(now_ms), "in": "the store"}
            times = {"created_ms": each.created_ms, "expires_ms": each.expires_ms}
            rows.append({**msgspec.to_builtins(each.key), **about, **times})
    return rows


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
