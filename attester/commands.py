"""The commands `touchstone attester …`, for the operator of a node."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from attester import cose
from attester.claims_command import claims
from attester.cli import absolute, attester_home, configure_logging, plain_errors, progress
from attester.config import ADAPTERS, AttesterConfig, EngineSection, Enrolment, Home
from attester.errors import AttesterError, ConfigError, VerifierError
from attester.front.command import front

if TYPE_CHECKING:
    from attester.client import VerifierClient
    from attester.selftest import Check

T = TypeVar("T")

_errors = plain_errors(AttesterError, UnicodeEncodeError)
_home = attester_home
_MARKS = {True: ("ok  ", "green"), False: ("FAIL", "red"), None: ("warn", "yellow")}
_ALGS = {"ES256": cose.ES256, "Ed25519": cose.ED25519}


@click.group()
def attester() -> None:
    """Make evidence on a node."""


@attester.command()
@_home
@click.option("--verifier", required=True, help="The verifier's base URL.")
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path),
    help="The authority of the verifier's certificate, PEM, if the system does not know it.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    metavar="NAME=DIR",
    help="A model and its folder; repeatable.",
)
@click.option("--serve", required=True, help="The https URL where routers reach the engine.")
@click.option("--engine", default=EngineSection().url, show_default=True, help="The engine's loopback URL.")
@click.option(
    "--adapter",
    default="loopback",
    show_default=True,
    type=click.Choice(ADAPTERS),
    help="How the attester talks to the engine.",
)
@click.option(
    "--hardware-class",
    default="cpu",
    show_default=True,
    help="The node's hardware class, as the verifier's policy names it.",
)
@click.option(
    "--alg",
    default="ES256",
    show_default=True,
    type=click.Choice(list(_ALGS)),
    help="The node key's algorithm.",
)
@_errors
def init(
    home_path: Path, verifier: str, ca_file: Path | None, models: tuple[str, ...], serve: str, engine: str,
    adapter: str, hardware_class: str, alg: str,
) -> None:  # fmt: skip
    """Make a home folder: keys, the engine's secret and the configuration."""
    folders = {}
    for entry in models:
        name, separator, folder = entry.partition("=")
        if not separator:
            raise click.UsageError(f"--model {entry} must have the form NAME=DIR")
        if name in folders:
            raise click.UsageError(f"--model {name} is given twice")
        folders[name] = {"dir": str(Path(folder).absolute())}
    try:
        config = msgspec.convert(
            {
                "verifier": {
                    "url": verifier.rstrip("/"),
                    "ca_file": absolute(ca_file),
                },
                "models": folders,
                "serve": {"url": serve.rstrip("/")},
                "engine": {"adapter": adapter, "url": engine.rstrip("/")},
                "capabilities": {"hardware_class": hardware_class},
            },
            AttesterConfig,
        )
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
    Home(home_path).create(config, alg=_ALGS[alg])
    click.echo(f"Made {home_path}. Next:")
    secret = f", and give it {home_path}/engine.secret" if adapter == "loopback" else ""
    for number, step in enumerate(
        (
            f"let the engine serve plain HTTP on {config.engine.url}{secret}",
            f"touchstone attester front --home {home_path}      (keeps running: TLS for routers, and for nobody else)",
            f"touchstone attester check --home {home_path}",
            f"touchstone attester enrol --home {home_path} --token TOKEN",
            f"touchstone attester run --home {home_path}        (keeps running)",
        ),
        start=1,
    ):
        click.echo(f"  {number}. {step}")


@attester.command()
@_home
@click.option("--token", required=True, help="The one-time token from the verifier's operator.")
@_errors
def enrol(home_path: Path, token: str) -> None:
    """Enrol the node's key with the verifier."""
    home = Home(home_path)
    config = home.config()
    home.check_writable()

    async def work(client: VerifierClient) -> Enrolment:
        # Check the name before the token is used up.
        issuer = (await client.discover()).get("issuer")
        if issuer != config.verifier.url:
            raise ConfigError(
                f"the verifier calls itself {issuer}, but the configuration has {config.verifier.url}. "
                "Set the verifier's own name in attester.toml"
            )
        answer = await client.enrol(token, list(config.models))
        try:
            return msgspec.convert(answer, Enrolment)
        except msgspec.ValidationError as error:
            raise ConfigError(f"the verifier's answer to the enrolment is malformed: {error}") from None

    enrolment = _with_client(home, config, work)
    home.save_enrolment(enrolment)
    click.echo(f"Enrolled as node {enrolment.node} of {enrolment.operator}.")


@attester.command()
@_home
@_errors
def check(home_path: Path) -> None:
    """Check keys, engine, verifier, clock and folders, and answer a practice challenge."""
    from attester.running import opened
    from attester.selftest import run_checks

    home = Home(home_path)
    config = home.config()

    async def work() -> list[Check]:
        async with opened(home, config) as (client, collector, _):
            return await run_checks(home, config, client, collector, time.time)

    failed = 0
    for passed, what, detail in asyncio.run(work()):
        mark, colour = _MARKS[passed]
        click.echo(f"{click.style(mark, fg=colour)}  {what}: {detail}")
        failed += passed is False
    if failed:
        raise click.ClickException(f"{failed} of the checks failed")


@attester.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--model", default=None, help="The model, if the node has several.")
@_home
@_errors
def revision(folder: Path | None, model: str | None, home_path: Path) -> None:
    """Show which revision FOLDER is, by the verifier's word, without claiming it; the configured folder if not given."""
    from attester.revisions import describe
    from attester.running import opened

    home = Home(home_path)
    config = home.config()
    home.enrolment()
    if model is None and len(config.models) > 1:
        raise ConfigError(f"the node has several models; choose one with --model: {', '.join(config.models)}")
    name = model or next(iter(config.models))
    if name not in config.models:
        raise ConfigError(f"there is no model {name} in attester.toml; there is {', '.join(config.models)}")

    async def work() -> tuple[bool, str]:
        async with opened(home, config) as (client, collector, _):
            revisions = await client.revisions(name)
            if revisions is None:
                raise ConfigError(f"the verifier takes no revision of {name}, or is of an earlier version")
            found = await collector.recognise(name, revisions, folder)
            return found.revision is not None, describe(found)

    is_known, said = asyncio.run(work())
    click.echo(f"{folder or config.models[name].dir}: {said}")
    if claimed := home.revisions().get(name):
        click.echo(f"The node has claimed {claimed}.")
    if not is_known:
        raise click.ClickException("a running attester does not claim this folder")


@attester.command()
@_home
@click.option("--log-json", is_flag=True, help="Log JSON lines.")
@_errors
def run(home_path: Path, log_json: bool) -> None:
    """
    Attest until stopped: keep the call channel open and answer each call at once.

    On SIGHUP it reads its home anew.
    """
    # Until the agent has its own answer to it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    configure_logging(as_json=log_json)
    from attester.running import Runner

    asyncio.run(Runner(Home(home_path)).run())


attester.add_command(front)
attester.add_command(claims)


@attester.command()
@_home
@click.option("--json", "as_json", is_flag=True, help="Print the result's claims as JSON.")
@_errors
def once(home_path: Path, as_json: bool) -> None:
    """Attest once, without a call from the verifier, and show the result."""
    from attester.agent import decode_unverified, read_reasons
    from attester.running import agent_of

    async def work() -> str:
        async with agent_of(Home(home_path)) as agent:
            return await agent.once()

    claims = decode_unverified(asyncio.run(work()))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(claims), indent=2).decode())
        return
    click.echo(f"status: {claims.get('ear_status')}")
    for code, detail in read_reasons(claims):
        click.echo(f"  {code}  {detail}")


@attester.command()
@click.option(
    "--device", default=None, help="cpu, or torch's name of a GPU.  [default: the first GPU, else cpu]"
)
@click.option(
    "--number",
    default=0,
    show_default=True,
    type=click.IntRange(0, 99),
    help="The device's number in evidence: N of the submodule gpu/N.",
)
@click.option(
    "--model", "folder", type=click.Path(path_type=Path), help="Imitate this model's decoding steps."
)
@click.option(
    "--repeats",
    default=20,
    show_default=True,
    type=click.IntRange(2, 10_000),
    help="How often each measure is taken.",
)
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path), help="Draw the run as SVG into this file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the run as JSON.")
@click.option(
    "--home",
    "home_path",
    type=click.Path(path_type=Path),
    default=None,
    envvar="TOUCHSTONE_ATTESTER_HOME",
    help="Save the run in this attester's home; the node's evidence then includes it.",
)
@_errors
def benchmark(
    device: str | None, number: int, folder: Path | None, repeats: int, picture: Path | None,
    as_json: bool, home_path: Path | None,
) -> None:  # fmt: skip
    """Measure a device: matrix products, memory, host link, decoding steps."""
    from attester.gpu import benchmark as benchmarks
    from attester.weights.select import best_device

    if home_path is not None:
        Home(home_path).config()
    shape = None
    if folder is not None:
        from attester.weights.folder import open_folder
        from attester.weights.tensors import TensorFiles

        infos = TensorFiles(open_folder(folder)).infos
        shape = benchmarks.shape_of([(info.name, info.shape) for info in infos])
    found = benchmarks.run(
        device or best_device(),
        shape=shape,
        repeats=repeats,
        report=None if as_json else lambda m: click.echo(f"  {m.name:<16} {benchmarks.format_measure(m)}"),
    )
    if picture is not None:
        try:
            picture.write_text(benchmarks.plot(found), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{picture} cannot be written: {error.strerror}") from None
    if home_path is not None:
        saved = Home(home_path).save_benchmark(number, found)
        click.echo(f"Saved {saved}. The evidence includes it from now on.", err=as_json)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())


@attester.command()
@_home
@_errors
def show(home_path: Path) -> None:
    """Print the claims that evidence would carry now, without sending anything."""
    from attester.kinds import read_submod
    from attester.running import opened

    home = Home(home_path)
    config = home.config()

    async def work() -> dict[str, Any]:
        async with opened(home, config) as (_, collector, _):
            return await collector.submods(bytes(32), {})

    found = {
        name: {
            claim: msgspec.to_builtins(value, builtin_types=(bytes,))
            for claim, value in read_submod(name, raw).items()
        }
        for name, raw in asyncio.run(work()).items()
    }
    text = msgspec.json.encode(_hex(found))
    click.echo(msgspec.json.format(text, indent=2).decode())


@attester.command()
@_home
@_errors
def roll(home_path: Path) -> None:
    """Replace the node's key; the old key signs the request."""
    from attester.identity import create_key, load_key
    from attester.live_keys import NEW_KEY

    home = Home(home_path)
    enrolment = home.enrolment()
    new_path = home_path / NEW_KEY
    # Saved before the verifier learns of it: after a crash, one of the two files holds the node's key.
    new = load_key(new_path) if new_path.exists() else create_key(new_path, home.node_key().public.alg)

    async def work(client: VerifierClient) -> None:
        try:
            await client.roll(enrolment.node, new)
        except VerifierError as error:
            # The key is unknown: an earlier attempt may have succeeded before a crash.
            if error.code != "request.unauthorised":
                raise
            await client.with_key(new).open_session()

    _with_client(home, home.config(), work)
    new_path.replace(home_path / "node.key")
    click.echo("The node has a new key. A running `touchstone attester run` takes it up by itself.")


@attester.command()
@click.option("--model", "folder", required=True, type=click.Path(path_type=Path), help="The model's folder.")
@click.option("--seed", required=True, help="The challenge's seed: 32 bytes in hex.")
@click.option(
    "--windows", default=None, type=click.IntRange(1, 65536), help="Answer a read with this many windows."
)
@click.option("--rows", default=None, help="Answer these rows of a walk, e.g. 0,5,17.")
@click.option(
    "--passes", default=1, show_default=True, type=click.IntRange(1, 64), help="Passes of the walk."
)
@click.option(
    "--backend",
    default=None,
    type=click.Choice(["numpy", "torch"]),
    help="The kernel's library.  [default: the fastest]",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Hide the progress bars.  The output is JSON in any case."
)
@_errors
def answer(
    folder: Path, seed: str, windows: int | None, rows: str | None, passes: int, backend: Any, as_json: bool
) -> None:
    """Answer a challenge from a folder, to compare with another implementation."""
    from attester.weights import possession
    from attester.weights.folder import open_folder
    from attester.weights.kernels import row_words
    from attester.weights.manifest import measure
    from attester.weights.select import kernel
    from attester.weights.tensors import TensorFiles

    try:
        seed_bytes = bytes.fromhex(seed)
        wanted = [] if rows is None else [int(row) for row in rows.split(",")]
    except ValueError:
        raise click.UsageError("--seed must be hex, and --rows must be numbers separated by commas") from None
    if len(seed_bytes) != possession.SEED_BYTES or any(not 0 <= row < 1 << 32 for row in wanted):
        raise click.UsageError("--seed must have 32 bytes, and each row must be a 32-bit number")
    opened = open_folder(folder)
    with progress("hashing", opened.total, quiet=as_json) as step:
        manifest = measure(opened, progress=step).to_claim()
    found: dict[str, Any] = {"manifest": _hex(msgspec.to_builtins(manifest, builtin_types=(bytes,)))}
    if windows is not None:
        found["read"] = possession.read(opened, seed_bytes, windows).hex()
    if wanted:
        tensors = TensorFiles(opened)
        words = [row_words(seed_bytes, row) for row in wanted]
        with progress("walking", tensors.total * passes, quiet=as_json) as step:
            answers = possession.walk(tensors, words, passes, kernel(backend), step)
        found["walk"] = {str(row): a.hex() for row, a in zip(wanted, answers, strict=True)}
    click.echo(msgspec.json.encode(found).decode())


def _hex(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {k: _hex(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hex(v) for v in value]
    return value


def _with_client(home: Home, config: AttesterConfig, work: Callable[[VerifierClient], Awaitable[T]]) -> T:
    from attester.running import opened

    async def run() -> T:
        async with opened(home, config) as (client, _, _):
            return await work(client)

    return asyncio.run(run())
