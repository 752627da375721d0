"""Evidence is opened in an order: its envelope, its key, its signature, and only then its payload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cbor2
import pytest

from attester import cbor, cose, evidence
from attester.cose import ED25519, ES256, PrivateKey
from attester.evidence import COSE_TYP, MAX_EVIDENCE, MEDIA_TYPE, Token
from verifier import opening
from verifier.errors import EvidenceError
from verifier.schemes.context import Node

KEY, OTHER, EDWARDS = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate(ED25519)
TAGS = (cose.TAG_CWT, cose.TAG_SIGN1)
TOKEN = Token(bytes(32), b"\x01" + bytes(16), 1_795_000_000, "https://v", {"platform": {}})
GARBAGE = b"\xff" * 100


def node_of(key: PrivateKey) -> Node:
    return Node(
        id="n",
        ueid=TOKEN.ueid,
        key=key.public,
        operator="o",
        models=(),
        hardware_class="cpu",
        state="active",
    )


def signed(payload: bytes, key: PrivateKey) -> bytes:
    return cose.sign(payload, key, header={cose.TYP: COSE_TYP}, tags=TAGS)


def forged(payload: bytes, kid: bytes, signer: PrivateKey, alg: int = ES256) -> bytes:
    """Under the kid of one key, signed by another."""
    protected = cbor.encode({cose.ALG: alg, cose.KID: kid, cose.TYP: COSE_TYP})
    signature = signer.sign(cbor.encode(["Signature1", protected, b"", payload]))
    return cbor2.dumps(cbor2.CBORTag(61, cbor2.CBORTag(18, [protected, {}, payload, signature])))


def refusal(data: bytes, key: PrivateKey = KEY) -> tuple[int, str]:
    with pytest.raises(EvidenceError) as refused:
        opening.authenticate(opening.read_envelope(MEDIA_TYPE, data), node_of(key))
    return refused.value.step, refused.value.code


@pytest.fixture
def read_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all that the CBOR library is given to read."""
    sizes: list[int] = []
    load: Callable[..., Any] = cbor2.load

    def spy(stream: Any, **options: Any) -> Any:
        sizes.append(len(stream.getvalue()))
        return load(stream, **options)

    monkeypatch.setattr(cbor.cbor2, "load", spy)
    return sizes


@pytest.mark.parametrize("key", [KEY, EDWARDS], ids=["ES256", "Ed25519"])
def test_what_a_node_signed_is_opened(key: PrivateKey) -> None:
    """The token as it was."""
    sealed = opening.read_envelope(MEDIA_TYPE, TOKEN.sign(key))
    assert opening.authenticate(sealed, node_of(key)).token == TOKEN


def test_recorded_evidence_is_opened_without_its_key() -> None:
    """Its signature was checked when it came."""
    assert opening.reopen(TOKEN.sign(KEY)).token == TOKEN
    assert (
        opening.reopen(
            forged(
                cbor.encode(
                    {
                        265: evidence.PROFILE,
                        10: bytes(32),
                        256: TOKEN.ueid,
                        6: TOKEN.iat,
                        3: TOKEN.aud,
                        266: {"platform": {}},
                    }
                ),
                KEY.public.kid,
                OTHER,
            )
        ).token
        == TOKEN
    )


@pytest.mark.parametrize("payload", [GARBAGE, b"", b"\x80", cbor.encode({265: "tag:other"})])
def test_the_key_and_the_signature_come_before_the_payload(payload: bytes) -> None:
    """Evidence that is wrong in both is refused for its key or its signature; the payload's fault shows after them."""
    assert refusal(signed(payload, OTHER)) == (3, "evidence.key")
    assert refusal(forged(payload, KEY.public.kid, OTHER, ED25519)) == (3, "evidence.algorithm")
    assert refusal(forged(payload, KEY.public.kid, OTHER)) == (4, "evidence.signature")
    step, code = refusal(signed(payload, KEY))
    assert (step, code) in {(1, "evidence.malformed"), (2, "evidence.profile")}


def test_the_payloads_faults_have_their_own_steps() -> None:
    """As they had before the order was changed."""
    assert refusal(signed(GARBAGE, KEY)) == (1, "evidence.malformed")
    assert refusal(signed(cbor.encode({10: 1}), KEY)) == (2, "evidence.profile")
    assert refusal(signed(cbor.encode({265: evidence.PROFILE}), KEY)) == (1, "evidence.malformed")


MUCH = cbor.encode({266: {"model/a": {-80003: {number: {} for number in range(29_000)}}}}) + bytes(120_000)


@pytest.mark.parametrize(
    "data",
    [
        signed(MUCH, OTHER),
        forged(MUCH, KEY.public.kid, OTHER),
        forged(MUCH, KEY.public.kid, OTHER, ED25519),
        signed(MUCH, EDWARDS),
    ],
    ids=["another key", "its kid", "its kid, another algorithm", "another algorithm"],
)
def test_nothing_of_a_strangers_payload_is_read(data: bytes, read_sizes: list[int]) -> None:
    """236 kB, which would take the reader tens of milliseconds: at most the protected header is read."""
    assert len(data) > 230_000
    assert refusal(data)[1] in {"evidence.key", "evidence.algorithm", "evidence.signature"}
    assert max(read_sizes, default=0) < 100


def envelope(*parts: bytes) -> bytes:
    return b"\xd8\x3d\xd2" + b"".join(parts)


BSTR = b"\x40"
MAPS = b"\xa0" * 200_000
BOMBS = {
    "unprotected header": envelope(b"\x84", BSTR, b"\xba\x00\x01\x86\xa0", b"\x00" + MAPS, BSTR, BSTR),
    "payload that is an array": envelope(b"\x84", BSTR, b"\xa0\x9a\x00\x03\x0d\x40", MAPS, BSTR),
    "signature that is an array": envelope(b"\x84", BSTR, b"\xa0", BSTR, b"\x9a\x00\x03\x0d\x40", MAPS),
    "five parts": envelope(b"\x85", BSTR, b"\xa0", BSTR, BSTR, b"\x9a\x00\x03\x0d\x40", MAPS),
    "array of maps": b"\x9a\x00\x03\x0d\x40" + MAPS,
    "not closed": envelope(b"\x9b" + b"\x7f" + b"\xff" * 7, MAPS),
    "nested": envelope(b"\x81" * 200_000),
    "tags": b"\xd8\x3d" * 100_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_envelope_with_more_values_than_it_needs_is_not_read(name: str, read_sizes: list[int]) -> None:
    """A stranger cannot move what is expensive from the payload into the envelope."""
    with pytest.raises(EvidenceError, match="more than 32 values") as refused:
        opening.read_envelope(MEDIA_TYPE, BOMBS[name])
    assert (refused.value.step, refused.value.code) == (1, "evidence.malformed")
    assert read_sizes == []


def test_a_protected_header_that_is_too_long_is_not_read(read_sizes: list[int]) -> None:
    """The profile's has about 60 bytes."""
    header = cbor.encode({cose.ALG: ES256, cose.KID: bytes(32), cose.TYP: COSE_TYP, 99: [{}] * 300})
    message = cbor2.CBORTag(61, cbor2.CBORTag(18, [header, {}, b"", bytes(64)]))
    with pytest.raises(EvidenceError, match="at most 256 are allowed"):
        opening.read_envelope(MEDIA_TYPE, cbor2.dumps(message))
    assert read_sizes == []


def test_size_and_media_type_come_first(read_sizes: list[int]) -> None:
    """Step 0 reads nothing."""
    for media_type, data, code in (
        ("application/cbor", TOKEN.sign(KEY), "evidence.media-type"),
        (MEDIA_TYPE, bytes(MAX_EVIDENCE + 1), "evidence.size"),
    ):
        with pytest.raises(EvidenceError) as refused:
            opening.read_envelope(media_type, data)
        assert (refused.value.step, refused.value.code) == (0, code)
    assert read_sizes == []
