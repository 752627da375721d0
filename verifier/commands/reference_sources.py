"""`touchstone reference …`: measure, import and export reference values; `references` has the rest."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

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
    reason_option,
    write_file,
)
from verifier.commands.model_rollouts import rollout
from verifier.commands.references import reference
from verifier.config import Home, read_anchor
from verifier.errors import ReferenceValueError
from verifier.references import corim, handwritten, measured, oms, profile, published
from verifier.references.measured import Document
from verifier.schemes.findings import to_printable
from verifier.service.access import ADMINISTER
from verifier.service.references import provenance_of
from verifier.store import references as stored
from verifier.store.policies import ChangeAuthor
from verifier.store.references import Provenance

reference.add_command(rollout)

activate_option = click.option(
    "--activate", is_flag=True, help="Put it in force even if another value is, which is superseded."
)

keep_option = click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=None,
    envvar="TOUCHSTONE_VERIFIER_HOME",
    help="Add it to the reference values of the verifier in this home.  The first value of a model is in force at once.",
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
@click.option("--no-cache", is_flag=True, help="Read every file again, even if it has not changed.")
@device_option
@engine_option
@engine_secret_option
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
    engine_url: str | None,
    engine_secret: Path | None,
    activate: bool,
    home: Path | None,
    as_json: bool,
) -> None:
    """Measure a FOLDER of weights: files, tensors, and a practice challenge."""
    opened = open_folder(folder)
    algorithms = check_algorithms(digest.split(","))
    with (
        chosen_engine(engine_url, engine_secret, model, folder) as engine,
        digest_cache(home, no_cache=no_cache) as cache,
        progress("measuring", measured.work_of(opened), quiet=as_json) as step,
    ):
        document = measured.measure_folder(
            model, opened, step, algorithms=algorithms, cache=cache, device=device or best_device(),
            measure_engine=None if engine is None else engine.measure,
        )  # fmt: skip
    _publish(document, Provenance("measured"), home, as_json=as_json, activate=activate)


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
@keep_option
@json_option
@errors
def import_oms(
    bundle: Path, model: str, public_key: Path | None, roots: tuple[Path, ...], signer: str | None, at: str | None,
    trusted_root: Path | None, identity: str | None, issuer: str | None, folder: Path | None,
    activate: bool, home: Path | None, as_json: bool,
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
    opened = open_folder(folder, () if inside is None else (inside,))
    ignored = [name for name in sorted(IGNORED_AT_TOP) if (real / name).exists()]
    with progress("hashing", opened.total) as step:
        files = measured.files_of(opened, (digest,), step)
    links = any(Path(file.path).is_symlink() for file in opened.files)
    listed = [(file.name, bytes.fromhex(getattr(file, digest))) for file in files]
    ignored += [] if inside is None else [inside]
    write_file(out, oms.sign(model or real.name, listed, digest, key, ignored, links=links))
    click.echo(f"Signed {len(listed)} files by {digest}: {out}")


def _moment(text: str | None) -> datetime:
    try:
        moment = datetime.now(UTC) if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f"--at {text} is not a moment of RFC 3339. Write it like 2026-01-31T12:00:00Z"
        ) from None
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
    """Show a document, and add it to the reference values of *home* if that is not `None`."""
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
    tensors = f"{len(document.tensors)} tensors" if document.tensors else "no tensors and therefore no walks"
    click.echo(f"{document.model}: {len(document.files)} files, {size:,} bytes, {tensors}")
    if document.publisher is not None:
        click.echo(f"signed ({document.publisher.method}): {to_printable(document.publisher.signer)}")
    if document.loaded_by is not None:
        by = document.loaded_by
        click.echo(f"walks over what {by.engine} {by.version} has loaded, as it is ({by.device})")
    click.echo(f"reference value {document.digest}" + (f", {state} in {home}" if home else ""))
    if state == "candidate":
        click.echo(
            "Another value stays in force for this model. To compare the two, and to activate this one:"
        )
        click.echo(f"  touchstone reference conflicts --home {home}")
        click.echo(f"  touchstone reference activate {document.digest[:12]} --reason … --home {home}")


@reference.command("add")
@click.argument("file", type=click.Path(path_type=Path))
@activate_option
@reason_option
@person_options
@home_option
@errors
def add(file: Path, activate: bool, reason: str, who: Person, home: Path) -> None:
    """Add a reference value from a FILE that `measure --json` wrote."""
    document = measured.read_document(read_file(file, 64 << 20))
    _publish(
        document,
        provenance_of(document),
        home,
        as_json=False,
        activate=activate,
        who=who.author(home, reason, ADMINISTER),
    )


@reference.command("import-yaml")
@click.argument("file", type=click.Path(path_type=Path))
@activate_option
@reason_option
@person_options
@home_option
@errors
def import_yaml(file: Path, activate: bool, reason: str, who: Person, home: Path) -> None:
    """Add a reference value that was written by hand as YAML."""
    document = handwritten.read_yaml(read_file(file, handwritten.MAX_YAML))
    _publish(
        document,
        Provenance("yaml"),
        home,
        as_json=False,
        activate=activate,
        who=who.author(home, reason, ADMINISTER),
    )


@reference.command("import-corim")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", default=None, help="The model's name, if the CoRIM has another one for it.")
@click.option(
    "--anchor", "anchors", multiple=True, type=click.Path(path_type=Path),
    help="A key whose signature is trusted, PEM or JWK; repeatable.  Default: the keys in HOME/anchors.",
)  # fmt: skip
@click.option("--activate", is_flag=True, help="Put them in force even if others are, which are superseded.")
@reason_option
@person_options
@home_option
@errors
def import_corim(
    file: Path,
    model: str | None,
    anchors: tuple[Path, ...],
    activate: bool,
    reason: str,
    who: Person,
    home: Path,
) -> None:
    """Add the reference values of a signed CoRIM."""
    trusted = {path.stem: read_anchor(path) for path in anchors} or Home(home).anchors()
    verified = corim.read_signed(read_file(file, corim.MAX_CORIM)).verify(trusted, now_ms() // 1000)
    provenance = Provenance("corim", verified.signer, verified.not_before, verified.not_after)
    for document in profile.to_documents(verified.corim, model):
        _publish(
            document,
            provenance,
            home,
            as_json=False,
            activate=activate,
            who=who.author(home, reason, ADMINISTER),
        )
    until = "for ever" if verified.not_after is None else f"until {day(verified.not_after)}"
    click.echo(f"The CoRIM was signed by {verified.signer} and is valid {until}.")


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
