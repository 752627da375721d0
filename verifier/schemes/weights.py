"""The `model/NAME` submodules: three checks (manifest, `read`, walks), and what they show together."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from msgspec import Struct

from attester.evidence import Manifest, ReadAnswer, WalkAnswer
from attester.kinds import model_of
from attester.weights.possession import commitment
from verifier.schemes import exhaustion, walks
from verifier.schemes import manifest as manifests
from verifier.schemes.context import (
    Answers,
    Channel,
    Context,
    IssuedChallenges,
    ModelReference,
    Submods,
    WalkRecord,
)
from verifier.schemes.facts import ManifestFact, ModelFacts, PoolFact, ReadFact, WalkFact
from verifier.schemes.findings import CHALLENGED, DECLARED, CheckedSubmod, Finding


class _ModelEvidence(Struct, frozen=True, kw_only=True):
    """The input of the three checks."""

    model: str
    submod: str
    submods: Submods
    context: Context
    reference: ModelReference | None
    """The value in force, if it is valid now."""
    issued: IssuedChallenges
    """The challenges that were issued for the value in force."""

    @property
    def is_malformed(self) -> bool:
        return self.submod in self.submods.errors

    @property
    def history(self) -> list[WalkRecord]:
        """The walks before this session, for the value in force."""
        digest = "" if self.reference is None else self.reference.digest
        return [r for r in self.context.history.get(self.model, ()) if r.reference == digest]

    @property
    def call_answers(self) -> Answers | None:
        """The answers that the node gave to the call, before its evidence; `None` if this session is no call."""
        # The clock stops at these answers.  Evidence for a call without them has no time.
        if self.context.session.channel != Channel.CALLED:
            return None
        return (self.context.session.answers or {}).get(self.model, Answers())


class _CheckedFiles(Struct, frozen=True):
    fact: ManifestFact
    findings: list[Finding]
    manifest: Manifest | None
    compared_with: ModelReference | None

    @property
    def are_cached(self) -> bool:
        """Whether digests of an equal manifest come from the node's cache."""
        is_equal = self.fact in ("equal", "aged")
        return is_equal and self.manifest is not None and self.manifest.cached is not None


class _CheckedWalk(Struct, frozen=True):
    verdict: str
    """On this session's answers."""
    findings: list[Finding]
    record: WalkRecord | None
    standing: WalkFact
    """What all walks show together."""
    exhausted: PoolFact = "no"
    """Whether the pool had none, and if so whether the last right one counts on."""


def check(submod: str, submods: Submods, context: Context) -> CheckedSubmod:
    """Say what is true of one model."""
    model = model_of(submod)
    assert model is not None, submod
    reference, findings = _in_force(model, context)
    evidence = _ModelEvidence(
        model=model,
        submod=submod,
        submods=submods,
        context=context,
        reference=reference,
        issued=_issued_for(reference, context.session.asked.get(model, IssuedChallenges())),
    )
    files = _check_files(evidence)
    read, read_findings = _check_read(evidence, files)
    walk = _check_walks(evidence, files, read)
    read_exhausted = exhaustion.judge_read(
        evidence.issued, context.excuses.get(model), walk.verdict, evidence.history, context.now_ms
    )
    findings += [*_check_presence(evidence), *files.findings, *read_findings, *walk.findings]
    has_read = read == "right" or read_exhausted == "kept"
    may_affirm = {}
    if files.fact == "equal" and has_read:
        may_affirm["file-system"] = 2
    if walk.standing == "called":
        may_affirm["executables"] = -2
    return CheckedSubmod(
        ModelFacts(
            manifest=files.fact,
            read=read,
            walk=walk.standing,
            read_exhausted=read_exhausted,
            walk_exhausted=walk.exhausted,
        ),
        findings=tuple(findings),
        may_affirm=may_affirm,
        assurance=CHALLENGED if has_read or walk.standing == "called" else DECLARED,
        measured=walks.measured_rates(walk.record, evidence.issued, reference, context)
        if walk.verdict == "right"
        else {},
        walk=walk.record,
        passed=_passed(files.fact, read, walk.verdict, evidence.issued, reference),
        reference=None if reference is None else reference.digest,
        blocked=_blocked(files.manifest, (reference, files.compared_with), context.blocks.digests),
    )


def _check_presence(evidence: _ModelEvidence) -> list[Finding]:
    """Whether the submodule is there and well formed, and whether the pool had challenges for it."""
    findings = []
    if error := evidence.submods.errors.get(evidence.submod):
        findings.append(_malformed(error.claim, str(error)))
    if evidence.submod not in evidence.submods.read and not evidence.is_malformed:
        findings.append(Finding("weights.model.missing", f"there is no submodule {evidence.submod}"))
    # If the reference has no tensors, no walk can be issued.
    has_tensors = evidence.reference is None or evidence.reference.tensor_bytes
    return findings + [
        Finding("challenges.exhausted", f"the pool has no {kind} for {evidence.model}")
        for kind in evidence.issued.exhausted
        if kind == "read" or has_tensors
    ]


def _check_files(evidence: _ModelEvidence) -> _CheckedFiles:
    """The manifest compared with the value in force, or with the values that it has replaced."""
    manifest: Manifest | None = evidence.submods.claim(evidence.submod, "manifest")
    if evidence.is_malformed:
        return _CheckedFiles("malformed", [], manifest, evidence.reference)
    fact, findings, compared_with = _compare(manifest, evidence.reference, evidence.model, evidence.context)
    if fact == "unknown" and evidence.model in evidence.context.references:
        fact = "expired"
    return _CheckedFiles(fact, findings, manifest, compared_with)


def _check_walks(evidence: _ModelEvidence, files: _CheckedFiles, read: ReadFact) -> _CheckedWalk:
    """This session's walk against its challenge, and all walks for the value in force together."""
    claim: WalkAnswer | None = evidence.submods.claim(evidence.submod, "walk")
    verdict, findings = walks.check_answers(
        claim,
        evidence.issued,
        evidence.call_answers,
        malformed=evidence.is_malformed,
        as_loaded=evidence.reference is not None and evidence.reference.as_loaded,
    )
    # A node with the files of a replaced value cannot meet challenges for the value in force.
    is_excused = files.fact == "superseded" and verdict == "wrong"
    if is_excused:
        verdict, findings = "superseded", []
    # The record of an excused walk is still "wrong": otherwise a node that cannot answer a walk could claim
    # the replaced files for that one session.
    record = walks.record_of(verdict, claim, evidence.issued, evidence.reference, evidence.context)
    history = evidence.history
    exhausted = exhaustion.judge_walk(
        evidence.issued,
        evidence.context.excuses.get(evidence.model),
        read,
        history,
        evidence.context.now_ms,
    )
    if record is not None:
        history.append(record)
    standing, detail = walks.standing_of(
        history, verdict, evidence.reference, evidence.context, keeps=exhausted == "kept"
    )
    if is_excused:
        return _CheckedWalk(verdict, findings, record, "superseded")
    # If the pool had no walk, it is not for the node to have answered one.
    if detail and not (exhausted == "lost" and standing in ("stale", "announced")):
        findings = [*findings, Finding(f"weights.walk.{standing}", detail)]
    return _CheckedWalk(verdict, findings, record, standing, exhausted=exhausted)


def _check_read(evidence: _ModelEvidence, files: _CheckedFiles) -> tuple[ReadFact, list[Finding]]:
    """The answer to `read` against its challenge."""
    claim: ReadAnswer | None = evidence.submods.claim(evidence.submod, "read")
    issued, call_answers = evidence.issued.read, evidence.call_answers
    if issued is None:
        return "unasked", []
    if evidence.is_malformed:
        return "malformed", []
    if claim is None:
        return "missing", [Finding("weights.read.missing", "the evidence has no answer to the read")]
    if call_answers is not None and call_answers.read != claim.answer.hex():
        detail = "the read answer is not the one that the node gave to the call"
        return "differs", [Finding("weights.answers.differ", detail)]
    answered = commitment(claim.answer)
    expected = (issued.commitment, *(() if issued.gates is None else (issued.gates,)))
    if not any(hmac.compare_digest(answered, each) for each in expected):
        if files.fact == "superseded":
            # A node with the files of a replaced value cannot meet challenges for the value in force.
            return "superseded", []
        # The finding must not say what was expected: the pool's commitments are secret.
        code = "weights.cache.stale" if files.are_cached else "weights.read.wrong"
        detail = f"the challenge: windows {issued.windows}"
        return "wrong", [Finding(code, detail, cause=f"batch:{issued.batch}")]
    return "right", []


def _issued_for(reference: ModelReference | None, issued: IssuedChallenges) -> IssuedChallenges:
    """
    The challenges that were issued for the value in force.

    If that value came into force while the session waited, the session's challenges are for the
    previous value.  Answers to them say nothing of the value in force, and must not count.
    """
    if reference is None:
        return issued
    read, walk = issued.read, issued.walk
    return IssuedChallenges(
        read if read is not None and read.reference in (None, reference.digest) else None,
        walk if walk is not None and walk.reference in (None, reference.digest) else None,
        issued.exhausted,
    )


def _in_force(model: str, context: Context) -> tuple[ModelReference | None, list[Finding]]:
    """The model's reference value, if there is one that is valid now."""
    reference = context.references.get(model)
    if reference is None:
        return None, [Finding("weights.reference.unknown", f"there is no reference value for {model}")]
    if not reference.is_valid(context.now_ms // 1000):
        return None, [
            Finding("weights.reference.expired", f"the reference value of {model} is not valid now")
        ]
    return reference, []


def _compare(
    manifest: Manifest | None, reference: ModelReference | None, model: str, context: Context
) -> tuple[ManifestFact, list[Finding], ModelReference | None]:
    """The fact about the files, the findings, and the value that the files were compared with."""
    max_age_s = context.thresholds.manifest_max_age_s
    found, findings = manifests.compare(manifest, reference, context.now_ms, max_age_s)
    if found != "differs":
        return found, findings, reference
    for earlier in context.superseded.get(model, ()):
        # In the grace period, the files of a replaced value are a warning and not a mismatch.
        if manifests.compare(manifest, earlier, context.now_ms, max_age_s)[0] in ("equal", "aged"):
            detail = f"the files are those of {earlier.digest}, which another value has replaced"
            return "superseded", [Finding("weights.reference.superseded", detail)], earlier
    return found, findings, reference


def _blocked(
    manifest: Manifest | None, references: Sequence[ModelReference | None], digests: frozenset[str]
) -> dict[str, str]:
    """By claim, what is blocked: a reference value or a file of this model."""
    if not digests:
        return {}
    for reference in references:
        if reference is not None and reference.digest in digests:
            return dict.fromkeys(("file-system", "executables"), f"reference value {reference.digest}")
    for file in () if manifest is None else manifest.files:
        for digest in (file.sha256, file.blake3):
            if digest is not None and digest.hex() in digests:
                return {"file-system": f"file {file.name} of digest {digest.hex()}"}
    return {}


def _malformed(claim: str, detail: str) -> Finding:
    code = {"manifest": "weights.manifest", "read": "weights.read", "walk": "weights.walk"}.get(claim)
    return Finding(f"{code}.malformed" if code else "evidence.claims.malformed", detail)


def _passed(
    manifest: str, read: str, walk: str, issued: IssuedChallenges, reference: ModelReference | None
) -> tuple[str, ...]:
    """The causes that this evidence speaks against: see `CheckedSubmod.passed`."""
    causes: set[str] = set()
    # The node only declares the manifest.  A right read shows that it has the bytes.
    if manifest in ("equal", "aged", "extra") and read == "right" and reference is not None:
        causes.update(f"{code}@reference:{reference.digest}" for code in manifests.MISMATCHES)
    if read == "right" and issued.read is not None:
        causes.update(
            f"{code}@batch:{issued.read.batch}" for code in ("weights.read.wrong", "weights.cache.stale")
        )
    if walk == "right" and issued.walk is not None:
        causes.add(f"weights.walk.wrong@batch:{issued.walk.batch}")
    return tuple(sorted(causes))
