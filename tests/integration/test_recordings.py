"""Recordings: replayed claim for claim, kept for a time and a volume, and never lost under a live result."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from attester.evidence import Inventory
from attester.kinds import write_submod
from fixtures.simulator import SimulatedNode, tiny_model
from fixtures.transactions import transaction
from tests.integration.lifecycle import age_recordings, changed, smuggle
from verifier import appraisal, recording
from verifier.schemes.context import ModelReference
from verifier.service.inputs import StoredLookup
from verifier.service.sweep import sweep
from verifier.store import incidents, recordings

STORES = ("sqlite", "postgres")

DAY = 24 * 3600


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    """Kept for two days, and results for as long as can be."""
    return {
        "calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0},
        "policy": {"workers": 1},
        "recording": {"keep_days": 2, "max_mib": 16},
    }


async def kept(verifier) -> set[str]:
    return {row["appraisal_id"] for row in await verifier.rows("SELECT appraisal_id FROM recordings")}


async def again(verifier, appraisal_id: str) -> dict[str, Any]:
    """A recorded appraisal examined, judged and concluded anew from the bytes received; its claims."""
    service = verifier.service
    lookup = StoredLookup(service.db, service.inputs)
    async with service.db.read() as tx:
        taken = await recordings.of_appraisal(tx, appraisal_id)
    assert taken is not None
    basis = taken.record.basis
    bundle = await lookup.bundle(basis.policy)
    references: dict[str, ModelReference] = {
        model: await lookup.reference(name) for model, name in basis.references.items()
    }
    superseded = {
        model: tuple([await lookup.reference(name) for name in names])
        for model, names in basis.superseded.items()
    }
    context = taken.record.context(references, superseded, bundle.thresholds, basis.blocks)
    checked = recording.examine(taken, context)
    given = checked.policy_input(context)
    assert given == taken.input
    outcome = appraisal.read_outcome(await service.engine.evaluate(bundle, given), checked.submods)
    result = recording.conclude(taken.record, checked, outcome, context, bundle.id)
    claims: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(result.to_claims()))
    return claims


async def with_submods(verifier, node: SimulatedNode, extra: dict[str, Any]) -> dict[str, Any]:
    """Evidence of a call, with further submodules."""
    session = await verifier.call(node)
    answers = node.answers(session)
    await verifier.client(node).answer_call(session, answers)
    raw = {name: write_submod(claims) for name, claims in node.claims(session.nonce, answers).items()}
    token = node.token(session.nonce, {**raw, **extra}, iat=verifier.clock.seconds)
    return await verifier.submit(session, token.sign(node.key), node)


async def test_a_replay_of_unknown_submodules_and_devices(verifier) -> None:
    """Claim for claim, also of what nobody here can weigh."""
    device = {"inventory": Inventory(model="X1", uuid="GPU-1", memory_bytes=1 << 36)}
    node = await verifier.enrol(SimulatedNode(verifier.model_folder, devices=(device,)))
    result = await with_submods(verifier, node, {"npu/0": {-80001: "x"}})
    assert {"gpu/0", "npu/0"} <= result["submods"].keys()
    assert await again(verifier, result["jti"]) == result


async def test_a_replay_stays_the_same_whatever_has_changed_since(verifier) -> None:
    """The policy, blocks, the clock and the node's own walks are those of then."""
    node = await verifier.enrol()
    first = await verifier.attest(node)
    verifier.clock.forward(30)
    await smuggle(verifier, changed(await verifier.policy(), "strict", versions=["9"]))
    second = await verifier.attest(node)
    assert second["ear_status"] == "contraindicated"
    assert await again(verifier, first["jti"]) == first
    assert await again(verifier, second["jti"]) == second


async def test_a_recording_from_before_results_named_the_node_replays(verifier) -> None:
    """To the result of then, which did not name it, and nothing else is different."""
    node = await verifier.enrol()
    result = await verifier.attest(node)
    await age_recordings(verifier)
    replayed = await again(verifier, result["jti"])
    del result["submods"]["platform"]["ear_verifier_claims"]["node"]
    assert replayed == result


async def test_a_session_goes_on_showing_its_evidence(verifier) -> None:
    """The very bytes, for as long as they are recorded; and its result longer."""
    node = await verifier.enrol()
    session = await verifier.call(node)
    answers = node.answers(session)
    await verifier.client(node).answer_call(session, answers)
    evidence = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
    await verifier.submit(session, evidence, node)
    path = f"/challenge-response/v1/session/{session.id}"
    _, shown = await verifier.get(path)
    assert base64.b64decode(shown["evidence"]["value"]) == evidence
    verifier.clock.forward(2 * DAY + 1)
    await sweep(verifier.service)
    _, shown = await verifier.get(path)
    assert "evidence" not in shown
    assert shown["status"] == "complete"


async def test_recordings_are_forgotten_after_their_days(verifier) -> None:
    """And not before."""
    node = await verifier.enrol()
    old = (await verifier.attest(node, walk=False))["jti"]
    verifier.clock.forward(DAY)
    new = (await verifier.attest(node, walk=False))["jti"]
    verifier.clock.forward(DAY - 1)
    await sweep(verifier.service)
    assert await kept(verifier) == {old, new}
    verifier.clock.forward(2)
    await sweep(verifier.service)
    assert await kept(verifier) == {new}


async def grown(verifier, *appraisals: str) -> None:
    """As if so many were of 7 MiB each."""
    async with transaction(verifier.service.db) as tx:
        for appraisal_id in appraisals:
            await tx.execute("UPDATE recordings SET size = ? WHERE appraisal_id = ?", 7 << 20, appraisal_id)
        await tx.execute(
            "UPDATE totals SET value = (SELECT sum(size) FROM recordings) WHERE name = 'recordings'"
        )


async def test_beyond_the_volume_the_oldest_are_forgotten(verifier) -> None:
    """As many as it takes, and no more."""
    node = await verifier.enrol()
    found = []
    for _ in range(4):
        found.append((await verifier.attest(node, walk=False))["jti"])
        verifier.clock.forward(1000)
    await grown(verifier, *found)
    await sweep(verifier.service)
    assert await kept(verifier) == set(found[2:])


async def test_no_node_pushes_out_what_was_recorded_of_others(verifier) -> None:
    """A node that attests all the time loses its own oldest, though others' are older."""
    quiet, busy = await verifier.enrol(operator="quiet"), await verifier.enrol(operator="busy")
    old = (await verifier.attest(quiet, walk=False))["jti"]
    found = []
    for _ in range(5):
        verifier.clock.forward(1000)
        found.append((await verifier.attest(busy, walk=False))["jti"])
    verifier.clock.forward(1000)
    await grown(verifier, old, *found)
    await sweep(verifier.service)
    assert await kept(verifier) == {old, found[-1]}


@pytest.mark.parametrize("end", ["release", "retire"])
async def test_what_an_undecided_incident_rests_on_stays(verifier, tmp_path: Path, end: str) -> None:
    """Beyond its days and the volume, until a person decides."""
    await verifier.attest(await verifier.enrol(operator="honest"))
    folder = tiny_model(tmp_path / "altered")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "norm": tensors["norm"] ^ np.int8(1)}, folder / "model.safetensors")
    liar = await verifier.enrol(SimulatedNode(folder), operator="liar")
    accused = (await verifier.attest(liar))["jti"]
    (incident,) = await verifier.rows("SELECT id FROM incidents WHERE severity = 'serious'")
    later = []
    for _ in range(3):
        verifier.clock.forward(1000)
        later.append((await verifier.attest(liar, walk=False))["jti"])
    await grown(verifier, accused, *later)
    verifier.clock.forward(1000)
    await sweep(verifier.service)
    assert accused in await kept(verifier)
    verifier.clock.forward(3 * DAY)
    await sweep(verifier.service)
    assert await kept(verifier) == {accused}
    async with transaction(verifier.service.db) as tx:
        await incidents.take_step(
            tx, incident["id"], end, "ada", "looked", verifier.clock.ms, two_person=False
        )
    await sweep(verifier.service)
    assert await kept(verifier) == set()


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.integers(0, 20_000))
def test_a_fair_share_fits_and_wastes_nothing(sizes: list[int], total: int) -> None:
    """Who has less keeps all of it, and nobody could have more."""
    share = recordings.fair_share(sizes, total)
    assert sum(min(size, share) for size in sizes) <= total
    if share < max(sizes):
        assert sum(min(size, share + 1) for size in sizes) > total


async def test_what_live_results_rest_on_is_kept_beyond_the_volume(verifier) -> None:
    """They may have to be judged anew."""
    node = await verifier.enrol()
    old = (await verifier.attest(node, walk=False))["jti"]
    verifier.clock.forward(1000)
    live = []
    for _ in range(3):
        live.append((await verifier.attest(node, walk=False))["jti"])
        verifier.clock.forward(1)
    await grown(verifier, old, *live)
    await sweep(verifier.service)
    assert await kept(verifier) == set(live)


async def test_refused_evidence_is_not_recorded(verifier) -> None:
    """Only what a key has signed is held against it, or kept of it."""
    node = await verifier.enrol()
    session = await verifier.call(node)
    evidence = bytearray(node.evidence(session, iat=verifier.clock.seconds))
    evidence[-1] ^= 1
    status, _ = await verifier.post(session, bytes(evidence))
    assert status == 403
    assert await kept(verifier) == set()
