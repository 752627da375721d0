"""Pools of callers with requirements of their own: who is in them, what they cost, and how long they are kept."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.choose.decision import Decision, decide, replay
from router.choose.gates import GateVerdict
from router.model.errors import ReplayError
from router.model.outcomes import Outcome
from router.model.requirements import read_requirements
from router.state import narrowed, narrowings
from router.state.narrowed import NarrowedPool
from router.state.narrowings import TooManyRequirementsError
from tests.unit.router.drawn import DrawnFleet, fleets, seeds
from tests.unit.router.support import MODEL, NOW
from tests.unit.router.test_fleet import GOOD, WORKLOAD, Told

DIGEST = "ab" * 32


async def narrow(told: Told, caller: str = "caller", **required: Any) -> NarrowedPool:
    workload = told.workloads[0]
    return await told.fleet.narrowings.prepare(workload, read_requirements(required, workload), caller)


async def decision_of(told: Told, seed: int = 0, **required: Any) -> Decision:
    pool = await narrow(told, **required)
    return decide(told.fleet.view_for(told.workloads[0], pool), told.workloads[0], seed)


def nodes_of(found: Decision) -> set[str]:
    return {ranked.node for ranked in found.ranked}


# Who is ranked.


async def test_only_nodes_that_meet_them_are_ranked() -> None:
    """Whatever is drawn."""
    told = Told()
    told.put("a", "b", revision=DIGEST)
    told.put("c", "d", "e", "f", revision="cd" * 32)
    for seed in range(20):
        assert nodes_of(await decision_of(told, seed, reference=[DIGEST])) == {"a", "b"}


async def test_the_counts_say_who_meets_them_and_who_does_not() -> None:
    """Each node once, by the first gate that is closed to it."""
    told = Told()
    told.put("a", revision=DIGEST)
    told.put("b", "c")
    told.put("d", revoked=True)
    told.do(*[Outcome.BUSY] * 3, node="b")
    found = await decision_of(told, reference=[DIGEST])
    assert (found.met, found.closed) == (1, {"requirements.reference": 2, "result.revoked": 1})
    assert not found.is_unmet


async def test_nobody_meets_them() -> None:
    told = Told()
    told.put("a", "b")
    found = await decision_of(told, nodes=["c"])
    assert found.is_unmet
    assert (found.ranked, found.met, found.closed) == ((), 0, {"requirements.node": 2})


async def test_if_nobody_may_do_the_work_at_all_the_requirements_are_not_the_cause() -> None:
    """Then it is 503, as it is for everybody."""
    told = Told()
    told.put("a", revoked=True)
    assert not (await decision_of(told, nodes=["c"])).is_unmet


async def test_a_node_that_meets_them_and_is_full_is_not_unmet() -> None:
    """It may have room in a moment."""
    told = Told()
    told.put("a", "b")
    for _ in range(WORKLOAD.concurrency):
        told.fleet.start_work("a", WORKLOAD)
    found = await decision_of(told, nodes=["a"])
    assert (found.ranked, found.met, found.is_unmet) == ((), 1, False)
    assert found.closed == {"capacity.full": 1, "requirements.node": 1}


async def test_a_silent_verifier_closes_them_too() -> None:
    told = Told()
    told.put("a")
    told.ticks += 61
    found = await decision_of(told, nodes=["b"])
    assert (found.ranked, found.is_unmet) == ((), False)


@settings(max_examples=60, deadline=None)
@given(
    fleets(),
    seeds,
    st.sampled_from(
        [
            {"max_age_s": 30},
            {"not_operators": ["acme"]},
            {"operators": ["acme", "beta"]},
            {"claims": {"platform": ["instance-identity"]}},
            {"nodes": ["a", "b", "ab"]},
        ]
    ),
)
def test_requirements_never_let_a_node_in(fleet: DrawnFleet, seed: int, required: dict[str, Any]) -> None:
    """Whoever is ranked under requirements stands in a lane of the workload's own, and the record replays."""
    made = fleet.fleet()
    preparing = made.narrowings.prepare(fleet.workload, read_requirements(required, fleet.workload), "caller")
    with pytest.raises(StopIteration) as done:
        preparing.send(None)
    found = decide(made.view_for(fleet.workload, done.value.value), fleet.workload, seed)
    for ranked in found.ranked:
        assert made.lane(ranked.node, fleet.workload) is ranked.lane
        assert made.narrowings.verdict(made.view(ranked.node), fleet.workload, found.required) is None
    assert sum(found.lanes.values()) <= sum(
        decide(made.view_for(fleet.workload), fleet.workload, seed).lanes.values()
    )
    again = Decision.from_wire(found.to_wire())
    assert (again, replay(again)) == (found, found)


# Events.


async def test_time_alone_puts_a_node_out() -> None:
    """And a new result brings it back."""
    told = Told()
    told.put("a", "b")
    assert (await decision_of(told, max_age_s=60)).met == 2
    told.forward(30)
    told.put("b")
    told.forward(31)
    found = await decision_of(told, max_age_s=60)
    assert (found.met, nodes_of(found)) == (1, {"b"})
    told.put("a")
    assert (await decision_of(told, max_age_s=60)).met == 2


async def test_a_clock_that_is_set_ahead_puts_nodes_out() -> None:
    told = Told()
    told.put("a")
    assert (await decision_of(told, max_age_s=60)).met == 1
    told.ms += 100_000
    assert (await decision_of(told, max_age_s=60)).met == 0


async def test_what_happens_to_a_node_happens_to_it_here() -> None:
    """It is revoked, comes anew, moves to another operator, is released, and gets other lanes."""
    told = Told()
    told.put("a", "b", operator="acme")
    pool = await narrow(told, operators=["acme"])
    assert pool.met == 2
    told.put("a", revoked=True, operator="acme")
    assert pool.met == 1
    told.put("a", operator="beta")
    assert (pool.met, pool.closed) == (1, {"requirements.operator": 1})
    told.put("a", standing=GOOD, operator="acme")
    assert (pool.met, pool.sizes) == (2, told.fleet.view_for(WORKLOAD).pool.sizes)
    told.put("c", operator="acme")
    assert pool.met == 3
    told.fleet.drop_node("c")
    assert pool.met == 2


async def test_another_table_makes_another_pool() -> None:
    """The old one hears of nothing any more."""
    told = Told()
    told.put("a")
    old = await narrow(told, nodes=["a"])
    told.fleet.use_table(told.fleet.table)
    told.put("a", revoked=True)
    new = await narrow(told, nodes=["a"])
    assert (new is not old, new.met) == (True, 0)


# What they cost.


async def test_a_decision_looks_at_no_node_once_the_pool_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: events keep it up to date."""
    told = Told()
    told.put(*[f"n{n}" for n in range(300)])
    seen: list[str] = []
    real = narrowed.find_unmet

    def counted(node: Any, *rest: Any) -> GateVerdict | None:
        seen.append(node.node)
        return real(node, *rest)

    monkeypatch.setattr(narrowed, "find_unmet", counted)
    await narrow(told, max_age_s=100)
    assert len(seen) == 300
    for seed in range(50):
        await decision_of(told, seed, max_age_s=100)
    assert len(seen) == 300
    told.put("n7")
    assert seen[300:] == ["n7"]


async def test_requirements_that_name_nodes_look_at_those_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    told.put(*[f"n{n}" for n in range(300)])
    pool = await narrow(told, nodes=["n1", "n2", "gone"])
    assert (len(pool), pool.met, pool.closed) == (2, 2, {"requirements.node": 298})


async def test_work_goes_on_while_a_large_pool_is_made() -> None:
    """And two callers who want the same wait for one."""
    told = Told()
    told.put(*[f"n{n:04}" for n in range(450)])
    first = asyncio.create_task(narrow(told, max_age_s=100))
    second = asyncio.create_task(narrow(told, "another", max_age_s=100))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not first.done()
    # What happens meanwhile counts, to those that were looked at and to those that were not.
    told.put("n0000", "n0449", revoked=True)
    one, other = await first, await second
    assert (one is other, one.met, one.closed) == (True, 448, {"result.revoked": 2})


async def test_a_caller_that_leaves_does_not_end_it_for_another() -> None:
    told = Told()
    told.put(*[f"n{n:04}" for n in range(450)])
    first = asyncio.create_task(narrow(told, max_age_s=100))
    second = asyncio.create_task(narrow(told, "another", max_age_s=100))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).met == 450


async def test_a_caller_may_cost_so_much_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own requirements are refused then, and nobody else's; what it has asked for before is still there."""
    monkeypatch.setattr(narrowings, "CHECKS_PER_MINUTE", 100)
    told = Told()
    told.put(*[f"n{n}" for n in range(40)])
    await narrow(told, max_age_s=100)
    await narrow(told, max_age_s=101)
    with pytest.raises(TooManyRequirementsError) as caught:
        await narrow(told, max_age_s=102)
    assert 0 < caught.value.retry_after <= 61
    await narrow(told, max_age_s=101)
    await narrow(told, "another", max_age_s=102)
    told.forward(60)
    await narrow(told, max_age_s=103)


async def test_the_pools_that_are_not_used_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowings, "MAX_POOLS", 3)
    told = Told()
    told.put("a")
    for age in range(10, 20):
        await narrow(told, max_age_s=10)
        await narrow(told, max_age_s=age)
        assert len(told.fleet.narrowings) <= 3
    kept = await narrow(told, max_age_s=10)
    told.put("a", revoked=True)
    assert kept.met == 0


async def test_a_pool_that_nobody_uses_is_dropped() -> None:
    told = Told()
    told.put("a")
    await narrow(told, max_age_s=10)
    told.forward(301)
    await narrow(told, max_age_s=11)
    assert len(told.fleet.narrowings) == 1


async def test_all_pools_together_keep_so_many_nodes_in_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowings, "MAX_KEPT", 25)
    told = Told()
    told.put(*[f"n{n}" for n in range(10)])
    for age in range(10, 20):
        await narrow(told, max_age_s=age)
    assert len(told.fleet.narrowings) == 3


# The record.


async def test_the_record_has_them_and_replays() -> None:
    told = Told()
    told.put("a", "b", revision=DIGEST, operator="acme")
    found = await decision_of(told, reference=[DIGEST], operators=["acme"], not_nodes=["x"])
    wire = json.loads(msgspec.json.encode(found.to_wire()))
    assert wire["required"] == {"reference": [DIGEST], "operators": ["acme"], "not_nodes": ["x"]}
    assert replay(Decision.from_wire(wire)) == found


@pytest.mark.parametrize(
    "required",
    [{"nodes": ["b"]}, {"not_nodes": ["a"]}, {"operators": ["beta"]}, {"reference": ["cd" * 32]}],
    ids=str,
)
async def test_a_record_that_ranks_whom_the_caller_excludes_is_refused(required: dict[str, Any]) -> None:
    told = Told()
    told.put("a", revision=DIGEST, operator="acme")
    wire = (await decision_of(told, max_age_s=60)).to_wire()
    with pytest.raises(ReplayError, match="requirements exclude"):
        replay(Decision.from_wire({**wire, "required": required}))


async def test_who_is_kept_out_is_explained_by_what_it_lacks() -> None:
    told = Told()
    told.put("a", revision=DIGEST)
    told.put("b")
    found = await decision_of(told, reference=[DIGEST])
    assert found.required is not None
    excluded = told.fleet.narrowings.excluded(WORKLOAD, found.required, NOW * 1000)
    assert {node: verdict.code for node, verdict in excluded.items()} == {"b": "requirements.reference"}
    shortfalls = told.fleet.narrowings.shortfalls(WORKLOAD, found.required)
    assert list(shortfalls) == [f"its reference value of {MODEL} is none that its result names"]


async def test_a_node_that_loses_what_it_met_is_told_apart() -> None:
    """As it is asked before each attempt."""
    told = Told()
    told.put("a", revision=DIGEST)
    found = await decision_of(told, reference=[DIGEST])
    told.put("a", revision="cd" * 32)
    assert found.required is not None
    verdict = told.fleet.narrowings.verdict(told.fleet.view("a"), WORKLOAD, found.required)
    assert verdict is not None
    assert verdict.code == "requirements.reference"
