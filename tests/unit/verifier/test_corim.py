"""CoRIMs with one defect each, what we write read by others' libraries alone, and nothing lost on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from cbor2 import CBORTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from attester import cbor
from attester.cose import ED25519, ES256, PrivateKey
from verifier.errors import ReferenceValueError
from verifier.references import comid as comids
from verifier.references import corim
from verifier.references.comid import Comid, Environment, Measurement, ReferenceTriple
from verifier.references.corim import Corim, encode, read_signed, read_unsigned, sign
from verifier.references.digests import Match, compare_digest_lists, compare_digests
from verifier.references.measured import Document, DocumentFile, DocumentTensor, Practice, Publisher
from verifier.references.profile import PROFILE, from_document, to_documents

KEYS = {ES256: PrivateKey.generate(ES256), ED25519: PrivateKey.generate(ED25519)}
KEY, OTHER = KEYS[ES256], PrivateKey.generate(ES256)
ANCHORS = {"other": OTHER.public, "edwards": KEYS[ED25519].public, "us": KEY.public}
NOW = 1_800_000_000
A, B = bytes(range(32)), bytes(32)
ALGORITHMS = pytest.mark.parametrize("alg", [ES256, ED25519], ids=["ES256", "Ed25519"])

DOCUMENT = Document(
    model="publisher/model",
    files=(
        DocumentFile("a/config.json", 7, sha256=A.hex()),
        DocumentFile("model.safetensors", 1 << 40, A.hex(), B.hex()),
        DocumentFile("only-blake3", blake3=B.hex()),
    ),
    tensors=(
        DocumentTensor(
            name="w", dtype="BF16", shape=(2, 3), size=12, file="model.safetensors", offset=80, blake3=A.hex()
        ),
    ),
    practice=Practice(seed=A.hex(), windows=256, read=B.hex(), rows=4, passes=1, walk=(A.hex(), B.hex())),
    information_bytes=11,
    publisher=Publisher("key", "key sha256:00", B.hex()),
    ignore=("notes.txt",),
)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ReferenceValueError) as error:
        call()
    return str(error.value)


# Reading.


def comid_map() -> dict[Any, Any]:
    """A CoMID with something everywhere; anew, since tags cannot be copied."""
    return {
        1: {0: "tag", 1: 3},
        4: {
            0: [
                [
                    {0: {0: CBORTag(560, b"class"), 1: "vendor", 2: "model", 3: 0, 4: 1}, 1: CBORTag(550, A), 2: b"g"},
                    [{0: "file", 1: {2: [[1, A], ["blake3", B]], 0: {0: "1.2"}}, 2: [CBORTag(554, "key")]}, {1: {11: "x"}}],
                ]
            ],
            1: [["kept", "as it is"]],
        },
        2: [{0: "entity", 2: [0]}],
    }  # fmt: skip


COMID = comid_map()


def dumped(value: object = None, *, tag: bytes | None = None, **corim_map: Any) -> bytes:
    """A CoRIM of one CoMID, in cbor2's own words; keys of the map as ``k3=…``."""
    data = cbor2.dumps(COMID if value is None else value) if tag is None else tag
    entries = {0: "id", 1: [CBORTag(506, data)], **{int(key[1:]): each for key, each in corim_map.items()}}
    return cbor2.dumps(CBORTag(501, {key: each for key, each in entries.items() if each is not ...}))


def changed(*path: Any, to: Any = ...) -> Any:
    """The CoMID with one value changed, or gone."""
    value = comid_map()
    inner = value
    for part in path[:-1]:
        inner = inner[part]
    if to is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return value


def test_a_comid_is_read():
    """Every field by its name; the rest raw."""
    read = read_unsigned(
        dumped(k3=CBORTag(32, "uri"), k4={0: CBORTag(1, 5), 1: CBORTag(1, 6)}, k5=["entity"])
    )
    assert read == Corim(
        id="id",
        tags=(
            Comid(
                tag_id="tag",
                tag_version=3,
                reference=(
                    ReferenceTriple(
                        Environment(
                            class_id=CBORTag(560, b"class"),
                            vendor="vendor",
                            model="model",
                            layer=0,
                            index=1,
                            instance=CBORTag(550, A),
                            group=b"g",
                        ),
                        (
                            Measurement("file", {1: A, "blake3": B}, {0: {0: "1.2"}}, (CBORTag(554, "key"),)),
                            Measurement(extra={11: "x"}),
                        ),
                    ),
                ),
                triples={1: [["kept", "as it is"]]},
                extra={2: [{0: "entity", 2: [0]}]},
            ),
        ),
        profile="uri",
        not_before=5,
        not_after=6,
        extra={5: ["entity"]},
    )


def test_it_is_written_again_with_nothing_lost():
    """The same values; keys in their order."""
    read = read_unsigned(dumped(k3=CBORTag(111, b"oid"), k2=[{0: "other"}]))
    again = cbor2.loads(encode(read)).value
    assert {**again, 1: None} == {0: "id", 1: None, 2: ({0: "other"},), 3: CBORTag(111, b"oid")}
    assert cbor2.loads(again[1][0].value) == COMID
    assert encode(read_unsigned(encode(read))) == encode(read)


@pytest.mark.parametrize("number", [505, 508], ids=["CoSWID", "CoTL"])
def test_other_tags_stay_raw(number):
    """Not even well-formed inside: nobody looks."""
    data = cbor2.dumps(CBORTag(501, {0: bytes(16), 1: [CBORTag(number, b"\xff")]}))
    read = read_unsigned(data)
    assert read.tags == (CBORTag(number, b"\xff"),)
    assert read.comids == ()
    assert encode(read) == data


@pytest.mark.parametrize("mkey", [0, 7, -1, "", "text", CBORTag(37, bytes(16)), CBORTag(111, b"\x2a")])
def test_keys_of_measurements(mkey):
    """Integers, text, UUIDs and OIDs."""
    read = read_unsigned(dumped(changed(4, 0, 0, 1, 0, 0, to=mkey)))
    assert read.comids[0].reference[0].measurements[0].mkey == mkey


def test_others_need_not_be_deterministic():
    """Keys in any order, integers of any length: what RFC 8949 allows."""
    inner = cbor2.dumps(dict(reversed(COMID.items()))).replace(b"\x01\xa2\x00", b"\x18\x01\xa2\x18\x00", 1)
    assert inner != cbor2.dumps(COMID)
    assert read_unsigned(dumped(tag=inner)) == read_unsigned(dumped())


T, R = "tags[0]", "tags[0].triples.reference[0]"
ENV, M = (4, 0, 0, 0), (4, 0, 0, 1)
REFUSED = {
    "not tagged": (cbor2.dumps({0: "id", 1: [CBORTag(505, b"")]}), "the CoRIM must be tagged 501"),
    "tagged otherwise": (cbor2.dumps(CBORTag(506, b"")), "the CoRIM must be tagged 501"),
    "signed": (cbor2.dumps(CBORTag(18, [])), "the CoRIM: a tag that this profile does not use"),
    "not a map": (cbor2.dumps(CBORTag(501, [])), "the CoRIM must be a map, not an array"),
    "an empty map": (cbor2.dumps(CBORTag(501, {})), "the CoRIM is an empty map"),
    "nothing": (b"", "the CoRIM: no bytes"),
    "too long": (bytes(corim.MAX_CORIM + 1), "the CoRIM: 8388609 bytes, but at most 8388608 are allowed"),
    "indefinite": (b"\xd9\x01\xf5\xbf\x00\x61a\xff", "the CoRIM: error decoding map: encountered indefinite length"),
    "a key twice": (b"\xd9\x01\xf5\xa2\x00\x61a\x00\x61b", "the CoRIM: error decoding map: Duplicate map key: 0"),
    "a key twice, written otherwise": (b"\xd9\x01\xf5\xa2\x00\x61a\x18\x00\x61b", "Duplicate map key: 0"),
    "bytes after it": (dumped() + b"\0", "the CoRIM: 1 bytes after the end of the item"),
    "cut short": (dumped()[:-1], "the CoRIM: premature end"),
    "a float": (dumped(k5=1.5), "the CoRIM: a value of type float"),
    "a float as a time": (dumped(k4={1: CBORTag(1, 1.5)}), "the CoRIM: a value of type float"),
    "a bignum": (dumped(k5=CBORTag(2, b"\1")), "the CoRIM: a tag that this profile does not use"),
    "undefined": (dumped(k5=cbor2.undefined), "the CoRIM: a value of type"),
    "a key of bytes": (cbor2.dumps(CBORTag(501, {0: "id", b"x": 1})), "the CoRIM has a key of bytes"),
    "no id": (dumped(k0=...), "id is missing"),
    "an id of another type": (dumped(k0=1), "id must be text or the 16 bytes of a UUID, not an integer"),
    "an id of 15 bytes": (dumped(k0=bytes(15)), "id must be text or the 16 bytes of a UUID, not 15 bytes"),
    "no tags": (dumped(k1=...), "tags is missing"),
    "empty tags": (dumped(k1=[]), "tags is an empty array"),
    "tags in a map": (dumped(k1={0: 1}), "tags must be an array, not a map"),
    "too many tags": (dumped(k1=[CBORTag(505, b"")] * 1025), "tags has 1025 items, and at most 1024 are read"),
    "a tag that is none": (dumped(k1=[b""]), "tags[0] must be the tag of a CoSWID, CoMID or CoTL"),
    "a tag of another kind": (dumped(k1=[CBORTag(505, b""), CBORTag(32, "")]), "tags[1] must be the tag of a CoSWID"),
    "a tag not over bytes": (dumped(k1=[CBORTag(506, COMID)]), "tags[0] is a tag whose content must be bytes"),
    "a profile of text": (dumped(k3="uri"), "profile must be a URI (tag 32)"),
    "a profile of a URI of bytes": (dumped(k3=CBORTag(32, b"")), "profile must be text, not 0 bytes"),
    "a validity that is no map": (dumped(k4=[]), "rim-validity must be a map, not an array"),
    "a validity without end": (dumped(k4={0: CBORTag(1, 1)}), "rim-validity has no end"),
    "a validity with more": (dumped(k4={1: CBORTag(1, 1), 2: 0}), "rim-validity has the key 2, which it must not have"),
    "a time without tag": (dumped(k4={1: 1}), "rim-validity must be a time (tag 1)"),
    "a time of a truth value": (dumped(k4={1: CBORTag(1, True)}), "rim-validity must be a time in whole seconds"),
    "an end before the beginning": (dumped(k4={0: CBORTag(1, 2), 1: CBORTag(1, 1)}), "ends before it begins"),
    "a CoMID of no bytes": (dumped(tag=b""), f"{T}: no bytes"),
    "a CoMID that is no map": (dumped([1]), f"{T} must be a map, not an array"),
    "an indefinite CoMID": (dumped(tag=b"\xbf\xff"), f"{T}: error decoding map: encountered indefinite length"),
    "a key of a CoMID twice": (dumped(tag=b"\xa2\x01\x01\x01\x01"), f"{T}: error decoding map: Duplicate map key: 1"),
    "bytes after a CoMID": (dumped(tag=cbor2.dumps(COMID) + b"\0\0"), f"{T}: 2 bytes after the end of the item"),
    "a CoMID in a CoMID": (dumped(changed(2, to=CBORTag(506, b""))), f"{T}: a tag that this profile does not use"),
    "too deep": (dumped(changed(2, to=cbor2.loads(b"\x81" * 16 + b"\0"))), f"{T}: "),
    "too many values": (dumped(changed(2, to=[0] * 60_000)), f"{T}: more than 60000 values"),
    "no identity": (dumped(changed(1)), f"{T}.tag-identity is missing"),
    "an identity with more": (dumped(changed(1, 2, to=0)), f"{T}.tag-identity has the key 2, which it must not have"),
    "no tag id": (dumped(changed(1, 0)), f"{T}.tag-identity.tag-id is missing"),
    "a tag id of a number": (dumped(changed(1, 0, to=5)), f"{T}.tag-identity.tag-id must be text"),
    "a tag version of text": (dumped(changed(1, 1, to="1")), f"{T}.tag-identity.tag-version must be an unsigned"),
    "a negative tag version": (dumped(changed(1, 1, to=-1)), f"{T}.tag-identity.tag-version must be an unsigned"),
    "a language of bytes": (dumped(changed(0, to=b"en")), f"{T}.language must be text, not 2 bytes"),
    "no triples": (dumped(changed(4)), f"{T}.triples is missing"),
    "empty triples": (dumped(changed(4, to={})), f"{T}.triples is an empty map"),
    "triples in a list": (dumped(changed(4, to=[])), f"{T}.triples must be a map, not an array"),
    "empty reference triples": (dumped(changed(4, 0, to=[])), f"{T}.triples.reference is an empty array"),
    "other triples that are empty": (dumped(changed(4, 1, to=[])), f"{T}.triples[1] is an empty array"),
    "reference triples in a map": (dumped(changed(4, 0, to={0: 1})), f"{T}.triples.reference must be an array"),
    "a triple that is no list": (dumped(changed(4, 0, 0, to=1)), f"{R} must be an array, not an integer"),
    "a triple of three": (dumped(changed(4, 0, 0, to=[1, 2, 3])), f"{R} has 3 parts"),
    "an environment of text": (dumped(changed(*ENV, to="x")), f"{R}.environment must be a map, not text"),
    "an empty environment": (dumped(changed(*ENV, to={})), f"{R}.environment is an empty map"),
    "an environment with more": (dumped(changed(*ENV, 3, to=1)), f"{R}.environment has the key 3, which it must not have"),
    "an empty class": (dumped(changed(*ENV, 0, to={})), f"{R}.environment.class is an empty map"),
    "a class with more": (dumped(changed(*ENV, 0, "x", to=1)), f"{R}.environment.class has the key 'x'"),
    "a class id of null": (dumped(changed(*ENV, 0, 0, to=None)), f"{R}.environment.class.class-id must not be null"),
    "a vendor of bytes": (dumped(changed(*ENV, 0, 1, to=b"v")), f"{R}.environment.class.vendor must be text"),
    "a model of a number": (dumped(changed(*ENV, 0, 2, to=1)), f"{R}.environment.class.model must be text"),
    "a negative layer": (dumped(changed(*ENV, 0, 3, to=-1)), f"{R}.environment.class.layer must be an unsigned"),
    "an index of a truth value": (dumped(changed(*ENV, 0, 4, to=True)), f"{R}.environment.class.index must be an unsig"),
    "an instance of null": (dumped(changed(*ENV, 1, to=None)), f"{R}.environment.instance must not be null"),
    "a group of null": (dumped(changed(*ENV, 2, to=None)), f"{R}.environment.group must not be null"),
    "no measurements": (dumped(changed(*M, to=[])), f"{R}.measurements is an empty array"),
    "measurements in a map": (dumped(changed(*M, to={0: 1})), f"{R}.measurements must be an array, not a map"),
    "a measurement of bytes": (dumped(changed(*M, 1, to=b"")), f"{R}.measurements[1] must be a map, not 0 bytes"),
    "a measurement with more": (dumped(changed(*M, 1, 3, to=0)), f"{R}.measurements[1] has the key 3"),
    "a measurement without values": (dumped(changed(*M, 0, 1)), f"{R}.measurements[0].mval is missing"),
    "empty values": (dumped(changed(*M, 0, 1, to={})), f"{R}.measurements[0].mval is an empty map"),
    "a value's key of bytes": (dumped(changed(*M, 0, 1, b"k", to=1)), f"{R}.measurements[0].mval has a key of bytes"),
    "a key of null": (dumped(changed(*M, 0, 0, to=None)), f"{R}.measurements[0].mkey must not be null"),
    "a key of a truth value": (dumped(changed(*M, 0, 0, to=True)), "mkey must be an integer, text, a UUID or an OID"),
    "a key of bytes of a measurement": (dumped(changed(*M, 0, 0, to=b"k")), "mkey must be an integer, text, a UUID or an OID"),
    "a key of a list": (dumped(changed(*M, 0, 0, to=[1])), "mkey must be an integer, text, a UUID or an OID"),
    "a key of another tag": (dumped(changed(*M, 0, 0, to=CBORTag(560, b""))), "mkey must be an integer, text, a UUID or an OID"),
    "a key of a short UUID": (dumped(changed(*M, 0, 0, to=CBORTag(37, bytes(15)))), "mkey must be an integer, text, a UUID or "),
    "no one authorised": (dumped(changed(*M, 0, 2, to=[])), f"{R}.measurements[0].authorized-by is an empty array"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    """One defect each, by its place."""
    data, expected = REFUSED[case]
    assert expected in refusal(lambda: read_unsigned(data))


D = f"{R}.measurements[0].digests"
DIGESTS = {
    "empty digests": ([], f"{D} is an empty array"),
    "digests in a map": ({1: A}, f"{D} must be an array, not a map"),
    "a digest that is no list": ([A], f"{D}[0] must be an array, not 32 bytes"),
    "a digest of one": ([[1]], f"{D}[0] has 1 parts"),
    "a digest of three": ([[7, bytes(48)], [1, A, A]], f"{D}[1] has 3 parts"),
    "an algorithm of bytes": (
        [[b"sha-256", A]],
        f"{D}[0] has an algorithm that must be an integer or text, not 7 bytes",
    ),
    "an algorithm of a truth value": (
        [[True, A]],
        f"{D}[0] has an algorithm that must be an integer or text",
    ),
    "a digest of text": ([[1, A.hex()]], f"{D}[0] has a digest that must be bytes, not text"),
    "a digest of null": ([["x", None]], f"{D}[0] "),
    "an empty digest": ([["x", b""]], f"{D}[0] has an empty digest"),
    "an algorithm twice": ([[1, A], [7, bytes(48)], [1, B]], f"{D} has the algorithm 1 twice"),
    "an algorithm twice, with one digest": ([[1, A], [1, A]], f"{D} has the algorithm 1 twice"),
    "a name twice": ([["blake3", A], ["blake3", B]], f"{D} has the algorithm 'blake3' twice"),
    "an id and its name": ([[1, A], ["sha-256", A]], f"{D} has the algorithm 'sha-256' twice"),
    "a name and its id": ([["sha-384", bytes(48)], [7, bytes(48)]], f"{D} has the algorithm 7 twice"),
    "a short SHA-256": ([[1, A[:31]]], f"{D}[0] has a digest of 31 bytes, but sha-256 has 32"),
    "a long SHA-256": ([["sha-256", A + b"\0"]], f"{D}[0] has a digest of 33 bytes, but sha-256 has 32"),
    "a short SHA-384": ([[7, bytes(32)]], f"{D}[0] has a digest of 32 bytes, but sha-384 has 48"),
    "a short SHA-512": ([[8, bytes(63)]], f"{D}[0] has a digest of 63 bytes, but sha-512 has 64"),
    "a long truncated digest": ([[6, A]], f"{D}[0] has a digest of 32 bytes, but sha-256-32 has 4"),
}


@pytest.mark.parametrize("case", DIGESTS)
def test_digests_refused(case):
    """What no comparison could be made with, or could be made in two ways."""
    digests, expected = DIGESTS[case]
    assert expected in refusal(lambda: read_unsigned(dumped(changed(*M, 0, 1, 2, to=digests))))


def test_digests_are_kept_as_given():
    """Names stay names, in the order they came; of unknown algorithms any length."""
    digests = [["sha-256", A], [8, bytes(64)], [-16, b"x"], ["md5", b"y"]]
    read = read_unsigned(dumped(changed(*M, 0, 1, 2, to=digests)))
    assert list(read.comids[0].reference[0].measurements[0].digests.items()) == [
        tuple(each) for each in digests
    ]
    assert cbor2.loads(cbor2.loads(encode(read)).value[1][0].value) == changed(*M, 0, 1, 2, to=digests)


# Comparing.

COMPARED = {
    "the same": ([(1, A)], [(1, A)], Match.MATCH),
    "another": ([(1, A)], [(1, B)], Match.DIFFERS),
    "an id and its name": ([(1, A)], [("sha-256", A)], Match.MATCH),
    "an id and its name, another": ([("sha-256", A)], [(1, B)], Match.DIFFERS),
    "no common algorithm": ([(1, A)], [("blake3", A)], Match.INCOMPARABLE),
    "one of two in common": ([(1, A), (7, bytes(48))], [(1, A), ("blake3", B)], Match.MATCH),
    "two in common, one differs": ([(1, A), (7, bytes(48))], [(7, b"\1" * 48), (1, A)], Match.DIFFERS),
    "both in common": ([(1, A), ("blake3", B)], [("blake3", B), (1, A)], Match.MATCH),
    "nothing known": ([], [(1, A)], Match.INCOMPARABLE),
    "nothing claimed": ([(1, A)], [], Match.INCOMPARABLE),
    "twice in the reference": ([(1, A), (1, A)], [(1, A)], Match.DIFFERS),
    "twice in the claim": ([(1, A)], [(1, B), (1, A)], Match.DIFFERS),
    "twice, by id and name": ([(1, A)], [("sha-256", A), (1, A)], Match.DIFFERS),
    "twice, and not in common": ([(1, A)], [(1, A), ("x", A), ("x", A)], Match.DIFFERS),
    "names are as they are": ([("SHA-256", A)], [(1, A)], Match.INCOMPARABLE),
}


@pytest.mark.parametrize("case", COMPARED)
def test_compared(case):
    """The draft's comparison: all in common must agree, and something must be in common."""
    reference, claimed, expected = COMPARED[case]
    assert compare_digest_lists(reference, claimed) is expected
    assert compare_digest_lists(claimed, reference) is expected
    if len(dict(reference)) == len(reference) and len(dict(claimed)) == len(claimed):
        assert compare_digests(dict(reference), dict(claimed)) is expected


# Signing.


def accept(data: bytes, now: int = NOW, anchors: Any = ANCHORS) -> corim.VerifiedCorim:
    return read_signed(data).verify(anchors, now)


META = cbor2.dumps({0: {0: "signer"}})
HEADER: dict[Any, Any] = {1: -7, 3: "application/rim+cbor", 8: META}


def signed(
    header: Any = None,
    payload: Any = None,
    *,
    key: Any = KEY,
    unprotected: Any = None,
    tag: int = 18,
    **more: Any,
) -> bytes:
    """A message whose signature is right over whatever is in it; header entries as ``h15=…``."""
    entries = {
        **(HEADER if header is None else header),
        **{int(label[1:]): each for label, each in more.items()},
    }
    protected = cbor2.dumps({label: each for label, each in entries.items() if each is not ...})
    payload = dumped() if payload is None else payload
    signature = key.sign(cbor2.dumps(["Signature1", protected, b"", payload]))
    return cbor2.dumps(CBORTag(tag, [protected, unprotected or {}, payload, signature]))


def meta(start: int | None = None, end: int | None = None, **signer: Any) -> bytes:
    validity = {key: CBORTag(1, each) for key, each in ((0, start), (1, end)) if each is not None}
    return cbor2.dumps({0: {0: "signer"}, **({1: validity} if validity else {})})


@ALGORITHMS
def test_what_we_sign_is_verified(alg):
    """With the signer's words, and the narrowest of both validities."""
    value = from_document(DOCUMENT, not_before=NOW - 5, not_after=NOW + 50)
    data = sign(
        value, KEYS[alg], signer="we", uri="https://we.example", not_before=NOW - 50, not_after=NOW + 5
    )
    read = accept(data)
    assert read == corim.VerifiedCorim(
        corim=value,
        signer={ES256: "us", ED25519: "edwards"}[alg],
        signer_name="we",
        signer_uri="https://we.example",
        not_before=NOW - 5,
        not_after=NOW + 5,
    )
    assert to_documents(read.corim) == (DOCUMENT,)


def test_without_validity():
    """Then it is valid always, and says so."""
    read = accept(sign(from_document(DOCUMENT), KEY, signer="we"))
    assert (read.not_before, read.not_after, read.signer_uri) == (None, None, None)


def independent(data: bytes, key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> Any:
    """A reader of signed CoRIMs from cbor2 and cryptography alone: none of our code."""
    message = cbor2.loads(data)
    assert message.tag == 18
    protected, unprotected, payload, signature = message.value
    header = cbor2.loads(protected)
    assert unprotected == {}
    assert header[3] == "application/rim+cbor"
    to_be_signed = cbor2.dumps(["Signature1", protected, b"", payload])
    if isinstance(key, ec.EllipticCurvePublicKey):
        assert header[1] == -7
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        key.verify(encode_dss_signature(r, s), to_be_signed, ec.ECDSA(hashes.SHA256()))
    else:
        assert header[1] == -19
        key.verify(signature, to_be_signed)
    value = cbor2.loads(payload)
    assert value.tag == 501
    comid_map = cbor2.loads(value.value[1][0].value)
    ((environment, measurements),) = comid_map[4][0]
    return cbor2.loads(header[8]), value.value, environment, measurements


@ALGORITHMS
def test_an_independent_reader_reads_what_we_sign(alg):
    """Someone else's few lines verify it and find the files."""
    value = from_document(DOCUMENT, not_after=NOW)
    data = sign(value, KEYS[alg], signer="we", uri="https://we.example", not_after=NOW)
    meta_map, corim_map, environment, measurements = independent(data, KEYS[alg].native.public_key())
    assert meta_map[0] == {0: "we", 1: CBORTag(32, "https://we.example")}
    assert int(meta_map[1][1].timestamp()) == int(corim_map[4][1].timestamp()) == NOW
    assert corim_map[0] == DOCUMENT.digest
    assert corim_map[3] == CBORTag(32, PROFILE)
    assert environment == {0: {2: "publisher/model"}}
    assert {each[0]: (each[1].get(-1), dict(each[1].get(2, []))) for each in measurements if each[0]} == {
        "a/config.json": (7, {1: A}),
        "model.safetensors": (1 << 40, {1: A, "blake3": B}),
        "only-blake3": (None, {"blake3": B}),
    }
    assert measurements[-1][0] == 0
    assert measurements[-1][1][11] == "publisher/model"
    assert measurements[-1][1][-2]["practice"]["rows"] == 4


def test_signing_again_gives_the_same_bytes():
    """Ed25519 has no chance in it, and neither has what we write."""

    def again(data: bytes) -> bytes:
        read = accept(data)
        return sign(
            read.corim, KEYS[ED25519], signer=read.signer_name, uri=read.signer_uri, not_after=read.not_after
        )

    data = sign(from_document(DOCUMENT), KEYS[ED25519], signer="we", uri="u", not_after=NOW)
    assert again(data) == data


def test_every_changed_byte_is_refused():
    """A message of which any one byte is another is refused, by our error only."""
    data = sign(
        from_document(Document(model="m", files=(DocumentFile("f", sha256=A.hex()),))),
        KEY,
        signer="we",
        not_after=NOW,
    )
    accepted = []
    for place in range(len(data)):
        wrong = bytearray(data)
        wrong[place] ^= 0x01
        try:
            accept(bytes(wrong))
        except ReferenceValueError:
            continue
        accepted.append(place)
    assert accepted == []


MESSAGES = {
    "nothing": (b"", "the signed CoRIM: no bytes"),
    "too long": (bytes((8 << 20) + (128 << 10) + 1), "at most 8519680 are allowed"),
    "not tagged": (cbor2.dumps(cbor2.loads(signed()).value), "the signed CoRIM: not tagged 18"),
    "unsigned": (dumped(), "a tag that this profile does not use. It is a CoRIM that nobody has signed"),
    "bytes after it": (signed() + b"\0", "the signed CoRIM: 1 bytes after the end"),
    "a part too few": (cbor2.dumps(CBORTag(18, [b"", {}, b""])), "not the four parts of a COSE_Sign1"),
    "indefinite": (b"\xd2\x9f\x40\xa0\x40\x40\xff", "the signed CoRIM: error decoding array: encountered indefinite"),
    "a header of no bytes": (cbor2.dumps(CBORTag(18, [b"", {}, b"", b""])), "the protected header has no algorithm"),
    "a header that is no map": (cbor2.dumps(CBORTag(18, [b"\x80", {}, b"", b""])), "the protected header is not a map"),
    "a long header": (signed(h99=bytes(65 << 10)), "at most 65536 are allowed"),
    "a label twice": (signed(unprotected={3: "x"}), "header 3 is both protected and unprotected"),
    "a detached payload": (cbor2.dumps(CBORTag(18, [cbor2.dumps(HEADER), {}, None, bytes(64)])), "the payload is detached"),
    "a hash envelope": (signed(h258=-16), "the header is one of a hash envelope, which is not supported"),
    "a hash envelope by its type": (signed(h3=..., h259="application/rim+cbor"), "the header is one of a hash envelope"),
    "a hash envelope, unprotected": (signed(unprotected={258: -16}), "the header is one of a hash envelope"),
    "no algorithm": (signed(h1=...), "the protected header has no algorithm"),
    "an algorithm unprotected": (signed(h1=..., unprotected={1: -7}), "the protected header has no algorithm"),
    "a critical header": (signed(h2=[99], h99=1), "lists critical parameters"),
    "a critical header, unprotected": (signed(unprotected={2: [99]}), "alg and crit must be in the protected header"),
    "no content type": (signed(h3=...), "the header has the content type 'None', not application/rim+cbor"),
    "another content type": (signed(h3="application/cbor"), "the header has the content type 'application/cbor'"),
    "nobody": (signed(h8=...), "the header has neither corim-meta (8) nor CWT claims (15)"),
}  # fmt: skip


@pytest.mark.parametrize("case", MESSAGES)
def test_messages_refused(case):
    """Steps 1 and 2, before any key is asked."""
    data, expected = MESSAGES[case]
    assert expected in refusal(lambda: read_signed(data))


VERIFIED_NOT = {
    "another key": (signed(key=PrivateKey.generate()), "the signature fits none of the 2 trusted keys"),
    "another algorithm": (signed(h1=-35), "the signature is by the algorithm -35, for which there is no trusted key"),
    "an algorithm of text": (signed(h1="ES256"), "the signature is by the algorithm ES256, for which there is no trusted key"),
    "the algorithm of another key": (signed(h1=-19), "the signature fits none of the 1 trusted keys"),
    "no signature": (
        cbor2.dumps(CBORTag(18, [cbor2.dumps(HEADER), {}, dumped(), b""])), "the signature fits none"),
    "corim-meta that is no bytes": (signed(h8={0: {0: "x"}}), "corim-meta must be bytes"),
    "corim-meta that is no map": (signed(h8=b"\x80"), "corim-meta must be a map, not an array"),
    "corim-meta with bytes after": (signed(h8=META + b"\0"), "corim-meta: 1 bytes after the end"),
    "corim-meta with more": (signed(h8=cbor2.dumps({0: {0: "x"}, 2: 0})), "corim-meta has the key 2"),
    "no signer": (signed(h8=cbor2.dumps({1: {1: CBORTag(1, NOW)}})), "corim-meta.signer must be a map, not null"),
    "a signer without a name": (signed(h8=cbor2.dumps({0: {1: 2}})), "corim-meta.signer.name must be text, not null"),
    "a URI without its tag": (signed(h8=cbor2.dumps({0: {0: "x", 1: "u"}})), "corim-meta.signer.uri must be a URI"),
    "a signature's validity without end": (signed(h8=meta(NOW)), "corim-meta.validity has no end"),
    "a signature not yet valid": (signed(h8=meta(NOW + 1, NOW + 2)), "corim-meta is not valid yet"),
    "a signature that expired": (signed(h8=meta(1, NOW - 1)), f"corim-meta has expired: its validity ended at {NOW - 1}"),
    "claims that are no map": (signed(h15=[1]), "CWT claims must be a map"),
    "claims of nobody": (signed(h15={4: NOW}), "CWT claims.iss must be text, not null"),
    "an expiry of text": (signed(h15={1: "x", 4: "1"}), "CWT claims must be a time in whole seconds"),
    "claims not yet valid": (signed(h15={1: "x", 5: NOW + 1}), "CWT claims is not valid yet"),
    "claims that expired": (signed(h15={1: "x", 4: NOW}), "CWT claims has expired"),
    "claims that expired, beside corim-meta": (signed(h8=meta(1, NOW), h15={1: "x", 4: NOW}), "CWT claims has expired"),
    "reference values that expired": (signed(payload=dumped(k4={1: CBORTag(1, NOW - 1)})), "rim-validity has expired"),
    "reference values not yet valid": (
        signed(payload=dumped(k4={0: CBORTag(1, NOW + 1), 1: CBORTag(1, NOW + 2)})), "rim-validity is not valid yet"),
    "a payload that is none": (signed(payload=b"\xff"), "the CoRIM: "),
    "an empty payload": (cbor2.dumps(CBORTag(18, [
        p := cbor2.dumps(HEADER), {}, b"", KEY.sign(cbor2.dumps(["Signature1", p, b"", b""]))])), "the CoRIM: no bytes"),
    "a payload without its tag": (signed(payload=cbor2.dumps({0: "id"})), "the CoRIM must be tagged 501"),
}  # fmt: skip


@pytest.mark.parametrize("case", VERIFIED_NOT)
def test_not_verified(case):
    """Steps 3 to 6, each with its own words."""
    data, expected = VERIFIED_NOT[case]
    message = read_signed(data)
    assert expected in refusal(lambda: message.verify(ANCHORS, NOW))


def test_no_keys():
    """Nobody is trusted by default."""
    assert "no key is trusted" in refusal(lambda: accept(signed(), anchors={}))


def test_nothing_of_a_payload_counts_before_its_signature():
    """A payload, and a signer's words, that are broken: what is wrong is the signature, as long as it is."""
    stranger = PrivateKey.generate()
    for data in (
        signed(payload=b"\xff\xff", key=stranger),
        signed(h8=b"\xff", key=stranger),
        signed(h15=1, key=stranger),
    ):
        assert "the signature fits none" in refusal(lambda data=data: accept(data))


def test_the_key_id_is_only_a_hint():
    """Whatever it says, the key that fits decides."""
    for kid in (b"1", OTHER.public.kid, "text", 7):
        assert accept(signed(h4=kid)).signer == "us"
        assert accept(signed(unprotected={4: kid})).signer == "us"


def test_both_names_of_an_algorithm():
    """RFC 9864 gave ES256 and EdDSA names of their own."""
    assert accept(signed(h1=-9)).signer == "us"
    assert accept(signed(h1=-8, key=KEYS[ED25519])).signer == "edwards"


def test_cwt_claims_alone():
    """The issuer is the signer; `exp` is the first second that is too late."""
    data = signed(h8=..., h15={1: "issuer", 5: NOW, 4: NOW + 1})
    read = accept(data)
    assert (read.signer_name, read.not_before, read.not_after) == ("issuer", NOW, NOW)
    assert "CWT claims has expired" in refusal(lambda: accept(data, NOW + 1))


def test_the_narrowest_validity_counts():
    """Of the signature's, the claims' and the reference values'."""
    payload = dumped(k4={0: CBORTag(1, NOW - 3), 1: CBORTag(1, NOW + 9)})
    read = accept(signed(payload=payload, h8=meta(NOW - 2, NOW + 8), h15={1: "x", 5: NOW - 4, 4: NOW + 8}))
    assert (read.signer_name, read.not_before, read.not_after) == ("signer", NOW - 2, NOW + 7)


@pytest.mark.parametrize("now", [NOW - 1, NOW, NOW + 1, NOW + 2])
def test_the_first_and_the_last_second_count(now):
    """A validity includes both its ends."""
    data = signed(h8=meta(NOW, NOW + 1))
    if NOW <= now <= NOW + 1:
        assert accept(data, now).not_after == NOW + 1
    else:
        assert "corim-meta " in refusal(lambda: accept(data, now))


UNSIGNABLE = {
    "a beginning without an end": ({"not_before": 1}, {}, "corim-meta.validity has no end"),
    "an end before the beginning": (
        {"not_before": 2, "not_after": 1},
        {},
        "corim-meta.validity ends before",
    ),
    "reference values without an end": ({}, {"not_before": 1}, "rim-validity has no end"),
    "reference values that end first": (
        {},
        {"not_before": 2, "not_after": 1},
        "rim-validity ends before",
    ),
    "a name that is not Unicode": ({"signer": "\ud800"}, {}, "corim-meta: text that is not Unicode"),
    "a name beyond the header": ({"signer": "x" * (65 << 10)}, {}, "at most 65536 are allowed"),
    "an id that is not Unicode": ({}, {"id": "\ud800"}, "the CoRIM: text that is not Unicode"),
}


@pytest.mark.parametrize("case", UNSIGNABLE)
def test_not_signed(case):
    """What we would refuse of others."""
    arguments, fields, expected = UNSIGNABLE[case]
    assert expected in refusal(
        lambda: sign(from_document(DOCUMENT, **fields), KEY, **{"signer": "we", **arguments})
    )


ENVIRONMENT = Environment(model="m")
TRIPLE = ReferenceTriple(ENVIRONMENT, (Measurement("f", {1: A}),))
UNWRITABLE = {
    "no tags": (Corim("id", ()), "tags is an empty array"),
    "an id of 3 bytes": (Corim(b"abc", (Comid("t", (TRIPLE,)),)), "id must be text"),
    "a tag of another kind": (Corim("id", (CBORTag(32, "u"),)), "tags[0] must be the tag of a CoSWID"),
    "a profile of bytes": (Corim("id", (Comid("t", (TRIPLE,)),), profile=b"x"), "profile must be a URI"),
    "a key in extra that has a field": (Corim("id", (Comid("t", (TRIPLE,)),), extra={1: []}), "has the key 1 twice"),
    "no triples": (Corim("id", (Comid("t", ()),)), "tags[0].triples is an empty map"),
    "reference triples among the others": (Corim("id", (Comid("t", (TRIPLE,), triples={0: 1}),)), "triples has the key 0 twice"),
    "a field of a CoMID in extra": (Corim("id", (Comid("t", (TRIPLE,), extra={1: 1}),)), "comid has the key 1 twice"),
    "an empty environment": (
        Corim("id", (Comid("t", (ReferenceTriple(Environment(), TRIPLE.measurements),)),)), "environment is an empty map"),
    "no measurements": (Corim("id", (Comid("t", (ReferenceTriple(ENVIRONMENT, ()),)),)), "measurements is an empty array"),
    "an empty measurement": (
        Corim("id", (Comid("t", (ReferenceTriple(ENVIRONMENT, (Measurement(),)),)),)), "mval is an empty map"),
    "digests twice": (
        Corim("id", (Comid("t", (ReferenceTriple(ENVIRONMENT, (Measurement("f", {1: A}, {2: []}),)),)),)),
        "mval has the key 2 twice"),
    "a float": (Corim("id", (Comid("t", (TRIPLE,)),), extra={5: 1.5}), "the CoRIM: a value of type float"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNWRITABLE)
def test_not_written(case):
    """What could not be read again."""
    value, expected = UNWRITABLE[case]
    assert expected in refusal(lambda: encode(value))


# Documents.


def test_a_document_comes_back_with_its_digest():
    """Nothing is lost, signed or not."""
    value = from_document(DOCUMENT)
    assert to_documents(value) == (DOCUMENT,)
    again = to_documents(read_unsigned(encode(value)))
    assert again == (DOCUMENT,)
    assert again[0].digest == DOCUMENT.digest == value.id


def test_an_id_of_ones_own():
    """In place of the document's digest."""
    assert from_document(DOCUMENT, id="mine").id == "mine"


def test_only_the_model_asked_for():
    """Of two in one CoRIM; and one that is not there is refused."""
    other = Document(model="other", files=(DocumentFile("f", sha256=A.hex()),))
    both = Corim("id", (*from_document(DOCUMENT).tags, *from_document(other).tags), PROFILE)
    assert to_documents(both) == (DOCUMENT, other)
    assert to_documents(both, "other") == (other,)
    assert "no reference values of the model 'third'" in refusal(lambda: to_documents(both, "third"))
    # Our own names are never changed.
    assert "no reference values of the model 'mine'" in refusal(
        lambda: to_documents(from_document(other), "mine")
    )


def test_a_document_beyond_what_cbor_of_ours_may_hold():
    """Its own digest cannot be taken either."""
    tensors = tuple(DocumentTensor(name=f"t{n}", dtype="F32", shape=(1,), size=4) for n in range(12_000))
    many = Document(model="m", files=DOCUMENT.files, tensors=tensors)
    assert "m: more than 60000 values" in refusal(lambda: from_document(many))
    # A file has twice as many values in a CoRIM as in a document.
    files = tuple(DocumentFile(f"f{n}", n, A.hex(), B.hex()) for n in range(4096))
    more = from_document(Document(model="m", files=files, tensors=tensors[:2500]))
    assert to_documents(more)[0].files == files
    assert "tags[0]: more than 60000 values" in refusal(lambda: encode(more))


def foreign(*triples: Any, profile: str | None = None) -> Corim:
    return Corim("id", tuple(Comid(f"t{n}", (each,)) for n, each in enumerate(triples)), profile)


def of(model: str | None, *measurements: Measurement, **env: Any) -> ReferenceTriple:
    return ReferenceTriple(Environment(model=model, **env), measurements)


FILE = Measurement("f", {1: A})


def test_a_foreign_corim():
    """Files by their names; digests that manifests have; all else of a file left where it adds nothing."""
    value = foreign(
        of(
            "a/one",
            Measurement("x", {"sha-256": A, 7: bytes(48)}),
            Measurement("y", {"blake3": B}, {11: "y"}),
            vendor="v",
        ),
        of("two", FILE),
        of(None, Measurement(3, {8: bytes(64)}), vendor="of no model"),
    )
    one = Document(
        model="a/one", files=(DocumentFile("x", sha256=A.hex()), DocumentFile("y", blake3=B.hex()))
    )
    two = Document(model="two", files=(DocumentFile("f", sha256=A.hex()),))
    assert to_documents(value) == (one, two)
    assert to_documents(value, "two") == (two,)


def test_a_name_for_the_only_environment():
    """A publisher's product may have another name here, or none."""
    for name in (None, "Road Runner"):
        assert (
            to_documents(foreign(of(name, FILE, vendor="v")), "acme/roadrunner")[0].model == "acme/roadrunner"
        )
    assert "no reference values of the model 'x'" in refusal(
        lambda: to_documents(foreign(of("a", FILE), of("b", FILE)), "x")
    )


FOREIGN = {
    "no model": (foreign(of(None, FILE, vendor="v")), "the CoRIM has no reference values of any model"),
    "no reference values": (Corim("id", (Comid("t", (), triples={1: [1]}),)), "no reference values of any model"),
    "only a CoSWID": (Corim("id", (CBORTag(505, b""),)), "no reference values of any model"),
    "a model twice": (foreign(of("m", FILE), of("m", FILE)), "the CoRIM has the model m twice"),
    "a model of two vendors": (foreign(of("m", FILE, vendor="a"), of("m", FILE, vendor="b")), "the model m twice"),
    "a model that is no name": (foreign(of("a b", FILE)), "tags[0].triples.reference[0] is not a reference value"),
    "a file twice": (foreign(of("m", FILE, FILE)), "the document lists a file twice"),
    "a key that is no text": (
        foreign(of("m", FILE, Measurement(0, {1: A}))),
        "tags[0].triples.reference[0].measurements[1] has a key that is not the name of a file, so no manifest"),
    "no key": (foreign(of("m", Measurement(None, {1: A}))), "has a key that is not the name of a file"),
    "a key of a UUID": (foreign(of("m", Measurement(CBORTag(37, bytes(16)), {1: A}))), "has a key that is not the name"),
    "no digest": (
        foreign(of("m", Measurement("f", extra={11: "x"}))),
        "measurements[0] ('f') has neither a SHA-256 nor a BLAKE3 digest, so no manifest can be compared with it"),
    "another digest": (foreign(of("m", Measurement("f", {7: bytes(48)}))), "('f') has neither a SHA-256 nor a BLAKE3"),
    "a truncated digest": (foreign(of("m", Measurement("f", {2: bytes(16)}))), "('f') has neither a SHA-256"),
    "a short BLAKE3": (foreign(of("m", Measurement("f", {"blake3": b"x"}))), "not a reference value"),
    "one more condition": (foreign(of("m", Measurement("f", {1: A}, {1: 5}))), "('f') has the measurement value 1 besides"),
    "a private condition": (foreign(of("m", Measurement("f", {1: A}, {"x": 5}))), "('f') has the measurement value 'x'"),
    "keys that may speak for it": (foreign(of("m", Measurement("f", {1: A}, {}, (1,)))), "has a list of keys that may sign"),
    "of one instance": (foreign(of("m", FILE, instance=b"i")), "environment is of one instance or group"),
    "of a group": (foreign(of("m", FILE, group=b"g")), "environment is of one instance or group"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_corims_refused(case):
    """What a manifest could not be held against is refused, never dropped."""
    value, expected = FOREIGN[case]
    assert expected in refusal(lambda: to_documents(value))
    if value.comids and value.comids[0].reference:
        assert encode(value)


WHOLE = Measurement(0, extra={11: "m", -2: {}})


def ours(*measurements: Measurement, model: str | None = "m", **env: Any) -> Corim:
    return foreign(of(model, *measurements, **env), profile=PROFILE)


OURS = {
    "a CoSWID": (Corim("id", (CBORTag(505, b""),), PROFILE), "tags[0] must be a CoMID with one reference triple"),
    "two triples": (Corim("id", (Comid("t", (of("m", FILE, WHOLE),) * 2),), PROFILE), "tags[0] must be a CoMID with one"),
    "other triples": (
        Corim("id", (Comid("t", (of("m", FILE, WHOLE),), triples={1: [1]}),), PROFILE), "tags[0] must be a CoMID with one"),
    "a vendor": (ours(FILE, WHOLE, vendor="v"), "environment must have the class's model and nothing else"),
    "no model": (ours(FILE, WHOLE, model=None, group=b"g"), "environment must have the class's model"),
    "no whole": (ours(FILE), "measurements must end with the measurement of the whole model"),
    "the whole first": (ours(WHOLE, FILE), "measurements must end with the measurement of the whole model"),
    "two wholes": (ours(FILE, WHOLE, WHOLE), "measurements[1] must have a file's name as mkey"),
    "a whole without its rest": (ours(FILE, Measurement(0, extra={11: "m"})), "must end with the measurement of"),
    "a whole with more": (ours(FILE, Measurement(0, extra={11: "m", -2: {}, 1: 1})), "must end with the measurement of"),
    "a whole of another": (ours(FILE, Measurement(0, extra={11: "x", -2: {}})), "[1] is not a measurement of the whole model"),
    "a whole with a digest": (ours(FILE, Measurement(0, {1: A}, WHOLE.extra)), "[1] is not a measurement of the whole model"),
    "a whole of some keys": (ours(FILE, Measurement(0, {}, WHOLE.extra, (1,))), "[1] is not a measurement of the whole model"),
    "a rest that is no map": (ours(FILE, Measurement(0, extra={11: "m", -2: []})), "is not a measurement of the whole model"),
    "a rest with files": (
        ours(FILE, Measurement(0, extra={11: "m", -2: {"files": []}})), "has the model or its files again in mval -2"),
    "a rest that is not known": (
        ours(FILE, Measurement(0, extra={11: "m", -2: {"new": 1}})), "not a reference value: Object contains unknown field"),
    "a rest of other types": (ours(FILE, Measurement(0, extra={11: "m", -2: {"ignore": 1}})), "not a reference value"),
    "a rest with a number as key": (ours(FILE, Measurement(0, extra={11: "m", -2: {1: 1}})), "not a reference value"),
    "a rest with a tag": (ours(FILE, Measurement(0, extra={11: "m", -2: {"ignore": CBORTag(32, "")}})), "not a reference"),
    "a rest with bytes": (
        ours(FILE, Measurement(0, extra={11: "m", -2: {"ignore": [b"x"]}})), "not a reference value"),
    "no files": (ours(WHOLE), "not a reference value"),
    "a file twice": (ours(FILE, FILE, WHOLE), "the document lists a file twice"),
    "a file without a digest": (ours(Measurement("f", extra={-1: 3}), WHOLE), "a file has no digest"),
    "a file by another digest": (ours(Measurement("f", {7: bytes(48)}), WHOLE), "[0] must have a file's name as mkey"),
    "a file with more": (ours(Measurement("f", {1: A}, {1: 1}), WHOLE), "measurements[0] must have a file's name as mkey"),
    "a file of some keys": (ours(Measurement("f", {1: A}, {}, (1,)), WHOLE), "measurements[0] must have a file's name as mkey"),
    "a file without a name": (ours(Measurement(None, {1: A}), WHOLE), "measurements[0] must have a file's name as mkey"),
    "a size of text": (ours(Measurement("f", {1: A}, {-1: "3"}), WHOLE), "not a reference value"),
    "a size of a truth value": (ours(Measurement("f", {1: A}, {-1: True}), WHOLE), "not a reference value"),
    "a short BLAKE3": (ours(Measurement("f", {"blake3": b"x"}), WHOLE), "not a reference value"),
    "a model that is no name": (
        foreign(of("a b", FILE, Measurement(0, extra={11: "a b", -2: {}})), profile=PROFILE), "is not a model's name"),
    "a model twice": (
        foreign(of("m", FILE, WHOLE), of("m", FILE, WHOLE), profile=PROFILE), "the CoRIM has the model m twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", OURS)
def test_our_profile_refused(case):
    """Of our own profile nothing is overlooked."""
    value, expected = OURS[case]
    assert expected in refusal(lambda: to_documents(value))
    assert read_unsigned(encode(value)) == value


# Properties.

HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
MAYBE = st.none() | st.integers(0, (1 << 63) - 1)
TEXTS = st.text(max_size=12)
FILES = st.builds(DocumentFile, TEXTS, MAYBE, HEX, st.none() | HEX) | st.builds(
    DocumentFile, TEXTS, MAYBE, st.none(), HEX
)
DOCUMENTS = st.builds(
    Document,
    model=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}(/[A-Za-z0-9][A-Za-z0-9._-]{0,9})?", fullmatch=True),
    files=st.lists(FILES, min_size=1, max_size=4, unique_by=lambda file: file.name).map(tuple),
    tensors=st.lists(
        st.builds(
            DocumentTensor, name=TEXTS, dtype=TEXTS, shape=st.lists(st.integers(0, 1 << 40), max_size=3).map(tuple),
            size=st.integers(0, 1 << 50), file=TEXTS, offset=st.integers(0, 1 << 50), blake3=st.none() | HEX,
        ), max_size=3,
    ).map(tuple),
    practice=st.none()
    | st.builds(
        Practice, seed=HEX, windows=st.integers(0, 999), read=HEX, rows=st.integers(0, 9),
        passes=st.integers(0, 9), walk=st.lists(HEX).map(tuple),
    ),
    information_bytes=MAYBE,
    publisher=st.none() | st.builds(Publisher, TEXTS, TEXTS, HEX),
    ignore=st.lists(TEXTS, max_size=3).map(tuple),
)  # fmt: skip


@given(DOCUMENTS)
@settings(max_examples=150)
def test_every_document_comes_back(document):
    """Through bytes, and without."""
    value = from_document(document)
    assert to_documents(value) == (document,)
    read = read_unsigned(encode(value))
    assert read == value
    assert [each.digest for each in to_documents(read)] == [document.digest]


INTEGERS = st.integers(-(1 << 64), (1 << 64) - 1)
SCALARS = st.none() | st.booleans() | INTEGERS | st.binary(max_size=6) | TEXTS
RAW = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(INTEGERS | TEXTS, inner, max_size=3)
        | st.builds(CBORTag, st.sampled_from(sorted(comids.TAGS)), inner)
    ),
    max_leaves=6,
)
THERE = RAW.filter(lambda value: value is not None)
IDENTIFIERS = TEXTS | st.binary(min_size=16, max_size=16)


def extras(*known: int) -> st.SearchStrategy[dict[Any, Any]]:
    keys = INTEGERS.filter(lambda key: key not in known) | TEXTS
    return st.dictionaries(keys, RAW, max_size=2)


SIZES = {1: 32, 7: 48, "sha-512": 64, "blake3": 32, -16: 5}
DIGEST_MAPS = st.fixed_dictionaries(
    {}, optional={key: st.binary(min_size=size, max_size=size) for key, size in SIZES.items()}
)
MKEYS = st.none() | INTEGERS | TEXTS | st.binary(min_size=16, max_size=16).map(lambda uuid: CBORTag(37, uuid))
MEASUREMENTS = st.builds(
    Measurement, MKEYS, DIGEST_MAPS, extras(2), st.lists(RAW, max_size=2).map(tuple)
).filter(lambda each: bool(each.digests or each.extra))
COUNTS = st.none() | st.integers(0, (1 << 64) - 1)
NAMES = st.none() | TEXTS
ENVIRONMENTS = st.builds(
    Environment,
    class_id=st.none() | THERE,
    vendor=NAMES,
    model=NAMES,
    layer=COUNTS,
    index=COUNTS,
    instance=st.none() | THERE,
    group=st.none() | THERE,
).filter(lambda each: each != Environment())
TRIPLES = st.builds(ReferenceTriple, ENVIRONMENTS, st.lists(MEASUREMENTS, min_size=1, max_size=2).map(tuple))
COMIDS = st.builds(
    Comid,
    IDENTIFIERS,
    st.lists(TRIPLES, max_size=2).map(tuple),
    COUNTS,
    NAMES,
    st.dictionaries(st.integers(1, 20) | TEXTS, st.lists(RAW, min_size=1, max_size=2), max_size=2),
    extras(0, 1, 4),
).filter(lambda each: bool(each.reference or each.triples))
VALIDITIES = st.tuples(st.none() | INTEGERS, st.none() | INTEGERS).filter(
    lambda each: (each[1] is not None and (each[0] is None or each[0] <= each[1])) or each == (None, None)
)
CORIMS = st.builds(
    lambda id_, tags, profile, validity, extra: Corim(id_, tuple(tags), profile, *validity, extra),
    IDENTIFIERS,
    st.lists(COMIDS | st.binary(max_size=5).map(lambda data: CBORTag(505, data)), min_size=1, max_size=2),
    NAMES | st.binary(max_size=5).map(lambda oid: CBORTag(111, oid)),
    VALIDITIES,
    extras(0, 1, 3, 4),
)


@given(CORIMS)
@settings(max_examples=150)
def test_every_corim_is_read_as_it_was_written(value):
    """The same values, and written again the same bytes, in deterministic CBOR."""
    data = encode(value)
    read = read_unsigned(data)
    assert read == value
    assert encode(read) == data
    assert data.startswith(b"\xd9\x01\xf5")
    with contextlib.suppress(ReferenceValueError):
        to_documents(value)
    with contextlib.suppress(ReferenceValueError):
        to_documents(value, "model")


@given(CORIMS, TEXTS, st.none() | TEXTS, VALIDITIES)
@settings(max_examples=50)
def test_every_corim_signed_again_has_the_same_bytes(value, name, uri, validity):
    """With an algorithm that has no chance in it."""

    def once(what: Corim) -> bytes:
        return sign(what, KEYS[ED25519], signer=name, uri=uri, not_before=validity[0], not_after=validity[1])

    data = once(value)
    assert once(read_unsigned(read_signed(data).message.payload)) == data


def survives(data: bytes) -> None:
    """Read in every way: nothing but our own error."""
    with contextlib.suppress(ReferenceValueError):
        read = read_unsigned(data)
        assert read_unsigned(encode(read)) == read
        to_documents(read)
    with contextlib.suppress(ReferenceValueError):
        accept(data)
    with contextlib.suppress(ReferenceValueError):
        accept(signed(payload=data))


@given(st.binary(max_size=100))
@settings(max_examples=200)
def test_any_bytes_are_read_or_refused(data):
    """As they are, as the payload of a good signature, and as a CoMID."""
    survives(data)
    survives(dumped(tag=data))
    survives(signed(header={**HEADER, 8: data}))


@given(RAW, RAW)
@settings(max_examples=200)
def test_any_values_are_read_or_refused(value, other):
    """Well-formed, and anything but a CoRIM."""
    survives(cbor2.dumps(CBORTag(501, value)))
    survives(dumped(value))
    survives(signed(h15=value))
    survives(signed(h8=cbor2.dumps(value)))
    survives(dumped(changed(*M, 0, 1, 2, to=[[value, other]])))
    survives(dumped(changed(*M, 0, 1, to={11: value, -2: other})))
    survives(cbor2.dumps(CBORTag(18, [value, other, b"", b""])))


GOOD = encode(from_document(DOCUMENT))


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=3), st.integers(0, 3))
@settings(max_examples=300)
def test_any_change_to_a_good_one_is_read_or_refused(place, new, old):
    """Some bytes replaced by others, under a good signature too."""
    survives(GOOD[:place] + new + GOOD[place + old :])


def test_the_profile_is_what_was_published():
    """Others' files hold these words and numbers: a change is another profile."""
    document = Document(model="m", files=(DocumentFile("f", 3, A.hex(), B.hex()),), ignore=("x",))
    measurements = [
        {0: "f", 1: {2: [[1, A], ["blake3", B]], -1: 3}},
        {0: 0, 1: {11: "m", -2: {"ignore": ["x"]}}},
    ]
    comid = {1: {0: document.digest}, 4: {0: [[{0: {2: "m"}}, measurements]]}}
    profile = CBORTag(32, "tag:github.com,2026:touchstone/corim#1")
    tags = [CBORTag(506, cbor2.dumps(comid))]
    assert encode(from_document(document)) == cbor2.dumps(
        CBORTag(501, {0: document.digest, 1: tags, 3: profile})
    )


def test_decoding_named_tags_where_determinism_is_not_asked():
    """`attester.cbor` leaves them as they are, to any depth; others it refuses."""
    value = CBORTag(1, [CBORTag(37, b"u"), {0: CBORTag(32, "u")}])
    assert cbor.decode(cbor2.dumps(value), max_size=99, tags=(1, 32, 37), deterministic=False) == value
    with pytest.raises(cbor.CBORError, match="a tag that this profile does not use"):
        cbor.decode(cbor2.dumps(value), max_size=99, tags=(1, 37), deterministic=False)
