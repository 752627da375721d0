"""`touchstone reference …`: measure, import and export reference values; `references` has the rest."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attester.cli import progress
from attester.identity import load_key
from attester.weights.folder import IGNORED_AT_TOP, Folder, open_folder
from attester.weights.hashing import ALGORITHMS, SHA256, check_algorithms
from attester.weights.patterns import as_names, given, only
from attester.weights.roles import WEIGHT_SUFFIXES, is_junk
from attester.weights.tensors import variants
from verifier.challenges.trusted_engine import chosen_engine
from verifier.commands.common import (
    MAX_PEM,
    Person,
    day,
    device_option,
    digest_cache,
    engine_option,
    engine_secret_option,
    errors,
    home_option,
    in_transaction,
    json_option,
    now_ms,
    person_options,
    read_file,
    write_file,
)
from verifier.commands.model_rollouts import rollout
from verifier.commands.reference_active import active
from verifier.commands.reference_anchors import given_anchors, home_anchors
from verifier.commands.reference_changes import author_of, change_reason_option, publish, publish_all
from verifier.commands.references import reference
from verifier.config import Home
from verifier.errors import ReferenceValueError
from verifier.references import corim, handwritten, measured, oms, profile, published
from verifier.references.measured import Document
from verifier.schemes.findings import to_printable
from verifier.service.references import provenance_of
from verifier.store import references as stored
from verifier.store.reference_sources import Provenance

reference.add_command(rollout)
reference.add_command(active)

activate_option = click.option(
    "--activate", is_flag=True, help="Put it in force even if another value is, which is superseded."
)

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Say what would come of it, file by file, and change nothing."
)

keep_option = click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=None,
    envvar="TOUCHSTONE_VERIFIER_HOME",
    help="Add it to the reference values of the verifier in this home.  The first value of a model is in "
    "force at once, and a further one waits unless you say --activate.",
)


@reference.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model's name, as nodes enrol with it.")
@click.option(
    "--digest",
    default="sha256,blake3",
    show_default=True,
    help="The digests of each file, separated by commas.",
)
@click.option(
    "--exclude",
    "excluded",
    multiple=True,
    help="A file, a folder or a pattern such as '*.fp16.*' that is not the model's; repeatable.",
)
@click.option(
    "--file",
    "only_files",
    multiple=True,
    help="Of several files of weights, the one that is the model's; repeatable for more of its own.",
)
@click.option("--no-cache", is_flag=True, help="Read every file again, even if it has not changed.")
@device_option
@engine_option
@engine_secret_option
@activate_option
@dry_run_option
@keep_option
@json_option
@errors
def measure(
    folder: Path,
    model: str,
    digest: str,
    excluded: tuple[str, ...],
    only_files: tuple[str, ...],
    no_cache: bool,
    device: str | None,
    engine_url: str | None,
    engine_secret: Path | None,
    activate: bool,
    dry_run: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    """Measure a FOLDER of weights: files, tensors, and a practice challenge.

    FOLDER may also be one file of weights, a repository in the cache of the Hugging Face Hub, or a manifest in
    Ollama's store.  The reference value keeps --exclude and --file, and nodes are judged by them.
    """
    ignore = _selection(folder, given(excluded), only_files)
    opened = open_folder(folder, ignore)
    algorithms = check_algorithms(digest.split(","))
    with (
        chosen_engine(engine_url, engine_secret, model, folder) as engine,
        digest_cache(home, no_cache=no_cache) as cache,
        progress("measuring", measured.work_of(opened), quiet=as_json) as step,
    ):
        document = measured.measure_folder(
            model, opened, step, algorithms=algorithms, cache=cache, device=device, ignore=ignore,
            measure_engine=None if engine is None else engine.measure,
        )  # fmt: skip
    if not as_json:
        _show_choice(opened, document)
    publish(document, Provenance("measured"), home, as_json=as_json, activate=activate, dry_run=dry_run)


def _selection(folder: Path, excluded: tuple[str, ...], only_files: tuple[str, ...]) -> tuple[str, ...]:
    """The names and patterns of what is not the model's."""
    if only_files:
        present = {file.name for file in open_folder(folder, excluded).files}
        if missing := [name for name in only_files if name not in present]:
            raise ReferenceValueError(f"--file {missing[0][:120]} is not a file in {folder}")
        return (*excluded, *only(only_files))
    if folder.is_file() and folder.name.endswith(WEIGHT_SUFFIXES):
        # Nodes may have it in a folder with others.
        return (*excluded, *only((folder.name,)))
    return excluded


def _show_choice(opened: Folder, document: Document) -> None:
    """Say what was not walked, and how it would be."""
    left_out = variants([file for file in opened.files if file.name.endswith(".safetensors")])
    for name, plain in left_out.items():
        click.echo(
            f"{name} is a variant of {plain} and is not walked. To have it walked instead: --file {name}"
        )
    if not document.tensors:
        click.echo("The weights are pickles: the files are measured, and reads can be minted, but no walks.")
        click.echo("To have the weights walked, save them as safetensors.")


@reference.command("import-oms")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model's name, as nodes enrol with it.")
@click.option("--public-key", type=click.Path(path_type=Path), help="The publisher's public key, PEM.")
@click.option(
    "--root",
    "roots",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A trusted authority, PEM; repeatable.",
)
@click.option(
    "--signer", default=None, help="With --root: the subject that must have signed, such as CN=acme."
)
@click.option(
    "--at", default=None, help="With --root: verify the certificates at this moment (RFC 3339), and not now."
)
@click.option("--trusted-root", type=click.Path(path_type=Path), help="Sigstore's trusted_root.json.")
@click.option("--identity", default=None, help="The identity that must have signed a keyless bundle.")
@click.option("--issuer", default=None, help="The issuer that must have vouched for the identity.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    help="The folder with the weights, to measure and to compare with the bundle.",
)
@activate_option
@dry_run_option
@keep_option
@json_option
@errors
def import_oms(
    bundle: Path, model: str, public_key: Path | None, roots: tuple[Path, ...], signer: str | None, at: str | None,
    trusted_root: Path | None, identity: str | None, issuer: str | None, folder: Path | None,
    activate: bool, dry_run: bool, home: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Make a reference value from a publisher's OpenSSF Model Signing BUNDLE."""
    ways = [public_key is not None, bool(roots), trusted_root is not None or identity is not None]
    if sum(ways) != 1 or ((at or signer) is not None and not roots):
        raise click.UsageError(
            "say in one way whom to trust: with --public-key, with --root (and --signer or --at), or with "
            "--trusted-root, --identity and --issuer"
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
        signed = {resource.name for resource in statement.resources}
        opened = open_folder(folder, as_names(statement.ignore_paths), everything=True)
        # Junk that was signed is the model's.
        files = tuple(file for file in opened.files if file.name in signed or not is_junk(file.name))
        opened = Folder(opened.root, files)
        with progress("measuring", measured.work_of(opened), quiet=as_json) as step:
            document = published.with_weights(model, statement, opened, step)
    provenance = Provenance("oms", statement.publisher.signer)
    publish(document, provenance, home, as_json=as_json, activate=activate, dry_run=dry_run)


@reference.command("export-oms")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--private-key",
    required=True,
    type=click.Path(path_type=Path),
    help="The private key to sign with, PEM, on P-256, P-384 or P-521.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The file to write the bundle to."
)
@click.option(
    "--digest",
    default="sha256",
    show_default=True,
    type=click.Choice(ALGORITHMS),
    help="The digest of each file.",
)
@click.option("--model", default=None, help="The model's name in the statement.  Default: the folder's name.")
@errors
def export_oms(folder: Path, private_key: Path, out: Path, digest: str, model: str | None) -> None:
    """Sign a FOLDER of weights (OpenSSF Model Signing)."""
    try:
        key = serialization.load_pem_private_key(read_file(private_key, MAX_PEM), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ReferenceValueError(f"{private_key} is not an unencrypted private key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ReferenceValueError("the key is not on P-256, P-384 or P-521")
    real = folder.resolve()
    inside = out.resolve().relative_to(real).as_posix() if out.resolve().is_relative_to(real) else None
    # A verifier of another project leaves out only what the standard says: so junk is signed too.
    opened = open_folder(folder, () if inside is None else (inside,), everything=True)
    ignored = [name for name in sorted(IGNORED_AT_TOP) if (real / name).exists()]
    with progress("hashing", opened.total) as step:
        files = measured.files_of(opened, (digest,), step)
    links = any(Path(file.path).is_symlink() for file in opened.files)
    listed = [(file.name, bytes.fromhex(getattr(file, digest))) for file in files]
    ignored += [] if inside is None else [inside]
    write_file(out, oms.sign(model or real.name, listed, digest, key, ignored, links=links))
    click.echo(f"Signed {len(listed)} files by {digest}: {out}")
    if digest != SHA256:
        click.echo(
            f"The command model_signing verify (1.1.1) computes SHA-256 whatever a bundle says, and so refuses {digest}, "
            "its own bundles too. Its Python library verifies this one. Sign with --digest sha256 for everybody else."
        )


def _moment(text: str | None) -> datetime:
    try:
        moment = datetime.now(UTC) if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f"--at {text} is not a moment of RFC 3339. Write it like 2026-01-31T12:00:00Z"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@reference.command("add")
@click.argument("file", type=click.Path(path_type=Path))
@activate_option
@dry_run_option
@change_reason_option
@person_options
@home_option
@errors
def add(file: Path, activate: bool, dry_run: bool, reason: str | None, who: Person, home: Path) -> None:
    """Add a reference value from a FILE that `measure --json` wrote."""
    document = measured.read_document(read_file(file, 64 << 20))
    author = author_of(who, home, reason, dry_run=dry_run)
    publish(document, provenance_of(document), home, activate=activate, dry_run=dry_run, author=author)


@reference.command("import-yaml")
@click.argument("file", type=click.Path(path_type=Path))
@activate_option
@dry_run_option
@change_reason_option
@person_options
@home_option
@errors
def import_yaml(
    file: Path, activate: bool, dry_run: bool, reason: str | None, who: Person, home: Path
) -> None:
    """Add a reference value that was written by hand as YAML."""
    document = handwritten.read_yaml(read_file(file, handwritten.MAX_YAML))
    author = author_of(who, home, reason, dry_run=dry_run)
    publish(document, Provenance("yaml"), home, activate=activate, dry_run=dry_run, author=author)


@reference.command("import-corim")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", default=None, help="The model's name, if the CoRIM has another one for it.")
@click.option(
    "--anchor", "anchors", multiple=True, type=click.Path(path_type=Path),
    help="A file of keys or certificates whose signature is trusted; repeatable.  Default: those in HOME/anchors.",
)  # fmt: skip
@click.option("--activate", is_flag=True, help="Put them in force even if others are, which are superseded.")
@dry_run_option
@change_reason_option
@person_options
@home_option
@errors
def import_corim(
    file: Path,
    model: str | None,
    anchors: tuple[Path, ...],
    activate: bool,
    dry_run: bool,
    reason: str | None,
    who: Person,
    home: Path,
) -> None:
    """Add the reference values of a signed CoRIM."""
    author = author_of(who, home, reason, dry_run=dry_run)
    trusted = given_anchors(anchors) if anchors else home_anchors(home)
    verified = corim.read_signed(read_file(file, corim.MAX_MESSAGE)).verify(trusted, now_ms() // 1000)
    provenance = Provenance("corim", verified.signer, verified.not_before, verified.not_after)
    documents = profile.to_documents(verified.corim, model)
    until = "for ever" if verified.not_after is None else f"until {day(verified.not_after)}"
    click.echo(f"The CoRIM was signed by {to_printable(verified.signer)} and is valid {until}.")
    for note in profile.unused(verified.corim):
        click.echo(f"Not used: {note}.")
    values = [(document, provenance) for document in documents]
    publish_all(values, home, activate=activate, dry_run=dry_run, author=author)


@reference.command("export-corim")
@click.argument("digest")
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    default=None,
    help="The private key to sign with.  Default: HOME/author.pem.",
)
@click.option("--signer", required=True, help="The signer's name in the CoRIM.")
@click.option(
    "--days",
    default=365,
    show_default=True,
    type=click.IntRange(1, 36500),
    help="The days for which it is valid.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file to write it to.")
@home_option
@errors
def export_corim(digest: str, key: Path | None, signer: str, days: int, out: Path, home: Path) -> None:
    """Sign the value whose digest begins with DIGEST as a CoRIM."""
    row = in_transaction(home, lambda tx: stored.find(tx, digest))
    document = measured.read_document(row["document"])
    private = Home(home).author_key() if key is None else load_key(key)
    now = now_ms() // 1000
    data = corim.sign(
        profile.from_document(document), private, signer=signer, not_before=now, not_after=now + days * 86400
    )
    write_file(out, data)
    click.echo(
        f"Signed {document.model} ({row['digest'][:12]}…), valid until {day(now + days * 86400)}: {out}"
    )
