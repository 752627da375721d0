"""
What a node's place is worth, for its operator: the documented formula with its inputs (docs/incentives.md).

Of others there are counts alone.  All nodes stand where their measured work puts them, whatever they are suspected of:
an operator must not learn from a count that an answer was found wrong (docs/checking-answers.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from router.choose.candidates import LANES, CandidateIndex, Key, Lane
from router.choose.expected_share import Crowd, Member
from router.choose.improvements import LANE_OF_GRADE, Place, Worth, improvements_of, member_of, worth_of
from router.choose.ranking import CandidateFacts, score
from router.choose.trials import STAGES, Stage, stage_of
from router.model.standing import HALF_LIVES_S, UNKNOWN_LATENCY_S, Rating
from router.model.workload import Workload
from router.state.fleet import Fleet
from router.state.pool import WorkloadPool

MOST_COMPARED: Final = 1000
"""Nodes of a lane that a node is compared with; of larger lanes, so many that stand evenly spread in it."""
A_DAY: Final = math.log(2) * 86400 / HALF_LIVES_S[1]
"""Requests a day, of a count that is halved every week and stays as it is."""


def describe(fleet: Fleet, node: str, workload: Workload) -> dict[str, Any]:
    """The worth of a node's place for a workload, with every input, as JSON-compatible data."""
    place = find_place(fleet, node, workload)
    now = worth_of(place, workload)
    is_open = fleet.pool_for(workload).closed_by.get(node) is None
    shown = _show(now)
    inputs = {
        "lanes": {str(lane): n + (lane is now.lane) for lane, n in place.crowd.sizes.items()},
        "new": place.crowd.stages[Stage.NEW],
        "begun": place.crowd.stages[Stage.BEGUN],
        "came_before": place.crowd.came_before,
        "stage": member_of(place, workload).stage,
        "score_s": member_of(place, workload).ranked.score,
        "latency_s": place.rating.latency_s,
        "completion": place.rating.completion,
        "proven": place.proven,
        "evidence": place.rating.evidence,
        "tier_requests_a_day": place.tier_requests_a_day,
        "price": msgspec.to_builtins(workload.price_of(place.key[0], place.hardware_class)),
        "typical": msgspec.to_builtins(workload.typical),
        "second_is_worth": workload.second_is_worth,
        "probation_per_mille": workload.probation_per_mille,
        "degraded_per_mille": workload.degraded_per_mille,
        "concurrency": workload.concurrency,
    }
    improvements = []
    if not is_open:
        improvements.append({"what": "open", "was": "closed", "would_be": str(now.lane), **shown})
        shown = {**shown, "share": 0.0, "requests_a_day": 0.0, "income_a_day": 0.0, "ways": []}
    for each in improvements_of(place, workload) if is_open else ():
        gained = _show(each.worth)
        more = {name: gained[name] - shown[name] for name in ("share", "requests_a_day", "income_a_day")}
        improvements.append(
            {"what": each.what, "was": each.was, "would_be": each.would_be, **gained, "more": more}
        )
    return {"formula": "docs/incentives.md", "inputs": inputs, "now": shown, "improvements": improvements}


def _show(worth: Worth) -> dict[str, Any]:
    return {
        "lane": worth.lane,
        "share": worth.expected.share,
        "ways": msgspec.to_builtins(worth.expected.ways),
        "at_a_time": worth.at_a_time,
        "most_a_day": worth.most_a_day,
        "requests_a_day": worth.requests_a_day,
        "income_a_day": worth.income_a_day,
    }


def find_place(fleet: Fleet, node: str, workload: Workload) -> Place:
    """Where a node stands by what was measured of it, and among which others."""
    pool, view = fleet.pool_for(workload), fleet.view(node)
    statistics = fleet.statistics(node, workload.standing_key)
    rating = Rating() if statistics is None else statistics.rating
    key = view.operator, node
    came = math.inf if view.enrolled is None else float(view.enrolled)
    crowd = _look_around(fleet, pool, key, came, workload)
    evidence = rating.evidence
    for lane, found in crowd.members.items():
        if found:
            evidence += sum(m.ranked.evidence for m in found) / len(found) * crowd.sizes[lane]
    return Place(
        key=key,
        rating=rating,
        hardware_class=view.vouched_class if workload.prices_by_hardware else "",
        proven=0.0 if statistics is None else statistics.proven,
        crowd=crowd,
        is_measured=rating.latency_s < UNKNOWN_LATENCY_S,
        tier_requests_a_day=evidence * A_DAY,
    )


def _look_around(fleet: Fleet, pool: WorkloadPool, key: Key, came: float, workload: Workload) -> Crowd:
    """The others, each where it stands by its work with nothing under way."""
    members: dict[Lane, list[Member]] = {lane: [] for lane in LANES}
    sizes = dict.fromkeys(LANES, 0)
    stages = {stage: len(pool.stages[stage]) - (pool.stage(key[1]) is stage) for stage in STAGES}
    came_before = pool.new.count_before(key, came)
    begun = [_member(pool, other, Lane.PROBATION, workload) for other in _some(pool.begun, key)]
    for lane, index in pool.lanes.items():
        stands = Lane.PROBATION if lane is Lane.WARMING else lane
        sizes[stands] += len(index) - (pool.lane(key[1]) is lane)
        # Suspicions are few, and each is looked at: none of them may show.
        for other in _some(index, key, most=len(index) if lane is Lane.DEGRADED else MOST_COMPARED):
            where: Lane = stands
            if lane is Lane.DEGRADED and workload.model in fleet.suspected(other[1]):
                where = LANE_OF_GRADE[pool.facts(other[1]).rating.grade]
                sizes[lane] -= 1
                sizes[where] += 1
            member = _member(pool, other, where, workload)
            members[where].append(member)
            if member.stage is not None and lane is not Lane.PROBATION:
                stages[member.stage] += 1
                came_before += member.stage is Stage.NEW and (pool.enrolled(other[1]), other) < (came, key)
                begun += [member] if member.stage is Stage.BEGUN else []
    return Crowd(sizes=sizes, stages=stages, members=members, begun=begun, came_before=came_before)


def _some(index: CandidateIndex, key: Key, *, most: int = MOST_COMPARED) -> Iterator[Key]:
    """About *most* nodes, evenly spread; not *key*."""
    for position in range(0, len(index), max(1, -(-len(index) // max(most, 1)))):
        if (other := index.at(position)) != key:
            yield other


def _member(pool: WorkloadPool, key: Key, lane: Lane, workload: Workload) -> Member:
    facts = pool.facts(key[1])
    at_rest = CandidateFacts(facts.rating, hardware_class=facts.hardware_class)
    return Member(
        score(key, lane, at_rest, workload), stage_of(facts.rating) if lane is Lane.PROBATION else None
    )
