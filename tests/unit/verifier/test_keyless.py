"""Keyless bundles of a Sigstore of our own: its authority, its log of certificates and its log of signatures."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.unit.verifier.test_certificates import usage
from tests.unit.verifier.test_oms import GOOD, b64, changed, names, sealed, without
from verifier.errors import ReferenceValueError
from verifier.references import oms
from verifier.references.oms_statement import Statement

pytest.importorskip("sigstore")

SIGNED_AT = datetime(2026, 6, 1, 12, tzinfo=UTC)
IDENTITY, VOUCHER = "signer@example.com", "https://accounts.example.com"
Json = dict[str, Any]


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def der_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def id_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The id of a log: the SHA-256 of its key (RFC 6962 §3.2)."""
    return hashlib.sha256(der_of(key)).digest()


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


@dataclass(frozen=True)
class OwnSigstore:
    """The three keys on which a keyless signature rests."""

    authority: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    certificates: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    """Of the log of certificates."""
    signatures: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    """Of the log of signatures."""

    def root(self) -> x509.Certificate:
        return (
            self._builder("sigstore", self.authority, timedelta(days=3650))
            .add_extension(x509.BasicConstraints(True, 0), critical=True)
            .add_extension(usage(certificates=True), critical=True)
            .sign(self.authority, hashes.SHA256())
        )

    def trusted_root(self, folder: Path) -> Path:
        """``trusted_root.json``, as Sigstore publishes its own."""
        valid = {"start": "2025-01-01T00:00:00Z"}

        def log(key: ec.EllipticCurvePrivateKey, url: str) -> Json:
            public = {
                "rawBytes": b64(der_of(key)),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": valid,
            }
            return {
                "baseUrl": url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": public,
                "logId": {"keyId": b64(id_of(key))},
            }

        authority = {
            "subject": {"organization": "example", "commonName": "sigstore"},
            "uri": "https://authority.example.com",
            "certChain": {"certificates": [{"rawBytes": b64(der(self.root()))}]},
            "validFor": valid,
        }
        path = folder / "trusted_root.json"
        document = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.signatures, "https://signatures.example.com")],
            "certificateAuthorities": [authority],
            "ctlogs": [log(self.certificates, "https://certificates.example.com")],
            "timestampAuthorities": [],
        }
        path.write_text(json.dumps(document))
        return path

    def certificate(self, key: ec.EllipticCurvePrivateKey, identity: str, voucher: str) -> x509.Certificate:
        """For ten minutes, with the promise of the log of certificates in it (RFC 6962 §3.3)."""
        builder = (
            self._builder("", key, timedelta(minutes=10), SIGNED_AT)
            .add_extension(usage(signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(identity)]), critical=True)
            .add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1"), voucher.encode()),
                critical=False,
            )
        )
        body = builder.sign(self.authority, hashes.SHA256()).tbs_certificate_bytes
        at_ms = int(SIGNED_AT.timestamp() * 1000)
        entry = hashlib.sha256(der_of(self.authority)).digest() + len(body).to_bytes(3, "big") + body
        promised = sign(self.certificates, struct.pack("!BBQH", 0, 0, at_ms, 1) + entry + bytes(2))
        promise = (
            struct.pack("!B32sQHBBH", 0, id_of(self.certificates), at_ms, 0, 4, 3, len(promised)) + promised
        )
        listed = struct.pack("!HH", len(promise) + 2, len(promise)) + promise
        # An octet string of fewer than 128 bytes, the length of which is one byte.
        assert len(listed) < 128
        octets = bytes([4, len(listed)]) + listed
        return builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2"), octets),
            critical=False,
        ).sign(self.authority, hashes.SHA256())

    def _builder(
        self, name: str, key: ec.EllipticCurvePrivateKey, lasts: timedelta, begin: datetime | None = None
    ) -> x509.CertificateBuilder:
        begin = begin or datetime(2025, 1, 1, tzinfo=UTC)
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
        return (
            x509.CertificateBuilder()
            .serial_number(7)
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sigstore")]))
            .subject_name(x509.Name(subject))
            .not_valid_before(begin)
            .not_valid_after(begin + lasts)
            .public_key(key.public_key())
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    def entry(self, bundle: Json, certificate: x509.Certificate, at: datetime = SIGNED_AT) -> Json:
        """The only entry of the log of signatures, with its promise and its proof."""
        envelope = bundle["dsseEnvelope"]
        body = canonical(
            {
                "apiVersion": "0.0.1",
                "kind": "dsse",
                "spec": {
                    "envelopeHash": hash_of(json.dumps(envelope).encode()),
                    "payloadHash": hash_of(base64.b64decode(envelope["payload"])),
                    "signatures": [
                        {
                            "signature": envelope["signatures"][0]["sig"],
                            "verifier": b64(certificate.public_bytes(serialization.Encoding.PEM)),
                        }
                    ],
                },
            }
        )
        seconds = int(at.timestamp())
        log_id = id_of(self.signatures)
        promise = canonical(
            {"body": b64(body), "integratedTime": seconds, "logID": log_id.hex(), "logIndex": 0}
        )
        leaf = hashlib.sha256(b"\0" + body).digest()
        note = f"signatures.example.com - 1\n1\n{b64(leaf)}\n"
        signature = b64(log_id[:4] + sign(self.signatures, note.encode()))
        return {
            "logIndex": "0",
            "logId": {"keyId": b64(log_id)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(seconds),
            "inclusionPromise": {"signedEntryTimestamp": b64(sign(self.signatures, promise))},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": b64(leaf),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n— signatures.example.com {signature}\n"},
            },
            "canonicalizedBody": b64(body),
        }

    def bundle(
        self,
        statement: Json = GOOD,
        identity: str = IDENTITY,
        voucher: str = VOUCHER,
        at: datetime = SIGNED_AT + timedelta(minutes=1),
    ) -> Json:
        """A statement signed with a key that is thrown away."""
        key = new_key()
        certificate = self.certificate(key, identity, voucher)
        made = sealed(statement, key)
        made["verificationMaterial"] = {
            "certificate": {"rawBytes": b64(der(certificate))},
            "tlogEntries": [self.entry(made, certificate, at)],
        }
        return made


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def canonical(value: Json) -> bytes:
    """JSON as RFC 8785 has it, of values that need no more than this."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def hash_of(data: bytes) -> Json:
    return {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}


OURS, OTHER = OwnSigstore(), OwnSigstore()
BUNDLE = OURS.bundle()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return OURS.trusted_root(tmp_path)


def verify(bundle: Json, root: Path, identity: str = IDENTITY, voucher: str = VOUCHER) -> Statement:
    return oms.verify_keyless(oms.read_bundle(json.dumps(bundle).encode()), root, identity, voucher)


def test_a_keyless_bundle(root: Path) -> None:
    """It verifies, offline, with the identity and who vouched for it."""
    statement = verify(BUNDLE, root)
    assert names(statement) == ["a.bin", "sub/b.bin"]
    assert statement.publisher.method == "sigstore"
    assert statement.publisher.signer == f"{IDENTITY} by {VOUCHER}"


@pytest.mark.parametrize(
    ("identity", "voucher"), [("mallory@example.com", VOUCHER), (IDENTITY, "https://accounts.example.org")]
)
def test_somebody_else_is_refused(root: Path, identity: str, voucher: str) -> None:
    """Both must be as the caller asks, in the certificate."""
    with pytest.raises(ReferenceValueError, match="Sigstore refuses the bundle"):
        verify(BUNDLE, root, identity, voucher)
    with pytest.raises(ReferenceValueError, match="Sigstore refuses the bundle"):
        verify(OURS.bundle(identity=identity, voucher=voucher), root)


@pytest.mark.parametrize("part", ["authority", "certificates", "signatures"])
def test_each_key_of_another_sigstore_is_refused(tmp_path: Path, part: str) -> None:
    """The authority's and both logs'."""
    keys = {name: getattr(OURS, name) for name in ("authority", "certificates", "signatures")}
    mixed = OwnSigstore(**{**keys, part: getattr(OTHER, part)})
    with pytest.raises(ReferenceValueError, match="Sigstore refuses the bundle"):
        verify(BUNDLE, mixed.trusted_root(tmp_path))


@pytest.mark.parametrize("minutes", [-1, 11])
def test_a_signature_out_of_the_certificates_time_is_refused(root: Path, minutes: int) -> None:
    """By the time of the log."""
    with pytest.raises(ReferenceValueError, match="Sigstore refuses the bundle"):
        verify(OURS.bundle(at=SIGNED_AT + timedelta(minutes=minutes)), root)


ENTRY = ("verificationMaterial", "tlogEntries", 0)
OTHER_ENTRY = OURS.bundle()["verificationMaterial"]["tlogEntries"][0]
DEFECTS: dict[str, Json] = {
    "another payload": changed(BUNDLE, "dsseEnvelope", "payload", to=b64(b"{}")),
    "another signature": changed(
        BUNDLE,
        "dsseEnvelope",
        "signatures",
        0,
        "sig",
        to=OURS.bundle()["dsseEnvelope"]["signatures"][0]["sig"],
    ),
    "another certificate": changed(
        BUNDLE, "verificationMaterial", "certificate", to=OURS.bundle()["verificationMaterial"]["certificate"]
    ),
    "the entry of another signature": changed(BUNDLE, *ENTRY, to=OTHER_ENTRY),
    "the body of another entry": changed(
        BUNDLE, *ENTRY, "canonicalizedBody", to=OTHER_ENTRY["canonicalizedBody"]
    ),
    "the promise of another entry": changed(
        BUNDLE, *ENTRY, "inclusionPromise", to=OTHER_ENTRY["inclusionPromise"]
    ),
    "the proof of another entry": changed(BUNDLE, *ENTRY, "inclusionProof", to=OTHER_ENTRY["inclusionProof"]),
    "another time": changed(BUNDLE, *ENTRY, "integratedTime", to=str(int(SIGNED_AT.timestamp()) + 61)),
    "no promise": without(BUNDLE, *ENTRY, "inclusionPromise"),
    "no proof": without(BUNDLE, *ENTRY, "inclusionProof"),
    "a bundle of another Sigstore": OTHER.bundle(),
}


@pytest.mark.parametrize("bundle", DEFECTS.values(), ids=DEFECTS)
def test_a_keyless_bundle_with_one_defect(root: Path, bundle: Json) -> None:
    """Each link from the payload to the keys that are trusted."""
    with pytest.raises(ReferenceValueError, match="Sigstore refuses the bundle"):
        verify(bundle, root)


def test_a_keyless_bundle_without_an_entry(root: Path) -> None:
    """Before the library is asked."""
    with pytest.raises(
        ReferenceValueError, match="a keyless bundle must have tlogEntries, but this one has none"
    ):
        verify(changed(BUNDLE, "verificationMaterial", "tlogEntries", to=[]), root)


def test_a_statement_of_another_kind(root: Path) -> None:
    """A signature that fits does not make it one of a model."""
    with pytest.raises(ReferenceValueError, match=r"the predicate is of type 'https://example\.com/other'"):
        verify(OURS.bundle(changed(GOOD, "predicateType", to="https://example.com/other")), root)


@pytest.mark.parametrize("content", [None, b"", b"no", b"{}", b"[]", b"\xff"])
def test_a_trusted_root_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    """Missing, no JSON, or of something else: in a sentence."""
    path = tmp_path / "trusted_root.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ReferenceValueError, match="Sigstore refuses the bundle"):
        verify(BUNDLE, path)
