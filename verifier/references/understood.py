"""
What must be understood of a CoRIM before its reference values are taken (draft-ietf-rats-corim-11).

A profile that is not known rejects the CoRIM whole (§4.1): it may have changed what anything in it is for.  So do
extensions, which have a meaning only in a profile, and relations between tags that change what counts.  What only
adds to reference values, such as endorsements, is left aside, and said to be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

import cbor2

from verifier.references import comid
from verifier.references.comid import Comid, Measurement, ReferenceTriple
from verifier.references.corim import Corim
from verifier.references.shapes import identifier_of, kind_of, list_of, map_of, refuse, shown_key, text_of

_DEPENDENT, _ENTITIES = 2, 5
_COMID_ENTITIES, _LINKED = 2, 3
_SUPPLEMENTS, _REPLACES = 0, 1
_MANIFEST_SIGNER: Final = 2
_CORIM_ROLES: Final = frozenset({1, _MANIFEST_SIGNER})
_COMID_ROLES: Final = frozenset({0, 1, 2})
_ADDING: Final = {
    1: "endorsed values",
    2: "identity keys",
    3: "attestation keys",
    5: "domain memberships",
    8: "a series of conditional endorsements",
    10: "conditional endorsements",
}
"""Triples that say more of an environment, and take nothing from its reference values, by their key."""
_BINDING: Final = {4: "trust dependencies", 6: "links to CoSWIDs"}
"""Triples without which the reference values of the same tag are not all that its signer asks for."""
_CLASS_IDS: Final = frozenset({comid.TAG_UUID, comid.TAG_OID, comid.TAG_BYTES})
_VALUES: Final = frozenset({*range(12), 13, 14, 15})
"""The keys of measurement values that the draft defines."""
_TAG_NAMES: Final = {505: "a CoSWID", 508: "a list of tags (CoTL)"}

TagId = str | bytes


def check_profile(corim: Corim, known: Collection[str]) -> None:
    """
    Refuse a CoRIM whose profile is not known; one without a profile follows the draft alone.

    Raises:
        ReferenceValueError: the profile is none of *known*; the message names it.
    """
    if corim.profile is None or corim.profile in known:
        return
    refuse(
        "the CoRIM",
        f"has the profile {shown_profile(corim.profile)}, which is not understood here, so all of it is rejected. "
        f"CoRIMs without a profile are read, and those of the profile {', '.join(sorted(known))}",
    )


def shown_profile(profile: str | cbor2.CBORTag) -> str:
    """A profile in bounded length: its URI, or its object identifier with dots."""
    if isinstance(profile, str):
        return repr(profile[:120])
    return "OID " + (_dotted(profile.value[:64]) or profile.value[:64].hex())


def _dotted(ber: bytes) -> str:
    """An object identifier with dots; empty if it is not well-formed (X.690 §8.19)."""
    arcs, value = [], 0
    for octet in ber:
        value = value << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(value)
            value = 0
    if not arcs or ber[-1] & 0x80:
        return ""
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


def check(corim: Corim, values: Collection[int] = ()) -> None:
    """
    Refuse a CoRIM with anything that would have to be understood, beyond its profile, and is not.

    Args:
        values: The keys of measurement values that its profile adds.

    Raises:
        ReferenceValueError: it has; the message names the place.
    """
    _check_keys(corim.extra.keys(), {_DEPENDENT, _ENTITIES}, "the CoRIM")
    if _DEPENDENT in corim.extra:
        for number, each in enumerate(list_of(corim.extra[_DEPENDENT], "dependent-rims")):
            place = f"dependent-rims[{number}]"
            if 0 not in map_of(each, place, (0, 1)):
                refuse(place, "has no href")
    if _ENTITIES in corim.extra:
        roles = _roles(corim.extra[_ENTITIES], "entities", _CORIM_ROLES)
        if roles.count(_MANIFEST_SIGNER) > 1:
            refuse("entities", "has two signers of the manifest")
    for number, tag in enumerate(corim.tags):
        if isinstance(tag, Comid):
            _check_comid(tag, f"tags[{number}]", _VALUES.union(values))
    _ = in_force(corim)


def _check_keys(
    keys: Collection[int | str], known: Collection[int], place: str, what: str = "extension"
) -> None:
    unknown = [key for key in keys if key not in known]
    if unknown:
        key = shown_key(min(unknown, key=str))
        refuse(
            place,
            f"has the {what} {key}, which has a meaning only in a profile, and none is known that has it",
        )


def _roles(value: Any, place: str, known: Collection[int]) -> list[int]:
    found: list[int] = []
    for number, each in enumerate(list_of(value, place)):
        where = f"{place}[{number}]"
        entity = map_of(each, where)
        _check_keys(entity.keys(), (0, 1, 2), where)
        text_of(entity.get(0), f"{where}.entity-name")
        for role in list_of(entity.get(2), f"{where}.role"):
            if type(role) is not int or role not in known:
                shown = shown_key(role) if isinstance(role, (int, str)) else kind_of(role)
                refuse(f"{where}.role", f"has {shown}, which is none of the roles {sorted(known)}")
            found.append(role)
    return found


def _check_comid(tag: Comid, place: str, values: Collection[int]) -> None:
    _check_keys(tag.extra.keys(), {_COMID_ENTITIES, _LINKED}, place)
    if _COMID_ENTITIES in tag.extra:
        _roles(tag.extra[_COMID_ENTITIES], f"{place}.entities", _COMID_ROLES)
    _check_keys(tag.triples.keys(), _ADDING.keys() | _BINDING.keys(), f"{place}.triples")
    names_model = any(triple.environment.model is not None for triple in tag.reference)
    for key, what in _BINDING.items():
        if key in tag.triples and names_model:
            refuse(
                f"{place}.triples[{key}]",
                f"has {what}, without which its reference values are not all that was signed, and which are not read",
            )
    if names_model and any(relation == _SUPPLEMENTS for _, relation in _links(tag, place)):
        refuse(
            f"{place}.linked-tags",
            "says that the tag supplements another one: values that are spread over several tags are not read",
        )
    for number, triple in enumerate(tag.reference):
        _check_triple(triple, f"{place}.triples.reference[{number}]", values)


def _check_triple(triple: ReferenceTriple, place: str, values: Collection[int]) -> None:
    class_id = triple.environment.class_id
    if class_id is not None and not (isinstance(class_id, cbor2.CBORTag) and class_id.tag in _CLASS_IDS):
        refuse(
            f"{place}.environment.class.class-id",
            f"must be an OID, a UUID or tagged bytes, not {kind_of(class_id)}",
        )
    for number, measurement in enumerate(triple.measurements):
        where = f"{place}.measurements[{number}]"
        if isinstance(measurement.mkey, int) and measurement.mkey < 0:
            refuse(
                f"{where}.mkey",
                "is negative, which has a meaning only in a profile, and none is known that has it",
            )
        _check_keys(measurement.extra.keys(), values, where + _shown_name(measurement), "measurement value")


def _shown_name(measurement: Measurement) -> str:
    return f" ({measurement.mkey[:80]!r})" if isinstance(measurement.mkey, str) else ""


def _links(tag: Comid, place: str) -> Iterator[tuple[TagId, int]]:
    if _LINKED not in tag.extra:
        return
    for number, each in enumerate(list_of(tag.extra[_LINKED], f"{place}.linked-tags")):
        where = f"{place}.linked-tags[{number}]"
        link = map_of(each, where, (0, 1))
        relation = link.get(1)
        if type(relation) is not int or relation not in (_SUPPLEMENTS, _REPLACES):
            refuse(f"{where}.tag-rel", "must be 0 (supplements) or 1 (replaces)")
        yield identifier_of(link.get(0), f"{where}.linked-tag-id"), relation


def in_force(corim: Corim) -> list[tuple[int, Comid]]:
    """
    The CoMIDs that count, with their numbers: those that no other tag of the CoRIM replaces.

    Raises:
        ReferenceValueError: tags have one id, or replace each other.
    """
    found = [(number, tag) for number, tag in enumerate(corim.tags) if isinstance(tag, Comid)]
    ids = [tag.tag_id for _, tag in found]
    for tag_id in ids:
        if ids.count(tag_id) > 1:
            refuse("tags", f"has the id {_shown_id(tag_id)} twice, so nobody can say which of the two counts")
    replaced = {
        target: tag.tag_id
        for number, tag in found
        for target, relation in _links(tag, f"tags[{number}]")
        if relation == _REPLACES
    }
    for tag_id in ids:
        seen, current = set(), tag_id
        while current in replaced:
            if current in seen:
                refuse("tags", f"replace each other, among them {_shown_id(current)}")
            seen.add(current)
            current = replaced[current]
    return [(number, tag) for number, tag in found if tag.tag_id not in replaced]


def _shown_id(tag_id: TagId) -> str:
    return repr(tag_id[:80]) if isinstance(tag_id, str) else tag_id.hex()


def unused(corim: Corim) -> list[str]:
    """What a CoRIM that `check` accepts has besides reference values, and is not used: half sentences for people."""
    notes = []
    counting = {number for number, _ in in_force(corim)}
    ids = {tag.tag_id for tag in corim.comids}
    if _DEPENDENT in corim.extra:
        notes.append("dependent-rims, because nothing is fetched")
    for number, tag in enumerate(corim.tags):
        place = f"tags[{number}]"
        if not isinstance(tag, Comid):
            notes.append(f"{place}, {_TAG_NAMES.get(tag.tag, 'a tag')}")
            continue
        if number not in counting:
            notes.append(f"{place}, because another tag replaces it")
            continue
        notes += [f"{what} in {place}" for key, what in {**_ADDING, **_BINDING}.items() if key in tag.triples]
        notes += [
            f"that {place} replaces the tag {_shown_id(target)}, which is not in this CoRIM; if a value here is from"
            " it, activate another or retire it"
            for target, relation in _links(tag, place)
            if relation == _REPLACES and target not in ids
        ]
    return notes
