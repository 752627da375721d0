"""Roll-outs of models: two revisions are valid at once, and nobody is the worse for being on either."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from attester.weights.folder import open_folder
from fixtures.simulator import MODEL, SimulatedNode
from fixtures.transactions import transaction
from tests.integration.lifecycle import changed, post, publish, smuggle, strict
from tests.integration.lifecycle import step as policy_step
from tests.integration.revisions import (
    SETTINGS,
    WHY,
    begin,
    compared_with,
    in_force,
    mint,
    newest,
    reasons,
    resaved,
    step,
    upgrade,
    vector,
)
from touchstone import main
from verifier import results
from verifier.references import measured
from verifier.service.app import open_service
from verifier.service.calls import CALL_SCHEDULER
from verifier.service.rejudge import REJUDGER
from verifier.store import references

pytestmark = pytest.mark.usefixtures("only_our_calls")

STORES = ("sqlite", "postgres")


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    """Pools of thirty challenges are enough, and results last."""
    return SETTINGS


@pytest.fixture
def newer(tmp_path: Path, model_folder: Path) -> Path:
    """The second revision."""
    return resaved(model_folder, tmp_path / "newer")


async def rejudged(verifier) -> None:
    """Live results are brought up to what is in force."""
    rejudger = verifier.app[REJUDGER]
    await rejudger.catch_up(await rejudger._load_rollout())


async def live(verifier) -> dict[str, tuple[str, str]]:
    """By node with a live result, its status and the value that it was compared with."""
    _, body = await verifier.get("/api/v1/results")
    keys, now = verifier.service.verifying_keys(), verifier.clock.seconds
    found = {
        each["node"]: results.decode_jwt(each["token"], keys, issuer=verifier.url, now=now).to_claims()
        for each in body["results"]
    }
    return {node: (claims["ear_status"], compared_with(claims)) for node, claims in found.items()}


async def listed(verifier) -> Any:
    _, body = await verifier.get("/api/v1/rollouts")
    return body["rollouts"]


async def test_a_model_upgrade_is_no_outage_and_quarantines_nobody(verifier, newer: Path) -> None:
    """
    Six nodes go from one revision to the next and back: all are affirming on what they have, at every moment.

    The row of the issue: six nodes under traffic are superseded at once, old ones flap to contraindicated within the
    grace, and a node that is upgraded first is quarantined.
    """
    old, nodes = await in_force(verifier), [await verifier.enrol(operator=f"op-{n}") for n in range(6)]
    for node in nodes:
        await verifier.attest(node)
    new = await mint(verifier, newer, reads=60, walks=60)
    for source, target, folder in ((old, new, newer), (new, old, verifier.model_folder)):
        await begin(verifier, target)
        await rejudged(verifier)
        for moved, node in enumerate(nodes):
            await upgrade(verifier, node, folder, target)
            await verifier.attest(node)
            assert await live(verifier) == {
                each.id: ("affirming", target if number <= moved else source)
                for number, each in enumerate(nodes)
            }
        status, body = await step(verifier, "finish")
        assert (status, body["on_old"]) == (200, 0)
        await rejudged(verifier)
        assert await live(verifier) == {each.id: ("affirming", target) for each in nodes}
    assert vector(await verifier.attest(nodes[0])) == {"file-system": 2, "executables": -2}
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_its_status_says_where_the_nodes_are(verifier, newer: Path) -> None:
    """By their newest results, with those that say they have another by now, and those that are on neither."""
    new, until = await mint(verifier, newer), verifier.clock.seconds + 3600
    nodes = [await verifier.enrol() for _ in range(4)]
    for node in nodes[:3]:
        await verifier.attest(node)
    await begin(verifier, new, until=until)
    await upgrade(verifier, nodes[0], newer, new)
    await verifier.attest(nodes[0])
    await upgrade(verifier, nodes[1], newer, new)
    nodes[2].folder = resaved(verifier.model_folder, newer.parent / "other", byte=-39)
    await verifier.attest(nodes[2])
    (found,) = await listed(verifier)
    assert (found["from"]["nodes"], found["from"]["moving"]) == (1, 0)
    assert (found["to"]["digest"], found["to"]["nodes"], found["to"]["moving"]) == (new, 1, 1)
    assert (found["nodes"], found["neither"], found["unknown"]) == (4, 1, 1)
    assert (found["until"], found["left_s"], found["overdue"]) == (until, 3598, False)
    assert found["to"]["challenges"]["read"]["free"] == 29
    assert found["to"]["challenges"]["read"]["hours"] > 0.5


async def test_a_value_without_enough_challenges_is_not_rolled_out(verifier, newer: Path) -> None:
    """It is said of which revision what is missing, and how it is minted."""
    for _ in range(40):
        await verifier.enrol()
    old, new = await in_force(verifier), await mint(verifier, newer, reads=1, walks=0)
    status, body = await step(verifier, "start", to=new)
    assert (status, body["type"].rpartition("#")[2]) == (409, "rollout.state")
    assert f"touchstone challenges mint --model {MODEL} --reference {new[:12]}" in body["detail"]
    assert "--walks" in body["detail"]
    assert f"{old[:12]} lacks" in body["detail"]
    assert await listed(verifier) == []
    assert not await verifier.rows("SELECT * FROM changes WHERE action LIKE 'rollout-%'")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE reference_values SET state = 'retired' WHERE digest = ?", "was retired"),
        (
            "UPDATE reference_values SET model = 'example/other' WHERE digest = ?",
            "is a value of example/other",
        ),
        ("UPDATE reference_values SET not_after = 5 WHERE digest = ?", "has expired"),
        ("UPDATE reference_values SET not_before = 99999999999 WHERE digest = ?", "is not valid yet"),
        (
            "DELETE FROM pool_counts WHERE batch IN (SELECT id FROM batches WHERE reference = ?)",
            "lacks 3 reads, 2 walks",
        ),
    ],
)
async def test_a_value_that_cannot_be_used_is_not_rolled_out(verifier, newer: Path, change, said) -> None:
    """Retired, of another model, expired or not valid yet, without challenges: each is said, and leaves no trace."""
    await verifier.enrol()
    new = await mint(verifier, newer)
    async with transaction(verifier.service.db) as tx:
        await tx.execute(change, new)
    status, body = await step(verifier, "start", to=new)
    assert (status, said in body["detail"]) == (409, True), body
    assert await listed(verifier) == []


@pytest.mark.parametrize("to", ["ab" * 32, "abcdef"])
async def test_an_unknown_value_is_not_rolled_out(verifier, to: str) -> None:
    """Nothing begins with these digits."""
    status, body = await step(verifier, "start", to=to)
    assert (status, "no reference value begins with" in body["detail"]) == (422, True)


async def test_a_value_without_tensors_is_not_rolled_out(verifier, newer: Path, monkeypatch) -> None:
    """Its nodes could not be asked to walk, and those of the other could."""
    new = await mint(verifier, newer)
    async with transaction(verifier.service.db) as tx:
        row = await references.by_digest(tx, new)
        assert row is not None
        text = row["document"].partition('"tensors":')
        without = text[0].rstrip(",") + "}"
        await tx.execute("UPDATE reference_values SET document = ? WHERE digest = ?", without, new)
    status, body = await step(verifier, "start", to=new)
    assert (status, "has no tensors" in body["detail"]) == (409, True)


async def test_one_roll_out_of_a_model_at_a_time(verifier, newer: Path) -> None:
    """A second is refused, and so is whatever else would change the model's values meanwhile."""
    old, new = await in_force(verifier), await mint(verifier, newer)
    third = await mint(verifier, resaved(verifier.model_folder, newer.parent / "third", byte=-39))
    await begin(verifier, new)
    for path, body in (
        ("/api/v1/rollouts", {"model": MODEL, "to": third}),
        ("/api/v1/rollouts", {"model": MODEL, "to": new}),
        (f"/api/v1/reference-values/{third}/activate", {}),
        (f"/api/v1/reference-values/{new}/activate", {}),
        (f"/api/v1/reference-values/{new}/retire", {}),
        (f"/api/v1/reference-values/{old}/retire", {}),
    ):
        status, answer = await post(verifier, path, {**WHY, **body})
        assert (status, "touchstone reference rollout finish" in answer["detail"]) == (409, True), path
    assert (await post(verifier, f"/api/v1/reference-values/{third}/retire", WHY))[0] == 204


async def test_it_is_written_down_who_took_each_step_and_why(verifier, newer: Path) -> None:
    """Start, abort and finish, with the values."""
    old, new = await in_force(verifier), await mint(verifier, newer)
    await begin(verifier, new, actor="lee")
    await step(verifier, "abort", grace_s=60)
    await begin(verifier, new)
    await step(verifier, "finish")
    _, body = await verifier.get("/api/v1/policies/history")
    taken = [c for c in body["changes"] if c["action"].startswith("rollout")][::-1]
    assert [(c["action"], c["subject"], c["actor"]) for c in taken] == [
        ("rollout-start", new, "kim"),
        ("rollout-abort", new, "kim"),
        ("rollout-start", new, "kim"),
        ("rollout-finish", new, "kim"),
    ]
    assert taken[0]["reason"] == "because (on behalf of lee)"
    assert taken[0]["detail"]["from"] == old
    assert taken[1]["detail"]["grace_s"] == 60


async def test_it_is_not_finished_while_nodes_are_on_the_old_revision(verifier, newer: Path) -> None:
    """Unless one says so; then they are a warning for the grace, and a mismatch afterwards."""
    node = await verifier.enrol()
    await verifier.attest(node)
    await begin(verifier, await mint(verifier, newer))
    status, body = await step(verifier, "finish")
    assert (
        status,
        f"1 of 1 nodes are on {(await in_force(verifier))[:12]} still: {node.id}" in body["detail"],
    ) == (409, True)
    assert len(await listed(verifier)) == 1
    status, body = await step(verifier, "finish", anyway=True, grace_s=600)
    assert (status, body["on_old"]) == (200, 1)
    for _ in range(3):
        verifier.clock.forward(60)
        result = await verifier.attest(node)
        assert (result["ear_status"], vector(result)) == ("warning", {"file-system": -34, "executables": -33})
        assert reasons(result) == ["weights.reference.superseded"]
    assert await verifier.rows("SELECT * FROM incidents") == []
    verifier.clock.forward(600)
    assert vector(await verifier.attest(node))["file-system"] == 96


async def test_whoever_has_the_new_revision_of_an_aborted_roll_out_is_only_warned(
    verifier, newer: Path
) -> None:
    """Until the grace is over; nobody is quarantined, and who goes back is affirming."""
    old, new, node = await in_force(verifier), await mint(verifier, newer), await verifier.enrol()
    await begin(verifier, new)
    await upgrade(verifier, node, newer, new)
    assert (await verifier.attest(node))["ear_status"] == "affirming"
    status, body = await step(verifier, "abort", grace_s=600)
    assert (status, body["on_new"]) == (200, 1)
    await rejudged(verifier)
    assert vector(await newest(verifier, node)) == {"file-system": -34, "executables": -33}
    assert vector(await verifier.attest(node)) == {"file-system": -34, "executables": -33}
    await upgrade(verifier, node, verifier.model_folder, old)
    assert (await verifier.attest(node))["ear_status"] == "affirming"
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_nothing_ends_when_its_time_is_over(verifier, newer: Path) -> None:
    """Both revisions stay valid; the log says it once an hour, and the status says it too."""
    new, node = await mint(verifier, newer), await verifier.enrol()
    await begin(verifier, new, until=verifier.clock.seconds + 60)
    await upgrade(verifier, node, newer, new)
    verifier.clock.forward(61)
    assert (await verifier.attest(node))["ear_status"] == "affirming"
    with capture_logs() as logs:
        for _ in range(3):
            await verifier.service.pools.refresh()
            verifier.service.pools.warn()
    assert sum("roll-out was to be ended" in line["event"] for line in logs) == 1
    (found,) = await listed(verifier)
    assert (found["overdue"], found["left_s"]) == (True, -2)


@pytest.mark.parametrize("name", ["finish", "abort"])
async def test_what_does_not_run_is_not_ended(verifier, name: str) -> None:
    """It is said how one is started."""
    status, body = await step(verifier, name)
    assert (status, f"touchstone reference rollout start {MODEL}" in body["detail"]) == (409, True)


async def test_it_goes_on_after_a_restart(verifier, newer: Path) -> None:
    """Another process on the same database knows both revisions, and which one each node has."""
    old, new, node = await in_force(verifier), await mint(verifier, newer), await verifier.enrol()
    other = await verifier.enrol()
    await begin(verifier, new)
    await upgrade(verifier, node, newer, new)
    await verifier.attest(node)
    await verifier.attest(other)
    service = verifier.service
    loader = type(service.inputs)()
    async with service.db.read() as tx:
        asked = [
            await loader.load_asked(tx, service.seen.get(each.id).node, verifier.clock.ms)
            for each in (node, other)
        ]
        valid = await loader.load_valid(tx, node.id, MODEL, verifier.clock.ms)
    assert [found[MODEL] for found in asked] == [new, old]
    assert [(each.reference.digest, each.state) for each in valid] == [
        (old, "in-force"),
        (new, "rolling-out"),
    ]


async def test_a_node_that_attests_as_nobody_said_is_judged_on_what_it_has(verifier, newer: Path) -> None:
    """
    An older attester says nothing: what its evidence shows counts, and its next challenges are for that.

    It is warned once, because what it was asked says nothing of what it has; it is no incident.
    """
    new, node = await mint(verifier, newer), await verifier.enrol()
    await verifier.attest(node)
    await begin(verifier, new)
    node.folder = newer
    verifier.clock.forward(60)
    result = await verifier.attest(node)
    assert vector(result) == {"file-system": -33, "executables": -33}
    assert "weights.revision.changed" in reasons(result)
    verifier.clock.forward(60)
    assert (await verifier.attest(node))["ear_status"] == "affirming"
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_a_new_value_that_is_wrong_quarantines_nobody(verifier, newer: Path) -> None:
    """Who upgrades as told has files that are nearest to the new value: it is that value which is doubted."""
    real = newer.parent / "real"
    resaved(newer, real, byte=-39)
    (newer / "config.json").write_text('{"layers": 2}')
    (real / "config.json").write_text('{"layers": 2}')
    new = await mint(verifier, newer)
    await begin(verifier, new)
    for number in range(3):
        node = await verifier.enrol(operator=f"op-{number}")
        node.folder = real
        result = await verifier.attest(node)
        assert compared_with(result) == new
    found = await verifier.rows("SELECT kind, state, cause FROM incidents WHERE node_id IS NULL")
    assert [(row["kind"], row["state"]) for row in found] == [("reference-suspect", "open")]
    assert not await verifier.rows("SELECT * FROM incidents WHERE state = 'open' AND node_id IS NOT NULL")


async def test_a_blocked_revision_is_blocked_for_who_has_it_alone(verifier, newer: Path) -> None:
    """The others are on another, and go on."""
    new, one, other = await mint(verifier, newer), await verifier.enrol(), await verifier.enrol()
    await begin(verifier, new)
    await upgrade(verifier, one, newer, new)
    await verifier.attest(one)
    await verifier.attest(other)
    status, _ = await post(verifier, "/api/v1/policies/blocks", {**WHY, "kind": "digest", "value": new})
    assert status == 201
    await rejudged(verifier)
    assert vector(await newest(verifier, one)) == {"file-system": 96, "executables": 96}
    assert (await newest(verifier, other))["ear_status"] == "affirming"


async def test_a_blocked_value_is_not_rolled_out(verifier, newer: Path) -> None:
    """It is said how the block is lifted."""
    new = await mint(verifier, newer)
    async with transaction(verifier.service.db) as tx:
        await tx.execute(
            "INSERT INTO blocks (id, kind, value, added_ms) VALUES ('b', 'digest', ?, ?)",
            new,
            verifier.clock.ms,
        )
    status, body = await step(verifier, "start", to=new)
    assert (status, "--lift" in body["detail"]) == (409, True)


async def test_results_are_judged_anew_on_what_their_nodes_have(verifier, newer: Path) -> None:
    """A policy that changes during the roll-out finds every recording as it was judged."""
    old, new, one, other = (
        await in_force(verifier), await mint(verifier, newer), await verifier.enrol(), await verifier.enrol()
    )  # fmt: skip
    await begin(verifier, new)
    await upgrade(verifier, one, newer, new)
    await verifier.attest(one)
    await verifier.attest(other)
    tighter = await strict(verifier)
    await publish(verifier, tighter)
    await policy_step(verifier, "promote", tighter)
    await rejudged(verifier)
    for node, digest in ((one, new), (other, old)):
        result = await newest(verifier, node)
        assert (result["ear_status"], compared_with(result)) != ("affirming", digest)
        assert (vector(result), compared_with(result)) == ({"file-system": 2, "executables": -2}, digest)


@pytest.mark.parametrize("walk_max_age_s", [3600, 3599])
async def test_a_trial_during_a_roll_out_changes_nothing_by_itself(
    verifier, newer: Path, walk_max_age_s: int
) -> None:
    """Recordings of both revisions: from what was noted, or examined again with the values as they were valid."""
    new, one, other = await mint(verifier, newer), await verifier.enrol(), await verifier.enrol()
    await begin(verifier, new)
    await upgrade(verifier, one, newer, new)
    await verifier.attest(one)
    await verifier.attest(other)
    await step(verifier, "abort", grace_s=0)
    base = await verifier.policy()
    data = json.loads(base.files["data.json"])
    data["thresholds"]["walk_max_age_s"] = walk_max_age_s
    same = changed(base, "same", data_DOT_json=json.dumps(data))
    await publish(verifier, same)
    status, body = await post(verifier, f"/api/v1/policies/{same.digest}/trial", WHY)
    assert (status, body["appraisals"], body["unchanged"]) == (200, 2, 2), body
    assert body["examined"] == (2 if walk_max_age_s == 3599 else 0)


async def test_a_policy_with_its_own_value_and_a_roll_out_exclude_each_other(verifier, newer: Path) -> None:
    """The roll-out is refused under such a policy, and such a policy is not put in force during a roll-out."""
    new = await mint(verifier, newer)
    async with verifier.service.db.read() as tx:
        row = await references.by_digest(tx, await in_force(verifier))
    assert row is not None
    own = changed(await verifier.policy(), "own", references__tiny_DOT_json=row["document"])
    await publish(verifier, own)
    await begin(verifier, new)
    for name, more in (("canary", {"permille": 500}), ("promote", {})):
        status, body = await post(verifier, f"/api/v1/policies/{own.digest}/{name}", {**WHY, **more})
        assert (status, "touchstone reference rollout finish" in body["detail"]) == (409, True)
    await step(verifier, "abort")
    await policy_step(verifier, "canary", own, permille=500)
    status, body = await step(verifier, "start", to=new)
    assert (status, f"the canary {own.id} brings its own reference value" in body["detail"]) == (409, True)


async def test_the_pool_of_what_is_rolled_out_is_watched(verifier, newer: Path) -> None:
    """Its level is said when it is low, with the value that it is of."""
    await verifier.enrol()
    new = await mint(verifier, newer)
    await begin(verifier, new)
    async with transaction(verifier.service.db) as tx:
        await tx.execute(
            "UPDATE pool_counts SET taken = minted WHERE batch IN (SELECT id FROM batches WHERE reference = ?)",
            new,
        )
    with capture_logs() as logs:
        await verifier.service.pools.refresh()
        verifier.service.pools.warn()
    low = [line for line in logs if line["event"].startswith("challenges run low")]
    assert {(line["kind"], line.get("reference")) for line in low} == {("read", new), ("walk", new)}


async def test_two_replicas_know_of_it_at_once(verifier, newer: Path, store_url: str) -> None:
    """What one starts, the other judges by; and it calls the node that one was told of."""
    if not store_url:
        pytest.skip("replicas share a PostgreSQL")
    new, node = await mint(verifier, newer), await verifier.enrol()
    await verifier.attest(node)
    config = verifier.home.config()
    async with open_service(verifier.home, config, verifier.clock.clock()) as second:
        async with second.db.read() as tx:
            await second.inputs.load_inputs(tx, node.id, [MODEL], verifier.clock.ms)
        await begin(verifier, new)
        await upgrade(verifier, node, newer, new)
        async with second.db.read() as tx:
            found = await second.inputs.load_inputs(tx, node.id, [MODEL], verifier.clock.ms)
            asked = await second.inputs.load_asked(tx, second_node(verifier, node), verifier.clock.ms)
    assert [each.digest for each in found.verifier_inputs.beside[MODEL]] == [new]
    assert asked[MODEL] == new


def second_node(verifier, node: SimulatedNode) -> Any:
    seen = verifier.service.seen.get(node.id)
    assert seen is not None
    return seen.node


async def test_a_rollback_to_such_a_policy_waits_for_nothing(verifier, newer: Path) -> None:
    """Its own value is the only one then: both revisions of the roll-out are a warning, and nobody is quarantined."""
    old, new, one, other = (
        await in_force(verifier), await mint(verifier, newer), await verifier.enrol(), await verifier.enrol()
    )  # fmt: skip
    third = measured.measure_folder(MODEL, open_folder(resaved(newer, newer.parent / "third", byte=-39)))
    base = await verifier.policy()
    text = msgspec.json.encode(third).decode()
    await smuggle(verifier, changed(base, "own", references__tiny_DOT_json=text))
    await smuggle(verifier, changed(base, "later"))
    assert await in_force(verifier) == old
    await begin(verifier, new)
    await upgrade(verifier, one, newer, new)
    status, body = await post(verifier, "/api/v1/policies/rollback", WHY)
    assert (status, body["active"].startswith("own")) == (200, True), body
    for node in (one, other):
        assert vector(await verifier.attest(node))["file-system"] == -34
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_a_node_that_has_another_revision_is_called_soon(verifier, newer: Path) -> None:
    """At a moment that it cannot know, within a minute, with a walk; whatever its next call would have been."""
    new, node = await mint(verifier, newer), await verifier.enrol()
    await verifier.attest(node)
    await begin(verifier, new)
    caller = verifier.app[CALL_SCHEDULER]
    await caller.refresh()
    caller.plan.needs_walk.clear()
    await upgrade(verifier, node, newer, new)
    await caller._take_changes()
    assert verifier.clock.ticks < caller.plan.moment(node.id) < verifier.clock.ticks + 60
    assert node.id in caller.plan.needs_walk


async def command(verifier, *arguments: str) -> tuple[int, str]:
    """A command on the home of the verifier that runs; its status and what it prints."""
    given = ["reference", "rollout", *arguments, "--home", str(verifier.home.path)]
    done = await asyncio.to_thread(CliRunner().invoke, main, given)
    return done.exit_code, done.output


async def test_the_commands_take_it_from_its_start_to_its_end(verifier, newer: Path, monkeypatch) -> None:
    """On the machine of the verifier, with what each prints; a step that is refused says how to mend it."""
    monkeypatch.setattr("verifier.commands.model_rollouts.now_ms", lambda: verifier.clock.ms)
    old, new, node = await in_force(verifier), await mint(verifier, newer), await verifier.enrol()
    await verifier.attest(node)
    assert await command(verifier, "status") == (0, "No roll-out runs.\n")
    ended, text = await command(
        verifier, "start", MODEL, "--to", new[:12], "--until", "7d", "--reason", "re-saved"
    )
    assert (ended, f"Both revisions of {MODEL} are valid now: {old[:12]} and {new[:12]}." in text) == (
        0,
        True,
    ), text
    await upgrade(verifier, node, newer, new)
    ended, text = await command(verifier, "status", MODEL)
    assert ended == 0
    assert "until 2026-11-25" in text
    assert "(6 d 23 h left)" in text
    assert f"from {old[:12]}  {'█' * 24}  1 of 1 nodes; reads 29" in text
    assert f"to   {new[:12]}  {'░' * 24}  0 of 1 nodes (1 more say so); reads 30" in text
    await verifier.attest(node)
    ended, text = await command(verifier, "status", "--json")
    assert (ended, json.loads(text)[0]["to"]["nodes"]) == (0, 1)
    ended, text = await command(verifier, "abort", MODEL, "--grace", "60", "--reason", "not yet")
    assert (ended, "Nodes on the new one: 1; they are only a warning for 60 s." in text) == (0, True)
    await command(verifier, "start", MODEL, "--to", new, "--reason", "again")
    ended, text = await command(verifier, "finish", MODEL, "--reason", "done")
    assert (ended, f"{new[:12]} is in force for {MODEL}, and {old[:12]} is superseded." in text) == (0, True)
    ended, text = await command(verifier, "finish", MODEL, "--reason", "done")
    assert (ended, "touchstone reference rollout start" in text) == (1, True)
    ended, text = await command(verifier, "start", MODEL, "--to", new, "--until", "soon", "--reason", "x")
    assert (ended, "is no moment" in text) == (2, True)


async def test_the_list_of_values_says_which_one_is_rolled_out(verifier, newer: Path) -> None:
    """Beside the one in force; an aborted one waits, with what is left of its grace."""
    old, new = await in_force(verifier), await mint(verifier, newer)
    await begin(verifier, new)
    _, body = await verifier.get("/api/v1/reference-values")
    found = {each["digest"]: each for each in body["reference_values"]}
    assert {digest: each["rolling_out"] for digest, each in found.items()} == {old: False, new: True}
    await step(verifier, "abort", grace_s=600)
    _, body = await verifier.get("/api/v1/reference-values?all=1")
    found = {each["digest"]: each for each in body["reference_values"]}
    assert (found[new]["state"], found[new]["rolling_out"], found[new]["grace_left_s"]) == (
        "candidate",
        False,
        600,
    )


async def test_a_policy_is_given_the_value_that_a_node_is_judged_on(verifier, newer: Path) -> None:
    """Its digest, signer and source: a policy may ask for them."""
    old, new, one, other = (
        await in_force(verifier), await mint(verifier, newer), await verifier.enrol(), await verifier.enrol()
    )  # fmt: skip
    await begin(verifier, new)
    await upgrade(verifier, one, newer, new)
    await verifier.attest(one)
    await verifier.attest(other)
    rows = await verifier.rows("SELECT node_id, input FROM recordings")
    given = {row["node_id"]: json.loads(row["input"])["references"][MODEL]["digest"] for row in rows}
    assert given == {one.id: new, other.id: old}
