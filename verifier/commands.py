"""`touchstone verifier …`, `touchstone reference …`, `touchstone challenges …`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attester.cli import configure_logging, plain_errors, progress
from attester.errors import AttesterError, ConfigError
from attester.weights.cache import DigestCache
from attester.weights.folder import IGNORED_AT_TOP, open_folder
from attester.weights.hashing import ALGORITHMS, check_algorithms
from attester.weights.kernels import best_device, kernel
from attester.weights.tensors import TensorFiles
from verifier.config import Home, ServiceConfig, VerifierConfig
from verifier.errors import ReferenceValueError, VerifierError
from verifier.policy import bundle
from verifier.references import measured, oms, published
from verifier.references.challenges import WIDE_ROWS, Minter, ReadParameters, WalkParameters
from verifier.references.measured import Document
from verifier.references.minting import Goal, fill, goal_left, take_up
from verifier.schemes.base import shown
from verifier.service.incidents import to_wire
from verifier.store import incidents as stored_incidents
from verifier.store import nodes as stored_nodes
from verifier.store import pool
from verifier.store.database import Database, Tx
from verifier.store.nodes import Grant
from verifier.store.sqlite import SqliteDatabase

T = TypeVar("T")
_MAX_PEM = 1 << 20

_errors = plain_errors(VerifierError, AttesterError, msgspec.ValidationError, UnicodeEncodeError)
_home = click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=Path("touchstone-verifier"),
    envvar="TOUCHSTONE_VERIFIER_HOME",
    show_default=True,
    show_envvar=True,
    help="The verifier's home folder.",
)
_device = click.option(
    "--device",
    default=None,
    help="cpu, or torch's name of a GPU, such as cuda:0; the first GPU if there is one.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _with_database(home: Path, work: Callable[[Database], Awaitable[T]]) -> T:
    async def run() -> T:
        Home(home).config()
        async with SqliteDatabase(Home(home).database) as db:
            return await work(db)

    return asyncio.run(run())


def _in_transaction(home: Path, work: Callable[[Tx], Awaitable[T]]) -> T:
    async def run(db: Database) -> T:
        async with db.write() as tx:
            return await work(tx)

    return _with_database(home, run)


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, not markup: what nodes say is shown, never interpreted.
        table.add_row(*(Text(shown(str(cell))) for cell in row))
    Console().print(table)


@click.group()
def verifier() -> None:
    """Appraise evidence and sign results."""


@verifier.command()
@_home
@click.option("--listen", default=ServiceConfig().listen, show_default=True, help="HOST:PORT to listen on.")
@click.option("--url", default=None, help="The base URL everyone uses; http://LISTEN if not given.")
@_errors
def init(home: Path, listen: str, url: str | None) -> None:
    """Make a home: keys, tokens, configuration and a copy of the default policy."""
    service = {"listen": listen, "url": url or f"http://{listen}"}
    config = msgspec.convert({"service": service}, VerifierConfig)
    Home(home).create(config)
    click.echo(f"Made {home}. Next:")
    click.echo(f"  1. approve your engines in {home}/policy/data.json")
    click.echo(f"  2. touchstone reference measure DIR --model NAME --home {home}")
    click.echo(
        f"  3. touchstone challenges mint --model NAME --dir DIR --reads 1000 --walks 250 --home {home}"
    )
    click.echo(f"  4. touchstone verifier serve --home {home}")


@verifier.command()
@_home
@click.option("--log-json", is_flag=True, help="Log JSON lines.")
@_errors
def serve(home: Path, log_json: bool) -> None:
    """Run the verifier."""
    from verifier.service.serve import run

    configure_logging(as_json=log_json)
    run(Home(home))


@verifier.command()
@_home
@click.option("--operator", required=True, help="Whose node it will be.")
@click.option(
    "--model", "models", multiple=True, required=True, help="A model it may enrol with; repeatable."
)
@click.option(
    "--hardware-class",
    default="cpu",
    show_default=True,
    help="What the node is, as the policy names it: its walks are timed against it.",
)
@click.option("--for-node", default=None, help="Only to give this node a new key, after it lost its old one.")
@click.option(
    "--hours", default=24, show_default=True, type=click.IntRange(1, 24 * 90), help="How long it is good for."
)
@_errors
def token(
    home: Path, operator: str, models: tuple[str, ...], hardware_class: str, for_node: str | None, hours: int
) -> None:
    """Print a one-time enrolment token."""
    thresholds = bundle.load(home / Home(home).config().policy.folder).thresholds
    if hardware_class not in thresholds.classes:
        raise ConfigError(
            f"the policy knows no class {hardware_class!r}; it has {', '.join(sorted(thresholds.classes))}"
        )
    grant = Grant(operator, models, hardware_class, for_node)
    click.echo(
        _in_transaction(home, lambda tx: stored_nodes.issue_token(tx, grant, _now_ms(), hours * 3600_000))
    )


@verifier.group()
def nodes() -> None:
    """Look at nodes, retire them."""


@nodes.command("list")
@_home
@_json
@_errors
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

    rows = _in_transaction(home, work)
    columns = ("node", "operator", "models", "state")
    if as_json:
        click.echo(msgspec.json.encode([dict(zip(columns, row, strict=True)) for row in rows]).decode())
    else:
        _table("", columns, rows)


@nodes.command("retire")
@click.argument("node")
@_home
@_errors
def retire_node(node: str, home: Path) -> None:
    """Retire NODE: its results are revoked, and nothing it says counts any more."""
    _in_transaction(home, lambda tx: stored_nodes.retire(tx, node, _now_ms()))
    click.echo(f"Retired {node}.")


@verifier.group()
def incidents() -> None:
    """Review incidents, release nodes or retire them."""


@incidents.command("list")
@_home
@_json
@click.option("--all", "everything", is_flag=True, help="Also those that hold nobody.")
@_errors
def list_incidents(home: Path, as_json: bool, everything: bool) -> None:
    """List open incidents."""

    async def work(tx: Tx) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after = ""
        while rows := await stored_incidents.page(tx, open_only=not everything, after=after, limit=500):
            found += [to_wire(row, _now_ms()) for row in rows]
            after = rows[-1]["id"]
        return found

    rows = _in_transaction(home, work)
    if as_json:
        click.echo(msgspec.json.encode(rows).decode())
        return
    for row in rows:
        who = f"node {row['node']} of {row['operator']}" if row["node"] else "no node is held"
        left = row["review_due_in_s"] // 3600
        click.echo(f"{row['id']}  {row['state']}  {row['severity']}  {row['kind']}")
        click.echo(f"    {who}; {row['count']} times; review due in {left} h")
        click.echo(f"    {row['code']}: {shown(row['detail'])}")
    if not rows:
        click.echo("No incidents." if everything else "No open incidents.")


@incidents.command("show")
@click.argument("incident")
@_home
@_errors
def show_incident(incident: str, home: Path) -> None:
    """Show an incident with its history, as JSON."""

    async def work(tx: Tx) -> dict[str, Any]:
        row = await stored_incidents.get(tx, incident)
        causes = await stored_incidents.causes(tx, incident)
        history = await stored_incidents.steps(tx, incident)
        return {**to_wire(row, _now_ms()), "causes": causes, "history": history}

    click.echo(msgspec.json.format(msgspec.json.encode(_in_transaction(home, work)), indent=2).decode())


@incidents.command("step")
@click.argument("incident")
@click.argument("name", type=click.Choice(["quarantine", "review", "release", "retire"]))
@click.option("--reason", required=True, help="Why; kept with the incident.")
@click.option("--actor", required=True, help="Who decides; kept with the incident.")
@_home
@_errors
def step_incident(incident: str, name: str, reason: str, actor: str, home: Path) -> None:
    """Take INCIDENT under review, release its node to probation, or retire the node."""
    row = _in_transaction(
        home, lambda tx: stored_incidents.take_step(tx, incident, name, actor, reason, _now_ms())
    )
    click.echo(f"{incident} is {row['state']}.")


@incidents.command("release-cause")
@click.argument("cause")
@click.option("--reason", required=True, help="Why; kept with each incident.")
@click.option("--actor", required=True, help="Who decides; kept with each incident.")
@_home
@_errors
def release_cause(cause: str, reason: str, actor: str, home: Path) -> None:
    """Release in bulk everything that rests on CAUSE (a bad reference, a bad batch)."""
    count = _in_transaction(
        home, lambda tx: stored_incidents.release_cause(tx, cause, actor, reason, _now_ms())
    )
    click.echo(f"Released {count}.")


@click.group()
def reference() -> None:
    """Measure and publish reference values."""


@reference.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model's name, as nodes enrol with it.")
@click.option(
    "--digest", default="sha256,blake3", show_default=True, help="Digests of files, with commas between."
)
@click.option("--no-cache", is_flag=True, help="Read every file, also those that have not changed.")
@_device
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=None,
    envvar="TOUCHSTONE_VERIFIER_HOME",
    help="Make it the reference value of this verifier.",
)
@_json
@_errors
def measure(
    folder: Path,
    model: str,
    digest: str,
    no_cache: bool,
    device: str | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Measure a FOLDER of weights: files, tensors, and a practice challenge."""
    opened = open_folder(folder)
    algorithms = check_algorithms(digest.split(","))
    with (
        _cache(home, no_cache=no_cache) as cache,
        progress("measuring", measured.work_of(opened), quiet=as_json) as step,
    ):
        document = measured.measure_folder(
            model, opened, step, algorithms=algorithms, cache=cache, device=device or best_device()
        )
    _publish(document, home, as_json=as_json)


@reference.command("import-oms")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model's name, as nodes enrol with it.")
@click.option("--public-key", type=click.Path(path_type=Path), help="PEM: the publisher's key.")
@click.option(
    "--root", "roots", multiple=True, type=click.Path(path_type=Path), help="PEM: an authority; repeatable."
)
@click.option("--signer", default=None, help="With --root: the subject that must have signed, as CN=…")
@click.option("--at", default=None, help="Evaluate the certificates at this moment (RFC 3339), not now.")
@click.option("--trusted-root", type=click.Path(path_type=Path), help="Sigstore's trusted_root.json.")
@click.option("--identity", default=None, help="Who must have signed a keyless bundle.")
@click.option("--issuer", default=None, help="Who must have vouched for the identity.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="The weights: measured, and held to the bundle."
)
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=None,
    envvar="TOUCHSTONE_VERIFIER_HOME",
    help="Make it the reference value of this verifier.",
)
@_json
@_errors
def import_oms(
    bundle: Path, model: str, public_key: Path | None, roots: tuple[Path, ...], signer: str | None, at: str | None,
    trusted_root: Path | None, identity: str | None, issuer: str | None, folder: Path | None,
    home: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Make a publisher's OpenSSF Model Signing BUNDLE a reference value."""
    given = [public_key is not None, bool(roots), trusted_root is not None or identity is not None]
    if sum(given) != 1 or ((at or signer) is not None and not roots):
        raise click.UsageError(
            "say whom to trust, in one way: --public-key, --root (with --at), or --trusted-root with "
            "--identity and --issuer"
        )
    read = oms.read_bundle(_read(bundle, oms.MAX_BUNDLE))
    if public_key is not None:
        statement = oms.verify_with_key(read, _read(public_key, _MAX_PEM))
    elif roots:
        statement = oms.verify_with_certificates(
            read, [_read(path, _MAX_PEM) for path in roots], _moment(at), signer
        )
    elif trusted_root is not None and identity is not None and issuer is not None:
        statement = oms.verify_keyless(read, trusted_root, identity, issuer)
    else:
        raise click.UsageError("a keyless bundle needs --trusted-root, --identity and --issuer together")
    if folder is None:
        document = published.without_weights(model, statement)
    else:
        opened = open_folder(folder, statement.ignore_paths)
        with progress("measuring", measured.work_of(opened), quiet=as_json) as step:
            document = published.with_weights(model, statement, opened, step)
    _publish(document, home, as_json=as_json)


@reference.command("export-oms")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--private-key",
    required=True,
    type=click.Path(path_type=Path),
    help="PEM: a key on P-256, P-384 or P-521.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where the bundle is written.")
@click.option(
    "--digest", default="sha256", show_default=True, type=click.Choice(ALGORITHMS), help="Of the files."
)
@click.option("--model", default=None, help="The name in the statement; the folder's if not given.")
@_errors
def export_oms(folder: Path, private_key: Path, out: Path, digest: str, model: str | None) -> None:
    """Sign a FOLDER of weights as OpenSSF Model Signing has it."""
    try:
        key = serialization.load_pem_private_key(_read(private_key, _MAX_PEM), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ReferenceValueError(f"{private_key} is not an unencrypted private key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ReferenceValueError("the key is not on P-256, P-384 or P-521")
    real = folder.resolve()
    inside = out.resolve().relative_to(real).as_posix() if out.resolve().is_relative_to(real) else None
    opened = open_folder(folder, () if inside is None else (inside,))
    ignored = [name for name in sorted(IGNORED_AT_TOP) if (real / name).exists()]
    with progress("hashing", opened.total) as step:
        files = measured.files_of(opened, (digest,), step)
    links = any(Path(file.path).is_symlink() for file in opened.files)
    listed = [(file.name, bytes.fromhex(getattr(file, digest))) for file in files]
    ignored += [] if inside is None else [inside]
    try:
        out.write_bytes(oms.sign(model or real.name, listed, digest, key, ignored, links=links))
    except OSError as error:
        raise ReferenceValueError(f"{out} cannot be written: {error.strerror}") from None
    click.echo(f"Signed {len(listed)} files by {digest}: {out}")


def _read(path: Path, limit: int) -> bytes:
    """A file of at most *limit* bytes."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise ReferenceValueError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise ReferenceValueError(f"{path} has more than {limit} bytes")
    return data


def _moment(text: str | None) -> datetime:
    try:
        moment = datetime.now(UTC) if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"--at {text}: not a moment as RFC 3339 has it") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _publish(document: Document, home: Path | None, *, as_json: bool) -> None:
    """Make a document the reference value where a verifier was named, and show it."""
    text = msgspec.json.encode(document).decode()
    if home is not None:
        _in_transaction(
            home, lambda tx: pool.set_reference(tx, document.model, document.digest, text, _now_ms())
        )
    if as_json:
        click.echo(text)
        return
    size = sum(file.size or 0 for file in document.files)
    tensors = f"{len(document.tensors)} tensors" if document.tensors else "no tensors, so no walks"
    click.echo(f"{document.model}: {len(document.files)} files, {size:,} bytes, {tensors}")
    if document.publisher is not None:
        click.echo(f"signed ({document.publisher.method}): {shown(document.publisher.signer)}")
    click.echo(f"reference value {document.digest}" + (f", active in {home}" if home else ""))


@contextmanager
def _cache(home: Path | None, *, no_cache: bool) -> Iterator[DigestCache | None]:
    """Digests taken before: in the verifier's home, where one is named."""
    if no_cache or home is None:
        yield None
        return
    Home(home).config()
    cache = DigestCache(home / "digests.db")
    try:
        yield cache
    finally:
        cache.close()


@click.group()
def challenges() -> None:
    """Mint single-use challenges."""


@challenges.command()
@click.option("--model", required=True, help="The model's name.")
@click.option(
    "--dir",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder with the reference weights.",
)
@click.option("--reads", default=0, type=click.IntRange(0, 1_000_000), help="How many read challenges.")
@click.option("--walks", default=0, type=click.IntRange(0, 1_000_000), help="How many walk challenges.")
@click.option("--wides", default=0, type=click.IntRange(0, 1_000_000), help="How many wide walks.")
@click.option("--rows", default=32, show_default=True, type=click.IntRange(4, 2048), help="Rows of a walk.")
@click.option(
    "--wide-rows",
    default=WIDE_ROWS,
    show_default=True,
    type=click.IntRange(4, 2048),
    help="Rows of a wide walk.",
)
@click.option("--passes", default=1, show_default=True, type=click.IntRange(1, 64), help="Passes of a walk.")
@click.option(
    "--windows", default=256, show_default=True, type=click.IntRange(1, 65536), help="Windows of a read."
)
@click.option("--resume", is_flag=True, help="Go on with the last run for this model, as it was asked for.")
@_device
@_home
@_errors
def mint(
    model: str, folder: Path, reads: int, walks: int, wides: int, rows: int, wide_rows: int, passes: int,
    windows: int, resume: bool, device: str | None, home: Path,
) -> None:  # fmt: skip
    """Mint challenges where the reference weights are; each run is spot-checked."""
    asked = Goal(
        reads, walks, wides, ReadParameters(windows), WalkParameters(rows, passes), WalkParameters(wide_rows)
    )
    if resume == bool(asked.count):
        raise click.UsageError("give --reads, --walks or --wides, or --resume alone")
    key = Home(home).pool_key()
    ready = kernel(device=device or best_device())

    async def work(db: Database) -> Goal:
        async with db.read() as tx:
            row = await pool.reference(tx, model)
        if row is None:
            raise ReferenceValueError(f"{model} has no reference value: touchstone reference measure")
        document = measured.read_document(row["document"])
        opened = open_folder(folder, document.ignore)
        tensors = TensorFiles(opened)
        if not document.tensors:
            raise ReferenceValueError(f"the reference value of {model} has no tensors: import it with --dir")
        with _cache(home, no_cache=False) as cache, progress("checking the folder", opened.total) as step:
            measured.check_folder(document, opened, cache, step)
        async with db.write() as tx:
            batch, goal = await take_up(tx, model, document.digest, None if resume else asked, _now_ms())
            left = await goal_left(tx, batch, goal)
        minter = Minter(model, opened, tensors, key, ready, batch)
        with progress("minting", left.work(tensors.total)) as step:
            await fill(db, minter, left, step)
        return left

    made = _with_database(home, work)
    kinds = ((made.reads, "reads"), (made.walks, "walks"), (made.wides, "wide walks"))
    told = " and ".join(f"{count} {kind}" for count, kind in kinds if count) or "nothing more"
    click.echo(f"Minted {told} for {model} with {ready.name}; the spot checks agree.")
