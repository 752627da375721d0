"""`touchstone log witness`: cosign the checkpoints of logs that only grow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import msgspec

from attester.cli import configure_logging
from attester.errors import ConfigError
from verifier.commands.common import errors
from verifier.errors import LogError
from verifier.service.serve import run_app
from verifier.watching.home import FollowedLog, WitnessConfig, WitnessHome, read_log_key
from verifier.watching.seen import SeenTrees
from verifier.watching.service import follow_once, make_app
from verifier.watching.witness import Witness


@click.command()
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=Path("touchstone-witness"),
    envvar="TOUCHSTONE_WITNESS_HOME",
    show_default=True,
    show_envvar=True,
    help="The witness's home folder.  It must never be restored from a copy.",
)
@click.option(
    "--name",
    default=None,
    help="Make the home, with a new key of this name: a URL without its scheme, such as witness.example/w1.",
)
@click.option(
    "--listen", default=None, help="The HOST:PORT to listen on, in place of the one in witness.toml."
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    help="The public key of a log to follow, besides those in witness.toml, NAME+ID+KEY; repeatable.",
)
@click.option(
    "--log",
    "url",
    default=None,
    help="Read the log of the one --key at this prefix, for a log that does not call.",
)
@click.option(
    "--every", type=click.IntRange(1, 86_400), default=None, help="The seconds between two readings."
)
@click.option("--once", is_flag=True, help="Read the logs with a prefix once, cosign them, and end.")
@click.option("--show-key", is_flag=True, help="Print the public key, and end.")
@click.option("--json-log", is_flag=True, help="Write the log as JSON lines.")
@errors
def witness(
    home: Path,
    name: str | None,
    listen: str | None,
    keys: tuple[str, ...],
    url: str | None,
    every: int | None,
    once: bool,
    show_key: bool,
    json_log: bool,
) -> None:
    """
    Cosign the checkpoints of logs (c2sp.org/tlog-witness), each only if it continues the one before.

    Logs call POST /add-checkpoint, or the witness reads them.  GET / shows its public key and its logs.
    """
    if url is not None and len(keys) != 1:
        raise click.UsageError("--log needs exactly one --key, the key of that log")
    for key in keys:
        # Before a home is made.
        read_log_key(key)
    folder = WitnessHome(home)
    if name is not None:
        folder.create(WitnessConfig(name=name))
    config = _with(folder.config(), listen=listen, keys=keys, url=url, every=every)
    if show_key:
        click.echo(str(folder.signer(config.name).key))
        return
    if not config.logs:
        raise ConfigError(f"the witness follows no log: give --key, or [[logs]] in {home / 'witness.toml'}")
    configure_logging(as_json=json_log)
    with _open(folder, config) as opened:
        if once:
            asyncio.run(_once(folder, config, opened))
            return
        run_app(make_app(folder, config, opened), home, f"http://{config.service.listen}", "witness")


def _with(
    config: WitnessConfig, *, listen: str | None, keys: tuple[str, ...], url: str | None, every: int | None
) -> WitnessConfig:
    """The settings of the file with the options in their place."""
    logs = (*config.logs, *(FollowedLog(key=key, url=url) for key in keys))
    service = config.service if listen is None else msgspec.structs.replace(config.service, listen=listen)
    changed = {"logs": logs, "service": service, "every_s": every or config.every_s}
    try:
        return msgspec.convert(msgspec.to_builtins({"name": config.name, **changed}), WitnessConfig)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(str(error)) from None


@contextmanager
def _open(home: WitnessHome, config: WitnessConfig) -> Iterator[Witness]:
    keys = frozenset(key for key, _ in config.followed())
    with home.only_process(), closing(SeenTrees(home.database)) as seen:
        yield Witness(home.signer(config.name), seen, keys, lambda: int(time.time()))


async def _once(home: WitnessHome, config: WitnessConfig, opened: Witness) -> None:
    refused = 0
    for key, url in config.followed():
        if url is None:
            continue
        try:
            await follow_once(home, opened, key, url)
        except LogError as error:
            refused += 1
            click.echo(f"{key.name}: {error}", err=True)
        else:
            click.echo(f"{key.name}: cosigned, in {home.checkpoint(key.name)}")
    if refused:
        raise click.ClickException(f"{refused} of the logs were not cosigned")
