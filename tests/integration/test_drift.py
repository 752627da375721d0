"""Answers that move over time, on both databases: counts by day, one node's review, and a reference that is suspect."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fixtures import judged as checks
from fixtures.simulator import ENGINE, ENGINE_VERSION, MODEL, SimulatedNode
from fixtures.transactions import transaction
from tests.integration.test_answer_reviews import asked
from tests.integration.test_incident_reports import listed
from tests.integration.test_suspicions import (
    MINTED,
    RIGHT,
    ROUNDED,
    VECTOR,
    WRONG,
    attested,
    kinds,
    release,
    score,
    suspected,
)
from verifier.answers import days, drift
from verifier.answers.checks import Given, Minted
from verifier.roles import Role
from verifier.service import sweep
from verifier.store import answer_days, answer_drift, drift_views, node_prompting, nodes, reviews, suspicions

STORES = ("sqlite", "postgres")
FAR = checks.given(None, vectors=checks.vectors(1.4e-5), family=ENGINE)
"""Near the limit of float32, and within it: no answer differs."""
NEAR = checks.given(None, vectors=checks.vectors(1e-7), family=ENGINE)
REFERENCE = "aa" * 32
VERSION = f"{ENGINE}@{ENGINE_VERSION}"
ENOUGH = drift.LEAST_CHECKS


async def bring(
    verifier: Any, found: tuple[SimulatedNode, str], theirs: Given, ours: Minted = VECTOR, times: int = ENOUGH
) -> None:
    """Judge so many checks of a node, all in one transaction."""
    node, result = found
    verifier.clock.forward(60)
    async with transaction(verifier.service.db) as tx:
        stored = await nodes.by_id(tx, node.id)
        assert stored is not None
        for _ in range(times):
            judged = checks.judged(stored, MODEL, ours, theirs, result=result)
            await suspicions.take_verdict(tx, judged, verifier.clock.ms)


async def fleet(verifier: Any, count: int = 3) -> list[tuple[SimulatedNode, str]]:
    """A node each of so many operators, all with one engine version."""
    return [await attested(verifier, f"op-{number}") for number in range(count)]


async def view(verifier: Any, span: int = 14) -> dict[str, Any]:
    async with verifier.service.db.read() as tx:
        return await drift_views.overview(tx, verifier.clock.ms, span)


async def waiting(verifier: Any) -> list[str]:
    """Whom a person is to look at because its answers moved."""
    return [each["node"] for each in (await view(verifier))["reviews"]]


SUSPECT = [("reference-suspect", "open")]


# What is seen.


async def test_answers_are_counted_by_day_version_and_node(verifier) -> None:
    """With counts and intervals; a day begins at midnight, UTC."""
    first = await attested(verifier)
    await bring(verifier, first, RIGHT, MINTED, 3)
    await bring(verifier, first, WRONG, MINTED, 1)
    verifier.clock.forward(days.DAY_MS // 1000)
    await bring(verifier, first, NEAR, VECTOR, 2)
    found = await view(verifier)
    (model,) = found["models"]
    (version,) = model["versions"]
    assert (model["model"], version["engine"], version["reference"], version["nodes"]) == (
        MODEL,
        VERSION,
        REFERENCE,
        1,
    )
    assert [
        (each["checks"], each["differs"]["count"], each["differs"]["of"]) for each in version["by_day"]
    ] == [
        (4, 1, 4),
        (2, 0, 2),
    ]
    assert (version["checks"], version["parts"]["count"], version["far"]["of"]) == (6, 1, 2)
    assert version["distance"]["median"] == pytest.approx(days.top_of(days.bucket(1e-7)))
    assert [each["node"] for each in model["nodes"]] == [first[0].id]
    assert (await view(verifier, 1))["models"][0]["versions"][0]["checks"] == 2


async def test_a_node_that_names_many_engines_has_few_rows(verifier) -> None:
    """It names them itself; what comes later is counted together."""
    node = await verifier.enrol()
    async with transaction(verifier.service.db) as tx:
        for number in range(20):
            served = answer_days_served(node.id, f"e@{number}", f"{number % 7:064x}")
            await answer_days.count(tx, served, days.Counts(agrees=1), verifier.clock.ms)
        rows = await answer_days.of_model(tx, MODEL, 0)
    assert len(rows) <= answer_days.MAX_VERSIONS + 2
    assert sum(row["agrees"] for row in rows) == 20


def answer_days_served(node_id: str, engine: str, reference: str) -> Any:
    from verifier.store.answer_scores import Served

    return Served(node_id=node_id, operator="acme", model=MODEL, reference=reference, engine=engine)


async def test_old_counts_are_deleted(verifier) -> None:
    """After `[answers] keep_days`, with the scores of versions that nobody has any more."""
    found = await attested(verifier)
    await bring(verifier, found, NEAR, times=1)
    keep_ms = verifier.service.config.answers.keep_days * days.DAY_MS
    async with transaction(verifier.service.db) as tx:
        await node_prompting.note(tx, found[0].id, MODEL, REFERENCE, ("a", "b"), verifier.clock.ms)
    verifier.clock.forward(keep_ms // 1000 - 60)
    await sweep.delete_old(verifier.service)
    async with verifier.service.db.read() as tx:
        assert await answer_days.of_model(tx, MODEL, 0)
    verifier.clock.forward(86_400 + 120)
    await sweep.delete_old(verifier.service)
    async with verifier.service.db.read() as tx:
        assert await answer_days.of_model(tx, MODEL, 0) == []
        assert await node_prompting.of_node(tx, found[0].id) == []
        assert await answer_drift.of_version(tx, MODEL, REFERENCE, VERSION, 0) == []


# One node.


async def test_a_node_whose_answers_move_alone_is_for_a_person(verifier) -> None:
    """Others of its version stay as they were; it is no incident, and nobody is suspected."""
    found = await fleet(verifier, 4)
    for each in found[1:]:
        await bring(verifier, each, NEAR)
    await bring(verifier, found[0], FAR)
    assert await waiting(verifier) == [found[0][0].id]
    assert (await kinds(verifier), await suspected(verifier)) == ([], [])
    async with verifier.service.db.read() as tx:
        (review,) = await suspicions.review(tx)
    assert (review["node_id"], review["level"]) == (found[0][0].id, "none")
    assert review["drift_ms"] is not None


async def test_answers_as_usual_are_for_nobody(verifier) -> None:
    """However many."""
    found = await attested(verifier)
    await bring(verifier, found, NEAR, times=200)
    assert await waiting(verifier) == []


async def test_a_person_s_word_closes_the_review(verifier) -> None:
    """The scores begin at 0 again."""
    node, result = await attested(verifier)
    await bring(verifier, (node, result), FAR)
    async with transaction(verifier.service.db) as tx:
        await suspicions.clear(tx, node.id, MODEL, "ada", "a slow disk", verifier.clock.ms)
        (row,) = await answer_drift.of_node(tx, node.id)
    assert (row["far"], row["review_ms"]) == (0.0, None)
    assert await waiting(verifier) == []


async def test_it_is_in_the_queue_of_reviews_until_a_person_decides(verifier) -> None:
    """With a kind of its own; the decision is kept."""
    node, result = await attested(verifier)
    await bring(verifier, (node, result), FAR)
    async with transaction(verifier.service.db) as tx:
        queue = await reviews.read_queue(tx, verifier.clock.ms)
        assert [(each.id, each.kind, each.held) for each in queue.entries] == [
            (f"answers-moved/{node.id}/{MODEL}", "answers-moved", False)
        ]
        assert (await reviews.figures(tx, verifier.clock.ms)).waiting == {"answers-moved": 1}
        await suspicions.clear(tx, node.id, MODEL, "ada", "a slow disk", verifier.clock.ms)
        assert (await reviews.read_queue(tx, verifier.clock.ms)).entries == ()
        assert list((await reviews.figures(tx, verifier.clock.ms)).decided_ms) == ["answers-moved"]


async def test_a_person_quarantines_a_node_that_has_moved(verifier) -> None:
    """Though no answer differs beyond the tolerance; without a review there is nothing to decide."""
    node, result = await attested(verifier)
    await bring(verifier, (node, result), FAR, times=3)
    body = {"model": MODEL, "reason": "8 bits"}
    assert (await asked(verifier, Role.REVIEWER, f"answer-reviews/{node.id}/quarantine", body))[0] == 404
    await bring(verifier, (node, result), FAR)
    assert (await asked(verifier, Role.REVIEWER, f"answer-reviews/{node.id}/quarantine", body))[0] == 200
    assert await kinds(verifier) == [("answer-mismatch", "open")]


async def test_another_version_does_not_begin_anew(verifier) -> None:
    """A node that names a rare version is alone with it, and what it did before goes with it."""
    node, result = await attested(verifier)
    await bring(verifier, (node, result), FAR, times=8)
    node.engine_version = "9.9.9"
    await bring(verifier, (node, (await verifier.attest(node))["jti"]), FAR, times=8)
    assert await waiting(verifier) == [node.id]


# All nodes of a version.


async def test_all_nodes_of_a_version_make_the_reference_suspect(verifier) -> None:
    """It holds nobody, suspects nobody, and no node waits for a person: the fault is ours."""
    for each in await fleet(verifier):
        await bring(verifier, each, FAR)
    assert await kinds(verifier) == SUSPECT
    assert (await waiting(verifier), await suspected(verifier)) == ([], [])
    (review,) = [each for each in await listed(verifier) if each["severity"] == "serious"]
    assert (review["node"], review["code"]) == (None, "answers.drift.version")
    assert "at 3 of 3 nodes, of 3 of 3 operators. Mint answers with this engine version" in review["detail"]
    (version,) = (await view(verifier))["models"][0]["versions"]
    assert version["suspect"] == review["id"]
    assert [(each["operator"], each["nodes"], each["checks"]) for each in version["operators"]] == [
        (f"op-{number}", 1, ENOUGH) for number in range(3)
    ]


async def test_small_differences_of_all_make_the_reference_suspect_before_a_node_is(verifier) -> None:
    """Pooled by operators: each node alone is far from a suspicion."""
    found = await fleet(verifier, 3)
    for _ in range(3):
        for each in found:
            await bring(verifier, each, NEAR, times=8)
            await bring(verifier, each, ROUNDED, times=1)
    assert await kinds(verifier) == SUSPECT
    assert await suspected(verifier) == []


async def test_a_version_that_fails_all_at_once_is_suspect_before_a_node_is(verifier) -> None:
    """Though the engine that minted is of the same version: three answers of each, and nobody comes near a quarantine."""
    found = await fleet(verifier)
    for _ in range(3):
        for each in found:
            await bring(verifier, each, ROUNDED, times=1)
    assert (await kinds(verifier), await suspected(verifier)) == (SUSPECT, [])


async def test_one_operator_with_many_nodes_makes_no_version_suspect(verifier) -> None:
    """It counts once: its nodes are looked at one by one."""
    many = [await attested(verifier, "big") for _ in range(4)]
    others = await fleet(verifier, 2)
    for each in others:
        await bring(verifier, each, NEAR)
    for each in many:
        await bring(verifier, each, FAR)
    assert await kinds(verifier) == []
    assert sorted(await waiting(verifier)) == sorted(node.id for node, _ in many)


async def test_two_operators_cannot_shield_each_other(verifier) -> None:
    """Who are all that run a version."""
    for each in await fleet(verifier, 2):
        await bring(verifier, each, FAR, times=60)
    assert await kinds(verifier) == []
    assert len(await waiting(verifier)) == 2


async def test_an_engine_that_is_not_known_is_no_version(verifier) -> None:
    """Nodes whose engine nobody knows have nothing in common."""
    for number in range(3):
        node = await verifier.enrol(operator=f"op-{number}")
        await bring(verifier, (node, ""), FAR)
    assert await kinds(verifier) == []


async def test_while_the_reference_is_suspect_its_nodes_are_not_suspected(verifier) -> None:
    """Answers that differ beyond the tolerance make neither suspicion nor incident until a person has looked."""
    found = await fleet(verifier)
    for each in found:
        await bring(verifier, each, FAR)
    await bring(verifier, found[0], ROUNDED, times=20)
    assert (await kinds(verifier), await suspected(verifier)) == (SUSPECT, [])


async def test_a_suspicion_from_before_goes_no_further(verifier) -> None:
    """An incident that waits for its confirmation is folded into the review, and its node's lane is as before."""
    found = await fleet(verifier, 4)
    await bring(verifier, found[0], ROUNDED, times=9)
    assert (await kinds(verifier), len(await suspected(verifier))) == ([("answer-mismatch", "suspected")], 1)
    for each in found:
        await bring(verifier, each, FAR)
    assert await kinds(verifier) == [("answer-mismatch", "folded"), *SUSPECT]
    assert await suspected(verifier) == []
    verifier.clock.forward(3600)
    await sweep.end_expired(verifier.service)
    assert await kinds(verifier) == [("answer-mismatch", "folded"), *SUSPECT]


async def test_a_suspect_reference_shields_no_other_version(verifier) -> None:
    """Only the nodes that serve by the version that moved."""
    for each in await fleet(verifier):
        await bring(verifier, each, FAR)
    node = await verifier.enrol(operator="other")
    node.engine_version = "2.0.0"
    other = msgspec.structs.replace(VECTOR, engine=checks.engine(ENGINE, "2.0.0", "float32"))
    await bring(verifier, (node, (await verifier.attest(node))["jti"]), ROUNDED, other, times=9)
    assert await suspected(verifier) == [node.id]
    assert await kinds(verifier) == [("answer-mismatch", "suspected"), *SUSPECT]


async def test_after_the_release_they_are_judged_anew(verifier) -> None:
    """A version that cheats together is shielded until a person has minted for it, and then it is judged."""
    found = await fleet(verifier)
    for each in found:
        await bring(verifier, each, FAR)
    (review,) = [each for each in await listed(verifier) if each["severity"] == "serious"]
    await release(verifier, review["id"])
    async with verifier.service.db.read() as tx:
        assert await answer_drift.of_version(tx, MODEL, REFERENCE, VERSION, verifier.clock.ms) == []
    assert await score(verifier, found[0][0]) == 0.0
    # The reference is the engine's own version now: a node that differs is the node's affair.
    for each in found[1:]:
        await bring(verifier, each, NEAR)
    await bring(verifier, found[0], ROUNDED, times=9)
    assert await suspected(verifier) == [found[0][0].id]


# What is usual.


async def test_a_person_accepts_what_is_usual(verifier) -> None:
    """From then on it is no shift; what differs beyond the tolerance counts as before."""
    found = await fleet(verifier)
    for each in found:
        await bring(verifier, each, NEAR, times=ENOUGH)
        await bring(verifier, each, FAR, times=10)
    body = {"model": MODEL, "reference": REFERENCE, "family": ENGINE, "reason": "larger batches since June"}
    status, said = await asked(verifier, Role.REVIEWER, "answer-drift/accept", body)
    assert status == 200
    (review,) = [each for each in await listed(verifier) if each["severity"] == "serious"]
    await release(verifier, review["id"])
    assert 0.33 < said["far"] < 0.7
    # No text was checked: what the table says of those stays.
    assert said["parts"] is None
    for each in found:
        await bring(verifier, each, FAR, times=5)
        await bring(verifier, each, NEAR, times=10)
    assert (await kinds(verifier), await waiting(verifier)) == ([("reference-suspect", "released")], [])
    logged = [
        msgspec.json.decode(row["entry"]) for row in await verifier.rows("SELECT entry FROM log_pending")
    ]
    logged += [
        msgspec.json.decode(row["entry"]) for row in await verifier.rows("SELECT entry FROM log_entries")
    ]
    (entry,) = [each for each in logged if each.get("change") == "usual"]
    assert (entry["digest"], entry["model"], entry["actor"]) == (REFERENCE, MODEL, "a-reviewer")
    (usual,) = (await view(verifier))["models"][0]["usual"]
    assert (usual["family"], usual["actor"], usual["reason"]) == (
        ENGINE,
        "a-reviewer",
        "larger batches since June",
    )


async def test_what_two_operators_do_is_not_usual(verifier) -> None:
    """Nor may a blank reason accept it."""
    for each in await fleet(verifier, 2):
        await bring(verifier, each, FAR)
    body = {"model": MODEL, "reference": REFERENCE, "family": ENGINE, "reason": "why not"}
    status, said = await asked(verifier, Role.REVIEWER, "answer-drift/accept", body)
    assert (status, said["type"].rpartition("#")[2]) == (409, "answers.drift.few")


# Templates and sampling defaults.


async def test_a_template_that_changes_without_a_new_revision_is_seen(verifier) -> None:
    """By the results that checks name: which template, since when, and that the revision is the same."""
    node = await verifier.enrol()
    async with transaction(verifier.service.db) as tx:
        for said in ("engine sha256:aa", "engine sha256:bb"):
            verifier.clock.forward(60)
            await node_prompting.note(tx, node.id, MODEL, REFERENCE, (said, "x"), verifier.clock.ms)
        found = await drift_views.templates(tx, MODEL)
    assert [(each["template"], each["nodes"]) for each in found["in_use"]] == [
        ("engine sha256:bb", [node.id])
    ]
    (changed,) = found["changed"]
    assert [had["template"] for had in changed["had"]] == ["engine sha256:aa", "engine sha256:bb"]


async def test_templates_of_a_node_are_few(verifier) -> None:
    """However many its engine names."""
    node = await verifier.enrol()
    async with transaction(verifier.service.db) as tx:
        for number in range(30):
            await node_prompting.note(
                tx, node.id, MODEL, REFERENCE, (f"t{number}", ""), verifier.clock.ms + number
            )
        rows = await node_prompting.of_node(tx, node.id)
    assert [row["template"] for row in rows][-1] == "t29"
    assert len(rows) <= node_prompting.MAX_KEPT


async def test_a_result_names_template_and_sampling_defaults(verifier) -> None:
    """Of the model, by file or engine; a node's own files come from its manifest."""
    node = await verifier.enrol()
    node.arguments = {"chat_template": "sha256:" + "ab" * 32, "sampling": "sha256:" + "cd" * 32}
    result = await verifier.attest(node)
    said = result["submods"][f"model/{MODEL}"]["ear_verifier_claims"]["prompting"]
    assert said == {"template": f"engine sha256:{'ab' * 32}", "sampling": f"engine sha256:{'cd' * 32}"}
    assert node_prompting.prompting_in(msgspec.json.encode(result).decode(), f"model/{MODEL}") == tuple(
        said.values()
    )
