"""A thousand streams at a time while nodes die: every client gets a whole answer or an explicit error."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fixtures.replies import made_up
from fixtures.streaming import Behaviour
from tests.integration.gateway import (
    STREAM,
    TABLE,
    EngineNode,
    Fleet,
    RouterProcess,
    Running,
    ask,
    by,
    opened,
)
from tests.unit.router.doubles import until

STREAMS, NODES, KILLED = 1000, 20, 2
TOKENS, TOKEN_S = 16, 0.15
PACED = Behaviour("slow", tokens=TOKENS, token_s=TOKEN_S)
PATIENT = {"connect_timeout_s": 30, "attempt_timeout_s": 30, "stall_s": 20, "timeout_s": 60}
"""All nodes are one process here, on what cores the rest of the suite leaves."""


@dataclass
class Crowd:
    """A router as a process of its own, twenty nodes of as many operators, and clients in one go."""

    fleet: Fleet
    router: RouterProcess
    nodes: list[EngineNode] = field(default_factory=list)

    async def one(self, http: aiohttp.ClientSession, number: int) -> str:
        """How one client's request ends."""
        content = f"story number {number}"
        try:
            heard = await ask(
                http, self.router.url, {**STREAM, "messages": [{"role": "user", "content": content}]}
            )
        except (aiohttp.ClientError, OSError) as error:
            return f"cut: {type(error).__name__}"
        if heard.status != 200:
            return "refused" if set(heard.error) == {"message", "type", "param", "code"} else "unclear"
        whole = made_up(content, TOKENS)
        if heard.done:
            return "whole" if heard.text == whole else "wrong"
        return "broken off" if heard.error is not None and whole.startswith(heard.text) else "unclear"

    def start(self, http: aiohttp.ClientSession) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self.one(http, number)) for number in range(STREAMS)]

    def under_way(self) -> int:
        return sum(node.engine.open + node.waiting for node in self.nodes)

    async def failed(self, node: EngineNode) -> float:
        """What is held against a node."""
        url = f"{self.router.url}/api/v1/nodes/{node.name}/standing"
        async with self.fleet.http.get(url, headers=by("auditor")) as response:
            tiers = (await response.json())["tiers"]
        seen: Any = tiers["small"]["seen_here"]["failed_weighted"]
        return float(seen["week"] if isinstance(seen, dict) else seen[1])

    def resident(self) -> int:
        """Bytes of memory that the router has."""
        assert self.router.process is not None
        status = Path(f"/proc/{self.router.process.pid}/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


@pytest.fixture
async def crowd(tmp_path: Path) -> AsyncIterator[Crowd]:
    async with opened(tmp_path, Running()) as fleet:
        router = RouterProcess(tmp_path / "router", fleet.verifier, gateway=PATIENT)
        router.write_table({**TABLE, "tiers": {"small": {"concurrency": 100}}})
        crowd = Crowd(fleet, router)
        crowd.nodes += [
            await fleet.engine(f"n{number:02}", PACED, operator=f"op-{number}") for number in range(NODES)
        ]
        await router.start()
        yield crowd
        await router.end()


@pytest.mark.timeout(120)
async def test_a_thousand_streams_while_nodes_die(crowd: Crowd) -> None:
    """None hangs, none is cut or spliced; only the dead are blamed; memory is what it was."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http, asyncio.timeout(60):
        # The first thousand, on which nothing happens: connections are opened, and memory grows to its size.
        assert Counter(await asyncio.gather(*crowd.start(http))) == {"whole": STREAMS}
        before = crowd.resident()

        dice = random.Random(20)
        dead = dice.sample(crowd.nodes, KILLED)
        for node in crowd.nodes:
            node.gate.clear()
        tasks = crowd.start(http)
        await until(lambda: crowd.under_way() == STREAMS, 20)
        for node in crowd.nodes:
            node.gate.set()
        for node in dead:
            await asyncio.sleep(dice.uniform(0.2, 0.9))
            node.engine.kill()
        ends = Counter(await asyncio.gather(*tasks))
    assert set(ends) <= {"whole", "broken off", "refused"}
    assert ends["whole"] >= STREAMS * 0.8
    assert ends["broken off"] > 0
    assert {node.name for node in crowd.nodes if await crowd.failed(node) > 0} == {node.name for node in dead}
    assert crowd.under_way() == 0
    assert crowd.resident() < 1.2 * before + (8 << 20)
