"""
The `model/NAME` submodules: manifest, `read` and `walk` against reference and challenge.

What a walk shows depends on how it was asked for.  One that the verifier called at a
secret moment, answered by the serving process in time, shows that this node has the
weights loaded; one that the node announced itself shows only that it can get at them.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

from attester.evidence import (
    Capabilities,
    Manifest,
    ReadAnswer,
    WalkAnswer,
    model_submod,
)
from attester.weights.possession import commitment
from verifier.schemes.base import (
    CHALLENGED,
    DECLARED,
    Answers,
    Asked,
    Checked,
    Context,
    Finding,
    HardwareClass,
    ModelReference,
    Submods,
    WalkRecord,
)

_MEDIAN_OF: Final = 5
_NAMED_FILES: Final = 3
"""How many files a finding names; the count is always there."""


def check(model: str, submods: Submods, context: Context) -> Checked:
    """Say what is true of one model."""
    submod = model_submod(model)
    asked = context.session.asked.get(model, Asked())
    reference = context.references.get(model)
    findings: list[Finding] = []
    if error := submods.errors.get(submod):
        findings.append(_malformed(error.claim, str(error)))
    if submod not in submods.read and submod not in submods.errors:
        findings.append(Finding("weights.model.missing", f"no submodule {submod}"))
    if reference is None:
        findings.append(Finding("weights.reference.unknown", f"no reference value for {model}"))
    findings += [
        Finding("challenges.exhausted", f"the pool of {kind} for {model} is empty")
        for kind in asked.exhausted
    ]

    malformed = submod in submods.errors
    manifest, manifest_findings = _manifest(submods.claim(submod, "manifest"), reference, malformed=malformed)
    # The clock stops at the answers: evidence for a call that none came ahead of has none.
    answered = None
    if context.session.channel == "call":
        answered = (context.session.answers or {}).get(model, Answers())
    read, read_findings = _read(submods.claim(submod, "read"), asked, answered, malformed=malformed)
    walk_claim: WalkAnswer | None = submods.claim(submod, "walk")
    walk, walk_findings = _walk(walk_claim, asked, answered, malformed=malformed)
    findings += [*manifest_findings, *read_findings, *walk_findings]

    hardware = _hardware_class(submods, context)
    record = _record(walk, walk_claim, asked, reference, hardware, context)
    history = (*context.history.get(model, ()), *((record,) if record else ()))
    standing, detail = _standing(history, walk, asked, reference, hardware, context)
    if detail:
        findings.append(Finding(f"weights.walk.{standing}", detail))

    may_affirm = {}
    if manifest == "equal" and read == "right":
        may_affirm["file-system"] = 2
    if standing == "called":
        may_affirm["executables"] = -2
    return Checked(
        facts={"kind": "model", "manifest": manifest, "read": read, "walk": standing},
        findings=tuple(findings),
        may_affirm=may_affirm,
        assurance=CHALLENGED if read == "right" or standing == "called" else DECLARED,
        measured=_rates(record, asked, reference, context) if walk == "right" else {},
        walk=record,
        passed=_passed(manifest, read, walk, asked, reference),
    )


def _malformed(claim: str, detail: str) -> Finding:
    code = {"manifest": "weights.manifest", "read": "weights.read", "walk": "weights.walk"}.get(claim)
    return Finding(f"{code}.malformed" if code else "evidence.claims.malformed", detail)


def _manifest(
    claim: Manifest | None, reference: ModelReference | None, *, malformed: bool
) -> tuple[str, list[Finding]]:
    if malformed:
        return "malformed", []
    if claim is None:
        return "missing", [Finding("weights.manifest.missing", "no manifest claim")]
    names = [file.name for file in claim.files]
    if len(set(names)) != len(names):
        return "malformed", [Finding("weights.manifest.malformed", "a file stands in it twice")]
    if reference is None:
        return "unknown", []
    present = {file.name: file for file in claim.files}
    missing = [name for name in reference.files if name not in present]
    differ = [n for n, file in reference.files.items() if n in present and present[n] != file]
    extra = [name for name in present if name not in reference.files]
    cause = f"reference:{reference.digest}"
    if missing:
        detail = f"{len(missing)} missing: {_some(missing)}"
        return "differs", [Finding("weights.manifest.mismatch", detail, cause=cause)]
    if differ:
        first = differ[0]
        return "differs", [
            Finding(
                "weights.manifest.mismatch",
                f"{len(differ)} differ: {_some(differ)}",
                expected=reference.files[first].sha256.hex(),
                actual=present[first].sha256.hex(),
                cause=cause,
            )
        ]
    if extra:
        return "extra", [Finding("weights.manifest.extra", f"{len(extra)} beyond it: {_some(extra)}")]
    return "equal", []


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:_NAMED_FILES])
    return shown if len(names) <= _NAMED_FILES else f"{shown}, …"


def _read(
    claim: ReadAnswer | None, asked: Asked, answered: Answers | None, *, malformed: bool
) -> tuple[str, list[Finding]]:
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
        return "wrong", [
            Finding(
                "weights.read.wrong",
                f"{asked.read.windows} windows asked",
                cause=f"batch:{asked.read.batch}",
            )
        ]
    return "right", []


def _walk(
    claim: WalkAnswer | None, asked: Asked, answered: Answers | None, *, malformed: bool
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


def _hardware_class(submods: Submods, context: Context) -> HardwareClass | None:
    capabilities: Capabilities | None = submods.claim("platform", "capabilities")
    if capabilities is None:
        return None
    return context.thresholds.classes.get(capabilities.hardware_class)


def _record(
    walk: str,
    claim: WalkAnswer | None,
    asked: Asked,
    reference: ModelReference | None,
    hardware: HardwareClass | None,
    context: Context,
) -> WalkRecord | None:
    if walk == "unasked" or asked.walk is None:
        return None
    lateness = 0
    if context.session.answer_ms is not None and reference is not None and hardware is not None:
        lateness = context.session.answer_ms * 1000 // _deadline_ms(reference, asked.walk.passes, hardware)
    return WalkRecord(
        channel=context.session.channel,
        verdict="right" if walk == "right" else "wrong",
        source=claim.source if claim is not None else "file",
        lateness=lateness,
        at_ms=context.now_ms,
    )


def _deadline_ms(reference: ModelReference, passes: int, hardware: HardwareClass) -> int:
    """``allowance + 3 · bytes · passes / class bandwidth``, milliseconds."""
    return hardware.allowance_ms + 3000 * reference.tensor_bytes * passes // hardware.bandwidth


def _standing(
    history: Sequence[WalkRecord],
    walk: str,
    asked: Asked,
    reference: ModelReference | None,
    hardware: HardwareClass | None,
    context: Context,
) -> tuple[str, str]:
    """What the node's walks amount to now, and, where it is less than all, why."""
    answered = [record for record in history if record.verdict != "missed"]
    if not history:
        return ("none", "")
    if answered and answered[-1].verdict == "wrong":
        # Of this session's walk a finding says it already; of an earlier one, it must be said,
        # without making a second incident of it.
        return ("wrong", "") if walk != "unasked" else ("unredeemed", "the last answer given was wrong")
    missed = 0
    for record in reversed(history):
        if record.verdict != "missed":
            break
        missed += 1
    if missed >= context.thresholds.missed_limit:
        return "missed", f"the last {missed} calls were not answered"
    called = [record for record in answered if record.channel == "call"]
    if not called:
        return "announced", "no walk has been called yet"
    if called[-1].source != "engine":
        return "from-file", "the answers came from the files"
    if context.now_ms - called[-1].at_ms > context.thresholds.walk_max_age_s * 1000:
        return "stale", f"no right walk within {context.thresholds.walk_max_age_s} s"
    if hardware is None:
        return "untimed", "the hardware class is unknown, so no deadline can be set"
    late = median(record.lateness for record in called[-_MEDIAN_OF:])
    if late > 1000:
        return "late", f"median {late / 1000:.1f} times the deadline"
    passes = asked.walk.passes if asked.walk else 1
    if hardware.host_link is not None and reference is not None:
        fetch_ms = reference.tensor_bytes * passes * 200 // hardware.host_link
        if fetch_ms <= hardware.allowance_ms:
            return "untimed", f"a fifth of the weights comes over the host link in {fetch_ms} ms"
    return "called", ""


def _rates(
    record: WalkRecord | None, asked: Asked, reference: ModelReference | None, context: Context
) -> Mapping[str, int | str]:
    """The rate a called walk showed: a lower bound, rounded down to two digits."""
    taken = context.session.answer_ms
    if record is None or asked.walk is None or reference is None or not taken:
        return {}
    moved = reference.tensor_bytes * asked.walk.passes
    return {
        "walk_bytes_per_second": _two_digits(moved * 1000 // taken),
        "walk_int8_ops_per_second": _two_digits(2 * moved * asked.walk.rows * 1000 // taken),
        "walk_source": record.source,
    }


def _two_digits(value: int) -> int:
    scale = int("1" + "0" * max(len(str(value)) - 2, 0))
    return value // scale * scale


def _passed(
    manifest: str, read: str, walk: str, asked: Asked, reference: ModelReference | None
) -> tuple[str, ...]:
    causes: set[str] = set()
    if manifest in ("equal", "extra") and reference is not None:
        causes.add(f"weights.manifest.mismatch@reference:{reference.digest}")
    if read == "right" and asked.read is not None:
        causes.add(f"weights.read.wrong@batch:{asked.read.batch}")
    if walk == "right" and asked.walk is not None:
        causes.add(f"weights.walk.wrong@batch:{asked.walk.batch}")
    return tuple(sorted(causes))


def unknown(name: str) -> Checked:
    """A submodule of a kind this verifier has no scheme for."""
    finding = Finding("evidence.submod.unknown", f"submodule {name[:80]!r}")
    facts: dict[str, Any] = {"kind": "unknown"}
    return Checked(facts, (finding,), bound="unknown")
