"""
Proof that a request comes from a node's key: ``Authorization: Touchstone-Node …``.

The header carries a COSE_Sign1 over what the request is (method, authority, target,
digest of the body), who sends it, when, and a random value that the verifier accepts
once.  Challenges cost entries of the pool, so a stranger must not be able to burn them.
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
_MAX_HEADER = 2048


class _Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    domain: str
    method: Annotated[str, Meta(max_length=16)]
    authority: Annotated[str, Meta(max_length=256)]
    target: Annotated[str, Meta(max_length=1024)]
    body: Annotated[bytes, Meta(min_length=32, max_length=32)]
    time: Annotated[int, Meta(ge=0, le=1 << 53)]
    random: Annotated[bytes, Meta(min_length=16, max_length=16)]


@dataclass(frozen=True)
class Request:
    """What is signed of an HTTP request."""

    method: str
    authority: str
    """The Host header: host, and port where it is not the scheme's own."""
    target: str
    """Path and query as sent."""
    body: bytes = b""

    def authorize(self, key: cose.Signer, *, now: int) -> str:
        """The value of an Authorization header, good for one use."""
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
        """Who claims to have signed."""
        kid: bytes = self.message.header[cose.KID]
        return kid

    @property
    def random(self) -> bytes:
        """Accepted once per key within twice the skew: the verifier's database sees to it."""
        return self.claims.random

    @classmethod
    def decode(cls, header: str) -> Proof:
        """
        Read an Authorization header of our scheme.

        Raises:
            COSEError, CBORError, ClaimError: it is not one.
        """
        scheme, _, value = header.partition(" ")
        if scheme != SCHEME or len(value) > _MAX_HEADER:
            raise COSEError(f"not an Authorization header of scheme {SCHEME}")
        try:
            data = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise COSEError("not base64url") from None
        message = cose.Sign1.decode(data, max_size=_MAX_HEADER)
        kid = message.header.get(cose.KID)
        if not isinstance(kid, bytes) or len(kid) != 32 or message.header.get(cose.TYP) != _TYP:
            raise COSEError("kid or typ is not what this scheme has")
        raw = cbor.decode(message.payload, max_size=_MAX_HEADER)
        try:
            claims = msgspec.convert(raw, _Claims, builtin_types=(bytes,))
        except msgspec.ValidationError as error:
            raise ClaimError("authorization", str(error)) from None
        return cls(message, claims)

    def verify(self, request: Request, key: cose.PublicKey, *, now: int, skew: int) -> None:
        """
        Check that *key* signed exactly this request, *skew* seconds around *now* at most.

        Raises:
            COSEError: the signature, the key, the request or the time does not fit.
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
                f"signed {claims.time - now:+d} s from the verifier's time, more than {skew} s: "
                "set the node's clock"
            )
