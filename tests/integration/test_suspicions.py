"""What follows from answers that differ, on both databases: suspicion, incident, recovery, and what holds nobody."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fixtures import judged as checks
from fixtures.simulator import ENGINE, ENGINE_VERSION, MODEL, SimulatedNode
from fixtures.transactions import transaction
from tests.integration.test_incident_reports import listed
from verifier.answers.checks import Given, Minted
from verifier.errors import RequestError
from verifier.incidents import BLAST_WINDOW_MS
from verifier.schemes.context import AnswerBoundaries
from verifier.service import sweep
from verifier.store import answer_differences, answer_scores, events, incidents, nodes, suspicions

STORES = ("sqlite", "postgres")
MINTED = checks.minted(engine=checks.engine("llama.cpp"))
RIGHT = checks.given(MINTED.text or "")
WRONG = checks.given("The sea is calm and green.")
VECTOR = checks.minted(
    operation="embeddings", text=None, tokens=None, vectors=checks.vectors(), finish_reason=None,
    engine=checks.engine(ENGINE, ENGINE_VERSION, "float32"),
)  # fmt: skip
ROUNDED = checks.given(None, vectors=checks.vectors(0.03), family=ENGINE)
TRUE = checks.given(None, vectors=checks.vectors(1e-7), family=ENGINE)


async def take(
    verifier: Any, node: SimulatedNode, theirs: Given, ours: Minted = MINTED, times: int = 1, **changed: Any
) -> None:
    boundaries, fastest = changed.pop("boundaries", AnswerBoundaries()), changed.pop("fastest", None)
    for _ in range(times):
        verifier.clock.forward(60)
        async with transaction(verifier.service.db) as tx:
            stored = await nodes.by_id(tx, node.id)
            assert stored is not None
            judged = checks.judged(stored, MODEL, ours, theirs, **changed)
            await suspicions.take_verdict(tx, judged, verifier.clock.ms, boundaries, fastest)


async def suspected(verifier: Any) -> list[str]:
    async with verifier.service.db.read() as tx:
        rows, _ = await suspicions.page(tx, "", 500)
    return [row["node_id"] for row in rows]


async def told(verifier: Any) -> list[tuple[str, str]]:
    """What routers are told of suspicions: node and level."""
    async with verifier.service.db.read() as tx:
        rows = await events.after(tx, 0, 10_000)
    found = [msgspec.json.decode(row["data"]) for row in rows if row["type"] == "suspicion"]
    return [(each["node"], each["level"]) for each in found]


async def score(verifier: Any, node: SimulatedNode) -> float:
    async with verifier.service.db.read() as tx:
        rows = await answer_scores.of_node(tx, node.id)
    return max(
        (row["score"] for row in rows if row["last_ms"] == max(r["last_ms"] for r in rows)), default=0.0
    )


async def kinds(verifier: Any) -> list[tuple[str, str]]:
    """What is serious: nodes that nobody runs here miss calls meanwhile."""
    found = await listed(verifier)
    return sorted((each["kind"], each["state"]) for each in found if each["severity"] == "serious")


async def attested(verifier: Any, operator: str = "acme") -> tuple[SimulatedNode, str]:
    """A node, and the id of its result: the verifier knows its engine."""
    node = await verifier.enrol(operator=operator)
    return node, (await verifier.attest(node))["jti"]


async def test_answers_that_agree_suspect_nobody(verifier) -> None:
    """However many."""
    node = await verifier.enrol()
    await take(verifier, node, RIGHT, times=20)
    assert (await suspected(verifier), await told(verifier), await score(verifier, node)) == ([], [], 0.0)


async def test_one_answer_that_differs_suspects_nobody(verifier) -> None:
    """One check decides nothing."""
    node = await verifier.enrol()
    await take(verifier, node, WRONG)
    assert await suspected(verifier) == []
    assert await score(verifier, node) > 0


async def test_answers_that_differ_make_a_suspicion_and_routers_are_told(verifier) -> None:
    """At the boundary, once."""
    node = await verifier.enrol()
    await take(verifier, node, WRONG, times=8)
    assert await suspected(verifier) == [node.id]
    assert await told(verifier) == [(node.id, "suspected")]


async def test_censored_answers_move_nothing(verifier) -> None:
    """Where true weights are undecided, nothing follows."""
    node = await verifier.enrol()
    undecided = checks.minted(tokens=tuple(checks.token(word, 0.1) for word in checks.WORDS))
    near = checks.given("The sea is calm other")
    await take(verifier, node, near, undecided, times=20)
    assert (await suspected(verifier), await score(verifier, node)) == ([], 0.0)


async def test_answers_of_exchanges_that_failed_move_nothing(verifier) -> None:
    """They are for the router's own statistics."""
    node = await verifier.enrol()
    await take(verifier, node, checks.given("", outcome="crashed"), times=20)
    assert await score(verifier, node) == 0.0


async def test_agreeing_answers_end_a_suspicion(verifier) -> None:
    """The score has come down to 0; routers are told."""
    node = await verifier.enrol()
    await take(verifier, node, WRONG, times=8)
    assert await suspected(verifier) == [node.id]
    boundaries = AnswerBoundaries(incident_per_million=None)
    async with transaction(verifier.service.db) as tx:
        stored = await nodes.by_id(tx, node.id)
        assert stored is not None
        for number in range(2000):
            judged = checks.judged(stored, MODEL, MINTED, RIGHT)
            await suspicions.take_verdict(tx, judged, verifier.clock.ms + number, boundaries)
            rows, _ = await suspicions.page(tx, "", 1)
            if not rows:
                break
    assert await told(verifier) == [(node.id, "suspected"), (node.id, "none")]


async def test_another_engine_or_revision_carries_the_score_on(verifier) -> None:
    """A node chooses them itself: it cannot begin anew at will."""
    node, result = await attested(verifier)
    await take(verifier, node, WRONG, times=3)
    before = await score(verifier, node)
    await take(verifier, node, RIGHT, reference="bb" * 32, result=result)
    assert before - 0.2 < await score(verifier, node) < before
    await take(verifier, node, WRONG, reference="cc" * 32, times=4)
    assert await suspected(verifier) == [node.id]


async def test_rows_of_revisions_are_few(verifier) -> None:
    """However many a node names."""
    node = await verifier.enrol()
    for number in range(20):
        await take(verifier, node, RIGHT, reference=f"{number:064x}")
    async with verifier.service.db.read() as tx:
        assert len(await answer_scores.of_node(tx, node.id)) <= 9


async def test_the_demo_s_rounded_copy_is_quarantined(verifier) -> None:
    """Embeddings of weights rounded to 8 bits, of a node whose engine is the verifier's own."""
    node, result = await attested(verifier)
    await take(verifier, node, ROUNDED, VECTOR, times=6, result=result)
    assert (await suspected(verifier), await kinds(verifier)) == ([node.id], [])
    await take(verifier, node, ROUNDED, VECTOR, times=2, result=result)
    assert await kinds(verifier) == [("answer-mismatch", "suspected")]
    verifier.clock.forward(BLAST_WINDOW_MS / 1000 + 1)
    await sweep.end_expired(verifier.service)
    assert await kinds(verifier) == [("answer-mismatch", "open")]


async def test_another_router_confirms_at_once(verifier) -> None:
    """As it confirms a report."""
    node, result = await attested(verifier)
    await take(verifier, node, ROUNDED, VECTOR, times=8, result=result)
    await take(verifier, node, ROUNDED, VECTOR, result=result, reporter="router-2")
    assert await kinds(verifier) == [("answer-mismatch", "open")]


async def test_one_router_s_word_holds_no_fleet(verifier) -> None:
    """What one router says of nodes of three operators holds none of them, and it is reviewed."""
    found = [await attested(verifier, f"op-{number}") for number in range(3)]
    # Their engines differ, so that nothing is suspected of the reference.
    for number, (node, result) in enumerate(found):
        await take(verifier, node, ROUNDED, VECTOR, times=8, result=result, reference=f"{number:064x}")
    verifier.clock.forward(BLAST_WINDOW_MS / 1000 + 1)
    await sweep.end_expired(verifier.service)
    states = await kinds(verifier)
    assert ("reporter-suspect", "open") in states
    assert states.count(("answer-mismatch", "suspected")) == 3


async def test_the_policy_can_leave_incidents_to_people(verifier) -> None:
    """`incident_per_million: null`."""
    node, result = await attested(verifier)
    boundaries = AnswerBoundaries(incident_per_million=None)
    await take(verifier, node, ROUNDED, VECTOR, times=12, result=result, boundaries=boundaries)
    assert (await suspected(verifier), await kinds(verifier)) == ([node.id], [])


async def test_an_engine_that_nobody_has_passed_with_makes_no_incident(verifier) -> None:
    """Its answers may differ for the engine's sake: a suspicion, which a person reviews."""
    node, result = await attested(verifier)
    other = msgspec.structs.replace(VECTOR, engine=checks.engine(ENGINE, "0.9", "float32"))
    await take(verifier, node, ROUNDED, other, times=12, result=result)
    assert (await suspected(verifier), await kinds(verifier)) == ([node.id], [])


async def test_another_operator_that_passes_shows_that_it_can_be_passed(verifier) -> None:
    """With the same engine and revision."""
    other = msgspec.structs.replace(VECTOR, engine=checks.engine(ENGINE, "0.9", "float32"))
    good, good_result = await attested(verifier, "good")
    await take(verifier, good, TRUE, other, times=answer_scores.LEAST_VERDICTS, result=good_result)
    node, result = await attested(verifier, "bad")
    await take(verifier, node, ROUNDED, other, times=9, result=result)
    assert await kinds(verifier) == [("answer-mismatch", "suspected")]
    assert await suspected(verifier) == [node.id]


async def test_what_all_operators_fail_at_holds_nobody(verifier) -> None:
    """An engine update: the reference is suspect, and nobody goes to a lower lane for it."""
    other = msgspec.structs.replace(VECTOR, engine=checks.engine(ENGINE, "0.9", "float32"))
    for number in range(3):
        node, result = await attested(verifier, f"op-{number}")
        await take(verifier, node, ROUNDED, other, times=9, result=result)
    assert await kinds(verifier) == [("reference-suspect", "open")]
    assert await suspected(verifier) == []
    await take(verifier, node, ROUNDED, other, times=9, result=result)
    assert (await kinds(verifier), await suspected(verifier)) == ([("reference-suspect", "open")], [])


async def test_the_release_of_a_suspect_reference_lets_scores_begin_anew(verifier) -> None:
    """What was minted was wrong; what it said of nodes is forgotten."""
    other = msgspec.structs.replace(VECTOR, engine=checks.engine(ENGINE, "0.9", "float32"))
    for number in range(3):
        node, result = await attested(verifier, f"op-{number}")
        await take(verifier, node, ROUNDED, other, times=9, result=result)
    (review,) = [each for each in await listed(verifier) if each["severity"] == "serious"]
    await release(verifier, review["id"])
    assert await score(verifier, node) == 0.0


async def release(verifier: Any, incident: str) -> None:
    async with transaction(verifier.service.db) as tx:
        await incidents.take_step(tx, incident, "release", "ada", "seen", verifier.clock.ms, two_person=False)


async def test_a_person_s_release_lets_the_score_begin_anew(verifier) -> None:
    """And routers are told."""
    node, result = await attested(verifier)
    await take(verifier, node, ROUNDED, VECTOR, times=9, result=result)
    (incident,) = [each for each in await listed(verifier) if each["severity"] == "serious"]
    await release(verifier, incident["id"])
    assert (await score(verifier, node), await suspected(verifier)) == (0.0, [])
    assert (await told(verifier))[-1] == (node.id, "none")


async def test_a_prompt_rendered_otherwise_makes_no_incident(verifier) -> None:
    """A stale template is an honest mistake: a review, and a suspicion while its answers differ."""
    node, result = await attested(verifier)
    stale = msgspec.structs.replace(WRONG, prompt_tokens=19)
    await take(verifier, node, stale, times=20, result=result, reporter="router-1")
    assert await kinds(verifier) == []
    async with verifier.service.db.read() as tx:
        (row, *_) = await suspicions.review(tx)
        found = await answer_differences.of_node(tx, node.id)
    assert row["prompts"] == 20
    assert {each["code"] for each in found} == {"answers.prompt.differs"}


async def test_an_engine_that_was_not_measured_makes_no_incident(verifier) -> None:
    """Its rates are a guess."""
    node, result = await attested(verifier)
    ours = checks.minted(engine=checks.engine("other", "1"))
    theirs = msgspec.structs.replace(WRONG, family="other")
    await take(verifier, node, theirs, ours, times=40, result=result)
    assert (await suspected(verifier), await kinds(verifier)) == ([node.id], [])


async def test_a_person_clears_a_suspicion(verifier) -> None:
    """With a reason."""
    node = await verifier.enrol()
    await take(verifier, node, WRONG, times=8)
    async with transaction(verifier.service.db) as tx:
        await suspicions.clear(tx, node.id, MODEL, "ada", "the engine was updated", verifier.clock.ms)
    assert (await suspected(verifier), await score(verifier, node)) == ([], 0.0)


async def test_nobody_clears_without_a_reason(verifier) -> None:
    """It is asked for."""
    node = await verifier.enrol()
    await take(verifier, node, WRONG, times=8)
    async with transaction(verifier.service.db) as tx:
        with pytest.raises(RequestError, match="reason"):
            await suspicions.clear(tx, node.id, MODEL, "ada", " ", verifier.clock.ms)
    assert await suspected(verifier) == [node.id]


async def test_a_person_makes_an_incident_of_what_differs(verifier) -> None:
    """Below every boundary: a person has seen enough.  Again is the same incident."""
    node = await verifier.enrol()
    await take(verifier, node, WRONG, times=2)
    async with transaction(verifier.service.db) as tx:
        made = await suspicions.quarantine(tx, node.id, MODEL, "ada", "a 4-bit copy", verifier.clock.ms)
        again = await suspicions.quarantine(tx, node.id, MODEL, "ada", "a 4-bit copy", verifier.clock.ms)
        history = await incidents.steps(tx, made)
    assert made == again
    assert await kinds(verifier) == [("answer-mismatch", "open")]
    assert [each["actor"] for each in history] == ["verifier", "ada"]


async def test_no_incident_is_made_of_nothing(verifier) -> None:
    """No answer differs."""
    node = await verifier.enrol()
    await take(verifier, node, RIGHT)
    async with transaction(verifier.service.db) as tx:
        with pytest.raises(RequestError, match="differs"):
            await suspicions.quarantine(tx, node.id, MODEL, "ada", "why not", verifier.clock.ms)


async def test_the_sides_of_the_newest_differences_are_kept(verifier) -> None:
    """Expected and found, position and margin; of no more than some."""
    node = await verifier.enrol()
    await take(verifier, node, WRONG, times=answer_differences.MAX_KEPT + 3)
    async with verifier.service.db.read() as tx:
        found = await answer_differences.of_node(tx, node.id)
    assert len(found) == answer_differences.MAX_KEPT
    sides = found[0]["sides"]
    assert sides["expected"]["text"] == "The sea is calm and blue."
    assert sides["found"]["text"] == "The sea is calm and green."
    assert (sides["position"], sides["margin"]) == (5, 3.0)


async def test_a_text_with_nul_can_be_kept(verifier) -> None:
    """PostgreSQL has no NUL in its texts."""
    node = await verifier.enrol()
    await take(verifier, node, checks.given("The sea\x00\ud7ff is"))
    async with verifier.service.db.read() as tx:
        (found,) = await answer_differences.of_node(tx, node.id)
    assert found["sides"]["found"]["text"].startswith("The sea\x00")


async def test_few_differences_of_many_nodes_of_one_operator_are_found(verifier) -> None:
    """Together; no node of it is suspected, and a person looks."""
    found = [await verifier.enrol(operator="acme") for _ in range(6)]
    for node in found:
        await take(verifier, node, WRONG)
    assert await suspected(verifier) == []
    async with verifier.service.db.read() as tx:
        (row,) = await answer_scores.operators(tx, 13.0)
    assert (row["operator"], row["differs"]) == ("acme", 6)
    assert row["suspected_ms"] is not None


async def test_a_page_of_suspicions_ends_at_a_whole_node(verifier) -> None:
    """A router loads them page by page."""
    found = sorted([(await verifier.enrol(operator=f"op-{n}")).id for n in range(3)])
    async with transaction(verifier.service.db) as tx:
        for node_id in found:
            for model in ("one", "two"):
                await suspicions.set_level(tx, node_id, model, "suspected", "x", "ada", 1)
        seen: list[str] = []
        after: str | None = ""
        while after is not None:
            rows, after = await suspicions.page(tx, after, 3)
            seen += [row["node_id"] for row in rows]
    assert seen == [each for each in found for _ in range(2)]


async def test_answers_that_are_too_fast_again_and_again_are_for_a_person(verifier) -> None:
    """Once is nothing; and no lane follows, for the words are right."""
    node = await verifier.enrol()
    words = tuple(f" w{number}" for number in range(20))
    ours = checks.minted(words)
    fast = checks.given(ours.text, seconds=0.1)
    for times, listed_nodes in ((4, []), (1, [node.id])):
        await take(verifier, node, fast, ours, times=times, fastest=100.0)
        async with verifier.service.db.read() as tx:
            assert [row["node_id"] for row in await suspicions.review(tx)] == listed_nodes
    async with verifier.service.db.read() as tx:
        found = await answer_differences.of_node(tx, node.id)
    assert {each["code"] for each in found} == {"answers.speed.impossible"}
    assert (await suspected(verifier), await kinds(verifier)) == ([], [])
