"""
What routers sign for the log: the registration of their receipt keys, and batches of receipts.  Pure.

Each receipt of a router is a leaf of a batch.  The log has the batch's root, and so commits to all of them.
The receipts themselves stay at the router (`router.receipts`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct, structs

from attester import cbor, cose
from attester.cose import PrivateKey, PublicKey
from attester.errors import AttesterError, SignatureError
from verifier import canonical
from verifier.errors import CanonicalError, RequestError
from verifier.result_keys import b64url

NO_ROOT: Final = "0" * 64
"""In place of the root before the first batch."""
MAX_BATCH: Final = 2048
"""Bytes of a batch."""
MAX_RECEIPTS: Final = 1 << 20
"""Receipts in a batch."""
_KEY_DOMAIN: Final = "touchstone/receipt-key/1"
_BATCH_DOMAIN: Final = b"touchstone/receipts/1\n"
_SAFE: Final = (1 << 53) - 1

RouterName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+\Z")]
Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Kid = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{43}\Z")]
Ms = Annotated[int, Meta(ge=0, le=_SAFE)]


@dataclass(frozen=True)
class ReceiptKey:
    """The public half of a router's receipt key: Ed25519."""

    public: PublicKey

    @cached_property
    def kid(self) -> str:
        """The JWK Thumbprint (RFC 7638, RFC 8037 §2), base64url."""
        members = f'{{"crv":"Ed25519","kty":"OKP","x":"{self.x}"}}'
        return b64url(hashlib.sha256(members.encode()).digest())

    @property
    def x(self) -> str:
        """The key, base64url."""
        return b64url(self.public.point)

    def jwk(self) -> dict[str, str]:
        """The JWK as the JWKS lists it (RFC 8037, RFC 9864)."""
        members = {"kty": "OKP", "crv": "Ed25519", "x": self.x}
        return {**members, "kid": self.kid, "alg": "Ed25519", "use": "sig"}

    @classmethod
    def from_bytes(cls, x: bytes) -> ReceiptKey:
        """
        Read the 32 bytes of a key.

        Raises:
            RequestError: they are no point of the curve, or one of small order.
        """
        try:
            # A COSE_Key: its reader checks the point.
            return cls(PublicKey.from_map({1: 1, -1: 6, -2: x}))
        except AttesterError:
            raise RequestError("the receipt key is not an Ed25519 key that can be used") from None

    @classmethod
    def from_jwk(cls, jwk: Any) -> ReceiptKey:
        """
        Read a JWK; a kid that it has must be its own.

        Raises:
            RequestError: it is not a public Ed25519 key for verifying signatures.
        """
        match jwk:
            case {"kty": "OKP", "crv": "Ed25519", "x": str(x)} if "d" not in jwk:
                key = cls.from_bytes(unb64url(x))
            case _:
                raise RequestError("a receipt key must be a public JWK of Ed25519")
        if jwk.get("alg", "Ed25519") not in ("Ed25519", "EdDSA") or jwk.get("use", "sig") != "sig":
            raise RequestError("the JWK is not for signatures by Ed25519")
        if jwk.get("kid", key.kid) != key.kid:
            raise RequestError("the kid of the JWK is not the thumbprint of its key")
        return key

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether the signature is by this key over the data."""
        try:
            self.public.verify(signature, data)
        except SignatureError:
            return False
        return True


def key_statement(issuer: str, credential: bytes, router: str, x: bytes) -> bytes:
    """
    What a router signs, with its identity and with the receipt key itself, to register the receipt key.

    Args:
        issuer: The issuer of the verifier: it is of no use at another one.
        credential: SHA-256 of the bearer that presents it: nor is it with another's credential.
        router: The router's own name, the ``iss`` of its receipts.
        x: The receipt key, 32 bytes.
    """
    return cbor.encode([_KEY_DOMAIN, issuer, credential, router, x])


def check_key_statement(
    statement: bytes, identity: PublicKey, key: ReceiptKey, *, signature: bytes, possession: bytes
) -> None:
    """
    Check that a router's identity vouches for a receipt key, and that who registers it has it.

    Args:
        statement: Of `key_statement`.
        identity: The key of the certificate that the router has registered.
        key: The receipt key.
        signature: By the identity.
        possession: By the receipt key.

    Raises:
        RequestError: one of the signatures is wrong.
    """
    try:
        identity.verify(signature, statement)
    except SignatureError:
        message = "the signature is not one by the router's registered identity for this receipt key"
        raise RequestError(message, code="registration.signature") from None
    if not key.verify(possession, statement):
        message = "the receipt key has not signed its own registration"
        raise RequestError(message, code="registration.signature")


class Batch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A batch of receipts: the root of a tree (RFC 9162 §2.1) of all that a router made in some seconds."""

    router: RouterName
    number: Annotated[int, Meta(ge=1, le=_SAFE)]
    """From 1, without gaps, for each receipt key."""
    size: Annotated[int, Meta(ge=1, le=MAX_RECEIPTS)]
    root: Hex32
    prev: Hex32
    """The root of the batch before; `NO_ROOT` for the first."""
    from_ms: Ms = msgspec.field(name="from")
    """The ends of its first answer and of its last, by the router's clock."""
    to_ms: Ms = msgspec.field(name="to")
    kid: Kid
    sig: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{86}\Z")] = ""
    """By the receipt key, over `signed_bytes`."""

    def signed_bytes(self) -> bytes:
        """What the receipt key signs."""
        members = msgspec.to_builtins(self)
        del members["sig"]
        return _BATCH_DOMAIN + canonical.encode(members)

    def encode(self) -> bytes:
        """Its one form, as it is sent and logged."""
        return canonical.encode(self)

    def check(self, key: ReceiptKey) -> None:
        """
        Check that *key* has signed it.

        Raises:
            RequestError: it names another key, or the signature is wrong.
        """
        if self.kid != key.kid:
            raise RequestError("the batch names another receipt key", code="registration.signature")
        if not key.verify(unb64url(self.sig), self.signed_bytes()):
            raise RequestError("the batch is not signed by its receipt key", code="registration.signature")


def sign_batch(batch: Batch, key: PrivateKey) -> Batch:
    """Give the batch with its signature."""
    return structs.replace(batch, sig=b64url(key.sign(batch.signed_bytes())))


def read_batch(data: bytes) -> Batch:
    """
    Read a batch in its one form; `Batch.check` says whether it is signed.

    Raises:
        RequestError: it is no batch, or not in its one form.
    """
    try:
        return canonical.decode(data, Batch, max_size=MAX_BATCH)
    except CanonicalError as error:
        raise RequestError(f"the batch is refused: {error}") from None


def generate_key() -> PrivateKey:
    """Make a receipt key."""
    return PrivateKey.generate(cose.ED25519)


def unb64url(text: str) -> bytes:
    """
    The bytes of base64url without padding, in its one spelling (RFC 7515 §2).

    Raises:
        RequestError: it is something else.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = None
    if data is None or b64url(data) != text:
        raise RequestError("a value is not base64url in its one spelling")
    return data
