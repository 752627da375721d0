"""What people are shown of a change: its steps, the differences and their kinds, both arms and revisions side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from router.choose.difference import KINDS
from router.model.change import Arm
from router.model.comparison import TESTS, Comparison, Counted, find_worse, limit_of, sum_evidence
from router.model.quantiles import quantile
from router.model.table import read_table
from router.model.workload import Table
from router.service.state import State
from router.state.trial import Example, Sight
from router.store.changes import Change, Step

_PER_MILLION: Final = 1_000_000


def describe(state: State, change: Change) -> dict[str, Any]:
    """A change in short."""
    latest = state.changes.latest
    is_here = latest is not None and latest.change.id == change.id
    return {
        "id": change.id,
        "number": change.number,
        "stage": change.stage,
        "share_percent": change.share,
        "by": change.settings.by,
        "base": change.base,
        "table": change.digest,
        "compares": _compares(change),
        "decides_here": is_here and state.changes.trial is not None,
        "problem_here": state.changes.problem if change.is_live else "",
    }


def detail(
    state: State, change: Change, steps: Sequence[Step], sights: Mapping[str, Sight]
) -> dict[str, Any]:
    """All that is known of a change."""
    each = list(sights.values())
    shared, shadow = [sight.shared for sight in each], [sight.shadow for sight in each]
    bounds = change.settings.bounds
    return {
        **describe(state, change),
        "bounds": msgspec.to_builtins(bounds),
        "warnings": find_warnings(state, change) if change.is_live else [],
        "steps": [msgspec.to_builtins(step) for step in steps],
        "shadow": {
            "decided": sum(sight.decided for sight in each),
            "skipped": sum(sight.skipped for sight in each),
            "differences": _differences(each),
            "would_stop": find_worse(shadow, bounds),
            "tests": _tests(shadow, limit_of(bounds)),
        },
        "arms": {arm: arm_to_wire(Counted.sum(c.of(arm) for c in shared)) for arm in Arm},
        "revisions": _revisions(state, change, shared),
        "tests": _tests(shared, limit_of(bounds)),
        "routers": sorted(sights),
        "examples": [_example(example) for sight in each for example in sight.examples],
        "document": change.document.decode(errors="replace"),
    }


def _compares(change: Change) -> dict[str, str] | None:
    settings = change.settings
    if not settings.model:
        return None
    return {"model": settings.model, "from": settings.revision_from, "to": settings.revision_to}


def _differences(each: Sequence[Sight]) -> list[dict[str, Any]]:
    total: dict[tuple[str, str, str], int] = {}
    for sight in each:
        for workload, kinds in sight.differences.items():
            for kind, codes in kinds.items():
                for code, count in codes.items():
                    name = workload, kind, code
                    total[name] = total.get(name, 0) + count
    return [
        {"workload": workload, "kind": kind, "code": code, "count": count, "meaning": KINDS.get(kind, "")}
        for (workload, kind, code), count in sorted(total.items(), key=lambda item: (-item[1], item[0]))
    ]


def arm_to_wire(counted: Counted) -> dict[str, Any]:
    """The requests of an arm, or of a revision."""
    judged, found = counted.judged, {share: quantile(counted.times, share) for share in (0.5, 0.99)}
    answered = judged - counted.failed
    return {
        "requests": counted.requests,
        "excused": counted.excused,
        "failed": counted.failed,
        "refused": counted.refused,
        "retried": counted.retried,
        "failure_rate": round(counted.failed / judged, 6) if judged else None,
        "p50_s": None if found[0.5] is None else round(found[0.5], 4),
        "p99_s": None if found[0.99] is None else round(found[0.99], 4),
        "tokens": counted.tokens,
        "cost_exact": counted.cost,
        "cost": counted.cost / _PER_MILLION,
        "cost_per_answer": round(counted.cost / _PER_MILLION / answered, 6) if answered else None,
        "cost_per_million_tokens": round(counted.cost / counted.tokens, 6) if counted.tokens else None,
    }


def _tests(each: Sequence[Comparison], limit: float) -> dict[str, dict[str, float]]:
    """Each test's odds against "it is not worse", as a power of ten, and those at which it stops the change."""
    found = sum_evidence(each)
    return {
        name: {
            "odds_log10": round(found.get(name, 0.0) / math.log(10), 2),
            "stops_at_log10": round(limit / math.log(10), 2),
        }
        for name in TESTS
    }


def _revisions(state: State, change: Change, each: Sequence[Comparison]) -> dict[str, dict[str, Any]]:
    """
    Requests by the revision of the node that was tried first, whatever the arm; and what checks of answers have led to.

    A node is suspected by the verifier's word, if its answers for the model have differed from what they must be.
    """
    settings = change.settings
    names = {name for comparison in each for arm in comparison.counts.values() for name in arm if name}
    names |= {settings.revision_from, settings.revision_to} - {""}
    found = {}
    for name in sorted(names):
        counted = Counted.sum(arm[name] for c in each for arm in c.counts.values() if name in arm)
        arms = {arm: Counted.sum([c.counts.get(arm, {}).get(name, Counted()) for c in each]) for arm in Arm}
        nodes = state.fleet.nodes_of_revision(name, settings.model) if settings.model else None
        suspected = (
            None if nodes is None else [n for n in nodes if settings.model in state.fleet.suspected(n)]
        )
        found[name] = {
            **arm_to_wire(counted),
            "requests_by_arm": {arm: arms[arm].requests for arm in Arm},
            "nodes": None if nodes is None else len(nodes),
            "suspected_for_answers": None if suspected is None else len(suspected),
        }
    return found


def _example(example: Example) -> dict[str, Any]:
    return dict(msgspec.to_builtins(example))


def find_warnings(state: State, change: Change) -> list[str]:
    """What a person should know of a candidate before it decides about anybody's request."""
    candidate, active = read_table(change.document), state.fleet.table
    known = {model for name in active.workloads for model in (active.workloads[name].model,)}
    own = {workload.model for workload in candidate.workloads.values()}
    found = [
        f"no workload is for {model} any more: its requests stay with the table in force"
        for model in sorted(known - own)
    ]
    found += [
        f"no workload is for {model} now: it is served once this is promoted" for model in sorted(own - known)
    ]
    found += [
        f"{name} is a workload no more: callers and keys that name it are refused once this is promoted"
        for name in sorted(set(active.workloads) - set(candidate.workloads))
    ]
    return found + _tier_warnings(active, candidate) + _pool_warnings(state, candidate)


def _tier_warnings(active: Table, candidate: Table) -> list[str]:
    found = []
    tiers = {workload.standing_key for workload in active.workloads.values()}
    for name, workload in sorted(candidate.workloads.items()):
        before = active.workloads.get(name)
        if workload.standing_key not in tiers:
            found.append(
                f"{name}: no standing is kept for the tier {workload.standing_key!r}: nodes begin anew in it"
            )
        if (
            before is not None
            and before.standing_key == workload.standing_key
            and _objectives(before) != _objectives(workload)
        ):
            found.append(
                f"{name}: its latency objectives count for standings once this is promoted, not before"
            )
    return found


def _objectives(workload: Any) -> tuple[int, ...]:
    names = (
        "first_token_p90_ms",
        "first_token_p99_ms",
        "token_p90_ms",
        "token_p99_ms",
        "answer_p90_ms",
        "answer_p99_ms",
    )
    return tuple(getattr(workload, name) for name in names)


def _pool_warnings(state: State, candidate: Table) -> list[str]:
    found = []
    for name, may in state.fleet.candidate_nodes().items():
        if not may and name in candidate.workloads:
            found.append(f"{name}: no node may do its work by this table now")
    return found
