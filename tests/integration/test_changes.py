"""Changes of the table of workloads, over real sockets: a bad candidate is stopped, and no client notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router.model.table import read_table
from tests.integration.gateway import CHAT, CHATS, EngineNode, Fleet, by, key, opened
from tests.unit.router.support import MODEL

KEYS = [
    key("ada"),
    key("bob"),
    key("root", roles=["administrator"]),
    key("auditor", roles=["auditor"]),
    key("rae", roles=["reviewer"]),
]
TIER: dict[str, Any] = {"hardware_classes": ["good"], "prices": {"*": {"input": 100, "output": 100}}}
ACTIVE: dict[str, Any] = {"tiers": {"small": TIER}, "workloads": {"tiny": {"model": MODEL, "tier": "small"}}}


def table(**tier: Any) -> dict[str, Any]:
    """The table in force, but for what is given of its tier."""
    return {**ACTIVE, "tiers": {"small": {**TIER, **tier}}}


def text(document: Any) -> str:
    return document if isinstance(document, str) else msgspec.json.encode(document).decode()


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(tmp_path) as fleet:
        yield fleet


async def begin(fleet: Fleet, folder: Path | None = None, **gateway: Any) -> tuple[EngineNode, EngineNode]:
    """A router over two nodes: the table in force takes the first alone."""
    good = await fleet.engine("good", operator="ops", hardware_class="good")
    bad = await fleet.engine("other", operator="ops", hardware_class="other")
    await start(fleet, folder, **gateway)
    return good, bad


async def start(fleet: Fleet, folder: Path | None, document: Any = ACTIVE, **gateway: Any) -> None:
    store = {} if folder is None else {"store": {"path": str(folder / "router.db")}}
    sections = {"keys": KEYS, **store, "checks": {"enabled": False}, **gateway.pop("sections", {})}
    await fleet.start(sections=sections, table=read_table(text(document).encode()), **gateway)


async def do(fleet: Fleet, path: str, body: Any, who: str = "root") -> tuple[int, Any]:
    async with fleet.http.post(f"{fleet.url}/api/v1/changes{path}", json=body, headers=by(who)) as response:
        return response.status, await response.json(content_type=None)


async def propose(fleet: Fleet, document: Any, **given: Any) -> str:
    status, found = await do(fleet, "", {"table": text(document), "reason": "cheaper", **given})
    assert status == 201, found
    return str(found["id"])


async def share(fleet: Fleet, change: str, percent: int, **given: Any) -> Any:
    status, found = await do(fleet, f"/{change}/share", {"percent": percent, "reason": "try", **given})
    assert status == 200, found
    return found


async def show(fleet: Fleet, change: str) -> Any:
    status, found = await fleet.get(f"/api/v1/changes/{change}", **by("auditor"))
    assert status == 200, found
    return found


def said(number: int, **given: Any) -> dict[str, Any]:
    """A conversation of its own."""
    return {**CHAT, "messages": [{"role": "user", "content": f"story {number}"}], **given}


async def send(fleet: Fleet, count: int, first: int = 0, *, who: str = "ada", **given: Any) -> list[int]:
    """So many conversations, one after the other; the status of each."""
    found = []
    for number in range(first, first + count):
        heard = await fleet.ask(said(number, **given), CHATS, **by(who))
        found.append(heard.status if not heard.streamed or heard.done else 599)
    return found


async def canary(fleet: Fleet, document: Any, percent: int = 50) -> str:
    """A candidate that has a share of the conversations."""
    change = await propose(fleet, document, by="conversation")
    await share(fleet, change, percent, anyway=True)
    return change


async def stopped(fleet: Fleet, change: str) -> Any:
    """The change, once it is written that it was stopped."""
    async with asyncio.timeout(10):
        while (found := await show(fleet, change))["stage"] == "share":
            await asyncio.sleep(0.02)
    assert found["stage"] == "stopped", found
    assert [step["step"] for step in found["steps"]][-1] == "stop"
    assert found["steps"][-1]["actor"] == "router"
    return found


async def test_one_that_sends_all_to_failing_nodes_is_stopped_and_no_client_notices(fleet: Fleet) -> None:
    _, bad = await begin(fleet)
    bad.behave("status", status=500)
    change = await canary(fleet, table(hardware_classes=["other"]))
    assert set(await send(fleet, 30)) == {200}
    found = await stopped(fleet, change)
    assert bad.engine.requests > 0
    assert found["arms"]["candidate"]["failed"] == found["arms"]["candidate"]["requests"]
    assert found["arms"]["active"]["failed"] == 0
    before = bad.engine.requests
    assert set(await send(fleet, 10, 100)) == {200}
    assert bad.engine.requests == before
