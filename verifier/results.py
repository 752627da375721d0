"""
Attestation results: EAR (draft-ietf-rats-ear-04) with the AR4SI trust vector (`verifier.trust`).

A result is a JWT by default and a CWT on request; both have the same claims.  A reader accepts
exactly one profile, checks signature, issuer and expiry, and judges by the claims that it requires:
a claim that is `none` or absent never satisfies a requirement (draft-ietf-rats-ar4si §2.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from attester import cbor, cose
from attester.errors import CBORError, COSEError
from attester.version import installed_version
from verifier import jws
from verifier.errors import ResultError
from verifier.result_keys import (
    ResultKey,
    VerifyingKey,
    b64url,
    cose_key_of,
    jwk_of,
    unb64url,
)
from verifier.trust import CLAIM_NAMES, TRUST_CLAIMS, Tier, worst, worst_tier

EAR_PROFILE: Final = "tag:ietf.org,2026:rats/ear#04"
MEDIA_TYPE_JWT: Final = f'application/eat+jwt; eat_profile="{EAR_PROFILE}"'
MEDIA_TYPE_CWT: Final = f'application/eat+cwt; eat_profile="{EAR_PROFILE}"'
DEVELOPER: Final = "https://github.com/touchstone"
BUILD: Final = f"touchstone {installed_version()}"
MAX_RESULT = 256 * 1024
"""Bytes of one encoded result."""


_TIER_NUMBER: Final = {
    Tier.NONE: 0,
    Tier.AFFIRMING: 2,
    Tier.WARNING: 32,
    Tier.CONTRAINDICATED: 96,
}


_LABELS: Final[Mapping[str, int]] = {claim.name: claim.label for claim in TRUST_CLAIMS}
_NAMES: Final[Mapping[int, str]] = {claim.label: claim.name for claim in TRUST_CLAIMS}

_TrustValue = Annotated[int, Meta(ge=-128, le=127)]


class ReasonEntry(Struct, frozen=True, omit_defaults=True):
    """Why a claim has its value: a code of `verifier.reasons`, and the particulars."""

    code: str
    detail: str
    expected: str | None = None
    actual: str | None = None


class NodeRecord(Struct, frozen=True):
    """What the verifier's own records say of a node.  The node cannot influence it."""

    operator: str
    """As the enrolment token named it."""
    enrolled: int
    """Seconds since 1970."""
    state: str
    """active; probation (after a release); or retired (while its evidence was appraised)."""
    hardware_class: str


class VerifierClaims(Struct, frozen=True, omit_defaults=True):
    """`ear_verifier_claims`: what the verifier adds to the vector."""

    assurance: str
    """The kind of evidence behind the appraisal: declared, challenged, hardware-rooted or confidential."""
    bound: str
    """Whether the submodule is tied to the node key: true, false or unknown."""
    reasons: tuple[ReasonEntry, ...] = ()
    measured: dict[str, int | str] = {}
    """Rates that a challenge showed, and how; integers, with the unit in the name."""
    reference: str | None = None
    """The digest of the reference value that the evidence was compared with."""
    prompting: dict[str, str] = {}
    """`template` and `sampling`: the file or engine that they come from, with a digest (`verifier.schemes.prompting`)."""
    node: NodeRecord | None = None
    """As of the signing of the result; only on `platform`."""


class Appraisal(Struct, frozen=True, omit_defaults=True):
    """The EAR-appraisal of one submodule."""

    ear_status: Tier
    ear_trustworthiness_vector: Annotated[dict[str, _TrustValue], Meta(min_length=1)]
    ear_appraisal_policy_ids: tuple[str, ...]
    ear_verifier_claims: VerifierClaims
    eat_nonce: str | None = None
    """The nonce of the evidence, base64url."""
    ear_attester_claims: dict[str, Any] = {}


class VerifierId(Struct, frozen=True):
    """`ear_verifier_id`."""

    developer: str
    build: str


class AttestationResult(Struct, frozen=True, omit_defaults=True):
    """
    A decoded EAR.

    If it comes from `decode_jwt` or `decode_cwt`, it is authentic, of this profile, from the expected
    issuer and unexpired.  Whether it suffices depends on the claims that the relying party requires.
    """

    iss: str
    iat: int
    exp: int
    jti: str
    ueid: str
    cnf: dict[str, Any]
    ear_verifier_id: VerifierId
    ear_status: Tier
    submods: Annotated[dict[str, Appraisal], Meta(min_length=1)]
    status: dict[str, str]
    """`uri`: where to look for revocation."""
    eat_profile: str = msgspec.field(default=EAR_PROFILE)
    ear_touchstone_sequence: Annotated[int, Meta(ge=1, lt=1 << 53)] | None = None
    """
    The verifier's order: of a node's results, the one with the highest number is the newest.

    It goes on growing where clocks are set back, replicas take turns, or a database is restored (ADR 0028).
    Results of earlier versions have none.
    """

    def is_newer_than(self, other: AttestationResult) -> bool:
        """
        Whether the verifier issued this result after another one of the same node.

        The numbers decide.  If one of the two has none, the later `iat` does, and this one if both are equal:
        it came later.
        """
        mine, other_one = self.ear_touchstone_sequence, other.ear_touchstone_sequence
        if mine is not None and other_one is not None:
            return mine > other_one
        return self.iat >= other.iat and self.jti != other.jti

    def value(self, submod: str, claim: str) -> int:
        """A trust claim's value; 0 (no conclusion) if it is absent (AR4SI §2.3.3)."""
        appraisal = self.submods.get(submod)
        return 0 if appraisal is None else appraisal.ear_trustworthiness_vector.get(claim, 0)

    def to_claims(self) -> dict[str, Any]:
        """The claims as JSON-compatible values."""
        claims: dict[str, Any] = {"eat_profile": EAR_PROFILE, **msgspec.to_builtins(self)}
        return claims


def encode_jwt(result: AttestationResult, key: ResultKey) -> str:
    """Sign *result* as a JWT (RFC 7519) with ES256."""
    return sign_jwt(encode_claims(result), key)


def encode_claims(result: AttestationResult) -> bytes:
    """The claims of *result* as JSON."""
    return msgspec.json.encode(result.to_claims())


def sign_jwt(claims: bytes, key: ResultKey) -> str:
    """Sign encoded claims as a JWT (RFC 7515 §3.1)."""
    signed = key.jwt_header + b64url(claims)
    return f"{signed}.{b64url(key.cose.sign(signed.encode()))}"


def is_signed_by(token: str, keys: Mapping[str, VerifyingKey]) -> bool:
    """Whether *token* names one of *keys* as its signer.  `decode_jwt` checks whether that is true."""
    return len(token) <= MAX_RESULT and jws.kid_of(token) in keys


def decode_jwt(
    token: str, keys: Mapping[str, VerifyingKey], *, issuer: str, now: int | None, leeway: int = 0
) -> AttestationResult:
    """
    Verify and read a JWT.

    Args:
        now: Seconds since 1970.  `None`: the caller judges its times, and nothing is refused for them.

    Raises:
        ResultError: it is too large or malformed, has an unknown key, another algorithm or a wrong
            signature, is of another profile or issuer, has expired, or was issued in the future.
    """
    if len(token) > MAX_RESULT:
        raise ResultError(f"the result is too large: it has more than {MAX_RESULT} bytes")
    claims = jws.open_jwt(token, keys)
    # RFC 7519 §4.1.2.  Results have none.
    if not isinstance(claims.get("sub", ""), str):
        raise ResultError("the result is malformed: sub must be a string")
    return _accept(claims, issuer=issuer, now=now, leeway=leeway)


def _accept(claims: Any, *, issuer: str, now: int | None, leeway: int) -> AttestationResult:
    profile = claims.get("eat_profile") if isinstance(claims, dict) else None
    if profile != EAR_PROFILE:
        raise ResultError(f"the result has the profile {str(profile)[:80]!r}, not {EAR_PROFILE}")
    try:
        result = msgspec.convert(claims, AttestationResult)
    except msgspec.ValidationError as error:
        raise ResultError(f"the result is malformed: {error}") from None
    if result.iss != issuer:
        raise ResultError(f"the result is from {result.iss[:80]!r}, not from {issuer}")
    if now is not None and result.exp <= now - leeway:
        raise ResultError("the result has expired")
    if now is not None and result.iat > now + leeway:
        raise ResultError("the result was issued in the future")
    for name, appraisal in result.submods.items():
        if unknown := appraisal.ear_trustworthiness_vector.keys() - CLAIM_NAMES:
            raise ResultError(f"{name}: unknown trust claim {min(unknown)[:40]!r}")
        if appraisal.ear_status != worst(appraisal.ear_trustworthiness_vector):
            raise ResultError(f"{name}: the status is not that of the worst claim")
    if result.ear_status != worst_tier([a.ear_status for a in result.submods.values()]):
        raise ResultError("the overall status is not that of the worst submodule")
    return result


# CWT: the same claims under the keys of RFC 8392, RFC 9711 and draft-ietf-rats-ear §3.
_CWT_TOP: Final = {
    "iss": 1, "exp": 4, "iat": 6, "jti": 7, "cnf": 8, "ueid": 256, "eat_profile": 265,
    "submods": 266, "ear_status": 1000, "ear_verifier_id": 1004, "status": 65535,
    # Ours, in the range of private use (RFC 8392 §9.1).
    "ear_touchstone_sequence": -80101,
}  # fmt: skip
_CWT_SUBMOD: Final = {
    "ear_status": 1000, "ear_trustworthiness_vector": 1001, "ear_appraisal_policy_ids": 1003,
    "ear_attester_claims": 1005, "ear_verifier_claims": 1006, "eat_nonce": 10,
}  # fmt: skip
_OPTIONAL: Final = frozenset({"ear_touchstone_sequence"})
_CWT_TYP: Final = "application/eat+cwt"


def encode_cwt(result: AttestationResult, key: ResultKey) -> bytes:
    """Sign *result* as a CWT (RFC 8392): ``61(18(…))``, ES256."""
    claims = result.to_claims()
    claims["jti"] = bytes.fromhex(result.jti)
    claims["ueid"] = unb64url(result.ueid)
    claims["cnf"] = {1: cose_key_of(result.cnf).to_map()}
    claims["ear_status"] = _TIER_NUMBER[result.ear_status]
    claims["ear_verifier_id"] = {0: result.ear_verifier_id.developer, 1: result.ear_verifier_id.build}
    claims["submods"] = {name: _submod_to_cwt(a) for name, a in result.submods.items()}
    payload = cbor.encode({_CWT_TOP[name]: value for name, value in claims.items()})
    return cose.sign(payload, key.cose, header={cose.TYP: _CWT_TYP}, tags=(cose.TAG_CWT, cose.TAG_SIGN1))


def _submod_to_cwt(appraisal: Appraisal) -> dict[int, Any]:
    raw: dict[str, Any] = msgspec.to_builtins(appraisal)
    vector = appraisal.ear_trustworthiness_vector
    raw["ear_status"] = _TIER_NUMBER[appraisal.ear_status]
    raw["ear_trustworthiness_vector"] = {_LABELS[name]: value for name, value in vector.items()}
    if appraisal.eat_nonce is not None:
        raw["eat_nonce"] = unb64url(appraisal.eat_nonce)
    return {_CWT_SUBMOD[name]: value for name, value in raw.items()}


def decode_cwt(
    data: bytes, keys: Mapping[str, VerifyingKey], *, issuer: str, now: int, leeway: int = 0
) -> AttestationResult:
    """
    Verify and read a CWT.

    Raises:
        ResultError: as `decode_jwt`.
    """
    try:
        message = cose.Sign1.decode(data, max_size=MAX_RESULT, tags=(cose.TAG_CWT, cose.TAG_SIGN1))
        by_thumbprint = {key.cose.kid: key.cose for key in keys.values()}
        kid = message.header.get(cose.KID)
        key = by_thumbprint.get(kid) if isinstance(kid, bytes) else None
        if key is None:
            raise ResultError("the result is signed by an unknown key")
        message.verify(key)
        raw = cbor.decode(message.payload, max_size=MAX_RESULT)
        return _accept(_from_cwt(raw), issuer=issuer, now=now, leeway=leeway)
    except (CBORError, COSEError) as error:
        raise ResultError(f"the result's signature or form is wrong: {error}") from None


def _from_cwt(raw: Any) -> dict[str, Any]:
    tiers = {number: tier for tier, number in _TIER_NUMBER.items()}
    try:
        claims = {name: raw[key] for name, key in _CWT_TOP.items() if name not in _OPTIONAL or key in raw}
        claims["jti"] = claims["jti"].hex()
        claims["ueid"] = b64url(claims["ueid"])
        claims["cnf"] = {"jwk": jwk_of(cose.PublicKey.from_map(claims["cnf"][1]))}
        claims["ear_status"] = tiers[claims["ear_status"]]
        claims["ear_verifier_id"] = {
            "developer": claims["ear_verifier_id"][0],
            "build": claims["ear_verifier_id"][1],
        }
        submods = {}
        for label, fields in claims["submods"].items():
            submod = {name: fields[key] for name, key in _CWT_SUBMOD.items() if key in fields}
            submod["ear_status"] = tiers[submod["ear_status"]]
            vector = submod["ear_trustworthiness_vector"]
            submod["ear_trustworthiness_vector"] = {_NAMES[k]: v for k, v in vector.items()}
            if "eat_nonce" in submod:
                submod["eat_nonce"] = b64url(submod["eat_nonce"])
            submods[label] = submod
        claims["submods"] = submods
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, COSEError):
        raise ResultError("the result is malformed") from None
    return claims
