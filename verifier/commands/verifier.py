"""`touchstone verifier …`: run it and enrol nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from attester.cli import absolute, configure_logging, tls_options
from attester.errors import ConfigError
from verifier.commands import answer_reviews, drift, incidents, keys, maintenance, reviews, routers, status
from verifier.commands.common import (
    errors,
    home_option,
    in_transaction,
    json_option,
    now_ms,
    read_kept,
    read_pairs,
    table,
    thresholds_in_force,
)
from verifier.commands.signing_keys import signing_key
from verifier.config import Home, ServiceConfig, VerifierConfig
from verifier.store import incidents as stored_incidents
from verifier.store import nodes as stored_nodes
from verifier.store.database import Tx
from verifier.store.nodes import Grant


@click.group()
def verifier() -> None:
    """Appraise evidence and sign results."""


@verifier.command()
@home_option
@click.option(
    "--listen", default=ServiceConfig().listen, show_default=True, help="The HOST:PORT to listen on."
)
@click.option(
    "--url",
    default=None,
    help="The base URL by which everyone reaches the verifier.  Default: http://LISTEN, or https:// with TLS.",
)
@tls_options
@click.option(
    "--store",
    default="",
    help="postgresql://USER@HOST/DATABASE, for a verifier of several processes.  Default: a file in the home.",
)
@errors
def init(
    home: Path,
    listen: str,
    url: str | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    store: str,
) -> None:
    """Make a home: keys, tokens, configuration and a copy of the default policy."""
    if url is not None and not url.startswith(("https://", "http://")):
        raise click.UsageError("--url must begin with https:// or http://")
    service = {
        "listen": listen,
        "url": (url or f"{'http' if tls_certificate is None else 'https'}://{listen}").rstrip("/"),
        "tls_certificate": absolute(tls_certificate),
        "tls_key": absolute(tls_key),
    }
    try:
        config = msgspec.convert({"service": service, "store": {"url": store}}, VerifierConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
    Home(home).create(config)
    click.echo(f"Made {home}. Next:")
    click.echo(
        f"  1. approve your engines in {home}/policy/data.json: it is taken at the first start, and never again"
    )
    click.echo(f"  2. touchstone reference measure DIR --model NAME --home {home}")
    click.echo(f"  3. touchstone challenges mint --model NAME --dir DIR --days 1 --nodes 10 --home {home}")
    click.echo(f"  4. touchstone verifier serve --keep NAME=DIR --home {home}")
    click.echo(
        f"Nobody gets in without a credential. {home}/admin.token opens everything; for people and routers:"
    )
    click.echo(f"  touchstone verifier key create NAME --role ROLE --out FILE --home {home}")


@verifier.command()
@home_option
@click.option(
    "--keep",
    "kept",
    multiple=True,
    metavar="MODEL=DIR",
    help="Keep the challenges for MODEL filled, from the weights in DIR, in a process of low priority; repeatable.",
)
@click.option(
    "--keep-hours",
    default=24.0,
    show_default=True,
    type=click.FloatRange(0.01, 8760),
    help="How many hours of the enrolled fleet's calls, and of checks of its answers, there are to be.",
)
@click.option(
    "--keep-answers",
    multiple=True,
    metavar="MODEL=URL",
    help="Keep minted answers of MODEL too, with the trusted engine at URL; repeatable.",
)
@click.option(
    "--keep-prompts",
    multiple=True,
    metavar="MODEL=FILE",
    help="Make their prompts from this file of JSON lines; repeatable.",
)
@click.option(
    "--keep-profile", type=click.Path(path_type=Path), default=None, help="What the traffic looks like."
)
@click.option("--log-json", is_flag=True, help="Log lines of JSON.")
@errors
def serve(
    home: Path, kept: tuple[str, ...], keep_hours: float, keep_answers: tuple[str, ...],
    keep_prompts: tuple[str, ...], keep_profile: Path | None, log_json: bool,
) -> None:  # fmt: skip
    """Run the verifier."""
    from verifier.service.serve import run

    arguments: list[str] = []
    for model, folder in read_kept(kept):
        arguments += ["--model", model, "--dir", str(folder)]
    for model, url in read_pairs("--keep-answers", keep_answers, "URL"):
        arguments += ["--answers", f"{model}={url}"]
    for model, file in read_pairs("--keep-prompts", keep_prompts, "FILE"):
        arguments += ["--prompts", f"{model}={file}"]
    if keep_profile is not None:
        arguments += ["--profile", str(keep_profile)]
    if arguments:
        arguments += ["--hours", str(keep_hours), "--home", str(home), *(["--log-json"] if log_json else [])]
    configure_logging(as_json=log_json)
    run(Home(home), arguments)


@verifier.command()
@home_option
@click.option("--operator", required=True, help="The operator of the node.")
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    help="A model that the node may enrol with; repeatable.",
)
@click.option(
    "--hardware-class",
    default="cpu",
    show_default=True,
    help="The node's hardware class in the policy, which sets the deadlines of its walks.",
)
@click.option("--for-node", default=None, help="Allow only a new key for this node, which lost its old one.")
@click.option(
    "--hours",
    default=24,
    show_default=True,
    type=click.IntRange(1, 24 * 90),
    help="The hours for which the token is valid.",
)
@errors
def token(
    home: Path, operator: str, models: tuple[str, ...], hardware_class: str, for_node: str | None, hours: int
) -> None:
    """Print a one-time enrolment token."""
    folder = home / Home(home).config().policy.folder
    thresholds = in_transaction(home, lambda tx: thresholds_in_force(tx, folder))
    if hardware_class not in thresholds.classes:
        raise ConfigError(
            f"the policy has no hardware class {hardware_class!r}. Use {', '.join(sorted(thresholds.classes))}"
        )
    grant = Grant(operator, models, hardware_class, for_node)
    click.echo(
        in_transaction(home, lambda tx: stored_nodes.issue_token(tx, grant, now_ms(), hours * 3600_000))
    )


@verifier.group()
def nodes() -> None:
    """List and retire nodes."""


@nodes.command("list")
@home_option
@json_option
@errors
def list_nodes(home: Path, as_json: bool) -> None:
    """List all nodes."""

    async def work(tx: Tx) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        after = ""
        while page := await stored_nodes.page(tx, after, 500):
            for node in page:
                held = await stored_incidents.holding(tx, node.id)
                found.append(
                    (node.id, node.operator, ", ".join(node.models), "quarantined" if held else node.state)
                )
            after = page[-1].id
        return found

    rows = in_transaction(home, work)
    columns = ("node", "operator", "models", "state")
    if as_json:
        click.echo(msgspec.json.encode([dict(zip(columns, row, strict=True)) for row in rows]).decode())
    else:
        table("", columns, rows)


@nodes.command("retire")
@click.argument("node")
@home_option
@errors
def retire_node(node: str, home: Path) -> None:
    """Retire NODE.  Its results are revoked, and its evidence is refused from now on."""
    in_transaction(home, lambda tx: stored_nodes.retire(tx, node, now_ms()))
    click.echo(f"Retired {node}.")


for _command in (
    incidents.incidents,
    answer_reviews.answers,
    reviews.reviews,
    drift.drift,
    keys.key,
    status.status,
    maintenance.backup,
    maintenance.restore,
    maintenance.migrate,
    maintenance.check,
    signing_key,
    routers.router,
):
    verifier.add_command(_command)
