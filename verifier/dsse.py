"""
DSSE: signatures over bytes as they are and their type (secure-systems-lab/dsse, v1.0).

ECDSA signatures are DER, as in the other implementations.
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
    """The bytes that are signed: the payload with its type and their lengths (protocol.md)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, key: PrivateKey) -> bytes:
    """Sign a payload: an envelope with one signature, JSON."""
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
    Verify an envelope, and return the name of the first key that signed it and the payload.

    All keys are tried in the order of their names: the envelope's `keyid` is only a hint.

    Raises:
        SignatureError: this is not an envelope, its payload is of another type, or none of *keys* signed it.
    """
    if len(data) > MAX_ENVELOPE:
        raise SignatureError(f"the envelope has {len(data)} bytes, and at most {MAX_ENVELOPE} are read")
    try:
        envelope = msgspec.convert(strictjson.loads(data), _Envelope)
        payload = _unbase64(envelope.payload)
        signatures = [_unbase64(signature.sig) for signature in envelope.signatures]
    except (msgspec.ValidationError, binascii.Error, ValueError, RecursionError) as error:
        raise SignatureError(f"this is not a DSSE envelope: {error}") from None
    if envelope.payload_type != payload_type:
        raise SignatureError(f"the payload is of type {envelope.payload_type!r}, not {payload_type}")
    signed = pae(payload_type, payload)
    for name, key in sorted(keys.items()):
        if any(_fits(key, signature, signed) for signature in signatures):
            return name, payload
    raise SignatureError(f"none of the {len(keys)} trusted keys signed it")


def _unbase64(text: str) -> bytes:
    """Decode standard or URL-safe base64; the protocol demands that verifiers accept both."""
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
