"""Reference values: one in force, others wait, replaced ones are a warning for a while, expired ones none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attester.cose import PrivateKey
from attester.weights.folder import open_folder
from fixtures.published import publish
from fixtures.simulator import MODEL, SimulatedNode, tiny_model
from tests.integration.lifecycle import changed, post, step
from tests.integration.lifecycle import publish as publish_policy
from verifier.references import corim, measured, profile
from verifier.references.measured import Document

SUBMOD = f"model/{MODEL}"
VALUES = "/api/v1/reference-values"
WHY = {"actor": "kim", "reason": "because"}


@pytest.fixture
def newer(tmp_path: Path, model_folder: Path) -> Path:
    """The next release of the model: another configuration, one more file."""
    folder = tmp_path / "newer"
    shutil.copytree(model_folder, folder)
    (folder / "config.json").write_text('{"layers": 2}')
    (folder / "notes.txt").write_text("2")
    return folder


def document(folder: Path) -> Document:
    return measured.measure_folder(MODEL, open_folder(folder))


async def add(verifier, body: bytes, kind: str = "application/json", **query: str) -> tuple[int, Any]:
    headers = {"Content-Type": kind}
    url = verifier.url + VALUES
    async with verifier.http.post(url, params={**WHY, **query}, data=body, headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def activate(verifier, digest: str, **more: Any) -> None:
    status, body = await post(verifier, f"{VALUES}/{digest}/activate", {**WHY, **more})
    assert status == 204, body


def signed(verifier, value: Document, **validity: int) -> bytes:
    made = profile.from_document(value)
    given = {
        "not_before": verifier.clock.seconds - 10,
        "not_after": verifier.clock.seconds + 3600,
        **validity,
    }
    return corim.sign(made, verifier.home.author_key(), signer="us", **given)


async def test_a_second_value_waits_and_the_conflict_is_shown(verifier, newer: Path) -> None:
    """File by file; nobody's result changes for it."""
    node = await verifier.enrol()
    value = document(newer)
    status, body = await add(verifier, msgspec.json.encode(value))
    assert (status, body["reference_values"][0]["state"]) == (201, "candidate")
    _, body = await verifier.get(f"{VALUES}/conflicts")
    (conflict,) = body["conflicts"]
    assert (conflict["model"], conflict["differs"], conflict["count"]) == (MODEL, ["config.json"], 2)
    assert [*conflict["only_one"], *conflict["only_other"]] == ["notes.txt"]
    assert (await verifier.attest(node))["ear_status"] == "affirming"


async def test_a_replaced_value_is_a_warning_for_its_grace_period(verifier, newer: Path) -> None:
    """Then a mismatch; and whoever has the new files passes from the start."""
    old = await verifier.enrol(operator="slow")
    await publish(verifier.service.db, verifier.service.pool_key, newer, verifier.clock.ms)
    (before,) = await verifier.rows("SELECT digest FROM reference_values WHERE state = 'superseded'")
    value = document(newer)
    await activate(verifier, before["digest"], grace_s=0)
    await activate(verifier, value.digest, grace_s=3600)
    updated = await verifier.enrol(SimulatedNode(newer), operator="quick")
    assert (await verifier.attest(updated))["ear_status"] == "affirming"
    # Nobody knew that it has the files of before: what it was asked says nothing of them.
    result = (await verifier.attest(old))["submods"][SUBMOD]
    assert "weights.revision.changed" in [r["code"] for r in result["ear_verifier_claims"]["reasons"]]
    result = (await verifier.attest(old))["submods"][SUBMOD]
    assert result["ear_trustworthiness_vector"] == {"file-system": -34, "executables": -33}
    assert [r["code"] for r in result["ear_verifier_claims"]["reasons"]] == ["weights.reference.superseded"]
    assert await verifier.rows("SELECT * FROM incidents") == []
    verifier.clock.forward(3601)
    result = (await verifier.attest(old))["submods"][SUBMOD]
    assert result["ear_trustworthiness_vector"]["file-system"] == 96
    assert "weights.manifest.configuration" in [r["code"] for r in result["ear_verifier_claims"]["reasons"]]


async def test_grace_does_not_wash_away_a_walk_that_could_not_be_answered(verifier, newer: Path) -> None:
    """Who claims the files of before for one session has missed that call, whatever it claims afterwards."""
    node = await verifier.enrol(SimulatedNode(newer, engine_folder=verifier.model_folder))
    await publish(verifier.service.db, verifier.service.pool_key, newer, verifier.clock.ms)
    (before,) = await verifier.rows("SELECT digest FROM reference_values WHERE state = 'superseded'")
    await activate(verifier, before["digest"], grace_s=0)
    await activate(verifier, document(newer).digest, grace_s=3600)
    noise = SimulatedNode(
        newer, key=node.key, tls_key=node.tls_key, id=node.id, ueid=node.ueid, audience=node.audience
    )
    other = verifier.model_folder.parent / "noise"
    if not other.exists():
        tiny_model(other)
        data = bytearray((other / "model.safetensors").read_bytes())
        data[-40] ^= 1
        (other / "model.safetensors").write_bytes(bytes(data))
    # It claims the old files while it is called, with other weights in its engine.
    liar = SimulatedNode(
        verifier.model_folder, key=node.key, tls_key=node.tls_key, id=node.id, ueid=node.ueid,
        audience=node.audience, engine_folder=other,
    )  # fmt: skip
    assert (await verifier.attest(liar))["submods"][SUBMOD]["ear_trustworthiness_vector"] == {
        "file-system": -34,
        "executables": -33,
    }
    result = (await verifier.attest(noise, walk=False))["submods"][SUBMOD]
    assert result["ear_trustworthiness_vector"]["executables"] == -33
    assert "weights.walk.unanswered" in [r["code"] for r in result["ear_verifier_claims"]["reasons"]]
    assert (await verifier.attest(noise))["ear_status"] == "affirming"


async def test_a_signed_corim_of_an_anchor_is_taken(verifier, newer: Path) -> None:
    """With its signer and its validity; results name the value."""
    value = document(newer)
    status, body = await add(verifier, signed(verifier, value), "application/rim+cose", activate="1")
    assert (status, body["reference_values"]) == (
        201,
        [{"model": MODEL, "digest": value.digest, "state": "active"}],
    )
    (row,) = await verifier.rows(
        "SELECT source, signer, not_after FROM reference_values WHERE state = 'active'"
    )
    assert row == {"source": "corim", "signer": "home", "not_after": verifier.clock.seconds + 3600}
    result = await verifier.attest(await verifier.enrol(SimulatedNode(newer)), walk=False)
    claims = result["submods"][SUBMOD]["ear_verifier_claims"]
    assert claims["reference"] == value.digest


async def test_a_value_that_has_expired_is_as_good_as_none(verifier, newer: Path) -> None:
    """No conclusion, said why; never a pass, and nobody's fault."""
    value = document(newer)
    await add(verifier, signed(verifier, value), "application/rim+cose", activate="1")
    node = await verifier.enrol(SimulatedNode(newer))
    verifier.clock.forward(3601)
    result = (await verifier.attest(node))["submods"][SUBMOD]
    assert result["ear_trustworthiness_vector"]["file-system"] == 1
    assert result["ear_status"] != "affirming"
    assert "weights.reference.expired" in [r["code"] for r in result["ear_verifier_claims"]["reasons"]]
    assert await verifier.rows("SELECT * FROM incidents") == []
    _, listed = await verifier.get(VALUES)
    assert listed["reference_values"][0]["expires_in_s"] == -1


async def test_a_corim_of_nobody_we_trust_is_refused(verifier, newer: Path) -> None:
    """And leaves no trace."""
    made = profile.from_document(document(newer))
    now = verifier.clock.seconds
    data = corim.sign(made, PrivateKey.generate(), signer="them", not_before=now, not_after=now + 60)
    before = await verifier.rows("SELECT * FROM changes")
    status, body = await add(verifier, data, "application/rim+cose")
    assert (status, body["type"].rpartition("#")[2]) == (422, "reference.unusable")
    assert await verifier.rows("SELECT * FROM changes") == before


@pytest.mark.parametrize("validity", [{"not_after": -1}, {"not_before": 60}], ids=["over", "not begun"])
async def test_a_corim_outside_its_validity_is_refused(
    verifier, newer: Path, validity: dict[str, int]
) -> None:
    """By its own word it says nothing now."""
    moved = {name: verifier.clock.seconds + by for name, by in validity.items()}
    status, body = await add(verifier, signed(verifier, document(newer), **moved), "application/rim+cose")
    assert status == 422, body


async def test_a_value_by_hand(verifier) -> None:
    """YAML, for a model that nobody has measured here."""
    text = f"model: acme/other\nfiles:\n  a.safetensors:\n    sha256: {'ab' * 32}\n"
    status, body = await add(verifier, text.encode(), "application/yaml")
    assert (status, body["reference_values"][0]["state"]) == (201, "active")
    status, body = await add(verifier, b"model: &a acme/x\nfiles: *a\n", "application/yaml")
    assert (status, "1" in body["detail"]) == (422, True)


@pytest.mark.parametrize("kind", ["text/plain", "application/rim+cbor", ""])
async def test_another_content_type_is_refused(verifier, kind: str) -> None:
    """Told which there are."""
    status, body = await add(verifier, b"x", kind or "application/octet-stream")
    assert (status, "application/rim+cose" in body["detail"]) == (400, True)


async def test_a_retired_value_does_not_come_back(verifier) -> None:
    """Neither by adding it again nor by activating it; its model has none then."""
    (row,) = await verifier.rows("SELECT digest FROM reference_values")
    assert (await post(verifier, f"{VALUES}/{row['digest']}/retire", WHY))[0] == 204
    status, _ = await add(verifier, msgspec.json.encode(document(verifier.model_folder)))
    assert status == 422
    assert (await post(verifier, f"{VALUES}/{row['digest']}/activate", WHY))[0] == 422
    result = await verifier.attest(await verifier.enrol())
    assert result["submods"][SUBMOD]["ear_trustworthiness_vector"]["file-system"] == 1


async def test_a_value_is_given_out_as_a_corim(verifier) -> None:
    """Unsigned, for whoever vouches for it; it holds all that ours does."""
    (row,) = await verifier.rows("SELECT digest FROM reference_values")
    async with verifier.http.get(f"{verifier.url}{VALUES}/{row['digest']}/corim") as response:
        assert response.content_type == "application/rim+cbor"
        data = await response.read()
    (value,) = profile.to_documents(corim.read_unsigned(data))
    assert value.digest == row["digest"]


async def both(verifier, newer: Path) -> tuple[str, str]:
    """Challenges of both releases; the first one in force.  Their digests."""
    await publish(verifier.service.db, verifier.service.pool_key, newer, verifier.clock.ms)
    (old,) = await verifier.rows("SELECT digest FROM reference_values WHERE state = 'superseded'")
    new = document(newer).digest
    await activate(verifier, old["digest"], grace_s=0)
    return old["digest"], new


async def test_answers_to_challenges_of_one_value_say_nothing_of_another(verifier, newer: Path) -> None:
    """Held back until another value is in force, with that one's public list of files: no pass, no walk kept."""
    _, new = await both(verifier, newer)
    node = await verifier.enrol()
    session = await verifier.call(node)
    answers = node.answers(session)
    await verifier.client(node).answer_call(session, answers)
    await activate(verifier, new, grace_s=0)
    # It has the old release's weights, and lists the new one's files.
    listing = SimulatedNode(
        newer, key=node.key, tls_key=node.tls_key, id=node.id, ueid=node.ueid, audience=node.audience
    )
    evidence = listing.evidence(session, iat=verifier.clock.seconds, answers=answers)
    result = (await verifier.submit(session, evidence, node))["submods"][SUBMOD]
    assert result["ear_status"] != "affirming"
    assert result["ear_trustworthiness_vector"]["file-system"] == -33
    assert await verifier.rows("SELECT * FROM walks") == []
    assert await verifier.rows("SELECT * FROM tallies WHERE cause LIKE '%' || ? || '%'", new) == []


async def test_a_superseded_value_can_be_blocked(verifier, newer: Path) -> None:
    """Grace does not stand above a block."""
    old, new = await both(verifier, newer)
    node = await verifier.enrol()
    await activate(verifier, new, grace_s=3600)
    assert (await verifier.attest(node))["submods"][SUBMOD]["ear_trustworthiness_vector"][
        "file-system"
    ] == -34
    body = {**WHY, "kind": "digest", "value": old}
    assert (await post(verifier, "/api/v1/policies/blocks", body))[0] == 201
    result = (await verifier.attest(node))["submods"][SUBMOD]
    assert result["ear_trustworthiness_vector"]["file-system"] == 96
    assert "policy.blocked" in [r["code"] for r in result["ear_verifier_claims"]["reasons"]]


async def bring(verifier, folder: Path) -> Any:
    """A policy that brings a value along, published."""
    text = msgspec.json.encode(document(folder)).decode()
    bundle = changed(await verifier.policy(), "bringing", references__m_DOT_json=text)
    await publish_policy(verifier, bundle)
    return bundle


async def test_a_value_comes_and_goes_with_its_policy(verifier, newer: Path) -> None:
    """With a grace period each way: nodes that followed us are not at fault, and nobody is quarantined."""
    await both(verifier, newer)
    bundle = await bring(verifier, newer)
    slow = await verifier.enrol(operator="slow")
    quick = [await verifier.enrol(SimulatedNode(newer), operator=f"quick-{number}") for number in range(3)]
    await step(verifier, "promote", bundle)
    for node in quick:
        assert (await verifier.attest(node))["ear_status"] == "affirming"
    assert (await verifier.attest(slow))["submods"][SUBMOD]["ear_trustworthiness_vector"][
        "file-system"
    ] == -34
    verifier.clock.forward(3600)
    assert (await post(verifier, "/api/v1/policies/rollback", WHY))[0] == 200
    assert (await verifier.attest(slow))["ear_status"] == "affirming"
    for node in quick:
        vector = (await verifier.attest(node))["submods"][SUBMOD]["ear_trustworthiness_vector"]
        assert vector["file-system"] == -34
    assert await verifier.rows("SELECT * FROM incidents WHERE severity = 'serious'") == []


async def test_a_retired_value_is_retired_also_where_a_policy_brings_it(verifier, newer: Path) -> None:
    """Its model has none then; and a policy that brings it cannot be put in force."""
    await both(verifier, newer)
    base, bundle = await verifier.policy(), await bring(verifier, newer)
    node = await verifier.enrol(SimulatedNode(newer))
    await step(verifier, "promote", bundle)
    assert (await verifier.attest(node))["ear_status"] == "affirming"
    assert (await post(verifier, f"{VALUES}/{document(newer).digest}/retire", WHY))[0] == 204
    result = (await verifier.attest(node))["submods"][SUBMOD]
    assert result["ear_trustworthiness_vector"]["file-system"] == 1
    assert (await post(verifier, "/api/v1/policies/rollback", WHY))[0] == 200
    status, body = await post(verifier, f"/api/v1/policies/{bundle.digest}/promote", WHY)
    assert (status, body["type"].rpartition("#")[2]) == (422, "reference.unusable")
    assert (await verifier.policy()).id == base.id


async def test_a_policy_that_was_never_active_is_nothing_to_roll_back_to(verifier, newer: Path) -> None:
    """It is promoted, with all that goes with it."""
    bundle = await bring(verifier, newer)
    status, _ = await post(verifier, "/api/v1/policies/rollback", {**WHY, "to": bundle.digest})
    assert status == 409
