"""Incidents: quarantine, review, release; and how far one mistake of ours may reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fixtures.credentials import bearer
from fixtures.published import publish
from fixtures.simulator import SimulatedNode, tiny_model
from verifier.incidents import BLAST_WINDOW_MS
from verifier.service.sweep import sweep

STORES = ("sqlite", "postgres")


@pytest.fixture
def altered(tmp_path: Path) -> Path:
    folder = tiny_model(tmp_path / "altered")
    tensors = load_file(folder / "model.safetensors")
    tensors["norm"] = tensors["norm"] ^ np.int8(1)
    save_file(tensors, folder / "model.safetensors")
    return folder


async def republish(verifier, folder: Path) -> None:
    await publish(verifier.service.db, verifier.service.pool_key, folder, verifier.clock.ms)


async def open_incidents(verifier) -> list[dict[str, Any]]:
    _, body = await verifier.get("/api/v1/incidents?open=1")
    return body["incidents"]


async def step(verifier, incident: str, name: str, *, token: str | None = None) -> int:
    headers = await verifier.key("ada") if token is None else bearer(token)
    url = f"{verifier.url}/api/v1/incidents/{incident}/{name}"
    body = {"reason": "looked at the machine"}
    async with verifier.http.post(url, json=body, headers=headers) as response:
        return response.status


async def quarantined(verifier, altered: Path) -> tuple[SimulatedNode, str]:
    honest = await verifier.enrol(operator="honest")
    await verifier.attest(honest)
    node = await verifier.enrol(SimulatedNode(altered), operator="liar")
    await verifier.attest(node)
    (incident,) = await open_incidents(verifier)
    return node, incident["id"]


async def test_review_then_release_to_probation(verifier, altered: Path) -> None:
    """A person's steps, each with who and why, open the door; the node must then walk anew."""
    node, incident = await quarantined(verifier, altered)
    assert await step(verifier, incident, "review") == 200
    assert await step(verifier, incident, "release") == 200
    _, shown = await verifier.get(f"/api/v1/incidents/{incident}")
    assert [s["state"] for s in shown["history"]] == ["open", "under-review", "released"]
    assert {s["actor"] for s in shown["history"]} == {"verifier", "ada"}
    _, body = await verifier.get(f"/api/v1/nodes/{node.id}")
    assert (body["state"], body["quarantined_by"]) == ("probation", None)
    node.folder = verifier.model_folder
    not_yet = await verifier.attest(node, walk=False)
    assert not_yet["submods"]["model/example/tiny"]["ear_trustworthiness_vector"]["executables"] == 96
    again = await verifier.attest(node)
    assert again["ear_status"] == "affirming", again["submods"]


async def test_retire_from_quarantine(verifier, altered: Path) -> None:
    """The other way out."""
    node, incident = await quarantined(verifier, altered)
    assert await step(verifier, incident, "retire") == 200
    _, body = await verifier.get(f"/api/v1/nodes/{node.id}")
    assert body["state"] == "retired"


async def test_only_the_administrator_takes_steps(verifier, altered: Path) -> None:
    """Routers report; they do not release."""
    _, incident = await quarantined(verifier, altered)
    assert await step(verifier, incident, "release", token=verifier.service.router_token) == 403
    assert len(await open_incidents(verifier)) == 1


async def test_steps_only_from_where_they_are_allowed(verifier, altered: Path) -> None:
    """Released is the end: no second release, no review of what is over."""
    _, incident = await quarantined(verifier, altered)
    assert await step(verifier, incident, "release") == 200
    assert await step(verifier, incident, "release") == 409
    assert await step(verifier, incident, "review") == 409
    assert await step(verifier, incident, "forgive") == 400
    assert await step(verifier, "nonsense", "release") == 404


async def test_a_failure_soon_after_a_change_waits_for_someone_to_pass(verifier, altered: Path) -> None:
    """Until then it fails its result, and holds nobody."""
    node = await verifier.enrol(SimulatedNode(altered), operator="first")
    result = await verifier.attest(node)
    assert result["ear_status"] == "contraindicated"
    (incident,) = await open_incidents(verifier)
    assert incident["state"] == "suspected"
    assert result["submods"]["platform"]["ear_status"] == "affirming"
    await verifier.attest(await verifier.enrol(operator="second"))
    (incident,) = await open_incidents(verifier)
    assert incident["state"] == "open"


async def test_ones_own_other_node_speaks_for_nobody(verifier, altered: Path) -> None:
    """An operator passing elsewhere is no independent word that the reference is right."""
    await verifier.attest(await verifier.enrol(operator="first"))
    await verifier.attest(await verifier.enrol(SimulatedNode(altered), operator="first"))
    (incident,) = await open_incidents(verifier)
    assert incident["state"] == "suspected"


async def test_suspicion_becomes_quarantine_when_the_window_ends(verifier, altered: Path) -> None:
    """Its operator's other node passed, and nobody else failed: then it was the node."""
    await verifier.attest(await verifier.enrol(operator="alone"))
    node = await verifier.enrol(SimulatedNode(altered), operator="alone")
    await verifier.attest(node)
    verifier.clock.forward(BLAST_WINDOW_MS / 1000 + 1)
    await sweep(verifier.service)
    (incident,) = await open_incidents(verifier)
    assert (incident["state"], incident["node"]) == ("open", node.id)


async def test_what_nobody_ever_passed_is_reviewed_and_quarantines_nobody(verifier, altered: Path) -> None:
    """One operator alone fails at a value that no node has met: a person looks at the value."""
    node = await verifier.enrol(SimulatedNode(altered), operator="alone")
    await verifier.attest(node)
    for _ in range(2):
        verifier.clock.forward(BLAST_WINDOW_MS / 1000 + 1)
        await sweep(verifier.service)
        found = await open_incidents(verifier)
        assert {(i["kind"], i["node"]) for i in found} == {("reference-suspect", None)}
        assert (await verifier.attest(node))["ear_status"] == "contraindicated"


async def test_a_wrong_reference_quarantines_nobody(verifier, altered: Path, tmp_path: Path) -> None:
    """Three operators fail right after a change of ours: one review of the reference, no quarantine."""
    nodes = [await verifier.enrol(operator=f"operator-{i}") for i in range(4)]
    for node in nodes:
        assert (await verifier.attest(node))["ear_status"] == "affirming"
    await republish(verifier, altered)
    for node in nodes:
        assert (await verifier.attest(node))["ear_status"] == "contraindicated"
    found = await open_incidents(verifier)
    assert {(i["kind"], i["node"]) for i in found} == {("reference-suspect", None)}
    for node in nodes:
        _, body = await verifier.get(f"/api/v1/nodes/{node.id}")
        assert body["quarantined_by"] is None
    await republish(verifier, verifier.model_folder)
    for node in nodes:
        assert (await verifier.attest(node))["ear_status"] == "affirming"


async def test_three_sybil_operators_do_not_shield_each_other(verifier, altered: Path) -> None:
    """Where more operators pass than fail, the failing ones are at fault."""
    for number in range(4):
        await verifier.attest(await verifier.enrol(operator=f"honest-{number}"))
    for number in range(3):
        await verifier.attest(await verifier.enrol(SimulatedNode(altered), operator=f"sybil-{number}"))
    found = await open_incidents(verifier)
    assert [(i["kind"], i["state"]) for i in found] == [("model-integrity-failure", "open")] * 3


async def test_a_router_reports_what_it_metered(verifier) -> None:
    """A settlement mismatch is suspected; what routers may not say is refused."""
    node = await verifier.enrol()
    headers = {"Authorization": f"Bearer {verifier.service.router_token}"}
    url = f"{verifier.url}/api/v1/incidents"
    report = {"node": node.id, "kind": "settlement-mismatch", "detail": "claims 10 times what was metered"}
    async with verifier.http.post(
        url, json={**report, "kind": "model-integrity-failure"}, headers=headers
    ) as r:
        assert r.status == 400
    async with verifier.stranger.post(url, json=report) as r:
        assert r.status == 401
    async with verifier.http.post(url, json=report, headers=headers) as r:
        assert r.status == 201
    (incident,) = await open_incidents(verifier)
    assert (incident["kind"], incident["node"], incident["state"]) == (
        "settlement-mismatch",
        node.id,
        "suspected",
    )
