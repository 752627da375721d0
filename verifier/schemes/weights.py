"""The `model/NAME` submodules: three checks (manifest, `read`, walks), and what they show together."""

from __future__ import annotations

import hmac

from msgspec import Struct

from attester.evidence import Manifest, ReadAnswer, Runtime, WalkAnswer
from attester.kinds import model_of
from attester.weights.possession import commitment
from verifier.schemes import exhaustion, prompting, revisions, walks
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
    """The value that it is judged on, if one is valid now (`verifier.schemes.revisions`)."""
    issued: IssuedChallenges
    """The challenges that were issued for that value."""
    exchanged: str | None = None
    """The revision that the challenges were for, if the node shows another one."""

    @property
    def is_malformed(self) -> bool:
        return self.submod in self.submods.errors

    @property
    def history(self) -> list[WalkRecord]:
        """
        The walks before this session, for the value that it is judged on, and every call that was missed.

        Who shows another revision when it is asked, and goes back, must not have what it showed before.
        """
        digest = "" if self.reference is None else self.reference.digest
        known = self.context.history.get(self.model, ())
        return [r for r in known if r.reference == digest or r.verdict == "missed"]

    @property
    def is_superseded(self) -> bool:
        """Whether the value is only in its grace."""
        return self.reference is not None and self.reference not in self.context.valid(self.model)

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
    right_ms: int | None = None
    """See `walks.last_right_ms`."""


def check(submod: str, submods: Submods, context: Context) -> CheckedSubmod:
    """Say what is true of one model."""
    model = model_of(submod)
    assert model is not None, submod
    asked = context.session.asked.get(model, IssuedChallenges())
    manifest = None if submod in submods.errors else submods.claim(submod, "manifest")
    reference = revisions.choose(manifest, asked.reference, model, context)
    findings = _lacking(model, context) if reference is None else []
    evidence = _ModelEvidence(
        model=model,
        submod=submod,
        submods=submods,
        context=context,
        reference=reference,
        issued=revisions.issued_for(reference, asked),
        exchanged=revisions.exchanged(reference, asked, context.known(model)),
    )
    files = _check_files(evidence)
    read, read_findings = _check_read(evidence, files)
    walk = _check_walks(evidence, read)
    read_exhausted = exhaustion.judge_read(
        evidence.issued,
        context.excuse_for(model, reference),
        walk.verdict,
        evidence.history,
        context.now_ms,
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
        measured=_measured(walk, evidence),
        walk=walk.record,
        passed=_passed(files.fact, read, walk.verdict, evidence.issued, reference),
        reference=None if reference is None else reference.digest,
        prompting=_prompting(files, evidence),
        blocked=_blocked(files.manifest, reference, context.blocks.digests),
    )


def _prompting(files: _CheckedFiles, evidence: _ModelEvidence) -> dict[str, str]:
    if not evidence.context.tells_prompting:
        return {}
    runtime: Runtime | None = evidence.submods.claim("platform", "runtime")
    return prompting.find(files.manifest, evidence.reference, runtime)


def _measured(walk: _CheckedWalk, evidence: _ModelEvidence) -> dict[str, int | str]:
    """The rates that a walk of this session has shown, and when the last walk was that was right."""
    found: dict[str, int | str] = {}
    if walk.verdict == "right":
        found.update(walks.measured_rates(walk.record, evidence.issued, evidence.reference, evidence.context))
    if walk.right_ms is not None and evidence.context.tells_walk:
        found["walk_at_ms"] = walk.right_ms
    return found


def _check_presence(evidence: _ModelEvidence) -> list[Finding]:
    """Whether the submodule is there and well formed, and whether the pool had challenges for it."""
    findings = []
    if evidence.exchanged is not None and evidence.reference is not None:
        findings.append(revisions.changed(evidence.exchanged, evidence.reference))
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
    """The manifest compared with the value that it is judged on."""
    manifest: Manifest | None = evidence.submods.claim(evidence.submod, "manifest")
    if evidence.is_malformed:
        return _CheckedFiles("malformed", [], manifest)
    context, reference = evidence.context, evidence.reference
    fact, findings = manifests.compare(
        manifest, reference, context.now_ms, context.thresholds.manifest_max_age_s
    )
    if fact == "unknown" and evidence.model in context.references:
        fact = "expired"
    if fact in revisions.HAS_FILES and evidence.is_superseded and reference is not None:
        # In the grace period, the files of a replaced value are a warning and not a mismatch.
        detail = f"the files are those of {reference.digest}, which is not in force any more"
        fact, findings = "superseded", [Finding("weights.reference.superseded", detail), *findings]
    return _CheckedFiles(fact, findings, manifest)


def _check_walks(evidence: _ModelEvidence, read: ReadFact) -> _CheckedWalk:
    """This session's walk against its challenge, and all walks for the same value together."""
    claim: WalkAnswer | None = evidence.submods.claim(evidence.submod, "walk")
    context, asked = evidence.context, evidence.context.session.asked.get(evidence.model)
    verdict, findings = walks.check_answers(
        claim,
        evidence.issued,
        evidence.call_answers,
        malformed=evidence.is_malformed,
        as_loaded=evidence.reference is not None and evidence.reference.as_loaded,
    )
    record = walks.record_of(verdict, claim, evidence.issued, evidence.reference, context)
    if record is None and evidence.exchanged is not None and asked is not None:
        # Whoever shows another revision than it was asked for has answered nothing: it is as if it had been silent.
        record = walks.unanswered_record(asked, evidence.reference, context)
    history = evidence.history
    exhausted = exhaustion.judge_walk(
        evidence.issued,
        context.excuse_for(evidence.model, evidence.reference),
        read,
        history,
        context.now_ms,
    )
    if record is not None:
        history.append(record)
    standing, detail = walks.standing_of(
        history, verdict, evidence.reference, context, keeps=exhausted == "kept"
    )
    if standing == "called" and evidence.is_superseded:
        standing = "superseded"
    # If the pool had no walk, it is not for the node to have answered one.
    if detail and not (exhausted == "lost" and standing in ("stale", "announced")):
        findings = [*findings, Finding(f"weights.walk.{standing}", detail)]
    right_ms = walks.last_right_ms(history, standing)
    return _CheckedWalk(verdict, findings, record, standing, exhausted=exhausted, right_ms=right_ms)


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
        # The finding must not say what was expected: the pool's commitments are secret.
        code = "weights.cache.stale" if files.are_cached else "weights.read.wrong"
        detail = f"the challenge: windows {issued.windows}"
        return "wrong", [Finding(code, detail, cause=f"batch:{issued.batch}")]
    return "right", []


def _lacking(model: str, context: Context) -> list[Finding]:
    """Why a model has no reference value that is valid now."""
    if model not in context.references:
        return [Finding("weights.reference.unknown", f"there is no reference value for {model}")]
    return [Finding("weights.reference.expired", f"the reference value of {model} is not valid now")]


def _blocked(
    manifest: Manifest | None, reference: ModelReference | None, digests: frozenset[str]
) -> dict[str, str]:
    """By claim, what is blocked: a reference value or a file of this model."""
    if not digests:
        return {}
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
