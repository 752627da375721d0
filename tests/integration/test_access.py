"""Who may call what: every route with every role, and with credentials that are missing or wrong."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from attester.proof import Request
from fixtures.credentials import bearer
from fixtures.simulator import MODEL, SimulatedNode
from fixtures.sockets import exchange
from tests.integration.maintenance import fill, serving
from verifier.roles import GRANTED, HOME_ADMIN, Role
from verifier.service import access, access_page, credentials
from verifier.service.access import Anyone, Route
from verifier.service.app import routes
from verifier.store import api_keys
from verifier.store.api_keys import NewKey

DAY_MS = 86_400_000
ROUTES = routes()
IDS = {
    "{digest:[0-9a-f]{64}}": "0" * 64,
    "{model:.+}": MODEL,
    "{tile:.+}": "0/000",
    "{number}": "7",
    "{name}": "x",
}
REFUSED = (401, 403)


def path_of(route: Route, node: str) -> str:
    """A path of the route; ids are of things that do not exist, except for the node's."""
    path = route.path
    for template, value in IDS.items():
        path = path.replace(template, value)
    path = path.replace("/nodes/{id}", f"/nodes/{node}")
    for name in ("id", "jti", "session", "step", "policy", "other"):
        path = path.replace(f"{{{name}}}", "x")
    assert "{" not in path
    return path


def asked(route: Route) -> list[str]:
    return ["GET", "HEAD"] if route.method == "GET" and route.has_head else [route.method]


@pytest.fixture
def stranger(verifier) -> aiohttp.ClientSession:
    """A client without a credential."""
    http: aiohttp.ClientSession = verifier.stranger
    return http


async def make_key(verifier: Any, *roles: Role, name: str | None = None, **more: Any) -> dict[str, str]:
    if Role.OPERATOR in roles:
        more.setdefault("operator", "acme")
    new = NewKey(name or f"key-{secrets.token_hex(4)}", roles, **more)
    secret = await verifier.service.db.write(
        lambda tx: api_keys.create(tx, new, "os:test", verifier.clock.ms)
    )
    return bearer(secret)


async def status(http: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str]) -> int:
    async with http.request(method, url, headers=headers, allow_redirects=False) as response:
        return response.status


async def statuses(verifier: Any, http: aiohttp.ClientSession, headers: Mapping[str, str]) -> dict[Any, int]:
    """What each method of each route answers."""
    return {
        (method, route.path): await status(http, method, verifier.url + path_of(route, "x"), headers)
        for route in ROUTES
        for method in asked(route)
    }


def expected(role: Role | None) -> dict[tuple[str, str], bool]:
    """Whether each method of each route opens to a role, or to nobody known."""
    return {
        (method, route.path): isinstance(route.allowed, Anyone) or role in route.allowed
        for route in ROUTES
        for method in asked(route)
    }


@pytest.mark.parametrize("role", GRANTED)
async def test_each_role_opens_what_the_table_says_and_nothing_else(verifier, stranger, role: Role) -> None:
    """403 to everything else; whatever the handler then says of ids that do not exist is its own affair."""
    found = await statuses(verifier, stranger, await make_key(verifier, role))
    assert {place: code not in REFUSED for place, code in found.items()} == expected(role)
    assert 401 not in found.values()


async def test_a_node_opens_what_the_table_says_and_nothing_else(verifier, stranger) -> None:
    """By a signature for each request."""
    node = await verifier.enrol()
    found = {}
    for route in ROUTES:
        for method in asked(route):
            path = path_of(route, node.id)
            verifier.clock.forward(2)
            signed = Request(method, verifier.url.partition("://")[2], path)
            headers = {"Authorization": signed.authorize(node.key, now=verifier.clock.seconds)}
            found[method, route.path] = await status(stranger, method, verifier.url + path, headers)
    assert {place: code not in REFUSED for place, code in found.items()} == expected(Role.NODE)


async def no_credential(verifier: Any) -> dict[str, str]:
    return {}


async def wrong_key(verifier: Any) -> dict[str, str]:
    return bearer(api_keys.PREFIX + secrets.token_urlsafe(32))


async def revoked_key(verifier: Any) -> dict[str, str]:
    key = await make_key(verifier, Role.ADMINISTRATOR, name="gone")
    await verifier.service.db.write(lambda tx: api_keys.revoke(tx, "gone", verifier.clock.ms))
    return key


async def expired_key(verifier: Any) -> dict[str, str]:
    key = await make_key(verifier, Role.ADMINISTRATOR, expires_ms=verifier.clock.ms + DAY_MS)
    verifier.clock.forward(86_400)
    return key


async def no_secret(verifier: Any) -> dict[str, str]:
    return {"Authorization": "Bearer"}


async def digest_of_a_key(verifier: Any) -> dict[str, str]:
    """What somebody reads who reads the database."""
    key = await make_key(verifier, Role.ADMINISTRATOR)
    secret = key["Authorization"].partition(" ")[2]
    return bearer(api_keys.PREFIX + api_keys.digest_of(secret).hex())


async def part_of_the_home_token(verifier: Any) -> dict[str, str]:
    return bearer(verifier.service.admin_token[:-1])


async def another_scheme(verifier: Any) -> dict[str, str]:
    return {"Authorization": f"Basic {verifier.service.admin_token}"}


async def token_without_a_scheme(verifier: Any) -> dict[str, str]:
    return {"Authorization": verifier.service.admin_token}


WRONG = [
    no_credential,
    wrong_key,
    revoked_key,
    expired_key,
    no_secret,
    digest_of_a_key,
    part_of_the_home_token,
    another_scheme,
    token_without_a_scheme,
]


@pytest.mark.parametrize("credential", WRONG)
async def test_without_a_good_credential_only_the_open_routes_open(verifier, stranger, credential) -> None:
    """401 to everything else, with what would be accepted."""
    headers = await credential(verifier)
    found = await statuses(verifier, stranger, headers)
    opens = {place: code not in REFUSED for place, code in found.items()}
    if headers:
        # A wrong credential is refused also where none is needed, if one would change the answer.
        opens["POST", "/challenge-response/v1/newSession"] = True
    opens["POST", "/api/v1/nodes"] = True
    assert opens == expected(None)
    assert 403 not in found.values()
    async with stranger.get(f"{verifier.url}/api/v1/nodes", headers=headers) as response:
        assert response.headers["WWW-Authenticate"] == "Touchstone-Node, Bearer"


async def test_two_credentials_in_one_request_are_none(verifier, stranger) -> None:
    """Which of them a proxy checked, nobody knows."""
    good = bearer(verifier.service.admin_token)["Authorization"]
    headers = [("Authorization", good), ("Authorization", good)]
    async with stranger.get(f"{verifier.url}/api/v1/nodes", headers=headers) as response:
        assert response.status == 401


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
async def test_the_name_of_a_scheme_has_no_case(verifier, stranger, scheme: str) -> None:
    """RFC 9110 §11.1, and any number of spaces after it."""
    headers = {"Authorization": f"{scheme} {verifier.service.admin_token}"}
    assert await status(stranger, "GET", f"{verifier.url}/api/v1/nodes", headers) == 200


@pytest.mark.parametrize("scheme", ["touchstone-node", "TOUCHSTONE-NODE"])
async def test_nor_has_that_of_nodes(verifier, stranger, scheme: str) -> None:
    """So a proxy that writes it differently changes nothing."""
    node = await verifier.enrol()
    path = f"/api/v1/nodes/{node.id}"
    signed = Request("GET", verifier.url.partition("://")[2], path)
    value = signed.authorize(node.key, now=verifier.clock.seconds).partition(" ")[2]
    assert await status(stranger, "GET", verifier.url + path, {"Authorization": f"{scheme} {value}"}) == 200


def test_every_route_is_in_the_table(verifier_app) -> None:
    """No route came into the application another way."""
    mounted = {(route.method, route.resource.canonical) for route in verifier_app.router.routes()}
    plain = [(r, r.path.replace(":[0-9a-f]{64}", "").replace(":.+", "")) for r in ROUTES]
    assert mounted == {(method, path) for route, path in plain for method in asked(route)}
    assert {route.handler for route in verifier_app.router.routes()} == {route.handler for route in ROUTES}


@pytest.fixture
def verifier_app() -> web.Application:
    app = web.Application()

    async def identify(*_: Any) -> Any:
        raise AssertionError

    access.mount(app, ROUTES, identify)
    return app


async def test_a_route_past_the_table_does_not_answer(unused_tcp_port: int) -> None:
    """Whoever forgets to say who may call it gets 404."""
    from verifier.service import problem

    async def handler(_: web.Request) -> web.Response:
        return web.Response(text="open")

    app = web.Application(middlewares=[problem.middleware])

    async def identify(*_: Any) -> Any:
        return access.STRANGER

    access.mount(app, [access.get("/known", handler, access.PUBLIC, "Known.")], identify)
    app.router.add_get("/forgotten", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{unused_tcp_port}") as http:
        assert (await http.get("/known")).status == 200
        assert (await http.get("/forgotten")).status == 404
    await runner.cleanup()


def test_a_route_needs_a_decision() -> None:
    """There is no default that a forgotten argument would fall back to."""
    with pytest.raises(TypeError, match="allowed"):
        Route(method="GET", path="/x", handler=lambda _: None, summary="x")


def test_the_page_is_written_from_the_table() -> None:
    """By `python -m verifier.service.access_page docs/access.md`."""
    page = Path(__file__).parents[2] / "docs" / "access.md"
    assert page.read_text() == access_page.filled(page.read_text())
    assert access_page.table() in page.read_text()


def test_administrators_may_do_all_that_people_may_do() -> None:
    """And auditors read all of it, and change nothing."""
    for route in ROUTES:
        if isinstance(route.allowed, Anyone) or route.allowed == access.BY_NODE:
            continue
        assert Role.ADMINISTRATOR in route.allowed
        assert (Role.AUDITOR in route.allowed) == (route.method == "GET")


TRICKS = [
    "//api/v1/nodes",
    "/api//v1/nodes",
    "/api/v1/nodes/",
    "/api/v1/%6eodes",
    "/api%2fv1/nodes",
    "/api/v1/./nodes",
    "/health/../api/v1/nodes",
    "/.well-known/../api/v1/nodes",
    "/challenge-response/v1/session/../../../api/v1/nodes",
    "/challenge-response/v1/session/..%2f..%2f..%2fapi/v1/nodes",
    "/api/v1/nodes;a=b",
    "/api/v1/nodes%00",
    "/API/V1/NODES",
    "/api/v1/nodes?x=/health",
    "/health#/api/v1/nodes",
    "http://elsewhere/api/v1/nodes",
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"])
async def test_no_other_writing_of_a_request_reaches_a_handler(verifier, method: str) -> None:
    """Neither of the path nor of the method."""
    await verifier.enrol()
    for target in TRICKS:
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await exchange(verifier.url, head.encode())
        assert b'"operator"' not in answer, target
        code = int(answer.split(b" ", 2)[1])
        assert code in (400, 401, 404, 405) or target.startswith("/health#"), (target, code)


async def test_an_operator_sees_its_own_nodes_results_and_incidents(verifier, stranger) -> None:
    """In lists by filter; one by one 404, as if the others did not exist."""
    ours, theirs = await verifier.enrol(operator="acme"), await verifier.enrol(operator="umbrella")
    results = {node.id: (await verifier.attest(node))["jti"] for node in (ours, theirs)}
    spoilt = []
    for node in (ours, theirs):
        report = {"node": node.id, "kind": "settlement-mismatch", "detail": "claims 10 times"}
        async with verifier.http.post(f"{verifier.url}/api/v1/incidents", json=report) as response:
            spoilt.append((await response.json())["id"])
        url = f"{verifier.url}/api/v1/incidents/{spoilt[-1]}/quarantine"
        async with verifier.http.post(url, json={"reason": "seen"}) as response:
            assert response.status == 200
    key = await make_key(verifier, Role.OPERATOR)

    async def read(path: str) -> Any:
        async with stranger.get(f"{verifier.url}/api/v1/{path}", headers=key) as response:
            return await response.json(content_type=None) if response.status == 200 else response.status

    assert [node["node"] for node in (await read("nodes"))["nodes"]] == [ours.id]
    assert [entry["id"] for entry in (await read("incidents"))["incidents"]] == [spoilt[0]]
    assert [entry["id"] for entry in (await read(f"incidents?node={theirs.id}"))["incidents"]] == []
    for node, incident, found in ((ours, spoilt[0], True), (theirs, spoilt[1], False)):
        for path in (f"nodes/{node.id}", f"results/{results[node.id]}", f"incidents/{incident}"):
            assert (await read(path) != 404) == found, path
    assert await read(f"nodes/{theirs.id}/result") == 404
    # Whoever is held has no live result.
    third = await verifier.enrol(operator="acme")
    for node in (third, await verifier.enrol(operator="umbrella")):
        await verifier.attest(node)
    assert [entry["node"] for entry in (await read("results"))["results"]] == [third.id]


async def test_a_role_that_sees_all_is_not_narrowed_by_the_operator_beside_it(verifier, stranger) -> None:
    """Where only the operator opens, it is."""
    node = await verifier.enrol(operator="umbrella")
    await verifier.attest(node)
    both = await make_key(verifier, Role.OPERATOR, Role.RELYING_PARTY)
    url = f"{verifier.url}/api/v1"
    assert await status(stranger, "GET", f"{url}/nodes/{node.id}/result", both) == 200
    assert await status(stranger, "GET", f"{url}/nodes/{node.id}", both) == 404


async def ask_as(verifier: Any, http: aiohttp.ClientSession, node: SimulatedNode, path: str) -> int:
    signed = Request("GET", verifier.url.partition("://")[2], path)
    headers = {"Authorization": signed.authorize(node.key, now=verifier.clock.seconds)}
    return await status(http, "GET", verifier.url + path, headers)


async def test_a_node_sees_itself_alone(verifier, stranger) -> None:
    """Its own state, result and models; 404 for all others'."""
    ours, theirs = await verifier.enrol(), await verifier.enrol()
    results = {node.id: (await verifier.attest(node))["jti"] for node in (ours, theirs)}
    for node, code in ((ours, 200), (theirs, 404)):
        for path in (f"nodes/{node.id}", f"nodes/{node.id}/result", f"results/{results[node.id]}"):
            assert await ask_as(verifier, stranger, ours, f"/api/v1/{path}") == code, path
    assert await ask_as(verifier, stranger, ours, f"/api/v1/reference-values/{MODEL}") == 200
    assert await ask_as(verifier, stranger, ours, "/api/v1/reference-values/another/model") == 404


async def test_a_nodes_signature_reads_once(verifier, stranger) -> None:
    """As everywhere: a signed request is accepted once."""
    node = await verifier.enrol()
    path = f"/api/v1/nodes/{node.id}"
    signed = Request("GET", verifier.url.partition("://")[2], path)
    headers = {"Authorization": signed.authorize(node.key, now=verifier.clock.seconds)}
    found = [await status(stranger, "GET", verifier.url + path, headers) for _ in range(2)]
    assert found == [200, 409]


async def test_a_retired_node_reads_nothing(verifier, stranger) -> None:
    """Not even about itself."""
    node = await verifier.enrol()
    path = f"/api/v1/nodes/{node.id}"
    assert await status(verifier.http, "DELETE", verifier.url + path, {}) == 204
    assert await ask_as(verifier, stranger, node, path) == 403


async def test_a_key_that_is_revoked_ends_its_stream_of_events(verifier, stranger) -> None:
    """And not only its later requests."""
    key = await make_key(verifier, Role.ROUTER, name="router-7")
    async with stranger.get(f"{verifier.url}/api/v1/events", headers=key) as response:
        await response.content.readline()
        await verifier.service.db.write(lambda tx: api_keys.revoke(tx, "router-7", verifier.clock.ms))
        verifier.clock.forward(1)
        await asyncio.wait_for(response.content.read(), 10)
    assert await status(stranger, "GET", f"{verifier.url}/api/v1/results", key) == 401


async def test_the_log_has_no_id_of_a_session(verifier, stranger, monkeypatch) -> None:
    """It opens the session, so it must not stand in a log, whatever fails."""

    async def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("verifier.service.sessions.load_session", fail)
    secret = secrets.token_hex(16)
    url = f"{verifier.url}/challenge-response/v1/session/{secret}"
    with structlog.testing.capture_logs() as logged:
        assert await status(stranger, "GET", url, {}) == 500
    # Duties of the service log too.
    paths = [entry["path"] for entry in logged if "path" in entry]
    assert paths == ["/challenge-response/v1/session/{id}"]
    assert secret not in str(logged)


async def test_health_needs_nothing(verifier, stranger) -> None:
    """Live, and ready if the database can be used."""
    assert await status(stranger, "GET", f"{verifier.url}/health", {}) == 200
    assert await status(stranger, "GET", f"{verifier.url}/ready", {}) == 200


async def test_the_homes_own_credentials_have_names(verifier) -> None:
    """Which are the actors of their steps."""
    assert {caller.name for caller in verifier.service.home_callers.values()} == {HOME_ADMIN, "home-router"}


@pytest.fixture
async def on_loopback(verifier_home: Any, model_folder: Path, clock: Any) -> AsyncIterator[Any]:
    """A verifier whose metrics are open to this machine."""
    path = verifier_home.path / "verifier.toml"
    text = path.read_text().replace("metrics_on_loopback = false", "metrics_on_loopback = true")
    path.write_text(text)
    await fill(verifier_home, clock, model_folder, reads=1, walks=1)
    async with serving(verifier_home, clock, model_folder) as running:
        yield running


FORWARDED = {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1", "Via": "1.1 x", "X-Real-IP": "::1"}


async def test_metrics_may_be_open_to_this_machine_alone(on_loopback) -> None:
    """A request that a proxy has passed on needs a credential, whatever address it names."""
    http, url = on_loopback.stranger, on_loopback.url
    assert await status(http, "GET", f"{url}/metrics", {}) == 200
    assert await status(http, "GET", f"{url}/api/v1/challenges", {}) == 401
    for name, value in FORWARDED.items():
        assert await status(http, "GET", f"{url}/metrics", {name: value}) == 401


async def test_by_default_metrics_need_an_auditor(verifier, stranger) -> None:
    """Also from this machine."""
    assert await status(stranger, "GET", f"{verifier.url}/metrics", {}) == 401


@given(st.binary(max_size=60))
def test_any_authorization_is_read(data: bytes) -> None:
    """As one scheme and one value, whatever bytes come."""
    text = data.decode("utf-8", "surrogateescape")
    request = SimpleNamespace(headers=CIMultiDict(Authorization=text))
    scheme, value = credentials._authorization(request)
    assert scheme == scheme.lower()
    assert " " not in scheme
    assert value == value.strip(" ")
