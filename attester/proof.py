"""
Proof that a request comes from a node's key: ``Authorization: Touchstone-Node …``.

The header carries a COSE_Sign1 over the request (method, authority, target, digest of the
body), the sender, the time, and a random value that the verifier accepts once.  Each challenge
uses up an entry of the pool, so only enrolled nodes may request one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from attester import cbor, cose
from attester.errors import ClaimError, COSEError

SCHEME: Final = "Touchstone-Node"
DOMAIN: Final = "touchstone/request/1"
_TYP: Final = "application/touchstone-request+cose"
_MAX_HEADER_BYTES = 2048


class _Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    domain: str
    method: Annotated[str, Meta(max_length=16)]
    authority: Annotated[str, Meta(max_length=256)]
    target: Annotated[str, Meta(max_length=1024)]
    body: Annotated[bytes, Meta(min_length=32, max_length=32)]
    time: Annotated[int, Meta(ge=0, le=1 << 53)]
    random: Annotated[bytes, Meta(min_length=16, max_length=16)]


@dataclass(frozen=True)
class Request:
    """The signed parts of an HTTP request."""

    method: str
    authority: str
    """The Host header: the host, and the port unless it is the scheme's default."""
    target: str
    """The path and the query as sent."""
    body: bytes = b""

    def authorize(self, key: cose.Signer, *, now: int) -> str:
        """The value of an Authorization header for one use; *now* is in seconds since 1970."""
        claims = _Claims(
            domain=DOMAIN,
            method=self.method,
            authority=self.authority,
            target=self.target,
            body=hashlib.sha256(self.body).digest(),
            time=now,
            random=secrets.token_bytes(16),
        )
        message = cose.sign(
            cbor.encode(msgspec.to_builtins(claims, builtin_types=(bytes,))),
            key,
            header={cose.TYP: _TYP},
        )
        return f"{SCHEME} {base64.urlsafe_b64encode(message).decode().rstrip('=')}"


@dataclass(frozen=True)
class Proof:
    """A decoded header whose signature has **not** been checked yet."""

    message: cose.Sign1
    claims: _Claims

    @property
    def kid(self) -> bytes:
        """The thumbprint of the key that claims to have signed."""
        kid: bytes = self.message.header[cose.KID]
        return kid

    @property
    def random(self) -> bytes:
        """The random value.  The verifier's database accepts it once per key within twice the skew."""
        return self.claims.random

    @classmethod
    def decode(cls, header: str) -> Proof:
        """
        Read an Authorization header of the scheme `SCHEME`.

        Raises:
            COSEError, CBORError, ClaimError: the header does not have the scheme's form.
        """
        # The name of a scheme is the same in any case (RFC 9110 §11.1).
        scheme, _, value = header.partition(" ")
        if scheme.lower() != SCHEME.lower() or len(value) > _MAX_HEADER_BYTES:
            raise COSEError(f"not an Authorization header of scheme {SCHEME}")
        try:
            data = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise COSEError("the Authorization header is not base64url") from None
        message = cose.Sign1.decode(data, max_size=_MAX_HEADER_BYTES)
        kid = message.header.get(cose.KID)
        if not isinstance(kid, bytes) or len(kid) != 32 or message.header.get(cose.TYP) != _TYP:
            raise COSEError("kid or typ does not have the form of this scheme")
        raw = cbor.decode(message.payload, max_size=_MAX_HEADER_BYTES)
        try:
            claims = msgspec.convert(raw, _Claims, builtin_types=(bytes,))
        except msgspec.ValidationError as error:
            raise ClaimError("authorization", str(error)) from None
        return cls(message, claims)

    def verify(self, request: Request, key: cose.PublicKey, *, now: int, skew: int) -> None:
        """
        Check that *key* signed exactly this request, at most *skew* seconds from *now*.

        Raises:
            COSEError: the signature or the key is wrong, or the request or the time differs.
        """
        if self.kid != key.kid:
            raise COSEError("signed by another key")
        self.message.verify(key)
        claims = self.claims
        signed = (claims.domain, claims.method, claims.authority, claims.target, claims.body)
        body = hashlib.sha256(request.body).digest()
        if signed != (DOMAIN, request.method, request.authority, request.target, body):
            raise COSEError("signed for another request")
        if abs(claims.time - now) > skew:
            raise COSEError(
                f"signed {claims.time - now:+d} s from the verifier's time, but at most {skew} s are allowed. "
                "Set the node's clock"
            )
