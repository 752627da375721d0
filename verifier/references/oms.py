"""
OpenSSF Model Signing: publishers' signatures as reference values, and ours for others.

A bundle is a Sigstore bundle (JSON) around a DSSE envelope around an in-toto Statement
whose predicate lists every file with its digest (ossf/model-signing-spec, v1.0).  Reading
is tolerant where implementations differ from the specification, and only there; verifying
is strict.  In numbered steps, each with its own refusal:

    1  the bundle: JSON, known media type, one kind of verification material
    2  the envelope: the in-toto payload type, exactly one signature
    3  the signature, by a key, a certificate chain, or Sigstore's keyless flow, over the bytes as they are
    4  the statement: type, predicate, one subject
    5  the resources: names bound, digests well-formed, and the subject's digest over them in their order

Nothing of a statement is looked at before its signature was verified.  The subject's digest
binds neither names nor lengths, so it is never used for anything but step 5.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attester import strictjson
from attester.version import install_hint
from attester.weights.hashing import BLAKE3, SHA256
from verifier.dsse import pae
from verifier.errors import ReferenceValueError
from verifier.references import certificates
from verifier.references.measured import Publisher

BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
BLAKE2B: Final = "blake2b"
MAX_BUNDLE: Final = 64 << 20

_BUNDLE_TYPES: Final = (
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
    BUNDLE_TYPE,
    "application/vnd.dev.sigstore.bundle.v0.3.1+json",
)
_MATERIALS: Final = ("publicKey", "x509CertificateChain", "certificate")
_DIGEST_BYTES: Final = {SHA256: 32, BLAKE3: 32, BLAKE2B: 64}
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512(),
}  # fmt: skip
_MAX_RESOURCES: Final = 1_000_000
_HEX: Final = re.compile(r"[0-9a-f]*")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True)
class Bundle:
    """A bundle after step 2: well-formed, and verified by nobody yet."""

    raw: bytes
    material: str
    """publicKey, x509CertificateChain or certificate."""
    certificates: tuple[bytes, ...]
    """DER, the signer's first."""
    payload: bytes
    signature: bytes


@dataclass(frozen=True)
class Resource:
    """A file, or a part of one, with its digest."""

    name: str
    start: int
    end: int | None
    """`None` for a whole file."""
    digest: bytes


@dataclass(frozen=True)
class Statement:
    """A verified statement."""

    algorithm: str
    """sha256, blake3 or blake2b."""
    resources: tuple[Resource, ...]
    shard_size: int | None
    ignore_paths: tuple[str, ...]
    publisher: Publisher


def read_bundle(data: bytes) -> Bundle:
    """
    Steps 1 and 2.

    Raises:
        ReferenceValueError: naming what is wrong.
    """
    # 1. The bundle.
    if not data:
        raise ReferenceValueError("the bundle is empty")
    if len(data) > MAX_BUNDLE:
        raise ReferenceValueError(f"the bundle has {len(data)} bytes, and at most {MAX_BUNDLE} are read")
    raw = _object(_json(data, "the bundle"), "the bundle")
    if raw.get("mediaType") not in _BUNDLE_TYPES:
        raise ReferenceValueError(f"the bundle is of media type {str(raw.get('mediaType'))[:80]!r}")
    if "verificationMaterial" not in raw:
        raise ReferenceValueError("the bundle has no verificationMaterial")
    material = _object(raw["verificationMaterial"], "verificationMaterial")
    kinds = [kind for kind in _MATERIALS if kind in material]
    if len(kinds) != 1:
        raise ReferenceValueError(
            f"verificationMaterial has {' and '.join(kinds) or 'none'} of {', '.join(_MATERIALS)}"
        )
    if kinds[0] == "certificate" and not material.get("tlogEntries"):
        raise ReferenceValueError("a keyless bundle has tlogEntries, and this one has none")
    # 2. The envelope.
    if "dsseEnvelope" not in raw:
        raise ReferenceValueError("the bundle has no dsseEnvelope")
    envelope = _object(raw["dsseEnvelope"], "dsseEnvelope")
    if envelope.get("payloadType") != PAYLOAD_TYPE:
        raise ReferenceValueError(f"the payload is of type {str(envelope.get('payloadType'))[:80]!r}")
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        count = len(signatures) if isinstance(signatures, list) else 0
        raise ReferenceValueError(f"the envelope has {count} signatures, and exactly one is wanted")
    return Bundle(
        raw=data,
        material=kinds[0],
        certificates=_certificates(kinds[0], material[kinds[0]]),
        payload=_base64(envelope.get("payload"), "the payload"),
        # Its keyid is a hint and may be empty, null or left out; the signature is what counts.
        signature=_base64(_object(signatures[0], "the signature").get("sig"), "the signature"),
    )


def _certificates(kind: str, material: Any) -> tuple[bytes, ...]:
    if kind == "publicKey":
        return ()
    entries: Any = [material]
    if kind == "x509CertificateChain":
        entries = _object(material, kind).get("certificates")
        if not isinstance(entries, list) or not 1 <= len(entries) <= certificates.MAX_CHAIN:
            raise ReferenceValueError(f"a chain has 1 to {certificates.MAX_CHAIN} certificates")
    return tuple(_base64(_object(entry, kind).get("rawBytes"), "a certificate") for entry in entries)


def verify_with_key(bundle: Bundle, pem: bytes) -> Statement:
    """
    Steps 3 to 5 with a public key that the caller trusts.

    Raises:
        ReferenceValueError: another kind of bundle, not such a key, or a step that fails.
    """
    _expect(bundle, "publicKey", "give --public-key for a bundle signed with a key")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ReferenceValueError("the public key is not PEM") from None
    _check_signature(bundle, key)
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return _statement(bundle, "key", f"key sha256:{hashlib.sha256(der).hexdigest()}")


def verify_with_certificates(
    bundle: Bundle, roots: Sequence[bytes], at: datetime, signer: str | None = None
) -> Statement:
    """
    Steps 3 to 5 with certificate authorities that the caller trusts.

    Nothing in such a bundle says when it was signed, so the chain must be valid at *at*.

    Args:
        bundle: As read.
        roots: PEM files; each certificate in them is trusted as an authority.
        at: The moment of evaluation, with a time zone.
        signer: The subject that must have signed (RFC 4514); anyone below the roots if not given.

    Raises:
        ReferenceValueError: another kind of bundle, a chain that does not lead to a root or
            is not valid at *at*, another signer, or a step that fails.
    """
    _expect(bundle, "x509CertificateChain", "give --root for a bundle signed with a certificate")
    leaf = certificates.verify_chain(bundle.certificates, roots, at)
    if signer is not None and signer != certificates.subject_of(leaf):
        raise ReferenceValueError(f"signed by {certificates.subject_of(leaf)}, not by {signer[:120]}")
    try:
        key: object = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    _check_signature(bundle, key)
    return _statement(bundle, "certificate", f"certificate of {certificates.subject_of(leaf)}")


def verify_keyless(bundle: Bundle, trusted_root: Path, identity: str, issuer: str) -> Statement:
    """
    Steps 3 to 5 for Sigstore's keyless flow, offline: Fulcio's chain, its log's promise, Rekor's entry.

    Args:
        bundle: As read.
        trusted_root: A file, Sigstore's ``trusted_root.json``, which the caller trusts.
        identity: Who must have signed, an address or a URI.
        issuer: The OpenID Connect issuer that must have vouched for it.

    Raises:
        ReferenceValueError: another kind of bundle, the library is not installed, or a step that fails.
    """
    _expect(bundle, "certificate", "give --trusted-root, --identity and --issuer for a keyless bundle")
    if importlib.util.find_spec("sigstore") is None:
        raise ReferenceValueError(f"keyless bundles need: {install_hint('sigstore')}")
    # One library that its makers keep up with their logs; slow to import, and few need it.
    from sigstore.models import Bundle as SigstoreBundle
    from sigstore.models import TrustedRoot
    from sigstore.verify import Verifier
    from sigstore.verify.policy import Identity

    try:
        root = TrustedRoot.from_file(str(trusted_root))
        kind, payload = Verifier(trusted_root=root).verify_dsse(
            SigstoreBundle.from_json(bundle.raw), Identity(identity=identity, issuer=issuer)
        )
    except Exception as error:  # noqa: BLE001
        # A library's edge: what is malformed ends in errors of the libraries below it, too.
        raise ReferenceValueError(f"Sigstore refuses it: {str(error)[:200]}") from None
    if kind != PAYLOAD_TYPE or payload != bundle.payload:
        raise ReferenceValueError("Sigstore verified another payload than the bundle's")
    return _statement(bundle, "sigstore", f"{identity} by {issuer}")


def _expect(bundle: Bundle, material: str, hint: str) -> None:
    if bundle.material != material:
        raise ReferenceValueError(f"the bundle carries {bundle.material}, not {material}: {hint}")


def _check_signature(bundle: Bundle, key: object) -> None:
    # 3. Only elliptic curves, each with its own hash, as the specification has them.
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise ReferenceValueError("the key is not on P-256, P-384 or P-521")
    try:
        key.verify(bundle.signature, pae(PAYLOAD_TYPE, bundle.payload), ec.ECDSA(_HASHES[key.curve.name]))
    except InvalidSignature:
        raise ReferenceValueError("the signature does not fit") from None


def _statement(bundle: Bundle, method: str, signer: str) -> Statement:
    # 4. The statement.
    raw = _object(_json(bundle.payload, "the statement"), "the statement")
    if raw.get("_type") != STATEMENT_TYPE:
        raise ReferenceValueError(f"the statement is of type {str(raw.get('_type'))[:80]!r}")
    if raw.get("predicateType") != PREDICATE_TYPE:
        raise ReferenceValueError(f"the predicate is of type {str(raw.get('predicateType'))[:80]!r}")
    subjects = raw.get("subject")
    if not isinstance(subjects, list) or len(subjects) != 1:
        raise ReferenceValueError("the statement has not exactly one subject")
    subject = _object(_object(subjects[0], "the subject").get("digest"), "the subject's digest")
    predicate = _object(raw.get("predicate"), "the predicate")
    serialization_ = _object(predicate.get("serialization"), "the serialization")
    algorithm, shard_size, ignored = _serialization(serialization_)
    # 5. The resources.
    listed = predicate.get("resources")
    if not isinstance(listed, list) or not 1 <= len(listed) <= _MAX_RESOURCES:
        raise ReferenceValueError("the predicate lists no resources, or too many")
    resources = [_resource(entry, algorithm, shard_size) for entry in listed]
    places = {(resource.name, resource.start, resource.end) for resource in resources}
    if len(places) != len(resources):
        raise ReferenceValueError("a resource stands twice")
    # In the order listed: implementations sort in two ways, and the digest is over theirs.
    root = hashlib.sha256(b"".join(resource.digest for resource in resources)).hexdigest()
    if subject.get(SHA256) != root:
        raise ReferenceValueError("the subject's digest is not that of the resources")
    publisher = Publisher(method, signer, hashlib.sha256(bundle.payload).hexdigest())
    return Statement(algorithm, tuple(resources), shard_size, ignored, publisher)


def _serialization(raw: dict[str, Any]) -> tuple[str, int | None, tuple[str, ...]]:
    method, algorithm, size = raw.get("method"), raw.get("hash_type"), raw.get("shard_size")
    # The reference implementation reads its own blake2b by either name.
    algorithm = BLAKE2B if algorithm == "blake2" else algorithm
    if not isinstance(algorithm, str) or algorithm not in _DIGEST_BYTES:
        raise ReferenceValueError(f"the hash type {str(algorithm)[:40]!r} is not known")
    ignored = raw.get("ignore_paths", [])
    if not isinstance(ignored, list) or not all(isinstance(path, str) for path in ignored):
        raise ReferenceValueError("ignore_paths is not a list of paths")
    if method == "files":
        if size is not None:
            raise ReferenceValueError("shard_size stands with the method files")
        return algorithm, None, tuple(ignored)
    if method != "shards":
        raise ReferenceValueError(f"the method {str(method)[:40]!r} is not known")
    # Written as 1000000000.0 by the reference implementation, through a format that has only floats.
    if isinstance(size, float) and size.is_integer():
        size = int(size)
    if type(size) is not int or not 0 < size < 1 << 62:
        raise ReferenceValueError(f"a shard size of {str(size)[:40]}")
    return algorithm, size, tuple(ignored)


def _resource(entry: Any, algorithm: str, shard_size: int | None) -> Resource:
    raw = _object(entry, "a resource")
    name, named = raw.get("name"), raw.get("algorithm")
    # The reference implementation writes sha256-sharded-1000000000.
    allowed = {algorithm} | ({f"{algorithm}-sharded-{shard_size}"} if shard_size else set())
    if algorithm == BLAKE2B:
        allowed |= {"blake2"}
    if not isinstance(named, str) or named not in allowed:
        raise ReferenceValueError(
            f"a resource's algorithm is {str(named)[:40]!r}, and the hash type {algorithm}"
        )
    if not isinstance(name, str):
        raise ReferenceValueError("a resource has no name")
    start, end = 0, None
    if shard_size is not None:
        name, start, end = _shard(name, shard_size)
    digest = raw.get("digest")
    digits = 2 * _DIGEST_BYTES[algorithm]
    if not isinstance(digest, str) or len(digest) != digits or not _HEX.fullmatch(digest):
        raise ReferenceValueError(f"the digest of {name[:80]!r} is not {algorithm} in lower-case hex")
    return Resource(_checked_name(name), start, end, bytes.fromhex(digest))


def _shard(name: str, size: int) -> tuple[str, int, int]:
    path, _, rest = name.rpartition(":")
    path, _, first = path.rpartition(":")
    if not (_NUMBER.fullmatch(first) and _NUMBER.fullmatch(rest)):
        raise ReferenceValueError(f"the shard {name[:80]!r} is not path:start:end")
    start, end = int(first), int(rest)
    if start % size or not start < end <= start + size:
        raise ReferenceValueError(f"the shard {name[:80]!r} is not of {size} bytes")
    return path, start, end


def _checked_name(name: str) -> str:
    parts = name.split("/")
    # A model of one file is named "." by the reference implementation.
    if name != "." and (
        not name or name.startswith("/") or "\\" in name or "\0" in name or {"", ".", ".."} & set(parts)
    ):
        raise ReferenceValueError(f"{name[:80]!r} is not a path within the model")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ReferenceValueError("a resource's name is not Unicode text") from None
    return name


def sign(
    name: str, files: Sequence[tuple[str, bytes]], algorithm: str, key: ec.EllipticCurvePrivateKey,
    ignore_paths: Sequence[str] = (), *, links: bool = False,
) -> bytes:  # fmt: skip
    """
    A bundle over whole files, signed with a key; the reference implementation verifies it.

    Args:
        name: The model's, informational.
        files: Names and digests, in any order.
        algorithm: sha256 or blake3.
        key: On P-256, P-384 or P-521.
        ignore_paths: What in the folder is not signed, as the verifier must know.
        links: Whether some of the files are symbolic links.

    Raises:
        ReferenceValueError: another curve.
    """
    if key.curve.name not in _HASHES:
        raise ReferenceValueError("the key is not on P-256, P-384 or P-521")
    ordered = sorted(files)
    root = hashlib.sha256(b"".join(digest for _, digest in ordered)).hexdigest()
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {SHA256: root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": algorithm,
                "allow_symlinks": links,
                "ignore_paths": sorted(ignore_paths),
            },
            "resources": [
                {"name": path, "algorithm": algorithm, "digest": digest.hex()} for path, digest in ordered
            ],
        },
    }
    payload = json.dumps(statement, ensure_ascii=False, indent=2).encode()
    signature = key.sign(pae(PAYLOAD_TYPE, payload), ec.ECDSA(_HASHES[key.curve.name]))
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    bundle = {
        "mediaType": BUNDLE_TYPE,
        # The reference implementation's hint: SHA-256 of the PEM text, not of the key.
        "verificationMaterial": {"publicKey": {"hint": hashlib.sha256(pem).hexdigest()}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, indent=2).encode()


def _json(data: bytes, what: str) -> Any:
    try:
        return strictjson.loads(data)
    except ValueError as error:
        raise ReferenceValueError(f"{what} is not JSON: {str(error)[:120]}") from None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ReferenceValueError(f"{what} is not an object")
    return value


def _base64(value: Any, what: str) -> bytes:
    try:
        decoded = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise ReferenceValueError(f"{what} is not base64")
    return decoded
