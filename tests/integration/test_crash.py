"""kill -9 right after an answer: what it acknowledged is there afterwards.  Under load: `test_kills.py`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import aiohttp
import pytest

from attester.client import VerifierClient
from fixtures.fleet import Fleet
from fixtures.published import publish
from fixtures.simulator import MODEL, SimulatedNode
from verifier.config import Home
from verifier.policy import bundle as bundles
from verifier.policy.archive import write_archive
from verifier.store.sqlite import SqliteDatabase


def prepare(fleet: Fleet, folder: Path) -> None:
    fleet.make_verifier()
    home = Home(fleet.verifier_home)

    async def fill() -> None:
        async with SqliteDatabase(home.database) as db:
            now_ms = time.time_ns() // 1_000_000
            await publish(db, home.pool_key(), folder, now_ms)

    asyncio.run(fill())


@pytest.mark.timeout(120)
def test_an_acknowledged_incident_survives(tmp_path: Path, model_folder: Path) -> None:
    """The node is still in quarantine after the verifier was killed right after its answer."""
    fleet = Fleet(tmp_path)
    try:
        prepare(fleet, model_folder)
        process = fleet.start_verifier()
        token = fleet.token("liar", MODEL)
        node = asyncio.run(report_and_kill(fleet, token, process.pid, SimulatedNode(model_folder)))
        process.wait()
        fleet.start_verifier()
        (incident,) = fleet.ask(f"incidents?node={node}")["incidents"]
        assert (incident["kind"], incident["state"]) == ("settlement-mismatch", "suspected")
    finally:
        fleet.stop()


async def report_and_kill(fleet: Fleet, token: str, pid: int, node: SimulatedNode) -> str:
    async with aiohttp.ClientSession() as http:
        given = await VerifierClient(http, fleet.verifier_url, node.key).enrol(token, [MODEL])
        headers = {"Authorization": f"Bearer {Home(fleet.verifier_home).token('router')}"}
        body = {"node": given["node"], "kind": "settlement-mismatch", "detail": "10 times too much"}
        url = f"{fleet.verifier_url}/api/v1/incidents"
        async with http.post(url, json=body, headers=headers) as response:
            assert response.status == 201
        os.kill(pid, signal.SIGKILL)
        return str(given["node"])


@pytest.mark.timeout(120)
def test_acknowledged_policies_and_blocks_survive(tmp_path: Path, model_folder: Path) -> None:
    """Published, promoted, blocked, each killed right after its answer: it is in force after the restart."""
    fleet = Fleet(tmp_path)
    try:
        prepare(fleet, model_folder)
        home = Home(fleet.verifier_home)
        base = bundles.load(home.path / "policy")
        manifest = {"name": "next", "version": "1", "author": "a", "description": "b"}
        bundle = bundles.of_files({**base.files, "bundle.json": json.dumps(manifest).encode()})
        archive = write_archive(bundle, bundles.sign(bundle, home.author_key()))
        why = {"actor": "kim", "reason": "because"}
        for path, body in (
            ("policies?actor=kim&reason=because", archive),
            (f"policies/{bundle.digest}/promote", json.dumps(why).encode()),
            (
                "policies/blocks",
                json.dumps({**why, "kind": "device", "value": "GPU-1", "anyway": True}).encode(),
            ),
        ):
            process = fleet.start_verifier()
            asyncio.run(ask_and_kill(f"{fleet.verifier_url}/api/v1/{path}", body, home, process.pid))
            process.wait()
        fleet.start_verifier()
        assert fleet.ask("policies/rollout")["active"] == bundle.id
        (block,) = fleet.ask("policies/blocks")["blocks"]
        assert block["value"] == "gpu-1"
        changes = fleet.ask("policies/history")["changes"]
        assert [c["action"] for c in changes][:3] == ["block", "promote", "publish"]
    finally:
        fleet.stop()


async def ask_and_kill(url: str, body: bytes, home: Home, pid: int) -> None:
    headers = {"Authorization": f"Bearer {home.token('admin')}"}
    async with aiohttp.ClientSession() as http, http.post(url, data=body, headers=headers) as response:
        assert response.status in (200, 201), await response.text()
        os.kill(pid, signal.SIGKILL)
