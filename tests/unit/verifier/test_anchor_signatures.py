"""CoRIMs signed by every usual key, by certificates, and by signers whose certificates come with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
import pytest
from cbor2 import CBORTag
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.unit.verifier.test_certificates import AUTHORITY, CODE, LEAF, Issued, issue, usage
from verifier.errors import ReferenceValueError
from verifier.references import anchor_reading, corim
from verifier.references.anchors import Anchor, CertificateAnchor, key_of
from verifier.references.measured import Document, DocumentFile
from verifier.references.profile import from_document

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PAYLOAD = corim.encode(
    from_document(Document(model="acme/tiny", files=(DocumentFile("f", sha256="ab" * 32),)))
)
META = cbor2.dumps({0: {0: "signer"}})
HASHES = {256: hashes.SHA256(), 384: hashes.SHA384(), 512: hashes.SHA512()}
RSA = rsa.generate_private_key(65537, 2048)
P256, P384, P521 = (ec.generate_private_key(curve()) for curve in (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1))
ED = ed25519.Ed25519PrivateKey.generate()


def raw(key: Any, alg: int, data: bytes) -> bytes:
    """A signature as COSE has it, by cryptography alone."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        bits = {-7: 256, -9: 256, -35: 384, -51: 384, -36: 512, -52: 512}[alg]
        size = (key.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(HASHES[bits])))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    used = HASHES[{-37: 256, -38: 384, -39: 512, -257: 256, -258: 384, -259: 512}[alg]]
    scheme = padding.PSS(padding.MGF1(used), used.digest_size) if alg > -100 else padding.PKCS1v15()
    return key.sign(data, scheme, used)


def signed(
    key: Any, alg: int, chain: Sequence[bytes] | None = None, *, unprotected: bool = False, one: bool = False
) -> bytes:
    """A CoRIM signed with *key*, with certificates if there are any."""
    given: dict[Any, Any] = {} if chain is None else {33: chain[0] if one else list(chain)}
    header = cbor2.dumps({1: alg, 3: "application/rim+cbor", 8: META, **({} if unprotected else given)})
    signature = raw(key, alg, cbor2.dumps(["Signature1", header, b"", PAYLOAD]))
    return cbor2.dumps(CBORTag(18, [header, given if unprotected else {}, PAYLOAD, signature]))


def verify(data: bytes, anchors: dict[str, Anchor], at: datetime = NOW) -> str:
    return corim.read_signed(data).verify(anchors, int(at.timestamp())).signer


def refusal(data: bytes, anchors: dict[str, Anchor], at: datetime = NOW) -> str:
    with pytest.raises(ReferenceValueError) as refused:
        verify(data, anchors, at)
    return str(refused.value)


ALGORITHMS = [
    (P256, -7), (P256, -9), (P384, -35), (P384, -51), (P521, -36), (P521, -52), (ED, -8), (ED, -19),
    (RSA, -37), (RSA, -38), (RSA, -39), (RSA, -257), (RSA, -258), (RSA, -259),
]  # fmt: skip
KEYS = {"p256": P256, "p384": P384, "p521": P521, "ed": ED, "rsa": RSA}
ANCHORS: dict[str, Anchor] = {name: key_of(key.public_key()) for name, key in KEYS.items()}
algorithms = pytest.mark.parametrize(("key", "alg"), ALGORITHMS, ids=[str(alg) for _, alg in ALGORITHMS])


@algorithms
def test_p384_p521_rsa_and_ed25519_as_anchors(key: Any, alg: int) -> None:
    """By each algorithm of theirs; the anchor that fits is named."""
    assert KEYS[verify(signed(key, alg), ANCHORS)] is key


@algorithms
def test_a_changed_bit_is_refused(key: Any, alg: int) -> None:
    """Of the signature, and of what it is over."""
    data = signed(key, alg)
    parts = cbor2.loads(data).value
    for part in (2, 3):
        changed = list(parts)
        changed[part] = changed[part][:-1] + bytes([changed[part][-1] ^ 1])
        assert "fits none of the 1 trusted keys" in refusal(cbor2.dumps(CBORTag(18, changed)), ANCHORS)


@pytest.mark.parametrize("alg", [-36, -7, -38, -8, -65535, -47, None, True, "ES384"])
def test_an_algorithm_that_is_not_the_keys_is_none(alg: Any) -> None:
    """Whatever the header says, the key decides; SHA-1 is never read."""
    header = cbor2.dumps({1: alg, 3: "application/rim+cbor", 8: META})
    signature = raw(P384, -35, cbor2.dumps(["Signature1", header, b"", PAYLOAD]))
    data = cbor2.dumps(CBORTag(18, [header, {}, PAYLOAD, signature]))
    assert "for which there is no trusted key" in refusal(data, {"p384": ANCHORS["p384"]})


def test_a_jwk_that_names_an_algorithm_is_for_that_alone() -> None:
    """An RSA key for PSS signs nothing by the older scheme."""
    from jwt.algorithms import RSAAlgorithm

    jwk = RSAAlgorithm.to_jwk(RSA.public_key())[:-1] + ', "alg": "PS256"}'
    (anchor,) = anchor_reading.read_anchors(jwk.encode())
    assert not isinstance(anchor, ReferenceValueError)
    assert verify(signed(RSA, -37), {"a": anchor}) == "a"
    assert "no trusted key" in refusal(signed(RSA, -257), {"a": anchor})


def certificate(issued: Issued) -> CertificateAnchor:
    (found,) = anchor_reading.read_anchors(issued.pem)
    assert isinstance(found, CertificateAnchor)
    return found


def alg_of(issued: Issued) -> int:
    return -7 if isinstance(issued.key, ec.EllipticCurvePrivateKey) else -37


ROOT = issue("root")
MIDDLE = issue("middle", ROOT)
SIGNER = issue("signer", MIDDLE, LEAF)
PLAIN = issue("plain", MIDDLE, ())
CHAIN = [SIGNER.der, MIDDLE.der]
TRUSTED: dict[str, Anchor] = {"acme": certificate(ROOT)}


def test_a_certificate_as_an_anchor() -> None:
    """Self-signed or not: its key, as long as it is valid."""
    for issued in (SIGNER, issue("alone", None, LEAF), issue("nothing said", None, ())):
        assert verify(signed(issued.key, -7), {"acme": certificate(issued)}) == "acme"


@pytest.mark.parametrize(("days", "what"), [(-1, "is valid from"), (3661, "is valid from")])
def test_a_certificate_outside_its_validity(days: int, what: str) -> None:
    """Not before, and not after."""
    start = datetime(2025, 1, 1, tzinfo=UTC)
    assert what in refusal(signed(SIGNER.key, -7), {"acme": certificate(SIGNER)}, start + timedelta(days))


def test_an_authority_that_signs_certificates_only_signs_no_corim_itself() -> None:
    """Its key usage says so; the usual self-made authority says nothing, and may."""
    assert "no certificates (x5chain) that lead to" in refusal(signed(ROOT.key, -7), TRUSTED)
    silent = issue("self-made", None, (x509.BasicConstraints(True, None),))
    assert verify(signed(silent.key, -7), {"us": certificate(silent)}) == "us"


@pytest.mark.parametrize("unprotected", [False, True])
def test_a_chain_to_a_trusted_authority(unprotected) -> None:
    """In either header; the signer is named with its authority."""
    assert verify(signed(SIGNER.key, -7, CHAIN, unprotected=unprotected), TRUSTED) == "acme: CN=signer"
    with_root = [*CHAIN, ROOT.der]
    assert verify(signed(SIGNER.key, -7, with_root, unprotected=unprotected), TRUSTED) == "acme: CN=signer"


def test_a_chain_of_one() -> None:
    """A certificate alone, and not in a list (RFC 9360 §2)."""
    direct = issue("direct", ROOT, LEAF)
    assert verify(signed(direct.key, -7, [direct.der], one=True), TRUSTED) == "acme: CN=direct"


def test_a_signer_that_says_nothing_of_its_use() -> None:
    """Neither the draft nor RFC 5280 asks for it."""
    assert verify(signed(PLAIN.key, -7, [PLAIN.der, MIDDLE.der]), TRUSTED) == "acme: CN=plain"


def test_an_authority_without_a_key_usage() -> None:
    """As people make them by hand; RFC 5280 §6.1.4 asks for what the extension says if there is one."""
    root = issue("self-made", None, (x509.BasicConstraints(True, None),))
    leaf = issue("leaf", root, LEAF)
    assert verify(signed(leaf.key, -7, [leaf.der]), {"us": certificate(root)}) == "us: CN=leaf"


def test_other_keys_in_a_chain() -> None:
    """An RSA signer below an authority on P-256."""
    leaf = issue("rsa", ROOT, LEAF, key=RSA)
    assert verify(signed(RSA, -37, [leaf.der]), TRUSTED) == "acme: CN=rsa"


OTHER = issue("root")
SHORT = issue("short", ROOT, (x509.BasicConstraints(True, 0), usage(certificates=True)))
LOW = issue("low", SHORT)
DEEP = [issue("deep", LOW, LEAF), LOW, SHORT]
TLS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
BAD_CHAINS = {
    "another root of the same name": (SIGNER, [SIGNER.der, issue("middle", OTHER).der], "not issued by a trusted"),
    "a link is missing": (SIGNER, [SIGNER.der], "CN=signer was not issued by a trusted authority"),
    "another key has signed": (PLAIN, CHAIN, "the signature is not by the certificate of CN=signer"),
    "the signer is an authority": (MIDDLE, [MIDDLE.der], "CN=middle is that of an authority, and not of a signer"),
    "for TLS": (x := issue("tls", ROOT, (usage(signature=True), TLS)), [x.der], "for something else than signing"),
    "no signatures": (x := issue("agree", ROOT, (usage(), CODE)), [x.der], "CN=agree does not allow signatures"),
    "issued by a signer": (x := issue("below", SIGNER, LEAF), [x.der, *CHAIN], "CN=signer"),
    "expired": (
        x := issue("old", ROOT, LEAF, end=datetime(2026, 5, 1, tzinfo=UTC)), [x.der], "CN=old is valid from"),
    "an authority too deep": (DEEP[0], [each.der for each in DEEP], "CN=short does not allow 1 authorities below it"),
    "no certificate": (SIGNER, [b"\x30\x00"], "a certificate of x5chain cannot be read"),
    "none at all": (SIGNER, [], "x5chain must have 1 to 8 certificates"),
    "too many": (SIGNER, [SIGNER.der] * 9, "x5chain must have 1 to 8 certificates"),
    "too large": (SIGNER, [bytes(16385)], "of at most 16384 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CHAINS)
def test_chains_refused(case: str) -> None:
    """One defect each, by name."""
    signer, chain, expected = BAD_CHAINS[case]
    data = signed(signer.key, alg_of(signer), chain)
    assert expected in refusal(data, TRUSTED)


def test_a_chain_without_an_authority_is_nobodys() -> None:
    """What a message says of its own signer proves nothing."""
    assert "no authority is trusted" in refusal(signed(SIGNER.key, -7, CHAIN), {"p384": ANCHORS["p384"]})
    assert "no authority is trusted" in refusal(signed(SIGNER.key, -7, CHAIN), {"leaf": certificate(PLAIN)})


def test_a_trusted_certificate_signs_with_its_chain_too() -> None:
    """The anchor itself is enough, whatever else comes along."""
    assert verify(signed(SIGNER.key, -7, CHAIN), {"leaf": certificate(SIGNER)}) == "leaf"


def test_what_a_certificate_is_for_as_an_anchor() -> None:
    """One for TLS or for agreeing on keys is refused before anything is signed with it."""
    for extensions in ((usage(signature=True), TLS), (usage(), CODE)):
        (found,) = anchor_reading.read_anchors(issue("x", None, extensions).pem)
        assert isinstance(found, ReferenceValueError)
    assert certificate(issue("ca", None, AUTHORITY)).kind == "authority, P-256"
