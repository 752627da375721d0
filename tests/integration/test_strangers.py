"""A flood by a stranger never takes from an enrolled node, even if both have one address."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from attester.client import Session
from attester.evidence import MEDIA_TYPE
from attester.proof import Request
from fixtures.simulator import SimulatedNode
from tests.conftest import RunningVerifier
from tests.integration.front import served

BURST = 10
"""Of one address: a sixth of what it has in a minute."""


@pytest.fixture(params=[(), ("127.0.0.0/8",)], ids=["no trusted proxy", "a trusted proxy"])
def verifier_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    from fixtures.fleet import free_port

    listen = f"127.0.0.1:{free_port()}"
    return {
        "service": {"listen": listen, "url": f"http://{listen}", "trusted_proxies": list(request.param)},
        "sessions": {"per_address_per_minute": 60, "strangers_per_minute": 180, "per_node_per_minute": 100},
        "calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0},
        "policy": {"workers": 1},
    }


async def ask(verifier: RunningVerifier, method: str, path: str, data: bytes = b"", **headers: str) -> int:
    async with verifier.stranger.request(method, verifier.url + path, data=data, headers=headers) as response:
        return response.status


async def flood(verifier: RunningVerifier, **headers: str) -> set[int]:
    """260 requests of a stranger, of every kind that strangers may send."""
    seen = {await ask(verifier, "POST", "/challenge-response/v1/newSession", **headers)}
    session = "s.unknown"
    async with verifier.stranger.post(
        f"{verifier.url}/challenge-response/v1/newSession", headers=headers
    ) as response:
        if response.status == 201:
            session = response.headers["Location"].rpartition("/")[2]
    for _ in range(52):
        path = f"/challenge-response/v1/session/{session}"
        seen.add(await ask(verifier, "POST", path, b"x", **{"Content-Type": MEDIA_TYPE}, **headers))
        seen.add(await ask(verifier, "POST", "/challenge-response/v1/session/none", b"x", **headers))
        seen.add(await ask(verifier, "POST", "/challenge-response/v1/newSession", **headers))
        seen.add(await ask(verifier, "POST", "/api/v1/nodes", b"{}", **headers))
        forged = {"Authorization": "Touchstone-Node AAAA"}
        seen.add(await ask(verifier, "GET", "/api/v1/nodes/x/calls", **forged, **headers))
    return seen


async def attest_whole(verifier: RunningVerifier, node: SimulatedNode) -> None:
    """All that a node does: a session, evidence, a call with its answers, the channel."""
    session = await verifier.client(node).open_session()
    await verifier.submit(session, node.evidence(session, iat=verifier.clock.seconds), node)
    await verifier.attest(node)
    path = f"/api/v1/nodes/{node.id}/calls"
    proof = Request("GET", verifier.url.partition("://")[2], path).authorize(
        node.key, now=verifier.clock.seconds
    )
    async with verifier.http.get(verifier.url + path, headers={"Authorization": proof}) as response:
        assert response.status == 200


async def test_a_flood_takes_nothing_from_a_node(verifier: RunningVerifier) -> None:
    """Though both have one address, with a proxy or without, and the stranger is over every limit."""
    node = await verifier.enrol()
    assert 429 in await flood(verifier)
    await attest_whole(verifier, node)


async def test_many_nodes_live_behind_one_address(verifier: RunningVerifier) -> None:
    """What they sign counts for each of them, and never for their address: that has a burst of ten here."""
    nodes = [await verifier.enrol(), await verifier.enrol()]
    for _ in range(2 * BURST):
        for node in nodes:
            session = await verifier.client(node).open_session()
            verifier.clock.forward(1)
    assert session.id
    assert await ask(verifier, "POST", "/challenge-response/v1/newSession") == 201


async def test_an_address_that_cannot_prove_what_it_says_is_refused(verifier: RunningVerifier) -> None:
    """Guesses of the token count for the address; the right token does not."""
    wrong = {"Authorization": "Bearer " + "x" * 43}
    seen = [await ask(verifier, "DELETE", "/api/v1/nodes/none", **wrong) for _ in range(BURST + 1)]
    assert seen == [401] * BURST + [429]
    right = {"Authorization": f"bearer {verifier.service.admin_token}"}
    for _ in range(2 * BURST):
        assert await ask(verifier, "DELETE", "/api/v1/nodes/none", **right) == 404


async def test_a_leaked_session_costs_that_session_alone(verifier: RunningVerifier) -> None:
    """Whoever knows its id is refused after a while.  The node answers calls, and later opens another one."""
    node, other = await verifier.enrol(), await verifier.enrol()
    leaked = await verifier.client(node).open_session()
    seen = [(await verifier.post(leaked, b"x"))[0] for _ in range(400)]
    assert seen[0] == 400
    assert seen[-1] == 429
    await attest_whole(verifier, other)
    await verifier.attest(node)
    assert await ask(verifier, "POST", "/challenge-response/v1/newSession") == 201
    verifier.clock.forward(verifier.service.config.sessions.lifetime_s + 1)
    await attest_whole(verifier, node)


async def test_large_evidence_costs_a_session_more(verifier: RunningVerifier) -> None:
    """A node that sends a megabyte again and again is refused soon."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    seen = [(await verifier.post(session, bytes(1 << 20)))[0] for _ in range(15)]
    assert (seen[0], seen[-1]) == (400, 429)


async def test_a_node_cannot_change_its_key_without_end(verifier: RunningVerifier) -> None:
    """What it signs is counted, this too."""
    node = await verifier.enrol()
    path, authority = f"/api/v1/nodes/{node.id}/key", verifier.url.partition("://")[2]
    seen = []
    for _ in range(2 * BURST):
        proof = Request("POST", authority, path, b"{}").authorize(node.key, now=verifier.clock.seconds)
        seen.append(await ask(verifier, "POST", path, b"{}", Authorization=proof))
    assert (seen[0], seen[-1]) == (400, 429)


async def test_a_node_that_floods_costs_itself(verifier: RunningVerifier) -> None:
    """Its own rate, and neither another node's nor its address's."""
    loud, quiet = await verifier.enrol(), await verifier.enrol()
    path = f"/api/v1/nodes/{quiet.id}/calls"
    authority = verifier.url.partition("://")[2]
    seen = []
    for _ in range(200):
        proof = Request("GET", authority, path).authorize(loud.key, now=verifier.clock.seconds)
        seen.append(await ask(verifier, "GET", path, Authorization=proof))
    assert (seen[0], seen[-1]) == (403, 429)
    await attest_whole(verifier, quiet)
    assert await ask(verifier, "POST", "/challenge-response/v1/newSession") == 201


async def open_as(verifier: RunningVerifier, address: str, count: int) -> list[int]:
    headers = {"X-Forwarded-For": address}
    return [await ask(verifier, "POST", "/challenge-response/v1/newSession", **headers) for _ in range(count)]


async def test_strangers_count_by_the_address_that_a_trusted_proxy_tells(
    verifier: RunningVerifier, request: pytest.FixtureRequest
) -> None:
    """And by the peer's where no proxy is trusted, whatever it says."""
    is_trusted = bool(verifier.service.config.service.trusted_proxies)
    assert 429 in await open_as(verifier, "203.0.113.1", BURST + 1)
    assert await open_as(verifier, "203.0.113.2", 1) == ([201] if is_trusted else [429])
    # What a client says of itself stands before what the proxy adds.
    assert await open_as(verifier, "203.0.113.9, 203.0.113.1", 1) == [429]


async def test_a_network_of_ipv6_is_one_stranger(verifier: RunningVerifier) -> None:
    """Each of its addresses spends from the same."""
    seen = []
    for n in range(BURST + 1):
        seen += await open_as(verifier, f"2001:db8::{n + 1:x}", 1)
    assert seen[-1] == 429


async def test_all_strangers_have_one_budget(verifier: RunningVerifier) -> None:
    """Many addresses with a little each are refused too, and a node is not."""
    node = await verifier.enrol()
    seen = []
    for n in range(40):
        seen += await open_as(verifier, f"203.0.113.{n}", 1)
    assert seen[-1] == 429
    await attest_whole(verifier, node)


async def test_guesses_of_api_keys_count_for_the_address(tmp_path: Path) -> None:
    """At the router; a right key is served beside them."""
    keys = [{"name": "ada", "sha256": hashlib.sha256(b"ada").hexdigest()}]
    settings = {"per_address_per_minute": 60, "sections": {"keys": keys}}
    async with served("router", tmp_path, **settings) as service, aiohttp.ClientSession() as http:

        async def get(path: str, key: str) -> int:
            async with http.get(service.url + path, headers={"Authorization": f"Bearer {key}"}) as response:
                return response.status

        for path in ("/v1/models", "/api/v1/decisions/none"):
            seen = await asyncio.gather(*(get(path, f"guess{n}") for n in range(2 * BURST)))
            assert 429 in seen
        assert await get("/v1/models", "ada") == 200
        assert await get("/api/v1/decisions/none", "ada") == 404


async def test_a_session_that_is_not_known_is_a_strangers(verifier: RunningVerifier) -> None:
    """Guesses of ids are refused after a while, whatever the method."""
    session = Session("0" * 32, b"", ())
    seen = [(await verifier.post(session, b"x"))[0] for _ in range(BURST + 1)]
    assert (seen[0], seen[-1]) == (404, 429)
    assert (await verifier.get("/challenge-response/v1/session/none"))[0] == 429
    assert await ask(verifier, "DELETE", "/challenge-response/v1/session/none") == 429


PUBLIC = ("/.well-known/jwks.json", "/.well-known/veraison/verification")


async def test_whoever_only_looks_is_counted_too(verifier: RunningVerifier) -> None:
    """No resource without a credential can be asked without end, where an answer costs more than a refusal."""
    node = await verifier.enrol()
    for path in PUBLIC:
        verifier.clock.forward(60)
        seen = [await ask(verifier, "GET", path) for _ in range(BURST + 1)]
        assert (seen[0], seen[-1]) == (200, 429)
    await attest_whole(verifier, node)


@pytest.mark.parametrize("shown", ["Bearer guess", "Bearer", "Basic eDp4", "Touchstone-Node AAAA", ""])
async def test_a_credential_that_is_none_does_not_lift_the_limit(
    verifier: RunningVerifier, shown: str
) -> None:
    """Where none is needed, whoever shows a wrong one is a stranger like any other."""
    for path in PUBLIC:
        verifier.clock.forward(60)
        seen = [await ask(verifier, "GET", path, Authorization=shown) for _ in range(BURST + 1)]
        assert (seen[0], seen[-1]) == (200, 429)


async def test_a_credential_lifts_the_limit_of_strangers(verifier: RunningVerifier) -> None:
    """A router reads the keys while strangers at its address are refused."""
    assert 429 in await flood(verifier)
    right = {"Authorization": f"Bearer {verifier.service.admin_token}"}
    for path in PUBLIC:
        assert await ask(verifier, "GET", path) == 429
        assert await ask(verifier, "GET", path, **right) == 200


async def test_a_flood_takes_no_verifier_from_its_load_balancer(verifier: RunningVerifier) -> None:
    """Who asks whether it serves is answered, though its address and all strangers have spent what they have."""
    for n in range(40):
        await open_as(verifier, f"203.0.113.{n}", 1)
    assert 429 in await flood(verifier)
    for path in ("/health", "/ready"):
        assert await ask(verifier, "GET", path) == 200
        assert await ask(verifier, "HEAD", path) == 200
