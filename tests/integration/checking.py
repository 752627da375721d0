"""A router that asks nodes what was answered already, and what nodes see of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from fixtures.streaming import StreamingEngine
from router.choose.candidates import Lane
from router.gateway.checks import Checks
from router.gateway.openai import GATEWAY
from router.model.traffic import ModelTraffic, describe
from router.model.uniform import write_uniform
from tests.integration.gateway import EngineNode, Fleet
from tests.unit.router.support import MODEL

OFTEN = {
    "established_per_mille": 500,
    "probation_per_mille": 500,
    "degraded_per_mille": 500,
    "suspected_per_mille": 500,
}


def sections(folder: Path, **checks: Any) -> dict[str, Any]:
    """The sections of a router that may ask the verifier for checks."""
    token = folder / "router.token"
    token.write_text("the-routers-key")
    return {"verifier": {"router_token_file": str(token)}, "checks": {**OFTEN, **checks}}


class Recorded:
    """A request as a node has seen it."""

    def __init__(
        self, node: str, at: float, path: str, head: list[tuple[bytes, bytes]], body: bytes, peer: Any
    ) -> None:
        self.node = node
        self.at = at
        self.path = path
        self.head = head
        self.body = body
        self.peer = peer
        self.open = 0
        """Others that the node was answering when it came."""

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(self.body)
        return found


def record(*nodes: EngineNode) -> list[Recorded]:
    """All that nodes see from now on, in the order in which it comes."""
    seen: list[Recorded] = []
    for node in nodes:
        _record(node, seen)
    return seen


def _record(node: EngineNode, seen: list[Recorded]) -> None:
    engine: StreamingEngine = node.engine
    answer = engine._answer

    async def recording(request: web.Request, behaviour: Any) -> web.StreamResponse:
        body = await request.read()
        peer = None if request.transport is None else request.transport.get_extra_info("peername")
        found = Recorded(
            node.name, asyncio.get_running_loop().time(), request.path, list(request.raw_headers), body, peer
        )
        found.open = engine.open - 1
        seen.append(found)
        return await answer(request, behaviour)

    engine._answer = recording  # type: ignore[method-assign]


class Minter:
    """Gives checks, each with an id of its own, and remembers what they ask."""

    def __init__(self, make: Callable[[str], dict[str, Any]], *, streamed: Callable[[], bool] = bool) -> None:
        self._make = make
        self._streamed = streamed
        self._ids = itertools.count()
        self.offered: dict[str, dict[str, Any]] = {}
        self.wanted: list[dict[str, Any]] = []

    def __call__(self, wanted: dict[str, Any]) -> dict[str, Any]:
        self.wanted.append(wanted)
        check = f"c-{next(self._ids)}"
        operation = wanted["wants"]["operation"]
        offered = {
            "id": check,
            "operation": operation,
            "body": self._make(operation),
            "streamed": self._streamed(),
        }
        self.offered[check] = offered
        return offered


def checks_of(fleet: Fleet) -> Checks:
    return fleet.app[GATEWAY].checks


def learn(fleet: Fleet, *like: dict[str, Any], operation: str = "chat.completions") -> None:
    """Let the router know its traffic, and that the verifier has checks: as after its first requests."""
    checks = checks_of(fleet)
    checks._models.add(MODEL)
    traffic = checks._traffic.setdefault(MODEL, ModelTraffic())
    for document in like * 60:
        form, added = write_uniform(
            document,
            generates=operation != "embeddings",
            with_logprobs=checks._dispatcher.fleet.table.workloads["tiny"].checks.logprobs,
            with_seed=True,
            seed=lambda: 1,
        )
        traffic.note(describe(form, operation, added))


async def check(fleet: Fleet, lane: Lane | None = None) -> dict[str, Any]:
    """Have a node asked now; what is reported of it."""
    checks, workload = checks_of(fleet), fleet.router.table.workloads["tiny"]
    pool = fleet.router.view_for(workload).pool
    checks._draw = float
    filled = [each for each in Lane if pool.sizes[each]]
    assert await checks._ask(workload, lane or filled[0])
    return list(fleet.verifier.given.values())[-1][-1]


async def settle(fleet: Fleet) -> None:
    """Wait until no check waits or is under way."""
    checks = checks_of(fleet)
    async with asyncio.timeout(20):
        while checks._tasks:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def asks(words: str, **given: Any) -> dict[str, Any]:
    """What a user asks."""
    return {"model": MODEL, "messages": [{"role": "user", "content": words}], **given}
