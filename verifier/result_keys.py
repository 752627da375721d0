"""
The keys of attestation results: the verifier's signing keys, the JWKS, and node keys in `cnf`.

A result is signed with P-256 (ES256).  Its keys are JWKs (RFC 7517); in a CWT they are COSE_Keys.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from attester import cose
from verifier.errors import ResultError


@dataclass(frozen=True)
class ResultKey:
    """
    A signing key of the verifier: P-256, for ES256.

    Its thumbprint and its other forms are made when they are first used, and kept with it.
    """

    private: ec.EllipticCurvePrivateKey

    @property
    def kid(self) -> str:
        """The JWK Thumbprint (RFC 7638), base64url."""
        return self.verifying.kid

    @cached_property
    def verifying(self) -> VerifyingKey:
        """The public half."""
        return VerifyingKey(self.private.public_key())

    @cached_property
    def cose(self) -> cose.PrivateKey:
        """The same key, to sign JWTs and CWTs."""
        return cose.PrivateKey(self.private)

    @cached_property
    def jwt_header(self) -> str:
        """The first part of each JWT that this key signs, and its full stop."""
        return jwt_header(self.kid)


@dataclass(frozen=True)
class VerifyingKey:
    """
    A public key that can have signed a result.

    Its thumbprint and its COSE key are made when they are first used, and kept with it.
    """

    public: ec.EllipticCurvePublicKey

    @cached_property
    def kid(self) -> str:
        """The JWK Thumbprint (RFC 7638), base64url."""
        members = self.jwk_members()
        required = {name: members[name] for name in ("crv", "kty", "x", "y")}
        text = json.dumps(required, separators=(",", ":"), sort_keys=True)
        return b64url(hashlib.sha256(text.encode()).digest())

    @cached_property
    def cose(self) -> cose.PublicKey:
        """The same key, to verify CWTs."""
        numbers = self.public.public_numbers()
        return cose.PublicKey(cose.ES256, numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big"))

    def jwk_members(self) -> dict[str, str]:
        """The public JWK without its kid (RFC 7517, RFC 7518 §6.2)."""
        x, y = b64url(self.cose.point[:32]), b64url(self.cose.point[32:])
        return {"kty": "EC", "crv": "P-256", "x": x, "y": y}

    def jwk(self) -> dict[str, str]:
        """The public JWK as the JWKS lists it."""
        return {**self.jwk_members(), "kid": self.kid, "alg": "ES256", "use": "sig"}

    @classmethod
    def from_jwk(cls, jwk: Any) -> VerifyingKey:
        """
        Read a JWK.

        Raises:
            ResultError: it is not a public P-256 key, or not for ES256 signatures
                (RFC 7517 §4.2 to §4.4).
        """
        try:
            if not isinstance(jwk, dict) or jwk.get("kty") != "EC" or jwk.get("crv") != "P-256":
                raise ResultError("a JWK must be a P-256 key")
            operations = jwk.get("key_ops", ["verify"])
            if (
                jwk.get("use", "sig") != "sig"
                or not isinstance(operations, list)
                or "verify" not in operations
            ):
                raise ResultError("a JWK must be for verifying signatures: use is sig, key_ops has verify")
            if jwk.get("alg", "ES256") != "ES256":
                raise ResultError("a JWK must be for ES256")
            key = jwt.PyJWK({k: jwk[k] for k in ("kty", "crv", "x", "y")}, algorithm="ES256").key
        except (KeyError, TypeError, ValueError, jwt.PyJWTError):
            raise ResultError("a JWK cannot be read") from None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ResultError("a JWK must be a public key")
        return cls(key)


def jwt_header(kid: str) -> str:
    """The first part of each JWT that a key signs, and its full stop."""
    return b64url(msgspec.json.encode({"alg": "ES256", "kid": kid, "typ": "eat+jwt"})) + "."


MAX_JWKS: Final = 256 * 1024
"""Bytes of a JWKS that is read."""
_MAX_KEYS: Final = 64


def read_jwks(data: bytes) -> dict[str, VerifyingKey]:
    """
    Read a JWKS of up to 64 keys, by kid.  The kid is computed from the key; that of the JWKS is not used.

    Keys of other kinds, for other uses, or that cannot be read are ignored (RFC 7517 §5).

    Raises:
        ResultError: it is not a JWKS, has too many keys, or none that can have signed a result.
    """
    if len(data) > MAX_JWKS:
        raise ResultError(f"the JWKS is too large: it has more than {MAX_JWKS} bytes")
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise ResultError("the JWKS is not JSON") from None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or not 1 <= len(keys) <= _MAX_KEYS:
        raise ResultError(f"the JWKS must list 1 to {_MAX_KEYS} keys")
    found = {}
    for jwk in keys:
        with suppress(ResultError):
            key = VerifyingKey.from_jwk(jwk)
            found[key.kid] = key
    if not found:
        raise ResultError("the JWKS lists no P-256 key for verifying ES256 signatures")
    return found


def jwk_of(key: cose.PublicKey) -> dict[str, str]:
    """A node key as a JWK, for `cnf` (RFC 7800).  Its kid is the COSE thumbprint."""
    if key.alg == cose.ES256:
        x, y = b64url(key.point[:32]), b64url(key.point[32:])
        return {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": b64url(key.kid)}
    return {"kty": "OKP", "crv": "Ed25519", "x": b64url(key.point), "kid": b64url(key.kid)}


def cose_key_of(cnf: Mapping[str, Any]) -> cose.PublicKey:
    """
    The node key of a `cnf` claim.

    Raises:
        ResultError: it has no key of an algorithm that nodes use.
    """
    match cnf.get("jwk"):
        case {"crv": "P-256", "x": str(x), "y": str(y)}:
            return cose.PublicKey(cose.ES256, unb64url(x) + unb64url(y))
        case {"crv": "Ed25519", "x": str(x)}:
            return cose.PublicKey(cose.ED25519, unb64url(x))
        case _:
            raise ResultError("cnf must have a P-256 or an Ed25519 key")


def b64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515 §2)."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unb64url(text: str) -> bytes:
    """The inverse of `b64url`; raises `ResultError` if *text* is not base64url."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise ResultError("the text must be base64url") from None
