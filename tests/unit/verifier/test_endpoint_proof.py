"""Who holds an endpoint: only the TLS key that it names proves it, and a kept key is the key of its own bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attester import identity
from attester.cose import ED25519, ES256, PrivateKey
from attester.evidence import Endpoint, endpoint_statement
from verifier.schemes import platform

NODE = PrivateKey.generate().public
KEYS = {alg: PrivateKey.generate(alg) for alg in (ES256, ED25519)}
ALGORITHMS = pytest.mark.parametrize("alg", [ES256, ED25519], ids=["ES256", "Ed25519"])
URL, NONCE = "https://n.example", bytes(32)
CONTEXT: Any = SimpleNamespace(session=SimpleNamespace(nonce=NONCE), node=SimpleNamespace(key=NODE))


def endpoint(spki: bytes, signer: PrivateKey, nonce: bytes = NONCE) -> Endpoint:
    return Endpoint(url=URL, spki=spki, signature=signer.sign(endpoint_statement(URL, nonce, NODE.kid)))


@ALGORITHMS
def test_the_key_that_is_named_proves_the_endpoint(alg: int) -> None:
    """However often it does so."""
    for _ in range(2):
        assert platform._is_proven(endpoint(identity.spki(KEYS[alg]), KEYS[alg]), CONTEXT)


@ALGORITHMS
def test_another_key_or_another_session_proves_nothing(alg: int) -> None:
    """Also after the right one was seen."""
    spki = identity.spki(KEYS[alg])
    assert platform._is_proven(endpoint(spki, KEYS[alg]), CONTEXT)
    assert not platform._is_proven(endpoint(spki, PrivateKey.generate(alg)), CONTEXT)
    assert not platform._is_proven(endpoint(spki, KEYS[alg], bytes(31) + b"\x01"), CONTEXT)
    assert not platform._is_proven(endpoint(identity.spki(PrivateKey.generate(alg)), KEYS[alg]), CONTEXT)


@ALGORITHMS
def test_one_byte_of_the_key_changed_proves_nothing(alg: int) -> None:
    """Each byte, after the right key was seen: refused, or another key."""
    spki = identity.spki(KEYS[alg])
    assert platform._is_proven(endpoint(spki, KEYS[alg]), CONTEXT)
    for place in range(len(spki)):
        changed = spki[:place] + bytes([spki[place] ^ 1]) + spki[place + 1 :]
        assert not platform._is_proven(endpoint(changed, KEYS[alg]), CONTEXT)


OTHERS = {
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "DSA": lambda: dsa.generate_private_key(1024),
    "Ed448": ed448.Ed448PrivateKey.generate,
    "X25519": x25519.X25519PrivateKey.generate,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_key_of_another_kind_proves_nothing(name: str) -> None:
    """P-256 and Ed25519, and no other."""
    public = OTHERS[name]().public_key()
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert not platform._is_proven(endpoint(spki, KEYS[ES256]), CONTEXT)


@pytest.mark.parametrize(
    "spki",
    [b"\x00", b"\x30\x00", bytes(91), identity.spki(KEYS[ES256]) + b"\x00"],
    ids=["a byte", "an empty sequence", "zeros", "a byte after a key"],
)
def test_bytes_that_are_no_key_prove_nothing_and_are_not_kept(spki: bytes) -> None:
    """A failure takes no room."""
    platform._read_tls_key.cache_clear()
    assert not platform._is_proven(endpoint(spki, KEYS[ES256]), CONTEXT)
    assert platform._read_tls_key.cache_info().currsize == 0


def test_the_number_of_kept_keys_is_bounded() -> None:
    """A fleet of any size takes bounded memory."""
    assert platform._read_tls_key.cache_info().maxsize == platform._KEPT_TLS_KEYS


def test_an_ed25519_key_is_read_as_itself() -> None:
    """By its raw bytes."""
    native = ed25519.Ed25519PrivateKey.generate()
    spki = native.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert platform._read_tls_key(spki).point == native.public_key().public_bytes_raw()
