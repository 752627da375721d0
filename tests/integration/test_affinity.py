"""Prefix affinity as clients and operators see it: who goes where, and what the record says of it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from router.gateway.openai import GATEWAY
from tests.integration.gateway import CHATS, VECTORS, WORK, Fleet, by, key, opened
from tests.unit.router.support import MODEL

NODES = [f"n-{number}" for number in range(5)]
SHOP = "You answer for a shop that sells tea. " * 10


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        for name in NODES:
            await fleet.engine(name)
        yield fleet


async def start(fleet: Fleet, per_cent: int = 200) -> None:
    keys = [key("ada"), key("bob"), key("auditor", roles=["auditor"])]
    lanes = {"probation_per_mille": 0, "degraded_per_mille": 0}
    await fleet.start({"affinity_per_cent": per_cent, **lanes}, sections={"keys": keys})
    fleet.establish(*NODES)
    lots = random.Random(1)
    fleet.app[GATEWAY].dispatcher.seed = lambda: lots.getrandbits(63)


async def record(
    fleet: Fleet, who: str = "ada", system: str = SHOP, text: str = "", **more: Any
) -> dict[str, Any]:
    """The record of the decision on a chat."""
    said = [{"role": "system", "content": system}, {"role": "user", "content": text or "tell me"}]
    heard = await fleet.ask({"model": MODEL, "messages": said, **more}, CHATS, **by(who))
    assert heard.status == 200
    _, found = await fleet.get(f"/api/v1/decisions/{heard.headers['X-Touchstone-Decision']}", **by("auditor"))
    return dict(found)


async def firsts(fleet: Fleet, **asked: Any) -> set[str]:
    return {(await record(fleet, text=f"question {n}", **asked))["chosen"] for n in range(6)}


async def test_a_tenants_requests_that_begin_alike_go_to_one_node(fleet: Fleet) -> None:
    await start(fleet)
    assert len(await firsts(fleet)) == 1


async def test_it_is_off_unless_the_workload_says_so(fleet: Fleet) -> None:
    await start(fleet, 0)
    assert len(await firsts(fleet)) > 1
    assert (await record(fleet))["affinity"] is None


async def test_the_record_says_what_the_key_was_worth(fleet: Fleet) -> None:
    await start(fleet)
    found = await record(fleet)
    assert found["affinity"]["how"] in ("kept", "drawn")
    assert found["affinity"]["node"] == found["chosen"]
    assert found["seen"]["established"]["near"][found["affinity"]["key"]]


async def test_no_tenant_has_the_key_of_another(fleet: Fleet) -> None:
    await start(fleet)
    ada, bob = [await record(fleet, who) for who in ("ada", "bob")]
    assert ada["affinity"]["key"] != bob["affinity"]["key"]


async def test_what_a_tenant_names_takes_the_place_of_how_its_prompts_begin(fleet: Fleet) -> None:
    await start(fleet)
    keys = [
        (await record(fleet, system=system, prompt_cache_key=name))["affinity"]["key"]
        for system, name in (("one", "k"), ("two", "k"), ("two", "l"))
    ]
    assert keys[0] == keys[1] != keys[2]


async def test_a_name_is_not_the_beginning_of_a_prompt(fleet: Fleet) -> None:
    """Who names what another request begins with gets another key."""
    await start(fleet)
    named = await record(fleet, system="", prompt_cache_key="system\0" + SHOP)
    assert named["affinity"]["key"] != (await record(fleet))["affinity"]["key"]


async def test_a_gate_that_closes_moves_the_key(fleet: Fleet) -> None:
    await start(fleet)
    (before,) = await firsts(fleet)
    fleet.router.begin_hold(before, "hold")
    (after,) = await firsts(fleet)
    assert after != before
    fleet.router.end_hold(before, "hold")
    assert await firsts(fleet) == {before}


async def test_what_a_caller_requires_comes_first(fleet: Fleet) -> None:
    await start(fleet)
    (before,) = await firsts(fleet)
    found = await record(fleet, provider={"touchstone": {"not_nodes": [before]}})
    assert found["chosen"] != before
    assert found["affinity"]["how"] in ("kept", "drawn")


async def test_work_that_makes_no_text_has_no_key(fleet: Fleet) -> None:
    await start(fleet)
    heard = await fleet.ask(WORK, VECTORS, **by("ada"))
    _, found = await fleet.get(f"/api/v1/decisions/{heard.headers['X-Touchstone-Decision']}", **by("auditor"))
    assert found["affinity"] is None
