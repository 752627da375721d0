"""A signed request is good for one request, one body, one key and one time."""

from __future__ import annotations

import base64
import dataclasses
import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attester import cbor, cose, proof
from attester.cose import ED25519, ES256, PrivateKey
from attester.errors import CBORError, ClaimError, COSEError, SignatureError
from attester.proof import Proof, Request

NOW = 1_795_000_000
KEY = PrivateKey.generate()
REQUEST = Request("POST", "verifier.example:8440", "/api/v1/nodes?x=1", b"body")


def header_of(data: bytes) -> str:
    return "Touchstone-Node " + base64.urlsafe_b64encode(data).decode().rstrip("=")


def message_of(header: str) -> bytes:
    value = header.partition(" ")[2]
    return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))


def claims(**changes: object) -> dict[str, object]:
    read = Proof.decode(REQUEST.authorize(KEY, now=NOW)).claims
    return {k: v for k, v in {**msgspec.structs.asdict(read), **changes}.items() if v is not ...}


def signed(payload: object, header: dict[int, object] | None = None) -> str:
    data = payload if isinstance(payload, bytes) else cbor.encode(payload)
    return header_of(cose.sign(data, KEY, header=header or {cose.TYP: "application/touchstone-request+cose"}))


def check(header: str, request: Request = REQUEST, *, key=KEY, now: int = NOW, skew: int = 30) -> None:
    Proof.decode(header).verify(request, key.public, now=now, skew=skew)


@pytest.mark.parametrize("alg", [ES256, ED25519], ids=["ES256", "Ed25519"])
def test_a_request_is_good_for_itself(alg):
    """With either algorithm."""
    key = PrivateKey.generate(alg)
    assert check(REQUEST.authorize(key, now=NOW), key=key) is None


@given(
    st.builds(
        Request,
        method=st.text(max_size=16),
        authority=st.text(max_size=60),
        target=st.text(max_size=100),
        body=st.binary(max_size=60),
    )
)
@settings(max_examples=50, deadline=None)
def test_any_request_is_good_for_itself(request_):
    """Whatever it says."""
    assert check(request_.authorize(KEY, now=NOW), request_) is None


OTHERS = {
    "method": {"method": "GET"},
    "method in lower case": {"method": "post"},
    "authority": {"authority": "other.example:8440"},
    "authority without its port": {"authority": "verifier.example"},
    "authority in capitals": {"authority": "VERIFIER.example:8440"},
    "target": {"target": "/api/v1/nodes/x/key"},
    "query": {"target": "/api/v1/nodes?x=2"},
    "query left out": {"target": "/api/v1/nodes"},
    "query's order of escapes": {"target": "/api/v1/nodes?%78=1"},
    "fragment": {"target": "/api/v1/nodes?x=1#"},
    "double slash": {"target": "//api/v1/nodes?x=1"},
    "body": {"body": b"Body"},
    "body longer": {"body": b"body\n"},
    "body left out": {"body": b""},
    "slid from target to authority": {"authority": "verifier.example:8440/api", "target": "/v1/nodes?x=1"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_request_is_good_for_no_other(name):
    """One part changed, and the proof is none."""
    with pytest.raises(COSEError, match="signed for another request"):
        check(REQUEST.authorize(KEY, now=NOW), dataclasses.replace(REQUEST, **OTHERS[name]))


def test_a_request_is_good_for_its_own_key_only():
    """The verifier looks the key up by kid, and checks that it is the one."""
    with pytest.raises(COSEError, match="signed by another key"):
        check(REQUEST.authorize(KEY, now=NOW), key=PrivateKey.generate())


def test_the_kid_of_another_does_not_help():
    """A stranger who names the node's kid has not its signature."""
    stranger = PrivateKey.generate()
    header = {cose.KID: KEY.public.kid, cose.TYP: "application/touchstone-request+cose"}
    forged = header_of(cose.sign(cbor.encode(claims()), stranger, header=header))
    with pytest.raises(SignatureError):
        check(forged)


@pytest.mark.parametrize("off", [-30, -1, 0, 1, 30])
def test_clocks_may_differ_by_the_skew(off):
    """In both directions, to the second."""
    assert check(REQUEST.authorize(KEY, now=NOW + off)) is None


@pytest.mark.parametrize("off", [-31, 31, -NOW, 10**9])
def test_clocks_may_not_differ_by_more(off):
    """And the operator is told by how much."""
    with pytest.raises(COSEError, match=re.escape(f"signed {off:+d} s from the verifier's time")):
        check(REQUEST.authorize(KEY, now=NOW + off))


def test_no_two_proofs_are_alike():
    """Each carries a random value of 16 bytes of its own, accepted once."""
    randoms = {Proof.decode(REQUEST.authorize(KEY, now=NOW)).random for _ in range(50)}
    assert (len(randoms), {len(value) for value in randoms}) == (50, {16})


def test_a_proof_says_who_signed():
    """By thumbprint, so that the key can be looked up before it is checked."""
    assert Proof.decode(REQUEST.authorize(KEY, now=NOW)).kid == KEY.public.kid


def test_the_body_is_not_in_the_header():
    """Its digest is."""
    assert b"body-that-is-secret" not in message_of(
        dataclasses.replace(REQUEST, body=b"body-that-is-secret").authorize(KEY, now=NOW)
    )


def test_every_changed_byte_is_refused():
    """A proof of which any one byte is another is refused, by our errors only."""
    data = message_of(REQUEST.authorize(KEY, now=NOW))
    accepted = []
    for place in range(len(data)):
        for flip in (0x01, 0x20, 0x80):
            changed = bytearray(data)
            changed[place] ^= flip
            try:
                check(header_of(bytes(changed)))
            except (COSEError, CBORError, ClaimError):
                continue
            accepted.append((place, flip))
    assert accepted == []


BAD_CLAIMS = {
    "a list": [],
    "null": None,
    "another member": lambda: claims(node="n"),
    "no domain": lambda: claims(domain=...),
    "no random": lambda: claims(random=...),
    "no body": lambda: claims(body=...),
    "no time": lambda: claims(time=...),
    "random of 15": lambda: claims(random=bytes(15)),
    "random of 17": lambda: claims(random=bytes(17)),
    "random text": lambda: claims(random="A" * 16),
    "body short": lambda: claims(body=bytes(31)),
    "body in hexadecimal": lambda: claims(body="0" * 64),
    "time negative": lambda: claims(time=-1),
    "time true": lambda: claims(time=True),
    "time beyond 2^53": lambda: claims(time=(1 << 53) + 1),
    "method long": lambda: claims(method="x" * 17),
    "authority long": lambda: claims(authority="x" * 257),
    "target long": lambda: claims(target="x" * 1025),
    "target bytes": lambda: claims(target=b"/"),
}


@pytest.mark.parametrize("name", BAD_CLAIMS)
def test_signed_claims_of_another_form_are_refused(name):
    """Exactly the seven members, each of its length."""
    payload = BAD_CLAIMS[name]
    with pytest.raises(ClaimError, match="authorization"):
        Proof.decode(signed(payload() if callable(payload) else payload))


@pytest.mark.parametrize(
    "domain", ["touchstone/request/2", "touchstone/endpoint/1", "", "TOUCHSTONE/request/1"]
)
def test_a_signature_of_another_domain_is_refused(domain):
    """What the key signed for another purpose is no request."""
    with pytest.raises(COSEError, match="signed for another request"):
        check(signed(claims(domain=domain)))


@pytest.mark.parametrize(
    "header",
    [{}, {cose.TYP: "application/eat+cwt"}, {cose.TYP: 1}],
    ids=["none", "evidence", "number"],
)
def test_a_message_of_another_type_is_refused(header):
    """Evidence is no request, though the same key signed it."""
    data = cose.sign(cbor.encode(claims()), KEY, header=header)
    with pytest.raises(COSEError, match="kid or typ"):
        Proof.decode(header_of(data))


@pytest.mark.parametrize("kid", [b"", bytes(31), bytes(33), "0" * 32, None, 1], ids=repr)
def test_a_kid_of_another_form_is_refused(kid):
    """A thumbprint is 32 bytes."""
    with pytest.raises(COSEError, match="kid or typ"):
        Proof.decode(signed(claims(), {cose.KID: kid, cose.TYP: "application/touchstone-request+cose"}))


def test_a_payload_that_is_not_deterministic_is_refused():
    """A signed payload is read as strictly as evidence."""
    with pytest.raises(CBORError):
        Proof.decode(signed(b"\xbf\xff"))


GOOD = REQUEST.authorize(KEY, now=NOW)
WRITTEN = {
    "empty": "",
    "scheme alone": "Touchstone-Node",
    "scheme and a space": "Touchstone-Node ",
    "another scheme": GOOD.replace("Touchstone-Node", "Bearer"),
    "scheme in lower case": GOOD.lower(),
    "two spaces": GOOD.replace(" ", "  "),
    "a tab": GOOD.replace(" ", "\t"),
    "leading space": " " + GOOD,
    "trailing space": GOOD + " ",
    "trailing newline": GOOD + "\n",
    "newline inside": GOOD[:60] + "\n" + GOOD[60:],
    "not base64": GOOD + "!",
    "not ASCII": GOOD + "é",
    "fullwidth": GOOD[:-1] + "Ａ",
    "cut": GOOD[:-8],
    "twice": GOOD + GOOD.partition(" ")[2],
    "parameters": "Touchstone-Node proof=" + GOOD.partition(" ")[2],
    "too long": "Touchstone-Node " + "A" * 2049,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_header_of_another_form_is_refused(name):
    """By our errors only."""
    with pytest.raises((COSEError, CBORError)):
        Proof.decode(WRITTEN[name])


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60).map(header_of)))
@settings(max_examples=100)
def test_any_header_is_refused(header):
    """Text and bytes at random are no proof, and raise nothing but our errors."""
    with pytest.raises((COSEError, CBORError, ClaimError)):
        Proof.decode(header)


def test_a_long_header_is_refused_before_it_is_decoded(monkeypatch):
    """Length is the first question."""
    monkeypatch.setattr(proof.base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(COSEError, match="not an Authorization header"):
        Proof.decode("Touchstone-Node " + "A" * 10_000_000)


def test_another_writing_of_a_proof_is_the_same_proof():
    """Padding may come or not: kid and random, by which a proof is accepted once, stay the same."""
    value = GOOD.partition(" ")[2]
    padded = Proof.decode("Touchstone-Node " + value + "=" * (-len(value) % 4))
    assert (padded.kid, padded.random) == (Proof.decode(GOOD).kid, Proof.decode(GOOD).random)
