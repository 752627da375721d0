"""
CoMID tags: reference values of environments (draft-ietf-rats-corim-11 §5), and their digests.

Read strictly, each refusal with its place: types, empty containers, keys that the draft's
closed maps do not have, algorithms that stand twice, digests of the wrong length.  Where the
draft leaves maps open, and in triples that are no reference values, what stands there is kept
as it is, so that what was read can be written again with nothing lost.

Raw values are as `attester.cbor` gives them: tags are `cbor2.CBORTag`.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import cbor2

from attester import cbor
from attester.errors import CBORError
from verifier.errors import ReferenceValueError
from verifier.references.measured import DocumentFile

TAG_TIME, TAG_URI, TAG_UUID, TAG_OID = 1, 32, 37, 111
TAG_BYTES: Final = 560
TAGS: Final = frozenset({TAG_TIME, TAG_URI, TAG_UUID, TAG_OID, *range(550, 567)})
"""Tags that may stand in a CoMID: of the draft, and of the types it takes from elsewhere."""
MAX_COMID: Final = 8 << 20
"""Bytes.  How many values it may have `attester.cbor` says."""

NAME: Final = 11
"""The measurement value of a name."""

Algorithm = int | str
Raw = Mapping[int | str, Any]

_NAMED_INFORMATION: Final[Mapping[int, tuple[str, int]]] = {
    1: ("sha-256", 32), 2: ("sha-256-128", 16), 3: ("sha-256-120", 15), 4: ("sha-256-96", 12),
    5: ("sha-256-64", 8), 6: ("sha-256-32", 4), 7: ("sha-384", 48), 8: ("sha-512", 64),
    9: ("sha3-224", 28), 10: ("sha3-256", 32), 11: ("sha3-384", 48), 12: ("sha3-512", 64),
}  # fmt: skip
"""IANA's registry of Named Information hash algorithms (RFC 6920 §9.4): name, and bytes of a digest."""
# What manifests have, as draft and registry name it, and the private measurement value of a size in bytes.
_SHA256, _BLAKE3, _SIZE = 1, "blake3", -1
_IDS: Final = {name: number for number, (name, _) in _NAMED_INFORMATION.items()}


class Match(enum.StrEnum):
    """How two digests entries compare; only `MATCH` is a match."""

    MATCH = "match"
    DIFFERS = "differs"
    INCOMPARABLE = "incomparable"
    """They have no algorithm in common."""


@dataclass(frozen=True)
class Environment:
    """What a triple is about; never empty."""

    class_id: Any = None
    """Raw: a tagged OID, UUID or bytes, or what a profile adds."""
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
    """What an element of an environment has."""

    mkey: int | str | cbor2.CBORTag | None = None
    """Which element; a tag is a UUID or an OID."""
    digests: Mapping[Algorithm, bytes] = field(default_factory=dict)
    """Algorithms as they were given: Named Information ids or names."""
    extra: Raw = field(default_factory=dict)
    """The other measurement values, raw, by their key."""
    authorized: tuple[Any, ...] = ()
    """The keys that may speak for it, raw."""


@dataclass(frozen=True)
class ReferenceTriple:
    """Reference values of one environment."""

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
    """Triples that are no reference values, raw, by their key."""
    extra: Raw = field(default_factory=dict)
    """Entities, linked tags, a profile and extensions, raw, by their key."""


def refuse(place: str, what: str) -> NoReturn:
    """Raise `ReferenceValueError` for what stands at *place*."""
    raise ReferenceValueError(f"{place}: {what}")


def decode(data: bytes, place: str, tags: Collection[int], max_size: int) -> Any:
    """One CBOR item; raises `ReferenceValueError` where `attester.cbor` refuses it."""
    try:
        return cbor.decode(data, max_size=max_size, tags=tags, deterministic=False)
    except CBORError as error:
        refuse(place, str(error))


def map_of(value: Any, place: str, keys: Collection[int] | None = None) -> dict[int | str, Any]:
    """A map that is not empty, with no keys but *keys* where they are given."""
    if not isinstance(value, dict):
        refuse(place, f"not a map but {_kind(value)}")
    if not value:
        refuse(place, "an empty map")
    for key in value:
        if isinstance(key, bytes):
            refuse(place, "a key of bytes")
        if keys is not None and key not in keys:
            refuse(place, f"a key {_shown(key)}, which it cannot have")
    return value


def list_of(value: Any, place: str) -> list[Any]:
    """An array that is not empty."""
    if not isinstance(value, list):
        refuse(place, f"not an array but {_kind(value)}")
    if not value:
        refuse(place, "an empty array")
    return value


def text_of(value: Any, place: str) -> str:
    """A text."""
    if not isinstance(value, str):
        refuse(place, f"not text but {_kind(value)}")
    return value


def optional_text(raw: Raw, key: int, place: str) -> str | None:
    """The text at *key*, if there is anything."""
    return text_of(raw[key], place) if key in raw else None


def identifier_of(value: Any, place: str) -> str | bytes:
    """Text, or a UUID as 16 bytes: the two kinds of an identifier."""
    if isinstance(value, str) or (isinstance(value, bytes) and len(value) == 16):
        return value
    refuse(place, f"neither text nor the 16 bytes of a UUID but {_kind(value)}")


def _shown(key: int | str) -> str:
    return repr(key[:40]) if isinstance(key, str) else str(key)


def _kind(value: Any) -> str:
    if isinstance(value, cbor2.CBORTag):
        return f"tag {value.tag}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    names = {bool: "a boolean", int: "an integer", str: "text", list: "an array", dict: "a map"}
    return names.get(type(value), "null")


def _count(raw: Raw, key: int, place: str) -> int | None:
    if key not in raw:
        return None
    value = raw[key]
    if type(value) is not int or value < 0:
        refuse(place, f"not an unsigned integer but {_kind(value)}")
    return value


def _present(raw: Raw, key: int, place: str) -> Any:
    """The raw value at *key*; `None` stands for its absence, so null is refused."""
    if key in raw and raw[key] is None:
        refuse(place, "null")
    return raw.get(key)


def _required(raw: Raw, key: int, place: str) -> Any:
    if key not in raw:
        refuse(place, "missing")
    return raw[key]


def read(data: bytes, place: str) -> Comid:
    """
    Read a CoMID's own encoding, without its tag.

    Args:
        data: CBOR, not necessarily deterministic.
        place: What errors call it, e.g. ``tags[0]``.

    Raises:
        ReferenceValueError: naming the place.
    """
    raw = map_of(decode(data, place, TAGS, MAX_COMID), place)
    identity = map_of(_required(raw, 1, f"{place}.tag-identity"), f"{place}.tag-identity", (0, 1))
    tag_id = f"{place}.tag-identity.tag-id"
    triples = map_of(_required(raw, 4, f"{place}.triples"), f"{place}.triples")
    reference: tuple[ReferenceTriple, ...] = ()
    if 0 in triples:
        where = f"{place}.triples.reference"
        reference = tuple(
            _triple(each, f"{where}[{number}]") for number, each in enumerate(list_of(triples[0], where))
        )
    for key, value in triples.items():
        list_of(value, f"{place}.triples[{_shown(key)}]")
    return Comid(
        tag_id=identifier_of(_required(identity, 0, tag_id), tag_id),
        reference=reference,
        tag_version=_count(identity, 1, f"{place}.tag-identity.tag-version"),
        language=optional_text(raw, 0, f"{place}.language"),
        triples={key: value for key, value in triples.items() if key != 0},
        extra={key: value for key, value in raw.items() if key not in (0, 1, 4)},
    )


def _triple(value: Any, place: str) -> ReferenceTriple:
    parts = list_of(value, place)
    if len(parts) != 2:
        refuse(place, f"{len(parts)} parts, and a reference triple has an environment and measurements")
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
        class_id=_present(named, 0, f"{where}.class-id"),
        vendor=optional_text(named, 1, f"{where}.vendor"),
        model=optional_text(named, 2, f"{where}.model"),
        layer=_count(named, 3, f"{where}.layer"),
        index=_count(named, 4, f"{where}.index"),
        instance=_present(raw, 1, f"{place}.instance"),
        group=_present(raw, 2, f"{place}.group"),
    )


def _measurement(value: Any, place: str) -> Measurement:
    raw = map_of(value, place, (0, 1, 2))
    values = map_of(_required(raw, 1, f"{place}.mval"), f"{place}.mval")
    mkey = _present(raw, 0, f"{place}.mkey")
    match mkey:
        case bool():
            refuse(f"{place}.mkey", "not a key of a measurement but a boolean")
        case None | int() | str():
            pass
        case cbor2.CBORTag(tag=37, value=bytes(uuid)) if len(uuid) == 16:
            pass
        case cbor2.CBORTag(tag=111, value=bytes()):
            pass
        case _:
            refuse(f"{place}.mkey", f"not a key of a measurement but {_kind(mkey)}")
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
            refuse(where, f"{len(parts)} parts, and a digest has an algorithm and a value")
        algorithm, digest = parts
        if type(algorithm) is not int and not isinstance(algorithm, str):
            refuse(where, f"the algorithm is neither an integer nor text but {_kind(algorithm)}")
        if not isinstance(digest, bytes) or not digest:
            refuse(where, f"the digest is not bytes but {_kind(digest)}" if digest else "an empty digest")
        one = canonical(algorithm)
        name, size = _NAMED_INFORMATION.get(one, ("", 0)) if isinstance(one, int) else ("", 0)
        if name and len(digest) != size:
            refuse(where, f"{len(digest)} bytes, and {name} has {size}")
        if one in seen:
            refuse(place, f"the algorithm {_shown(algorithm)} twice")
        seen.add(one)
        found[algorithm] = digest
    return found


def canonical(algorithm: Algorithm) -> Algorithm:
    """One name for one algorithm: the Named Information id, where the text is the name of one."""
    return _IDS.get(algorithm, algorithm) if isinstance(algorithm, str) else algorithm


def compare_digests(reference: Mapping[Algorithm, bytes], claimed: Mapping[Algorithm, bytes]) -> Match:
    """
    Compare two digests entries (§ "Comparison for digests").

    Every algorithm that both have must agree, and there must be one: agreeing by a weak one
    does not count where a strong one differs.
    """
    return compare_digest_lists(reference.items(), claimed.items())


def compare_digest_lists(
    reference: Iterable[tuple[Algorithm, bytes]], claimed: Iterable[tuple[Algorithm, bytes]]
) -> Match:
    """As `compare_digests`, over pairs; an algorithm that stands twice on a side makes it false."""
    left, right = _by_algorithm(reference), _by_algorithm(claimed)
    if left is None or right is None:
        return Match.DIFFERS
    common = left.keys() & right.keys()
    if not common:
        return Match.INCOMPARABLE
    return Match.MATCH if all(left[each] == right[each] for each in common) else Match.DIFFERS


def _by_algorithm(pairs: Iterable[tuple[Algorithm, bytes]]) -> dict[Algorithm, bytes] | None:
    found: dict[Algorithm, bytes] = {}
    for algorithm, digest in pairs:
        if canonical(algorithm) in found:
            return None
        found[canonical(algorithm)] = digest
    return found


def encode(comid: Comid) -> bytes:
    """
    The deterministic encoding, without its tag.

    What the fields may not hold is for `read` to say, which a writer asks of its own work.

    Raises:
        ReferenceValueError: a raw part has a key that a field stands for.
        CBORError: a value that CBOR, or our part of it, does not have.
    """
    identity = _some({0: comid.tag_id, 1: comid.tag_version})
    triples = joined({0: [_triple_value(each) for each in comid.reference]}, comid.triples, "triples")
    if not comid.reference:
        del triples[0]
    return cbor.encode(joined(_some({0: comid.language, 1: identity, 4: triples}), comid.extra, "comid"))


def _some(values: Mapping[int, Any]) -> dict[int | str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def joined(known: Raw, extra: Raw, what: str) -> dict[int | str, Any]:
    """Both maps in one; raises `ReferenceValueError` for a key of both."""
    if both := known.keys() & extra.keys():
        raise ReferenceValueError(f"{what}: the key {_shown(min(both, key=str))} twice")
    return {**known, **extra}


def _triple_value(triple: ReferenceTriple) -> list[Any]:
    env = triple.environment
    named = _some({0: env.class_id, 1: env.vendor, 2: env.model, 3: env.layer, 4: env.index})
    environment = _some({0: named or None, 1: env.instance, 2: env.group})
    return [environment, [_measurement_value(each) for each in triple.measurements]]


def _measurement_value(measurement: Measurement) -> dict[int | str, Any]:
    digests = [[algorithm, digest] for algorithm, digest in measurement.digests.items()]
    values = joined({2: digests} if digests else {}, measurement.extra, "mval")
    return _some({0: measurement.mkey, 1: values, 2: list(measurement.authorized) or None})


def measurement_of(file: DocumentFile) -> Measurement:
    """A file in our profile."""
    digests: dict[int | str, bytes] = {}
    if file.sha256 is not None:
        digests[_SHA256] = bytes.fromhex(file.sha256)
    if file.blake3 is not None:
        digests[_BLAKE3] = bytes.fromhex(file.blake3)
    return Measurement(mkey=file.name, digests=digests, extra={} if file.size is None else {_SIZE: file.size})


def own_file(measurement: Measurement, place: str) -> dict[str, Any]:
    """A file of our profile, as a document has it."""
    others = measurement.extra.keys() - {_SIZE} or measurement.digests.keys() - {_SHA256, _BLAKE3}
    if not isinstance(measurement.mkey, str) or others or measurement.authorized:
        refuse(place, "not a file of our profile: its name as mkey, digests 1 and blake3, mval -1 its size")
    return {
        "name": measurement.mkey,
        **_hex(measurement),
        **({"size": measurement.extra[_SIZE]} if measurement.extra else {}),
    }


def foreign_file(measurement: Measurement, place: str) -> dict[str, Any]:
    """A file of anyone's, as a document has it; what a manifest could not be held against is refused."""
    name = measurement.mkey
    if not isinstance(name, str):
        refuse(place, "its key is not the name of a file, and manifests cannot hold it")
    place = f"{place} ({name[:80]!r})"
    found = _hex(measurement)
    if not found:
        refuse(place, "neither a SHA-256 nor a BLAKE3 digest, and manifests cannot hold it")
    # Each would be one more condition; without it the reference value says less than was signed.
    if others := measurement.extra.keys() - {NAME}:
        key = _shown(min(others, key=str))
        refuse(place, f"the measurement value {key} besides digests, and manifests cannot hold it")
    if measurement.authorized:
        refuse(place, "only some keys may speak for it, and manifests cannot hold it")
    return {"name": name, **found}


def _hex(measurement: Measurement) -> dict[str, str]:
    """The digests that manifests have, as a document names them."""
    found = {canonical(algorithm): digest.hex() for algorithm, digest in measurement.digests.items()}
    names = {_SHA256: "sha256", _BLAKE3: "blake3"}
    return {name: found[algorithm] for algorithm, name in names.items() if algorithm in found}
