"""The cose-wg samples: with our algorithms they agree, or are refused for a stated reason."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from attester.cose import ED25519, ES256, PublicKey, Sign1
from attester.errors import CBORError, COSEError
from verifier.references import anchor_reading, anchors

# What the profile refuses, and why: the sample's file, and words of the refusal.
REFUSED = {
    "sign1-tests/sign-pass-01.json": "the protected header has no algorithm",
    "sign1-tests/sign-pass-03.json": "not tagged 18",
    "sign1-tests/sign-fail-01.json": "a tag that this profile does not use",
    "sign1-tests/sign-fail-02.json": "does not match",
    "sign1-tests/sign-fail-03.json": "algorithm -999",
    "sign1-tests/sign-fail-04.json": "algorithm 'unknown'",
    "sign1-tests/sign-fail-06.json": "does not match",
    "sign1-tests/sign-fail-07.json": "does not match",
    "ecdsa-examples/ecdsa-sig-04.json": "algorithm -36",
}
PASSES = [
    "ecdsa-examples/ecdsa-sig-01.json",
    "eddsa-examples/eddsa-sig-01.json",
    "sign1-tests/sign-pass-02.json",
]
ANCHORS_ALONE = ["ecdsa-examples/ecdsa-sig-02.json", "ecdsa-examples/ecdsa-sig-03.json"]
"""Of P-384 and P-521: no key of a node, and an anchor of reference values."""
OTHER_ALGORITHMS = ["eddsa-examples/eddsa-sig-02.json"]


def load(samples: Path, name: str) -> tuple[dict[str, Any], bytes]:
    document = json.loads((samples / "cose" / name).read_text())
    return document, bytes.fromhex(document["output"]["cbor"])


def key_of(document: dict[str, Any]) -> PublicKey:
    key = document["input"]["sign0"]["key"]

    def member(name: str) -> bytes:
        if f"{name}_hex" in key:
            return bytes.fromhex(key[f"{name}_hex"])
        return base64.urlsafe_b64decode(key[name] + "==")

    if key["crv"] == "Ed25519":
        return PublicKey(ED25519, member("x"))
    assert key["crv"] == "P-256"
    return PublicKey(ES256, member("x") + member("y"))


def verify(document: dict[str, Any], data: bytes) -> bytes:
    message = Sign1.decode(data, max_size=4096)
    external = bytes.fromhex(document["input"]["sign0"].get("external", ""))
    message.verify(key_of(document), external_aad=external)
    return message.payload


@pytest.mark.parametrize("name", PASSES)
def test_passes(samples: Path, name: str) -> None:
    """Signed by others with an algorithm of ours, and verified by us."""
    document, data = load(samples, name)
    assert verify(document, data) == document["input"]["plaintext"].encode()


@pytest.mark.parametrize("name", ANCHORS_ALONE)
def test_keys_that_are_anchors_alone(samples: Path, name: str) -> None:
    """Verified as the signature of a CoRIM is, and not with a bit of it changed."""
    document, data = load(samples, name)
    jwk = document["input"]["sign0"]["key"]
    (key,) = anchor_reading.read_anchors(json.dumps({**jwk, "d": ""}).encode(), public_half=True)
    assert isinstance(key, anchors.OtherKey)
    anchors.verify_with(Sign1.decode(data, max_size=4096), key)
    changed = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(COSEError, match="does not match"):
        anchors.verify_with(Sign1.decode(changed, max_size=4096), key)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(samples: Path, name: str) -> None:
    """Refused, for the reason that is stated."""
    document, data = load(samples, name)
    with pytest.raises((CBORError, COSEError)) as refusal:
        verify(document, data)
    assert REFUSED[name] in str(refusal.value)


def test_every_sample_is_accounted_for(samples: Path) -> None:
    """None is left out silently: those of other algorithms are named."""
    found = {str(path.relative_to(samples / "cose")) for path in (samples / "cose").rglob("*.json")}
    assert found == {*PASSES, *REFUSED, *ANCHORS_ALONE, *OTHER_ALGORITHMS}
