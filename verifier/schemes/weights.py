"""The `model/NAME` submodules: three checks (manifest, `read`, walks), and what they amount to together."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from attester.evidence import Manifest, ReadAnswer, WalkAnswer
from attester.kinds import model_of
from attester.weights.possession import commitment
from verifier.schemes import manifest as manifests
from verifier.schemes import walks
from verifier.schemes.base import (
    CHALLENGED,
    DECLARED,
    Answers,
    CheckedSubmod,
    Context,
    Finding,
    IssuedChallenges,
    ModelReference,
    Submods,
    WalkRecord,
)
from verifier.schemes.facts import ManifestFact, ModelFacts, ReadFact, WalkFact


@dataclass(frozen=True, kw_only=True)
class _ModelEvidence:
    """What the three checks look at."""

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
    def call_answers(self) -> Answers | None:
        """The answers that came ahead of evidence for a call; `None` if this session is not a call."""
        # The clock stops at these answers: evidence for a call without them has no time.
        if self.context.session.channel != "call":
            return None
        return (self.context.session.answers or {}).get(self.model, Answers())


@dataclass(frozen=True)
class _CheckedFiles:
    fact: ManifestFact
    findings: list[Finding]
    listed: Manifest | None
    held_against: ModelReference | None

    @property
    def are_cached(self) -> bool:
        """Whether digests of an equal manifest come from the node's cache."""
        is_equal = self.fact in ("equal", "aged")
        return is_equal and self.listed is not None and self.listed.cached is not None


@dataclass(frozen=True)
class _CheckedWalk:
    verdict: str
    """Of this session's answers."""
    findings: list[Finding]
    record: WalkRecord | None
    standing: WalkFact
    """Of all walks together."""


def check(submod: str, submods: Submods, context: Context) -> CheckedSubmod:
    """Say what is true of one model."""
    model = model_of(submod) or ""
    reference, findings = _in_force(model, context)
    given = _ModelEvidence(
        model=model,
        submod=submod,
        submods=submods,
        context=context,
        reference=reference,
        issued=_issued_for(reference, context.session.asked.get(model, IssuedChallenges())),
    )
    files = _check_files(given)
    read, read_findings = _check_read(given, files)
    walk = _check_walks(given, files)
    findings += [*_check_presence(given), *files.findings, *read_findings, *walk.findings]
    may_affirm = {}
    if files.fact == "equal" and read == "right":
        may_affirm["file-system"] = 2
    if walk.standing == "called":
        may_affirm["executables"] = -2
    return CheckedSubmod(
        ModelFacts(manifest=files.fact, read=read, walk=walk.standing),
        findings=tuple(findings),
        may_affirm=may_affirm,
        assurance=CHALLENGED if read == "right" or walk.standing == "called" else DECLARED,
        measured=walks.measured_rates(walk.record, given.issued, reference, context)
        if walk.verdict == "right"
        else {},
        walk=walk.record,
        passed=_passed(files.fact, read, walk.verdict, given.issued, reference),
        reference=None if reference is None else reference.digest,
        blocked=_blocked(files.listed, (reference, files.held_against), context.blocks.digests),
    )


def _check_presence(given: _ModelEvidence) -> list[Finding]:
    """Whether the submodule is there and well formed, and whether the pool had challenges for it."""
    findings = []
    if error := given.submods.errors.get(given.submod):
        findings.append(_malformed(error.claim, str(error)))
    if given.submod not in given.submods.read and not given.is_malformed:
        findings.append(Finding("weights.model.missing", f"no submodule {given.submod}"))
    # Without tensors in the reference there are no walks to issue.
    has_tensors = given.reference is None or given.reference.tensor_bytes
    return findings + [
        Finding("challenges.exhausted", f"the pool of {kind} for {given.model} is empty")
        for kind in given.issued.exhausted
        if kind == "read" or has_tensors
    ]


def _check_files(given: _ModelEvidence) -> _CheckedFiles:
    """The manifest against the value in force, or against the values that it has replaced."""
    listed: Manifest | None = given.submods.claim(given.submod, "manifest")
    if given.is_malformed:
        return _CheckedFiles("malformed", [], listed, given.reference)
    fact, findings, held_against = _compare(listed, given.reference, given.model, given.context)
    if fact == "unknown" and given.model in given.context.references:
        fact = "expired"
    return _CheckedFiles(fact, findings, listed, held_against)


def _check_walks(given: _ModelEvidence, files: _CheckedFiles) -> _CheckedWalk:
    """This session's walk against its challenge, and all walks for the value in force together."""
    claim: WalkAnswer | None = given.submods.claim(given.submod, "walk")
    verdict, findings = walks.check_answers(
        claim, given.issued, given.call_answers, malformed=given.is_malformed
    )
    # A node with the files of a replaced value cannot meet challenges for the value in force.
    is_excused = files.fact == "superseded" and verdict == "wrong"
    if is_excused:
        verdict, findings = "superseded", []
    # An excused walk is kept as wrong all the same: otherwise a node that cannot answer a walk would
    # claim the replaced files for that one session.
    record = walks.record_of(verdict, claim, given.issued, given.reference, given.context)
    digest = "" if given.reference is None else given.reference.digest
    history = [r for r in given.context.history.get(given.model, ()) if r.reference == digest]
    if record is not None:
        history.append(record)
    standing, detail = walks.standing_of(history, verdict, given.reference, given.context)
    if is_excused:
        return _CheckedWalk(verdict, findings, record, "superseded")
    if detail:
        findings = [*findings, Finding(f"weights.walk.{standing}", detail)]
    return _CheckedWalk(verdict, findings, record, standing)


def _check_read(given: _ModelEvidence, files: _CheckedFiles) -> tuple[ReadFact, list[Finding]]:
    """The answer to `read` against its challenge."""
    claim: ReadAnswer | None = given.submods.claim(given.submod, "read")
    issued, answered = given.issued.read, given.call_answers
    if issued is None:
        return "unasked", []
    if given.is_malformed:
        return "malformed", []
    if claim is None:
        return "missing", [Finding("weights.read.missing", "asked, and no answer in the evidence")]
    if answered is not None and answered.read != claim.answer.hex():
        detail = "the read answer is not the one given to the call"
        return "differs", [Finding("weights.answers.differ", detail)]
    if not hmac.compare_digest(commitment(claim.answer), issued.commitment):
        if files.fact == "superseded":
            # A node with the files of a replaced value cannot meet challenges for the value in force.
            return "superseded", []
        # The finding must not say what was expected: the pool's commitments are secret.
        code = "weights.cache.stale" if files.are_cached else "weights.read.wrong"
        detail = f"{issued.windows} windows asked"
        return "wrong", [Finding(code, detail, cause=f"batch:{issued.batch}")]
    return "right", []


def _issued_for(reference: ModelReference | None, issued: IssuedChallenges) -> IssuedChallenges:
    """
    The challenges that were issued for the value in force.

    If a value came into force while the session waited, its challenges are for the value before.
    Answers to them say nothing of the value in force, and must count for nothing.
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
        return None, [Finding("weights.reference.unknown", f"no reference value for {model}")]
    if not reference.is_valid(context.now_ms // 1000):
        return None, [
            Finding("weights.reference.expired", f"the reference value of {model} is not valid now")
        ]
    return reference, []


def _compare(
    listed: Manifest | None, reference: ModelReference | None, model: str, context: Context
) -> tuple[ManifestFact, list[Finding], ModelReference | None]:
    """What the files amount to, the findings, and the value that they were held against."""
    max_age_s = context.thresholds.manifest_max_age_s
    found, findings = manifests.compare(listed, reference, context.now_ms, max_age_s)
    if found != "differs":
        return found, findings, reference
    for earlier in context.superseded.get(model, ()):
        # For a while, the files of a replaced value are a warning and not a mismatch.
        if manifests.compare(listed, earlier, context.now_ms, max_age_s)[0] in ("equal", "aged"):
            detail = f"the files are those of {earlier.digest}, which another value has replaced"
            return "superseded", [Finding("weights.reference.superseded", detail)], earlier
    return found, findings, reference


def _blocked(
    listed: Manifest | None, references: Sequence[ModelReference | None], digests: frozenset[str]
) -> dict[str, str]:
    """By claim, the blocked digest that this model rests on."""
    if not digests:
        return {}
    for reference in references:
        if reference is not None and reference.digest in digests:
            return dict.fromkeys(("file-system", "executables"), f"reference value {reference.digest}")
    for file in () if listed is None else listed.files:
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
    """The causes that this evidence speaks for: see `CheckedSubmod.passed`."""
    causes: set[str] = set()
    # The manifest alone is the node's word.  Only a right read shows the bytes behind it.
    if manifest in ("equal", "aged", "extra") and read == "right" and reference is not None:
        causes.update(f"{code}@reference:{reference.digest}" for code in manifests.MISMATCHES)
    if read == "right" and issued.read is not None:
        causes.update(
            f"{code}@batch:{issued.read.batch}" for code in ("weights.read.wrong", "weights.cache.stale")
        )
    if walk == "right" and issued.walk is not None:
        causes.add(f"weights.walk.wrong@batch:{issued.walk.batch}")
    return tuple(sorted(causes))
