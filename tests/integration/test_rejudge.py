"""Live results judged anew: which ones, which not, and what must not keep the others waiting."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from attester.client import Session
from attester.weights.folder import open_folder
from fixtures.simulator import ENGINE, ENGINE_VERSION, MODEL, SimulatedNode
from fixtures.transactions import transaction
from tests.integration.lifecycle import (
    WHO,
    age_recordings,
    changed,
    chosen,
    post,
    publish,
    replaced,
    router,
    smuggle,
    step,
    strict,
    within,
)
from tests.unit.verifier.test_gpu_scheme import GOOD
from verifier.errors import StoreError
from verifier.incidents import report_draft
from verifier.policy.bundle import Bundle
from verifier.policy.rollout import bucket
from verifier.references import measured
from verifier.result_keys import unb64url
from verifier.service.rejudge import REJUDGER
from verifier.store import appraisals, blocks, incidents, recordings, references

STORES = ("sqlite", "postgres")

SUBMOD = f"model/{MODEL}"
WHY = {"actor": "kim", "reason": "because"}
ROLLBACK = "/api/v1/policies/rollback"
BLOCKS = "/api/v1/policies/blocks"


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    """Calls that only the test makes; one worker, so that evaluations queue."""
    return {
        "calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0},
        "policy": {"workers": 1, "timeout_s": 1.0},
        "sessions": {"announced_per_hour": 100_000, "per_address_per_minute": 1_000_000, "strangers_per_minute": 1_000_000},
    }  # fmt: skip


async def newest(verifier, node: SimulatedNode) -> Any:
    async with verifier.service.db.read() as tx:
        return await appraisals.latest(tx, node.id)


async def caught_up(verifier) -> None:
    """Every live result is of the newest change."""
    deadline = time.monotonic() + 30
    while True:
        async with verifier.service.db.read() as tx:
            rollout = await verifier.service.inputs.load_rollout(tx)
            left = await appraisals.outdated(tx, rollout.generation, verifier.clock.ms, "", 10)
        if not left:
            return
        assert time.monotonic() < deadline, f"{len(left)} results are still of before"
        await asyncio.sleep(0.01)


async def block(verifier, kind: str, value: str) -> str:
    status, body = await post(verifier, BLOCKS, {**WHY, "kind": kind, "value": value, "anyway": True})
    assert status == 201, body
    return str(body["block"])


async def state_of(verifier, jti: str) -> str:
    _, body = await verifier.get(f"/api/v1/results/{jti}")
    return str(body["state"])


def looping(base: Bundle) -> Bundle:
    """Never ends where there is anything to judge."""
    source = (
        "package touchstone\n"
        "outcome := count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000)])"
        " if count(input.checked) > 0\n"
    )
    return replaced(base, "looping", source)


# What is judged anew.


async def test_a_result_judged_anew_names_the_policy_and_keeps_its_times(verifier) -> None:
    """And its session, and what it was held against; only the id is new."""
    node = await verifier.enrol()
    old = await verifier.attest(node)
    bundle = await strict(verifier)
    await smuggle(verifier, bundle)
    await caught_up(verifier)
    _, new = await verifier.get(f"/api/v1/nodes/{node.id}/result", Accept="application/json")
    assert new["submods"]["platform"]["ear_appraisal_policy_ids"] == [bundle.id]
    assert new["jti"] != old["jti"]
    kept = ("iat", "exp", "ueid", "cnf", "ear_verifier_id")
    assert {name: new[name] for name in kept} == {name: old[name] for name in kept}
    assert new["submods"][SUBMOD] == {
        **old["submods"][SUBMOD],
        "ear_appraisal_policy_ids": [bundle.id],
    }
    assert new["status"]["uri"].endswith(new["jti"])


@pytest.mark.parametrize("aged", [False, True])
async def test_a_result_judged_anew_says_whose_node_it_is(verifier, *, aged: bool) -> None:
    """As the verifier's record has it by then; also from a recording that lacks it."""
    node = await verifier.enrol(operator="acme")
    enrolled = verifier.clock.seconds
    verifier.clock.forward(40)
    await verifier.attest(node)
    if aged:
        await age_recordings(verifier)
    async with transaction(verifier.service.db) as tx:
        await tx.execute("UPDATE nodes SET state = 'probation' WHERE id = ?", node.id)
    bundle = await strict(verifier)
    await smuggle(verifier, bundle)
    await caught_up(verifier)
    _, new = await verifier.get(f"/api/v1/nodes/{node.id}/result", Accept="application/json")
    assert new["submods"]["platform"]["ear_appraisal_policy_ids"] == [bundle.id]
    assert new["submods"]["platform"]["ear_verifier_claims"]["node"] == {
        "operator": "acme", "enrolled": enrolled, "state": "probation", "hardware_class": "cpu",
    }  # fmt: skip


async def test_a_replaced_result_is_no_longer_said_to_be_live(verifier) -> None:
    """Who holds the old token and looks where its status points must not be told that it stands."""
    node = await verifier.enrol()
    old = await verifier.attest(node)
    await smuggle(verifier, await strict(verifier))
    await caught_up(verifier)
    assert (await newest(verifier, node))["id"] != old["jti"]
    assert await state_of(verifier, old["jti"]) != "live"


async def test_a_result_that_comes_to_the_same_stands(verifier) -> None:
    """Nobody is told anything, where nothing is different."""
    node = await verifier.enrol()
    old = await verifier.attest(node)
    base = await verifier.policy()
    await smuggle(verifier, changed(base, "looser", versions=[ENGINE_VERSION, "7"]))
    await caught_up(verifier)
    assert (await newest(verifier, node))["id"] == old["jti"]
    assert await state_of(verifier, old["jti"]) == "live"


async def test_a_canary_judges_only_its_nodes_anew(verifier) -> None:
    """The live results of the others stay as they are."""
    nodes = [await verifier.enrol(operator=f"o{number}") for number in range(6)]
    old = {node.id: (await verifier.attest(node))["jti"] for node in nodes}
    bundle = await strict(verifier)
    await publish(verifier, bundle)

    places = sorted(bucket(node.id) for node in nodes)
    permille = places[2] + 1
    await step(verifier, "canary", bundle, permille=permille)
    await caught_up(verifier)
    for node in nodes:
        replaced = (await newest(verifier, node))["id"] != old[node.id]
        assert replaced == (bucket(node.id) < permille)


async def test_a_blocked_device_shows_within_a_second_and_is_lifted_the_same_way(verifier) -> None:
    """The live result is judged anew, and only that of the node that has the device."""
    node = await verifier.enrol(SimulatedNode(verifier.model_folder, devices=(GOOD,)))
    other = await verifier.enrol(operator="other")
    for each in (node, other):
        await verifier.attest(each)
    old = (await newest(verifier, other))["id"]
    async with router(verifier) as decision:
        await within(2, lambda: chosen(decision()) == {node.id, other.id})
        blocked = await block(verifier, "device", GOOD["inventory"].uuid)
        assert await within(1, lambda: chosen(decision()) == {other.id}) < 1
        assert (await post(verifier, f"{BLOCKS}/{blocked}/lift", WHY))[0] == 204
        assert await within(1, lambda: chosen(decision()) == {node.id, other.id}) < 1
    assert (await newest(verifier, other))["id"] == old


async def test_a_change_of_the_reference_is_judged_anew_both_ways(verifier, tmp_path: Path) -> None:
    """Without grace the result fails, and with the value back it stands as before; no incident follows."""
    nodes = [await verifier.enrol(operator=f"o{number}") for number in range(3)]
    for node in nodes:
        await verifier.attest(node)
    (right,) = await verifier.rows("SELECT digest FROM reference_values")
    folder = tmp_path / "mistaken"
    shutil.copytree(verifier.model_folder, folder)
    (folder / "config.json").write_text('{"layers": 3}')
    document = measured.measure_folder(MODEL, open_folder(folder))
    async with router(verifier) as decision:
        await within(2, lambda: len(chosen(decision())) == 3)
        async with transaction(verifier.service.db) as tx:
            await references.add(tx, document, references.Provenance(), WHO, verifier.clock.ms, replace=True)
        assert await within(1, lambda: not chosen(decision())) < 1
        async with transaction(verifier.service.db) as tx:
            await references.activate(tx, right["digest"], WHO, verifier.clock.ms, grace_ms=0)
        assert await within(1, lambda: len(chosen(decision())) == 3) < 1
    assert await verifier.rows("SELECT * FROM incidents") == []


# What is not.


async def quarantine(verifier, node: SimulatedNode) -> None:
    """What two routers report holds a node at once."""
    draft = report_draft("settlement-mismatch", "10 times too much")
    async with transaction(verifier.service.db) as tx:
        for reporter in ("first", "second"):
            await incidents.take_report(tx, draft, node.id, reporter, verifier.clock.ms)


async def test_a_result_revoked_by_quarantine_is_not_revived(verifier) -> None:
    """Whatever changes, and changes back."""
    node = await verifier.enrol()
    old = await verifier.attest(node)
    await quarantine(verifier, node)
    await smuggle(verifier, await strict(verifier))
    await caught_up(verifier)
    await post(verifier, ROLLBACK, WHY)
    await caught_up(verifier)
    row = await newest(verifier, node)
    assert (row["id"], row["revoked_ms"]) == (old["jti"], verifier.clock.ms)
    status, _ = await verifier.get(f"/api/v1/nodes/{node.id}/result")
    assert status == 404


async def test_a_result_that_says_quarantined_goes_on_saying_so(verifier) -> None:
    """ReappraisedEvidence anew it is held by the same incident."""
    node = await verifier.enrol()
    await quarantine(verifier, node)
    old = await verifier.attest(node)
    await smuggle(verifier, await strict(verifier))
    await caught_up(verifier)
    _, new = await verifier.get(f"/api/v1/nodes/{node.id}/result", Accept="application/json")
    assert new["jti"] != old["jti"]
    codes = [reason["code"] for reason in new["submods"]["platform"]["ear_verifier_claims"]["reasons"]]
    assert "identity.node.quarantined" in codes
    assert new["submods"]["platform"]["ear_trustworthiness_vector"] == {
        "instance-identity": 96,
        "configuration": 96,
    }


async def test_a_newer_result_is_not_overwritten(verifier, monkeypatch) -> None:
    """Evidence that comes while the result before it is judged anew is what counts."""
    node = await verifier.enrol()
    await verifier.attest(node)
    rejudge = verifier.app[REJUDGER]
    judge, meanwhile = rejudge._judge, []

    async def slowly(known: Any, *given: Any) -> Any:
        fate = await judge(known, *given)
        if not meanwhile:
            meanwhile.append(None)
            meanwhile[0] = await verifier.attest(node)
        return fate

    monkeypatch.setattr(rejudge, "_judge", slowly)
    await smuggle(verifier, await strict(verifier))
    await caught_up(verifier)
    # The answer comes after the result is stored.
    await within(2, lambda: meanwhile and meanwhile[0])
    row = await newest(verifier, node)
    assert row["id"] == meanwhile[0]["jti"]
    assert row["revoked_ms"] is None


async def test_a_lost_result_does_not_take_a_newer_one_with_it(verifier, monkeypatch) -> None:
    """Where newer evidence came meanwhile, what is lost is over anyway, and nothing is revoked for it."""
    node = await verifier.enrol()
    await verifier.attest(node)
    async with transaction(verifier.service.db) as tx:
        await tx.execute("DELETE FROM recordings")
    rejudge = verifier.app[REJUDGER]
    judge, meanwhile = rejudge._judge, []

    async def slowly(known: Any, *given: Any) -> Any:
        fate = await judge(known, *given)
        if not meanwhile:
            meanwhile.append(None)
            meanwhile[0] = await verifier.attest(node)
        return fate

    monkeypatch.setattr(rejudge, "_judge", slowly)
    async with router(verifier) as decision:
        await within(2, lambda: chosen(decision()) == {node.id})
        await smuggle(verifier, changed(await verifier.policy(), "looser", versions=[ENGINE_VERSION, "7"]))
        await within(2, lambda: meanwhile and meanwhile[0])
        await caught_up(verifier)
        await asyncio.sleep(0.3)
        assert chosen(decision()) == {node.id}
    row = await newest(verifier, node)
    assert (row["id"], row["revoked_ms"]) == (meanwhile[0]["jti"], None)


async def test_a_database_that_is_busy_for_a_moment_costs_nobody_a_result(verifier, monkeypatch) -> None:
    """What could not be read now can be read in a moment: it is tried again, and not revoked."""
    node = await verifier.enrol()
    old = (await verifier.attest(node))["jti"]
    taken, refused = recordings.read_head, []

    async def busy(*given: Any) -> Any:
        if not refused:
            refused.append(given)
            raise StoreError("database is locked")
        return await taken(*given)

    monkeypatch.setattr(recordings, "read_head", busy)
    await smuggle(verifier, changed(await verifier.policy(), "looser", versions=[ENGINE_VERSION, "7"]))
    await within(2, lambda: refused)
    await caught_up(verifier)
    row = await newest(verifier, node)
    assert (row["id"], row["revoked_ms"]) == (old, None)


async def test_a_result_without_its_recording_is_revoked(verifier) -> None:
    """It cannot be judged anew, so it is worth nothing; the others are judged."""
    lost, kept = await verifier.enrol(), await verifier.enrol(operator="other")
    for node in (lost, kept):
        await verifier.attest(node)
    async with transaction(verifier.service.db) as tx:
        await tx.execute("DELETE FROM recordings WHERE node_id = ?", lost.id)
    async with router(verifier) as decision:
        await within(2, lambda: chosen(decision()) == {lost.id, kept.id})
        base = await verifier.policy()
        await smuggle(verifier, changed(base, "looser", versions=[ENGINE_VERSION, "7"]))
        assert await within(1, lambda: chosen(decision()) == {kept.id}) < 1
        assert decision().closed == {"result.revoked": 1}


@pytest.mark.parametrize("column", ["record", "gist", "input", "evidence"])
async def test_a_recording_that_cannot_be_read_keeps_nobody_else_waiting(verifier, column: str) -> None:
    """Its result is revoked, and those of all others are judged within the second."""
    broken, other = await verifier.enrol(), await verifier.enrol(operator="other")
    for node in (broken, other):
        await verifier.attest(node)
    async with transaction(verifier.service.db) as tx:
        rubbish = b"\xff" if column in ("record", "evidence") else "{"
        await tx.execute(f"UPDATE recordings SET {column} = ? WHERE node_id = ?", rubbish, broken.id)
    async with router(verifier) as decision:
        await within(2, lambda: len(chosen(decision())) == 2)
        bundle = await strict(verifier)
        await smuggle(verifier, bundle)
        assert await within(1, lambda: other.id not in chosen(decision())) < 1
        await within(1, lambda: not chosen(decision()))


async def test_a_background_check_is_left_alone(verifier) -> None:
    """Its result is the caller's, who asked at one moment; nothing of it is made public later."""
    node = await verifier.enrol()
    nonce = secrets.token_urlsafe(32)
    url = f"{verifier.url}/challenge-response/v1/newSession?nonce={nonce}"
    async with verifier.http.post(url) as response:
        assert response.status == 201
        place = response.headers["Location"]
        given = await response.json(content_type=None)

    raw = unb64url(given["nonce"].replace("+", "-").replace("/", "_").rstrip("="))
    session = Session(place.rpartition("/")[2], raw, ())
    await verifier.submit(session, node.evidence(session, iat=verifier.clock.seconds), node)
    before = await verifier.rows("SELECT * FROM appraisals")
    await smuggle(verifier, await strict(verifier))
    await caught_up(verifier)
    await asyncio.sleep(0.3)
    assert await verifier.rows("SELECT * FROM appraisals") == before
    assert before[0]["public"] == 0
    assert await newest(verifier, node) is None


async def test_an_expired_result_is_left_alone(verifier) -> None:
    """It is over, whatever it would come to."""
    node = await verifier.enrol()
    old = await verifier.attest(node)
    verifier.clock.forward(301)
    await smuggle(verifier, await strict(verifier))
    await caught_up(verifier)
    assert (await newest(verifier, node))["id"] == old["jti"]


# While evidence is appraised.


async def test_evidence_is_judged_under_what_holds_when_its_result_is_given(verifier, monkeypatch) -> None:
    """A policy that changes in the middle of an appraisal is the one that counts."""
    node, bundle = await verifier.enrol(), await strict(verifier)
    engine = verifier.service.engine
    evaluate, asked = engine.evaluate, []

    async def in_between(policy: Bundle, given: bytes) -> Any:
        answer = await evaluate(policy, given)
        asked.append(policy.id)
        if len(asked) == 1:
            await smuggle(verifier, bundle)
        return answer

    monkeypatch.setattr(engine, "evaluate", in_between)
    result = await verifier.attest(node)
    assert asked[1:] == [bundle.id]
    assert result["submods"]["platform"]["ear_appraisal_policy_ids"] == [bundle.id]
    assert result["submods"]["platform"]["ear_trustworthiness_vector"]["configuration"] == 96
    assert len(await verifier.rows("SELECT * FROM appraisals")) == 1


async def test_a_block_in_the_middle_of_an_appraisal_counts(verifier, monkeypatch) -> None:
    """No result slips past it."""
    node = await verifier.enrol()
    engine = verifier.service.engine
    evaluate, asked = engine.evaluate, []

    async def in_between(policy: Bundle, given: bytes) -> Any:
        answer = await evaluate(policy, given)
        asked.append(policy.id)
        if len(asked) == 1:
            await block(verifier, "engine-version", f"{ENGINE}@{ENGINE_VERSION}")
        return answer

    monkeypatch.setattr(engine, "evaluate", in_between)
    result = await verifier.attest(node)
    assert result["submods"]["platform"]["ear_trustworthiness_vector"]["configuration"] == 96
    assert [row["status"] for row in await verifier.rows("SELECT * FROM appraisals")] == ["contraindicated"]


async def test_what_changes_without_end_refuses_the_evidence(verifier, monkeypatch) -> None:
    """The session goes on waiting, and nothing was given out."""
    node = await verifier.enrol()
    session = await verifier.call(node)
    answers = node.answers(session)
    await verifier.client(node).answer_call(session, answers)
    evidence = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
    engine = verifier.service.engine
    evaluate = engine.evaluate

    async def always(policy: Bundle, given: bytes) -> Any:
        async with transaction(verifier.service.db) as tx:
            await blocks.block(tx, "device", secrets.token_hex(8), WHO, verifier.clock.ms)
        return await evaluate(policy, given)

    monkeypatch.setattr(engine, "evaluate", always)
    status, body = await verifier.post(session, evidence)
    assert (status, body["type"].rpartition("#")[2]) == (503, "store.refused")
    assert await verifier.rows("SELECT * FROM appraisals") == []
    monkeypatch.setattr(engine, "evaluate", evaluate)
    assert (await verifier.submit(session, evidence, node))["ear_status"] == "affirming"


# A policy that does not end.


async def test_a_rollback_does_not_wait_for_a_policy_that_loops(verifier) -> None:
    """Nodes whose results it has spoilt are back within the second, however many it still has before it."""
    nodes = [await verifier.enrol(operator=f"o{number}") for number in range(8)]
    for node in nodes:
        await verifier.attest(node)
    async with router(verifier) as decision:
        await within(2, lambda: len(chosen(decision())) == 8)
        await smuggle(verifier, looping(await verifier.policy()))
        assert (await verifier.attest(nodes[0]))["ear_status"] == "none"
        await within(2, lambda: nodes[0].id not in chosen(decision()))
        assert (await post(verifier, ROLLBACK, WHY))[0] == 200
        assert await within(1, lambda: len(chosen(decision())) == 8) < 1


async def test_a_block_does_not_wait_for_a_policy_that_loops(verifier) -> None:
    """Rolled back and blocked at once: nobody is chosen within the second."""
    nodes = [await verifier.enrol(operator=f"o{number}") for number in range(8)]
    for node in nodes:
        await verifier.attest(node)
    async with router(verifier) as decision:
        await within(2, lambda: len(chosen(decision())) == 8)
        await smuggle(verifier, looping(await verifier.policy()))
        await asyncio.sleep(0.3)
        assert (await post(verifier, ROLLBACK, WHY))[0] == 200
        await block(verifier, "engine-version", f"{ENGINE}@{ENGINE_VERSION}")
        assert await within(1, lambda: not chosen(decision())) < 1
