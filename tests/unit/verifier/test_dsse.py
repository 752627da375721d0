"""DSSE envelopes: the published example, others' encodings, and what is refused."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from attester.cose import ED25519, ES256, PrivateKey
from attester.errors import SignatureError
from verifier import dsse

TYPE = "application/vnd.example+cbor"
PAYLOAD = bytes(range(256))
KEYS = {"ES256": PrivateKey.generate(ES256), "Ed25519": PrivateKey.generate(ED25519)}
KEY = KEYS["ES256"]
MAY = {name: key.native.public_key() for name, key in KEYS.items()}
ENVELOPE = json.loads(dsse.sign(TYPE, PAYLOAD, KEY))
SIGNATURE = ENVELOPE["signatures"][0]


def with_fields(**fields: Any) -> bytes:
    return json.dumps({**ENVELOPE, **fields}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in ENVELOPE.items() if key != name}).encode()


def refusal(data: bytes, payload_type: str = TYPE) -> str:
    with pytest.raises(SignatureError) as error:
        dsse.verify(data, payload_type, MAY)
    return str(error.value)


# The example of the specification (protocol.md, Test Vectors).
EXAMPLE_TYPE, EXAMPLE = "http://example.com/HelloWorld", b"hello world"
EXAMPLE_KEY = ec.EllipticCurvePublicNumbers(
    46950820868899156662930047687818585632848591499744589407958293238635476079160,
    5640078356564379163099075877009565129882514886557779369047442380624545832820,
    ec.SECP256R1(),
).public_key()
EXAMPLE_SIGNATURE = "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="


def test_what_is_signed_is_the_published_example() -> None:
    """Type and payload with their lengths, in bytes."""
    assert dsse.pae(EXAMPLE_TYPE, EXAMPLE) == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_lengths_are_in_bytes() -> None:
    """Not in characters."""
    assert dsse.pae("é", "é".encode()) == b"DSSEv1 2 \xc3\xa9 2 \xc3\xa9"


def test_lengths_keep_type_and_payload_apart() -> None:
    """No type can swallow the start of a payload."""
    assert dsse.pae("a 1 b", b"") != dsse.pae("a", b"b 0 ")


def test_published_signature_fits() -> None:
    """Its r and s, as DER."""
    raw = base64.b64decode(EXAMPLE_SIGNATURE)
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    envelope = {
        "payload": "aGVsbG8gd29ybGQ=",
        "payloadType": EXAMPLE_TYPE,
        "signatures": [{"sig": base64.b64encode(der).decode()}],
    }
    found = dsse.verify(json.dumps(envelope).encode(), EXAMPLE_TYPE, {"example": EXAMPLE_KEY})
    assert found == ("example", EXAMPLE)


@pytest.mark.parametrize("name", KEYS)
def test_signed_payload_comes_back(name: str) -> None:
    """With the name of the key, for either algorithm."""
    assert dsse.verify(dsse.sign(TYPE, PAYLOAD, KEYS[name]), TYPE, MAY) == (name, PAYLOAD)


def test_empty_payload_comes_back() -> None:
    """Nothing can be signed."""
    assert dsse.verify(dsse.sign(TYPE, b"", KEY), TYPE, MAY) == ("ES256", b"")


def test_envelope_has_the_names_of_the_specification() -> None:
    """As other implementations read it."""
    assert ENVELOPE.keys() == {"payload", "payloadType", "signatures"}
    assert SIGNATURE.keys() == {"keyid", "sig"}
    assert base64.b64decode(ENVELOPE["payload"]) == PAYLOAD


def test_signature_is_over_what_the_specification_says() -> None:
    """ECDSA with SHA-256, DER, checked without our code."""
    data = b"DSSEv1 %d %s 256 %s" % (len(TYPE), TYPE.encode(), PAYLOAD)
    MAY["ES256"].verify(base64.b64decode(SIGNATURE["sig"]), data, ec.ECDSA(hashes.SHA256()))


def test_first_name_of_a_key_is_told() -> None:
    """The order in which keys are given does not matter."""
    keys = {"b": MAY["ES256"], "a": MAY["ES256"]}
    assert dsse.verify(with_fields(), TYPE, keys) == ("a", PAYLOAD)


ACCEPTED: dict[str, bytes] = {
    "no key id": with_fields(signatures=[{"sig": SIGNATURE["sig"]}]),
    "an empty key id": with_fields(signatures=[{**SIGNATURE, "keyid": ""}]),
    "the key id of another": with_fields(
        signatures=[{**SIGNATURE, "keyid": KEYS["Ed25519"].public.kid.hex()}]
    ),
    "more fields": with_fields(more=1, signatures=[{**SIGNATURE, "cert": "…"}]),
    "a signature of a stranger first": with_fields(
        signatures=[
            json.loads(dsse.sign(TYPE, PAYLOAD, PrivateKey.generate()))["signatures"][0],
            SIGNATURE,
        ]
    ),
    "nonsense for a signature first": with_fields(signatures=[{"sig": ""}, {"sig": "AAAA"}, SIGNATURE]),
    "white space": json.dumps(ENVELOPE, indent=4).encode() + b"\n",
}


@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED)
def test_variety_is_accepted(data: bytes) -> None:
    """What the specification leaves open does not matter."""
    assert dsse.verify(data, TYPE, MAY) == ("ES256", PAYLOAD)


def test_base64_of_urls_is_accepted() -> None:
    """Verifiers must accept either encoding (protocol.md)."""
    payload = base64.urlsafe_b64encode(PAYLOAD).decode()
    sig = base64.urlsafe_b64encode(base64.b64decode(SIGNATURE["sig"])).decode()
    assert "_" in payload
    assert dsse.verify(with_fields(payload=payload, signatures=[{"sig": sig}]), TYPE, MAY) == (
        "ES256",
        PAYLOAD,
    )


@pytest.mark.parametrize("name", KEYS)
@given(st.integers(0, len(PAYLOAD) - 1), st.integers(1, 255))
def test_no_other_payload_fits(name: str, place: int, change: int) -> None:
    """One changed byte is enough."""
    other = bytearray(PAYLOAD)
    other[place] ^= change
    envelope = json.loads(dsse.sign(TYPE, PAYLOAD, KEYS[name]))
    data = json.dumps({**envelope, "payload": base64.b64encode(other).decode()}).encode()
    assert refusal(data) == "none of the 2 trusted keys signed it"


@pytest.mark.parametrize("name", KEYS)
def test_no_other_signature_fits(name: str) -> None:
    """One changed bit is enough, wherever."""
    envelope = json.loads(dsse.sign(TYPE, PAYLOAD, KEYS[name]))
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    for place in range(len(signature)):
        other = bytearray(signature)
        other[place] ^= 1
        sig = base64.b64encode(other).decode()
        assert "trusted keys signed it" in refusal(
            json.dumps({**envelope, "signatures": [{"sig": sig}]}).encode()
        )


def test_key_of_another_kind_signs_nothing() -> None:
    """It is passed over, and the others are tried."""
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    assert dsse.verify(with_fields(), TYPE, {"a": other, **MAY}) == ("ES256", PAYLOAD)
    with pytest.raises(SignatureError, match="none of the 1 trusted keys"):
        dsse.verify(with_fields(), TYPE, {"a": other})


def test_no_keys_fit_nothing() -> None:
    """Nobody may is not anybody may."""
    with pytest.raises(SignatureError, match="none of the 0 trusted keys"):
        dsse.verify(with_fields(), TYPE, {})


def test_another_type_is_refused() -> None:
    """Before any key is tried."""
    assert refusal(with_fields(), "text/plain") == f"the payload is of type {TYPE!r}, not text/plain"


@pytest.mark.parametrize("other", [TYPE.upper(), TYPE + " ", TYPE + ";v=1", ""])
def test_type_is_compared_as_it_is(other: str) -> None:
    """It is opaque, and case matters."""
    assert "of type" in refusal(with_fields(payloadType=other))


def test_renamed_type_is_refused() -> None:
    """The type is signed too."""
    data = json.loads(dsse.sign("text/plain", PAYLOAD, KEY))
    assert "trusted keys signed it" in refusal(json.dumps({**data, "payloadType": TYPE}).encode())


REFUSED: dict[str, bytes] = {
    "nothing": b"",
    "not JSON": b"{",
    "not UTF-8": b"\xff",
    "a list": b"[]",
    "nested without end": b"[" * 100_000,
    "no payload": without("payload"),
    "no type": without("payloadType"),
    "no signatures": without("signatures"),
    "an empty list of signatures": with_fields(signatures=[]),
    "too many signatures": with_fields(signatures=[SIGNATURE] * 17),
    "a signature that is text": with_fields(signatures=[SIGNATURE["sig"]]),
    "a signature without sig": with_fields(signatures=[{"keyid": ""}]),
    "a signature too long": with_fields(signatures=[{"sig": "A" * 1028}]),
    "a key id too long": with_fields(signatures=[{**SIGNATURE, "keyid": "a" * 257}]),
    "a type too long": with_fields(payloadType="a" * 257),
    "a payload that is no base64": with_fields(payload="*" * 8),
    "a payload with line ends": with_fields(payload=ENVELOPE["payload"][:4] + "\n" + ENVELOPE["payload"][4:]),
    "a payload without its padding": with_fields(payload=ENVELOPE["payload"].rstrip("=")),
    "a payload beyond ASCII": with_fields(payload="é"),
    "half a character": with_fields(payload="\ud800"),
    "a payload that is a number": with_fields(payload=7),
    "a name twice": b'{"payload": "", ' + with_fields()[1:],
    "something behind it": with_fields() + b"{}",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    """As not an envelope: before any key is tried."""
    assert refusal(data).startswith("this is not a DSSE envelope: ")


def test_envelope_too_large_is_not_read() -> None:
    """Its length is enough to refuse it."""
    data = with_fields() + b" " * dsse.MAX_ENVELOPE
    assert refusal(data) == f"the envelope has {len(data)} bytes, and at most {dsse.MAX_ENVELOPE} are read"


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    """No other exception comes out."""
    refusal(data)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "payload": st.text(max_size=9) | st.none(),
            "payloadType": st.text(max_size=9) | st.integers(),
            "signatures": st.lists(
                st.fixed_dictionaries({"sig": st.text(max_size=9) | st.integers()}), max_size=3
            ),
        },
    )
)
def test_any_fields_are_refused(fields: dict[str, Any]) -> None:
    """No other exception comes out, and no other payload."""
    with suppress(SignatureError):
        assert dsse.verify(with_fields(**fields), TYPE, MAY) == ("ES256", PAYLOAD)
