"""Enrolment, key roll, retirement: what a token allows, and what a key proves."""

from __future__ import annotations

import base64

import msgspec
import pytest

from attester.client import VerifierClient
from attester.cose import ED25519, PrivateKey
from attester.errors import VerifierError
from attester.proof import Request
from fixtures.simulator import MODEL, SimulatedNode


def code(refused: pytest.ExceptionInfo[VerifierError]) -> tuple[int | None, str | None]:
    return refused.value.status, refused.value.code


async def test_a_token_enrols_one_node(verifier) -> None:
    """One-time: the second use is refused, and enrols nobody."""
    token = await verifier.token()
    await verifier.client(SimulatedNode(verifier.model_folder)).enrol(token, [MODEL])
    with pytest.raises(VerifierError) as refused:
        await verifier.client(SimulatedNode(verifier.model_folder)).enrol(token, [MODEL])
    assert code(refused) == (403, "token.unusable")
    assert len(await verifier.rows("SELECT * FROM nodes")) == 1


async def test_an_expired_token_is_refused(verifier) -> None:
    """Tokens live as long as was said."""
    token = await verifier.token()
    verifier.clock.forward(3601)
    with pytest.raises(VerifierError) as refused:
        await verifier.client(SimulatedNode(verifier.model_folder)).enrol(token, [MODEL])
    assert code(refused) == (403, "token.unusable")


async def test_a_model_beyond_the_token_is_refused_and_the_token_stays_good(verifier) -> None:
    """A refused enrolment leaves no trace: the token can still be used as it was meant."""
    token = await verifier.token()
    client = verifier.client(SimulatedNode(verifier.model_folder))
    with pytest.raises(VerifierError) as refused:
        await client.enrol(token, ["someone/else"])
    assert code(refused) == (403, "token.unusable")
    assert (await client.enrol(token, [MODEL]))["models"] == [MODEL]


async def test_the_enrolling_key_proves_itself(verifier) -> None:
    """Somebody else's public key cannot be enrolled."""
    mine, theirs = PrivateKey.generate(), PrivateKey.generate()
    body = msgspec.json.encode(
        {
            "token": await verifier.token(),
            "key": base64.b64encode(theirs.public.encode()).decode(),
            "models": [MODEL],
        }
    )
    authority = verifier.url.partition("://")[2]
    header = Request("POST", authority, "/api/v1/nodes", body).authorize(mine, now=verifier.clock.seconds)
    async with verifier.http.post(
        verifier.url + "/api/v1/nodes", data=body, headers={"Authorization": header}
    ) as response:
        assert response.status == 401
    assert await verifier.rows("SELECT * FROM nodes") == []


async def test_a_key_is_enrolled_once(verifier) -> None:
    """The same key under a second name would be two nodes in one."""
    node = await verifier.enrol()
    with pytest.raises(VerifierError) as refused:
        await verifier.client(node).enrol(await verifier.token("another"), [MODEL])
    assert code(refused) == (409, "node.exists")


async def test_ed25519_nodes_attest_too(verifier) -> None:
    """Both algorithms of the profile."""
    node = await verifier.enrol(SimulatedNode(verifier.model_folder, key=PrivateKey.generate(ED25519)))
    assert (await verifier.attest(node))["ear_status"] == "affirming"


async def test_a_node_rolls_its_key(verifier) -> None:
    """Signed by the old key, proved by the new; the old one is worth nothing afterwards."""
    node = await verifier.enrol()
    old, new = node.key, PrivateKey.generate()
    await verifier.client(node).roll(node.id, new)
    node.key = new
    assert (await verifier.attest(node))["ear_status"] == "affirming"
    node.key = old
    with pytest.raises(VerifierError) as refused:
        await verifier.client(node).open_session()
    assert code(refused) == (401, "request.unauthorised")


async def test_a_key_that_does_not_prove_itself_is_not_rolled_in(verifier) -> None:
    """A node cannot make another's public key its own."""
    node = await verifier.enrol()
    theirs = PrivateKey.generate().public
    target = f"/api/v1/nodes/{node.id}/key"
    authority = verifier.url.partition("://")[2]
    proof = Request("POST", authority, target).authorize(node.key, now=verifier.clock.seconds)
    body = msgspec.json.encode({"key": base64.b64encode(theirs.encode()).decode(), "proof": proof})
    header = Request("POST", authority, target, body).authorize(node.key, now=verifier.clock.seconds)
    async with verifier.http.post(
        verifier.url + target, data=body, headers={"Authorization": header}
    ) as response:
        assert response.status == 401


async def test_a_node_rolls_no_other_nodes_key(verifier) -> None:
    """Nor does it hold another's channel."""
    mine, yours = await verifier.enrol(), await verifier.enrol()
    with pytest.raises(VerifierError) as refused:
        await verifier.client(mine).roll(yours.id, PrivateKey.generate())
    assert code(refused) == (403, "request.forbidden")
    with pytest.raises(VerifierError) as refused:
        async for _ in verifier.client(mine).calls(yours.id):
            pass
    assert code(refused) == (403, "request.forbidden")


async def test_a_token_for_a_node_replaces_its_lost_key(verifier) -> None:
    """With an administrator's word, a reinstalled node stays the node it was."""
    node = await verifier.enrol()
    token = await verifier.token(node_id=node.id)
    again = SimulatedNode(verifier.model_folder)
    given = await verifier.client(again).enrol(token, [MODEL])
    assert given["node"] == node.id
    with pytest.raises(VerifierError):
        await verifier.client(node).open_session()


async def test_a_retired_node_is_out(verifier) -> None:
    """Its results are revoked, its requests refused; retiring needs the administrator."""
    node = await verifier.enrol()
    good = await verifier.attest(node)
    url = f"{verifier.url}/api/v1/nodes/{node.id}"
    async with verifier.stranger.delete(url) as response:
        assert response.status == 401
    async with verifier.http.delete(url) as response:
        assert response.status == 204
    _, status = await verifier.get(f"/api/v1/results/{good['jti']}")
    assert status["state"] == "revoked"
    with pytest.raises(VerifierError) as refused:
        await verifier.client(node).open_session()
    assert code(refused) == (403, "request.forbidden")


async def test_a_signed_request_is_accepted_once(verifier) -> None:
    """Replayed as it was, it is refused by the database."""
    node = await verifier.enrol()
    target = "/challenge-response/v1/newSession"
    request = Request("POST", verifier.url.partition("://")[2], target)
    headers = {"Authorization": request.authorize(node.key, now=verifier.clock.seconds)}
    async with verifier.http.post(verifier.url + target, headers=headers) as first:
        assert first.status == 201
    async with verifier.http.post(verifier.url + target, headers=headers) as second:
        assert second.status == 409
        assert (await second.json(content_type=None))["type"].endswith("#request.replayed")


@pytest.mark.parametrize(
    "change",
    [
        {"method": "GET"},
        {"authority": "other.example"},
        {"target": "/challenge-response/v1/newSession?nonceSize=8"},
        {"body": b"x"},
        {"now": +31},
        {"now": -31},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_signature_for_another_request_is_refused(verifier, change) -> None:
    """Method, authority, target, body and time are all bound."""
    node = await verifier.enrol()
    target = "/challenge-response/v1/newSession"
    fields = {"method": "POST", "authority": verifier.url.partition("://")[2], "target": target, **change}
    now = verifier.clock.seconds + fields.pop("now", 0)
    headers = {"Authorization": Request(**fields).authorize(node.key, now=now)}
    async with verifier.http.post(verifier.url + target, headers=headers) as response:
        assert response.status == 401
        assert (await response.json(content_type=None))["type"].endswith("#request.unauthorised")
    assert await verifier.rows("SELECT * FROM sessions") == []


@pytest.mark.parametrize(
    "header",
    ["", "Touchstone-Node", "Touchstone-Node !!!!", "Touchstone-Node AAAA", "Bearer x", "Basic eDp5"],
)
async def test_a_broken_authorization_header_is_401(verifier, header: str) -> None:
    """Never a stack trace, never a 500."""
    url = verifier.url + "/challenge-response/v1/newSession"
    async with verifier.http.post(url, headers={"Authorization": header}) as response:
        assert response.status == 401
        assert response.content_type == "application/problem+json"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"token": 1}',
        b'{"token": "x", "key": "", "models": ["a"], "more": 1}',
        b'{"token": "x", "key": "AAAA", "models": []}',
        b'{"token": "x", "key": "AAAA", "models": ["../etc"]}',
        b'{"token": "x", "key": "AAAA", "models": ["a"]}',
        b"\xff\xfe",
        b"[" * 10_000,
    ],
)
async def test_a_malformed_enrolment_is_400(verifier, body: bytes) -> None:
    """The body is read strictly."""
    async with verifier.http.post(verifier.url + "/api/v1/nodes", data=body) as response:
        assert response.status == 400
        assert (await response.json(content_type=None))["type"].endswith("#request.malformed")


async def test_a_client_shows_a_refusal_as_a_sentence(verifier) -> None:
    """What the operator reads: title, detail, hint."""
    client = VerifierClient(
        verifier.http, verifier.url, PrivateKey.generate(), now=lambda: verifier.clock.seconds
    )
    with pytest.raises(VerifierError, match="The caller did not prove who it is"):
        await client.open_session()
