"""Reference values: who may change them, how, and what becomes of results while they change."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attester.weights.folder import open_folder
from fixtures.simulator import MODEL, SimulatedNode
from tests.integration.lifecycle import chosen, post, router, within
from verifier.references import measured
from verifier.references.measured import Document

SUBMOD = f"model/{MODEL}"
VALUES = "/api/v1/reference-values"
WHY = {"actor": "kim", "reason": "because"}


@pytest.fixture
def newer(tmp_path: Path, model_folder: Path) -> Path:
    """Another configuration beside the same weights."""
    folder = tmp_path / "newer"
    shutil.copytree(model_folder, folder)
    (folder / "config.json").write_text('{"layers": 2}')
    return folder


def document(folder: Path) -> Document:
    return measured.measure_folder(MODEL, open_folder(folder))


async def add(verifier, body: bytes, kind: str = "application/json", **query: str) -> tuple[int, Any]:
    headers = {"Content-Type": kind}
    async with verifier.http.post(
        verifier.url + VALUES, params={**WHY, **query}, data=body, headers=headers
    ) as response:
        return response.status, await response.json(content_type=None)


async def activate(verifier, digest: str, **more: Any) -> None:
    status, body = await post(verifier, f"{VALUES}/{digest}/activate", {**WHY, **more})
    assert status == 204, body


async def first(verifier) -> str:
    (row,) = await verifier.rows("SELECT digest FROM reference_values WHERE state = 'active'")
    return str(row["digest"])


async def test_grace_and_its_end_show_in_decisions(verifier, newer: Path) -> None:
    """Replaced with grace a live result becomes a warning; put back, it is what it was."""
    node = await verifier.enrol()
    old, jti = await first(verifier), (await verifier.attest(node))["jti"]
    await add(verifier, msgspec.json.encode(document(newer)))
    async with router(verifier) as decision:
        await within(2, lambda: chosen(decision()) == {node.id})
        await activate(verifier, document(newer).digest, grace_s=600)
        assert await within(1, lambda: not chosen(decision())) < 1
        _, result = await verifier.get(f"/api/v1/nodes/{node.id}/result", Accept="application/json")
        assert result["submods"][SUBMOD]["ear_trustworthiness_vector"]["file-system"] == -34
        assert result["submods"][SUBMOD]["ear_verifier_claims"]["reference"] == old
        await activate(verifier, old, grace_s=0)
        assert await within(1, lambda: chosen(decision()) == {node.id}) < 1
    _, result = await verifier.get(f"/api/v1/nodes/{node.id}/result", Accept="application/json")
    assert result["jti"] != jti
    assert result["submods"][SUBMOD]["ear_verifier_claims"]["reference"] == old
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_a_retired_value_shows_within_a_second(verifier) -> None:
    """No conclusion for the live result, and no incident."""
    node = await verifier.enrol()
    await verifier.attest(node)
    async with router(verifier) as decision:
        await within(2, lambda: chosen(decision()) == {node.id})
        assert (await post(verifier, f"{VALUES}/{await first(verifier)}/retire", WHY))[0] == 204
        assert await within(1, lambda: not chosen(decision())) < 1
    _, result = await verifier.get(f"/api/v1/nodes/{node.id}/result", Accept="application/json")
    assert result["submods"][SUBMOD]["ear_trustworthiness_vector"]["file-system"] == 1
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_a_blocked_value_is_blocked_within_its_grace_too(verifier, newer: Path) -> None:
    """Who still has the files of a value that was replaced and then blocked has blocked files."""
    old = await first(verifier)
    await add(verifier, msgspec.json.encode(document(newer)))
    await activate(verifier, document(newer).digest, grace_s=600)
    status, _ = await post(
        verifier, "/api/v1/policies/blocks", {**WHY, "kind": "digest", "value": old, "anyway": True}
    )
    assert status == 201
    node = await verifier.enrol()
    result = (await verifier.attest(node, walk=False))["submods"][SUBMOD]
    assert result["ear_trustworthiness_vector"]["file-system"] == 96
    assert "policy.blocked" in [r["code"] for r in result["ear_verifier_claims"]["reasons"]]


async def test_a_value_added_again_is_said_to_be_what_it_is(verifier, newer: Path) -> None:
    """Replaced is not waiting: the answer and the list say the same."""
    old = document(verifier.model_folder)
    await add(verifier, msgspec.json.encode(document(newer)), activate="1")
    _, body = await add(verifier, msgspec.json.encode(old))
    _, listed = await verifier.get(f"{VALUES}?all=1")
    states = {entry["digest"]: entry["state"] for entry in listed["reference_values"]}
    assert body["reference_values"][0]["state"] == states[old.digest]


async def test_every_change_is_written_down(verifier, newer: Path) -> None:
    """Added, activated, retired: by whom, and why."""
    digest = document(newer).digest
    await add(verifier, msgspec.json.encode(document(newer)))
    await activate(verifier, digest)
    await post(verifier, f"{VALUES}/{digest}/retire", WHY)
    _, body = await verifier.get("/api/v1/policies/history")
    taken = [c for c in body["changes"] if c["actor"] == "kim"][::-1]
    assert [(c["action"], c["subject"], c["reason"]) for c in taken] == [
        ("reference-add", digest, "because"),
        ("reference-activate", digest, "because"),
        ("reference-retire", digest, "because"),
    ]


@pytest.mark.parametrize("who", [{"reason": ""}, {"actor": "x", "reason": ""}])
async def test_who_adds_a_value_must_say_who_and_why(verifier, newer: Path, who: dict[str, str]) -> None:
    """Or it is not kept."""
    status, _ = await add(verifier, msgspec.json.encode(document(newer)), **who)
    assert status == 400
    assert len(await verifier.rows("SELECT * FROM reference_values")) == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"model": "a/b", "files": []}', b"\xff"],
    ids=["nothing", "cut short", "a list", "no model", "no files", "no UTF-8"],
)
async def test_a_document_that_cannot_be_read_is_refused(verifier, body: bytes) -> None:
    """And nothing is kept."""
    status, answer = await add(verifier, body)
    assert (status, answer["type"].rpartition("#")[2]) == (422, "reference.unusable")
    assert len(await verifier.rows("SELECT * FROM reference_values")) == 1


@pytest.mark.parametrize("step", ["activate", "retire"])
async def test_a_step_of_a_value_that_nobody_knows_is_refused(verifier, step: str) -> None:
    """With 422, as is one that changes nothing."""
    before = await verifier.rows("SELECT * FROM changes")
    assert (await post(verifier, f"{VALUES}/{'0' * 64}/{step}", WHY))[0] == 422
    assert (await post(verifier, f"{VALUES}/{await first(verifier)}/activate", WHY))[0] == 422
    assert await verifier.rows("SELECT * FROM changes") == before


@pytest.mark.parametrize("grace", [-1, 366 * 86400, 1.5, "1"])
async def test_a_grace_that_is_none_is_refused(verifier, newer: Path, grace: Any) -> None:
    """With 400, and nothing moves."""
    await add(verifier, msgspec.json.encode(document(newer)))
    old = await first(verifier)
    path = f"{VALUES}/{document(newer).digest}/activate"
    assert (await post(verifier, path, {**WHY, "grace_s": grace}))[0] == 400
    assert await first(verifier) == old


async def test_a_node_that_has_the_new_files_early_is_judged_by_the_value_in_force(
    verifier, newer: Path
) -> None:
    """A candidate is no permission; a file that changes answers is a difference until it is activated."""
    await add(verifier, msgspec.json.encode(document(newer)))
    node = await verifier.enrol(SimulatedNode(newer))
    result = (await verifier.attest(node, walk=False))["submods"][SUBMOD]
    assert result["ear_trustworthiness_vector"]["file-system"] == 96
    assert result["ear_verifier_claims"]["reference"] == await first(verifier)
