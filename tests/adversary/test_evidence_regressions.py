"""Attacks that once worked, each kept out by its defence."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from attester.errors import VerifierError
from attester.kinds import write_submod
from fixtures.simulator import MODEL, SimulatedNode
from fixtures.transactions import transaction
from verifier import results
from verifier.service.calls import CALL_SCHEDULER
from verifier.service.sweep import sweep
from verifier.store import nodes

SUBMOD = f"model/{MODEL}"


def executables(result: dict[str, Any]) -> int:
    value: int = result["submods"][SUBMOD]["ear_trustworthiness_vector"]["executables"]
    return value


async def announce(verifier, node: SimulatedNode) -> dict[str, Any]:
    session = await verifier.client(node).open_session()
    return await verifier.submit(session, node.evidence(session, iat=verifier.clock.seconds), node)


async def garbage_call(verifier, node: SimulatedNode) -> dict[str, Any]:
    """Garbage to the call at once, the truth in the evidence later."""
    session = await verifier.call(node)
    answers = node.answers(session)
    read, walk = answers[MODEL]
    wrong = msgspec.structs.replace(walk, answers=tuple(bytes(32) for _ in walk.answers))
    await verifier.client(node).answer_call(session, {MODEL: (read, wrong)})
    data = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
    return await verifier.submit(session, data, node)


async def test_a_cancelled_request_leaves_no_transaction_open(verifier) -> None:
    """Clients that go away at any moment must not wedge the database."""

    async def touch() -> None:
        await verifier.service.db.write(lambda tx: tx.execute("UPDATE nodes SET state = state"))

    for rounds in range(60):
        task = asyncio.create_task(touch())
        for _ in range(rounds % 12):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await touch()
    assert (await verifier.attest(await verifier.enrol()))["ear_status"] == "affirming"


async def test_a_client_that_hangs_up_does_not_wedge_the_service(verifier) -> None:
    """The same over sockets: aborted requests, then an honest one."""
    await verifier.enrol()
    host, _, port = verifier.url.removeprefix("http://").rpartition(":")
    for number in range(60):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /api/v1/nodes HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.0005 * (number % 6))
        writer.transport.abort()
    status, _ = await verifier.get("/api/v1/nodes")
    assert status == 200


async def test_an_announced_walk_does_not_mend_a_wrong_called_one(verifier) -> None:
    """Only a right answer to a call does."""
    node = await verifier.enrol()
    await verifier.attest(node)
    assert executables(await garbage_call(verifier, node)) == 96
    assert executables(await announce(verifier, node)) == 96
    assert executables(await verifier.attest(node)) == -2


async def test_instant_garbage_does_not_make_late_walks_timely(verifier) -> None:
    """The median is over right walks only."""
    node = await verifier.enrol()
    for _ in range(3):
        await garbage_call(verifier, node)
    session = await verifier.call(node)
    answers = node.answers(session)
    verifier.clock.forward(40)
    await verifier.client(node).answer_call(session, answers)
    data = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
    assert executables(await verifier.submit(session, data, node)) == -33


async def test_a_node_does_not_choose_the_class_it_is_timed_by(verifier) -> None:
    """Evidence that names another class than the enrolment is contraindicated."""
    node = await verifier.enrol(SimulatedNode(verifier.model_folder, hardware_class="nvidia-h100-80g"))
    node.hardware_class = "cpu"
    result = await verifier.attest(node)
    assert result["submods"]["platform"]["ear_trustworthiness_vector"]["configuration"] == 96
    # Timed as what it is: the walk of so small a model cannot be told from a fetched one.
    assert executables(result) == -33


async def test_leaving_out_the_capabilities_does_not_stop_the_clock(verifier) -> None:
    """Lateness needs nothing from the evidence."""
    node = await verifier.enrol()
    session = await verifier.call(node)
    answers = node.answers(session)
    verifier.clock.forward(60)
    await verifier.client(node).answer_call(session, answers)
    claims = node.claims(session.nonce, answers)
    del claims["platform"]["capabilities"]
    raw = {name: write_submod(submod) for name, submod in claims.items()}
    data = node.token(session.nonce, raw, iat=verifier.clock.seconds).sign(node.key)
    assert executables(await verifier.submit(session, data, node)) == -33


async def test_connecting_does_not_bring_a_call(verifier) -> None:
    """The moment was drawn before, and a new channel does not change it."""
    node = await verifier.enrol()
    caller = verifier.app[CALL_SCHEDULER]
    await caller.refresh()
    due = caller.plan.moment(node.id)
    for _ in range(3):
        stream = verifier.client(node).calls(node.id)
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
        assert node.id in caller.connected
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await caller.refresh()
    assert caller.plan.moment(node.id) == due
    assert await verifier.rows("SELECT * FROM sessions") == []


async def test_not_being_connected_is_missing_a_call(verifier) -> None:
    """A due call that finds no channel counts, and costs the pool nothing."""
    node = await verifier.enrol()
    await verifier.attest(node)
    free = await verifier.rows("SELECT count(*) AS n FROM pool WHERE session_id IS NULL")
    for _ in range(3):
        await verifier.app[CALL_SCHEDULER].call(node.id, walk=True)
        verifier.clock.forward(1)
    assert await verifier.rows("SELECT count(*) AS n FROM pool WHERE session_id IS NULL") == free
    assert executables(await verifier.attest(node, walk=False)) == 96


async def test_announced_walks_do_not_reset_missed_calls(verifier) -> None:
    """Misses are counted among calls."""
    node = await verifier.enrol()
    await verifier.attest(node)
    for _ in range(3):
        await verifier.app[CALL_SCHEDULER].call(node.id, walk=True)
        verifier.clock.forward(1)
        await announce(verifier, node)
        verifier.clock.forward(1)
    assert executables(await announce(verifier, node)) == 96


async def test_a_read_that_waits_does_not_swallow_the_walk_that_is_due(verifier) -> None:
    """The next call carries it."""
    node = await verifier.enrol()
    caller = verifier.app[CALL_SCHEDULER]
    stream = verifier.client(node).calls(node.id)
    async with asyncio.timeout(10):
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
        await caller.refresh()
        # As if it had had its first walk.
        caller.plan.needs_walk.clear()
        await caller.call(node.id, walk=False)
        first = await waiting
        await caller.call(node.id, walk=True)
        again = await anext(stream)
        assert (again.id, again.models[0].walk) == (first.id, None)
        answers = node.answers(first)
        await verifier.client(node).answer_call(first, answers)
        data = node.evidence(first, iat=verifier.clock.seconds, answers=answers)
        await verifier.submit(first, data, node)
        await caller.call(node.id, walk=False)
        call = await anext(stream)
        # The walk is told in return for the read.
        (told,) = await verifier.client(node).answer_call(call, node.answers(call))
        assert told.walk is not None
        await stream.aclose()


async def test_a_walk_of_the_old_reference_does_not_count_for_the_new(verifier, tmp_path) -> None:
    """What was shown of other weights is void."""
    from fixtures.published import publish
    from fixtures.simulator import tiny_model

    node = await verifier.enrol()
    await verifier.attest(node)
    folder = tiny_model(tmp_path / "next")
    (folder / "config.json").write_text('{"layers": 2}')
    await publish(verifier.service.db, verifier.service.pool_key, folder, verifier.clock.ms)
    node.folder = folder
    result = await verifier.attest(node, walk=False)
    assert "executables" not in result["submods"][SUBMOD]["ear_trustworthiness_vector"]


async def test_one_node_cannot_drain_the_pool(verifier) -> None:
    """Opening and dropping sessions is bounded by the hour."""
    node = await verifier.enrol()
    client = verifier.client(node)
    for _ in range(20):
        session = await client.open_session()
        url = f"{verifier.url}/challenge-response/v1/session/{session.id}"
        async with verifier.http.delete(url) as response:
            assert response.status == 204
        verifier.clock.forward(2)
    with pytest.raises(VerifierError) as refused:
        await client.open_session()
    assert refused.value.code == "request.too-often"
    assert len(await verifier.rows("SELECT * FROM pool WHERE session_id IS NOT NULL")) == 40


async def test_old_evidence_does_not_come_to_life_when_its_result_is_pruned(verifier) -> None:
    """A session that had its result never gives another."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    data = node.evidence(session, iat=verifier.clock.seconds)
    await verifier.submit(session, data, node)
    verifier.clock.forward(31 * 86400)
    await sweep(verifier.service)
    assert await verifier.rows("SELECT * FROM appraisals") == []
    # The session is deleted with its result: there is none for the evidence, and no nonce to use again.
    status, body = await verifier.post(session, data)
    assert (status, body["type"].rpartition("#")[2]) == (404, "request.not-found")
    assert await verifier.rows("SELECT * FROM appraisals") == []


async def test_a_node_retired_while_it_is_appraised_is_not_affirmed(verifier) -> None:
    """Its state is read again in the transaction that inserts the result."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    data = node.evidence(session, iat=verifier.clock.seconds)
    evaluate = verifier.service.engine.evaluate

    async def retire_meanwhile(bundle: Any, given: bytes) -> Any:
        async with transaction(verifier.service.db) as tx:
            await nodes.retire(tx, node.id, verifier.clock.ms)
        return await evaluate(bundle, given)

    object.__setattr__(verifier.service.engine, "evaluate", retire_meanwhile)
    result = await verifier.submit(session, data, node)
    assert result["submods"]["platform"]["ear_trustworthiness_vector"]["instance-identity"] == 96
    assert await verifier.rows("SELECT * FROM endpoints") == []
    assert await verifier.rows("SELECT * FROM events WHERE type = 'result'") == []


async def test_a_key_roll_revokes_results_of_the_old_key(verifier) -> None:
    """A result names the key it is for."""
    from attester.cose import PrivateKey

    node = await verifier.enrol()
    good = await verifier.attest(node)
    await verifier.client(node).roll(node.id, PrivateKey.generate())
    _, status = await verifier.get(f"/api/v1/results/{good['jti']}")
    assert status["state"] == "revoked"


async def test_the_answer_clock_stops_at_the_last_byte(verifier) -> None:
    """What the verifier does afterwards is not the node's time."""
    node = await verifier.enrol()
    session = await verifier.call(node)
    answers = node.answers(session)
    verifier.clock.forward(1)
    authenticate = verifier.service.authenticate

    async def slowly(*arguments: Any) -> Any:
        verifier.clock.forward(7)
        return await authenticate(*arguments)

    object.__setattr__(verifier.service, "authenticate", slowly)
    await verifier.client(node).answer_call(session, answers)
    (row,) = await verifier.rows("SELECT answer_ms FROM sessions WHERE id = ?", session.id)
    assert row["answer_ms"] == 1000


async def test_a_long_string_does_not_make_a_long_result(verifier) -> None:
    """What a node writes is bounded where it is shown: every reader can read every result."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    claims = node.claims(session.nonce, node.answers(session))
    raw: dict[str, Any] = {name: write_submod(submod) for name, submod in claims.items()}
    raw["platform"][-80002]["x" * 500_000 + "\x1b[2J"] = 1
    data = node.token(session.nonce, raw, iat=verifier.clock.seconds).sign(node.key)
    result = await verifier.submit(session, data, node)
    (row,) = await verifier.rows("SELECT token FROM appraisals")
    assert len(row["token"]) < 8192 < results.MAX_RESULT
    text = str(result)
    assert "\x1b" not in text
    assert result["submods"]["platform"]["ear_status"] == "contraindicated"


async def test_the_largest_runtime_is_appraised(verifier) -> None:
    """A policy worker has room for all that the profile allows."""
    big = {f"argument-{i:03}" + "x" * 100: "v" * 512 for i in range(256)}
    node = await verifier.enrol(SimulatedNode(verifier.model_folder, arguments=dict(big)))
    result = await verifier.attest(node)
    assert result["submods"]["platform"]["ear_trustworthiness_vector"]["configuration"] == 2


async def test_a_manifest_without_the_bytes_behind_it_speaks_for_nobody(verifier, tmp_path) -> None:
    """Public digests, repeated, must not confirm suspicion against others."""
    from attester.client import Session
    from fixtures.simulator import tiny_model

    altered = tiny_model(tmp_path / "altered")
    (altered / "config.json").write_text("{}")
    suspect = await verifier.enrol(SimulatedNode(altered), operator="suspect")
    await verifier.attest(suspect, walk=False)
    (incident,) = await verifier.rows("SELECT state FROM incidents")
    assert incident["state"] == "suspected"
    mallory = await verifier.enrol(operator="mallory")
    async with verifier.http.post(verifier.url + "/challenge-response/v1/newSession") as response:
        body = await response.json(content_type=None)
        location = response.headers["Location"]
    import base64

    session = Session(location.rpartition("/")[2], base64.b64decode(body["nonce"]), ())
    await verifier.submit(session, mallory.evidence(session, iat=verifier.clock.seconds), mallory)
    (incident,) = await verifier.rows("SELECT state FROM incidents")
    assert incident["state"] == "suspected"


async def test_a_broken_authorization_byte_is_401(verifier) -> None:
    """Bytes that are no text, in a header."""
    host, _, port = verifier.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"DELETE /api/v1/nodes/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\r\n\r\n")
    async with asyncio.timeout(5):
        assert b" 401 " in await reader.readline()
    writer.close()


async def test_a_compressed_body_is_refused(verifier) -> None:
    """Nothing is inflated for a stranger."""
    async with verifier.http.post(
        verifier.url + "/api/v1/nodes", data=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}
    ) as response:
        assert response.status == 400


async def test_ten_minor_incidents_within_the_hour_are_flagged(verifier) -> None:
    """Many small failures get a person's eye, and hold nobody by themselves."""
    node = await verifier.enrol()
    for _ in range(10):
        await verifier.app[CALL_SCHEDULER].call(node.id, walk=True)
        verifier.clock.forward(1)
    (incident,) = await verifier.rows("SELECT state, count FROM incidents")
    assert incident == {"state": "flagged", "count": 10}
    _, body = await verifier.get(f"/api/v1/nodes/{node.id}")
    assert body["quarantined_by"] is None
