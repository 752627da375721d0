"""
Trust anchors in files: public keys in PEM or DER, certificates in PEM or DER, a JWK or a set of JWKs.

What else a file says of the use of its keys does not count: its place says what they are for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import jwt
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from verifier.errors import ReferenceValueError
from verifier.references import certificates
from verifier.references.anchors import Anchor, CertificateAnchor, OtherKey, key_of

MAX_FILE: Final = 1 << 20
"""Bytes of one file."""
MAX_ANCHORS: Final = 256
"""Keys and certificates in one file."""
_PEM: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----[^-]*-----END \1-----")
_PUBLIC: Final = ("kty", "crv", "x", "y", "n", "e")
_SECRET: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_RSA_ALGORITHMS: Final = {
    "PS256": -37,
    "PS384": -38,
    "PS512": -39,
    "RS256": -257,
    "RS384": -258,
    "RS512": -259,
}
"""By their names in a JWK, the algorithms of RSA by COSE's numbers.  That of another key follows from its curve."""

Found = Anchor | ReferenceValueError
"""An anchor, or why a key or a certificate is none."""


class PrivateKeyFoundError(ReferenceValueError):
    """A private key is where a public one belongs."""


def read_anchors(data: bytes, *, public_half: bool = False) -> list[Found]:
    """
    Every key and certificate in a file, in their order; one that cannot be used does not spoil the others.

    Args:
        data: The file.
        public_half: Take the public half of a private key, where it is refused otherwise.

    Raises:
        PrivateKeyFoundError: it has a private key.
        ReferenceValueError: it is none of the forms, or too large.
    """
    if len(data) > MAX_FILE:
        raise ReferenceValueError(f"it has more than {MAX_FILE} bytes")
    data = data.removeprefix(b"\xef\xbb\xbf")
    text = data.strip()
    if text.startswith((b"{", b"[")):
        parts = _json_parts(text, public_half=public_half)
    elif b"-----BEGIN" in text:
        parts = _pem_parts(data, public_half=public_half)
    else:
        parts = [partial(_read_der, data)]
    if len(parts) > MAX_ANCHORS:
        raise ReferenceValueError(f"it has {len(parts)} keys, and at most {MAX_ANCHORS} are read")
    return [_tried(part) for part in parts]


def has_private_key(data: bytes) -> bool:
    """Whether a file has a private key, in PEM or as a JWK."""
    if b"PRIVATE KEY-----" in data:
        return True
    try:
        return any(_is_private(jwk) for jwk in _jwks(data.strip()))
    except ReferenceValueError:
        return False


def _is_private(jwk: Mapping[str, Any]) -> bool:
    return jwk.get("kty") == "oct" or bool(_SECRET & jwk.keys())


def _tried(part: Callable[[], Anchor]) -> Found:
    try:
        return part()
    except PrivateKeyFoundError:
        raise
    except ReferenceValueError as error:
        return error


def _pem_parts(data: bytes, *, public_half: bool) -> list[Callable[[], Anchor]]:
    if b"PRIVATE KEY-----" in data and not public_half:
        raise _private()
    blocks = [(match[1].decode(), match[0]) for match in _PEM.finditer(data)]
    if not blocks or len(blocks) != data.count(b"-----BEGIN"):
        raise ReferenceValueError("it is not whole PEM")
    return [partial(_read_block, label, block) for label, block in blocks]


def _read_block(label: str, block: bytes) -> Anchor:
    try:
        if label == "CERTIFICATE":
            return _certificate(x509.load_pem_x509_certificate(block))
        if label.endswith("PRIVATE KEY"):
            return key_of(serialization.load_pem_private_key(block, None).public_key())
        if label in ("PUBLIC KEY", "RSA PUBLIC KEY"):
            return key_of(serialization.load_pem_public_key(block))
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise ReferenceValueError(f"its {label.lower()} cannot be read") from None
    raise ReferenceValueError(f"it has a {label.lower()}, where a public key or a certificate belongs")


def _private() -> PrivateKeyFoundError:
    return PrivateKeyFoundError(
        "it has a PRIVATE key. Whoever reads it can sign reference values: take it away from here, put its public"
        " half in its place, and make a new key if others could read this one"
    )


def _read_der(data: bytes) -> Anchor:
    try:
        return _certificate(x509.load_der_x509_certificate(data))
    except (ValueError, x509.InvalidVersion):
        pass
    try:
        return key_of(serialization.load_der_public_key(data))
    except (ValueError, UnsupportedAlgorithm):
        raise ReferenceValueError("it is neither a public key nor a certificate") from None


def _certificate(certificate: x509.Certificate) -> CertificateAnchor:
    anchor = CertificateAnchor(certificate.public_bytes(serialization.Encoding.DER))
    certificates.check_anchor(certificate)
    _ = anchor.key
    return anchor


def _jwks(data: bytes) -> list[dict[str, Any]]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ReferenceValueError("it is not JSON") from None
    if isinstance(value, dict) and "keys" in value:
        value = value["keys"]
    keys = value if isinstance(value, list) else [value]
    if not keys or not all(isinstance(each, dict) for each in keys):
        raise ReferenceValueError("it is neither a JWK nor a set of JWKs")
    return keys


def _json_parts(data: bytes, *, public_half: bool) -> list[Callable[[], Anchor]]:
    keys = _jwks(data)
    if any(_is_private(jwk) for jwk in keys) and not public_half:
        raise _private()
    return [partial(_read_jwk, jwk) for jwk in keys]


def _read_jwk(jwk: Mapping[str, Any]) -> Anchor:
    if jwk.get("kty") not in ("EC", "OKP", "RSA"):
        raise ReferenceValueError("it is not the JWK of a public key")
    public = {name: jwk[name] for name in _PUBLIC if name in jwk}
    is_text = all(isinstance(value, str) for value in public.values())
    try:
        native = jwt.PyJWK(public).key if is_text else None
    except (ValueError, TypeError, UnsupportedAlgorithm, jwt.PyJWTError):
        raise ReferenceValueError("it is not the JWK of a public key") from None
    if native is None:
        raise ReferenceValueError("it is not a JWK: its members must be text")
    key = key_of(native)
    if not isinstance(key, OtherKey) or "alg" not in jwk or jwk["kty"] != "RSA":
        return key
    if jwk["alg"] not in _RSA_ALGORITHMS:
        raise ReferenceValueError(f"it is a JWK for {str(jwk['alg'])[:40]!r}, which signs nothing here")
    return replace(key, only=_RSA_ALGORITHMS[jwk["alg"]])
