"""The command `touchstone router ext-proc`."""

from __future__ import annotations

from pathlib import Path

import click

from attester.errors import ConfigError
from attester.settings import read_toml
from router.commands import maintenance
from router.config import RouterConfig


@click.command("ext-proc")
@maintenance.config_option
@click.option(
    "--listen", default="127.0.0.1:8080", show_default=True, help="HOST:PORT on which Envoy serves clients."
)
@click.option("--picker", required=True, help="HOST:PORT of the endpoint picker.")
@click.option("--certificate", type=click.Path(path_type=Path), help="What Envoy shows the router, PEM.")
@click.option("--key", type=click.Path(path_type=Path), help="Its key, PEM.")
@maintenance.errors
def ext_proc(path: Path, listen: str, picker: str, certificate: Path | None, key: Path | None) -> None:
    """
    Print a configuration of Envoy by which an endpoint picker chooses among trusted nodes alone.

    The router itself serves Envoy as soon as its configuration has a section [ext_proc].
    """
    from router.service.ext_proc import printed
    from router.state.identity import identity_path

    if (certificate is None) != (key is None):
        raise ConfigError("--certificate and --key go together")
    config = read_toml(path, RouterConfig, "touchstone router init")
    text = printed.write(
        path,
        config,
        listen=listen,
        picker=picker,
        identity=identity_path(path, config.gateway.identity_file),
        client=None if certificate is None or key is None else (certificate, key),
    )
    click.echo(text, nl=False)
