"""
From evidence to a result, in pure steps: no I/O, no clock, no globals.

    opening                         → OpenedEvidence     steps 0 to 4: what the node has signed
    check(opened, context)          → CheckedEvidence    steps 5 to 8: what is true
    engine.evaluate(policy, input)  → PolicyOutcome      what that means (elsewhere, in a worker process)
    conclude(checked, outcome, …)   → AttestationResult  trust vectors, status, assurance, expiry

The steps are numbered.  Each has its own error and its own negative test:

    0  media type and size              1  strict decoding          2  profile
    3  the session's node by kid, and its enrolled algorithm        4  signature over the bytes received
    5  the session's nonce              6  ueid, audience, time     7  each submodule by its scheme
    8  bindings to the node key (in the schemes: the endpoint's TLS key)

A failure up to step 4 is held against no node and uses up no session: only what a key has signed
may be held against its node.  From step 7 on, every finding is collected, so that the operator
sees at once all that is wrong.  A malfunction of the verifier is −1, never "contraindicated".
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from attester import evidence, kinds
from attester.errors import ClaimError
from verifier import result_keys, results, trust
from verifier.errors import EvidenceError, PolicyError
from verifier.opening import OpenedEvidence
from verifier.reasons import REASONS
from verifier.results import Appraisal, AttestationResult, NodeRecord, ReasonEntry, VerifierClaims
from verifier.schemes import platform, registry
from verifier.schemes.context import Context, ModelReference, Submods
from verifier.schemes.facts import NodeFacts, PolicyInput, ReferenceFacts
from verifier.schemes.findings import CheckedSubmod, Finding
from verifier.trust import Tier

MAX_REASONS: Final = 64
"""Codes that a policy may give for one submodule."""
_MAX_SHOWN: Final = 80


@dataclass(frozen=True)
class CheckedEvidence:
    """Evidence after step 8: what is true, by submodule."""

    submods: Mapping[str, CheckedSubmod]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, in the order of the submodules."""
        return tuple(finding for checked in self.submods.values() for finding in checked.findings)

    def policy_input(self, context: Context) -> bytes:
        """
        The policy's input as JSON (`docs/policy-input.md`, `verifier.schemes.facts`).

        It has nothing that differs each time, so that nodes that are alike give equal inputs.
        """
        policy_input = PolicyInput(
            checked={name: checked.facts for name, checked in self.submods.items()},
            references={
                model: ReferenceFacts(
                    digest=reference.digest,
                    source=reference.source,
                    signer=reference.signer,
                    expires=None if reference.not_after is None else _day(reference.not_after),
                )
                for model, reference in self._references(context)
            },
            node=NodeFacts(operator=context.node.operator, state=context.node.state),
            date=_day(context.now_ms // 1000),
        )
        return msgspec.json.encode(policy_input)

    def _references(self, context: Context) -> Iterator[tuple[str, ModelReference]]:
        """By model, the valid value that its evidence is judged on, or the first of those that are valid."""
        for model in sorted(context.references):
            checked = self.submods.get(kinds.model_submod(model))
            valid = context.valid(model)
            judged_on = [each for each in valid if checked is not None and each.digest == checked.reference]
            yield from ((model, reference) for reference in (*judged_on, *valid)[:1])


def _day(seconds: int) -> str:
    """The day in UTC.  Python's calendar ends with the year 9999, and a validity may end later."""
    return datetime.fromtimestamp(min(seconds, 253402300799), UTC).date().isoformat()


@dataclass(frozen=True)
class PolicyOutcome:
    """What a policy concludes from the facts: by submodule, its trust vector and reason codes."""

    vectors: Mapping[str, Mapping[str, int]]
    reasons: Mapping[str, Sequence[str]]


class NodeSnapshot(Struct, frozen=True, kw_only=True):
    """
    What the database knows of a node at the moment that its result is inserted.

    Recordings store it as ``held``: no field may be renamed.
    """

    quarantined_by: str | None = None
    """The open incident that holds it, if there is one."""
    endpoint_taken: bool = False
    """Whether the TLS key of its endpoint belongs to another live node."""
    devices_taken: frozenset[str] = frozenset()
    """Devices it declares that another live node declared first."""
    retired: bool = False
    """Whether the node was retired, or its key changed, while its evidence was appraised."""
    node: NodeRecord | None = None
    """
    What the verifier's records say of the node.

    It is `None` in recordings of versions whose results did not have it.  Replaying such a
    recording gives the same result, also without it.  If it is judged again, the database is read.
    """


@dataclass(frozen=True)
class ResultSettings:
    """How results are issued.  Recordings store it as ``terms``: no field may be renamed."""

    issuer: str
    lifetime_s: int
    status_url: str
    """Where a relying party looks for revocation; ``{jti}`` stands for the result's id."""


def check(opened: OpenedEvidence, context: Context) -> CheckedEvidence:
    """
    Steps 5 to 8.

    Raises:
        EvidenceError: step 5 or 6 refuses it; it names the step.
    """
    match_session(opened, context)
    return examine(opened, context)


def match_session(opened: OpenedEvidence, context: Context) -> None:
    """
    Steps 5 and 6: it is for this verifier, and was signed during the session.

    Raises:
        EvidenceError: it names the step.
    """
    token, node, session = opened.token, context.node, context.session
    # 5. Nonce.
    if not hmac.compare_digest(token.nonce, session.nonce):
        raise EvidenceError(5, "evidence.nonce", "the nonce is not the session's")
    # 6. With the node's id, for this verifier, and signed between the session's issue and now.
    if token.ueid != node.ueid:
        raise EvidenceError(6, "evidence.ueid", "the ueid is not the node's")
    if token.aud != context.audience:
        raise EvidenceError(6, "evidence.audience", f"aud is {token.aud[:80]!r}, not {context.audience!r}")
    offset = token.iat - context.now_ms // 1000
    oldest = session.issued_ms // 1000 - context.skew_s
    if offset > context.skew_s or token.iat < oldest:
        raise EvidenceError(6, "evidence.time", _describe_time_error(offset, context.skew_s))


def _describe_time_error(offset_s: int, skew_s: int) -> str:
    if offset_s > skew_s:
        return f"iat is {offset_s} s later than the verifier's clock; at most {skew_s} s are allowed"
    return f"iat is {-offset_s} s ago, more than {skew_s} s before the session was issued"


def examine(opened: OpenedEvidence, context: Context) -> CheckedEvidence:
    """
    Steps 7 and 8: check each submodule by its scheme, with its bindings, and collect all findings.

    A trial calls this step alone, for evidence that was authenticated when it came (`verifier.trial`).
    """
    submods = _read_submods(opened.token)
    checked = {
        name: registry.scheme_of(name).check(name, submods, context)
        for name in registry.submods_to_check(opened.token.submods, context)
    }
    return CheckedEvidence(checked)


def _read_submods(token: evidence.Token) -> Submods:
    submods: dict[str, kinds.Submod] = {}
    errors: dict[str, ClaimError] = {}
    for name, raw in token.submods.items():
        if kinds.kind_of(name) is None:
            continue
        try:
            submods[name] = kinds.read_submod(name, raw)
        except ClaimError as error:
            errors[name] = error
    return Submods(submods, errors)


def read_outcome(raw: Any, submods: Collection[str]) -> PolicyOutcome:
    """
    Read strictly what a policy gave.

    Raises:
        PolicyError: it gave nothing, left out a submodule or invented one, or gave an empty vector, an
            unknown claim, a value that is not an integer of −128 … 127, or an unknown reason code.
    """
    if not isinstance(raw, dict):
        raise PolicyError("the policy's outcome must be an object with an entry for each submodule")
    if missing := sorted(set(submods) - raw.keys()):
        raise PolicyError(f"{missing[0][:_MAX_SHOWN]}: the policy gives no outcome for this submodule")
    if invented := sorted(map(str, raw.keys() - set(submods))):
        raise PolicyError(f"{invented[0][:_MAX_SHOWN]!r}: the policy gives an outcome that nobody asked for")
    vectors: dict[str, dict[str, int]] = {}
    reasons: dict[str, list[str]] = {}
    for name, entry in raw.items():
        if not isinstance(entry, dict) or entry.keys() != {"trust_vector", "reasons"}:
            raise PolicyError(f"{name[:_MAX_SHOWN]}: the outcome must have exactly trust_vector and reasons")
        vector, codes = entry["trust_vector"], entry["reasons"]
        if not isinstance(vector, dict) or not vector:
            raise PolicyError(f"{name}: trust_vector must be an object with at least one claim")
        for claim, value in vector.items():
            if claim not in trust.CLAIM_NAMES:
                raise PolicyError(f"{name}: unknown trust claim {str(claim)[:40]!r}")
            if type(value) is not int or not -128 <= value <= 127:
                raise PolicyError(
                    f"{name}: {claim} is {str(value)[:40]}; it must be an integer of −128 … 127"
                )
        if not isinstance(codes, list) or len(codes) > MAX_REASONS:
            raise PolicyError(f"{name}: reasons must be a list of at most {MAX_REASONS} codes")
        for code in codes:
            if not isinstance(code, str) or code not in REASONS:
                raise PolicyError(f"{name}: unknown reason code {str(code)[:60]!r}")
        vectors[name], reasons[name] = vector, codes
    return PolicyOutcome(vectors, reasons)


def malfunction(submods: Iterable[str]) -> PolicyOutcome:
    """The outcome if the policy failed: −1 for every claim that it should have given."""
    vectors = registry.malfunction(submods)
    return PolicyOutcome(vectors, dict.fromkeys(vectors, ("policy.failed",)))


def conclude(
    checked: CheckedEvidence,
    outcome: PolicyOutcome,
    context: Context,
    snapshot: NodeSnapshot,
    settings: ResultSettings,
    *,
    jti: str,
    policy_id: str,
    sequence: int | None = None,
) -> AttestationResult:
    """
    Make the result: the policy's values, under the ceilings of the evidence.

    A policy can lower a value and never raise it: a claim is affirming only if the evidence can show
    that.  If a node is in quarantine, the result says so, whatever the policy concludes.
    """
    submods = {
        name: _appraise(name, checked.submods[name], outcome, context, snapshot, policy_id)
        for name in checked.submods
    }
    now = context.now_ms // 1000
    return AttestationResult(
        iss=settings.issuer,
        iat=now,
        exp=now + settings.lifetime_s,
        jti=jti,
        ueid=result_keys.b64url(context.node.ueid),
        cnf={"jwk": result_keys.jwk_of(context.node.key)},
        ear_verifier_id=results.VerifierId(results.DEVELOPER, results.BUILD),
        ear_status=trust.worst_tier([appraisal.ear_status for appraisal in submods.values()]),
        submods=submods,
        status={"uri": settings.status_url.format(jti=jti)},
        ear_touchstone_sequence=sequence,
    )


def _appraise(
    name: str,
    checked: CheckedSubmod,
    outcome: PolicyOutcome,
    context: Context,
    snapshot: NodeSnapshot,
    policy_id: str,
) -> Appraisal:
    vector, added = apply_ceilings(name, checked.may_affirm, checked.blocked, outcome.vectors[name], snapshot)
    findings = [*checked.findings, *added]
    codes = {finding.code for finding in findings}
    findings += [Finding(code, REASONS[code].sentence) for code in outcome.reasons[name] if code not in codes]
    return Appraisal(
        ear_status=trust.worst(vector),
        ear_trustworthiness_vector=vector,
        ear_appraisal_policy_ids=(policy_id,),
        eat_nonce=result_keys.b64url(context.session.nonce),
        ear_attester_claims=dict(checked.attester_claims),
        ear_verifier_claims=VerifierClaims(
            assurance=checked.assurance,
            bound=checked.bound,
            reasons=tuple(ReasonEntry(f.code, f.detail, f.expected, f.actual) for f in findings),
            measured=dict(checked.measured),
            reference=checked.reference,
            prompting=dict(checked.prompting),
            node=snapshot.node if name == platform.SUBMOD else None,
        ),
    )


def apply_ceilings(
    name: str,
    may_affirm: Mapping[str, int],
    blocked: Mapping[str, str],
    values: Mapping[str, int],
    snapshot: NodeSnapshot,
) -> tuple[dict[str, int], list[Finding]]:
    """
    A policy's values for one submodule, each unchanged or lowered, and a finding for each reason.

    Args:
        may_affirm: The claims that the evidence can raise to affirming.
        blocked: The claims that a block concerns, each with what is blocked.
        values: The policy's values.
        snapshot: What the database knows of the node.
    """
    vector = dict(values)
    findings = []
    for claim, value in vector.items():
        if trust.tier_of(value) is not Tier.AFFIRMING:
            continue
        if claim in may_affirm:
            # A standard value says more than a non-standard one.  Some evidence can show no more than −2.
            if may_affirm[claim] < 0 < value:
                vector[claim] = may_affirm[claim]
        else:
            vector[claim] = -33
            findings.append(Finding("policy.ceiling", f"{claim} {value} is more than this evidence can show"))
    for claim, what in blocked.items():
        vector[claim] = 96
        findings.append(Finding("policy.blocked", what))
    if name == platform.SUBMOD:
        for finding in _snapshot_findings(snapshot):
            vector["instance-identity"] = 96
            findings.append(finding)
    return vector, findings


def _snapshot_findings(snapshot: NodeSnapshot) -> list[Finding]:
    """What the database holds against the node, whatever the policy concludes from its evidence."""
    findings = []
    if snapshot.retired:
        detail = "the node was retired, or its key changed, while its evidence was appraised"
        findings.append(Finding("identity.node.retired", detail))
    if snapshot.endpoint_taken:
        findings.append(Finding("identity.endpoint.taken", "another live node holds this TLS key"))
    if snapshot.devices_taken:
        device = min(snapshot.devices_taken)
        findings.append(Finding("identity.duplicate-device", f"another live node declares {device}"))
    if snapshot.quarantined_by is not None:
        findings.append(Finding("identity.node.quarantined", f"incident {snapshot.quarantined_by}"))
    return findings
