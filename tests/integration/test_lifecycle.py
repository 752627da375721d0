"""A policy's life: published, tried, rolled out, taken back; and what a broken one may cost."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attester.weights.folder import open_folder
from fixtures.simulator import ENGINE, ENGINE_VERSION, MODEL, SimulatedNode
from tests.integration.lifecycle import (
    archive,
    changed,
    chosen,
    post,
    publish,
    replaced,
    router,
    smuggle,
    step,
    stepping,
    strict,
    within,
)
from tests.unit.verifier.test_gpu_scheme import GOOD
from verifier import appraisal, recording
from verifier.incidents import BLAST_WINDOW_MS
from verifier.policy import rollout as steps
from verifier.policy.archive import write_archive
from verifier.policy.engine import decode
from verifier.reappraisal import Reappraiser
from verifier.references import measured
from verifier.service.inputs import StoredLookup
from verifier.service.sweep import sweep
from verifier.store import recordings

SUBMOD = f"model/{MODEL}"
PUBLISH = "/api/v1/policies?actor=kim&reason=because"


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    """Calls that only the test makes; as many sessions as it likes."""
    return {
        "calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0},
        "policy": {"workers": 1, "timeout_s": 0.5},
        "sessions": {
            "announced_per_hour": 100_000, "per_node_per_minute": 100_000,
            "per_address_per_minute": 1_000_000, "strangers_per_minute": 1_000_000,
        },
    }  # fmt: skip


async def live(verifier, node: SimulatedNode) -> Any:
    _, body = await verifier.get(f"/api/v1/nodes/{node.id}/result", Accept="application/json")
    return body


async def test_a_rollback_shows_in_a_routers_decision_within_a_second(verifier) -> None:
    """And so does the promotion before it; no node attests anew, and nothing gets younger."""
    nodes = [await verifier.enrol(operator=f"o{number}") for number in range(5)]
    for node in nodes:
        await verifier.attest(node)
    before = await live(verifier, nodes[0])
    bundle = await strict(verifier)
    await publish(verifier, bundle)
    async with router(verifier) as decision:
        await within(2, lambda: len(chosen(decision())) == 5)
        await step(verifier, "promote", bundle)
        assert await within(1, lambda: not chosen(decision())) < 1
        status, _ = await post(verifier, "/api/v1/policies/rollback", {"actor": "kim", "reason": "because"})
        assert status == 200
        assert await within(1, lambda: len(chosen(decision())) == 5) < 1
    after = await live(verifier, nodes[0])
    assert after["jti"] != before["jti"]
    assert (after["iat"], after["exp"]) == (before["iat"], before["exp"])
    assert await verifier.rows("SELECT * FROM incidents") == []


@pytest.mark.parametrize("kind", ["engine-version", "digest", "reference"])
async def test_a_block_shows_within_a_second_and_is_undone_the_same_way(verifier, kind: str) -> None:
    """Whatever the policy says; by engine, by a file's digest, by the reference value's."""
    node = await verifier.enrol()
    result = await verifier.attest(node)
    reference = result["submods"][SUBMOD]["ear_verifier_claims"]["reference"]
    (row,) = await verifier.rows("SELECT document FROM reference_values")
    file = row["document"].partition('"sha256":"')[2][:64]
    value = {"engine-version": f"{ENGINE}@{ENGINE_VERSION}", "digest": file, "reference": reference}[kind]
    named = "digest" if kind == "reference" else kind
    body = {"actor": "kim", "reason": "because", "kind": named, "value": value}
    async with router(verifier) as decision:
        await within(2, lambda: chosen(decision()) == {node.id})
        status, blocked = await post(verifier, "/api/v1/policies/blocks", body)
        assert status == 201
        assert await within(1, lambda: not chosen(decision())) < 1
        codes = {
            reason["code"]
            for submod in (await live(verifier, node))["submods"].values()
            for reason in submod["ear_verifier_claims"].get("reasons", ())
        }
        assert "policy.blocked" in codes
        # Fresh evidence of the same is blocked too.
        assert (await verifier.attest(node))["ear_status"] == "contraindicated"
        lifted = f"/api/v1/policies/blocks/{blocked['block']}/lift"
        assert (await post(verifier, lifted, {"actor": "kim", "reason": "because"}))[0] == 204
        assert await within(1, lambda: chosen(decision()) == {node.id}) < 1
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_a_blocked_device_is_not_to_be_trusted(verifier) -> None:
    """Routers look at the platform, so it says so too."""
    node = await verifier.enrol(SimulatedNode(verifier.model_folder, devices=(GOOD,)))
    await verifier.attest(node)
    body = {"actor": "kim", "reason": "because", "kind": "device", "value": GOOD["inventory"].uuid}
    assert (await post(verifier, "/api/v1/policies/blocks", body))[0] == 201
    vector = (await verifier.attest(node))["submods"]
    assert vector["gpu/0"]["ear_trustworthiness_vector"]["hardware"] == 96
    assert vector["platform"]["ear_trustworthiness_vector"]["instance-identity"] == 96


async def test_block_and_rollback_under_load_soon(verifier) -> None:
    """Nine of eighteen nodes attest as fast as they can meanwhile, and each of their results is of what holds."""
    nodes = [await verifier.enrol(operator=f"o{number}") for number in range(18)]
    for node in nodes:
        await verifier.attest(node)
    bundle = await strict(verifier)
    await publish(verifier, bundle)
    stop = False

    async def attest_on(node: SimulatedNode) -> int:
        done = 0
        while not stop:
            session = await verifier.client(node).open_session()
            evidence = node.evidence(session, iat=verifier.clock.seconds)
            await verifier.client(node).submit(session, evidence)
            done += 1
        return done

    # Evidence without a call makes warnings, so only those that do not attest stay in the pool.
    quiet = {node.id for node in nodes[9:]}
    async with router(verifier) as decision:
        await within(2, lambda: len(chosen(decision())) == 18)
        load = [asyncio.create_task(attest_on(node)) for node in nodes[:9]]
        await asyncio.sleep(0.2)
        try:
            body = {
                "actor": "kim",
                "reason": "because",
                "kind": "engine-version",
                "value": f"{ENGINE}@{ENGINE_VERSION}",
            }
            _, blocked = await post(verifier, "/api/v1/policies/blocks", body)
            await within(5, lambda: not chosen(decision()))
            lifted = f"/api/v1/policies/blocks/{blocked['block']}/lift"
            await post(verifier, lifted, {"actor": "kim", "reason": "because"})
            await within(5, lambda: quiet <= chosen(decision()))
            await step(verifier, "promote", bundle)
            await within(5, lambda: not chosen(decision()))
            await post(verifier, "/api/v1/policies/rollback", {"actor": "kim", "reason": "because"})
            await within(5, lambda: quiet <= chosen(decision()))
        finally:
            stop = True
            done = await asyncio.gather(*load)
    assert min(done) > 0
    assert await verifier.rows("SELECT * FROM incidents") == []


# Past a disabled lint: started with nothing to judge they seem well, and it is the evaluation that shows them.
BROKEN = {
    "loops forever": (
        "package touchstone\n"
        "outcome := count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000)]) if "
        "count(input.checked) > 0\n"
    ),
    "recurses": "package touchstone\nf(x) := f(x + 1)\noutcome := f(1) if count(input.checked) > 0\n",
    "eats memory": "package touchstone\noutcome := numbers.range(1, 1000000000) if count(input.checked) > 0\n",
    "gives 258": (
        "package touchstone\n"
        'outcome[n] := {"trust_vector": {"hardware": 258}, "reasons": []} if some n, _ in input.checked\n'
    ),
    "gives a float": (
        "package touchstone\n"
        'outcome[n] := {"trust_vector": {"hardware": 2.5}, "reasons": []} if some n, _ in input.checked\n'
    ),
    "gives nothing": "package touchstone\noutcome := 1 if count(input.checked) > 99\n",
}


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
async def test_a_broken_policy_costs_its_appraisals_and_nothing_else(verifier, source: str) -> None:
    """Others are answered throughout; what it should have judged ends none, with a reason, and blames nobody."""
    node = await verifier.enrol()
    session = await verifier.call(node)
    answers = node.answers(session)
    await verifier.client(node).answer_call(session, answers)
    evidence = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
    await smuggle(verifier, replaced(await verifier.policy(), "broken", source))
    appraisal = asyncio.create_task(verifier.submit(session, evidence, node))
    waits = []
    other = await verifier.enrol(operator="other")
    while not appraisal.done():
        async with stepping() as stepped_s:
            status, _ = await verifier.get("/.well-known/veraison/verification")
            await verifier.client(other).open_session()
            waits.append(stepped_s())
        assert status == 200
        await asyncio.sleep(0.01)
    result = await appraisal
    assert max(waits) < 0.4
    assert result["ear_status"] == "none"
    async with verifier.http.get(f"{verifier.url}/metrics") as response:
        assert 'touchstone_policy_failures_total{policy="broken@1"}' in await response.text()
    for name, submod in result["submods"].items():
        assert set(submod["ear_trustworthiness_vector"].values()) == {-1}, name
        assert "policy.failed" in {r["code"] for r in submod["ear_verifier_claims"].get("reasons", ())}
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_workers_that_were_stopped_take_no_good_result_away(verifier) -> None:
    """A machine that stalls for a second is no policy that fails: it is asked again."""
    node = await verifier.enrol()
    await verifier.attest(node)
    for process in children_of(os.getpid()):
        os.kill(process, signal.SIGSTOP)
    assert (await verifier.attest(node))["ear_status"] == "affirming"


def children_of(parent: int) -> list[int]:
    """The policy's workers: the only processes that the verifier starts."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and b"verifier.policy.worker" in _read(entry / "cmdline"):
            status = _read(entry / "stat").rpartition(b")")[2].split()
            if status and int(status[1]) == parent:
                found.append(int(entry.name))
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        # The process has ended.
        return b""


def bomb(verifier, bundle) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in bundle.files.items():
            made.writestr(name, data)
        made.writestr("README.md", bytes(64 << 20))
    return out.getvalue()


def climbing(verifier, bundle) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("../../policy.rego", b"package touchstone")
    return out.getvalue()


def unsigned(verifier, bundle) -> bytes:

    return write_archive(bundle, None)


REFUSED = {
    "a path that climbs out": (climbing, "../../policy.rego"),
    "a bomb": (bomb, "README.md"),
    "no signature": (unsigned, "not signed"),
    "no archive": (lambda *_: b"PK\x03\x04 no archive", "not a zip archive"),
    "what does not parse": ({"bad_rego": "package touchstone\n\nx := {\n"}, "bad.rego:4:1: "),
    "recursion": ({"bad_rego": "package touchstone\n\nf(x) := f(x + 1)\n"}, "bad.rego:3:9"),
    "the network": ({"bad_rego": 'package touchstone\n\nx := http.send({"url": "u"})\n'}, "bad.rego:3:6"),
    "a test that fails": ({"bad_test_rego": "package bad_test\n\ntest_it if 1 == 2\n"}, "bad_test.rego:3"),
    "no tests": ({"policy_test_rego": "package touchstone_test\n"}, "test"),
}


@pytest.mark.parametrize(("how", "message"), REFUSED.values(), ids=REFUSED)
async def test_a_bundle_is_refused_with_file_and_place(verifier, how: Any, message: str) -> None:
    """And leaves no trace: nothing is kept, and the active policy goes on."""
    before = await verifier.rows("SELECT * FROM changes"), await verifier.rows("SELECT * FROM policies")
    base = changed(await verifier.policy(), "other")
    data = how(verifier, base) if callable(how) else archive(verifier, changed(base, "other", **how))
    status, body = await post(verifier, PUBLISH, data)
    assert (status, body["type"].rpartition("#")[2]) == (422, "policy.unusable")
    assert message in body["detail"]
    assert (
        await verifier.rows("SELECT * FROM changes"),
        await verifier.rows("SELECT * FROM policies"),
    ) == before
    assert (await verifier.attest(await verifier.enrol()))["ear_status"] == "affirming"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("post", "/api/v1/policies"),
        ("post", "/api/v1/policies/rollback"),
        ("post", "/api/v1/policies/blocks"),
        ("post", "/api/v1/policies/blocks/x/lift"),
        ("delete", "/api/v1/policies/shadow"),
        ("post", "/api/v1/policies/x/trial"),
        ("post", "/api/v1/policies/x/shadow"),
        ("post", "/api/v1/policies/x/canary"),
        ("post", "/api/v1/policies/x/promote"),
        ("get", "/api/v1/policies/x/shadow"),
        ("get", "/api/v1/policies/x/diff/y"),
        ("post", "/api/v1/reference-values"),
        ("post", f"/api/v1/reference-values/{'0' * 64}/activate"),
        ("post", f"/api/v1/reference-values/{'0' * 64}/retire"),
    ],
)
async def test_who_may_change_what_is_in_force(verifier, method: str, path: str) -> None:
    """The administrator alone: not routers, not anybody."""
    for token, code in (("", 401), (verifier.service.router_token, 403)):
        headers = {"Authorization": f"Bearer {token}"}
        async with verifier.http.request(
            method, verifier.url + path, headers=headers, data=b"{}"
        ) as response:
            assert response.status == code


async def test_a_canary_judges_its_share_and_a_rollback_ends_it_first(verifier) -> None:
    """The same nodes each time; then what was active before, and before that."""
    nodes = [await verifier.enrol(operator=f"o{number}") for number in range(8)]
    base, bundle = await verifier.policy(), await strict(verifier)
    await publish(verifier, bundle)
    places = sorted(steps.bucket(node.id) for node in nodes)
    permille = (places[3] + places[4]) // 2 + 1
    await step(verifier, "canary", bundle, permille=permille)
    for node in nodes:
        result = await verifier.attest(node)
        expected = bundle if steps.bucket(node.id) < permille else base
        assert result["submods"]["platform"]["ear_appraisal_policy_ids"] == [expected.id]
    rollback = "/api/v1/policies/rollback"
    why = {"actor": "kim", "reason": "because"}
    _, after = await post(verifier, rollback, why)
    assert (after["active"], after["canary"]) == (base.id, None)
    await step(verifier, "promote", bundle)
    looser = changed(base, "looser", versions=[ENGINE_VERSION, "2"])
    await publish(verifier, looser)
    await step(verifier, "promote", looser)
    assert [(await post(verifier, rollback, why))[1]["active"] for _ in range(2)] == [bundle.id, base.id]
    assert (await post(verifier, rollback, why))[0] == 409
    _, body = await verifier.get("/api/v1/policies/history?limit=500")
    taken = [(c["action"], c["actor"], c["reason"]) for c in body["changes"] if c["actor"] == "kim"]
    assert [action for action, *_ in taken][::-1] == [
        "publish", "canary", "rollback", "promote", "publish", "promote", "rollback", "rollback",
    ]  # fmt: skip
    assert {(actor, reason) for _, actor, reason in taken} == {("kim", "because")}


async def test_a_shadow_is_counted_and_judges_nobody(verifier) -> None:
    """Its differences are kept by node and submodule, and no incident is made of them."""
    node, bundle = await verifier.enrol(), await strict(verifier)
    await publish(verifier, bundle)
    await step(verifier, "shadow", bundle)
    for _ in range(3):
        assert (await verifier.attest(node))["ear_status"] == "affirming"
    report: Any = {}
    deadline = time.monotonic() + 30
    while report.get("appraised") != 3:
        assert time.monotonic() < deadline
        _, report = await verifier.get(f"/api/v1/policies/{bundle.digest}/shadow")
        await asyncio.sleep(0.01)
    assert (report["differing"], report["failed"], report["skipped"]) == (3, 0, 0)
    (change,) = report["changes"]
    assert (change["node"], change["submod"], change["direction"], change["count"]) == (
        node.id,
        "platform",
        "worse",
        3,
    )
    assert change["to"]["reasons"] == ["runtime.engine.unapproved"]
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_a_trial_says_exactly_what_would_change(verifier) -> None:
    """Per node and submodule, from what to what, with the codes; and narrowed to an operator."""
    old = [await verifier.enrol(SimulatedNode(verifier.model_folder, engine_version="0.9"), operator="late")]
    new = [await verifier.enrol(operator="early") for _ in range(2)]
    for node in (*old, *new):
        await verifier.attest(node)
    bundle = changed(await verifier.policy(), "newer", versions=[ENGINE_VERSION])
    await publish(verifier, bundle)
    path = f"/api/v1/policies/{bundle.digest}/trial"
    _, report = await post(verifier, path, {"actor": "kim", "reason": "because"})
    assert (report["appraisals"], report["unchanged"], report["nodes_changed"]) == (3, 2, 1)
    (change,) = report["changes"]
    assert (change["node"], change["submod"], change["direction"]) == (old[0].id, "platform", "worse")
    assert change["from"] == {
        "vector": {"instance-identity": 2, "configuration": 32},
        "reasons": ["runtime.engine.weak"],
    }
    assert change["to"] == {
        "vector": {"instance-identity": 2, "configuration": 96},
        "reasons": ["runtime.engine.unapproved"],
    }
    _, narrow = await post(verifier, path, {"actor": "kim", "reason": "because", "operator": "early"})
    assert (narrow["appraisals"], narrow["changes"]) == (2, [])
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_a_replay_gives_the_recorded_result_claim_for_claim(verifier, tmp_path: Path) -> None:
    """Honest, with other weights, without answers, in quarantine: examined again from the bytes received."""
    folder = tmp_path / "altered"
    shutil.copytree(verifier.model_folder, folder)
    (folder / "config.json").write_text('{"layers": 2}')
    honest = [await verifier.enrol(operator=f"o{number}") for number in range(2)]
    cheat = await verifier.enrol(SimulatedNode(folder), operator="cheat")
    for node in (*honest, cheat, cheat):
        await verifier.attest(node)
    session = await verifier.client(honest[0]).open_session()
    evidence = honest[0].evidence(session, iat=verifier.clock.seconds, answers={})
    await verifier.submit(session, evidence, honest[0])
    service, lookup = verifier.service, StoredLookup(verifier.service.db, verifier.service.inputs)
    statuses = set()
    for row in await verifier.rows("SELECT id, claims, status FROM appraisals"):
        async with service.db.read() as tx:
            taken = await recordings.of_appraisal(tx, row["id"])
        assert taken is not None
        bundle = await lookup.bundle(taken.record.basis.policy)
        replay = Reappraiser(bundle, lambda given, bundle=bundle: service.engine.ask(bundle, given), lookup)
        given = await replay._recorded_inputs(taken.record)
        context = taken.record.context(given.references, given.superseded, bundle.thresholds, given.blocks)
        checked = recording.examine(taken, context)
        assert msgspec.json.encode(dict(checked.submods)) == msgspec.json.encode(taken.record.checked)
        assert checked.policy_input(context) == taken.input

        outcome = appraisal.read_outcome(
            decode(await service.engine.ask(bundle, taken.input)), checked.submods
        )
        result = recording.conclude(taken.record, checked, outcome, context, bundle.id)

        assert msgspec.json.encode(result.to_claims()).decode() == row["claims"]
        statuses.add(row["status"])
    assert statuses == {"affirming", "contraindicated"}
    quarantined = await verifier.rows(
        "SELECT claims FROM appraisals WHERE claims LIKE '%identity.node.quarantined%'"
    )
    assert quarantined != []


@pytest.mark.parametrize("operators", [1, 2, 3])
async def test_a_wrong_reference_fails_results_and_quarantines_nobody(
    verifier, tmp_path: Path, operators: int
) -> None:
    """However many operators there are, and also long after."""
    nodes = [await verifier.enrol(operator=f"o{number}") for number in range(operators)]
    for node in nodes:
        assert (await verifier.attest(node))["ear_status"] == "affirming"
    (right,) = await verifier.rows("SELECT digest FROM reference_values")
    folder = tmp_path / "mistaken"
    shutil.copytree(verifier.model_folder, folder)
    (folder / "config.json").write_text('{"layers": 3}')

    document = measured.measure_folder(MODEL, open_folder(folder))
    headers = {"Content-Type": "application/json"}
    url = f"{verifier.url}/api/v1/reference-values?actor=kim&reason=mistake"
    async with verifier.http.post(url, data=msgspec.json.encode(document), headers=headers) as response:
        assert (await response.json())["reference_values"][0]["state"] == "candidate"
    activate = {"actor": "kim", "reason": "mistake", "grace_s": 0}
    path = "/api/v1/reference-values/{}/activate"
    assert (await post(verifier, path.format(document.digest), activate))[0] == 204
    for _ in range(2):
        for node in nodes:
            assert (await verifier.attest(node, walk=False))["ear_status"] == "contraindicated"
        verifier.clock.forward(BLAST_WINDOW_MS / 1000 + 1)
        await sweep(verifier.service)
    for node in nodes:
        _, body = await verifier.get(f"/api/v1/nodes/{node.id}")
        assert body["quarantined_by"] is None
    reviews = await verifier.rows(
        "SELECT kind, node_id FROM incidents WHERE state IN ('open', 'under-review')"
    )
    assert {(row["kind"], row["node_id"]) for row in reviews} == {("reference-suspect", None)}
    assert (await post(verifier, path.format(right["digest"]), activate))[0] == 204
    for node in nodes:
        assert (await verifier.attest(node))["ear_status"] == "affirming"
