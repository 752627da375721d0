"""
OpenSSF Model Signing: publishers' signatures over the files of a model, verified and made.

A bundle is a Sigstore bundle (JSON) with a DSSE envelope, whose payload is an in-toto
Statement (`verifier.references.oms_statement`; ossf/model-signing-spec, v1.0).  Verifying is
strict, in numbered steps, each with its own refusal:

    1  the bundle: JSON, known media type, one kind of verification material
    2  the envelope: the in-toto payload type, exactly one signature
    3  the signature over the bytes as they are: by a key, a certificate chain, or Sigstore's keyless flow
    4  the statement: type, predicate, one subject
    5  the resources: valid names, well-formed digests, and the subject's digest over them in their order

A statement is read only after its signature was verified.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attester.version import install_hint
from attester.weights.hashing import SHA256
from verifier.dsse import pae
from verifier.errors import ReferenceValueError
from verifier.references import certificates
from verifier.references.measured import Publisher
from verifier.references.oms_statement import (
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    Statement,
    json_of,
    object_of,
    read_statement,
)

BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
MAX_BUNDLE: Final = 64 << 20

_BUNDLE_TYPES: Final = (
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
    BUNDLE_TYPE,
    "application/vnd.dev.sigstore.bundle.v0.3.1+json",
)
_OPTIONS: Final = {
    "publicKey": "--public-key",
    "x509CertificateChain": "--root",
    "certificate": "--trusted-root, --identity and --issuer",
}
"""By the kind of verification material, the options that verify a bundle with it."""
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512(),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle after step 2: it is well-formed, and its signature is not verified."""

    raw: bytes
    material: str
    """publicKey, x509CertificateChain or certificate."""
    certificates: tuple[bytes, ...]
    """DER; the signer's is the first."""
    payload: bytes
    signature: bytes


def read_bundle(data: bytes) -> Bundle:
    """
    Steps 1 and 2.

    Raises:
        ReferenceValueError: a step fails; the message says why.
    """
    # 1. The bundle.
    if not data:
        raise ReferenceValueError("the bundle is empty")
    if len(data) > MAX_BUNDLE:
        raise ReferenceValueError(f"the bundle has {len(data)} bytes, and at most {MAX_BUNDLE} are read")
    raw = object_of(json_of(data, "the bundle"), "the bundle")
    if raw.get("mediaType") not in _BUNDLE_TYPES:
        raise ReferenceValueError(f"the bundle is of media type {str(raw.get('mediaType'))[:80]!r}")
    if "verificationMaterial" not in raw:
        raise ReferenceValueError("the bundle has no verificationMaterial")
    material = object_of(raw["verificationMaterial"], "verificationMaterial")
    kinds = [kind for kind in _OPTIONS if kind in material]
    if len(kinds) != 1:
        raise ReferenceValueError(
            f"verificationMaterial must have one of {', '.join(_OPTIONS)}, but has {' and '.join(kinds) or 'none'}"
        )
    if kinds[0] == "certificate" and not material.get("tlogEntries"):
        raise ReferenceValueError("a keyless bundle must have tlogEntries, but this one has none")
    # 2. The envelope.
    if "dsseEnvelope" not in raw:
        raise ReferenceValueError("the bundle has no dsseEnvelope")
    envelope = object_of(raw["dsseEnvelope"], "dsseEnvelope")
    if envelope.get("payloadType") != PAYLOAD_TYPE:
        raise ReferenceValueError(f"the payload is of type {str(envelope.get('payloadType'))[:80]!r}")
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        count = len(signatures) if isinstance(signatures, list) else 0
        raise ReferenceValueError(f"the envelope has {count} signatures, but it must have exactly one")
    return Bundle(
        raw=data,
        material=kinds[0],
        certificates=_certificates(kinds[0], material[kinds[0]]),
        payload=_base64(envelope.get("payload"), "the payload"),
        # The keyid is only a hint, and it may be empty, null or absent.
        signature=_base64(object_of(signatures[0], "the signature").get("sig"), "the signature"),
    )


def _certificates(kind: str, material: Any) -> tuple[bytes, ...]:
    if kind == "publicKey":
        return ()
    entries: Any = [material]
    if kind == "x509CertificateChain":
        entries = object_of(material, kind).get("certificates")
        if not isinstance(entries, list) or not 1 <= len(entries) <= certificates.MAX_CHAIN:
            raise ReferenceValueError(f"a chain must have 1 to {certificates.MAX_CHAIN} certificates")
    return tuple(_base64(object_of(entry, kind).get("rawBytes"), "a certificate") for entry in entries)


def verify_with_key(bundle: Bundle, pem: bytes) -> Statement:
    """
    Steps 3 to 5 with a public key that the caller trusts.

    Raises:
        ReferenceValueError: the bundle is of another kind, the key is of another kind, or a step fails.
    """
    _expect(bundle, "publicKey")
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ReferenceValueError("the public key is not PEM") from None
    _check_signature(bundle, key)
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return _read_statement(bundle, "key", f"key sha256:{hashlib.sha256(der).hexdigest()}")


def verify_with_certificates(
    bundle: Bundle, roots: Sequence[bytes], at: datetime, signer: str | None = None
) -> Statement:
    """
    Steps 3 to 5 with certificate authorities that the caller trusts.

    Nothing in such a bundle says when it was signed, so the chain must be valid at *at*.

    Args:
        bundle: The bundle.
        roots: PEM files; each certificate in them is trusted as an authority.
        at: The moment of evaluation, with a time zone.
        signer: The subject that must have signed (RFC 4514); `None` for anyone below the roots.

    Raises:
        ReferenceValueError: the bundle is of another kind, its chain does not lead to a root or
            is not valid at *at*, someone else signed, or a step fails.
    """
    _expect(bundle, "x509CertificateChain")
    leaf = certificates.verify_chain(bundle.certificates, roots, at)
    if signer is not None and signer != certificates.subject_of(leaf):
        raise ReferenceValueError(
            f"the bundle was signed by {certificates.subject_of(leaf)}, not by {signer[:120]}"
        )
    try:
        key: object = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    _check_signature(bundle, key)
    return _read_statement(bundle, "certificate", f"certificate of {certificates.subject_of(leaf)}")


def verify_keyless(bundle: Bundle, trusted_root: Path, identity: str, issuer: str) -> Statement:
    """
    Steps 3 to 5 for Sigstore's keyless flow, offline: Fulcio's chain, its log's promise, Rekor's entry.

    Args:
        bundle: The bundle.
        trusted_root: Sigstore's file ``trusted_root.json``, which the caller trusts.
        identity: The identity that must have signed, an address or a URI.
        issuer: The OpenID Connect issuer that must have vouched for the identity.

    Raises:
        ReferenceValueError: the bundle is of another kind, the library is not installed, or a step fails.
    """
    _expect(bundle, "certificate")
    if importlib.util.find_spec("sigstore") is None:
        raise ReferenceValueError(
            f"keyless bundles need a library that is not installed. Install it: {install_hint('sigstore')}"
        )
    # Sigstore's own library follows its logs.  It is imported here because it is slow and few need it.
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
        # Malformed input also raises errors of the libraries that Sigstore's library uses.
        raise ReferenceValueError(f"Sigstore refuses the bundle: {str(error)[:200]}") from None
    if kind != PAYLOAD_TYPE or payload != bundle.payload:
        raise ReferenceValueError("Sigstore verified another payload than the bundle's")
    return _read_statement(bundle, "sigstore", f"{identity} by {issuer}")


def _expect(bundle: Bundle, material: str) -> None:
    if bundle.material != material:
        hint = f"Give {_OPTIONS[bundle.material]} for it"
        raise ReferenceValueError(f"the bundle carries {bundle.material}, not {material}. {hint}")


def _check_signature(bundle: Bundle, key: object) -> None:
    # 3. The signature.  The specification allows only elliptic curves, each with its own hash.
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise ReferenceValueError("the key is not on P-256, P-384 or P-521")
    try:
        key.verify(bundle.signature, pae(PAYLOAD_TYPE, bundle.payload), ec.ECDSA(_HASHES[key.curve.name]))
    except InvalidSignature:
        raise ReferenceValueError("the signature does not fit the key") from None


def _read_statement(bundle: Bundle, method: str, signer: str) -> Statement:
    publisher = Publisher(method=method, signer=signer, statement=hashlib.sha256(bundle.payload).hexdigest())
    return read_statement(bundle.payload, publisher)


def sign(
    name: str, files: Sequence[tuple[str, bytes]], algorithm: str, key: ec.EllipticCurvePrivateKey,
    ignore_paths: Sequence[str] = (), *, links: bool = False,
) -> bytes:  # fmt: skip
    """
    Sign whole files with a key.  The reference implementation can verify the bundle.

    Args:
        name: The model's name, for information only.
        files: Names and digests, in any order.
        algorithm: sha256 or blake3.
        key: On P-256, P-384 or P-521.
        ignore_paths: Paths in the folder that are not signed.
        links: Whether some of the files are symbolic links.

    Raises:
        ReferenceValueError: the key is on another curve.
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
        # The reference implementation's hint is the SHA-256 of the PEM text, not of the key.
        "verificationMaterial": {"publicKey": {"hint": hashlib.sha256(pem).hexdigest()}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, indent=2).encode()


def _base64(value: Any, what: str) -> bytes:
    try:
        decoded = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise ReferenceValueError(f"{what} is not base64")
    return decoded
