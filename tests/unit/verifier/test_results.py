"""Results as a relying party reads them: what must never be accepted."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from attester import cbor, cose
from attester.cose import PrivateKey
from verifier import result_keys, results, trust
from verifier.errors import ResultError
from verifier.result_keys import ResultKey, VerifyingKey
from verifier.results import Appraisal, AttestationResult, NodeRecord, VerifierClaims
from verifier.trust import Tier

NOW, ISSUER = 1_795_000_000, "https://v.example"
KEY, OTHER = (
    ResultKey(ec.generate_private_key(ec.SECP256R1())),
    ResultKey(ec.generate_private_key(ec.SECP256R1())),
)
KEYS = {KEY.kid: KEY.verifying}
NODE = PrivateKey.generate().public
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
RSA_KEY = rsa.generate_private_key(65537, 2048)


def result(**changes: Any) -> AttestationResult:
    appraisal = Appraisal(
        Tier.AFFIRMING,
        {"instance-identity": 2, "configuration": 2},
        ("default@1#sha-256;" + "0" * 64,),
        VerifierClaims(
            "declared",
            "true",
            prompting={"template": "chat_template.jinja sha256:aa"},
            node=NodeRecord("acme", NOW - 86_400, "active", "cpu"),
        ),
        eat_nonce=result_keys.b64url(bytes(32)),
        ear_attester_claims={"endpoint": {"url": "https://n.example"}},
    )
    fields: dict[str, Any] = {
        "iss": ISSUER,
        "iat": NOW,
        "exp": NOW + 300,
        "jti": "0" * 32,
        "ueid": result_keys.b64url(b"\x01" + bytes(16)),
        "cnf": {"jwk": result_keys.jwk_of(NODE)},
        "ear_verifier_id": results.VerifierId("d", "b"),
        "ear_status": Tier.AFFIRMING,
        "submods": {"platform": appraisal},
        "status": {"uri": ISSUER},
        **changes,
    }
    return AttestationResult(**fields)


def read(token: str, **changes: Any) -> AttestationResult:
    return results.decode_jwt(token, **{"keys": KEYS, "issuer": ISSUER, "now": NOW, **changes})


def signed(claims: dict[str, Any]) -> str:
    return jwt.encode(claims, KEY.private, algorithm="ES256", headers={"kid": KEY.kid})


def test_a_jwt_comes_back_as_it_was() -> None:
    """Encoded, signed, verified, read."""
    assert read(results.encode_jwt(result(), KEY)) == result()


@pytest.mark.parametrize("text", ["plain", "“−1 µs” — é 𝄞", 'a "quoted" \\ \n line', "\x7f\x00"])
def test_a_jwt_is_what_pyjwt_would_write(text: str) -> None:
    """The same header byte for byte, and claims that any reader of JWTs reads as the same."""
    given = result(ear_verifier_id=results.VerifierId(text, "b"))
    ours = results.encode_jwt(given, KEY)
    theirs = jwt.encode(
        given.to_claims(), KEY.private, algorithm="ES256", headers={"kid": KEY.kid, "typ": "eat+jwt"}
    )
    assert ours.split(".")[0] == theirs.split(".")[0]
    if text == "plain":
        assert ours.split(".")[1] == theirs.split(".")[1]
    options: Any = {"verify_exp": False, "verify_iat": False}
    read_by_pyjwt = jwt.decode(ours, KEY.private.public_key(), algorithms=["ES256"], options=options)
    assert read_by_pyjwt == msgspec.json.decode(msgspec.json.encode(given.to_claims()))
    assert list(read_by_pyjwt) == list(given.to_claims())
    assert read(ours) == read(theirs) == given


def test_a_subject_that_is_no_text_is_refused() -> None:
    """RFC 7519 §4.1.2."""
    assert read(signed({**result().to_claims(), "sub": "x"})) == result()
    with pytest.raises(ResultError, match="sub"):
        read(results.sign_jwt(msgspec.json.encode({**result().to_claims(), "sub": 1}), KEY))


def test_what_keys_keep_is_computed_once() -> None:
    """The thumbprint of a signing key, and its other forms."""
    key = ResultKey(ec.generate_private_key(ec.SECP256R1()))
    assert key.kid is key.kid
    assert (key.verifying, key.cose, key.verifying.cose) == (key.verifying, key.cose, key.cose.public)
    assert key.verifying == VerifyingKey(key.private.public_key())


def test_a_cwt_comes_back_as_it_was() -> None:
    """The same claims under their CBOR keys."""
    data = results.encode_cwt(result(), KEY)
    assert results.decode_cwt(data, KEYS, issuer=ISSUER, now=NOW) == result()


def test_a_result_without_the_node_is_read() -> None:
    """Those from before results said whose node it is; a relying party that needs to know takes it as not met."""
    claims = msgspec.json.decode(msgspec.json.encode(result().to_claims()))
    del claims["submods"]["platform"]["ear_verifier_claims"]["node"]
    assert read(signed(claims)).submods["platform"].ear_verifier_claims.node is None


@pytest.mark.parametrize("member", ["operator", "enrolled", "state", "hardware_class"])
def test_half_a_word_about_the_node_is_refused(member: str) -> None:
    """All of it or nothing."""
    claims = msgspec.json.decode(msgspec.json.encode(result().to_claims()))
    del claims["submods"]["platform"]["ear_verifier_claims"]["node"][member]
    with pytest.raises(ResultError, match="malformed"):
        read(signed(claims))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exp": NOW}, "expired"),
        ({"iat": NOW + 1}, "future"),
        ({"iss": "https://other.example"}, "from"),
        ({"ear_status": Tier.NONE}, "overall status"),
        ({"submods": {}}, "malformed"),
    ],
)
def test_wrong_claims_are_refused(changes: dict[str, Any], message: str) -> None:
    """Well signed, and still not acceptable."""
    with pytest.raises(ResultError, match=message):
        read(results.encode_jwt(result(**changes), KEY))


@pytest.mark.parametrize(
    "profile", ["tag:ietf.org,2026:rats/ear#03", "tag:github.com,2023:veraison/ear", None, 1]
)
def test_another_profile_is_refused(profile: Any) -> None:
    """Exactly one is accepted."""
    with pytest.raises(ResultError, match="the result has the profile"):
        read(signed({**result().to_claims(), "eat_profile": profile}))


def test_a_status_better_than_its_vector_is_refused() -> None:
    """The status must be that of the worst claim."""
    claims = msgspec.json.decode(msgspec.json.encode(result().to_claims()))
    claims["submods"]["platform"]["ear_trustworthiness_vector"]["configuration"] = 96
    with pytest.raises(ResultError, match="worst claim"):
        read(signed(claims))


def test_an_unknown_key_is_refused() -> None:
    """By kid, before anything else."""
    with pytest.raises(ResultError, match="unknown key"):
        read(results.encode_jwt(result(), OTHER))


def test_a_known_kid_with_another_signature_is_refused() -> None:
    """The kid is a hint, the signature decides."""
    token = jwt.encode(result().to_claims(), OTHER.private, algorithm="ES256", headers={"kid": KEY.kid})
    with pytest.raises(ResultError, match="signature"):
        read(token)


def test_alg_none_is_refused() -> None:
    """Also with a known kid."""
    token = jwt.encode(result().to_claims(), None, algorithm="none", headers={"kid": KEY.kid})
    with pytest.raises(ResultError):
        read(token)


def test_a_public_key_is_no_hmac_secret() -> None:
    """HS256 keyed with the PEM of the public key."""
    pem = KEY.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    head, body = (
        result_keys.b64url(msgspec.json.encode(part))
        for part in ({"alg": "HS256", "kid": KEY.kid}, result().to_claims())
    )
    tag = hmac.new(pem, f"{head}.{body}".encode(), hashlib.sha256).digest()
    with pytest.raises(ResultError):
        read(f"{head}.{body}.{result_keys.b64url(tag)}")


def test_a_huge_token_is_refused_before_it_is_parsed() -> None:
    """Bounded."""
    with pytest.raises(ResultError, match="too large"):
        read("a" * (results.MAX_RESULT + 1))


@given(st.text(max_size=200) | st.from_regex(r"[\w-]{0,40}\.[\w-]{0,40}\.[\w-]{0,40}", fullmatch=True))
def test_noise_is_a_result_error(token: str) -> None:
    """Nothing else ever comes out of the reader."""
    with pytest.raises(ResultError):
        read(token)


@given(st.binary(max_size=300))
def test_noise_is_a_result_error_for_cwts_too(data: bytes) -> None:
    """Likewise."""
    with pytest.raises(ResultError):
        results.decode_cwt(data, KEYS, issuer=ISSUER, now=NOW)


@pytest.mark.parametrize("kid", [[], {}, 1, b""])
def test_a_kid_of_another_type_is_refused(kid: Any) -> None:
    """Before any key is looked up."""
    data = cose.sign(b"\xa0", KEY.cose, header={cose.KID: kid}, tags=(cose.TAG_CWT, cose.TAG_SIGN1))
    with pytest.raises(ResultError, match="unknown key"):
        results.decode_cwt(data, KEYS, issuer=ISSUER, now=NOW)


@pytest.mark.parametrize("payload", [b"\x80", b"\xa0", b"\x01", b"\xa1\x01\x02"])
def test_a_signed_cwt_of_another_form_is_refused(payload: bytes) -> None:
    """Also where our own key has signed it."""
    data = cose.sign(payload, KEY.cose, tags=(cose.TAG_CWT, cose.TAG_SIGN1))
    with pytest.raises(ResultError):
        results.decode_cwt(data, KEYS, issuer=ISSUER, now=NOW)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"keys": []}', b'{"keys": [{}]}', b'{"keys": [1]}', b"\xff", b"[" * 100_000,
     b'{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}',
     b'{"keys": [{"kty": "oct", "k": "AA"}]}'],
)  # fmt: skip
def test_a_broken_jwks_is_refused(data: bytes) -> None:
    """Empty is an error, too."""
    with pytest.raises(ResultError):
        result_keys.read_jwks(data)


JWK = KEY.verifying.jwk()
OTHER_USES: dict[str, dict[str, Any]] = {
    "for encryption": {"use": "enc"},
    "for a use that there is not": {"use": None},
    "for other operations": {"key_ops": ["encrypt", "decrypt"]},
    "for no operation": {"key_ops": []},
    "operations that are no list": {"key_ops": "verify"},
    "another algorithm": {"alg": "ES384"},
    "an algorithm that there is not": {"alg": "ES521"},
    "an algorithm that is no text": {"alg": ["ES256"]},
}


@pytest.mark.parametrize("changes", OTHER_USES.values(), ids=OTHER_USES)
def test_a_key_for_another_use_signs_no_results(changes: dict[str, Any]) -> None:
    """What a JWK says that it is for counts (RFC 7517 §4.2 to §4.4)."""
    with pytest.raises(ResultError, match="a JWK must be for"):
        VerifyingKey.from_jwk({**JWK, **changes})
    with pytest.raises(ResultError, match="lists no P-256 key"):
        result_keys.read_jwks(msgspec.json.encode({"keys": [{**JWK, **changes}]}))


@pytest.mark.parametrize("more", [{}, {"use": "sig"}, {"alg": "ES256"}, {"key_ops": ["verify"]}])
def test_a_key_for_signatures_is_read(more: dict[str, Any]) -> None:
    """Also if it does not say what it is for; its name is computed."""
    data = msgspec.json.encode({"keys": [{**KEY.verifying.jwk_members(), **more, "kid": "x"}]})
    assert set(result_keys.read_jwks(data)) == {KEY.kid}


OTHER_KEYS: dict[str, dict[str, Any]] = {
    "P-384": {"crv": "P-384"},
    "not on the curve": {"y": JWK["x"]},
    "a coordinate that is too long": {"x": result_keys.b64url(bytes(40))},
    "a coordinate that is no base64url": {"x": "*" * 43},
    "a coordinate that is no text": {"x": 7},
    "another kind": {"kty": "RSA"},
    "a secret": {"kty": "oct", "k": "AAAA"},
}


@pytest.mark.parametrize("changes", OTHER_KEYS.values(), ids=OTHER_KEYS)
def test_a_key_of_another_kind_is_ignored(changes: dict[str, Any]) -> None:
    """It is not ours to read, and the others count (RFC 7517 §5)."""
    with pytest.raises(ResultError, match="a JWK"):
        VerifyingKey.from_jwk({**JWK, **changes})
    for keys in ([JWK, {**JWK, **changes}], [{**JWK, **changes}, JWK]):
        assert set(result_keys.read_jwks(msgspec.json.encode({"keys": keys}))) == {KEY.kid}


NO_KEYS = [None, 7, "key", [], {}, {"kty": None}, {"kty": "EC"}, {"kty": "OKP", "crv": "Ed25519", "x": "AA"}]


@pytest.mark.parametrize("other", NO_KEYS, ids=repr)
def test_what_is_no_key_is_ignored(other: Any) -> None:
    """Whatever it is."""
    data = msgspec.json.encode({"keys": [other, JWK]})
    assert set(result_keys.read_jwks(data)) == {KEY.kid}


def test_a_key_without_a_kid_is_read() -> None:
    """Its name is computed."""
    data = msgspec.json.encode({"keys": [KEY.verifying.jwk_members()]})
    assert set(result_keys.read_jwks(data)) == {KEY.kid}


def test_a_set_of_too_many_bytes_is_refused() -> None:
    """Before it is read."""
    with pytest.raises(ResultError, match="too large"):
        result_keys.read_jwks(msgspec.json.encode({"keys": [JWK, "x" * result_keys.MAX_JWKS]}))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*JWK, "key_ops"]), inner),
    max_leaves=8,
)


@given(st.lists(_JSON, max_size=6), st.integers(0, 6))
def test_no_neighbour_takes_a_key_away(others: list[Any], at: int) -> None:
    """Whatever else is in the set."""
    keys = [*others[:at], JWK, *others[at:]]
    assert KEY.kid in result_keys.read_jwks(msgspec.json.encode({"keys": keys}))


@pytest.mark.parametrize("count", [0, 65])
def test_a_set_of_too_few_or_too_many_keys_is_refused(count: int) -> None:
    """Bounded, and empty is an error."""
    with pytest.raises(ResultError, match="1 to 64 keys"):
        result_keys.read_jwks(msgspec.json.encode({"keys": [JWK] * count}))


@pytest.mark.parametrize(
    "algorithm", ["HS256", "HS384", "HS512", "RS256", "PS256", "ES384", "ES512", "EdDSA", "none"]
)
def test_a_result_of_another_algorithm_is_refused(algorithm: str) -> None:
    """Each is signed well by a key of its own, under the name of a key that we trust."""
    keys: dict[str, Any] = {
        "HS": b"secret" * 16,
        "RS": RSA_KEY,
        "PS": RSA_KEY,
        "ES384": ec.generate_private_key(ec.SECP384R1()),
        "ES512": ec.generate_private_key(ec.SECP521R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        "none": None,
    }
    key = keys.get(algorithm, keys.get(algorithm[:2]))
    token = jwt.encode(result().to_claims(), key, algorithm=algorithm, headers={"kid": KEY.kid})
    with pytest.raises(ResultError, match="alg"):
        read(token)


@pytest.mark.parametrize("part", [0, 1, 2], ids=["header", "payload", "signature"])
def test_every_character_of_a_token_counts(part: int) -> None:
    """One character changed, added or left out anywhere, and it is refused: a token has one form."""
    parts = results.encode_jwt(result(), KEY).split(".")
    text = parts[part]
    last = len(text) - 1
    for place in sorted({*range(0, last, max(last // 40, 1)), last}):
        # The last character of base64url has bits that say nothing: here another one of them is set.
        neighbour = ALPHABET[ALPHABET.index(text[place]) ^ 1]
        before, after = text[:place], text[place + 1 :]
        for other in (neighbour, "", text[place] * 2, f"????{text[place]}", f"{text[place]}=", "?", " "):
            changed = [*parts[:part], before + other + after, *parts[part + 1 :]]
            with pytest.raises(ResultError):
                read(".".join(changed))


@pytest.mark.parametrize("more", ["=", "==", "????", "\n", " ", ".", ".AAAA"])
def test_more_at_the_end_of_a_token_is_refused(more: str) -> None:
    """Also what readers of base64 pass over."""
    with pytest.raises(ResultError):
        read(results.encode_jwt(result(), KEY) + more)


# Names and keys (draft-ietf-rats-ear-04 §3, RFC 9711, RFC 8392, draft-ietf-rats-ar4si §2.3).
LABELS = {
    "iss": 1, "exp": 4, "iat": 6, "jti": 7, "cnf": 8, "eat_nonce": 10, "ueid": 256, "eat_profile": 265,
    "submods": 266, "ear_status": 1000, "ear_trustworthiness_vector": 1001, "ear_appraisal_policy_ids": 1003,
    "ear_verifier_id": 1004, "ear_attester_claims": 1005, "ear_verifier_claims": 1006, "status": 65535,
}  # fmt: skip
VECTOR = {
    "instance-identity": 0, "configuration": 1, "executables": 2, "file-system": 3, "hardware": 4,
    "runtime-opaque": 5, "storage-opaque": 6, "sourced-data": 7,
}  # fmt: skip


def test_labels_of_a_cwt() -> None:
    """Each claim stands under its key, in the message as in the table."""
    data = results.encode_cwt(result(), KEY)
    payload = cbor.decode(cose.Sign1.decode(data, max_size=4096, tags=(61, 18)).payload, max_size=4096)
    submod = payload[LABELS["submods"]]["platform"]
    top = {name for name, label in LABELS.items() if label in payload}
    assert top | {name for name, label in LABELS.items() if label in submod} == set(LABELS)
    assert set(payload) | set(submod) == set(LABELS.values())
    assert payload[LABELS["ear_status"]] == submod[LABELS["ear_status"]] == 2
    assert submod[LABELS["ear_trustworthiness_vector"]] == {0: 2, 1: 2}
    assert payload[LABELS["ear_verifier_id"]] == {0: "d", 1: "b"}


def test_labels_of_the_trust_vector() -> None:
    """As AR4SI numbers them."""
    assert {claim.name: claim.label for claim in trust.TRUST_CLAIMS} == VECTOR


@pytest.mark.parametrize(
    ("value", "tier"),
    [(-128, "contraindicated"), (-97, "contraindicated"), (-96, "warning"), (-33, "warning"), (-32, "affirming"),
     (-2, "affirming"), (-1, "none"), (0, "none"), (1, "none"), (2, "affirming"), (31, "affirming"), (32, "warning"),
     (95, "warning"), (96, "contraindicated"), (127, "contraindicated")],
)  # fmt: skip
def test_tiers(value: int, tier: str) -> None:
    """The boundaries of AR4SI."""
    assert trust.tier_of(value) == tier


@given(st.dictionaries(st.sampled_from(sorted(trust.CLAIM_NAMES)), st.integers(-128, 127), max_size=8))
def test_no_claim_makes_a_vector_better(vector: dict[str, int]) -> None:
    """The status is never better than any claim allows, and empty or none is never affirming."""
    order = ["affirming", "none", "warning", "contraindicated"]
    status = trust.worst(vector)
    tiers = [trust.tier_of(value) for value in vector.values()]
    assert status == max(tiers, key=order.index, default="none")
