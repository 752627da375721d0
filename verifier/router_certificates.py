"""
The certificate by which a router shows nodes who it is, and the statement that registers it.  Pure.

The certificate is self-signed: nodes trust it because the verifier lists it (docs/adr/0037), so it names nobody and
grants nothing else.  What is not in its one form is refused, so that no list of trust anchors ever has an authority.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID

from attester import cbor, client_certificate, cose
from attester.client_certificate import SIGNS
from attester.cose import PublicKey
from attester.errors import SignatureError
from verifier.errors import RequestError

DOMAIN: Final = "touchstone/router-registration/1"
MAX_CERTIFICATE: Final = 2048
"""Bytes of DER."""
_LONGEST: Final = timedelta(days=3700)
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_ECDSA: Final = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True)
class RouterCertificate:
    """A router's certificate, checked."""

    der: bytes
    key: PublicKey
    spki_sha256: bytes
    """Of its public key: what tells routers apart."""
    ends: datetime

    def check_statement(self, signature: bytes, issuer: str, credential: bytes) -> None:
        """
        Check that the certificate's key signed the registration at *issuer* by the credential with this digest.

        Raises:
            RequestError: it did not.
        """
        try:
            self.key.verify(signature, statement(issuer, credential, self.der))
        except SignatureError:
            raise RequestError(
                "the signature is not one by the certificate's key for this verifier and this credential",
                code="registration.signature",
            ) from None


def statement(issuer: str, credential: bytes, certificate: bytes) -> bytes:
    """
    What a router signs to register its certificate.

    Args:
        issuer: The issuer of the verifier: a registration is of no use at another one.
        credential: SHA-256 of the bearer that presents it: nor is it with the credential of somebody else.
        certificate: DER.
    """
    return cbor.encode([DOMAIN, issuer, credential, hashlib.sha256(certificate).digest()])


def make_certificate(key: ec.EllipticCurvePrivateKey, now: datetime) -> bytes:
    """Make the certificate of a router's key: DER, valid from the day before *now* for ten years."""
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    # A name of its own: so TLS libraries find the one certificate of the list, and try no others.
    name = f"touchstone router {hashlib.sha256(spki).hexdigest()[:32]}"
    return client_certificate.make(key, name, now).public_bytes(Encoding.DER)


def read_certificate(der: bytes, at: datetime) -> RouterCertificate:
    """
    Read a router's certificate strictly.

    Args:
        der: What somebody sent, of any length.
        at: The time, with a time zone.

    Raises:
        RequestError: it is not a certificate that `make_certificate` could have made, or is not valid now.
    """
    if len(der) > MAX_CERTIFICATE:
        raise _refusal(f"it has {len(der)} bytes, more than {MAX_CERTIFICATE}")
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = _read_key(certificate)
        extensions = {type(each.value): each.value for each in certificate.extensions}
        began, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        is_self_issued = certificate.issuer == certificate.subject
    except _UNREADABLE:
        raise _refusal("it cannot be read") from None
    if certificate.version is not x509.Version.v3 or not is_self_issued:
        raise _refusal("it is not a self-signed one of version 3")
    if extensions != _extensions_of(certificate.public_key()):
        raise _refusal(
            "its extensions are not exactly CA:FALSE, digitalSignature, clientAuth and the identifiers of its key"
        )
    if not began <= at < ends or ends - began > _LONGEST:
        raise _refusal(f"it is valid from {began:%Y-%m-%d} to {ends:%Y-%m-%d}, not now or for too long")
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    numbers = key.public_numbers()
    point = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    return RouterCertificate(der, PublicKey(cose.ES256, point), hashlib.sha256(spki).digest(), ends)


def _read_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The key, P-256, by which the certificate is signed itself.  Raises what `_UNREADABLE` has, and `RequestError`."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _refusal("its key is not one of P-256")
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        raise _refusal("it is not signed by ECDSA with SHA-256")
    try:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, _ECDSA)
    except InvalidSignature:
        raise _refusal("it is not signed by its own key") from None
    return key


def _extensions_of(key: Any) -> dict[type[x509.ExtensionType], x509.ExtensionType]:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key)
    return {
        x509.BasicConstraints: x509.BasicConstraints(ca=False, path_length=None),
        x509.KeyUsage: x509.KeyUsage(**SIGNS, encipher_only=False, decipher_only=False),
        x509.ExtendedKeyUsage: x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
        x509.SubjectKeyIdentifier: identifier,
        x509.AuthorityKeyIdentifier: x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            identifier
        ),
    }


def _refusal(why: str) -> RequestError:
    return RequestError(f"the certificate is not one of a router: {why}", code="registration.certificate")
