"""Keys whose signature on reference values is taken, as files that people put in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attester.cose import ED25519, ES256, PrivateKey, PublicKey
from attester.errors import ConfigError
from verifier import results
from verifier.config import Home, read_anchor

EC, OKP = PrivateKey.generate(ES256), PrivateKey.generate(ED25519)
ALGORITHMS = pytest.mark.parametrize("key", [EC, OKP], ids=["ES256", "Ed25519"])


def pem(key: Any) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def read(folder: Path, data: Any, suffix: str = "jwk") -> PublicKey:
    path = folder / f"anchor.{suffix}"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return read_anchor(path)


@ALGORITHMS
def test_an_anchor_in_pem(tmp_path: Path, key: PrivateKey) -> None:
    """Of either algorithm."""
    assert read(tmp_path, pem(key.native.public_key()), "pem") == key.public


@ALGORITHMS
def test_an_anchor_as_a_jwk(tmp_path: Path, key: PrivateKey) -> None:
    """Likewise."""
    assert read(tmp_path, results.jwk_of(key.public)) == key.public


def test_of_a_private_key_the_public_one_is_taken(tmp_path: Path) -> None:
    """As others publish samples; what a JWK says of its use does not count, for its place says it."""
    assert isinstance(EC.native, ec.EllipticCurvePrivateKey)
    secret = results.b64url(EC.native.private_numbers().private_value.to_bytes(32, "big"))
    assert read(tmp_path, {**results.jwk_of(EC.public), "d": secret, "use": "enc"}) == EC.public


JWK = results.jwk_of(EC.public)
NO_JWK: dict[str, Any] = {
    "no JSON": b"no",
    "nothing": b"",
    "no UTF-8": b"\xff",
    "a list": [],
    "a text": "key",
    "a number": 7,
    "null": None,
    "deep": b"[" * 16_000,
    "no members": {},
    "a kind that there is not": {**JWK, "kty": "XX"},
    "no coordinate": {name: value for name, value in JWK.items() if name != "y"},
    "not on the curve": {**JWK, "y": JWK["x"]},
    "a coordinate that is a number": {**JWK, "x": 7},
    "too short an Ed25519 key": {**results.jwk_of(OKP.public), "x": "AAAA"},
}


@pytest.mark.parametrize("data", NO_JWK.values(), ids=NO_JWK)
def test_what_is_no_jwk_is_refused(tmp_path: Path, data: Any) -> None:
    """In a sentence that names the file."""
    with pytest.raises(ConfigError, match=r"anchor\.jwk must be a public key in PEM or JWK"):
        read(tmp_path, data)


OTHER_KEYS = {
    "P-384": pem(ec.generate_private_key(ec.SECP384R1()).public_key()),
    "secp256k1": pem(ec.generate_private_key(ec.SECP256K1()).public_key()),
    "RSA": pem(rsa.generate_private_key(65537, 2048).public_key()),
}


@pytest.mark.parametrize("data", OTHER_KEYS.values(), ids=OTHER_KEYS)
def test_keys_of_other_algorithms_are_refused(tmp_path: Path, data: bytes) -> None:
    """Reference values are signed with ES256 or Ed25519."""
    with pytest.raises(ConfigError, match="must be a P-256 or an Ed25519 key"):
        read(tmp_path, data, "pem")


NO_PEM = {"nothing": b"", "no PEM": b"no", "cut short": pem(OKP.native.public_key())[:60]}


@pytest.mark.parametrize("data", NO_PEM.values(), ids=NO_PEM)
def test_what_is_no_pem_is_refused(tmp_path: Path, data: bytes) -> None:
    """Likewise."""
    with pytest.raises(ConfigError, match=r"anchor\.pem must be a public key in PEM or JWK"):
        read(tmp_path, data, "pem")


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    """The reason is the system's."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_anchor(tmp_path / "none.jwk")


def test_anchors_of_a_home(tmp_path: Path) -> None:
    """Each is known by the name of its file; other files are no anchors."""
    folder = tmp_path / "anchors"
    folder.mkdir()
    (folder / "acme.jwk").write_text(json.dumps(results.jwk_of(EC.public)))
    (folder / "beta.pem").write_bytes(pem(OKP.native.public_key()))
    (folder / "notes.txt").write_text("no key")
    assert Home(tmp_path).anchors() == {"acme": EC.public, "beta": OKP.public}
