"""
The routers that a node serves: the verifier's list of them, and the copy in the home.

The verifier publishes to its nodes the certificate of each router that is registered with it.  The certificates are
the trust anchors of the node's endpoint: whoever presents another one is not served.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta, Struct

from attester.errors import VerifierError

MAX_ROUTERS: Final = 256
MAX_LIST_BYTES: Final = 4 << 20
"""Bytes of the list as JSON; one of 256 routers has about 250 kB."""
_MAX_CERTIFICATE_CHARS: Final = 8192


@dataclass(frozen=True)
class KnownRouter:
    """A router that may use the node."""

    name: str
    """The name of its credential at the verifier."""
    certificate: bytes
    """Its self-signed certificate, DER."""
    spki_sha256: str
    """The SHA-256 of its key as a DER SubjectPublicKeyInfo, hex."""


class _Row(Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    certificate: Annotated[str, Meta(min_length=1, max_length=_MAX_CERTIFICATE_CHARS)]
    spki_sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _Body(Struct, frozen=True):
    routers: Annotated[tuple[_Row, ...], Meta(max_length=MAX_ROUTERS)]


class _Kept(_Body, frozen=True):
    fetched: Annotated[int, Meta(ge=0, le=1 << 53)]


T = TypeVar("T", bound=_Body)


def parse(data: bytes) -> tuple[KnownRouter, ...]:
    """
    Read the verifier's answer; members that this version does not know are left alone.

    Raises:
        VerifierError: it has another form, a certificate that is not one, or one that could stand for others.
    """
    return _known(_decode(data, _Body))


def write(routers: tuple[KnownRouter, ...], fetched: int) -> bytes:
    """The list as the home keeps it; *fetched* is in seconds since 1970."""
    rows = tuple(
        _Row(each.name, base64.b64encode(each.certificate).decode(), each.spki_sha256) for each in routers
    )
    return msgspec.json.encode(_Kept(fetched=fetched, routers=rows))


def read(data: bytes) -> tuple[int, tuple[KnownRouter, ...]]:
    """
    When the kept list was fetched, and the list.

    Raises:
        VerifierError: as `parse`.
    """
    kept: _Kept = _decode(data, _Kept)
    return kept.fetched, _known(kept)


def _decode(data: bytes, kind: type[T]) -> T:
    if len(data) > MAX_LIST_BYTES:
        raise VerifierError(f"the list of routers is larger than {MAX_LIST_BYTES} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VerifierError(f"the list of routers is malformed: {error}") from None


def _known(body: _Body) -> tuple[KnownRouter, ...]:
    found = {row.spki_sha256: _read_row(row) for row in body.routers}
    return tuple(found.values())


def _read_row(row: _Row) -> KnownRouter:
    name = "".join(c if c.isprintable() else "?" for c in row.name)
    try:
        der = base64.b64decode(row.certificate, validate=True)
        _check_certificate(der, row.spki_sha256)
    except (binascii.Error, ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise VerifierError(
            f"the certificate of the router {name!r} cannot be used: {str(error)[:200]}"
        ) from None
    return KnownRouter(name, der, row.spki_sha256)


def _check_certificate(der: bytes, spki_sha256: str) -> None:
    """Raise `ValueError` unless it is the certificate of that P-256 key, and of nobody who could issue others."""
    certificate = x509.load_der_x509_certificate(der)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("it is not of a P-256 key")  # noqa: TRY004  # the certificate is wrong, not our call
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if hashlib.sha256(spki).hexdigest() != spki_sha256:
        raise ValueError("it is of another key than spki_sha256 says")
    # A trust anchor that may issue certificates would let in whomever it names.
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        raise ValueError("it does not say that it is no authority") from None
    if constraints.ca:
        raise ValueError("it is an authority's")
