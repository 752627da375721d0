"""The pool is empty: that is the verifier's state, and no node is blamed for it."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

import msgspec
import pytest

from attester.evidence import ReadAnswer
from fixtures.published import publish
from fixtures.simulator import MODEL, SimulatedNode
from fixtures.transactions import transaction
from verifier import recording
from verifier.reappraisal import Reappraiser
from verifier.references.measured import read_document
from verifier.service.calls import CALL_SCHEDULER
from verifier.service.inputs import StoredLookup
from verifier.store import references, sessions
from verifier.store.policies import ChangeAuthor

pytestmark = pytest.mark.usefixtures("only_our_calls")

STORES = ("sqlite", "postgres")
HOUR_S = 3600
GRACE_S = 6 * HOUR_S
KEPT = {"file-system": 2, "executables": -2}


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    return {
        "policy": {"workers": 1},
        "pool": {"grace_s": GRACE_S},
    }


async def empty(verifier, *kinds: str) -> None:
    """Take what is free out of the pool."""
    async with transaction(verifier.service.db) as tx:
        for kind in kinds or ("read", "walk"):
            await tx.execute("DELETE FROM pool WHERE session_id IS NULL AND kind = ?", kind)


async def refill(verifier) -> None:
    await publish(
        verifier.service.db,
        verifier.service.pool_key,
        verifier.model_folder,
        verifier.clock.ms,
        reads=5,
        walks=5,
    )


async def honest(verifier) -> SimulatedNode:
    """A node that has answered a call rightly, when the pool becomes empty."""
    node = await verifier.enrol()
    assert vector(await verifier.attest(node)) == KEPT
    verifier.clock.forward(60)
    return node


def vector(claims: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = claims["submods"][f"model/{MODEL}"]["ear_trustworthiness_vector"]
    return found


def reasons(claims: dict[str, Any]) -> set[str]:
    return {
        reason["code"]
        for reason in claims["submods"][f"model/{MODEL}"]["ear_verifier_claims"].get("reasons", ())
    }


async def test_an_honest_node_stays_affirming_for_the_grace(verifier) -> None:
    """Also when its last walk is older than the policy allows; and each result says what was lacking."""
    node = await honest(verifier)
    await empty(verifier)
    for _ in range(5):
        claims = await verifier.attest(node)
        assert (vector(claims), claims["ear_status"]) == (KEPT, "affirming")
        assert reasons(claims) == {"challenges.exhausted"}
        verifier.clock.forward(HOUR_S)


async def test_after_the_grace_nobody_knows_and_nobody_is_blamed(verifier) -> None:
    """No conclusion: neither −33 nor an incident."""
    node = await honest(verifier)
    await empty(verifier)
    verifier.clock.forward(GRACE_S)
    claims = await verifier.attest(node)
    assert (vector(claims), claims["ear_status"]) == ({"file-system": 0, "executables": 0}, "none")
    assert reasons(claims) == {"challenges.exhausted"}
    assert await verifier.rows("SELECT code FROM incidents") == []


async def test_the_last_second_of_the_grace(verifier) -> None:
    """It counts from the answer itself, not from when the pool was empty."""
    node = await honest(verifier)
    await empty(verifier)
    verifier.clock.forward(GRACE_S - 60)
    assert vector(await verifier.attest(node)) == KEPT
    verifier.clock.forward(1)
    assert vector(await verifier.attest(node)) == {"file-system": 0, "executables": 0}


async def test_after_a_refill_a_right_answer_makes_all_well(verifier) -> None:
    """Affirming again with the first call."""
    node = await honest(verifier)
    await empty(verifier)
    verifier.clock.forward(GRACE_S)
    await verifier.attest(node)
    await refill(verifier)
    claims = await verifier.attest(node)
    assert (vector(claims), reasons(claims)) == (KEPT, set())


async def test_a_new_node_gets_no_pass(verifier) -> None:
    """It has shown nothing that could count on."""
    node = await verifier.enrol()
    await empty(verifier)
    claims = await verifier.attest(node)
    assert (vector(claims), claims["ear_status"]) == ({"file-system": 0}, "none")


async def test_a_node_that_only_announced_gets_no_pass(verifier) -> None:
    """A walk that it announced itself does not count on, and it is not blamed for the walk that nobody asked."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    await verifier.submit(session, node.evidence(session, iat=verifier.clock.seconds), node)
    await empty(verifier)
    claims = await verifier.attest(node)
    assert vector(claims) == {"file-system": 0, "executables": 0}


@pytest.mark.parametrize("kind", ["read", "walk"])
async def test_one_kind_may_run_out_alone(verifier, kind: str) -> None:
    """What there is, is asked, and must be right; the other counts on."""
    node = await honest(verifier)
    await empty(verifier, kind)
    verifier.clock.forward(2 * HOUR_S)
    claims = await verifier.attest(node)
    assert (vector(claims), claims["ear_status"]) == (KEPT, "affirming")


async def test_a_wrong_read_ends_what_counts_on(verifier) -> None:
    """The pool has no walks, and the node answers a read wrongly: nothing excuses that."""
    node = await honest(verifier)
    await empty(verifier, "walk")
    verifier.clock.forward(2 * HOUR_S)
    session = await verifier.call(node)
    answers = {MODEL: (ReadAnswer(answer=bytes(32), micros=1), None)}
    await verifier.client(node).answer_call(session, answers)
    evidence = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
    claims = await verifier.submit(session, evidence, node)
    assert vector(claims)["file-system"] == 96
    assert vector(claims)["executables"] == 0


async def test_a_missed_call_ends_what_counts_on(verifier) -> None:
    """Silence is the node's own, whatever the pool has."""
    node = await honest(verifier)
    await verifier.call(node)
    verifier.clock.forward(200)
    async with transaction(verifier.service.db) as tx:
        await sessions.expire(tx, verifier.clock.ms)
    await empty(verifier)
    verifier.clock.forward(2 * HOUR_S)
    claims = await verifier.attest(node)
    assert vector(claims) == {"file-system": 0, "executables": -33}
    assert reasons(claims) == {"challenges.exhausted", "weights.walk.unanswered"}


async def test_a_missed_read_ends_what_counts_on(verifier) -> None:
    """Also a call that asked no walk."""
    node = await honest(verifier)
    await verifier.call(node, walk=False)
    verifier.clock.forward(200)
    async with transaction(verifier.service.db) as tx:
        await sessions.expire(tx, verifier.clock.ms)
    await empty(verifier)
    assert vector(await verifier.attest(node))["file-system"] == 0


async def test_other_files_are_not_excused(verifier, tmp_path) -> None:
    """A manifest that differs is a mismatch while the pool is empty, too."""
    node = await honest(verifier)
    await empty(verifier)
    session = await verifier.call(node)
    node.folder = tmp_path / "other"
    shutil.copytree(verifier.model_folder, node.folder)
    data = bytearray((node.folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (node.folder / "model.safetensors").write_bytes(data)
    await verifier.client(node).answer_call(session, {})
    claims = await verifier.submit(session, node.evidence(session, iat=verifier.clock.seconds), node)
    assert vector(claims)["file-system"] == 96


async def test_what_was_shown_of_another_value_does_not_count_on(verifier) -> None:
    """A value without challenges of its own comes into force: nothing was shown of it."""
    node = await honest(verifier)
    (row,) = await verifier.rows("SELECT document FROM reference_values")
    document = msgspec.structs.replace(read_document(row["document"]), information_bytes=1)
    who, origin = ChangeAuthor("test", "new"), references.Provenance()
    async with transaction(verifier.service.db) as tx:
        await references.add(tx, document, origin, who, verifier.clock.ms, replace=True)
    claims = await verifier.attest(node)
    assert vector(claims) == {"file-system": 0}


async def test_the_walk_that_was_due_follows_when_there_is_one(verifier) -> None:
    """The next call asks for it, and the one after that as the plan says."""
    node = await honest(verifier)
    await empty(verifier)
    caller = verifier.app[CALL_SCHEDULER]
    await caller.refresh()
    caller.plan.needs_walk.clear()
    pushed = []
    caller.channels.push = lambda node_id, event: pushed.append(event["session"])

    async def is_open(node_id: str) -> bool:
        return True

    caller.channels.is_open = is_open
    await caller.call(node.id, walk=True)
    assert node.id in caller.plan.needs_walk
    assert await taken(verifier, pushed[-1]) == []
    verifier.clock.forward(200)
    await refill(verifier)
    await caller.call(node.id, walk=False)
    assert node.id not in caller.plan.needs_walk
    assert await taken(verifier, pushed[-1]) == ["read", "walk"]


async def taken(verifier, session: str) -> list[str]:
    """The kinds of challenges of a session."""
    rows = await verifier.rows("SELECT kind FROM pool WHERE session_id = ? ORDER BY kind", session)
    return [row["kind"] for row in rows]


async def test_a_recorded_appraisal_comes_to_the_same_again(verifier) -> None:
    """What counted on is in the recording: examined anew it gives the same facts and the same verdict."""
    node = await honest(verifier)
    await empty(verifier)
    verifier.clock.forward(2 * HOUR_S)
    claims = await verifier.attest(node)
    lookup = StoredLookup(verifier.service.db, verifier.service.inputs)
    recorded = await lookup.recording(claims["jti"])
    bundle = await verifier.policy()
    reappraiser = Reappraiser(bundle, partial(verifier.service.engine.ask, bundle), lookup)
    inputs = await reappraiser._recorded_inputs(recorded.record)
    context = recorded.record.context(inputs.references, inputs.superseded, bundle.thresholds, inputs.blocks)
    assert recording.examine(recorded, context).policy_input(context) == recorded.input
    judged = await reappraiser.judge(recorded, inputs)
    found = judged.verdicts(recorded.record.held)[f"model/{MODEL}"]
    assert (found.vector, set(found.reasons)) == (KEPT, {"challenges.exhausted"})
