"""
What walks show of a node: one answer held against its challenge, and all answers together over time.

What a walk shows depends on how it was asked for.  A walk that the verifier called for at a
secret moment, and that the serving process answered in time, shows that this node has the
weights loaded.  A walk that the node announced itself shows only that it can get at them.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Final

from attester.evidence import WalkAnswer
from attester.weights.possession import commitment
from verifier.schemes import rates
from verifier.schemes.base import (
    Answers,
    Context,
    Finding,
    IssuedChallenges,
    ModelReference,
    WalkRecord,
)
from verifier.schemes.facts import WalkFact

_MEDIAN_OF: Final = 5
_SHARED_OF: Final = 3
"""So many simultaneous calls, and so many alone, before anything is said of a shared device."""
_SHARED_MS: Final = 100
"""Shorter walks say nothing of it."""
_IN_TIME: Final = 1000
"""Thousandths of the deadline."""


def check_answers(
    claim: WalkAnswer | None, issued: IssuedChallenges, answered: Answers | None, *, malformed: bool
) -> tuple[str, list[Finding]]:
    """One session's answers: right, wrong, missing, malformed, differs (from those of the call) or unasked."""
    if issued.walk is None:
        return "unasked", []
    if malformed:
        return "malformed", []
    if claim is None:
        return "missing", [Finding("weights.walk.missing", "asked, and no answers in the evidence")]
    if len(claim.answers) != issued.walk.rows:
        detail = f"{len(claim.answers)} answers where {issued.walk.rows} rows were asked"
        return "malformed", [Finding("weights.walk.malformed", detail)]
    if answered is not None and answered.walk != tuple(a.hex() for a in claim.answers):
        return "differs", [
            Finding("weights.answers.differ", "the walk answers are not those given to the call")
        ]
    right = [
        hmac.compare_digest(commitment(claim.answers[row]), expected)
        for row, expected in issued.walk.commitments.items()
    ]
    if not right or not all(right):
        # Which rows are checked stays secret, also from one who answers some of them.
        return "wrong", [
            Finding(
                "weights.walk.wrong",
                f"{issued.walk.rows} rows, {issued.walk.passes} passes asked",
                cause=f"batch:{issued.walk.batch}",
            )
        ]
    return "right", []


def record_of(
    walk: str,
    claim: WalkAnswer | None,
    issued: IssuedChallenges,
    reference: ModelReference | None,
    context: Context,
) -> WalkRecord | None:
    """What later appraisals must know of this session's walk; `None` if none was asked."""
    if walk == "unasked" or issued.walk is None:
        return None
    return WalkRecord(
        channel=context.session.channel,
        verdict="right" if walk == "right" else "wrong",
        at_ms=context.now_ms,
        source=claim.source if claim is not None else "file",
        lateness=_lateness(context),
        passes=issued.walk.passes,
        reference="" if reference is None else reference.digest,
        rows=issued.walk.rows,
        wide=issued.walk.wide,
        together=context.session.together > 1,
        ms=context.session.answer_ms if _walks_asked(context) == 1 else None,
    )


def _walks_asked(context: Context) -> int:
    return sum(issued.walk is not None for issued in context.session.asked.values())


def _lateness(context: Context) -> int | None:
    """The time the answers took, in thousandths of the deadline for all that was asked at once."""
    hardware = context.thresholds.classes.get(context.node.hardware_class)
    if context.session.answer_ms is None or hardware is None:
        return None
    needed_ms = 0
    for model, issued in context.session.asked.items():
        if issued.walk is None:
            continue
        if model not in context.references:
            return None
        needed_ms += rates.needed_ms(
            context.references[model], issued.walk.rows, issued.walk.passes, hardware
        )
    return context.session.answer_ms * 1000 // (hardware.allowance_ms + 3 * needed_ms)


def standing_of(
    history: Sequence[WalkRecord], walk: str, reference: ModelReference | None, context: Context
) -> tuple[WalkFact, str]:
    """What the node's walks amount to now, and the reason if that is less than the best."""
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


def measured_rates(
    record: WalkRecord | None, issued: IssuedChallenges, reference: ModelReference | None, context: Context
) -> Mapping[str, int | str]:
    """The rate a called walk showed: a lower bound, rounded down to two digits."""
    taken = context.session.answer_ms
    if record is None or issued.walk is None or reference is None or not taken:
        return {}
    # In what the weights hold: a cheat may keep them compressed.
    moved = reference.information_bytes * issued.walk.passes
    # Rows that nobody checks may not have been computed.
    checked = len(issued.walk.commitments)
    return {
        "walk_bytes_per_second": _two_digits(moved * 1000 // taken),
        "walk_int8_ops_per_second": _two_digits(2 * moved * checked * 1000 // taken),
        "walk_source": record.source,
    }


def _two_digits(value: int) -> int:
    scale = int("1" + "0" * max(len(str(value)) - 2, 0))
    return value // scale * scale
