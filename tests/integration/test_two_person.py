"""Releases that take two people: proposed by one, taken by another, void when something new is found."""

from __future__ import annotations

import asyncio
import getpass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from fixtures.simulator import SimulatedNode, tiny_model
from fixtures.transactions import transaction
from tests.integration.test_incident_reports import SETTLEMENT, SPIKE, listed, report, shown
from verifier.commands.verifier import verifier as commands
from verifier.incidents import BLAST_WINDOW_MS, report_draft
from verifier.roles import Role
from verifier.service.sweep import sweep
from verifier.store import api_keys, incidents


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    """Two people for a release."""
    return {
        "calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0},
        "policy": {"workers": 1},
        "incidents": {"two_person": True},
    }


@pytest.fixture
def altered(tmp_path: Path) -> Path:
    folder = tiny_model(tmp_path / "altered")
    tensors = load_file(folder / "model.safetensors")
    tensors["norm"] = tensors["norm"] ^ np.int8(1)
    save_file(tensors, folder / "model.safetensors")
    return folder


async def step(verifier, incident: str, name: str, actor: str) -> tuple[int, Any]:
    headers = await verifier.key(actor, Role.REVIEWER)
    url = f"{verifier.url}/api/v1/incidents/{incident}/{name}"
    body = {"reason": f"{actor} looked"}
    async with verifier.http.post(url, json=body, headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def held(verifier) -> tuple[SimulatedNode, str]:
    """A node in quarantine, and its incident."""
    node = await verifier.enrol(operator="acme")
    async with transaction(verifier.service.db) as tx:
        # Not suspected first, as one router's report would be.
        draft = report_draft("settlement-mismatch", "far too many tokens")
        incident = await incidents.take_finding(tx, draft, node.id, None, verifier.clock.ms)
    return node, incident


async def history(verifier, incident: str) -> list[tuple[str, str | None, str]]:
    return [(s["actor"], s["step"], s["state"]) for s in (await shown(verifier, incident))["history"]]


async def test_one_person_proposes_and_the_node_stays_held(verifier) -> None:
    """The answer says that a second is needed; the history has the proposal."""
    node, incident = await held(verifier)
    status, answer = await step(verifier, incident, "release", "ada")
    assert (status, answer["state"]) == (200, "open")
    assert (answer["awaiting_second"], answer["proposed_by"]) == (True, "ada")
    assert await history(verifier, incident) == [
        ("verifier", None, "open"),
        ("ada", "propose-release", "open"),
    ]
    (waiting,) = await listed(verifier, "?open=1")
    assert (waiting["awaiting_second"], waiting["proposed_by"]) == (True, "ada")
    _, body = await verifier.get(f"/api/v1/nodes/{node.id}")
    assert body["quarantined_by"] == incident


async def test_another_person_releases(verifier) -> None:
    """The same step by someone else takes effect."""
    node, incident = await held(verifier)
    await step(verifier, incident, "release", "ada")
    status, answer = await step(verifier, incident, "release", "bob")
    assert (status, answer["state"]) == (200, "released")
    assert (answer["awaiting_second"], answer["proposed_by"]) == (False, None)
    assert (await history(verifier, incident))[1:] == [
        ("ada", "propose-release", "open"),
        ("bob", "release", "released"),
    ]
    _, body = await verifier.get(f"/api/v1/nodes/{node.id}")
    assert (body["state"], body["quarantined_by"]) == ("probation", None)


@pytest.mark.parametrize("named", ["bob", "Ada", " cyd "])
async def test_another_name_makes_no_second_person(verifier, named: str) -> None:
    """Who says it is the key's holder, whoever the body names: that is only a note."""
    _, incident = await held(verifier)
    headers = await verifier.key("ada", Role.REVIEWER)
    await step(verifier, incident, "release", "ada")
    url = f"{verifier.url}/api/v1/incidents/{incident}/release"
    async with verifier.http.post(url, json={"actor": named, "reason": "yes"}, headers=headers) as response:
        answer = await response.json()
    assert (answer["state"], answer["proposed_by"]) == ("open", "ada")
    last = (await shown(verifier, incident))["history"][-1]
    assert (last["actor"], last["reason"]) == ("ada", f"yes (on behalf of {named.strip()})")


async def test_two_at_once_release(verifier) -> None:
    """One of them is the second, whichever."""
    _, incident = await held(verifier)
    answers = await asyncio.gather(*(step(verifier, incident, "release", name) for name in ("ada", "bob")))
    assert sorted(answer["state"] for _, answer in answers) == ["open", "released"]


async def test_a_review_leaves_the_proposal(verifier) -> None:
    """Taking it under review needs one person and changes nothing of what was proposed."""
    _, incident = await held(verifier)
    await step(verifier, incident, "release", "ada")
    _, answer = await step(verifier, incident, "review", "cyd")
    assert (answer["state"], answer["proposed_by"]) == ("under-review", "ada")
    assert (await step(verifier, incident, "release", "bob"))[1]["state"] == "released"


async def test_retiring_needs_one_person(verifier) -> None:
    """It lets nobody back in."""
    _, incident = await held(verifier)
    _, answer = await step(verifier, incident, "retire", "ada")
    assert (answer["state"], answer["awaiting_second"]) == ("retired", False)


async def test_quarantine_needs_one_person_and_ends_the_proposal(verifier) -> None:
    """To release what is only noted is not to release from quarantine."""
    node = await verifier.enrol()
    for _ in range(10):
        _, made = await report(verifier, node, **SPIKE)
    assert (await step(verifier, made["id"], "release", "ada"))[1]["state"] == "flagged"
    _, answer = await step(verifier, made["id"], "quarantine", "bob")
    assert (answer["state"], answer["awaiting_second"]) == ("open", False)
    assert (await step(verifier, made["id"], "release", "bob"))[1]["state"] == "open"


async def test_what_cannot_be_released_cannot_be_proposed(verifier) -> None:
    """Released is the end, for proposals too."""
    _, incident = await held(verifier)
    for actor in ("ada", "bob"):
        await step(verifier, incident, "release", actor)
    assert (await step(verifier, incident, "release", "ada"))[0] == 409


@pytest.mark.parametrize("given", [SETTLEMENT, SPIKE])
async def test_a_new_finding_voids_the_proposal(verifier, given: dict[str, str]) -> None:
    """Of the same kind or another: the second person's step is then a proposal itself."""
    node, incident = await held(verifier)
    await step(verifier, incident, "release", "ada")
    await report(verifier, node, **given)
    assert (await shown(verifier, incident))["awaiting_second"] is False
    _, answer = await step(verifier, incident, "release", "bob")
    assert (answer["state"], answer["proposed_by"]) == ("open", "bob")
    assert (await history(verifier, incident))[1:] == [
        ("ada", "propose-release", "open"),
        ("verifier", "void-proposal", "open"),
        ("bob", "propose-release", "open"),
    ]
    assert (await step(verifier, incident, "release", "ada"))[1]["state"] == "released"


async def test_a_finding_counted_into_a_minor_incident_voids_too(verifier) -> None:
    """Also where that was known before."""
    node, incident = await held(verifier)
    await report(verifier, node, **SPIKE)
    await step(verifier, incident, "release", "ada")
    await report(verifier, node, **SPIKE)
    assert (await shown(verifier, incident))["awaiting_second"] is False


async def test_a_report_sent_again_voids_nothing(verifier) -> None:
    """It is no new finding."""
    node, incident = await held(verifier)
    await report(verifier, node, **SETTLEMENT, report="r-1")
    await step(verifier, incident, "release", "ada")
    await report(verifier, node, **SETTLEMENT, report="r-1")
    assert (await shown(verifier, incident))["proposed_by"] == "ada"


async def test_a_finding_against_another_node_voids_nothing(verifier) -> None:
    """Also of the same operator."""
    _, incident = await held(verifier)
    await step(verifier, incident, "release", "ada")
    await report(verifier, await verifier.enrol(operator="acme"), **SETTLEMENT)
    assert (await shown(verifier, incident))["proposed_by"] == "ada"


async def test_wrong_evidence_voids_the_proposal(verifier, altered: Path) -> None:
    """What the node's own key has signed is a finding as well."""
    await verifier.attest(await verifier.enrol(operator="honest"))
    node = await verifier.enrol(SimulatedNode(altered), operator="liar")
    await verifier.attest(node)
    (incident,) = await listed(verifier, "?open=1")
    await step(verifier, incident["id"], "release", "ada")
    await verifier.attest(node)
    assert (await step(verifier, incident["id"], "release", "bob"))[1]["state"] == "open"


async def test_right_evidence_leaves_the_proposal(verifier, altered: Path) -> None:
    """A node that shows that it is mended does not undo what was decided for it."""
    await verifier.attest(await verifier.enrol(operator="honest"))
    node = await verifier.enrol(SimulatedNode(altered), operator="liar")
    await verifier.attest(node)
    (incident,) = await listed(verifier, "?open=1")
    await step(verifier, incident["id"], "release", "ada")
    node.folder = verifier.model_folder
    await verifier.attest(node)
    assert (await step(verifier, incident["id"], "release", "bob"))[1]["state"] == "released"


async def test_a_suspicion_that_is_confirmed_ends_the_proposal(verifier, altered: Path) -> None:
    """Who proposed to release a suspect did not speak of one that others have passed."""
    await verifier.attest(await verifier.enrol(operator="alone"))
    await verifier.attest(await verifier.enrol(SimulatedNode(altered), operator="alone"))
    (incident,) = await listed(verifier, "?open=1")
    assert (await step(verifier, incident["id"], "release", "ada"))[1]["state"] == "suspected"
    verifier.clock.forward(BLAST_WINDOW_MS / 1000 + 1)
    await sweep(verifier.service)
    body = await shown(verifier, incident["id"])
    assert (body["state"], body["awaiting_second"]) == ("open", False)


async def test_proposals_are_told_to_no_router(verifier) -> None:
    """Nothing has changed for them."""
    _, incident = await held(verifier)
    before = await verifier.rows("SELECT count(*) AS n FROM events")
    await step(verifier, incident, "release", "ada")
    assert await verifier.rows("SELECT count(*) AS n FROM events") == before


# In bulk.


async def liars(verifier, altered: Path) -> tuple[list[str], str]:
    """Two nodes in quarantine for the same thing of ours; their incidents and the cause."""
    await verifier.attest(await verifier.enrol(operator="honest"))
    for name in ("one", "two"):
        await verifier.attest(await verifier.enrol(SimulatedNode(altered), operator=name))
    found = [incident["id"] for incident in await listed(verifier, "?open=1")]
    assert len(found) == 2
    first, second = [set((await shown(verifier, incident))["causes"]) for incident in found]
    return found, min(first & second)


async def release_cause(verifier, cause: str, actor: str) -> tuple[int, int]:
    async with transaction(verifier.service.db) as tx:
        return await incidents.release_cause(
            tx, cause, actor, "a bad batch", verifier.clock.ms, two_person=True
        )


async def release_all_causes(verifier, incident: str, actor: str) -> tuple[int, int]:
    released = waiting = 0
    for cause in (await shown(verifier, incident))["causes"]:
        more, still = await release_cause(verifier, cause, actor)
        released, waiting = released + more, waiting + still
    return released, waiting


async def test_a_cause_is_released_by_two(verifier, altered: Path) -> None:
    """The first proposes for each incident that rests on it, the second releases them all."""
    found, _ = await liars(verifier, altered)
    causes = len((await shown(verifier, found[0]))["causes"])
    assert await release_all_causes(verifier, found[0], "ada") == (0, 2 * causes)
    for incident in found:
        said = await history(verifier, incident)
        assert said[1:] == [("ada", "propose-release", "open")] * causes
        assert len((await shown(verifier, incident))["causes"]) == causes
    assert await release_all_causes(verifier, found[0], " Ada") == (0, 2 * causes)
    assert await release_all_causes(verifier, found[0], "bob") == (2, 0)
    assert await listed(verifier, "?open=1") == []


async def test_what_was_found_since_is_not_released_with_its_cause(verifier, altered: Path) -> None:
    """An incident with a new finding waits again; the others go."""
    found, _ = await liars(verifier, altered)
    await release_all_causes(verifier, found[0], "ada")
    first = await shown(verifier, found[0])
    await report(verifier, first["node"], **SPIKE)
    causes = len(first["causes"])
    assert await release_all_causes(verifier, found[0], "bob") == (1, causes)
    assert [incident["id"] for incident in await listed(verifier, "?open=1")] == [found[0]]


async def test_a_release_and_a_release_of_a_cause_are_not_the_same_step(verifier, altered: Path) -> None:
    """Who proposes that it no longer rests on one thing has not said that it should go."""
    found, cause = await liars(verifier, altered)
    await release_cause(verifier, cause, "ada")
    _, answer = await step(verifier, found[0], "release", "bob")
    assert (answer["state"], answer["proposed_by"]) == ("open", "bob")


# On the command line.


async def command(verifier, *arguments: str, key: str | None = None, fails: bool = False) -> str:
    home = str(verifier.home.path)
    given = ["incidents", *arguments, "--home", home]
    if key is not None:
        file = verifier.home.path / f"{key}.key"
        file.write_text((await verifier.key(key, Role.REVIEWER))["Authorization"].partition(" ")[2])
        given += ["--key-file", str(file)]
    done = await asyncio.to_thread(CliRunner().invoke, commands, given)
    assert (done.exit_code != 0) == fails, done.output
    return done.output


async def test_the_command_says_that_a_second_person_is_needed(verifier) -> None:
    """And whose proposal waits; then that it is released."""
    _, incident = await held(verifier)
    said = await command(verifier, "step", incident, "release", "--reason", "looked", key="ada")
    expected = f"{incident} is still open. ada proposes its release, and a second person must agree.\n"
    assert said.endswith(expected)
    assert "ada proposes its release; a second person must agree" in await command(verifier, "list")
    said = await command(verifier, "step", incident, "release", "--reason", "looked", key="bob")
    assert said == f"{incident} is released.\n"


async def test_the_command_for_a_cause_says_how_many_wait(verifier, altered: Path) -> None:
    """One line for what was released, one for what waits."""
    _, cause = await liars(verifier, altered)
    said = await command(verifier, "release-cause", cause, "--reason", "a bad batch", key="ada")
    assert said.startswith("Released 0 incidents that rested on ")
    assert said.endswith("\nProposed the release of 2 incidents. A second person must agree.\n")


@pytest.mark.parametrize("named", ["ada", "bob"])
async def test_a_name_at_the_command_line_is_no_person(verifier, named: str) -> None:
    """Whoever may write the database may write any name: a release needs a key."""
    _, incident = await held(verifier)
    step_of = ("step", incident, "release", "--actor", named, "--reason", "x")
    said = await command(verifier, *step_of, fails=True)
    assert "name the file with your key in --key-file" in said
    assert len((await shown(verifier, incident))["history"]) == 1


@pytest.mark.parametrize("held_by", ["nobody", "empty", "auditor", "revoked"])
async def test_a_key_that_does_not_open_it_releases_nothing(verifier, held_by: str) -> None:
    """Of nobody, of a person with another role, or revoked."""
    _, incident = await held(verifier)
    file = verifier.home.path / "some.key"
    secrets_of = {"nobody": "touchstone_" + "A" * 43, "empty": ""}
    if held_by in secrets_of:
        file.write_text(secrets_of[held_by])
    else:
        role = Role.AUDITOR if held_by == "auditor" else Role.REVIEWER
        file.write_text((await verifier.key("eve", role))["Authorization"].partition(" ")[2])
    if held_by == "revoked":
        await verifier.service.db.write(lambda tx: api_keys.revoke(tx, "eve", verifier.clock.ms))
    if held_by == "empty":
        (verifier.home.path / "admin.token").unlink()
    await command(verifier, "step", incident, "release", "--reason", "x", "--key-file", str(file), fails=True)
    assert len((await shown(verifier, incident))["history"]) == 1


async def test_without_two_people_the_user_is_named_and_marked(verifier) -> None:
    """Steps that need one person need no key; nobody proved who took them."""
    _, incident = await held(verifier)
    await command(verifier, "step", incident, "review", "--actor", "ada", "--reason", "looked")
    last = (await shown(verifier, incident))["history"][-1]
    assert last["actor"] == f"os:{getpass.getuser()}"
    assert last["reason"] == "looked (on behalf of ada)"
