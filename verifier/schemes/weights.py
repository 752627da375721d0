"""
The `model/NAME` submodules: manifest, `read` and `walk` against reference and challenge.

What a walk shows depends on how it was asked for.  One that the verifier called at a
secret moment, answered by the serving process in time, shows that this node has the
weights loaded; one that the node announced itself shows only that it can get at them.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Final

from attester.evidence import Manifest, ReadAnswer, WalkAnswer, model_submod
from attester.weights.possession import commitment
from verifier.schemes import manifest as manifests
from verifier.schemes import rates
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
from verifier.schemes.facts import ManifestFact, ModelFacts, ReadFact, UnknownFacts, WalkFact

_MEDIAN_OF: Final = 5
_SHARED_OF: Final = 3
"""So many simultaneous calls, and so many alone, before anything is said of a shared device."""
_SHARED_MS: Final = 100
"""Shorter walks say nothing of it."""
_IN_TIME: Final = 1000
"""Thousandths of the deadline."""


def check(model: str, submods: Submods, context: Context) -> CheckedSubmod:
    """Say what is true of one model."""
    submod = model_submod(model)
    reference, findings = _in_force(model, context)
    asked = _asked_of(reference, context.session.asked.get(model, IssuedChallenges()))
    expired = reference is None and model in context.references
    if error := submods.errors.get(submod):
        findings.append(_malformed(error.claim, str(error)))
    if submod not in submods.read and submod not in submods.errors:
        findings.append(Finding("weights.model.missing", f"no submodule {submod}"))
    findings += [
        Finding("challenges.exhausted", f"the pool of {kind} for {model} is empty")
        for kind in asked.exhausted
        if kind == "read" or reference is None or reference.tensor_bytes
    ]

    malformed = submod in submods.errors
    listed: Manifest | None = submods.claim(submod, "manifest")
    manifest: ManifestFact = "malformed"
    manifest_findings: list[Finding] = []
    held_to = reference
    if not malformed:
        manifest, manifest_findings, held_to = _manifest(listed, reference, model, context)
    if manifest == "unknown" and expired:
        manifest = "expired"
    cached = manifest in ("equal", "aged") and listed is not None and listed.cached is not None
    # The clock stops at the answers: evidence for a call that none came ahead of has none.
    answered = None
    if context.session.channel == "call":
        answered = (context.session.answers or {}).get(model, Answers())
    read, read_findings = _read(
        submods.claim(submod, "read"), asked, answered, malformed=malformed, cached=cached
    )
    walk_claim: WalkAnswer | None = submods.claim(submod, "walk")
    walk, walk_findings = _walk(walk_claim, asked, answered, malformed=malformed)
    if manifest == "superseded":
        # The challenges are of the value in force: whoever still has the one before cannot meet them.
        if read == "wrong":
            read, read_findings = "superseded", []
        if walk == "wrong":
            walk, walk_findings = "superseded", []
    findings += [*manifest_findings, *read_findings, *walk_findings]

    # Also a walk that is not held against it now is kept as wrong: else who cannot answer one would
    # claim the files of before for that one session.
    record = _record(walk, walk_claim, asked, reference, context)
    history = [
        *(r for r in context.history.get(model, ()) if r.reference == _digest(reference)),
        *((record,) if record else ()),
    ]
    standing, detail = _standing(history, walk, reference, context)
    if walk == "superseded":
        standing, detail = "superseded", ""
    if detail:
        findings.append(Finding(f"weights.walk.{standing}", detail))

    may_affirm = {}
    if manifest == "equal" and read == "right":
        may_affirm["file-system"] = 2
    if standing == "called":
        may_affirm["executables"] = -2
    return CheckedSubmod(
        facts=ModelFacts(manifest=manifest, read=read, walk=standing),
        findings=tuple(findings),
        may_affirm=may_affirm,
        assurance=CHALLENGED if read == "right" or standing == "called" else DECLARED,
        measured=_rates(record, asked, reference, context) if walk == "right" else {},
        walk=record,
        passed=_passed(manifest, read, walk, asked, reference),
        reference=None if reference is None else reference.digest,
        blocked=_blocked(listed, (reference, held_to), context.blocks.digests),
    )


def _asked_of(reference: ModelReference | None, asked: IssuedChallenges) -> IssuedChallenges:
    """
    What was asked of the value in force.

    One that came into force while a session waited was not asked about: answers to challenges of
    the value before say nothing of it, and must count for nothing.
    """
    if reference is None:
        return asked
    return IssuedChallenges(
        asked.read if asked.read is not None and asked.read.reference in (None, reference.digest) else None,
        asked.walk if asked.walk is not None and asked.walk.reference in (None, reference.digest) else None,
        asked.exhausted,
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


def _manifest(
    listed: Manifest | None, reference: ModelReference | None, model: str, context: Context
) -> tuple[ManifestFact, list[Finding], ModelReference | None]:
    """The files against the value in force, or else against those it has replaced; and which it was."""
    max_age_s = context.thresholds.manifest_max_age_s
    found, findings = manifests.compare(listed, reference, context.now_ms, max_age_s)
    if found != "differs":
        return found, findings, reference
    for earlier in context.superseded.get(model, ()):
        # A value that another has replaced is a warning for a while, not a mismatch.
        if manifests.compare(listed, earlier, context.now_ms, max_age_s)[0] in ("equal", "aged"):
            detail = f"the files are those of {earlier.digest}, which another value has replaced"
            return "superseded", [Finding("weights.reference.superseded", detail)], earlier
    return found, findings, reference


def _blocked(
    listed: Manifest | None, references: Sequence[ModelReference | None], digests: frozenset[str]
) -> dict[str, str]:
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


def _read(
    claim: ReadAnswer | None,
    asked: IssuedChallenges,
    answered: Answers | None,
    *,
    malformed: bool,
    cached: bool,
) -> tuple[ReadFact, list[Finding]]:
    if asked.read is None:
        return "unasked", []
    if malformed:
        return "malformed", []
    if claim is None:
        return "missing", [Finding("weights.read.missing", "asked, and no answer in the evidence")]
    if answered is not None and answered.read != claim.answer.hex():
        return "differs", [
            Finding("weights.answers.differ", "the read answer is not the one given to the call")
        ]
    if not hmac.compare_digest(commitment(claim.answer), asked.read.commitment):
        # Never what was expected: the pool's commitments are nobody's business.
        code = "weights.cache.stale" if cached else "weights.read.wrong"
        return "wrong", [
            Finding(code, f"{asked.read.windows} windows asked", cause=f"batch:{asked.read.batch}")
        ]
    return "right", []


def _walk(
    claim: WalkAnswer | None, asked: IssuedChallenges, answered: Answers | None, *, malformed: bool
) -> tuple[str, list[Finding]]:
    if asked.walk is None:
        return "unasked", []
    if malformed:
        return "malformed", []
    if claim is None:
        return "missing", [Finding("weights.walk.missing", "asked, and no answers in the evidence")]
    if len(claim.answers) != asked.walk.rows:
        detail = f"{len(claim.answers)} answers where {asked.walk.rows} rows were asked"
        return "malformed", [Finding("weights.walk.malformed", detail)]
    if answered is not None and answered.walk != tuple(a.hex() for a in claim.answers):
        return "differs", [
            Finding("weights.answers.differ", "the walk answers are not those given to the call")
        ]
    right = [
        hmac.compare_digest(commitment(claim.answers[row]), expected)
        for row, expected in asked.walk.commitments.items()
    ]
    if not right or not all(right):
        # Which rows are checked stays secret, also from one who answers some of them.
        return "wrong", [
            Finding(
                "weights.walk.wrong",
                f"{asked.walk.rows} rows, {asked.walk.passes} passes asked",
                cause=f"batch:{asked.walk.batch}",
            )
        ]
    return "right", []


def _digest(reference: ModelReference | None) -> str:
    return "" if reference is None else reference.digest


def _record(
    walk: str,
    claim: WalkAnswer | None,
    asked: IssuedChallenges,
    reference: ModelReference | None,
    context: Context,
) -> WalkRecord | None:
    if walk == "unasked" or asked.walk is None:
        return None
    return WalkRecord(
        channel=context.session.channel,
        verdict="right" if walk == "right" else "wrong",
        at_ms=context.now_ms,
        source=claim.source if claim is not None else "file",
        lateness=_lateness(context),
        passes=asked.walk.passes,
        reference=_digest(reference),
        rows=asked.walk.rows,
        wide=asked.walk.wide,
        together=context.session.together > 1,
        ms=context.session.answer_ms if _walks_asked(context) == 1 else None,
    )


def _walks_asked(context: Context) -> int:
    return sum(asked.walk is not None for asked in context.session.asked.values())


def _lateness(context: Context) -> int | None:
    """The time the answers took, in thousandths of the deadline for all that was asked at once."""
    hardware = context.thresholds.classes.get(context.node.hardware_class)
    if context.session.answer_ms is None or hardware is None:
        return None
    needed_ms = 0
    for model, asked in context.session.asked.items():
        if asked.walk is None:
            continue
        if model not in context.references:
            return None
        needed_ms += rates.needed_ms(context.references[model], asked.walk.rows, asked.walk.passes, hardware)
    return context.session.answer_ms * 1000 // (hardware.allowance_ms + 3 * needed_ms)


def _standing(
    history: Sequence[WalkRecord], walk: str, reference: ModelReference | None, context: Context
) -> tuple[WalkFact, str]:
    """What the node's walks amount to now, and, where it is less than all, why."""
    answered = [record for record in history if record.verdict != "missed"]
    calls = [record for record in history if record.channel == "call"]
    called = [record for record in calls if record.verdict != "missed"]
    # Without tensors in the reference no walk can be asked, so none can be owed.
    if not history or (reference is not None and reference.tensor_bytes == 0):
        return ("none", "")
    # A wrong answer to a call is made good by a right answer to a call, and by nothing else.
    if answered and "wrong" in (answered[-1].verdict, *(record.verdict for record in called[-1:])):
        # Of this session's walk a finding says it already; of an earlier one, it must be said,
        # without making a second incident of it.
        this = walk not in ("unasked", "right")
        return ("wrong", "") if this else ("unredeemed", "the last answer to a call was wrong")
    missed = next((n for n, record in enumerate(reversed(calls)) if record.verdict != "missed"), len(calls))
    if missed >= context.thresholds.missed_limit:
        return "missed", f"the last {missed} calls were not answered"
    right = [record for record in called if record.verdict == "right"]
    if not right:
        return "announced", "no walk has been answered when called"
    return _of_calls(right, reference, context)


def _of_calls(
    right: Sequence[WalkRecord], reference: ModelReference | None, context: Context
) -> tuple[WalkFact, str]:
    """What right answers to calls amount to: where from, how old, and in what time."""
    last = right[-1]
    if last.source != "engine":
        return "from-file", "the answers came from the files"
    if context.now_ms - last.at_ms > context.thresholds.walk_max_age_s * 1000:
        return "stale", f"no right walk within {context.thresholds.walk_max_age_s} s"
    hardware = context.thresholds.classes.get(context.node.hardware_class)
    timed = [record.lateness for record in right[-_MEDIAN_OF:] if record.lateness is not None]
    if hardware is None or reference is None or not timed:
        return "untimed", "no deadline could be set for it"
    late = median(timed)
    if late > _IN_TIME:
        return "late", f"median {late / _IN_TIME:.1f} times the deadline"
    slowdown = slowdown_permille(right)
    if slowdown is not None and slowdown > context.thresholds.shared_permille:
        return "shared", f"called together with others it takes {slowdown / 1000:.1f} times as long as alone"
    if hardware.host_link is not None:
        # What a cheat must bring over the host link who keeps only an int8 copy on the device.
        fetch_ms = reference.tensor_bytes * last.passes * 200 // hardware.host_link
        if fetch_ms <= hardware.allowance_ms:
            return "untimed", f"a fifth of the weights comes over the host link in {fetch_ms} ms"
    return "called", ""


def slowdown_permille(right: Sequence[WalkRecord]) -> int | None:
    """
    How much longer wide walks take when the operator's other nodes are called at the same moment.

    In thousandths of the time alone; `None` before there are enough of both.  Two nodes on
    one device come out at about 2,000, or, where it serves one after the other, at 1,500 on
    average; nodes with a device each at 1,000.  A mean, since no median sees the second case.
    """
    wide = [record for record in right if record.wide and record.ms]
    # Only like with like, and nothing so short that the network is most of it.
    wide = [record for record in wide if (record.rows, record.passes) == (wide[-1].rows, wide[-1].passes)]
    alone = [record.ms or 0 for record in wide if not record.together][-_MEDIAN_OF:]
    together = [record.ms or 0 for record in wide if record.together][-_MEDIAN_OF:]
    if len(alone) < _SHARED_OF or len(together) < _SHARED_OF or median(alone) < _SHARED_MS:
        return None
    # Without the slowest: one answer may have been late for a reason of its own.
    return int(mean(sorted(together)[:-1]) * 1000 / median(alone))


def _rates(
    record: WalkRecord | None, asked: IssuedChallenges, reference: ModelReference | None, context: Context
) -> Mapping[str, int | str]:
    """The rate a called walk showed: a lower bound, rounded down to two digits."""
    taken = context.session.answer_ms
    if record is None or asked.walk is None or reference is None or not taken:
        return {}
    # In what the weights hold: a cheat may keep them compressed.
    moved = reference.information_bytes * asked.walk.passes
    # Rows that nobody checks may not have been computed.
    checked = len(asked.walk.commitments)
    return {
        "walk_bytes_per_second": _two_digits(moved * 1000 // taken),
        "walk_int8_ops_per_second": _two_digits(2 * moved * checked * 1000 // taken),
        "walk_source": record.source,
    }


def _two_digits(value: int) -> int:
    scale = int("1" + "0" * max(len(str(value)) - 2, 0))
    return value // scale * scale


def _passed(
    manifest: str, read: str, walk: str, asked: IssuedChallenges, reference: ModelReference | None
) -> tuple[str, ...]:
    causes: set[str] = set()
    # The manifest alone is the node's word: it speaks for the reference only with the bytes behind it.
    if manifest in ("equal", "aged", "extra") and read == "right" and reference is not None:
        causes.update(f"{code}@reference:{reference.digest}" for code in manifests.MISMATCHES)
    if read == "right" and asked.read is not None:
        causes.update(
            f"{code}@batch:{asked.read.batch}" for code in ("weights.read.wrong", "weights.cache.stale")
        )
    if walk == "right" and asked.walk is not None:
        causes.add(f"weights.walk.wrong@batch:{asked.walk.batch}")
    return tuple(sorted(causes))


def unknown(name: str) -> CheckedSubmod:
    """A submodule of a kind this verifier has no scheme for."""
    finding = Finding("evidence.submod.unknown", f"submodule {name[:80]!r}")
    return CheckedSubmod(UnknownFacts(), (finding,), bound="unknown")
