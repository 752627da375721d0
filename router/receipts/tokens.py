"""
A receipt as it is signed: a compact JWS (RFC 7515) by the router's receipt key, Ed25519 (RFC 8037, RFC 9864).  Pure.

There is one form of it.  The header is what the key says it must be, byte for byte, so that no member of it is
read and none can choose how the receipt is verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from attester.cose import PrivateKey
from router.model.errors import ReceiptError
from router.receipts import payload
from router.receipts.payload import MAX_PAYLOAD, Receipt
from verifier.errors import RequestError
from verifier.result_keys import b64url
from verifier.router_receipts import ReceiptKey, unb64url

TYPE: Final = "touchstone-receipt+jwt"
MAX_TOKEN: Final = 512 + (MAX_PAYLOAD * 4 + 2) // 3
"""Characters."""
MAX_JWKS: Final = 64 << 10
_MAX_KEYS: Final = 64


@dataclass(frozen=True)
class Verified:
    """A receipt that its router has signed."""

    receipt: Receipt
    payload: bytes
    key: ReceiptKey


def sign(data: bytes, key: PrivateKey) -> str:
    """Sign an encoded payload."""
    return join(data, ReceiptKey(key.public).kid, sign_bytes(data, key))


def sign_bytes(data: bytes, key: PrivateKey) -> bytes:
    """Sign an encoded payload; gives the signature alone.  It is the same each time (RFC 8032 §5.1.6)."""
    return key.sign(f"{_header(ReceiptKey(key.public).kid)}.{b64url(data)}".encode())


def join(data: bytes, kid: str, signature: bytes) -> str:
    """Make a receipt of a payload and its signature by the key *kid*."""
    return f"{_header(kid)}.{b64url(data)}.{b64url(signature)}"


def verify(token: str, keys: Mapping[str, ReceiptKey]) -> Verified:
    """
    Verify a receipt, and read it.

    Args:
        token: The compact JWS.
        keys: Of the router, by kid (`read_keys`).

    Raises:
        ReceiptError: it is too large or malformed, by a key that is not among *keys*, of another kind, or altered.
    """
    if len(token) > MAX_TOKEN:
        raise ReceiptError(f"the receipt has {len(token)} characters, more than {MAX_TOKEN}")
    parts = token.split(".")
    if len(parts) != 3:
        raise ReceiptError("the receipt is not a compact JWS: it must have three parts")
    head, body, tail = parts
    key = next((each for each in keys.values() if _header(each.kid) == head), None)
    if key is None:
        raise ReceiptError(_describe_header(head, keys))
    data, signature = _bytes(body, "payload"), _bytes(tail, "signature")
    if not key.verify(signature, f"{head}.{body}".encode()):
        raise ReceiptError(
            "the signature is wrong: the receipt was altered, or this router has not signed it"
        )
    return Verified(payload.decode(data), data, key)


def read_keys(data: bytes) -> dict[str, ReceiptKey]:
    """
    Read the JWKS of a router's receipt keys, by kid.  Keys of other kinds are passed over (RFC 7517 §5).

    Raises:
        ReceiptError: it is no JWKS, or has no receipt key.
    """
    if len(data) > MAX_JWKS:
        raise ReceiptError(f"the router's keys have more than {MAX_JWKS} bytes")
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise ReceiptError("the router's keys are not JSON") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not 1 <= len(listed) <= _MAX_KEYS:
        raise ReceiptError(f"the router's keys must be a JWKS of 1 to {_MAX_KEYS} keys")
    found = {}
    for jwk in listed:
        try:
            key = ReceiptKey.from_jwk(jwk)
        except RequestError:
            continue
        found[key.kid] = key
    if not found:
        raise ReceiptError("the JWKS has no key of Ed25519 that can have signed a receipt")
    return found


def write_keys(keys: list[ReceiptKey]) -> bytes:
    """The JWKS."""
    return msgspec.json.encode({"keys": [key.jwk() for key in keys]})


def part(token: str, number: int) -> bytes:
    """
    The bytes of a part of a compact JWS, of which nothing is verified.

    Raises:
        ReceiptError: there is no such part.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise ReceiptError("it is not a compact JWS: it must have three parts")
    return _bytes(parts[number], "part")


def _header(kid: str) -> str:
    return b64url(f'{{"alg":"Ed25519","kid":"{kid}","typ":"{TYPE}"}}'.encode())


def _describe_header(head: str, keys: Mapping[str, ReceiptKey]) -> str:
    """Say what is wrong with a header that no key has."""
    try:
        found = msgspec.json.decode(unb64url(head), type=dict[str, object])
    except (RequestError, msgspec.DecodeError, UnicodeError, RecursionError):
        return "the header of the receipt is malformed"
    if found.get("typ") != TYPE:
        return f"it is no receipt: its typ is {str(found.get('typ'))[:40]!r}, not {TYPE}"
    if found.get("alg") != "Ed25519":
        return f"its alg is {str(found.get('alg'))[:40]!r}, not Ed25519"
    if found.get("kid") not in keys:
        return f"it is by the key {str(found.get('kid'))[:64]!r}, which is not one of this router's"
    return "the header of the receipt is not in its one form"


def _bytes(text: str, name: str) -> bytes:
    try:
        return unb64url(text)
    except RequestError:
        raise ReceiptError(f"the {name} of the receipt is not base64url in its one spelling") from None
