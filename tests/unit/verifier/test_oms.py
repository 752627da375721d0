"""Bundles with one defect each: nothing of a statement counts but what was signed, whole."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import blake3
import msgspec
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from attester import strictjson
from attester.weights.folder import open_folder
from tests.unit.verifier.test_certificates import LEAF, MIDDLE, NOW, ROOT, Issued, issue, reissued
from verifier.errors import ReferenceValueError
from verifier.references import measured, oms, published
from verifier.references.oms_statement import Statement

Json = dict[str, Any]
KEYS = {
    "P-256": (ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()),
    "P-384": (ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()),
    "P-521": (ec.generate_private_key(ec.SECP521R1()), hashes.SHA512()),
}
KEY = KEYS["P-256"][0]
MODEL = "publisher/model"


def pem_of(key: Any) -> bytes:
    """The public key of a private one."""
    public: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    if algorithm == "blake3":
        return blake3.blake3(data).hexdigest()
    return hashlib.new(algorithm, data).hexdigest()


def entry(name: str, data: bytes, algorithm: str = "sha256") -> Json:
    return {"name": name, "algorithm": algorithm, "digest": digest_of(data, algorithm)}


def root_of(resources: Sequence[Json]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(each["digest"]) for each in resources)).hexdigest()


def statement_of(resources: Sequence[Json], **serialization: Any) -> Json:
    """A statement over resources, right in everything; *serialization* adds to it."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model", "digest": {"sha256": root_of(resources)}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [],
                **serialization,
            },
            "resources": list(resources),
        },
    }  # fmt: skip


def shards_of(name: str, data: bytes, size: int, algorithm: str = "sha256") -> list[Json]:
    """The parts of a file, as shards list them."""
    return [
        entry(f"{name}:{start}:{min(start + size, len(data))}", data[start : start + size], algorithm)
        for start in range(0, len(data), size)
    ]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pae(kind: bytes, payload: bytes) -> bytes:
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sealed(
    statement: Json | bytes,
    key: Any = KEY,
    digest: hashes.HashAlgorithm | None = None,
    signed: Callable[[bytes], bytes] = lambda payload: pae(b"application/vnd.in-toto+json", payload),
    chain: Sequence[bytes] = (),
) -> Json:
    """A bundle around any statement, with a signature that fits."""
    payload = statement if isinstance(statement, bytes) else json.dumps(statement).encode()
    signature = key.sign(signed(payload), ec.ECDSA(digest or hashes.SHA256()))
    material: Json = {"publicKey": {"hint": hashlib.sha256(pem_of(key)).hexdigest()}, "tlogEntries": []}
    if chain:
        material = {"x509CertificateChain": {"certificates": [{"rawBytes": b64(der)} for der in chain]}}
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": material,
        "dsseEnvelope": {
            "payload": b64(payload),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": b64(signature), "keyid": ""}],
        },
    }


def verify(bundle: Json | bytes, pem: bytes | None = None) -> Statement:
    data = bundle if isinstance(bundle, bytes) else json.dumps(bundle).encode()
    return oms.verify_with_key(oms.read_bundle(data), pem_of(KEY) if pem is None else pem)


def refused(bundle: Json | bytes, reason: str, pem: bytes | None = None) -> None:
    with pytest.raises(ReferenceValueError, match=reason):
        verify(bundle, pem)


FILES = (entry("a.bin", b"a"), entry("sub/b.bin", b"b"))
GOOD = statement_of(FILES)


def changed(base: Json, *path: str | int, to: Any) -> Json:
    """A copy with one value replaced."""
    copied = copy.deepcopy(base)
    place: Any = copied
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return copied


def without(base: Json, *path: str | int) -> Json:
    """A copy with one value taken out."""
    copied = copy.deepcopy(base)
    place: Any = copied
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return copied


def names(statement: Statement) -> list[str]:
    return [resource.name for resource in statement.resources]


# What verifies.


@pytest.mark.parametrize("curve", KEYS)
def test_a_statement_signed_with_a_key(curve: str) -> None:
    """Its files, and whose key it was, on every curve with the hash that belongs to it."""
    key, digest = KEYS[curve]
    statement = verify(sealed(GOOD, key, digest), pem_of(key))
    assert names(statement) == ["a.bin", "sub/b.bin"]
    assert [resource.digest for resource in statement.resources] == [
        hashlib.sha256(b"a").digest(),
        hashlib.sha256(b"b").digest(),
    ]
    assert (statement.algorithm, statement.shard_size, statement.ignore_paths) == ("sha256", None, ())
    der = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert statement.publisher.method == "key"
    assert statement.publisher.signer == f"key sha256:{hashlib.sha256(der).hexdigest()}"
    assert statement.publisher.statement == hashlib.sha256(json.dumps(GOOD).encode()).hexdigest()


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.dev.sigstore.bundle.v0.3+json",
        "application/vnd.dev.sigstore.bundle.v0.3.1+json",
        "application/vnd.dev.sigstore.bundle+json;version=0.3",
    ],
)
def test_the_media_types_of_a_bundle(media_type: str) -> None:
    """As Sigstore names version 0.3."""
    assert verify(changed(sealed(GOOD), "mediaType", to=media_type))


def test_a_statement_signed_with_a_certificate() -> None:
    """A chain to a root that the caller trusts, at the moment that the caller says."""
    signer = issue("Ada", MIDDLE, LEAF)
    read = oms.read_bundle(json.dumps(sealed(GOOD, signer.key, chain=[signer.der, MIDDLE.der])).encode())
    statement = oms.verify_with_certificates(read, [ROOT.pem], NOW)
    assert names(statement) == ["a.bin", "sub/b.bin"]
    assert (statement.publisher.method, statement.publisher.signer) == (
        "certificate",
        "certificate of CN=Ada",
    )


def test_what_we_sign_we_verify() -> None:
    """In the order of the names, whatever the order given."""
    files = [(name, hashlib.sha256(name.encode()).digest()) for name in ("b", "a/b", "a-b", "é", "a")]
    statement = verify(oms.sign("m", files, "sha256", KEY, ["z", "x"]))
    assert names(statement) == ["a", "a-b", "a/b", "b", "é"]
    assert {(each.name, each.digest) for each in statement.resources} == set(files)
    assert statement.ignore_paths == ("x", "z")


# Step 1: the bundle.

BUNDLE_DEFECTS: dict[str, tuple[Callable[[Json], Json], str]] = {
    "no media type": (lambda b: without(b, "mediaType"), "the bundle is of media type 'None'"),
    "another media type": (lambda b: changed(b, "mediaType", to="text/plain"), "of media type 'text/plain'"),
    "media type in a list": (lambda b: changed(b, "mediaType", to=[b["mediaType"]]), "of media type"),
    "no verification material": (lambda b: without(b, "verificationMaterial"), "has no verificationMaterial"),
    "verification material in a list": (
        lambda b: changed(b, "verificationMaterial", to=[]),
        "verificationMaterial is not an object",
    ),
    "no kind of material": (
        lambda b: changed(b, "verificationMaterial", to={}),
        "verificationMaterial must have one of publicKey, x509CertificateChain, certificate, but has none",
    ),
    "two kinds of material": (
        lambda b: changed(b, "verificationMaterial", "x509CertificateChain", to={}),
        "but has publicKey and x509CertificateChain",
    ),
    "a certificate without a log entry": (
        lambda b: changed(b, "verificationMaterial", to={"certificate": {"rawBytes": "AA=="}, "tlogEntries": []}),
        "a keyless bundle must have tlogEntries",
    ),
    "a chain of none": (
        lambda b: changed(b, "verificationMaterial", to={"x509CertificateChain": {"certificates": []}}),
        "a chain must have 1 to 8 certificates",
    ),
    "a chain of nine": (
        lambda b: changed(
            b, "verificationMaterial", to={"x509CertificateChain": {"certificates": [{"rawBytes": "AA=="}] * 9}}
        ),
        "a chain must have 1 to 8 certificates",
    ),
    "a chain that is no object": (
        lambda b: changed(b, "verificationMaterial", to={"x509CertificateChain": []}),
        "x509CertificateChain is not an object",
    ),
    "a certificate that is no base64": (
        lambda b: changed(
            b, "verificationMaterial", to={"x509CertificateChain": {"certificates": [{"rawBytes": "=="}]}}
        ),
        "a certificate is not base64",
    ),
    "no envelope": (lambda b: without(b, "dsseEnvelope"), "the bundle has no dsseEnvelope"),
    "a message signature": (
        lambda b: {**without(b, "dsseEnvelope"), "messageSignature": {}},
        "the bundle has no dsseEnvelope",
    ),
    "an envelope in a list": (lambda b: changed(b, "dsseEnvelope", to=[]), "dsseEnvelope is not an object"),
    "no payload type": (lambda b: without(b, "dsseEnvelope", "payloadType"), "the payload is of type 'None'"),
    "another payload type": (
        lambda b: changed(b, "dsseEnvelope", "payloadType", to="application/json"),
        "the payload is of type 'application/json'",
    ),
    "no signatures": (lambda b: without(b, "dsseEnvelope", "signatures"), "the envelope has 0 signatures"),
    "no signature": (lambda b: changed(b, "dsseEnvelope", "signatures", to=[]), "the envelope has 0 signatures"),
    "two signatures": (
        lambda b: changed(b, "dsseEnvelope", "signatures", to=b["dsseEnvelope"]["signatures"] * 2),
        "the envelope has 2 signatures",
    ),
    "signatures in an object": (
        lambda b: changed(b, "dsseEnvelope", "signatures", to=b["dsseEnvelope"]["signatures"][0]),
        "the envelope has 0 signatures",
    ),
    "a signature that is no object": (
        lambda b: changed(b, "dsseEnvelope", "signatures", 0, to="AA=="),
        "the signature is not an object",
    ),
    "no sig": (lambda b: without(b, "dsseEnvelope", "signatures", 0, "sig"), "the signature is not base64"),
    "an empty sig": (
        lambda b: changed(b, "dsseEnvelope", "signatures", 0, "sig", to=""),
        "the signature is not base64",
    ),
    "no payload": (lambda b: without(b, "dsseEnvelope", "payload"), "the payload is not base64"),
    "a payload that is no base64": (
        lambda b: changed(b, "dsseEnvelope", "payload", to="*" + b["dsseEnvelope"]["payload"][1:]),
        "the payload is not base64",
    ),
    "a payload with a line break": (
        lambda b: changed(b, "dsseEnvelope", "payload", to=b["dsseEnvelope"]["payload"] + "\n"),
        "the payload is not base64",
    ),
    "a payload that is no ASCII": (
        lambda b: changed(b, "dsseEnvelope", "payload", to="é" + b["dsseEnvelope"]["payload"]),
        "the payload is not base64",
    ),
    "a payload without its padding": (
        lambda b: changed(b, "dsseEnvelope", "payload", to=b64(b"{}").rstrip("=")),
        "the payload is not base64",
    ),
    "another payload": (
        lambda b: changed(b, "dsseEnvelope", "payload", to=b64(json.dumps(GOOD, indent=1).encode())),
        "the signature does not fit",
    ),
    "another signature": (
        lambda b: changed(
            b, "dsseEnvelope", "signatures", 0, "sig", to=sealed(b"x")["dsseEnvelope"]["signatures"][0]["sig"]
        ),
        "the signature does not fit",
    ),
    "a signature that is no DER": (
        lambda b: changed(b, "dsseEnvelope", "signatures", 0, "sig", to=b64(bytes(64))),
        "the signature does not fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), BUNDLE_DEFECTS.values(), ids=BUNDLE_DEFECTS)
def test_a_bundle_with_one_defect(change: Callable[[Json], Json], reason: str) -> None:
    """Refused, for that defect."""
    assert verify(sealed(GOOD))
    refused(change(sealed(GOOD)), reason)


NOT_JSON = {
    "nothing": (b"", "the bundle is empty"),
    "no JSON": (b"no", "the bundle is not JSON"),
    "no object": (b"[]", "the bundle is not an object"),
    "no UTF-8": (b'{"mediaType": "\xff"}', "the bundle is not JSON"),
    "UTF-16": ("{}".encode("utf-16"), "the bundle is not JSON"),
    "a name twice": (b'{"mediaType": 1, "mediaType": 1}', "'mediaType' occurs twice"),
    "a name twice, deeper": (b'{"a": [{"b": {"c": 1, "c": 2}}]}', "'c' occurs twice"),
    "not a number": (b'{"mediaType": NaN}', "NaN is not JSON"),
    "infinite": (b'{"mediaType": -Infinity}', "-Infinity is not JSON"),
    "nested too deep": (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "is nested too deep"),
    "lists nested too deep": (b"[" * 200_000, "is nested too deep"),
    "a number too long": (b'{"mediaType": ' + b"9" * 5000 + b"}", "the bundle is not JSON"),
    "two documents": (b"{}{}", "the bundle is not JSON"),
}


@pytest.mark.parametrize(("data", "reason"), NOT_JSON.values(), ids=NOT_JSON)
def test_a_bundle_that_is_no_strict_json(data: bytes, reason: str) -> None:
    """Refused in a sentence, and never read in two ways."""
    refused(data, reason)


def test_a_bundle_that_is_too_large() -> None:
    """One byte over the limit is refused before it is parsed; the limit itself is not."""
    good = json.dumps(sealed(GOOD)).encode()
    assert verify(good + b" " * (oms.MAX_BUNDLE - len(good)))
    refused(good + b" " * (oms.MAX_BUNDLE + 1 - len(good)), "and at most 67108864 are read")
    refused(bytes(65 << 20), "the bundle has 68157440 bytes")


# Step 3: the signature.


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


BAD_KEYS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "the public key is not PEM"),
    "no PEM": (b"key", "the public key is not PEM"),
    "a private key": (private_pem(KEY), "the public key is not PEM"),
    "a certificate": (ROOT.pem, "the public key is not PEM"),
    "PEM of nothing": (
        b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
        "the public key is not PEM",
    ),
    "RSA": (pem_of(rsa.generate_private_key(65537, 2048)), "the key is not on P-256, P-384 or P-521"),
    "Ed25519": (pem_of(ed25519.Ed25519PrivateKey.generate()), "the key is not on P-256, P-384 or P-521"),
    "secp256k1": (pem_of(ec.generate_private_key(ec.SECP256K1())), "the key is not on P-256, P-384 or P-521"),
    "P-224": (pem_of(ec.generate_private_key(ec.SECP224R1())), "the key is not on P-256, P-384 or P-521"),
    "another key": (pem_of(ec.generate_private_key(ec.SECP256R1())), "the signature does not fit"),
    "a key on another curve": (pem_of(KEYS["P-384"][0]), "the signature does not fit"),
}


@pytest.mark.parametrize(("pem", "reason"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_a_key_that_does_not_do(pem: bytes, reason: str) -> None:
    """Of another kind, on another curve, or somebody else's."""
    refused(sealed(GOOD), reason, pem)


@pytest.mark.parametrize("curve", KEYS)
def test_a_curve_has_its_own_hash(curve: str) -> None:
    """Another one is refused, stronger or weaker."""
    key, digest = KEYS[curve]
    for _, other in KEYS.values():
        if other.name != digest.name:
            refused(sealed(GOOD, key, other), "the signature does not fit", pem_of(key))


OTHER_SIGNED: dict[str, Callable[[bytes], bytes]] = {
    "the payload alone": lambda payload: payload,
    "the payload in base64": lambda payload: pae(b"application/vnd.in-toto+json", base64.b64encode(payload)),
    "another type": lambda payload: pae(b"application/json", payload),
    "no lengths": lambda payload: b"DSSEv1 application/vnd.in-toto+json " + payload,
    "version 2": lambda payload: b"DSSEv2" + pae(b"application/vnd.in-toto+json", payload)[6:],
    "text for bytes": lambda payload: pae(b"application/vnd.in-toto+json", repr(payload).encode()),
}


@pytest.mark.parametrize("signed", OTHER_SIGNED.values(), ids=OTHER_SIGNED)
def test_a_signature_over_something_else(signed: Callable[[bytes], bytes]) -> None:
    """Type and lengths are signed with the payload."""
    refused(sealed(GOOD, signed=signed), "the signature does not fit")


def test_the_encoding_for_signatures_is_the_published_one() -> None:
    """The example of DSSE's protocol."""
    assert (
        oms.pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_nothing_of_a_statement_is_read_before_its_signature() -> None:
    """A payload that is no statement is refused for the signature, not for what it holds."""
    other = ec.generate_private_key(ec.SECP256R1())
    for payload in (b"no JSON", b"[" * 200_000, json.dumps(changed(GOOD, "_type", to="x")).encode()):
        refused(sealed(payload, other), "the signature does not fit")


MATERIALS: dict[str, Json] = {
    "publicKey": {"publicKey": {"hint": ""}},
    "x509CertificateChain": {"x509CertificateChain": {"certificates": [{"rawBytes": b64(ROOT.der)}]}},
    "certificate": {"certificate": {"rawBytes": b64(ROOT.der)}, "tlogEntries": [{}]},
}


@pytest.mark.parametrize("carried", MATERIALS)
@pytest.mark.parametrize("wanted", MATERIALS)
def test_a_bundle_is_verified_as_what_it_is(tmp_path: Path, carried: str, wanted: str) -> None:
    """A key is no certificate: whoever asks for one kind is not given another."""
    bundle = changed(sealed(GOOD), "verificationMaterial", to=MATERIALS[carried])
    read = oms.read_bundle(json.dumps(bundle).encode())
    ways: dict[str, Callable[[], Statement]] = {
        "publicKey": lambda: oms.verify_with_key(read, pem_of(KEY)),
        "x509CertificateChain": lambda: oms.verify_with_certificates(read, [ROOT.pem], NOW),
        "certificate": lambda: oms.verify_keyless(read, tmp_path / "none", "a@b", "https://c"),
    }
    if carried == wanted:
        if carried != "publicKey":
            with pytest.raises(
                ReferenceValueError, match=r"does not allow signatures|Sigstore refuses the bundle"
            ):
                ways[wanted]()
        else:
            assert ways[wanted]()
        return
    with pytest.raises(ReferenceValueError, match=f"carries {carried}, not {wanted}"):
        ways[wanted]()


def with_chain(signer: Issued, chain: Sequence[bytes], key: Any = None) -> Callable[[], Statement]:
    bundle = json.dumps(sealed(GOOD, key or signer.key, chain=chain)).encode()
    return lambda: oms.verify_with_certificates(oms.read_bundle(bundle), [ROOT.pem], NOW)


def test_a_certificate_of_somebody_else() -> None:
    """The chain holds, and the signature is by another key."""
    signer = issue("signer", MIDDLE, LEAF)
    assert with_chain(signer, [signer.der, MIDDLE.der])()
    with pytest.raises(ReferenceValueError, match="the signature does not fit"):
        with_chain(signer, [signer.der, MIDDLE.der], KEY)()


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256K1())],
    ids=["RSA", "secp256k1"],
)
def test_a_certificate_with_a_key_of_another_kind(key: Any) -> None:
    """Refused as a key of that kind is."""
    signer = issue("signer", MIDDLE, LEAF, key=key)
    with pytest.raises(ReferenceValueError, match="the key is not on P-256, P-384 or P-521"):
        with_chain(signer, [signer.der, MIDDLE.der], KEY)()


UNREADABLE_KEYS = {
    "an unknown curve": ("06082a8648ce3d030107", "06082a8648ce3d030177"),
    "an unknown kind": ("06072a8648ce3d0201", "06072a8648ce3d0271"),
    "a point in an unknown form": ("034200" + "04", "034200" + "09"),
}


@pytest.mark.parametrize(("old", "new"), UNREADABLE_KEYS.values(), ids=UNREADABLE_KEYS)
def test_a_certificate_whose_key_cannot_be_read(old: str, new: str) -> None:
    """An authority may certify what it does not understand; it is a sentence, not a stack trace."""
    signer = issue("signer", MIDDLE, LEAF)
    der = reissued(signer, MIDDLE, bytes.fromhex(old), bytes.fromhex(new))
    with pytest.raises(ReferenceValueError):
        with_chain(signer, [der, MIDDLE.der])()


# Step 4: the statement.

SERIALIZATION = ("predicate", "serialization")
RESOURCES = ("predicate", "resources")
STATEMENT_DEFECTS: dict[str, tuple[Json, str]] = {
    "no type": (without(GOOD, "_type"), "the statement is of type 'None'"),
    "an older type": (
        changed(GOOD, "_type", to="https://in-toto.io/Statement/v0.1"),
        "the statement is of type 'https://in-toto.io/Statement/v0.1'",
    ),
    "no predicate type": (without(GOOD, "predicateType"), "the predicate is of type 'None'"),
    "the predicate before 1.0": (
        changed(GOOD, "predicateType", to="https://model_signing/Digests/v0.1"),
        "the predicate is of type 'https://model_signing/Digests/v0.1'",
    ),
    "no subject": (changed(GOOD, "subject", to=[]), "has not exactly one subject"),
    "subject left out": (without(GOOD, "subject"), "has not exactly one subject"),
    "two subjects": (changed(GOOD, "subject", to=GOOD["subject"] * 2), "has not exactly one subject"),
    "a subject that is no list": (changed(GOOD, "subject", to=GOOD["subject"][0]), "not exactly one subject"),
    "a subject that is no object": (changed(GOOD, "subject", 0, to="model"), "the subject is not an object"),
    "a subject without a digest": (without(GOOD, "subject", 0, "digest"), "the subject's digest is not an object"),
    "a digest in text": (
        changed(GOOD, "subject", 0, "digest", to=root_of(FILES)),
        "the subject's digest is not an object",
    ),
    "another subject's digest": (
        changed(GOOD, "subject", 0, "digest", "sha256", to="00" * 32),
        "the subject's digest is not that of the resources",
    ),
    "a subject's digest in upper case": (
        changed(GOOD, "subject", 0, "digest", "sha256", to=root_of(FILES).upper()),
        "the subject's digest is not that of the resources",
    ),
    "a subject's digest by another algorithm": (
        changed(GOOD, "subject", 0, "digest", to={"sha512": root_of(FILES)}),
        "the subject's digest is not that of the resources",
    ),
    "no predicate": (without(GOOD, "predicate"), "the predicate is not an object"),
    "no serialization": (without(GOOD, *SERIALIZATION), "the serialization is not an object"),
    "no method": (without(GOOD, *SERIALIZATION, "method"), "the method 'None' is not known"),
    "another method": (changed(GOOD, *SERIALIZATION, "method", to="tensors"), "the method 'tensors' is not known"),
    "method in a list": (changed(GOOD, *SERIALIZATION, "method", to=["files"]), "the method .* is not known"),
    "no hash type": (without(GOOD, *SERIALIZATION, "hash_type"), "the hash type 'None' is not known"),
    "an unknown hash type": (
        changed(GOOD, *SERIALIZATION, "hash_type", to="md5"),
        "the hash type 'md5' is not known",
    ),
    "a hash type in upper case": (
        changed(GOOD, *SERIALIZATION, "hash_type", to="SHA256"),
        "the hash type 'SHA256' is not known",
    ),
    "hash type in a list": (changed(GOOD, *SERIALIZATION, "hash_type", to=["sha256"]), "the hash type .* not known"),
    "hash type in an object": (changed(GOOD, *SERIALIZATION, "hash_type", to={}), "the hash type .* not known"),
    "ignored paths in text": (changed(GOOD, *SERIALIZATION, "ignore_paths", to="x"), "ignore_paths is not a list"),
    "ignored paths left empty": (
        changed(GOOD, *SERIALIZATION, "ignore_paths", to=None),
        "ignore_paths is not a list",
    ),
    "an ignored path that is no text": (
        changed(GOOD, *SERIALIZATION, "ignore_paths", to=[1]),
        "ignore_paths is not a list",
    ),
    "a shard size with files": (
        changed(GOOD, *SERIALIZATION, "shard_size", to=1000),
        "shard_size is set, but the method files has no shards",
    ),
    "no resources": (
        statement_of([]),
        "the predicate lists no resources",
    ),
    "resources left out": (without(GOOD, *RESOURCES), "the predicate lists no resources"),
    "resources in an object": (changed(GOOD, *RESOURCES, to={}), "the predicate lists no resources"),
    "a resource missing": (without(GOOD, *RESOURCES, 1), "the subject's digest is not that of the resources"),
    "a resource more": (
        changed(GOOD, *RESOURCES, to=[*FILES, entry("c", b"c")]),
        "the subject's digest is not that of the resources",
    ),
    "resources in another order": (
        changed(GOOD, *RESOURCES, to=list(reversed(FILES))),
        "the subject's digest is not that of the resources",
    ),
    "a resource twice": (statement_of([*FILES, FILES[0]]), "the predicate lists a resource twice"),
    "a name twice": (statement_of([*FILES, entry("a.bin", b"other")]), "the predicate lists a resource twice"),
    "a resource that is no object": (changed(GOOD, *RESOURCES, 0, to="a.bin"), "a resource is not an object"),
    "a resource without a name": (without(GOOD, *RESOURCES, 0, "name"), "a resource has no name"),
    "a name that is a number": (changed(GOOD, *RESOURCES, 0, "name", to=1), "a resource has no name"),
    "no algorithm": (without(GOOD, *RESOURCES, 0, "algorithm"), "a resource's algorithm is 'None'"),
    "another algorithm": (
        changed(GOOD, *RESOURCES, 0, "algorithm", to="blake3"),
        "a resource's algorithm is 'blake3', but the hash type is sha256",
    ),
    "blake2 for another": (
        changed(GOOD, *RESOURCES, 0, "algorithm", to="blake2"),
        "a resource's algorithm is 'blake2', but the hash type is sha256",
    ),
    "shards' algorithm with files": (
        changed(GOOD, *RESOURCES, 0, "algorithm", to="sha256-sharded-1000"),
        "a resource's algorithm is 'sha256-sharded-1000'",
    ),
    "algorithm in a list": (
        changed(GOOD, *RESOURCES, 0, "algorithm", to=["sha256"]),
        "a resource's algorithm is",
    ),
    "no digest": (without(GOOD, *RESOURCES, 0, "digest"), "the digest of 'a.bin' is not sha256"),
    "a digest that is a number": (changed(GOOD, *RESOURCES, 0, "digest", to=1), "the digest of 'a.bin' is not"),
    "a digest in upper case": (
        changed(GOOD, *RESOURCES, 0, "digest", to=digest_of(b"a").upper()),
        "the digest of 'a.bin' is not sha256 in lower-case hex",
    ),
    "a digest of an odd length": (
        changed(GOOD, *RESOURCES, 0, "digest", to=digest_of(b"a")[:-1]),
        "the digest of 'a.bin' is not sha256 in lower-case hex",
    ),
    "a digest too short": (
        changed(GOOD, *RESOURCES, 0, "digest", to=digest_of(b"a")[:-2]),
        "the digest of 'a.bin' is not sha256 in lower-case hex",
    ),
    "a digest too long": (
        changed(GOOD, *RESOURCES, 0, "digest", to=digest_of(b"a") + "00"),
        "the digest of 'a.bin' is not sha256 in lower-case hex",
    ),
    "an empty digest": (changed(GOOD, *RESOURCES, 0, "digest", to=""), "the digest of 'a.bin' is not sha256"),
    "a digest with a sign": (
        changed(GOOD, *RESOURCES, 0, "digest", to="0x" + digest_of(b"a")[2:]),
        "the digest of 'a.bin' is not sha256 in lower-case hex",
    ),
    "a digest with spaces": (
        changed(GOOD, *RESOURCES, 0, "digest", to=bytes.fromhex(digest_of(b"a")).hex(" ")),
        "the digest of 'a.bin' is not sha256 in lower-case hex",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("statement", "reason"), STATEMENT_DEFECTS.values(), ids=STATEMENT_DEFECTS)
def test_a_statement_with_one_defect(statement: Json, reason: str) -> None:
    """Signed all the same, and refused for that defect."""
    refused(sealed(statement), reason)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b'{"_type": 1, "_type": 1}', "the statement is not JSON: '_type' occurs twice"),
        (b'{"_type": NaN}', "the statement is not JSON: NaN"),
        (b"[" * 200_000, "the statement is not JSON: it is nested too deep"),
        (b"[]", "the statement is not an object"),
        (b"\xff", "the statement is not JSON"),
        (json.dumps(GOOD).encode("utf-16"), "the statement is not JSON"),
        (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "the statement is not JSON"),
    ],
    ids=["a name twice", "not a number", "nested too deep", "no object", "no UTF-8", "UTF-16", "a mark in front"],
)  # fmt: skip
def test_a_statement_that_is_no_strict_json(payload: bytes, reason: str) -> None:
    """A signature makes no JSON of it."""
    refused(sealed(payload), reason)


# Step 5: names.

BAD_NAMES = [
    "", "..", "../a", "a/..", "a/../b", "./a", "a/.", "a/./b", "/", "/a", "//a", "a//b", "a/", "a\\b", "..\\a",
    "C:\\a", "a\0", "\0", "./",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_leads_elsewhere(name: str) -> None:
    """Not within the model, or written in two ways."""
    refused(sealed(statement_of([entry("z", b"z"), entry(name, b"a")])), "is not a path within the model")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_shard_whose_name_leads_elsewhere(name: str) -> None:
    """As for files."""
    statement = statement_of([entry(f"{name}:0:1", b"a")], method="shards", shard_size=1)
    refused(sealed(statement), "is not a path within the model")


def test_a_name_that_is_no_unicode() -> None:
    """Half a surrogate pair is no text."""
    refused(sealed(statement_of([entry("a\ud800", b"a")])), "a resource's name is not Unicode text")


@pytest.mark.parametrize(
    "name", ["...", "a..b", ".hidden", "a b", "é/日本", "a:b", "-", "~", "a\nb", "a" * 2000]
)
def test_an_odd_name_that_is_one(name: str) -> None:
    """Names are what a publisher calls its files."""
    assert names(verify(sealed(statement_of([entry(name, b"a")])))) == [name]


# Step 5: shards.


def sharded(resources: Sequence[Json], size: Any = 10) -> Json:
    return sealed(statement_of(resources, method="shards", shard_size=size))


@pytest.mark.parametrize(
    "size", [0, -1, 0.0, -10.0, 10.5, True, False, None, "10", [10], 1 << 62, 1e300], ids=repr
)
def test_a_shard_size_that_is_none(size: Any) -> None:
    """A positive whole number, or there are no shards."""
    refused(sharded(shards_of("a", bytes(25), 10), size), "the shard size must be")


def test_shards_without_their_size() -> None:
    """It is not guessed from the names."""
    statement = statement_of(shards_of("a", bytes(25), 10), method="shards")
    refused(sealed(statement), r"the shard size must be a positive integer below 2\^62, not None")


@pytest.mark.parametrize("size", ["1e999", "-1e999"])
def test_a_shard_size_beyond_all_numbers(size: str) -> None:
    """JSON can write what becomes infinite."""
    text = json.dumps(statement_of(shards_of("a", bytes(25), 10), method="shards", shard_size=424242))
    assert math.isinf(float(size))
    refused(sealed(text.replace("424242", size).encode()), "the shard size must be")


@pytest.mark.parametrize(
    "name",
    ["a", "a:0", "a:0:", "a::10", "a:0:1x", "a:-10:0", "a:0x0:10", "a: 0:10", "a:0:١٠", "a:+0:10", "a:0.0:10", "a:0:1_0"],
)  # fmt: skip
def test_a_shard_that_says_no_range(name: str) -> None:
    """path:start:end, in decimal digits."""
    refused(sharded([entry(name, bytes(10))]), "is not of the form path:start:end")


@pytest.mark.parametrize(
    "name", ["a:5:10", "a:0:11", "a:0:20", "a:10:10", "a:10:0", "a:0:0", "a:3:13", "a:10:21"]
)
def test_a_shard_of_another_size(name: str) -> None:
    """It begins at a multiple of the size, and holds at least a byte and at most the size."""
    refused(sharded([entry(name, bytes(10))]), "does not fit shards of 10 bytes")


@pytest.mark.parametrize(
    "name", ["a:000000000000000000005:10", "a:0:000000000000000000010", "a:00:10", "a:0:010"]
)
def test_a_shard_whose_numbers_are_not_written_in_one_way(name: str) -> None:
    """One range, one name: 5 after twenty zeros is not 0."""
    with pytest.raises(ReferenceValueError):
        verify(sharded([entry(name, bytes(10))]))


def test_a_shard_twice() -> None:
    """As a file twice."""
    refused(sharded([entry("a:0:10", b"x"), entry("a:0:10", b"y")]), "the predicate lists a resource twice")


def test_a_colon_in_a_shards_name() -> None:
    """The numbers are the last two."""
    (resource,) = verify(sharded([entry("a:0:10:10:15", bytes(5))])).resources
    assert (resource.name, resource.start, resource.end) == ("a:0:10", 10, 15)


# Deviations that are met.


def test_the_root_digest_is_over_the_order_listed() -> None:
    """Implementations sort in two ways; whichever it was, it was signed."""
    listed = [entry("a/b", b"1"), entry("a-b", b"2"), entry("b", b"3")]
    for order in (listed, sorted(listed, key=lambda each: each["name"]), list(reversed(listed))):
        assert names(verify(sealed(statement_of(order)))) == [each["name"] for each in order]


def test_a_single_file_named_with_a_dot() -> None:
    """The statement holds; what the file is called must come from elsewhere."""
    statement = verify(sealed(statement_of([entry(".", b"a")])))
    assert names(statement) == ["."]
    with pytest.raises(ReferenceValueError, match=r"a single file without a name\. Give the weights"):
        published.without_weights(MODEL, statement)


def test_a_shard_size_written_as_a_float() -> None:
    """1000000000.0 is what one implementation writes."""
    statement = verify(sharded(shards_of("a", bytes(25), 10), 10.0))
    assert (statement.shard_size, type(statement.shard_size)) == (10, int)


@pytest.mark.parametrize("size", [10, 10.0])
def test_an_algorithm_named_with_the_shard_size(size: float) -> None:
    """sha256-sharded-N, where N is the shard size and nothing else."""
    resources = [each | {"algorithm": "sha256-sharded-10"} for each in shards_of("a", bytes(25), 10)]
    assert len(verify(sharded(resources, size)).resources) == 3
    for other in ("sha256-sharded-11", "sha256-sharded-", "sha256-sharded-10.0", "blake3-sharded-10"):
        wrong = [each | {"algorithm": other} for each in resources]
        refused(sharded(wrong, size), "a resource's algorithm is")


@pytest.mark.parametrize("keyid", ["", None, "absent", "anything", 5])
def test_a_key_id_is_a_hint(keyid: str | int | None) -> None:
    """Empty, null, left out or wrong: the signature is what counts."""
    place = ("dsseEnvelope", "signatures", 0, "keyid")
    bundle = without(sealed(GOOD), *place) if keyid == "absent" else changed(sealed(GOOD), *place, to=keyid)
    assert verify(bundle)


@pytest.mark.parametrize("hint", ["", "00" * 32, "sha256:x", None, 5])
def test_a_keys_hint_is_a_hint(hint: Any) -> None:
    """It is over the PEM in one implementation, and over something else in others."""
    assert verify(changed(sealed(GOOD), "verificationMaterial", "publicKey", to={"hint": hint}))
    assert verify(changed(sealed(GOOD), "verificationMaterial", "publicKey", to={}))


@pytest.mark.parametrize("listed", ["blake2b", "blake2"])
@pytest.mark.parametrize("said", ["blake2b", "blake2"])
def test_blake2b_by_two_names(said: str, listed: str) -> None:
    """In the serialization and with the resources; the digest is that of 64 bytes."""
    resource = entry("a", b"a", "blake2b") | {"algorithm": listed}
    statement = verify(sealed(statement_of([resource], hash_type=said)))
    assert statement.algorithm == "blake2b"
    assert statement.resources[0].digest == hashlib.blake2b(b"a").digest()
    short = resource | {"digest": digest_of(b"a")}
    refused(sealed(statement_of([short], hash_type=said)), "is not blake2b in lower-case hex")


def test_ignored_paths_are_kept_or_left_out() -> None:
    """What the publisher did not sign, as it says."""
    assert verify(sealed(statement_of(FILES, ignore_paths=[".git", "x"]))).ignore_paths == (".git", "x")
    assert verify(sealed(without(GOOD, *SERIALIZATION, "ignore_paths"))).ignore_paths == ()


def test_more_than_ten_shards_in_either_order() -> None:
    """By number or by name: a:100:110 stands before a:20:30."""
    by_number = shards_of("a", bytes(range(125)), 10)
    by_name = sorted(by_number, key=lambda each: each["name"])
    assert by_number != by_name
    for listed in (by_number, by_name):
        assert len(verify(sharded(listed)).resources) == 13


def test_the_root_digest_binds_no_names() -> None:
    """The same root with the names swapped is another statement, of other files."""
    swapped = statement_of([entry("a.bin", b"b"), entry("sub/b.bin", b"a")])
    renamed = statement_of([entry("b.bin", b"a"), entry("sub/b.bin", b"b")])
    assert renamed["subject"] == GOOD["subject"]
    documents = {
        published.without_weights(MODEL, verify(sealed(each))).digest for each in (GOOD, swapped, renamed)
    }
    assert len(documents) == 3
    statements = {verify(sealed(each)).publisher.statement for each in (GOOD, renamed)}
    assert len(statements) == 2


def test_what_is_not_said_is_ignored() -> None:
    """Members of a later minor version do not close it."""
    for place in ((), ("predicate",), SERIALIZATION, (*RESOURCES, 0), ("subject", 0)):
        assert verify(sealed(changed(GOOD, *place, "later", to={"x": 1})))


# From a statement to a reference value, without the weights.


@pytest.mark.parametrize("algorithm", ["sha256", "blake3"])
def test_a_reference_value_of_the_files_alone(algorithm: str) -> None:
    """Names and digests, ordered as manifests are; no sizes, no tensors, so no walks."""
    listed = [entry(name, name.encode(), algorithm) for name in ("é", "b", "a/b", "a-b")]
    statement = verify(sealed(statement_of(listed, hash_type=algorithm)))
    document = published.without_weights(MODEL, statement)
    assert [file.name for file in document.files] == ["a-b", "a/b", "b", "é"]
    for file in document.files:
        assert getattr(file, algorithm) == digest_of(file.name.encode(), algorithm)
        assert file.size is None
        assert {file.sha256, file.blake3} == {None, getattr(file, algorithm)}
    assert (document.model, document.tensors, document.practice) == (MODEL, (), None)
    assert document.publisher == statement.publisher
    assert measured.read_document(msgspec.json.encode(document)) == document


NEEDS_WEIGHTS: dict[str, tuple[Json, str]] = {
    "shards": (
        statement_of(shards_of("a", bytes(25), 10), method="shards", shard_size=10),
        "the bundle is over shards, which no manifest lists. Give the weights with --dir",
    ),
    "blake2b": (
        statement_of([entry("a", b"a", "blake2b")], hash_type="blake2b"),
        "the bundle uses blake2b, which no manifest has. Give the weights with --dir",
    ),
}


@pytest.mark.parametrize(("statement", "reason"), NEEDS_WEIGHTS.values(), ids=NEEDS_WEIGHTS)
def test_what_no_manifest_lists_needs_the_weights(statement: Json, reason: str) -> None:
    """Said, with what to do."""
    with pytest.raises(ReferenceValueError, match=reason):
        published.without_weights(MODEL, verify(sealed(statement)))


@pytest.mark.parametrize("model", ["", "../x", "a b", "x" * 129])
def test_a_bad_model_name_is_refused(model: str, model_folder: Path) -> None:
    """With the weights or without."""
    with pytest.raises(ReferenceValueError):
        published.without_weights(model, verify(sealed(GOOD)))
    with pytest.raises(ReferenceValueError, match="is not a model's name"):
        published.with_weights(model, signed(contents(model_folder)), open_folder(model_folder))


# And with them.


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: Path(file.path).read_bytes() for file in open_folder(folder).files}


def signed(files: Mapping[str, bytes], algorithm: str = "sha256", shard_size: int | None = None) -> Statement:
    """A verified statement over files as they are given."""
    if shard_size is None:
        resources = [entry(name, data, algorithm) for name, data in files.items()]
        return verify(sealed(statement_of(resources, hash_type=algorithm)))
    resources = [
        each for name, data in files.items() for each in shards_of(name, data, shard_size, algorithm)
    ]
    statement = statement_of(resources, hash_type=algorithm, method="shards", shard_size=shard_size)
    return verify(sealed(statement))


def held(folder: Path, statement: Statement) -> measured.Document:
    return published.with_weights(MODEL, statement, open_folder(folder, statement.ignore_paths))


def not_held(folder: Path, statement: Statement, reason: str) -> None:
    with pytest.raises(ReferenceValueError, match=reason):
        held(folder, statement)


WEIGHTS = "model.safetensors"
WAYS = [
    ("sha256", None),
    ("blake3", None),
    ("blake2b", None),
    ("sha256", 1000),
    ("blake2b", 1000),
    ("blake3", 7777),
]


@pytest.mark.parametrize(("algorithm", "shard_size"), WAYS)
def test_weights_that_are_what_was_signed(model_folder: Path, algorithm: str, shard_size: int | None) -> None:
    """Measured in full, by both digests of manifests, with the publisher's name on it."""
    statement = signed(contents(model_folder), algorithm, shard_size)
    document = held(model_folder, statement)
    plain = measured.measure_folder(MODEL, open_folder(model_folder), algorithms=("sha256", "blake3"))
    assert document.publisher == statement.publisher
    assert document.files == plain.files
    assert (document.tensors, document.practice) == (plain.tensors, plain.practice)
    assert document.digest != plain.digest


@pytest.mark.parametrize(("algorithm", "shard_size"), WAYS)
def test_weights_of_which_one_bit_differs(model_folder: Path, algorithm: str, shard_size: int | None) -> None:
    """Of the first byte or of the last."""
    files = contents(model_folder)
    for place in (0, -1):
        data = bytearray(files[WEIGHTS])
        data[place] ^= 1
        statement = signed(files | {WEIGHTS: bytes(data)}, algorithm, shard_size)
        not_held(model_folder, statement, "'model.safetensors' differs from what was signed")


@pytest.mark.parametrize(("algorithm", "shard_size"), WAYS)
def test_weights_cut_short_or_with_more(model_folder: Path, algorithm: str, shard_size: int | None) -> None:
    """A prefix is not the file."""
    files = contents(model_folder)
    for data in (files[WEIGHTS][:-1], files[WEIGHTS] + b"x", files[WEIGHTS][:-1000], files[WEIGHTS][:1000]):
        statement = signed(files | {WEIGHTS: data}, algorithm, shard_size)
        not_held(model_folder, statement, "'model.safetensors' differs from what was signed")


@pytest.mark.parametrize("shard_size", [None, 1000])
def test_a_file_that_was_not_signed(model_folder: Path, shard_size: int | None) -> None:
    """What nobody vouches for is not the model's."""
    files = contents(model_folder)
    del files["config.json"]
    not_held(
        model_folder,
        signed(files, shard_size=shard_size),
        "'config.json' is in the folder, but it was not signed",
    )


@pytest.mark.parametrize("shard_size", [None, 1000])
def test_a_file_that_is_missing(model_folder: Path, shard_size: int | None) -> None:
    """Signed, and not there."""
    statement = signed(contents(model_folder) | {"gone": b"x"}, shard_size=shard_size)
    not_held(model_folder, statement, "'gone' was signed, but it is not in the folder")


@pytest.mark.parametrize("shard_size", [None, 1000])
def test_a_file_under_another_name(model_folder: Path, shard_size: int | None) -> None:
    """The same digests, the same root, another model."""
    files = {
        ("Config.json" if name == "config.json" else name): data
        for name, data in contents(model_folder).items()
    }
    not_held(
        model_folder,
        signed(files, shard_size=shard_size),
        "'Config.json' was signed, but it is not in the folder",
    )


def test_two_files_that_changed_names(tmp_path: Path, model_folder: Path) -> None:
    """The names are bound to the digests, each to its own."""
    files = contents(model_folder)
    swapped = files | {"config.json": files["sub/empty.txt"], "sub/empty.txt": files["config.json"]}
    not_held(model_folder, signed(swapped), "'config.json' differs from what was signed")


def test_an_empty_file_in_shards(model_folder: Path) -> None:
    """Shards leave it out: it may be there, and it may not hold anything."""
    files = contents(model_folder)
    assert files["sub/empty.txt"] == b""
    statement = signed(files, shard_size=1000)
    assert "sub/empty.txt" not in names(statement)
    assert "sub/empty.txt" in [file.name for file in held(model_folder, statement).files]
    not_held(
        model_folder,
        signed(
            {name: data for name, data in files.items() if data and name != "config.json"}, shard_size=1000
        ),
        "'config.json' is in the folder, but it was not signed",
    )


def test_an_empty_file_that_whole_files_leave_out(model_folder: Path) -> None:
    """Only shards may."""
    files = {name: data for name, data in contents(model_folder).items() if data}
    not_held(model_folder, signed(files), "'sub/empty.txt' is in the folder, but it was not signed")


def cut(model_folder: Path, *ranges: tuple[int, int], size: int = 1000) -> Statement:
    """A statement in whose shards the weights stand as given."""
    files = contents(model_folder)
    data = files.pop(WEIGHTS)
    resources = [each for name, rest in files.items() for each in shards_of(name, rest, size)]
    resources += [entry(f"{WEIGHTS}:{start}:{end}", data[start:end]) for start, end in ranges]
    return verify(sharded(resources, size))


def whole(model_folder: Path) -> list[tuple[int, int]]:
    length = (model_folder / WEIGHTS).stat().st_size
    return [(start, min(start + 1000, length)) for start in range(0, length, 1000)]


def test_shards_in_any_order(model_folder: Path) -> None:
    """Their places say where they belong."""
    ranges = whole(model_folder)
    assert len(ranges) > 10
    for order in (ranges, ranges[::-1], sorted(ranges, key=str)):
        assert held(model_folder, cut(model_folder, *order)).tensors


GAPS: dict[str, Callable[[list[tuple[int, int]]], list[tuple[int, int]]]] = {
    "the first is missing": lambda r: r[1:],
    "one between is missing": lambda r: r[:3] + r[4:],
    "the last is missing": lambda r: r[:-1],
    "one ends too early": lambda r: [*r[:3], (3000, 3999), *r[4:]],
    "the last ends too early": lambda r: [*r[:-1], (r[-1][0], r[-1][1] - 1)],
    "the last ends too late": lambda r: [*r[:-1], (r[-1][0], r[-1][1] + 1)],
    "one more after the end": lambda r: [*r, (r[-1][0] + 1000, r[-1][0] + 1001)],
    "one overlaps": lambda r: [*r, (3000, 3500)],
    "one stands for two": lambda r: [*r[:3], (3000, 3500), *r[4:]],
}


@pytest.mark.parametrize("change", GAPS.values(), ids=GAPS)
def test_shards_that_do_not_cover_a_file_once(
    model_folder: Path, change: Callable[[list[tuple[int, int]]], list[tuple[int, int]]]
) -> None:
    """Every byte stands in exactly one."""
    statement = cut(model_folder, *change(whole(model_folder)))
    not_held(model_folder, statement, "'model.safetensors' differs from what was signed")


@pytest.mark.parametrize("shard_size", [None, 1000])
def test_a_single_file_without_a_name(tmp_path: Path, model_folder: Path, shard_size: int | None) -> None:
    """It is the only one of the folder; of two, it would be a guess."""
    data = (model_folder / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(data)
    statement = signed({".": data}, shard_size=shard_size)
    assert [file.name for file in held(tmp_path, statement).files] == [WEIGHTS]
    not_held(tmp_path, signed({".": data + b"x"}, shard_size=shard_size), "differs from what was signed")
    (tmp_path / "other").write_bytes(b"x")
    not_held(tmp_path, statement, "'.' was signed, but it is not in the folder")


def test_a_dot_beside_names(tmp_path: Path, model_folder: Path) -> None:
    """Then it names nothing."""
    data = (model_folder / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(data)
    not_held(tmp_path, signed({".": data, WEIGHTS: data}), "'.' was signed, but it is not in the folder")


def ignoring(files: Mapping[str, bytes], *paths: str) -> Statement:
    resources = [entry(name, data) for name, data in files.items()]
    return verify(sealed(statement_of(resources, ignore_paths=list(paths))))


def copied(model_folder: Path, to: Path, **more: bytes) -> Path:
    for name, data in (contents(model_folder) | {k.replace("__", "/"): v for k, v in more.items()}).items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes(data)
    return to


def test_what_the_publisher_ignored_may_be_there(tmp_path: Path, model_folder: Path) -> None:
    """A file, or a folder with all that is in it; nothing else, and not deeper."""
    files = contents(model_folder)
    folder = copied(model_folder, tmp_path, signature=b"x", notes__a=b"y")
    document = held(folder, ignoring(files, "signature", "notes"))
    assert {file.name for file in document.files} == files.keys()
    not_held(folder, ignoring(files, "signature"), "'notes/a' is in the folder, but it was not signed")
    not_held(folder, ignoring(files, "notes"), "'signature' is in the folder, but it was not signed")
    (folder / "sub" / "signature").write_bytes(b"x")
    not_held(
        folder,
        ignoring(files, "signature", "notes"),
        "'sub/signature' is in the folder, but it was not signed",
    )


@pytest.mark.parametrize(
    "path", [".", "", "/", "*", "*.safetensors", "..", "./config.json", "sub/", "\ud800"]
)
def test_ignored_paths_are_names_and_no_patterns(tmp_path: Path, model_folder: Path, path: str) -> None:
    """Nothing that was signed gets out of sight, and nothing that was not gets in."""
    files = contents(model_folder)
    folder = copied(model_folder, tmp_path, more=b"x")
    not_held(folder, ignoring(files, path), "'more' is in the folder, but it was not signed")


def test_a_file_both_signed_and_ignored(tmp_path: Path, model_folder: Path) -> None:
    """A contradiction is not taken for a file that holds."""
    not_held(
        copied(model_folder, tmp_path),
        ignoring(contents(model_folder), "config.json"),
        "'config.json' was signed, but it is not in the folder",
    )


def test_a_folder_without_tensors(tmp_path: Path) -> None:
    """A measured reference value has some."""
    (tmp_path / "a").write_bytes(b"a")
    not_held(tmp_path, signed({"a": b"a"}), "has no safetensors file and no GGUF file")


# Nothing but a sentence, whatever is read.

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
    | st.sampled_from(["files", "shards", "sha256", "blake2", "blake3", "a:0:10", ".", "AA==", 10.0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths to everything in a JSON document."""
    steps: list[str | int] = list(value) if isinstance(value, dict) else []
    steps += range(len(value)) if isinstance(value, list) else ()
    return [each for step in steps for each in [(*path, step), *places(value[step], (*path, step))]]


@st.composite
def mutated(draw: st.DrawFn, base: Json) -> Json:
    """A document of which something is replaced, left out, or said twice."""
    document = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 2))):
        all_places = places(document)
        if not all_places:
            break
        path = draw(st.sampled_from(all_places))
        if draw(st.booleans()):
            document = changed(document, *path, to=draw(values))
        elif draw(st.booleans()):
            document = without(document, *path)
        else:
            *above, last = path
            document = changed(document, *path, to=[changed(document, *path, to=None), above, last])
    return document


SHARDED = statement_of(shards_of("a", bytes(25), 10), method="shards", shard_size=10, ignore_paths=["x"])
SIGNER = issue("signer", MIDDLE, LEAF)
CHAINED = sealed(GOOD, SIGNER.key, chain=[SIGNER.der, MIDDLE.der])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_bundle_or_a_sentence(data: bytes) -> None:
    """No bytes bring the reader down."""
    with pytest.raises(ReferenceValueError):
        oms.read_bundle(data)


@given(mutated(sealed(GOOD)))
def test_a_changed_bundle_verifies_the_same_or_is_refused(bundle: Json) -> None:
    """What can be changed without notice changes nothing."""
    try:
        statement = verify(json.dumps(bundle).encode())
    except ReferenceValueError:
        return
    assert statement == verify(sealed(GOOD))


@given(mutated(CHAINED))
def test_a_changed_bundle_with_a_chain(bundle: Json) -> None:
    """As with a key."""
    try:
        read = oms.read_bundle(json.dumps(bundle).encode())
        statement = oms.verify_with_certificates(read, [ROOT.pem], NOW)
    except ReferenceValueError:
        return
    assert statement.publisher.signer == "certificate of CN=signer"


@settings(max_examples=200)
@given(mutated(GOOD) | mutated(SHARDED))
def test_a_statement_that_says_anything(statement: Json) -> None:
    """Signed by whom we trust, and all the same never more than a sentence."""
    try:
        verified = verify(sealed(statement))
        published.without_weights(MODEL, verified)
    except ReferenceValueError:
        return
    root = hashlib.sha256(b"".join(each.digest for each in verified.resources)).hexdigest()
    assert statement["subject"][0]["digest"]["sha256"] == root


@given(values)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    """Strict, and not narrower than JSON."""
    assert strictjson.loads(json.dumps(value).encode()) == value


@given(st.binary(max_size=64))
def test_any_signature_is_refused_in_a_sentence(signature: bytes) -> None:
    """Whatever its bytes."""
    bundle = changed(sealed(GOOD), "dsseEnvelope", "signatures", 0, "sig", to=b64(signature))
    refused(bundle, "the signature does not fit|the signature is not base64")


@given(
    st.binary(max_size=100), st.sampled_from(["PUBLIC KEY", "CERTIFICATE", "EC PARAMETERS", "RSA PUBLIC KEY"])
)
def test_any_key_is_refused_in_a_sentence(data: bytes, label: str) -> None:
    """Whatever stands in the PEM."""
    pem = f"-----BEGIN {label}-----\n{base64.encodebytes(data).decode()}-----END {label}-----\n".encode()
    refused(sealed(GOOD), "the public key is not PEM|the key is not on|the signature does not fit", pem)


def test_json_of_too_many_lists_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What parsing costs goes by the lists and objects: 60 MiB have room for twenty million."""
    monkeypatch.setattr(strictjson.json, "loads", None)
    with pytest.raises(ValueError, match=f"more than {strictjson.MAX_LISTS} lists and objects"):
        strictjson.loads(b"[" + b"[]," * strictjson.MAX_LISTS + b"[]]")
