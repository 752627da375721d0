"""What of a CoRIM must be understood before anything in it is taken (draft-ietf-rats-corim-11)."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from cbor2 import CBORTag
from hypothesis import given, settings

from tests.unit.verifier.test_corim import CORIMS
from verifier.errors import ReferenceValueError
from verifier.references.comid import Comid, Environment, Measurement, ReferenceTriple
from verifier.references.corim import Corim, encode, read_unsigned
from verifier.references.measured import Document, DocumentFile
from verifier.references.profile import PROFILE, from_document, to_documents, unused

A = bytes(range(32))
DOCUMENT = Document(model="acme/tiny", files=(DocumentFile("f", sha256=A.hex()),))
ENDORSED = [[{0: {1: "acme"}}, [{1: {11: "x"}}]]]


def triple(*measurements: Measurement, **environment: Any) -> ReferenceTriple:
    values = measurements or (Measurement("f", {1: A}),)
    return ReferenceTriple(Environment(**{"vendor": "acme", "model": "acme/tiny", **environment}), values)


def tag(tag_id: str | bytes = "t", *, reference: Any = None, **more: Any) -> Comid:
    return Comid(tag_id=tag_id, reference=(triple(),) if reference is None else reference, **more)


def corim(*tags: Any, profile: Any = None, **extra: Any) -> Corim:
    """One that was written and read again, as an import reads it."""
    made = Corim("id", tags or (tag(),), profile, extra={int(key[1:]): each for key, each in extra.items()})
    return read_unsigned(encode(made))


def refusal(value: Corim, model: str | None = None) -> str:
    with pytest.raises(ReferenceValueError) as refused:
        to_documents(value, model)
    return str(refused.value)


def test_without_a_profile_and_with_ours() -> None:
    """Both are read: the draft alone, and what this project has said in public."""
    assert to_documents(corim()) == (DOCUMENT,)
    assert to_documents(read_unsigned(encode(from_document(DOCUMENT)))) == (DOCUMENT,)


OID = CBORTag(111, bytes.fromhex("88378952"))
UNKNOWN = {
    "a URI": ("http://arm.com/psa/iot/1", "the profile 'http://arm.com/psa/iot/1', which is not understood here"),
    "an object identifier": (OID, "the profile OID 2.999.1234, which is not understood here"),
    "one that is no identifier": (CBORTag(111, b"\x80"), "the profile OID 80, which is not understood"),
    "nothing": ("", "the profile '', which is not understood"),
    "ours in capitals": (PROFILE.upper(), "which is not understood"),
    "ours with a space": (PROFILE + " ", "which is not understood"),
    "the next of ours": (PROFILE[:-1] + "2", "corim#2', which is not understood"),
    "ours as an identifier": (CBORTag(111, PROFILE.encode()), "the profile OID "),
    "a long one": ("x" * 5000, "x', which is not understood"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_corim_of_an_unknown_profile_is_rejected_whole_and_by_name(case: str) -> None:
    """Whatever is in it: a value, a value beside a broken one, or nothing that anybody here uses."""
    profile, expected = UNKNOWN[case]
    for value in (corim(profile=profile), corim(CBORTag(505, b""), profile=profile)):
        said = refusal(value)
        assert expected in said
        assert "all of it is rejected" in said
        assert len(said) < 400
        assert said == refusal(value, "acme/tiny")


ENTITY = {0: "ACME", 2: [1]}
EXTENSIONS = {
    "of the CoRIM": (corim(k6=1), "the CoRIM has the extension 6, which has a meaning only in a profile"),
    "of the CoRIM, private": (
        read_unsigned(encode(Corim("id", (tag(),), extra={-1: "foo"}))), "the CoRIM has the extension -1, which"),
    "of the CoRIM, of text": (
        read_unsigned(encode(Corim("id", (tag(),), extra={"x": 1}))), "the CoRIM has the extension 'x', which"),
    "of a tag": (corim(tag(extra={5: CBORTag(32, "u")})), "tags[0] has the extension 5, which"),
    "of triples": (corim(tag(triples={7: [1]})), "tags[0].triples has the extension 7, which"),
    "of triples, private": (corim(tag(triples={-1: [1]})), "tags[0].triples has the extension -1, which"),
    "of values": (
        corim(tag(reference=(triple(Measurement("f", {1: A}, {-1: 0})),))), "('f') has the measurement value -1"),
    "of values, not yet defined": (
        corim(tag(reference=(triple(Measurement("f", {1: A}, {16: 0})),))), "('f') has the measurement value 16"),
    "of values of another environment": (
        corim(tag(reference=(triple(), triple(Measurement(1, extra={-5: 0}), model=None)))),
        "reference[1].measurements[0] has the measurement value -5, which has a meaning only in a profile"),
    "a mask beside a raw value": (
        corim(tag(reference=(triple(Measurement("f", {1: A}, {4: CBORTag(560, b"x"), 5: b"x"})),))),
        "('f') has the measurement value 4 besides digests"),
    "an address": (
        corim(tag(reference=(triple(Measurement("f", {1: A}, {6: bytes(6)})),))), "has the measurement value 6 besides"),
    "a version with its scheme": (
        corim(tag(reference=(triple(Measurement("f", {1: A}, {0: {0: "1", 1: 16384}})),))),
        "has the measurement value 0 besides"),
    "a key of a measurement": (
        corim(tag(reference=(triple(), triple(Measurement(-1, {1: A}), model=None)))), "mkey is negative, which has a"),
    "a kind of class": (
        corim(tag(reference=(triple(class_id=CBORTag(557, [1, A])),))), "class-id must be an OID, a UUID or tagged bytes"),
    "a kind of class, untagged": (corim(tag(reference=(triple(class_id="x"),))), "class-id must be an OID, a UUID or"),
    "an entity's key": (corim(k5=[{**ENTITY, 3: 1}]), "entities[0] has the extension 3, which"),
    "an entity without a name": (corim(k5=[{2: [1]}]), "entities[0].entity-name must be text, not null"),
    "an entity without a role": (corim(k5=[{0: "x"}]), "entities[0].role must be an array"),
    "an entity of no role": (corim(k5=[{0: "x", 2: []}]), "entities[0].role is an empty array"),
    "a role": (corim(k5=[{0: "x", 2: [7]}]), "entities[0].role has 7, which is none of the roles [1, 2]"),
    "a role of a tag": (corim(tag(extra={2: [{0: "x", 2: [3]}]})), "tags[0].entities[0].role has 3, which is none"),
    "two signers": (corim(k5=[{0: "a", 2: [2]}, {0: "b", 2: [1, 2]}]), "entities has two signers of the manifest"),
    "no entities": (corim(k5=[]), "entities is an empty array"),
    "dependencies without a place": (corim(k2=[{1: [1, A]}]), "dependent-rims[0] has no href"),
    "dependencies with more": (corim(k2=[{0: "u", 2: 1}]), "dependent-rims[0] has the key 2"),
    "trust dependencies": (
        corim(tag(triples={4: [1]})), "tags[0].triples[4] has trust dependencies, without which its reference values"),
    "links to CoSWIDs": (corim(tag(triples={6: [1]})), "tags[0].triples[6] has links to CoSWIDs, without which"),
    "a tag that supplements": (
        corim(tag(extra={3: [{0: "other", 1: 0}]})), "tags[0].linked-tags says that the tag supplements another one"),
    "another relation": (corim(tag(extra={3: [{0: "o", 1: 2}]})), "linked-tags[0].tag-rel must be 0 (supplements) or 1"),
    "a relation of a truth value": (corim(tag(extra={3: [{0: "o", 1: True}]})), "tag-rel must be 0 (supplements) or 1"),
    "a relation to nothing": (corim(tag(extra={3: [{1: 1}]})), "linked-tags[0].linked-tag-id must be text"),
    "a tag twice": (corim(tag(), tag(tag_version=1)), "tags has the id 't' twice, so nobody can say which"),
    "a tag that replaces itself": (corim(tag(extra={3: [{0: "t", 1: 1}]})), "tags replace each other, among them 't'"),
    "tags that replace each other": (
        corim(tag("a", extra={3: [{0: "b", 1: 1}]}), tag("b", extra={3: [{0: "a", 1: 1}]})), "tags replace each other"),
    "an environment twice, with other values": (
        corim(tag(reference=(triple(), triple(Measurement("f", {1: bytes(32)}))))), "the CoRIM has the model acme/tiny twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", EXTENSIONS)
def test_what_has_no_meaning_here_is_refused_by_its_place(case: str) -> None:
    """Extensions have a meaning in a profile only; relations and conditions are never dropped."""
    value, expected = EXTENSIONS[case]
    assert expected in refusal(value)


def test_a_digest_of_an_algorithm_that_nobody_knows_beside_one() -> None:
    """There must be a common one, and every common one must agree: the others say nothing here."""
    value = corim(tag(reference=(triple(Measurement("f", {1: A, 99: b"x", "new": b"y"})),)))
    assert to_documents(value) == (DOCUMENT,)


def test_a_tag_that_another_one_replaces_does_not_count() -> None:
    """Its information must be disregarded, also if it is named twice, and whatever is in it."""
    wrong = tag("old", reference=(triple(Measurement("f", {1: bytes(32)})), triple()))
    value = corim(wrong, tag("new", extra={3: [{0: "old", 1: 1}]}))
    assert to_documents(value) == to_documents(value, "acme/tiny") == (DOCUMENT,)
    assert unused(value) == ["tags[0], because another tag replaces it"]


def test_ours_that_another_one_replaces_does_not_count() -> None:
    """In our own profile likewise."""
    old = Document(model="acme/tiny", files=(DocumentFile("f", sha256=bytes(32).hex()),))
    (first,), (second,) = (from_document(each).comids for each in (old, DOCUMENT))
    replacing = Comid(second.tag_id, second.reference, extra={3: [{0: first.tag_id, 1: 1}]})
    assert to_documents(corim(first, replacing, profile=PROFILE)) == (DOCUMENT,)


def test_what_only_adds_is_left_aside_and_said() -> None:
    """Endorsements, keys, lists of tags, places to look: reference values are complete without them."""
    value = corim(
        tag(triples={1: ENDORSED, 3: [1], 10: [1]}, extra={3: [{0: b"0123456789abcdef", 1: 1}]}),
        tag("x", reference=(), triples={1: ENDORSED, 4: [1]}),
        CBORTag(508, b""),
        CBORTag(505, b""),
        k2=[{0: CBORTag(32, "https://acme.example/more")}],
        k5=[ENTITY],
    )
    assert to_documents(value) == (DOCUMENT,)
    assert unused(value) == [
        "dependent-rims, because nothing is fetched",
        "endorsed values in tags[0]",
        "attestation keys in tags[0]",
        "conditional endorsements in tags[0]",
        (
            "that tags[0] replaces the tag 30313233343536373839616263646566, which is not in this CoRIM; if a value here"
            " is from it, activate another or retire it"
        ),
        "endorsed values in tags[1]",
        "trust dependencies in tags[1]",
        "tags[2], a list of tags (CoTL)",
        "tags[3], a CoSWID",
    ]


@given(CORIMS)
@settings(max_examples=200)
def test_any_corim_is_imported_or_refused(value: Corim) -> None:
    """By our own error alone; and what is taken can be explained."""
    for model in (None, "acme/tiny"):
        with contextlib.suppress(ReferenceValueError):
            assert to_documents(value, model)
            assert value.profile in (None, PROFILE)
            assert isinstance(unused(value), list)
