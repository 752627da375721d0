"""``cache_salt``: what nodes get to keep tenants' prompts apart by, and what they do not learn from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from router.gateway.request import Tenant
from router.gateway.salting import Salts
from router.model.prefix import HEAD
from tests.integration.checking import Recorded, record
from tests.integration.gateway import CHATS, TEXT, TEXTS, VECTORS, WORK, Fleet, by, key, opened
from tests.unit.router.doubles import Moved
from tests.unit.router.support import MODEL

VLLM = {"runtime": {"engine": "vllm", "version": "0.32.0"}}
LLAMA = {"runtime": {"engine": "llama.cpp", "version": "b1"}}
LONG = "You answer for a shop that sells tea. " * 20
DAY_S = 86400.0


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


async def start(fleet: Fleet, engine: Any = VLLM, **workload: Any) -> list[Recorded]:
    """A node with this engine; all that it sees from now on."""
    node = await fleet.engine("a", claims=engine)
    await fleet.start(workload, sections={"keys": [key("ada"), key("bob")]})
    return record(node)


async def ask(fleet: Fleet, who: str = "ada", text: str = "tell me", **more: Any) -> int:
    messages = [{"role": "system", "content": LONG}, {"role": "user", "content": text}]
    return (await fleet.ask({"model": MODEL, "messages": messages, **more}, CHATS, **by(who))).status


def salts(seen: list[Recorded]) -> list[str]:
    return [each.document["cache_salt"] for each in seen]


async def test_a_tenants_prompts_that_begin_alike_share_a_salt(fleet: Fleet) -> None:
    seen = await start(fleet)
    for text in ("a story", "another story"):
        await ask(fleet, text=text)
    first, second = salts(seen)
    assert first == second
    assert len(first) == 32


async def test_two_tenants_never_share_one(fleet: Fleet) -> None:
    seen = await start(fleet)
    for who in ("ada", "bob"):
        await ask(fleet, who)
    assert len(set(salts(seen))) == 2


async def test_a_salt_does_not_link_a_tenants_requests_that_begin_otherwise(fleet: Fleet) -> None:
    seen = await start(fleet)
    for prompt in ("one", "two"):
        await fleet.ask(TEXT | {"prompt": prompt}, TEXTS, **by("ada"))
    assert len(set(salts(seen))) == 2


async def test_what_differs_after_the_head_does_not_count(fleet: Fleet) -> None:
    seen = await start(fleet)
    for end in ("one", "two"):
        await fleet.ask(TEXT | {"prompt": "x" * HEAD + end}, TEXTS, **by("ada"))
    assert len(set(salts(seen))) == 1


async def test_the_callers_own_salt_is_combined_and_not_passed_on(fleet: Fleet) -> None:
    seen = await start(fleet)
    await ask(fleet)
    await ask(fleet, cache_salt="mine")
    await ask(fleet, cache_salt="mine")
    await ask(fleet, "bob", cache_salt="mine")
    assert len(set(salts(seen))) == 3
    assert salts(seen)[1] == salts(seen)[2]
    assert not any(b"mine" in each.body for each in seen)


async def test_there_is_one_salt_and_it_comes_first(fleet: Fleet) -> None:
    seen = await start(fleet)
    await ask(fleet, cache_salt="mine")
    assert seen[0].body.startswith(b'{"cache_salt":"')
    assert seen[0].body.count(b"cache_salt") == 1


def test_salts_are_others_tomorrow() -> None:
    moved = Moved()
    made, tenant = Salts(moved.clock()), Tenant("key:ada")
    today = made.salt_of(tenant, b"head")
    assert made.salt_of(tenant, b"head") == today
    moved.forward(DAY_S)
    assert made.salt_of(tenant, b"head") != today


def test_two_routers_make_other_salts() -> None:
    """Nobody who knows a tenant's name and its prompt can tell its salt."""
    clock, tenant = Moved().clock(), Tenant("key:ada")
    assert Salts(clock).salt_of(tenant, b"head") != Salts(clock).salt_of(tenant, b"head")


def test_no_two_of_tenant_own_salt_and_head_run_together() -> None:
    made = Salts(Moved().clock())
    found = {
        made.salt_of(Tenant("ab", ""), b"c"),
        made.salt_of(Tenant("a", "b"), b"c"),
        made.salt_of(Tenant("a", "bc"), b""),
        made.salt_of(Tenant("abc", ""), b""),
    }
    assert len(found) == 4


@pytest.mark.parametrize("engine", [LLAMA, {}], ids=["another engine", "no engine"])
async def test_other_engines_get_none_and_not_the_callers_either(fleet: Fleet, engine: Any) -> None:
    seen = await start(fleet, engine)
    await ask(fleet, cache_salt="mine")
    assert "cache_salt" not in seen[0].document


async def test_a_workload_can_do_without(fleet: Fleet) -> None:
    seen = await start(fleet, cache_salt=False)
    await ask(fleet, cache_salt="mine")
    assert "cache_salt" not in seen[0].document


async def test_embeddings_have_none(fleet: Fleet) -> None:
    seen = await start(fleet)
    await fleet.ask(WORK, VECTORS, **by("ada"))
    assert "cache_salt" not in seen[0].document


@pytest.mark.parametrize("salt", ["", 5, ["a"], {}, False, "a" * 1025])
async def test_a_salt_that_is_none_is_refused(fleet: Fleet, salt: Any) -> None:
    seen = await start(fleet)
    assert await ask(fleet, cache_salt=salt) == 400
    assert seen == []


@pytest.mark.parametrize("name", ["Cache_Salt", "CACHE_SALT"])
async def test_a_salt_in_another_spelling_is_refused(fleet: Fleet, name: str) -> None:
    await start(fleet)
    assert await ask(fleet, **{name: "mine"}) == 400


async def test_a_salt_of_null_is_none(fleet: Fleet) -> None:
    seen = await start(fleet)
    await ask(fleet, cache_salt=None)
    await ask(fleet)
    assert len(set(salts(seen))) == 1
