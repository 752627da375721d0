"""`touchstone router backup | restore | migrate`, and the store's part of `check`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import click

from attester.cli import plain_errors
from attester.errors import AttesterError, ConfigError
from attester.settings import read_toml
from router.config import RouterConfig
from router.model.errors import RouterError
from router.store import changes, keys
from router.store.invariants import CHECKS
from router.store.keys import StoredKey
from verifier.errors import VerifierError
from verifier.store import maintenance
from verifier.store.backups import Manifest
from verifier.store.console import confirm_replacing, show_faults, show_migration
from verifier.store.maintenance import Place, Restoration
from verifier.store.opening import is_postgres
from verifier.store.whole import Whole

PACKAGE: Final = "router.store"

errors = plain_errors(AttesterError, RouterError, VerifierError)
config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=Path("router.toml"),
    envvar="TOUCHSTONE_ROUTER_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The router's configuration.",
)


def _place(path: Path) -> Place:
    config = read_toml(path, RouterConfig, "touchstone router init")
    place = place_of(config, path.parent)
    if place is None:
        raise ConfigError(f"{path}: this router has no store. Set path or url in [store]")
    return place


def place_of(config: RouterConfig, folder: Path) -> Place | None:
    """Give where a router's store is; `None` if nothing of it is kept."""
    if not config.store.is_kept:
        return None
    return Place(config.store.url, folder / (config.store.path or ""), PACKAGE)


def check_store(config: RouterConfig, folder: Path) -> None:
    """Check a router's store, if there is one, and end the command with status 1 if something is wrong."""
    place = place_of(config, folder)
    if place is None or (not place.url and not place.file.exists()):
        return
    show_faults(asyncio.run(maintenance.check(place, CHECKS, click.echo)))


class RouterRestoration(Restoration):
    """A restored store opens nothing to a key that the replaced one had revoked (ADR 0023)."""

    def __init__(self) -> None:
        self._revoked: list[StoredKey] = []

    async def look(self, whole: Whole) -> None:
        """Remember which keys are revoked."""
        if "api_keys" in whole.tables:
            self._revoked = await keys.list_revoked(whole.tx)

    async def finish(self, whole: Whole, manifest: Manifest) -> None:
        """Revoke them again."""
        await super().finish(whole, manifest)
        await keys.revoke_again(whole.tx, self._revoked)
        if "changes" in whole.tables:
            # What was stopped or taken back since must not decide about anything again.
            await changes.end_live(whole.tx, time.time_ns() // 1_000_000)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@config_option
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@errors
def backup(file: Path, path: Path, *, force: bool) -> None:
    """Copy the store to FILE, while routers run: standings, holds, decisions, budgets.

    FILE can be restored into a file or into PostgreSQL.
    """
    manifest = asyncio.run(maintenance.back_up(_place(path), file, force=force))
    click.echo(f"Wrote {file}: {manifest.rows} rows of {len(manifest.tables)} tables, read again and equal.")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@config_option
@click.option("--replace", is_flag=True, help="Replace a store that is not empty.")
@click.option("--yes", is_flag=True, help="With --replace, do not ask.")
@errors
def restore(file: Path, path: Path, *, replace: bool, yes: bool) -> None:
    """Restore the store from FILE, while no router runs."""
    place = _place(path)
    if replace:
        confirm_replacing(str(place.file) if not place.url else "the store", yes=yes)
    manifest = asyncio.run(maintenance.restore(place, file, RouterRestoration(), replace=replace))
    click.echo(f"Restored {manifest.rows} rows, and verified them.")
    click.echo("What came after the backup is lost: holds, releases, decisions, and what keys have spent.")
    click.echo(
        "Of receipts the log has more than this store: delete the file of each router's receipt key before it starts."
    )
    click.echo("Keys that the replaced store had revoked stay revoked. Look: touchstone router key list")


@click.command()
@click.option(
    "--to",
    "target",
    required=True,
    metavar="URL|FILE",
    help="An empty PostgreSQL database, postgresql://USER@HOST/DATABASE, or a new SQLite file.",
)
@config_option
@errors
def migrate(target: str, path: Path) -> None:
    """Copy the store to another database, and prove that they are equal, while no router runs."""
    url, file = (target, Path()) if is_postgres(target) else ("", Path(target))
    show_migration(asyncio.run(maintenance.migrate(_place(path), Place(url, file, PACKAGE))))
    setting = f'url = "{url}"' if url else f'path = "{file.absolute()}"'
    click.echo(f"Next, in [store] of {path}, in place of what is there: {setting}")
