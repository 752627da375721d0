"""
CoMID tags: reference values of environments (draft-ietf-rats-corim-11 §5).

Reading is strict, and each refusal names its place: types, empty containers, keys that the
draft's closed maps do not have, algorithms that come twice, digests of the wrong length.
Values in maps that the draft leaves open, and triples other than reference values, are kept
as they are, so that a CoMID can be written again with nothing lost.

Raw values are as `attester.cbor` gives them: tags are `cbor2.CBORTag`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import cbor2

from attester import cbor
from verifier.references.digests import Algorithm, canonical, digest_size
from verifier.references.shapes import (
    Raw,
    decode,
    identifier_of,
    joined,
    kind_of,
    list_of,
    map_of,
    optional_count,
    optional_text,
    optional_value,
    refuse,
    required,
    shown_key,
    without_absent,
)

TAG_TIME, TAG_URI, TAG_UUID, TAG_OID = 1, 32, 37, 111
TAG_BYTES: Final = 560
TAGS: Final = frozenset({TAG_TIME, TAG_URI, TAG_UUID, TAG_OID, *range(550, 567)})
"""The tags that a CoMID may use: the draft's own, and those of types from other standards."""
MAX_COMID: Final = 8 << 20
"""Bytes.  `attester.cbor` bounds the number of values."""

NAME: Final = 11
"""The key of a name among the measurement values."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The environment that a triple describes; it is never empty."""

    class_id: Any = None
    """Raw: a tagged OID, UUID or bytes, or a type that a profile adds."""
    vendor: str | None = None
    model: str | None = None
    layer: int | None = None
    index: int | None = None
    instance: Any = None
    """Raw."""
    group: Any = None
    """Raw."""


@dataclass(frozen=True)
class Measurement:
    """The values of one element of an environment."""

    mkey: int | str | cbor2.CBORTag | None = None
    """The element's key; a tag is a UUID or an OID."""
    digests: Mapping[Algorithm, bytes] = field(default_factory=dict)
    """By algorithm as the CoMID names it: a Named Information id or a name."""
    extra: Raw = field(default_factory=dict)
    """All other measurement values, raw, by key."""
    authorized: tuple[Any, ...] = ()
    """The keys that may sign for this element, raw."""


@dataclass(frozen=True)
class ReferenceTriple:
    """The reference values of one environment."""

    environment: Environment
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True)
class Comid:
    """A concise module identifier (§5.1)."""

    tag_id: str | bytes
    """Text, or the 16 bytes of a UUID."""
    reference: tuple[ReferenceTriple, ...]
    tag_version: int | None = None
    language: str | None = None
    triples: Raw = field(default_factory=dict)
    """All other triples, raw, by key."""
    extra: Raw = field(default_factory=dict)
    """Entities, linked tags, a profile and extensions, raw, by key."""


def read(data: bytes, place: str) -> Comid:
    """
    Read the encoding of a CoMID, without its tag.

    Args:
        data: CBOR, not necessarily deterministic.
        place: The name of the CoMID in errors, e.g. ``tags[0]``.

    Raises:
        ReferenceValueError: the CoMID is malformed; the message names the place.
    """
    raw = map_of(decode(data, place, TAGS, MAX_COMID), place)
    identity = map_of(required(raw, 1, f"{place}.tag-identity"), f"{place}.tag-identity", (0, 1))
    tag_id = f"{place}.tag-identity.tag-id"
    triples = map_of(required(raw, 4, f"{place}.triples"), f"{place}.triples")
    reference: tuple[ReferenceTriple, ...] = ()
    if 0 in triples:
        where = f"{place}.triples.reference"
        reference = tuple(
            _triple(each, f"{where}[{number}]") for number, each in enumerate(list_of(triples[0], where))
        )
    for key, value in triples.items():
        list_of(value, f"{place}.triples[{shown_key(key)}]")
    return Comid(
        tag_id=identifier_of(required(identity, 0, tag_id), tag_id),
        reference=reference,
        tag_version=optional_count(identity, 1, f"{place}.tag-identity.tag-version"),
        language=optional_text(raw, 0, f"{place}.language"),
        triples={key: value for key, value in triples.items() if key != 0},
        extra={key: value for key, value in raw.items() if key not in (0, 1, 4)},
    )


def _triple(value: Any, place: str) -> ReferenceTriple:
    parts = list_of(value, place)
    if len(parts) != 2:
        refuse(
            place, f"has {len(parts)} parts, but a reference triple has two: an environment and measurements"
        )
    where = f"{place}.measurements"
    return ReferenceTriple(
        _environment(parts[0], f"{place}.environment"),
        tuple(
            _measurement(each, f"{where}[{number}]") for number, each in enumerate(list_of(parts[1], where))
        ),
    )


def _environment(value: Any, place: str) -> Environment:
    raw = map_of(value, place, (0, 1, 2))
    named: dict[int | str, Any] = {}
    where = f"{place}.class"
    if 0 in raw:
        named = map_of(raw[0], where, (0, 1, 2, 3, 4))
    return Environment(
        class_id=optional_value(named, 0, f"{where}.class-id"),
        vendor=optional_text(named, 1, f"{where}.vendor"),
        model=optional_text(named, 2, f"{where}.model"),
        layer=optional_count(named, 3, f"{where}.layer"),
        index=optional_count(named, 4, f"{where}.index"),
        instance=optional_value(raw, 1, f"{place}.instance"),
        group=optional_value(raw, 2, f"{place}.group"),
    )


def _measurement(value: Any, place: str) -> Measurement:
    raw = map_of(value, place, (0, 1, 2))
    values = map_of(required(raw, 1, f"{place}.mval"), f"{place}.mval")
    mkey = optional_value(raw, 0, f"{place}.mkey")
    match mkey:
        case bool():
            refuse(f"{place}.mkey", "must be an integer, text, a UUID or an OID, not a boolean")
        case None | int() | str():
            pass
        case cbor2.CBORTag(tag=37, value=bytes(uuid)) if len(uuid) == 16:
            pass
        case cbor2.CBORTag(tag=111, value=bytes()):
            pass
        case _:
            refuse(f"{place}.mkey", f"must be an integer, text, a UUID or an OID, not {kind_of(mkey)}")
    return Measurement(
        mkey=mkey,
        digests=_digests(values[2], f"{place}.digests") if 2 in values else {},
        extra={key: each for key, each in values.items() if key != 2},
        authorized=tuple(list_of(raw[2], f"{place}.authorized-by")) if 2 in raw else (),
    )


def _digests(value: Any, place: str) -> dict[Algorithm, bytes]:
    found: dict[Algorithm, bytes] = {}
    seen: set[Algorithm] = set()
    for number, entry in enumerate(list_of(value, place)):
        where = f"{place}[{number}]"
        parts = list_of(entry, where)
        if len(parts) != 2:
            refuse(where, f"has {len(parts)} parts, but a digest has two: an algorithm and a value")
        algorithm, digest = parts
        if type(algorithm) is not int and not isinstance(algorithm, str):
            refuse(where, f"has an algorithm that must be an integer or text, not {kind_of(algorithm)}")
        if not isinstance(digest, bytes) or not digest:
            refuse(
                where,
                f"has a digest that must be bytes, not {kind_of(digest)}"
                if digest
                else "has an empty digest",
            )
        if (expected := digest_size(algorithm)) and len(digest) != expected[1]:
            refuse(where, f"has a digest of {len(digest)} bytes, but {expected[0]} has {expected[1]}")
        if canonical(algorithm) in seen:
            refuse(place, f"has the algorithm {shown_key(algorithm)} twice")
        seen.add(canonical(algorithm))
        found[algorithm] = digest
    return found


def encode(comid: Comid) -> bytes:
    """
    The deterministic encoding of a CoMID, without its tag.

    It does not check what `read` checks.  `corim.encode` reads again what it has written.

    Raises:
        ReferenceValueError: a raw part has a key that is also a field.
        CBORError: CBOR, or the part of it that `attester.cbor` writes, has no such value.
    """
    identity = without_absent({0: comid.tag_id, 1: comid.tag_version})
    triples = joined({0: [_triple_value(each) for each in comid.reference]}, comid.triples, "triples")
    if not comid.reference:
        del triples[0]
    return cbor.encode(
        joined(without_absent({0: comid.language, 1: identity, 4: triples}), comid.extra, "comid")
    )


def _triple_value(triple: ReferenceTriple) -> list[Any]:
    env = triple.environment
    named = without_absent({0: env.class_id, 1: env.vendor, 2: env.model, 3: env.layer, 4: env.index})
    environment = without_absent({0: named or None, 1: env.instance, 2: env.group})
    return [environment, [_measurement_value(each) for each in triple.measurements]]


def _measurement_value(measurement: Measurement) -> dict[int | str, Any]:
    digests = [[algorithm, digest] for algorithm, digest in measurement.digests.items()]
    values = joined({2: digests} if digests else {}, measurement.extra, "mval")
    return without_absent({0: measurement.mkey, 1: values, 2: list(measurement.authorized) or None})
