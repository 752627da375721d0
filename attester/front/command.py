"""The command `touchstone attester front`."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import click

from attester.cli import attester_home, configure_logging, plain_errors
from attester.config import Home
from attester.errors import AttesterError


@click.command()
@attester_home
@click.option("--log-json", is_flag=True, help="Log JSON lines.")
@click.option(
    "--print",
    "proxy",
    type=click.Choice(["nginx", "caddy", "envoy"]),
    help="Serve nothing: print the same rules for a proxy of yours.",
)
@plain_errors(AttesterError, UnicodeEncodeError)
def front(home_path: Path, log_json: bool, proxy: str | None) -> None:  # noqa: FBT001  # click's signature
    """
    Serve routers over TLS with the attested key, and pass on to the engine what they may ask it.

    On SIGHUP it reads its configuration anew.
    """
    home = Home(home_path)
    if proxy is not None:
        from attester.front import printed

        click.echo(printed.write(home, home.config(), proxy, time.time()), nl=False)
        return
    # Until the front has its own answer to it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    configure_logging(as_json=log_json)
    from attester.front import process

    process.start(home)
