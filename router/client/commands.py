"""`touchstone client …`: agree to keys, serve verified answers on loopback, check receipts."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

import click
from msgspec import structs

from attester.cli import configure_logging, plain_errors
from attester.errors import ConfigError
from router.client.config import ClientConfig
from router.client.errors import ClientError, Step, UnverifiedError
from router.client.offline import Outcome
from router.client.trust import Required, Trust, load_trust, write_trust
from router.model.workload import ASSURANCES, MODEL_CLAIMS

_errors = plain_errors(ConfigError, ClientError)
_ca_file = click.option(
    "--ca-file",
    type=click.Path(path_type=Path),
    help="Whose certificates are believed over https, PEM; those of the system if it is left out.",
)
_trust = click.option(
    "--trust",
    "trust_path",
    type=click.Path(path_type=Path),
    default=Path("trust.json"),
    show_default=True,
    help="The trust file: touchstone client trust makes one.",
)
_key_file = click.option(
    "--key-file", type=click.Path(path_type=Path), help="The file with an API key of the router."
)
_WIDTH: Final = 9


@click.group()
def client() -> None:
    """Use answers only after they have been verified."""


@client.command()
@click.argument("router_url")
@click.option("--verifier", required=True, help="The verifier's base URL.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The trust file to write.")
@click.option("--router-name", help="The name that its receipts must have.")
@click.option(
    "--log-policy",
    type=click.Path(path_type=Path),
    help="A policy (c2sp.org/tlog-policy) with the witnesses that you ask for. Without it the verifier's own log "
    "is taken, and no witness is asked for.",
)
@click.option(
    "--no-log", is_flag=True, help="Ask for no log. Then a router may give each caller another story."
)
@click.option(
    "--model-claims",
    default=",".join(MODEL_CLAIMS),
    show_default=True,
    metavar="CLAIM,CLAIM",
    help="The trust claims about a model that must be affirming. A node whose engine shows no loaded weights "
    "(llama.cpp, files) earns file-system alone.",
)
@click.option(
    "--assurance",
    default="challenged",
    show_default=True,
    type=click.Choice(ASSURANCES),
    help="The least assurance of the model.",
)
@click.option("--max-walk-age", type=int, help="Seconds that the last right walk may be ago.")
@click.option(
    "--expect",
    "expected",
    multiple=True,
    help="A key as it is shown; repeatable. If these are all of them, nothing is asked.",
)
@_ca_file
@_errors
def trust(
    router_url: str,
    verifier: str,
    out: Path,
    router_name: str | None,
    log_policy: Path | None,
    model_claims: str,
    assurance: str,
    max_walk_age: int | None,
    expected: tuple[str, ...],
    ca_file: Path | None,
    *,
    no_log: bool,
) -> None:
    """Fetch the keys of the router at ROUTER_URL and of its verifier, show them, and write a trust file."""
    from router.client import trusting

    if out.exists():
        raise ConfigError(
            f"{out} exists already: move it away, and keep it until you know why keys have changed"
        )
    policy = None if log_policy is None else trusting.as_policy(_text(log_policy))
    file = asyncio.run(
        trusting.fetch_trust(
            router_url, verifier, ca_file=ca_file, router_name=router_name, log_policy=policy
        )
    )
    if no_log:
        file = structs.replace(file, log=None)
    claims = tuple(claim.strip() for claim in model_claims.split(","))
    try:
        required = Required(
            model_claims=claims,
            assurance=assurance,
            max_walk_age_s=max_walk_age,
            log="never" if file.log is None else "later",
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    file = structs.replace(file, require=required)
    Trust(file)
    for line in trusting.describe(file):
        click.echo(line)
    if expected:
        _compare(set(expected), trusting.kids_of(file))
    else:
        click.echo(
            "These keys came over the connections that they are to vouch for: this is trust on first use.\n"
            "Compare them with what the operators show you by another way."
        )
        click.confirm("Are they the right ones?", abort=True)
    _write_new(out, write_trust(file))
    click.echo(f"Made {out}.")


def _compare(expected: set[str], found: set[str]) -> None:
    if strange := sorted(found - expected):
        raise ConfigError(f"a key is not among those that you expect: {strange[0]}")
    if lacking := sorted(expected - found):
        raise ConfigError(f"a key that you expect is not there: {lacking[0][:200]}")


@client.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="A configuration, client.toml. The options below come before what it says.",
)
@click.option(
    "--trust", "trust_path", type=click.Path(path_type=Path), help="The trust file. [default: trust.json]"
)
@click.option("--listen", help="HOST:PORT to listen on. [default: 127.0.0.1:4180]")
@_key_file
@_ca_file
@click.option("--folder", type=click.Path(path_type=Path), help="Where receipts are kept.")
@click.option(
    "--pass-streams",
    is_flag=True,
    help="Hand the parts of a stream on as they come, unverified, and hold back its end until all is verified.",
)
@click.option("--log-json", is_flag=True, help="Log JSON lines.")
@_errors
def serve(
    config_path: Path | None,
    trust_path: Path | None,
    listen: str | None,
    key_file: Path | None,
    ca_file: Path | None,
    folder: Path | None,
    *,
    pass_streams: bool,
    log_json: bool,
) -> None:
    """Serve the router's API to programs of this machine, and hand on verified answers alone."""
    from router.client.serving import read_config, run

    configure_logging(as_json=log_json)
    given = {
        "trust": trust_path,
        "listen": listen,
        "key_file": key_file,
        "ca_file": ca_file,
        "folder": folder,
        "pass_streams": pass_streams or None,
    }
    told = {
        name: str(value.absolute()) if isinstance(value, Path) else value
        for name, value in given.items()
        if value is not None
    }
    config: ClientConfig = read_config(config_path, told)
    base = Path() if config_path is None else config_path.parent
    asyncio.run(run(config, base))


@client.command()
@click.argument("receipts", nargs=-1, required=True)
@_trust
@click.option(
    "--request", "request_path", type=click.Path(path_type=Path), help="The request's body, as sent."
)
@click.option(
    "--response", "response_path", type=click.Path(path_type=Path), help="The answer's body, as received."
)
@click.option("--salt", default="", help="The value of X-Touchstone-Salt. A kept file has it.")
@_key_file
@_ca_file
@_errors
def check(
    receipts: tuple[str, ...],
    trust_path: Path,
    request_path: Path | None,
    response_path: Path | None,
    salt: str,
    key_file: Path | None,
    ca_file: Path | None,
) -> None:
    """
    Check RECEIPTS: files that were kept, a folder of them, or ids, which are fetched from the router.

    Files are checked without a network.
    """
    from router.client import reading

    trust = load_trust(trust_path)
    bodies = (_bytes(request_path), _bytes(response_path))
    sources = reading.gather(receipts, trust, _key(key_file), ca_file)
    if len(sources) > 1 and any(each is not None for each in bodies):
        raise ConfigError("--request and --response are of one receipt")
    chain, wrong = reading.Links(), 0
    for name, material in sources:
        try:
            outcome = reading.check_one(material, trust, salt, *bodies)
            chain.add(outcome)
        except UnverifiedError as error:
            wrong += 1
            click.echo(f"{name}: WRONG\n  {error.step:<{_WIDTH}} {error.reason}")
        else:
            _show(name, outcome)
    for line in chain.gaps():
        click.echo(line)
    if wrong:
        raise ConfigError(f"{wrong} of {len(sources)} receipts do not verify")


def _show(name: str, outcome: Outcome) -> None:
    state = "not everything was checked" if outcome.missing else "right"
    click.echo(f"{name}: {state}")
    for step in Step:
        if step in outcome.checked.steps:
            click.echo(f"  {step:<{_WIDTH}} {outcome.checked.steps[step]}")
        elif step in outcome.missing:
            click.echo(f"  {step:<{_WIDTH}} (not checked: {outcome.missing[step]})")


@client.command()
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The file to write, such as receipt.html."
)
@_errors
def page(out: Path) -> None:
    """Write the page that checks a receipt in a browser, without a network."""
    from router.client.page import read_page

    _write_new(out, read_page())
    click.echo(f"Made {out}. Open it in a browser.")


def _write_new(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise ConfigError(f"{path} exists already") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _bytes(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _text(path: Path) -> str:
    return (_bytes(path) or b"").decode("utf-8", "replace")


def _key(path: Path | None) -> str | None:
    from router.client.serving import read_key

    return os.environ.get("TOUCHSTONE_API_KEY") if path is None else read_key(path)
