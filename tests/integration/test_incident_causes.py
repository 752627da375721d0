"""Incidents by cause: side by side with what evidence had, and released in one step with one reason."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from attester import cose
from attester.evidence import decode_envelope
from fixtures.credentials import bearer
from fixtures.simulator import SimulatedNode
from tests.integration.lifecycle import post
from verifier.commands.verifier import verifier as commands
from verifier.incidents import BLAST_WINDOW_MS
from verifier.roles import Role

CAUSES = "/api/v1/incident-causes"
CODES = {"weights.manifest.configuration", "weights.read.wrong"}


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    return {"calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0}}


@pytest.fixture
def altered(verifier, tmp_path: Path) -> Path:
    """The model with another configuration."""
    folder = tmp_path / "altered"
    shutil.copytree(verifier.model_folder, folder)
    (folder / "config.json").write_text('{"layers": 3}')
    return folder


async def liars(verifier, altered: Path) -> dict[str, SimulatedNode]:
    """Two nodes in quarantine, of two operators; a third has passed."""
    verifier.clock.forward(BLAST_WINDOW_MS / 1000 + 1)
    await verifier.attest(await verifier.enrol(operator="honest"))
    found = {}
    for operator in ("one", "two"):
        found[operator] = await verifier.enrol(SimulatedNode(altered), operator=operator)
        await verifier.attest(found[operator])
    return found


async def reference(verifier) -> dict[str, Any]:
    _, body = await verifier.get(CAUSES)
    (found,) = [each for each in body["causes"] if each["thing"].startswith("reference:")]
    return found


async def test_open_incidents_are_listed_by_what_they_rest_on(verifier, altered: Path) -> None:
    """With how many nodes and operators, what it is, and who has passed at it."""
    await liars(verifier, altered)
    found = await reference(verifier)
    (row,) = await verifier.rows("SELECT digest, model FROM reference_values")
    assert found["thing"] == f"reference:{row['digest']}"
    assert found["about"] == f"{row['model']}, active, measured"
    assert (found["incidents"], found["nodes"], found["operators"]) == (2, 2, 2)
    assert found["passed_operators"] == 1


async def test_side_by_side_shows_what_was_expected_and_what_evidence_had(verifier, altered: Path) -> None:
    """Of each node; the evidence itself is stored."""
    nodes = await liars(verifier, altered)
    thing = (await reference(verifier))["thing"]
    status, body = await verifier.get(f"{CAUSES}/{thing}")
    assert status == 200
    sides = body["side_by_side"]
    assert {side["node"] for side in sides} == {node.id for node in nodes.values()}
    for side in sides:
        assert side["code"] == "weights.manifest.configuration"
        assert side["expected"] != side["actual"]
        assert side["expected"].startswith(("sha256:", "blake3:"))
        assert side["evidence"] is True


@pytest.mark.parametrize("form", ["thing", "digest", "prefix"])
async def test_all_that_rests_on_a_reference_value_is_released_in_one_step(
    verifier, altered: Path, form: str
) -> None:
    """With one reason, by the name that people have at hand; a second time there is nothing to release."""
    nodes = await liars(verifier, altered)
    thing = (await reference(verifier))["thing"]
    digest = thing.partition(":")[2]
    name = {"thing": thing, "digest": digest, "prefix": digest[:8]}[form]
    _, before = await verifier.get(CAUSES)
    for each in before["causes"]:
        wanted = name if each["thing"] == thing else each["thing"]
        status, body = await post(verifier, f"{CAUSES}/{wanted}/release", {"reason": "a wrong value"})
        assert status == 200, body
    assert (body["released"], body["awaiting_second"]) == (2, 0)
    for node in nodes.values():
        _, shown = await verifier.get(f"/api/v1/nodes/{node.id}")
        assert (shown["state"], shown["quarantined_by"]) == ("probation", None)
    steps = await verifier.rows("SELECT actor, reason FROM incident_steps WHERE step = 'release'")
    assert {(step["actor"], step["reason"]) for step in steps} == {("kim", "a wrong value")}
    status, problem = await post(verifier, f"{CAUSES}/{name}/release", {"reason": "again"})
    assert (status, problem["type"].rpartition("#")[2]) == (404, "request.not-found")


@pytest.mark.parametrize("name", ["reference:ffffff", "batch:999", "x", "weights.read.wrong@batch:999"])
async def test_a_cause_that_nothing_rests_on_is_refused(verifier, altered: Path, name: str) -> None:
    """With what there is: a misspelt cause must not look like a release."""
    await liars(verifier, altered)
    status, problem = await post(verifier, f"{CAUSES}/{name}/release", {"reason": "because"})
    assert status == 404
    assert (await reference(verifier))["thing"] in problem["detail"]


async def test_an_operator_sees_its_own_incidents_alone(verifier, altered: Path) -> None:
    """Not how many others there are, and it releases nothing."""
    nodes = await liars(verifier, altered)
    key = (await verifier.key("op-one", Role.OPERATOR, operator="one"))["Authorization"].partition(" ")[2]
    async with verifier.http.get(verifier.url + CAUSES, headers=bearer(key)) as response:
        body = await response.json()
    (found,) = [each for each in body["causes"] if each["thing"].startswith("reference:")]
    assert (found["incidents"], found["operators"]) == (1, 1)
    async with verifier.http.get(f"{verifier.url}{CAUSES}/{found['thing']}", headers=bearer(key)) as response:
        sides = (await response.json())["side_by_side"]
    assert [side["node"] for side in sides] == [nodes["one"].id]
    status, _ = await post(verifier, f"{CAUSES}/{found['thing']}/release", {"reason": "mine"}, token=key)
    assert status == 403


# On the command line.


async def command(verifier, *arguments: str, code: int = 0) -> str:
    given = ["incidents", *arguments, "--home", str(verifier.home.path)]
    done = await asyncio.to_thread(CliRunner().invoke, commands, given)
    assert done.exit_code == code, done.output
    return done.output


async def test_the_commands_go_from_the_list_to_the_evidence_to_the_release(
    verifier, altered: Path, tmp_path: Path
) -> None:
    """Causes, side by side, the evidence as the node has signed it, and one release."""
    nodes = await liars(verifier, altered)
    thing = (await reference(verifier))["thing"]
    said = await command(verifier, "causes")
    assert thing in said
    assert "2 incidents of 2 nodes of 2 operators; 1 operators have passed" in said
    said = await command(verifier, "cause", thing.partition(":")[2][:12])
    assert all(f"node {node.id} of {operator}, " in said for operator, node in nodes.items())
    assert said.count("    expected  ") == said.count("    found     ") == 2
    incident = said.split("incidents evidence ")[1].split()[0]
    file = tmp_path / "evidence.cbor"
    assert "bytes to" in await command(verifier, "evidence", incident, str(file))
    envelope = decode_envelope(file.read_bytes())
    assert any(node.key.public.kid == envelope.header[cose.KID] for node in nodes.values())
    said = await command(verifier, "release-cause", thing, "--reason", "a wrong value")
    assert said.endswith(f"incidents that rested on {thing}.\n")
    said = await command(verifier, "release-cause", "reference:000000", "--reason", "x", code=1)
    assert "no open incident rests on 'reference:000000'" in said
