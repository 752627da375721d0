"""The numbers of results: they grow over a node's whole life, and what is known of the newest is told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fixtures.transactions import transaction
from tests.conftest import FakeClock
from tests.integration.maintenance import (
    WHY,
    attested,
    fill,
    lose_database,
    real_clock,
    serving,
    verifier_does,
)
from verifier import results
from verifier.config import Home
from verifier.store import events, nodes, revocations
from verifier.store.node_state import held_now
from verifier.store.restoring import CLOCKS_MS

STORES = ("sqlite", "postgres")


async def told(verifier: Any) -> list[tuple[str, Any, Any]]:
    """The events about results, in their order: kind, result and number."""
    rows = await verifier.rows(
        "SELECT type, data FROM events WHERE type IN ('result', 'revocation') ORDER BY seq"
    )
    read = [(row["type"], json.loads(row["data"])) for row in rows]
    return [(kind, data["result"], data["sequence"]) for kind, data in read]


async def test_each_result_of_a_node_has_a_higher_number(verifier) -> None:
    """Whatever the clock does, and whatever is pruned; in the result, in the events and on the pages."""
    node, other = await verifier.enrol(), await verifier.enrol(operator="beta")
    found = []
    for step_s in (1, -3600, 0, 7200, -1):
        claims = await verifier.attest(node)
        await verifier.attest(other)
        found.append(claims["ear_touchstone_sequence"])
        verifier.clock.ms += step_s * 1000
        if verifier.service.db.shared:
            # The clock of the database was set too.
            await verifier.service.duties.renew()
        async with transaction(verifier.service.db) as tx:
            await events.prune(tx, 1 << 50, 1000)
    assert found == sorted(set(found))
    _, page = await verifier.get("/api/v1/results")
    listed = {entry["node"]: entry for entry in page["results"]}
    assert (listed[node.id]["sequence"], listed[node.id]["void"]) == (found[-1], 0)
    _, shown = await verifier.get(f"/api/v1/results/{claims['jti']}")
    assert shown["sequence"] == found[-1]


async def test_results_at_once_have_different_numbers(verifier) -> None:
    """The second is told from the first, whichever is stored first."""
    node = await verifier.enrol()
    sessions = [await verifier.call(node, walk=False)]
    answers = node.answers(sessions[0])
    await verifier.client(node).answer_call(sessions[0], answers)
    announced = await verifier.client(node).open_session()
    now = verifier.clock.seconds
    both = await asyncio.gather(
        verifier.submit(sessions[0], node.evidence(sessions[0], iat=now, answers=answers), node),
        verifier.submit(announced, node.evidence(announced, iat=now), node),
    )
    stored = await verifier.rows("SELECT id, sequence FROM appraisals ORDER BY seq")
    assert len({claims["ear_touchstone_sequence"] for claims in both}) == 2
    assert [row["sequence"] for row in stored] == sorted(row["sequence"] for row in stored)


async def test_a_result_that_is_not_announced_has_a_number_of_its_own(verifier) -> None:
    """Without an event the next one would have the same."""
    node = await verifier.enrol()
    await verifier.attest(node)
    async with transaction(verifier.service.db) as tx:
        stored = await nodes.by_id(tx, node.id)
        nobody = msgspec.structs.replace(stored, id="nobody")
        first = (await held_now(tx, stored, None, ())).sequence
        await tx.execute("UPDATE appraisals SET sequence = ?", first + 5)
        assert (await held_now(tx, stored, None, ())).sequence == first + 6
        assert (await held_now(tx, nobody, None, ())).sequence == first


async def test_no_number_comes_back_with_a_restored_database(
    verifier_home: Home, model_folder: Path, tmp_path: Path
) -> None:
    """The backup has forgotten what was signed after it."""
    clock: FakeClock = real_clock()
    await fill(verifier_home, clock, model_folder)
    async with serving(verifier_home, clock, model_folder) as running:
        (node,) = await attested(running)
        done = await verifier_does("backup", verifier_home, tmp_path / "b.db")
        assert done.status == 0, done.said
        signed = [(await running.attest(node))["ear_touchstone_sequence"] for _ in range(4)]
    await lose_database(verifier_home)
    done = await verifier_does("restore", verifier_home, tmp_path / "b.db", "--all-marks", *WHY)
    assert done.status == 0, done.said
    async with serving(verifier_home, clock, model_folder) as running:
        clock.forward(CLOCKS_MS / 1000 + 61)
        assert (await running.attest(node))["ear_touchstone_sequence"] > max(signed)


async def test_a_worse_result_revokes_the_one_before_it(verifier) -> None:
    """Whoever cannot read the new one hears that the old one is void; the event names it, and comes first."""
    node = await verifier.enrol()
    good = await verifier.attest(node)
    session = await verifier.client(node).open_session()
    wrong = dict.fromkeys([node.model], (None, None))
    bad = await verifier.submit(
        session, node.evidence(session, iat=verifier.clock.seconds, answers=wrong), node
    )
    assert bad["ear_status"] != "affirming"
    numbers = [claims["ear_touchstone_sequence"] for claims in (good, bad)]
    assert await told(verifier) == [
        ("result", good["jti"], numbers[0]),
        ("revocation", good["jti"], numbers[0]),
        ("result", bad["jti"], numbers[1]),
    ]
    _, page = await verifier.get("/api/v1/results")
    assert [(entry["sequence"], entry["void"]) for entry in page["results"]] == [(numbers[1], numbers[0])]


async def test_a_good_result_revokes_nothing(verifier) -> None:
    """It takes the place of the one before it."""
    node = await verifier.enrol()
    for _ in range(2):
        await verifier.attest(node)
    assert [kind for kind, _, _ in await told(verifier)] == ["result", "result"]


async def test_a_revocation_names_the_newest_result(verifier) -> None:
    """All before it are void with it."""
    node = await verifier.enrol()
    await verifier.attest(node)
    newest = await verifier.attest(node)
    async with transaction(verifier.service.db) as tx:
        await revocations.revoke_results(tx, node.id, verifier.clock.ms, "retired")
        await revocations.revoke_results(tx, node.id, verifier.clock.ms, "retired")
    assert (await told(verifier))[2:] == [("revocation", newest["jti"], newest["ear_touchstone_sequence"])]


async def test_a_result_is_given_by_its_id_as_long_as_it_is_kept(verifier) -> None:
    """The whole of it, signed: a decision names it."""
    node = await verifier.enrol()
    claims = await verifier.attest(node)
    verifier.clock.forward(3600)
    _, shown = await verifier.get(f"/api/v1/results/{claims['jti']}")
    read = results.decode_jwt(
        shown["token"], verifier.service.verifying_keys(), issuer=verifier.url, now=None
    )
    assert (shown["state"], json.loads(json.dumps(read.to_claims()))) == ("expired", claims)


async def test_a_cwt_has_the_number_too(verifier) -> None:
    """Under a key of private use."""
    node = await verifier.enrol()
    claims = await verifier.attest(node)
    url = f"{verifier.url}/api/v1/nodes/{node.id}/result"
    async with verifier.http.get(url, headers={"Accept": "application/eat+cwt"}) as response:
        data = await response.read()
    read = results.decode_cwt(
        data, verifier.service.verifying_keys(), issuer=verifier.url, now=verifier.clock.seconds
    )
    assert read.ear_touchstone_sequence == claims["ear_touchstone_sequence"]


@pytest.mark.parametrize("number", [None, 0, -1, 1 << 53, "7", 1.5])
async def test_a_number_that_is_none_is_refused(verifier, number: Any) -> None:
    """An absent one is an earlier version's; null says the same."""
    node = await verifier.enrol()
    claims = await verifier.attest(node)
    token = results.sign_jwt(
        json.dumps({**claims, "ear_touchstone_sequence": number}).encode(), verifier.service.signing_key
    )
    keys = verifier.service.verifying_keys()
    if number is None:
        read = results.decode_jwt(token, keys, issuer=verifier.url, now=None)
        assert read.ear_touchstone_sequence is None
        return
    with pytest.raises(results.ResultError, match="malformed"):
        results.decode_jwt(token, keys, issuer=verifier.url, now=None)
