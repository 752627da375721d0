"""Where nodes are is not shown to strangers: every route is asked without a credential, and with each role."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fixtures.simulator import SimulatedNode
from router.gateway.pinned import GuardedResolver, LookupFailedError
from router.model.outcomes import Failure
from router.service import access as router_access
from tests.integration.gateway import CHAT, CHATS, Fleet, by, key, opened
from tests.integration.test_access import ROUTES, path_of
from tests.unit.router.doubles import until
from verifier.roles import GRANTED, Role
from verifier.service.access import Anyone, Route

HOST = "hidden-host.example"
URL = f"https://{HOST}:8443"
PRIVATE = "10.77.66.55"
SEES = {Role.OPERATOR, Role.RELYING_PARTY, Role.ROUTER, Role.REVIEWER, Role.AUDITOR, Role.ADMINISTRATOR}
"""By results, which are signed as a whole (docs/access.md)."""
RESULTS = {
    "GET /api/v1/nodes/{id}/result",
    "GET /api/v1/results",
    "GET /api/v1/results/{jti}",
    "GET /api/v1/events",
}


def tells(data: bytes, *secrets: str) -> bool:
    """Whether an answer has one of them, also inside of what is signed."""
    parts = [data]
    for text in re.findall(rb"[A-Za-z0-9_+/-]{24,}", data):
        # Both alphabets at once: what is searched for needs neither of their two last characters.
        whole = text.translate(bytes.maketrans(b"-_", b"+/"))[: len(text) // 4 * 4]
        parts.append(base64.b64decode(whole))
    return any(secret.encode() in part for part in parts for secret in secrets)


def test_what_is_signed_is_looked_into() -> None:
    """Otherwise nothing would ever be found."""
    payload = base64.urlsafe_b64encode(json.dumps({"url": URL}).encode()).rstrip(b"=")
    assert tells(b'{"token":"eyJhbGciOiJFUzI1NiJ9.' + payload + b'.c2ln"}', HOST)
    assert not tells(b"", HOST)


async def heard(http: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str]) -> bytes:
    """What comes, head and body; of a stream, what comes at once."""
    body = b"{}" if method == "POST" else None
    async with http.request(method, url, headers=headers, data=body, allow_redirects=False) as response:
        found = repr(response.headers).encode()
        try:
            async with asyncio.timeout(0.3):
                found += await response.read()
        except TimeoutError:
            found += b"".join(response.content._buffer)
        return found


async def told_by(
    http: aiohttp.ClientSession,
    base: str,
    routes: list[Route],
    names: Mapping[str, str],
    headers: Mapping[str, str],
) -> set[str]:
    """The routes that tell where the node is."""
    found = set()
    for route in routes:
        path = path_of(route, names["node"])
        for template, value in names.items():
            path = path.replace(template, value)
        path = path.replace("{tile:.+}", "entries/000")
        methods = ["GET", "HEAD"] if route.method == "GET" and route.has_head else [route.method]
        for method in methods:
            if tells(await heard(http, method, base + path, headers), HOST, PRIVATE):
                found.add(f"{route.method} {route.path}")
    return found


@pytest.fixture
async def attested(verifier) -> Any:
    """A node with a result, with an incident, and with events about it."""
    node = await verifier.enrol(SimulatedNode(verifier.model_folder, url=URL))
    other = await verifier.enrol(SimulatedNode(verifier.model_folder, url=URL, tls_key=node.tls_key))
    await verifier.attest(other)
    claims = await verifier.attest(node)
    (row, *_) = await verifier.rows("SELECT id FROM incidents")
    names = {
        "node": node.id,
        "results/x": f"results/{claims['jti']}",
        "incidents/x": f"incidents/{row['id']}",
    }
    return names | {"events": "events?after=0"}


async def test_a_stranger_learns_no_endpoint_from_the_verifier(verifier, attested) -> None:
    """By no route, with ids of things that exist."""
    assert await told_by(verifier.stranger, verifier.url, ROUTES, attested, {}) == set()


@pytest.mark.parametrize("role", GRANTED)
async def test_only_who_reads_results_learns_endpoints(verifier, attested, role: Role) -> None:
    """Who writes policies does not, and nobody learns one from a list of nodes, an incident or a figure."""
    more = {"operator": "acme"} if role is Role.OPERATOR else {}
    headers = await verifier.key("somebody", role, **more)
    harmless = [route for route in ROUTES if route.method == "GET"]
    found = await told_by(verifier.stranger, verifier.url, harmless, attested, headers)
    assert bool(found) is (role in SEES)
    assert found <= RESULTS


async def test_another_operator_learns_nothing(verifier, attested) -> None:
    """It sees its own nodes alone."""
    headers = await verifier.key("rival", Role.OPERATOR, operator="rival")
    reads = [route for route in ROUTES if route.method == "GET"]
    assert await told_by(verifier.stranger, verifier.url, reads, attested, headers) == set()


async def test_the_verifiers_log_and_figures_name_no_endpoint(verifier, attested, capfd) -> None:
    """Logs go to more people than results."""
    assert (await verifier.get("/api/v1/nodes"))[0] == 200
    said = capfd.readouterr()
    assert not tells((said.out + said.err).encode(), HOST)


KEYS = {
    "client": {},
    "dispatcher": {"may_dispatch": True},
    "operator": {"roles": ["operator"], "operator": "acme"},
    "reviewer": {"roles": ["reviewer"]},
    "auditor": {"roles": ["auditor"]},
    "administrator": {"roles": ["administrator"]},
}


@pytest.fixture
async def routed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Fleet, dict[str, str]]]:
    """A router that knows three nodes: of one the name is not found, and two are where it may not connect."""

    async def unknown(*_: Any, **__: Any) -> Any:
        raise LookupFailedError(Failure.NO_NAME_SERVER)

    monkeypatch.setattr(GuardedResolver, "resolve", unknown)
    async with opened(tmp_path) as fleet:
        pin = fleet.certificate("a").pin
        for name, url in (("a", URL), ("b", f"https://{PRIVATE}:8443"), ("c", "https://127.0.0.1:9")):
            fleet.verifier.trust(name, endpoint={"url": url, "spki_sha256": pin})
        sections = {"keys": [key(name, **given) for name, given in KEYS.items()]}
        await fleet.start(sections=sections, allow_private=False)
        workload = fleet.router.table.workloads["tiny"]
        await until(lambda: fleet.router.verdict("a", workload) is None)
        _, _, headers = await fleet.post(CHAT, CHATS, **by("client"))
        names = {"node": "b", "decisions/x": f"decisions/{headers['X-Touchstone-Decision']}"}
        yield fleet, names


async def test_a_stranger_learns_no_endpoint_from_a_router(routed) -> None:
    """Neither from errors nor from what anyone may read."""
    fleet, names = routed
    assert await told_by(fleet.http, fleet.url, router_access.routes(), names, {}) == set()


@pytest.mark.parametrize("name", KEYS)
async def test_at_a_router_only_who_may_dispatch_learns_endpoints(routed, name: str) -> None:
    """Decisions say why a node was left out, and not where it is."""
    fleet, names = routed
    reads = [route for route in router_access.routes() if route.method == "GET"]
    assert await told_by(fleet.http, fleet.url, reads, names, by(name)) == set()
    body = {"model": CHAT["model"], "explain": True}
    async with fleet.http.post(f"{fleet.url}/api/v1/decisions", json=body, headers=by(name)) as response:
        told = tells(await response.read(), HOST, PRIVATE)
    assert told is (name == "dispatcher")


async def test_a_decision_says_that_an_address_is_refused_and_not_which(routed) -> None:
    """Its reader may not know where nodes are."""
    fleet, names = routed
    async with fleet.http.get(f"{fleet.url}/api/v1/{names['decisions/x']}", headers=by("client")) as response:
        excluded = (await response.json())["excluded"]
    assert excluded["b"]["code"] == "address.not-allowed"
    assert "is not a public address" in excluded["b"]["detail"]


async def test_the_routers_log_names_no_endpoint(routed, capfd) -> None:
    """Attempts, probes and look-ups name the node by its id."""
    fleet, _ = routed
    await fleet.post(CHAT, CHATS, **by("client"))
    said = capfd.readouterr()
    assert not tells((said.out + said.err).encode(), HOST, PRIVATE)


def test_no_route_that_is_open_to_anyone_gives_results() -> None:
    """Except a session, whose id is the capability and which its node alone knows."""
    paths = {route.path for route in ROUTES if isinstance(route.allowed, Anyone)}
    assert not any("result" in path or path.startswith("/api/v1/nodes/") for path in paths)
