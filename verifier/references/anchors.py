"""
Trust anchors: keys and certificates whose signatures on reference values are taken.

Keys are on P-256, P-384 or P-521, of Ed25519, or of RSA.  Those of P-256 and Ed25519 are `cose.PublicKey`, as keys
of nodes are; the others verify CoRIMs and nothing else.

A certificate counts for what it is: that of an authority vouches for signers whose chain a CoRIM carries
(`x5chain`, RFC 9360), and any other is a key with a validity.

This module is pure.  `verifier.references.anchor_reading` makes anchors of bytes, and `verifier.anchor_files` reads
the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attester import cbor, cose
from attester.errors import COSEError, SignatureError
from verifier.errors import ReferenceValueError
from verifier.references import certificates

RSA_BITS: Final = (2048, 8192)
"""The smallest and the largest modulus.  RFC 8230 asks for 2048; a larger one costs whoever verifies."""
_RSA_EXPONENT: Final = (65537, 1 << 32)
_SHA: Final = {256: hashes.SHA256(), 384: hashes.SHA384(), 512: hashes.SHA512()}

# The algorithms of each kind of key (RFC 9053, RFC 8230, RFC 8812, RFC 9864), by COSE number.
_PSS: Final = {-37: 256, -38: 384, -39: 512}
_PKCS1: Final = {-257: 256, -258: 384, -259: 512}
_CURVES: Final[Mapping[str, tuple[int, int, tuple[int, ...]]]] = {
    "secp384r1": (48, 384, (-35, -51)),
    "secp521r1": (66, 512, (-36, -52)),
}
"""By curve: the bytes of a coordinate, the hash, and the algorithm with its two numbers."""
_KINDS: Final = {"secp384r1": "P-384", "secp521r1": "P-521"}
_COSE_CURVES: Final = {"secp384r1": 2, "secp521r1": 3}

_USABLE: Final = "P-256, P-384, P-521, Ed25519 or RSA"
_X5CHAIN: Final = 33
MAX_CHAIN_CERTIFICATES: Final = 8
"""Certificates that a message may carry."""
_MAX_CERTIFICATE: Final = 16 << 10
_LAST_SECOND: Final = 253402300799
"""Of the year 9999."""


@dataclass(frozen=True)
class OtherKey:
    """A public key on P-384 or P-521, or of RSA."""

    spki: bytes
    """SubjectPublicKeyInfo, DER."""
    only: int | None = None
    """The one algorithm that it is for, by COSE's number, if its file names one."""

    @cached_property
    def native(self) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
        """The key as the library has it."""
        key = serialization.load_der_public_key(self.spki)
        assert isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey))
        return key

    @property
    def kind(self) -> str:
        """P-384, P-521, or RSA with the size of its modulus."""
        key = self.native
        return f"RSA-{key.key_size}" if isinstance(key, rsa.RSAPublicKey) else _KINDS[key.curve.name]

    @cached_property
    def kid(self) -> bytes:
        """The COSE Key Thumbprint with SHA-256 (RFC 9679)."""
        key = self.native
        if isinstance(key, rsa.RSAPublicKey):
            numbers = key.public_numbers()
            n, e = (value.to_bytes((value.bit_length() + 7) // 8, "big") for value in (numbers.n, numbers.e))
            return hashlib.sha256(cbor.encode({1: 3, -1: n, -2: e})).digest()
        size, point = _CURVES[key.curve.name][0], key.public_numbers()
        x, y = point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big")
        named = {1: 2, -1: _COSE_CURVES[key.curve.name], -2: x, -3: y}
        return hashlib.sha256(cbor.encode(named)).digest()

    def verify(self, signature: bytes, data: bytes, alg: object) -> None:
        """
        Check a raw signature by the algorithm that the header names.

        Raises:
            COSEError: *alg* is not one of this key.
            SignatureError: *signature* is not by this key over *data*.
        """
        key = self.native
        if self.only is not None and alg != self.only:
            raise COSEError(
                f"the header has algorithm {repr(alg)[:40]}, but the key is for {self.only} alone"
            )
        try:
            if isinstance(key, rsa.RSAPublicKey):
                _verify_rsa(key, signature, data, alg)
                return
            size, bits, numbers = _CURVES[key.curve.name]
            if type(alg) is not int or alg not in numbers:
                raise COSEError(f"the header has algorithm {repr(alg)[:40]}, but the key is on {self.kind}")
            if len(signature) != 2 * size:
                raise SignatureError(f"a signature on {self.kind} has {2 * size} bytes")
            r, s = (int.from_bytes(part, "big") for part in (signature[:size], signature[size:]))
            key.verify(encode_dss_signature(r, s), data, ec.ECDSA(_SHA[bits]))
        except InvalidSignature:
            raise SignatureError("the signature does not match the key and the data") from None


def _verify_rsa(key: rsa.RSAPublicKey, signature: bytes, data: bytes, alg: object) -> None:
    if type(alg) is not int or alg not in _PSS.keys() | _PKCS1.keys():
        raise COSEError(f"the header has algorithm {repr(alg)[:40]}, but the key is of RSA")
    if len(signature) != (key.key_size + 7) // 8:
        raise SignatureError("the signature has not the length of the key")
    if alg in _PSS:
        used = _SHA[_PSS[alg]]
        key.verify(signature, data, padding.PSS(padding.MGF1(used), used.digest_size), used)
    else:
        key.verify(signature, data, padding.PKCS1v15(), _SHA[_PKCS1[alg]])


AnchorKey = cose.PublicKey | OtherKey


@dataclass(frozen=True)
class CertificateAnchor:
    """A certificate: of an authority that vouches for signers, or of one signer."""

    der: bytes

    @cached_property
    def certificate(self) -> x509.Certificate:
        """The certificate as the library has it."""
        return x509.load_der_x509_certificate(self.der)

    @cached_property
    def is_authority(self) -> bool:
        """Whether it may issue certificates."""
        return certificates.is_authority(self.certificate)

    @cached_property
    def key(self) -> AnchorKey:
        """Its public key."""
        return key_of(self.certificate.public_key())

    @property
    def kind(self) -> str:
        """What it is, for lists."""
        return f"{'authority' if self.is_authority else 'certificate'}, {kind_of(self.key)}"

    @property
    def subject(self) -> str:
        """Its subject, in printable form."""
        return certificates.subject_of(self.certificate)

    @property
    def not_after(self) -> int:
        """Its last second, in seconds since 1970."""
        return int(self.certificate.not_valid_after_utc.timestamp())


Anchor = cose.PublicKey | OtherKey | CertificateAnchor


def kind_of(anchor: Anchor) -> str:
    """The kind of an anchor, for lists."""
    if isinstance(anchor, cose.PublicKey):
        return "P-256" if anchor.alg == cose.ES256 else "Ed25519"
    return anchor.kind


def kid_of(anchor: Anchor) -> str:
    """The COSE Key Thumbprint of an anchor's key, hex."""
    key = anchor.key if isinstance(anchor, CertificateAnchor) else anchor
    return key.kid.hex()


def key_of(native: object) -> AnchorKey:
    """
    A public key of the library as a key of an anchor.

    Raises:
        ReferenceValueError: its kind or its size cannot be used.
    """
    if isinstance(native, ed25519.Ed25519PublicKey):
        return _checked(cose.PublicKey(cose.ED25519, native.public_bytes_raw()))
    if isinstance(native, ec.EllipticCurvePublicKey) and isinstance(native.curve, ec.SECP256R1):
        point = native.public_numbers()
        return _checked(cose.PublicKey(cose.ES256, point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big")))
    if isinstance(native, rsa.RSAPublicKey):
        _check_rsa(native)
    elif not isinstance(native, ec.EllipticCurvePublicKey) or native.curve.name not in _CURVES:
        name = native.curve.name if isinstance(native, ec.EllipticCurvePublicKey) else _short(native)
        raise ReferenceValueError(f"it is a key of {name}, and must be of {_USABLE}")
    return OtherKey(
        native.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def _short(native: object) -> str:
    return type(native).__name__.lstrip("_").removesuffix("PublicKey")[:40]


def _checked(key: cose.PublicKey) -> cose.PublicKey:
    try:
        return cose.PublicKey.from_map(key.to_map())
    except COSEError as error:
        raise ReferenceValueError(str(error)) from None


def _check_rsa(key: rsa.RSAPublicKey) -> None:
    least, most = RSA_BITS
    if not least <= key.key_size <= most:
        raise ReferenceValueError(f"its RSA key has {key.key_size} bits, and must have {least} to {most}")
    if not _RSA_EXPONENT[0] <= key.public_numbers().e < _RSA_EXPONENT[1]:
        raise ReferenceValueError("the exponent of its RSA key must be 65537, or larger with at most 32 bits")


def verify_with(message: cose.Sign1, key: AnchorKey) -> None:
    """
    Check the signature of *message* with *key*.

    Raises:
        COSEError: the header names an algorithm that is not one of the key.
        SignatureError: the signature is wrong.
    """
    if isinstance(key, cose.PublicKey):
        message.verify(key)
    else:
        key.verify(message.signature, message.to_be_signed(), message.header[cose.ALG])


def verify_with_any(message: cose.Sign1, anchors: Mapping[str, Anchor], now: int) -> str:
    """
    Find the anchor that stands for the signature of *message*.

    Args:
        anchors: By name.
        now: The moment of evaluation, in seconds since 1970.

    Returns:
        Its name; with an authority also the subject of the signer.

    Raises:
        ReferenceValueError: none does; the message says why.
    """
    if not anchors:
        raise ReferenceValueError("the signature cannot be verified, because no key is trusted")
    moment = datetime.fromtimestamp(max(0, min(now, _LAST_SECOND)), UTC)
    tried = 0
    for name, anchor in anchors.items():
        if isinstance(anchor, CertificateAnchor) and not certificates.may_sign(anchor.certificate):
            # An authority that signs certificates only.
            continue
        key = anchor.key if isinstance(anchor, CertificateAnchor) else anchor
        try:
            verify_with(message, key)
        except SignatureError:
            tried += 1
        except COSEError:
            # The key is for another algorithm than the one in the header.
            continue
        else:
            if isinstance(anchor, CertificateAnchor):
                certificates.check_time(anchor.certificate, moment)
            return name
    chain = _chain_of(message)
    authorities = {
        name: anchor
        for name, anchor in anchors.items()
        if isinstance(anchor, CertificateAnchor) and anchor.is_authority
    }
    if chain and authorities:
        return _verify_chain(message, chain, authorities, moment)
    raise ReferenceValueError(
        _why_none(message, tried, has_chain=bool(chain), has_authority=bool(authorities))
    )


def _why_none(message: cose.Sign1, tried: int, *, has_chain: bool, has_authority: bool) -> str:
    if has_chain:
        return "the signature comes with certificates (x5chain), but no authority is trusted, and no trusted key fits"
    if has_authority and not tried:
        return "the CoRIM carries no certificates (x5chain) that lead to a trusted authority"
    if not tried:
        alg = str(message.header[cose.ALG])[:40]
        return f"the signature is by the algorithm {alg}, for which there is no trusted key"
    return f"the signature fits none of the {tried} trusted keys of its algorithm"


def _chain_of(message: cose.Sign1) -> list[bytes]:
    """The certificates that a message carries, the signer's first (RFC 9360 §2)."""
    value = message.header.get(_X5CHAIN, message.unprotected.get(_X5CHAIN))
    if value is None:
        return []
    chain = value if isinstance(value, list) else [value]
    if not 0 < len(chain) <= MAX_CHAIN_CERTIFICATES:
        raise ReferenceValueError(f"x5chain must have 1 to {MAX_CHAIN_CERTIFICATES} certificates")
    if not all(isinstance(der, bytes) and len(der) <= _MAX_CERTIFICATE for der in chain):
        raise ReferenceValueError(f"x5chain must hold certificates of at most {_MAX_CERTIFICATE} bytes, DER")
    return chain


def _verify_chain(
    message: cose.Sign1, chain: list[bytes], authorities: Mapping[str, CertificateAnchor], moment: datetime
) -> str:
    refused = None
    for name, authority in authorities.items():
        try:
            leaf = certificates.verify_signer(chain, authority.certificate, moment)
        except ReferenceValueError as error:
            refused = error
            continue
        try:
            verify_with(message, key_of(leaf.public_key()))
        except (COSEError, SignatureError):
            raise ReferenceValueError(
                f"the signature is not by the certificate of {certificates.subject_of(leaf)} that comes with it"
            ) from None
        return f"{name}: {certificates.subject_of(leaf)}"
    assert refused is not None
    raise refused
