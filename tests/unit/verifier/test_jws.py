"""The reader of JWTs against pyjwt: it accepts what pyjwt accepts, and nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier import jws
from verifier.errors import ResultError
from verifier.result_keys import ResultKey, VerifyingKey, b64url

KEY, OTHER = (ResultKey(ec.derive_private_key(secret, ec.SECP256R1())) for secret in (7, 8))
KEYS = {KEY.kid: KEY.verifying}
CLAIMS = {"iss": "https://v.example", "jti": "0" * 32, "n": [1, {"é": None}]}
OPTIONS: Any = {"verify_exp": False, "verify_iat": False, "verify_nbf": False, "verify_aud": False}


def oracle(token: str, keys: Mapping[str, VerifyingKey]) -> dict[str, Any]:
    """As version 0.1.0 read a result's token."""
    signature = token.rpartition(".")[2]
    try:
        padded = base64.b64decode(signature + "=" * (-len(signature) % 4), altchars=b"-_", validate=True)
        if b64url(padded) != signature:
            raise ResultError("not base64url")
        key = keys.get(str(jwt.get_unverified_header(token).get("kid")))
        if key is None:
            raise ResultError("an unknown key")
        claims: dict[str, Any] = jwt.PyJWT().decode(token, key.public, algorithms=["ES256"], options=OPTIONS)
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise ResultError(str(error)) from None
    return claims


def read(reader: Any, token: str) -> Any:
    try:
        return reader(token, KEYS)
    except ResultError:
        return "refused"


def token_of(header: bytes, payload: bytes, key: ResultKey = KEY) -> str:
    """Rightly signed, whatever its parts hold."""
    signed = f"{b64url(header)}.{b64url(payload)}"
    return f"{signed}.{b64url(key.cose.sign(signed.encode()))}"


def header(**changes: Any) -> bytes:
    members = {"alg": "ES256", "kid": KEY.kid, "typ": "eat+jwt", **changes}
    return msgspec.json.encode({name: value for name, value in members.items() if value is not ...})


GOOD = token_of(header(), msgspec.json.encode(CLAIMS))


def test_what_pyjwt_wrote_is_read() -> None:
    """A token of another writer, with the claims as they were."""
    token = jwt.encode(CLAIMS, KEY.private, algorithm="ES256", headers={"kid": KEY.kid})
    assert jws.open_jwt(token, KEYS) == CLAIMS == oracle(GOOD, KEYS)


MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.sampled_from([..., None, "none", "ES256", "es256", "ES384", "HS256", "", 1, ["ES256"]]),
        "kid": st.sampled_from([..., None, KEY.kid, OTHER.kid, "", "None", 1, [KEY.kid], {}]),
        "typ": st.sampled_from([..., None, "JWT", 1]),
        "jwk": st.just(OTHER.verifying.jwk()),
        "x": st.none(),
    },
)


@given(MEMBERS, st.sampled_from([KEY, OTHER]))
@settings(max_examples=300)
def test_headers_are_judged_as_by_pyjwt(members: dict[str, Any], signer: ResultKey) -> None:
    """Each algorithm, kid and type, by the right and by another key."""
    token = token_of(header(**members), msgspec.json.encode(CLAIMS), signer)
    assert read(jws.open_jwt, token) == read(oracle, token)


@given(st.data())
@settings(max_examples=400)
def test_changed_tokens_are_judged_as_by_pyjwt(data: st.DataObject) -> None:
    """A character changed, put in or taken away anywhere, most of them around the full stops."""
    text = list(GOOD)
    stops = [place for place, character in enumerate(text) if character == "."]
    near = st.sampled_from([0, len(text) - 1, *(stop + step for stop in stops for step in (-2, -1, 0, 1))])
    place = data.draw(st.one_of(near, st.integers(0, len(text) - 1)))
    other = data.draw(st.sampled_from([*"AQg-_+/=.? \n", "é", "\ud800", "=="]))
    match data.draw(st.sampled_from(["change", "insert", "delete"])):
        case "change":
            text[place] = other
        case "insert":
            text.insert(place, other)
        case _:
            del text[place]
    token = "".join(text)
    assert read(jws.open_jwt, token) == read(oracle, token) == (CLAIMS if token == GOOD else "refused")


@given(st.data())
@settings(max_examples=200)
def test_changed_bits_at_the_end_of_a_part_are_judged_as_by_pyjwt(data: st.DataObject) -> None:
    """Rightly signed over parts that are not the one form of base64url."""
    parts = GOOD.split(".")[:2]
    number = data.draw(st.integers(0, 1))
    end = data.draw(st.sampled_from(["", "=", "==", "A", "AA", "?", "+", "/", ".", "\n"]))
    last = data.draw(st.sampled_from([*"ABCDQRSTghijwxyz-_"]))
    parts[number] = parts[number][:-1] + last + end
    signed = ".".join(parts)
    token = f"{signed}.{b64url(KEY.cose.sign(signed.encode()))}"
    # pyjwt also reads a part with padding, which RFC 7515 §2 does not have.
    assert read(jws.open_jwt, token) == ("refused" if "=" in token else read(oracle, token))


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"[]", b"1", b'"x"', b"null", b"{", b'{"a":1}x', b'{"a":1,"a":2}', b' {"a" : 1} \n', b"\xff",
     b'{"a":"\\u00e9"}', b'{"a":01}', b"{'a':1}", b'{"a":1,}', b"[" * 100_000, b'{"a":' * 100_000],
)  # fmt: skip
def test_payloads_are_judged_as_by_pyjwt(payload: bytes) -> None:
    """Rightly signed, and JSON or not."""
    for token in (token_of(header(), payload), token_of(payload, b"{}")):
        assert read(jws.open_jwt, token) == read(oracle, token)


STRICTER = {
    "not a number": b'{"a":NaN}',
    "infinity": b'{"a":Infinity}',
    "a mark before it": b'\xef\xbb\xbf{"a":1}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "half a pair of surrogates": b'{"a":"\\ud800"}',
}


@pytest.mark.parametrize("name", STRICTER)
def test_what_is_no_json_is_refused_where_pyjwt_is_lenient(name: str) -> None:
    """RFC 8259 has none of these."""
    token = token_of(header(), STRICTER[name])
    with pytest.raises(ResultError, match="Invalid payload string"):
        jws.open_jwt(token, KEYS)


@pytest.mark.parametrize(
    "members",
    [
        {"crit": ["b64"], "b64": True},
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"b64": False},
        {"b64": True},
    ],
)
def test_a_critical_parameter_is_refused(members: dict[str, Any]) -> None:
    """Also those that pyjwt knows: no result has one."""
    with pytest.raises(ResultError, match="critical"):
        jws.open_jwt(token_of(header(**members), msgspec.json.encode(CLAIMS)), KEYS)


@pytest.mark.parametrize("size", [0, 1, 63, 65, 70, 128])
def test_a_signature_of_another_length_is_refused(size: int) -> None:
    """Also the DER form of the right one."""
    head, body, _ = GOOD.split(".")
    der = KEY.private.sign(f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA256()))
    for signature in (bytes(size), der):
        token = f"{head}.{body}.{b64url(signature)}"
        assert read(jws.open_jwt, token) == read(oracle, token) == "refused"


@pytest.mark.parametrize("form", ["", ".", "..", "...", "a.b", "a.b.c.d", "{}.", ".{}", "{}.a"])
def test_other_than_three_parts_are_refused(form: str) -> None:
    """As pyjwt does."""
    token = form.format(GOOD)
    assert read(jws.open_jwt, token) == read(oracle, token) == "refused"


KIDS = {
    "a token": (GOOD, KEY.kid),
    "its header alone": (GOOD.partition(".")[0], KEY.kid),
    "a number": (token_of(header(kid=1), b"{}"), None),
    "none": (token_of(header(kid=...), b"{}"), None),
    "a list for a header": (token_of(b"[]", b"{}"), None),
    "no JSON": (token_of(b"{", b"{}"), None),
    "nothing": ("", None),
    "no base64url": ("=", None),
    "no ASCII": ("é.a.b", None),
}


@pytest.mark.parametrize("name", KIDS)
def test_the_kid_is_read_from_the_header_alone(name: str) -> None:
    """It says which key to ask for, and nothing is believed of it."""
    token, kid = KIDS[name]
    assert jws.kid_of(token) == kid
