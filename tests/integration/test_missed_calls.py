"""Calls in two steps, missed calls and what makes up for them, and calls that are void because we had failed."""

from __future__ import annotations

import asyncio
import base64
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from attester.client import Session
from attester.errors import VerifierError
from attester.weights.possession import ModelChallenge
from fixtures.simulator import MODEL
from fixtures.transactions import transaction
from verifier.incidents import report_draft
from verifier.service import sweep
from verifier.service.calls import CALL_SCHEDULER
from verifier.service.make_ups import SOON_S
from verifier.store import incidents as stored_incidents

STORES = ("sqlite", "postgres")
SESSION = "/challenge-response/v1/session"


async def pushed(verifier, node, *, walk: bool = True) -> Session:
    """A call, as it comes down the node's channel."""
    await verifier.call(node, walk=walk)
    # It waits, and is pushed when the node opens a channel.
    async with asyncio.timeout(10), aclosing(verifier.client(node).calls(node.id)) as calls:
        return await anext(calls)


async def attest(verifier, node, session: Session) -> dict[str, Any]:
    answers = await node.answer_call(verifier.client(node), session)
    data = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
    return await verifier.submit(session, data, node)


def executables(claims: dict[str, Any]) -> int:
    value: int = claims["submods"][f"model/{MODEL}"]["ear_trustworthiness_vector"]["executables"]
    return value


def codes(claims: dict[str, Any]) -> list[str]:
    found = claims["submods"][f"model/{MODEL}"]["ear_verifier_claims"]["reasons"]
    return [reason["code"] for reason in found]


async def live(verifier, node) -> bool:
    status, _ = await verifier.get(f"/api/v1/nodes/{node.id}/result", Accept="application/json")
    return status == 200


def told(walks: tuple[ModelChallenge, ...]) -> list[tuple[str, bool, bool]]:
    return [(walk.model, walk.read is None, walk.walk is not None) for walk in walks]


# In two steps.


@pytest.mark.parametrize("walk", [True, False])
async def test_a_call_does_not_tell_whether_a_walk_follows(verifier, *, walk: bool) -> None:
    """Neither what is pushed, nor the session if somebody looks at it."""
    node = await verifier.enrol()
    caller = verifier.app[CALL_SCHEDULER]
    await verifier.attest(node)
    caller.plan.needs_walk.clear()
    session = await pushed(verifier, node, walk=walk)
    assert [(each.model, each.read is not None, each.walk) for each in session.models] == [
        (MODEL, True, None)
    ]
    _, shown = await verifier.get(f"{SESSION}/{session.id}")
    assert [set(each) - {"walk"} for each in shown["challenge"]["models"]] == [{"model", "read"}]
    assert not any(each.get("walk") for each in shown["challenge"]["models"])


async def test_the_walk_is_told_in_return_for_the_read(verifier) -> None:
    """And again, if the same answer comes again: what was told may have been lost."""
    node = await verifier.enrol()
    session = await pushed(verifier, node)
    client, reads = verifier.client(node), node.answers(session)
    first = await client.answer_call(session, reads)
    assert told(first) == [(MODEL, True, True)]
    assert await client.answer_call(session, reads) == first


async def test_a_call_without_a_walk_is_answered_in_one_step(verifier) -> None:
    """Nothing follows."""
    node = await verifier.enrol()
    await verifier.attest(node)
    verifier.app[CALL_SCHEDULER].plan.needs_walk.clear()
    session = await pushed(verifier, node, walk=False)
    assert await verifier.client(node).answer_call(session, node.answers(session)) == ()
    assert executables(await attest_answered(verifier, node, session)) == -2


async def attest_answered(verifier, node, session: Session) -> dict[str, Any]:
    answers = node.answers(session)
    data = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
    return await verifier.submit(session, data, node)


async def test_another_read_is_refused_once_the_walk_is_told(verifier) -> None:
    """Only the first answers count."""
    node = await verifier.enrol()
    session = await pushed(verifier, node)
    await verifier.client(node).answer_call(session, node.answers(session))
    with pytest.raises(VerifierError) as refused:
        await verifier.client(node).answer_call(session, {MODEL: (None, None)})
    assert refused.value.code == "session.closed"


async def test_the_time_of_the_read_and_of_the_walk_count_together(verifier) -> None:
    """A node must not load its weights between the call and its answer to the read."""
    node = await verifier.enrol()
    session = await pushed(verifier, node)
    client = verifier.client(node)
    verifier.clock.forward(7)
    walks = await client.answer_call(session, node.answers(session))
    verifier.clock.forward(4)
    walked = {walk.model: node.answer(walk) for walk in walks}
    await client.answer_call(session, walked)
    answers = {MODEL: (node.answers(session)[MODEL][0], walked[MODEL][1])}
    data = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
    claims = await verifier.submit(session, data, node)
    (row,) = await verifier.rows("SELECT read_ms, answer_ms FROM sessions WHERE id = ?", session.id)
    assert row == {"read_ms": 7000, "answer_ms": 4000}
    # The class allows ten seconds.
    assert (executables(claims), codes(claims)) == (-33, ["weights.walk.late"])


async def test_evidence_without_the_walk_that_was_told_is_no_pass(verifier) -> None:
    """Nor evidence without any answer before."""
    node = await verifier.enrol()
    await verifier.attest(node)
    session = await pushed(verifier, node)
    await verifier.client(node).answer_call(session, node.answers(session))
    claims = await attest_answered(verifier, node, session)
    assert executables(claims) == 96
    assert "weights.walk.missing" in codes(claims)


async def test_a_call_is_pushed_again_when_its_node_comes_back(verifier) -> None:
    """With the walk, if the node was told of it: it may have been restarted meanwhile."""
    node = await verifier.enrol()
    session = await pushed(verifier, node)
    await verifier.client(node).answer_call(session, node.answers(session))
    async with asyncio.timeout(10), aclosing(verifier.client(node).calls(node.id)) as calls:
        again = await anext(calls)
    assert again.id == session.id
    assert [(each.read is not None, each.walk is not None) for each in again.models] == [(True, True)]
    claims = await attest(verifier, node, again)
    assert claims["ear_status"] == "affirming"


# Missed.


async def drop(verifier, node, *, walk: bool = True) -> None:
    """A call that nobody answers, until its time is over."""
    await verifier.call(node, walk=walk)
    verifier.clock.forward(verifier.service.config.sessions.lifetime_s + 11)
    await sweep.end_expired(verifier.service)


async def test_a_missed_walk_ends_executables_until_the_next_right_one(verifier) -> None:
    """Calls without a walk do not bring it back, nor do walks that the node announces."""
    node = await verifier.enrol()
    assert executables(await verifier.attest(node)) == -2
    await drop(verifier, node)
    claims = await verifier.attest(node, walk=False)
    assert (executables(claims), codes(claims)) == (-33, ["weights.walk.unanswered"])
    session = await verifier.client(node).open_session()
    claims = await verifier.submit(session, node.evidence(session, iat=verifier.clock.seconds), node)
    assert (executables(claims), codes(claims)) == (-33, ["weights.walk.unanswered"])
    assert executables(await verifier.attest(node)) == -2


async def test_a_missed_call_without_a_walk_ends_nothing(verifier) -> None:
    """It is noted as a minor incident."""
    node = await verifier.enrol()
    await verifier.attest(node)
    await drop(verifier, node, walk=False)
    assert executables(await verifier.attest(node, walk=False)) == -2
    (row,) = await verifier.rows("SELECT kind, severity FROM incidents")
    assert row == {"kind": "challenge-unanswered", "severity": "minor"}


async def test_the_live_result_goes_with_the_missed_walk_and_routers_hear_of_it(verifier) -> None:
    """It would say for minutes what is not known any more."""
    node = await verifier.enrol()
    await verifier.attest(node)
    await verifier.call(node)
    verifier.clock.forward(30)
    await sweep.end_expired(verifier.service)
    assert await live(verifier, node)
    verifier.clock.forward(verifier.service.config.calls.answer_s - 29)
    await sweep.end_expired(verifier.service)
    assert not await live(verifier, node)
    kinds = [row["type"] for row in await verifier.rows("SELECT type FROM events ORDER BY seq")]
    assert kinds[-1] == "revocation"
    assert await verifier.rows("SELECT id FROM incidents") == []


async def test_who_answers_late_has_a_result_again_and_missed_nothing(verifier) -> None:
    """The session lives longer than a node may be silent.  One late answer among others is no late node."""
    node = await verifier.enrol()
    for _ in range(3):
        await verifier.attest(node)
    session = await verifier.call(node)
    verifier.clock.forward(verifier.service.config.calls.answer_s + 1)
    await sweep.end_expired(verifier.service)
    claims = await attest(verifier, node, session)
    assert executables(claims) == -2
    assert await live(verifier, node)


async def test_an_answer_whose_evidence_is_yet_to_come_is_not_silence(verifier) -> None:
    """Manifests may take a while."""
    node = await verifier.enrol()
    await verifier.attest(node)
    session = await pushed(verifier, node)
    await node.answer_call(verifier.client(node), session)
    verifier.clock.forward(verifier.service.config.calls.answer_s + 1)
    await sweep.end_expired(verifier.service)
    assert await live(verifier, node)


async def test_a_call_without_a_walk_that_is_not_answered_revokes_nothing(verifier) -> None:
    """It does not ask for what the result says."""
    node = await verifier.enrol()
    await verifier.attest(node)
    await verifier.call(node, walk=False)
    verifier.clock.forward(verifier.service.config.calls.answer_s + 1)
    await sweep.end_expired(verifier.service)
    assert await live(verifier, node)


async def test_a_node_that_drops_walks_all_the_time_is_contraindicated(verifier) -> None:
    """Row 4 of what was tried: it answers reads, drops two walks, and answers the third."""
    node = await verifier.enrol()
    found = []
    for _ in range(6):
        await drop(verifier, node)
        await drop(verifier, node)
        found.append(await verifier.attest(node))
    assert [executables(claims) for claims in found] == [-2] * 4 + [96] * 2
    assert codes(found[-1]) == ["weights.walk.missed"]


# Made up for.


async def connected(verifier, node) -> Any:
    """A channel without a socket."""
    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
    verifier.app[CALL_SCHEDULER].channels._queues[node.id] = queue
    if verifier.service.db.shared:
        await verifier.app[CALL_SCHEDULER].channels._note_opened(node.id)
    return queue


async def ticks(verifier, seconds: float) -> None:
    """The caller's clock goes on, second by second."""
    caller = verifier.app[CALL_SCHEDULER]
    for _ in range(int(seconds)):
        verifier.clock.forward(1)
        if verifier.service.db.shared:
            await verifier.service.duties.renew()
        await caller.tick()


async def planned(verifier, node) -> Any:
    """A caller that does nothing by itself, whose plan has the node."""
    for task in asyncio.all_tasks():
        if task.get_name() in ("calls", "duties", "sweep"):
            task.cancel()
    if verifier.service.db.shared:
        await verifier.service.duties.renew()
    caller = verifier.app[CALL_SCHEDULER]
    await caller.refresh()
    caller.plan.needs_walk.clear()
    caller.plan.set(node.id, verifier.clock.ticks + 3000)
    return caller


async def test_a_missed_call_is_made_up_for_within_seconds_with_a_walk(verifier) -> None:
    """So an honest hiccup costs seconds."""
    node = await verifier.enrol()
    queue = await connected(verifier, node)
    caller = await planned(verifier, node)
    await drop(verifier, node)
    await ticks(verifier, SOON_S + 1)
    call = queue.get_nowait()
    (row,) = await verifier.rows(
        "SELECT count(*) AS n FROM pool WHERE session_id = ? AND kind = 'walk'", call["session"]
    )
    assert row["n"] == 1
    assert node.id not in caller.make_ups


async def test_a_make_up_call_waits_for_its_node_and_is_not_missed_meanwhile(verifier) -> None:
    """Otherwise a node that is away would miss call after call within seconds."""
    node = await verifier.enrol()
    await planned(verifier, node)
    await drop(verifier, node)
    await ticks(verifier, 120)
    (row,) = await verifier.rows("SELECT count FROM incidents")
    assert row["count"] == 1
    queue = await connected(verifier, node)
    await ticks(verifier, SOON_S + 2)
    assert not queue.empty()


async def test_a_node_that_missed_its_call_for_want_of_a_channel_is_called_when_it_is_back(verifier) -> None:
    """Within seconds, not at its next ordinary moment."""
    node = await verifier.enrol()
    caller = await planned(verifier, node)
    caller.plan.set(node.id, verifier.clock.ticks + 1)
    # Long after any outage of ours.
    verifier.service.duties._healthy_since -= 1000
    await ticks(verifier, 3)
    (row,) = await verifier.rows("SELECT count FROM incidents")
    assert row["count"] == 1
    queue = await connected(verifier, node)
    await ticks(verifier, SOON_S + 2)
    assert not queue.empty()


# Void.


async def answer_pushed(verifier, node, call: dict[str, Any]) -> dict[str, Any]:
    models = msgspec.convert(call["challenge"].models, tuple[ModelChallenge, ...])
    return await attest(verifier, node, Session(call["session"], base64.b64decode(call["nonce"]), models))


async def test_a_call_that_waits_while_we_fail_is_void_and_made_again(verifier) -> None:
    """Row 8 of what was tried: four restarts or locks in a row are held against nobody."""
    node = await verifier.enrol()
    await verifier.attest(node)
    queue = await connected(verifier, node)
    await planned(verifier, node)
    for _ in range(4):
        await verifier.call(node)
        verifier.service.duties.note_failure()
        verifier.clock.forward(11)
        verifier.service.duties.note_success(verifier.clock.ticks)
        verifier.clock.forward(verifier.service.config.sessions.lifetime_s)
        await sweep.end_expired(verifier.service)
        while not queue.empty():
            # On PostgreSQL the call itself was pushed too.
            queue.get_nowait()
        await ticks(verifier, SOON_S + 1)
        claims = await answer_pushed(verifier, node, queue.get_nowait())
        assert claims["ear_status"] == "affirming"
    assert await verifier.rows("SELECT id FROM incidents") == []
    assert await verifier.rows("SELECT seq FROM walks WHERE record LIKE '%missed\",%'") == []


async def test_a_call_from_before_an_outage_of_ours_revokes_nothing(verifier) -> None:
    """Its answer may have been lost with us."""
    node = await verifier.enrol()
    await verifier.attest(node)
    await verifier.call(node)
    verifier.service.duties.note_failure()
    verifier.clock.forward(11)
    verifier.service.duties.note_success(verifier.clock.ticks)
    verifier.clock.forward(verifier.service.config.calls.answer_s)
    await sweep.end_expired(verifier.service)
    assert await live(verifier, node)


# Many at once.


async def fleet(verifier) -> list[Any]:
    """Six nodes of three operators, each with a result."""
    found = [await verifier.enrol(operator=f"o{number % 3}") for number in range(6)]
    for node in found:
        await verifier.attest(node)
    verifier.clock.forward(verifier.service.config.sessions.lifetime_s + 1)
    return found


async def missed(verifier) -> list[Any]:
    return await verifier.rows("SELECT seq FROM walks WHERE record LIKE '%missed\",%'")


async def test_a_silence_of_most_nodes_is_not_held_against_them(verifier) -> None:
    """A network of ours that loses packets: their results live as long as they would have."""
    nodes = await fleet(verifier)
    for node in nodes[:4]:
        await verifier.call(node)
    verifier.clock.forward(verifier.service.config.calls.answer_s + 1)
    await sweep.end_expired(verifier.service)
    assert [await live(verifier, node) for node in nodes] == [True] * 6
    verifier.clock.forward(verifier.service.config.sessions.lifetime_s + 11)
    await sweep.end_expired(verifier.service)
    assert await missed(verifier) == []
    assert await verifier.rows("SELECT id FROM incidents") == []


async def test_a_silence_of_one_operators_nodes_is_theirs(verifier) -> None:
    """However many they are, if others answer."""
    nodes = await fleet(verifier)
    for node in nodes[:3]:
        await verifier.attest(node)
    ours = [await verifier.enrol(operator="o0") for _ in range(4)]
    for node in ours:
        await verifier.attest(node)
        await verifier.call(node)
    verifier.clock.forward(verifier.service.config.calls.answer_s + 1)
    await sweep.end_expired(verifier.service)
    assert [await live(verifier, node) for node in ours] == [False] * 4


async def test_channels_that_end_together_are_not_held_against_their_nodes(verifier) -> None:
    """A proxy before us is restarted, and takes its time."""
    nodes = await fleet(verifier)
    caller = await planned(verifier, nodes[0])
    for node in nodes:
        await connected(verifier, node)
        caller.plan.set(node.id, verifier.clock.ticks + 60)
    for node in nodes:
        del caller.channels._queues[node.id]
        await caller.channels._note_ended(node.id)
    verifier.service.duties._healthy_since -= 1000
    await ticks(verifier, 90)
    assert [await live(verifier, node) for node in nodes] == [True] * 6
    assert await missed(verifier) == []
    assert await verifier.rows("SELECT id FROM incidents") == []
    queues = [await connected(verifier, node) for node in nodes]
    await ticks(verifier, SOON_S + 2)
    assert not any(queue.empty() for queue in queues)


async def test_one_channel_that_ends_alone_is_held_against_its_node(verifier) -> None:
    """After the grace period."""
    nodes = await fleet(verifier)
    caller = await planned(verifier, nodes[0])
    for node in nodes:
        await connected(verifier, node)
        caller.plan.set(node.id, verifier.clock.ticks + 3000)
    caller.plan.set(nodes[0].id, verifier.clock.ticks + 60)
    del caller.channels._queues[nodes[0].id]
    await caller.channels._note_ended(nodes[0].id)
    verifier.service.duties._healthy_since -= 1000
    await ticks(verifier, 150)
    assert [await live(verifier, node) for node in nodes] == [False] + [True] * 5


async def test_a_node_in_quarantine_is_called_without_walks_until_it_is_released(verifier) -> None:
    """It would use up challenges that others need.  Its first call afterwards has one again."""
    node = await verifier.enrol()
    queue = await connected(verifier, node)
    caller = await planned(verifier, node)

    async def kinds() -> set[str]:
        await caller.call(node.id, walk=True)
        call = queue.get_nowait()
        assert queue.empty()
        rows = await verifier.rows("SELECT kind FROM pool WHERE session_id = ?", call["session"])
        await answer_pushed(verifier, node, call)
        return {row["kind"] for row in rows}

    async with transaction(verifier.service.db) as tx:
        draft = report_draft("settlement-mismatch", "far too many tokens")
        incident = await stored_incidents.take_finding(tx, draft, node.id, None, verifier.clock.ms)
    assert await kinds() == {"read"}
    async with transaction(verifier.service.db) as tx:
        await stored_incidents.take_step(
            tx, incident, "release", "kim", "seen", verifier.clock.ms, two_person=False
        )
    assert await kinds() == {"read", "walk"}
