"""
Results as the router takes them in: verified once, and then known by the digest of their token.

The router keeps a result for as long as it is the node's newest one, for up to a million nodes.
So what it never uses is left out, and parts that are equal in many results are kept once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from msgspec import structs

from router.model.clock import Clock
from router.model.node import WALK_AT, signer_tag
from verifier import jws, results
from verifier.errors import ResultError
from verifier.result_keys import VerifyingKey
from verifier.results import Appraisal, AttestationResult, NodeRecord, VerifierClaims

_MAX_SHARED: Final = 20_000
"""Parts that are kept to be shared.  Nodes choose some of them, so there must be an end."""
_MAX_SHARED_TEXT: Final = 128
_MAX_SHARED_ITEMS: Final = 16
"""Capabilities with longer texts, or more entries, are not shared."""
_USED_RATES: Final = ("walk_bytes_per_second", WALK_AT)
"""What the router reads of `measured`."""
_NOTHING: Final[dict[str, Any]] = {}
"""An empty dictionary that nobody changes."""

_MAX_SIGNERS: Final = 256

T = TypeVar("T")


class UnknownSignerError(ResultError):
    """The result names a key that is not trusted.  It may be a new one."""


class ResultReader:
    """
    Verifies results of one verifier, and tells their age.

    Args:
        issuer: Of all results.
        clock: For their age.
        skew_s: By how much the verifier's clock may be ahead.
    """

    def __init__(self, issuer: str, clock: Clock, skew_s: int) -> None:
        self._issuer = issuer
        self._clock = clock
        self._skew_s = skew_s
        self._shared = SharedParts()
        self.keys: Mapping[str, VerifyingKey] = {}
        """The trusted keys, by kid.  A kid is computed from its key."""
        self._signers: dict[str, bytes] = {}
        """By the first part of a token, which is the same in all that a key signs, its signer in digests."""

    def use_keys(self, keys: Mapping[str, VerifyingKey]) -> None:
        """Trust *keys* and no others from now on."""
        self.keys = keys
        self._signers = {}

    def digest(self, token: str) -> bytes:
        """
        A SHA-256 by which a token that was verified is known again, and who signed it.

        It is of the whole token: a signature alone says nothing of the text that comes with it.
        """
        head = token.partition(".")[0]
        signer = self._signers.get(head)
        if signer is None:
            if len(self._signers) >= _MAX_SIGNERS:
                self._signers.clear()
            signer = self._signers[head] = signer_tag(jws.kid_of(token) or "")
        return hashlib.sha256(token.encode()).digest() + signer

    def is_trusted(self, digest: bytes) -> bool:
        """Whether the key that signed a token, by the token's digest, is trusted now."""
        return any(digest.endswith(signer_tag(kid)) for kid in self.keys)

    def is_untimely(self, result: AttestationResult) -> bool:
        """Whether a result is from the future, further than clocks may differ, or has run out, by the router's clock."""
        now = self._clock.now_ms() / 1000
        return result.iat > now + self._skew_s or result.exp <= now

    def has_come(self, iat: int) -> bool:
        """Whether a moment of issue is not in the future, as far as clocks may differ."""
        return iat <= self._clock.now_ms() / 1000 + self._skew_s

    def wall_less_monotonic(self) -> float:
        """It stays the same unless the wall clock is set."""
        return self._clock.now_ms() / 1000 - self._clock.monotonic()

    def issued_at(self, result: AttestationResult) -> float:
        """
        The latest moment at which a result that comes now can have been issued, by the monotonic clock.

        The verifier's clock has dated it and tells its age.  If that clock was set back since, or is not known, it
        may have been issued just now.
        """
        verifier_s = self._clock.verifier_s()
        age_s = 0.0 if verifier_s is None else verifier_s - result.iat
        return self._clock.monotonic() - max(age_s, 0.0)

    def read(self, token: str) -> AttestationResult:
        """
        Verify and read a token.  Safe in any thread.

        Raises:
            UnknownSignerError: its key is not among the trusted ones.
            ResultError: see `verifier.results.decode_jwt`.  Its times are for others to judge.
        """
        keys = self.keys
        try:
            result = results.decode_jwt(token, keys, issuer=self._issuer, now=None)
        except ResultError as error:
            # To ask for the signer is to read the token once more.
            if results.is_signed_by(token, keys):
                raise
            raise UnknownSignerError(str(error)) from None
        return self._shared.slim(result)

    def read_all(self, tokens: Sequence[str]) -> list[AttestationResult | ResultError]:
        """Read several tokens; what is wrong with one takes its place."""
        found: list[AttestationResult | ResultError] = []
        for token in tokens:
            try:
                found.append(self.read(token))
            except ResultError as error:
                found.append(error)
        return found


class SharedParts:
    """The parts of results that are equal in many of them, each kept once."""

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}
        self._vectors: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
        self._capabilities: dict[Any, dict[str, Any]] = {}
        self._runtimes: dict[tuple[str, str], dict[str, str]] = {}

    def slim(self, result: AttestationResult) -> AttestationResult:
        """
        The same result in less memory, without what the router does not use.

        What gates and `NodeView` read of it is unchanged.
        """
        for table in (self._values, self._vectors, self._capabilities, self._runtimes):
            if len(table) > _MAX_SHARED:
                # Those in use live on in the results that have them.
                table.clear()
        return AttestationResult(
            iss=self._one(result.iss),
            iat=result.iat,
            exp=result.exp,
            jti=result.jti,
            ueid=result.ueid,
            cnf={},
            ear_verifier_id=self._one(result.ear_verifier_id),
            ear_status=result.ear_status,
            submods={self._one(name): self._slim_submod(part) for name, part in result.submods.items()},
            status={},
            ear_touchstone_sequence=result.ear_touchstone_sequence,
        )

    def _slim_submod(self, appraisal: Appraisal) -> Appraisal:
        claims = appraisal.ear_verifier_claims
        vector = appraisal.ear_trustworthiness_vector
        return Appraisal(
            ear_status=appraisal.ear_status,
            ear_trustworthiness_vector=self._vectors.setdefault(tuple(vector.items()), vector),
            ear_appraisal_policy_ids=self._one(appraisal.ear_appraisal_policy_ids),
            ear_verifier_claims=VerifierClaims(
                assurance=self._one(claims.assurance),
                bound=self._one(claims.bound),
                reasons=claims.reasons,
                measured=_only(_USED_RATES, claims.measured),
                reference=self._one(claims.reference),
                node=None if claims.node is None else self._slim_record(claims.node),
            ),
            ear_attester_claims=self._slim_claims(appraisal.ear_attester_claims),
        )

    def _slim_record(self, record: NodeRecord) -> NodeRecord:
        return structs.replace(
            record,
            operator=self._one(record.operator),
            state=self._one(record.state),
            hardware_class=self._one(record.hardware_class),
        )

    def _slim_claims(self, claims: dict[str, Any]) -> dict[str, Any]:
        """The attester's claims that `NodeView` reads."""
        slim: dict[str, Any] = {}
        if "endpoint" in claims:
            match claims["endpoint"]:
                case {"url": str(url), "spki_sha256": str(pin)}:
                    slim["endpoint"] = {"url": url, "spki_sha256": pin}
                case other:
                    slim["endpoint"] = other
        match claims.get("runtime"):
            case {"engine": str(engine), "version": str(version)}:
                named = {"engine": engine, "version": version}
                slim["runtime"] = self._runtimes.setdefault((engine, version), named)
        if "capabilities" in claims:
            declared = claims["capabilities"]
            key = _key_of_capabilities(declared)
            slim["capabilities"] = declared if key is None else self._capabilities.setdefault(key, declared)
        return slim or _NOTHING

    def _one(self, part: T) -> T:
        """The part that is kept of all that are equal to *part*, which can be a key of a dictionary."""
        found: T = self._values.setdefault(part, part)
        return found


def _only(names: Sequence[str], found: dict[str, T]) -> dict[str, T]:
    return {name: found[name] for name in names if name in found} or _NOTHING


def _key_of_capabilities(declared: Any) -> tuple[Any, ...] | None:
    """What is equal for equal capabilities only; `None` if they are not of the usual form, which is flat and small."""
    if type(declared) is not dict or len(declared) > _MAX_SHARED_ITEMS:
        return None
    key: list[Any] = []
    for name, value in declared.items():
        many = value if type(value) is list else (value,)
        if len(many) > _MAX_SHARED_ITEMS or not all(_is_small(each) for each in (name, *many)):
            return None
        # A list of one text must not pass for the text.
        key.append((name, value if many is not value else tuple(value)))
    return tuple(key)


def _is_small(value: Any) -> bool:
    # `True` equals 1, and means something else.
    return type(value) is int or (type(value) is str and len(value) <= _MAX_SHARED_TEXT)
