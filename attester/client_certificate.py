"""The self-signed certificate that a client of a node's endpoint presents: a router, or the node itself."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME: Final = timedelta(days=3652)
_BEGAN: Final = timedelta(days=1)
"""So that a node whose clock is behind believes it too."""
_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)
SIGNS: Final = {name: name == "digital_signature" for name in _USAGES}
"""The key usage: it signs, and does nothing else."""


def make(key: ec.EllipticCurvePrivateKey, name: str, now: datetime) -> x509.Certificate:
    """Make the certificate of *key*, valid from the day before *now* for ten years, that stands for nobody else."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    public = key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    began = (now - _BEGAN).replace(microsecond=0)
    return (
        x509.CertificateBuilder(
            subject, subject, public, x509.random_serial_number(), began, began + _LIFETIME
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**SIGNS, encipher_only=False, decipher_only=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(key, hashes.SHA256())
    )
