"""`touchstone reference …`: measure, import, put in force, withdraw."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attester.cli import progress
from attester.identity import load_key
from attester.weights.folder import IGNORED_AT_TOP, open_folder
from attester.weights.hashing import ALGORITHMS, check_algorithms
from attester.weights.select import best_device
from verifier.commands.common import (
    MAX_PEM,
    actor_option,
    device_option,
    digest_cache,
    errors,
    home_option,
    in_transaction,
    json_option,
    now_ms,
    read_file,
    reason_option,
    table,
)
from verifier.config import Home, read_anchor
from verifier.errors import ReferenceValueError
from verifier.references import conflicts as disagreeing
from verifier.references import corim, handwritten, measured, oms, profile, published
from verifier.references.measured import Document
from verifier.schemes.findings import to_printable
from verifier.service.references import by_model, provenance_of, to_wire
from verifier.store import references as stored
from verifier.store.database import Tx
from verifier.store.policies import ChangeAuthor
from verifier.store.references import Provenance

activate_option = click.option(
    "--activate", is_flag=True, help="Put it in force where another is; that one is then superseded."
)

keep_option = click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=None,
    envvar="TOUCHSTONE_VERIFIER_HOME",
    help="Keep it as a reference value of this verifier; the first of a model is in force at once.",
)


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
@device_option
@activate_option
@keep_option
@json_option
@errors
def measure(
    folder: Path,
    model: str,
    digest: str,
    no_cache: bool,
    device: str | None,
    activate: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    """Measure a FOLDER of weights: files, tensors, and a practice challenge."""
    opened = open_folder(folder)
    algorithms = check_algorithms(digest.split(","))
    with (
        digest_cache(home, no_cache=no_cache) as cache,
        progress("measuring", measured.work_of(opened), quiet=as_json) as step,
    ):
        document = measured.measure_folder(
            model, opened, step, algorithms=algorithms, cache=cache, device=device or best_device()
        )
    _publish(document, Provenance("measured"), home, as_json=as_json, activate=activate)


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
@activate_option
@keep_option
@json_option
@errors
def import_oms(
    bundle: Path, model: str, public_key: Path | None, roots: tuple[Path, ...], signer: str | None, at: str | None,
    trusted_root: Path | None, identity: str | None, issuer: str | None, folder: Path | None,
    activate: bool, home: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Make a publisher's OpenSSF Model Signing BUNDLE a reference value."""
    given = [public_key is not None, bool(roots), trusted_root is not None or identity is not None]
    if sum(given) != 1 or ((at or signer) is not None and not roots):
        raise click.UsageError(
            "say whom to trust, in one way: --public-key, --root (with --at), or --trusted-root with "
            "--identity and --issuer"
        )
    read = oms.read_bundle(read_file(bundle, oms.MAX_BUNDLE))
    if public_key is not None:
        statement = oms.verify_with_key(read, read_file(public_key, MAX_PEM))
    elif roots:
        statement = oms.verify_with_certificates(
            read, [read_file(path, MAX_PEM) for path in roots], _moment(at), signer
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
    provenance = Provenance("oms", statement.publisher.signer)
    _publish(document, provenance, home, as_json=as_json, activate=activate)


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
@errors
def export_oms(folder: Path, private_key: Path, out: Path, digest: str, model: str | None) -> None:
    """Sign a FOLDER of weights as OpenSSF Model Signing has it."""
    try:
        key = serialization.load_pem_private_key(read_file(private_key, MAX_PEM), None)
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


def _moment(text: str | None) -> datetime:
    try:
        moment = datetime.now(UTC) if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"--at {text}: not a moment as RFC 3339 has it") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _publish(
    document: Document,
    provenance: Provenance,
    home: Path | None,
    *,
    as_json: bool,
    activate: bool = False,
    who: ChangeAuthor | None = None,
) -> None:
    """Keep a document as a reference value where a verifier was named, and show it."""
    state = None
    if home is not None:
        grace_ms = Home(home).config().references.grace_s * 1000
        state = in_transaction(
            home,
            lambda tx: stored.add(
                tx, document, provenance, who or ChangeAuthor("touchstone reference", f"from {provenance.source}"),
                now_ms(), replace=activate, grace_ms=grace_ms,
            ),
        )  # fmt: skip
    if as_json:
        click.echo(msgspec.json.encode(document).decode())
        return
    size = sum(file.size or 0 for file in document.files)
    tensors = f"{len(document.tensors)} tensors" if document.tensors else "no tensors, so no walks"
    click.echo(f"{document.model}: {len(document.files)} files, {size:,} bytes, {tensors}")
    if document.publisher is not None:
        click.echo(f"signed ({document.publisher.method}): {to_printable(document.publisher.signer)}")
    click.echo(f"reference value {document.digest}" + (f", {state} in {home}" if home else ""))
    if state == "candidate":
        click.echo("Another value is in force for this model, and stays so. To see where they disagree:")
        click.echo(f"  touchstone reference conflicts --home {home}")
        click.echo(f"  touchstone reference activate {document.digest[:12]} --reason … --home {home}")


@reference.command("add")
@click.argument("file", type=click.Path(path_type=Path))
@activate_option
@reason_option
@actor_option
@home_option
@errors
def add(file: Path, activate: bool, reason: str, actor: str, home: Path) -> None:
    """Add a reference value from a FILE that `measure --json` printed."""
    document = measured.read_document(read_file(file, 64 << 20))
    _publish(
        document,
        provenance_of(document),
        home,
        as_json=False,
        activate=activate,
        who=ChangeAuthor(actor, reason),
    )


@reference.command("import-yaml")
@click.argument("file", type=click.Path(path_type=Path))
@activate_option
@reason_option
@actor_option
@home_option
@errors
def import_yaml(file: Path, activate: bool, reason: str, actor: str, home: Path) -> None:
    """Add a reference value that was written by hand, as YAML."""
    document = handwritten.read_yaml(read_file(file, handwritten.MAX_YAML))
    _publish(
        document, Provenance("yaml"), home, as_json=False, activate=activate, who=ChangeAuthor(actor, reason)
    )


@reference.command("import-corim")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", default=None, help="The model's name, where the CoRIM has another.")
@click.option(
    "--anchor", "anchors", multiple=True, type=click.Path(path_type=Path),
    help="Whose signature is taken, PEM or JWK; repeatable. HOME/anchors if not given.",
)  # fmt: skip
@click.option(
    "--activate", is_flag=True, help="Put them in force where others are; those are then superseded."
)
@reason_option
@actor_option
@home_option
@errors
def import_corim(
    file: Path,
    model: str | None,
    anchors: tuple[Path, ...],
    activate: bool,
    reason: str,
    actor: str,
    home: Path,
) -> None:
    """Add the reference values of a signed CoRIM."""
    trusted = {path.stem: read_anchor(path) for path in anchors} or Home(home).anchors()
    verified = corim.read_signed(read_file(file, corim.MAX_CORIM)).verify(trusted, now_ms() // 1000)
    provenance = Provenance("corim", verified.signer, verified.not_before, verified.not_after)
    for document in profile.to_documents(verified.corim, model):
        _publish(
            document, provenance, home, as_json=False, activate=activate, who=ChangeAuthor(actor, reason)
        )
    until = "for ever" if verified.not_after is None else f"until {_day(verified.not_after)}"
    click.echo(f"signed by {verified.signer}, valid {until}")


@reference.command("export-corim")
@click.argument("digest")
@click.option(
    "--key", type=click.Path(path_type=Path), default=None, help="To sign with; HOME/author.pem if not given."
)
@click.option("--signer", required=True, help="Who signs, as it is named in the CoRIM.")
@click.option(
    "--days", default=365, show_default=True, type=click.IntRange(1, 36500), help="How long it is valid."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where it is written.")
@home_option
@errors
def export_corim(digest: str, key: Path | None, signer: str, days: int, out: Path, home: Path) -> None:
    """Sign the reference value that begins with DIGEST as a CoRIM."""
    row = in_transaction(home, lambda tx: stored.find(tx, digest))
    document = measured.read_document(row["document"])
    private = Home(home).author_key() if key is None else load_key(key)
    now = now_ms() // 1000
    data = corim.sign(
        profile.from_document(document), private, signer=signer, not_before=now, not_after=now + days * 86400
    )
    try:
        out.write_bytes(data)
    except OSError as error:
        raise ReferenceValueError(f"{out} cannot be written: {error.strerror}") from None
    click.echo(
        f"Signed {document.model} ({row['digest'][:12]}…), valid until {_day(now + days * 86400)}: {out}"
    )


@reference.command("list")
@click.option("--model", default=None, help="Only of this model.")
@home_option
@json_option
@errors
def list_references(model: str | None, home: Path, as_json: bool) -> None:
    """List reference values: in force, superseded, waiting, retired."""
    rows = in_transaction(home, lambda tx: stored.every(tx, model))
    found = [to_wire(row, now_ms()) for row in rows]
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    columns = ("model", "digest", "state", "source", "signer", "until")
    table("", columns, [
        (
            value["model"], value["digest"][:12], _state(value), value["source"], value["signer"] or "–",
            "–" if value["not_after"] is None else _day(value["not_after"]),
        )
        for value in found
    ])  # fmt: skip


def _state(value: dict[str, Any]) -> str:
    if value["expires_in_s"] is not None and value["expires_in_s"] < 0:
        return f"{value['state']}, expired"
    if value["grace_left_s"]:
        return f"{value['state']}, a warning for {value['grace_left_s'] // 60} min"
    return str(value["state"])


@reference.command("show")
@click.argument("digest")
@home_option
@errors
def show(digest: str, home: Path) -> None:
    """Show the reference value that begins with DIGEST, as JSON."""
    row = in_transaction(home, lambda tx: stored.find(tx, digest))
    document = msgspec.to_builtins(measured.read_document(row["document"]))
    known = to_wire(row, now_ms())
    click.echo(msgspec.json.format(msgspec.json.encode({**known, "document": document}), indent=2).decode())


@reference.command("activate")
@click.argument("digest")
@click.option(
    "--grace",
    "grace_s",
    default=None,
    type=click.IntRange(0, 365 * 86400),
    help="Seconds for which the one before is only a warning.",
)
@reason_option
@actor_option
@home_option
@errors
def activate_reference(digest: str, grace_s: int | None, reason: str, actor: str, home: Path) -> None:
    """Put the value that begins with DIGEST in force; the one before is superseded."""
    grace = Home(home).config().references.grace_s if grace_s is None else grace_s

    async def work(tx: Tx) -> str:
        row = await stored.find(tx, digest)
        await stored.activate(tx, row["digest"], ChangeAuthor(actor, reason), now_ms(), grace_ms=grace * 1000)
        return str(row["model"])

    click.echo(f"In force for {in_transaction(home, work)}; the value before is a warning for {grace} s.")


@reference.command("retire")
@click.argument("digest")
@reason_option
@actor_option
@home_option
@errors
def retire(digest: str, reason: str, actor: str, home: Path) -> None:
    """Withdraw the value that begins with DIGEST, without grace."""

    async def work(tx: Tx) -> str:
        row = await stored.find(tx, digest)
        await stored.retire(tx, row["digest"], ChangeAuthor(actor, reason), now_ms())
        return str(row["digest"])

    click.echo(f"Retired {in_transaction(home, work)}.")


@reference.command("conflicts")
@home_option
@json_option
@errors
def conflicts(home: Path, as_json: bool) -> None:
    """Show where values of one model disagree."""
    rows = in_transaction(home, lambda tx: stored.documents(tx, stored.LIVE))
    found = disagreeing.between(by_model(rows))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    states = {row["digest"]: f"{row['digest'][:12]} ({row['state']}, {row['source']})" for row in rows}
    for conflict in found:
        click.echo(f"{conflict.model}: {conflict.count} files disagree")
        click.echo(f"  {states[conflict.one]}")
        click.echo(f"  {states[conflict.other]}")
        for what in ("differs", "incomparable", "only_one", "only_other"):
            for name in getattr(conflict, what):
                click.echo(f"    {what.replace('_', ' in the '):<18} {to_printable(name)}")
    if not found:
        click.echo("No reference values disagree.")


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(min(seconds, 253402300799), UTC).date().isoformat()
