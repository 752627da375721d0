"""
From evidence to a result, in pure steps: no I/O, no clock, no globals.

    read(media_type, bytes)         → OpenedEvidence    steps 0-2: whose it claims to be
    check(opened, context)          → CheckedSubmod   steps 3-8: what is true
    engine.evaluate(policy, input)  → PolicyOutcome   what it means (elsewhere, in a worker process)
    conclude(checked, outcome, …)   → Result    vector, status, assurance, expiry

The steps are numbered, and each has its own error and its own negative test:

    0  media type and size              1  strict decoding          2  profile
    3  the session's node by kid, and its enrolled algorithm        4  signature over the bytes received
    5  the session's nonce              6  ueid, audience, time     7  each submodule by its scheme
    8  bindings to the node key (in the schemes: the endpoint's TLS key)

Up to step 4 nobody is blamed, no session is consumed: only what a key has signed may be
held against it.  From step 7 on every finding is collected, so that the operator sees all
that is wrong at once.  A malfunction of our own is −1, never "contraindicated".
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from attester import cose, evidence, kinds
from attester.errors import CBORError, ClaimError, COSEError, SignatureError
from verifier import results, trust
from verifier.errors import EvidenceError, PolicyError
from verifier.reasons import REASONS
from verifier.results import Appraisal, AttestationResult, NodeRecord, ReasonEntry, VerifierClaims
from verifier.schemes import platform, registry
from verifier.schemes.base import CheckedSubmod, Context, Finding, Submods
from verifier.schemes.facts import NodeFacts, PolicyInput, ReferenceFacts
from verifier.trust import Tier

MAX_REASONS: Final = 64
"""Codes that a policy may give for one submodule."""


@dataclass(frozen=True)
class OpenedEvidence:
    """Evidence after step 2: well-formed, of our profile, and signed by nobody yet."""

    envelope: cose.Sign1
    token: evidence.Token

    @property
    def kid(self) -> bytes:
        """Whose key it claims."""
        kid: bytes = self.envelope.header[cose.KID]
        return kid


@dataclass(frozen=True)
class CheckedEvidence:
    """Evidence after step 8: what is true, submodule by submodule."""

    submods: Mapping[str, CheckedSubmod]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Everything found, in the order of the submodules."""
        return tuple(finding for checked in self.submods.values() for finding in checked.findings)

    def policy_input(self, context: Context) -> bytes:
        """
        The policy's input as JSON (`docs/policy-input.md`, `verifier.schemes.facts`).

        What differs every time stays out, so that nodes that are alike give equal inputs.
        """
        now = context.now_ms // 1000
        given = PolicyInput(
            checked={name: checked.facts for name, checked in self.submods.items()},
            references={
                model: ReferenceFacts(
                    digest=reference.digest,
                    source=reference.source,
                    signer=reference.signer,
                    expires=None if reference.not_after is None else _day(reference.not_after),
                )
                for model, reference in sorted(context.references.items())
                if reference.is_valid(now)
            },
            node=NodeFacts(operator=context.node.operator, state=context.node.state),
            date=_day(now),
        )
        return msgspec.json.encode(given)


def _day(seconds: int) -> str:
    """The day in UTC; the calendar of Python ends in 9999, and validities may not."""
    return datetime.fromtimestamp(min(seconds, 253402300799), UTC).date().isoformat()


@dataclass(frozen=True)
class PolicyOutcome:
    """What a policy made of the facts: per submodule its trust vector and reason codes."""

    vectors: Mapping[str, Mapping[str, int]]
    reasons: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Held:
    """What the database knows at the moment a result is inserted."""

    quarantined_by: str | None = None
    """The open incident, if there is one."""
    endpoint_taken: bool = False
    devices_taken: frozenset[str] = frozenset()
    """Devices it declares that another live node declared before."""
    retired: bool = False
    """The node was retired, or its key rolled, while its evidence was appraised."""
    node: NodeRecord | None = None
    """
    Whose node it is.  Recordings from before results said so lack it: replayed, they give the
    result of then, without it; judged anew, they are given what the database knows by now.
    """


@dataclass(frozen=True)
class Terms:
    """How results are issued."""

    issuer: str
    lifetime_s: int
    status_url: str
    """Where a relying party looks for revocation; ``{jti}`` stands for the result's id."""


def read(media_type: str, data: bytes) -> OpenedEvidence:
    """
    Steps 0 to 2.

    Raises:
        EvidenceError: naming the step.
    """
    # 0. Media type and size.
    if not is_accepted(media_type):
        raise EvidenceError(0, "evidence.media-type", f"content type {media_type[:100]!r}")
    if len(data) > evidence.MAX_EVIDENCE:
        raise EvidenceError(0, "evidence.size", f"{len(data)} bytes, more than {evidence.MAX_EVIDENCE}")
    # 1. Strict decoding of the envelope and the token's own claims.
    try:
        envelope = evidence.decode_envelope(data)
        token = evidence.Token.from_payload(envelope.payload)
    except ClaimError as error:
        # 2. Profile: under another one nothing else has the meaning we would give it.
        if error.claim == "eat_profile":
            raise EvidenceError(2, "evidence.profile", str(error)) from None
        raise EvidenceError(1, "evidence.malformed", str(error)) from None
    except (CBORError, COSEError) as error:
        raise EvidenceError(1, "evidence.malformed", str(error)) from None
    return OpenedEvidence(envelope, token)


def is_accepted(media_type: str) -> bool:
    """Whether a Content-Type is that of our evidence; the profile parameter may be left out."""
    kind, _, parameters = media_type.partition(";")
    if kind.strip().lower() != "application/eat+cwt":
        return False
    profile = parameters.strip()
    return profile in ("", f'eat_profile="{evidence.PROFILE}"')


def check(opened: OpenedEvidence, context: Context) -> CheckedEvidence:
    """
    Steps 3 to 8.

    Raises:
        EvidenceError: at steps 3 to 6, naming the step.
    """
    authenticate(opened, context)
    return examine(opened, context)


def authenticate(opened: OpenedEvidence, context: Context) -> None:
    """
    Steps 3 to 6: by this session's node, for us, now.

    Raises:
        EvidenceError: naming the step.
    """
    envelope, token = opened.envelope, opened.token
    node, session = context.node, context.session
    # 3. The session's node by kid; algorithm and key are those it was enrolled with.
    if opened.kid != node.key.kid:
        raise EvidenceError(3, "evidence.key", "the key is not the one of this session's node")
    if envelope.header[cose.ALG] != node.key.alg:
        raise EvidenceError(3, "evidence.algorithm", "not the algorithm the key was enrolled with")
    # 4. Signature over the bytes received.
    try:
        envelope.verify(node.key)
    except SignatureError as error:
        raise EvidenceError(4, "evidence.signature", str(error)) from None
    # 5. Nonce.
    if not hmac.compare_digest(token.nonce, session.nonce):
        raise EvidenceError(5, "evidence.nonce", "the nonce is not this session's")
    # 6. For this node's id, for us, and signed between the session's issue and now.
    if token.ueid != node.ueid:
        raise EvidenceError(6, "evidence.ueid", "the ueid is not this node's")
    if token.aud != context.audience:
        raise EvidenceError(6, "evidence.audience", f"aud is {token.aud[:80]!r}, not {context.audience!r}")
    offset = token.iat - context.now_ms // 1000
    oldest = session.issued_ms // 1000 - context.skew_s
    if offset > context.skew_s or token.iat < oldest:
        raise EvidenceError(
            6, "evidence.time", f"iat is {offset:+d} s from the verifier's clock; at most {context.skew_s} s"
        )


def examine(opened: OpenedEvidence, context: Context) -> CheckedEvidence:
    """
    Steps 7 and 8: each submodule by its scheme, bindings included; every finding is collected.

    Alone it serves to look again at what was authenticated when it came (`verifier.reappraisal`).
    """
    submods = _read_submods(opened.token)
    checked = {
        name: registry.scheme_of(name).check(name, submods, context)
        for name in registry.submods_to_check(opened.token.submods, context)
    }
    return CheckedEvidence(checked)


def _read_submods(token: evidence.Token) -> Submods:
    read_ones: dict[str, kinds.Submod] = {}
    errors: dict[str, ClaimError] = {}
    for name, raw in token.submods.items():
        if kinds.kind_of(name) is None:
            continue
        try:
            read_ones[name] = kinds.read_submod(name, raw)
        except ClaimError as error:
            errors[name] = error
    return Submods(read_ones, errors)


def read_outcome(raw: Any, submods: Collection[str]) -> PolicyOutcome:
    """
    Check what a policy gave, strictly.

    Raises:
        PolicyError: nothing, a submodule left out or invented, an empty vector, an unknown
            claim, a value that is not an integer of −128 … 127, an unknown reason code.
    """
    if not isinstance(raw, dict) or raw.keys() != set(submods):
        raise PolicyError("the policy's outcome does not cover exactly the submodules it was given")
    vectors: dict[str, dict[str, int]] = {}
    reasons: dict[str, list[str]] = {}
    for name, entry in raw.items():
        if not isinstance(entry, dict) or entry.keys() != {"trust_vector", "reasons"}:
            raise PolicyError(f"{name}: not exactly a trust_vector and reasons")
        vector, codes = entry["trust_vector"], entry["reasons"]
        if not isinstance(vector, dict) or not vector:
            raise PolicyError(f"{name}: no trust vector")
        for claim, value in vector.items():
            if claim not in trust.CLAIM_NAMES:
                raise PolicyError(f"{name}: unknown trust claim {str(claim)[:40]!r}")
            if type(value) is not int or not -128 <= value <= 127:
                raise PolicyError(f"{name}: {claim} is {str(value)[:40]}, not an integer of −128 … 127")
        if not isinstance(codes, list) or len(codes) > MAX_REASONS:
            raise PolicyError(f"{name}: reasons are not a list of at most {MAX_REASONS}")
        for code in codes:
            if not isinstance(code, str) or code not in REASONS:
                raise PolicyError(f"{name}: unknown reason code {str(code)[:60]!r}")
        vectors[name], reasons[name] = vector, codes
    return PolicyOutcome(vectors, reasons)


def malfunction(submods: Iterable[str]) -> PolicyOutcome:
    """The outcome if the policy failed: −1 for every claim that it should have set."""
    vectors = registry.malfunction(submods)
    return PolicyOutcome(vectors, dict.fromkeys(vectors, ("policy.failed",)))


def conclude(
    checked: CheckedEvidence,
    outcome: PolicyOutcome,
    context: Context,
    held: Held,
    terms: Terms,
    *,
    jti: str,
    policy_id: str,
) -> AttestationResult:
    """
    Put the result together: the policy's values under the ceilings of the evidence.

    A policy can lower, never raise: a claim is affirming only where the evidence can carry
    it.  A node in quarantine is said to be so, whatever the policy makes of it.
    """
    submods = {
        name: _appraise(name, checked.submods[name], outcome, context, held, policy_id)
        for name in checked.submods
    }
    now = context.now_ms // 1000
    return AttestationResult(
        iss=terms.issuer,
        iat=now,
        exp=now + terms.lifetime_s,
        jti=jti,
        ueid=results.b64url(context.node.ueid),
        cnf={"jwk": results.jwk_of(context.node.key)},
        ear_verifier_id=results.VerifierId(results.DEVELOPER, results.BUILD),
        ear_status=trust.worst_tier([appraisal.ear_status for appraisal in submods.values()]),
        submods=submods,
        status={"uri": terms.status_url.format(jti=jti)},
    )


def _appraise(
    name: str, checked: CheckedSubmod, outcome: PolicyOutcome, context: Context, held: Held, policy_id: str
) -> Appraisal:
    vector, added = apply_ceilings(name, checked.may_affirm, checked.blocked, outcome.vectors[name], held)
    findings = [*checked.findings, *added]
    found = {finding.code for finding in findings}
    findings += [Finding(code, REASONS[code].sentence) for code in outcome.reasons[name] if code not in found]
    return Appraisal(
        ear_status=trust.worst(vector),
        ear_trustworthiness_vector=vector,
        ear_appraisal_policy_ids=(policy_id,),
        eat_nonce=results.b64url(context.session.nonce),
        ear_attester_claims=dict(checked.attester_claims),
        ear_verifier_claims=VerifierClaims(
            assurance=checked.assurance,
            bound=checked.bound,
            reasons=tuple(ReasonEntry(f.code, f.detail, f.expected, f.actual) for f in findings),
            measured=dict(checked.measured),
            reference=checked.reference,
            node=held.node if name == platform.SUBMOD else None,
        ),
    )


def apply_ceilings(
    name: str,
    may_affirm: Mapping[str, int],
    blocked: Mapping[str, str],
    given: Mapping[str, int],
    held: Held,
) -> tuple[dict[str, int], list[Finding]]:
    """
    A policy's values for one submodule, only ever lowered, and a finding for each reason.

    Args:
        may_affirm: The claims that the evidence can carry to affirming.
        blocked: The claims of which something is blocked.
        given: What the policy gave.
        held: What the database holds against the node.
    """
    vector = dict(given)
    findings = []
    for claim, value in vector.items():
        if trust.tier_of(value) is not Tier.AFFIRMING:
            continue
        if claim in may_affirm:
            # A standard value says more than a non-standard one: −2 is the most some evidence carries.
            if may_affirm[claim] < 0 < value:
                vector[claim] = may_affirm[claim]
        else:
            vector[claim] = -33
            findings.append(Finding("policy.ceiling", f"{claim} {value} is more than this evidence carries"))
    for claim, what in blocked.items():
        vector[claim] = 96
        findings.append(Finding("policy.blocked", what))
    if name == platform.SUBMOD:
        for finding in _held_findings(held):
            vector["instance-identity"] = 96
            findings.append(finding)
    return vector, findings


def _held_findings(held: Held) -> list[Finding]:
    """What the database holds against the node, whatever the policy makes of its evidence."""
    findings = []
    if held.retired:
        findings.append(Finding("identity.node.retired", "retired, or its key rolled, meanwhile"))
    if held.endpoint_taken:
        findings.append(Finding("identity.endpoint.taken", "another live node holds this TLS key"))
    if held.devices_taken:
        taken = min(held.devices_taken)
        findings.append(Finding("identity.duplicate-device", f"another live node declares {taken}"))
    if held.quarantined_by is not None:
        findings.append(Finding("identity.node.quarantined", f"incident {held.quarantined_by}"))
    return findings
