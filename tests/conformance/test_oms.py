"""OpenSSF Model Signing: others' samples, and the reference implementation in both directions."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click import Group
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attester.weights.folder import open_folder
from fixtures.simulator import tiny_model
from tests.integration.test_cli import touchstone
from tests.unit.verifier.test_certificates import LEAF, MIDDLE, ROOT, SIGNER, issue
from tests.unit.verifier.test_oms import changed, entry, mutated, pem_of, sealed, statement_of
from verifier.commands.challenges import challenges
from verifier.commands.reference_sources import reference
from verifier.commands.verifier import verifier
from verifier.errors import ReferenceValueError
from verifier.references import measured, oms, published
from verifier.references.measured import Document
from verifier.references.oms_statement import Statement

Json = dict[str, Any]
MODEL = "publisher/model"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
IDENTITY, ISSUER = "stefanb@us.ibm.com", "https://sigstore.verify.ibm.com/oauth2"
KEY = ec.generate_private_key(ec.SECP256R1())
CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}


# Samples of the specification.


def sample(samples: Path, name: str) -> bytes:
    path = samples / "oms" / "v1.0" / f"{name}.bundle.json"
    if not path.is_file():
        pytest.skip("the samples of OMS are not on this machine (TOUCHSTONE_SAMPLES)")
    return path.read_bytes()


def chain_of(samples: Path) -> list[bytes]:
    """The certificates of the sample signed with one, DER."""
    raw = json.loads(sample(samples, "valid/certificate"))
    listed = raw["verificationMaterial"]["x509CertificateChain"]["certificates"]
    return [base64.b64decode(each["rawBytes"]) for each in listed]


def pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)


def sample_key(samples: Path) -> bytes:
    """The samples' key signs both with and without a certificate."""
    return (
        x509.load_der_x509_certificate(chain_of(samples)[0])
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def trusted_root(instance: str = "sigstore") -> Path:
    """What the library brings along, so that no test asks a network."""
    pytest.importorskip("sigstore")
    folder = f"https%3A%2F%2Ftuf-repo-cdn.{instance}.dev"
    return Path(str(files("sigstore._store") / folder / "trusted_root.json"))


def by_key(samples: Path, name: str = "valid/key", key: bytes | None = None) -> Statement:
    return oms.verify_with_key(oms.read_bundle(sample(samples, name)), key or sample_key(samples))


def by_certificate(samples: Path, root: bytes | None = None, at: datetime = NOW) -> Statement:
    bundle = oms.read_bundle(sample(samples, "valid/certificate"))
    return oms.verify_with_certificates(bundle, [root or pem(chain_of(samples)[1])], at)


def keyless(
    samples: Path, identity: str = IDENTITY, issuer: str = ISSUER, instance: str = "sigstore"
) -> Statement:
    bundle = oms.read_bundle(sample(samples, "valid/sigstore"))
    return oms.verify_keyless(bundle, trusted_root(instance), identity, issuer)


SIGNED = {
    "signme-1": "bc9a717db6064a32cbe9eae6fc40651dd6d36ef1757183f590eff2b1765d7ebc",
    "signme-2": "32dcb1f8e1ae52d5963e56a6ba06ab58b424c15ed2a6b70d2feca1d089370028",
}


def listed(statement: Statement) -> dict[str, str]:
    return {each.name: each.digest.hex() for each in statement.resources}


def test_the_sample_signed_with_a_key(samples: Path) -> None:
    """It verifies, and its hint is the SHA-256 of the key's PEM."""
    key = sample_key(samples)
    statement = by_key(samples)
    assert listed(statement) == SIGNED
    assert sorted(statement.ignore_paths) == [".git", ".gitattributes", ".github", ".gitignore", "ignore-me"]
    hint = json.loads(sample(samples, "valid/key"))["verificationMaterial"]["publicKey"]["hint"]
    assert hint == hashlib.sha256(key).hexdigest()
    assert statement.publisher.method == "key"


def test_the_sample_signed_with_a_certificate(samples: Path) -> None:
    """It verifies with the authority that comes along, where the caller trusts it."""
    statement = by_certificate(samples)
    assert listed(statement) == SIGNED
    assert statement.publisher.signer == "certificate of CN=intermediate-ca"
    assert statement.publisher.method == "certificate"


def test_the_sample_signed_without_a_key(samples: Path) -> None:
    """It verifies, offline, with the identity and who vouched for it."""
    statement = keyless(samples)
    assert listed(statement)["signme-2"] == SIGNED["signme-2"]
    assert (statement.publisher.method, statement.publisher.signer) == (
        "sigstore",
        f"{IDENTITY} by {ISSUER}",
    )


def test_a_reference_value_of_each_sample(samples: Path) -> None:
    """Same files, same digests; who signed is part of it."""
    documents = [
        published.without_weights(MODEL, statement)
        for statement in (by_key(samples), by_certificate(samples), keyless(samples))
    ]
    assert documents[0].files == documents[1].files != documents[2].files
    assert len({document.digest for document in documents}) == 3


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another key": (
        lambda s: by_key(s, key=pem_of(ec.generate_private_key(ec.SECP384R1()))),
        "the signature does not fit",
    ),
    "a key for a certificate": (
        lambda s: by_key(s, "valid/certificate"),
        "the bundle carries x509CertificateChain, not publicKey",
    ),
    "another root": (
        lambda s: by_certificate(s, ROOT.pem),
        "CN=intermediate-ca was not issued by a trusted authority",
    ),
    "the leaf for a root": (
        lambda s: by_certificate(s, pem(chain_of(s)[0])),
        "CN=intermediate-ca was not issued by a trusted authority",
    ),
    "before the certificates": (
        lambda s: by_certificate(s, at=datetime(2025, 5, 2, 23, 36, 27, tzinfo=UTC)),
        "CN=intermediate-ca is valid from 2025-05-02 to 2035-04-30, not at 2025-05-02",
    ),
    "after the certificates": (
        lambda s: by_certificate(s, at=datetime(2035, 5, 1, tzinfo=UTC)),
        "CN=intermediate-ca is valid from 2025-05-02 to 2035-04-30, not at 2035-05-01",
    ),
    "another identity": (
        lambda s: keyless(s, identity="mallory@us.ibm.com"),
        "Sigstore refuses the bundle: .*mallory@us.ibm.com",
    ),
    "another issuer": (
        lambda s: keyless(s, issuer="https://accounts.google.com"),
        "Sigstore refuses the bundle: .*(issuer|Issuer)",
    ),
    "the staging instance": (lambda s: keyless(s, instance="sigstage"), "Sigstore refuses the bundle: "),
    "invalid/empty": (lambda s: by_key(s, "invalid/empty"), "the bundle is empty"),
    "invalid/missing-envelope": (
        lambda s: by_key(s, "invalid/missing-envelope"),
        "the bundle has no dsseEnvelope",
    ),
    "invalid/missing-tlog-entries": (
        lambda s: by_key(s, "invalid/missing-tlog-entries"),
        "a keyless bundle must have tlogEntries, but this one has none",
    ),
    "invalid/missing-verification-material": (
        lambda s: by_key(s, "invalid/missing-verification-material"),
        "the bundle has no verificationMaterial",
    ),
    # Its payload was changed and not signed again; the next test signs it.
    "invalid-payload/wrong-predicate": (
        lambda s: by_key(s, "invalid-payload/wrong-predicate"),
        "the signature does not fit",
    ),
}


@pytest.mark.parametrize(("verify", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_sample_that_is_refused(samples: Path, verify: Callable[[Path], object], reason: str) -> None:
    """For the reason in its name."""
    with pytest.raises(ReferenceValueError, match=reason):
        verify(samples)


def test_the_sample_with_another_predicate_signed_again(samples: Path) -> None:
    """A signature that fits does not make it one of ours."""
    raw = json.loads(sample(samples, "invalid-payload/wrong-predicate"))
    bundle = sealed(base64.b64decode(raw["dsseEnvelope"]["payload"]), KEY)
    with pytest.raises(ReferenceValueError, match=r"type 'https://example\.com/wrong-predicate/v1\.0'"):
        oms.verify_with_key(oms.read_bundle(json.dumps(bundle).encode()), pem_of(KEY))


def test_every_sample_is_looked_at(samples: Path) -> None:
    """A sample that is added later is not passed over in silence."""
    sample(samples, "valid/key")
    folder = samples / "oms" / "v1.0"
    there = {str(path.relative_to(folder)).removesuffix(".bundle.json") for path in folder.rglob("*.json")}
    invalid = {name for name in REFUSED if name.startswith("invalid")}
    assert there == invalid | {"valid/key", "valid/certificate", "valid/sigstore"}


def test_a_trusted_root_that_is_none(samples: Path, tmp_path: Path) -> None:
    """Missing, no JSON, or of something else: in a sentence."""
    pytest.importorskip("sigstore")
    bundle = oms.read_bundle(sample(samples, "valid/sigstore"))
    for content in (None, b"", b"no", b"{}", b"[]", b"\xff", trusted_root().read_bytes()[:-2]):
        path = tmp_path / "root.json"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ReferenceValueError, match="Sigstore refuses the bundle"):
            oms.verify_keyless(bundle, path, IDENTITY, ISSUER)


def test_a_keyless_bundle_with_another_payload(samples: Path) -> None:
    """Neither the signature nor the log's entry is over it."""
    raw = json.loads(sample(samples, "valid/sigstore"))
    raw["dsseEnvelope"]["payload"] = base64.b64encode(b"{}").decode()
    with pytest.raises(ReferenceValueError, match="Sigstore refuses the bundle"):
        oms.verify_keyless(oms.read_bundle(json.dumps(raw).encode()), trusted_root(), IDENTITY, ISSUER)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_changed_keyless_bundle_is_refused_in_a_sentence(samples: Path, data: st.DataObject) -> None:
    """Whatever the library meets in it, it is our error; and what passes says the same."""
    raw = json.loads(sample(samples, "valid/sigstore"))
    bundle = data.draw(mutated(raw))
    try:
        statement = oms.verify_keyless(
            oms.read_bundle(json.dumps(bundle).encode()), trusted_root(), IDENTITY, ISSUER
        )
    except ReferenceValueError:
        return
    assert statement == keyless(samples)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    where=st.sampled_from(["certificate", "canonicalizedBody", "signedEntryTimestamp", "sig"]),
    place=st.integers(0, 10_000),
    value=st.integers(0, 255),
)
def test_a_keyless_bundle_with_one_byte_changed(samples: Path, where: str, place: int, value: int) -> None:
    """In the certificate, in the log's entry, in its promise, in the signature."""
    raw = json.loads(sample(samples, "valid/sigstore"))
    material = raw["verificationMaterial"]
    holders: dict[str, tuple[Json, str]] = {
        "certificate": (material["certificate"], "rawBytes"),
        "canonicalizedBody": (material["tlogEntries"][0], "canonicalizedBody"),
        "signedEntryTimestamp": (material["tlogEntries"][0]["inclusionPromise"], "signedEntryTimestamp"),
        "sig": (raw["dsseEnvelope"]["signatures"][0], "sig"),
    }
    holder, member = holders[where]
    old = base64.b64decode(holder[member])
    new = bytearray(old)
    new[place % len(new)] = value
    holder[member] = base64.b64encode(new).decode()
    try:
        oms.verify_keyless(oms.read_bundle(json.dumps(raw).encode()), trusted_root(), IDENTITY, ISSUER)
    except ReferenceValueError:
        return
    assert bytes(new) == old


# The reference implementation.


@pytest.fixture(scope="session")
def theirs() -> Any:
    """The reference implementation; skipped, saying so, where it is not installed."""
    pytest.importorskip("OpenSSL")
    pytest.importorskip("model_signing")
    from model_signing import hashing, signing, verifying

    class Theirs:
        pass

    found: Any = Theirs()
    found.hashing, found.signing, found.verifying = hashing, signing, verifying
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nested folders, names that sort in two ways, an empty file, names beyond ASCII."""
    made = tiny_model(tmp_path / "model")
    for name in ("a/b", "a-b", "a/c/d/e", "é/日本.txt", "ﬁ", "Z"):
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (made / "empty").touch()
    return made


def write_key(folder: Path, curve: str = "P-256", name: str = "key") -> tuple[Path, Path]:
    """Private and public, in files."""
    key = ec.generate_private_key(CURVES[curve])
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(pem_of(key))
    return private, public


def ours(*arguments: str | Path, group: Group = reference) -> tuple[int, str]:
    """A command of ours, within this process; its status and what it said."""
    done = CliRunner().invoke(group, [str(each) for each in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


HASHINGS: dict[str, Callable[[Any], Any]] = {
    "files, sha256": lambda h: h.Config().use_file_serialization(hashing_algorithm="sha256"),
    "files, blake3": lambda h: h.Config().use_file_serialization(hashing_algorithm="blake3"),
    "files, blake2": lambda h: h.Config().use_file_serialization(hashing_algorithm="blake2"),
    "shards, sha256": lambda h: h.Config().use_shard_serialization(
        hashing_algorithm="sha256", shard_size=1000
    ),
    "shards, blake2": lambda h: h.Config().use_shard_serialization(
        hashing_algorithm="blake2", shard_size=1000
    ),
    # Theirs takes files for it, and says so.
    "shards, blake3": lambda h: h.Config().use_shard_serialization(
        hashing_algorithm="blake3", shard_size=1000
    ),
}
NEEDS_WEIGHTS = {
    "files, blake2": "the bundle uses blake2b, which no manifest has. Give the weights with --dir",
    "shards, sha256": "the bundle is over shards, which no manifest lists. Give the weights with --dir",
    "shards, blake2": "the bundle is over shards, which no manifest lists. Give the weights with --dir",
}


def signed_by_them(
    theirs: Any, folder: Path, way: str = "files, sha256", curve: str = "P-256", **ignored: Any
) -> tuple[Path, Path]:
    """A bundle beside the folder, and the public key."""
    private, public = write_key(folder.parent, curve)
    bundle = folder.parent / "model.sig"
    config = HASHINGS[way](theirs.hashing)
    if ignored:
        config.set_ignored_paths(**ignored)
    signer = theirs.signing.Config().use_elliptic_key_signer(private_key=private)
    signer.set_hashing_config(config).sign(folder, bundle)
    return bundle, public


def read_theirs(bundle: Path, public: Path) -> Statement:
    return oms.verify_with_key(oms.read_bundle(bundle.read_bytes()), public.read_bytes())


def payload_of(bundle: Path) -> Json:
    raw = json.loads(bundle.read_bytes())
    payload: Json = json.loads(base64.b64decode(raw["dsseEnvelope"]["payload"]))
    return payload


@pytest.mark.parametrize("way", HASHINGS)
def test_what_they_sign_imports_with_the_weights(theirs: Any, folder: Path, way: str) -> None:
    """A measured reference value, whatever they hash and however they cut."""
    bundle, public = signed_by_them(theirs, folder, way)
    status, said = ours(
        "import-oms", bundle, "--model", MODEL, "--public-key", public, "--dir", folder, "--json"
    )
    assert status == 0, said
    document = measured.read_document(said)
    plain = measured.measure_folder(MODEL, open_folder(folder), algorithms=("sha256", "blake3"))
    assert document.files == plain.files
    assert document.tensors == plain.tensors
    assert document.publisher == read_theirs(bundle, public).publisher


@pytest.mark.parametrize("way", HASHINGS)
def test_what_they_sign_imports_without_the_weights(theirs: Any, folder: Path, way: str) -> None:
    """Where manifests have the same digests; where not, the sentence says what to give."""
    bundle, public = signed_by_them(theirs, folder, way)
    status, said = ours("import-oms", bundle, "--model", MODEL, "--public-key", public, "--json")
    if way in NEEDS_WEIGHTS:
        assert (status, said) == (1, f"Error: {NEEDS_WEIGHTS[way]}\n")
        return
    assert status == 0, said
    algorithm = "sha256" if way.endswith("sha256") else "blake3"
    plain = measured.measure_folder(MODEL, open_folder(folder), algorithms=(algorithm,))
    found = {file.name: getattr(file, algorithm) for file in measured.read_document(said).files}
    assert found == {file.name: getattr(file, algorithm) for file in plain.files}


@pytest.mark.parametrize("curve", CURVES)
def test_what_they_sign_on_each_curve(theirs: Any, folder: Path, curve: str) -> None:
    """With the hash that belongs to it."""
    assert read_theirs(*signed_by_them(theirs, folder, curve=curve)).algorithm == "sha256"


def test_what_they_sign_with_a_certificate(theirs: Any, folder: Path) -> None:
    """A chain that they put together verifies with the root, and not with another."""
    place = folder.parent
    key = place / "signer.pem"
    key.write_bytes(
        SIGNER.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    for name, each in {"signer": SIGNER, "middle": MIDDLE, "root": ROOT, "other": issue("root")}.items():
        (place / f"{name}.crt").write_bytes(each.pem)
    signer = theirs.signing.Config().use_certificate_signer(
        private_key=key,
        signing_certificate=place / "signer.crt",
        certificate_chain=[place / "middle.crt"],
    )
    bundle = place / "model.sig"
    signer.sign(folder, bundle)
    arguments = ("import-oms", bundle, "--model", MODEL, "--at", NOW.isoformat())
    status, said = ours(*arguments, "--root", place / "root.crt", "--dir", folder)
    assert status == 0, said
    assert "signed (certificate): certificate of CN=signer" in said
    assert ours(*arguments, "--root", place / "other.crt", "--root", place / "root.crt")[0] == 0
    status, said = ours(*arguments, "--root", place / "other.crt")
    assert (status, "CN=middle was not issued by a trusted authority" in said) == (1, True)
    verifier = theirs.verifying.Config().use_certificate_verifier(certificate_chain=[place / "root.crt"])
    verifier.verify(folder, bundle)


def exported(folder: Path, private: Path, *more: str) -> Path:
    bundle = folder.parent / "ours.sig"
    status, said = ours("export-oms", folder, "--private-key", private, "--out", bundle, *more)
    assert (status, "Signed " in said) == (0, True), said
    return bundle


def verified_by_them(theirs: Any, folder: Path, bundle: Path, public: Path) -> None:
    """With what they guess from the bundle: no hashing configuration."""
    theirs.verifying.Config().use_elliptic_key_verifier(public_key=public).verify(folder, bundle)


@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
@pytest.mark.parametrize("curve", CURVES)
def test_what_we_sign_they_verify(theirs: Any, folder: Path, curve: str, algorithm: str) -> None:
    """Out of the box, on every curve."""
    private, public = write_key(folder.parent, curve)
    bundle = exported(folder, private, "--digest", algorithm)
    verified_by_them(theirs, folder, bundle, public)
    _, other = write_key(folder.parent, curve, "other")
    with pytest.raises(ValueError):
        verified_by_them(theirs, folder, bundle, other)


@pytest.mark.parametrize("signed_by", ["ours", "theirs"])
def test_their_command_verifies_sha256_alone(theirs: Any, folder: Path, signed_by: str) -> None:
    """blake3 exports are not verified by model-signing 1.1.1 (nor its own): the export says so."""
    private, public = write_key(folder.parent)
    bundle = folder.parent / "theirs.sig"
    if signed_by == "ours":
        status, said = ours(
            "export-oms", folder, "--private-key", private, "--out", bundle, "--digest", "blake3"
        )
        assert (status, "Sign with --digest sha256" in said) == (0, True), said
    else:
        by_blake3 = theirs.hashing.Config().use_file_serialization(hashing_algorithm="blake3")
        signer = theirs.signing.Config().use_elliptic_key_signer(private_key=private)
        signer.set_hashing_config(by_blake3).sign(folder, bundle)
    command = [
        sys.executable, "-m", "model_signing", "verify", "key", str(folder), "--signature", str(bundle), "--public_key",
        str(public),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if metadata.version("model-signing") != "1.1.1":
        pytest.skip("another version than the one that the sentence of export-oms is about")
    assert (done.returncode, "Signature mismatch" in done.stdout + done.stderr) == (1, True), done.stdout
    verified_by_them(theirs, folder, bundle, public)


@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
def test_what_we_sign_we_import(folder: Path, algorithm: str) -> None:
    """With the weights and without."""
    private, public = write_key(folder.parent)
    bundle = exported(folder, private, "--digest", algorithm)
    arguments = ("import-oms", bundle, "--model", MODEL, "--public-key", public, "--json")
    status, said = ours(*arguments)
    assert status == 0, said
    without = measured.read_document(said)
    status, said = ours(*arguments, "--dir", folder)
    assert status == 0, said
    assert [f.name for f in measured.read_document(said).files] == [f.name for f in without.files]


def test_what_we_sign_holds_for_a_copy_of_a_cache(theirs: Any, folder: Path) -> None:
    """Links within a model's folder are its files; where they were copied, they still are."""
    root = folder.parent / "models--publisher--model"
    snapshot = root / "snapshots" / "abc"
    (root / "blobs").mkdir(parents=True)
    for file in open_folder(folder).files:
        blob = root / "blobs" / hashlib.sha256(file.name.encode()).hexdigest()
        shutil.copy(file.path, blob)
        link = snapshot / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    private, public = write_key(folder.parent)
    bundle = root.parent / "ours.sig"
    assert ours("export-oms", snapshot, "--private-key", private, "--out", bundle)[0] == 0
    verified_by_them(theirs, folder, bundle, public)


def test_a_bundle_within_the_folder(theirs: Any, folder: Path) -> None:
    """What was not signed is said: the bundle itself, and what version control keeps."""
    private, public = write_key(folder.parent)
    (folder / ".git").mkdir()
    for name in (".git/config", ".gitattributes", "sub/.gitignore"):
        (folder / name).write_text("x")
    for name in ("model.sig", "sub/deep.sig"):
        bundle = folder / name
        assert ours("export-oms", folder, "--private-key", private, "--out", bundle)[0] == 0
        assert name in payload_of(bundle)["predicate"]["serialization"]["ignore_paths"]
        verified_by_them(theirs, folder, bundle, public)
        arguments = ("import-oms", bundle, "--model", MODEL, "--public-key", public, "--dir", folder)
        status, said = ours(*arguments)
        assert status == 0, said
        # A second time, the bundle that is there is not taken for a file of the model.
        assert ours("export-oms", folder, "--private-key", private, "--out", bundle)[0] == 0
        verified_by_them(theirs, folder, bundle, public)
        bundle.unlink()


def test_notes_of_download_tools_are_not_signed(theirs: Any, folder: Path) -> None:
    """The bundle says so, or others would find files more."""
    private, public = write_key(folder.parent)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "notes").write_text("x")
    verified_by_them(theirs, folder, exported(folder, private), public)


def change(folder: Path) -> str:
    (folder / "a-b").write_text("a-B")
    return "'a-b' differs from what was signed"


def add(folder: Path) -> str:
    (folder / "a" / "more").touch()
    return "'a/more' is in the folder, but it was not signed"


def remove(folder: Path) -> str:
    (folder / "a" / "b").unlink()
    return "'a/b' was signed, but it is not in the folder"


def rename(folder: Path) -> str:
    (folder / "é" / "日本.txt").rename(folder / "é" / "日.txt")
    return "'é/日.txt' is in the folder, but it was not signed"


def swap(folder: Path) -> str:
    (folder / "a-b").rename(folder / "x")
    (folder / "Z").rename(folder / "a-b")
    (folder / "x").rename(folder / "Z")
    return "'Z' differs from what was signed"


def lengthen(folder: Path) -> str:
    with (folder / "config.json").open("a") as stream:
        stream.write(" ")
    return "'config.json' differs from what was signed"


CHANGES = [change, add, remove, rename, swap, lengthen]


@pytest.mark.parametrize("touch", CHANGES)
@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
def test_a_folder_that_differs_is_refused_by_them(
    theirs: Any, folder: Path, algorithm: str, touch: Callable[[Path], str]
) -> None:
    """What we signed is bound to names and bytes, in their eyes too."""
    private, public = write_key(folder.parent)
    bundle = exported(folder, private, "--digest", algorithm)
    verified_by_them(theirs, folder, bundle, public)
    touch(folder)
    with pytest.raises(ValueError, match="Signature mismatch"):
        verified_by_them(theirs, folder, bundle, public)


@pytest.mark.parametrize("touch", CHANGES)
@pytest.mark.parametrize("way", ["files, sha256", "files, blake3", "files, blake2", "shards, sha256"])
def test_a_folder_that_differs_from_what_they_signed(
    theirs: Any, folder: Path, way: str, touch: Callable[[Path], str]
) -> None:
    """Refused by us, with the file's name."""
    statement = read_theirs(*signed_by_them(theirs, folder, way))
    assert published.with_weights(MODEL, statement, open_folder(folder))
    reason = touch(folder)
    if (touch, way) == (add, "shards, sha256"):
        # An empty file is in no shard: added or not, there is nothing of it to sign.
        assert published.with_weights(MODEL, statement, open_folder(folder))
        (folder / "a" / "more").write_text("x")
    with pytest.raises(ReferenceValueError) as refusal:
        published.with_weights(MODEL, statement, open_folder(folder))
    assert str(refusal.value) == reason


# Where the reference implementation deviates from the specification.


def test_deviation_resources_are_sorted_by_parts_of_paths(theirs: Any, folder: Path) -> None:
    """a/b stands before a-b, and the root digest is over that order."""
    bundle, public = signed_by_them(theirs, folder)
    named = [each["name"] for each in payload_of(bundle)["predicate"]["resources"]]
    assert named.index("a/b") < named.index("a-b")
    assert named != sorted(named)
    assert [each.name for each in read_theirs(bundle, public).resources] == named


def test_deviation_a_single_file_is_named_with_a_dot(theirs: Any, folder: Path) -> None:
    """As files and in shards: with the weights it is the only file of its folder."""
    alone = folder.parent / "alone"
    alone.mkdir()
    shutil.copy(folder / "model.safetensors", alone)
    private, public = write_key(folder.parent)
    for way in ("files, sha256", "shards, sha256"):
        bundle = folder.parent / "model.sig"
        signer = theirs.signing.Config().use_elliptic_key_signer(private_key=private)
        config = HASHINGS[way](theirs.hashing)
        signer.set_hashing_config(config).sign(alone / "model.safetensors", bundle)
        statement = read_theirs(bundle, public)
        assert {each.name for each in statement.resources} == {"."}
        document = published.with_weights(MODEL, statement, open_folder(alone))
        assert [file.name for file in document.files] == ["model.safetensors"]
        with pytest.raises(ReferenceValueError, match=r"Give the weights with --dir"):
            published.without_weights(MODEL, statement)


def test_deviation_shard_sizes_are_floats(theirs: Any, folder: Path) -> None:
    """Written as 1000.0, read as 1000."""
    bundle, public = signed_by_them(theirs, folder, "shards, sha256")
    size = payload_of(bundle)["predicate"]["serialization"]["shard_size"]
    assert isinstance(size, float)
    statement = read_theirs(bundle, public)
    assert (statement.shard_size, type(statement.shard_size)) == (1000, int)


def test_deviation_the_algorithm_of_a_shard_names_its_size(theirs: Any, folder: Path) -> None:
    """sha256-sharded-1000."""
    bundle, public = signed_by_them(theirs, folder, "shards, sha256")
    named = {each["algorithm"] for each in payload_of(bundle)["predicate"]["resources"]}
    assert named == {"sha256-sharded-1000"}
    assert read_theirs(bundle, public).algorithm == "sha256"


def test_deviation_more_than_ten_shards_are_sorted_by_number(theirs: Any, folder: Path) -> None:
    """The specification sorts them as text."""
    bundle, public = signed_by_them(theirs, folder, "shards, sha256")
    named = [each["name"] for each in payload_of(bundle)["predicate"]["resources"]]
    shards = [name for name in named if name.startswith("model.safetensors:")]
    assert len(shards) > 10
    assert shards != sorted(shards)
    assert published.with_weights(MODEL, read_theirs(bundle, public), open_folder(folder)).tensors


def test_deviation_empty_files_are_in_no_shard(theirs: Any, folder: Path) -> None:
    """They are files of the folder all the same."""
    statement = read_theirs(*signed_by_them(theirs, folder, "shards, sha256"))
    assert "empty" not in {each.name for each in statement.resources}
    document = published.with_weights(MODEL, statement, open_folder(folder))
    assert "empty" in {file.name for file in document.files}


def test_deviation_blake2_is_called_blake2b(theirs: Any, folder: Path) -> None:
    """Asked for by the one name and written by the other; theirs does not read it back by itself."""
    bundle, public = signed_by_them(theirs, folder, "files, blake2")
    assert payload_of(bundle)["predicate"]["serialization"]["hash_type"] == "blake2b"
    assert read_theirs(bundle, public).algorithm == "blake2b"
    with pytest.raises(ValueError, match="Unsupported hashing method blake2b"):
        verified_by_them(theirs, folder, bundle, public)


def test_deviation_the_hint_is_over_the_pem(theirs: Any, folder: Path) -> None:
    """Ours is the same, so that theirs can tell which key is meant."""
    theirs_bundle, public = signed_by_them(theirs, folder)
    ours_bundle = exported(folder, public.with_suffix(".pem"))
    for bundle in (theirs_bundle, ours_bundle):
        hint = json.loads(bundle.read_bytes())["verificationMaterial"]["publicKey"]["hint"]
        assert hint == hashlib.sha256(public.read_bytes()).hexdigest()


@pytest.mark.parametrize("keyid", ["", None, "absent"])
def test_deviation_key_ids(theirs: Any, folder: Path, keyid: str | None) -> None:
    """Theirs is empty; others write null, or leave it out."""
    bundle, public = signed_by_them(theirs, folder)
    raw = json.loads(bundle.read_bytes())
    (signature,) = raw["dsseEnvelope"]["signatures"]
    assert not signature.get("keyid")
    signature["keyid"] = keyid
    if keyid == "absent":
        del signature["keyid"]
    bundle.write_text(json.dumps(raw))
    assert read_theirs(bundle, public)


def test_deviation_ignored_paths_are_relative_names(theirs: Any, folder: Path) -> None:
    """Files and folders that they were told to leave out are left out here too."""
    (folder / "notes").mkdir()
    (folder / "notes" / "x").write_text("x")
    (folder / "ignore-me").write_text("x")
    bundle, public = signed_by_them(theirs, folder, paths=["ignore-me", "notes"])
    statement = read_theirs(bundle, public)
    assert {"ignore-me", "notes", ".git"} <= set(statement.ignore_paths)
    document = published.with_weights(MODEL, statement, open_folder(folder, statement.ignore_paths))
    assert not {"ignore-me", "notes/x"} & {file.name for file in document.files}


def test_deviation_a_file_more_is_never_let_pass(theirs: Any, folder: Path) -> None:
    """Theirs can be told to; here whatever is in the folder must have been signed."""
    bundle, public = signed_by_them(theirs, folder)
    (folder / "more").write_text("x")
    verifier = theirs.verifying.Config().use_elliptic_key_verifier(public_key=public)
    verifier.set_ignore_unsigned_files(True).verify(folder, bundle)
    with pytest.raises(ReferenceValueError, match="'more' is in the folder, but it was not signed"):
        published.with_weights(MODEL, read_theirs(bundle, public), open_folder(folder))


def test_deviation_version_controls_files_that_were_signed(theirs: Any, folder: Path) -> None:
    """Who asks for them gets them signed, and a folder that holds them is what was signed."""
    (folder / ".gitattributes").write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("x")
    bundle, public = signed_by_them(theirs, folder, paths=[], ignore_git_paths=False)
    verified_by_them_with_git(theirs, folder, bundle, public)
    said = ""
    try:
        published.with_weights(MODEL, read_theirs(bundle, public), open_folder(folder))
    except ReferenceValueError as refusal:
        said = str(refusal)
    assert "is not in the folder" not in said


def verified_by_them_with_git(theirs: Any, folder: Path, bundle: Path, public: Path) -> None:
    config = HASHINGS["files, sha256"](theirs.hashing).set_ignored_paths(paths=[], ignore_git_paths=False)
    verifier = theirs.verifying.Config().use_elliptic_key_verifier(public_key=public)
    verifier.set_hashing_config(config).verify(folder, bundle)


def test_the_root_digest_binds_no_names(folder: Path) -> None:
    """Names swapped under the same root: another statement, another import, refused with the weights."""
    key = ec.generate_private_key(ec.SECP256R1())
    contents = {file.name: Path(file.path).read_bytes() for file in open_folder(folder).files}
    resources = [entry(name, data) for name, data in contents.items()]
    good = statement_of(resources)
    swapped = copy.deepcopy(good)
    first, second = swapped["predicate"]["resources"][:2]
    first["name"], second["name"] = second["name"], first["name"]
    assert swapped["subject"] == good["subject"]
    statements = [
        oms.verify_with_key(oms.read_bundle(json.dumps(sealed(each, key)).encode()), pem_of(key))
        for each in (good, swapped)
    ]
    documents = [published.without_weights(MODEL, statement) for statement in statements]
    assert documents[0].files != documents[1].files
    assert published.with_weights(MODEL, statements[0], open_folder(folder))
    with pytest.raises(ReferenceValueError, match="differs from what was signed"):
        published.with_weights(MODEL, statements[1], open_folder(folder))


# The commands as a publisher's customer meets them.


@pytest.fixture(scope="module")
def published_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, a bundle and keys side by side; a verifier's home with the reference in it."""
    place = tmp_path_factory.mktemp("published")
    tiny_model(place / "model")
    private, _ = write_key(place)
    write_key(place, name="other")
    done = touchstone(
        "reference", "export-oms", str(place / "model"),
        "--private-key", str(private), "--out", str(place / "model.sig"),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"Signed 3 files by sha256: {place / 'model.sig'}\n")
    home = str(place / "home")
    assert touchstone("verifier", "init", "--home", home).returncode == 0
    done = touchstone(
        "reference", "import-oms", str(place / "model.sig"), "--model", MODEL, "--public-key",
        str(place / "key.pub"), "--dir", str(place / "model"), "--home", home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{MODEL}: 3 files," in done.stdout
    assert "signed (key): key sha256:" in done.stdout
    assert f", active in {home}" in done.stdout
    return place


def references(home: Path) -> list[tuple[str, str, str]]:
    with closing(sqlite3.connect(home / "verifier.db")) as db:
        return db.execute("SELECT model, digest, state FROM reference_values ORDER BY digest").fetchall()


def test_an_imported_reference_is_used_like_a_measured_one(published_model: Path) -> None:
    """Challenges are minted from the weights that it was held to, and tokens are issued for it."""
    home = str(published_model / "home")
    done = touchstone(
        "challenges", "mint", "--model", MODEL, "--dir", str(published_model / "model"), "--reads", "2",
        "--walks", "1", "--rows", "8", "--home", home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Minted 2 reads and 1 walks" in done.stdout


def test_import_without_the_weights_as_json(published_model: Path) -> None:
    """One document on standard output; it has files and a publisher, and nothing else."""
    done = touchstone(
        "reference", "import-oms", str(published_model / "model.sig"), "--model", MODEL, "--public-key",
        str(published_model / "key.pub"), "--json",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document.keys() == {"model", "files", "publisher"}
    assert document["publisher"]["method"] == "key"
    assert [file["name"] for file in document["files"]] == [
        "config.json",
        "model.safetensors",
        "sub/empty.txt",
    ]


def test_a_refusal_is_one_sentence(published_model: Path) -> None:
    """Exit status 1, standard output empty, no stack trace, and the reference that was there stays."""
    before = references(published_model / "home")
    done = touchstone(
        "reference", "import-oms", str(published_model / "model.sig"), "--model", MODEL, "--public-key",
        str(published_model / "other.pub"), "--home", str(published_model / "home"),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: the signature does not fit the key\n"
    assert references(published_model / "home") == before


def write(place: Path, name: str, data: bytes | Json) -> str:
    (place / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return str(place / name)


def other_weights(place: Path) -> str:
    folder = tiny_model(place / "other")
    (folder / "config.json").write_text("{}")
    return str(folder)


ONE = statement_of([entry("a", b"a")])
LONG = statement_of([entry("x" * 5000 + "/..", b"a")])

# What is given instead of the good bundle, key and so on, and words of the sentence.
REFUSALS: dict[str, tuple[Callable[[Path], dict[str, str | None]], str]] = {
    "no bundle": (lambda p: {"bundle": str(p / "none")}, "cannot be read: No such file"),
    "a folder for a bundle": (lambda p: {"bundle": str(p)}, "cannot be read: Is a directory"),
    "an empty bundle": (lambda p: {"bundle": write(p, "b", b"")}, "the bundle is empty"),
    "no JSON": (lambda p: {"bundle": write(p, "b", b"\xff")}, "the bundle is not JSON"),
    "nested too deep": (lambda p: {"bundle": write(p, "b", b"[" * 100_000)}, "is nested too deep"),
    "a media type of half a character": (
        lambda p: {"bundle": write(p, "b", {"mediaType": "\ud800\x1b[31m"})},
        r"of media type '\ud800\x1b[31m'",
    ),
    "another statement's name": (
        lambda p: {"bundle": write(p, "b", sealed(LONG, KEY)), "public-key": write(p, "k", pem_of(KEY))},
        "is not a path within the model",
    ),
    "no key": (lambda p: {"public-key": str(p / "none")}, "cannot be read: No such file"),
    "no PEM": (lambda p: {"public-key": write(p, "k", b"\0\xff")}, "the public key is not PEM"),
    "an RSA key": (
        lambda p: {"public-key": write(p, "k", pem_of(rsa.generate_private_key(65537, 2048)))},
        "the key is not on P-256, P-384 or P-521",
    ),
    "another key": (lambda p: {"public-key": write(p, "k", pem_of(KEY))}, "the signature does not fit"),
    "a root for a key": (
        lambda p: {"public-key": None, "root": write(p, "r", ROOT.pem)},
        "the bundle carries publicKey, not x509CertificateChain",
    ),
    "a trusted root for a key": (
        lambda p: {
            "public-key": None, "trusted-root": str(p / "none"), "identity": "a@b", "issuer": "https://c",
        },
        "the bundle carries publicKey, not certificate",
    ),
    "a bundle of another model": (
        lambda p: {"bundle": write(p, "b", sealed(ONE, KEY)), "public-key": write(p, "k", pem_of(KEY))},
        "'a' was signed, but it is not in the folder",
    ),
    "no folder": (lambda p: {"dir": str(p / "none")}, "does not exist"),
    "an empty folder": (lambda p: {"dir": str(p / "empty")}, "has no files"),
    "other weights": (lambda p: {"dir": other_weights(p)}, "'config.json' differs from what was signed"),
    "a bad model name": (lambda p: {"model": "../x"}, "is not a model's name"),
    "a home that is none": (lambda p: {"home": str(p / "none")}, ""),
    "a bad model name without the weights": (lambda p: {"model": "a b", "dir": None}, "is not a model's name"),
    "a model name too long without the weights": (lambda p: {"model": "x" * 129, "dir": None}, "x"),
    "a shard": (
        lambda p: {
            "bundle": write(p, "b", sealed(
                statement_of([entry("a:0:1", b"a")], method="shards", shard_size=1), KEY)),
            "public-key": write(p, "k", pem_of(KEY)), "dir": None,
        },
        "Give the weights with --dir",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_nothing_is_half_imported(
    published_model: Path, tmp_path: Path, given: Callable[[Path], dict[str, str | None]], reason: str
) -> None:
    """Exit status 1, one sentence, and the reference that was there stays the active one."""
    (tmp_path / "empty").mkdir()
    home = Path(shutil.copytree(published_model / "home", tmp_path / "home"))
    options: dict[str, str | None] = {
        "bundle": str(published_model / "model.sig"),
        "public-key": str(published_model / "key.pub"),
        "dir": str(published_model / "model"),
        "model": MODEL,
        "home": str(home),
        **given(tmp_path),
    }
    bundle = options.pop("bundle")
    before = references(home)
    assert [state for _, _, state in before] == ["active"]
    arguments = [text for name, value in options.items() if value for text in (f"--{name}", value)]
    status, said = ours("import-oms", str(bundle), *arguments)
    assert status == 1
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    assert reason in said
    assert references(home) == before


def test_an_import_again_is_the_same_reference(published_model: Path) -> None:
    """Same statement, same weights: the same identity, once in the database."""
    before = references(published_model / "home")
    status, said = ours(
        "import-oms", published_model / "model.sig", "--model", MODEL, "--public-key",
        published_model / "key.pub", "--dir", published_model / "model", "--home", published_model / "home",
    )  # fmt: skip
    assert status == 0, said
    assert references(published_model / "home") == before


USAGE: dict[str, tuple[str, ...]] = {
    "nobody to trust": (),
    "an identity alone": ("--identity", "a@b"),
    "no issuer": ("--trusted-root", "x", "--identity", "a@b"),
    "no identity": ("--trusted-root", "x", "--issuer", "https://c"),
    "no trusted root": ("--identity", "a@b", "--issuer", "https://c"),
    "a moment that is none": ("--root", "x", "--at", "yesterday"),
}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_usage_errors(published_model: Path, arguments: tuple[str, ...]) -> None:
    """Exit status 2, and what to give."""
    given = [write(published_model, "root.pem", ROOT.pem) if each == "x" else each for each in arguments]
    status, said = ours("import-oms", published_model / "model.sig", "--model", MODEL, *given)
    assert status == 2
    assert re.search("--at yesterday is not a moment|say in one way whom|a keyless bundle needs", said)


def test_usage_errors_of_the_real_command(published_model: Path) -> None:
    """Whom to trust is never guessed."""
    bundle = str(published_model / "model.sig")
    done = touchstone("reference", "import-oms", bundle, "--model", MODEL)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: say in one way whom to trust: with --public-key, with --root" in done.stderr
    status, said = ours("export-oms", published_model / "model", "--out", bundle)
    assert (status, "Missing option '--private-key'" in said) == (2, True)


@pytest.mark.parametrize(("at", "status"), [
    ("2026-06-01T00:00:00Z", 0), ("2026-06-01", 0), ("2024-06-01T00:00:00+02:00", 1), ("2036-01-01", 1),
    ("0001-01-01T00:00:00+14:00", 1), ("9999-12-31T23:59:59-14:00", 1),
])  # fmt: skip
def test_the_moment_of_evaluation(tmp_path: Path, at: str, status: int) -> None:
    """A chain is valid at a moment, and the caller says which; without a zone, it is UTC."""
    leaf = issue("leaf", MIDDLE, LEAF)
    bundle = write(tmp_path, "b", sealed(ONE, leaf.key, chain=[leaf.der, MIDDLE.der]))
    root = write(tmp_path, "r", ROOT.pem)
    found, said = ours("import-oms", bundle, "--model", MODEL, "--root", root, "--at", at)
    assert found == status, said
    if status:
        assert "CN=leaf is valid from 2025-01-01 to 2035-01-01, not at" in said


def test_a_name_with_control_characters_is_not_shown_raw(tmp_path: Path) -> None:
    """A subject is what somebody wrote; a terminal is not for them to write to."""
    leaf = issue("le\a\raf", MIDDLE, LEAF)
    bundle = write(tmp_path, "b", sealed(ONE, leaf.key, chain=[leaf.der, MIDDLE.der]))
    root = write(tmp_path, "r", ROOT.pem)
    status, said = ours("import-oms", bundle, "--model", MODEL, "--root", root, "--at", "2026-06-01")
    assert (status, "signed (certificate): certificate of CN=le" in said) == (0, True)
    assert not {"\a", "\r"} & set(said)
    status, said = ours("import-oms", bundle, "--model", MODEL, "--root", root, "--at", "2040-01-01")
    assert (status, "is valid from" in said) == (1, True)
    assert not {"\a", "\r"} & set(said)


def test_weights_with_their_bundle_beside_them_can_be_minted_from(
    published_model: Path, tmp_path: Path
) -> None:
    """Publishers put the bundle into the model's folder: what was imported there is used there."""
    home, folder = tmp_path / "home", tmp_path / "model"
    shutil.copytree(published_model / "model", folder)
    bundle = folder / "model.sig"
    key = published_model / "key.pem"
    assert ours("export-oms", folder, "--private-key", key, "--out", bundle)[0] == 0
    assert ours("init", "--home", home, group=verifier)[0] == 0
    status, said = ours(
        "import-oms", bundle, "--model", MODEL, "--public-key", published_model / "key.pub", "--dir", folder,
        "--home", home,
    )  # fmt: skip
    assert status == 0, said
    status, said = ours(
        "mint", "--model", MODEL, "--dir", folder, "--reads", "1", "--home", home, group=challenges
    )
    assert status == 0, said


EXPORT_REFUSALS: dict[str, tuple[Callable[[Path], dict[str, str]], str]] = {
    "no folder": (lambda p: {"folder": str(p / "none")}, "does not exist"),
    "an empty folder": (lambda p: {"folder": str(p / "empty")}, "has no files"),
    "no key": (lambda p: {"private-key": str(p / "none")}, "cannot be read: No such file"),
    "no PEM": (lambda p: {"private-key": write(p, "k", b"k")}, "is not an unencrypted private key in PEM"),
    "a public key": (
        lambda p: {"private-key": write(p, "k", pem_of(KEY))},
        "is not an unencrypted private key in PEM",
    ),
    "an encrypted key": (
        lambda p: {"private-key": write(p, "k", KEY.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x")))},
        "is not an unencrypted private key in PEM",
    ),
    "an RSA key": (lambda p: {"private-key": write(p, "k", rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))},
        "the key is not on P-256, P-384 or P-521",
    ),
    "secp256k1": (lambda p: {"private-key": write(p, "k", ec.generate_private_key(ec.SECP256K1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))},
        "the key is not on P-256, P-384 or P-521",
    ),
    "nowhere to write": (lambda p: {"out": str(p / "none" / "x")}, "cannot be written: No such file"),
    "a folder to write": (lambda p: {"out": str(p)}, "cannot be written: Is a directory"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "reason"), EXPORT_REFUSALS.values(), ids=EXPORT_REFUSALS)
def test_an_export_that_is_refused(
    published_model: Path, tmp_path: Path, given: Callable[[Path], dict[str, str]], reason: str
) -> None:
    """Exit status 1, one sentence, and no bundle."""
    (tmp_path / "empty").mkdir()
    options = {
        "folder": str(published_model / "model"),
        "private-key": str(published_model / "key.pem"),
        "out": str(tmp_path / "out.sig"),
        **given(tmp_path),
    }
    folder = options.pop("folder")
    status, said = ours("export-oms", folder, *(text for k, v in options.items() for text in (f"--{k}", v)))
    assert (status, said.startswith("Error: "), said.count("\n")) == (1, True, 1)
    assert reason in said
    assert not (tmp_path / "out.sig").exists()


def test_the_name_in_the_statement(published_model: Path, tmp_path: Path) -> None:
    """The folder's, or what is given."""
    bundle = tmp_path / "b"
    arguments = (
        "export-oms",
        published_model / "model",
        "--private-key",
        published_model / "key.pem",
        "--out",
        bundle,
    )
    assert ours(*arguments)[0] == 0
    assert payload_of(bundle)["subject"][0]["name"] == "model"
    assert ours(*arguments, "--model", "日本")[0] == 0
    assert payload_of(bundle)["subject"][0]["name"] == "日本"


def test_what_is_written_validates_against_the_schemas(samples: Path, published_model: Path) -> None:
    """Bundle, envelope, statement and predicate, as the specification has them."""
    validators = pytest.importorskip("jsonschema.validators")
    referencing = pytest.importorskip("referencing")
    sample(samples, "valid/key")
    schemas = [
        json.loads(path.read_bytes()) for path in (samples / "oms" / "schemas" / "v1.0").glob("*.schema.json")
    ]
    # The schemas name each other by address; nothing is fetched.
    registry = referencing.Registry().with_resources(
        (each["$id"], referencing.Resource.from_contents(each)) for each in schemas
    )
    raw = json.loads((published_model / "model.sig").read_bytes())
    payload = payload_of(published_model / "model.sig")
    parts = {
        "bundle": raw,
        "envelope": raw["dsseEnvelope"],
        "statement": payload,
        "predicate": payload["predicate"],
    }
    assert {each["$id"].split("/")[3] for each in schemas} == parts.keys()
    for schema in schemas:
        part = parts[schema["$id"].split("/")[3]]
        validator = validators.validator_for(schema)(schema, registry=registry)
        assert [error.message for error in validator.iter_errors(part)] == []
        assert list(validator.iter_errors({})) != []


def test_documents_keep_their_publisher(published_model: Path) -> None:
    """Encoded, stored and read back, it is the same reference value."""
    bundle = oms.read_bundle((published_model / "model.sig").read_bytes())
    statement = oms.verify_with_key(bundle, (published_model / "key.pub").read_bytes())
    document = published.with_weights(MODEL, statement, open_folder(published_model / "model"))
    again = measured.read_document(msgspec.json.encode(document))
    assert isinstance(again, Document)
    assert (again, again.digest) == (document, document.digest)
    assert changed(msgspec.to_builtins(again), "publisher", "method", to="x") != msgspec.to_builtins(again)
