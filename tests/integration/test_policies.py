"""Policies over the API: names, steps in and out of order, what is written down, trials, shadows."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from attester.client import Session
from attester.weights.folder import open_folder
from fixtures.simulator import ENGINE_VERSION, MODEL, SimulatedNode
from fixtures.transactions import transaction
from tests.integration.lifecycle import (
    WHO,
    archive,
    changed,
    post,
    publish,
    replaced,
    smuggle,
    step,
    stepping,
    strict,
)
from verifier.policy import bundle as bundles
from verifier.policy.archive import read_archive
from verifier.policy.bundle import Bundle
from verifier.references import measured
from verifier.result_keys import unb64url
from verifier.store import blocks, policies
from verifier.store.opening import open_database

WHY = {"actor": "kim", "reason": "because"}
PUBLISH = "/api/v1/policies?actor=kim&reason=because"
ROLLBACK = "/api/v1/policies/rollback"


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    """Calls that only the test makes."""
    return {
        "calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0},
        "policy": {"workers": 1, "timeout_s": 0.5},
    }


async def keep(verifier, name: str, *versions: str) -> Bundle:
    """A policy of this name among the published, without a run of its tests."""
    bundle = changed(await verifier.policy(), name, versions=[*versions, ENGINE_VERSION])
    async with transaction(verifier.service.db) as tx:
        await policies.publish(tx, bundle, b"{}", "home", WHO, verifier.clock.ms)
    return bundle


async def rollout(verifier) -> Any:
    _, body = await verifier.get("/api/v1/policies/rollout")
    return body


async def changes(verifier) -> list[Any]:
    """Oldest first."""
    _, body = await verifier.get("/api/v1/policies/history?limit=500")
    return body["changes"][::-1]


async def rolled_back(verifier, **more: Any) -> str:
    status, body = await post(verifier, ROLLBACK, {**WHY, **more})
    assert status == 200, body
    return body["active"].partition("@")[0]


async def end_shadow(verifier) -> tuple[int, Any]:
    url = f"{verifier.url}/api/v1/policies/shadow"
    async with verifier.http.delete(url, json=WHY) as response:
        return response.status, await response.json(content_type=None)


# Published.


async def test_a_policy_is_published_once(verifier) -> None:
    """The same again is known: 200 for 201, and one change."""
    bundle = await strict(verifier)
    data = archive(verifier, bundle)
    answers = [await post(verifier, PUBLISH, data) for _ in range(2)]
    assert [status for status, _ in answers] == [201, 200]
    assert [body["policy"] for _, body in answers] == [bundle.id, bundle.id]
    assert (answers[0][1]["signer"], answers[0][1]["warnings"]) == ("home", [])
    taken = [change for change in await changes(verifier) if change["actor"] == "kim"]
    assert [(change["action"], change["subject"]) for change in taken] == [("publish", bundle.digest)]


@pytest.mark.parametrize("query", ["", "?actor=kim", "?reason=%20", "?actor=ada&reason=%20"])
async def test_who_publishes_must_say_why(verifier, query: str) -> None:
    """Or nothing is kept."""
    before = await verifier.rows("SELECT * FROM policies")
    data = archive(verifier, await strict(verifier))
    assert (await post(verifier, f"/api/v1/policies{query}", data))[0] == 400
    assert await verifier.rows("SELECT * FROM policies") == before


async def test_what_was_published_is_given_out_as_it_was_signed(verifier) -> None:
    """By its digest, the beginning of it, its id, and its name and version."""
    bundle = await strict(verifier)
    await publish(verifier, bundle)
    names = (bundle.digest, bundle.digest[:8], bundle.id, f"{bundle.manifest.name}@{bundle.manifest.version}")
    for name in names:
        url = f"{verifier.url}/api/v1/policies/{quote(name, safe='')}/bundle"
        async with verifier.http.get(url) as response:
            assert response.status == 200
            kept, envelope = read_archive(await response.read())
        assert kept == bundle
        assert bundles.verify(kept, envelope, verifier.service.authors) == "home"


@pytest.mark.parametrize("name", ["nobody@1", "0" * 64, "x", "default@5"], ids=["name", "digest", "x", "two"])
async def test_no_policy_and_more_than_one_are_not_guessed(verifier, name: str) -> None:
    """404, and nothing moves."""
    if name == "default@5":
        # As a database of an earlier version may have it.
        async with transaction(verifier.service.db) as tx:
            await tx.execute(
                "INSERT INTO policies (digest, id, name, version, author, description, archive, signer, added_ms)"
                " SELECT 'other', 'other', name, version, author, description, archive, signer, added_ms FROM policies"
            )
    before = await rollout(verifier)
    status, body = await post(verifier, f"/api/v1/policies/{quote(name, safe='')}/promote", WHY)
    assert (status, body["type"].rpartition("#")[2]) == (404, "request.not-found")
    assert await rollout(verifier) == before


# Steps.


async def test_where_each_policy_stands_is_listed(verifier) -> None:
    """Published, shadow, canary, active; results name the version."""
    base = await verifier.policy()
    a, b, c = [await keep(verifier, name) for name in "abc"]
    await step(verifier, "shadow", a)
    await step(verifier, "canary", b, permille=1)
    _, body = await verifier.get("/api/v1/policies")
    states = {entry["policy"]: entry["state"] for entry in body["policies"]}
    assert states == {base.id: "active", a.id: "shadow", b.id: "canary", c.id: "published"}
    expected = {"active": base.id, "canary": b.id, "permille": 1, "shadow": a.id}
    assert {
        name: value for name, value in (await rollout(verifier)).items() if name != "generation"
    } == expected


async def test_steps_that_were_left_out_are_written_down(verifier) -> None:
    """Not forbidden: in an emergency there is no time, and afterwards it is seen."""
    a, b = await keep(verifier, "a"), await keep(verifier, "b")
    await step(verifier, "promote", a)
    await step(verifier, "trial", b)
    await step(verifier, "shadow", b)
    await step(verifier, "canary", b, permille=500)
    await step(verifier, "promote", b)
    details = {
        (change["action"], change["subject"]): change["detail"]
        for change in await changes(verifier)
        if change["actor"] == "kim"
    }
    assert details[("promote", a.digest)]["skipped"] == ["trial", "shadow", "canary"]
    assert details[("canary", b.digest)] == {"permille": 500, "skipped": []}
    assert details[("promote", b.digest)]["skipped"] == []
    assert details[("trial", b.digest)]["appraisals"] == 0


@pytest.mark.parametrize("action", ["shadow", "canary", "promote"])
async def test_the_active_policy_takes_no_step(verifier, action: str) -> None:
    """It is where steps lead to."""
    base = await verifier.policy()
    before = await verifier.rows("SELECT * FROM changes")
    body = {**WHY, "permille": 5} if action == "canary" else WHY
    status, answer = await post(verifier, f"/api/v1/policies/{base.digest}/{action}", body)
    assert (status, answer["type"].rpartition("#")[2]) == (409, "policy.state")
    assert await verifier.rows("SELECT * FROM changes") == before


async def test_there_is_nothing_before_the_first_policy(verifier) -> None:
    """A rollback of it is refused."""
    status, body = await post(verifier, ROLLBACK, WHY)
    assert (status, body["type"].rpartition("#")[2]) == (409, "policy.state")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("{p}/promote", {}),
        ("{p}/promote", {"actor": "kim"}),
        ("{p}/promote", {"actor": "", "reason": "because"}),
        ("{p}/promote", {"actor": "kim", "reason": " "}),
        ("{p}/promote", {**WHY, "force": True}),
        ("{p}/promote", b"{"),
        ("{p}/promote", b"\xff"),
        ("{p}/promote", b"[" * 10_000),
        ("{p}/canary", WHY),
        ("{p}/canary", {**WHY, "permille": 0}),
        ("{p}/canary", {**WHY, "permille": 1001}),
        ("{p}/canary", {**WHY, "permille": 2.5}),
        ("{p}/canary", {**WHY, "permille": True}),
        ("{p}/shadow", {**WHY, "permille": 5}),
        ("{p}/trial", {**WHY, "since": -1}),
        ("{p}/trial", {**WHY, "nodes": "n"}),
        ("rollback", {**WHY, "to": ""}),
        ("rollback", {**WHY, "to": 7}),
        ("blocks", {**WHY, "kind": "node", "value": "n"}),
        ("blocks", {**WHY, "kind": "digest", "value": "ab"}),
        ("blocks", {**WHY, "kind": "digest", "value": "٣" * 64}),
        ("blocks", {**WHY, "kind": "engine-version", "value": "vllm"}),
        ("blocks", {**WHY, "kind": "engine-version", "value": "@1"}),
        ("blocks", {**WHY, "kind": "device", "value": " "}),
        ("blocks", {**WHY, "kind": "device", "value": "a\nb"}),
    ],
)
async def test_a_malformed_step_is_refused(verifier, path: str, body: Any) -> None:
    """With 400, and nothing moves."""
    bundle = await keep(verifier, "a")
    before = await verifier.rows("SELECT * FROM changes")
    status, answer = await post(verifier, f"/api/v1/policies/{path.format(p=bundle.digest)}", body)
    assert (status, answer["type"].rpartition("#")[2]) == (400, "request.malformed")
    assert await verifier.rows("SELECT * FROM changes") == before


async def test_rollbacks_go_back_through_what_was_active(verifier) -> None:
    """Also where a policy was active twice: after base, a, base again and b come base, a, base."""
    base = await verifier.policy()
    a, b = await keep(verifier, "a"), await keep(verifier, "b")
    for bundle in (a, base, b):
        await step(verifier, "promote", bundle)
    assert [await rolled_back(verifier) for _ in range(3)] == ["default", "a", "default"]
    assert (await post(verifier, ROLLBACK, WHY))[0] == 409


async def test_a_rollback_to_a_named_policy_forgets_what_came_after(verifier) -> None:
    """From base, a, b, c to a; then the one before is base."""
    bundles_ = [await keep(verifier, name) for name in "abc"]
    for bundle in bundles_:
        await step(verifier, "promote", bundle)
    assert await rolled_back(verifier, to=bundles_[0].digest) == "a"
    assert await rolled_back(verifier) == "default"
    last = (await changes(verifier))[-1]
    assert (last["action"], last["actor"], last["reason"]) == ("rollback", "kim", "because")


async def test_a_rollback_to_nobody_is_refused(verifier) -> None:
    """404, and the active policy stays."""
    await step(verifier, "promote", await keep(verifier, "a"))
    assert (await post(verifier, ROLLBACK, {**WHY, "to": "f" * 64}))[0] == 404
    assert (await rollout(verifier))["active"].startswith("a@")


async def test_a_rollback_leads_only_to_what_was_active(verifier) -> None:
    """What never was is promoted, with what was left out on the way written down."""
    never = await keep(verifier, "never")
    before = await rollout(verifier)
    assert (await post(verifier, ROLLBACK, {**WHY, "to": never.digest}))[0] == 409
    assert await rollout(verifier) == before


async def test_a_rollback_brings_back_the_reference_values_of_the_policy(verifier) -> None:
    """A value that a policy brings is in force with it, and gone with it."""
    document = msgspec.json.encode(measured.measure_folder(MODEL, open_folder(verifier.model_folder)))
    value = document.replace(b'"size":12', b'"size":13', 1).decode()
    folder = changed(await verifier.policy(), "other", references__tiny_DOT_json=value)
    await smuggle(verifier, folder)
    (own,) = folder.documents
    node = await verifier.enrol()
    result = await verifier.attest(node, walk=False)
    reference = result["submods"][f"model/{MODEL}"]["ear_verifier_claims"].get("reference")
    assert reference == own.digest
    await rolled_back(verifier)
    result = await verifier.attest(node, walk=False)
    (row,) = await verifier.rows("SELECT digest FROM reference_values WHERE state = 'active'")
    assert result["submods"][f"model/{MODEL}"]["ear_verifier_claims"]["reference"] == row["digest"]


# Trials.


async def trial(verifier, bundle: Bundle, **window: Any) -> Any:
    status, body = await post(verifier, f"/api/v1/policies/{bundle.digest}/trial", {**WHY, **window})
    assert status == 200, body
    return body


async def test_a_trial_is_of_a_window(verifier) -> None:
    """By node, by time, by the newest; what is asked for is what is counted."""
    nodes = [await verifier.enrol(operator=f"o{number}") for number in range(2)]
    start = verifier.clock.seconds
    for _ in range(2):
        for node in nodes:
            await verifier.attest(node, walk=False)
        verifier.clock.forward(100)
    bundle = await keep(verifier, "a")
    windows: list[tuple[dict[str, Any], int]] = [
        ({}, 4),
        ({"nodes": [nodes[0].id]}, 2),
        ({"nodes": ["nobody"]}, 0),
        ({"operator": "o1"}, 2),
        ({"until": start + 100}, 2),
        ({"since": start + 100}, 2),
        ({"since": start + 1, "until": start + 100}, 0),
        ({"newest_only": True}, 2),
        ({"newest_only": True, "until": start + 100, "operator": "o0"}, 1),
    ]
    for window, expected in windows:
        assert (window, (await trial(verifier, bundle, **window))["appraisals"]) == (window, expected)


async def test_a_background_check_does_not_hide_the_newest_of_a_trial(verifier) -> None:
    """It belongs to whoever asked; a trial neither counts it nor stops at it."""
    node = await verifier.enrol()
    await verifier.attest(node)
    verifier.clock.forward(5)
    nonce = secrets.token_bytes(32)
    url = f"{verifier.url}/challenge-response/v1/newSession?nonce={nonce.hex()}"
    async with verifier.http.post(url) as response:
        place = response.headers["Location"].rpartition("/")[2]
        given = await response.json(content_type=None)

    raw = unb64url(given["nonce"].replace("+", "-").replace("/", "_").rstrip("="))
    session = Session(place, raw, ())
    await verifier.submit(session, node.evidence(session, iat=verifier.clock.seconds), node)
    bundle = await keep(verifier, "a")
    assert (await trial(verifier, bundle, newest_only=True))["appraisals"] == 1
    assert (await trial(verifier, bundle))["appraisals"] == 1


async def test_a_trial_of_a_policy_that_loops_ends(verifier) -> None:
    """It says that the policy failed, and changes nothing for anybody."""
    node = await verifier.enrol()
    result = await verifier.attest(node)
    loops = looping(await verifier.policy())
    async with transaction(verifier.service.db) as tx:
        await policies.publish(tx, loops, b"{}", "home", WHO, verifier.clock.ms)
    report = await trial(verifier, loops)
    assert (report["failures"], report["nodes_changed"]) == (1, 1)
    assert {change["to"]["reasons"][-1] for change in report["changes"]} == {"policy.failed"}
    _, now = await verifier.get(f"/api/v1/nodes/{node.id}/result", Accept="application/json")
    assert now["jti"] == result["jti"]


# Shadows.


def looping(base: Bundle) -> Bundle:
    """Never ends where there is anything to judge."""
    source = (
        "package touchstone\n"
        "outcome := count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000)])"
        " if count(input.checked) > 0\n"
    )
    return replaced(base, "looping", source)


async def counted(verifier, bundle: Bundle, appraised: int) -> Any:
    deadline = time.monotonic() + 30
    while True:
        _, report = await verifier.get(f"/api/v1/policies/{bundle.digest}/shadow")
        if report["appraised"] == appraised:
            return report
        assert time.monotonic() < deadline, report
        await asyncio.sleep(0.01)


async def test_a_shadow_that_loops_delays_nobody(verifier) -> None:
    """Results come as fast as without it, and its failures are counted."""
    node = await verifier.enrol()
    loops = looping(await verifier.policy())
    async with transaction(verifier.service.db) as tx:
        await policies.publish(tx, loops, b"{}", "home", WHO, verifier.clock.ms)
    await step(verifier, "shadow", loops)
    await verifier.attest(node)
    for _ in range(3):
        session = await verifier.call(node)
        answers = node.answers(session)
        await verifier.client(node).answer_call(session, answers)
        evidence = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
        async with stepping() as stepped_s:
            assert (await verifier.submit(session, evidence, node))["ear_status"] == "affirming"
            assert stepped_s() < 0.4
    report = await counted(verifier, loops, 4)
    assert (report["failed"], report["differing"], report["skipped"]) == (4, 4, 0)
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_a_shadow_that_agrees_shows_no_difference(verifier) -> None:
    """It is counted all the same."""
    bundle = await keep(verifier, "a", "7")
    await step(verifier, "shadow", bundle)
    await verifier.attest(await verifier.enrol())
    report = await counted(verifier, bundle, 1)
    assert (report["differing"], report["failed"], report["changes"]) == (0, 0, [])


async def test_a_shadow_that_was_ended_is_asked_no_more(verifier) -> None:
    """And its counts stay to be read; a policy that never was one has none."""
    bundle, other = await keep(verifier, "a"), await keep(verifier, "b")
    node = await verifier.enrol()
    await step(verifier, "shadow", bundle)
    await verifier.attest(node)
    await counted(verifier, bundle, 1)
    status, body = await end_shadow(verifier)
    assert (status, body) == (200, await rollout(verifier))
    assert body["shadow"] is None
    await verifier.attest(node)
    await asyncio.sleep(0.2)
    await counted(verifier, bundle, 1)
    status, _ = await verifier.get(f"/api/v1/policies/{other.digest}/shadow")
    assert status == 404


async def test_a_shadow_that_is_set_again_begins_at_nothing(verifier) -> None:
    """What was counted before was of another time."""
    bundle = await keep(verifier, "a")
    await step(verifier, "shadow", bundle)
    await verifier.attest(await verifier.enrol(SimulatedNode(verifier.model_folder, engine_version="9")))
    await counted(verifier, bundle, 1)
    await step(verifier, "shadow", bundle)
    await counted(verifier, bundle, 0)


# Written down.


async def test_what_was_acknowledged_is_in_the_file(verifier) -> None:
    """Seen by another that opens it while this one is still open, and was never told to close."""
    bundle = await strict(verifier)
    await publish(verifier, bundle)
    await step(verifier, "promote", bundle)
    body = {**WHY, "kind": "device", "value": "GPU-1", "anyway": True}
    _, blocked = await post(verifier, "/api/v1/policies/blocks", body)
    async with (
        open_database(verifier.service.config.store.url, verifier.home.database) as other,
        other.read() as tx,
    ):
        now = await policies.rollout(tx)
        assert now is not None
        assert now.active == bundle.digest
        assert [row["id"] for row in await blocks.live(tx)] == [blocked["block"]]
        assert (await policies.find(tx, bundle.digest))["signer"] == "home"


async def test_a_block_again_is_the_same_block(verifier) -> None:
    """One call lifts it, and a second finds nothing to lift."""
    body = {**WHY, "kind": "digest", "value": "SHA256:" + "AB" * 32, "anyway": True}
    first = await post(verifier, "/api/v1/policies/blocks", body)
    second = await post(verifier, "/api/v1/policies/blocks", {**body, "value": "ab" * 32})
    assert first[1] == second[1]
    path = f"/api/v1/policies/blocks/{first[1]['block']}/lift"
    assert [(await post(verifier, path, WHY))[0] for _ in range(2)] == [204, 404]
    taken = [change["action"] for change in await changes(verifier) if change["actor"] == "kim"]
    assert taken == ["block", "unblock"]


async def test_the_history_pages_from_the_newest(verifier) -> None:
    """Every change once, in order."""
    for name in "abcde":
        await keep(verifier, name)
    seen: list[int] = []
    before = ""
    while True:
        _, body = await verifier.get(f"/api/v1/policies/history?limit=2{before}")
        seen += [change["seq"] for change in body["changes"]]
        if body["next"] is None:
            break
        before = f"&before={body['next']}"
    assert seen == sorted(set(seen), reverse=True)
    assert len(seen) == len(await verifier.rows("SELECT seq FROM changes"))
