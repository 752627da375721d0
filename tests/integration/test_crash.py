"""kill -9 at any moment under load: what was acknowledged is there afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from attester.client import VerifierClient
from attester.errors import VerifierError
from fixtures.fleet import Fleet, get_json
from fixtures.published import publish
from fixtures.simulator import MODEL, SimulatedNode
from verifier import result_keys
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
            await publish(db, home.pool_key(), folder, now_ms, reads=500, walks=500)

    asyncio.run(fill())


async def give_up(_seconds: float) -> None:
    """The verifier does not come back while the load runs."""
    raise VerifierError("the verifier was killed")


class Load:
    """Nodes that enrol and attest as fast as they are let; it remembers what was acknowledged."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.folder = folder
        self.enrolled: dict[str, SimulatedNode] = {}
        self.results: dict[str, str] = {}
        self.sessions: dict[str, bytes] = {}

    async def one(self, http: aiohttp.ClientSession, tokens: list[str]) -> None:
        """Enrol, then attest for ever."""
        node = SimulatedNode(self.folder)
        client = VerifierClient(http, self.fleet.verifier_url, node.key, sleep=give_up)
        given = await client.enrol(tokens.pop(), [MODEL])
        node.id, node.audience = given["node"], given["verifier"]
        node.ueid = result_keys.unb64url(given["ueid"].replace("+", "-").replace("/", "_").rstrip("="))
        self.enrolled[node.id] = node
        while True:
            session = await client.open_session()
            self.sessions[session.id] = session.nonce
            data = node.evidence(session, iat=int(time.time()))
            self.results[session.id] = await client.submit(session, data)

    async def run(self, seconds: float, tokens: list[str]) -> None:
        async with aiohttp.ClientSession() as http:
            tasks = [asyncio.create_task(self.one(http, tokens)) for _ in range(4)]
            await asyncio.sleep(seconds)
            os.kill(self.fleet.processes[-1].pid, signal.SIGKILL)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(o, VerifierError) for o in outcomes), outcomes


@pytest.mark.timeout(200)
def test_nothing_acknowledged_is_lost(tmp_path: Path, model_folder: Path) -> None:
    """Enrolments, results, used nonces and used challenges survive a killed verifier."""
    rng = random.Random(11)
    config: dict[str, dict[str, Any]] = {
        "sessions": {"per_node_per_minute": 100_000, "per_address_per_minute": 1_000_000}
    }
    fleet = Fleet(tmp_path, config)
    try:
        prepare(fleet, model_folder)
        load = Load(fleet, model_folder)
        for _ in range(4):
            fleet.start_verifier()
            tokens = [fleet.token(f"operator-{i}", MODEL) for i in range(4)]
            asyncio.run(load.run(rng.uniform(0.3, 1.2), tokens))
            check(fleet, load)
        assert len(load.results) > 20
        assert len(load.enrolled) >= 8
    finally:
        fleet.stop()


def check(fleet: Fleet, load: Load) -> None:
    with sqlite3.connect(fleet.verifier_home / "verifier.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        nodes = {row[0] for row in db.execute("SELECT id FROM nodes")}
        assert nodes >= load.enrolled.keys()
        kept = dict(db.execute("SELECT session_id, token FROM appraisals"))
        assert {session: kept.get(session) for session in load.results} == load.results
        nonces = dict(db.execute("SELECT id, nonce FROM sessions"))
        assert {session: nonces.get(session) for session in load.sessions} == load.sessions
        # Every acknowledged session has used its challenges, and no challenge served two.
        used = db.execute("SELECT session_id, count(*) FROM pool WHERE session_id IS NOT NULL GROUP BY 1")
        taken = dict(used)
        assert all(taken.get(session) == 2 for session in load.sessions)
        # Nothing half done: a complete session has its result, a result its session and event.
        complete = {row[0] for row in db.execute("SELECT id FROM sessions WHERE status = 'complete'")}
        assert complete == set(kept)
        (events,) = db.execute("SELECT count(*) FROM events WHERE type = 'result'").fetchone()
        assert events == len(kept)


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
        assert get_json(f"{fleet.verifier_url}/api/v1/nodes/{node}")["quarantined_by"]
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
            ("policies/blocks", json.dumps({**why, "kind": "device", "value": "GPU-1"}).encode()),
        ):
            process = fleet.start_verifier()
            asyncio.run(ask_and_kill(f"{fleet.verifier_url}/api/v1/{path}", body, home, process.pid))
            process.wait()
        fleet.start_verifier()
        assert get_json(f"{fleet.verifier_url}/api/v1/policies/rollout")["active"] == bundle.id
        (block,) = get_json(f"{fleet.verifier_url}/api/v1/policies/blocks")["blocks"]
        assert block["value"] == "GPU-1"
        changes = get_json(f"{fleet.verifier_url}/api/v1/policies/history")["changes"]
        assert [c["action"] for c in changes][:3] == ["block", "promote", "publish"]
    finally:
        fleet.stop()


async def ask_and_kill(url: str, body: bytes, home: Home, pid: int) -> None:
    headers = {"Authorization": f"Bearer {home.token('admin')}"}
    async with aiohttp.ClientSession() as http, http.post(url, data=body, headers=headers) as response:
        assert response.status in (200, 201), await response.text()
        os.kill(pid, signal.SIGKILL)
