"""The vectors of Project Wycheproof: what each says of a signature or a key, our readers say too."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attester.cose import ED25519, ES256, PublicKey
from attester.errors import ConfigError, COSEError, SignatureError
from verifier import anchor_files, result_keys, results
from verifier.errors import ResultError
from verifier.references.anchors import Anchor, OtherKey, kind_of
from verifier.result_keys import VerifyingKey

Vector = tuple[dict[str, Any], dict[str, Any]]
"""A group, which has the key, and one of its tests."""

ISSUER, NOW = "https://v.example", 1_795_000_000
SIGNED = "Invalid payload string"
"""The refusal of a token whose algorithm and signature are right: no vector holds a result."""
JWS, JWK = "json_web_signature_test.json", "json_web_key_test.json"
ES256_VALID = {JWS: {18, 378}, JWK: set[int]()}
"""The vectors that are valid and have our algorithm."""
ES256_KEYS = {JWS: {*range(18, 33), *range(378, 402)}, JWK: set[int]()}
"""The vectors whose keys are all for ES256 signatures."""
COUNTS = {JWS: 401, JWK: 26}
both = pytest.mark.parametrize("name", [JWS, JWK])


def vectors(samples: Path, name: str) -> list[Vector]:
    document = json.loads((samples / "wycheproof" / name).read_text())
    found = [(group, test) for group in document["testGroups"] for test in group["tests"]]
    assert len(found) == document["numberOfTests"]
    return found


def wrong(answers: Iterator[tuple[Vector, bool]]) -> list[str]:
    """The vectors whose answer is not what they say."""
    return [
        f"{test['tcId']} {group.get('comment', '')} {test['comment']}: {test['result']}"
        for (group, test), accepted in answers
        if accepted != (test["result"] == "valid")
    ]


def is_signed(key: PublicKey, test: dict[str, Any]) -> bool:
    try:
        key.verify(bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"]))
    except SignatureError:
        return False
    return True


def point_of(key: dict[str, str]) -> bytes:
    """The coordinates of a key, from its uncompressed point."""
    point = bytes.fromhex(key["uncompressed"])
    assert (len(point), point[0]) == (65, 4)
    return point[1:]


def test_es256(samples: Path) -> None:
    """Each of 262 signatures is accepted or refused as the vector says."""
    found = vectors(samples, "ecdsa_secp256r1_sha256_p1363_test.json")
    keys = [PublicKey.from_map(PublicKey(ES256, point_of(group["publicKey"])).to_map()) for group, _ in found]
    answers = ((vector, is_signed(key, vector[1])) for vector, key in zip(found, keys, strict=True))
    assert (len(found), wrong(answers)) == (262, [])


def test_ed25519(samples: Path) -> None:
    """Each of 151 signatures likewise."""
    found = vectors(samples, "ed25519_test.json")
    keys = [PublicKey(ED25519, bytes.fromhex(group["publicKey"]["pk"])) for group, _ in found]
    answers = ((vector, is_signed(key, vector[1])) for vector, key in zip(found, keys, strict=True))
    assert (len(found), wrong(answers)) == (151, [])


def test_every_ed25519_key_is_a_key_of_ours(samples: Path, tmp_path: Path) -> None:
    """As keys of nodes and as anchors; no result is signed by one."""
    for group, _ in vectors(samples, "ed25519_test.json"):
        key = PublicKey(ED25519, bytes.fromhex(group["publicKey"]["pk"]))
        assert PublicKey.from_map(key.to_map()) == anchor(tmp_path, group["publicKeyJwk"]) == key
        with pytest.raises(ResultError):
            VerifyingKey.from_jwk(group["publicKeyJwk"])


def anchor(folder: Path, jwk: Any) -> Anchor:
    path = folder / "anchor.jwk"
    path.write_text(json.dumps(jwk))
    return anchor_files.read_given(path).anchors[0][1]


def keys_of(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The keys of a group: of a pair the public one."""
    given = group["public"] if "public" in group else group["private"]
    return given.get("keys", [given])


def refusal(token: str, keys: dict[str, VerifyingKey]) -> str:
    """Why a token is no result; nothing but our own error comes out."""
    with pytest.raises(ResultError) as refused:
        results.decode_jwt(token, keys, issuer=ISSUER, now=NOW)
    return str(refused.value)


def usable(group: dict[str, Any]) -> dict[str, VerifyingKey]:
    """The keys of a group that may sign results, by the name that the group's tokens have for them."""
    found = {}
    for jwk in keys_of(group):
        with suppress(ResultError):
            found[str(jwk.get("kid"))] = VerifyingKey.from_jwk(jwk)
    return found


@both
def test_signatures_of_tokens(samples: Path, name: str) -> None:
    """Those that are valid and of our algorithm are accepted, and no other."""
    found = vectors(samples, name)
    accepted = {test["tcId"] for group, test in found if SIGNED in refusal(test["jws"], usable(group))}
    assert (len(found), accepted) == (COUNTS[name], ES256_VALID[name])
    es256 = {test["tcId"] for group, test in found if keys_of(group)[0].get("alg") == "ES256"}
    assert accepted == es256 & {test["tcId"] for _, test in found if test["result"] == "valid"}


@both
def test_tokens_of_other_algorithms(samples: Path, name: str) -> None:
    """Refused also if their header names a key that we trust."""
    ours = result_keys.ResultKey(ec.generate_private_key(ec.SECP256R1())).verifying
    for group, test in vectors(samples, name):
        named = {str(jwk.get("kid")): ours for jwk in keys_of(group)}
        assert SIGNED not in refusal(test["jws"], named)


@both
def test_sets_of_keys(samples: Path, name: str) -> None:
    """A set is read if one of its keys is for ES256 signatures; others are ignored (RFC 7517 §5)."""
    read, has_one = set(), set()
    for group, test in vectors(samples, name):
        if usable(group):
            has_one.add(test["tcId"])
        with suppress(ResultError):
            result_keys.read_jwks(json.dumps({"keys": keys_of(group)}).encode())
            read.add(test["tcId"])
    assert read == has_one
    assert read >= ES256_KEYS[name]


@both
def test_anchors(samples: Path, tmp_path: Path, name: str) -> None:
    """
    An anchor is a key of a kind that is read, or a plain error says that it is none.

    What else a JWK says that it is for does not count there: its place says what it is for.
    """
    for group, _ in vectors(samples, name):
        for jwk in keys_of(group):
            try:
                key = anchor(tmp_path, jwk)
            except ConfigError:
                continue
            assert jwk["kty"] in ("EC", "RSA")
            assert kind_of(key) == jwk.get("crv") or kind_of(key).startswith("RSA-")
            if isinstance(key, PublicKey):
                assert PublicKey.from_map(key.to_map()) == key


COSE_NUMBERS = {
    "RS256": -257, "RS384": -258, "RS512": -259, "PS256": -37, "PS384": -38, "PS512": -39, "ES384": -35, "ES512": -36,
}  # fmt: skip
OTHER_VALID = {
    # What a JWK says of its use, and whether a key was made badly (ROCA), does not count for an anchor.
    # The keys of the other two say PS256, and the tokens PS384: for an anchor the key's word counts.
    JWS: {353, 355, 346, 350},
    JWK: {7},
}


@both
def test_signatures_of_other_anchors(samples: Path, tmp_path: Path, name: str) -> None:
    """RSA, P-384 and P-521 as in JOSE, whose signatures have the same bytes: each as the vector says."""
    wrong, checked = set(), 0
    for group, test in vectors(samples, name):
        keys = keys_of(group)
        if keys[0]["kty"] != "RSA" and keys[0].get("crv") not in ("P-384", "P-521"):
            continue
        with suppress(ValueError):
            head, body, signature = test["jws"].split(".")
            alg = json.loads(unpadded(head))["alg"]
            checked += 1
            if is_signed_by_other(tmp_path, keys, f"{head}.{body}".encode(), unpadded(signature), alg) != (
                test["result"] == "valid"
            ):
                wrong.add(test["tcId"])
    assert (checked, wrong) == ({JWS: 313, JWK: 7}[name], OTHER_VALID[name])


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def is_signed_by_other(folder: Path, keys: list[Any], data: bytes, signature: bytes, alg: str) -> bool:
    for jwk in keys:
        with suppress(ConfigError, COSEError):
            key = anchor(folder, jwk)
            assert isinstance(key, OtherKey)
            key.verify(signature, data, COSE_NUMBERS.get(alg))
            return True
    return False
