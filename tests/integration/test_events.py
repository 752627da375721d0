"""Events and calls as streams: heartbeat, resume, reset; calls at once, answers on the clock."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from attester.sse import Event, read_events
from fixtures.transactions import transaction
from verifier.service.calls import CALL_SCHEDULER
from verifier.store import events

STORES = ("sqlite", "postgres")


async def take(verifier, path: str, count: int, *, kinds: set[str] | None = None) -> list[Event]:
    found: list[Event] = []
    async with asyncio.timeout(10), verifier.http.get(verifier.url + path) as response:
        assert response.status == 200
        async with aclosing(read_events(response.content, max_size=1 << 20)) as stream:
            async for event in stream:
                if kinds is None or event.kind in kinds:
                    found.append(event)
                if len(found) == count:
                    break
    return found


async def test_a_heartbeat_every_second(verifier) -> None:
    """Silence means that something is broken, so there is none."""
    start = asyncio.get_running_loop().time()
    await take(verifier, "/api/v1/events", 3, kinds={"heartbeat"})
    assert asyncio.get_running_loop().time() - start < 4


async def test_a_result_is_an_event_with_its_token(verifier) -> None:
    """Resuming from a number gives everything after it, in order, once."""
    node = await verifier.enrol()
    await verifier.attest(node)
    await verifier.attest(node)
    found = await take(verifier, "/api/v1/events?after=0", 2, kinds={"result"})
    numbers = [int(event.id) for event in found]
    assert numbers == sorted(numbers)
    (again,) = await take(verifier, f"/api/v1/events?after={numbers[0]}", 1, kinds={"result"})
    assert again == found[1]


async def test_an_event_comes_at_once(verifier) -> None:
    """Pushed, not found at the next heartbeat: routers are promised a second, slow machines two."""
    node = await verifier.enrol()
    waiting = asyncio.create_task(take(verifier, "/api/v1/events", 1, kinds={"result"}))
    await asyncio.sleep(0.3)
    start = asyncio.get_running_loop().time()
    await verifier.attest(node)
    await waiting
    assert asyncio.get_running_loop().time() - start < 2


async def test_a_number_from_the_future_is_a_reset(verifier) -> None:
    """Numbers we never gave (another database, a restored one): only a fresh snapshot helps."""
    (event,) = await take(verifier, "/api/v1/events?after=999999", 1)
    assert event.kind == "reset"


async def test_a_forgotten_number_is_a_reset(verifier) -> None:
    """What was pruned cannot be resumed."""
    node = await verifier.enrol()
    for _ in range(3):
        await verifier.attest(node)
    async with transaction(verifier.service.db) as tx:
        await events.prune(tx, verifier.clock.ms + 1, 1000)
    (event,) = await take(verifier, "/api/v1/events?after=1", 1)
    assert event.kind == "reset"


@pytest.mark.parametrize("after", ["x", "-1", "1e3", "9" * 30, "%D9%A3"])
async def test_a_broken_number_is_400(verifier, after: str) -> None:
    """Only plain decimal digits."""
    status, _ = await verifier.get(f"/api/v1/events?after={after}")
    assert status == 400


async def test_what_another_process_did_is_followed_too(verifier) -> None:
    """The command line writes to the same database; routers hear of it within a second."""
    waiting = asyncio.create_task(take(verifier, "/api/v1/events", 1, kinds={"node"}))
    await asyncio.sleep(0.3)
    async with transaction(verifier.service.db) as tx:
        await events.append(tx, verifier.clock.ms, "node", {"node": "x", "state": "retired"})
    (event,) = await waiting
    assert '"retired"' in event.data


async def test_a_connected_node_is_called_and_its_answers_are_timed(verifier) -> None:
    """The call comes down the open channel; the verifier's clock measures the answers."""
    node = await verifier.enrol()
    client = verifier.client(node)
    caller = verifier.app[CALL_SCHEDULER]
    async with asyncio.timeout(10), aclosing(client.calls(node.id)) as calls:
        waiting = asyncio.ensure_future(anext(calls))
        await asyncio.sleep(0.2)
        assert node.id in caller.connected
        await caller.call(node.id, walk=True)
        session = await waiting
        answers = await node.answer_call(client, session, wait=lambda: verifier.clock.forward(2.5))
        data = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
        claims = await verifier.submit(session, data, node)
    assert claims["ear_status"] == "affirming"
    (row,) = await verifier.rows("SELECT answer_ms FROM sessions WHERE id = ?", session.id)
    assert row["answer_ms"] == 2500
    measured = claims["submods"]["model/example/tiny"]["ear_verifier_claims"]["measured"]
    assert measured["walk_source"] == "engine"
    assert measured["walk_at_ms"] == verifier.clock.ms


async def test_answers_to_a_call_count_once(verifier) -> None:
    """The first answers are the ones; a second try is refused."""
    from attester.errors import VerifierError

    node = await verifier.enrol()
    session = await verifier.call(node)
    await verifier.client(node).answer_call(session, node.answers(session))
    with pytest.raises(VerifierError) as refused:
        await verifier.client(node).answer_call(session, node.answers(session))
    assert refused.value.status == 409


async def test_another_node_cannot_answer_a_call(verifier) -> None:
    """Even one of the same operator."""
    from attester.errors import VerifierError

    node, other = await verifier.enrol(), await verifier.enrol()
    session = await verifier.call(node)
    with pytest.raises(VerifierError) as refused:
        await verifier.client(other).answer_call(session, node.answers(session))
    assert refused.value.status == 403


async def test_a_newer_channel_takes_the_place_of_the_old(verifier) -> None:
    """After a reconnect the node is called on the new channel."""
    node = await verifier.enrol()
    caller = verifier.app[CALL_SCHEDULER]
    first, second = verifier.client(node).calls(node.id), verifier.client(node).calls(node.id)

    async def drain() -> None:
        async for _ in first:
            pass

    async with asyncio.timeout(8), aclosing(second):
        early = asyncio.create_task(drain())
        await asyncio.sleep(0.2)
        late = asyncio.ensure_future(anext(second))
        await asyncio.sleep(0.2)
        await caller.call(node.id, walk=False)
        assert (await late).models[0].read is not None
        # The old one ends instead of lingering.
        await early
