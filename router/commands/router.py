"""`touchstone router …`: serve, explain and replay decisions, review holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
import msgspec

from attester.cli import absolute, configure_logging, tls_options
from attester.errors import ConfigError
from attester.settings import read_toml, to_toml
from router.choose.decision import Decision, replay
from router.choose.explaining import describe_required, describe_revisions, describe_seed, explanation
from router.commands import asking, maintenance
from router.commands.batches import batches
from router.commands.changes import change
from router.commands.ext_proc import ext_proc
from router.commands.keys import key, make_key
from router.config import RouterConfig, ServiceSection
from router.model.errors import KeyStepError, ReplayError, RouterError
from router.model.workload import MODEL_CLAIMS, SubmodRequirement
from verifier.roles import Role

_errors = maintenance.errors
_config = maintenance.config_option
_url, _key = asking.url_option, asking.key_option
_call, _print_json, _plain = asking.call, asking.print_json, asking.plain
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
FIRST_KEY: Final = "administrator"
"""The name of the key that `init` makes."""


@click.group()
def router() -> None:
    """Send work to nodes that may be trusted."""


@router.command()
@_config
@click.option("--verifier", required=True, help="The verifier's base URL.")
@click.option(
    "--token-file",
    required=True,
    type=click.Path(path_type=Path),
    help="The file with the router's key: touchstone verifier key create NAME --role router.",
)
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path),
    help="The authority of the verifier's certificate, PEM, if the system does not know it.",
)
@click.option("--model", "models", multiple=True, required=True, help="A model to route for; repeatable.")
@click.option(
    "--model-claims",
    default=",".join(MODEL_CLAIMS),
    show_default=True,
    metavar="CLAIM,CLAIM",
    help="The trust claims about a model that must be affirming. A node whose engine shows no loaded weights "
    "(llama.cpp, files) earns file-system alone.",
)
@click.option("--listen", default=ServiceSection().listen, show_default=True, help="HOST:PORT to listen on.")
@tls_options
@click.option("--open", "is_open", is_flag=True, help="Let anyone send work, and make no key.")
@_errors
def init(
    path: Path,
    verifier: str,
    models: tuple[str, ...],
    model_claims: str,
    listen: str,
    token_file: Path,
    ca_file: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    *,
    is_open: bool,
) -> None:
    """Write a configuration, a table with a workload for each model, to be edited, and make a first key."""
    from router.state.identity import Identity, identity_path, now

    given = {
        "verifier": {
            "url": verifier.rstrip("/"),
            "ca_file": absolute(ca_file),
            "router_token_file": str(token_file.absolute()),
        },
        "service": {
            "listen": listen,
            "tls_certificate": absolute(tls_certificate),
            "tls_key": absolute(tls_key),
        },
        "store": {"path": "router.db"},
        "gateway": {"open": is_open},
    }
    try:
        config = msgspec.convert(given, RouterConfig)
        table = _first_table(models, model_claims)
    except ValueError as error:
        # msgspec's errors are such ones too.
        raise ConfigError(str(error)) from None
    table_path = path.parent / config.workloads
    for file_path, text in ((path, to_toml(config)), (table_path, table)):
        try:
            with open(file_path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise ConfigError(f"{file_path} exists already") from None
        except OSError as error:
            raise ConfigError(f"{file_path}: {error.strerror}") from None
    identity = identity_path(path, config.gateway.identity_file)
    Identity.load_or_make(identity, now())
    click.echo(f"Made {path}, {table_path} and {identity}.")
    if is_open:
        click.echo("The gateway is open: anyone who reaches it may send work.")
    else:
        _show_first_key(path, config)
    click.echo(f"Next: touchstone router serve --config {path}")


def _first_table(models: tuple[str, ...], model_claims: str) -> str:
    """The table to begin with.  Raises `ValueError`: there is no such claim."""
    from router.model.table import read_table, write_table

    claims = SubmodRequirement(tuple(claim.strip() for claim in model_claims.split(","))).claims
    short = [model.rpartition("/")[2] for model in models]
    names = short if len(set(short)) == len(short) else [f"workload-{n}" for n in range(len(models))]
    table = write_table(dict(zip(names, models, strict=True)), claims)
    read_table(table.encode())
    return table


def _show_first_key(path: Path, config: RouterConfig) -> None:
    try:
        secret = make_key(path, config, {"name": FIRST_KEY, "roles": [Role.ADMINISTRATOR]})
    except KeyStepError:
        click.echo("The store has keys already. See: touchstone router key list")
        return
    click.echo(f"The key {FIRST_KEY} may do everything. It is not shown again:")
    click.echo(f"  {secret}")
    click.echo(f"Make one for each who sends work: touchstone router key create NAME --config {path}")


@router.command()
@_config
@click.option("--config-only", is_flag=True, help="Leave the store out.")
@_errors
def check(path: Path, config_only: bool) -> None:
    """Check the configuration and the table of workloads, as the router would read them, and the store."""
    from router.service.setup import load

    config = read_toml(path, RouterConfig, "touchstone router init")
    given = load(path, config)
    for name, workload in given.table.workloads.items():
        click.echo(f"{name}: {workload.model}, tier {workload.tier}, {', '.join(workload.operations)}")
        for digest in workload.digests:
            click.echo(f"  asks for the revision {digest}")
    click.echo(
        "The configuration can be used. A running router reads the table and its TLS files again on SIGHUP."
    )
    if not config_only:
        maintenance.check_store(config, path.parent)


for _command in (
    maintenance.backup,
    maintenance.restore,
    maintenance.migrate,
    key,
    change,
    ext_proc,
    batches,
):
    router.add_command(_command)


@router.command()
@_config
@click.option("--log-json", is_flag=True, help="Log JSON lines.")
@_errors
def serve(path: Path, log_json: bool) -> None:
    """Run the router.  On SIGHUP it reads its table of workloads and its TLS files again."""
    from router.service.app import make_app, reload_table
    from router.service.garbage import tune_garbage_collector
    from router.service.setup import load
    from verifier.service.serve import run_app

    configure_logging(as_json=log_json)
    config = read_toml(path, RouterConfig, "touchstone router init")
    app = make_app(load(path, config, makes_identity=True))
    app.on_startup.append(tune_garbage_collector)
    scheme = "https" if config.service.speaks_tls else "http"
    run_app(
        app,
        path.parent,
        f"{scheme}://{config.service.listen}",
        "router",
        on_hangup=lambda: reload_table(app),
    )


@router.command()
@click.argument("decision")
@_url
@_key
@_json
@_errors
def explain(decision: str, url: str, key: str | None, as_json: bool) -> None:
    """Explain DECISION: which node was chosen and why, and why the others were not."""
    record = _decision(url, decision, key)
    if as_json:
        _print_json(record)
        return
    for line in explanation(record):
        click.echo(line)


@router.command("replay")
@click.argument("decision")
@click.option(
    "--commitment",
    metavar="ID.HEX",
    help="The commitment that you were given before the request: X-Touchstone-Commitment of an earlier answer.",
)
@click.option(
    "--nonce", metavar="ID.NONCE", help="The nonce that you sent with the request: X-Touchstone-Nonce."
)
@_url
@_key
@_errors
def replay_decision(
    decision: str, commitment: str | None, nonce: str | None, url: str, key: str | None
) -> None:
    """
    Make DECISION again from its record alone, and compare it with what was decided.

    DECISION is an id, or a file with a record as JSON.  If the request brought a nonce, the seed is made again too.
    """
    if Path(decision).is_file():
        try:
            record = msgspec.json.decode(Path(decision).read_bytes(), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise RouterError(f"{decision} is not a record: {error}") from None
    else:
        record = _decision(url, decision, key)
    again = replay(Decision.from_wire(record))
    if again.choice is not None:
        again.choice.check_held(commitment, nonce)
    elif commitment is not None or nonce is not None:
        raise ReplayError("the record has no choice: its router drew the seed alone")
    chosen = "nobody" if again.chosen is None else again.chosen.node
    click.echo(f"The same decision: {chosen}, by seed {again.seed} over snapshot {again.snapshot}.")
    click.echo(_capitalised(describe_seed(record.get("choice"))) + ".")
    for line in describe_required(record.get("required"), again.met):
        click.echo(line.removeprefix("  "))


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


@router.command()
@click.argument("node")
@_url
@_key
@_errors
def standing(node: str, url: str, key: str | None) -> None:
    """Show NODE's standing, the reasons, and what would raise it, as JSON."""
    _print_json(_call(url, f"/api/v1/nodes/{node}/standing", key))


@router.command("traffic-profile")
@_url
@_key
@_errors
def traffic_profile(url: str, key: str | None) -> None:
    """Show what the traffic of each model looks like, without anybody's text: answers are minted by it."""
    _print_json(_call(url, "/api/v1/traffic-profile", key))


@router.command()
@_url
@_key
@_errors
def status(url: str, key: str | None) -> None:
    """Show whether work can be done, why not, and whether anyone may send it, as JSON."""
    _print_json(_call(url, "/api/v1/status", key, silent_is_an_answer=True))


@router.command()
@_url
@_key
@_json
@_errors
def revisions(url: str, key: str | None, as_json: bool) -> None:
    """Show how many nodes have which revision of each workload's model, and which of them may work."""
    found = _call(url, "/api/v1/status", key, silent_is_an_answer=True)
    workloads = found.get("workloads", {})
    if as_json:
        keep = ("model", "revisions")
        _print_json({name: {part: each[part] for part in keep} for name, each in workloads.items()})
        return
    for line in describe_revisions(workloads):
        click.echo(line)


@router.group()
def incidents() -> None:
    """Review holds and incidents."""


@incidents.command("list")
@_url
@_key
@_json
@_errors
def list_incidents(url: str, key: str | None, as_json: bool) -> None:
    """List what waits for a person: the router's holds and the verifier's incidents."""
    page = _call(url, "/api/v1/incidents", key)
    if as_json:
        _print_json(page)
        return
    for each in page["incidents"]:
        who = (
            f"node {each['node']} of {each['operator'] or 'nobody known'}"
            if each["node"]
            else "no node is held"
        )
        click.echo(f"{each['id']}  {each['state']}  {each['kind']}  (by the {each['held_by']})")
        click.echo(f"    {who}; review is due {_in_words(each['review_due_in_s'])}")
        click.echo(f"    {each['code']}: {_plain(each['detail'])}")
    if not page["incidents"]:
        click.echo("Nothing waits for review.")
    if page["verifier_error"]:
        raise RouterError(f"the verifier's incidents are not shown: {page['verifier_error']}")


@incidents.command("show")
@click.argument("incident")
@_url
@_key
@_errors
def show_incident(incident: str, url: str, key: str | None) -> None:
    """Show INCIDENT with its evidence, its history and what was measured of the node, as JSON."""
    _print_json(_call(url, f"/api/v1/incidents/{incident}", key))


@incidents.command("release")
@click.argument("incident")
@click.option("--reason", required=True, help="Why; kept with the incident.")
@click.option(
    "--fault",
    type=click.Choice(("node", "ours", "unclear")),
    help="Whose fault it was: later reviews of the same kind go by it.",
)
@_url
@_key
@_errors
def release_incident(incident: str, reason: str, fault: str | None, url: str, key: str | None) -> None:
    """Release the node of INCIDENT to probation.  The API key says who decides."""
    body = {"reason": reason, **({} if fault is None else {"fault": fault})}
    answer = _call(url, f"/api/v1/incidents/{incident}/release", key, body)
    if answer.get("awaiting_second"):
        click.echo(f"{incident}: the release is proposed; a second person must release it too.")
    else:
        click.echo(f"{incident} is {answer['state']}.")


def _decision(url: str, decision: str, key: str | None) -> dict[str, Any]:
    record = _call(url, f"/api/v1/decisions/{decision}", key)
    if record.get("id") != decision:
        raise RouterError(f"the answer from {url} is not that of a router")
    return record


def _in_words(seconds: int) -> str:
    return f"within {seconds // 3600} h" if seconds >= 0 else f"{-seconds // 3600} h ago"
