"""What a node says of the revision that it has: what follows from it, and that it gains nothing by a lie."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from attester.client import Session
from fixtures.simulator import MODEL, SimulatedNode
from fixtures.transactions import transaction
from tests.integration.lifecycle import post
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
    say,
    step,
    upgrade,
    vector,
)
from verifier.roles import Role
from verifier.schemes.context import Channel
from verifier.store import revisions

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


@pytest.fixture
async def rolling(verifier, newer: Path) -> tuple[str, str, SimulatedNode]:
    """The digests of a roll-out that runs, and a node on the old revision with a live result."""
    old, new, node = (
        await in_force(verifier),
        await mint(verifier, newer, reads=60, walks=60),
        await verifier.enrol(),
    )
    await verifier.attest(node)
    await begin(verifier, new)
    verifier.clock.forward(1)
    return old, new, node


def code(body: Any) -> str:
    return str(body["type"].rpartition("#")[2])


async def test_the_valid_revisions_are_listed_for_the_node(verifier, rolling, newer: Path) -> None:
    """With the digests of their files; a node sees its own models, and others by their roles."""
    old, new, node = rolling
    body = await verifier.client(node)._json("GET", f"/api/v1/revisions/{MODEL}")
    found = {each["digest"]: each for each in body["revisions"]}
    assert {digest: each["state"] for digest, each in found.items()} == {old: "in-force", new: "rolling-out"}
    assert set(found[new]["files"]) == {"config.json", "model.safetensors", "sub/empty.txt"}
    weights = [found[digest]["files"]["model.safetensors"] for digest in (old, new)]
    assert weights[0]["size"] == weights[1]["size"] == (newer / "model.safetensors").stat().st_size
    assert weights[0]["sha256"] != weights[1]["sha256"]
    assert len(weights[0]["sha256"]) == 64
    for role in (Role.ROUTER, Role.RELYING_PARTY, Role.AUDITOR):
        key = await verifier.key(f"one-{role}", role)
        async with verifier.stranger.get(f"{verifier.url}/api/v1/revisions/{MODEL}", headers=key) as answer:
            assert answer.status == 200, role


async def test_a_node_reads_nothing_of_other_models(verifier, rolling) -> None:
    """As if there were none."""
    _, _, node = rolling
    await verifier.service.db.write(
        lambda tx: tx.execute("UPDATE nodes SET models = '[\"example/other\"]' WHERE id = ?", node.id)
    )
    with pytest.raises(Exception, match="there is no reference value of such a model"):
        await verifier.client(node)._json("GET", f"/api/v1/revisions/{MODEL}")


async def test_what_is_superseded_is_listed_within_its_grace(verifier, newer: Path) -> None:
    """With the end of the grace, and not after it."""
    old, new = await in_force(verifier), await mint(verifier, newer)
    await post(verifier, f"/api/v1/reference-values/{new}/activate", {**WHY, "grace_s": 60})
    ends = verifier.clock.seconds + 60
    _, body = await verifier.get(f"/api/v1/revisions/{MODEL}")
    assert [(each["digest"], each["state"], each["until"]) for each in body["revisions"]] == [
        (new, "in-force", None),
        (old, "superseded", ends),
    ]
    verifier.clock.forward(61)
    _, body = await verifier.get(f"/api/v1/revisions/{MODEL}")
    assert [each["digest"] for each in body["revisions"]] == [new]


async def test_a_node_is_challenged_on_the_revision_that_it_has_said(verifier, rolling, newer: Path) -> None:
    """In sessions of every kind: called, announced, and the next one."""
    _, new, node = rolling
    await upgrade(verifier, node, newer, new)
    client = verifier.client(node)
    session = await client.open_session()
    for _ in range(2):
        _, session = await client.submit_and_go_on(
            session, node.evidence(session, iat=verifier.clock.seconds)
        )
        verifier.clock.forward(1)
    await verifier.attest(node)
    rows = await verifier.rows(
        "SELECT DISTINCT s.channel FROM sessions s JOIN pool p ON p.session_id = s.id"
        " JOIN batches b ON b.id = p.batch WHERE b.reference = ?",
        new,
    )
    assert {row["channel"] for row in rows} == {Channel.CALLED, Channel.ANNOUNCED}
    assert (await newest(verifier, node))["ear_status"] == "affirming"


async def test_results_for_the_revision_before_are_revoked(verifier, rolling, newer: Path) -> None:
    """No router sends work for what is being replaced; the same said again revokes nothing."""
    old, new, node = rolling
    assert (await say(verifier, node, {MODEL: old}))[0] == 204
    assert compared_with(await newest(verifier, node)) == old
    await upgrade(verifier, node, newer, new)
    assert await newest(verifier, node) is None
    assert await verifier.rows("SELECT * FROM events WHERE type = 'revocation'") != []
    await verifier.attest(node)
    before = await verifier.rows("SELECT * FROM events WHERE type IN ('revision', 'revocation')")
    assert (await say(verifier, node, {MODEL: new}))[0] == 204
    assert await verifier.rows("SELECT * FROM events WHERE type IN ('revision', 'revocation')") == before
    assert compared_with(await newest(verifier, node)) == new


async def test_evidence_that_was_on_its_way_comes_to_no_live_result(verifier, rolling, newer: Path) -> None:
    """It shows what the node had before it said that it has another revision."""
    _, new, node = rolling
    client = verifier.client(node)
    async with verifier.http.post(f"{verifier.url}/challenge-response/v1/newSession") as answer:
        session_id = answer.headers["Location"].rpartition("/")[2]
        session = (await answer.json())["nonce"]
    assert session_id
    evidence = node.evidence(_plain(session_id, session), iat=verifier.clock.seconds)
    await upgrade(verifier, node, newer, new)
    await client.submit(_plain(session_id, session), evidence)
    assert await newest(verifier, node) is None


def _plain(session_id: str, nonce: str) -> Session:
    return Session(session_id, base64.b64decode(nonce), ())


@pytest.mark.parametrize(
    ("said", "status", "why"),
    [
        ({MODEL: "ab" * 32}, 409, "revision.unknown"),
        ({"example/other": None}, 422, "revision.model"),
        ({}, 400, "request.malformed"),
        ({MODEL: "AB" * 32}, 400, "request.malformed"),
        ({MODEL: "ab"}, 400, "request.malformed"),
        (b"[]", 400, "request.malformed"),
        (b'{"revisions": {}, "more": 1}', 400, "request.malformed"),
        (b"\xff", 400, "request.malformed"),
    ],
)
async def test_what_cannot_be_is_refused_and_leaves_no_trace(
    verifier, rolling, said, status: int, why: str
) -> None:
    """Revisions that are not valid, models that are not the node's, and what has another form."""
    old, _, node = rolling
    if isinstance(said, dict):
        said = {model: old if digest is None else digest for model, digest in said.items()}
    before = await verifier.rows("SELECT * FROM node_revisions")
    found, body = await say(verifier, node, said)
    assert (found, code(body)) == (status, why)
    assert await verifier.rows("SELECT * FROM node_revisions") == before
    assert await newest(verifier, node) is not None


async def test_a_revision_is_valid_to_say_as_long_as_its_grace_lasts(verifier, newer: Path) -> None:
    """And not a moment longer."""
    old, new, node = await in_force(verifier), await mint(verifier, newer), await verifier.enrol()
    await post(verifier, f"/api/v1/reference-values/{new}/activate", {**WHY, "grace_s": 60})
    assert (await say(verifier, node, {MODEL: old}))[0] == 204
    verifier.clock.forward(61)
    status, body = await say(verifier, node, {MODEL: old})
    assert (status, code(body)) == (409, "revision.unknown")


@pytest.mark.parametrize("signed", [True, False])
async def test_a_node_speaks_for_itself_alone(verifier, rolling, *, signed: bool) -> None:
    """What it says of another node, or of one that there is not, is about nobody; and it has to sign."""
    _, new, node = rolling
    other = await verifier.enrol()
    for name in (other.id, "0" * 16):
        status, body = await say(verifier, node, {MODEL: new}, of=name, signed=signed)
        assert (status, code(body)) == (
            (404, "request.not-found") if signed else (401, "request.unauthorised")
        )
    assert not [row for row in await verifier.rows("SELECT * FROM node_revisions") if row["said"]]


async def test_a_node_that_changes_all_the_time_is_refused(verifier, rolling) -> None:
    """Each change costs challenges.  After an hour it may again."""
    old, new, node = rolling
    for number in range(revisions._MAX_CHANGES):
        verifier.clock.forward(1)
        assert (await say(verifier, node, {MODEL: (new, old)[number % 2]}))[0] == 204
    status, body = await say(verifier, node, {MODEL: new})
    assert (status, code(body)) == (429, "request.too-often")
    assert (await say(verifier, node, {MODEL: old}))[0] == 204
    verifier.clock.forward(3601)
    assert (await say(verifier, node, {MODEL: new}))[0] == 204


async def test_who_says_one_revision_and_has_the_other_has_missed_its_calls(verifier, rolling) -> None:
    """It is judged on what it shows, and what it was asked was never answered: as if it had been silent."""
    old, new, node = rolling
    seen = []
    for _ in range(3):
        verifier.clock.forward(1)
        assert (await say(verifier, node, {MODEL: new}))[0] == 204
        verifier.clock.forward(60)
        result = await verifier.attest(node)
        assert compared_with(result) == old
        assert "weights.revision.changed" in reasons(result)
        seen.append((vector(result)["file-system"], vector(result)["executables"]))
    assert seen == [(-33, -33), (-33, -33), (-33, 96)]
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_a_walk_is_not_evaded_by_another_revision_for_one_session(
    verifier, rolling, newer: Path
) -> None:
    """Who shows the other one when it is asked, and goes back, has missed the call also for the one that it has."""
    old, _, node = rolling
    node.folder = newer
    verifier.clock.forward(60)
    await verifier.attest(node)
    node.folder = verifier.model_folder
    await upgrade(verifier, node, verifier.model_folder, old)
    result = await verifier.attest(node, walk=False)
    assert vector(result) == {"file-system": 2, "executables": -33}
    assert "weights.walk.unanswered" in reasons(result)


async def test_a_call_is_not_evaded_by_saying_another_revision(verifier, rolling) -> None:
    """The call that waits is over and counts as missed, though as no incident."""
    old, new, node = rolling
    await verifier.call(node)
    assert (await say(verifier, node, {MODEL: new}))[0] == 204
    verifier.clock.forward(1)
    assert (await say(verifier, node, {MODEL: old}))[0] == 204
    result = await verifier.attest(node, walk=False)
    assert vector(result)["executables"] == -33
    assert "weights.walk.unanswered" in reasons(result)
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_a_pool_that_is_empty_excuses_nothing_of_another_revision(
    verifier, rolling, newer: Path
) -> None:
    """What is asked of a revision without challenges is excused; who has the other one gains nothing by it."""
    old, new, node = rolling
    async with transaction(verifier.service.db) as tx:
        await tx.execute(
            "UPDATE pool_counts SET taken = minted WHERE batch IN (SELECT id FROM batches WHERE reference = ?)",
            new,
        )
        await tx.execute(
            "DELETE FROM pool WHERE session_id IS NULL AND batch IN (SELECT id FROM batches WHERE reference = ?)",
            new,
        )
    assert (await say(verifier, node, {MODEL: new}))[0] == 204
    verifier.clock.forward(60)
    result = await verifier.attest(node)
    assert compared_with(result) == old
    assert vector(result) == {"file-system": -33, "executables": -33}
    assert {"weights.revision.changed", "weights.walk.unanswered"} <= set(reasons(result))
    assert "challenges.exhausted" not in reasons(result)


async def test_an_empty_pool_of_the_revision_that_a_node_has_is_its_excuse(
    verifier, rolling, newer: Path
) -> None:
    """What it showed of that revision counts on, as it does without a roll-out."""
    _, new, node = rolling
    await upgrade(verifier, node, newer, new)
    await verifier.attest(node)
    async with transaction(verifier.service.db) as tx:
        await tx.execute(
            "DELETE FROM pool WHERE session_id IS NULL AND batch IN (SELECT id FROM batches WHERE reference = ?)",
            new,
        )
    verifier.clock.forward(60)
    result = await verifier.attest(node)
    assert vector(result) == {"file-system": 2, "executables": -2}
    assert "challenges.exhausted" in reasons(result)


async def test_within_its_grace_a_replaced_revision_does_not_flap(verifier, newer: Path) -> None:
    """
    A node on it is challenged on it, and is a warning at every moment until the grace ends.

    The row of the issue: old nodes flap to contraindicated within the grace.
    """
    node = await verifier.enrol()
    await verifier.attest(node)
    new = await mint(verifier, newer)
    await post(verifier, f"/api/v1/reference-values/{new}/activate", {**WHY, "grace_s": 3600})
    for walk in (True, False, True, False, False, True):
        verifier.clock.forward(60)
        result = await verifier.attest(node, walk=walk)
        assert vector(result) == {"file-system": -34, "executables": -33}
        assert reasons(result) == ["weights.reference.superseded"]
    assert await verifier.rows("SELECT * FROM incidents") == []


async def test_a_wrong_answer_within_the_grace_is_still_wrong(verifier, newer: Path) -> None:
    """The files of before are no excuse for other weights in the engine."""
    other = resaved(verifier.model_folder, newer.parent / "other", byte=-39)
    node = await verifier.enrol()
    await verifier.attest(node)
    new = await mint(verifier, newer)
    await post(verifier, f"/api/v1/reference-values/{new}/activate", {**WHY, "grace_s": 3600})
    node.engine_folder = other
    result = await verifier.attest(node)
    assert vector(result)["executables"] == 96
    assert "weights.walk.wrong" in reasons(result)


async def test_an_old_word_does_not_count_against_newer_evidence(verifier, newer: Path) -> None:
    """Between two roll-outs nobody asks and nobody says; what a node showed last is what it has."""
    old, new, node = (
        await in_force(verifier),
        await mint(verifier, newer, reads=60, walks=60),
        await verifier.enrol(),
    )
    await begin(verifier, new)
    await upgrade(verifier, node, newer, new)
    await verifier.attest(node)
    await step(verifier, "finish", grace_s=0)
    third = resaved(verifier.model_folder, newer.parent / "third", byte=-39)
    last = await mint(verifier, third, replace=True)
    verifier.clock.forward(60)
    node.folder = third
    await verifier.attest(node)
    assert compared_with(await newest(verifier, node)) == last
    await begin(verifier, new)
    verifier.clock.forward(60)
    result = await verifier.attest(node)
    assert (result["ear_status"], compared_with(result), old != last) == ("affirming", last, True)
    assert await verifier.rows("SELECT * FROM incidents") == []
