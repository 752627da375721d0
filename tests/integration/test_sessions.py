"""The session API, over a real socket: one nonce, one result, nothing burnt twice."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from attester.client import Session
from attester.errors import VerifierError
from attester.evidence import MEDIA_TYPE
from fixtures.simulator import MODEL, SimulatedNode
from fixtures.transactions import transaction
from verifier.store import sessions
from verifier.store.database import ConflictError

STORES = ("sqlite", "postgres")


async def test_an_honest_node_becomes_affirming_when_called(verifier) -> None:
    """Manifest, read and a called walk right: every required claim is affirming."""
    node = await verifier.enrol()
    claims = await verifier.attest(node)
    assert claims["ear_status"] == "affirming"
    model = claims["submods"][f"model/{MODEL}"]
    assert model["ear_trustworthiness_vector"] == {"file-system": 2, "executables": -2}
    assert model["ear_verifier_claims"]["assurance"] == "challenged"
    assert claims["submods"]["platform"]["ear_verifier_claims"]["assurance"] == "declared"


async def test_a_result_says_whose_node_it_is(verifier) -> None:
    """By the verifier's own record, and on `platform` alone."""
    node = await verifier.enrol(operator="acme")
    enrolled = verifier.clock.seconds
    verifier.clock.forward(40)
    claims = await verifier.attest(node)
    said = {name: submod["ear_verifier_claims"].get("node") for name, submod in claims["submods"].items()}
    record = {"operator": "acme", "enrolled": enrolled, "state": "active", "hardware_class": "cpu"}
    assert said == {"platform": record, f"model/{MODEL}": None}


async def test_a_result_says_the_state_of_the_moment_it_is_signed(verifier, monkeypatch) -> None:
    """Also where that changed after its evidence came in."""
    node = await verifier.enrol()
    evaluate = verifier.service.engine.evaluate

    async def meanwhile(*given: Any) -> Any:
        async with transaction(verifier.service.db) as tx:
            await tx.execute("UPDATE nodes SET state = 'probation' WHERE id = ?", node.id)
        return await evaluate(*given)

    monkeypatch.setattr(verifier.service.engine, "evaluate", meanwhile)
    claims = await verifier.attest(node)
    assert claims["submods"]["platform"]["ear_verifier_claims"]["node"]["state"] == "probation"


async def test_a_session_carries_the_nonce_as_issued_and_its_evidence(verifier) -> None:
    """The session object has Veraison's fields and encodings."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    status, body = await verifier.get(f"/challenge-response/v1/session/{session.id}")
    assert (status, body["status"]) == (200, "waiting")
    assert base64.b64decode(body["nonce"]) == session.nonce
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    await verifier.submit(session, evidence, node)
    _, body = await verifier.get(f"/challenge-response/v1/session/{session.id}")
    assert body["status"] == "complete"
    assert base64.b64decode(body["evidence"]["value"]) == evidence
    assert body["result"].count(".") == 2


async def test_the_same_evidence_a_hundred_times_at_once_gives_one_result(verifier) -> None:
    """Exactly one appraisal is kept, and everyone is given it."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    answers = await asyncio.gather(*(verifier.post(session, evidence) for _ in range(100)))
    assert {status for status, _ in answers} == {200}
    assert len({body["result"] for _, body in answers}) == 1
    assert len(await verifier.rows("SELECT id FROM appraisals")) == 1


async def test_other_evidence_for_a_complete_session_is_409(verifier) -> None:
    """A session has one result; other bytes do not get it, and change nothing."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    await verifier.submit(session, node.evidence(session, iat=verifier.clock.seconds), node)
    status, body = await verifier.post(session, node.evidence(session, iat=verifier.clock.seconds))
    assert (status, body["type"].rpartition("#")[2]) == (409, "session.closed")


async def test_the_database_refuses_a_repeated_nonce(verifier) -> None:
    """Not a read followed by a write: the constraint itself says no."""
    arguments = {
        "node_id": None,
        "channel": "open",
        "nonce": b"n" * 32,
        "now_ms": verifier.clock.ms,
        "lifetime_ms": 1000,
        "wants": (),
        "references": {},
    }
    async with transaction(verifier.service.db) as tx:
        await sessions.open_session(tx, **arguments)
    with pytest.raises(ConflictError):
        async with transaction(verifier.service.db) as tx:
            await sessions.open_session(tx, **arguments)


async def test_a_callers_nonce_is_accepted_once(verifier) -> None:
    """A background check's nonce goes through the same constraint: when evidence is given for it."""
    path = "/challenge-response/v1/newSession?nonce=" + base64.urlsafe_b64encode(b"x" * 32).decode()
    node = await verifier.enrol()
    opened = []
    for _ in range(2):
        async with verifier.http.post(verifier.url + path) as response:
            assert response.status == 201
            opened.append(Session(response.headers["Location"].rpartition("/")[2], b"x" * 32, ()))
        verifier.clock.forward(1)
    evidence = node.evidence(opened[0], iat=verifier.clock.seconds)
    assert (await verifier.post(opened[0], evidence))[0] == 200
    status, body = await verifier.post(opened[1], evidence)
    assert (status, body["type"].rpartition("#")[2]) == (409, "request.replayed")
    async with verifier.http.post(verifier.url + path) as third:
        assert third.status == 409


async def sealed_session(verifier, query: str = "") -> Session:
    async with verifier.http.post(f"{verifier.url}/challenge-response/v1/newSession?{query}") as response:
        body = await response.json(content_type=None)
        return Session(response.headers["Location"].rpartition("/")[2], base64.b64decode(body["nonce"]), ())


async def test_a_strangers_session_costs_no_row_until_evidence_verifies(verifier) -> None:
    """It can be looked at all the same; only a result makes it a row, and only one."""
    node = await verifier.enrol()
    session = await sealed_session(verifier)
    status, shown = await verifier.get(f"/challenge-response/v1/session/{session.id}")
    assert (status, shown["status"], base64.b64decode(shown["nonce"])) == (200, "waiting", session.nonce)
    stranger = SimulatedNode(verifier.model_folder, audience=node.audience, ueid=node.ueid)
    status, _ = await verifier.post(session, stranger.evidence(session, iat=verifier.clock.seconds))
    assert status == 403
    assert await verifier.rows("SELECT id FROM sessions") == []
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    outcomes = await asyncio.gather(*(verifier.post(session, evidence) for _ in range(20)))
    assert {status for status, _ in outcomes} == {200}
    assert len({body["result"] for _, body in outcomes}) == 1
    assert await verifier.rows("SELECT id, status FROM sessions") == [
        {"id": session.id, "status": "complete"}
    ]


async def test_a_strangers_session_expires_and_can_be_dropped(verifier) -> None:
    """As any other: 410 afterwards."""
    node = await verifier.enrol()
    late, dropped = await sealed_session(verifier), await sealed_session(verifier)
    async with verifier.http.delete(f"{verifier.url}/challenge-response/v1/session/{dropped.id}") as response:
        assert response.status == 204
    status, _ = await verifier.post(dropped, node.evidence(dropped, iat=verifier.clock.seconds))
    assert status == 410
    assert await verifier.rows("SELECT id FROM sessions") == []
    verifier.clock.forward(121)
    status, _ = await verifier.post(late, node.evidence(late, iat=verifier.clock.seconds))
    assert status == 410


async def test_a_stranger_cannot_use_up_the_nonce_of_somebody_else(verifier) -> None:
    """By a session of its own with that nonce, which it drops: only evidence uses a nonce."""
    node, nonce = await verifier.enrol(), "bm9uY2Ugb2Ygc29tZWJvZHkgZWxzZQ"
    ours, theirs = [await sealed_session(verifier, f"nonce={nonce}") for _ in range(2)]
    async with verifier.http.delete(f"{verifier.url}/challenge-response/v1/session/{theirs.id}"):
        pass
    status, _ = await verifier.post(ours, node.evidence(ours, iat=verifier.clock.seconds))
    assert status == 200


@pytest.mark.parametrize("change", range(0, 100, 7))
async def test_a_sealed_session_cannot_be_changed(verifier, change: int) -> None:
    """Neither its nonce nor its time: there is no such session."""
    session = await sealed_session(verifier)
    place = 2 + change % (len(session.id) - 2)
    other = "A" if session.id[place] != "A" else "B"
    changed = session.id[:place] + other + session.id[place + 1 :]
    status, _ = await verifier.get(f"/challenge-response/v1/session/{changed}")
    assert status == 404


async def test_a_background_check_stays_with_its_caller(verifier) -> None:
    """A result for a nonce of the caller's own never becomes the node's result or an event."""
    node = await verifier.enrol()
    path = "/challenge-response/v1/newSession?nonce=" + base64.urlsafe_b64encode(b"y" * 32).decode()
    async with verifier.http.post(verifier.url + path) as response:
        location = response.headers["Location"]
    session = Session(location.rpartition("/")[2], b"y" * 32, ())
    claims = await verifier.submit(session, node.evidence(session, iat=verifier.clock.seconds), node)
    assert claims["submods"][f"model/{MODEL}"]["ear_trustworthiness_vector"] == {"file-system": -33}
    status, _ = await verifier.get(f"/api/v1/nodes/{node.id}/result")
    assert status == 404
    assert await verifier.rows("SELECT * FROM events WHERE type = 'result'") == []


async def test_a_stranger_gets_a_nonce_and_no_challenges(verifier) -> None:
    """Challenges cost entries of the pool: only the node's key draws them."""
    await verifier.enrol()
    free = await verifier.rows("SELECT count(*) AS n FROM pool WHERE session_id IS NULL")
    async with verifier.http.post(
        verifier.url + "/challenge-response/v1/newSession?nonceSize=32"
    ) as response:
        body = await response.json(content_type=None)
    assert response.status == 201
    assert "challenge" not in body
    assert await verifier.rows("SELECT count(*) AS n FROM pool WHERE session_id IS NULL") == free


async def test_a_stranger_cannot_name_a_node(verifier) -> None:
    """Asking for a node's session without its key is refused, and burns nothing."""
    node = await verifier.enrol()
    path = f"/challenge-response/v1/newSession?node={node.id}"
    async with verifier.http.post(verifier.url + path) as response:
        assert response.status == 401
    assert await verifier.rows("SELECT * FROM sessions") == []


async def test_asking_again_gives_the_same_session_and_burns_nothing(verifier) -> None:
    """While it waits, a node's session keeps its challenges and its time of issue."""
    node = await verifier.enrol()
    first = await verifier.client(node).open_session()
    verifier.clock.forward(5)
    assert await verifier.client(node).open_session() == first
    (row,) = await verifier.rows("SELECT * FROM sessions")
    assert row["issued_ms"] == verifier.clock.ms - 5000
    assert len(await verifier.rows("SELECT * FROM pool WHERE session_id IS NOT NULL")) == 2


async def test_an_expired_session_takes_no_evidence(verifier) -> None:
    """410, and no result."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    verifier.clock.forward(121)
    status, body = await verifier.post(session, node.evidence(session, iat=verifier.clock.seconds))
    assert (status, body["type"].rpartition("#")[2]) == (410, "session.expired")


async def test_a_dropped_session_frees_no_challenge(verifier) -> None:
    """Deleting a session leaves its nonce and its entries used."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    url = f"{verifier.url}/challenge-response/v1/session/{session.id}"
    async with verifier.http.delete(url) as response:
        assert response.status == 204
    status, _ = await verifier.post(session, node.evidence(session, iat=verifier.clock.seconds))
    assert status == 410
    assert len(await verifier.rows("SELECT * FROM pool WHERE session_id IS NOT NULL")) == 2


@pytest.mark.parametrize("status", ["failed", "gone"])
async def test_the_database_decides_what_a_session_is_worth(verifier, status: str) -> None:
    """Another process may end a session that this one has opened and remembers."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    async with transaction(verifier.service.db) as tx:
        if status == "failed":
            await sessions.drop(tx, session.id, verifier.service.now_ms())
        else:
            await tx.execute("DELETE FROM pool WHERE session_id = ?", session.id)
            await tx.execute("DELETE FROM sessions WHERE id = ?", session.id)
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    with pytest.raises(
        VerifierError, match="expired or was dropped" if status == "failed" else "no such session"
    ):
        await verifier.client(node).submit(session, evidence)


async def test_an_empty_pool_is_said_and_never_passes(verifier) -> None:
    """`challenges.exhausted`: nothing was asked, so nothing is shown."""
    async with transaction(verifier.service.db) as tx:
        await tx.execute("DELETE FROM pool")
    node = await verifier.enrol()
    claims = await verifier.attest(node)
    model = claims["submods"][f"model/{MODEL}"]
    assert model["ear_trustworthiness_vector"] == {"file-system": -33}
    codes = [reason["code"] for reason in model["ear_verifier_claims"]["reasons"]]
    assert codes.count("challenges.exhausted") == 2


async def test_a_node_that_asks_too_often_is_told_when_to_come_back(verifier) -> None:
    """429 with Retry-After, by node."""
    node = await verifier.enrol()
    client = verifier.client(node)
    opened = await asyncio.gather(*(client.open_session() for _ in range(10)))
    assert len({session.id for session in opened}) == 1
    with pytest.raises(VerifierError) as refused:
        await client.open_session()
    assert (refused.value.status, refused.value.code) == (429, "request.too-often")


async def test_an_announced_walk_is_worth_less_than_a_called_one(verifier) -> None:
    """It shows possession, not residence."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    claims = await verifier.submit(session, node.evidence(session, iat=verifier.clock.seconds), node)
    model = claims["submods"][f"model/{MODEL}"]
    assert model["ear_trustworthiness_vector"]["executables"] == -33
    assert [r["code"] for r in model["ear_verifier_claims"]["reasons"]] == ["weights.walk.announced"]


@pytest.mark.parametrize("query", ["nonceSize=7", "nonceSize=65", "nonceSize=x", "nonce=!!", "nonce=QQ"])
async def test_a_bad_nonce_request_is_400(verifier, query: str) -> None:
    """Sizes are bounded, text is decoded strictly."""
    async with verifier.http.post(f"{verifier.url}/challenge-response/v1/newSession?{query}") as response:
        assert response.status == 400
        assert response.content_type == "application/problem+json"


async def test_two_nodes_of_one_operator_have_sessions_of_their_own(verifier) -> None:
    """Another node's session is not mine."""
    mine, yours = await verifier.enrol(), await verifier.enrol(SimulatedNode(verifier.model_folder))
    session = await verifier.client(mine).open_session()
    status, body = await verifier.post(session, yours.evidence(session, iat=verifier.clock.seconds))
    assert (status, body["type"].rpartition("#")[2]) == (403, "evidence.key")


async def post_for_next(verifier, session: Session, evidence: bytes) -> dict[str, Any]:
    async with verifier.http.post(
        f"{verifier.url}/challenge-response/v1/session/{session.id}?next=1",
        data=evidence,
        headers={"Content-Type": MEDIA_TYPE},
    ) as response:
        assert response.status == 200
        found: dict[str, Any] = await response.json(content_type=None)
        return found


async def test_a_result_comes_with_the_next_session_for_a_node_that_asks(verifier) -> None:
    """So the steady state is one round trip: the next evidence answers the challenges that came with the result."""
    node = await verifier.enrol()
    client = verifier.client(node)
    session = await client.open_session()
    seen = {session.nonce}
    for _ in range(3):
        evidence = node.evidence(session, iat=verifier.clock.seconds)
        result, session = await client.submit_and_go_on(session, evidence)
        assert result
        assert session is not None
        assert session.models[0].walk is not None
        seen.add(session.nonce)
        verifier.clock.forward(1)
    assert len(seen) == 4
    assert await client.open_session() == session


async def test_the_same_evidence_again_opens_no_further_session(verifier) -> None:
    """Whoever saw the evidence could otherwise use up challenges of the node."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    evidence = node.evidence(session, iat=verifier.clock.seconds)
    first = await post_for_next(verifier, session, evidence)
    assert await post_for_next(verifier, session, evidence) == first
    verifier.clock.forward(121)
    assert "next" not in await post_for_next(verifier, session, evidence)
    assert len(await verifier.rows("SELECT * FROM sessions")) == 2


async def test_no_next_session_beyond_the_hourly_limit(verifier) -> None:
    """The result is given all the same."""
    node = await verifier.enrol()
    client = verifier.client(node)
    session: Session | None = await client.open_session()
    results = 0
    while session is not None:
        verifier.clock.forward(5)
        evidence = node.evidence(session, iat=verifier.clock.seconds)
        result, session = await client.submit_and_go_on(session, evidence)
        assert result
        results += 1
    assert results == verifier.service.config.sessions.announced_per_hour


async def test_a_called_node_gets_no_next_session(verifier) -> None:
    """The verifier chooses the moment of a call."""
    node = await verifier.enrol()
    session = await verifier.call(node)
    answers = node.answers(session)
    await verifier.client(node).answer_call(session, answers)
    evidence = node.evidence(session, iat=verifier.clock.seconds, answers=answers)
    assert "next" not in await post_for_next(verifier, session, evidence)
