"""CoRIMs of another implementation (veraison/corim): verified, read, and written with nothing lost."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import cbor2
import pytest

from attester.cose import ES256, PrivateKey, PublicKey
from verifier import anchor_files
from verifier.errors import ReferenceValueError
from verifier.references import corim, profile

# As its meta says: the years 2022 to 2025, in whole days of UTC.
BEGIN, END = 1640908800, 1767139200
NOW = 1700000000
SIGNED = ["signed-good-corim.cbor", "signed-example-corim.cbor", "signed-corim-with-extensions.cbor"]
UNSIGNED = ["unsigned-good-corim.cbor", "corim-2.cbor"]
signed = pytest.mark.parametrize("name", SIGNED)


@pytest.fixture
def folder(samples: Path) -> Path:
    """The samples of CoRIM; skipped, saying so, where they are not."""
    if not (samples / "corim").is_dir():
        pytest.skip("the samples of CoRIM are not on this machine (TOUCHSTONE_SAMPLES)")
    return samples / "corim"


@pytest.fixture
def anchors(folder: Path) -> dict[str, PublicKey]:
    jwk = json.loads((folder / "ec-p256.jwk").read_text())
    return {"acme": PublicKey(ES256, b"".join(base64.urlsafe_b64decode(jwk[each] + "=") for each in "xy"))}


def raw(data: bytes) -> Any:
    """Deep values by cbor2 alone: bytes that are CBOR themselves, of a message or a tag, are opened."""
    value = cbor2.loads(data)
    if value.tag == 18:
        value = cbor2.loads(value.value[2])
    assert value.tag == 501
    tags = [(tag.tag, cbor2.loads(tag.value)) for tag in value.value[1]]
    return {**value.value, 1: tags}


@signed
def test_verifies(folder: Path, anchors: dict[str, PublicKey], name: str) -> None:
    """Signed by others, with what they say of themselves."""
    read = corim.read_signed((folder / name).read_bytes()).verify(anchors, NOW)
    assert (read.signer, read.signer_name, read.signer_uri) == (
        "acme",
        "ACME Ltd signing key",
        "https://acme.example",
    )
    assert (read.not_before, read.not_after) == (BEGIN, END)
    assert read.corim.id == "test corim id"
    (comid,) = read.corim.comids
    (triple,) = comid.reference
    assert (triple.environment.vendor, triple.environment.model) == ("ACME", "RoadRunner")
    assert [list(each.digests) for each in triple.measurements] == [[1], [1], [1]]


@signed
def test_the_key_as_it_is_published(folder: Path, name: str) -> None:
    """A private JWK: named by a person, its public half is an anchor; put among the anchors, it is refused."""
    given = anchor_files.read_given(folder / "ec-p256.jwk")
    assert given.has_private_key
    read = corim.read_signed((folder / name).read_bytes()).verify(anchor_files.usable([given]), NOW)
    assert read.signer == "ec-p256"
    (found,) = anchor_files.read_folder(folder)
    assert (found.anchors, "PRIVATE key" in found.refused[0]) == ((), True)


@signed
@pytest.mark.parametrize("now", [BEGIN, END])
def test_valid_to_the_last_second(folder: Path, anchors: dict[str, PublicKey], name: str, now: int) -> None:
    """Both ends belong to it."""
    assert corim.read_signed((folder / name).read_bytes()).verify(anchors, now).signer == "acme"


@signed
@pytest.mark.parametrize(("now", "expected"), [(BEGIN - 1, "not valid yet"), (END + 1, "expired")])
def test_not_before_and_not_after(
    folder: Path, anchors: dict[str, PublicKey], name: str, now: int, expected: str
) -> None:
    """A second earlier or later."""
    message = corim.read_signed((folder / name).read_bytes())
    with pytest.raises(ReferenceValueError, match=f"corim-meta .*{expected}"):
        message.verify(anchors, now)


@signed
def test_another_key(folder: Path, name: str) -> None:
    """Its key id says 1, and that helps nobody."""
    message = corim.read_signed((folder / name).read_bytes())
    with pytest.raises(ReferenceValueError, match="the signature fits none of the 1 trusted keys"):
        message.verify({"other": PrivateKey.generate().public}, NOW)


@signed
@pytest.mark.parametrize("part", [0, 2, 3], ids=["protected", "payload", "signature"])
def test_every_flipped_byte(folder: Path, anchors: dict[str, PublicKey], name: str, part: int) -> None:
    """Of each of the three parts that count."""
    parts = cbor2.loads((folder / name).read_bytes()).value
    accepted = []
    for place in range(len(parts[part])):
        wrong = bytearray(parts[part])
        wrong[place] ^= 0x01
        data = cbor2.dumps(cbor2.CBORTag(18, [*parts[:part], bytes(wrong), *parts[part + 1 :]]))
        try:
            corim.read_signed(data).verify(anchors, NOW)
        except ReferenceValueError:
            continue
        accepted.append(place)
    assert accepted == []


@pytest.mark.parametrize("name", [*SIGNED, *UNSIGNED])
def test_nothing_is_lost(folder: Path, name: str) -> None:
    """Read and written again, the values are the same; their keys may stand in another order."""
    data = (folder / name).read_bytes()
    read = (
        corim.read_unsigned(corim.read_signed(data).message.payload)
        if name in SIGNED
        else corim.read_unsigned(data)
    )
    again = corim.encode(read)
    assert raw(again) == raw(data)
    assert corim.encode(corim.read_unsigned(again)) == again


def test_endorsements_stay_raw(folder: Path) -> None:
    """corim-2 endorses a root of trust, beside three reference triples."""
    (comid,) = corim.read_unsigned((folder / "corim-2.cbor").read_bytes()).comids
    assert len(comid.reference) == 3
    assert [len(triples) for triples in comid.triples.values()] == [1]


def test_extensions_are_kept(folder: Path) -> None:
    """Keys of a profile that nobody here knows."""
    data = (folder / "signed-corim-with-extensions.cbor").read_bytes()
    read = corim.read_unsigned(corim.read_signed(data).message.payload)
    assert read.profile == "http://example.com/test-profile"
    assert read.extra == {-1: "foo"}
    assert {each.extra[-1] for each in read.comids[0].reference[0].measurements} == {1720782190}


IMPORTED = {
    # What the signer says, and no manifest: firmware is measured by UUIDs, and not files by their names.
    "signed-good-corim.cbor": r"measurements\[0\] has a key that is not the name of a file",
    "unsigned-good-corim.cbor": r"measurements\[0\] has a key that is not the name of a file",
    # The profiles of examples, with extensions or without: nobody here knows them.
    "signed-example-corim.cbor": "profile 'http://example.com/example-profile', which is not understood here",
    "signed-corim-with-extensions.cbor": "profile 'http://example.com/test-profile', which is not understood here",
    "corim-2.cbor": r"measurements\[0\] has a key that is not the name of a file",
}


@pytest.mark.parametrize("name", IMPORTED)
def test_each_is_imported_as_the_draft_says(folder: Path, name: str) -> None:
    """A CoRIM of an unknown profile is refused whole and by name; of the others what a manifest can equal is taken."""
    data = (folder / name).read_bytes()
    read = corim.read_unsigned(corim.read_signed(data).message.payload if name in SIGNED else data)
    with pytest.raises(ReferenceValueError, match=IMPORTED[name]):
        profile.to_documents(read)


def test_every_sample_is_accounted_for(folder: Path) -> None:
    """None is left out silently."""
    assert {path.name for path in folder.glob("*.cbor")} == {*SIGNED, *UNSIGNED} == set(IMPORTED)
