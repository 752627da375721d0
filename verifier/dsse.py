"""
DSSE: signatures over bytes as they are, with their type (secure-systems-lab/dsse, v1.0).

ECDSA signatures are DER, as the other implementations have them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from msgspec import Meta, Struct

from attester import strictjson
from attester.cose import PrivateKey
from attester.errors import SignatureError

MAX_ENVELOPE = 256 * 1024


class _Signature(Struct, frozen=True):
    sig: Annotated[str, Meta(max_length=1024)]
    keyid: Annotated[str, Meta(max_length=256)] = ""


class _Envelope(Struct, frozen=True, rename="camel"):
    payload: str
    payload_type: Annotated[str, Meta(max_length=256)]
    signatures: Annotated[tuple[_Signature, ...], Meta(min_length=1, max_length=16)]


def pae(payload_type: str, payload: bytes) -> bytes:
    """What is signed: the payload as it is, with type and lengths (protocol.md)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, key: PrivateKey) -> bytes:
    """An envelope with one signature, JSON."""
    data = pae(payload_type, payload)
    if isinstance(key.native, ed25519.Ed25519PrivateKey):
        signature = key.native.sign(data)
    else:
        signature = key.native.sign(data, ec.ECDSA(hashes.SHA256()))
    envelope: dict[str, Any] = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": key.public.kid.hex(), "sig": base64.b64encode(signature).decode()}],
    }
    return msgspec.json.encode(envelope)


def verify(data: bytes, payload_type: str, keys: Mapping[str, PublicKeyTypes]) -> tuple[str, bytes]:
    """
    The name of the first key that has signed, and the payload.

    Which key is tried is not the envelope's to say: `keyid` is a hint, and none is needed.

    Raises:
        SignatureError: not an envelope, of another type, or signed by none of *keys*.
    """
    if len(data) > MAX_ENVELOPE:
        raise SignatureError(f"an envelope of {len(data)} bytes, more than {MAX_ENVELOPE}")
    try:
        envelope = msgspec.convert(strictjson.loads(data), _Envelope)
        payload = _unbase64(envelope.payload)
        signatures = [_unbase64(signature.sig) for signature in envelope.signatures]
    except (msgspec.ValidationError, binascii.Error, ValueError, RecursionError) as error:
        raise SignatureError(f"not a DSSE envelope: {error}") from None
    if envelope.payload_type != payload_type:
        raise SignatureError(f"of type {envelope.payload_type!r}, not {payload_type}")
    signed = pae(payload_type, payload)
    for name, key in sorted(keys.items()):
        if any(_fits(key, signature, signed) for signature in signatures):
            return name, payload
    raise SignatureError(f"signed by none of the {len(keys)} keys that may")


def _unbase64(text: str) -> bytes:
    """Standard or URL-safe, as the protocol has verifiers accept both."""
    return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)


def _fits(key: PublicKeyTypes, signature: bytes, data: bytes) -> bool:
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        else:
            return False
    except InvalidSignature:
        return False
    return True
