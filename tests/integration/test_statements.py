"""No statement of the hot paths looks at every row: each database says how it would find them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from fixtures.credentials import bearer
from fixtures.minted_answers import WORDS, chat, put
from fixtures.router_identities import identity
from fixtures.simulator import MODEL
from tests.integration.revisions import begin, in_force, mint, resaved, upgrade
from verifier.roles import Role
from verifier.service import sweep
from verifier.service.calls import CALL_SCHEDULER

STORES = ("sqlite", "postgres")
RARE = (
    # All nodes are read once, and afterwards those that changed.
    "FROM nodes n WHERE n.state != 'retired' ORDER BY n.id",
    # Twice a minute, for how long the challenges will last.
    "SELECT operator, models, hardware_class, count(*)",
    # Once a day for each value that is minted.
    "INSERT INTO batches",
    "INSERT INTO answer_batches",
)
SMALL = {
    # Tables that have a few rows whatever the fleet is.
    "changes", "policies", "blocks", "batches", "pool_counts", "pool_indexes", "reference_values", "totals", "leases",
    "answer_batches", "proposals", "shadow_counts", "schema_version", "signing_keys", "routers", "model_rollouts",
    "log_pending", "logs",
}  # fmt: skip


@pytest.fixture
def statements(monkeypatch) -> list[tuple[str, tuple[Any, ...]]]:
    """Every statement that is run from now on, as the driver got it."""
    found: list[tuple[str, tuple[Any, ...]]] = []
    from verifier.store import postgres, sqlite

    for module, tx in (
        (sqlite, sqlite.SqliteTx),
        (sqlite, sqlite._ScanTx),
        (postgres, postgres.PostgresTx),
    ):
        for name in ("execute", "one", "all", "last"):
            original = getattr(tx, name)

            def noted(self, sql, *parameters, _original=original, _module=module):
                found.append((_module._text(sql), parameters))
                return _original(self, sql, *parameters)

            monkeypatch.setattr(tx, name, noted)
    return found


async def hot_paths(verifier) -> None:
    """What happens all the time: attesting both ways, also in a roll-out, calls, events, lists, the sweep."""
    node = await verifier.enrol()
    await verifier.attest(node)
    client = verifier.client(node)
    session = await client.open_session()
    for _ in range(2):
        evidence = node.evidence(session, iat=verifier.clock.seconds)
        _, session = await client.submit_and_go_on(session, evidence)
        verifier.clock.forward(1)
    async with verifier.http.post(verifier.url + "/challenge-response/v1/newSession"):
        pass
    for path in (
        "nodes",
        "results",
        f"nodes/{node.id}",
        f"nodes/{node.id}/result",
        "incidents?open=1",
        "challenges",
        "routers",
    ):
        async with verifier.http.get(f"{verifier.url}/api/v1/{path}") as response:
            assert response.status == 200, path
    router = (await verifier.key("router-1", Role.ROUTER))["Authorization"].partition(" ")[2]
    made = identity(datetime.fromtimestamp(verifier.clock.seconds, UTC))
    for _ in range(2):
        async with verifier.stranger.post(
            f"{verifier.url}/api/v1/routers",
            data=made.registration(verifier.url, router),
            headers=bearer(router),
        ) as response:
            assert response.status == 200
    operator = await verifier.key("acme", Role.OPERATOR, operator="acme")
    for path in ("nodes", "results", f"nodes/{node.id}", "incidents?open=1"):
        async with verifier.stranger.get(f"{verifier.url}/api/v1/{path}", headers=operator) as response:
            assert response.status == 200, path
    await check_answers(verifier, node)
    newer = resaved(verifier.model_folder, verifier.home.path / "newer")
    new = await mint(verifier, newer)
    await begin(verifier, new)
    await upgrade(verifier, node, newer, new)
    await verifier.attest(node)
    caller = verifier.app[CALL_SCHEDULER]
    await caller.refresh()
    for node_id in caller.plan.moments():
        caller.plan.set(node_id, verifier.clock.ticks)
    await caller.tick()
    await sweep.sweep(verifier.service)


async def check_answers(verifier, node) -> None:
    """A router takes checks of answers, and brings one that agrees, one that differs, and one that never came."""
    digest = await in_force(verifier)
    answers = [chat(f"Question {number}?") for number in range(3)]
    await put(verifier.service.db, verifier.service.pool_key, MODEL, digest, answers)
    router, url = await verifier.key("router-1", Role.ROUTER), f"{verifier.url}/api/v1/answer-checks"
    _, result = await verifier.get(f"/api/v1/nodes/{node.id}/result", Accept="application/json")
    asked = {"model": MODEL, "node": node.id, "count": 3}
    async with verifier.stranger.post(url, json=asked, headers=router) as response:
        taken = await response.json()
    given = {"outcome": "completed", "finish_reason": "length", "prompt_tokens": 9}
    said = (
        {"given": {**given, "text": "".join(WORDS)}},
        {"given": {**given, "text": "No"}},
        {"failed": "crashed"},
    )
    for check, brought in zip(taken["checks"], said, strict=True):
        body = {"node": node.id, "result": result["jti"], "at_ms": verifier.clock.ms, **brought}
        async with verifier.stranger.post(f"{url}/{check['id']}", json=body, headers=router) as response:
            assert response.status == 200, await response.text()


async def test_no_hot_statement_scans(verifier, statements) -> None:
    """SQLite says SCAN, PostgreSQL says Seq Scan; only tables that stay small may be looked through."""
    await hot_paths(verifier)
    assert len(statements) > 60
    scans = {}
    for sql, parameters in dict(statements).items():
        if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)", sql) and not any(rare in sql for rare in RARE):
            for table in await scanned(verifier, sql, parameters):
                if table not in SMALL:
                    scans[sql] = table
    assert scans == {}


async def scanned(verifier, sql: str, parameters: tuple[Any, ...]) -> set[str]:
    """The tables that a statement would look through."""
    if not verifier.service.db.shared:
        async with verifier.service.db.read() as tx:
            rows = await tx.all(f"EXPLAIN QUERY PLAN {sql}", *parameters)
        return {found for row in rows if (found := sqlite_scan(row["detail"], sql))}
    connection = await asyncpg.connect(verifier.service.config.store.url)
    try:
        await connection.execute("SET search_path = touchstone_verifier")
        # The tables are almost empty here, where a scan is the best plan: what is asked is whether another exists.
        await connection.execute("SET enable_seqscan = off")
        plan = await connection.fetch(f"EXPLAIN {sql}", *parameters)
    finally:
        await connection.close()
    return {found[1] for row in plan if (found := re.search(r"Seq Scan on (\w+)", row[0]))}


def sqlite_scan(detail: str, sql: str) -> str | None:
    """The table of a line of SQLite's plan that looks through it; `None` if it does not, or in the order of a key."""
    found = re.match(r"SCAN ([a-z_]+)", detail)
    if found is None or found[1].startswith("walks_"):
        # Not a table: constants, or what a part of the statement has found.
        return None
    # From an end, up to a limit: as far as it needs, and no further.
    if "LIMIT" in sql and "ORDER BY seq" in sql:
        return None
    alias = re.search(rf"(?:FROM|JOIN|UPDATE|INTO)\s+(\w+)\s+(?:AS\s+)?{found[1]}\b", sql)
    return alias[1] if alias else found[1]
