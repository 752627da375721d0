"""Keys whose signature on reference values is taken, as files that people put in a folder."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from attester.cose import ED25519, ES256, PrivateKey, PublicKey
from attester.errors import ConfigError
from verifier import anchor_files, results
from verifier.config import Home
from verifier.errors import ReferenceValueError
from verifier.references import anchor_reading
from verifier.references.anchors import Anchor, CertificateAnchor, OtherKey, kid_of, kind_of

EC, OKP = PrivateKey.generate(ES256), PrivateKey.generate(ED25519)
ALGORITHMS = pytest.mark.parametrize("key", [EC, OKP], ids=["ES256", "Ed25519"])


def pem(key: Any) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def read(folder: Path, data: Any, suffix: str = "jwk") -> Anchor:
    path = folder / f"anchor.{suffix}"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return anchor_files.read_given(path).anchors[0][1]


@ALGORITHMS
def test_an_anchor_in_pem(tmp_path: Path, key: PrivateKey) -> None:
    """Of either algorithm."""
    assert read(tmp_path, pem(key.native.public_key()), "pem") == key.public


@ALGORITHMS
def test_an_anchor_as_a_jwk(tmp_path: Path, key: PrivateKey) -> None:
    """Likewise."""
    assert read(tmp_path, results.jwk_of(key.public)) == key.public


assert isinstance(EC.native, ec.EllipticCurvePrivateKey)
SECRET = results.b64url(EC.native.private_numbers().private_value.to_bytes(32, "big"))
PRIVATE_JWK = {**results.jwk_of(EC.public), "d": SECRET, "use": "enc"}
PKCS8 = EC.native.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)


@pytest.mark.parametrize("data", [PRIVATE_JWK, PKCS8], ids=["JWK", "PEM"])
def test_of_a_private_key_that_a_person_names_the_public_one_is_taken(tmp_path: Path, data: Any) -> None:
    """As others publish samples; what a JWK says of its use does not count, for its place says it."""
    assert read(tmp_path, data) == EC.public


PRIVATE = {
    "JWK": json.dumps(PRIVATE_JWK).encode(),
    "in a set": json.dumps({"keys": [results.jwk_of(OKP.public), PRIVATE_JWK]}).encode(),
    "a shared secret": b'{"kty": "oct", "k": "c2VjcmV0"}',
    "PEM": PKCS8,
    "beside a public key": pem(OKP.native.public_key()) + PKCS8,
    "encrypted": EC.native.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    ),
    "of OpenSSL's older form": EC.native.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ),
}


@pytest.mark.parametrize("data", PRIVATE.values(), ids=PRIVATE)
def test_a_private_key_in_the_folder_is_refused_and_named(tmp_path: Path, data: bytes) -> None:
    """Whoever may read the anchors could sign: nothing of the file counts."""
    path = tmp_path / "mine.pem"
    path.write_bytes(data)
    (file,) = anchor_files.read_folder(tmp_path)
    assert (file.path, file.anchors, file.has_private_key) == (path, (), True)
    assert "PRIVATE key" in file.refused[0]


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


USUAL_KEYS = {
    "P-384": ec.generate_private_key(ec.SECP384R1()).public_key(),
    "P-521": ec.generate_private_key(ec.SECP521R1()).public_key(),
    "RSA-2048": rsa.generate_private_key(65537, 2048).public_key(),
}
DER = serialization.Encoding.DER
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def jwk_of(key: Any) -> dict[str, Any]:
    made = (RSAAlgorithm if isinstance(key, rsa.RSAPublicKey) else ECAlgorithm).to_jwk(key, as_dict=True)
    assert isinstance(made, dict)
    return made


@pytest.mark.parametrize("kind", USUAL_KEYS)
@pytest.mark.parametrize("form", ["PEM", "DER", "JWK", "set"])
def test_all_usual_keys_are_anchors_in_all_usual_forms(tmp_path: Path, kind: str, form: str) -> None:
    """P-384, P-521 and RSA too."""
    key = USUAL_KEYS[kind]
    match form:
        case "PEM":
            data: Any = pem(key)
        case "DER":
            data = key.public_bytes(DER, SPKI)
        case "JWK":
            data = jwk_of(key)
        case _:
            data = {"keys": [jwk_of(key)]}
    anchor = read(tmp_path, data)
    assert (kind_of(anchor), anchor) == (kind, OtherKey(key.public_bytes(DER, SPKI)))
    assert len(kid_of(anchor)) == 64


OTHER_KEYS = {
    "secp256k1": (ec.generate_private_key(ec.SECP256K1()).public_key(), "a key of secp256k1, and must be of P-256"),
    "X25519": (x25519.X25519PrivateKey.generate().public_key(), "a key of X25519, and must be of P-256"),
    "Ed448": (ed448.Ed448PrivateKey.generate().public_key(), "a key of Ed448, and must be of P-256"),
    "a short RSA key": (rsa.generate_private_key(65537, 1024).public_key(), "has 1024 bits, and must have 2048 to 8192"),
    "a long RSA key": (rsa.RSAPublicNumbers(65537, (1 << 9000) + 1).public_key(), "has 9001 bits"),
    "a small exponent": (rsa.RSAPublicNumbers(3, (1 << 2047) + 1).public_key(), "exponent of its RSA key"),
    "a large exponent": (rsa.RSAPublicNumbers((1 << 40) + 1, (1 << 2047) + 1).public_key(), "exponent of its RSA key"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_KEYS)
def test_keys_of_other_kinds_and_sizes_are_refused(tmp_path: Path, kind: str) -> None:
    """In a sentence that says which there are."""
    key, expected = OTHER_KEYS[kind]
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, pem(key), "pem")


def test_a_key_of_small_order_is_none(tmp_path: Path) -> None:
    """One signature would fit every message."""
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": results.b64url(b"\1" + bytes(31))}
    with pytest.raises(ConfigError, match="small order"):
        read(tmp_path, jwk)


def test_a_file_with_several_has_each_by_its_number(tmp_path: Path) -> None:
    """One that cannot be used is named, and the others count."""
    other = pem(OTHER_KEYS["secp256k1"][0])
    (tmp_path / "all.pem").write_bytes(pem(EC.native.public_key()) + other + pem(OKP.native.public_key()))
    (file,) = anchor_files.read_folder(tmp_path)
    assert file.anchors == (("all#1", EC.public), ("all#3", OKP.public))
    assert file.refused == (
        "number 2: it is a key of secp256k1, and must be of P-256, P-384, P-521, Ed25519 or RSA",
    )


WRITTEN = {
    "with text around it": b"subject=CN=acme\n" + pem(EC.native.public_key()) + b"\nissued for tests\n",
    "with the ends of lines of Windows": pem(EC.native.public_key()).replace(b"\n", b"\r\n"),
    "with a byte order mark": b"\xef\xbb\xbf" + json.dumps(results.jwk_of(EC.public)).encode(),
    "with space around it": b"\n\n  " + json.dumps(results.jwk_of(EC.public)).encode() + b"\n",
}


@pytest.mark.parametrize("data", WRITTEN.values(), ids=WRITTEN)
def test_as_people_keep_their_keys(tmp_path: Path, data: bytes) -> None:
    """What other programs write around a key does not hide it."""
    assert read(tmp_path, data) == EC.public


def test_files_of_one_name_do_not_hide_each_other(tmp_path: Path) -> None:
    """Each keeps its ending then."""
    folder = tmp_path / "anchors"
    folder.mkdir()
    (folder / "acme.jwk").write_text(json.dumps(results.jwk_of(EC.public)))
    (folder / "acme.pem").write_bytes(pem(OKP.native.public_key()))
    assert Home(tmp_path).anchors() == {"acme.jwk": EC.public, "acme.pem": OKP.public}


def test_one_bad_file_of_an_anchor_is_named_and_the_others_count(tmp_path: Path) -> None:
    """Whatever is wrong with it."""
    folder = tmp_path / "anchors"
    folder.mkdir()
    (folder / "good.pem").write_bytes(pem(EC.native.public_key()))
    (folder / "bad.pem").write_text("no key")
    (folder / "folder.pem").mkdir()
    (folder / "large.pem").write_bytes(bytes((1 << 20) + 1))
    home = Home(tmp_path)
    assert home.anchors() == {"good": EC.public}
    refused = {file.path.name: file.refused for file in home.anchor_files() if file.refused}
    assert refused == {
        "bad.pem": ("it is neither a public key nor a certificate",),
        "folder.pem": ("it cannot be read: Is a directory",),
        "large.pem": ("it has more than 1048576 bytes",),
    }


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda data: pem(EC.native.public_key()) + data))
def test_any_bytes_are_anchors_or_refused(data: bytes) -> None:
    """By our own error alone."""
    with contextlib.suppress(ReferenceValueError):
        for found in anchor_reading.read_anchors(data):
            assert isinstance(found, (PublicKey, OtherKey, CertificateAnchor, ReferenceValueError))


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=8)
        | st.sampled_from(["EC", "RSA", "OKP", "AQAB"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["kty", "keys", "crv", "x", "y", "n", "e", "d", "alg"]), inner, max_size=5
            )
        ),
        max_leaves=8,
    )
)
def test_any_json_is_a_jwk_or_refused(value: Any) -> None:
    """Likewise."""
    with contextlib.suppress(ReferenceValueError):
        anchor_reading.read_anchors(json.dumps(value).encode())


NO_PEM = {"nothing": b"", "no PEM": b"no", "cut short": pem(OKP.native.public_key())[:60]}


@pytest.mark.parametrize("data", NO_PEM.values(), ids=NO_PEM)
def test_what_is_no_pem_is_refused(tmp_path: Path, data: bytes) -> None:
    """Likewise."""
    with pytest.raises(ConfigError, match=r"anchor\.pem must be a public key in PEM or JWK"):
        read(tmp_path, data, "pem")


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    """The reason is the system's."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        anchor_files.read_given(tmp_path / "none.jwk")


def test_anchors_of_a_home(tmp_path: Path) -> None:
    """Each is known by the name of its file; other files are no anchors."""
    folder = tmp_path / "anchors"
    folder.mkdir()
    (folder / "acme.jwk").write_text(json.dumps(results.jwk_of(EC.public)))
    (folder / "beta.pem").write_bytes(pem(OKP.native.public_key()))
    (folder / "notes.txt").write_text("no key")
    assert Home(tmp_path).anchors() == {"acme": EC.public, "beta": OKP.public}
