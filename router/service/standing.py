"""A node's standing, the reasons, and what would raise it: for its operator."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web

from router.choose.gates import CODES, GateVerdict
from router.model.quantiles import quantile
from router.model.standing import ESTABLISHED_LOWER, PROVEN, Grade, Rating, Standing
from router.model.statistics import SERIES, NodeStatistics
from router.model.tool_calls import compare_calls
from router.model.workload import Workload
from router.service import worth
from router.service.state import STATE, State
from router.state.fleet import Fleet
from verifier.errors import RequestError
from verifier.reasons import REASONS
from verifier.service.access import caller_of
from verifier.service.http import json_response

_QUANTILES: Final = (0.5, 0.9, 0.99)
_WHAT_HELPS: Final = {
    "standing.little-evidence": f"complete work: about {PROVEN} requests without a failure make a node established",
    "standing.failing": "complete what is begun; a failure weighs three, and is half forgotten after an hour and a week",
    "standing.unreliable": "complete what is begun: fewer than three in a hundred may fail for good standing",
    "standing.bad-hour": "complete what is begun: the last hour was worse than the week, and is forgotten within hours",
    "standing.unclean": "keep to the protocol to the end ([DONE]) and claim the tokens that were delivered",
    "standing.first-token-p90": "give the first token sooner",
    "standing.first-token-p99": "give the first token sooner, also at the worst of times",
    "standing.token-p90": "give tokens faster",
    "standing.token-p99": "give tokens faster, also at the worst of times",
    "standing.answer-p90": "answer sooner",
    "standing.answer-p99": "answer sooner, also at the worst of times",
    "standing.proven": "nothing more is needed: established nodes are told apart by their pace alone",
}

_WHAT_OPENS: Final = {
    "identity.retired": "enrol it again with a new token",
    "identity.endpoint": "set [serve] in the attester's configuration, and let the engine's TLS key sign",
    "result.missing": "run the attester: touchstone attester check",
    "result.revoked": "look at the node's result at the verifier; another one follows the next call",
    "result.untimely": "nothing: the clock of the router or of the verifier is wrong",
    "result.expired": "keep the attester running, and its call channel open",
    "result.old": "keep the attester running, and its call channel open",
    "result.no-submod": "give evidence of what is missing; if it is a model, enrol the node with it",
    "result.assurance": "the workload asks for evidence that the node does not give",
    "result.revision": "serve a revision of the model that the workload asks for",
    "result.verifier-exhausted": "nothing: the verifier's operator must mint challenges",
    "incident.quarantine": "a person must review the incident",
    "incident.operator": "it waits for the review of the operator's other node",
    "address.not-allowed": "nothing: it is for the router's operator to set [gateway] allow_private in router.toml",
    "address.pending": "nothing: it takes some seconds at most",
    "address.malformed": "set [serve] url in the attester's configuration to an https URL in plain ASCII",
    "floors.pace": "give tokens faster; the slow hour passes",
    "capacity.full": "nothing: it has all the work it may have",
    "capacity.warming": "complete work: what it is given at a time grows with that",
    "capacity.breaker": "be reachable and answer; one request at a time tries it again",
    "capacity.silent": "be reachable over TLS with the key of the evidence",
}
"""What an operator can do about a closed gate; for other codes, the gate's own sentence says it."""


async def show(request: web.Request) -> web.Response:
    """A node's standing, by workload and by tier.  An operator sees that of its own nodes."""
    state = request.app[STATE]
    node = request.match_info["id"]
    only = caller_of(request).only_operator
    if node not in state.fleet or only not in (None, state.fleet.view(node).operator):
        # The same for both: which nodes others have is not told.
        raise RequestError("no such node is known", code="request.not-found")
    standing = standing_of(state, node, tells_suspicion=only is None)
    for name, workload in state.fleet.table.workloads.items():
        standing["workloads"][name]["worth"] = worth.describe(state.fleet, node, workload)
    return json_response(standing)


def standing_of(state: State, node: str, *, tells_suspicion: bool = False) -> dict[str, Any]:
    """
    Everything that the router knows of a node.

    What is suspected of its answers is for those who review it.  To its operator all is as its measured work has it:
    an operator must not learn which answers were held against others.
    """
    fleet, now = state.fleet, state.clock.unix()
    fleet.advance()
    view = fleet.view(node)
    heartbeat = fleet.heartbeat(node)
    return {
        "node": node,
        "operator": view.operator,
        "phi": None if heartbeat is None else round(max(heartbeat.phi(state.clock.monotonic()), 0.0), 2),
        "workloads": {
            name: _place(fleet, node, name, tells_suspicion=tells_suspicion) for name in fleet.table.workloads
        },
        "tiers": {
            tier: _of_tier(statistics, now) for tier, statistics in fleet.statistics_by_tier(node).items()
        },
    }


def _place(fleet: Fleet, node: str, name: str, *, tells_suspicion: bool) -> dict[str, Any]:
    workload = fleet.table.workloads[name]
    verdict = fleet.verdict(node, workload)
    lane = (fleet.lane if tells_suspicion else fleet.earned_lane)(node, workload)
    is_suspected = workload.model in fleet.suspected(node)
    return {
        **({"suspected": is_suspected} if tells_suspicion else {}),
        "model": workload.model,
        "tier": workload.standing_key,
        "lane": None if verdict is not None and lane is None else lane,
        "closed": None if verdict is None else msgspec.to_builtins(verdict),
        "tool_calls": _compare_calls(fleet, node, workload),
        "what_would_help": _help(fleet, node, workload, verdict),
    }


def _compare_calls(fleet: Fleet, node: str, workload: Workload) -> dict[str, float | None]:
    """How a node's calls of tools compare with the usual, as the ranking has it for work with tools."""
    statistics, usual = (
        fleet.statistics(node, workload.standing_key),
        fleet.view_for(workload).pool.usual_calls,
    )
    rating = Rating() if statistics is None else statistics.rating
    return {
        "usual_good_share": None if usual is None else round(usual, 4),
        "compared": round(compare_calls(rating.calls, rating.bad_calls, usual), 4),
    }


def _help(fleet: Fleet, node: str, workload: Workload, verdict: GateVerdict | None) -> str:
    if verdict is None:
        statistics = fleet.statistics(node, workload.standing_key)
        why = "standing.little-evidence" if statistics is None else statistics.rating.why
        return _WHAT_HELPS.get(why, "")
    result = fleet.view(node).result
    if verdict.code == "result.not-affirming" and result is not None:
        reasons = [r.code for a in result.submods.values() for r in a.ear_verifier_claims.reasons]
        hints = [REASONS[code].hint for code in dict.fromkeys(reasons) if code in REASONS]
        return " ".join(hints) or CODES[verdict.code]
    return _WHAT_OPENS.get(verdict.code) or CODES.get(verdict.code, "")


def _of_tier(statistics: NodeStatistics, now: float) -> dict[str, Any]:
    own = statistics.own.decayed_to(now)
    rating = statistics.rating
    lacking = max(PROVEN - own.completed[1], 0) if rating.grade is Grade.PROBATION else 0
    return {
        "standing": rating.grade,
        "why": rating.why,
        "completion_lower_bound": round(rating.completion, 4),
        "established_from": ESTABLISHED_LOWER,
        "clean_lower_bound": round(own.clean()[0], 4),
        "evidence": round(rating.evidence, 1),
        "requests_to_go": round(lacking),
        "tool_calls": {
            "answers": round(rating.calls, 1),
            "bad": round(rating.bad_calls, 1),
            "good_share": round(1 - rating.bad_calls / rating.calls, 4) if rating.calls else None,
        },
        "usual_answer_s": statistics.own.latency_s,
        "under_way": statistics.load.in_flight,
        "failures_in_a_row": statistics.load.failures_in_a_row,
        "seen_here": _counts(own),
        "seen_by_others": {router: _counts(o.decayed_to(now)) for router, o in statistics.others.items()},
        "last_hour_s": {series: _quantiles(statistics, series, now) for series in SERIES},
    }


def _counts(standing: Standing) -> dict[str, Any]:
    names = ("hour", "week")
    return {
        "completed": dict(zip(names, (round(c, 1) for c in standing.completed), strict=True)),
        "failed_weighted": dict(zip(names, (round(c, 1) for c in standing.failed), strict=True)),
        "exchanges": round(standing.exchanges, 1),
        "rejects": round(standing.rejects, 1),
    }


def _quantiles(statistics: NodeStatistics, series: str, now: float) -> dict[str, Any]:
    counts = statistics.last_hour(series, now)
    found: dict[str, Any] = {"count": sum(counts.values())}
    for share in _QUANTILES:
        value = quantile(counts, share)
        found[f"p{share * 100:g}"] = None if value is None else round(value, 4)
    return found
