"""
COSE_Sign1 (RFC 9052 §4.2) with ES256 and Ed25519, and COSE keys (RFC 9052 §7).

The key decides the algorithm, and the header must agree with it.  Neither Python library for
COSE works with the version of cbor2 used here (docs/dependencies.md), and little is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final, Protocol

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from attester import cbor
from attester.errors import CBORError, COSEError, SignatureError

# Header labels (RFC 9052 §3.1, RFC 9596) and tags.
ALG, CRIT, CONTENT_TYPE, KID, TYP = 1, 2, 3, 4, 16
TAG_SIGN1, TAG_CWT = 18, 61

ES256, ED25519 = -7, -19
# The polymorphic and the fully specified identifier of each algorithm (RFC 9864).
_SAME_ALGORITHM = {ES256: (ES256, -9), ED25519: (ED25519, -8)}
ALGORITHM_NAMES = {ES256: "ES256", ED25519: "Ed25519"}

# COSE_Key parameters (RFC 9053 §7).
_KTY, _CRV, _X, _Y = 1, -1, -2, -3
_KTY_OKP, _KTY_EC2 = 1, 2
_CRV_P256, _CRV_ED25519 = 1, 6

_MAX_HEADER_BYTES = 1024
_MAX_KEY_BYTES = 256
_KEPT_HEADERS: Final = 8192
"""Up to 1 kB each.  Whoever displaces some costs their owners 10 µs."""

_ECDSA: Final = ec.ECDSA(hashes.SHA256())


class Signer(Protocol):
    """What `sign` needs of a private key."""

    @property
    def public(self) -> PublicKey:
        """The public half."""
        ...

    def sign(self, data: bytes) -> bytes:
        """A raw signature."""
        ...


@dataclass(frozen=True)
class PublicKey:
    """
    A public key for ES256 or Ed25519.

    Its thumbprint and the library's own object are made when they are first used, and kept with it.
    """

    alg: int
    point: bytes
    """ES256: x ‖ y, 64 bytes.  Ed25519: 32 bytes."""

    @cached_property
    def kid(self) -> bytes:
        """The COSE Key Thumbprint with SHA-256, 32 bytes (RFC 9679)."""
        return hashlib.sha256(self.encode()).digest()

    def encode(self) -> bytes:
        """The COSE_Key with its required parameters only, deterministic."""
        return cbor.encode(self.to_map())

    def to_map(self) -> dict[int, Any]:
        """The COSE_Key as a map, e.g. for a `cnf` claim (RFC 8747)."""
        if self.alg == ES256:
            x, y = self.point[:32], self.point[32:]
            return {_KTY: _KTY_EC2, _CRV: _CRV_P256, _X: x, _Y: y}
        return {_KTY: _KTY_OKP, _CRV: _CRV_ED25519, _X: self.point}

    @classmethod
    def decode(cls, data: bytes) -> PublicKey:
        """
        Read a COSE_Key.

        Raises:
            CBORError: not deterministic CBOR.
            COSEError: not a public key for ES256 or Ed25519, or not a point of its curve.
        """
        return cls.from_map(cbor.decode(data, max_size=_MAX_KEY_BYTES))

    @classmethod
    def from_map(cls, value: Any) -> PublicKey:
        """As `decode`, from the decoded map."""
        match value:
            case {1: 2, -1: 1, -2: bytes(x), -3: bytes(y)} if len(value) == 4 and len(x) == len(y) == 32:
                key = cls(ES256, x + y)
            case {1: 1, -1: 6, -2: bytes(x)} if len(value) == 3 and len(x) == 32:
                key = cls(ED25519, x)
            case _:
                raise COSEError("not a COSE_Key of P-256 or Ed25519 with exactly its public parameters")
        if cbor.encode(key.to_map()) != cbor.encode(value):
            # In Python, True equals 1, but its encoding differs.
            raise COSEError("not a COSE_Key of P-256 or Ed25519 with exactly its public parameters")
        try:
            # Reading the point checks it; the object is kept for `verify`.
            _ = key._native
        except ValueError:
            raise COSEError("the key is not a point of its curve") from None
        if key.alg == ED25519 and not _is_ed25519_key(key.point):
            raise COSEError("the key is not a point of its curve, or one of small order")
        return key

    def verify(self, signature: bytes, data: bytes) -> None:
        """
        Check a raw signature.

        Raises:
            SignatureError: *signature* is not by this key over *data*.
        """
        try:
            native = self._native
            if isinstance(native, ed25519.Ed25519PublicKey):
                native.verify(signature, data)
                return
            if len(signature) != 64:
                raise SignatureError("an ES256 signature has 64 bytes")
            r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:]))
            native.verify(encode_dss_signature(r, s), data, _ECDSA)
        except InvalidSignature:
            raise SignatureError("the signature does not match the key and the data") from None

    @cached_property
    def _native(self) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
        """The key as the library has it.  Raises `ValueError`: not a point of its curve."""
        if self.alg == ES256:
            return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + self.point)
        return ed25519.Ed25519PublicKey.from_public_bytes(self.point)


_P: Final = (1 << 255) - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P
_SMALL_ORDER: Final = frozenset(
    {
        0,
        1,
        _P - 1,
        int.from_bytes(
            bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
        ),
        int.from_bytes(
            bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"
        ),
    }
)
"""The y of all eight points of small order: with such a key, one signature fits every message."""


def _is_ed25519_key(encoded: bytes) -> bool:
    """Canonical, on the curve, and not of small order (RFC 8032 §5.1.3).  The library does not check this."""
    y = int.from_bytes(encoded, "little") & ((1 << 255) - 1)
    if y >= _P or y in _SMALL_ORDER:
        return False
    # -x² + y² = 1 + d·x²·y²: there must be an x.
    x2 = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    return pow(x2, (_P - 1) // 2, _P) == 1


@dataclass(frozen=True)
class PrivateKey:
    """A private key in memory.  `attester.identity` keeps it in a file."""

    native: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

    @classmethod
    def generate(cls, alg: int = ES256) -> PrivateKey:
        """Make a new key.  Raises `COSEError` for any other algorithm than ES256 and Ed25519."""
        if alg == ES256:
            return cls(ec.generate_private_key(ec.SECP256R1()))
        if alg == ED25519:
            return cls(ed25519.Ed25519PrivateKey.generate())
        raise COSEError(f"algorithm {alg} is not supported; use ES256 (-7) or Ed25519 (-19)")

    @cached_property
    def public(self) -> PublicKey:
        """The public half."""
        if isinstance(self.native, ed25519.Ed25519PrivateKey):
            return PublicKey(ED25519, self.native.public_key().public_bytes_raw())
        numbers = self.native.public_key().public_numbers()
        return PublicKey(ES256, numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big"))

    def sign(self, data: bytes) -> bytes:
        """A raw signature, 64 bytes: r ‖ s for ES256 (RFC 9053 §2.1)."""
        if isinstance(self.native, ed25519.Ed25519PrivateKey):
            return self.native.sign(data)
        r, s = decode_dss_signature(self.native.sign(data, _ECDSA))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


@dataclass(frozen=True, kw_only=True)
class Sign1:
    """A decoded COSE_Sign1 whose signature has **not** been checked yet."""

    protected: bytes
    header: dict[int | str, Any]
    unprotected: dict[int | str, Any]
    payload: bytes
    signature: bytes

    @classmethod
    def decode(
        cls,
        data: bytes,
        *,
        max_size: int,
        tags: tuple[int, ...] = (TAG_SIGN1,),
        deterministic: bool = True,
        max_header: int = _MAX_HEADER_BYTES,
        max_values: int | None = None,
    ) -> Sign1:
        """
        Read a message that carries exactly *tags*, outermost first.

        Args:
            data: The message.
            max_size: The most bytes of the whole message.
            tags: The tags that the message must have, outermost first.
            deterministic: As for `cbor.decode`, for the message and its protected header.
            max_header: The most bytes of the protected header.
            max_values: As for `cbor.decode`, for the message; what the protected header holds is not counted.

        Raises:
            CBORError: the message or its protected header is not the required CBOR.
            COSEError: not a COSE_Sign1, or its header must be refused.
        """
        split = _split(data, tags) if len(data) <= max_size else None
        if split is None:
            value = cbor.decode(
                data, max_size=max_size, max_values=max_values, tags=tags, deterministic=deterministic
            )
            split = _parts(value, tags)
        protected, unprotected, payload, signature = split
        if len(protected) > max_header:
            raise CBORError(f"a header of {len(protected)} bytes, but at most {max_header} are allowed")
        # Long headers carry certificates: they are not kept, so that they cost no memory afterwards.
        read = _read_header if len(protected) <= _MAX_HEADER_BYTES else _read_header.__wrapped__
        header = dict(read(protected, deterministic=deterministic))
        if ALG not in header:
            raise COSEError("the protected header has no algorithm")
        if CRIT in header:
            raise COSEError("the header lists critical parameters, which are not supported")
        if duplicates := header.keys() & unprotected.keys():
            raise COSEError(f"header {min(duplicates, key=str)} is both protected and unprotected")
        if ALG in unprotected or CRIT in unprotected:
            raise COSEError("alg and crit must be in the protected header")
        return cls(
            protected=protected,
            header=header,
            unprotected=unprotected,
            payload=payload,
            signature=signature,
        )

    def verify(self, key: PublicKey, *, external_aad: bytes = b"") -> None:
        """
        Check the signature with *key*, which decides the algorithm.

        Raises:
            COSEError: the header names another algorithm.
            SignatureError: the signature is wrong.
        """
        alg = self.header[ALG]
        if type(alg) is not int or alg not in _SAME_ALGORITHM[key.alg]:
            raise COSEError(
                f"the header has algorithm {repr(alg)[:40]}, but the key is for {ALGORITHM_NAMES[key.alg]}"
            )
        key.verify(self.signature, self.to_be_signed(external_aad))

    def to_be_signed(self, external_aad: bytes = b"") -> bytes:
        """The bytes that the signature is over, for keys of algorithms that this module does not have."""
        return _to_be_signed(self.protected, external_aad, self.payload)


@lru_cache(maxsize=_KEPT_HEADERS)
def _read_header(protected: bytes, *, deterministic: bool) -> Mapping[int | str, Any]:
    """
    A protected header, whose size was checked.  All that a key signs for one purpose has the same.

    Raises:
        CBORError: it is not the required CBOR.
        COSEError: it is not a map.
    """
    if not protected:
        return {}
    header = cbor.decode(protected, max_size=len(protected), deterministic=deterministic)
    if not isinstance(header, dict):
        raise COSEError("the protected header is not a map")
    return header


_Parts = tuple[bytes, dict[int | str, Any], bytes, bytes]
"""Protected header, unprotected header, payload and signature."""

_OPENINGS: Final = {
    (TAG_SIGN1,): b"\xd2\x84",
    (TAG_CWT, TAG_SIGN1): b"\xd8\x3d\xd2\x84",
}
"""By tags, the bytes before the protected header: the tags and the head of an array of four."""


def _split(data: bytes, tags: tuple[int, ...]) -> _Parts | None:
    """
    The parts of a message in the usual form: deterministic, without an unprotected header.

    Nothing is built but the parts.  `None`: it has another form, or none.  The CBOR reader tells.
    """
    opening = _OPENINGS.get(tags)
    if opening is None or not data.startswith(opening):
        return None
    protected, place = _byte_string(data, len(opening))
    if protected is None or data[place : place + 1] != b"\xa0":
        return None
    payload, place = _byte_string(data, place + 1)
    if payload is None:
        return None
    signature, place = _byte_string(data, place)
    if signature is None or place != len(data):
        return None
    return protected, {}, payload, signature


_LONG_HEADS: Final = {0x58: (1, 24), 0x59: (2, 1 << 8), 0x5A: (4, 1 << 16)}
"""Of byte strings: by the first byte, how many bytes of length follow, and the least length that needs them."""


def _byte_string(data: bytes, place: int) -> tuple[bytes | None, int]:
    """The byte string at *place* and where it ends; `None` if there is none whole and in its shortest form."""
    first = data[place] if place < len(data) else 0
    start, size = place + 1, first - 0x40
    if first in _LONG_HEADS:
        width, least = _LONG_HEADS[first]
        start += width
        size = int.from_bytes(data[place + 1 : start], "big")
        if size < least:
            return None, place
    elif not 0 <= size < 24:
        return None, place
    end = start + size
    return (data[start:end], end) if end <= len(data) else (None, place)


def _parts(value: Any, tags: tuple[int, ...]) -> _Parts:
    """
    The parts of a decoded message.

    Raises:
        COSEError: it is not a COSE_Sign1 with exactly *tags*.
    """
    for tag in tags:
        if not isinstance(value, cbor2.CBORTag) or value.tag != tag:
            raise COSEError(f"not tagged {tag}")
        value = value.value
    match value:
        case [bytes(protected), dict(unprotected), bytes(payload), bytes(signature)]:
            return protected, unprotected, payload, signature
        case [bytes(), dict(), None, bytes()]:
            raise COSEError("the payload is detached, which is not supported")
        case _:
            raise COSEError("not the four parts of a COSE_Sign1: protected, unprotected, payload, signature")


def sign(
    payload: bytes,
    key: Signer,
    *,
    header: dict[int, Any] | None = None,
    tags: tuple[int, ...] = (TAG_SIGN1,),
    external_aad: bytes = b"",
) -> bytes:
    """
    Sign *payload*.  The protected header has alg, kid and the parameters of *header*.

    Returns:
        The tagged message, deterministic CBOR.
    """
    public = key.public
    protected = cbor.encode({ALG: public.alg, KID: public.kid, **(header or {})})
    signature = key.sign(_to_be_signed(protected, external_aad, payload))
    message: Any = [protected, {}, payload, signature]
    for tag in reversed(tags):
        message = cbor2.CBORTag(tag, message)
    return cbor.encode(message)


def _to_be_signed(protected: bytes, external_aad: bytes, payload: bytes) -> bytes:
    """The Sig_structure of RFC 9052 §4.4."""
    # Three byte strings have one encoding each, so the library's own suffices.
    return cbor2.dumps(["Signature1", protected, external_aad, payload])
