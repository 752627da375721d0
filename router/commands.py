"""`touchstone router …`: serving, and explaining what was decided."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
import msgspec

from attester.cli import configure_logging, plain_errors
from attester.errors import AttesterError, ConfigError
from attester.settings import read_toml, to_toml
from router.config import RouterConfig, ServiceSection
from router.errors import RouterError

_errors = plain_errors(AttesterError, RouterError)
_config = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=Path("router.toml"),
    envvar="TOUCHSTONE_ROUTER_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The router's configuration.",
)


@click.group()
def router() -> None:
    """Send work to nodes that may be trusted."""


@router.command()
@_config
@click.option("--verifier", required=True, help="The verifier's base URL.")
@click.option("--model", "models", multiple=True, required=True, help="A model to route for; repeatable.")
@click.option("--listen", default=ServiceSection().listen, show_default=True, help="HOST:PORT to listen on.")
@_errors
def init(path: Path, verifier: str, models: tuple[str, ...], listen: str) -> None:
    """Write a configuration with a workload for each model, to be edited."""
    short = [model.rpartition("/")[2] for model in models]
    names = short if len(set(short)) == len(short) else list(models)
    given = {
        "verifier": {"url": verifier.rstrip("/")},
        "service": {"listen": listen},
        "workloads": {name: {"model": model} for name, model in zip(names, models, strict=True)},
    }
    try:
        config = msgspec.convert(given, RouterConfig)
        with open(path, "x", encoding="utf-8") as file:
            file.write(to_toml(config))
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
    except FileExistsError:
        raise ConfigError(f"{path} exists already") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    click.echo(f"Made {path}. Next: touchstone router serve --config {path}")


@router.command()
@_config
@click.option("--log-json", is_flag=True, help="Log JSON lines.")
@_errors
def serve(path: Path, log_json: bool) -> None:
    """Run the router."""
    from router.service.app import make_app
    from verifier.service.serve import run_app

    configure_logging(as_json=log_json)
    config = read_toml(path, RouterConfig, "touchstone router init")
    run_app(make_app(config), config.service.listen, f"http://{config.service.listen}", "router")


@router.command()
@click.argument("decision")
@click.option(
    "--url",
    default=f"http://{ServiceSection().listen}",
    show_default=True,
    envvar="TOUCHSTONE_ROUTER_URL",
    help="The router's base URL.",
)
@click.option(
    "--key", default=None, envvar="TOUCHSTONE_API_KEY", help="An API key, where the router needs one."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_errors
def explain(decision: str, url: str, key: str | None, as_json: bool) -> None:
    """Explain DECISION: who was chosen and why, and why the others were not."""
    record = asyncio.run(_fetch(url, decision, key))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(record), indent=2).decode())
        return
    for line in explanation(record):
        click.echo(line)


async def _fetch(url: str, decision: str, key: str | None) -> dict[str, Any]:
    import aiohttp

    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        async with (
            aiohttp.ClientSession(trust_env=False) as http,
            http.get(f"{url}/api/v1/decisions/{decision}", headers=headers) as response,
        ):
            data = await response.read()
            if response.status != 200:
                raise RouterError(
                    f"the router answers {response.status}: is it the id of a decision of this router?"
                )
            record = msgspec.json.decode(data, type=dict[str, Any])
            if record.get("id") != decision:
                raise RouterError(f"what answers at {url} is no router of ours")
            return record
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, ValueError) as error:
        raise RouterError(f"the router at {url} cannot be asked ({type(error).__name__})") from None


def explanation(record: dict[str, Any]) -> list[str]:
    """A decision in sentences."""
    workload = record["workload"]["model"]
    lines = [f"Decision {record['id']} for {workload} (seed {record['seed']}, snapshot {record['snapshot']})"]
    for place, ranked in enumerate(record["ranked"], 1):
        lines.append(
            f"  {place}. {ranked['node']}  {ranked['tier']}: {ranked['score']:.3f} expected s per success "
            f"= {ranked['latency_s']:.3f} s × {ranked['in_flight'] + 1} under way ÷ "
            f"{max(ranked['completion'], 0.05):.3f} completion ({ranked['evidence']:.0f} requests seen)"
        )
    if not record["ranked"]:
        lines.append("  nobody may do it")
    if record["failed_open"]:
        lines.append(f"  failed open: {', '.join(record['failed_open'])}")
    for node, verdict in record["excluded"].items():
        lines.append(f"  ✗ {node}  {verdict['code']}: {verdict['detail']}")
    lines += [
        f"  → {attempt['node']}  {attempt['outcome']} in {attempt.get('ms', 0)} ms ({attempt['detail']})"
        for attempt in record["attempts"]
    ]
    return lines
