"""
What walks show of a node: one answer compared with its challenge, and all answers together over time.

What a walk shows depends on how it was asked for.  If the verifier called for it at a secret moment
and the serving process answered in time, it shows that this node has the weights loaded.  If the
node announced it, it shows only that the node can get them.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Final

import msgspec

from attester.evidence import WalkAnswer
from attester.weights.possession import commitment
from verifier.schemes import rates
from verifier.schemes.context import (
    Answers,
    Channel,
    Context,
    IssuedChallenges,
    ModelReference,
    WalkRecord,
)
from verifier.schemes.facts import WalkFact
from verifier.schemes.findings import Finding

_RECENT_WALKS: Final = 5
"""The median of this many walks counts."""
_MIN_SHARED_WALKS: Final = 3
"""This many simultaneous calls, and as many calls alone, show whether a device is shared."""
_MIN_SHARED_MS: Final = 100
"""Shorter walks do not show a shared device."""
_MAX_LATENESS: Final = 1000
"""Thousandths of the deadline."""
_WEIGHT: Final = 1000
"""Of one call of this moment."""
_HALF_LIFE_MS: Final = 12 * 3600 * 1000
"""The time in which a call's weight halves."""
_MIN_MISSED_WEIGHT: Final = 4 * _WEIGHT
"""Fewer missed calls say nothing of their share: five of the same hour weigh more than this."""


def check_answers(
    claim: WalkAnswer | None,
    issued: IssuedChallenges,
    call_answers: Answers | None,
    *,
    malformed: bool,
    as_loaded: bool = False,
) -> tuple[str, list[Finding]]:
    """
    One session's answers: right, wrong, missing, malformed, differs (from those given to the call), other or unasked.

    Args:
        as_loaded: Whether the reference value is of tensors as an engine has loaded them.  An honest node whose
            configuration says otherwise has walked something else: its answer is none, and it is not blamed for it.
    """
    if issued.walk is None:
        return "unasked", []
    if malformed:
        return "malformed", []
    if claim is None:
        return "missing", [Finding("weights.walk.missing", "the evidence has no answers to the walk")]
    if len(claim.answers) != issued.walk.rows:
        detail = f"there are {len(claim.answers)} answers to {issued.walk.rows} rows"
        return "malformed", [Finding("weights.walk.malformed", detail)]
    if call_answers is not None and call_answers.walk != tuple(a.hex() for a in claim.answers):
        return "differs", [
            Finding("weights.answers.differ", "the walk answers are not those that the node gave to the call")
        ]
    if as_loaded != (claim.source == "loaded"):
        walked = {"loaded": "the tensors as they are loaded", "file": "the files"}.get(
            claim.source, "the published tensors"
        )
        asked = "what its engine has loaded, as it is" if as_loaded else "the published tensors"
        return "other", [
            Finding("weights.walk.other", f"the node walked {walked}, and was asked for {asked}")
        ]
    right = [
        hmac.compare_digest(commitment(claim.answers[row]), expected)
        for row, expected in issued.walk.commitments.items()
    ]
    if not right or not all(right):
        # Which rows are checked must stay secret, even from a node that answers some of them.
        return "wrong", [
            Finding(
                "weights.walk.wrong",
                f"the challenge: rows {issued.walk.rows}, passes {issued.walk.passes}",
                cause=f"batch:{issued.walk.batch}",
            )
        ]
    return "right", []


def record_of(
    verdict: str,
    claim: WalkAnswer | None,
    issued: IssuedChallenges,
    reference: ModelReference | None,
    context: Context,
) -> WalkRecord | None:
    """What later appraisals must know of this session's walk; `None` if the session asked for none."""
    if verdict == "unasked" or issued.walk is None:
        return None
    return WalkRecord(
        channel=context.session.channel,
        # A walk of something else is no answer: it takes no more than silence does, and gives no more.
        verdict="right" if verdict == "right" else "missed" if verdict == "other" else "wrong",
        at_ms=context.now_ms,
        source=claim.source if claim is not None else "file",
        lateness=_lateness(context),
        passes=issued.walk.passes,
        reference="" if reference is None else reference.digest,
        rows=issued.walk.rows,
        wide=issued.walk.wide,
        together=context.session.together > 1,
        ms=context.session.answer_ms if _count_walks(context) == 1 else None,
    )


def unanswered_record(
    issued: IssuedChallenges, reference: ModelReference | None, context: Context
) -> WalkRecord | None:
    """
    What later appraisals must know if the node has shown another revision than the one whose walk was due.

    It is a missed walk of what it has shown; `None` if no walk was due.
    """
    if issued.walk is None and not {"walk", "wide"} & set(issued.exhausted):
        return None
    missed = WalkRecord(
        channel=context.session.channel,
        verdict="missed",
        at_ms=context.now_ms,
        reference="" if reference is None else reference.digest,
        together=context.session.together > 1,
    )
    walk = issued.walk
    if walk is None:
        return missed
    return msgspec.structs.replace(missed, passes=walk.passes, rows=walk.rows, wide=walk.wide)


def weighed(record: WalkRecord, history: Sequence[WalkRecord]) -> WalkRecord:
    """
    Give a new record the weights of right and of missed calls until now.

    Of calls missed in a row only the first counts.  From it on the node gets no work, so it gains nothing by the
    others; and a node that was away for an hour must not look like one that drops calls for a day.

    Args:
        history: The node's earlier walks of the model, oldest first.
    """
    if record.channel != Channel.CALLED:
        return record
    earlier = next((each for each in reversed(history) if each.channel == Channel.CALLED), None)
    right, missed = 0.0, 0.0
    if earlier is not None:
        aged = 0.5 ** (max(record.at_ms - earlier.at_ms, 0) / _HALF_LIFE_MS)
        right, missed = earlier.right_weight * aged, earlier.unanswered_weight * aged
    if record.verdict == "right":
        right += _WEIGHT
    elif record.verdict == "missed" and (earlier is None or earlier.verdict != "missed"):
        missed += _WEIGHT
    return msgspec.structs.replace(record, right_weight=round(right), unanswered_weight=round(missed))


def _answered_permille(calls: Sequence[WalkRecord]) -> int:
    """The share of calls that a node has answered over about a day, in thousandths; all of them if few were missed."""
    if not calls:
        return 1000
    last = calls[-1]
    if not (last.right_weight or last.unanswered_weight):
        # It is this session's, which is weighed when it is stored.
        last = weighed(last, calls[:-1])
    if last.unanswered_weight < _MIN_MISSED_WEIGHT:
        return 1000
    return last.right_weight * 1000 // (last.right_weight + last.unanswered_weight)


def _count_walks(context: Context) -> int:
    return sum(issued.walk is not None for issued in context.session.asked.values())


def _lateness(context: Context) -> int | None:
    """The time of the answers, in thousandths of the deadline for everything that was asked together."""
    hardware = context.thresholds.classes.get(context.node.hardware_class)
    session = context.session
    if session.answer_ms is None or session.read_ms is None or hardware is None:
        return None
    needed_ms = 0
    for model, issued in session.asked.items():
        if issued.walk is None:
            continue
        known = {each.digest: each for each in context.known(model)}
        walked = known.get(issued.walk.reference or "", context.references.get(model))
        if walked is None:
            return None
        needed_ms += rates.needed_ms(walked, issued.walk.rows, issued.walk.passes, hardware)
    return (session.read_ms + session.answer_ms) * 1000 // (hardware.allowance_ms + 3 * needed_ms)


def standing_of(
    history: Sequence[WalkRecord],
    verdict: str,
    reference: ModelReference | None,
    context: Context,
    *,
    keeps: bool = False,
) -> tuple[WalkFact, str]:
    """
    What the node's walks show now, and why if that is less than the best.

    Args:
        history: All walks, oldest first, with that of this session.
        verdict: Of this session's walk.
        keeps: Whether the last right walk counts however old it is.
    """
    answered = [record for record in history if record.verdict != "missed"]
    calls = [record for record in history if record.channel == Channel.CALLED]
    called = [record for record in calls if record.verdict != "missed"]
    # If the reference has no tensors, no walk can be asked, and none can be missed.
    if not history or (reference is not None and reference.tensor_bytes == 0):
        return ("none", "")
    # Only a right answer to a call makes a wrong answer to a call good.
    if answered and "wrong" in (answered[-1].verdict, *(record.verdict for record in called[-1:])):
        # If this session's walk is wrong, a finding says so already.  If an earlier one was, it must be said
        # again, but without a second incident.
        is_of_this_session = verdict not in ("unasked", "right")
        return ("wrong", "") if is_of_this_session else ("unredeemed", "the last answer to a call was wrong")
    missed = next((n for n, record in enumerate(reversed(calls)) if record.verdict != "missed"), len(calls))
    if missed >= context.thresholds.missed_limit:
        return "missed", f"the node did not answer the last {missed} calls"
    if (answered_permille := _answered_permille(calls)) < context.thresholds.answered_permille:
        return "missed", f"the node answered {answered_permille // 10} % of its calls with a walk"
    if missed:
        return "unanswered", "the node did not answer its last call with a walk"
    right = [record for record in called if record.verdict == "right"]
    if not right:
        return "announced", "the node has answered no call with a walk"
    return _standing_of_calls(right, reference, context, keeps=keeps)


def _standing_of_calls(
    right: Sequence[WalkRecord], reference: ModelReference | None, context: Context, *, keeps: bool
) -> tuple[WalkFact, str]:
    """What right answers to calls show, by their source, age and time."""
    last = right[-1]
    if last.source == "file":
        return "from-file", "the answers came from the files, not from the engine"
    age_ms = context.now_ms - last.at_ms
    # A walk from the future: the clock was set back since, and nobody knows how old it is.
    is_future = age_ms < -context.skew_s * 1000
    if is_future or (not keeps and age_ms > context.thresholds.walk_max_age_s * 1000):
        return "stale", f"the last right walk is older than {context.thresholds.walk_max_age_s} s"
    hardware = context.thresholds.classes.get(context.node.hardware_class)
    lateness = [record.lateness for record in right[-_RECENT_WALKS:] if record.lateness is not None]
    if hardware is None or reference is None or not lateness:
        return "untimed", "no deadline could be set for it"
    median_lateness = median(lateness)
    if median_lateness > _MAX_LATENESS:
        return "late", f"the median walk took {median_lateness / _MAX_LATENESS:.1f} times the deadline"
    slowdown = slowdown_permille(right)
    if slowdown is not None and slowdown > context.thresholds.shared_permille:
        return (
            "shared",
            f"called together with others, the node took {slowdown / 1000:.1f} times as long as alone",
        )
    if hardware.host_link is not None:
        # What a node must read from the host if it cheats and has only an int8 copy on the device.
        fetch_ms = reference.tensor_bytes * last.passes * 200 // hardware.host_link
        if fetch_ms <= hardware.allowance_ms:
            return "untimed", f"a fifth of the weights can be read from the host in {fetch_ms} ms"
    return "called", ""


def last_right_ms(history: Sequence[WalkRecord], standing: WalkFact) -> int | None:
    """
    When the last walk was that a node answered right when it was called, Unix milliseconds.

    It is `None` if there was none, or if something came after it by which it counts no more.
    """
    if standing in ("announced", "missed", "unredeemed", "wrong", "none"):
        return None
    right = (
        record.at_ms for record in history if record.channel == Channel.CALLED and record.verdict == "right"
    )
    return max(right, default=None)


def slowdown_permille(right: Sequence[WalkRecord]) -> int | None:
    """
    The time of wide walks when the operator's other nodes are called too, in thousandths of the time alone.

    It is `None` while there are too few of both.  If two nodes share one device, it is about 2,000; if
    the device serves one node after the other, it is 1,500 on average, which the mean shows and the
    median does not.  If each node has its own device, it is about 1,000.
    """
    wide = [record for record in right if record.wide and record.ms]
    # Only walks of the same size can be compared, and only if the network is a small part of their time.
    wide = [record for record in wide if (record.rows, record.passes) == (wide[-1].rows, wide[-1].passes)]
    alone = [record.ms or 0 for record in wide if not record.together][-_RECENT_WALKS:]
    together = [record.ms or 0 for record in wide if record.together][-_RECENT_WALKS:]
    if len(alone) < _MIN_SHARED_WALKS or len(together) < _MIN_SHARED_WALKS or median(alone) < _MIN_SHARED_MS:
        return None
    # The slowest is left out: one answer may have been late for another reason.
    return int(mean(sorted(together)[:-1]) * 1000 / median(alone))


def measured_rates(
    record: WalkRecord | None, issued: IssuedChallenges, reference: ModelReference | None, context: Context
) -> Mapping[str, int | str]:
    """The rates that a called walk showed: lower bounds, rounded down to two digits."""
    answer_ms = context.session.answer_ms
    if record is None or issued.walk is None or reference is None or not answer_ms:
        return {}
    if reference.as_loaded:
        # How many bytes the engine has loaded is not known.
        return {}
    # The information in the weights, not their bytes: a node may cheat and store them compressed.
    walked_bytes = reference.information_bytes * issued.walk.passes
    # Only the rows that are checked: the node may not have computed the others.
    checked_rows = len(issued.walk.commitments)
    return {
        "walk_bytes_per_second": _round_down(walked_bytes * 1000 // answer_ms),
        "walk_int8_ops_per_second": _round_down(2 * walked_bytes * checked_rows * 1000 // answer_ms),
        "walk_source": record.source,
    }


def _round_down(value: int) -> int:
    """*value* with two significant digits."""
    scale = int("1" + "0" * max(len(str(value)) - 2, 0))
    return value // scale * scale
