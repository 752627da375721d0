"""
CoRIM: signed reference values, read and written (draft-ietf-rats-corim-11).

A signed CoRIM is a COSE_Sign1 around a tagged map, whose tags hold CoMIDs
(`verifier.references.comid`).  It is verified in numbered steps, each with its own refusal:

    1  the message: a COSE_Sign1, tagged, within bounds, with its payload inside
    2  the header: algorithm, content type, a signer; nothing critical, no hash envelope
    3  the signature, by a key or a certificate that the caller trusts, or by a signer whose certificates
       (`x5chain`) lead to a trusted authority; the key id is free-form and is ignored
    4  the signer's own validity, at *now*
    5  the payload: the map, its tags, every CoMID
    6  the validity of the reference values, at *now*

The contents of headers 8 and 15 and of the payload are read only after step 3.  CoSWID and
CoTL tags are kept as they are and never interpreted.  This module writes deterministic CBOR,
so a CoRIM that it wrote and read again gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import cbor2

from attester import cbor, cose
from attester.errors import CBORError, COSEError
from verifier.errors import ReferenceValueError
from verifier.references import comid, shapes
from verifier.references.anchors import Anchor, verify_with_any
from verifier.references.comid import (
    TAG_TIME,
    TAG_URI,
    Comid,
)
from verifier.references.shapes import Raw, identifier_of, joined, list_of, map_of, refuse, text_of

CONTENT_TYPE: Final = "application/rim+cbor"
MAX_CORIM: Final = 8 << 20
"""Bytes of the map; `attester.cbor` bounds the values of each CoMID."""
MAX_TAGS: Final = 1024

_TAG_CORIM, _TAG_COSWID, _TAG_COMID, _TAG_COTL = 501, 505, 506, 508
_TAGS: Final = comid.TAGS | {_TAG_CORIM, _TAG_COSWID, _TAG_COMID, _TAG_COTL}
_MAX_HEADER: Final = 64 << 10
"""Bytes of the protected header, which may carry certificates."""
MAX_MESSAGE: Final = MAX_CORIM + 2 * _MAX_HEADER
"""Bytes of a signed CoRIM."""
_UNSIGNED: Final = b"\xd9\x01\xf5"
"""The head of tag 501."""
_META, _CWT = 8, 15
_HASH_ENVELOPE: Final = frozenset({258, 259, 260})


@dataclass(frozen=True)
class Corim:
    """An unsigned CoRIM (§4.1)."""

    id: str | bytes
    """Text, or the 16 bytes of a UUID."""
    tags: tuple[Comid | cbor2.CBORTag, ...]
    """CoMIDs; CoSWID and CoTL tags stay raw."""
    profile: str | cbor2.CBORTag | None = None
    """A URI, or a tagged OID."""
    not_before: int | None = None
    """The first second of rim-validity, in seconds since 1970."""
    not_after: int | None = None
    """The last second of rim-validity; it must be set if *not_before* is."""
    extra: Raw = field(default_factory=dict)
    """Dependent CoRIMs, entities and extensions, raw, by key."""

    @property
    def comids(self) -> tuple[Comid, ...]:
        """The CoMIDs among the tags."""
        return tuple(tag for tag in self.tags if isinstance(tag, Comid))


@dataclass(frozen=True, kw_only=True)
class VerifiedCorim:
    """A CoRIM after step 6."""

    corim: Corim
    signer: str
    """The caller's name for the key that signed; with an authority also the subject of the signer."""
    signer_name: str | None
    """The name that the signer gives itself."""
    signer_uri: str | None
    not_before: int | None
    """The first second at which everything in it is valid, in seconds since 1970."""
    not_after: int | None
    """The last such second."""


@dataclass(frozen=True)
class SignedCorim:
    """A CoRIM after step 2: its message is well-formed, and its signature is not verified."""

    message: cose.Sign1

    def verify(self, anchors: Mapping[str, Anchor], now: int) -> VerifiedCorim:
        """
        Steps 3 to 6.

        Args:
            anchors: The keys and certificates that the caller trusts, by name.
            now: The moment of evaluation, in seconds since 1970.

        Raises:
            ReferenceValueError: a step fails; the message says why.
        """
        # 3. The signature.
        signer = verify_with_any(self.message, anchors, now)
        # 4. The signer's own validity.
        name, uri, validities = _signer_of(self.message.header)
        for what, validity in validities:
            _check_validity(what, validity, now)
        # 5. The payload.
        corim = read_unsigned(self.message.payload)
        # 6. The validity of the reference values.
        validities = [*validities, ("rim-validity", (corim.not_before, corim.not_after))]
        _check_validity(*validities[-1], now)
        return VerifiedCorim(
            corim=corim,
            signer=signer,
            signer_name=name,
            signer_uri=uri,
            not_before=max((start for _, (start, _) in validities if start is not None), default=None),
            not_after=min((end for _, (_, end) in validities if end is not None), default=None),
        )


def read_signed(data: bytes) -> SignedCorim:
    """
    Steps 1 and 2.

    Raises:
        ReferenceValueError: a step fails; the message says why.
    """
    # 1. The message.
    try:
        message = cose.Sign1.decode(data, max_size=MAX_MESSAGE, deterministic=False, max_header=_MAX_HEADER)
    except (CBORError, COSEError) as error:
        hint = ". It is a CoRIM that nobody has signed" if data.startswith(_UNSIGNED) else ""
        raise ReferenceValueError(f"the signed CoRIM: {error}{hint}") from None
    # 2. The header.
    header = message.header
    if _HASH_ENVELOPE & (header.keys() | message.unprotected.keys()):
        refuse(
            "the header",
            "is one of a hash envelope, which is not supported. The payload must be the CoRIM itself",
        )
    if header.get(cose.CONTENT_TYPE) != CONTENT_TYPE:
        refuse(
            "the header",
            f"has the content type {str(header.get(cose.CONTENT_TYPE))[:80]!r}, not {CONTENT_TYPE}",
        )
    if _META not in header and _CWT not in header:
        refuse("the header", "has neither corim-meta (8) nor CWT claims (15)")
    return SignedCorim(message)


_Validity = tuple[int | None, int | None]


def _signer_of(header: Mapping[int | str, Any]) -> tuple[str | None, str | None, list[tuple[str, _Validity]]]:
    """Name, URI and validities of the signer; if both headers have a name, that of corim-meta."""
    name: str | None = None
    uri: str | None = None
    validities: list[tuple[str, _Validity]] = []
    if _CWT in header:
        claims = map_of(header[_CWT], "CWT claims")
        name = text_of(claims.get(1), "CWT claims.iss")
        start, end = (_seconds(claims[key], "CWT claims") if key in claims else None for key in (5, 4))
        # `exp` is the first second after the validity, and `not-after` is its last second.
        validities.append(("CWT claims", (start, None if end is None else end - 1)))
    if _META in header:
        if not isinstance(header[_META], bytes):
            refuse("corim-meta", "must be bytes")
        meta = map_of(
            shapes.decode(header[_META], "corim-meta", comid.TAGS, _MAX_HEADER), "corim-meta", (0, 1)
        )
        signer = map_of(meta.get(0), "corim-meta.signer")
        name = text_of(signer.get(0), "corim-meta.signer.name")
        if 1 in signer:
            uri = _uri(signer[1], "corim-meta.signer.uri")
        if 1 in meta:
            validities.append(("corim-meta", _validity(meta[1], "corim-meta.validity")))
    return name, uri, validities


def _uri(value: Any, place: str) -> str:
    if not isinstance(value, cbor2.CBORTag) or value.tag != TAG_URI:
        refuse(place, f"must be a URI (tag {TAG_URI})")
    return text_of(value.value, place)


def _validity(value: Any, place: str) -> _Validity:
    raw = map_of(value, place, (0, 1))
    if 1 not in raw:
        refuse(place, "has no end")
    start, end = _time(raw[0], place) if 0 in raw else None, _time(raw[1], place)
    if start is not None and start > end:
        refuse(place, "ends before it begins")
    return start, end


def _time(value: Any, place: str) -> int:
    if not isinstance(value, cbor2.CBORTag) or value.tag != TAG_TIME:
        refuse(place, f"must be a time (tag {TAG_TIME})")
    return _seconds(value.value, place)


def _seconds(value: Any, place: str) -> int:
    if type(value) is not int:
        refuse(place, "must be a time in whole seconds")
    return value


def _check_validity(what: str, validity: _Validity, now: int) -> None:
    start, end = validity
    if start is not None and now < start:
        refuse(what, f"is not valid yet: its validity begins at {start}, and now is {now}")
    if end is not None and now > end:
        refuse(what, f"has expired: its validity ended at {end}, and now is {now}")


def read_unsigned(data: bytes) -> Corim:
    """
    Read a CoRIM that is not signed, or whose signature was verified.

    Raises:
        ReferenceValueError: it is malformed; the message names the place,
            e.g. ``tags[0].triples.reference[2].measurements[1].digests``.
    """
    value = shapes.decode(data, "the CoRIM", _TAGS, MAX_CORIM)
    if not isinstance(value, cbor2.CBORTag) or value.tag != _TAG_CORIM:
        refuse("the CoRIM", f"must be tagged {_TAG_CORIM}")
    raw = map_of(value.value, "the CoRIM")
    for key, what in ((0, "id"), (1, "tags")):
        if key not in raw:
            refuse(what, "is missing")
    tags = list_of(raw[1], "tags")
    if len(tags) > MAX_TAGS:
        refuse("tags", f"has {len(tags)} items, and at most {MAX_TAGS} are read")
    start, end = _validity(raw[4], "rim-validity") if 4 in raw else (None, None)
    return Corim(
        id=identifier_of(raw[0], "id"),
        tags=tuple(_tag(tag, f"tags[{number}]") for number, tag in enumerate(tags)),
        profile=_profile(raw[3]) if 3 in raw else None,
        not_before=start,
        not_after=end,
        extra={key: each for key, each in raw.items() if key not in (0, 1, 3, 4)},
    )


def _tag(value: Any, place: str) -> Comid | cbor2.CBORTag:
    if not isinstance(value, cbor2.CBORTag) or value.tag not in (_TAG_COSWID, _TAG_COMID, _TAG_COTL):
        refuse(place, "must be the tag of a CoSWID, CoMID or CoTL (505, 506, 508)")
    if not isinstance(value.value, bytes):
        refuse(place, "is a tag whose content must be bytes")
    return comid.read(value.value, place) if value.tag == _TAG_COMID else value


def _profile(value: Any) -> str | cbor2.CBORTag:
    if isinstance(value, cbor2.CBORTag) and value.tag == comid.TAG_OID and isinstance(value.value, bytes):
        return value
    return _uri(value, "profile")


def encode(corim: Corim) -> bytes:
    """
    Encode a CoRIM in deterministic CBOR, tagged 501.

    Raises:
        ReferenceValueError: `read_unsigned` would refuse it; the message names the place.
    """
    raw: dict[int | str, Any] = {0: corim.id}
    if corim.profile is not None:
        tagged = isinstance(corim.profile, str)
        raw[3] = cbor2.CBORTag(TAG_URI, corim.profile) if tagged else corim.profile
    if (corim.not_before, corim.not_after) != (None, None):
        raw[4] = _validity_value(corim.not_before, corim.not_after)
    place = "the CoRIM"
    try:
        raw[1] = []
        for number, tag in enumerate(corim.tags):
            place = f"tags[{number}]"
            raw[1].append(cbor2.CBORTag(_TAG_COMID, comid.encode(tag)) if isinstance(tag, Comid) else tag)
        place = "the CoRIM"
        data = cbor.encode(cbor2.CBORTag(_TAG_CORIM, joined(raw, corim.extra, place)))
    except CBORError as error:
        raise ReferenceValueError(f"{place}: {error}") from None
    # Reading it again makes all checks, so this module never writes what it would refuse to read.
    read_unsigned(data)
    return data


def _validity_value(start: int | None, end: int | None) -> dict[int, Any]:
    return {key: cbor2.CBORTag(TAG_TIME, value) for key, value in ((0, start), (1, end)) if value is not None}


def sign(
    corim: Corim,
    key: cose.Signer,
    *,
    signer: str,
    uri: str | None = None,
    not_before: int | None = None,
    not_after: int | None = None,
) -> bytes:
    """
    Sign a CoRIM (§4.2) so that `read_signed` and `SignedCorim.verify` accept it.

    Args:
        corim: The CoRIM.
        key: The key to sign with; it decides the algorithm.
        signer: The signer's name.
        uri: A URI of the signer.
        not_before: The first second of the signature's validity, in seconds since 1970.
        not_after: The last second of the signature's validity; it must be set if *not_before* is.

    Raises:
        ReferenceValueError: the result would be refused when it is read.
    """
    meta: dict[int, Any] = {0: {0: signer} if uri is None else {0: signer, 1: cbor2.CBORTag(TAG_URI, uri)}}
    if (not_before, not_after) != (None, None):
        meta[1] = _validity_value(not_before, not_after)
    payload = encode(corim)
    try:
        header = {cose.CONTENT_TYPE: CONTENT_TYPE, _META: cbor.encode(meta)}
        message = cose.sign(payload, key, header=header)
    except CBORError as error:
        raise ReferenceValueError(f"corim-meta: {error}") from None
    # Read again for the same reason as in `encode`.
    _signer_of(read_signed(message).message.header)
    return message
